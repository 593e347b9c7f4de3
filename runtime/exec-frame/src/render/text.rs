//! Aligned columns for a terminal.
//!
//! Owns the layout: numbers to the right, everything else to the left, a line below the names.
//! A table wider than the terminal gets its widest text columns cut, and then loses columns from
//! its middle. Two passes over its beginning, one for the widths and one for the rows, and one
//! over the rest.

use std::io::Write;

use datafusion::arrow::array::Array;
use datafusion::arrow::datatypes::DataType;
use oxidask_store::Payload;

use super::json::{self, Form};
use super::{RenderError, unique_names};
use crate::table::BatchDecoder;

/// Parts of a table wait for its layout up to so many bytes, or so many parts.
const LAYOUT_BYTES_MAX: u64 = 1 << 20;
const LAYOUT_PARTS_MAX: usize = 4_096;

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

/// A table that comes in parts, all with the same columns, printed as one.
///
/// The first parts wait until there are enough of them to know how wide the columns are, or until
/// the end. What comes later is printed as it comes: a wider cell of a column stands out.
#[derive(Debug)]
pub struct TextTable {
    form: TextForm,
    waiting: Vec<Payload>,
    waiting_bytes: u64,
    layout: Option<Layout>,
    printed: u64,
    rows: u64,
}

impl TextTable {
    /// A table without rows so far.
    pub fn new(form: TextForm) -> Self {
        Self {
            form,
            waiting: Vec::new(),
            waiting_bytes: 0,
            layout: None,
            printed: 0,
            rows: 0,
        }
    }

    /// Takes the next part.
    pub fn part(&mut self, part: Payload, to: &mut dyn Write) -> Result<(), RenderError> {
        if let Some(layout) = self.layout.take() {
            self.print(&layout, &part, to)?;
            self.layout = Some(layout);
            return Ok(());
        }
        self.waiting_bytes += part.len();
        self.waiting.push(part);
        if self.waiting_bytes >= LAYOUT_BYTES_MAX || self.waiting.len() >= LAYOUT_PARTS_MAX {
            self.begin(to)?;
        }
        Ok(())
    }

    /// Prints what is left. Gives the number of rows of the table; a table without any part prints
    /// nothing.
    pub fn finish(mut self, to: &mut dyn Write) -> Result<u64, RenderError> {
        if self.layout.is_none() && !self.waiting.is_empty() {
            self.begin(to)?;
        }
        if self.printed < self.rows {
            writeln!(to, "{CUT} {} more rows", self.rows - self.printed)?;
        }
        Ok(self.rows)
    }

    /// Decides the layout and prints what has waited for it.
    fn begin(&mut self, to: &mut dyn Write) -> Result<(), RenderError> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut columns = Vec::new();
        let mut rows = 0;
        for part in &waiting {
            measure(part, self.form, &mut columns, &mut rows)?;
        }
        let mut spare = usize::MAX;
        if let Some(width) = self.form.width {
            fit(&mut columns, width);
            spare = width.saturating_sub(total(&columns));
        }
        let layout = Layout { columns, spare };
        line(&layout, to, |column| column.name.clone())?;
        let rule = layout.columns.iter().map(|column| "─".repeat(column.width));
        writeln!(to, "{}", rule.collect::<Vec<_>>().join(GAP))?;
        for part in &waiting {
            self.print(&layout, part, to)?;
        }
        self.layout = Some(layout);
        Ok(())
    }

    fn print(
        &mut self,
        layout: &Layout,
        part: &Payload,
        to: &mut dyn Write,
    ) -> Result<(), RenderError> {
        let shown = self.form.rows_max.unwrap_or(u64::MAX);
        for batch in BatchDecoder::new(part)? {
            let batch = batch?;
            self.rows += batch.num_rows() as u64;
            let encoders = json::encoders(&batch, Form::Plain)?;
            let nulls: Vec<_> = batch.columns().iter().map(Array::logical_nulls).collect();
            for row in 0..batch.num_rows() {
                if self.printed == shown {
                    break;
                }
                line(layout, to, |column| {
                    let Some(index) = column.index else {
                        return CUT.to_owned();
                    };
                    let nulls = nulls.get(index).and_then(Option::as_ref);
                    let is_null = nulls.is_some_and(|nulls| nulls.is_null(row));
                    encoders
                        .get(index)
                        .map_or_else(String::new, |encoder| cell(encoder, row, is_null))
                })?;
                self.printed += 1;
            }
        }
        Ok(())
    }
}

/// Columns and what is left of the terminal beside them.
#[derive(Debug)]
struct Layout {
    columns: Vec<Column>,
    spare: usize,
}

#[derive(Debug)]
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
    let mut text = TextTable::new(form);
    text.part(table.clone(), to)?;
    text.finish(to)
}

/// Gives columns the width of their longest cell among the rows that are printed, counts rows.
fn measure(
    table: &Payload,
    form: TextForm,
    columns: &mut Vec<Column>,
    rows: &mut u64,
) -> Result<(), RenderError> {
    let decoder = BatchDecoder::new(table)?;
    if columns.is_empty() {
        let schema = decoder.schema();
        let named = unique_names(&schema).into_iter().zip(schema.fields());
        columns.extend(named.enumerate().map(|(index, (name, field))| Column {
            index: Some(index),
            width: width_of(&name),
            name: one_line(&name),
            is_number: field.data_type().is_numeric(),
        }));
    }
    let shown = form.rows_max.unwrap_or(u64::MAX);
    for batch in decoder {
        let batch = batch?;
        let encoders = json::encoders(&batch, Form::Plain)?;
        for (column, (array, encoder)) in columns
            .iter_mut()
            .zip(batch.columns().iter().zip(&encoders))
        {
            let nulls = array.logical_nulls();
            let is_nothing = array.data_type() == &DataType::Null;
            let left = usize::try_from(shown.saturating_sub(*rows)).unwrap_or(usize::MAX);
            for row in 0..batch.num_rows().min(left) {
                let is_null = is_nothing || nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                column.width = column.width.max(width_of(&cell(encoder, row, is_null)));
            }
        }
        *rows += batch.num_rows() as u64;
    }
    Ok(())
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
    layout: &Layout,
    to: &mut dyn Write,
    cell: impl Fn(&Column) -> String,
) -> Result<(), RenderError> {
    let mut text = String::new();
    for (index, column) in layout.columns.iter().enumerate() {
        if index > 0 {
            text.push_str(GAP);
        }
        let mut cell = cell(column);
        if !column.is_number {
            cell = cut(&cell, column.width.saturating_add(layout.spare));
        }
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
