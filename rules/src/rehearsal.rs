//! Rules tried on events: the operator of the run loop with rules of its own, which nobody else sees. For rules that are not in
//! force yet, and for events that are not new.

use std::collections::HashSet;
use std::sync::Arc;

use metrics::{NoopRecorder, with_local_recorder};
use tidegate_events::{Alert, Dataset};
use tidegate_pipeline::{Emitter, LogBatch, Operator};
use tracing::subscriber::{NoSubscriber, with_default};

use crate::compile::RuleSet;
use crate::compile::interner::{View, WITHIN, is_name_of};
use crate::config::RulesConfig;
use crate::error::RulesError;
use crate::eval::Parked;
use crate::operator::SigmaOperator;
use crate::problem::{RuleFile, RuleProblem};
use crate::raise::Events;
use crate::testcase::{AFTER_US, LATER_ID, changes, end_all, latest_time};

/// Core columns that alerts are made of, whatever the rules read.
const RAISED_FROM: [&str; 10] = [
    Dataset::TIME,
    "received_time",
    Dataset::EVENT_ID,
    Dataset::ORG_ID,
    "source",
    "actor",
    "asset",
    "resource",
    "resource_id",
    tidegate_events::REST_COLUMN,
];

/// One rule matched one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The row in the batch.
    pub row: usize,
    /// The id of the rule.
    pub rule_id: String,
    /// Its title.
    pub title: String,
    /// The fields that the rule names with the event's values, a JSON object as text.
    pub matched: String,
}

/// Rules that are rehearsed. What they do shows in no metric and no log line of the program.
#[derive(Debug)]
pub struct Rehearsal {
    operator: SigmaOperator,
    config: RulesConfig,
    latest: i64,
    next_offset: u64,
}

impl Rehearsal {
    /// Compiles the rules. Those that do not load are in [`problems`](Self::problems).
    ///
    /// # Errors
    /// [`RulesError::Table`] when a shipped table is broken, which is a bug; [`RulesError::Rows`] when the texts do not fit a
    /// batch.
    pub fn new(files: &[RuleFile], config: &RulesConfig) -> Result<Self, RulesError> {
        quietly(|| {
            let mut operator = SigmaOperator::new(config.clone())?;
            operator.process(&changes(files)?, &mut Emitter::default());
            operator.rules();
            Ok(Self { operator, config: config.clone(), latest: i64::MIN, next_offset: 0 })
        })
    }

    /// Why rules were not loaded.
    pub fn problems(&mut self) -> &[RuleProblem] {
        self.operator.problems()
    }

    /// The datasets that the rules look at.
    pub fn datasets(&mut self) -> Vec<Dataset> {
        let rules = self.operator.rules();
        let read = |dataset: &Dataset| rules.log_sources.iter().any(|routed| routed.dataset == *dataset);
        [Dataset::SecurityEvents, Dataset::CostEvents].into_iter().filter(read).collect()
    }

    /// The columns that have to be there for the rules to be what they are, and for their alerts.
    pub fn columns(&mut self) -> ColumnsRead {
        ColumnsRead::of(self.operator.rules())
    }

    /// The matches of a batch, without suppression and whatever correlations make of them.
    pub fn matches(&mut self, batch: &LogBatch) -> Vec<Match> {
        quietly(|| {
            let found = self.operator.matches(batch);
            let rules = self.operator.rules().clone();
            let mut events = Events::new(&batch.rows, &rules, &self.config);
            let shown = |(row, at): (usize, usize)| {
                let rule = rules.rules().get(at)?;
                let matched = events.matched(row, rule);
                Some(Match { row, rule_id: rule.head.id.clone(), title: rule.head.title.clone(), matched })
            };
            found.into_iter().filter_map(shown).collect()
        })
    }

    /// The alerts that the run loop would raise for a batch after those before it.
    pub fn process(&mut self, batch: &LogBatch) -> Vec<Alert> {
        self.latest = self.latest.max(latest_time(batch));
        self.next_offset = batch.next_offset();
        let mut out = Emitter::default();
        quietly(|| self.operator.process(batch, &mut out));
        out.take_alerts()
    }

    /// Lets time go on, so that every window ends: the alerts that come of that.
    ///
    /// # Errors
    /// [`RulesError::Rows`], never.
    pub fn end(&mut self) -> Result<Vec<Alert>, RulesError> {
        if self.latest == i64::MIN {
            return Ok(Vec::new());
        }
        let end = self.latest.saturating_add(AFTER_US);
        let mut out = Emitter::default();
        quietly(|| end_all(&mut self.operator, (end, self.next_offset), &mut out))?;
        let mut alerts = out.take_alerts();
        alerts.retain(|alert| alert.event_ids.iter().any(|id| id != LATER_ID));
        Ok(alerts)
    }

    /// How often rules matched in the batches that were processed.
    pub fn matched(&self) -> u64 {
        self.operator.matched()
    }

    /// Rules that took too much time.
    pub fn parked(&self) -> &[Parked] {
        self.operator.parked()
    }
}

/// Does something without a trace in the program's metrics and log.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    with_local_recorder(&NoopRecorder, || with_default(NoSubscriber::default(), work))
}

/// The columns that rules read.
#[derive(Debug, Clone, Default)]
pub struct ColumnsRead {
    names: Arc<HashSet<String>>,
    /// Those of them that stand for objects.
    objects: Arc<Vec<String>>,
    /// Keywords are searched in every column.
    all: bool,
}

impl ColumnsRead {
    fn of(rules: &RuleSet) -> Self {
        let mut names = HashSet::new();
        let mut all = false;
        for view in rules.views.iter().chain(&rules.correlations.views) {
            match view {
                View::Field(columns) => names.extend(columns.iter().cloned()),
                View::Keywords { .. } => all = true,
            }
        }
        let objects = names.iter().filter(|name| name.ends_with(WITHIN)).cloned().collect();
        Self { names: Arc::new(names), objects: Arc::new(objects), all }
    }

    /// Whether a column is read.
    pub fn has(&self, column: &str) -> bool {
        // Names of fields may have spaces that rules leave out ("Threat Name").
        let squeezed = || column.contains(' ') && self.names.contains(&column.replace(' ', ""));
        let within = || self.objects.iter().any(|name| is_name_of(name, column));
        self.all || RAISED_FROM.contains(&column) || self.names.contains(column) || squeezed() || within()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(text: &str) -> ColumnsRead {
        let mut rehearsal = Rehearsal::new(&[RuleFile::new("a", text)], &RulesConfig::default()).expect("tables");
        assert_eq!(rehearsal.problems(), [], "{text}");
        rehearsal.columns()
    }

    #[test]
    fn only_columns_that_rules_name_are_read() {
        let fields = columns(
            "title: A\nid: a\nlogsource: {product: aws}\ndetection: {s: {eventName: x, ThreatName|exists: true}, condition: s}\nfields: [shown]",
        );
        for name in ["eventName", "Threat Name", "shown", "time", "org_id", "source", "_rest"] {
            assert!(fields.has(name), "{name}");
        }
        assert!(!fields.has("other") && !fields.has("message"));
        assert!(columns("title: A\nlogsource: {product: aws}\ndetection: {s: [word], condition: s}").has("other"));
    }

    #[test]
    fn what_correlations_group_by_is_read() {
        let both = "title: A\nid: a\nlogsource: {product: aws}\ndetection: {s: {eventName: x}, condition: s}\n---\n\
                    title: B\ncorrelation: {type: value_count, rules: [a], group-by: [user], timespan: 5m, condition: {field: region, gte: 3}}";
        let read = columns(both);
        assert!(read.has("user") && read.has("region") && !read.has("other"));
    }
}
