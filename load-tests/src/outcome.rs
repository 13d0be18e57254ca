//! The result of a run, its goals, and the file that keeps it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::alerts::Seen;
use crate::case::Case;
use crate::followers::Followed;
use crate::histogram::Histogram;
use crate::process::Machine;

/// One run of a case.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The case's name.
    pub case: String,
    /// When it was run, UTC.
    pub at: String,
    /// The machine.
    pub machine: Machine,
    /// The server's version, as it says.
    pub server: String,
    /// The case itself.
    pub asked: Case,
    /// What was measured.
    pub measured: Measured,
    /// The goals, and whether they were met.
    pub goals: Vec<Goal>,
}

/// The figures.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measured {
    /// `disk` or `memory`: when the server answers.
    pub ack: String,
    /// Events that were acknowledged in the measured part.
    pub events: u64,
    /// Requests that were answered in it.
    pub requests: u64,
    /// Bytes of an event on average, uncompressed.
    pub event_bytes: f64,
    /// Seconds up to the last acknowledgement, and up to the commit of the store with the last event.
    pub wall_s: UpTo,
    /// CPU seconds of the server up to the same moments.
    pub cpu_s: UpTo,
    /// Events for each wall second.
    pub events_per_wall_s: UpTo,
    /// Events for each CPU second of the server: `stored` is the figure to compare.
    pub events_per_cpu_s: UpTo,
    /// Uncompressed megabytes (10^6 bytes) for each wall second.
    pub mb_per_wall_s: UpTo,
    /// Uncompressed megabytes for each CPU second of the server.
    pub mb_per_cpu_s: UpTo,
    /// CPU seconds of this driver: when they come near the wall seconds, it is the driver that was measured.
    pub driver_cpu_s: f64,
    /// `open` (latencies from intended times) or `closed` (from the send).
    pub loop_kind: String,
    /// Request latencies.
    pub latency: Latency,
    /// From the POST of an event to the frame of its alert.
    pub alert_latency: Option<Latency>,
    /// The start on what the load left.
    pub restart: Option<Restarted>,
    /// Alerts that rules raised in the measured part.
    pub alerts_raised: f64,
    /// What followers of the feed were sent.
    pub feed: Followed,
    /// Answers 429 and 503; those requests were sent again.
    pub busy: u64,
    /// Bytes that compaction wrote meanwhile: its CPU time is in `cpu_s`, and it begins when it finds files enough, not with the load.
    pub compacted_bytes: f64,
    /// The peak of the server's resident memory, its start included.
    pub rss_peak_mib: f64,
    /// The server's resident memory at the end.
    pub rss_mib: f64,
    /// What lies on the disk at the end.
    pub disk: Disk,
    /// Acknowledged events, those of the warm-up and of alerts included, less the rows that SQL counts. Anything but 0 is a failure.
    pub lost: i64,
    /// Events that were answered as duplicates or rejected. The load sends none such.
    pub refused_events: u64,
}

/// A figure at two moments.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct UpTo {
    /// Up to the last acknowledgement.
    pub acked: f64,
    /// Up to the store's commit with the last event; what runs beside it (rules, compaction) included.
    pub stored: f64,
}

impl UpTo {
    /// `amount` divided by both.
    pub fn rate(self, amount: f64) -> Self {
        let rate = |seconds: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
        Self { acked: rate(self.acked), stored: rate(self.stored) }
    }
}

/// Quantiles, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// The median.
    pub p50_ms: f64,
    /// 90 %.
    pub p90_ms: f64,
    /// 99 %.
    pub p99_ms: f64,
    /// 99.9 %.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl From<&Histogram> for Latency {
    fn from(histogram: &Histogram) -> Self {
        Self {
            count: histogram.len(),
            p50_ms: histogram.quantile_ms(0.5),
            p90_ms: histogram.quantile_ms(0.9),
            p99_ms: histogram.quantile_ms(0.99),
            p999_ms: histogram.quantile_ms(0.999),
            max_ms: histogram.max_ms(),
        }
    }
}

impl From<&Seen> for Latency {
    fn from(seen: &Seen) -> Self {
        Self::from(&seen.latencies)
    }
}

/// Bytes on the disk.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Disk {
    /// Of the Parquet store.
    pub store_bytes: u64,
    /// Its files.
    pub store_files: u64,
    /// Of the ingest log, which forgets what is stored a segment at a time.
    pub log_bytes: u64,
    /// Of the store, for each event in it.
    pub store_bytes_per_event: f64,
}

/// A start of the killed server.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Restarted {
    /// Bytes of the ingest log.
    pub log_bytes: u64,
    /// From the start of the process to the answer to a first request with events.
    pub accepts_s: f64,
    /// From the start of the process until the run loop had processed the log.
    pub replay_s: f64,
    /// CPU seconds of the server in that time.
    pub replay_cpu_s: f64,
    /// The log's megabytes (10^6 bytes) for each second of it.
    pub replay_mb_per_s: f64,
    /// The peak of the server's resident memory up to then.
    pub rss_peak_mib: f64,
}

/// A goal and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    /// The key of the case file.
    pub name: &'static str,
    /// Its bound.
    pub bound: f64,
    /// What was measured.
    pub measured: f64,
    /// Whether it is met.
    pub met: bool,
}

/// Compares what was measured with the case's goals.
pub fn goals(case: &Case, measured: &Measured) -> Vec<Goal> {
    let least = |name, bound: Option<f64>, measured: f64| {
        bound.map(|bound| Goal { name, bound, measured, met: measured >= bound })
    };
    let most = |name, bound: Option<f64>, measured: f64| {
        bound.map(|bound| Goal { name, bound, measured, met: measured <= bound })
    };
    let wanted = &case.goals;
    let alert_p99 = measured.alert_latency.as_ref().map_or(f64::INFINITY, |latency| latency.p99_ms);
    let idle = if measured.wall_s.stored > 0.0 { measured.cpu_s.stored / measured.wall_s.stored } else { 0.0 };
    let restart = measured.restart.unwrap_or_default();
    let all = [
        most("lost", Some(0.0), measured.lost.unsigned_abs() as f64),
        most("refused_events", Some(0.0), measured.refused_events as f64),
        most("memory_mib", Some(case.allotment.memory_mib as f64), measured.rss_peak_mib),
        least("events_per_cpu_s_min", wanted.events_per_cpu_s_min, measured.events_per_cpu_s.stored),
        most("p50_ms_max", wanted.p50_ms_max, measured.latency.p50_ms),
        most("p99_ms_max", wanted.p99_ms_max, measured.latency.p99_ms),
        most("alert_p99_ms_max", wanted.alert_p99_ms_max, alert_p99),
        most("store_bytes_per_event_max", wanted.store_bytes_per_event_max, measured.disk.store_bytes_per_event),
        most("idle_cpu_share_max", wanted.idle_cpu_share_max, idle),
        most("idle_mib_max", wanted.idle_mib_max, measured.rss_mib),
        most("accepts_s_max", wanted.accepts_s_max, restart.accepts_s),
        least("replay_mb_per_s_min", wanted.replay_mb_per_s_min, restart.replay_mb_per_s),
    ];
    all.into_iter().flatten().collect()
}

impl Outcome {
    /// Writes it to `<folder>/<date>-<case>.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, folder: &Path, now: DateTime<Utc>) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let path = folder.join(format!("{}-{}.json", now.format("%Y-%m-%dT%H-%M-%SZ"), self.case));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_event_and_a_missed_bound_are_failures_and_what_is_not_asked_is_not_judged() {
        let mut case: Case =
            toml::from_str("what = ''\n[goals]\nevents_per_cpu_s_min = 10\np99_ms_max = 5").expect("a case");
        case.allotment.memory_mib = 100;
        let rate = UpTo { acked: 20.0, stored: 9.0 };
        let measured = Measured { lost: -1, events_per_cpu_s: rate, rss_peak_mib: 99.0, ..Measured::default() };
        let met: Vec<_> = goals(&case, &measured).into_iter().map(|goal| (goal.name, goal.met)).collect();
        let wanted = [
            ("lost", false),
            ("refused_events", true),
            ("memory_mib", true),
            ("events_per_cpu_s_min", false),
            ("p99_ms_max", true),
        ];
        assert_eq!(met, wanted);
    }
}
