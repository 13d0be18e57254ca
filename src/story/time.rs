//! Times as the sources write them.

use chrono::{DateTime, SecondsFormat, Utc};

fn utc(at: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at).unwrap_or_default()
}

/// `2026-11-21T10:00:00Z`, as CloudTrail and FOCUS write.
pub fn seconds(at: i64) -> String {
    utc(at).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `2026-11-21T10:00:00.123Z`, as forwarders write.
pub fn millis(at: i64) -> String {
    utc(at).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// `2026-11-21 10:00:00.123`, as Sysmon writes.
pub fn sysmon(at: i64) -> String {
    utc(at).format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// The first moment of the month of a time, and of the next month: a billing period.
pub fn month(at: i64) -> (String, String) {
    use chrono::{Datelike, Months, NaiveDate, NaiveTime};
    let day = utc(at).date_naive();
    let first = NaiveDate::from_ymd_opt(day.year(), day.month(), 1).unwrap_or(day);
    let next = first.checked_add_months(Months::new(1)).unwrap_or(first);
    let text = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc().to_rfc3339_opts(SecondsFormat::Secs, true);
    (text(first), text(next))
}

/// Microseconds of a minute.
pub const MINUTE: i64 = 60_000_000;
/// Microseconds of an hour.
pub const HOUR: i64 = 60 * MINUTE;
