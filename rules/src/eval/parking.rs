//! Going on without rules that take too long.

use crate::compile::RuleSet;
use crate::compile::interner::View;
use crate::compile::program::Leaf;
use crate::eval::class::Class;
use crate::eval::{Evaluator, view_of};

impl Evaluator {
    /// Finds what log sources, and the rules that are not parked, need.
    pub(super) fn find_needed(&mut self) {
        let rules = &self.rules;
        let running = |users: &Vec<u32>| users.iter().any(|rule| !self.budget.is_parked(*rule as usize));
        let needed = rules.users.iter().zip(&self.routed).map(|(users, routed)| *routed || running(users)).collect();
        self.sources = vec![Vec::new(); rules.log_sources.len()];
        self.searching = vec![false; rules.log_sources.len()];
        for (at, (rule, witness)) in rules.rules.iter().zip(&self.witnesses.of_rule).enumerate() {
            let places = (self.sources.get_mut(rule.log_source), self.searching.get_mut(rule.log_source));
            let (Some(views), Some(searching)) = places else { continue };
            if self.budget.is_parked(at) {
                continue;
            }
            for predicate in witness.iter().flatten().filter_map(|id| rules.predicates.get(*id as usize)) {
                match rules.views.get(predicate.view as usize) {
                    Some(View::Keywords { .. }) => *searching = true,
                    _ => views.push(predicate.view),
                }
            }
        }
        for views in &mut self.sources {
            views.sort_unstable();
            views.dedup();
        }
        self.needed = needed;
    }

    /// Ends a batch, and goes on without rules that are too slow.
    pub(super) fn settle(&mut self, rows: u64) {
        let mut parked = std::mem::take(&mut self.parked_now);
        parked.extend(self.budget.end_batch(rows));
        self.leave_out(&parked);
    }

    /// What is parked: rules, and filters, which are numbered after them.
    pub fn parked_units(&self) -> &[usize] {
        &self.parked_units
    }

    /// Why a rule or a filter is parked, if it is.
    pub fn reason(&self, unit: usize) -> Option<&str> {
        self.budget.reason(unit)
    }

    /// Whether a rule or a filter is parked.
    pub fn is_parked(&self, unit: usize) -> bool {
        self.budget.is_parked(unit)
    }

    /// What is parked, also in the batch under way, and why.
    pub fn all_parked(&self) -> Vec<(usize, String)> {
        let parked = (0..self.rules.units()).filter(|unit| self.budget.is_parked(*unit));
        parked.map(|unit| (unit, self.reason(unit).unwrap_or_default().to_owned())).collect()
    }

    /// Charges a rule for something beside the evaluation that it took long for.
    pub fn charge(&mut self, rule: usize, ns: u64) {
        self.budget.sampled(rule, ns, 1);
    }

    /// Parks rules or filters because of what was found elsewhere.
    pub fn park(&mut self, units: &[(usize, String)]) {
        for (unit, reason) in units {
            self.budget.park_for(*unit, reason.clone());
        }
        let parked: Vec<usize> = units.iter().map(|(unit, _)| *unit).collect();
        self.leave_out(&parked);
    }

    /// What is parked and asks the same in another set, by its number there, and why it is.
    pub fn parked_in(&self, rules: &RuleSet) -> Vec<(usize, String)> {
        let own = &self.rules;
        let same = |unit: usize| {
            let mut others = 0..rules.units();
            others.find(|other| {
                own.unit_id(unit) == rules.unit_id(*other)
                    && own.unit_org(unit) == rules.unit_org(*other)
                    && own.asks_as(unit, rules, *other)
            })
        };
        let parked = self.parked_units.iter();
        parked.filter_map(|unit| Some((same(*unit)?, self.reason(*unit)?.to_owned()))).collect()
    }

    /// Goes on without rules that were parked.
    fn leave_out(&mut self, parked: &[usize]) {
        if parked.is_empty() {
            return;
        }
        self.parked_units.extend_from_slice(parked);
        let mut views = Vec::new();
        for program in parked.iter().filter_map(|at| self.rules.program(*at)) {
            program.visit(&mut |leaf| {
                if let Leaf::Predicate(id) = leaf {
                    views.push(view_of(&self.rules)(id));
                }
            });
        }
        self.find_needed();
        self.index.forget_plans();
        let of_parked = |class: &&mut Class| class.views().iter().any(|view| views.contains(view));
        self.classes.iter_mut().filter(of_parked).for_each(Class::rules_changed);
    }
}
