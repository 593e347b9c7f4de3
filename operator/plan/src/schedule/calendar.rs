//! When a cron line is due, in a time zone.
//!
//! Owns what becomes of the days on which clocks change. A time that the clock leaps over is due
//! when it has leapt, as many minutes later. An hour that comes twice counts once for a line that
//! names its hours, and twice for one that runs every hour.
//!
//! Invariants: the time zones are those of the program, not of the machine; each search ends.

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan as _};

use super::cron::Cron;
use crate::PlanError;

/// Days within which a line has to be due: 29 February skips one of the centuries' leap years.
const SEARCH_DAYS_MAX: u32 = 9 * 366;

/// More than any clock leaps.
const LEAP: SignedDuration = SignedDuration::from_hours(26);

/// A cron line in a time zone.
#[derive(Debug, Clone)]
pub(crate) struct Calendar {
    cron: Cron,
    zone: TimeZone,
}

impl Calendar {
    /// Reads line and zone; without a zone it is UTC.
    pub(crate) fn new(line: &str, zone: Option<&str>) -> Result<Self, PlanError> {
        let cron = Cron::parse(line).map_err(|problem| PlanError::Schedule {
            field: "schedule",
            problem: problem.to_string(),
        })?;
        let name = zone.unwrap_or("UTC");
        let zone = match name {
            "UTC" => Some(TimeZone::UTC),
            name => TimeZoneDatabase::bundled().get(name).ok(),
        };
        let zone = zone.ok_or_else(|| PlanError::Schedule {
            field: "timeZone",
            problem: format!("`{name}` is no time zone, such as `Europe/Berlin`"),
        })?;
        Ok(Self { cron, zone })
    }

    /// The first time after this one.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let mut date = self.date(after.checked_sub(LEAP).ok()?);
        for _ in 0..SEARCH_DAYS_MAX {
            if self.cron.has_day(date) {
                let due = self.on(date).filter(|time| *time > after).min();
                if due.is_some() {
                    return due;
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    /// The last time after `after` and not after `until`.
    pub(crate) fn last(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut date = self.date(until.checked_add(LEAP).ok()?);
        let first = self.date(after.checked_sub(LEAP).ok()?);
        for _ in 0..SEARCH_DAYS_MAX {
            if date < first {
                return None;
            }
            if self.cron.has_day(date) {
                let due = self.on(date);
                let due = due.filter(|time| *time > after && *time <= until).max();
                if due.is_some() {
                    return due;
                }
            }
            date = date.checked_sub(1.day()).ok()?;
        }
        None
    }

    fn date(&self, time: Timestamp) -> Date {
        self.zone.to_datetime(time).date()
    }

    /// The times of a day, in the order of its clock.
    fn on(&self, date: Date) -> impl Iterator<Item = Timestamp> + '_ {
        let times = self.cron.times();
        times.flat_map(move |(hour, minute)| self.at(date.at(hour, minute, 0, 0)))
    }

    fn at(&self, time: DateTime) -> impl Iterator<Item = Timestamp> + use<> {
        let offsets = match self.zone.to_ambiguous_timestamp(time).offset() {
            AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
            AmbiguousOffset::Gap { before, .. } => [Some(before), None],
            AmbiguousOffset::Fold { before, after } => {
                [Some(before), self.cron.is_hourly().then_some(after)]
            }
        };
        let offsets = offsets.into_iter().flatten();
        offsets.filter_map(move |offset| offset.to_timestamp(time).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar(line: &str, zone: &str) -> Calendar {
        Calendar::new(line, Some(zone)).unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The next times, in UTC.
    fn times(line: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let calendar = calendar(line, zone);
        let mut time = time(after);
        let mut found = Vec::new();
        for _ in 0..count {
            time = calendar.next(time).unwrap();
            found.push(time.to_string());
        }
        found
    }

    #[test]
    fn the_next_time_follows_the_clock_of_the_zone() {
        assert_eq!(
            times("30 3 * * mon-fri", "UTC", "2026-11-20T03:30:00Z", 2),
            ["2026-11-23T03:30:00Z", "2026-11-24T03:30:00Z"]
        );
        assert_eq!(
            times("0 8 1 * *", "Europe/Berlin", "2026-03-01T07:00:00Z", 2),
            ["2026-04-01T06:00:00Z", "2026-05-01T06:00:00Z"]
        );
        assert_eq!(
            times("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", 1),
            ["2104-02-29T00:00:00Z"]
        );
        assert_eq!(
            times("0 9 * * *", "Asia/Kolkata", "2026-01-01T00:00:00Z", 1),
            ["2026-01-01T03:30:00Z"]
        );
    }

    #[test]
    fn a_time_that_the_clock_leaps_over_comes_when_it_has_leapt() {
        // In Berlin, 29 March 2026 has no time from 02:00 to 03:00.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"]
        );
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 4),
            [
                "2026-03-29T00:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-29T01:30:00Z",
                "2026-03-29T02:00:00Z"
            ]
        );
    }

    #[test]
    fn an_hour_that_comes_twice_counts_once_unless_every_hour_counts() {
        // In New York, 1 November 2026 has the hour from 01:00 twice.
        assert_eq!(
            times("30 1 * * *", "America/New_York", "2026-11-01T00:00:00Z", 2),
            ["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"]
        );
        assert_eq!(
            times("30 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 3),
            [
                "2026-11-01T05:30:00Z",
                "2026-11-01T06:30:00Z",
                "2026-11-01T07:30:00Z"
            ]
        );
    }

    #[test]
    fn a_zone_that_skipped_a_whole_day_has_its_times_still() {
        // Samoa had no 30 December 2011.
        let found = times("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", 3);
        assert_eq!(found[0], "2011-12-29T22:00:00Z");
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
    }

    #[test]
    fn the_last_time_is_the_newest_that_has_come() {
        let calendar = calendar("*/10 * * * *", "Europe/Berlin");
        let last = |after, until| {
            calendar
                .last(time(after), time(until))
                .map(|t| t.to_string())
        };
        let due = last("2026-01-01T00:00:00Z", "2026-11-22T02:09:59Z");
        assert_eq!(due.as_deref(), Some("2026-11-22T02:00:00Z"));
        assert_eq!(last("2026-11-22T02:00:00Z", "2026-11-22T02:09:59Z"), None);
        assert_eq!(last("2026-11-22T02:30:00Z", "2026-11-22T02:00:00Z"), None);
    }

    #[test]
    fn last_and_next_agree() {
        for zone in [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
        ] {
            for line in ["17 2 * * *", "*/20 1-3 * * *", "0 0 1 * 1", "5 * * * *"] {
                let calendar = calendar(line, zone);
                let start = time("2026-01-01T00:00:00Z");
                let mut before = start;
                for _ in 0..400 {
                    let next = calendar.next(before).unwrap();
                    assert!(next > before);
                    assert_eq!(calendar.last(before, next), Some(next), "{zone} {line}");
                    let just_before = next - SignedDuration::from_secs(1);
                    assert_eq!(calendar.last(before, just_before), None, "{zone} {line}");
                    before = next;
                }
            }
        }
    }

    #[test]
    fn what_never_comes_ends_the_search() {
        let calendar = calendar("0 0 30 2 *", "UTC");
        let start = time("2026-01-01T00:00:00Z");
        assert_eq!(calendar.next(start), None);
        assert_eq!(calendar.last(start, time("2027-01-01T00:00:00Z")), None);
        assert_eq!(calendar.next(Timestamp::MAX), None);
        assert_eq!(calendar.last(Timestamp::MIN, start), None);
    }

    #[test]
    fn zones_are_known_by_name() {
        assert!(Calendar::new("@daily", Some("Etc/UTC")).is_ok());
        let error = Calendar::new("@daily", Some("Europe/Atlantis")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`Europe/Atlantis` is no time zone")
        );
    }
}
