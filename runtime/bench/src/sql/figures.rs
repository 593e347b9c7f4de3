//! What the SQL loads report: tables for people, JSON for programs.

use serde::Serialize;
use serde_json::{Value, json};

/// One load: its conditions, its table, its raw figures.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// A line above the table.
    pub(crate) title: String,
    #[serde(skip)]
    pub(crate) header: Vec<String>,
    #[serde(skip)]
    pub(crate) rows: Vec<Vec<String>>,
    /// Everything that was measured.
    pub(crate) figures: Value,
    /// What was wrong; empty if all answers are right and nothing failed.
    pub(crate) faults: Vec<String>,
}

impl Section {
    /// Markdown.
    pub(crate) fn markdown(&self) -> String {
        let row = |cells: &[String]| format!("| {} |", cells.join(" | "));
        let mut lines = vec![format!("**{}**\n", self.title), row(&self.header)];
        let mut rule = vec!["---".to_owned()];
        rule.resize(self.header.len(), "---:".to_owned());
        lines.push(row(&rule));
        lines.extend(self.rows.iter().map(|cells| row(cells)));
        if !self.faults.is_empty() {
            lines.push(String::new());
        }
        lines.extend(self.faults.iter().map(|fault| format!("- {fault}")));
        lines.join("\n")
    }
}

/// A run under a limit of memory, or without one for comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitedRun {
    pub(crate) name: &'static str,
    /// Of each worker.
    pub(crate) limit_bytes: Option<u64>,
    /// None if it failed.
    pub(crate) seconds: Option<f64>,
    /// Of the process that held most.
    pub(crate) peak_bytes: u64,
}

impl LimitedRun {
    /// What its columns are called.
    pub(crate) fn header() -> Vec<String> {
        ["run", "s", "peak of a process", "of its limit"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Its row in the table.
    pub(crate) fn row(&self) -> Vec<String> {
        let share = self
            .limit_bytes
            .map(|limit| float(self.peak_bytes) / float(limit));
        vec![
            self.name.to_owned(),
            seconds(self.seconds.unwrap_or(f64::NAN)),
            mebibytes(self.peak_bytes),
            share.map_or_else(String::new, ratio),
        ]
    }

    /// Its raw figures.
    pub(crate) fn figures(&self) -> Value {
        json!({
            "name": self.name,
            "seconds": self.seconds,
            "peak_process_bytes": self.peak_bytes,
            "limit_bytes": self.limit_bytes,
        })
    }
}

/// The middle of some figures; NaN of none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (_, _) if sorted.is_empty() => f64::NAN,
        (middle, 1) => sorted[middle],
        (middle, _) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Seconds for a table.
pub(crate) fn seconds(figure: f64) -> String {
    if figure.is_finite() {
        format!("{figure:.3}")
    } else {
        "-".to_owned()
    }
}

/// A ratio for a table.
pub(crate) fn ratio(figure: f64) -> String {
    if figure.is_finite() {
        format!("{figure:.2}x")
    } else {
        "-".to_owned()
    }
}

/// Bytes for a table.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A whole number as a float, for ratios.
#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn float(figure: u64) -> f64 {
    figure as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let close = |left: f64, right: f64| (left - right).abs() < 1e-12;
        assert!(close(median(&[3.0, 1.0, 2.0]), 2.0));
        assert!(close(median(&[4.0, 1.0, 2.0, 3.0]), 2.5));
        assert!(median(&[]).is_nan());
        assert_eq!(
            (seconds(f64::NAN), ratio(1.234)),
            ("-".to_owned(), "1.23x".to_owned())
        );
        assert_eq!(mebibytes(5 << 20), "5 MiB");
    }

    #[test]
    fn faults_stand_below_the_table() {
        let section = Section {
            name: "x",
            title: "t".to_owned(),
            header: vec!["a".to_owned(), "b".to_owned()],
            rows: vec![vec!["1".to_owned(), "2".to_owned()]],
            figures: Value::Null,
            faults: vec!["wrong".to_owned()],
        };
        let expected = "**t**\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n- wrong";
        assert_eq!(section.markdown(), expected);
    }
}
