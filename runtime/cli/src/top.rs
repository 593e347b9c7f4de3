//! `oxidask top`: the state of a cluster, as it changes.
//!
//! On a terminal it is drawn in place until `q` or Ctrl-C; otherwise a block or an object comes every
//! two seconds. A scheduler that goes away is waited for. The terminal is left as it was found.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read};
use std::time::Duration;

use oxidask_client::Client;
use oxidask_diagnostic::Diagnostic;
use oxidask_proto::wire;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::arguments::{OutputForm, TopArguments};
use crate::error::CliError;
use crate::look::{self, Site};
use crate::run::install_signals;
use crate::status::{json_object, tables};

/// Time between two pictures on a terminal.
const DRAW_PAUSE: Duration = Duration::from_millis(500);
/// Time between two blocks elsewhere.
const BLOCK_PAUSE: Duration = Duration::from_secs(2);
/// Time for one answer; then the scheduler is said to be away.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Rows and columns of a terminal that does not say how large it is.
const SIZE_DEFAULT: (usize, usize) = (24, 80);

/// Other screen, no cursor; and back.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";
const END: &str = "\x1b[?25h\x1b[?1049l";

/// Shows until it is told to stop.
pub(crate) fn top(arguments: &TopArguments) -> Result<(), CliError> {
    let site = Site::new(&arguments.cluster)?;
    let is_terminal = std::io::stdout().is_terminal();
    let form = match arguments.output {
        Some(OutputForm::Json) => Form::Json,
        Some(OutputForm::Table) | None if is_terminal => Form::Screen,
        Some(OutputForm::Table) | None => Form::Blocks,
    };
    let runtime = crate::service::runtime(look::THREADS)?;
    let result = runtime.block_on(show(&site, form));
    runtime.shutdown_background();
    result
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Screen,
    Blocks,
    Json,
}

impl Form {
    fn pause(self) -> Duration {
        match self {
            Self::Screen => DRAW_PAUSE,
            Self::Blocks | Self::Json => BLOCK_PAUSE,
        }
    }
}

async fn show(site: &Site<'_>, form: Form) -> Result<(), CliError> {
    let signals = install_signals()?;
    // What is wrong from the start is an error, not something to wait for.
    let first = site.ask(|client| async move {
        let reply = client.status().await?;
        Ok((client, reply))
    });
    let (client, reply) = tokio::select! {
        first = first => first?,
        status = signals.first() => return Err(CliError::quiet(status)),
    };
    let screen = (form == Form::Screen).then(Screen::open).transpose()?;
    let mut keys = screen.as_ref().map(|_| keys());
    let mut watched = Watched {
        client: Some(client),
    };
    let mut seen = Ok(reply);
    loop {
        let text = picture(site, form, &seen);
        look::print(&text)?;
        let next = async {
            sleep(form.pause()).await;
            watched.look(site).await
        };
        tokio::select! {
            next = next => seen = next,
            () = quit(&mut keys) => return Ok(()),
            status = signals.first() => return Err(CliError::quiet(status)),
        }
    }
}

/// The connection, made again when it is lost.
struct Watched {
    client: Option<Client>,
}

impl Watched {
    async fn look(&mut self, site: &Site<'_>) -> Result<wire::StatusReply, String> {
        let asking = async {
            let client = match self.client.take() {
                Some(client) => client,
                None => site.connect().await?,
            };
            let reply = client.status().await?;
            Ok((client, reply))
        };
        match timeout(ANSWER_TIME, asking).await {
            Ok(Ok((client, reply))) => {
                self.client = Some(client);
                Ok(reply)
            }
            Ok(Err(error)) => {
                let error: oxidask_client::ClientError = error;
                Err(in_short(&error.diagnostic()))
            }
            Err(_) => Err("it does not answer".to_owned()),
        }
    }
}

fn in_short(diagnostic: &Diagnostic) -> String {
    let cause = diagnostic.causes.first().map(|cause| format!(": {cause}"));
    format!("{}{}", diagnostic.message, cause.unwrap_or_default())
}

fn picture(site: &Site<'_>, form: Form, seen: &Result<wire::StatusReply, String>) -> String {
    match (form, seen) {
        (Form::Json, Ok(reply)) => format!("{}\n", json_object(reply)),
        (Form::Json, Err(error)) => format!("{}\n", serde_json::json!({"error": error})),
        (Form::Blocks, Ok(reply)) => format!("{}\n", tables(reply)),
        (Form::Blocks, Err(error)) => format!("{}: {error}\n\n", site.address()),
        (Form::Screen, Ok(reply)) => framed(&tables(reply), size()),
        (Form::Screen, Err(error)) => {
            let text = format!("{}: {error}\n\nwaiting for the scheduler", site.address());
            framed(&text, size())
        }
    }
}

/// A text that fills the screen from its top: every line cut, everything else blank.
fn framed(text: &str, (rows, columns): (usize, usize)) -> String {
    let mut screen = "\x1b[H".to_owned();
    let lines: Vec<&str> = text.lines().collect();
    let room = rows.saturating_sub(1);
    let (shown, hidden) = match lines.len() {
        all if all <= room => (all, 0),
        all => (room.saturating_sub(1), all - room.saturating_sub(1)),
    };
    for line in &lines[..shown] {
        let cut: String = line.chars().take(columns).collect();
        let _ = write!(screen, "{cut}\x1b[K\r\n");
    }
    if hidden > 0 {
        let _ = write!(screen, "... {hidden} more lines\x1b[K\r\n");
    }
    let _ = write!(screen, "\x1b[J\x1b[{rows};1Hq quits\x1b[K");
    screen
}

fn size() -> (usize, usize) {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => SIZE_DEFAULT,
    }
}

/// The terminal while it is drawn on; put back when dropped.
struct Screen {
    before: Option<Termios>,
}

impl Screen {
    fn open() -> Result<Self, CliError> {
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut now = before.clone();
            // Keys come one by one and are not shown; Ctrl-C stays a signal.
            now.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &now);
        }
        let screen = Self { before };
        look::print(BEGIN)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = look::print(END);
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Keys that are pressed. The thread waits for the next one until the process ends.
fn keys() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        for key in std::io::stdin().lock().bytes() {
            let Ok(key) = key else { return };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Returns when somebody wants to leave.
async fn quit(keys: &mut Option<mpsc::Receiver<u8>>) {
    if let Some(keys) = keys {
        while let Some(key) = keys.recv().await {
            if matches!(key, b'q' | b'Q') {
                return;
            }
        }
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_never_scrolls() {
        let lines: Vec<String> = (0..50).map(|number| format!("line {number}")).collect();
        let text = lines.join("\n");
        let screen = framed(&text, (10, 6));
        assert_eq!(screen.matches("\r\n").count(), 9);
        assert!(screen.contains("line 7\x1b[K"), "{screen:?}");
        assert!(!screen.contains("line 8"), "{screen:?}");
        assert!(screen.contains("... 42 more lines"), "{screen:?}");
        let short = framed("one\n", (10, 6));
        assert!(short.starts_with("\x1b[Hone\x1b[K\r\n\x1b[J"), "{short:?}");
    }
}
