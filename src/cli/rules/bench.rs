//! `tidegate rules bench`: what rules cost over the user's own events.
//!
//! Three measurements on one thread. *New*: each pass with an operator that has met no value before, which is what a stream
//! costs whose values never repeat. *Known*: further passes of the same operator, when it remembers every value. A real stream
//! lies between the two. Then the costs of single rules, from the samples by which rules are parked.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;
use tidegate_pipeline::clock::thread_cpu;
use tidegate_pipeline::{Emitter, Operator};
use tidegate_rules::profile::{FieldCost, PredicateCost, field_costs};
use tidegate_rules::{Evaluator, RuleFile, RuleSet, SigmaOperator};

use super::events::{self, Events, Wanted};
use super::files;
use crate::cli::Ending;
use crate::cli::style::{Style, cut};
use crate::config::Config;

/// How many events the story has, when no file is given.
const STORY_EVENTS: usize = 50_000;
/// How much of a test is shown.
const TEST_CHARS_MAX: usize = 100;

/// Runs the command.
///
/// # Errors
/// When rules or events cannot be read, or there are none.
pub fn run(config: &Config, style: Style, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let given = match &config.rules {
        Some(folder) => files::read(std::slice::from_ref(folder), &config.sigma)?,
        None => files::configured(config)?,
    };
    let events = read_events(config)?;
    let rows: usize = events.batches.iter().map(|batch| batch.rows.num_rows()).sum();
    if rows == 0 {
        bail!("there are no events to measure with");
    }
    let (set, problems) = RuleSet::compile(&given.files, &config.sigma)?;
    let set = Arc::new(set);
    if set.rules().is_empty() {
        bail!("none of the {} rule files loads: see `tidegate rules check`", given.files.len());
    }
    let third = Duration::from_secs(config.rule_tools.seconds) / 3;
    let speed = speed(&given.files, &events, third * 2, config)?;
    let single = single(&set, &events, third, config);
    let (fields, predicates) = field_costs(&set, &events.batches);
    let report =
        Report { events: &events, rows, set: &set, problems: problems.len(), speed, single, fields, predicates };
    if config.rule_tools.json {
        serde_json::to_writer_pretty(&mut *out, &report.as_json(config.rule_tools.top))?;
        writeln!(out)?;
    } else {
        report.print(config.rule_tools.top, style, out)?;
    }
    Ok(if report.parked().is_empty() { Ending::Good } else { Ending::Bad })
}

fn read_events(config: &Config) -> anyhow::Result<Events> {
    let tools = &config.rule_tools;
    if tools.events.is_empty() {
        return events::of_story(STORY_EVENTS.min(tools.events_max), config);
    }
    let wanted = Wanted {
        files: tools.events.clone(),
        source: tools.source.clone(),
        dataset: tools.dataset.as_deref().map(events::dataset).transpose()?,
        events_max: tools.events_max,
        excerpts: false,
    };
    events::read(&wanted, config)
}

/// What the whole operator took.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
struct Speed {
    /// CPU nanoseconds an event when every value is new.
    new_ns: f64,
    /// The same when every value is remembered.
    known_ns: f64,
    /// Alerts of one pass.
    alerts: usize,
}

/// Alternates passes of a fresh operator and of the same one, so that what else the machine does falls on both.
fn speed(files: &[RuleFile], events: &Events, time: Duration, config: &Config) -> anyhow::Result<Speed> {
    let rows: usize = events.batches.iter().map(|batch| batch.rows.num_rows()).sum();
    let mut speed = Speed::default();
    let (mut new, mut known, mut passes) = (Duration::ZERO, Duration::ZERO, 0u64);
    let begun = Instant::now();
    while passes == 0 || begun.elapsed() < time {
        let mut operator = SigmaOperator::new(config.sigma.clone())?;
        let mut out = Emitter::default();
        operator.process(&tidegate_rules::testcase::changes(files)?, &mut out);
        // Rules compile when they are first asked for: that is not what is measured.
        operator.rules();
        for (pass, spent) in [(0, &mut new), (1, &mut known)] {
            let start = thread_cpu();
            events.batches.iter().for_each(|batch| operator.process(batch, &mut out));
            *spent += thread_cpu().saturating_sub(start);
            let alerts = out.take_alerts().len();
            if pass == 0 {
                speed.alerts = alerts;
            }
        }
        passes += 1;
    }
    let each = |spent: Duration| spent.as_nanos() as f64 / (passes * rows as u64).max(1) as f64;
    (speed.new_ns, speed.known_ns) = (each(new), each(known));
    Ok(speed)
}

/// What single rules took.
#[derive(Debug, Clone, Default)]
struct Single {
    /// (index of the rule, nanoseconds an event), dearest first.
    rules: Vec<(usize, f64)>,
    /// Rules whose witness was found, on average over batches.
    candidates: f64,
    /// Values looked up, on average over events.
    values: f64,
    /// (id, reason)
    parked: Vec<(String, String)>,
}

fn single(set: &Arc<RuleSet>, events: &Events, time: Duration, config: &Config) -> Single {
    let mut evaluator = Evaluator::new(set.clone(), &config.sigma);
    let mut batches = 0u64;
    let begun = Instant::now();
    while batches == 0 || begun.elapsed() < time {
        for batch in &events.batches {
            evaluator.matches(batch);
            batches += 1;
        }
    }
    let counts = evaluator.counts();
    Single {
        rules: evaluator.rule_costs().into_iter().map(|cost| (cost.rule, cost.ns_per_event)).collect(),
        candidates: counts.candidates as f64 / batches.max(1) as f64,
        values: counts.values as f64 / counts.rows.max(1) as f64,
        parked: evaluator.parked().iter().map(|rule| (rule.rule_id.clone(), rule.reason.clone())).collect(),
    }
}

struct Report<'a> {
    events: &'a Events,
    rows: usize,
    set: &'a RuleSet,
    problems: usize,
    speed: Speed,
    single: Single,
    fields: Vec<FieldCost>,
    predicates: Vec<PredicateCost>,
}

impl Report<'_> {
    fn parked(&self) -> &[(String, String)] {
        &self.single.parked
    }

    fn title(&self, rule: usize) -> (&str, &str) {
        self.set.rules().get(rule).map_or(("", ""), |rule| (rule.head.title.as_str(), rule.head.file.as_str()))
    }

    fn as_json(&self, top: usize) -> serde_json::Value {
        let rules = self.single.rules.iter().take(top).map(|(rule, ns)| {
            let (title, file) = self.title(*rule);
            json!({"title": title, "file": file, "ns_per_event": ns})
        });
        let parked = self.parked().iter().map(|(rule, reason)| json!({"rule_id": rule, "reason": reason}));
        json!({
            "events": self.rows,
            "bytes": self.events.bytes,
            "rules": self.set.rules().len(),
            "predicates": self.set.predicates(),
            "problems": self.problems,
            "speed": self.speed,
            "alerts": self.speed.alerts,
            "candidates_per_batch": self.single.candidates,
            "values_per_event": self.single.values,
            "most_expensive_rules": rules.collect::<Vec<_>>(),
            "most_expensive_fields": self.fields.iter().take(top).collect::<Vec<_>>(),
            "most_expensive_predicates": self.predicates.iter().take(top).collect::<Vec<_>>(),
            "parked": parked.collect::<Vec<_>>(),
        })
    }

    fn print(&self, top: usize, style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
        let rules = self.set.rules().len();
        let skipped =
            if self.problems > 0 { format!(" ({} problems: rules check)", self.problems) } else { String::new() };
        writeln!(
            out,
            "{} events, {:.1} MB, in {} batches; {rules} rules{skipped}, {} distinct predicates",
            self.rows,
            self.events.bytes as f64 / 1e6,
            self.events.batches.len(),
            self.set.predicates(),
        )?;
        let line = |name: &str, ns: f64| {
            let rate = style.bold(&format!("{:>10.0}", 1e9 / ns.max(0.001)));
            format!("{name:20}{rate} events per CPU second  {:>8.2} µs an event", ns / 1e3)
        };
        writeln!(out, "{}", line("every value new", self.speed.new_ns))?;
        writeln!(out, "{}", line("every value known", self.speed.known_ns))?;
        writeln!(
            out,
            "{} alerts a pass; {:.1} of {rules} rules are candidates in a batch; {:.1} values looked up an event",
            self.speed.alerts, self.single.candidates, self.single.values,
        )?;
        self.print_rules(top, style, out)?;
        self.print_fields(top, style, out)?;
        for (rule, reason) in self.parked() {
            writeln!(out, "{} rule {rule} would be parked: {reason}", style.warning("warning:"))?;
        }
        Ok(())
    }

    fn print_rules(&self, top: usize, style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
        if self.single.rules.is_empty() {
            return Ok(());
        }
        let all: f64 = self.single.rules.iter().map(|(_, ns)| ns).sum();
        writeln!(out, "\n{}", style.bold("rules that cost most themselves     ns/event  share"))?;
        for (rule, ns) in self.single.rules.iter().take(top) {
            let (title, file) = self.title(*rule);
            writeln!(
                out,
                "  {:32} {ns:>10.1} {:>5.1}%  {}",
                cut(title, 32),
                100.0 * ns / all.max(f64::MIN_POSITIVE),
                style.faint(&cut(file, TEST_CHARS_MAX)),
            )?;
        }
        Ok(())
    }

    fn print_fields(&self, top: usize, style: Style, out: &mut dyn Write) -> anyhow::Result<()> {
        let weight = |cost: &FieldCost| cost.ns_per_value * cost.values as f64;
        let all: f64 = self.fields.iter().map(weight).sum();
        writeln!(out, "\n{}", style.bold("fields whose new values cost most   ns/value  share  values  predicates"))?;
        for cost in self.fields.iter().take(top) {
            writeln!(
                out,
                "  {:32} {:>10.0} {:>5.1}% {:>7} {:>11}",
                cut(&cost.field, 32),
                cost.ns_per_value,
                100.0 * weight(cost) / all.max(f64::MIN_POSITIVE),
                cost.values,
                cost.predicates,
            )?;
        }
        if self.predicates.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{}", style.bold("regular expressions that cost most  ns/value"))?;
        for cost in self.predicates.iter().take(top) {
            let text = format!("{} {}", cost.field, cost.test);
            writeln!(
                out,
                "  {:32} {:>10.0}  {}",
                cut(&cost.rules.join(", "), 32),
                cost.ns_per_value,
                cut(&text, TEST_CHARS_MAX)
            )?;
        }
        Ok(())
    }
}
