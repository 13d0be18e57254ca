//! Times in event values, for the modifiers `minute` to `year`, and as text for columns of times.

/// A part of a time that a rule can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TimePart {
    Minute,
    Hour,
    /// Day of the month.
    Day,
    /// ISO 8601 week of the year.
    Week,
    Month,
    Year,
}

impl TimePart {
    /// This part, in UTC, of a time in microseconds since the epoch.
    pub fn of(self, time_us: i64) -> i64 {
        let days = time_us.div_euclid(DAY_US);
        let seconds = time_us.rem_euclid(DAY_US) / 1_000_000;
        let (year, month, day) = date_of(days);
        match self {
            Self::Minute => seconds / 60 % 60,
            Self::Hour => seconds / 3600,
            Self::Day => day,
            Self::Week => iso_week(days),
            Self::Month => month,
            Self::Year => year,
        }
    }
}

const DAY_US: i64 = 86_400_000_000;

/// Microseconds since the epoch of `2023-09-05T09:51:51.566Z`, `2023-09-05 09:51`, `2023-09-05T09:51:51+02:00` and the
/// like. Without an offset the time is taken as UTC.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    let digits = |from: usize, to: usize| -> Option<i64> {
        let part = text.get(from..to)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let separator = |at: usize, allowed: &[u8]| text.as_bytes().get(at).filter(|byte| allowed.contains(byte));
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    separator(4, b"-/").and(separator(7, b"-/"))?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_of(year, month, day);
    if text.len() == 10 {
        return Some(days * DAY_US);
    }
    separator(10, b"Tt ").and(separator(13, b":"))?;
    let (hour, minute) = (digits(11, 13)?, digits(14, 16)?);
    let (second, after) = match separator(16, b":") {
        Some(_) => (digits(17, 19)?, 19),
        None => (0, 16),
    };
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = text.get(after..)?;
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        for at in 0..6 {
            let digit = fraction.as_bytes().get(at).filter(|_| at < length).map_or(0, |digit| i64::from(digit - b'0'));
            micros = micros * 10 + digit;
        }
        rest = fraction.get(length..)?;
    }
    let offset_minutes = parse_offset(rest.trim())?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset_minutes * 60;
    Some(seconds * 1_000_000 + micros)
}

/// `Z`, nothing, `+02:00`, `-0530` or `UTC`, in minutes.
fn parse_offset(text: &str) -> Option<i64> {
    if matches!(text, "" | "Z" | "z" | "UTC") {
        return Some(0);
    }
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let digits: String = digits.chars().filter(|letter| *letter != ':').collect();
    let hours: i64 = digits.get(..2)?.parse().ok()?;
    let minutes: i64 = digits.get(2..).filter(|rest| !rest.is_empty()).map_or(Ok(0), str::parse).ok()?;
    ((0..24).contains(&hours) && (0..60).contains(&minutes)).then_some(sign * (hours * 60 + minutes))
}

/// A time as `2023-09-05T09:51:51.566Z`, without a fraction when it is zero.
pub(crate) fn write_time(time_us: i64, out: &mut String) {
    use std::fmt::Write;
    let (year, month, day) = date_of(time_us.div_euclid(DAY_US));
    let micros = time_us.rem_euclid(DAY_US);
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    // Writing to a string cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if fraction % 1000 != 0 {
        let _ = write!(out, ".{fraction:06}");
    } else if fraction != 0 {
        let _ = write!(out, ".{:03}", fraction / 1000);
    }
    out.push('Z');
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_of`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The ISO week: that of the Thursday in the same week (day 0 was a Thursday).
fn iso_week(days: i64) -> i64 {
    let thursday = days - (days + 3).rem_euclid(7) + 3;
    let (year, _, _) = date_of(thursday);
    (thursday - days_of(year, 1, 1)) / 7 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse_and_print() {
        for (text, printed) in [
            ("2023-09-05T09:51:51.566Z", "2023-09-05T09:51:51.566Z"),
            ("2023-09-05 09:51", "2023-09-05T09:51:00Z"),
            ("2023-09-05T09:51:51+02:00", "2023-09-05T07:51:51Z"),
            ("2023-12-31T23:30:00-0130", "2024-01-01T01:00:00Z"),
            ("1969-12-31T23:59:59.000001Z", "1969-12-31T23:59:59.000001Z"),
            ("2024-02-29", "2024-02-29T00:00:00Z"),
        ] {
            let mut out = String::new();
            write_time(parse_time(text).expect(text), &mut out);
            assert_eq!(out, printed);
        }
        for bad in [
            "",
            "2023",
            "2023-13-01",
            "2023-09-05T25:00:00Z",
            "2023-09-05Tab:cd",
            "2023-09-05T09:51:51+x",
            "é023-09-05",
        ] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn parts_are_those_of_utc_and_iso_weeks() {
        let time = parse_time("2024-12-30T13:07:59Z").expect("a time");
        let parts = [TimePart::Minute, TimePart::Hour, TimePart::Day, TimePart::Week, TimePart::Month, TimePart::Year];
        assert_eq!(parts.map(|part| part.of(time)), [7, 13, 30, 1, 12, 2024]);
        let weeks = [("2021-01-03", 53), ("2021-01-04", 1), ("2020-12-31", 53), ("2023-01-01", 52), ("2026-11-22", 47)];
        for (date, week) in weeks {
            assert_eq!(TimePart::Week.of(parse_time(date).expect("a date")), week, "{date}");
        }
    }
}
