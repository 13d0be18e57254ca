//! The sink of Fluvio topics: the contract of a sink, what a stock consumer gets, and what it does when the cluster fails.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_events::Dataset;
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{
    Delivery, DeliveryConfig, DeliveryHandle, DeliveryParts, Health, LogBatch, LogReader, OutputLog, Sink, SinkError,
    StreamLog, deliver,
};
use tidegate_sinks::fluvio::{BatchCompression, FluvioConfig, FluvioParts, FluvioSink, FluvioTopics};
use tokio::runtime::{Builder, Runtime};

use crate::contract::rows::{batch, events, one};
use crate::contract::sink::{Destination, check};
use crate::fluvio_world::{Cluster, Found, disturb, look, until};
use crate::redis_world::on_demand;

const PATIENCE: Duration = Duration::from_secs(60);

fn sink(config: &FluvioConfig, fs: &SimFs) -> FluvioSink {
    let dir = Path::new("/data/sinks/fluvio-ingest").into();
    let parts = FluvioParts { log_name: "ingest", fs: Arc::new(fs.clone()), dir };
    FluvioTopics::new(config).expect("a good configuration").sink(parts).expect("a sink")
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

struct Topics {
    cluster: Rc<Cluster>,
    config: FluvioConfig,
    fs: SimFs,
}

impl Destination for Topics {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(sink(&self.config, &self.fs))
    }

    fn ids(&self) -> Vec<String> {
        self.cluster.ids(&self.config.prefix)
    }

    fn doubles(&self) -> bool {
        true
    }

    fn refused_id(&self, nth: usize) -> Option<String> {
        Some(format!("{nth:0>width$}", width = self.config.event_bytes_max))
    }
}

#[test]
fn fluvio_topics_keep_the_contract_of_a_sink() {
    // One for all promises: a topic that is made while others are removed may take its time.
    let Some(cluster) = Cluster::find("the contract of a sink by Fluvio") else { return };
    let (cluster, mut nth) = (Rc::new(cluster), 0);
    for batch_bytes_max in [256 << 10, 1024] {
        check(&format!("batches of {batch_bytes_max} bytes"), || {
            nth += 1;
            let datasets = Dataset::ALL.map(|dataset| dataset.table_name().to_owned()).into();
            let prefix = format!("{}-{nth}", cluster.prefix);
            let config = cluster.config();
            let config = FluvioConfig { prefix, batch_bytes_max, datasets, event_bytes_max: 1_200, ..config };
            Box::new(Topics { cluster: cluster.clone(), config, fs: SimFs::new() })
        });
    }
}

/// A log, the delivery of it to Fluvio, and what the delivery says of itself.
struct World {
    runtime: Runtime,
    log: Arc<MemoryLog>,
    health: Health,
    delivery: Option<DeliveryHandle>,
    sent: u64,
}

impl World {
    fn new(config: &FluvioConfig) -> Self {
        let (runtime, health) = (runtime(), Health::default());
        let log = Arc::new(MemoryLog::new(16, 4 << 30));
        let output = Arc::new(OutputLog::new(Arc::new(MemoryLog::new(16, 1 << 20))));
        let pace = DeliveryConfig { retry_ms_min: 20, retry_ms_max: 500, ..DeliveryConfig::default() };
        let parts = DeliveryParts {
            sink: Box::new(sink(config, &SimFs::new())),
            log: log.clone(),
            output,
            config: pace,
            stage: health.stage("fluvio"),
        };
        let delivery = Some(deliver(parts, runtime.handle()));
        Self { runtime, log, health, delivery, sent: 0 }
    }

    /// Appends a batch of so many events of seven tenants, with numbers for ids.
    fn send(&mut self, rows: u64) {
        let ids: Vec<String> = (self.sent..self.sent + rows).map(|id| format!("-{id}")).collect();
        let orgs: Vec<String> = (self.sent..self.sent + rows).map(|id| format!("org{}", id % 7)).collect();
        let (ids, orgs): (Vec<&str>, Vec<&str>) =
            (ids.iter().map(String::as_str).collect(), orgs.iter().map(String::as_str).collect());
        let rows_of = batch(Dataset::SecurityEvents, &orgs, &ids);
        self.runtime.block_on(self.log.append(one(rows_of))).expect("an answer").expect("room");
        self.sent += rows;
    }

    /// Sends about 10,000 events a second.
    fn load_for(&mut self, time: Duration) {
        let started = Instant::now();
        while started.elapsed() < time {
            self.send(200);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Rows that are not known to be there.
    fn behind(&self) -> u64 {
        self.log.bounds().next - *self.delivery.as_ref().expect("it runs").committed().borrow()
    }

    fn detail(&self) -> String {
        self.health.details().pop().map(|(_, detail)| detail).unwrap_or_default()
    }

    /// Waits until all is delivered; how long that took.
    fn settle(&mut self) -> Duration {
        let started = Instant::now();
        let delivery = self.delivery.take().expect("it runs");
        let drained = self.runtime.block_on(delivery.drain(started + PATIENCE));
        assert_eq!(drained.expect("delivered"), self.log.bounds().next, "{}", self.detail());
        started.elapsed()
    }
}

fn number(id: &str) -> u64 {
    id.trim_start_matches('-').parse().expect("a number")
}

#[test]
fn a_stock_consumer_gets_every_event_once_and_a_tenants_in_order() {
    // By default, a client fetches a little more than a mebibyte at once.
    for (segment_bytes, fetch, compression) in [
        (16 << 20, Some(32 << 20), BatchCompression::Lz4),
        (16 << 20, Some(32 << 20), BatchCompression::Zstd),
        (1_000_000, None, BatchCompression::None),
    ] {
        let Some(cluster) = Cluster::find("what a stock consumer of Fluvio gets") else { return };
        let config = FluvioConfig {
            segment_bytes,
            compression,
            event_bytes_max: 64 << 10,
            batch_bytes_max: 128 << 10,
            ..cluster.config()
        };
        let mut world = World::new(&config);
        (0..60).for_each(|_| world.send(1_000));
        world.settle();
        let records = cluster.consume(Dataset::SecurityEvents, fetch);
        let all = Found { distinct: world.sent, again: 0, early: 0 };
        assert_eq!(look(&records, number), all, "{segment_bytes} {fetch:?}");
    }
}

#[test]
fn what_dies_or_freezes_in_a_cluster_under_load_loses_nothing() {
    let suite = "an SPU or SC of Fluvio that is killed or frozen";
    let outage = Duration::from_secs(on_demand("TIDEGATE_FLUVIO_OUTAGE_S", 5));
    for (harm, repair) in [("kill", "start"), ("stop", "cont"), ("sc-kill", "sc-start")] {
        let Some(cluster) = Cluster::alone(suite) else { return };
        let mut world = World::new(&cluster.config());
        world.send(10);
        until("the first arrive", PATIENCE, || *world.delivery.as_ref().expect("it runs").committed().borrow() >= 1);
        world.load_for(Duration::from_secs(2));
        let files = open_files();
        disturb(harm);
        world.load_for(outage);
        let (told, behind) = (world.detail(), world.behind());
        disturb(repair);
        let repaired = Instant::now();
        world.load_for(Duration::from_secs(3));
        world.settle();
        let drained = repaired.elapsed();
        let records = cluster.consume(Dataset::SecurityEvents, Some(32 << 20));
        let found = look(&records, number);
        eprintln!(
            "{harm}: {} sent, {found:?}; {behind} rows behind after {outage:?}, all there {drained:?} after the repair; open files \
             {files}, then {}; /readyz: {told}",
            world.sent,
            open_files()
        );
        assert_eq!(found.distinct, world.sent, "each is there");
        // A short outage is over before its backlog is worth measuring: the cluster takes seconds to come back.
        if outage >= Duration::from_secs(30) {
            assert!(drained * 2 <= outage, "what came in {outage:?} took {drained:?}");
        }
        // Producers need no SC to go on.
        assert_eq!(told.contains("Fluvio at"), harm != "sc-kill", "{told}");
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[test]
fn a_cluster_that_is_away_hangs_or_talks_nonsense_is_told_in_time_and_waited_for() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let hanging = listener.local_addr().expect("an address").port();
    let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let nonsense = web.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for client in web.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &client, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for (port, said) in [(9, "Fluvio at 127.0.0.1:9"), (hanging, "no answer in 300 ms"), (nonsense, "Fluvio at")] {
        let config =
            FluvioConfig { address: format!("127.0.0.1:{port}"), connect_ms_max: 300, ..FluvioConfig::default() };
        let runtime = runtime();
        let mut sink = sink(&config, &SimFs::new());
        let rows = events("a", &["x"]);
        let rows = Arc::new(LogBatch { offset: 0, dataset: rows.dataset, rows: rows.rows });
        let started = Instant::now();
        let refused = runtime.block_on(sink.write(Delivery { batches: vec![rows], next_offset: 1 }));
        let Err(SinkError::Retryable(reason)) = refused else { panic!("{port}: {refused:?}") };
        assert!(reason.contains(said), "{reason}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(sink.committed(), 0);
    }
    drop(listener);
}

#[test]
fn rows_that_are_not_exported_need_no_cluster() {
    let config = FluvioConfig { address: "127.0.0.1:9".to_owned(), ..FluvioConfig::default() };
    let fs = SimFs::new();
    let mut written = sink(&config, &fs);
    let rows = batch(Dataset::Changes, &["a"], &["x"]);
    let rows = Arc::new(LogBatch { offset: 0, dataset: rows.dataset, rows: rows.rows });
    let runtime = runtime();
    runtime.block_on(written.write(Delivery { batches: vec![rows], next_offset: 1 })).expect("nothing to do");
    runtime.block_on(written.flush()).expect("noted");
    drop(written);
    assert_eq!(sink(&config, &fs).committed(), 1);
}

/// Rows a second into a cluster, for each compression. On demand, in release:
/// `TIDEGATE_TEST_FLUVIO=… TIDEGATE_FLUVIO_SPEED=1 cargo test --release -p tidegate-sinks --test it -- fluvio_speed --nocapture`
#[test]
fn fluvio_speed() {
    use crate::timescale_speed::{BATCH_ROWS, BATCHES, rows};
    use BatchCompression::{Gzip, Lz4, None, Snappy, Zstd};
    if std::env::var_os("TIDEGATE_FLUVIO_SPEED").is_none() {
        return;
    }
    let batches: Vec<_> = (0..BATCHES).map(rows).collect();
    for compression in [None, Lz4, Zstd, Snappy, Gzip] {
        let Some(cluster) = Cluster::find("the speed of Fluvio topics") else { return };
        let config = FluvioConfig { compression, ..cluster.config() };
        let (runtime, mut sink) = (runtime(), sink(&config, &SimFs::new()));
        let started = Instant::now();
        for batch in &batches {
            let next_offset = batch.next_offset();
            let write = sink.write(Delivery { batches: vec![batch.clone()], next_offset });
            runtime.block_on(write).expect("taken");
        }
        let rate = (BATCHES * BATCH_ROWS) as f64 / started.elapsed().as_secs_f64();
        println!("{compression:?}: {rate:.0} rows/s, {} bytes in the topic", cluster.bytes(Dataset::SecurityEvents));
    }
}
