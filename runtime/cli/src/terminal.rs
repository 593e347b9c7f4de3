//! Standard error: lines, error blocks and the place of the progress bars.
//!
//! Owns every write to standard error, so that messages and bars never run into each other. Writes
//! that fail are dropped: there is nobody left to tell.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{MultiProgress, ProgressDrawTarget};
use oxidask_diagnostic::Diagnostic;
use serde_json::json;

/// How often bars are drawn at most.
const DRAWS_PER_SECOND: u8 = 10;

/// Standard error with room for progress bars. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Terminal {
    bars: MultiProgress,
    has_json_lines: Arc<AtomicBool>,
}

impl Terminal {
    /// Without bars until something adds one.
    pub(crate) fn new() -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        let bars = MultiProgress::with_draw_target(target);
        Self {
            bars,
            has_json_lines: Arc::new(AtomicBool::new(false)),
        }
    }

    /// From now on notices are JSON objects, as the progress is.
    pub(crate) fn use_json_lines(&self) {
        self.has_json_lines.store(true, Ordering::Relaxed);
    }

    /// Whether a person looks at standard error.
    pub(crate) fn is_interactive() -> bool {
        std::io::stderr().is_terminal()
    }

    /// The bars, drawn below all lines.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Writes one line above the bars.
    pub(crate) fn line(&self, text: &str) {
        self.bars.suspend(|| write_stderr(&format!("{text}\n")));
    }

    /// Writes a line that tells a person what happens.
    pub(crate) fn notice(&self, text: &str) {
        if self.has_json_lines.load(Ordering::Relaxed) {
            self.line(&json!({"type": "notice", "text": text}).to_string());
        } else {
            self.line(text);
        }
    }

    /// Runs something that writes to the terminal, with the bars out of the way.
    pub(crate) fn suspend<R>(&self, write: impl FnOnce() -> R) -> R {
        self.bars.suspend(write)
    }

    /// Writes an error in the form that all commands share.
    pub(crate) fn error(&self, diagnostic: &Diagnostic) {
        let text = diagnostic.to_string();
        self.line(&if has_colour() { coloured(&text) } else { text });
    }
}

fn write_stderr(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn has_colour() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|value| value == "dumb");
    Terminal::is_interactive() && !is_set("NO_COLOR") && !is_dumb
}

/// `error[…]` in red, `hint` in cyan.
fn coloured(text: &str) -> String {
    let (head, rest) = text.split_once(": ").unwrap_or((text, ""));
    let rest = rest.replacen("\nhint:", "\n\u{1b}[36mhint\u{1b}[0m:", 1);
    format!("\u{1b}[1;31m{head}\u{1b}[0m: {rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_keep_the_text() {
        let text = coloured("error[OX208]: task: no\n\nhint: try\n");
        assert!(text.starts_with("\u{1b}[1;31merror[OX208]\u{1b}[0m: task: no"));
        assert!(text.contains("\u{1b}[36mhint\u{1b}[0m: try"));
    }
}
