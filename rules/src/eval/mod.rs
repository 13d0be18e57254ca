//! Runs a [`RuleSet`] over batches.
//!
//! 1. **Route**: the few fields that tell log sources apart are decided, and each log source gets its rows. Rules of a log
//!    source without rows cost nothing.
//! 2. **Witness**: the few columns that hold the witnesses of the live log sources' rules are walked. Only rules of which a witness
//!    is found somewhere in the batch are looked at, and only in the rows where it is.
//! 3. **Decide**: the other columns that these rules read are walked in these rows.
//! 4. **Combine**: their programs run on bitmaps of rows, narrowing as they go.
//!
//! To walk a column is to decide each *distinct value* once, against all predicates of all rules on columns of that name. It is
//! remembered across batches, unless values of the column hardly ever come back. Most values satisfy nothing and leave nothing
//! behind.

pub(crate) mod budget;
mod class;
mod column;
mod core_time;
mod decider;
mod expression;
mod filtering;
mod frame;
mod judge;
mod keywords;
mod memo;
mod parking;
mod pieces;
mod plan;
pub mod profile;
mod route;
mod stepwise;
pub mod trial;
mod walk;
mod watch;
pub(crate) mod witness;

use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use rustc_hash::FxHashMap;
use tidegate_events::Dataset;
use tidegate_pipeline::LogBatch;

use crate::bitmap::Bitmap;
use crate::compile::RuleSet;
use crate::compile::interner::View;
use crate::compile::program::{PredicateId, ViewId};
use crate::config::RulesConfig;
use budget::Budget;
pub use budget::Parked;
use class::Class;
pub(crate) use column::Column;
use decider::Scratch;
use filtering::{rows_of_tenant, suppress};
use frame::{Frame, Wanted};
use judge::{Judge, budget_of, routed};
pub(crate) use plan::is_searched;
use plan::{ClassId, ColumnIndex};
use route::Router;
use walk::Walk;
use watch::{SEARCH_NS_MAX, Watch};
use witness::Witnesses;

/// What an evaluator did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of the datasets that rules look at.
    pub rows: u64,
    /// Values looked up; a value that is that of the row before is not.
    pub values: u64,
    /// Values that were not remembered and were decided.
    pub decided: u64,
    /// Rules whose witness was found in a batch.
    pub candidates: u64,
    /// Matches that a filter took away.
    pub filtered: u64,
}

/// Evaluates batches against a rule set, remembering what values satisfy.
#[derive(Debug)]
pub struct Evaluator {
    rules: Arc<RuleSet>,
    index: ColumnIndex,
    router: Router,
    witnesses: Witnesses,
    classes: Vec<Class>,
    /// The predicates of each view.
    by_view: Vec<Vec<PredicateId>>,
    /// For each predicate, whether a log source or a rule that is not parked needs it.
    needed: Vec<bool>,
    /// For each predicate, whether a log source needs it.
    routed: Vec<bool>,
    /// What was parked in the batch under way.
    parked_now: Vec<usize>,
    /// What was parked at all: rules, and filters after them.
    parked_units: Vec<usize>,
    /// For each log source, the views that the witnesses of its rules are in; the keyword views are apart.
    sources: Vec<Vec<ViewId>>,
    /// For each log source, whether keywords are witnesses of its rules.
    searching: Vec<bool>,
    /// For each log source, whether the last search for keywords took long.
    searched_long: Vec<bool>,
    memo_values_max: usize,
    remembered: usize,
    batch: u64,
    /// Columns that were walked so far.
    walks: u64,
    /// The last batch in which each rule was a candidate.
    tried: Vec<u64>,
    budget: Budget,
    counts: Counts,
    scratch: Scratch,
}

impl Evaluator {
    /// An evaluator with an empty memo.
    pub fn new(rules: Arc<RuleSet>, config: &RulesConfig) -> Self {
        let (index, classes) = ColumnIndex::new(&rules.views);
        let mut evaluator = Self {
            index,
            router: Router::new(&rules),
            witnesses: Witnesses::new(&rules),
            classes: classes.into_iter().map(Class::new).collect(),
            by_view: rules.by_view(),
            needed: Vec::new(),
            routed: routed(&rules),
            parked_now: Vec::new(),
            parked_units: Vec::new(),
            searched_long: vec![false; rules.log_sources.len()],
            sources: Vec::new(),
            searching: Vec::new(),
            memo_values_max: config.memo_values_max,
            remembered: 0,
            batch: 0,
            walks: 0,
            tried: vec![0; rules.rules.len()],
            budget: budget_of(&rules, config),
            counts: Counts::default(),
            // Who lets a rule take longer than that for every event lets it take as long for one.
            scratch: Scratch::new(Watch::new(SEARCH_NS_MAX.max(config.rule_event_ns_max))),
            rules,
        };
        evaluator.find_needed();
        evaluator
    }

    /// Puts other rules in force. What is remembered of values stays where the predicates on them are the same.
    pub fn replace_rules(&mut self, rules: Arc<RuleSet>, config: &RulesConfig) {
        self.replace_with(Self::new(rules, config));
    }

    /// Makes what is otherwise made when a column comes for the first time.
    pub fn make_ready(&mut self) {
        for class in &mut self.classes {
            class.state(&self.rules, &self.by_view, &self.needed);
        }
    }

    /// Puts the rules of another evaluator in force, which has seen no batch; as [`replace_rules`](Self::replace_rules). What is
    /// left of the old one is handed back.
    pub fn replace_with(&mut self, mut new: Self) -> Self {
        let mut pairs = new.index.shared(&self.index);
        for (at, routed) in new.rules.log_sources.iter().enumerate() {
            let before = self.rules.log_sources.iter().position(|other| other.name == routed.name);
            let before = before.and_then(|before| self.index.keywords_of(before));
            pairs.extend(new.index.keywords_of(at).zip(before).map(|((own, _), (other, _))| (own, other)));
        }
        for (own, other) in pairs {
            if let (Some(own), Some(other)) = (new.classes.get_mut(own as usize), self.classes.get_mut(other as usize))
            {
                own.inherit(other);
            }
        }
        new.remembered = new.remembered();
        // What is remembered is found by these, and says when it was met by that.
        new.index.keys = std::mem::take(&mut self.index.keys);
        (new.batch, new.walks) = (self.batch, self.walks);
        std::mem::replace(self, new)
    }

    /// Gives up what takes longer than so many nanoseconds for one value.
    pub fn give_up_after(&mut self, search_ns_max: u64) {
        self.scratch.watch = Watch::new(search_ns_max);
    }

    /// The rules.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Rules that were parked.
    pub fn parked(&self) -> &[Parked] {
        &self.budget.reports
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The matches of a batch as (row, rule), ascending; the rule is an index into [`RuleSet::rules`]. Empty for datasets that
    /// rules do not look at.
    pub fn matches(&mut self, batch: &LogBatch) -> Vec<(usize, usize)> {
        let rules = self.rules.clone();
        let rows = batch.rows.num_rows();
        if !matches!(batch.dataset, Dataset::SecurityEvents | Dataset::CostEvents)
            || rows == 0
            || rules.rules.is_empty()
        {
            return Vec::new();
        }
        #[cfg(test)]
        crate::fuse::burst_rows(&batch.rows);
        self.batch += 1;
        self.budget.begin_batch();
        self.counts.rows += rows as u64;
        let rest = self.index.rest(&batch.rows);
        let plan = self.index.plan(&batch.rows, &rest, &self.sources);
        let columns = plan::columns(&plan, &batch.rows, &rest);
        let mut frame = Frame::new(rows, &rules, (&plan, &columns), self.scratch.watch.search_ns_max());
        let live = self.route(batch.dataset, &mut frame);
        self.find_witnesses(&live, &mut frame);
        let called = self.call(&live, &frame);
        self.decide(&called, &mut frame);
        let mut found = self.combine(&batch.rows, &called, &mut frame);
        found.sort_unstable();
        self.settle(rows as u64);
        if self.remembered > self.memo_values_max {
            self.forget();
        }
        found
    }

    /// The log sources that have rows, with their rows.
    fn route(&mut self, dataset: Dataset, frame: &mut Frame<'_>) -> Vec<(usize, Bitmap)> {
        let all = Bitmap::full(frame.rows);
        let views = std::mem::take(&mut self.router.views);
        for view in &views {
            for at in frame.plan.views.get(view).into_iter().flatten() {
                self.encode(*at as usize, all.clone(), frame);
            }
        }
        self.router.views = views;
        let candidates = self.router.candidates(frame.holding());
        let mut live = Vec::new();
        for at in candidates {
            let Some(routed) = frame.rules.log_sources.get(at).filter(|routed| routed.dataset == dataset) else {
                continue;
            };
            let rows = frame.run(&routed.program, &all, &view_of(frame.rules));
            if !rows.is_empty() {
                live.push((at, rows));
            }
        }
        live
    }

    /// Walks the columns that witnesses are in, on the rows of live log sources.
    fn find_witnesses(&mut self, live: &[(usize, Bitmap)], frame: &mut Frame<'_>) {
        let mut wanted = Wanted::new(frame);
        for (at, rows) in live {
            frame.plan.sources.get(*at).into_iter().flatten().for_each(|column| wanted.add(*column, rows));
        }
        self.encode_all(wanted, frame);
        for (at, rows) in live {
            if self.searching.get(*at) == Some(&true) {
                self.search(*at, rows, frame);
            }
        }
    }

    /// The rules of which a witness was found, and those that have none, with the rows where they may match.
    fn call(&mut self, live: &[(usize, Bitmap)], frame: &Frame<'_>) -> Vec<(usize, Bitmap)> {
        let rules = frame.rules;
        let mut masks: Vec<Option<&Bitmap>> = vec![None; rules.log_sources.len()];
        let mut candidates: Vec<u32> = Vec::new();
        for (at, rows) in live {
            if let (Some(mask), Some(uncalled)) = (masks.get_mut(*at), self.witnesses.uncalled.get(*at)) {
                *mask = Some(rows);
                candidates.extend(uncalled);
            }
        }
        let callers = frame.holding().filter_map(|predicate| self.witnesses.callers.get(predicate as usize));
        candidates.extend(callers.flatten());
        let mut called = Vec::new();
        for at in candidates {
            let at = at as usize;
            let (Some(rule), Some(tried)) = (rules.rules.get(at), self.tried.get_mut(at)) else { continue };
            let Some(Some(mask)) = masks.get(rule.log_source) else { continue };
            if std::mem::replace(tried, self.batch) == self.batch || self.budget.is_parked(at) {
                continue;
            }
            let rows = match self.witnesses.of_rule.get(at).and_then(Option::as_ref) {
                Some(witness) => frame.any_of(witness, mask, &view_of(rules)),
                None => (*mask).clone(),
            };
            if !rows.is_empty() {
                called.push((at, rows));
            }
        }
        called
    }

    /// Walks the columns that rules read, on the rows where they may match.
    fn decide(&mut self, called: &[(usize, Bitmap)], frame: &mut Frame<'_>) {
        let mut wanted = Wanted::new(frame);
        let mut searching: FxHashMap<usize, Bitmap> = FxHashMap::default();
        for (at, rows) in called {
            for view in self.witnesses.views.get(*at).into_iter().flatten() {
                if let Some(View::Keywords { log_source }) = frame.rules.views.get(*view as usize) {
                    // Where keywords are witnesses they were searched everywhere.
                    if self.searching.get(*log_source) == Some(&false) {
                        searching.entry(*log_source).and_modify(|all| all.or(rows)).or_insert_with(|| rows.clone());
                    }
                }
                frame.plan.views.get(view).into_iter().flatten().for_each(|column| wanted.add(*column, rows));
            }
        }
        self.encode_all(wanted, frame);
        for (log_source, rows) in searching {
            self.search(log_source, &rows, frame);
        }
    }

    fn encode_all(&mut self, wanted: Wanted, frame: &mut Frame<'_>) {
        for (at, rows) in wanted.columns.into_iter().enumerate() {
            if let Some(rows) = rows {
                self.encode(at, rows, frame);
            }
        }
    }

    /// Walks the values of a column in some rows, but for those where that was done.
    fn encode(&mut self, at: usize, rows: Bitmap, frame: &mut Frame<'_>) {
        let class = frame.plan.columns.get(at).and_then(|planned| planned.class);
        let (Some(class), Some(Some(column))) = (class, frame.columns.get(at)) else { return };
        let rows = frame.take_open(at, rows);
        if !rows.is_empty()
            && let Some(encoded) = self.walk((class, frame.rows), |walk| walk.column(*column, &rows))
        {
            frame.add(at, encoded);
        }
    }

    /// Walks values of a batch of so many rows that are asked for the predicates of a class.
    fn walk(&mut self, (class, rows): (ClassId, usize), values: impl FnOnce(&mut Walk<'_>)) -> Option<frame::Encoded> {
        let state = self.classes.get_mut(class as usize)?.state(&self.rules, &self.by_view, &self.needed);
        if state.predicates.is_empty() {
            return None;
        }
        self.walks += 1;
        let judge = Judge {
            rules: &self.rules,
            budget: &mut self.budget,
            needed: &mut self.needed,
            routed: &self.routed,
            rows: rows as u64,
            parked: &mut self.parked_now,
        };
        let place = (self.batch, self.walks);
        let mut walk = Walk::new(state, (&mut self.scratch, judge), &self.index.keys, place);
        values(&mut walk);
        self.remembered += walk.remembered;
        self.counts.values += u64::from(walk.looked_up);
        self.counts.decided += u64::from(walk.decided);
        Some(walk.finish())
    }

    /// Runs the rules that may match, on the rows where they may.
    fn combine(
        &mut self,
        rows: &RecordBatch,
        called: &[(usize, Bitmap)],
        frame: &mut Frame<'_>,
    ) -> Vec<(usize, usize)> {
        let rules = frame.rules;
        let mut tenants: FxHashMap<&str, Bitmap> = FxHashMap::default();
        let mut found = Vec::new();
        for (at, mask) in called {
            let at = *at;
            // What was parked in this batch matches nothing in it: not all of its values were looked at.
            let Some(rule) = rules.rules.get(at).filter(|_| !self.budget.is_parked(at)) else { continue };
            self.counts.candidates += 1;
            let started = Instant::now();
            let mut matched = frame.run(&rule.program, mask, &view_of(rules));
            self.budget.sampled(at, started.elapsed().as_nanos() as u64, 1);
            if frame.take_cut() {
                self.budget.cut(at);
                continue;
            }
            if let Some(org_id) = rule.head.org_id.as_deref()
                && !matched.is_empty()
            {
                matched.and(tenants.entry(org_id).or_insert_with(|| rows_of_tenant(rows, org_id)));
            }
            for filters in [Some(&rule.filters), rules.log_sources.get(rule.log_source).map(|routed| &routed.filters)] {
                if let Some(filters) = filters
                    && !matched.is_empty()
                {
                    self.counts.filtered += suppress(filters, rules, &mut self.budget, rows, &mut matched, frame);
                }
            }
            found.extend(matched.iter().map(|row| (row, at)));
        }
        found
    }

    fn forget(&mut self) {
        self.classes.iter_mut().for_each(Class::age);
        self.remembered = 0;
    }

    /// Values that are remembered now.
    pub fn remembered(&self) -> usize {
        self.classes.iter().map(Class::remembered).sum()
    }
}

fn view_of(rules: &RuleSet) -> impl Fn(PredicateId) -> ViewId + '_ {
    |id| rules.predicates.get(id as usize).map_or(ViewId::MAX, |predicate| predicate.view)
}
