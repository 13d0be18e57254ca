//! Batches of the log → one commit of the Parquet store, the files and the manifest made durable. The disk's `fsync`s are in the
//! figure: see `docs/performance.md` for how to read it.

use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use tempfile::TempDir;
use tidegate_benches::{CpuTime, Feed, batches};
use tidegate_pipeline::fs::RealFs;
use tidegate_pipeline::{Delivery, LogBatch, Sink};
use tidegate_sinks::parquet::{LogSource, ParquetConfig, ParquetStore};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows of one commit.
const ROWS: usize = 16_000;
/// Rows of one batch of the log.
const BATCH: usize = 2_000;

fn parquet(criterion: &mut Criterion<CpuTime>) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
    for feed in Feed::ALL {
        let lines = feed.lines(ROWS);
        let delivery = delivery(feed, &lines);
        let mut group = criterion.benchmark_group(format!("parquet/{}", feed.label(&lines)));
        group.throughput(Throughput::Elements(ROWS as u64));
        group.sample_size(20);
        group.bench_function(format!("commit of {ROWS}"), |bencher| {
            let empty = || tempfile::tempdir().expect("a temporary folder");
            let run = |dir: TempDir| {
                commit(&runtime, dir.path(), delivery.clone());
                dir
            };
            bencher.iter_batched(empty, run, BatchSize::PerIteration);
        });
        group.finish();
    }
}

fn delivery(feed: Feed, lines: &[Vec<u8>]) -> Delivery {
    let mut next_offset = 0;
    let mut held = Vec::new();
    for chunk in lines.chunks(BATCH) {
        for batch in batches(feed, chunk).expect("columns") {
            let batch = LogBatch { offset: next_offset, dataset: batch.dataset, rows: batch.rows };
            next_offset = batch.next_offset();
            held.push(Arc::new(batch));
        }
    }
    Delivery { batches: held, next_offset }
}

fn commit(runtime: &Runtime, dir: &Path, delivery: Delivery) {
    let rows = delivery.next_offset;
    let (store, _) = ParquetStore::open(Arc::new(RealFs), dir, ParquetConfig::default()).expect("a new store");
    let mut sink = store.sink(LogSource::Ingest);
    runtime.block_on(async {
        sink.write(delivery).await.expect("rows that are taken");
        sink.flush().await.expect("a commit");
    });
    assert_eq!(sink.committed(), rows);
}

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    parquet(&mut criterion);
    criterion.final_summary();
}
