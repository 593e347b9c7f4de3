//! Numbers as people read them, and the lines of progress. Pure.

use oxidask_proto::wire;
use std::fmt::Write as _;

/// Columns of a group's name.
const NAME_COLUMNS: usize = 16;
/// The same where names are longer, as those of stages.
const NAME_COLUMNS_MAX: usize = 32;
/// Columns of a bar.
const BAR_COLUMNS: u64 = 24;

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 task`, `2 tasks`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// `0.8 s`, `25 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and negative times do not occur"
    )]
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", count(whole / 3_600), whole % 3_600 / 60),
    }
}

/// `512 B`, `1.5 GiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1 << 10 {
        return format!("{number} B");
    }
    let mut unit = 0;
    let mut scaled = number;
    while scaled >= 1 << 20 && unit + 1 < UNITS.len() {
        scaled >>= 10;
        unit += 1;
    }
    #[allow(clippy::cast_precision_loss, reason = "one digit is shown")]
    let value = scaled as f64 / 1024.0;
    format!("{value:.1} {}", UNITS[unit])
}

/// One group of tasks: a bar, how many are done, how fast, how long still.
pub(crate) fn group_line(group: &wire::GroupProgress, columns: usize, seconds: f64) -> String {
    let name = fitted(&group.name, columns);
    let filled = (group.done * BAR_COLUMNS)
        .checked_div(group.total)
        .unwrap_or(0);
    let bar: String = (0..BAR_COLUMNS)
        .map(|i| if i < filled { '#' } else { '.' })
        .collect();
    let mut line = format!(
        "{name} [{bar}] {}/{}",
        count(group.done),
        count(group.total)
    );
    if group.failed > 0 {
        let _ = write!(line, ", {} failed", count(group.failed));
    }
    if let Some(made) = made(group) {
        let _ = write!(line, ", {made}");
    }
    let left = group.total.saturating_sub(group.done + group.failed);
    #[allow(clippy::cast_precision_loss, reason = "rates are shown rounded")]
    if group.done > 0 && left > 0 && seconds > 0.2 {
        let rate = group.done as f64 / seconds;
        let _ = write!(
            line,
            ", {}, {} left",
            per_second(rate),
            duration(left as f64 / rate)
        );
    }
    line
}

/// Columns for the names of these groups.
pub(crate) fn name_columns(groups: &[&wire::GroupProgress]) -> usize {
    let longest = groups.iter().map(|group| group.name.chars().count()).max();
    longest.unwrap_or(0).clamp(NAME_COLUMNS, NAME_COLUMNS_MAX)
}

/// `1,234 rows, 5.6 MiB`, for tasks that count rows.
pub(crate) fn made(group: &wire::GroupProgress) -> Option<String> {
    let text = format!(
        "{}, {}",
        counted(group.rows, "row"),
        bytes(group.made_bytes)
    );
    (group.rows > 0).then_some(text)
}

/// The cluster: workers, slots, memory.
pub(crate) fn cluster_line(cluster: &wire::ClusterProgress) -> String {
    let mut line = format!(
        "{}, {} of {} busy, {} of {} held",
        counted(u64::from(cluster.workers), "worker"),
        count(u64::from(cluster.running)),
        counted(u64::from(cluster.slots), "slot"),
        bytes(cluster.held_bytes),
        bytes(cluster.memory_bytes),
    );
    if cluster.parked > 0 {
        let _ = write!(
            line,
            "; {} cannot run: {}",
            counted(cluster.parked, "task"),
            cluster.parked_reason
        );
    }
    line
}

fn per_second(rate: f64) -> String {
    if rate < 10.0 {
        return format!("{rate:.1}/s");
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and rates are positive"
    )]
    let whole = rate.round() as u64;
    format!("{}/s", count(whole))
}

/// Exactly so many columns; control characters would move the cursor.
fn fitted(name: &str, columns: usize) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let length = name.chars().count();
    if length <= columns {
        let text: String = name.chars().map(clean).collect();
        return format!("{text:<columns$}");
    }
    let mut text: String = name.chars().take(columns - 1).map(clean).collect();
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "task"), "1 task");
        assert_eq!(counted(0, "task"), "0 tasks");
        assert_eq!(duration(0.84), "0.8 s");
        assert_eq!(duration(9.96), "10 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(7_500.0), "2 h 5 min");
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1 << 10), "1.0 KiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn a_group_says_done_rate_and_time_left() {
        let group = wire::GroupProgress {
            name: "read".to_owned(),
            total: 1_000,
            done: 250,
            ..Default::default()
        };
        assert_eq!(
            group_line(&group, name_columns(&[&group]), 10.0),
            "read             [######..................] 250/1,000, 25/s, 30 s left"
        );
        let stage = wire::GroupProgress {
            name: "query-1 stage 2 join".to_owned(),
            total: 4,
            done: 1,
            rows: 6_001_215,
            made_bytes: 3 << 29,
            ..Default::default()
        };
        assert_eq!(
            group_line(&stage, name_columns(&[&group, &stage]), 0.0),
            "query-1 stage 2 join [######..................] 1/4, 6,001,215 rows, 1.5 GiB"
        );
        let odd = wire::GroupProgress {
            name: "a\u{1b}[2J".to_owned(),
            ..Default::default()
        };
        assert!(!group_line(&odd, 16, 0.0).contains('\u{1b}'));
        assert_eq!(fitted("a-very-long-name-of-a-group", 8), "a-very-…");
    }
}
