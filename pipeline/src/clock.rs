//! The wall clock, read at the edges only: listeners, the log writer, sinks; never by decoders, rules or operators. And the clock
//! of a thread, by which work is judged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Microseconds since the epoch, UTC, now. Zero before 1970.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The CPU time that the calling thread has had. What differs between two readings on one thread is what it worked, whatever else
/// the machine did meanwhile.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
