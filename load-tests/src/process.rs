//! What the operating system says: of a process its CPU time and memory, of the machine what it is, of a folder its bytes.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// CPU seconds that a process has used, user and system together, all threads. The grain is a clock tick, mostly 10 ms.
///
/// # Errors
/// When the process is gone.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}: the server has ended"))?;
    let ticks = cpu_ticks(&text).with_context(|| format!("{path} has another form than proc(5) says"))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Fields 14 and 15 of `stat`; the name before them may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// A line of `/proc/<pid>/status` in bytes: `VmHWM` (the peak of resident memory), `VmRSS`.
///
/// # Errors
/// When the process is gone.
pub fn memory_bytes(pid: u32, name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}: the server has ended"))?;
    kibibytes(&text, name).map(|kib| kib * 1024).with_context(|| format!("{path} has no line {name}"))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Bytes and number of all files below a folder.
pub fn folder_bytes(folder: &Path) -> (u64, u64) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.fold((0, 0), |(bytes, files), entry| match entry.metadata() {
        Ok(found) if found.is_dir() => {
            let (more, count) = folder_bytes(&entry.path());
            (bytes + more, files + count)
        }
        Ok(found) => (bytes + found.len(), files + 1),
        // Files come and go while the server runs.
        Err(_) => (bytes, files),
    })
}

/// The machine of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// Their model.
    pub cpu: String,
    /// All memory.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The load average of one minute before the run: above about 0.5, wall times are not to be trusted.
    pub load_average: f64,
}

/// Reads what machine this is.
pub fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_lines = read("/proc/cpuinfo");
    let cpu = cpu_lines.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let load = read("/proc/loadavg").split(' ').next().and_then(|first| first.parse().ok());
    Machine {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        cpu: cpu.map(|(_, model)| model.to_owned()).unwrap_or_default(),
        memory_mib: kibibytes(&read("/proc/meminfo"), "MemTotal").unwrap_or(0) / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load_average: load.unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_move_the_cpu_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (cut"), None);
    }

    #[test]
    fn this_process_uses_memory_and_says_how_much() {
        let pid = std::process::id();
        // Other tests take memory meanwhile: the peak is read last.
        let now = memory_bytes(pid, "VmRSS").expect("memory");
        assert!(memory_bytes(pid, "VmHWM").expect("a peak") >= now);
        assert!(cpu_seconds(pid).is_ok());
    }
}
