//! What was measured: a table for people, JSON for programs, and the machine.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) what: String,
    /// What it must be, in words.
    pub(crate) must: &'static str,
    pub(crate) unit: &'static str,
    /// Each run.
    pub(crate) values: Vec<f64>,
    /// What else there is to say.
    pub(crate) note: String,
}

impl Figure {
    pub(crate) fn new(
        what: impl Into<String>,
        must: &'static str,
        unit: &'static str,
        values: Vec<f64>,
    ) -> Self {
        Self {
            what: what.into(),
            must,
            unit,
            values,
            note: String::new(),
        }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    pub(crate) fn row(&self) -> String {
        let Self {
            what,
            must,
            unit,
            values,
            note,
        } = self;
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        let most = values.iter().copied().fold(f64::MIN, f64::max);
        let middle = digits(quantile(values, 0.5));
        let (least, most) = (digits(least), digits(most));
        format!("| {what} | {must} | {middle} {unit} | {least} to {most} | {note} |")
    }
}

/// Three digits that count, or all before the point.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The value below which this part of all values is; not a number if there is none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list of at most thousands"
    )]
    let place = (last as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn amount(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}

/// The table, to be included in a page.
pub(crate) fn table(figures: &[Figure], note: &str) -> String {
    let conditions = match note {
        "" => machine(),
        note => format!("{note}: {}", machine()),
    };
    let mut text =
        format!("{conditions}.\n\n| figure | must | median | range | |\n|---|---|---:|---:|---|\n");
    for figure in figures {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", figure.row());
    }
    text
}

/// The raw figures.
pub(crate) fn json(figures: &[Figure], note: &str) -> Value {
    let figures = figures
        .iter()
        .map(|it| json!({"what": it.what, "unit": it.unit, "values": it.values, "note": it.note}));
    let figures: Vec<Value> = figures.collect();
    json!({"note": note, "machine": machine(), "figures": figures})
}

fn machine() -> String {
    let field = |path: &str, name: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.map(|it| it.trim_start_matches([' ', '\t', ':']).to_owned());
        value.unwrap_or_else(|| "?".to_owned())
    };
    let processor = field("/proc/cpuinfo", "model name");
    let memory = field("/proc/meminfo", "MemTotal");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{processor}, {cores} cores, {memory} memory, Linux {}",
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((quantile(&values, 0.99) - 99.0).abs() < 0.1);
        assert!((quantile(&[3.0, 1.0, 2.0], 0.5) - 2.0).abs() < 0.1);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn rows_have_as_many_digits_as_count() {
        let figure = Figure::new("pods", "2,000 a second", "/s", vec![3210.4, 2.5, 0.0123]);
        assert_eq!(
            figure.row(),
            "| pods | 2,000 a second | 2.50 /s | 0.012 to 3210 |  |"
        );
    }
}
