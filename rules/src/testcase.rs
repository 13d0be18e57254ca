//! Test cases of rules: events that go through the real operator, and the alerts that must come of them.
//!
//! A case says what it expects as JSON:
//!
//! ```json
//! {"source": "cloudtrail", "dataset": "security_events", "hits": [0, 2]}
//! ```
//!
//! `hits` are the events (from 0, in the order in which they are given) that stand behind an alert. Correlations and
//! suppression are told apart by `alerts` instead: each member names what must hold of one alert, and there must be no other.
//!
//! ```json
//! {"alerts": [{"rule": "many-failures", "level": "high", "group": "user=alice", "events": [0, 1, 2], "count": 3}]}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tidegate_events::{Alert, Dataset};
use tidegate_pipeline::keys::DEFAULT_ORG;
use tidegate_pipeline::registry::{Action, Change, changes_to_batch};
use tidegate_pipeline::{Emitter, LogBatch, Operator};

use crate::config::RulesConfig;
use crate::error::RulesError;
use crate::operator::SigmaOperator;
use crate::problem::{RuleFile, RuleProblem};

/// How long after the last event all windows are taken to be over, in microseconds: 400 days, longer than any window.
pub(crate) const AFTER_US: i64 = 400 * 86_400 * 1_000_000;
/// How much later it is each time when not all of them are decided yet.
const AFTER_STEP_US: i64 = 1_000_000;

/// What must come of the events of a case.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The `source` that the events are sent with; without it they are recognised by their shape.
    #[serde(default)]
    pub source: Option<String>,
    /// The table that they are sent to: `security_events` or `cost_events`; by default cost for CSV, security for JSON.
    #[serde(default)]
    pub dataset: Option<String>,
    /// The events behind the alerts, all of them together.
    #[serde(default)]
    pub hits: Option<BTreeSet<usize>>,
    /// The alerts, in any order.
    #[serde(default)]
    pub alerts: Option<Vec<ExpectedAlert>>,
}

/// What must hold of one alert. What is left out may be anything.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedAlert {
    /// The id of the rule, or its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Its level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Its group key: `user=alice, host=a`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The events behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<BTreeSet<usize>>,
    /// How many events it counts; more than `events` when ids were left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
    /// Fields that it shows, each with its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<Map<String, Value>>,
}

impl Expected {
    /// Reads the JSON of a case.
    ///
    /// # Errors
    /// What is wrong with it, for the author of the case.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        expected.dataset()?;
        if expected.hits.is_none() && expected.alerts.is_none() {
            return Err("it has neither \"hits\" nor \"alerts\"; write \"hits\": [] when nothing may match".into());
        }
        Ok(expected)
    }

    /// The table that the events are sent to, if the case says.
    ///
    /// # Errors
    /// When it is none that takes events.
    pub fn dataset(&self) -> Result<Option<Dataset>, String> {
        let Some(name) = &self.dataset else { return Ok(None) };
        let dataset = Dataset::from_table_name(name);
        match dataset.filter(|dataset| matches!(dataset, Dataset::SecurityEvents | Dataset::CostEvents)) {
            Some(dataset) => Ok(Some(dataset)),
            None => Err(format!("events cannot be sent to {name:?}, only to security_events and cost_events")),
        }
    }

    /// What would have made the case pass, as JSON text: written anew in the form that the case has.
    pub fn rewritten(&self, raised: &Raised) -> String {
        let mut object = Map::new();
        if let Some(source) = &self.source {
            object.insert("source".into(), json!(source));
        }
        if let Some(dataset) = &self.dataset {
            object.insert("dataset".into(), json!(dataset));
        }
        let hits_tell_all = self.alerts.is_none() && (self.hits.is_some() || raised.is_one_alert_an_event());
        if hits_tell_all {
            object.insert("hits".into(), json!(raised.hits()));
        } else {
            object.insert("alerts".into(), json!(raised.alerts));
        }
        let members: Vec<String> =
            object.iter().map(|(name, value)| format!("{}: {}", json!(name), line(value))).collect();
        format!("{{{}}}\n", members.join(", "))
    }
}

/// JSON in one line with a space after each comma and colon.
fn line(value: &Value) -> String {
    match value {
        Value::Array(items) if items.iter().all(Value::is_object) && !items.is_empty() => {
            let items: Vec<String> = items.iter().map(|item| format!("  {}", line(item))).collect();
            format!("[\n{}\n]", items.join(",\n"))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(line).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| format!("{}: {}", json!(name), line(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        scalar => scalar.to_string(),
    }
}

/// What came of the events of a case.
#[derive(Debug, Clone, Default)]
pub struct Raised {
    /// The alerts in full, in the order in which they were raised.
    pub full: Vec<Alert>,
    /// The same, as a case would expect them.
    pub alerts: Vec<ExpectedAlert>,
    /// Why rules of the case were not loaded, or what of them was ignored.
    pub problems: Vec<RuleProblem>,
    /// Rules that took too much time.
    pub parked: Vec<crate::Parked>,
}

impl Raised {
    /// Runs rules over batches, in order, as the run loop would; then time goes on, so that every window ends. `event_of` says which event of the case an event id is.
    ///
    /// # Errors
    /// [`RulesError::Table`] when a shipped table is broken, which is a bug; [`RulesError::Rows`] when the rules do not fit a batch.
    pub fn run(
        rules: &[RuleFile],
        batches: &[LogBatch],
        event_of: &BTreeMap<String, usize>,
        config: &RulesConfig,
    ) -> Result<Self, RulesError> {
        let mut operator = SigmaOperator::new(config.clone())?;
        let mut out = Emitter::default();
        operator.process(&changes(rules)?, &mut out);
        let mut latest = i64::MIN;
        for batch in batches {
            operator.process(batch, &mut out);
            latest = latest.max(latest_time(batch));
        }
        if latest > i64::MIN {
            let end = latest.saturating_add(AFTER_US);
            let next = batches.last().map_or(0, LogBatch::next_offset);
            end_all(&mut operator, (end, next), &mut out)?;
        }
        let mut full = out.take_alerts();
        full.retain(|alert| alert.event_ids.iter().any(|id| id != LATER_ID));
        let alerts = full.iter().map(|alert| seen(alert, event_of)).collect();
        Ok(Self { full, alerts, problems: operator.problems().to_vec(), parked: operator.parked().to_vec() })
    }

    /// The events behind all alerts.
    pub fn hits(&self) -> BTreeSet<usize> {
        self.alerts.iter().filter_map(|alert| alert.events.as_ref()).flatten().copied().collect()
    }

    fn is_one_alert_an_event(&self) -> bool {
        self.alerts.iter().all(|alert| alert.count == Some(1)) && self.hits().len() == self.alerts.len()
    }

    /// How this differs from what was expected; empty when the case passes.
    pub fn differences(&self, expected: &Expected) -> Vec<Difference> {
        let mut differences = Vec::new();
        if let Some(wanted) = &expected.hits {
            let hits = self.hits();
            let missing = wanted.difference(&hits).map(|event| Difference::MissedEvent { event: *event });
            differences.extend(missing);
            for event in hits.difference(wanted) {
                let behind =
                    |alert: &&ExpectedAlert| alert.events.as_ref().is_some_and(|events| events.contains(event));
                let rules = self.alerts.iter().zip(&self.full).filter(|(alert, _)| behind(alert));
                let rules: BTreeSet<String> = rules.map(|(_, alert)| alert.title.clone()).collect();
                differences.push(Difference::UnexpectedEvent { event: *event, rules: rules.into_iter().collect() });
            }
        }
        if let Some(wanted) = &expected.alerts {
            self.compare(wanted, &mut differences);
        }
        differences
    }

    fn compare(&self, wanted: &[ExpectedAlert], differences: &mut Vec<Difference>) {
        let mut left: Vec<usize> = (0..self.alerts.len()).collect();
        let mut unmet = Vec::new();
        for wanted in wanted {
            match left.iter().position(|at| self.meets(*at, wanted)) {
                Some(at) => drop(left.remove(at)),
                None => unmet.push(wanted),
            }
        }
        for wanted in unmet {
            // An alert of the same rule is probably the one that was meant.
            let near = left.iter().position(|at| wanted.rule.is_some() && self.is_of(*at, wanted));
            let near = near.map(|at| left.remove(at)).and_then(|at| self.alerts.get(at)).cloned();
            differences.push(match near {
                Some(raised) => Difference::OtherAlert { wanted: wanted.clone(), raised },
                None => Difference::MissedAlert { wanted: wanted.clone() },
            });
        }
        for raised in left.into_iter().filter_map(|at| self.alerts.get(at)) {
            differences.push(Difference::UnexpectedAlert { raised: raised.clone() });
        }
    }

    fn is_of(&self, at: usize, wanted: &ExpectedAlert) -> bool {
        let Some(alert) = self.full.get(at) else { return false };
        wanted.rule.as_ref().is_none_or(|rule| *rule == alert.rule_id || *rule == alert.title)
    }

    fn meets(&self, at: usize, wanted: &ExpectedAlert) -> bool {
        fn same<T: PartialEq>(wanted: &Option<T>, raised: &Option<T>) -> bool {
            wanted.is_none() || wanted == raised
        }
        let Some(raised) = self.alerts.get(at) else { return false };
        let shows = |(name, value): (&String, &Value)| {
            raised.matched.as_ref().is_some_and(|matched| matched.get(name) == Some(value))
        };
        let group = wanted.group.as_deref().is_none_or(|group| group == raised.group.as_deref().unwrap_or_default());
        self.is_of(at, wanted)
            && same(&wanted.level, &raised.level)
            && group
            && same(&wanted.events, &raised.events)
            && same(&wanted.count, &raised.count)
            && wanted.matched.iter().flatten().all(shows)
    }
}

/// One thing that is not as a case expects it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// No alert stands on an event.
    MissedEvent {
        /// Which.
        event: usize,
    },
    /// An alert stands on an event that must not match.
    UnexpectedEvent {
        /// Which.
        event: usize,
        /// The titles of the rules that matched it.
        rules: Vec<String>,
    },
    /// There is no such alert.
    MissedAlert {
        /// Which.
        wanted: ExpectedAlert,
    },
    /// An alert of the rule was raised, but another one.
    OtherAlert {
        /// What was expected.
        wanted: ExpectedAlert,
        /// What was raised.
        raised: ExpectedAlert,
    },
    /// An alert that the case does not expect.
    UnexpectedAlert {
        /// Which.
        raised: ExpectedAlert,
    },
}

/// An alert as a case would expect it.
fn seen(alert: &Alert, event_of: &BTreeMap<String, usize>) -> ExpectedAlert {
    let matched = serde_json::from_str::<Map<String, Value>>(&alert.matched).unwrap_or_default();
    ExpectedAlert {
        rule: Some(alert.rule_id.clone()),
        level: Some(alert.level.as_str().to_owned()),
        group: Some(alert.group_key.clone()).filter(|group| !group.is_empty()),
        events: Some(alert.event_ids.iter().filter_map(|id| event_of.get(id)).copied().collect()),
        count: Some(alert.event_count),
        matched: Some(matched),
    }
}

/// The rules as the rows of `changes` that put them in force.
pub fn changes(rules: &[RuleFile]) -> Result<LogBatch, RulesError> {
    let change = |(at, file): (usize, &RuleFile)| Change {
        time_us: 0,
        change_id: format!("rule-{at}"),
        org_id: file.org_id.clone().unwrap_or_else(|| DEFAULT_ORG.to_owned()),
        actor: "local".to_owned(),
        kind: "rule".to_owned(),
        target_id: file.name.clone(),
        action: Action::Create,
        body: json!({"text": file.text}),
    };
    let changes: Vec<Change> = rules.iter().enumerate().map(change).collect();
    let rows = changes_to_batch(&changes).map_err(|error| RulesError::Rows(error.to_string()))?;
    Ok(LogBatch { offset: 0, dataset: Dataset::Changes, rows })
}

/// The id of the event that ends all windows.
pub(crate) const LATER_ID: &str = "end of the case";

/// Lets time go on from a moment (µs) until every window is decided; the first offset of the events that say so.
pub(crate) fn end_all(
    operator: &mut SigmaOperator,
    (mut end, mut offset): (i64, u64),
    out: &mut Emitter,
) -> Result<(), RulesError> {
    loop {
        operator.process(&later_event(end, offset)?, out);
        if !operator.is_behind() {
            break;
        }
        (end, offset) = (end.saturating_add(AFTER_STEP_US), offset.saturating_add(1));
    }
    operator.advance(end, out);
    Ok(())
}

/// An event that no rule is for, at a time: windows close when events go on.
fn later_event(time: i64, offset: u64) -> Result<LogBatch, RulesError> {
    use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
    let times = || Arc::new(TimestampMicrosecondArray::from_iter_values([time]).with_timezone("UTC")) as ArrayRef;
    let text = |text: &str| Arc::new(StringArray::from_iter_values([text])) as ArrayRef;
    let columns = [
        (Dataset::TIME, times()),
        ("received_time", times()),
        (Dataset::EVENT_ID, text(LATER_ID)),
        (Dataset::ORG_ID, text(DEFAULT_ORG)),
        ("source", text("end-of-the-case")),
    ];
    let rows = RecordBatch::try_from_iter(columns).map_err(|error| RulesError::Rows(error.to_string()))?;
    Ok(LogBatch { offset, dataset: Dataset::SecurityEvents, rows })
}

/// The time of the latest event of a batch.
pub(crate) fn latest_time(batch: &LogBatch) -> i64 {
    use arrow::array::AsArray;
    use arrow::datatypes::TimestampMicrosecondType;
    let times = batch.rows.column_by_name(Dataset::TIME);
    let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
    times.and_then(arrow::compute::max).unwrap_or(i64::MIN)
}
