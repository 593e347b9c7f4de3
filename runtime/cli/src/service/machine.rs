//! What this machine, or this container, has to offer.
//!
//! Owns the defaults that depend on the machine: processors, memory, name. Reads only.

/// Bytes of memory that this process may use: the container's limit, else all of the machine.
pub(crate) fn memory_bytes() -> u64 {
    let system = rustix::system::sysinfo();
    let unit = u64::from(system.mem_unit).max(1);
    // The type's width differs between platforms.
    #[allow(clippy::useless_conversion, reason = "u64 only on 64-bit platforms")]
    let total = u64::from(system.totalram).saturating_mul(unit);
    oxidask_worker::memory_limit_bytes().map_or(total, |limit| limit.min(total))
}

/// Processors that this process may use.
pub(crate) fn processors() -> u32 {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The host's name; of a pod, the pod's.
pub(crate) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_has_something() {
        assert!(super::memory_bytes() > 1 << 20);
        assert!(super::processors() > 0);
        assert!(!super::host_name().is_empty());
    }
}
