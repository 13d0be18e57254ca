//! `tidegate doctor`: looks at this machine the way the server will need it, and says what to do about what it finds.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tidegate_pipeline::clock::now_us;
use tidegate_sinks::timescale::{TimescaleConfig, survey};

use super::Ending;
use super::check::check_rules;
use crate::config::Config;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Fine.
    Good,
    /// The server runs, but not as well as it could.
    Poor,
    /// The server will not run, or not safely.
    Bad,
}

/// One check.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do about it; empty when there is nothing to do.
    pub hint: String,
}

impl Finding {
    fn good(name: &'static str, seen: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, seen: seen.into(), hint: String::new() }
    }

    fn poor(name: &'static str, seen: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Poor, seen: seen.into(), hint: hint.into() }
    }

    fn bad(name: &'static str, seen: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Bad, seen: seen.into(), hint: hint.into() }
    }
}

/// Checks, and prints one line for each.
///
/// # Errors
/// When they cannot be printed.
pub fn run(config: &Config, out: &mut dyn Write) -> io::Result<Ending> {
    let findings = examine(config);
    for finding in &findings {
        let word = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Poor => "warn",
            Verdict::Bad => "FAIL",
        };
        writeln!(out, "{word}  {:14} {}", finding.name, finding.seen)?;
        if !finding.hint.is_empty() {
            writeln!(out, "      {:14} → {}", "", finding.hint)?;
        }
    }
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(if bad { Ending::Bad } else { Ending::Good })
}

/// All checks.
pub fn examine(config: &Config) -> Vec<Finding> {
    let folder = existing(&config.data_dir);
    let mut findings = vec![lock(&config.data_dir)];
    match folder {
        Some(folder) => findings.extend([writable_and_durable(&folder, config.doctor.fsyncs), free(&folder)]),
        None => findings.push(Finding::bad(
            "data folder",
            "no folder above it exists",
            "make one, or choose another --data-dir",
        )),
    }
    findings.extend([open_files(), clock(), port(config), rules(config)]);
    findings.extend(config.sinks.timescale.as_ref().map(database));
    findings
}

/// What a database that is configured looks like to a server that starts.
fn database(config: &TimescaleConfig) -> Finding {
    let name = "database";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let found = match &runtime {
        Ok(runtime) => runtime.block_on(survey(config)).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(seen) => Finding::good(name, seen),
        Err(seen) => Finding::poor(
            name,
            seen,
            "the server starts without it and keeps rows in its log until it is there; with store = \"timescale\" SQL waits for it too",
        ),
    }
}

/// The folder itself, or the nearest one above it: where the server will make it.
fn existing(folder: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(folder).ok()?;
    absolute.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

fn lock(data_dir: &Path) -> Finding {
    let name = "data folder";
    let path = data_dir.join("log").join("lock");
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::good(name, format!("{}: new, the server will make it", data_dir.display()))
        }
        Err(error) => {
            Finding::bad(name, format!("{}: {error}", path.display()), "give this user the folder (chown -R)")
        }
        Ok(file) => match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Finding::good(name, format!("{}: not in use", data_dir.display())),
            Err(_) => Finding::good(name, format!("{}: in use by a running server", data_dir.display())),
        },
    }
}

/// One write as the log makes it.
const BLOCK_BYTES: usize = 4096;
/// The trial ends after this time, however slow the disk.
const TRIAL_MAX: Duration = Duration::from_secs(5);
/// Above this, group commit makes a client wait noticeably.
const FSYNC_P99_MS_GOOD: f64 = 20.0;
/// Below this, nothing reached a disk: a RAM disk, or a disk that lies.
const FSYNC_P50_MS_REAL: f64 = 0.005;

fn writable_and_durable(folder: &Path, fsyncs: usize) -> Finding {
    let name = "fsync";
    let mut times = match fsync_times(folder, fsyncs) {
        Ok(times) if !times.is_empty() => times,
        Ok(_) => return Finding::bad(name, "no trial was made", "set doctor.fsyncs to at least 1"),
        Err(error) => {
            return Finding::bad(
                name,
                format!("cannot write in {}: {error}", folder.display()),
                "give this user the folder, or choose another --data-dir",
            );
        }
    };
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let (p50, p99) = (at(0.5), at(0.99));
    let seen = format!("p50 {p50:.2} ms, p99 {p99:.2} ms over {} blocks of 4 KiB in {}", times.len(), folder.display());
    if p50 < FSYNC_P50_MS_REAL {
        return Finding::poor(
            name,
            seen,
            "too quick for a disk: on tmpfs or a write cache that lies, acknowledged events die with the power",
        );
    }
    if p99 > FSYNC_P99_MS_GOOD {
        return Finding::poor(
            name,
            seen,
            "acknowledgements wait for this; use a local SSD with power-loss protection, not a network volume",
        );
    }
    Finding::good(name, seen)
}

fn fsync_times(folder: &Path, fsyncs: usize) -> io::Result<Vec<Duration>> {
    let file = tempfile::tempfile_in(folder)?;
    let block = [0x5a; BLOCK_BYTES];
    let begun = Instant::now();
    let mut times = Vec::new();
    for number in 0..fsyncs {
        if begun.elapsed() > TRIAL_MAX {
            break;
        }
        file.write_all_at(&block, (number * BLOCK_BYTES) as u64)?;
        let asked = Instant::now();
        file.sync_data()?;
        times.push(asked.elapsed());
    }
    Ok(times)
}

/// Less than this is used up within the hour at a busy server.
const FREE_BYTES_GOOD: u64 = 10 * 1024 * 1024 * 1024;
/// The log refuses new events near this.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;

fn free(folder: &Path) -> Finding {
    let name = "disk space";
    match rustix::fs::statvfs(folder) {
        Err(error) => Finding::poor(name, format!("unknown: {error}"), ""),
        Ok(about) => {
            let free = about.f_bavail * about.f_frsize;
            let seen = format!("{:.1} GiB free of {:.1} GiB", gib(free), gib(about.f_blocks * about.f_frsize));
            let hint = "make room, or set bounds on the log and the retention (docs/configuration.md)";
            match free {
                0..FREE_BYTES_MIN => Finding::bad(name, seen, hint),
                FREE_BYTES_MIN..FREE_BYTES_GOOD => Finding::poor(name, seen, hint),
                _ => Finding::good(name, seen),
            }
        }
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0 * 1024.0)
}

/// A thousand connections, the segments and the Parquet files of a large query.
const OPEN_FILES_GOOD: u64 = 8_192;
const OPEN_FILES_MIN: u64 = 512;

fn open_files() -> Finding {
    let name = "open files";
    let limit = getrlimit(Resource::Nofile);
    let hint = "raise it: `ulimit -n 65536`, or LimitNOFILE=65536 in the systemd unit";
    match limit.current {
        None => Finding::good(name, "no limit"),
        Some(limit) if limit < OPEN_FILES_MIN => Finding::bad(name, format!("at most {limit}"), hint),
        Some(limit) if limit < OPEN_FILES_GOOD => Finding::poor(name, format!("at most {limit}"), hint),
        Some(limit) => Finding::good(name, format!("at most {limit}")),
    }
}

/// 2024-01-01: this program is younger.
const CLOCK_US_MIN: i64 = 1_704_067_200_000_000;
/// 2100-01-01.
const CLOCK_US_MAX: i64 = 4_102_444_800_000_000;

/// The wall clock must be plausible, and run as the monotonic clock does: a virtual machine's sometimes does not.
fn clock() -> Finding {
    let name = "clock";
    let (wall, steady) = (now_us(), Instant::now());
    std::thread::sleep(Duration::from_millis(50));
    let drift_us = (now_us() - wall) - i64::try_from(steady.elapsed().as_micros()).unwrap_or(i64::MAX);
    let shown = chrono::DateTime::from_timestamp_micros(wall)
        .map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    let shown = shown.unwrap_or_else(|| wall.to_string());
    if !(CLOCK_US_MIN..CLOCK_US_MAX).contains(&wall) {
        return Finding::bad(
            name,
            format!("{shown} cannot be right"),
            "set the clock and keep it with NTP (chrony, systemd-timesyncd)",
        );
    }
    if drift_us.abs() > 20_000 {
        return Finding::poor(
            name,
            format!("{shown}, jumped {:.1} ms in 50 ms", drift_us as f64 / 1e3),
            "something steps the clock: let NTP slew it",
        );
    }
    Finding::good(name, shown)
}

fn port(config: &Config) -> Finding {
    let name = "port";
    let seen = |what: &str| format!("{} {what}", config.listen);
    match TcpListener::bind(config.listen) {
        Ok(_) => Finding::good(name, seen("is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match fs::metadata(config.data_dir.join("server.json")) {
                Ok(_) => Finding::good(name, seen("is in use by the running server")),
                Err(_) => Finding::bad(
                    name,
                    seen("is in use by another program"),
                    "choose another --listen, or end that program (`ss -ltnp` shows it)",
                ),
            }
        }
        Err(error) => Finding::bad(name, seen(&format!("cannot be listened on: {error}")), "choose another --listen"),
    }
}

fn rules(config: &Config) -> Finding {
    let name = "rules";
    let checked = match check_rules(config.rules.as_deref(), &config.sigma) {
        Ok(checked) => checked,
        Err(error) => return Finding::bad(name, format!("{error:#}"), "choose a folder of Sigma rules with --rules"),
    };
    let seen = format!("{} compile, {} do not", checked.rules, checked.problems.len());
    if checked.problems.is_empty() {
        return Finding::good(name, seen);
    }
    Finding::poor(name, seen, "`tidegate check` says which, and why")
}
