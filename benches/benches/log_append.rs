//! Columns → the segment log in a temporary folder, answered at each ack level, for few and many rows a group. With `ack=disk` the
//! disk's own `fdatasync` is in the figure: compare with `ack=memory` of the same run, not between machines.

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use tidegate_benches::{CpuTime, Feed, batches};
use tidegate_pipeline::fs::RealFs;
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::{Ack, Append, EventBatch, LogReader, StreamLog};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Between two looks at what the log may forget, so that a long run does not fill the disk.
const FORGET_EVERY: u64 = 64;

fn log_append(criterion: &mut Criterion<CpuTime>) {
    for rows in [10, 2_000, 32_768] {
        let lines = Feed::Reference.lines(rows);
        let batches = batches(Feed::Reference, &lines).expect("columns");
        let label = Feed::Reference.label(&lines);
        let mut group = criterion.benchmark_group(format!("log_append/{label}/{rows} rows"));
        group.throughput(Throughput::Elements(rows as u64));
        for ack in [Ack::Memory, Ack::Disk] {
            group.bench_function(format!("ack={}", ack.as_str()), |bencher| {
                let log = Appending::new();
                let mut appends = 0;
                // Keys are left out: the same rows come again and again, and would be duplicates.
                bencher.iter_batched(
                    || {
                        appends += 1;
                        if appends % FORGET_EVERY == 0 {
                            log.forget();
                        }
                        batches.iter().map(|batch| EventBatch { keys: Vec::new(), ..batch.clone() }).collect()
                    },
                    |batches| log.append(batches, ack),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

/// A log in a folder of its own.
struct Appending {
    log: SegmentLog,
    _dir: tempfile::TempDir,
}

impl Appending {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let opened = SegmentLog::open(Arc::new(RealFs), &dir.path().join("log"), LogConfig::default());
        Self { log: opened.expect("a new log").0, _dir: dir }
    }

    fn append(&self, batches: Vec<EventBatch>, ack: Ack) {
        loop {
            let reply = self.log.append(Append { batches: batches.clone(), ack }).blocking_recv();
            match reply.expect("an answer") {
                Ok(_) => return,
                // With ack=memory appends outrun the disk: the wait for it is part of what is measured.
                Err(tidegate_pipeline::AppendError::Full(_)) => {
                    self.forget();
                    std::thread::yield_now();
                }
                Err(error) => panic!("not appended: {error}"),
            }
        }
    }

    fn forget(&self) {
        self.log.forget(self.log.bounds().next).expect("segments that can be removed");
    }
}

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    log_append(&mut criterion);
    criterion.final_summary();
}
