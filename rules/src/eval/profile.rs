//! What rules and predicates cost over given events: for `tidegate rules bench`.

use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashSet;
use tidegate_pipeline::LogBatch;

use super::decider::{Decider, Scratch};
use super::trial::Trial;
use super::watch::Watch;
use super::{Column, Evaluator, is_searched};
use crate::compile::RuleSet;
use crate::compile::interner::{View, is_name_of};
use crate::compile::matcher::Matcher;
use crate::compile::program::PredicateId;
use crate::explain::test;

/// The most distinct values of one field that are timed, and of one predicate.
const VALUES_MAX: usize = 5_000;
/// Rows of a batch that are looked at to find out whether a log source has events.
const ROWS_LOOKED_AT_MAX: usize = 500;
/// The most rules that are named for one predicate.
const RULES_NAMED_MAX: usize = 5;

/// What one rule cost an evaluator, beyond what it shares with others: its program, and its regular expressions.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RuleCost {
    /// Its index in [`RuleSet::rules`].
    #[serde(skip)]
    pub rule: usize,
    /// Nanoseconds, on average over all events that the evaluator saw. From samples.
    pub ns_per_event: f64,
}

/// What it costs to decide a value of one field against all predicates on it, when the value was not met before.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FieldCost {
    /// The column that is looked at first.
    pub field: String,
    /// How many predicates there are on it.
    pub predicates: usize,
    /// Distinct values that were timed.
    pub values: usize,
    /// Nanoseconds for one.
    pub ns_per_value: f64,
}

/// What it costs to decide one predicate that cannot be decided together with others: a regular expression.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PredicateCost {
    /// The column that is looked at first.
    pub field: String,
    /// What is asked.
    pub test: String,
    /// Titles of rules that ask it, the first ones.
    pub rules: Vec<String>,
    /// Distinct values that were timed.
    pub values: usize,
    /// Nanoseconds for one.
    pub ns_per_value: f64,
}

impl Evaluator {
    /// What each rule cost, dearest first; those that were never tried are left out.
    pub fn rule_costs(&self) -> Vec<RuleCost> {
        let (spent, rows) = self.budget.spent();
        let rules = spent.take(self.rules.rules.len()).enumerate().filter(|(_, ns)| *ns > 0);
        let cost = |(rule, ns): (usize, u64)| RuleCost { rule, ns_per_event: ns as f64 / rows.max(1) as f64 };
        let mut costs: Vec<RuleCost> = rules.map(cost).collect();
        costs.sort_by(|left, right| right.ns_per_event.total_cmp(&left.ns_per_event));
        costs
    }
}

/// Times the predicates of a rule set over the distinct values of batches, field by field. Both lists dearest first.
pub fn field_costs(set: &Arc<RuleSet>, batches: &[LogBatch]) -> (Vec<FieldCost>, Vec<PredicateCost>) {
    let by_view = set.by_view();
    let values = distinct(set, batches);
    let (mut fields, mut predicates) = (Vec::new(), Vec::new());
    for ((view, ids), values) in set.views.iter().zip(&by_view).zip(&values) {
        if ids.is_empty() || values.is_empty() {
            continue;
        }
        let field = match view {
            View::Field(columns) => {
                let plain = columns.iter().find(|name| !name.starts_with(tidegate_events::RAW_PREFIX));
                plain.cloned().unwrap_or_default()
            }
            View::Keywords { log_source } => {
                let name = set.log_sources.get(*log_source).map_or("", |routed| routed.name.as_str());
                format!("any text of {}", name.trim_matches('/'))
            }
        };
        let own = |id: &PredicateId| Some((*id, set.predicates.get(*id as usize)?));
        let mut decider = Decider::new(ids.iter().filter_map(own));
        let ns_per_value = timed(values, &mut decider);
        fields.push(FieldCost { field: field.clone(), predicates: ids.len(), values: values.len(), ns_per_value });
        let regexes = ids.iter().filter_map(own).filter(|(_, own)| matches!(own.matcher, Matcher::Regex(_)));
        for (id, predicate) in regexes {
            let mut alone = Decider::new(std::iter::once((id, predicate)));
            let users = set.users.get(id as usize).into_iter().flatten();
            let rules = users.filter_map(|rule| set.rules.get(*rule as usize)).take(RULES_NAMED_MAX);
            predicates.push(PredicateCost {
                field: field.clone(),
                test: test(&predicate.matcher),
                rules: rules.map(|rule| rule.head.title.clone()).collect(),
                values: values.len(),
                ns_per_value: timed(values, &mut alone),
            });
        }
    }
    // What a field costs is for all of its values, what is dear to decide and rare costs little.
    fields.sort_by(|left, right| {
        let all = |cost: &FieldCost| cost.ns_per_value * cost.values as f64;
        all(right).total_cmp(&all(left))
    });
    predicates.sort_by(|left, right| right.ns_per_value.total_cmp(&left.ns_per_value));
    (fields, predicates)
}

/// The distinct values of each view, bounded. What is in no column of its own is left out.
fn distinct(set: &Arc<RuleSet>, batches: &[LogBatch]) -> Vec<Vec<String>> {
    let mut met: Vec<FxHashSet<String>> = vec![FxHashSet::default(); set.views.len()];
    let mut buffer = String::new();
    let seen: Vec<bool> = set.views.iter().map(|view| is_read(set, view, batches)).collect();
    for batch in batches {
        let columns: Vec<(&str, Column<'_>)> = named_columns(batch);
        for ((met, view), _) in met.iter_mut().zip(&set.views).zip(&seen).filter(|(_, seen)| **seen) {
            let own = columns.iter().filter(|(name, _)| match view {
                View::Field(names) => names.iter().any(|own| is_name_of(own, name)),
                View::Keywords { .. } => is_searched(name),
            });
            for (_, column) in own {
                for row in 0..batch.rows.num_rows() {
                    if met.len() >= VALUES_MAX {
                        break;
                    }
                    column.read(row, &mut buffer, &mut |value| {
                        if !met.contains(value) {
                            met.insert(value.to_owned());
                        }
                    });
                }
            }
        }
    }
    let sorted = |met: FxHashSet<String>| {
        let mut values: Vec<String> = met.into_iter().collect();
        values.sort_unstable();
        values
    };
    met.into_iter().map(sorted).collect()
}

/// Whether any event is read for a view: keywords only for events of their log source.
fn is_read(set: &Arc<RuleSet>, view: &View, batches: &[LogBatch]) -> bool {
    let View::Keywords { log_source } = view else { return true };
    let Some(rule) = set.rules.iter().position(|rule| rule.log_source == *log_source) else { return false };
    batches.iter().any(|batch| {
        let rows: Vec<usize> = (0..batch.rows.num_rows().min(ROWS_LOOKED_AT_MAX)).collect();
        let Some(mut trial) = Trial::new(set.clone(), rule, 0) else { return false };
        trial.batch(batch, &rows);
        trial.finish().covered > 0
    })
}

fn named_columns(batch: &LogBatch) -> Vec<(&str, Column<'_>)> {
    let fields = batch.rows.schema_ref().fields().iter().zip(batch.rows.columns());
    fields.filter_map(|(field, array)| Some((field.name().as_str(), Column::new(array)?))).collect()
}

/// Nanoseconds a value. The values are gone over once before the clock starts, so that caches and lazy automata are warm.
fn timed(values: &[String], decider: &mut Decider) -> f64 {
    // What is dear is measured to the end.
    let (mut scratch, mut out) = (Scratch::new(Watch::new(u64::MAX)), Vec::new());
    let mut pass = |values: &[String]| {
        for value in values {
            decider.decide(value, &mut scratch, &mut |_| {}, &mut out);
        }
        scratch.watch.timed.clear();
    };
    pass(values.get(..values.len().min(1_000)).unwrap_or_default());
    let begun = Instant::now();
    pass(values);
    begun.elapsed().as_nanos() as f64 / values.len().max(1) as f64
}
