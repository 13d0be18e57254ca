//! The tail of the log → rows of SQL: a million events that are in the log and not yet in history, in memory as the log keeps them;
//! beside it, in the same run, what DataFusion makes of the same columns as a table of its own, without a log, a tenant or bounds.

use std::sync::Arc;

use anyhow::Context;
use arrow::array::RecordBatch;
use criterion::{Criterion, Throughput};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use tempfile::TempDir;
use tidegate_benches::{CpuTime, Feed, batches};
use tidegate_events::Dataset;
use tidegate_pipeline::fs::RealFs;
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::{Ack, Append, StreamLog};
use tidegate_query::{Query, QueryConfig, QueryParts, Scope};
use tidegate_sinks::parquet::{ParquetConfig, ParquetStore};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Events in the tail: what a second or two of full load leaves there.
const ROWS: usize = 1_000_000;
/// Events of one batch of the log.
const BATCH: usize = 20_000;

/// What dashboards ask of the newest events.
const STATEMENTS: [(&str, &str); 4] = [
    ("count", "SELECT count(*) FROM security_events"),
    ("filter", "SELECT count(*) FROM security_events WHERE error = 'AccessDenied' AND bytes_in > 1000"),
    (
        "top ten",
        "SELECT service, action, count(*) AS n, sum(bytes_out) AS bytes FROM security_events GROUP BY 1, 2 ORDER BY n DESC LIMIT 10",
    ),
    ("newest", "SELECT time, \"user\", action, region FROM security_events ORDER BY time DESC LIMIT 100"),
];

/// A log with a tail, an empty history, and the query layer over both.
struct Tail {
    query: Query,
    batches: Vec<RecordBatch>,
    _dir: TempDir,
}

impl Tail {
    fn new(runtime: &Runtime) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = LogConfig::default();
        let log = Arc::new(SegmentLog::open(Arc::new(RealFs), &dir.path().join("log"), config.clone())?.0);
        let output = Arc::new(SegmentLog::open(Arc::new(RealFs), &dir.path().join("output"), config)?.0);
        let (history, _) = ParquetStore::open(Arc::new(RealFs), &dir.path().join("store"), ParquetConfig::default())?;
        let mut held = Vec::new();
        for chunk in Feed::Reference.lines(ROWS).chunks(BATCH) {
            let batches = batches(Feed::Reference, chunk)?;
            held.extend(batches.iter().map(|batch| batch.rows.clone()));
            log.append(Append { batches, ack: Ack::Disk }).blocking_recv()??;
        }
        let fields = log.clone();
        let query = Query::new(QueryParts {
            log,
            log_datasets: &Dataset::ALL,
            output,
            history,
            files: None,
            log_fields: Arc::new(move || fields.fields()),
            config: QueryConfig { partitions: 1, ..QueryConfig::default() },
            cpu: runtime.handle().clone(),
        })?;
        Ok(Self { query, batches: held, _dir: dir })
    }

    async fn ask(&self, sql: &str) -> Vec<RecordBatch> {
        let stream = self.query.sql(&Scope::tenant("default"), sql).await.expect("a statement that is taken");
        stream.collect().await.expect("rows")
    }
}

/// The same columns as a table of DataFusion's.
fn peer(batches: &[RecordBatch]) -> anyhow::Result<SessionContext> {
    let schema = batches.first().context("no batch")?.schema();
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let table = MemTable::try_new(schema, vec![batches.to_vec()])?;
    context.register_table("security_events", Arc::new(table))?;
    Ok(context)
}

async fn ask_peer(context: &SessionContext, sql: &str) -> Vec<RecordBatch> {
    context.sql(sql).await.expect("a statement").collect().await.expect("rows")
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

fn tail(criterion: &mut Criterion<CpuTime>) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let tail = Tail::new(&runtime).expect("a log with a tail");
    let context = peer(&tail.batches).expect("a table");
    let mut group = criterion.benchmark_group(format!("tail/{ROWS} reference events"));
    group.throughput(Throughput::Elements(ROWS as u64));
    group.sample_size(20);
    for (name, sql) in STATEMENTS {
        let (ours, theirs) = runtime.block_on(async { (tail.ask(sql).await, ask_peer(&context, sql).await) });
        assert_eq!(rows(&ours), rows(&theirs), "{sql}");
        group.bench_function(name, |bencher| bencher.iter(|| runtime.block_on(tail.ask(sql))));
        group.bench_function(format!("{name}, peer datafusion"), |bencher| {
            bencher.iter(|| runtime.block_on(ask_peer(&context, sql)));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    tail(&mut criterion);
    criterion.final_summary();
}
