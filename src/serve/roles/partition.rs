//! One partition in the hands of a worker: its logs, the run loop over it, and the deliveries to the database.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tidegate_pipeline::checkpoint::{Checkpoint, Checkpoints};
use tidegate_pipeline::delivery::{DeliveryConfig, DeliveryHandle, DeliveryParts, deliver};
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::output::OutputLog;
use tidegate_pipeline::run::{CheckpointCopy, RunHandle, RunLoop, RunParts};
use tidegate_pipeline::{Health, PipelineError, Stage, StreamLog};
use tidegate_rules::SigmaOperator;
use tidegate_sinks::fluvio::{FluvioLog, FluvioLogParts, LogTopic, records_between};
use tidegate_sinks::timescale::{Lease, LeasedCheckpoint, TimescaleConfig, TimescaleStore};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::super::destinations::SOURCES;
use super::super::housekeeping::keep_database;
use super::ruled::Ruled;
use crate::config::Config;

/// How long a checkpoint may take to be in the database.
const COPY_MAX: Duration = Duration::from_secs(30);

/// The stages of a partition: they outlive the worker's hold on it, and say nothing while it has none.
#[derive(Clone)]
pub(super) struct Stages {
    logs: [Arc<Stage>; 2],
    run: Arc<Stage>,
    sinks: [Arc<Stage>; 2],
    database: Arc<Stage>,
}

/// What a partition is started with.
#[derive(Clone)]
pub(super) struct PartitionParts {
    pub(super) config: Arc<Config>,
    pub(super) timescale: TimescaleConfig,
    pub(super) fs: Arc<dyn Fs>,
    pub(super) changes: Arc<FluvioLog>,
    pub(super) lease: Lease,
    pub(super) checkpoint: LeasedCheckpoint,
    pub(super) stages: Stages,
}

/// A partition at work. Dropping it ends the work at once, as a crash would.
pub(super) struct Partition {
    lease: Lease,
    run: RunHandle,
    deliveries: Vec<DeliveryHandle>,
    housekeeping: Option<AbortHandle>,
    logs: [Arc<dyn StreamLog>; 2],
    stages: Stages,
}

/// What may be behind the end of a partition.
pub(super) const LAGGING: [&str; 3] = ["rules", "events", "alerts"];

impl Stages {
    pub(super) fn new(health: &Health, partition: u32) -> Self {
        let stage = |what: &str| health.stage(&format!("{what}:{partition}"));
        Self {
            logs: ["log", "output log"].map(stage),
            run: stage("run loop"),
            sinks: ["timescale:ingest", "timescale:output"].map(stage),
            database: stage("timescale:housekeeping"),
        }
    }

    /// Nothing is waited for any more.
    pub(super) fn clear(&self) {
        let [run, database] = [&self.run, &self.database];
        for stage in self.logs.iter().chain(&self.sinks).chain([run, database]) {
            stage.waiting(0, Instant::now());
            stage.set_detail(None);
        }
    }
}

impl Partition {
    /// Goes on where whoever held it before has left off: rows and alerts where the database has them up to, the rules at the
    /// checkpoint.
    ///
    /// # Errors
    /// When the database or the cluster does not answer: it may be tried again.
    pub(super) async fn start(parts: PartitionParts) -> anyhow::Result<Self> {
        let PartitionParts { config, timescale, fs, changes, lease, checkpoint, stages } = parts;
        let (commit_interval_ms, refresh_s) = (timescale.commit_interval_ms, timescale.refresh_s);
        let store = TimescaleStore::open_leased(timescale, &origin(&config.fluvio.prefix, lease.partition), lease)?;
        let [ingest, output] = SOURCES;
        let cursors = [store.cursor(ingest).await?, store.cursor(output).await?];
        let dir = config.data_dir.join("partitions").join(lease.partition.to_string()).join("checkpoint");
        let found = adopt(&fs, &dir, &config, &checkpoint).await?;
        let (offset, output_offset) = found.map_or((0, 0), |found| (found.offset, found.output_offset));
        let follow = [cursors[0].min(offset), cursors[1].min(output_offset)];
        tracing::info!(?lease, ?cursors, offset, "a partition is taken");
        let mut logs: Vec<Arc<dyn StreamLog>> = Vec::new();
        for ((topic, from), stage) in [LogTopic::Log, LogTopic::Output].into_iter().zip(follow).zip(&stages.logs) {
            let parts = FluvioLogParts { topic, partition: lease.partition, follow: Some(from), stage: stage.clone() };
            logs.push(Arc::new(Box::pin(FluvioLog::open(&config.fluvio, parts)).await?));
        }
        let [log, output_log] = <[_; 2]>::try_from(logs).map_err(|_| anyhow::anyhow!("two logs"))?;
        let writer = Arc::new(OutputLog::of_numbering_log(output_log.clone()));
        let parts = RunParts {
            log: log.clone(),
            output: writer.clone(),
            operators: vec![Box::new(Ruled::new(SigmaOperator::new(config.sigma.clone())?, changes))],
            seed: Vec::new(),
            fs,
            dir,
            config: config.run.clone(),
            stage: stages.run.clone(),
        };
        let run = RunLoop::start_with(parts, Some(copy(checkpoint)))?;
        let pace = DeliveryConfig { flush_interval_ms: commit_interval_ms, ..config.delivery.clone() };
        let logs = [log, output_log];
        let ways = SOURCES.into_iter().zip(logs.clone()).zip(cursors).zip(&stages.sinks);
        let deliveries = ways.map(|(((source, log), from), stage)| {
            let sink = Box::new(store.sink(source, from));
            let (output, config, stage) = (writer.clone(), pace.clone(), stage.clone());
            deliver(DeliveryParts { sink, log, output, config, stage }, &Handle::current())
        });
        let deliveries = deliveries.collect();
        // What a database wants done now and then, one worker does.
        let keep = || tokio::spawn(keep_database(store, refresh_s, stages.database.clone())).abort_handle();
        let housekeeping = (lease.partition == 0).then(keep);
        Ok(Self { lease, run, deliveries, housekeeping, logs, stages })
    }

    /// How many records the [rules, and events and alerts in the database](LAGGING), are behind the ends of the logs.
    pub(super) fn lag(&self) -> [u64; 3] {
        let [log, output] = self.logs.each_ref().map(|log| log.bounds().next);
        let mut stored = self.deliveries.iter().map(|delivery| *delivery.committed().borrow());
        let mut stored = || stored.next().unwrap_or_default();
        let rules = *self.run.offset().borrow();
        [records_between(rules, log), records_between(stored(), log), records_between(stored(), output)]
    }

    /// Which one.
    pub(super) fn lease(&self) -> Lease {
        self.lease
    }

    /// Comes to an end: what the log holds now is processed and delivered as far as the deadline allows, and nothing is written
    /// afterwards. What is left over is for whoever takes the partition next.
    pub(super) async fn drain(self, deadline: Instant) {
        let Self { lease, run, deliveries, housekeeping, stages, .. } = self;
        if let Some(housekeeping) = housekeeping {
            housekeeping.abort();
        }
        let mut late: Vec<String> =
            run.drain(deadline).await.err().map(|error| error.to_string()).into_iter().collect();
        for delivery in deliveries {
            let deadline = deadline.max(Instant::now() + super::super::GRACE);
            late.extend(delivery.drain(deadline).await.err().map(|error| error.to_string()));
        }
        stages.clear();
        tracing::info!(?lease, ?late, "a partition is given back");
    }

    /// Ends at once: somebody else has it, or may have it.
    pub(super) fn abandon(self) {
        let Self { lease, run, deliveries, housekeeping, stages, .. } = self;
        if let Some(housekeeping) = housekeeping {
            housekeeping.abort();
        }
        drop((run, deliveries));
        stages.clear();
        tracing::warn!(?lease, "a partition is lost to another worker");
    }
}

/// Puts the checkpoint that the database has into the local folder, where the run loop looks for it.
async fn adopt(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    config: &Config,
    place: &LeasedCheckpoint,
) -> anyhow::Result<Option<Checkpoint>> {
    let body = place.load().await?;
    let found = match body.map(|body| Checkpoint::decode(&body)) {
        Some(Err(error)) => {
            tracing::error!(
                error,
                "the checkpoint in the database is damaged: rules begin afresh, all of the log is processed"
            );
            None
        }
        found => found.and_then(Result::ok),
    };
    let (fs, dir, bytes_max) = (fs.clone(), dir.to_owned(), config.run.checkpoint_bytes_max);
    let put = move || Checkpoints::put(fs, &dir, bytes_max, found.as_ref()).map(|()| found);
    Ok(tokio::task::spawn_blocking(put).await.context("the thread that writes the checkpoint")??)
}

/// Takes each checkpoint to the database.
fn copy(place: LeasedCheckpoint) -> CheckpointCopy {
    let runtime = Handle::current();
    Box::new(move |checkpoint| {
        let (place, body) = (place.clone(), checkpoint.encode());
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move {
            // Who asked may have lost patience.
            answer.send(place.save(&body).await).ok();
        });
        let failed =
            |reason: String| PipelineError::Invalid(format!("the checkpoint is not in the database: {reason}"));
        match answered.recv_timeout(COPY_MAX) {
            Ok(saved) => saved.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer in {COPY_MAX:?}"))),
        }
    })
}

/// The log of changes among partitions: they are fewer than that.
pub(super) const CHANGES: u32 = u32::MAX;

/// The id by which the database knows the logs of a partition: a UUID, the same on every node.
pub(super) fn origin(prefix: &str, partition: u32) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128(format!("tidegate log {prefix} {partition}").as_bytes());
    // Version 8, which is for ids of one's own making (RFC 9562).
    let bits = (hash & !(0xf << 76) & !(0x3 << 62)) | (0x8 << 76) | (0x2 << 62);
    let text = format!("{bits:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_uuids_that_differ_by_prefix_and_partition() {
        let all = [origin("tidegate", 0), origin("tidegate", 1), origin("other", 0)];
        for (at, id) in all.iter().enumerate() {
            assert!(id.len() == 36 && id.as_bytes()[14] == b'8' && b"89ab".contains(&id.as_bytes()[19]), "{id}");
            assert!(!all[at + 1..].contains(id));
        }
        assert_eq!(all[0], origin("tidegate", 0));
    }
}
