//! Which log sources the rows of a batch belong to.

use rustc_hash::FxHashMap;

use crate::compile::RuleSet;
use crate::compile::matcher::Matcher;
use crate::compile::program::{Leaf, PredicateId, ViewId};
use crate::number::Comparison;

/// Finds the log sources that are worth trying, as rules are found: by predicates that must hold somewhere in the batch.
#[derive(Debug, Default)]
pub(crate) struct Router {
    /// The views that log sources are told apart by.
    pub views: Vec<ViewId>,
    witnessed: FxHashMap<PredicateId, Vec<usize>>,
    always: Vec<usize>,
}

impl Router {
    pub fn new(rules: &RuleSet) -> Self {
        let mut router = Self { views: vec![rules.source_view], ..Self::default() };
        let selectivity = |id: PredicateId| match rules.predicates.get(id as usize).map(|predicate| &predicate.matcher)
        {
            // A number of an event tells more than the name of its channel.
            Some(Matcher::Number { comparison: Comparison::Equal, .. }) => 100,
            Some(matcher) => matcher.selectivity(),
            None => 0,
        };
        for (at, routed) in rules.log_sources.iter().enumerate() {
            routed.program.visit(&mut |leaf| match leaf {
                Leaf::Predicate(id) => router.views.extend(rules.predicates.get(id as usize).map(|own| own.view)),
                Leaf::View(view) => router.views.push(view),
            });
            match routed.program.witness(&selectivity) {
                Some(witness) => {
                    for predicate in witness.predicates {
                        router.witnessed.entry(predicate).or_default().push(at);
                    }
                }
                None => router.always.push(at),
            }
        }
        router.views.sort_unstable();
        router.views.dedup();
        router
    }

    /// The log sources that may have rows, in order, given the predicates that hold somewhere.
    pub fn candidates(&self, holding: impl Iterator<Item = PredicateId>) -> Vec<usize> {
        let mut candidates = self.always.clone();
        candidates.extend(holding.filter_map(|predicate| self.witnessed.get(&predicate)).flatten());
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }
}
