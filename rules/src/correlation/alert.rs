//! What an alert of a correlation says.

use std::collections::BTreeMap;

use rsigma_parser::CorrelationType;
use serde_json::{Map, Value, json};
use tidegate_events::{Alert, alert_id};

use crate::correlation::entry::Entry;
use crate::correlation::group::{Completing, Fire};
use crate::correlation::set::Correlation;
use crate::datetime::write_time;
use crate::group_key;

/// The most bytes of one value of a group.
const VALUE_BYTES_MAX: usize = 240;

/// Appends a value to the key of a group.
pub(crate) fn push_value(key: &mut Vec<u8>, value: &str) {
    let mut cut = String::new();
    let value = if value.len() <= VALUE_BYTES_MAX {
        value
    } else {
        let kept = value.get(..value.floor_char_boundary(VALUE_BYTES_MAX - 40)).unwrap_or_default();
        cut.push_str(kept);
        cut.push_str(&format!("…{:032x}", group_key::hash(value)));
        &cut
    };
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

/// The alert of a window that fired.
pub(crate) fn alert(
    correlation: &Correlation,
    org_id: &str,
    key: &[u8],
    (fire, window): (&Fire, &[Entry]),
    completing: &Completing,
    event_ids_max: usize,
) -> Alert {
    let group_key = group_text(correlation, key);
    let latest = window.get(window.len().saturating_sub(event_ids_max)..).unwrap_or_default();
    let mut event_ids: Vec<String> = latest.iter().map(|entry| entry.id.text()).collect();
    if correlation.definition.rules.len() > 1 {
        // One event may match several of the rules.
        let mut seen = std::collections::HashSet::new();
        event_ids.retain(|id| seen.insert(id.clone()));
    }
    let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    let time = |entry: Option<&Entry>| entry.map_or(fire.at, |entry| entry.time);
    Alert {
        alert_id: alert_id(org_id, &correlation.head.id, &group_key, &fire.at.to_string()),
        org_id: org_id.to_owned(),
        source: completing.source.to_string(),
        rule_id: correlation.head.id.clone(),
        title: correlation.head.title.clone(),
        level: correlation.head.level,
        tags: correlation.head.tags.clone(),
        first_time: time(window.first()),
        last_time: time(window.last()),
        event_ids,
        event_count: window.len() as i64,
        actor: text(&completing.actor),
        asset: text(&completing.asset),
        resource: text(&completing.resource),
        message: message(correlation, fire, &group_key),
        matched: matched(correlation, key, fire, window),
        group_key,
        continues: None,
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
