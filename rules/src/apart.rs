//! One evaluator for all tenants, and one of its own for a tenant whose events are what makes a rule slow that all share.
//!
//! An evaluator parks what takes too long, for all whose events it sees. Where that is a rule or a filter for everyone, it is tried on
//! the events of each tenant of the batch, for the time that it takes: a tenant on whose events it is slow is seen by an evaluator of
//! its own from then on, in which the rule is parked, and for the others it runs again. If it is slow for all, it stays parked for
//! all. So one tenant's events cost only that tenant its detections.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::take_record_batch;
use tidegate_events::{Dataset, REST_COLUMN};
use tidegate_pipeline::LogBatch;

use crate::compile::RuleSet;
use crate::compile::interner::{View, is_name_of};
use crate::config::RulesConfig;
use crate::eval::{Counts, Evaluator, Parked, is_searched};
use crate::panicked::attempt;

/// The most tenants with an evaluator of their own: each remembers values of its own.
pub(crate) const APART_MAX: usize = 8;
/// The most tenants of a batch whose events a slow rule is tried on: half of them those whose events have the most text that it
/// reads, half those with the longest in one event.
const TRIED_MAX: usize = 8;
/// The most rows of one tenant that it is tried on: those with the most text.
const TRIED_ROWS: usize = 512;
/// How often it is tried, if that does not take longer than this.
const TRIES: usize = 4;
const TRIED_TIME: Duration = Duration::from_millis(25);
/// How many times as many rows it is tried on as before, while that is not long.
const MORE_ROWS: usize = 8;
/// It is slow on the events of those on whose events it takes at least one part in so many of the longest time.
const NEAR_PART: u128 = 4;

/// The evaluators.
#[derive(Debug)]
pub(crate) struct Evaluators {
    pub(crate) config: RulesConfig,
    /// For all who have none of their own.
    shared: Evaluator,
    pub(crate) apart: Vec<(Arc<str>, Evaluator)>,
    /// How many of the rules that `shared` parked were looked into.
    looked_into: usize,
    parked: Vec<Parked>,
    /// What was done by evaluators that are no more.
    pub(crate) done: Counts,
}

impl Evaluators {
    pub fn new(shared: Evaluator, config: &RulesConfig) -> Self {
        Self {
            config: config.clone(),
            shared,
            apart: Vec::new(),
            looked_into: 0,
            parked: Vec::new(),
            done: Counts::default(),
        }
    }

    /// The rules.
    pub fn rules(&self) -> &Arc<RuleSet> {
        self.shared.rules()
    }

    /// Puts other rules in force. What is parked and asks the same among them stays so: who changes another rule has not made it
    /// cheaper. What is left of the old ones is handed back.
    pub fn replace(&mut self, mut new: Evaluator) -> Vec<Evaluator> {
        let rules = new.rules().clone();
        let mut done_with = Vec::new();
        for (org_id, mut own) in std::mem::take(&mut self.apart) {
            let parked = own.parked_in(&rules);
            if parked.is_empty() {
                done_with.push(own);
                continue;
            }
            let mut next = Evaluator::new(rules.clone(), &self.config);
            next.park(&parked);
            done_with.push(own.replace_with(next));
            self.apart.push((org_id, own));
        }
        new.park(&self.shared.parked_in(&rules));
        done_with.push(self.shared.replace_with(new));
        self.looked_into = self.shared.parked_units().len();
        self.done = Counts::default();
        self.tell();
        done_with
    }

    /// Charges a rule for what telling of its match in an event of a tenant took beside the evaluation.
    pub fn charge(&mut self, org_id: &str, rule: usize, ns: u64) {
        let own = self.apart.iter_mut().find(|(own, _)| **own == *org_id);
        own.map_or(&mut self.shared, |(_, own)| own).charge(rule, ns);
    }

    /// Rules and filters that are parked: those of a tenant, and those for everyone that are parked for one, with its name.
    pub fn parked(&self) -> &[Parked] {
        &self.parked
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        let apart = self.apart.iter().map(|(_, own)| own.counts());
        apart.fold(sum(self.done, self.shared.counts()), sum)
    }

    /// How many values are remembered.
    pub fn remembered(&self) -> usize {
        self.shared.remembered() + self.apart.iter().map(|(_, own)| own.remembered()).sum::<usize>()
    }

    /// The matches of a batch: see [`Evaluator::matches`].
    pub fn matches(&mut self, batch: &LogBatch) -> Vec<(usize, usize)> {
        let found = self.evaluate(batch);
        let of_apart: usize = self.apart.iter().map(|(_, own)| own.parked().len()).sum();
        if self.shared.parked().len() + of_apart != self.parked.len() {
            self.look_into(batch);
            self.tell();
        }
        found
    }

    /// The matches of a batch, in which each tenant's rows are looked at by its evaluator.
    pub(crate) fn evaluate(&mut self, batch: &LogBatch) -> Vec<(usize, usize)> {
        let Some(orgs) = orgs(&batch.rows).filter(|_| !self.apart.is_empty()) else { return self.guarded(None, batch) };
        let mut parts: Vec<Vec<u64>> = vec![Vec::new(); self.apart.len()];
        let mut others = Vec::new();
        for (row, org_id) in (0..).zip(orgs.iter()) {
            let own = self.apart.iter().position(|(own, _)| org_id == Some(&**own));
            own.and_then(|own| parts.get_mut(own)).unwrap_or(&mut others).push(row);
        }
        if others.len() == orgs.len() {
            return self.guarded(None, batch);
        }
        let mut found = Vec::new();
        let own = parts.into_iter().enumerate().map(|(at, places)| (Some(at), places));
        for (at, places) in std::iter::once((None, others)).chain(own) {
            let Some(part) = part_of(batch, &places) else { continue };
            let matches = self.guarded(at, &part);
            found.extend(matches.into_iter().filter_map(|(row, rule)| Some((*places.get(row)? as usize, rule))));
        }
        found.sort_unstable();
        found
    }

    /// The matches of one evaluator: that of the tenant with this number, or the shared one.
    fn guarded(&mut self, at: Option<usize>, batch: &LogBatch) -> Vec<(usize, usize)> {
        let evaluator = self.of_mut(at);
        let before = evaluator.counts();
        match attempt(|| evaluator.matches(batch)) {
            Ok(found) => found,
            Err(panic) => self.recover(at, before, batch, panic),
        }
    }

    /// The evaluator of the tenant with this number, or the shared one.
    pub(crate) fn of(&self, at: Option<usize>) -> &Evaluator {
        at.and_then(|at| self.apart.get(at)).map_or(&self.shared, |(_, own)| own)
    }

    pub(crate) fn of_mut(&mut self, at: Option<usize>) -> &mut Evaluator {
        at.and_then(|at| self.apart.get_mut(at)).map_or(&mut self.shared, |(_, own)| own)
    }

    /// Puts an evaluator in the place of one.
    pub(crate) fn put(&mut self, at: Option<usize>, evaluator: Evaluator) {
        *self.of_mut(at) = evaluator;
        self.settled();
    }

    /// What is parked now needs no look into it.
    pub(crate) fn settled(&mut self) {
        self.looked_into = self.shared.parked_units().len();
        self.tell();
    }

    /// Finds out for whom rules and filters are slow that were just parked for all.
    fn look_into(&mut self, batch: &LogBatch) {
        let rules = self.rules().clone();
        // Whom, which rule, and why.
        let mut culprits: Vec<(Arc<str>, usize, String)> = Vec::new();
        let new = self.shared.parked_units().iter().skip(self.looked_into);
        for unit in new.copied().filter(|unit| rules.unit_org(*unit).is_none()) {
            let elsewhere = |own: &&(Arc<str>, Evaluator)| own.1.parked_units().contains(&unit);
            if self.apart.iter().filter(elsewhere).count() >= 2 {
                // It is slow for whoever it is tried on.
                continue;
            }
            // To try it is no reason to end: if it panics it does so elsewhere too.
            let slow_for = |alone| attempt(|| slow_for(alone, batch, &self.config)).unwrap_or_default();
            let slow = rules.alone(unit).map(slow_for).unwrap_or_default();
            let reason = self.shared.reason(unit).unwrap_or_default();
            culprits.extend(slow.into_iter().map(|org_id| (org_id, unit, reason.to_owned())));
        }
        self.looked_into = self.shared.parked_units().len();
        culprits.retain(|(org_id, ..)| self.apart.iter().all(|(own, _)| own != org_id));
        culprits.sort();
        let tenants = culprits.chunk_by(|(left, ..), (right, ..)| left == right);
        if culprits.is_empty() || self.apart.len() + tenants.clone().count() > APART_MAX {
            return;
        }
        for of_tenant in tenants {
            let Some((org_id, ..)) = of_tenant.first() else { continue };
            tracing::warn!(%org_id, "a rule for everyone is slow on the events of this tenant, which is looked at apart from now on");
            let mut own = Evaluator::new(rules.clone(), &self.config);
            let parked: Vec<(usize, String)> =
                of_tenant.iter().map(|(_, unit, reason)| (*unit, reason.clone())).collect();
            own.park(&parked);
            self.apart.push((org_id.clone(), own));
        }
        // For the others they run again; what is slow for them too is parked again.
        self.done = sum(self.done, self.shared.counts());
        let mut stays = self.shared.parked_in(&rules);
        stays.retain(|(unit, _)| culprits.iter().all(|(_, culprit, _)| culprit != unit));
        let mut new = Evaluator::new(rules, &self.config);
        new.park(&stays);
        self.shared.replace_with(new);
        self.looked_into = self.shared.parked_units().len();
    }

    fn tell(&mut self) {
        self.parked = self.shared.parked().to_vec();
        for (org_id, own) in &self.apart {
            let of_tenant = |parked: &Parked| Parked {
                org_id: parked.org_id.clone().or_else(|| Some(org_id.clone())),
                ..parked.clone()
            };
            self.parked.extend(own.parked().iter().map(of_tenant));
        }
    }
}

pub(crate) fn sum(left: Counts, right: Counts) -> Counts {
    Counts {
        rows: left.rows + right.rows,
        values: left.values + right.values,
        decided: left.decided + right.decided,
        candidates: left.candidates + right.candidates,
        filtered: left.filtered + right.filtered,
    }
}

pub(crate) fn orgs(rows: &RecordBatch) -> Option<&StringArray> {
    rows.column_by_name(Dataset::ORG_ID)?.as_string_opt::<i32>()
}

/// Some rows as a batch; `None` when there are none.
pub(crate) fn part_of(batch: &LogBatch, places: &[u64]) -> Option<LogBatch> {
    let rows = match places.len() == batch.rows.num_rows() {
        true => batch.rows.clone(),
        false => take_record_batch(&batch.rows, &UInt64Array::from(places.to_vec())).ok()?,
    };
    (!places.is_empty()).then_some(LogBatch { offset: batch.offset, dataset: batch.dataset, rows })
}

/// The tenants of a batch on whose events a rule is slow; none when it is slow on those of all of several.
fn slow_for(rule: RuleSet, batch: &LogBatch, config: &RulesConfig) -> Vec<Arc<str>> {
    let config = RulesConfig { memo_values_max: TRIED_ROWS, ..config.clone() };
    let Some(orgs) = orgs(&batch.rows) else { return Vec::new() };
    let bytes = bytes_read(&rule, &batch.rows);
    // The rows of each tenant with the bytes of each.
    let mut tenants: BTreeMap<&str, Vec<(usize, u64)>> = BTreeMap::new();
    for ((row, org_id), bytes) in (0..).zip(orgs.iter()).zip(bytes) {
        org_id.into_iter().for_each(|org_id| tenants.entry(org_id).or_default().push((bytes, row)));
    }
    let mut tenants: Vec<(&str, Vec<(usize, u64)>)> = tenants.into_iter().collect();
    tenants.iter_mut().for_each(|(_, own)| own.sort_by_key(|(bytes, _)| Reverse(*bytes)));
    let of_longest = |own: &[(usize, u64)]| own.first().map_or(0, |(bytes, _)| *bytes);
    tenants.sort_by_key(|(_, own)| Reverse(of_longest(own)));
    let mut others = tenants.split_off(tenants.len().min(TRIED_MAX / 2));
    others.sort_by_key(|(_, own)| Reverse(own.iter().map(|(bytes, _)| *bytes).sum::<usize>()));
    tenants.extend(others.into_iter().take(TRIED_MAX / 2));
    let rule = Arc::new(rule);
    let mut costs: Vec<(&str, u128)> = Vec::new();
    for (org_id, own) in tenants {
        let places: Vec<u64> = own.into_iter().take(TRIED_ROWS).map(|(_, row)| row).collect();
        let Some(part) = part_of(batch, &places) else { continue };
        costs.push((org_id, cost_of(&rule, &part, &config)));
    }
    let most = costs.iter().map(|(_, cost)| *cost).max().unwrap_or_default();
    let slow = |cost: &&(&str, u128)| cost.1 > u128::from(config.rule_event_ns_max) && cost.1 >= most / NEAR_PART;
    let culprits: Vec<Arc<str>> = costs.iter().filter(slow).map(|(org_id, _)| Arc::from(*org_id)).collect();
    if culprits.len() >= 2 && culprits.len() == costs.len() { Vec::new() } else { culprits }
}

/// The bytes of text in each row that rules read.
fn bytes_read(rules: &RuleSet, rows: &RecordBatch) -> Vec<usize> {
    let is_read = |name: &str| {
        rules.views.iter().any(|view| match view {
            View::Keywords { .. } => is_searched(name),
            View::Field(names) => names.iter().any(|own| is_name_of(own, name)),
        })
    };
    let mut bytes = vec![0; rows.num_rows()];
    for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
        if is_read(field.name()) || field.name() == REST_COLUMN {
            bytes.iter_mut().enumerate().for_each(|(row, bytes)| *bytes += text_bytes(column, row));
        }
    }
    bytes
}

fn text_bytes(column: &ArrayRef, row: usize) -> usize {
    if let Some(texts) = column.as_string_opt::<i32>() {
        return if texts.is_valid(row) { texts.value(row).len() } else { 0 };
    }
    let Some(lists) = column.as_list_opt::<i32>().filter(|lists| lists.is_valid(row)) else { return 0 };
    let items = lists.value(row);
    (0..items.len()).map(|item| items.as_string_opt::<i32>().map_or(1, |items| items.value(item).len())).sum()
}

/// Nanoseconds that a rule takes for one of some events. What values cost, not what a batch does: they are known the second
/// time. The best of some tries counts: a thread may lose its core. A few events are enough when they are large.
fn cost_of(rules: &Arc<RuleSet>, events: &LogBatch, config: &RulesConfig) -> u128 {
    let all = events.rows.num_rows();
    let (begun, mut rows, mut tries, mut best) = (Instant::now(), 1, TRIES, u128::MAX);
    while tries > 0 {
        let part = LogBatch { rows: events.rows.slice(0, rows.min(all)), ..events.clone() };
        let mut evaluator = Evaluator::new(rules.clone(), config);
        evaluator.make_ready();
        evaluator.give_up_after(TRIED_TIME.as_nanos() as u64);
        let mut timed = || {
            let started = Instant::now();
            evaluator.matches(&part);
            started.elapsed()
        };
        let new = timed();
        let known = if new < TRIED_TIME { timed() } else { Duration::ZERO };
        let parked = !evaluator.parked().is_empty();
        let cost = (if parked { new } else { new.saturating_sub(known) }).as_nanos() / rows.min(all).max(1) as u128;
        if rows < all && new < TRIED_TIME && !parked {
            rows *= MORE_ROWS;
            continue;
        }
        best = best.min(cost);
        tries = if parked || begun.elapsed() > TRIED_TIME { 0 } else { tries - 1 };
    }
    best
}
