//! Two tables of wide rows. Keys of `build` are all different; most rows of `probe` meet one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use oxidask_tpch::{Answer, Kind as Column};

use super::{answer, mixed, write_parquet};
use crate::Failure;

/// Memory of a row of `build`: key, text, where the text is.
const ROW_BYTES: u64 = 256;
const PAYLOAD_WORDS: u64 = 14;
const NOTE_WORDS: u64 = 15;
const CATEGORIES: u64 = 20;
const FILES: u64 = 8;
const BATCH_ROWS: u64 = 8_192;
/// A prime larger than any number of rows: multiples of it reach every key once.
const STRIDE: u64 = 2_654_435_761;

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    build_rows: u64,
}

impl Size {
    /// `build` takes four times this memory.
    pub(super) fn of_memory(memory_bytes: u64) -> Self {
        Self {
            build_rows: 4 * memory_bytes / ROW_BYTES,
        }
    }

    /// More, and wider, rows, so that `build` is the side to build from.
    fn probe_rows(self) -> u64 {
        self.build_rows * 5 / 4
    }

    /// Keys of `probe` lie below; those from `build_rows` on meet nothing.
    fn key_bound(self) -> u64 {
        self.build_rows * 9 / 8
    }

    fn probe_key(self, row: u64) -> u64 {
        mixed(row) % self.key_bound()
    }
}

/// What the query gives for a category.
#[derive(Debug, Default)]
struct Group {
    pairs: u64,
    amount: u64,
    payload: String,
    note: String,
}

/// Writes both tables and gives the answer of the query.
pub(super) fn write(folder: &Path, size: Size) -> Result<Answer, Failure> {
    write_table(&folder.join("build"), size.build_rows, |rows| {
        let keys: Vec<u64> = rows.map(|row| row * STRIDE % size.build_rows).collect();
        let payloads = keys.iter().map(|key| text(*key, PAYLOAD_WORDS));
        Ok(RecordBatch::try_from_iter([
            (
                "payload",
                Arc::new(StringArray::from_iter_values(payloads)) as ArrayRef,
            ),
            ("key", Arc::new(integers(keys.iter().copied())?)),
        ])?)
    })?;
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    write_table(&folder.join("probe"), size.probe_rows(), |rows| {
        let notes: Vec<String> = rows.clone().map(|row| text(!row, NOTE_WORDS)).collect();
        for (row, note) in rows.clone().zip(&notes) {
            let key = size.probe_key(row);
            if key < size.build_rows {
                groups
                    .entry(row % CATEGORIES)
                    .or_default()
                    .add(row, key, note);
            }
        }
        let categories = rows.clone().map(|row| i32::try_from(row % CATEGORIES));
        let categories = categories.collect::<Result<Vec<_>, _>>()?;
        Ok(RecordBatch::try_from_iter([
            (
                "key",
                Arc::new(integers(rows.clone().map(|row| size.probe_key(row)))?) as ArrayRef,
            ),
            ("category", Arc::new(Int32Array::from(categories))),
            ("amount", Arc::new(integers(rows.map(amount))?)),
            ("note", Arc::new(StringArray::from_iter_values(notes))),
        ])?)
    })?;
    let row = |(category, group): (u64, Group)| {
        let numbers = [category, group.pairs, group.amount].map(|number| number.to_string());
        let [category, pairs, amount] = numbers;
        [category, pairs, amount, group.payload, group.note]
    };
    let columns = [
        Column::Number,
        Column::Number,
        Column::Number,
        Column::Text,
        Column::Text,
    ];
    Ok(answer(columns, groups.into_iter().map(row).collect()))
}

impl Group {
    fn add(&mut self, row: u64, key: u64, note: &str) {
        self.pairs += 1;
        self.amount += amount(row);
        let payload = text(key, PAYLOAD_WORDS);
        if payload > self.payload {
            self.payload = payload;
        }
        if *note > *self.note {
            note.clone_into(&mut self.note);
        }
    }
}

fn amount(row: u64) -> u64 {
    mixed(row ^ 0xA5A5) % 1_000
}

fn integers(numbers: impl Iterator<Item = u64>) -> Result<Int64Array, Failure> {
    Ok(numbers
        .map(i64::try_from)
        .collect::<Result<Vec<_>, _>>()?
        .into())
}

/// Hexadecimal words that no compression makes much smaller.
fn text(seed: u64, words: u64) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for word in 0..words {
        // Writing into a string cannot fail.
        let _ = write!(
            text,
            "{:016x}",
            mixed(seed.wrapping_mul(words).wrapping_add(word))
        );
    }
    text
}

/// Writes the rows of a table, in order, to several files.
fn write_table(
    folder: &Path,
    rows: u64,
    mut batch: impl FnMut(std::ops::Range<u64>) -> Result<RecordBatch, Failure>,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    for file in 0..FILES {
        let mut next = rows * file / FILES;
        let end = rows * (file + 1) / FILES;
        let batches = std::iter::from_fn(|| {
            let range = next..end.min(next + BATCH_ROWS);
            next = range.end;
            (!range.is_empty()).then(|| batch(range))
        });
        write_parquet(&folder.join(format!("part-{file}.parquet")), batches)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_build_are_all_different_and_most_of_probe_meet_one() {
        let size = Size::of_memory(64 << 10);
        let keys: std::collections::BTreeSet<u64> = (0..size.build_rows)
            .map(|row| row * STRIDE % size.build_rows)
            .collect();
        assert_eq!(
            (keys.len() as u64, size.build_rows),
            (size.build_rows, 1_024)
        );
        let folder = tempfile::tempdir().unwrap();
        let answer = write(folder.path(), size).unwrap();
        assert_eq!(answer.rows.len(), 20);
        let pairs = answer
            .rows
            .iter()
            .map(|row| row[1].as_ref().unwrap().parse::<u64>().unwrap());
        let pairs: u64 = pairs.sum();
        // Eight of nine keys have a partner.
        assert!((1_080..1_200).contains(&pairs), "{pairs}");
        assert_eq!(
            std::fs::read_dir(folder.path().join("probe"))
                .unwrap()
                .count(),
            8
        );
    }
}
