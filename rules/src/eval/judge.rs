//! Who pays for what a walk takes, and what is stopped in the middle of it.

use std::collections::BTreeMap;

use crate::compile::RuleSet;
use crate::compile::matcher::{Matcher, Place};
use crate::compile::program::{Leaf, PredicateId};
use crate::config::RulesConfig;
use crate::eval::budget::{Budget, Terms, Unit};
use crate::eval::watch::{SHARED_SAMPLE, Watch, Work};
use crate::number::{Comparison, Number};

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
        for (work, ns) in watch.shared.drain(..) {
            for share in shares.iter().filter(|share| share.work == work) {
                self.budget.sampled(share.unit, ns.saturating_mul(share.parts) / SHARE_PARTS, SHARED_SAMPLE);
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
    work: Work,
    /// Of [`SHARE_PARTS`].
    parts: u64,
}

const SHARE_PARTS: u64 = 1_000;
/// A smaller share is not charged: who has it hardly changes what all of them cost.
const SHARE_MIN: u64 = 200;
/// Of a byte or a comparison, so that what many share is not nothing.
const WEIGHT: u64 = 1 << 10;

/// Who shares the work of these predicates, and how: searches by the bytes of the literals, since these are the states of the
/// automaton that looks for all of them, comparisons by how many there are. What several ask for is asked for by each in part.
pub(crate) fn shares(rules: &RuleSet, own: &[PredicateId]) -> Vec<Share> {
    [Work::Literals, Work::Comparisons].into_iter().flat_map(|work| shares_of(work, rules, own)).collect()
}

fn shares_of(work: Work, rules: &RuleSet, own: &[PredicateId]) -> Vec<Share> {
    let weight = |id: &PredicateId| {
        let predicate = rules.predicates.get(*id as usize)?;
        let (of, weight) = match &predicate.matcher {
            // Looked up, however many there are.
            Matcher::Text { place: Place::Whole, .. } => return None,
            Matcher::Number { comparison: Comparison::Equal, number: Number::Int(_) } => return None,
            Matcher::Text { literal, .. } => (Work::Literals, literal.len()),
            Matcher::Glob { glob, .. } => (Work::Literals, glob.longest_literal().len()),
            Matcher::Regex(_) => (Work::Literals, predicate.required.as_ref()?.literals.iter().map(String::len).sum()),
            Matcher::Cidr(_) | Matcher::Number { .. } | Matcher::Time { .. } => (Work::Comparisons, 1),
        };
        (of == work).then_some(weight as u64 * WEIGHT)
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
    let share =
        |(unit, weight): (usize, u64)| Share { unit, work, parts: weight.saturating_mul(SHARE_PARTS) / all.max(1) };
    weights.into_iter().map(share).filter(|share| share.parts >= SHARE_MIN).collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RuleFile;

    /// The shares of rules `a`, `b`, … with these selections of one field, in all of its predicates.
    fn shares_of_rules(selections: &[&str]) -> Vec<(Work, usize, u64)> {
        let file = |(at, selection): (usize, &&str)| {
            let text = format!(
                "title: r{at}\nid: r{at}\nlogsource: {{product: test}}\ndetection: {{s: {selection}, condition: s}}\n"
            );
            RuleFile::new(format!("r{at}"), text)
        };
        let files: Vec<RuleFile> = selections.iter().enumerate().map(file).collect();
        let (rules, problems) = RuleSet::compile(&files, &RulesConfig::default()).expect("tables");
        assert_eq!(problems, []);
        let mut own = Vec::new();
        rules.rules.iter().for_each(|rule| {
            rule.program.visit(&mut |leaf| {
                if let Leaf::Predicate(id) = leaf {
                    own.push(id);
                }
            });
        });
        own.sort_unstable();
        own.dedup();
        shares(&rules, &own).iter().map(|share| (share.work, share.unit, share.parts)).collect()
    }

    #[test]
    fn who_has_most_of_what_is_shared_pays_for_it() {
        use Work::{Comparisons, Literals};
        for (selections, wanted) in [
            (&["{f|contains: [abcdefgh, ijklmnop]}", "{f|contains: qr}"][..], vec![(Literals, 0, 888)]),
            // What all ask for is nobody's.
            (&["{f|contains: abc}"; 8][..], vec![]),
            (&["{f|contains: abc}"; 2][..], vec![(Literals, 0, 500), (Literals, 1, 500)]),
            // Equal texts are looked up, and numbers are compared.
            (&["{f: [abc, def]}", "{f|gt: [1, 2, 3]}", "{f|gt: 1}"][..], vec![(Comparisons, 1, 833)]),
            (
                &["{f|cidr: [10.0.0.0/8, 11.0.0.0/8]}", "{f|contains: abcdef}", "{f|re: 'ghijkl[0-9]'}"][..],
                vec![(Literals, 1, 500), (Literals, 2, 500), (Comparisons, 0, 1_000)],
            ),
        ] {
            assert_eq!(shares_of_rules(selections), wanted, "{selections:?}");
        }
    }
}
