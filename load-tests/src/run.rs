//! One run of a case, from the start of the server to the count of its rows.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::{DateTime, Utc};
use rustix::thread::CpuSet;

use crate::alerts;
use crate::case::{Case, Restart};
use crate::corpus::Corpus;
use crate::followers::Followers;
use crate::http::{Connection, Metrics};
use crate::load::{Plan, Tally};
use crate::outcome::{Disk, Latency, Measured, Outcome, Restarted, UpTo, goals};
use crate::process::{Machine, cpu_seconds, folder_bytes, memory_bytes};
use crate::server::Server;
use crate::tenants;

/// How long the server may take to store what it has acknowledged.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(120);
/// How long it may take to process its log again.
const REPLAY_TIME_MAX: Duration = Duration::from_secs(240);
/// Between two looks at the metrics while it does.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between the start of an idle server and the first look at it.
const CALM: Duration = Duration::from_secs(3);

/// What is run.
#[derive(Debug)]
pub struct Run {
    /// The server's program.
    pub program: PathBuf,
    /// Where the server's folder is made.
    pub folder: PathBuf,
    /// The case's name.
    pub name: String,
    /// The case.
    pub case: Case,
    /// The folder of the rules that are in force.
    pub rules: Option<PathBuf>,
    /// The whole machine, as it was before this run took cores of it.
    pub machine: Machine,
    /// The server's cores; all without.
    pub cores: Option<CpuSet>,
}

impl Run {
    /// Runs the case, within its time.
    ///
    /// # Errors
    /// When the server does not start or stop, or gives an answer that a load must not get. The server is gone then, too.
    pub async fn run(&self, now: DateTime<Utc>) -> anyhow::Result<Outcome> {
        let time = Duration::from_secs(self.case.run_seconds_max);
        let measured = tokio::time::timeout(time, self.measured(now)).await;
        let measured = measured.with_context(|| format!("the run took longer than {time:?}"))??;
        Ok(Outcome {
            case: self.name.clone(),
            at: now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            machine: self.machine.clone(),
            server: version(&self.program)?,
            asked: self.case.clone(),
            goals: goals(&self.case, &measured),
            measured,
        })
    }

    async fn measured(&self, now: DateTime<Utc>) -> anyhow::Result<Measured> {
        let load = &self.case.load;
        let requests = if load.requests == 0 { 0 } else { load.warmup_requests + load.requests };
        let corpus = Corpus::make(&self.case.events, now.timestamp_micros(), requests)?;
        let event_bytes = corpus.event_bytes();
        let rules = self.rules.as_deref();
        let server = Server::start(&self.program, &self.case, rules, &self.folder, self.cores).await?;
        let tenants = tenants::make(server.address, &server.operator, self.case.load.tenants).await?;
        let plan = Arc::new(Plan::new(&self.case, corpus, server.address, tenants)?);
        let done = self.under_load(&server, &plan).await;
        let mut measured = done.with_context(|| format!("the end of the server's log:\n{}", server.log_end()))?;
        let server = match self.case.restart {
            Some(asked) => {
                let (server, restarted) = self.restarted(server, plan, asked).await?;
                measured.restart = Some(restarted);
                server
            }
            None => server,
        };
        measured.event_bytes = event_bytes;
        let amount = measured.events as f64;
        let megabytes = amount * event_bytes / 1e6;
        (measured.events_per_wall_s, measured.events_per_cpu_s) =
            (measured.wall_s.rate(amount), measured.cpu_s.rate(amount));
        (measured.mb_per_wall_s, measured.mb_per_cpu_s) =
            (measured.wall_s.rate(megabytes), measured.cpu_s.rate(megabytes));
        server.stop().await?;
        Ok(measured)
    }

    /// Kills the server and starts it on its log.
    async fn restarted(&self, server: Server, plan: Arc<Plan>, asked: Restart) -> anyhow::Result<(Server, Restarted)> {
        let (log_bytes, _) = folder_bytes(&server.data_dir().join("log"));
        let rules = self.rules.as_deref();
        let server = server.restart(&self.program, &self.case, rules, self.cores, asked.from_first_row).await?;
        let first = self.case.load.warmup_requests + self.case.load.requests;
        let plan = Arc::new(plan.at(server.address)?);
        let tally = plan.run(first, first + 1, false).await.context("the first request after the restart")?;
        ensure!(tally.accepted + tally.refused_events > 0, "the first request after the restart was not taken");
        let accepts_s = server.age().as_secs_f64();
        let mut asking = Connection::open(server.address).await?;
        while asking.metrics().await?.sum("tidegate_pipeline_run_lag_rows", "") > 0.0 {
            ensure!(server.age() < REPLAY_TIME_MAX, "the log was not processed within {REPLAY_TIME_MAX:?}");
            tokio::time::sleep(LOOK_EVERY / 4).await;
        }
        let replay_s = server.age().as_secs_f64();
        let restarted = Restarted {
            log_bytes,
            accepts_s,
            replay_s,
            replay_cpu_s: cpu_seconds(server.pid())?,
            replay_mb_per_s: log_bytes as f64 / 1e6 / replay_s,
            rss_peak_mib: mebibytes(memory_bytes(server.pid(), "VmHWM")?),
        };
        Ok((server, restarted))
    }

    async fn under_load(&self, server: &Server, plan: &Arc<Plan>) -> anyhow::Result<Measured> {
        let (load, pid) = (&self.case.load, server.pid());
        let mut asking = Connection::open(server.address).await?;
        asking.authorize(Some(server.operator.clone()));
        let followers = Followers::start(server.address, self.case.followers).await?;
        let idle = load.requests == 0;
        let warmup = if idle { 0 } else { load.warmup_requests };
        let started_with = after_keys(&mut asking, plan.tenants.len()).await?;
        let warm = plan.run(0, warmup, false).await.context("the warm-up")?;
        settle(&mut asking, &warm, &started_with).await?;
        if idle {
            tokio::time::sleep(CALM).await;
        }
        let before = Counted::of(&asking.metrics().await?);
        let (started, cpu_before) = (Instant::now(), cpu_seconds(pid)?);
        let driver_before = cpu_seconds(std::process::id())?;

        let alerts = self.case.alerts.clone().map(|asked| tokio::spawn(alerts::run(server.address, asked)));
        let mut tally = Tally::default();
        if idle {
            tokio::time::sleep(Duration::from_secs(load.seconds_max)).await;
        } else {
            tally = plan.run(warmup, warmup + load.requests, true).await?;
        }
        let seen = match alerts {
            Some(task) => Some(task.await.context("the follower of alerts")?.context("alerts")?),
            None => None,
        };
        let acked = (started.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu_before);
        let driver_cpu_s = cpu_seconds(std::process::id())? - driver_before;
        let alert_events = seen.as_ref().map_or(0, |seen| seen.sent);
        tally.accepted += alert_events;
        if !idle {
            settle(&mut asking, &tally, &before).await?;
        }
        let stored = (started.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu_before);

        let after = Counted::of(&asking.metrics().await?);
        // Before the count below: a query is no part of what is measured, and takes memory of its own.
        let (rss_peak, rss) = (memory_bytes(pid, "VmHWM")?, memory_bytes(pid, "VmRSS")?);
        let acknowledged = warm.accepted + tally.accepted;
        let (rows, lost) = if plan.tenants.is_empty() {
            let rows = asking.count("security_events").await?;
            (rows, i64::try_from(acknowledged)? - i64::try_from(rows)?)
        } else {
            // The operator sees the rows of one tenant only: the metrics have those of all.
            let missing = acknowledged as f64 - (after.stored_rows - started_with.stored_rows);
            (acknowledged, tenants::lost(server.address, &plan.tenants).await? + missing.abs() as i64)
        };
        Ok(Measured {
            ack: load.ack.clone(),
            events: tally.accepted,
            requests: tally.requests,
            wall_s: UpTo { acked: acked.0, stored: stored.0 },
            cpu_s: UpTo { acked: acked.1, stored: stored.1 },
            driver_cpu_s,
            loop_kind: if load.requests_per_s.is_some() { "open" } else { "closed" }.to_owned(),
            latency: Latency::from(&tally.latencies),
            alert_latency: seen.as_ref().map(Latency::from),
            alerts_raised: after.alerts - before.alerts,
            feed: followers.followed(),
            busy: tally.busy,
            compacted_bytes: after.compacted_bytes - before.compacted_bytes,
            rss_peak_mib: mebibytes(rss_peak),
            rss_mib: mebibytes(rss),
            disk: disk(&server.data_dir(), rows),
            lost,
            refused_events: warm.refused_events + tally.refused_events,
            ..Measured::default()
        })
    }
}

/// Waits until the rows that say of the keys are stored; what the server has counted then.
async fn after_keys(asking: &mut Connection, keys: usize) -> anyhow::Result<Counted> {
    if keys > 0 {
        let made = Tally { accepted: keys as u64, ..Tally::default() };
        settle(asking, &made, &Counted::default()).await?;
    }
    Ok(Counted::of(&asking.metrics().await?))
}

/// What the server has counted.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    stored_rows: f64,
    compacted_bytes: f64,
    alerts: f64,
}

impl Counted {
    fn of(metrics: &Metrics) -> Self {
        Self {
            stored_rows: metrics.sum("tidegate_sinks_parquet_rows_total", r#"source="ingest""#),
            compacted_bytes: metrics.sum("tidegate_sinks_parquet_compacted_bytes_total", ""),
            alerts: metrics.sum("tidegate_rules_alerts_total", ""),
        }
    }
}

/// Waits until everything that was acknowledged has been through the run loop and is committed to the store.
async fn settle(asking: &mut Connection, tally: &Tally, before: &Counted) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let metrics = asking.metrics().await?;
        let lag =
            metrics.sum("tidegate_pipeline_run_lag_rows", "") + metrics.sum("tidegate_pipeline_delivery_lag_rows", "");
        let stored = Counted::of(&metrics).stored_rows - before.stored_rows;
        if lag == 0.0 && stored >= tally.accepted as f64 {
            return Ok(());
        }
        ensure!(
            started.elapsed() < SETTLE_TIME_MAX,
            "not settled within {SETTLE_TIME_MAX:?}: {lag} rows behind, {stored} of {} stored",
            tally.accepted
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn disk(data: &Path, rows: u64) -> Disk {
    let (store_bytes, store_files) = folder_bytes(&data.join("store"));
    let (log_bytes, _) = folder_bytes(&data.join("log"));
    Disk { store_bytes, store_files, log_bytes, store_bytes_per_event: store_bytes as f64 / rows.max(1) as f64 }
}

fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program).env_clear().arg("--version").output().context("ask for the version")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
