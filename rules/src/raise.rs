//! From matches to alerts.

use std::fmt::Write;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::TimestampMicrosecondType;
use rustc_hash::FxHashMap;
use tidegate_events::{Alert, Dataset, alert_id};

use crate::compile::program::ViewId;
use crate::compile::{Rule, RuleSet};
use crate::config::RulesConfig;
use crate::eval::{searched_values, values_of};
use crate::fold::fold;

/// The most fields shown in one alert.
const FIELDS_MAX: usize = 32;

/// The alerts of one batch.
#[derive(Debug, Default)]
pub(crate) struct Raised {
    /// In the order of rows, then rules.
    pub alerts: Vec<Alert>,
    /// Matches that are counted in an earlier alert of the same rule and tenant.
    pub folded: u64,
}

/// One alert for each match, but at most `alerts_per_batch_max` for one rule and tenant: the last of these counts the rest.
pub(crate) fn raise(rules: &RuleSet, rows: &RecordBatch, matches: &[(usize, usize)], config: &RulesConfig) -> Raised {
    let mut raised = Raised::default();
    if matches.is_empty() {
        return raised;
    }
    let event = Events::new(rows);
    // (rule, tenant) → how many alerts, and which was the last.
    let mut counts: FxHashMap<(usize, &str), (usize, usize)> = FxHashMap::default();
    for (row, at) in matches {
        let Some(rule) = rules.rules.get(*at) else { continue };
        let (count, last) = counts.entry((*at, event.org_id(*row))).or_default();
        if *count >= config.alerts_per_batch_max.max(1) {
            if let Some(alert) = raised.alerts.get_mut(*last) {
                event.fold(*row, alert, config);
                raised.folded += 1;
            }
            continue;
        }
        *count += 1;
        *last = raised.alerts.len();
        raised.alerts.push(event.alert(*row, rule, rules, config));
    }
    raised
}

/// The core columns of a batch that alerts take over.
struct Events<'a> {
    rows: &'a RecordBatch,
    event_id: Option<&'a StringArray>,
    org_id: Option<&'a StringArray>,
    source: Option<&'a StringArray>,
    actor: Option<&'a StringArray>,
    asset: Option<&'a StringArray>,
    resource: Option<&'a StringArray>,
}

impl<'a> Events<'a> {
    fn new(rows: &'a RecordBatch) -> Self {
        let text = |name: &str| rows.column_by_name(name).and_then(|array| array.as_string_opt::<i32>());
        Self {
            rows,
            event_id: text(Dataset::EVENT_ID),
            org_id: text(Dataset::ORG_ID),
            source: text("source"),
            actor: text("actor"),
            asset: text("asset"),
            // Cost rows name their resource so.
            resource: text("resource").or_else(|| text("resource_id")),
        }
    }

    fn org_id(&self, row: usize) -> &'a str {
        value(self.org_id, row).unwrap_or_default()
    }

    fn time(&self, row: usize) -> i64 {
        let column = self.rows.column_by_name(Dataset::TIME);
        let times = column.and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>());
        times.filter(|times| times.is_valid(row)).map_or(0, |times| times.value(row))
    }

    fn alert(&self, row: usize, rule: &Rule, rules: &RuleSet, config: &RulesConfig) -> Alert {
        let event_id = value(self.event_id, row).unwrap_or_default();
        let owned = |column| value(column, row).map(str::to_owned);
        let shown = if rule.shown.is_empty() { &rule.fields } else { &rule.shown };
        Alert {
            alert_id: alert_id(self.org_id(row), &rule.id, "", event_id),
            org_id: self.org_id(row).to_owned(),
            source: value(self.source, row).unwrap_or_default().to_owned(),
            rule_id: rule.id.clone(),
            title: rule.title.clone(),
            level: rule.level,
            tags: rule.tags.clone(),
            group_key: String::new(),
            first_time: self.time(row),
            last_time: self.time(row),
            event_ids: vec![event_id.to_owned()],
            event_count: 1,
            actor: owned(self.actor),
            asset: owned(self.asset),
            resource: owned(self.resource),
            message: message(&rule.title, &self.fields(row, shown, rules, 64)),
            matched: self.matched(row, rule, rules, config),
            continues: None,
        }
    }

    /// The fields of the rule with the event's values; for keywords, the columns that hold one.
    fn matched(&self, row: usize, rule: &Rule, rules: &RuleSet, config: &RulesConfig) -> String {
        let bytes_max = config.alert_value_bytes_max;
        let mut shown = self.fields(row, &rule.fields, rules, bytes_max);
        if !rule.keywords.is_empty() {
            let holds = |value: &str| rule.keywords.iter().any(|keyword| fold(value).contains(keyword.as_str()));
            shown.extend(searched_values(self.rows, row, bytes_max, holds).into_iter().take(FIELDS_MAX));
        }
        matched(&shown)
    }

    fn fold(&self, row: usize, alert: &mut Alert, config: &RulesConfig) {
        let time = self.time(row);
        alert.event_count += 1;
        alert.first_time = alert.first_time.min(time);
        alert.last_time = alert.last_time.max(time);
        if alert.event_ids.len() < config.alert_event_ids_max {
            alert.event_ids.extend(value(self.event_id, row).map(str::to_owned));
        }
    }

    /// The fields that have a value in the row, in the order of the rule.
    fn fields<'r>(
        &self,
        row: usize,
        fields: &'r [(String, ViewId)],
        rules: &RuleSet,
        bytes_max: usize,
    ) -> Vec<(&'r str, Vec<String>)> {
        let mut shown = Vec::new();
        for (name, view) in fields.iter().take(FIELDS_MAX) {
            let Some(view) = rules.views.get(*view as usize) else { continue };
            let values = values_of(self.rows, view, row, bytes_max);
            if !values.is_empty() {
                shown.push((name.as_str(), values));
            }
        }
        shown
    }
}

fn value(column: Option<&StringArray>, row: usize) -> Option<&str> {
    column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

/// `Title: Field=value, Field=value`.
fn message(title: &str, fields: &[(&str, Vec<String>)]) -> String {
    let mut message = title.to_owned();
    for (at, (name, values)) in fields.iter().take(5).enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(message, "{} {name}={}", if at == 0 { ":" } else { "," }, values.join("|"));
    }
    message
}

/// `{"Field":"value","ListField":["a","b"]}`.
fn matched(fields: &[(&str, Vec<String>)]) -> String {
    let mut object = serde_json::Map::new();
    for (name, values) in fields {
        let value = match values.as_slice() {
            [only] => serde_json::Value::from(only.as_str()),
            several => serde_json::Value::from(several.to_vec()),
        };
        object.insert((*name).to_owned(), value);
    }
    serde_json::Value::Object(object).to_string()
}
