//! The allocator, and its settings for workers and schedulers.
//!
//! Owns how soon freed memory goes back to the system. By itself the allocator keeps it for a
//! second, which a worker near its limit cannot afford; of a scheduler's tables, which grow by being
//! copied, it would keep as much as they need. It reads its settings before the program begins, so
//! a service that was started without ours starts again in its own place: process, open files and
//! arguments stay the same.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Names and our values. Buffers above 1 MiB go back as soon as they are freed: they are few, and
/// most of the memory. Smaller ones are used again and again while rows travel through a query, so
/// they are kept for 100 ms. A size without a unit would be one in bytes.
const SETTINGS: [(&str, &str); 2] = [
    ("MIMALLOC_ARENA_MAX_OBJECT_SIZE", "1MiB"),
    ("MIMALLOC_PURGE_DELAY", "100"),
];

/// Starts the program again with the settings, if it lacks one that nobody has made otherwise. To
/// be called before anything is started: it returns only where nothing has to change, or nothing
/// can be changed.
pub(crate) fn settle() {
    let is_missing = |(name, _): &(&str, &str)| env::var_os(name).is_none();
    let missing: Vec<_> = SETTINGS.into_iter().filter(is_missing).collect();
    let mut arguments = env::args_os();
    let (Some(first), false) = (arguments.next(), missing.is_empty()) else {
        return;
    };
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut again = Command::new(program);
    again.arg0(first).args(arguments).envs(missing);
    // Only a failure comes back, and the service works without the settings, too.
    drop(again.exec());
}
