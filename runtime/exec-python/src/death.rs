//! How a process ended, in words.

/// How a process ended.
#[derive(Debug, Clone)]
pub(crate) struct Death {
    pub(crate) status: String,
    pub(crate) is_kill: bool,
    pub(crate) tail: String,
}

/// What `waitpid` said, and whether it was a kill.
pub(crate) fn described(status: i32) -> (String, bool) {
    const NAMES: [(i32, &str); 10] = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (15, "SIGTERM"),
    ];
    let signal = status & 0x7f;
    if signal == 0 {
        return (format!("exit status {}", (status >> 8) & 0xff), false);
    }
    let name = NAMES.iter().find(|(number, _)| *number == signal);
    let name = name
        .map(|(_, name)| format!(" ({name})"))
        .unwrap_or_default();
    (format!("signal {signal}{name}"), signal == 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_people_say_them() {
        assert_eq!(described(3 << 8).0, "exit status 3");
        assert_eq!(described(0x8b).0, "signal 11 (SIGSEGV)");
        assert_eq!(described(9), ("signal 9 (SIGKILL)".to_owned(), true));
        assert_eq!(described(34).0, "signal 34");
    }
}
