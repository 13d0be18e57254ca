//! All predicates on the columns of one name: decided once for each distinct value, whatever rules and log sources they are of.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::compile::RuleSet;
use crate::compile::interner::View;
use crate::compile::matcher::Matcher;
use crate::compile::program::{PredicateId, ViewId};
use crate::eval::decider::Decider;
use crate::eval::judge::{Share, shares};
use crate::eval::memo::Memo;

/// Lookups after which it is clear whether values come back.
const TRIAL: u32 = 4096;
/// One lookup in so many must find its value, or the memo costs more than it saves.
const WORTH: u32 = 16;
/// Batches until a memo that was not worth it is tried again.
const BYPASS_BATCHES: u64 = 256;

/// The predicates of one class.
#[derive(Debug, Default)]
pub(crate) struct Class {
    /// The views whose predicates these are.
    views: Vec<ViewId>,
    /// Whether the rules, or those of them that run, are others than when `state` was made.
    stale: bool,
    state: State,
}

/// What is made when a column of the class comes for the first time. Equal matchers are one here, with numbers from 0, so that
/// what is remembered does not depend on how a rule set numbers its predicates.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub decider: Decider,
    pub memo: Memo,
    pub trial: Trial,
    /// For each number, the predicates that it is.
    pub predicates: Vec<Vec<PredicateId>>,
    /// Whether these are keywords, which are searched in every column.
    pub keywords: bool,
    /// Who pays for what the predicates share. Searches for keywords are charged as a whole.
    pub shares: Vec<Share>,
    numbers: FxHashMap<Matcher, u32>,
}

/// Whether the memo of a class is worth its cost: values of some columns (ids, times) never come back.
#[derive(Debug, Default)]
pub(crate) struct Trial {
    lookups: u32,
    found: u32,
    bypass_until: u64,
}

impl Trial {
    /// Whether to decide the values of this batch without looking them up.
    pub fn bypass(&self, batch: u64) -> bool {
        batch < self.bypass_until
    }

    /// Counts a batch's lookups, and those of them that found their value.
    pub fn count(&mut self, lookups: u32, found: u32, batch: u64) {
        self.lookups = self.lookups.saturating_add(lookups);
        self.found = self.found.saturating_add(found);
        if self.lookups >= TRIAL {
            if self.found < self.lookups / WORTH {
                self.bypass_until = batch + BYPASS_BATCHES;
            }
            (self.lookups, self.found) = (0, 0);
        }
    }
}

impl Class {
    pub fn new(views: Vec<ViewId>) -> Self {
        Self { views, stale: true, state: State::default() }
    }

    /// Takes over what the class of the same name learnt under other rules. It stays right for the matchers that both have. A class
    /// that was made ready, and has matchers that the other has not, or not the regular expressions of the other, stays as it is,
    /// unless no such column ever came. The other gets what is not needed: to drop it takes time.
    pub fn inherit(&mut self, other: &mut Self) {
        let known = |matcher: &Matcher| other.state.numbers.contains_key(matcher);
        let wanted = |matcher: &Matcher| self.state.numbers.contains_key(matcher);
        let never = other.state.numbers.is_empty();
        let same = self.state.numbers.keys().all(known) && !other.state.has_regex_beside(wanted);
        if !self.stale && !never && !same {
            return;
        }
        self.stale = true;
        std::mem::swap(&mut self.state, &mut other.state);
    }

    /// Says that another set of rules runs: some were parked.
    pub fn rules_changed(&mut self) {
        self.stale = true;
        // What is remembered says nothing of rules that are parked; so they must not be found here when they run again.
        self.state.numbers.clear();
    }

    pub fn views(&self) -> &[ViewId] {
        &self.views
    }

    /// How many values are remembered.
    pub fn remembered(&self) -> usize {
        self.state.memo.len()
    }

    pub fn age(&mut self) {
        self.state.memo.age();
    }

    /// The state for the predicates of this class that are `needed`, given those of each view.
    pub fn state(&mut self, rules: &RuleSet, by_view: &[Vec<PredicateId>], needed: &[bool]) -> &mut State {
        if std::mem::take(&mut self.stale) {
            let own = self.views.iter().filter_map(|view| by_view.get(*view as usize)).flatten().copied();
            let own: Vec<PredicateId> = own.filter(|id| needed.get(*id as usize) == Some(&true)).collect();
            self.state.renew(rules, &own);
            let keywords = |view: &ViewId| matches!(rules.views.get(*view as usize), Some(View::Keywords { .. }));
            self.state.keywords = self.views.iter().any(keywords);
            self.state.shares = if self.state.keywords { Vec::new() } else { shares(rules, &own) };
        }
        &mut self.state
    }
}

impl State {
    /// Whether there is a regular expression that is not `wanted`: each takes time of its own, whoever needs it. Other matchers are
    /// looked for together, so that one more or less costs nothing.
    fn has_regex_beside(&self, wanted: impl Fn(&Matcher) -> bool) -> bool {
        self.numbers.keys().any(|matcher| matches!(matcher, Matcher::Regex(_)) && !wanted(matcher))
    }

    fn renew(&mut self, rules: &RuleSet, own: &[PredicateId]) {
        let matcher = |id: &PredicateId| rules.predicates.get(*id as usize).map(|predicate| &predicate.matcher);
        let wanted: FxHashSet<&Matcher> = own.iter().filter_map(matcher).collect();
        let known = !self.numbers.is_empty()
            && wanted.iter().all(|matcher| self.numbers.contains_key(*matcher))
            && !self.has_regex_beside(|matcher| wanted.contains(matcher));
        if !known {
            *self = Self::default();
            for matcher in own.iter().filter_map(matcher) {
                let next = self.numbers.len() as u32;
                self.numbers.entry(matcher.clone()).or_insert(next);
            }
        }
        self.predicates = vec![Vec::new(); self.numbers.len()];
        let mut first = Vec::new();
        for id in own {
            let number = matcher(id).and_then(|matcher| self.numbers.get(matcher)).copied();
            if let Some(number) = number
                && let Some(predicates) = self.predicates.get_mut(number as usize)
            {
                if predicates.is_empty() {
                    first.push((number, *id));
                }
                predicates.push(*id);
            }
        }
        if !known {
            let unique = first.iter().filter_map(|(number, id)| Some((*number, rules.predicates.get(*id as usize)?)));
            self.decider = Decider::new(unique);
        }
    }
}
