//! Correlations in the operator: what an event costs that a correlation counts, and what a million groups take.
//!
//! `correlation/*` are batches of 2,000 events that all match one rule, with and without a correlation over it. The last part is
//! not timed by criterion: it fills `TIDEGATE_BENCH_GROUPS` groups (default 1,000,000) and prints their memory and how long
//! batches took, in the middle and at worst, while groups and windows end one by one and all at once; that no batch in a hundred takes
//! more than three times as long as one in the middle is checked. The clock is CPU time.

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
/// How long after its time the first event is received.
const RECEIVED_US: i64 = 10_000_000_000;
const BASE: &str = "title: Login failed\nid: base\nname: failed\nlogsource: {product: bench}\n\
                    detection: {s: {outcome_text: failure}, condition: s}\nlevel: informational\n";

/// A correlation over the rule; none for the cost without one.
fn operator(section: Option<&str>, config: RulesConfig) -> SigmaOperator {
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
    let mut operator = SigmaOperator::new(config).expect("tables");
    operator.process(&changes, &mut Emitter::default());
    assert_eq!(operator.problems(), []);
    operator
}

/// The events from `first` on, one every `step_us`, in event time from `from_us` on: `user` and `value` of the number of each.
fn batch(
    first: u64,
    (from_us, step_us): (i64, i64),
    user: impl Fn(u64) -> u64,
    value: impl Fn(u64) -> u64,
) -> LogBatch {
    let numbers = || first..first + EVENTS;
    let times = |from_us: i64| -> ArrayRef {
        let times = numbers().map(|number| BASE_US + from_us + number as i64 * step_us);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let text =
        |of: &dyn Fn(u64) -> String| -> ArrayRef { Arc::new(numbers().map(|n| Some(of(n))).collect::<StringArray>()) };
    let rows = RecordBatch::try_from_iter([
        ("time", times(from_us)),
        ("received_time", times(RECEIVED_US)),
        ("event_id", text(&|number| format!("018f4e2a-0000-7000-8000-{number:012x}"))),
        ("org_id", text(&|_| "acme".into())),
        ("source", text(&|_| "bench".into())),
        ("outcome_text", text(&|_| "failure".into())),
        ("user", text(&|number| format!("user-{:07}", user(number)))),
        ("value", text(&|number| format!("value-{}", value(number)))),
        ("number", text(&|number| value(number).to_string())),
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
        let mut operator = operator(section, RulesConfig::default());
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = 0;
                for _ in 0..rounds {
                    // Ten thousand events a second.
                    let batch = batch(next, (0, 100), |number| number % users, |number| number % distinct);
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

/// How many groups there are to be.
fn wanted() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the size of a measurement on demand")]
    let wanted = std::env::var("TIDEGATE_BENCH_GROUPS");
    wanted.ok().and_then(|groups| groups.parse().ok()).unwrap_or(1_000_000)
}

/// A stream over one correlation in which every group gets an event every 100 seconds; half of the events are of groups that come
/// and go.
struct Stream {
    operator: SigmaOperator,
    groups: u64,
    next: u64,
    /// Where event time begins: it may catch up with receive time at once.
    from_us: i64,
    /// Resident memory before.
    before: usize,
    times: Vec<Duration>,
}

impl Stream {
    fn new(section: &str, config: RulesConfig) -> Self {
        let operator = operator(Some(section), config);
        Self { operator, groups: wanted(), next: 0, from_us: 0, before: resident(), times: Vec::new() }
    }

    fn run(&mut self, what: &str, count: u64, user: &dyn Fn(u64) -> u64) {
        let step_us = (100_000_000 / (2 * self.groups as i64).max(1)).max(1);
        let (end, first, mut told) = (self.next + count, self.times.len(), 0);
        while self.next < end {
            let batch = batch(self.next, (self.from_us, step_us), user, |_| 0);
            let started = CpuTime.start();
            let mut out = Emitter::default();
            self.operator.process(&batch, &mut out);
            self.times.push(Duration::from_nanos(CpuTime.end(started)));
            told += out.take_alerts().len();
            self.next += EVENTS;
        }
        let (known, bytes) = self.operator.correlation_groups();
        let grown = resident().saturating_sub(self.before);
        let [p50, p99, worst] = parts(self.times.get(first..).unwrap_or_default());
        println!(
            "{what}: {known} groups, {told} alerts: about {bytes} bytes ({} each); resident +{grown} bytes ({} each); batches of \
             {EVENTS}: p50 {p50:?}, p99 {p99:?}, worst {worst:?}",
            bytes / known.max(1),
            grown / known.max(1),
        );
    }

    /// Of the whole stream.
    fn no_pause(&self) {
        let [p50, p99, worst] = parts(&self.times);
        println!("in all: p50 {p50:?}, p99 {p99:?}, worst {worst:?}");
        assert!(p99 <= 3 * p50, "a batch in a hundred is a pause: p50 {p50:?}, p99 {p99:?}");
    }
}

/// The middle one, the one that 1 in 100 exceeds, and the largest.
fn parts(times: &[Duration]) -> [Duration; 3] {
    let mut times = times.to_vec();
    times.sort_unstable();
    [50, 99, 100].map(|percent| times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default())
}

fn groups() {
    let section = "type: event_count, rules: [failed], group-by: [user], timespan: 10m, condition: {gte: 5}";
    let mut stream = Stream::new(section, RulesConfig::default());
    let groups = stream.groups;
    stream.run("new groups, one event each", groups, &|number| number);
    stream.run("one more event of each, twice", 2 * groups, &|number| number % groups);
    stream.run("as many new groups again, so that as many end", groups, &|number| number - 2 * groups);
    let started = CpuTime.start();
    let state = stream.operator.save();
    println!("saved: {} bytes in {:?}", state.len(), Duration::from_nanos(CpuTime.end(started)));
    stream.from_us += 3_600_000_000;
    stream.run("all of them end at once, and others come", 2 * groups, &|number| 10 * groups + number);
    stream.no_pause();
}

/// Forms of groups, and how many events each has that must fit.
const FORMS: [(&str, u64); 5] = [
    ("type: event_count, rules: [failed], group-by: [user], timespan: 1h, condition: {gte: 9}", 4),
    ("type: event_count, rules: [failed], group-by: [user], timespan: 1h, condition: {lt: 2}", 2),
    ("type: value_count, rules: [failed], group-by: [user], timespan: 1h, condition: {field: value, gte: 9}", 2),
    ("type: value_sum, rules: [failed], group-by: [user], timespan: 1h, condition: {field: number, gte: 9}", 2),
    ("type: temporal, rules: [failed], group-by: [user], timespan: 1h", 2),
];
/// The argument before the number of a form, in a process that has nothing else in memory.
const FORM: &str = "--form";

/// What the groups of one form take: they stay, and the memory of the process says so too.
fn form(number: usize) {
    let (section, rounds) = *FORMS.get(number).expect("a form by its number");
    let mut stream = Stream::new(section, RulesConfig::default());
    let groups = stream.groups;
    println!("{section}:");
    stream.run(&format!("{rounds} events of each group"), rounds * groups, &|number| number % groups);
    let ((known, _), grown) = (stream.operator.correlation_groups(), resident().saturating_sub(stream.before));
    assert_eq!(known as u64, groups, "none had to go");
    assert!(grown <= 512 << 20, "{grown} bytes resident");
}

fn forms() {
    let own = std::env::current_exe().expect("a program");
    for number in 0..FORMS.len() {
        let status = std::process::Command::new(&own).args([FORM, &number.to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "form {number}");
    }
}

fn windows() {
    let section = "type: event_count, rules: [failed], group-by: [user], timespan: 1m, condition: {lt: 5}";
    // Windows that end at once, not those that give way: 1.2 times as many are open, and as many groups are remembered.
    let many =
        RulesConfig { correlation_groups_max: 8_000_000, correlation_bytes_max: 8 << 30, ..RulesConfig::default() };
    let mut stream = Stream::new(section, many);
    let groups = stream.groups;
    stream.run("windows open and end, one after the other", 6 * groups, &|number| number);
    stream.from_us += 3_600_000_000;
    stream.run("all windows end at once while others open", groups, &|number| number);
    stream.from_us += 3_600_000_000;
    stream.run("again, while the same few windows are fed", groups, &|number| number % (groups / 50).max(1));
    stream.no_pause();
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != FORM).skip(1);
    if let Some(number) = arguments.next() {
        return form(number.parse().expect("a number"));
    }
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    stages(&mut criterion);
    criterion.final_summary();
    forms();
    groups();
    windows();
}
