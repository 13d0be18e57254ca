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
    if let Some(files) = open_files() {
        metrics::gauge!(OPEN_FILES).set(files as f64);
    }
}

/// The size of `/proc/self/fd`, which is their number since Linux 6.2 (Documentation/filesystems/proc.rst of the kernel, section
/// 3.13). Before it they are counted, which takes milliseconds when there are thousands.
fn open_files() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        files => Some(files),
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::open_files;

    #[test]
    fn open_files_are_those_of_this_process() {
        let before = open_files().expect("a number");
        // Other tests of this process open and close some meanwhile.
        let files: Vec<_> = (0..200).map(|_| File::open("/proc/self/stat").expect("open")).collect();
        let with = open_files().expect("a number");
        assert!(with >= before + 100, "{with}, {before} before");
        drop(files);
        let after = open_files().expect("a number");
        assert!(after <= with - 100, "{after}, {with} before");
    }
}
