//! Rules and a stream in, alerts and metrics out: the tables in `tests/runs/*.yml`. What is said there of a run holds when its events
//! come one by one, when they come at once, and when the state is saved and restored in between.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use serde_json::{Map, Value, json};
use tidegate_events::{Alert, Dataset};
use tidegate_pipeline::{LogBatch, Operator};
use tidegate_rules::{RulesConfig, SigmaOperator, metrics};

use crate::correlation::{base, correlation};
use crate::counted::Counted;
use crate::flatten::Events;
use crate::stream::process;
use crate::suppression::changes;

/// What must have a run: the parts of correlations and alerts that Sigma, the issue and the documents name.
const ITEMS: &str = "
    correlation/event_count correlation/value_count correlation/value_sum correlation/value_avg correlation/value_percentile
    correlation/value_median correlation/temporal correlation/temporal_ordered correlation/rules correlation/group-by
    correlation/aliases correlation/conditions correlation/generate correlation/chains correlation/extended
    correlation/sliding correlation/late correlation/defaults
    timespan/s timespan/m timespan/h timespan/d timespan/w timespan/M timespan/y
    bounds/groups bounds/events bounds/bytes bounds/unjudged bounds/sources bounds/saved bounds/files bounds/second
    bounds/suppressed
    counted/late counted/ungrouped counted/windows counted/rules counted/filtered
    silences/correlation silences/chain silences/whole
    windows/channels windows/forms windows/categories";

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    item: String,
    #[serde(default)]
    config: RulesConfig,
    /// Names of detections that match events whose field `k` has their name.
    #[serde(default)]
    base: Vec<String>,
    /// Sections of correlations, with the ids `c0`, `c1`, ….
    #[serde(default)]
    correlations: Vec<String>,
    /// Further documents for everyone.
    #[serde(default)]
    rules: String,
    /// Documents of the tenant `acme`.
    #[serde(default)]
    own: String,
    steps: Vec<Step>,
    /// What must be said of the alerts, in their order.
    alerts: Vec<Map<String, Value>>,
    /// A number, or a range as `[from, to]`.
    #[serde(default)]
    metrics: Map<String, Value>,
}

/// An event, or a change.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// The time of the event in seconds.
    #[serde(default)]
    at: f64,
    /// When it comes, in seconds; at its time if not said.
    received: Option<f64>,
    #[serde(default = "acme")]
    org: String,
    /// The source; `#` is the number of the repetition.
    #[serde(default = "test")]
    source: String,
    /// The id; `e` and the number of the event if not said.
    id: Option<String>,
    /// The event; `#` in a text is the number of the repetition.
    #[serde(default)]
    event: Option<Value>,
    /// How often, and with how many seconds between.
    #[serde(default = "once")]
    times: u32,
    #[serde(default)]
    apart: f64,
    /// A row of `changes`: kind, target, action, body.
    change: Option<(String, String, String, Value)>,
}

fn acme() -> String {
    "acme".into()
}

fn test() -> String {
    "test".into()
}

fn once() -> u32 {
    1
}

fn with_number(value: &Value, number: u32) -> Value {
    match value {
        Value::String(text) => text.replace('#', &number.to_string()).into(),
        Value::Array(items) => items.iter().map(|item| with_number(item, number)).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, member)| (name.clone(), with_number(member, number)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// One event of a run.
struct One {
    id: String,
    time: f64,
    received: f64,
    row: (String, String, Value),
}

/// A batch of events with the times that the table says.
fn batch(events: &[&One]) -> LogBatch {
    let rows = events.iter().map(|one| one.row.clone()).collect();
    let made = Events { dataset: Dataset::SecurityEvents, rows }.batch(0).rows;
    let times = |of: fn(&One) -> f64| -> ArrayRef {
        let micros = events.iter().map(|one| (of(one) * 1e6).round() as i64);
        Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
    };
    let schema = made.schema();
    let columns = schema.fields().iter().zip(made.columns()).map(|(field, array)| {
        let array = match field.name().as_str() {
            "time" => times(|one| one.time),
            "received_time" => times(|one| one.received),
            "event_id" => Arc::new(events.iter().map(|one| Some(one.id.as_str())).collect::<StringArray>()),
            _ => array.clone(),
        };
        (field.name().clone(), array)
    });
    let rows = RecordBatch::try_from_iter(columns.collect::<Vec<_>>()).expect("columns of one length");
    LogBatch { offset: 0, dataset: Dataset::SecurityEvents, rows }
}

impl Run {
    /// The rule files, as changes.
    fn files(&self) -> Vec<LogBatch> {
        let names: Vec<&str> = self.base.iter().map(String::as_str).collect();
        let one =
            |(number, section): (usize, &String)| correlation(section).replace("id: c\n", &format!("id: c{number}\n"));
        let shared = [base(&names), self.rules.clone(), self.correlations.iter().enumerate().map(one).collect()];
        let shared: Vec<&str> = shared.iter().map(|part| part.trim_start_matches("---\n")).collect();
        let shared: Vec<&str> = shared.into_iter().filter(|part| !part.is_empty()).collect();
        let files = [("default", shared.join("---\n")), ("acme", self.own.clone())];
        let file = |(org, text): &(&str, String)| {
            changes(&[(org, "rule", "r.yml", "create", json!({ "text": text }).to_string())])
        };
        files.iter().filter(|(_, text)| !text.is_empty()).map(file).collect()
    }

    /// Batches: an event or a change each, or all events between two changes at once.
    fn batches(&self, at_once: bool) -> Vec<LogBatch> {
        let (mut batches, mut waiting, mut count) = (Vec::new(), Vec::<One>::new(), 0);
        let flush = |waiting: &mut Vec<One>, batches: &mut Vec<LogBatch>| {
            let all: Vec<&One> = waiting.iter().collect();
            let size = if at_once { all.len().max(1) } else { 1 };
            batches.extend(all.chunks(size).map(batch));
            waiting.clear();
        };
        for step in &self.steps {
            if let Some((kind, target, action, body)) = &step.change {
                flush(&mut waiting, &mut batches);
                batches.push(changes(&[(
                    step.org.as_str(),
                    kind.as_str(),
                    target.as_str(),
                    action.as_str(),
                    body.to_string(),
                )]));
                continue;
            }
            let event = step.event.as_ref().unwrap_or_else(|| panic!("{}: a step without an event", self.item));
            for number in 0..step.times {
                let time = step.at + f64::from(number) * step.apart;
                let id = step.id.clone().unwrap_or_else(|| format!("e{count}"));
                let source = step.source.replace('#', &number.to_string());
                let row = (step.org.clone(), source, with_number(event, number));
                waiting.push(One { id, time, received: step.received.unwrap_or(time), row });
                count += 1;
            }
        }
        flush(&mut waiting, &mut batches);
        batches
    }

    /// The alerts of the batches; `restored` when the state is saved and restored after each, or after some of very many.
    fn alerts(&self, batches: &[LogBatch], restored: bool) -> Vec<Alert> {
        // Nothing is parked, however slow the machine is.
        let (rule_event_ns_max, correlation_event_ns_max) = (u64::MAX, u64::MAX);
        let config = RulesConfig { rule_event_ns_max, correlation_event_ns_max, ..self.config.clone() };
        let mut operator = SigmaOperator::new(config.clone()).expect("tables");
        for file in self.files() {
            process(&mut operator, &file);
        }
        assert_eq!(operator.problems(), [], "{self:?}");
        let mut alerts = Vec::new();
        let step = batches.len() / 24 + 1;
        for (place, batch) in batches.iter().enumerate() {
            alerts.extend(process(&mut operator, batch));
            if restored && place % step == 0 {
                let state = operator.save();
                operator = SigmaOperator::new(config.clone()).expect("tables");
                operator.restore(&state).expect("a state");
            }
        }
        operator.save();
        alerts
    }

    fn check(&self) {
        let counted = Counted::default();
        let alerts = counted.during(|| self.alerts(&self.batches(false), false));
        let shown: Vec<Value> = alerts.iter().map(shown).collect();
        let item = &self.item;
        assert_eq!(shown.len(), self.alerts.len(), "{item}: {shown:#?}");
        for (found, wanted) in shown.iter().zip(&self.alerts) {
            for (key, value) in wanted {
                assert_eq!(found.get(key), Some(value), "{item}: {key} of {found:#}");
            }
        }
        for (name, wanted) in &self.metrics {
            let found = counted.of(name).unwrap_or_else(|| panic!("{item}: there is no metric {name}"));
            let between = |wanted: &Value| match wanted {
                Value::Array(ends) => Some((ends.first()?.as_f64()?, ends.get(1)?.as_f64()?)),
                one => one.as_f64().map(|one| (one, one)),
            };
            let (from, to) = between(wanted).unwrap_or_else(|| panic!("{item}: {name} is to be {wanted}"));
            assert!((from..=to).contains(&found), "{item}: {name} is {found}, not {wanted}");
        }
        assert_eq!(self.alerts(&self.batches(true), false), alerts, "{item}: all at once");
        assert_eq!(self.alerts(&self.batches(false), true), alerts, "{item}: restored after every event");
    }
}

/// What a table can say of an alert.
fn shown(alert: &Alert) -> Value {
    let matched: Value = serde_json::from_str(&alert.matched).expect("JSON");
    json!({
        "rule": alert.rule_id,
        "org": alert.org_id,
        "group": alert.group_key,
        "level": alert.level.as_str(),
        "count": alert.event_count,
        "events": alert.event_ids.join(" "),
        "message": alert.message,
        "from": alert.first_time as f64 / 1e6,
        "to": alert.last_time as f64 / 1e6,
        "value": matched["value"],
        "condition": matched["condition"],
        "timespan": matched["timespan"],
        "matched": matched,
        "continues": alert.continues.is_some(),
    })
}

fn runs() -> Vec<Run> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("the tables").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| -> Vec<Run> {
        let text = fs::read_to_string(path).expect("text");
        yaml_serde::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    paths.iter().flat_map(read).collect()
}

#[test]
fn every_run_of_the_tables_raises_and_counts_what_it_says() {
    runs().iter().for_each(Run::check);
}

#[test]
fn every_item_has_a_run_and_every_metric_is_read_by_one() {
    let runs = runs();
    let wanted: BTreeSet<&str> = ITEMS.split_whitespace().collect();
    assert_eq!(runs.iter().map(|run| run.item.as_str()).collect::<BTreeSet<_>>(), wanted);
    let read: BTreeSet<String> =
        runs.iter().flat_map(|run| run.metrics.keys()).map(|name| format!("tidegate_rules_{name}")).collect();
    let names: BTreeSet<String> = metrics::NAMES
        .iter()
        // Parking goes by the clock: see `hogs`. Panics are bugs: see `blown` in the crate.
        .filter(|(name, kind, _)| {
            *kind != "histogram" && ![metrics::PARKED, metrics::PANICS, metrics::UNEVALUATED].contains(name)
        })
        .map(|(name, ..)| (*name).to_owned())
        .collect();
    assert_eq!(read, names);
}
