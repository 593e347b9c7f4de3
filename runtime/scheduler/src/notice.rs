//! Lines for people: what happened that they should know, in one sentence each.

/// A worker died while a graph runs.
pub(crate) fn worker_died(name: &str, reason: &str, tasks: u64) -> String {
    match tasks {
        0 => format!("worker {name} died ({reason})"),
        1 => format!("worker {name} died ({reason}); 1 task is tried again"),
        _ => format!("worker {name} died ({reason}); {tasks} tasks are tried again"),
    }
}

/// Why a stream ended, in few words. The transport's texts differ by platform and timing.
pub(crate) fn stream_ended(status: &tonic::Status) -> &'static str {
    let mut text = status.message().to_ascii_lowercase();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        text.push_str(&cause.to_string().to_ascii_lowercase());
        source = cause.source();
    }
    if text.contains("reset") {
        "connection reset"
    } else if text.contains("timed out") || text.contains("timeout") || text.contains("keep") {
        "connection timed out"
    } else {
        "connection lost"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_counted_in_words_that_fit() {
        let line = |tasks| worker_died("default-1", "connection reset", tasks);
        assert_eq!(line(0), "worker default-1 died (connection reset)");
        assert!(line(1).ends_with("; 1 task is tried again"));
        assert!(line(3).ends_with("; 3 tasks are tried again"));
    }
}
