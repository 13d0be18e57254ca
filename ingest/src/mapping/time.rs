//! Times as agents write them, to microseconds since the epoch, UTC.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

/// How a number counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// By magnitude: below 10^11 seconds, below 10^14 milliseconds, below 10^17 microseconds, else nanoseconds. That is right
    /// for every time from 1973 to 5138.
    Auto,
    /// Seconds since the epoch, with a fraction if need be.
    Seconds,
    /// Milliseconds since the epoch.
    Milliseconds,
    /// Microseconds since the epoch.
    Microseconds,
    /// Nanoseconds since the epoch.
    Nanoseconds,
}

impl TimeUnit {
    fn of(self, magnitude: f64) -> Self {
        match self {
            Self::Auto if magnitude < 1e11 => Self::Seconds,
            Self::Auto if magnitude < 1e14 => Self::Milliseconds,
            Self::Auto if magnitude < 1e17 => Self::Microseconds,
            Self::Auto => Self::Nanoseconds,
            unit => unit,
        }
    }
}

/// The years that a time may lie in: what RFC 3339 can write, so that every reader can show it.
fn in_range(us: i64) -> Option<i64> {
    const YEAR_0_US: i64 = -62_167_219_200_000_000;
    const YEAR_10000_US: i64 = 253_402_300_800_000_000;
    (YEAR_0_US..YEAR_10000_US).contains(&us).then_some(us)
}

/// Microseconds of a whole number.
pub fn from_int(value: i64, unit: TimeUnit) -> Option<i64> {
    let us = match unit.of(value.unsigned_abs() as f64) {
        TimeUnit::Seconds | TimeUnit::Auto => value.checked_mul(1_000_000),
        TimeUnit::Milliseconds => value.checked_mul(1_000),
        TimeUnit::Microseconds => Some(value),
        TimeUnit::Nanoseconds => Some(value.div_euclid(1_000)),
    };
    us.and_then(in_range)
}

/// Microseconds of a number with a fraction.
pub fn from_float(value: f64, unit: TimeUnit) -> Option<i64> {
    let us = match unit.of(value.abs()) {
        TimeUnit::Seconds | TimeUnit::Auto => value * 1e6,
        TimeUnit::Milliseconds => value * 1e3,
        TimeUnit::Microseconds => value,
        TimeUnit::Nanoseconds => value / 1e3,
    };
    // 2^53 microseconds is the year 2255: up to there a float is exact to the microsecond.
    (us.is_finite() && us.abs() < 9e18).then(|| us.round() as i64).and_then(in_range)
}

/// Microseconds of a text: RFC 3339, the same with a space or without a zone (taken as UTC) or without a colon in the zone,
/// a date alone, or a number.
pub fn from_text(text: &str, unit: TimeUnit) -> Option<i64> {
    let text = text.trim();
    rfc3339(text.as_bytes()).or_else(|| other_text(text, unit))
}

/// `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm|±hhmm|)`, `T` or a space: the shape of nearly all times, without a format parser.
fn rfc3339(text: &[u8]) -> Option<i64> {
    let number = |from: usize, len: usize| -> Option<i64> {
        text.get(from..from + len)?
            .iter()
            .try_fold(0i64, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
    };
    let is = |at: usize, any: &[u8]| text.get(at).is_some_and(|byte| any.contains(byte));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let days = days_from_civil(number(0, 4)?, number(5, 2)?, number(8, 2)?)?;
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    // 60 is a leap second, counted as the first second after it.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut fraction_us = 0;
    if is(at, b".,") {
        at += 1;
        let start = at;
        let mut scale = 100_000;
        while let Some(digit) = text.get(at).filter(|byte| byte.is_ascii_digit()) {
            fraction_us += i64::from(digit - b'0') * scale;
            scale /= 10;
            at += 1;
        }
        if at == start {
            return None;
        }
    }
    let zone_minutes = match text.get(at..)? {
        [] | [b'Z' | b'z'] => 0,
        b" UTC" => 0,
        [sign @ (b'+' | b'-'), zone @ ..] => {
            let minutes = match zone.len() {
                5 if is(at + 3, b":") => number(at + 1, 2)? * 60 + number(at + 4, 2)?,
                4 => number(at + 1, 2)? * 60 + number(at + 3, 2)?,
                2 => number(at + 1, 2)? * 60,
                _ => return None,
            };
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - zone_minutes * 60;
    in_range(seconds * 1_000_000 + fraction_us)
}

/// Days since the epoch of a date of the Gregorian calendar; `None` when there is no such day.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) {
        return None;
    }
    // Howard Hinnant's algorithm: years start in March, so that the leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

fn other_text(text: &str, unit: TimeUnit) -> Option<i64> {
    if let Ok(number) = text.parse::<i64>() {
        return from_int(number, unit);
    }
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return in_range(date.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros());
    }
    // `2024-09-01 00:00`, and RFC 2822 (`Tue, 1 Jul 2003 10:52:37 +0200`).
    if let Ok(time) = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M") {
        return in_range(time.and_utc().timestamp_micros());
    }
    if let Ok(time) = DateTime::parse_from_rfc2822(text) {
        return in_range(time.timestamp_micros());
    }
    // Only what looks like a number: `inf` and `nan` parse as floats too.
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    text.parse::<f64>().ok().filter(|_| numeric).and_then(|number| from_float(number, unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_of_every_shape_are_read() {
        let want = Some(1_725_148_800_000_000);
        for text in [
            "2024-09-01T00:00:00Z",
            "2024-09-01 00:00:00",
            "2024-09-01T00:00:00",
            "2024-09-01T02:00:00+02:00",
            "2024-09-01T02:00:00.000000000+0200",
            "2024-08-31T19:00:00-05",
            "2024-09-01 00:00:00.0 UTC",
            "2024-09-01 00:00:00 UTC",
            "2024-09-01",
            "2024-09-01 00:00",
            "Sun, 1 Sep 2024 02:00:00 +0200",
            "1725148800",
            "1725148800000",
            "1725148800000000",
            "1725148800000000000",
            "1725148800.0",
            "1.7251488e9",
        ] {
            assert_eq!(from_text(text, TimeUnit::Auto), want, "{text}");
        }
        assert_eq!(from_text("2023-09-05T09:51:51.566Z", TimeUnit::Auto), Some(1_693_907_511_566_000));
        assert_eq!(from_float(1_591_367_999.305_988, TimeUnit::Auto), Some(1_591_367_999_305_988));
        assert_eq!(from_int(86_400, TimeUnit::Milliseconds), Some(86_400_000));
        assert_eq!(from_int(-1_500, TimeUnit::Nanoseconds), Some(-2));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "now",
            "inf",
            "NaN",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-09-01T24:00:00Z",
            "2024-09-01T00:00:00.Z",
            "2024-09-01T00:00:00+2",
            "2024-09-01T00:00:00Zjunk",
            "1e99",
            "-",
            "2024-09-0é",
        ] {
            assert_eq!(from_text(text, TimeUnit::Auto), None, "{text}");
        }
        assert_eq!(from_int(i64::MAX, TimeUnit::Seconds), None);
        assert_eq!(from_float(f64::NAN, TimeUnit::Auto), None);
        assert_eq!(from_float(f64::INFINITY, TimeUnit::Seconds), None);
    }

    proptest! {
        #[test]
        fn agrees_with_chrono(us in -62_000_000_000_000_000i64..253_000_000_000_000_000) {
            let text = DateTime::from_timestamp_micros(us).expect("in range").to_rfc3339();
            prop_assert_eq!(from_text(&text, TimeUnit::Auto), Some(us));
        }

        #[test]
        fn any_text_is_safe(text in ".{0,40}") {
            let _ = from_text(&text, TimeUnit::Auto);
        }
    }
}
