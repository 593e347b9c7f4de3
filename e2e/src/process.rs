//! Running programs with a bound on their time.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Failure, Outcome};

const POLL: Duration = Duration::from_millis(5);
/// Bytes of an error output that a message repeats.
const MESSAGE_BYTES_MAX: usize = 4_000;

/// A program that ended by itself.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What was run, for messages.
    pub(crate) shown: String,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
    /// Whether its status was 0.
    pub(crate) is_success: bool,
}

impl Finished {
    /// The standard output of a program that succeeded.
    pub(crate) fn succeeded(self) -> Outcome<String> {
        if self.is_success {
            return Ok(self.stdout);
        }
        let Self { shown, stderr, .. } = self;
        Err(format!("`{shown}` failed: {}", tail(stderr.trim())).into())
    }

    /// The standard error of a program that failed.
    pub(crate) fn failed(self) -> Outcome<String> {
        if self.is_success {
            let Self { shown, stdout, .. } = self;
            return Err(format!("`{shown}` succeeded: {}", tail(stdout.trim())).into());
        }
        Ok(self.stderr)
    }
}

/// Runs a program to its end, or kills it when its time is over.
pub(crate) fn finish(
    command: &mut Command,
    input: Option<&str>,
    limit: Duration,
) -> Outcome<Finished> {
    let shown = shown(command);
    command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| format!("cannot start `{shown}`: {error}"))?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that ends without reading says why itself.
        let _ = stdin.write_all(text.as_bytes());
    }
    let ended = wait(&mut child, limit)?;
    let text = |reader: JoinHandle<String>| reader.join().unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    let Some(is_success) = ended else {
        let seconds = limit.as_secs();
        return Err(format!(
            "`{shown}` did not end within {seconds} s: {}{}",
            tail(&stdout),
            tail(&stderr)
        )
        .into());
    };
    Ok(Finished {
        shown,
        stdout,
        stderr,
        is_success,
    })
}

/// Whether it succeeded, or nothing if it had to be killed.
fn wait(child: &mut Child, limit: Duration) -> Outcome<Option<bool>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The program's name and its arguments.
pub(crate) fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last part of a text.
pub(crate) fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// A text as an error.
pub(crate) fn failure(text: impl Into<String>) -> Failure {
    text.into().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn passes_input_and_collects_output() {
        let script = "cat; echo bad >&2; exit 3";
        let finished = finish(Command::new("sh").args(["-c", script]), Some("in"), LIMIT).unwrap();
        assert_eq!(finished.stdout, "in");
        assert_eq!(finished.stderr, "bad\n");
        assert!(!finished.is_success);
        assert!(
            finished
                .succeeded()
                .unwrap_err()
                .to_string()
                .contains("bad")
        );
    }

    #[test]
    fn kills_what_takes_too_long() {
        let start = Instant::now();
        let limit = Duration::from_millis(100);
        let error = finish(Command::new("sleep").arg("60"), None, limit).unwrap_err();
        assert!(
            error.to_string().contains("`sleep 60` did not end"),
            "{error}"
        );
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
