//! The composition of the server: opens the logs and the store, starts the run loop, deliveries and doors, and drains them.
//!
//! Follow one batch: [`router`] → `tidegate_ingest::http` → `tidegate_ingest::batcher` → the ingest log (with
//! a shared set of ids before it when there is a Redis: [`redis_use`]) → `tidegate_pipeline::run` → the output log →
//! `tidegate_sinks::feed`; and from both logs through `tidegate_pipeline::delivery` → `tidegate_sinks::parquet` and what
//! else the configuration names ([`destinations`]). `tidegate_query` reads the [`store`] and the logs.
//!
//! That is the role `all`; a node among many machines does a part of it, with its log in Fluvio: [`roles`].

pub mod demo;
pub mod destinations;
pub mod feedback_door;
mod fluvio_use;
pub mod housekeeping;
pub mod keys_door;
pub mod metrics;
pub mod openapi;
pub mod process;
mod redis_use;
pub mod reply;
pub(crate) mod roles;
pub mod router;
pub mod routes;
pub mod rules_sync;
pub mod server_file;
mod signals;
pub mod store;
pub mod telemetry;
pub mod threat_detection;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_events::Dataset;
use tidegate_ingest::batcher::{Batcher, Partitions};
use tidegate_ingest::http::{Drained, Ingest};
use tidegate_ingest::mapping::Mappings;
use tidegate_pipeline::PipelineError;
use tidegate_pipeline::checkpoint::Checkpoints;
use tidegate_pipeline::delivery::DeliveryHandle;
use tidegate_pipeline::fs::{Fs, FsFile, RealFs, make_dir_durable};
use tidegate_pipeline::keys::Keys;
use tidegate_pipeline::log::{LogConfig, LogLock, SegmentLog};
use tidegate_pipeline::output::OutputLog;
use tidegate_pipeline::registry::Registry;
use tidegate_pipeline::run::{RunHandle, RunLoop, RunParts};
use tidegate_pipeline::{Health, Offset, StreamLog};
use tidegate_query::{Query, QueryParts};
use tidegate_rules::feedback::KIND as FEEDBACK_KIND;
use tidegate_rules::{Ahead, OFF_KIND, SigmaOperator};
use tidegate_sinks::feed::{Feed, Stretch};
use tidegate_sinks::parquet::{LogSource, ParquetStore};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{Config, NodeRole};
use destinations::{Deliveries, DeliveriesParts, Destinations};
use feedback_door::FeedbackDoor;
use fluvio_use::FluvioUse;
use housekeeping::Housekeeping;
use keys_door::{DATA_DIR, LOCAL};
use redis_use::RedisUse;
use router::{Offered, Reading, Router};
use rules_sync::{RULE_KIND, RulesSync};
use server_file::ServerFile;
use signals::{unless_told, until_signal};
use store::Store;
use threat_detection::shelf::Shelf;
use threat_detection::{ThreatDetection, ThreatDetectionParts};

/// Connections that the operating system holds until they are accepted: a crowd that comes at once, such as all agents after
/// a restart, is not turned away. The system's own bound (`net.core.somaxconn`) may be lower.
const BACKLOG: u32 = 4096;

/// A stage with work waiting and no progress for this long makes `/readyz` say 503.
pub const STUCK_MAX: Duration = Duration::from_secs(10);

/// The two runtimes: one for sockets and sinks, one for queries, which may keep a thread busy for long.
pub struct Runtimes {
    /// Listeners, sinks, timers.
    pub io: Runtime,
    /// Queries.
    pub cpu: Runtime,
}

impl Runtimes {
    /// Starts both.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub fn start() -> anyhow::Result<Self> {
        let io = Builder::new_multi_thread().thread_name("io").enable_all().build().context("start the I/O runtime")?;
        let cpu =
            Builder::new_multi_thread().thread_name("cpu").enable_time().build().context("start the CPU runtime")?;
        Ok(Self { io, cpu })
    }

    /// Ends both without waiting for what still blocks: all that has to be durable is by then.
    pub fn end(self) {
        self.io.shutdown_timeout(GRACE);
        self.cpu.shutdown_background();
    }
}

/// Runs the server until SIGTERM or SIGINT, then drains it: the command `serve`.
///
/// # Errors
/// What keeps it from starting, or from ending well.
pub fn run(config: Config) -> anyhow::Result<()> {
    telemetry::start_logs(config.log.format, &config.log.level)?;
    let metrics = telemetry::start_metrics()?;
    let runtimes = Runtimes::start()?;
    let cpu = runtimes.cpu.handle().clone();
    let ended = runtimes.io.block_on(async {
        if config.role != NodeRole::All {
            return roles::run(&config, metrics, cpu).await;
        }
        let starting = Server::start(&config, metrics, cpu);
        let Some(server) = unless_told(starting).await? else { return Ok(()) };
        server.announce();
        server.until_signal().await?;
        server.drain(Duration::from_millis(config.shutdown.drain_ms_max)).await
    });
    runtimes.end();
    ended
}

/// A running server.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    open: bool,
    file: ServerFile,
    stop: watch::Sender<bool>,
    listener: JoinHandle<Drained>,
    housekeeping: Housekeeping,
    rules: Arc<tokio::sync::Mutex<RulesSync>>,
    parts: Parts,
}

/// What has to be drained, in the order in which data flows.
struct Parts {
    batcher: Arc<Batcher>,
    run: RunHandle,
    deliveries: Vec<DeliveryHandle>,
    delivered: Vec<(LogSource, watch::Receiver<Offset>)>,
    registry: Registry,
    log: Arc<SegmentLog>,
    output: Arc<SegmentLog>,
    /// Of a store outside of the data folder.
    store_lock: Option<Arc<dyn FsFile>>,
}

impl Server {
    /// Opens everything in the data folder and listens.
    ///
    /// # Errors
    /// What keeps it from starting; the message says what to do.
    pub async fn start(config: &Config, metrics: PrometheusHandle, cpu: Handle) -> anyhow::Result<Self> {
        let data = config.data_dir.as_path();
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        make_dir_durable(fs.as_ref(), data).with_context(|| format!("make the data folder {}", data.display()))?;
        let health = Health::default();
        // The logs' locks keep a second server from the store too, so they come first; the logs go by what the store holds.
        let lock = lock_log(&fs, &data.join("log")).await?;
        let output_lock = lock_log(&fs, &data.join("output")).await?;
        // The destinations first: a database gets its tables then, which the store may read.
        let mut destinations = Destinations::open(&fs, data, config).await?;
        let store::OpenedStore { store, lock: store_lock } = store::open_store(&fs, config, &health).await?;
        let (log_held, output_held) = rows_held(&fs, config, &store, &destinations)?;
        let redis = RedisUse::open(&fs, data, config)?;
        let [redis_held, redis_output_held] = redis.as_ref().map(RedisUse::held).unwrap_or_default();
        let fluvio = FluvioUse::open(&fs, data, config)?;
        let [fluvio_held, fluvio_output_held] = fluvio.as_ref().map(FluvioUse::held).unwrap_or_default();
        let log_held = log_held.max(redis_held).max(fluvio_held);
        let output_held = output_held.max(redis_output_held).max(fluvio_output_held);
        let log = open_log(lock, log_held, &config.log_store, &health, "log")?;
        let output = open_log(output_lock, output_held, &config.log_store, &health, "output log")?;
        let (ingest_log, output_log): (Arc<dyn StreamLog>, Arc<dyn StreamLog>) = (log.clone(), output.clone());
        let changes_log = log.clone();
        let registry = Registry::open(
            fs.clone(),
            &data.join("registry"),
            ingest_log.clone(),
            config.registry.clone(),
            move |from| changes_log.changes_from(from),
        )
        .context("open the registry")?;
        registry.report_health(health.stage("registry"));
        let keys = Arc::new(Keys::new(registry.clone()));
        let (listener, address) = bind(config.listen, keys.is_open()).await?;

        let ahead = Ahead::default();
        let shelf = Arc::new(Shelf::new(registry.clone(), config.sigma.clone(), Some(ahead.clone())));
        let mut rules = RulesSync::new(registry.clone(), shelf.clone(), config);
        rules.check_folder()?;
        rules.look();
        if let Err(error) = rules.sync().await {
            // A full log takes no changes; it gets room once everything runs, and then the housekeeping tries again.
            tracing::warn!(
                error = format!("{error:#}"),
                "the rules of the files are not in force yet; it is tried again"
            );
        }
        let writer = Arc::new(OutputLog::new(output_log.clone()));
        let sigma = SigmaOperator::new(config.sigma.clone())?.with_ahead(ahead);
        let status = sigma.status();
        let kinds = [RULE_KIND, OFF_KIND, FEEDBACK_KIND];
        let seed = kinds.into_iter().filter_map(|kind| registry.as_batch(kind).transpose());
        let seed = seed.collect::<Result<Vec<_>, _>>()?;
        let run = RunLoop::start(RunParts {
            log: ingest_log.clone(),
            output: writer.clone(),
            operators: vec![Box::new(sigma)],
            seed,
            fs: fs.clone(),
            dir: data.join("checkpoint"),
            config: config.run.clone(),
            stage: health.stage("run loop"),
        })?;
        let delivery_parts = DeliveriesParts {
            store: &store,
            logs: [ingest_log.clone(), output_log.clone()],
            output: writer.clone(),
            config,
            health: &health,
        };
        let mut started = destinations.start(&delivery_parts);
        let (mut append_to, mut peers) = (ingest_log.clone(), None);
        if let Some(redis) = redis {
            redis.start(&delivery_parts, &mut started)?;
            append_to = redis.append_to(append_to, &health);
            peers = redis.peers(&health);
        }
        if let Some(fluvio) = fluvio {
            fluvio.start(&delivery_parts, &mut started)?;
        }
        let Deliveries { handles: deliveries, delivered } = started;

        let (fields, compile_on) = (log.clone(), cpu.clone());
        let query = Arc::new(Query::new(QueryParts {
            log: ingest_log.clone(),
            log_datasets: &Dataset::ALL,
            output: output_log.clone(),
            history: store.history(),
            files: store.files().and_then(ParquetStore::reads),
            log_fields: Arc::new(move || fields.fields()),
            config: config.query.clone(),
            cpu,
        })?);
        let mappings = Arc::new(Mappings::builtin().context("the shipped mappings")?);
        let decode = (mappings, config.decode.clone());
        let batcher =
            Batcher::start(&config.batcher, decode.clone(), Partitions::one(append_to), Handle::current(), &health);
        let batcher = Arc::new(batcher?);
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(shelf.clone().follow(stopping.clone()));
        let threat_detection = ThreatDetection::new(ThreatDetectionParts {
            registry: registry.clone(),
            shelf,
            status,
            rules: config.sigma.clone(),
            config: config.threat_detection.clone(),
            query: query.clone(),
            decode,
            cpu: compile_on,
        });
        let file = ServerFile::new(data, address)?;
        let feed = Feed::new(output_log, config.feed.clone(), backfill(query.clone()), stopping.clone());
        let mut feed = feed.with_recheck(recheck(keys.clone()));
        if let Some(peers) = peers {
            feed = feed.with_peers(peers);
        }
        let offered = Offered {
            ingest: Some(Ingest::new(batcher.clone(), &config.ingest)),
            reading: Some(Reading {
                feed,
                feedback: FeedbackDoor::new(registry.clone(), query.clone(), config.sigma.clone()),
                query,
                threat_detection,
            }),
        };
        let router = Router::new(&keys, &file, offered, &health, metrics.clone());
        let listener = router.listen(listener, config.http.clone(), stopping);
        let rules = Arc::new(tokio::sync::Mutex::new(rules));
        let parts = Parts { batcher, run, deliveries, delivered, registry, log, output, store_lock };
        let stores = housekeeping::Stores { store, timescale: destinations.timescale };
        let housekeeping = housekeeping::start(&parts, stores, rules.clone(), config, (metrics, &health));
        file.write()?;
        Ok(Self { address, open: keys.is_open(), file, stop, listener, housekeeping, rules, parts })
    }

    /// Says where it listens, and what a person may try.
    pub fn announce(&self) {
        let url = self.url();
        println!("tidegate {} listens on {url}", env!("CARGO_PKG_VERSION"));
        if self.open {
            println!("no API key exists: only this machine may ask, and everything belongs to the tenant `default`");
        }
        println!(
            "\n  curl -s {url}/v2/events/bulk -H 'content-type: application/x-ndjson' --data-binary @events.ndjson"
        );
        println!("  curl -s {url}/v2/sql -d 'SELECT source, count(*) AS n FROM security_events GROUP BY source'");
        println!("  curl -sN {url}/v2/alerts/stream -H 'accept: text/event-stream'\n");
    }

    /// `http://address:port`, with a loopback address when it listens on all.
    pub fn url(&self) -> String {
        server_file::url(self.address)
    }

    /// Waits for SIGTERM or SIGINT. SIGHUP reads the rules again.
    ///
    /// # Errors
    /// When signals cannot be waited for.
    pub async fn until_signal(&self) -> anyhow::Result<()> {
        until_signal(Some(&self.rules)).await
    }

    /// Stops accepting, answers what was sent, then lets everything flow to its end: log, run loop, store.
    ///
    /// # Errors
    /// What could not be finished in time: it goes on after the next start.
    pub async fn drain(self, time: Duration) -> anyhow::Result<()> {
        tracing::info!("draining");
        let deadline = Instant::now() + time;
        self.stop.send_replace(true);
        let drained = self.listener.await.context("the listener")?;
        if drained.cut > 0 {
            tracing::warn!(connections = drained.cut, "connections were cut at the end of the drain");
        }
        self.housekeeping.stop();
        let Parts { batcher, run, deliveries, delivered: _, registry, log, output, store_lock } = self.parts;
        let mut late = Vec::new();
        let decoded = tokio::task::spawn_blocking(move || batcher.stop());
        late.extend(within(deadline, "the decode threads", decoded).await);
        // Some of the time is left for the commits that end it.
        let flowing = deadline - (time / 5).min(Duration::from_secs(2));
        late.extend(run.drain(flowing).await.err().map(|error| error.to_string()));
        for delivery in deliveries {
            late.extend(delivery.drain(flowing.max(Instant::now() + GRACE)).await.err().map(|error| error.to_string()));
        }
        late.extend(within(deadline, "the registry", async { registry.save().await }).await);
        let closed = tokio::task::spawn_blocking(move || (log.close(), output.close()));
        late.extend(within(deadline, "closing the logs", closed).await);
        drop(store_lock);
        self.file.remove();
        for reason in late {
            tracing::warn!(reason, "not finished before the deadline; it goes on after the next start");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits until the deadline (a moment at least); what kept it from succeeding.
async fn within<T, E: std::fmt::Display>(
    deadline: Instant,
    what: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Option<String> {
    let deadline = deadline.max(Instant::now() + GRACE);
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("{what}: {error}")),
        Err(_) => Some(format!("{what}: no end in time")),
    }
}

/// How long a start waits for the locks of a server that was just killed.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// What a delivery gets for its last commit when everything before it took the whole time.
const GRACE: Duration = Duration::from_millis(500);

async fn lock_log(fs: &Arc<dyn Fs>, dir: &Path) -> anyhow::Result<LogLock> {
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match LogLock::take(fs.clone(), dir) {
            // A killed server holds its locks until the operating system has taken its memory back.
            Err(PipelineError::Locked(_)) if Instant::now() < patience => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            taken => return taken.with_context(|| format!("open the log in {}", dir.display())),
        }
    }
}

/// The offsets of the ingest log and of the output log below which the store, a destination, the checkpoint or the registry have
/// taken rows: a log that lost its end must not give them to other rows.
///
/// # Errors
/// When the folder of the checkpoints or of the registry cannot be made or listed.
pub fn rows_held(
    fs: &Arc<dyn Fs>,
    config: &Config,
    store: &Store,
    destinations: &Destinations,
) -> anyhow::Result<(Offset, Offset)> {
    let data = config.data_dir.as_path();
    let opened = Checkpoints::open(fs.clone(), &data.join("checkpoint"), config.run.checkpoint_bytes_max);
    let checkpoint = opened.context("look at the checkpoints")?.1.unwrap_or_default();
    let registry = Registry::covered_in(fs.clone(), &data.join("registry"), &config.registry);
    let registry = registry.context("look at the registry")?;
    let stored = |source: LogSource| store.held(source).max(destinations.held(source));
    let ingest = stored(LogSource::Ingest).max(checkpoint.offset).max(registry);
    Ok((ingest, stored(LogSource::Output).max(checkpoint.output_offset)))
}

/// Opens a log whose rows below `next_min` others hold: should it have lost its end, it goes on after them.
fn open_log(
    lock: LogLock,
    next_min: Offset,
    config: &LogConfig,
    health: &Health,
    name: &str,
) -> anyhow::Result<Arc<SegmentLog>> {
    let opened = lock.open(config.clone(), next_min);
    let (log, report) = opened.with_context(|| format!("open the {name}"))?;
    log.report_health(health.stage(name));
    tracing::info!(name, ?report, "log opened");
    Ok(Arc::new(log))
}

/// Binds the listener. While no key exists, only loopback will do.
async fn bind(wanted: SocketAddr, open: bool) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let mut address = wanted;
    if open && !address.ip().is_loopback() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        tracing::warn!(%wanted, %address, "no API key exists, so only loopback is bound; make one with `tidegate key create` and start again");
    }
    let listener = listening_socket(address).with_context(|| {
        format!("cannot listen on {address}: is another server there? --listen 127.0.0.1:0 takes any free port")
    })?;
    let address = listener.local_addr().context("the address that was bound")?;
    Ok((listener, address))
}

fn listening_socket(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the connections of the server before it.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Old alerts for a follower that resumes from before the output log's first row.
fn backfill(query: Arc<Query>) -> tidegate_sinks::feed::Backfill {
    Arc::new(move |stretch| {
        let query = query.clone();
        Box::pin(async move {
            let Stretch { org_id, after_seq, before_seq, limit } = stretch;
            query.alerts_after(&org_id, after_seq, before_seq, limit).await.map_err(|error| error.to_string())
        })
    })
}

/// Whether a follower's key still holds.
fn recheck(keys: Arc<Keys>) -> tidegate_sinks::feed::Recheck {
    Arc::new(move |principal| {
        match &*principal.key_id {
            DATA_DIR => true,
            // Who joined while no key existed may stay for just as long.
            LOCAL => keys.is_open(),
            key_id => keys.holds(&principal.org_id, key_id),
        }
    })
}
