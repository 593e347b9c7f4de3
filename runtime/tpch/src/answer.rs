//! Answers of queries as text, and whether two of them are equal.
//!
//! The order of rows counts as far as `ORDER BY` decides it: rows of equal keys are a set. Rows that
//! tie with the last one under a `LIMIT` may be others altogether; only their keys are compared.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Order, TpchError};

/// Two engines may add floats in another order.
const FLOAT_TOLERANCE: f64 = 1e-9;
/// Another engine may also compute decimals as floats and round means.
const PEER_TOLERANCE: f64 = 1e-6;
/// The specification allows this for money.
const PEER_ABSOLUTE: f64 = 0.011;

/// How cells of a column are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Letter by letter: texts, dates, truth values.
    Text,
    /// Integers and decimals.
    Number,
    /// Floating point.
    Float,
}

/// Rows as text, `None` for NULL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// How to compare each column.
    pub columns: Vec<Kind>,
    /// The rows in order.
    pub rows: Vec<Vec<Option<String>>>,
}

/// How much two numbers may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// The same engine: integers and decimals by their digits, floats by a billionth.
    Exact,
    /// Another engine, with other types: every number by a millionth or a cent.
    Peer,
}

/// Where two answers differ first.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Difference {
    /// In their columns.
    #[error("expected `{expected}` columns, got `{got}`")]
    Columns {
        /// Columns of the right answer.
        expected: usize,
        /// Columns of the other.
        got: usize,
    },
    /// In their length.
    #[error("expected `{expected}` rows, got `{got}`")]
    Length {
        /// Rows of the right answer.
        expected: usize,
        /// Rows of the other.
        got: usize,
    },
    /// In the keys by which they are ordered.
    #[error("row `{row}`: expected the order `{expected}`, got `{got}`")]
    Key {
        /// Position, from 0.
        row: usize,
        /// The right keys.
        expected: String,
        /// The others.
        got: String,
    },
    /// In the rows of one key.
    #[error(
        "row `{row}`: expected `{expected}`, which is not among the rows of its key; got `{got}`"
    )]
    Row {
        /// Position of the right row, from 0.
        row: usize,
        /// The right row.
        expected: String,
        /// The other answer's row at that position.
        got: String,
    },
}

impl Answer {
    /// The rows of batches, in order.
    pub fn from_batches(schema: &Schema, batches: &[RecordBatch]) -> Result<Self, TpchError> {
        let columns = schema
            .fields()
            .iter()
            .map(|field| kind(field.data_type()))
            .collect();
        let options = FormatOptions::default();
        let mut rows = Vec::new();
        for batch in batches {
            let formatters = batch
                .columns()
                .iter()
                .map(|column| ArrayFormatter::try_new(column, &options))
                .collect::<Result<Vec<_>, _>>()?;
            for row in 0..batch.num_rows() {
                let mut cells = Vec::with_capacity(formatters.len());
                for (formatter, column) in formatters.iter().zip(batch.columns()) {
                    let text = || formatter.value(row).try_to_string();
                    cells.push(if column.is_null(row) {
                        None
                    } else {
                        Some(text()?)
                    });
                }
                rows.push(cells);
            }
        }
        Ok(Self { columns, rows })
    }
}

fn kind(data_type: &DataType) -> Kind {
    match data_type {
        DataType::Dictionary(_, values) => kind(values),
        other if other.is_floating() => Kind::Float,
        other if other.is_numeric() => Kind::Number,
        _ => Kind::Text,
    }
}

/// Whether `got` is a right answer where `expected` is one, and if not, why.
pub fn compare(
    order: Order,
    expected: &Answer,
    got: &Answer,
    strictness: Strictness,
) -> Result<(), Difference> {
    let length = |answer: &Answer| answer.rows.len();
    if length(expected) != length(got) {
        return Err(Difference::Length {
            expected: length(expected),
            got: length(got),
        });
    }
    let widths = |answer: &Answer| answer.rows.first().map_or(0, Vec::len);
    if widths(expected) != widths(got) {
        return Err(Difference::Columns {
            expected: widths(expected),
            got: widths(got),
        });
    }
    let comparison = Comparison {
        columns: &expected.columns,
        order,
        strictness,
    };
    for (row, (left, right)) in expected.rows.iter().zip(&got.rows).enumerate() {
        if !comparison.keys_equal(left, right) {
            let shown = |cells: &Row| -> String {
                let keys = order.columns.iter().map(|at| shown_cell(cells, *at));
                keys.collect::<Vec<_>>().join("|")
            };
            return Err(Difference::Key {
                row,
                expected: shown(left),
                got: shown(right),
            });
        }
    }
    let mut start = 0;
    while let Some(first) = expected.rows.get(start) {
        let same = expected.rows[start..]
            .iter()
            .take_while(|row| comparison.keys_equal(first, row));
        let end = start + same.count().max(1);
        let is_cut = order.limit.is_some_and(|limit| end == limit) && !order.columns.is_empty();
        if !is_cut {
            comparison.sets_equal(start, &expected.rows[start..end], &got.rows[start..end])?;
        }
        start = end;
    }
    Ok(())
}

type Row = Vec<Option<String>>;

fn shown_cell(row: &Row, at: usize) -> String {
    row.get(at)
        .cloned()
        .flatten()
        .unwrap_or_else(|| "NULL".to_owned())
}

fn shown_row(row: &Row) -> String {
    (0..row.len())
        .map(|at| shown_cell(row, at))
        .collect::<Vec<_>>()
        .join("|")
}

struct Comparison<'a> {
    columns: &'a [Kind],
    order: Order,
    strictness: Strictness,
}

impl Comparison<'_> {
    fn keys_equal(&self, left: &Row, right: &Row) -> bool {
        self.order
            .columns
            .iter()
            .all(|at| self.cells_equal(*at, left, right))
    }

    fn rows_equal(&self, left: &Row, right: &Row) -> bool {
        left.len() == right.len() && (0..left.len()).all(|at| self.cells_equal(at, left, right))
    }

    fn cells_equal(&self, at: usize, left: &Row, right: &Row) -> bool {
        let (left, right) = match (left.get(at), right.get(at)) {
            (Some(Some(left)), Some(Some(right))) => (left, right),
            (left, right) => return left == right,
        };
        let kind = self.columns.get(at).copied().unwrap_or(Kind::Text);
        let numbers = || Some((left.parse::<f64>().ok()?, right.parse::<f64>().ok()?));
        left == right
            || match (kind, self.strictness) {
                (Kind::Text, _) | (Kind::Number, Strictness::Exact) => false,
                (Kind::Float, Strictness::Exact) => numbers().is_some_and(|(left, right)| {
                    is_near(left, right, FLOAT_TOLERANCE) || (left.is_nan() && right.is_nan())
                }),
                (_, Strictness::Peer) => numbers().is_some_and(|(left, right)| {
                    is_near(left, right, PEER_TOLERANCE) || (left - right).abs() < PEER_ABSOLUTE
                }),
            }
    }

    /// Whether two runs of rows with the same key hold the same rows in any order.
    fn sets_equal(&self, start: usize, expected: &[Row], got: &[Row]) -> Result<(), Difference> {
        let mut left: Vec<_> = expected.iter().enumerate().collect();
        let mut right: Vec<_> = got.iter().collect();
        left.sort_by_key(|(_, row)| *row);
        right.sort();
        // Sorted rows mostly stand beside each other; numbers that differ a little may not.
        let paired = left.iter().zip(&right);
        if paired
            .into_iter()
            .all(|((_, left), right)| self.rows_equal(left, right))
        {
            return Ok(());
        }
        for (at, row) in left {
            match right.iter().position(|other| self.rows_equal(row, other)) {
                Some(found) => drop(right.swap_remove(found)),
                None => {
                    return Err(Difference::Row {
                        row: start + at,
                        expected: shown_row(row),
                        got: got.get(at).map_or_else(String::new, shown_row),
                    });
                }
            }
        }
        Ok(())
    }
}

fn is_near(left: f64, right: f64, tolerance: f64) -> bool {
    (left - right).abs() <= tolerance * left.abs().max(right.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(columns: &[Kind], rows: &[&[&str]]) -> Answer {
        let cell = |text: &&str| (*text != "NULL").then(|| (*text).to_owned());
        let rows = rows
            .iter()
            .map(|row| row.iter().map(cell).collect())
            .collect();
        Answer {
            columns: columns.to_vec(),
            rows,
        }
    }

    const BY_FIRST: Order = Order {
        columns: &[0],
        limit: None,
    };
    const COLUMNS: [Kind; 2] = [Kind::Number, Kind::Text];

    #[test]
    fn rows_of_one_key_are_a_set_and_keys_are_a_sequence() {
        let right = answer(&COLUMNS, &[&["1", "a"], &["1", "b"], &["2", "c"]]);
        let swapped = answer(&COLUMNS, &[&["1", "b"], &["1", "a"], &["2", "c"]]);
        assert_eq!(
            compare(BY_FIRST, &right, &swapped, Strictness::Exact),
            Ok(())
        );
        let disordered = answer(&COLUMNS, &[&["2", "c"], &["1", "a"], &["1", "b"]]);
        let found = compare(BY_FIRST, &right, &disordered, Strictness::Exact);
        assert!(
            matches!(found, Err(Difference::Key { row: 0, .. })),
            "{found:?}"
        );
        let doubled = answer(&COLUMNS, &[&["1", "a"], &["1", "a"], &["2", "c"]]);
        let found = compare(BY_FIRST, &right, &doubled, Strictness::Exact);
        assert!(
            matches!(found, Err(Difference::Row { row: 1, .. })),
            "{found:?}"
        );
    }

    #[test]
    fn only_the_last_key_under_a_limit_may_hold_other_rows() {
        let limited = Order {
            columns: &[0],
            limit: Some(3),
        };
        let right = answer(&COLUMNS, &[&["1", "a"], &["2", "b"], &["2", "c"]]);
        let other = answer(&COLUMNS, &[&["1", "a"], &["2", "d"], &["2", "c"]]);
        assert_eq!(compare(limited, &right, &other, Strictness::Exact), Ok(()));
        assert!(compare(BY_FIRST, &right, &other, Strictness::Exact).is_err());
        let wrong = answer(&COLUMNS, &[&["1", "x"], &["2", "b"], &["2", "c"]]);
        assert!(compare(limited, &right, &wrong, Strictness::Exact).is_err());
    }

    #[test]
    fn decimals_are_exact_and_floats_nearly() {
        let order = Order {
            columns: &[],
            limit: None,
        };
        let check = |kind, left, right, strictness| {
            let (left, right) = (answer(&[kind], &[&[left]]), answer(&[kind], &[&[right]]));
            compare(order, &left, &right, strictness).is_ok()
        };
        assert!(!check(
            Kind::Number,
            "1.0000000001",
            "1.0000000000",
            Strictness::Exact
        ));
        assert!(check(Kind::Number, "1.0000000001", "1", Strictness::Peer));
        assert!(check(Kind::Float, "1.0000000001", "1", Strictness::Exact));
        assert!(!check(Kind::Float, "1.00001", "1", Strictness::Exact));
        assert!(!check(Kind::Float, "1.1", "1", Strictness::Peer));
        assert!(!check(Kind::Float, "NULL", "0", Strictness::Peer));
        assert!(check(Kind::Float, "NaN", "NaN", Strictness::Exact));
        assert!(!check(Kind::Text, "1.0", "1", Strictness::Peer));
    }

    #[test]
    fn lengths_and_widths_differ_by_name() {
        let right = answer(&COLUMNS, &[&["1", "a"]]);
        let longer = answer(&COLUMNS, &[&["1", "a"], &["2", "b"]]);
        let found = compare(BY_FIRST, &right, &longer, Strictness::Exact);
        assert_eq!(
            found,
            Err(Difference::Length {
                expected: 1,
                got: 2
            })
        );
        let narrow = answer(&COLUMNS[..1], &[&["1"]]);
        let found = compare(BY_FIRST, &right, &narrow, Strictness::Exact);
        assert_eq!(
            found,
            Err(Difference::Columns {
                expected: 2,
                got: 1
            })
        );
    }
}
