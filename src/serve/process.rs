//! What the operating system knows of this process: memory, CPU time, open files. Linux; elsewhere the gauges stay away.

use std::fs;

use super::metrics::{CPU_SECONDS, OPEN_FILES, RESIDENT_BYTES};

/// Sets the gauges of the process.
pub fn show_gauges() {
    if let Some(bytes) = resident_bytes() {
        metrics::gauge!(RESIDENT_BYTES).set(bytes as f64);
    }
    if let Some(seconds) = cpu_seconds() {
        metrics::counter!(CPU_SECONDS).absolute(seconds);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        metrics::gauge!(OPEN_FILES).set(files.count() as f64);
    }
}

/// Field 2 of `/proc/self/statm` (proc(5)), in pages.
fn resident_bytes() -> Option<u64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Fields 14 and 15 of `/proc/self/stat` (proc(5)), in clock ticks. The name in field 2 may hold blanks.
fn cpu_seconds() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) / rustix::param::clock_ticks_per_second())
}
