//! CSV files in which one cell of twenty is missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use oxidask_tpch::{Answer, Kind as Column};

use super::{Random, answer};
use crate::Failure;
use crate::sql::figures::float;

const CATEGORIES: u64 = 20;
/// One cell of so many is missing.
const MISSING_OF: u64 = 20;
/// Values lie below this many millionths.
const VALUE_MICROS: u64 = 1_000_000_000;

/// How much there is.
pub(super) struct Size {
    pub(super) files: u32,
    pub(super) rows_per_file: u64,
}

impl Size {
    pub(super) const FULL: Self = Self {
        files: 5,
        rows_per_file: 1_000_000,
    };
}

/// Sums over the values of a category, in millionths, without any rounding.
#[derive(Debug, Default)]
struct Sums {
    rows: u64,
    sum: u128,
    squares: u128,
}

/// Writes the files and gives mean, deviation and number of values of each category.
pub(super) fn write(folder: &Path, size: &Size) -> Result<Answer, Failure> {
    let mut random = Random(5);
    let mut categories: BTreeMap<u64, Sums> = BTreeMap::new();
    let mut id = 0_u64;
    for file in 0..size.files {
        let file = File::create(folder.join(format!("part-{file}.csv")))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        writeln!(file, "id,value,category,timestamp")?;
        for _ in 0..size.rows_per_file {
            let mut cell = |bound| {
                let value = random.below(bound);
                (random.below(MISSING_OF) > 0).then_some(value)
            };
            let (value, category, second) =
                (cell(VALUE_MICROS), cell(CATEGORIES), cell(28 * 24 * 3_600));
            write!(file, "{id},")?;
            if let Some(value) = value {
                write!(file, "{}.{:06}", value / 1_000_000, value % 1_000_000)?;
            }
            write!(file, ",")?;
            if let Some(category) = category {
                write!(file, "category-{category:02}")?;
            }
            write!(file, ",")?;
            if let Some(second) = second {
                let (day, hour) = (second / 86_400 + 1, second / 3_600 % 24);
                let (minute, second) = (second / 60 % 60, second % 60);
                write!(file, "2026-02-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
            }
            writeln!(file)?;
            if let (Some(value), Some(category), Some(_)) = (value, category, second) {
                let sums = categories.entry(category).or_default();
                sums.rows += 1;
                sums.sum += u128::from(value);
                sums.squares += u128::from(value) * u128::from(value);
            }
            id += 1;
        }
        file.flush()?;
    }
    let rows = categories
        .into_iter()
        .map(|(category, sums)| sums.row(category))
        .collect();
    let columns = [Column::Text, Column::Float, Column::Float, Column::Number];
    Ok(answer(columns, rows))
}

impl Sums {
    #[allow(clippy::cast_precision_loss, reason = "the last step of a mean")]
    fn row(&self, category: u64) -> [String; 4] {
        let rows = float(self.rows);
        let mean = self.sum as f64 / rows / 1e6;
        let spread = u128::from(self.rows) * self.squares - self.sum * self.sum;
        let deviation = (spread as f64 / rows / (rows - 1.0)).sqrt() / 1e6;
        [
            format!("category-{category:02}"),
            mean.to_string(),
            deviation.to_string(),
            self.rows.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_rows_that_have_all_cells() {
        let folder = tempfile::tempdir().unwrap();
        let size = Size {
            files: 2,
            rows_per_file: 2_000,
        };
        let answer = write(folder.path(), &size).unwrap();
        let mut seen: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut missing = 0;
        for file in 0..2 {
            let file = folder.path().join(format!("part-{file}.csv"));
            let text = std::fs::read_to_string(file).unwrap();
            assert_eq!(text.lines().count(), 2_001);
            for line in text.lines().skip(1) {
                let cells: Vec<&str> = line.split(',').collect();
                assert_eq!(cells.len(), 4);
                if cells.iter().any(|cell| cell.is_empty()) {
                    missing += 1;
                    continue;
                }
                let value = cells[1].parse().unwrap();
                seen.entry(cells[2].to_owned()).or_default().push(value);
            }
        }
        // 1 - 0.95 * 0.95 * 0.95 of 4,000.
        assert!((500..640).contains(&missing), "{missing}");
        assert_eq!(answer.rows.len(), 20);
        for row in &answer.rows {
            let values = &seen[row[0].as_ref().unwrap()];
            let rows = float(values.len() as u64);
            let mean = values.iter().sum::<f64>() / rows;
            let squares = values
                .iter()
                .map(|value| (value - mean).powi(2))
                .sum::<f64>();
            let expected = [mean, (squares / (rows - 1.0)).sqrt(), rows];
            for (cell, expected) in row[1..].iter().zip(expected) {
                let cell: f64 = cell.as_ref().unwrap().parse().unwrap();
                assert!(
                    (cell - expected).abs() < 1e-9 * expected,
                    "{cell} {expected}"
                );
            }
        }
    }
}
