//! Sigma rules on batches, and what the peers need for the same events in the same process: CPU time, not wall time.
//!
//! The rules are all of SigmaHQ, the events two real samples and the reference events as those of `aws`. Of each sample, the first
//! half is seen before the clock starts (it fills the memo and teaches the decoder shapes; the peers remember nothing), the second
//! half is measured. Peers are measured on JSON values that were parsed before (*columns*: ours starts from columns that were
//! decoded before), and from JSON bytes (*bytes*: ours with its decoder, ids and all, theirs with `serde_json`; what was parsed
//! is dropped within the clock).

mod channels;
mod peers;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use criterion::measurement::Measurement;
use criterion::{BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput};
use peers::{Mode, Rsigma, SigmaRust, log_source};
use rsigma_parser::LogSource;
use serde_json::Value;
use tidegate_benches::{CpuTime, Feed, body, decoder, ndjson, samples};
use tidegate_ingest::decode::{Body, BodyFormat, Decoder};
use tidegate_pipeline::LogBatch;
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig, pack};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Events of one request.
const EVENTS: usize = 2_000;
/// Events that a peer without an index is asked for: it takes milliseconds for one.
const FEW: usize = 60;

/// Events of one kind.
struct Sample {
    name: &'static str,
    product: &'static str,
    source: &'static str,
    lines: Vec<Vec<u8>>,
}

fn load() -> anyhow::Result<Vec<Sample>> {
    Ok(vec![
        Sample { name: "windows", product: "windows", source: "windows", lines: samples::windows()? },
        Sample { name: "cloudtrail", product: "aws", source: "cloudtrail", lines: samples::cloudtrail()? },
        Sample { name: "reference", product: "aws", source: "aws", lines: Feed::Reference.lines(40_000) },
    ])
}

impl Sample {
    fn halves(&self) -> (&[Vec<u8>], &[Vec<u8>]) {
        self.lines.split_at(self.lines.len() / 2)
    }

    /// Request bodies of so many events.
    fn bodies(&self, lines: &[Vec<u8>]) -> Vec<Body> {
        lines.chunks(EVENTS).map(|lines| body(ndjson(lines), BodyFormat::Json, Some(self.source))).collect()
    }

    /// Columns of the first half and of the second.
    fn batches(&self) -> anyhow::Result<(Vec<LogBatch>, Vec<LogBatch>)> {
        let (first, second) = self.halves();
        let mut decoder = decoder()?;
        let mut decoded = |lines| self.bodies(lines).into_iter().flat_map(|body| decode(&mut decoder, body)).collect();
        Ok((decoded(first), decoded(second)))
    }

    /// A decoder that has seen the first half.
    fn seasoned(&self) -> anyhow::Result<Decoder> {
        let mut decoder = decoder()?;
        self.bodies(self.halves().0).into_iter().for_each(|body| drop(decode(&mut decoder, body)));
        Ok(decoder)
    }
}

/// No rule is parked, however busy the machine is: all are measured.
fn config() -> RulesConfig {
    RulesConfig { rule_event_ns_max: u64::MAX, ..RulesConfig::default() }
}

fn decode(decoder: &mut Decoder, body: Body) -> Vec<LogBatch> {
    let result = decoder.push(body);
    assert!(result.error.is_none() && result.rejected.is_empty(), "rejected: {:?}", result.rejected.first());
    let flushed = decoder.flush().expect("columns").batches.into_iter();
    flushed.map(|batch| LogBatch { offset: 0, dataset: batch.dataset, rows: batch.rows }).collect()
}

fn compile(texts: &BTreeMap<String, String>, rules: usize) -> Arc<RuleSet> {
    // Every n-th, so that a part has rules of every folder.
    let step = (texts.len() / rules.max(1)).max(1);
    let some = texts.iter().step_by(step).take(rules);
    let files: Vec<RuleFile> = some.map(|(name, text)| RuleFile::new(name, text)).collect();
    Arc::new(RuleSet::compile(&files, &config()).expect("shipped tables").0)
}

fn matches(evaluator: &mut Evaluator, batches: &[LogBatch]) -> usize {
    batches.iter().map(|batch| evaluator.matches(batch).len()).sum()
}

/// An evaluator that has seen the first half.
fn seasoned(rules: &Arc<RuleSet>, first: &[LogBatch]) -> Evaluator {
    let mut evaluator = Evaluator::new(rules.clone(), &config());
    matches(&mut evaluator, first);
    evaluator
}

fn all_rules(
    criterion: &mut Criterion<CpuTime>,
    sample: &Sample,
    texts: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let rules = compile(texts, usize::MAX);
    let (first, second) = sample.batches()?;
    let (_, lines) = sample.halves();
    let values: Vec<Value> = lines.iter().map(|line| serde_json::from_slice(line)).collect::<Result<_, _>>()?;
    let sources: Vec<LogSource> = values.iter().map(|event| log_source(sample.product, event)).collect();
    report(sample.name, &rules, &first, &second);

    let mut group = slow_group(criterion, format!("detect/{}/columns", sample.name));
    group.throughput(Throughput::Elements(lines.len() as u64));
    group.bench_function("tidegate", |bencher| {
        let run = |mut evaluator: Evaluator| (matches(&mut evaluator, &second), evaluator);
        bencher.iter_batched(|| seasoned(&rules, &first), run, BatchSize::PerIteration);
    });
    for (mode, name) in Mode::ALL {
        let peer = Rsigma::new(texts.values().map(String::as_str), mode);
        println!("{name}: {} rules", peer.rules);
        group.bench_function(name, |bencher| bencher.iter(|| peer.matches(values.iter().zip(&sources), mode)));
    }
    let slow = SigmaRust::new(texts.values().map(String::as_str));
    println!("peer sigma-rust: {} rules", slow.rules());
    let step = (lines.len() / FEW).max(1);
    let few: Vec<&str> = lines.iter().step_by(step).map(|line| std::str::from_utf8(line)).collect::<Result<_, _>>()?;
    let events: Vec<_> = few.iter().map(|line| sigma_rust::event_from_json(line)).collect::<Result<_, _>>()?;
    group.throughput(Throughput::Elements(few.len() as u64));
    group.bench_function("peer sigma-rust", |bencher| bencher.iter(|| slow.matches(events.iter())));
    group.finish();

    from_bytes(criterion, sample, &rules, &first, (texts, &sources))
}

/// The same, with parsing.
fn from_bytes(
    criterion: &mut Criterion<CpuTime>,
    sample: &Sample,
    rules: &Arc<RuleSet>,
    first: &[LogBatch],
    (texts, sources): (&BTreeMap<String, String>, &[LogSource]),
) -> anyhow::Result<()> {
    let (_, lines) = sample.halves();
    let mut group = slow_group(criterion, format!("detect/{}/bytes", sample.name));
    group.throughput(Throughput::Elements(lines.len() as u64));
    group.bench_function("tidegate", |bencher| {
        let fresh = || (seasoned(rules, first), sample.seasoned().expect("shipped mappings"), sample.bodies(lines));
        let run = |(mut evaluator, mut decoder, bodies): (Evaluator, Decoder, Vec<Body>)| {
            let found: usize =
                bodies.into_iter().map(|body| matches(&mut evaluator, &decode(&mut decoder, body))).sum();
            (found, evaluator, decoder)
        };
        bencher.iter_batched(fresh, run, BatchSize::PerIteration);
    });
    // How much of that is decoding.
    group.bench_function("tidegate, decoding alone", |bencher| {
        let fresh = || (sample.seasoned().expect("shipped mappings"), sample.bodies(lines));
        let run = |(mut decoder, bodies): (Decoder, Vec<Body>)| {
            bodies.into_iter().for_each(|body| drop(black_box(decode(&mut decoder, body))));
            decoder
        };
        bencher.iter_batched(fresh, run, BatchSize::PerIteration);
    });
    for (mode, name) in Mode::ALL.into_iter().filter(|(mode, _)| *mode != Mode::Default) {
        let peer = Rsigma::new(texts.values().map(String::as_str), mode);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let parsed = lines.iter().map(|line| serde_json::from_slice::<Value>(line).expect("JSON"));
                let found =
                    parsed.zip(sources).map(|(event, source)| peer.matches([(&event, source)].into_iter(), mode));
                found.sum::<usize>()
            });
        });
    }
    group.finish();
    Ok(())
}

/// Prints what the figures rest on, and how even the times of batches are.
fn report(name: &str, rules: &Arc<RuleSet>, first: &[LogBatch], second: &[LogBatch]) {
    let mut evaluator = seasoned(rules, first);
    let before = evaluator.counts();
    let clock = CpuTime;
    let (mut found, mut per_event) = (0, Vec::new());
    for batch in second {
        let started = clock.start();
        found += black_box(evaluator.matches(batch)).len();
        per_event.push(clock.end(started) / batch.rows.num_rows().max(1) as u64);
    }
    per_event.sort_unstable();
    let quantile =
        |part: usize| per_event.get((per_event.len() * part / 100).min(per_event.len() - 1)).copied().unwrap_or(0);
    let counts = evaluator.counts();
    println!(
        "{name}: {} events in {} batches, {} rules, {} predicates, {found} matches, {} values looked up, {} decided; \
         ns an event over batches: p50 {}, p90 {}, p99 {}",
        counts.rows - before.rows,
        second.len(),
        rules.rules().len(),
        rules.predicates(),
        counts.values - before.values,
        counts.decided - before.decided,
        quantile(50),
        quantile(90),
        quantile(99),
    );
}

/// What an event costs as rules grow.
fn growth(criterion: &mut Criterion<CpuTime>, sample: &Sample, texts: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let (first, second) = sample.batches()?;
    let mut group = slow_group(criterion, format!("detect/{}/growth", sample.name));
    group.throughput(Throughput::Elements(second.iter().map(|batch| batch.rows.num_rows() as u64).sum()));
    for rules in [100, 1_000, texts.len()] {
        let compiled = compile(texts, rules);
        group.bench_function(format!("{} rules", compiled.rules().len()), |bencher| {
            let run = |mut evaluator: Evaluator| (matches(&mut evaluator, &second), evaluator);
            bencher.iter_batched(|| seasoned(&compiled, &first), run, BatchSize::PerIteration);
        });
    }
    group.finish();
    Ok(())
}

/// What it costs when rules say by themselves of which channel and event id they are.
fn channels(
    criterion: &mut Criterion<CpuTime>,
    sample: &Sample,
    texts: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let (first, second) = sample.batches()?;
    let (_, lines) = sample.halves();
    let values: Vec<Value> = lines.iter().map(|line| serde_json::from_slice(line)).collect::<Result<_, _>>()?;
    let sources: Vec<LogSource> = values.iter().map(|event| log_source(sample.product, event)).collect();
    let (plain, written) = channels::both(texts);
    let mut group = slow_group(criterion, format!("detect/{}/channels", sample.name));
    group.throughput(Throughput::Elements(lines.len() as u64));
    for (name, texts) in [("as they are", &plain), ("with channel and event id", &written)] {
        let rules = compile(texts, usize::MAX);
        report(name, &rules, &first, &second);
        group.bench_function(format!("tidegate, {name}"), |bencher| {
            let run = |mut evaluator: Evaluator| (matches(&mut evaluator, &second), evaluator);
            bencher.iter_batched(|| seasoned(&rules, &first), run, BatchSize::PerIteration);
        });
        let peer = Rsigma::new(texts.values().map(String::as_str), Mode::Default);
        group.bench_function(format!("peer rsigma-eval, {name}"), |bencher| {
            bencher.iter(|| peer.matches(values.iter().zip(&sources), Mode::Default));
        });
    }
    group.finish();
    Ok(())
}

fn compiling(criterion: &mut Criterion<CpuTime>, texts: &BTreeMap<String, String>) {
    let mut group = slow_group(criterion, "detect/compile".to_owned());
    let pack = pack::files();
    group.bench_function("starter pack", |bencher| {
        bencher.iter_with_large_drop(|| RuleSet::compile(&pack, &config()).expect("shipped tables"));
    });
    group.bench_function("all rules", |bencher| bencher.iter_with_large_drop(|| compile(texts, usize::MAX)));
    group.finish();
}

fn slow_group(criterion: &mut Criterion<CpuTime>, name: String) -> BenchmarkGroup<'_, CpuTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(1_500));
    group
}

fn run() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    let texts = samples::sigma_rules()?;
    for sample in load().context("the samples")? {
        all_rules(&mut criterion, &sample, &texts)?;
        growth(&mut criterion, &sample, &texts)?;
        if sample.product == "windows" {
            channels(&mut criterion, &sample, &texts)?;
        }
    }
    compiling(&mut criterion, &texts);
    criterion.final_summary();
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("detect is left out: {error:#}");
    }
}
