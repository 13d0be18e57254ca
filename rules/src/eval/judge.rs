//! Who pays for what a walk takes, and what is stopped in the middle of it.

use std::collections::BTreeMap;

use crate::compile::RuleSet;
use crate::compile::matcher::{Matcher, Place};
use crate::compile::program::{Leaf, PredicateId};
use crate::config::RulesConfig;
use crate::eval::budget::{Budget, Terms, Unit};
use crate::eval::watch::{SHARED_SAMPLE, Watch};

/// Charges rules for what their predicates take, and parks them, while a batch is under way.
pub(crate) struct Judge<'a> {
    pub rules: &'a RuleSet,
    pub budget: &'a mut Budget,
    /// For each predicate, whether something that runs needs it, and whether the routes of log sources do.
    pub needed: &'a mut [bool],
    pub routed: &'a [bool],
    /// The rows of the batch.
    pub rows: u64,
    /// What was parked in the batch so far.
    pub parked: &'a mut Vec<usize>,
}

impl Judge<'_> {
    /// Charges what was timed, given the predicates of each number.
    pub fn charge(&mut self, predicates: &[Vec<PredicateId>], shares: &[Share], watch: &mut Watch) {
        let rules = self.rules;
        for ns in watch.shared.drain(..) {
            for Share { unit, parts } in shares {
                self.budget.sampled(*unit, ns.saturating_mul(*parts) / SHARE_PARTS, SHARED_SAMPLE);
            }
        }
        let users = |number: u32| {
            let own = predicates.get(number as usize).into_iter().flatten();
            own.filter_map(|id| rules.users.get(*id as usize)).flatten().map(|unit| *unit as usize)
        };
        for (number, ns, weight) in watch.timed.drain(..) {
            users(number).for_each(|unit| self.budget.sampled(unit, ns, weight));
        }
        for number in watch.cut.drain(..) {
            users(number).for_each(|unit| self.budget.cut(unit));
        }
    }

    /// Parks what is too slow by now, and stops what nothing else needs.
    pub fn look(&mut self, predicates: &[Vec<PredicateId>], shares: &[Share], watch: &mut Watch) {
        self.charge(predicates, shares, watch);
        watch.looked();
        let parked = self.budget.judge(self.rows);
        if parked.is_empty() {
            return;
        }
        for program in parked.iter().filter_map(|unit| self.rules.program(*unit)) {
            program.visit(&mut |leaf| {
                let Leaf::Predicate(id) = leaf else { return };
                let mut users = self.rules.users.get(id as usize).into_iter().flatten();
                if let Some(needed) = self.needed.get_mut(id as usize) {
                    *needed = self.routed.get(id as usize) == Some(&true)
                        || users.any(|unit| !self.budget.is_parked(*unit as usize));
                }
            });
        }
        self.parked.extend(parked);
        self.stop(predicates, watch);
    }

    /// Stops what nothing that runs needs, if anything was parked in this batch.
    pub fn stop(&self, predicates: &[Vec<PredicateId>], watch: &mut Watch) {
        if self.parked.is_empty() {
            return watch.stop(std::iter::empty());
        }
        let needed = |id: &PredicateId| self.needed.get(*id as usize) == Some(&true);
        let idle = |own: &[PredicateId]| !own.is_empty() && !own.iter().any(needed);
        watch.stop((0..).zip(predicates).filter(|(_, own)| idle(own)).map(|(number, _)| number));
    }
}

/// What a unit has of the work that the predicates of a class share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    unit: usize,
    /// Of [`SHARE_PARTS`].
    parts: u64,
}

const SHARE_PARTS: u64 = 1_000;
/// A smaller share is not charged: who has it hardly changes what all of them cost.
const SHARE_MIN: u64 = 200;

/// Who shares the work of these predicates, and how: by the bytes of their literals, since these are the states of the automaton that
/// looks for all of them; what is compared with each value counts as a word. What several ask for is asked for by each of them in part.
pub(crate) fn shares(rules: &RuleSet, own: &[PredicateId]) -> Vec<Share> {
    let weight = |id: &PredicateId| match &rules.predicates.get(*id as usize)?.matcher {
        Matcher::Text { place: Place::Whole, .. } => None,
        Matcher::Text { literal, .. } => Some(literal.len() as u64 * WEIGHT),
        Matcher::Glob { glob, .. } => Some(glob.longest_literal().len() as u64 * WEIGHT),
        Matcher::Regex(_) | Matcher::Cidr(_) | Matcher::Number { .. } | Matcher::Time { .. } => {
            Some(WORD_BYTES * WEIGHT)
        }
    };
    let mut weights: BTreeMap<usize, u64> = BTreeMap::new();
    let mut all = 0;
    for (id, weight) in own.iter().filter_map(|id| Some((id, weight(id)?))) {
        all += weight;
        let users = rules.users.get(*id as usize).map_or(&[][..], |users| users);
        for unit in users {
            *weights.entry(*unit as usize).or_default() += weight / users.len() as u64;
        }
    }
    let share = |(unit, weight): (usize, u64)| Share { unit, parts: weight.saturating_mul(SHARE_PARTS) / all.max(1) };
    weights.into_iter().map(share).filter(|share| share.parts >= SHARE_MIN).collect()
}

const WORD_BYTES: u64 = 8;
/// Of a byte, so that what many share is not nothing.
const WEIGHT: u64 = 1 << 10;

/// Rules, and filters after them.
pub(crate) fn budget_of(rules: &RuleSet, config: &RulesConfig) -> Budget {
    let units = (0..rules.rules.len() + rules.filters.len())
        .map(|unit| Unit { id: rules.unit_id(unit).to_owned(), org_id: rules.unit_org(unit).cloned() });
    let terms = Terms { event_ns_max: config.rule_event_ns_max, own_events: false, name: "rule_event_ns_max" };
    Budget::new(units.collect(), terms)
}

/// For each predicate, whether a log source needs it.
pub(crate) fn routed(rules: &RuleSet) -> Vec<bool> {
    let mut routed = vec![false; rules.predicates.len()];
    for source in &rules.log_sources {
        source.program.visit(&mut |leaf| {
            if let Leaf::Predicate(id) = leaf
                && let Some(routed) = routed.get_mut(id as usize)
            {
                *routed = true;
            }
        });
    }
    routed
}
