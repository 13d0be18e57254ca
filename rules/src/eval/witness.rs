//! Which predicates call rules up: of each rule some of which at least one is true wherever the rule is, chosen so that the rules
//! of a log source read few columns between them. The other columns are only read in rows where a witness was found.

use rustc_hash::FxHashMap;

use crate::compile::RuleSet;
use crate::compile::interner::View;
use crate::compile::matcher::{Matcher, Place};
use crate::compile::program::{Leaf, Node, PredicateId, ViewId, Witness};
use crate::number::Comparison;

/// A value that more rules of a log source ask for is no witness of a rule that has another: it says of what kind an event is, as an
/// event id or a channel does that is written into every rule, and not which rule it is for.
const SHARED_MAX: usize = 32;

/// What calls up the rules of a set.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    /// For each predicate, the rules that it is a witness of.
    pub callers: Vec<Vec<u32>>,
    /// For each rule, its witness; `None` for those that are tried on all rows of their log source.
    pub of_rule: Vec<Option<Vec<PredicateId>>>,
    /// For each rule, the views that it and its filters read.
    pub views: Vec<Vec<ViewId>>,
    /// For each log source, its rules without a witness.
    pub uncalled: Vec<Vec<u32>>,
}

/// One way to call up a rule, and the views that must be read for it.
struct Choice {
    witness: Witness,
    views: Vec<ViewId>,
}

impl Witnesses {
    /// Of a rule set.
    pub fn new(set: &RuleSet) -> Self {
        let mut sources: Vec<Vec<u32>> = vec![Vec::new(); set.log_sources.len()];
        for (at, rule) in set.rules.iter().enumerate() {
            if let Some(own) = sources.get_mut(rule.log_source) {
                own.push(at as u32);
            }
        }
        let mut witnesses = Self {
            callers: vec![Vec::new(); set.predicates.len()],
            of_rule: vec![None; set.rules.len()],
            views: (0..set.rules.len()).map(|at| views_of_rule(set, at)).collect(),
            uncalled: vec![Vec::new(); set.log_sources.len()],
        };
        for (rules, uncalled) in sources.iter().zip(0..) {
            let mut choices: Vec<Vec<Choice>> = rules
                .iter()
                .map(|at| set.rules.get(*at as usize).map(|rule| choices(set, &rule.program)).unwrap_or_default())
                .collect();
            leave_out_shared(set, &mut choices);
            let read = few_views(set, &choices);
            for (at, choices) in rules.iter().zip(choices) {
                let within = choices.into_iter().filter(|choice| choice.views.iter().all(|view| read.contains(view)));
                let best = within.max_by_key(|choice| choice.witness.selectivity);
                witnesses.call(*at, uncalled, best.map(|choice| choice.witness.predicates));
            }
        }
        witnesses
    }

    fn call(&mut self, rule: u32, log_source: usize, witness: Option<Vec<PredicateId>>) {
        match &witness {
            Some(predicates) => {
                for predicate in predicates {
                    if let Some(rules) = self.callers.get_mut(*predicate as usize)
                        && rules.last() != Some(&rule)
                    {
                        rules.push(rule);
                    }
                }
            }
            None => self.uncalled.get_mut(log_source).into_iter().for_each(|rules| rules.push(rule)),
        }
        if let Some(place) = self.of_rule.get_mut(rule as usize) {
            *place = witness;
        }
    }
}

/// The views that a rule and its filters read.
fn views_of_rule(set: &RuleSet, at: usize) -> Vec<ViewId> {
    let Some(rule) = set.rules.get(at) else { return Vec::new() };
    let shared = set.log_sources.get(rule.log_source).map(|routed| &routed.filters);
    let filters = [Some(&rule.filters), shared].into_iter().flatten();
    let filters = filters.flat_map(|own| own.everyone.iter().chain(own.tenants.values().flatten()));
    let filters = filters.filter_map(|filter| set.filters.get(*filter as usize)).map(|filter| &filter.keeps);
    let mut views = Vec::new();
    std::iter::once(&rule.program).chain(filters).for_each(|program| collect_views(set, program, &mut views));
    views
}

/// Adds the views that a program reads, each once.
fn collect_views(set: &RuleSet, program: &Node, views: &mut Vec<ViewId>) {
    program.visit(&mut |leaf| {
        let view = match leaf {
            Leaf::Predicate(id) => set.predicates.get(id as usize).map(|predicate| predicate.view),
            Leaf::View(view) => Some(view),
        };
        views.extend(view);
    });
    views.sort_unstable();
    views.dedup();
}

/// The ways to call up a rule: one for each part that must be true, and for parts with several fields one that prefers each.
fn choices(set: &RuleSet, program: &Node) -> Vec<Choice> {
    let selectivity =
        |id: PredicateId| set.predicates.get(id as usize).map_or(0, |predicate| predicate.matcher.selectivity());
    let view_of = |id: &PredicateId| set.predicates.get(*id as usize).map(|predicate| predicate.view);
    let choice = |witness: Witness| {
        let mut views: Vec<ViewId> = witness.predicates.iter().filter_map(view_of).collect();
        views.sort_unstable();
        views.dedup();
        Choice { witness, views }
    };
    let mut found = Vec::new();
    for part in parts(program) {
        let Some(plain) = part.witness(&selectivity).map(choice) else { continue };
        let several = plain.views.len() > 1;
        found.push(plain);
        if !several {
            continue;
        }
        let mut views = Vec::new();
        collect_views(set, part, &mut views);
        for view in views {
            let preferred = |id: PredicateId| selectivity(id) + if view_of(&id) == Some(view) { 1_000 } else { 0 };
            if let Some(mut witness) = part.witness(&preferred) {
                witness.selectivity = witness.predicates.iter().map(|id| selectivity(*id)).min().unwrap_or(usize::MAX);
                found.push(choice(witness));
            }
        }
    }
    found
}

/// Takes away choices with values that many rules share, from rules that have others. `rules` are those of one log source.
fn leave_out_shared(set: &RuleSet, rules: &mut [Vec<Choice>]) {
    let mut users: FxHashMap<PredicateId, usize> = FxHashMap::default();
    for choices in rules.iter() {
        let mut own: Vec<PredicateId> = choices
            .iter()
            .flat_map(|choice| &choice.witness.predicates)
            .filter(|id| is_value(set, **id))
            .copied()
            .collect();
        own.sort_unstable();
        own.dedup();
        own.into_iter().for_each(|id| *users.entry(id).or_default() += 1);
    }
    users.retain(|_, rules| *rules > SHARED_MAX);
    if users.is_empty() {
        return;
    }
    let keywords = |view: &ViewId| matches!(set.views.get(*view as usize), Some(View::Keywords { .. }));
    // Better the event id than a search for keywords in all columns.
    let shared = |choice: &Choice| {
        choice.views.iter().any(keywords) || choice.witness.predicates.iter().any(|id| users.contains_key(id))
    };
    for choices in rules {
        if !choices.iter().all(shared) {
            choices.retain(|choice| !shared(choice));
        }
    }
}

/// Whether a predicate asks for one value.
fn is_value(set: &RuleSet, id: PredicateId) -> bool {
    matches!(
        set.predicates.get(id as usize).map(|predicate| &predicate.matcher),
        Some(Matcher::Text { place: Place::Whole, .. } | Matcher::Number { comparison: Comparison::Equal, .. })
    )
}

/// The parts of a program that must all be true.
fn parts(program: &Node) -> Vec<&Node> {
    match program {
        Node::And(nodes) => nodes.iter().flat_map(parts).collect(),
        other => vec![other],
    }
}

/// Views of which every rule that can be called up has a choice within: those that do it for most rules first.
fn few_views(set: &RuleSet, rules: &[Vec<Choice>]) -> Vec<ViewId> {
    let keywords = |view: &ViewId| matches!(set.views.get(*view as usize), Some(View::Keywords { .. }));
    let mut read: Vec<ViewId> = Vec::new();
    let mut open: Vec<&Vec<Choice>> = rules.iter().filter(|choices| !choices.is_empty()).collect();
    loop {
        let missing = |choice: &Choice| choice.views.iter().filter(|view| !read.contains(view)).count();
        open.retain(|choices| choices.iter().all(|choice| missing(choice) > 0));
        let Some(first) = open.first() else { return read };
        let mut counts: FxHashMap<ViewId, usize> = FxHashMap::default();
        for choices in &open {
            let single = choices.iter().filter(|choice| missing(choice) == 1);
            let mut views: Vec<ViewId> =
                single.flat_map(|choice| &choice.views).filter(|view| !read.contains(view)).copied().collect();
            views.sort_unstable();
            views.dedup();
            // Keywords are searched in every column: only where nothing else calls a rule up.
            views.into_iter().filter(|view| !keywords(view)).for_each(|view| *counts.entry(view).or_default() += 1);
        }
        match counts.into_iter().max_by_key(|(view, rules)| (*rules, std::cmp::Reverse(*view))) {
            Some((view, _)) => read.push(view),
            None => {
                let fewest = first.iter().min_by_key(|choice| {
                    (choice.views.iter().any(&keywords), missing(choice), choice.views.first().copied())
                });
                let more: Vec<ViewId> = fewest.into_iter().flat_map(|choice| choice.views.clone()).collect();
                read.extend(more);
            }
        }
    }
}
