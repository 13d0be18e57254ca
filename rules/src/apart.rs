//! One evaluator for all tenants, and one of its own for a tenant whose events are what makes a rule slow that all share.
//!
//! An evaluator parks what takes too long, for all whose events it sees. Where that is a rule for everyone, it is tried on the
//! events of each tenant of the batch, for the time that it takes: a tenant on whose events it is slow is seen by an evaluator of
//! its own from then on, which will park the rule for that tenant, and for the others it runs again. If it is slow for all, it
//! stays parked for all. So one tenant's events cost only that tenant its detections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use tidegate_events::Dataset;
use tidegate_pipeline::LogBatch;

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::eval::{Counts, Evaluator, Parked};
use crate::problem::RuleFile;

/// The most tenants with an evaluator of their own: each remembers values of its own.
const APART_MAX: usize = 8;
/// The most tenants of a batch whose events a slow rule is tried on: those with the most rows.
const TRIED_MAX: usize = 8;
/// The most rows of one tenant that it is tried on.
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
    config: RulesConfig,
    /// For all who have none of their own.
    shared: Evaluator,
    apart: Vec<(Arc<str>, Evaluator)>,
    /// How many of the rules that `shared` parked were looked into.
    looked_into: usize,
    parked: Vec<Parked>,
    /// What was done before `shared` was begun anew.
    done: Counts,
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

    /// Puts other rules in force, which nobody parked yet. What is left of the old ones is handed back.
    pub fn replace(&mut self, new: Evaluator) -> impl Iterator<Item = Evaluator> + use<> {
        let old = self.shared.replace_with(new);
        let apart = std::mem::take(&mut self.apart);
        (self.looked_into, self.parked, self.done) = (0, Vec::new(), Counts::default());
        std::iter::once(old).chain(apart.into_iter().map(|(_, evaluator)| evaluator))
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

    /// The matches of a batch: see [`Evaluator::matches`]. `text_of` gives the text of a rule file for everyone.
    pub fn matches(&mut self, batch: &LogBatch, text_of: &dyn Fn(&str) -> Option<String>) -> Vec<(usize, usize)> {
        let found = if self.apart.is_empty() { self.shared.matches(batch) } else { self.each(batch) };
        let of_apart: usize = self.apart.iter().map(|(_, own)| own.parked().len()).sum();
        if self.shared.parked().len() + of_apart != self.parked.len() {
            self.look_into(batch, text_of);
            self.tell();
        }
        found
    }

    /// The matches of a batch with rows of tenants that have an evaluator of their own.
    fn each(&mut self, batch: &LogBatch) -> Vec<(usize, usize)> {
        let Some(orgs) = orgs(&batch.rows) else { return self.shared.matches(batch) };
        let own = |org_id: &str| (0..orgs.len()).map(|row| orgs.is_valid(row) && orgs.value(row) == org_id).collect();
        let masks: Vec<Vec<bool>> = self.apart.iter().map(|(org_id, _)| own(org_id)).collect();
        if !masks.iter().flatten().any(|own| *own) {
            return self.shared.matches(batch);
        }
        let others = (0..orgs.len()).map(|row| !masks.iter().any(|mask| mask.get(row) == Some(&true))).collect();
        let mut found = Vec::new();
        let mut run = |evaluator: &mut Evaluator, mask: Vec<bool>| {
            let Some((part, places)) = part_of(batch, mask) else { return };
            let matches = evaluator.matches(&part);
            found.extend(matches.into_iter().filter_map(|(row, rule)| Some((*places.get(row)?, rule))));
        };
        run(&mut self.shared, others);
        for ((_, evaluator), mask) in self.apart.iter_mut().zip(masks) {
            run(evaluator, mask);
        }
        found.sort_unstable();
        found
    }

    /// Finds out for whom rules are slow that were just parked for all.
    fn look_into(&mut self, batch: &LogBatch, text_of: &dyn Fn(&str) -> Option<String>) {
        // Whom, which rule, and why.
        let mut culprits: Vec<(Arc<str>, usize, String)> = Vec::new();
        for parked in self.shared.parked().iter().skip(self.looked_into).filter(|parked| parked.org_id.is_none()) {
            let elsewhere =
                |own: &&(Arc<str>, Evaluator)| own.1.parked().iter().any(|own| own.rule_id == parked.rule_id);
            if self.apart.iter().filter(elsewhere).count() >= 2 {
                // It is slow for whoever it is tried on.
                continue;
            }
            let mut rules = self.rules().rules().iter();
            let Some(at) = rules.position(|rule| rule.head.org_id.is_none() && rule.head.id == parked.rule_id) else {
                continue;
            };
            let text = self.rules().rules().get(at).and_then(|rule| text_of(&rule.head.file));
            let slow = text.into_iter().flat_map(|text| slow_for(&text, batch, &self.config));
            culprits.extend(slow.map(|org_id| (org_id, at, parked.reason.clone())));
        }
        self.looked_into = self.shared.parked().len();
        culprits.retain(|(org_id, ..)| self.apart.iter().all(|(own, _)| own != org_id));
        culprits.sort();
        if culprits.is_empty() || self.apart.len() + culprits.len() > APART_MAX {
            return;
        }
        let rules = self.rules().clone();
        for (org_id, rule, reason) in culprits {
            if self.apart.last().is_none_or(|(own, _)| *own != org_id) {
                tracing::warn!(%org_id, "a rule for everyone is slow on the events of this tenant, which is looked at apart from now on");
                self.apart.push((org_id, Evaluator::new(rules.clone(), &self.config)));
            }
            if let Some((_, own)) = self.apart.last_mut() {
                own.park(rule, &reason);
            }
        }
        // For the others everything runs again; what is slow for them too is parked again.
        self.done = sum(self.done, self.shared.counts());
        self.shared.replace_rules(rules, &self.config);
        self.looked_into = 0;
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

fn sum(left: Counts, right: Counts) -> Counts {
    Counts {
        rows: left.rows + right.rows,
        values: left.values + right.values,
        decided: left.decided + right.decided,
        candidates: left.candidates + right.candidates,
        filtered: left.filtered + right.filtered,
    }
}

fn orgs(rows: &RecordBatch) -> Option<&StringArray> {
    rows.column_by_name(Dataset::ORG_ID)?.as_string_opt::<i32>()
}

/// The rows that a mask names, as a batch, with their places; `None` when there are none.
fn part_of(batch: &LogBatch, mask: Vec<bool>) -> Option<(LogBatch, Vec<usize>)> {
    let places: Vec<usize> = mask.iter().enumerate().filter(|(_, own)| **own).map(|(row, _)| row).collect();
    let rows = match places.len() == mask.len() {
        true => batch.rows.clone(),
        false => filter_record_batch(&batch.rows, &BooleanArray::from(mask)).ok()?,
    };
    (!places.is_empty()).then_some((LogBatch { offset: batch.offset, dataset: batch.dataset, rows }, places))
}

/// The tenants of a batch on whose events a rule is slow; none when it is slow on those of all of several.
fn slow_for(text: &str, batch: &LogBatch, config: &RulesConfig) -> Vec<Arc<str>> {
    let config = RulesConfig { memo_values_max: TRIED_ROWS, ..config.clone() };
    let Ok((rules, _)) = RuleSet::compile(&[RuleFile::new("rule", text)], &config) else { return Vec::new() };
    let (rules, Some(orgs)) = (Arc::new(rules), orgs(&batch.rows)) else { return Vec::new() };
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    orgs.iter().flatten().for_each(|org_id| *counts.entry(org_id).or_default() += 1);
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.truncate(TRIED_MAX);
    let mut costs: Vec<(&str, u128)> = Vec::new();
    for (org_id, _) in counts {
        let mut left = TRIED_ROWS;
        let own = |org: Option<&str>| {
            let counts = org == Some(org_id) && left > 0;
            left -= usize::from(counts);
            counts
        };
        let Some((part, _)) = part_of(batch, orgs.iter().map(own).collect()) else { continue };
        costs.push((org_id, cost_of(&rules, &part, &config)));
    }
    let most = costs.iter().map(|(_, cost)| *cost).max().unwrap_or_default();
    let slow = |cost: &&(&str, u128)| cost.1 > u128::from(config.rule_event_ns_max) && cost.1 >= most / NEAR_PART;
    let culprits: Vec<Arc<str>> = costs.iter().filter(slow).map(|(org_id, _)| Arc::from(*org_id)).collect();
    if culprits.len() >= 2 && culprits.len() == costs.len() { Vec::new() } else { culprits }
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
