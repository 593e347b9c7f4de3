//! Aligned columns for a terminal.
//!
//! Owns the layout: numbers to the right, everything else to the left, a line below the names.
//! A table wider than the terminal gets its widest text columns cut, and then loses columns from
//! its middle. Two passes over the table: one for the widths, one for the rows.

use std::io::Write;

use datafusion::arrow::array::Array;
use datafusion::arrow::datatypes::DataType;
use oxidask_store::Payload;

use super::json::{self, Form};
use super::{RenderError, unique_names};
use crate::table::BatchDecoder;

/// A column is not cut below this width.
const CUT_WIDTH_MIN: usize = 8;

/// What stands between two columns.
const GAP: &str = "  ";

/// Marks what was cut.
const CUT: &str = "…";

/// How a table is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextForm {
    /// Columns of the terminal; no limit if absent.
    pub width: Option<usize>,
    /// Rows that are printed; all if absent.
    pub rows_max: Option<u64>,
}

struct Column {
    /// Its index in the table; none for the mark of left-out columns.
    index: Option<usize>,
    name: String,
    is_number: bool,
    width: usize,
}

pub(super) fn write(
    table: &Payload,
    form: TextForm,
    to: &mut dyn Write,
) -> Result<u64, RenderError> {
    let (mut columns, rows) = measure(table, form)?;
    if let Some(width) = form.width {
        fit(&mut columns, width);
    }
    line(&columns, to, |column| column.name.clone())?;
    let rule: Vec<String> = columns
        .iter()
        .map(|column| "─".repeat(column.width))
        .collect();
    writeln!(to, "{}", rule.join(GAP))?;
    let shown = form.rows_max.unwrap_or(u64::MAX);
    let mut printed = 0;
    'table: for batch in BatchDecoder::new(table)? {
        let batch = batch?;
        let encoders = json::encoders(&batch, Form::Plain)?;
        let nulls: Vec<_> = batch.columns().iter().map(Array::logical_nulls).collect();
        for row in 0..batch.num_rows() {
            if printed == shown {
                break 'table;
            }
            line(&columns, to, |column| match column.index {
                Some(index) => {
                    let is_null = nulls[index]
                        .as_ref()
                        .is_some_and(|nulls| nulls.is_null(row));
                    cell(&encoders[index], row, is_null)
                }
                None => CUT.to_owned(),
            })?;
            printed += 1;
        }
    }
    if printed < rows {
        writeln!(to, "{CUT} {} more rows", rows - printed)?;
    }
    Ok(rows)
}

/// Columns with the width of their longest cell among the rows that are printed, and all rows.
fn measure(table: &Payload, form: TextForm) -> Result<(Vec<Column>, u64), RenderError> {
    let decoder = BatchDecoder::new(table)?;
    let schema = decoder.schema();
    let mut columns: Vec<_> = unique_names(&schema)
        .into_iter()
        .zip(schema.fields())
        .enumerate()
        .map(|(index, (name, field))| Column {
            index: Some(index),
            width: width_of(&name),
            name: one_line(&name),
            is_number: field.data_type().is_numeric(),
        })
        .collect();
    let shown = form.rows_max.unwrap_or(u64::MAX);
    let mut rows = 0;
    for batch in decoder {
        let batch = batch?;
        let encoders = json::encoders(&batch, Form::Plain)?;
        for (column, (array, encoder)) in columns
            .iter_mut()
            .zip(batch.columns().iter().zip(&encoders))
        {
            let nulls = array.logical_nulls();
            let is_nothing = array.data_type() == &DataType::Null;
            let left = usize::try_from(shown.saturating_sub(rows)).unwrap_or(usize::MAX);
            for row in 0..batch.num_rows().min(left) {
                let is_null = is_nothing || nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                column.width = column.width.max(width_of(&cell(encoder, row, is_null)));
            }
        }
        rows += batch.num_rows() as u64;
    }
    Ok((columns, rows))
}

fn cell(encoder: &json::Encoder<'_>, row: usize, is_null: bool) -> String {
    if is_null {
        return "NULL".to_owned();
    }
    let mut bytes = Vec::new();
    encoder(row, &mut bytes);
    one_line(&String::from_utf8_lossy(&bytes))
}

/// Control characters would break the lines, or worse.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '⏎',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect()
}

fn line(
    columns: &[Column],
    to: &mut dyn Write,
    cell: impl Fn(&Column) -> String,
) -> Result<(), RenderError> {
    let mut text = String::new();
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            text.push_str(GAP);
        }
        let cell = cut(&cell(column), column.width);
        let padding = " ".repeat(column.width.saturating_sub(width_of(&cell)));
        if column.is_number {
            text.extend([padding.as_str(), &cell]);
        } else {
            text.extend([cell.as_str(), &padding]);
        }
    }
    writeln!(to, "{}", text.trim_end())?;
    Ok(())
}

fn total(columns: &[Column]) -> usize {
    columns
        .iter()
        .map(|column| column.width + GAP.len())
        .sum::<usize>()
        .saturating_sub(GAP.len())
}

/// Makes the columns fit: first narrower texts, then fewer columns.
fn fit(columns: &mut Vec<Column>, width: usize) {
    loop {
        let over = total(columns).saturating_sub(width);
        if over == 0 {
            return;
        }
        let mut widths: Vec<usize> = columns
            .iter()
            .filter(|c| !c.is_number)
            .map(|column| column.width)
            .collect();
        widths.sort_unstable();
        let Some(widest) = widths.pop().filter(|widest| *widest > CUT_WIDTH_MIN) else {
            break;
        };
        // The widest shrinks to the next one, or as far as needed.
        let next = widths.last().copied().unwrap_or(0);
        let least = next
            .min(widest - 1)
            .max(CUT_WIDTH_MIN)
            .max(widest.saturating_sub(over));
        if let Some(column) = columns
            .iter_mut()
            .find(|column| !column.is_number && column.width == widest)
        {
            column.width = least;
        }
    }
    if columns.len() < 3 {
        return;
    }
    let middle = columns.len() / 2;
    columns[middle] = Column {
        index: None,
        name: CUT.to_owned(),
        is_number: false,
        width: width_of(CUT),
    };
    let mut at = middle;
    while total(columns) > width && columns.len() > 3 {
        // Alternately from the right and the left of the mark, so that both ends stay.
        if columns.len() - 1 - at > at {
            columns.remove(at + 1);
        } else {
            columns.remove(at - 1);
            at -= 1;
        }
    }
}

fn cut(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut used = 0;
    for c in text.chars() {
        let next = char_width(c);
        if used + next + 1 > width {
            break;
        }
        used += next;
        shown.push(c);
    }
    shown + CUT
}

fn width_of(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// Columns that a character takes: none for combining marks, two for East Asian ones and emoji.
fn char_width(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0x1_f300..=0x1_f64f
        | 0x1_f900..=0x1_f9ff
        | 0x2_0000..=0x3_fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, width: usize, is_number: bool) -> Column {
        Column {
            index: Some(0),
            name: name.to_owned(),
            is_number,
            width,
        }
    }

    #[test]
    fn wide_texts_are_cut_before_columns_are_left_out() {
        let mut columns = vec![
            column("a", 40, false),
            column("n", 10, true),
            column("b", 30, false),
        ];
        fit(&mut columns, 50);
        assert_eq!(total(&columns), 50);
        assert_eq!(columns.len(), 3);
        assert_eq!(columns[1].width, 10, "numbers stay whole");

        let mut columns: Vec<_> = (0..20).map(|_| column("n", 10, true)).collect();
        fit(&mut columns, 60);
        assert!(total(&columns) <= 60);
        assert_eq!(
            columns
                .iter()
                .filter(|column| column.index.is_none())
                .count(),
            1
        );
    }

    #[test]
    fn cuts_by_width_not_by_bytes() {
        assert_eq!(cut("Zürich", 6), "Zürich");
        assert_eq!(cut("Zürich", 4), "Zür…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(one_line("a\nb\u{1b}[0m"), "a⏎b [0m");
    }
}
