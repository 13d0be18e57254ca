//! What an alert says: values of an event, put into words.

use std::fmt::Write;
use std::time::Instant;

use arrow::array::{Array, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::TimestampMicrosecondType;
use tidegate_events::{Alert, Dataset, alert_id};

use crate::compile::program::ViewId;
use crate::compile::{Rule, RuleSet};
use crate::config::RulesConfig;
use crate::group_key;
use crate::panicked::attempt;
use crate::proof::{Proof, prove};
use crate::shown::ShownRows;

/// The most fields shown in one alert.
const FIELDS_MAX: usize = 32;
/// What an alert may take before its rule pays for it: nanoseconds. A debug build takes many times as long.
const ALERT_NS_FREE: u64 = if cfg!(debug_assertions) { 64_000_000 } else { 1_000_000 };
/// How many of the longest values an alert may show in all.
const LONG_VALUES_MAX: usize = 16;
/// The most fields in a message, and the most bytes of each of their values.
const MESSAGE_FIELDS_MAX: usize = 5;
const MESSAGE_VALUE_BYTES_MAX: usize = 64;
/// The most values of one field in a group key.
const GROUP_VALUES_MAX: usize = 4;

/// Fields with their values in one event.
type Shown<'r> = Vec<(&'r str, Vec<String>)>;

/// When an event happened and came (µs).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// Its time.
    pub time: Option<i64>,
    /// The latest time that it can have, going by when it came.
    latest: i64,
    /// When it came; `i64::MIN` when that is not known.
    pub received: i64,
}

impl Moment {
    /// How far event time has come by it: an agent whose clock runs ahead does not say.
    pub fn reached(self) -> Option<i64> {
        self.time.filter(|time| *time <= self.latest)
    }

    /// Where windows are for it.
    pub fn placed(self) -> i64 {
        self.time.unwrap_or_default().min(self.latest)
    }
}

/// The events of a batch, as far as alerts are made of them.
pub(crate) struct Events<'a> {
    config: &'a RulesConfig,
    rules: &'a RuleSet,
    shown: ShownRows<'a>,
    times: Option<&'a TimestampMicrosecondArray>,
    received: Option<&'a TimestampMicrosecondArray>,
    event_id: Option<&'a StringArray>,
    org_id: Option<&'a StringArray>,
    source: Option<&'a StringArray>,
    actor: Option<&'a StringArray>,
    asset: Option<&'a StringArray>,
    resource: Option<&'a StringArray>,
    /// The row whose key by actor, asset and resource is in `entities`, and the hash of that key.
    entities_of: Option<(usize, u128)>,
    entities: String,
    /// The key by fields that a rule names, as it was made last.
    named: String,
    /// How long the alert took that was made last, if it was long.
    dear_ns: Option<u64>,
    /// Whether to say what an alert is about panicked.
    panicked: bool,
}

impl<'a> Events<'a> {
    pub fn new(rows: &'a RecordBatch, rules: &'a RuleSet, config: &'a RulesConfig) -> Self {
        let text = |name: &str| rows.column_by_name(name).and_then(|array| array.as_string_opt::<i32>());
        let times = |name: &str| {
            rows.column_by_name(name).and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>())
        };
        Self {
            config,
            rules,
            shown: ShownRows::new(rows, &rules.views),
            times: times(Dataset::TIME),
            received: times("received_time"),
            event_id: text(Dataset::EVENT_ID),
            org_id: text(Dataset::ORG_ID),
            source: text("source"),
            actor: text("actor"),
            asset: text("asset"),
            // Cost rows name their resource so.
            resource: text("resource").or_else(|| text("resource_id")),
            entities_of: None,
            entities: String::new(),
            named: String::new(),
            dear_ns: None,
            panicked: false,
        }
    }

    pub fn org_id(&self, row: usize) -> &'a str {
        value(self.org_id, row).unwrap_or_default()
    }

    pub fn event_id(&self, row: usize) -> &'a str {
        value(self.event_id, row).unwrap_or_default()
    }

    fn time(&self, row: usize) -> Option<i64> {
        self.times.filter(|times| times.is_valid(row)).map(|times| times.value(row))
    }

    /// When an event happened and came.
    pub fn moment(&self, row: usize, ahead_us: i64) -> Moment {
        let received = self.received.filter(|times| times.is_valid(row)).map(|times| times.value(row));
        let latest = received.map_or(i64::MAX, |received| received.saturating_add(ahead_us));
        Moment { time: self.time(row), latest, received: received.unwrap_or(i64::MIN) }
    }

    /// The hash of the key of the group that an event is in for a rule.
    pub fn group(&mut self, row: usize, rule: &Rule) -> u128 {
        let Some(fields) = &rule.group_by else { return self.entities(row) };
        self.named.clear();
        let (mut joined, mut buffer) = (String::new(), String::new());
        for (name, view) in fields {
            joined.clear();
            let mut count = 0;
            self.shown.visit(*view, row, &mut buffer, &mut |value| {
                count += 1;
                if count <= GROUP_VALUES_MAX {
                    joined.push_str(if count > 1 { "|" } else { "" });
                    joined.push_str(value);
                }
            });
            if count > 0 {
                group_key::push_pair(&mut self.named, name, &joined);
            }
        }
        group_key::hash(&self.named)
    }

    /// The key by actor, asset and resource: the same for every rule that matches the event.
    fn entities(&mut self, row: usize) -> u128 {
        if let Some((_, hash)) = self.entities_of.filter(|(of, _)| *of == row) {
            return hash;
        }
        self.entities.clear();
        for (name, column) in [("actor", self.actor), ("asset", self.asset), ("resource", self.resource)] {
            if let Some(value) = value(column, row) {
                group_key::push_pair(&mut self.entities, name, value);
            }
        }
        let hash = group_key::hash(&self.entities);
        self.entities_of = Some((row, hash));
        hash
    }

    /// The alert of a match. Its group's key is what [`group`](Self::group) made last.
    pub fn alert(&mut self, row: usize, rule: &Rule) -> Alert {
        let started = Instant::now();
        let alert = self.write_alert(row, rule);
        self.dear_ns = (started.elapsed().as_nanos() as u64).checked_sub(ALERT_NS_FREE);
        alert
    }

    /// How long the alert took that was made since this was last asked, if that was long.
    pub fn take_dear_ns(&mut self) -> Option<u64> {
        self.dear_ns.take()
    }

    /// Whether to say what an alert is about panicked since this was last asked.
    pub fn take_panicked(&mut self) -> bool {
        std::mem::take(&mut self.panicked)
    }

    /// What an alert says and shows of its event. It looks at all of the event again, by the rule: an alert that says no more than
    /// its title is better than none.
    fn told(&mut self, row: usize, rule: &Rule) -> (String, String) {
        let told = attempt(|| {
            #[cfg(test)]
            crate::fuse::blow(&rule.head.title, self.event_id(row));
            let proof = prove(self.rules, rule, &mut self.shown, row);
            let shown = if rule.shown.is_empty() { proof.fields.clone() } else { rule.shown.iter().collect() };
            let message = message(&rule.head.title, &self.fields(row, &shown, MESSAGE_VALUE_BYTES_MAX));
            (message, self.proved(row, proof))
        });
        told.unwrap_or_else(|_| {
            self.panicked = true;
            (rule.head.title.clone(), "{}".to_owned())
        })
    }

    fn write_alert(&mut self, row: usize, rule: &Rule) -> Alert {
        let event_id = self.event_id(row);
        let owned = |column| value(column, row).map(str::to_owned);
        let group_key = if rule.group_by.is_some() { &self.named } else { &self.entities }.clone();
        let (message, matched) = self.told(row, rule);
        let time = self.time(row).unwrap_or_default();
        Alert {
            alert_id: alert_id(self.org_id(row), &rule.head.id, &group_key, event_id),
            org_id: self.org_id(row).to_owned(),
            source: value(self.source, row).unwrap_or_default().to_owned(),
            rule_id: rule.head.id.clone(),
            title: rule.head.title.clone(),
            level: rule.head.level,
            tags: rule.head.tags.clone(),
            group_key,
            first_time: time,
            last_time: time,
            event_ids: vec![event_id.to_owned()],
            event_count: 1,
            actor: owned(self.actor),
            asset: owned(self.asset),
            resource: owned(self.resource),
            message,
            matched,
            continues: None,
        }
    }

    /// The fields of what the rule found in an event, with their values; for keywords, the columns that hold one.
    pub fn matched(&mut self, row: usize, rule: &Rule) -> String {
        let proof = prove(self.rules, rule, &mut self.shown, row);
        self.proved(row, proof)
    }

    fn proved(&mut self, row: usize, mut proof: Proof<'_>) -> String {
        let bytes_max = self.config.alert_value_bytes_max;
        let mut shown = self.fields(row, &proof.fields, bytes_max);
        if !proof.keywords.is_empty() {
            let holding = self.shown.searched(row, |value| proof.shown(value, bytes_max));
            shown.extend(holding.into_iter().take(FIELDS_MAX));
        }
        matched(&shown, bytes_max.saturating_mul(LONG_VALUES_MAX))
    }

    /// The fields that have a value in the row, in the order of the rule.
    fn fields<'r>(&mut self, row: usize, fields: &[&'r (String, ViewId)], bytes_max: usize) -> Shown<'r> {
        let mut shown = Vec::new();
        for (name, view) in fields.iter().take(FIELDS_MAX) {
            if shown.iter().any(|(known, _)| known == name) {
                continue;
            }
            let values = self.shown.values(*view, row, bytes_max);
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
    for (at, (name, values)) in fields.iter().take(MESSAGE_FIELDS_MAX).enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(message, "{} {name}={}", if at == 0 { ":" } else { "," }, values.join("|"));
    }
    message
}

/// `{"Field":"value","ListField":["a","b"]}`, of at most so many bytes of values: those past that are left out.
fn matched(fields: &[(&str, Vec<String>)], bytes_max: usize) -> String {
    let mut left = bytes_max;
    let mut object = serde_json::Map::new();
    for (name, values) in fields {
        let mut kept = Vec::new();
        for value in values {
            let Some(rest) = left.checked_sub(value.len()) else { break };
            left = rest;
            kept.push(serde_json::Value::from(value.as_str()));
        }
        let value = if kept.len() == 1 { kept.swap_remove(0) } else { kept.into() };
        object.insert((*name).to_owned(), value);
    }
    serde_json::Value::Object(object).to_string()
}
