//! One partition in the hands of a worker: its logs, the run loop over it, and the deliveries to the database.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tidegate_pipeline::backoff::Backoff;
use tidegate_pipeline::checkpoint::{Checkpoint, Checkpoints};
use tidegate_pipeline::delivery::{DeliveryConfig, DeliveryHandle, DeliveryParts, deliver};
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::output::OutputLog;
use tidegate_pipeline::run::{CheckpointCopy, RunHandle, RunLoop, RunParts};
use tidegate_pipeline::{Health, LogReader, Offset, PipelineError, Stage};
use tidegate_rules::SigmaOperator;
use tidegate_sinks::fluvio::{FluvioLog, FluvioLogParts, LogTail, LogTopic, records_between};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{Lease, LeasedCheckpoint, TailAt, TimescaleConfig, TimescaleSink, TimescaleStore};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::super::destinations::SOURCES;
use super::super::housekeeping::keep_database;
use super::leased::Leased;
use super::ruled::{Ruled, Stopping};
use super::standing::{Part, Standing, TOPICS};
use crate::config::Config;

/// How long a checkpoint may take to be in the database before that is told.
const LATE: Duration = Duration::from_secs(30);

/// The stages of a partition: they outlive the worker's hold on it, and say nothing while it has none.
#[derive(Clone)]
pub(super) struct Stages {
    logs: [Arc<Stage>; 2],
    run: Arc<Stage>,
    sinks: [Arc<Stage>; 2],
    database: Arc<Stage>,
    /// Of one partition: who has it writes what people change, too.
    changes: Option<Arc<Stage>>,
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
    checkpoint: LeasedCheckpoint,
    /// Aborted when it is dropped.
    housekeeping: JoinSet<()>,
    started: Instant,
    logs: [Arc<FluvioLog>; 2],
    /// Tells the rules until when they may wait for changes. Dropped, not at all.
    stop: watch::Sender<Option<Instant>>,
    stages: Stages,
}

/// The partition whose holder does what one worker does for all.
const FIRST: u32 = 0;

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
            changes: (partition == FIRST).then(|| health.stage("timescale:changes")),
        }
    }

    /// Says why a partition does not start.
    pub(super) fn refused(&self, reason: String) {
        self.run.set_detail(Some(reason));
        self.run.waiting(1, Instant::now());
    }

    /// Nothing is waited for any more.
    pub(super) fn clear(&self) {
        let [run, database] = [&self.run, &self.database];
        for stage in self.logs.iter().chain(&self.sinks).chain([run, database]).chain(&self.changes) {
            stage.waiting(0, Instant::now());
            stage.set_detail(None);
            stage.set_down(Vec::new());
        }
    }
}

impl Partition {
    /// Goes on where whoever held it before has left off: rows and alerts where the database has them up to, the rules at the
    /// checkpoint.
    ///
    /// # Errors
    /// When the database or the cluster does not answer: it may be tried again. When the cluster has lost rows, and it is not known
    /// which.
    pub(super) async fn start(parts: PartitionParts) -> anyhow::Result<Self> {
        let PartitionParts { config, timescale, fs, changes, lease, checkpoint, stages } = parts;
        let (commit_interval_ms, refresh_s) = (timescale.commit_interval_ms, timescale.refresh_s);
        let origin = origin(&config.fluvio.prefix, lease.partition);
        let store = TimescaleStore::open_leased(timescale.clone(), &origin, lease)?;
        let standing = Box::pin(Standing::find(&config.fluvio, &store, &checkpoint, lease.partition)).await;
        let standing = standing.with_context(|| format!("where partition {origin} stands"))?;
        let Standing { cursors, checkpoint: found, tails } = standing;
        let (offset, output_offset) = found.as_ref().map_or((0, 0), |found| (found.offset, found.output_offset));
        let dir = config.data_dir.join("partitions").join(lease.partition.to_string()).join("checkpoint");
        put(&fs, &dir, config.run.checkpoint_bytes_max, found).await?;
        tracing::info!(?lease, ?cursors, offset, "a partition is taken");
        let stands = [(cursors[0], offset), (cursors[1], output_offset)];
        let logs = open_logs(&config, &stages, lease, stands, tails).await?;
        let [log, output_log] = logs.clone();
        let writer = Arc::new(OutputLog::of_numbering_log(output_log.clone()));
        let (stop, stopping) = watch::channel(None);
        let outdated = Arc::new(AtomicBool::new(false));
        let stopping = Stopping { until: stopping, outdated: outdated.clone() };
        let rules = Ruled::new(SigmaOperator::new(config.sigma.clone())?, changes.clone(), stopping);
        let copy = copy(checkpoint.clone(), [log.clone(), output_log, changes.clone()], outdated);
        let parts = RunParts {
            log,
            output: writer.clone(),
            operators: vec![Box::new(rules)],
            seed: Vec::new(),
            fs,
            dir,
            config: config.run.clone(),
            stage: stages.run.clone(),
        };
        // Before anything is at work: a start that fails leaves nothing behind.
        let (changes_store, changes_from) = changes_in(&config, timescale, lease).await?;
        // What was said of starts before this one.
        stages.run.set_detail(None);
        let run = begin(parts, copy).await?;
        let config = DeliveryConfig { flush_interval_ms: commit_interval_ms, ..config.delivery.clone() };
        let to = To { output: writer, config };
        let ways = SOURCES.into_iter().zip(&logs).zip(cursors).zip(&stages.sinks);
        let deliveries = ways.map(|(((source, log), from), stage)| {
            let mut sink = store.sink(source, from);
            if source == LogSource::Ingest {
                sink.take_along(checkpoint.clone());
            }
            to.deliver(sink, log, stage)
        });
        let mut deliveries: Vec<DeliveryHandle> = deliveries.collect();
        if let Some(stage) = &stages.changes {
            deliveries.push(to.deliver(changes_store.sink(LogSource::Ingest, changes_from), &changes, stage));
        }
        let mut housekeeping = JoinSet::new();
        housekeeping.spawn(write_left(checkpoint.clone(), Duration::from_millis(commit_interval_ms)));
        // What a database wants done now and then, one worker does.
        if lease.partition == FIRST {
            housekeeping.spawn(keep_database(store, refresh_s, stages.database.clone()));
        }
        Ok(Self { lease, run, deliveries, checkpoint, housekeeping, started: Instant::now(), logs, stop, stages })
    }

    /// Whether a broker has lost rows that were read: the partition is to be started anew.
    pub(super) fn has_lost(&self) -> bool {
        self.logs.iter().any(|log| log.has_lost())
    }

    /// Whether something of it has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.run.has_ended() || self.deliveries.iter().any(DeliveryHandle::has_ended)
    }

    /// Since when it is at work.
    pub(super) fn started(&self) -> Instant {
        self.started
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
        let Self { lease, run, deliveries, checkpoint, housekeeping, stop, stages, .. } = self;
        stop.send_replace(Some(deadline));
        drop(housekeeping);
        let mut late: Vec<String> =
            run.drain(deadline).await.err().map(|error| error.to_string()).into_iter().collect();
        for delivery in deliveries {
            let deadline = deadline.max(Instant::now() + super::super::GRACE);
            late.extend(delivery.drain(deadline).await.err().map(|error| error.to_string()));
        }
        let deadline = deadline.max(Instant::now() + super::super::GRACE);
        match tokio::time::timeout_at(deadline.into(), checkpoint.write_left()).await {
            Ok(written) => late.extend(written.err().map(|error| error.to_string())),
            Err(_) => late.push("the last checkpoint is not in the database".to_owned()),
        }
        stages.clear();
        tracing::info!(?lease, ?late, "a partition is given back");
    }

    /// Ends at once: somebody else has it, or may have it.
    pub(super) fn abandon(self) {
        let Self { lease, run, deliveries, housekeeping, stop, stages, .. } = self;
        drop((run, deliveries, housekeeping, stop));
        stages.clear();
        tracing::warn!(?lease, "a partition is lost to another worker");
    }
}

/// What the deliveries of a partition share.
struct To {
    output: Arc<OutputLog>,
    config: DeliveryConfig,
}

impl To {
    fn deliver(&self, mut sink: TimescaleSink, log: &Arc<FluvioLog>, stage: &Arc<Stage>) -> DeliveryHandle {
        let tail_of = log.clone();
        sink.keep_tails(TailAt::new(move |at| tail_of.tail(at).encode()));
        let (output, config, stage) = (self.output.clone(), self.config.clone(), stage.clone());
        deliver(DeliveryParts { sink: Box::new(sink), log: log.clone(), output, config, stage }, &Handle::current())
    }
}

/// Opens the logs of a partition, for the database and the rules that stand at these offsets of each.
async fn open_logs(
    config: &Config,
    stages: &Stages,
    lease: Lease,
    stands: [(Offset, Offset); 2],
    tails: [LogTail; 2],
) -> anyhow::Result<[Arc<FluvioLog>; 2]> {
    let mut logs = Vec::new();
    for (((topic, (cursor, offset)), tail), stage) in TOPICS.into_iter().zip(stands).zip(tails).zip(&stages.logs) {
        let (partition, follow, seen, stage) =
            (lease.partition, Some(cursor.min(offset)), cursor.max(offset), stage.clone());
        let parts = FluvioLogParts { topic, partition, follow, seen, tail, stage };
        logs.push(Arc::new(Box::pin(FluvioLog::open(&config.fluvio, parts)).await?));
    }
    <[_; 2]>::try_from(logs).map_err(|_| anyhow::anyhow!("two logs"))
}

/// Where the rows of changes go, and from where on; nothing is asked by those that do not write them.
async fn changes_in(
    config: &Config,
    timescale: TimescaleConfig,
    lease: Lease,
) -> anyhow::Result<(Arc<TimescaleStore>, Offset)> {
    let store = TimescaleStore::open_leased(timescale, &origin(&config.fluvio.prefix, CHANGES), lease)?;
    if lease.partition != FIRST {
        return Ok((store, 0));
    }
    let part = Part { config: &config.fluvio, topic: LogTopic::Changes, partition: 0 };
    let found = Box::pin(part.look(&store, LogSource::Ingest, LogTail::default())).await?;
    if let Some(from) = found.lost {
        store.rewind(LogSource::Ingest, from).await?;
    }
    Ok((store, found.cursor))
}

/// Starts the run loop off the I/O threads: it reads a checkpoint and restores states.
async fn begin(parts: RunParts, copy: CheckpointCopy) -> anyhow::Result<RunHandle> {
    let starting = tokio::task::spawn_blocking(move || RunLoop::start_with(parts, Some(copy)));
    Ok(starting.await.context("the thread that starts the run loop")??)
}

/// Puts the checkpoint that the database has into the local folder, where the run loop looks for it.
async fn put(fs: &Arc<dyn Fs>, dir: &Path, bytes_max: u64, found: Option<Checkpoint>) -> anyhow::Result<()> {
    let (fs, dir) = (fs.clone(), dir.to_owned());
    let put = move || Checkpoints::put(fs, &dir, bytes_max, found.as_ref());
    Ok(tokio::task::spawn_blocking(put).await.context("the thread that writes the checkpoint")??)
}

/// Leaves each checkpoint for the database, with the ends of the log, the output log and the changes; none of rules that are
/// `outdated`. While the database is away the newest waits, and the rules go on.
fn copy(place: LeasedCheckpoint, logs: [Arc<FluvioLog>; 3], outdated: Arc<AtomicBool>) -> CheckpointCopy {
    Box::new(move |checkpoint| {
        let failed =
            |reason: String| PipelineError::Invalid(format!("the checkpoint is not in the database: {reason}"));
        if outdated.load(Ordering::Acquire) {
            return Err(failed("changes of rules could not be read before the end".to_owned()));
        }
        let offsets = [checkpoint.offset, checkpoint.output_offset, Offset::MAX];
        let mut tails: [LogTail; 3] = Default::default();
        for ((tail, log), offset) in tails.iter_mut().zip(&logs).zip(offsets) {
            *tail = log.tail(offset);
        }
        place.leave(checkpoint.offset, Leased { checkpoint: checkpoint.clone(), tails }.encode());
        match place.left_since().map(|since| since.elapsed()).filter(|waits| *waits >= LATE) {
            Some(waits) => Err(failed(format!("it waits for {} s", waits.as_secs()))),
            None => Ok(()),
        }
    })
}

/// Writes checkpoints that no transaction of rows takes along in time. Never ends.
async fn write_left(place: LeasedCheckpoint, commit_interval: Duration) {
    let mut backoff = Backoff::new(commit_interval, LATE, u64::from(FIRST));
    let mut pause = commit_interval;
    loop {
        tokio::time::sleep(pause).await;
        pause = commit_interval;
        // Rows that came with it are on their way for as long as an interval, and their transaction takes its time.
        if place.left_since().is_none_or(|since| since.elapsed() < 2 * commit_interval) {
            continue;
        }
        match place.write_left().await {
            Ok(()) => backoff.succeeded(),
            Err(error) => {
                if backoff.failures() == 0 {
                    tracing::warn!(%error, "a checkpoint is not in the database yet: it is tried again");
                }
                pause = backoff.failed();
            }
        }
    }
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
    use tidegate_pipeline::fs::SimFs;
    use tidegate_pipeline::log::MemoryLog;
    use tidegate_pipeline::run::RunConfig;
    use tidegate_pipeline::{Emitter, LogBatch, Operator};

    use super::*;

    /// Takes its time when it is looked at, as one does that has a large state.
    struct Slow;

    impl Operator for Slow {
        fn name(&self) -> &str {
            std::thread::sleep(Duration::from_millis(300));
            "slow"
        }

        fn process(&mut self, _batch: &LogBatch, _out: &mut Emitter) {}
    }

    #[tokio::test]
    async fn a_start_of_the_run_loop_holds_up_no_io_thread() {
        let log = || Arc::new(MemoryLog::new(8, 1 << 20));
        let parts = RunParts {
            log: log(),
            output: Arc::new(OutputLog::new(log())),
            operators: vec![Box::new(Slow)],
            seed: Vec::new(),
            fs: Arc::new(SimFs::new()),
            dir: "/checkpoint".into(),
            config: RunConfig::default(),
            stage: Health::default().stage("run loop"),
        };
        let mut ticks = 0;
        let ticking = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                ticks += 1;
            }
        };
        tokio::select! {
            () = ticking => {}
            started = begin(parts, Box::new(|_| Ok(()))) => drop(started.expect("it runs")),
        }
        assert!(ticks > 5, "the thread did {ticks} other things meanwhile");
    }

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
