//! What an alert of a correlation says.

use std::collections::BTreeMap;

use rsigma_parser::CorrelationType;
use serde_json::{Map, Value, json};
use tidegate_events::{Alert, alert_id};

use crate::correlation::completing::Completing;
use crate::correlation::entry::Entry;
use crate::correlation::group::{Fire, Group};
use crate::correlation::set::Correlation;
use crate::datetime::write_time;
use crate::group_key::{self, bounded};

/// The most bytes of one value of a group.
const VALUE_BYTES_MAX: usize = 240;

/// Appends a value to the key of a group.
pub(crate) fn push_value(key: &mut Vec<u8>, value: &str) {
    let value = bounded(value, VALUE_BYTES_MAX);
    key.push(value.len() as u8);
    key.extend_from_slice(value.as_bytes());
}

/// The values of a key.
pub(crate) fn values(mut key: &[u8]) -> Vec<&str> {
    let mut values = Vec::new();
    while let Some((length, rest)) = key.split_first() {
        let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
        values.push(std::str::from_utf8(value).unwrap_or_default());
        key = rest;
    }
    values
}

/// `field=value, field=value`.
pub(crate) fn group_text(correlation: &Correlation, key: &[u8]) -> String {
    let mut text = String::new();
    for (field, value) in correlation.definition.group_by.iter().zip(values(key)) {
        group_key::push_pair(&mut text, field, value);
    }
    text
}

/// A window that fired, as far as an alert says of it. The alert is made when it is wanted: of a million windows that end at once
/// most are only counted.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    /// The row that brought it.
    pub row: usize,
    /// Whether it comes before what the row itself matches: a window that was over.
    pub before: bool,
    /// Its correlation, by number.
    pub number: u32,
    /// The tenant.
    pub org_id: &'a str,
    correlation: &'a Correlation,
    key: &'a [u8],
    fire: &'a Fire,
    window: &'a [Entry],
    completing: &'a Completing,
}

impl<'a> Told<'a> {
    /// Of a group, for a correlation (its number too) and tenant; the row is that of who tells.
    pub(super) fn of(
        (correlation, number, org_id): (&'a Correlation, u32, &'a str),
        group: &'a Group,
        (fire, completing): (&'a Fire, &'a Completing),
    ) -> Self {
        let (key, window) = (&*group.key, group.window(fire));
        Self { row: 0, before: false, number, org_id, correlation, key, fire, window, completing }
    }

    /// The rule that the alert is of.
    pub fn rule_id(&self) -> &'a str {
        &self.correlation.head.id
    }

    /// The group, as the alert says it.
    pub fn group_key(&self) -> String {
        group_text(self.correlation, self.key)
    }

    /// The ids of so many of the latest events of the window.
    fn event_ids(&self, ids_max: usize) -> Vec<String> {
        let latest = self.window.get(self.window.len().saturating_sub(ids_max)..).unwrap_or_default();
        let mut event_ids: Vec<String> = latest.iter().map(|entry| entry.id.text()).collect();
        if self.correlation.definition.rules.len() > 1 {
            // One event may match several of the rules.
            let mut seen = std::collections::HashSet::new();
            event_ids.retain(|id| seen.insert(id.clone()));
        }
        event_ids
    }

    /// The times of the first and the last event.
    fn times(&self) -> (i64, i64) {
        let time = |entry: Option<&Entry>| entry.map_or(self.fire.at, |entry| entry.time);
        (time(self.window.first()), time(self.window.last()))
    }

    /// Counts the events in another alert of the rule.
    pub fn add_to(&self, alert: &mut Alert, event_ids_max: usize) {
        let (first_time, last_time) = self.times();
        alert.event_count = alert.event_count.saturating_add(self.window.len() as i64);
        alert.first_time = alert.first_time.min(first_time);
        alert.last_time = alert.last_time.max(last_time);
        let room = event_ids_max.saturating_sub(alert.event_ids.len());
        if room > 0 {
            alert.event_ids.extend(self.event_ids(event_ids_max).into_iter().take(room));
        }
    }

    /// The alert.
    pub fn alert(&self, event_ids_max: usize) -> Alert {
        let Self { org_id, correlation, key, fire, window, completing, .. } = *self;
        let group_key = self.group_key();
        let (first_time, last_time) = self.times();
        let [actor, asset, resource] = completing.about().map(|text| text.map(str::to_owned));
        Alert {
            alert_id: alert_id(org_id, &correlation.head.id, &group_key, &fire.at.to_string()),
            org_id: org_id.to_owned(),
            source: completing.source().to_owned(),
            rule_id: correlation.head.id.clone(),
            title: correlation.head.title.clone(),
            level: correlation.head.level,
            tags: correlation.head.tags.clone(),
            first_time,
            last_time,
            event_ids: self.event_ids(event_ids_max),
            event_count: window.len() as i64,
            actor,
            asset,
            resource,
            message: message(correlation, fire, &group_key),
            matched: matched(correlation, key, fire, window),
            group_key,
            continues: None,
        }
    }
}

/// `Title: 12 events within 5m, user=alice`.
fn message(correlation: &Correlation, fire: &Fire, group_key: &str) -> String {
    let definition = &correlation.definition;
    let value = fire.value.to_json();
    let field = definition.fields.join(", ");
    let measured = match definition.kind {
        CorrelationType::EventCount => format!("{value} events"),
        CorrelationType::ValueCount => format!("{value} values of {field}"),
        CorrelationType::Temporal => format!("{value} rules seen"),
        CorrelationType::TemporalOrdered => format!("{value} rules seen in order"),
        CorrelationType::ValueSum => format!("{field} adds up to {value}"),
        CorrelationType::ValueAvg => format!("{field} is {value} on average"),
        CorrelationType::ValueMedian => format!("the median of {field} is {value}"),
        CorrelationType::ValuePercentile => format!("percentile {} of {field} is {value}", definition.percentile),
    };
    let separator = if group_key.is_empty() { "" } else { ", " };
    format!("{}: {measured} within {}{separator}{group_key}", correlation.head.title, definition.span.1)
}

/// `{"group":{…},"value":12,"condition":">= 10","timespan":"5m"}`, and for temporal correlations `"rules"`: when each was
/// first seen in the window.
fn matched(correlation: &Correlation, key: &[u8], fire: &Fire, window: &[Entry]) -> String {
    let definition = &correlation.definition;
    let group: Map<String, Value> =
        definition.group_by.iter().zip(values(key)).map(|(field, value)| (field.clone(), value.into())).collect();
    let mut object = Map::new();
    object.insert("group".into(), group.into());
    object.insert("value".into(), fire.value.to_json());
    object.insert("condition".into(), definition.condition_text.as_str().into());
    object.insert("timespan".into(), definition.span.1.as_str().into());
    if !definition.fields.is_empty() {
        object.insert("field".into(), json!(definition.fields.join(", ")));
    }
    if matches!(definition.kind, CorrelationType::Temporal | CorrelationType::TemporalOrdered) {
        let mut first: BTreeMap<u16, i64> = BTreeMap::new();
        for entry in window {
            first.entry(entry.slot).or_insert(entry.time);
        }
        let rules: Map<String, Value> = first
            .into_iter()
            .filter_map(|(slot, time)| {
                let mut text = String::new();
                write_time(time, &mut text);
                Some((definition.rules.get(usize::from(slot))?.clone(), text.into()))
            })
            .collect();
        object.insert("rules".into(), rules.into());
    }
    Value::Object(object).to_string()
}
