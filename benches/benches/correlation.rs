//! Correlations in the operator: what an event costs that a correlation counts, and what a million groups take.
//!
//! `correlation/*` are batches of 2,000 events that all match one rule, with and without a correlation over it. The last part is
//! not timed by criterion: it fills `TIDEGATE_BENCH_GROUPS` groups (default 1,000,000) and prints their memory and how long
//! batches took, in the middle and at worst. The clock is CPU time.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use tidegate_benches::{BASE_US, CpuTime};
use tidegate_events::Dataset;
use tidegate_pipeline::{Emitter, LogBatch, Operator};
use tidegate_rules::{RulesConfig, SigmaOperator};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: u64 = 2_000;
const BASE: &str = "title: Login failed\nid: base\nname: failed\nlogsource: {product: bench}\n\
                    detection: {s: {outcome_text: failure}, condition: s}\nlevel: informational\n";

/// A correlation over the rule; none for the cost without one.
fn operator(section: Option<&str>) -> SigmaOperator {
    let silent = "title: Never\nid: never\ncorrelation: {type: event_count, rules: [failed], group-by: [nowhere], \
                  timespan: 1m, condition: {gte: 10}}\n";
    let correlation = section.map_or_else(
        || silent.to_owned(),
        |section| format!("title: Correlated\nid: correlated\ncorrelation: {{{section}}}\n"),
    );
    let body = serde_json::json!({ "text": format!("{BASE}---\n{correlation}") }).to_string();
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let rows = RecordBatch::try_from_iter([
        ("org_id", text("default")),
        ("kind", text("rule")),
        ("target_id", text("bench.yml")),
        ("action", text("create")),
        ("body", text(&body)),
    ]);
    let changes = LogBatch { offset: 0, dataset: Dataset::Changes, rows: rows.expect("columns") };
    let mut operator = SigmaOperator::new(RulesConfig::default()).expect("tables");
    operator.process(&changes, &mut Emitter::default());
    assert_eq!(operator.problems(), []);
    operator
}

/// The events from `first` on, one every `step_us`: `user` and `value` of the number of each.
fn batch(first: u64, step_us: i64, user: impl Fn(u64) -> u64, value: impl Fn(u64) -> u64) -> LogBatch {
    let numbers = || first..first + EVENTS;
    let times = || -> ArrayRef {
        let times = numbers().map(|number| BASE_US + number as i64 * step_us);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let text =
        |of: &dyn Fn(u64) -> String| -> ArrayRef { Arc::new(numbers().map(|n| Some(of(n))).collect::<StringArray>()) };
    let rows = RecordBatch::try_from_iter([
        ("time", times()),
        ("received_time", times()),
        ("event_id", text(&|number| format!("018f4e2a-0000-7000-8000-{number:012x}"))),
        ("org_id", text(&|_| "acme".into())),
        ("source", text(&|_| "bench".into())),
        ("outcome_text", text(&|_| "failure".into())),
        ("user", text(&|number| format!("user-{:07}", user(number)))),
        ("value", text(&|number| format!("value-{}", value(number)))),
    ]);
    LogBatch { offset: first, dataset: Dataset::SecurityEvents, rows: rows.expect("columns") }
}

fn stages(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("correlation");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(20);
    group.throughput(Throughput::Elements(EVENTS));
    let count = "type: event_count, rules: [failed], group-by: [user], timespan: 10m, condition: {gte: 100000}";
    let count = count.replace("100000", "9999");
    let values =
        "type: value_count, rules: [failed], group-by: [user], timespan: 10m, condition: {field: value, gte: 5000}";
    let absent = "type: event_count, rules: [failed], group-by: [user], timespan: 10s, condition: {lt: 2}";
    let cases: [(&str, Option<&str>, u64, u64); 5] = [
        ("none", None, 10_000, 1),
        ("event_count, 10,000 groups", Some(&count), 10_000, 1),
        ("event_count, 1 group", Some(&count), 1, 1),
        ("value_count, 1,800 values in 1 group", Some(values), 1, 1_800),
        ("event_count from above, 10,000 groups", Some(absent), 10_000, 1),
    ];
    for (name, section, users, distinct) in cases {
        let mut operator = operator(section);
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = 0;
                for _ in 0..rounds {
                    // Ten thousand events a second.
                    let batch = batch(next, 100, |number| number % users, |number| number % distinct);
                    next += EVENTS;
                    let started = CpuTime.start();
                    let mut out = Emitter::default();
                    operator.process(&batch, &mut out);
                    spent += CpuTime.end(started);
                }
                spent
            });
        });
    }
    group.finish();
}

/// Resident memory in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

fn groups() {
    #[expect(clippy::disallowed_methods, reason = "the size of a measurement on demand")]
    let wanted = std::env::var("TIDEGATE_BENCH_GROUPS");
    let groups: u64 = wanted.ok().and_then(|groups| groups.parse().ok()).unwrap_or(1_000_000);
    let mut operator =
        operator(Some("type: event_count, rules: [failed], group-by: [user], timespan: 10m, condition: {gte: 5}"));
    let before = resident();
    // Every group gets an event every 100 seconds; half of the events are of groups that come and go.
    let step_us = 100_000_000 / (2 * groups as i64).max(1);
    let mut run = |from: u64, to: u64, user: &dyn Fn(u64) -> u64| {
        let mut times = Vec::new();
        let mut fired = 0;
        let mut at = from;
        while at < to {
            let batch = batch(at, step_us.max(1), user, |_| 0);
            let started = CpuTime.start();
            let mut out = Emitter::default();
            operator.process(&batch, &mut out);
            times.push(Duration::from_nanos(CpuTime.end(started)));
            fired += out.take_alerts().len();
            at += EVENTS;
        }
        times.sort_unstable();
        let part = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
        let (known, bytes) = operator.correlation_groups();
        println!(
            "{known} groups, {fired} alerts: about {bytes} bytes ({} each); resident +{} bytes ({} each); batches of \
             {EVENTS}: p50 {:?}, p99 {:?}, worst {:?}",
            bytes / known.max(1),
            resident().saturating_sub(before),
            resident().saturating_sub(before) / known.max(1),
            part(50),
            part(99),
            times.last().copied().unwrap_or_default(),
        );
    };
    println!("filling {groups} groups, one event each");
    run(0, groups, &|number| number);
    println!("one more event of each, twice");
    run(groups, 3 * groups, &|number| number % groups);
    println!("as many new groups again, so that as many end");
    run(3 * groups, 4 * groups, &|number| number - 2 * groups);
    let started = CpuTime.start();
    let state = operator.save();
    println!("saved: {} bytes in {:?}", state.len(), Duration::from_nanos(CpuTime.end(started)));
}

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    stages(&mut criterion);
    criterion.final_summary();
    groups();
}
