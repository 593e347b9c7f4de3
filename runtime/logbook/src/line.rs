//! One line of a log.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of one line; what is longer is cut.
pub const LINE_BYTES_MAX: usize = 4 * 1024;

/// What stands at the end of a line that was cut.
const CUT: &str = " …";

/// How grave a line is, or where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// Something went wrong that somebody should look at.
    Error,
    /// Something went wrong that mends itself.
    Warn,
    /// Something happened.
    Info,
    /// For whoever looks for a defect.
    Debug,
    /// A program wrote it to its standard output.
    Out,
    /// A program wrote it to its standard error.
    Err,
}

impl Level {
    /// Its name on the wire and on paper.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Out => "OUT",
            Self::Err => "ERR",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownLevel;

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        Ok(match text {
            "ERROR" => Self::Error,
            "WARN" => Self::Warn,
            "INFO" => Self::Info,
            "DEBUG" => Self::Debug,
            "OUT" => Self::Out,
            "ERR" => Self::Err,
            _ => return Err(UnknownLevel),
        })
    }
}

/// One line of a log, of this process or of a program that it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Since 1970, by this machine's clock.
    pub time_micros: u64,
    /// How grave it is.
    pub level: Level,
    /// What says it: a module, or the program of a task.
    pub target: String,
    /// What it says.
    pub text: String,
    /// The graph, where there is one. A worker knows its number only; the scheduler puts the name
    /// in its place.
    pub graph: String,
    /// The task's key, where there is one.
    pub key: String,
    /// Counted from 1; 0 where there is none.
    pub attempt: u32,
}

impl Line {
    /// Roughly the bytes that it takes, in memory and on the wire.
    pub fn bytes(&self) -> usize {
        const REST: usize = 32;
        REST + self.target.len() + self.text.len() + self.graph.len() + self.key.len()
    }

    /// Cuts what is too long and takes out control characters.
    pub(crate) fn tidy(&mut self) {
        for text in [
            &mut self.text,
            &mut self.target,
            &mut self.graph,
            &mut self.key,
        ] {
            if text.chars().any(is_unwanted) {
                text.retain(|c| !is_unwanted(c));
            }
            cut(text);
        }
    }
}

fn is_unwanted(c: char) -> bool {
    c.is_control() && c != '\t'
}

fn cut(text: &mut String) {
    if text.len() > LINE_BYTES_MAX {
        let end = text.floor_char_boundary(LINE_BYTES_MAX - CUT.len());
        text.truncate(end);
        text.push_str(CUT);
    }
}

/// Microseconds since 1970, for [`Line::time_micros`].
pub fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn line(text: &str) -> Line {
        Line {
            time_micros: 1,
            level: Level::Info,
            target: "t".to_owned(),
            text: text.to_owned(),
            graph: String::new(),
            key: String::new(),
            attempt: 0,
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut long = line(&"ä".repeat(LINE_BYTES_MAX));
        long.tidy();
        assert!(long.text.len() <= LINE_BYTES_MAX);
        assert!(long.text.ends_with(CUT));
        let mut escapes = line("a\x1b[1mb\r\n\tc\u{9b}");
        escapes.tidy();
        assert_eq!(escapes.text, "a[1mb\tc");
    }

    #[test]
    fn levels_parse_back() {
        for level in [
            Level::Error,
            Level::Warn,
            Level::Info,
            Level::Debug,
            Level::Out,
            Level::Err,
        ] {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!("info".parse::<Level>(), Err(UnknownLevel));
        assert!(now_micros() > 1_600_000_000_000_000);
    }
}
