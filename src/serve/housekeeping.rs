//! What goes on beside the stream: the logs forget, the store compacts and retains, the rule folder is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::log::{Offset, SegmentLog};
use tidegate_pipeline::registry::Registry;
use tidegate_pipeline::run::RunStatus;
use tidegate_pipeline::{Health, Stage, StreamLog};
use tidegate_sinks::SinksError;
use tidegate_sinks::parquet::{LogSource, ParquetStore, RetentionConfig};
use tidegate_sinks::timescale::TimescaleStore;
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::Parts;
use super::process::show_gauges;
use super::rules_sync::RulesSync;
use super::store::Store;
use crate::config::Config;

/// Between two looks at the logs' oldest needed offsets and at the gauges.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the rule folder.
const RULES_EVERY: Duration = Duration::from_secs(2);
/// After so long without another change a rule file is taken to be whole.
const RULES_SETTLE: Duration = Duration::from_millis(250);
/// A folder that never comes to rest is read all the same.
const RULES_LOOKS_MAX: usize = 20;
/// Between two looks for files to compact.
const COMPACT_EVERY: Duration = Duration::from_secs(5);
/// Between two looks for expired rows.
const RETAIN_EVERY: Duration = Duration::from_secs(60);
/// Between two saves of the registry, which the ingest log is kept for.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// The same while the registry alone keeps much of the log.
const SAVE_EARLY: Duration = Duration::from_secs(5);

/// Work of the store that goes on for longer is told of.
const LONG: Duration = Duration::from_secs(60);

/// Before a database that could not be kept in order is tried again.
const DATABASE_AGAIN: Duration = Duration::from_secs(2);

/// What is kept in order.
pub(super) struct Stores {
    /// The store of history.
    pub(super) store: Store,
    /// The database, when one is configured.
    pub(super) timescale: Option<Arc<TimescaleStore>>,
}

/// The tasks beside the stream.
pub(super) struct Housekeeping {
    task: JoinHandle<()>,
    stopping: Arc<AtomicBool>,
}

impl Housekeeping {
    /// Ends all of them: what is under way on a blocking thread stops at its next step.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

/// Starts the tasks. One that ends by itself shows in `/readyz` as the stage `housekeeping`, logs that cannot forget as
/// `forgetting`, and what takes long in the store as a detail: events are taken without it.
pub(super) fn start(
    parts: &Parts,
    Stores { store, timescale }: Stores,
    rules: Arc<Mutex<RulesSync>>,
    config: &Config,
    (metrics, health): (PrometheusHandle, &Health),
) -> Housekeeping {
    let stopping = Arc::new(AtomicBool::new(false));
    let forget = Forget {
        log: parts.log.clone(),
        output: parts.output.clone(),
        store: store.clone(),
        delivered: parts.delivered.clone(),
        registry: parts.registry.clone(),
        status: Box::new(parts.run.status_reader()),
        log_bytes_max: config.log_store.log_bytes_max,
    };
    let stage = health.stage("housekeeping");
    let mut tasks = JoinSet::new();
    tasks.spawn(forget.run(metrics, health.stage("forgetting")));
    tasks.spawn(watch_rules(rules));
    if let Store::Parquet(store) = store {
        tasks.spawn(compact(store.clone(), stopping.clone(), health.stage_aside("compaction")));
        let stage = health.stage_aside("retention");
        tasks.spawn(retain(store, config.retention.clone(), stopping.clone(), stage));
    }
    if let (Some(timescale), Some(settings)) = (timescale, &config.sinks.timescale) {
        tasks.spawn(keep_database(timescale, settings.refresh_s, health.stage_aside("timescale:housekeeping")));
    }
    let task = tokio::spawn(async move {
        if let Some(ended) = tasks.join_next().await {
            tracing::error!(?ended, "a task of the housekeeping ended: a bug; start the server again");
            stage.waiting(1, Instant::now());
            while tasks.join_next().await.is_some() {}
        }
    });
    Housekeeping { task, stopping }
}

/// What decides up to where the logs may forget.
struct Forget {
    log: Arc<SegmentLog>,
    output: Arc<SegmentLog>,
    store: Store,
    /// Up to where the other destinations have each log.
    delivered: Vec<(LogSource, watch::Receiver<Offset>)>,
    registry: Registry,
    status: Box<dyn Fn() -> RunStatus + Send + Sync>,
    log_bytes_max: u64,
}

impl Forget {
    async fn run(self, metrics: PrometheusHandle, stage: Arc<Stage>) {
        let mut ticks = tokio::time::interval(FORGET_EVERY);
        let mut saved = Instant::now();
        loop {
            stage.waiting(0, Instant::now());
            ticks.tick().await;
            stage.waiting(1, Instant::now());
            metrics.run_upkeep();
            // Files and locks that wait for the disk: not on a thread that serves sockets.
            let needed = tokio::task::block_in_place(|| {
                show_gauges();
                self.forget()
            });
            let held = needed > self.registry.covered() && self.log.bytes_used() > self.log_bytes_max / 8;
            if saved.elapsed() > SAVE_EVERY || (held && saved.elapsed() > SAVE_EARLY) {
                saved = Instant::now();
                if let Err(error) = self.registry.save().await {
                    tracing::warn!(%error, "the registry was not saved; it is tried again");
                }
            }
        }
    }

    /// Lets both logs forget what nobody needs; says what the ingest log is needed from but for the registry.
    fn forget(&self) -> Offset {
        let status = (self.status)();
        let needed = self.needed(LogSource::Ingest).min(status.needed_from);
        forget(&self.log, needed.min(self.registry.covered()));
        forget(&self.output, self.needed(LogSource::Output).min(status.output_needed_from));
        needed
    }

    /// From where on the destinations, and readers of the store, need a log.
    fn needed(&self, log: LogSource) -> Offset {
        let others =
            self.delivered.iter().filter(|(source, _)| *source == log).map(|(_, delivered)| *delivered.borrow());
        others.fold(self.store.oldest_live_cursor(log), Offset::min)
    }
}

fn forget(log: &SegmentLog, below: Offset) {
    if let Err(error) = log.forget(below) {
        tracing::warn!(%error, below, "the log could not forget; it is tried again");
    }
}

/// Brings the rule folder into force when it changes. An editor may empty a file before it writes it, and what is read between
/// would take the file's rules out of force: so the folder must look the same twice.
pub(super) async fn watch_rules(rules: Arc<Mutex<RulesSync>>) {
    let mut ticks = tokio::time::interval(RULES_EVERY);
    loop {
        ticks.tick().await;
        for _ in 0..RULES_LOOKS_MAX {
            let mut rules = rules.lock().await;
            if !tokio::task::block_in_place(|| rules.look()) {
                break;
            }
            drop(rules);
            tokio::time::sleep(RULES_SETTLE).await;
        }
        let mut rules = rules.lock().await;
        if rules.is_dirty() {
            match rules.sync().await {
                Ok(changed) => tracing::info!(changed, "the rule folder changed"),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "rules not read; those in force stay"),
            }
        }
    }
}

async fn compact(store: Arc<ParquetStore>, stopping: Arc<AtomicBool>, stage: Arc<Stage>) {
    let mut ticks = tokio::time::interval(COMPACT_EVERY);
    loop {
        ticks.tick().await;
        let (at, stopping) = (store.clone(), stopping.clone());
        let work = move || {
            while !stopping.load(Ordering::Relaxed) && at.compact_once()?.files_in > 0 {}
            at.sweep()?;
            Ok(())
        };
        aside(&store, &stage, work).await;
    }
}

async fn retain(store: Arc<ParquetStore>, config: RetentionConfig, stopping: Arc<AtomicBool>, stage: Arc<Stage>) {
    let mut ticks = tokio::time::interval(RETAIN_EVERY);
    loop {
        ticks.tick().await;
        let (at, config, stopping) = (store.clone(), config.clone(), stopping.clone());
        let work = move || {
            while !stopping.load(Ordering::Relaxed) && at.retain(now_us(), &config)?.more {}
            at.sweep()?;
            Ok(())
        };
        aside(&store, &stage, work).await;
    }
}

/// What a database wants done now and then. One that is down is told of by its deliveries too; it is tried again.
pub(super) async fn keep_database(store: Arc<TimescaleStore>, every_s: u64, stage: Arc<Stage>) {
    let every = Duration::from_secs(every_s.max(1));
    let mut failing = false;
    loop {
        let started = Instant::now();
        let (told, again) = match store.keep_house().await {
            Ok(put_off) => (put_off.map(|reason| format!("put off: {reason}")), every),
            // What has kept the database busy for long is not to keep it busy all the time.
            Err(error) if started.elapsed() > DATABASE_AGAIN => (Some(error.to_string()), every),
            Err(error) => (Some(error.to_string()), every.min(DATABASE_AGAIN)),
        };
        if let Some(told) = &told
            && !failing
        {
            tracing::warn!(told, "the housekeeping of the database is not done; it is tried again");
        }
        failing = told.is_some();
        stage.set_detail(told);
        tokio::time::sleep(again).await;
    }
}

/// Runs work that blocks on files on a thread of the store, and says so when it takes long.
async fn aside(store: &ParquetStore, stage: &Stage, work: impl FnOnce() -> Result<(), SinksError> + Send + 'static) {
    let started = Instant::now();
    let work = store.spawn_upkeep(work);
    tokio::pin!(work);
    let done = loop {
        match tokio::time::timeout(LONG, &mut work).await {
            Ok(done) => break done,
            Err(_) => {
                let took_s = started.elapsed().as_secs();
                stage.set_detail(Some(format!(
                    "under way for {took_s} s: a large backlog, or the disk does not answer"
                )));
            }
        }
    };
    stage.set_detail(None);
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, what = stage.name(), "failed; it is tried again"),
        Err(error) => tracing::error!(%error, what = stage.name(), "ended early; it is tried again"),
    }
}
