//! One of many machines: the roles `ingest`, `worker` and `query`, whose log is in Fluvio. docs/many-machines.md has the whole
//! picture.
//!
//! ```text
//! ingest ──by tenant──► <prefix>-log ──► worker: run loop ──► <prefix>-output ──► worker: delivery ──► TimescaleDB ──► query: SQL
//!                            └──────────────────────────────► worker: delivery ─────────────────────────┘
//!                                                          <prefix>-output ──► query: alert feed
//! keys, rules ─────────► <prefix>-changes ──► the registry of every node
//! ```
//!
//! The parts are those of the single binary; what differs is who holds the logs, and that several nodes write to that of the
//! changes, which each follows.

mod ingest;
mod known_changes;
mod leased;
mod partition;
mod query;
mod ruled;
mod standing;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_ingest::http::Drained;
use tidegate_pipeline::fs::{Fs, RealFs, make_dir_durable};
use tidegate_pipeline::keys::Keys;
use tidegate_pipeline::log::LogLock;
use tidegate_pipeline::registry::{Registry, changes_in};
use tidegate_pipeline::{Health, LogReader};
use tidegate_sinks::SinksError;
use tidegate_sinks::fluvio::{FluvioFailure, FluvioLog, FluvioLogParts, LogTail, LogTopic};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use super::housekeeping::watch_rules;
use super::process::show_gauges;
use super::router::{Offered, Router};
use super::rules_sync::RulesSync;
use super::server_file::{self, ServerFile};
use super::signals::unless_told;
use super::threat_detection::shelf::Shelf;
use super::{bind, lock_log, within};
use crate::config::{Config, NodeRole};
use known_changes::{Copy, KnownChanges};

/// The folder that a node locks in its data folder. No single server has one.
pub(crate) const NODE_LOCK: &str = "node";
/// Between two tries to reach the cluster at the start.
const RETRY: Duration = Duration::from_secs(1);
/// Memory of one read of the changes.
const READ_BYTES: usize = 4 << 20;
/// Between two looks at the gauges.
const GAUGES_EVERY: Duration = Duration::from_secs(1);
/// Between two saves of the registry, which spare a restart the way through all changes.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// Runs a node until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// What keeps it from starting, or from ending well.
pub(super) async fn run(config: &Config, metrics: PrometheusHandle, cpu: Handle) -> anyhow::Result<()> {
    let starting = Box::pin(Node::start(config, &metrics));
    let Some(node) = unless_told(starting).await? else { return Ok(()) };
    match config.role {
        NodeRole::Worker => worker::run(node, config, metrics).await,
        NodeRole::Query => query::run(node, config, metrics, cpu).await,
        NodeRole::All | NodeRole::Ingest => ingest::run(node, config, metrics).await,
    }
}

/// What nodes of all roles have.
struct Node {
    fs: Arc<dyn Fs>,
    health: Health,
    partitions: u32,
    changes: Arc<FluvioLog>,
    registry: Registry,
    known: Arc<KnownChanges>,
    keys: Arc<Keys>,
    shelf: Arc<Shelf>,
    rules: Arc<tokio::sync::Mutex<RulesSync>>,
    tasks: Vec<AbortHandle>,
    _lock: LogLock,
}

/// The listener of a node.
struct Doors {
    address: SocketAddr,
    listener: JoinHandle<Drained>,
    stop: watch::Sender<bool>,
    file: ServerFile,
}

impl Node {
    async fn start(config: &Config, metrics: &PrometheusHandle) -> anyhow::Result<Self> {
        let data = config.data_dir.as_path();
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        make_dir_durable(fs.as_ref(), data).with_context(|| format!("make the data folder {}", data.display()))?;
        let lock = lock_log(&fs, &data.join(NODE_LOCK)).await?;
        let health = Health::default();
        let partitions = patiently(|| FluvioLog::prepare(&config.fluvio)).await.context("look for the topics")?;
        let known = KnownChanges::in_folder(fs.clone(), data);
        let Copy { covered, tail, outdated } = Box::pin(known.copy(config)).await?;
        let stage = health.stage("changes");
        let changes = open_log(config, LogTopic::Changes, 0, Some(covered), &tail, || stage.clone()).await?;
        anyhow::ensure!(
            !outdated || changes.bounds().next > 0,
            "the topic {} is empty, and {} knows changes of it: was it removed? Without it no key is known; remove that folder \
             to begin anew",
            config.fluvio.topic(LogTopic::Changes),
            known.registry().display()
        );
        let (folder, log, bounds, copy) = (fs.clone(), changes.clone(), config.registry.clone(), known.clone());
        let opening = move || {
            if outdated {
                copy.remove_copy()?;
            }
            let reading = log.clone();
            let read = move |from| changes_in(&*reading, from, READ_BYTES);
            Registry::open(folder, copy.registry(), log, bounds, read)
        };
        let registry = tokio::task::spawn_blocking(opening).await.context("the thread that opens the registry")?;
        let registry = registry.context("open the registry")?;
        let tasks = vec![
            registry.follow().abort_handle(),
            tokio::spawn(show(metrics.clone())).abort_handle(),
            tokio::spawn(save(registry.clone(), known.clone(), changes.clone())).abort_handle(),
        ];
        let shelf = Arc::new(Shelf::new(registry.clone(), config.sigma.clone(), None));
        let rules = Arc::new(tokio::sync::Mutex::new(RulesSync::new(registry.clone(), shelf.clone(), config)));
        let keys = Arc::new(Keys::new(registry.clone()));
        Ok(Self { fs, health, partitions, changes, registry, known, keys, shelf, rules, tasks, _lock: lock })
    }

    /// Brings the files of rules into force, now and whenever they change.
    async fn sync_rules(&mut self) -> anyhow::Result<()> {
        let mut rules = self.rules.lock().await;
        rules.check_folder()?;
        rules.look();
        if let Err(error) = rules.sync().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the rules of the files are not in force yet; it is tried again"
            );
        }
        drop(rules);
        self.tasks.push(tokio::spawn(watch_rules(self.rules.clone())).abort_handle());
        Ok(())
    }

    /// Listens, with the doors that nodes of all roles have, and those that are offered, until `stop` says so.
    async fn listen(
        &self,
        config: &Config,
        offered: Offered,
        stop: watch::Sender<bool>,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<Doors> {
        let (listener, address) = bind(config.listen, self.keys.is_open()).await?;
        let file = ServerFile::new(&config.data_dir, address)?;
        let router = Router::new(&self.keys, &file, offered, &self.health, metrics);
        let listener = router.listen(listener, config.http.clone(), stop.subscribe());
        file.write()?;
        println!("tidegate {} listens on {}", env!("CARGO_PKG_VERSION"), server_file::url(address));
        Ok(Doors { address, listener, stop, file })
    }

    /// The last steps of a drain.
    async fn end(self, deadline: Instant) {
        let late = within(deadline, "the registry", self.known.save(&self.registry, &self.changes)).await;
        self.tasks.iter().for_each(AbortHandle::abort);
        if let Some(reason) = late {
            tracing::warn!(reason, "not finished before the deadline; it goes on after the next start");
        }
        tracing::info!("stopped");
    }
}

impl Doors {
    /// Stops accepting, and answers what was sent.
    async fn close(self) -> anyhow::Result<()> {
        tracing::info!(address = %self.address, "draining");
        self.stop.send_replace(true);
        let drained = self.listener.await.context("the listener")?;
        if drained.cut > 0 {
            tracing::warn!(connections = drained.cut, "connections were cut at the end of the drain");
        }
        self.file.remove();
        Ok(())
    }
}

/// Opens a log of the cluster.
async fn open_log(
    config: &Config,
    topic: LogTopic,
    partition: u32,
    follow: Option<u64>,
    tail: &LogTail,
    stage: impl Fn() -> Arc<tidegate_pipeline::Stage>,
) -> anyhow::Result<Arc<FluvioLog>> {
    let open = || {
        let (seen, tail) = (tail.end(), tail.clone());
        let parts = FluvioLogParts { topic, partition, follow, seen, tail, stage: stage() };
        FluvioLog::open(&config.fluvio, parts)
    };
    let log = patiently(open).await.with_context(|| format!("open {}-{partition}", config.fluvio.topic(topic)))?;
    tracing::info!(topic = config.fluvio.topic(topic), partition, bounds = ?log.bounds(), "log opened");
    Ok(Arc::new(log))
}

/// Does what needs the cluster, as soon as it is there.
async fn patiently<T, F: Future<Output = Result<T, SinksError>>>(mut attempt: impl FnMut() -> F) -> anyhow::Result<T> {
    let mut told = false;
    loop {
        // The futures of the client library are deep.
        match Box::pin(attempt()).await {
            Err(SinksError::Fluvio(failure @ (FluvioFailure::Away(_) | FluvioFailure::Late { .. }))) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%failure, "the cluster cannot be used yet: the start waits for it");
                }
                tokio::time::sleep(RETRY).await;
            }
            done => return Ok(done?),
        }
    }
}

async fn show(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(GAUGES_EVERY);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
        tokio::task::block_in_place(show_gauges);
    }
}

async fn save(registry: Registry, known: Arc<KnownChanges>, changes: Arc<FluvioLog>) {
    let mut ticks = tokio::time::interval(SAVE_EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = known.save(&registry, &changes).await {
            tracing::warn!(%error, "the registry was not saved; it is tried again");
        }
    }
}
