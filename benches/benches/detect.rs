//! The starter pack on a batch: cold (rules compiled, no value seen yet) and warm (the memo knows the values).

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use tidegate_benches::{Feed, batches};
use tidegate_pipeline::LogBatch;
use tidegate_rules::{Evaluator, RuleSet, RulesConfig, pack};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 2_000;

fn detect(criterion: &mut Criterion) {
    let config = RulesConfig::default();
    let files = pack::files();
    let (rules, problems) = RuleSet::compile(&files, &config).expect("shipped tables");
    assert!(problems.is_empty(), "{problems:?}");
    let rules = Arc::new(rules);
    for feed in Feed::ALL {
        let lines = feed.lines(EVENTS);
        let batches = log_batches(feed, &lines);
        let mut group = criterion.benchmark_group(format!("detect/{}/starter pack", feed.label(&lines)));
        group.throughput(Throughput::Elements(EVENTS as u64));
        group.bench_function("cold", |bencher| {
            let fresh = || Evaluator::new(rules.clone(), &config);
            let run = |mut evaluator: Evaluator| (matches(&mut evaluator, &batches), evaluator);
            bencher.iter_batched(fresh, run, BatchSize::LargeInput);
        });
        group.bench_function("warm", |bencher| {
            let mut evaluator = Evaluator::new(rules.clone(), &config);
            matches(&mut evaluator, &batches);
            bencher.iter(|| matches(&mut evaluator, &batches));
        });
        group.finish();
    }
    criterion.bench_function("detect/compile starter pack", |bencher| {
        bencher.iter_with_large_drop(|| RuleSet::compile(&files, &config).expect("shipped tables"));
    });
}

fn log_batches(feed: Feed, lines: &[Vec<u8>]) -> Vec<LogBatch> {
    let batches = batches(feed, lines).expect("columns");
    batches.into_iter().map(|batch| LogBatch { offset: 0, dataset: batch.dataset, rows: batch.rows }).collect()
}

fn matches(evaluator: &mut Evaluator, batches: &[LogBatch]) -> usize {
    batches.iter().map(|batch| evaluator.matches(batch).len()).sum()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    detect(&mut criterion);
    criterion.final_summary();
}
