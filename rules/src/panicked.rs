//! Going on after a panic. What evaluates rules has bugs like any program, and a rule and an event that meet in one must cost
//! that rule its matches, and nobody else anything.
//!
//! One guard is around the evaluation of a batch: it costs nothing as long as nobody panics. After a panic nothing of the evaluator
//! is trusted. The batch is evaluated by fresh ones, with ever fewer rules, until it is known which of them panic; these are
//! parked, like rules that are slow, and the batch is evaluated once more without them. A rule for everyone is parked for the tenant
//! whose events it panics on, as long as these are few. Where it is no rule's fault, single events are left out.
//!
//! A restart lets what was parked run again, as with slow rules: if its event comes once more, so does its parking.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use tidegate_pipeline::LogBatch;

use crate::apart::{APART_MAX, Evaluators, orgs, part_of, sum};
use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::eval::{Counts, Evaluator};
use crate::metrics;

/// Why something is parked. Not what the panic said: that may quote an event, which who owns a rule for everyone must not see.
pub(crate) const REASON: &str = "panicked on an event: a bug of the program, whose log says where";
/// The most evaluations of one batch to find out who panics.
const TRIES_MAX: usize = 400;
/// The most rules and filters that one batch parks: where more of them panic, it is rather an event that is at fault.
const CULPRITS_MAX: usize = 16;
/// The most events of one batch that are left out.
const ROWS_MAX: usize = 16;
/// A rule for everyone that panics on the events of more tenants than these is parked for all.
const TENANTS_FEW: usize = 2;

/// What a panic left.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Runs what may panic. Whatever it had its hands on is not to be trusted then.
pub(crate) fn attempt<T>(run: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(run))
}

/// Says that something panicked and is parked.
pub(crate) fn tell(rule_id: &str, org_id: Option<&str>) {
    ::metrics::counter!(metrics::PANICS).increment(1);
    tracing::error!(rule_id, org_id, "rule parked: it panicked, which is a bug of the program; the others go on");
}

impl Evaluators {
    /// The matches of the batch on which an evaluator panicked: that of the tenant with this number, or the shared one. `before` is
    /// what it had done until then.
    pub(crate) fn recover(
        &mut self,
        at: Option<usize>,
        before: Counts,
        batch: &LogBatch,
        panic: Panic,
    ) -> Vec<(usize, usize)> {
        let rules = self.rules().clone();
        let parked = self.of(at).all_parked();
        self.done = sum(self.done, before);
        let mut search = Search::new(&rules, &self.config, &parked);
        if let Some(culprits) = search.culprits(batch).filter(|culprits| !culprits.is_empty()) {
            self.park_culprits(at, (parked, &culprits), batch);
            return self.evaluate(batch);
        }
        let Some((evaluator, found)) = search.without_rows(batch, &parked) else { resume_unwind(panic) };
        self.put(at, evaluator);
        found
    }

    fn park_culprits(
        &mut self,
        at: Option<usize>,
        (mut parked, culprits): (Vec<(usize, String)>, &[usize]),
        batch: &LogBatch,
    ) {
        let rules = self.rules().clone();
        let mut apart: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        let mut of_all = Vec::new();
        for unit in culprits {
            let of_everyone = at.is_none() && rules.unit_org(*unit).is_none();
            let tenants =
                if of_everyone { self.tenants_at_fault(*unit, (&parked, culprits), batch) } else { Vec::new() };
            if tenants.is_empty() {
                of_all.push(*unit);
            }
            tenants.into_iter().for_each(|org_id| apart.entry(org_id).or_default().push(*unit));
        }
        if self.apart.len() + apart.len() > APART_MAX {
            of_all.extend(std::mem::take(&mut apart).into_values().flatten());
            of_all.sort_unstable();
            of_all.dedup();
        }
        let with_reason = |units: &[usize]| units.iter().map(|unit| (*unit, REASON.to_owned())).collect::<Vec<_>>();
        let own = at.and_then(|at| self.apart.get(at)).map(|(org_id, _)| org_id.clone());
        for unit in &of_all {
            tell(rules.unit_id(*unit), own.as_deref().or(rules.unit_org(*unit).map(|org_id| &**org_id)));
        }
        parked.extend(with_reason(&of_all));
        self.put(at, evaluator_without(&rules, &self.config, &parked));
        for (org_id, mut units) in apart {
            units.iter().for_each(|unit| tell(rules.unit_id(*unit), Some(&org_id)));
            units.extend(&of_all);
            let evaluator = evaluator_without(&rules, &self.config, &with_reason(&units));
            self.apart.push((org_id, evaluator));
        }
        self.settled();
    }

    /// The tenants on whose events one of these rules or filters panics, if they are few.
    fn tenants_at_fault(
        &self,
        unit: usize,
        (parked, culprits): (&[(usize, String)], &[usize]),
        batch: &LogBatch,
    ) -> Vec<Arc<str>> {
        let Some(orgs) = orgs(&batch.rows) else { return Vec::new() };
        let mut tenants: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (row, org_id) in (0..).zip(orgs.iter()) {
            org_id.into_iter().for_each(|org_id| tenants.entry(org_id).or_default().push(row));
        }
        let tenants: Vec<(&str, Vec<u64>)> = tenants.into_iter().collect();
        let rules = self.rules();
        let mut search = Search::new(rules, &self.config, parked);
        // A filter runs where a rule matches.
        let is_rule = unit < rules.rules.len();
        search.running.iter_mut().enumerate().for_each(|(other, running)| {
            *running =
                other == unit || (!is_rule && *running && other < rules.rules.len() && !culprits.contains(&other));
        });
        let mut found = Vec::new();
        let all = search.tenants(&tenants, batch, &mut found);
        let elsewhere = self.apart.iter().filter(|(_, own)| own.is_parked(unit)).count();
        if all.is_none() || found.len() + elsewhere > TENANTS_FEW { Vec::new() } else { found }
    }

    /// Parks a rule that panicked when its alert of an event of a tenant was written.
    pub fn park_for(&mut self, org_id: &str, rule: usize) {
        let rules = self.rules().clone();
        let own = self.apart.iter().position(|(own, _)| **own == *org_id);
        if self.of(own).is_parked(rule) {
            return;
        }
        let elsewhere = self.apart.iter().filter(|(_, own)| own.is_parked(rule)).count();
        let of_everyone = rules.unit_org(rule).is_none();
        tell(rules.unit_id(rule), Some(org_id));
        let parked = [(rule, REASON.to_owned())];
        if own.is_none() && of_everyone && elsewhere < TENANTS_FEW && self.apart.len() < APART_MAX {
            self.apart.push((org_id.into(), evaluator_without(&rules, &self.config, &parked)));
        } else {
            self.of_mut(own).park(&parked);
        }
        self.settled();
    }
}

fn evaluator_without(rules: &Arc<RuleSet>, config: &RulesConfig, parked: &[(usize, String)]) -> Evaluator {
    let mut evaluator = Evaluator::new(rules.clone(), config);
    evaluator.park(parked);
    evaluator
}

/// The search for who panics.
struct Search<'a> {
    rules: &'a Arc<RuleSet>,
    config: &'a RulesConfig,
    /// For each rule and filter, whether it runs.
    running: Vec<bool>,
    tries_left: usize,
}

impl<'a> Search<'a> {
    fn new(rules: &'a Arc<RuleSet>, config: &'a RulesConfig, parked: &[(usize, String)]) -> Self {
        let mut running = vec![true; rules.units()];
        for (unit, _) in parked {
            running.iter_mut().skip(*unit).take(1).for_each(|running| *running = false);
        }
        Self { rules, config, running, tries_left: TRIES_MAX }
    }

    /// Whether rules and filters panic on a batch; `None` when it was tried too often.
    fn panics(&mut self, running: &[bool], batch: &LogBatch) -> Option<bool> {
        self.tries_left = self.tries_left.checked_sub(1)?;
        let others = running.iter().enumerate().filter(|(_, running)| !**running);
        let others: Vec<(usize, String)> = others.map(|(unit, _)| (unit, String::new())).collect();
        Some(attempt(|| evaluator_without(self.rules, self.config, &others).matches(batch)).is_err())
    }

    /// The rules and filters each of which panics; `None` when they cannot be told.
    fn culprits(&mut self, batch: &LogBatch) -> Option<Vec<usize>> {
        let rules = self.rules.rules.len();
        let all: Vec<usize> = (0..self.running.len()).filter(|unit| self.running.get(*unit) == Some(&true)).collect();
        let (own, filters) = all.split_at(all.partition_point(|unit| *unit < rules));
        let mut beside = vec![false; self.running.len()];
        let mut found = Vec::new();
        if self.panics(&beside, batch)? {
            return None;
        }
        self.narrow(&beside, own, batch, &mut found)?;
        // Filters run where rules match.
        own.iter().filter(|unit| !found.contains(*unit)).for_each(|unit| set(&mut beside, *unit));
        if !filters.is_empty() && !self.panics(&beside, batch)? {
            self.narrow(&beside, filters, batch, &mut found)?;
        }
        Some(found)
    }

    /// Finds who of some panics beside those that do not.
    fn narrow(&mut self, beside: &[bool], units: &[usize], batch: &LogBatch, found: &mut Vec<usize>) -> Option<()> {
        let mut running = beside.to_vec();
        units.iter().for_each(|unit| set(&mut running, *unit));
        if units.is_empty() || !self.panics(&running, batch)? {
            return Some(());
        }
        if let [only] = units {
            found.push(*only);
            return (found.len() <= CULPRITS_MAX).then_some(());
        }
        let (left, right) = units.split_at(units.len() / 2);
        self.narrow(beside, left, batch, found)?;
        self.narrow(beside, right, batch, found)
    }

    /// Finds the tenants on whose events what runs panics; `None` when they are too many.
    fn tenants(&mut self, tenants: &[(&str, Vec<u64>)], batch: &LogBatch, found: &mut Vec<Arc<str>>) -> Option<()> {
        let mut rows: Vec<u64> = tenants.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
        rows.sort_unstable();
        let running = self.running.clone();
        let Some(part) = part_of(batch, &rows) else { return Some(()) };
        if !self.panics(&running, &part)? {
            return Some(());
        }
        if let [(only, _)] = tenants {
            found.push((*only).into());
            return (found.len() <= TENANTS_FEW).then_some(());
        }
        let (left, right) = tenants.split_at(tenants.len() / 2);
        self.tenants(left, batch, found)?;
        self.tenants(right, batch, found)
    }

    /// The matches without the events on which the evaluation panics, whatever rules run, with the evaluator to go on with; `None`
    /// when these are too many.
    fn without_rows(
        &mut self,
        batch: &LogBatch,
        parked: &[(usize, String)],
    ) -> Option<(Evaluator, Vec<(usize, usize)>)> {
        let fresh = || evaluator_without(self.rules, self.config, parked);
        let (mut evaluator, mut found, mut lost) = (fresh(), Vec::new(), 0);
        let mut open = vec![(0, batch.rows.num_rows())];
        while let Some((from, count)) = open.pop() {
            let part = LogBatch { rows: batch.rows.slice(from, count), ..batch.clone() };
            match attempt(|| evaluator.matches(&part)) {
                Ok(matches) => found.extend(matches.into_iter().map(|(row, rule)| (row + from, rule))),
                Err(_) => {
                    evaluator = fresh();
                    let half = count / 2;
                    match half {
                        0 => lost += 1,
                        _ => open.extend([(from + half, count - half), (from, half)]),
                    }
                    if lost > ROWS_MAX {
                        return None;
                    }
                }
            }
        }
        found.sort_unstable();
        ::metrics::counter!(metrics::UNEVALUATED).increment(lost as u64);
        tracing::error!(lost, "the evaluation of rules panicked, and it was no single rule: a bug of the program");
        Some((evaluator, found))
    }
}

fn set(running: &mut [bool], unit: usize) {
    running.iter_mut().skip(unit).take(1).for_each(|running| *running = true);
}
