//! The wall clock, read at the edges only: listeners, the log writer, sinks. Never by decoders, rules or operators.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since the epoch, UTC, now. Zero before 1970.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
