//! The database behind the suites of the query layer: a schema of its own in the PostgreSQL of the tests, which the sink has
//! filled from the logs of a world.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{Delivery, Health, History, LogReader, Sink, Snapshot};
use tidegate_sinks::fluvio::partition_of;
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{TimescaleConfig, TimescaleHistory, TimescaleReadParts, TimescaleStore};
use tokio::runtime::Handle;
use tokio_postgres::{Client, NoTls};

use super::fixture::{Mode, World, append};

/// Where the rows are in tests of all places.
pub const MODES: [Mode; 3] = [Mode::Asked, Mode::AskedMixed, Mode::AskedParts];
/// Where they are for statements that want to break something.
pub const HOSTILE: Mode = Mode::AskedMixed;
/// Where the `.slt` files are.
pub const SLT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/query/tests/slt");

/// Partitions of many machines.
const PARTS: usize = 3;

/// The id of a data folder.
const ORIGIN: &str = "0193a4e2-0000-7000-8000-000000000001";

/// A schema that is dropped with this, and the history in it.
pub struct Kept {
    pub config: TimescaleConfig,
    history: tokio::sync::OnceCell<Arc<TimescaleHistory>>,
}

impl Kept {
    /// A schema that no one else has, written over so many connections.
    #[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their servers are")]
    pub async fn new(connections: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let url = std::env::var("TIDEGATE_TEST_POSTGRES").unwrap_or_else(|_| {
            panic!("this test needs a PostgreSQL: run `cargo xtask test`, or `cargo xtask with-servers cargo test …`")
        });
        let schema = format!("h{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let config = TimescaleConfig {
            url,
            schema,
            connections,
            aggregates: false,
            statement_ms_max: 20_000,
            read_refresh_ms: 20,
            read_connections: 4,
            ..TimescaleConfig::default()
        };
        Self { config, history: tokio::sync::OnceCell::new() }
    }

    /// A connection of the test's own.
    pub async fn client(&self) -> Client {
        connect(&self.config.url).await
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let (url, schema) = (self.config.url.clone(), self.config.schema.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let drop = format!("SET lock_timeout = 5000; DROP SCHEMA IF EXISTS {schema} CASCADE");
            runtime.block_on(async { connect(&url).await.batch_execute(&drop).await })
        });
        let _ = dropped.join();
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the database");
    tokio::spawn(connection);
    client
}

/// History as a server that starts reads it.
pub fn history(config: &TimescaleConfig) -> Arc<TimescaleHistory> {
    history_with(config, Vec::new())
}

fn history_with(config: &TimescaleConfig, kin: Vec<String>) -> Arc<TimescaleHistory> {
    let stage = Health::default().stage("history");
    let parts = TimescaleReadParts {
        config: config.clone(),
        origin: ORIGIN.to_owned(),
        kin,
        query_ms_max: 20_000,
        runtime: Handle::current(),
        stage,
    };
    TimescaleHistory::start(parts).expect("a history")
}

/// Delivers what a log holds after the cursor of the database, in pieces of about `piece` rows, and flushes it or leaves the
/// rest, as a process that is killed.
pub async fn deliver(config: &TimescaleConfig, source: LogSource, log: &MemoryLog, piece: usize, flush: bool) {
    deliver_as(ORIGIN, config, (source, log), piece, flush).await;
}

/// The same of the log of another origin.
pub async fn deliver_as(
    origin: &str,
    config: &TimescaleConfig,
    (source, log): (LogSource, &MemoryLog),
    piece: usize,
    flush: bool,
) {
    let config = TimescaleConfig { commit_rows: piece, ..config.clone() };
    let store = TimescaleStore::open(config, origin).expect("a store");
    let from = store.cursor(source).await.expect("a cursor");
    let mut sink = store.sink(source, from);
    sink.connect().await.expect("connected");
    let (bounds, from) = (log.bounds(), sink.committed());
    if from >= bounds.next {
        return;
    }
    let batches = log.read(from, usize::MAX).expect("read");
    for batches in batches.chunks(piece.div_ceil(8)) {
        let next_offset = batches.last().map_or(from, |batch| batch.next_offset());
        sink.write(Delivery { batches: batches.to_vec(), next_offset }).await.expect("written");
    }
    if flush {
        sink.flush().await.expect("flushed");
    }
}

/// Gives what the logs of a world hold to a database, once, and makes what is below two cursors the world's snapshot.
pub async fn answer(world: &World, log_cursor: u64, output_cursor: u64) -> Arc<TimescaleHistory> {
    let kept = world.kept.get_or_init(|| Kept::new(2)).await;
    let fill = async || {
        deliver(&kept.config, LogSource::Ingest, &world.log, 5, true).await;
        deliver(&kept.config, LogSource::Output, &world.output, 5, true).await;
        let history = history(&kept.config);
        let (log, output) = (world.log.bounds().next, world.output.bounds().next);
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let snapshot = history.snapshot();
            if (snapshot.log_cursor, snapshot.output_cursor) == (log, output) {
                return history;
            }
            assert!(Instant::now() < until, "the cursors are not seen: {snapshot:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let history = kept.history.get_or_init(fill).await;
    let whole = history.snapshot();
    *world.history.0.lock() = Arc::new(Snapshot { log_cursor, output_cursor, ..Snapshot::clone(&whole) });
    history.clone()
}

/// The origin of a partition.
pub fn origin_of(part: usize) -> String {
    format!("0193a4e2-0000-8000-8000-{part:012}")
}

/// The rows of the tenants of a partition, in a log of their own.
async fn part_of(log: &MemoryLog, part: usize) -> MemoryLog {
    let own = MemoryLog::new(16, 1 << 30);
    for batch in log.read(0, usize::MAX).expect("read") {
        let orgs = batch.rows.column_by_name("org_id").expect("org_id").as_string::<i32>();
        let mine: BooleanArray = orgs.iter().map(|org| Some(partition_of(org.unwrap_or(""), PARTS) == part)).collect();
        let rows = filter_record_batch(&batch.rows, &mine).expect("rows");
        if rows.num_rows() > 0 {
            append(&own, batch.dataset, rows).await;
        }
    }
    own
}

/// Gives the rows to a database as many machines do: each partition has logs, and cursors, of its own, and the node that reads has
/// none of them.
pub async fn answer_parts(world: &World) -> Arc<TimescaleHistory> {
    let kept = world.kept.get_or_init(|| Kept::new(2)).await;
    let fill = async || {
        for part in 0..PARTS {
            for (source, log) in [(LogSource::Ingest, &world.log), (LogSource::Output, &world.output)] {
                let log = part_of(log, part).await;
                deliver_as(&origin_of(part), &kept.config, (source, &log), 5, true).await;
            }
        }
        let history = history_with(&kept.config, (0..PARTS).map(origin_of).collect());
        history.looked(Duration::from_secs(20)).await;
        history
    };
    let history = kept.history.get_or_init(fill).await;
    let whole = history.snapshot();
    let (log_cursor, output_cursor) = (world.log.bounds().next, world.output.bounds().next);
    *world.history.0.lock() = Arc::new(Snapshot { log_cursor, output_cursor, ..Snapshot::clone(&whole) });
    history.clone()
}
