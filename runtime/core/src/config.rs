//! Settings of the scheduler, with their defaults. Everything that bounds a retry or a queue and
//! is not a format limit (those are in `chunk`) is here or a constant of `place`.

/// Settings of a [`crate::Core`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreConfig {
    /// Grows each time a scheduler starts from its journal; part of every attempt.
    pub epoch: u32,
    /// A task that was running on more workers that died than this fails; 255 or more: never.
    pub crash_limit: u32,
    /// A task whose inputs could not be fetched more often than this fails; 255 or more: never.
    /// An attempt counts only if it brought no news: an input that is lost is news, as long as it
    /// was not lost more often than this itself.
    pub fetch_limit: u32,
    /// How long the graphs of a client that went away go on without one.
    pub client_grace_micros: u64,
    /// How long a worker that nobody hears of may come back.
    pub suspect_grace_micros: u64,
    /// How long tasks of a worker that nobody hears of are waited for; then they run elsewhere too,
    /// and the first result counts.
    pub suspect_rerun_micros: u64,
    /// How long a core that begins from a journal hands out nothing while former workers are missing:
    /// most of them return soon with what they run, which would otherwise be begun twice. Longer than
    /// the pause of a worker that looks for its scheduler, and than a Service in Kubernetes needs to
    /// lead to a new pod.
    pub reunion_micros: u64,
    /// What one worker is assumed to read from another; weighs moving bytes against waiting.
    pub bandwidth_bytes_per_second: u64,
    /// Work that is queued on each slot of a worker beyond what runs, if durations are known.
    pub prefill_micros: u64,
    /// Assumed for a task of a group of which none has finished.
    pub unknown_duration_micros: u64,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            epoch: 1,
            crash_limit: 3,
            fetch_limit: 32,
            client_grace_micros: 60_000_000,
            suspect_grace_micros: 10_000_000,
            suspect_rerun_micros: 2_000_000,
            reunion_micros: 6_000_000,
            bandwidth_bytes_per_second: 1_000_000_000,
            prefill_micros: 8_000,
            unknown_duration_micros: 200_000,
        }
    }
}
