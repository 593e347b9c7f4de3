//! Waiting for something, with a bound and a reason.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::process::{failure, tail};

const PAUSE: Duration = Duration::from_millis(400);

/// What a look at the world gave.
#[derive(Debug)]
pub(crate) enum Seen<T> {
    /// It is there.
    Done(T),
    /// Not yet; this is there instead.
    NotYet(String),
    /// It will never come; this is there instead.
    Never(String),
}

/// Done, or what was seen instead.
#[allow(
    clippy::unnecessary_wraps,
    reason = "it ends functions that look, and looking may fail"
)]
pub(crate) fn done_if(is_done: bool, seen: impl Into<String>) -> Outcome<Seen<()>> {
    Ok(if is_done {
        Seen::Done(())
    } else {
        Seen::NotYet(seen.into())
    })
}

/// Looks again and again until it is there. A look that fails counts as not yet: API servers have
/// bad moments. Says what it waited for and what it saw last.
pub(crate) fn until<T>(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> Outcome<Seen<T>>,
) -> Outcome<T> {
    let start = Instant::now();
    let limit = Duration::from_secs(seconds);
    loop {
        let seen = match look() {
            Ok(Seen::Done(value)) => return Ok(value),
            Ok(Seen::NotYet(seen)) => seen,
            Ok(Seen::Never(seen)) => {
                return Err(failure(format!(
                    "waited for {what}, which cannot come any more: {}",
                    tail(&seen)
                )));
            }
            Err(error) => error.to_string(),
        };
        if start.elapsed() >= limit {
            return Err(failure(format!(
                "waited {seconds} s for {what}; last seen: {}",
                tail(&seen)
            )));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Looks for the whole time and fails as soon as it is not so.
pub(crate) fn stays(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> Outcome<Seen<()>>,
) -> Outcome {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        match look()? {
            Seen::Done(()) => std::thread::sleep(PAUSE),
            Seen::NotYet(seen) | Seen::Never(seen) => {
                return Err(failure(format!("no longer {what}: {}", tail(&seen))));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_waited_for_and_saw() {
        let error = until::<()>("rain", 0, || Ok(Seen::NotYet("sun".to_owned()))).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for rain; last seen: sun");
        let error = until::<()>("rain", 60, || Ok(Seen::Never("a desert".to_owned()))).unwrap_err();
        assert!(error.to_string().contains("a desert"), "{error}");
        assert_eq!(until("rain", 0, || Ok(Seen::Done(7))).unwrap(), 7);
    }

    #[test]
    fn a_failed_look_is_not_the_end() {
        let mut looks = 0;
        let found = until("rain", 60, || {
            looks += 1;
            if looks == 1 {
                return Err(failure("fog"));
            }
            Ok(Seen::Done(looks))
        });
        assert_eq!(found.unwrap(), 2);
    }

    #[test]
    fn staying_ends_with_the_first_change() {
        let error = stays("dry", 60, || done_if(false, "rain")).unwrap_err();
        assert_eq!(error.to_string(), "no longer dry: rain");
    }
}
