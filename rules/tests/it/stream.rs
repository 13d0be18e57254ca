//! Events with times of their own, as batches of a stream.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use serde_json::json;
use tidegate_events::{Alert, Dataset};
use tidegate_pipeline::{Emitter, LogBatch, Operator};
use tidegate_rules::{RulesConfig, SigmaOperator};

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: String,
    pub org: String,
    pub source: String,
    /// Seconds since the epoch.
    pub time: f64,
    /// Seconds since the epoch.
    pub received: f64,
    pub fields: Vec<(String, String)>,
}

/// An event of the source `test` at a time, received then.
pub fn at(id: &str, time: f64, fields: &[(&str, &str)]) -> Event {
    Event {
        id: id.into(),
        org: "acme".into(),
        source: "test".into(),
        time,
        received: time,
        fields: fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    }
}

/// A batch of events.
pub fn batch(events: &[Event]) -> LogBatch {
    let text = |of: &dyn Fn(&Event) -> Option<String>| -> ArrayRef {
        Arc::new(events.iter().map(of).collect::<StringArray>())
    };
    let times = |of: fn(&Event) -> f64| -> ArrayRef {
        let micros = events.iter().map(|event| (of(event) * 1e6).round() as i64);
        Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
    };
    let mut columns = vec![
        ("time".to_owned(), times(|event| event.time)),
        ("received_time".to_owned(), times(|event| event.received)),
        ("event_id".to_owned(), text(&|event| Some(event.id.clone()))),
        ("org_id".to_owned(), text(&|event| Some(event.org.clone()))),
        ("source".to_owned(), text(&|event| Some(event.source.clone()))),
    ];
    let mut names: Vec<&String> = events.iter().flat_map(|event| &event.fields).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    for name in names {
        let value = |event: &Event| event.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
        columns.push((name.clone(), text(&value)));
    }
    let rows = RecordBatch::try_from_iter(columns).expect("columns of one length");
    LogBatch { offset: 0, dataset: Dataset::SecurityEvents, rows }
}

/// An operator with rule files (tenant, text), the tenant `default` being everyone. Without optimisation correlations take longer
/// than they may: they are only stopped where a test sets the time.
pub fn operator(mut config: RulesConfig, files: &[(&str, &str)]) -> SigmaOperator {
    if config.correlation_event_ns_max == RulesConfig::default().correlation_event_ns_max {
        config.correlation_event_ns_max = u64::MAX;
    }
    let mut operator = SigmaOperator::new(config).expect("tables");
    load(&mut operator, files);
    let problems: Vec<String> = operator.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, [""; 0], "{files:?}");
    operator
}

/// Creates or replaces rule files; the name of each is its place.
pub fn load(operator: &mut SigmaOperator, files: &[(&str, &str)]) {
    let column = |of: &dyn Fn(usize, &(&str, &str)) -> String| -> ArrayRef {
        Arc::new(files.iter().enumerate().map(|(at, file)| Some(of(at, file))).collect::<StringArray>())
    };
    let columns = [
        ("org_id", column(&|_, file| file.0.into())),
        ("kind", column(&|_, _| "rule".into())),
        ("target_id", column(&|at, _| format!("{at}.yml"))),
        ("action", column(&|_, _| "create".into())),
        ("body", column(&|_, file| json!({ "text": file.1 }).to_string())),
    ];
    let rows = RecordBatch::try_from_iter(columns).expect("a batch");
    process(operator, &LogBatch { offset: 0, dataset: Dataset::Changes, rows });
}

/// The alerts of a batch.
pub fn process(operator: &mut SigmaOperator, batch: &LogBatch) -> Vec<Alert> {
    let mut out = Emitter::default();
    operator.process(batch, &mut out);
    out.take_alerts()
}

/// The alerts of events that come one by one.
pub fn alerts(operator: &mut SigmaOperator, events: &[Event]) -> Vec<Alert> {
    events.iter().flat_map(|event| process(operator, &batch(std::slice::from_ref(event)))).collect()
}
