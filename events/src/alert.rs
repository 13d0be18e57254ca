//! Alerts as plain values, and as rows of the `alerts` dataset.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::error::ArrowError;

use crate::dataset::Dataset;

/// How grave an alert is: Sigma's five levels, which are OCSF's `severity_id` 1 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Worth knowing, not acting on.
    Informational = 1,
    /// Rarely worth acting on alone.
    Low = 2,
    /// Should be looked at.
    Medium = 3,
    /// Should be looked at soon.
    High = 4,
    /// Should be looked at now.
    Critical = 5,
}

impl Level {
    /// The name that Sigma uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Informational, Self::Low, Self::Medium, Self::High, Self::Critical]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| format!("no such level: {text:?} (informational, low, medium, high, critical)"))
    }
}

/// One alert, as an operator emits it. Times are microseconds since the epoch, UTC.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    /// See [`crate::alert_id`].
    pub alert_id: String,
    /// The tenant.
    pub org_id: String,
    /// The `source` of the event that completed the match.
    pub source: String,
    /// The Sigma `id`, or the name of a rule without one.
    pub rule_id: String,
    /// The Sigma `title`.
    pub title: String,
    /// The Sigma `level`; a rule without one is `medium`.
    pub level: Level,
    /// The Sigma `tags` (`attack.t1003.001`).
    pub tags: Vec<String>,
    /// What the alert is about, when the rule groups: `field=value` pairs joined by `, `. Empty otherwise.
    pub group_key: String,
    /// Time of the first event behind the alert.
    pub first_time: i64,
    /// Time of the last event behind the alert.
    pub last_time: i64,
    /// Ids of the events behind the alert, bounded.
    pub event_ids: Vec<String>,
    /// How many events are behind it.
    pub event_count: i64,
    /// Who acted, from the event's core column.
    pub actor: Option<String>,
    /// On which asset, from the event's core column.
    pub asset: Option<String>,
    /// On which resource, from the event's core column.
    pub resource: Option<String>,
    /// One sentence for people.
    pub message: String,
    /// The fields that matched and their values, a JSON object as text.
    pub matched: String,
    /// When the alert counts what went on after another one: the `alert_id` of that one, the first of the row.
    pub continues: Option<String>,
}

impl Alert {
    /// An alert of one event of which no more is known than these.
    pub fn new(alert_id: impl Into<String>, org_id: impl Into<String>) -> Self {
        Self {
            alert_id: alert_id.into(),
            org_id: org_id.into(),
            source: String::new(),
            rule_id: String::new(),
            title: String::new(),
            level: Level::Medium,
            tags: Vec::new(),
            group_key: String::new(),
            first_time: 0,
            last_time: 0,
            event_ids: Vec::new(),
            event_count: 1,
            actor: None,
            asset: None,
            resource: None,
            message: String::new(),
            matched: "{}".to_owned(),
            continues: None,
        }
    }
}

/// The alerts as a batch of [`Dataset::Alerts`]; alert `i` gets `seq = first_seq + i`, and `received_us` as receive time.
///
/// # Errors
/// Never for alerts that fit in memory; Arrow's own error otherwise.
pub fn alerts_to_batch(alerts: &[Alert], first_seq: u64, received_us: i64) -> Result<RecordBatch, ArrowError> {
    let text =
        |of: fn(&Alert) -> Option<&str>| -> ArrayRef { Arc::new(alerts.iter().map(of).collect::<StringArray>()) };
    let times = |of: fn(&Alert) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(alerts.iter().map(of)).with_timezone("UTC"))
    };
    let texts = |of: fn(&Alert) -> &[String]| -> ArrayRef {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for alert in alerts {
            lists.append_value(of(alert).iter().map(Some));
        }
        Arc::new(lists.finish())
    };
    let received: ArrayRef =
        Arc::new(TimestampMicrosecondArray::from_value(received_us, alerts.len()).with_timezone("UTC"));
    let seq: ArrayRef =
        Arc::new(Int64Array::from_iter_values((0..alerts.len()).map(|at| (first_seq + at as u64) as i64)));
    let severity: ArrayRef = Arc::new(Int32Array::from_iter_values(alerts.iter().map(|alert| alert.level as i32)));
    let count: ArrayRef = Arc::new(Int64Array::from_iter_values(alerts.iter().map(|alert| alert.event_count)));
    let columns = vec![
        times(|alert| alert.last_time),
        received,
        text(|alert| Some(&alert.alert_id)),
        text(|alert| Some(&alert.org_id)),
        text(|alert| Some(&alert.source)),
        seq,
        text(|alert| Some(&alert.alert_id)),
        text(|alert| Some(&alert.rule_id)),
        text(|alert| Some(&alert.title)),
        text(|alert| Some(alert.level.as_str())),
        severity,
        texts(|alert| &alert.tags),
        text(|alert| Some(&alert.group_key)),
        times(|alert| alert.first_time),
        times(|alert| alert.last_time),
        texts(|alert| &alert.event_ids),
        count,
        text(|alert| alert.actor.as_deref()),
        text(|alert| alert.asset.as_deref()),
        text(|alert| alert.resource.as_deref()),
        text(|alert| Some(&alert.message)),
        text(|alert| Some(&alert.matched)),
        text(|alert| alert.continues.as_deref()),
    ];
    RecordBatch::try_new(Dataset::Alerts.core_schema(), columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_alerts_has_the_core_schema_and_counts_seq() {
        let (tags, event_ids) = (vec!["attack.t1078".into()], vec!["e".into()]);
        let alert = Alert { level: Level::High, tags, event_ids, ..Alert::new("a", "acme") };
        let batch = alerts_to_batch(&[alert.clone(), alert], 7, 3).expect("a batch");
        assert_eq!(batch.schema(), Dataset::Alerts.core_schema());
        let seq = batch.column_by_name("seq").expect("seq").clone();
        assert_eq!(seq.as_any().downcast_ref::<Int64Array>().expect("ints").values(), &[7, 8]);
    }

    #[test]
    fn levels_parse_what_they_print() {
        for level in ["informational", "low", "medium", "high", "critical"] {
            assert_eq!(level.parse::<Level>().expect("a level").to_string(), level);
        }
        assert!("HIGH!".parse::<Level>().is_err());
    }
}
