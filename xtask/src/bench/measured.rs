//! Options of benches that another program measures.
//!
//! Owns what those benches have in common: most of their options are that program's and passed on as
//! they are; recording names a file among the figures and says what was measured. Knows no load.

use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::process::output;

/// Where recorded figures are kept, to be included in the documentation.
pub(super) const FIGURES: &str = "docs/src/figures";

/// The command line of a bench.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options<'a> {
    /// For the program that measures.
    pub(super) passed_on: Vec<&'a str>,
    pub(super) is_recorded: bool,
}

impl<'a> Options<'a> {
    /// Reads `words`, of which those in `valued` have a value and those in `flags` have none.
    pub(super) fn parse(
        words: &[&'a str],
        valued: &[&str],
        flags: &[&str],
    ) -> Result<Self, Failure> {
        let (mut passed_on, mut is_recorded) = (Vec::new(), false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match (*word, words.as_slice().first()) {
                ("--record", _) => is_recorded = true,
                (word, _) if flags.contains(&word) => passed_on.push(word),
                (word, Some(value)) if valued.contains(&word) => {
                    passed_on.extend([word, value]);
                    words.next();
                }
                (word, _) => return Err(format!("`{word}` is unknown or has no value").into()),
            }
        }
        Ok(Self {
            passed_on,
            is_recorded,
        })
    }

    /// Hands them to the program that measures; `table` is the file that it records to.
    pub(super) fn hand_to(
        &self,
        bench: &mut Command,
        root: &Path,
        table: &str,
    ) -> Result<(), Failure> {
        bench.args(&self.passed_on);
        if self.is_recorded {
            bench.arg("--record").arg(root.join(FIGURES).join(table));
            bench.arg("--note").arg(note(root)?);
        }
        Ok(())
    }
}

/// The day, and the revision that is measured.
pub(super) fn note(root: &Path) -> Result<String, Failure> {
    let day = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let revision = ["describe", "--always", "--dirty=, with changes"];
    let revision = output(Command::new("git").current_dir(root).args(revision))?;
    Ok(format!("{}, revision {}", day.trim(), revision.trim()))
}
