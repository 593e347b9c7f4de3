//! Cron lines.
//!
//! Owns their form: five fields (minute, hour, day of the month, month, day of the week), names of
//! months and days, lists, ranges, steps, `?`, and the usual words such as `@daily`. As with every
//! cron, a day counts if either field of days says so when both are restricted.
//!
//! Invariant: what is parsed says about each minute, hour and day whether it counts; it knows no
//! time zone.

use std::fmt;

use jiff::civil::Date;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Lines that have a name.
const WORDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// A cron line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cron {
    minutes: Set,
    hours: Set,
    days: Set,
    months: Set,
    weekdays: Set,
}

/// Numbers from 0 to 63 that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set {
    bits: u64,
    /// Whether the field starts with `*`: then it does not restrict.
    is_open: bool,
}

/// What is wrong with a cron line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CronError(String);

impl fmt::Display for CronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One of the five fields.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

impl Set {
    fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| number < 64 && (self.bits >> number) & 1 == 1)
    }

    fn numbers(self) -> impl DoubleEndedIterator<Item = i8> {
        (0..64_i8).filter(move |number| self.has(*number))
    }
}

impl Cron {
    /// Reads a line.
    pub(crate) fn parse(line: &str) -> Result<Self, CronError> {
        let line = line.trim();
        let word = WORDS
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(line));
        if word.is_none() && line.starts_with('@') {
            let words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
            let known = words.join(", ");
            return Err(CronError(format!("`{line}` is none of {known}")));
        }
        if line.contains("TZ=") {
            let problem = "the time zone stands in `timeZone` and not in the line";
            return Err(CronError(problem.to_owned()));
        }
        let line = word.map_or(line, |(_, line)| line);
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            let problem = format!(
                "a line has five fields (minute, hour, day, month, weekday), this one has {}",
                fields.len()
            );
            return Err(CronError(problem));
        };
        let field = |name, least, most, names| Field {
            name,
            least,
            most,
            names,
        };
        let mut cron = Self {
            minutes: field("minute", 0, 59, &[]).parse(minutes)?,
            hours: field("hour", 0, 23, &[]).parse(hours)?,
            days: field("day of the month", 1, 31, &[]).parse(days)?,
            months: field("month", 1, 12, &MONTHS).parse(months)?,
            weekdays: field("day of the week", 0, 7, &WEEKDAYS).parse(weekdays)?,
        };
        // Sunday is 0 and 7.
        if cron.weekdays.has(7) {
            cron.weekdays.bits |= 1;
        }
        Ok(cron)
    }

    /// Whether the day counts.
    pub(crate) fn has_day(&self, date: Date) -> bool {
        let is_day = self.days.has(date.day());
        let is_weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        let is_either = !self.days.is_open && !self.weekdays.is_open;
        let is_right = if is_either {
            is_day || is_weekday
        } else {
            is_day && is_weekday
        };
        is_right && self.months.has(date.month())
    }

    /// The hours and minutes of a day, in order.
    pub(crate) fn times(&self) -> impl DoubleEndedIterator<Item = (i8, i8)> + '_ {
        let hours = self.hours.numbers();
        hours.flat_map(|hour| self.minutes.numbers().map(move |minute| (hour, minute)))
    }

    /// Whether it runs all through the day, so that an hour that comes twice counts twice.
    pub(crate) fn is_hourly(&self) -> bool {
        self.hours.is_open
    }
}

impl Field {
    fn parse(&self, text: &str) -> Result<Set, CronError> {
        let mut bits = 0;
        for part in text.split(',') {
            bits |= self.part(part)?;
        }
        let is_open = text.starts_with('*') || text.starts_with('?');
        Ok(Set { bits, is_open })
    }

    /// `7`, `mon`, `1-5`, `*/10`, `1-31/2`, `3/4`.
    fn part(&self, part: &str) -> Result<u64, CronError> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(self.step(part, step)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (self.least, self.whole()),
            Some((first, last)) => (self.number(part, first)?, self.number(part, last)?),
            None => {
                let first = self.number(part, range)?;
                // `3/4` starts at 3 and goes on to the end.
                let last = if step.is_some() { self.whole() } else { first };
                (first, last)
            }
        };
        if first > last {
            return Err(self.error(part, "its range ends before it starts"));
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(1);
        let numbers = (first..=last).step_by(step);
        Ok(numbers.fold(0, |bits, number| bits | (1 << number)))
    }

    /// The last number of the whole range: 7 is Sunday again.
    fn whole(&self) -> u32 {
        if self.most == 7 { 6 } else { self.most }
    }

    fn step(&self, part: &str, step: &str) -> Result<u32, CronError> {
        let number = digits(step).filter(|step| (1..=self.most).contains(step));
        number.ok_or_else(|| {
            let problem = format!("a step is a number from 1 to {}", self.most);
            self.error(part, &problem)
        })
    }

    fn number(&self, part: &str, text: &str) -> Result<u32, CronError> {
        let named = self
            .names
            .iter()
            .position(|name| name.eq_ignore_ascii_case(text));
        let named = named.and_then(|position| u32::try_from(position).ok());
        let number = named.map(|position| position + self.first_name());
        let number = number.or_else(|| digits(text));
        number
            .filter(|number| (self.least..=self.most).contains(number))
            .ok_or_else(|| {
                let problem = format!("a number is from {} to {}", self.least, self.most);
                self.error(part, &problem)
            })
    }

    fn first_name(&self) -> u32 {
        u32::from(self.least == 1)
    }

    fn error(&self, part: &str, problem: &str) -> CronError {
        CronError(format!("`{part}` is no {}: {problem}", self.name))
    }
}

/// Digits only: no sign, no space.
fn digits(text: &str) -> Option<u32> {
    let is_number = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(field: &str, index: usize) -> Vec<i8> {
        let mut fields = ["*"; 5];
        fields[index] = field;
        let cron = Cron::parse(&fields.join(" ")).unwrap();
        let sets = [
            cron.minutes,
            cron.hours,
            cron.days,
            cron.months,
            cron.weekdays,
        ];
        sets[index].numbers().collect()
    }

    #[test]
    fn fields_have_lists_ranges_steps_and_names() {
        assert_eq!(numbers("*/15", 0), [0, 15, 30, 45]);
        assert_eq!(numbers("5,10-12,50/4", 0), [5, 10, 11, 12, 50, 54, 58]);
        assert_eq!(numbers("8-18/5", 1), [8, 13, 18]);
        assert_eq!(numbers("?", 2).len(), 31);
        assert_eq!(numbers("jan,MAR-apr", 3), [1, 3, 4]);
        assert_eq!(numbers("Mon-Fri", 4), [1, 2, 3, 4, 5]);
        assert_eq!(numbers("7", 4), [0, 7]);
        assert_eq!(numbers("*/2", 4), [0, 2, 4, 6]);
        assert_eq!(numbers("5-7", 4), [0, 5, 6, 7]);
    }

    #[test]
    fn words_stand_for_lines() {
        for (word, line) in WORDS {
            assert_eq!(Cron::parse(word), Cron::parse(line), "{word}");
        }
        assert_eq!(Cron::parse(" @Daily "), Cron::parse("0 0 * * *"));
    }

    #[test]
    fn faults_are_named() {
        for (line, wanted) in [
            ("* * * *", "this one has 4"),
            ("0 0 * * * *", "this one has 6"),
            ("60 * * * *", "`60` is no minute: a number is from 0 to 59"),
            ("* 24 * * *", "`24` is no hour"),
            ("* * 0 * *", "`0` is no day of the month"),
            ("* * * foo *", "`foo` is no month"),
            ("* * * * 8", "a number is from 0 to 7"),
            ("*/0 * * * *", "a step is a number from 1 to 59"),
            ("5-1 * * * *", "ends before it starts"),
            ("1,,2 * * * *", "`` is no minute"),
            ("-1 * * * *", "`-1` is no minute"),
            ("+1 * * * *", "`+1` is no minute"),
            ("99999999999 * * * *", "is no minute"),
            ("@reboot", "`@reboot` is none of @hourly"),
            ("CRON_TZ=UTC 0 0 * * *", "stands in `timeZone`"),
            ("", "this one has 0"),
        ] {
            let error = Cron::parse(line).unwrap_err().to_string();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn either_field_of_days_counts_when_both_are_given() {
        let has = |line: &str, month, day| {
            Cron::parse(line)
                .unwrap()
                .has_day(Date::new(2026, month, day).unwrap())
        };
        // 13 March 2026 is a Friday.
        assert!(has("0 0 13 * fri", 3, 13));
        assert!(has("0 0 13 * fri", 3, 20));
        assert!(has("0 0 13 * fri", 4, 13));
        assert!(!has("0 0 13 * fri", 3, 14));
        assert!(!has("0 0 * * fri", 4, 13));
        assert!(!has("0 0 13 * *", 3, 20));
        assert!(!has("0 0 13 2 fri", 3, 13));
    }
}
