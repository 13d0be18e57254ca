//! Runs a [`RuleSet`] over batches.
//!
//! 1. **Route**: the few fields that tell log sources apart are decided, and each log source gets its rows. Rules of a log
//!    source without rows cost nothing.
//! 2. **Decide**: each field that rules of the live log sources read is walked once. Each *distinct value* is decided once,
//!    against all predicates of all rules on that field, and remembered across batches. Most values satisfy nothing and
//!    leave nothing behind.
//! 3. **Witness**: only rules of which a witness predicate is satisfied somewhere in the batch are looked at.
//! 4. **Combine**: their programs run on bitmaps of rows, narrowing as they go.

mod budget;
mod column;
mod decider;
mod frame;
mod memo;
pub mod trial;

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use rustc_hash::FxHashMap;
use tidegate_events::Dataset;
use tidegate_pipeline::LogBatch;

use crate::bitmap::Bitmap;
use crate::compile::RuleSet;
use crate::compile::filter::Filters;
use crate::compile::interner::View;
use crate::compile::program::{Leaf, PredicateId, ViewId};
use crate::config::RulesConfig;
use crate::metrics;
pub use budget::Parked;
use budget::{Budget, SAMPLE};
pub(crate) use column::Column;
use decider::{Decider, Scratch};
pub(crate) use frame::is_searched;
use frame::{ColumnIndex, Encoded, Frame, RestFields};
use memo::{Memo, Met, key_of};

/// What an evaluator did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of the datasets that rules look at.
    pub rows: u64,
    /// Values looked up in the memo.
    pub values: u64,
    /// Values that were not there and were decided.
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
    views: Vec<ViewState>,
    /// The views that log sources are told apart by.
    routing: Vec<ViewId>,
    memo_values_max: usize,
    remembered: usize,
    seed: u64,
    batch: u64,
    /// The last batch in which each rule was a candidate.
    tried: Vec<u64>,
    budget: Budget,
    counts: Counts,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct ViewState {
    decider: Decider,
    memo: Memo,
}

impl Evaluator {
    /// An evaluator with an empty memo.
    pub fn new(rules: Arc<RuleSet>, config: &RulesConfig) -> Self {
        let mut routing = vec![rules.source_view];
        for routed in &rules.log_sources {
            routed.program.visit(&mut |leaf| match leaf {
                Leaf::Predicate(id) => routing.push(view_of(&rules)(id)),
                Leaf::View(view) => routing.push(view),
            });
        }
        routing.sort_unstable();
        routing.dedup();
        let mut evaluator = Self {
            index: ColumnIndex::new(&rules.views),
            views: Vec::new(),
            routing,
            memo_values_max: config.memo_values_max,
            remembered: 0,
            seed: std::hash::RandomState::new().build_hasher().finish(),
            batch: 0,
            tried: vec![0; rules.rules.len()],
            budget: Budget::new(rules.rules.len() + rules.filters.len(), config.rule_event_ns_max),
            counts: Counts::default(),
            scratch: Scratch::default(),
            rules,
        };
        let deciders = evaluator.deciders(|_| true);
        evaluator.views =
            deciders.into_iter().map(|(_, decider)| ViewState { decider, memo: Memo::default() }).collect();
        evaluator
    }

    /// Deciders of the predicates that a log source or a rule that is not parked needs, for these views, in order.
    fn deciders(&self, wanted: impl Fn(ViewId) -> bool) -> Vec<(ViewId, Decider)> {
        let rules = &self.rules;
        let running = |users: &Vec<u32>| users.iter().any(|rule| !self.budget.is_parked(*rule as usize));
        let mut needed: Vec<bool> = rules.users.iter().map(running).collect();
        for routed in &rules.log_sources {
            routed.program.visit(&mut |leaf| {
                if let Leaf::Predicate(id) = leaf
                    && let Some(needed) = needed.get_mut(id as usize)
                {
                    *needed = true;
                }
            });
        }
        let mut by_view: Vec<Vec<PredicateId>> = vec![Vec::new(); rules.views.len()];
        for (id, predicate) in rules.predicates.iter().enumerate() {
            if let (Some(true), Some(own)) = (needed.get(id), by_view.get_mut(predicate.view as usize)) {
                own.push(id as PredicateId);
            }
        }
        let views = by_view.into_iter().enumerate().map(|(view, ids)| (view as ViewId, ids));
        let decider = |(view, ids): (ViewId, Vec<PredicateId>)| {
            let predicates = ids.iter().filter_map(|id| Some((*id, rules.predicates.get(*id as usize)?)));
            (view, Decider::new(predicates))
        };
        views.filter(|(view, _)| wanted(*view)).map(decider).collect()
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
        self.batch += 1;
        self.counts.rows += rows as u64;
        let rest = RestFields::read(&batch.rows, &self.index);
        let columns = self.index.resolve(&batch.rows, &rest, rules.views.len());
        let mut frame = Frame::new(rows, &columns);
        let live = self.route(batch.dataset, &mut frame);
        self.decide(&live, &mut frame);
        let mut found = self.combine(&batch.rows, &live, &mut frame);
        found.sort_unstable();
        self.settle(rows as u64);
        if self.remembered > self.memo_values_max {
            self.forget();
        }
        found
    }

    /// The log sources that have rows, with their rows.
    fn route(&mut self, dataset: Dataset, frame: &mut Frame<'_>) -> Vec<(usize, Bitmap)> {
        let rules = self.rules.clone();
        let all = Bitmap::full(frame.rows);
        for view in self.routing.clone() {
            self.encode(view, &all, frame);
        }
        let mut live = Vec::new();
        for (at, routed) in rules.log_sources.iter().enumerate() {
            if routed.dataset == dataset {
                let rows = frame.run(&routed.program, &all, &view_of(&rules));
                if !rows.is_empty() {
                    live.push((at, rows));
                }
            }
        }
        live
    }

    /// Decides every view that rules of live log sources read, on the rows of those log sources.
    fn decide(&mut self, live: &[(usize, Bitmap)], frame: &mut Frame<'_>) {
        let rules = self.rules.clone();
        let mut wanted: FxHashMap<ViewId, Bitmap> = FxHashMap::default();
        for (at, rows) in live {
            for view in rules.log_sources.get(*at).map(|routed| routed.views.as_slice()).unwrap_or_default() {
                let has_columns = frame.columns.get(*view as usize).is_some_and(|columns| !columns.is_empty());
                let encoded = frame.encoded.get(*view as usize).is_some_and(Option::is_some);
                if has_columns && !encoded {
                    wanted.entry(*view).or_insert_with(|| Bitmap::empty(frame.rows)).or(rows);
                }
            }
        }
        for (view, rows) in wanted {
            self.encode(view, &rows, frame);
        }
    }

    /// Walks the values of a view in some rows.
    fn encode(&mut self, view: ViewId, mask: &Bitmap, frame: &mut Frame<'_>) {
        let (Some(state), Some(columns)) = (self.views.get_mut(view as usize), frame.columns.get(view as usize)) else {
            return;
        };
        if columns.is_empty() {
            return;
        }
        let every = matches!(self.rules.views.get(view as usize), Some(View::Keywords { .. }));
        let mut walk = Walk {
            state,
            scratch: &mut self.scratch,
            satisfied: Vec::new(),
            seed: self.seed,
            batch: self.batch,
            values: 0,
            looked_up: 0,
            decided: 0,
            hits: Vec::new(),
            pairs: Vec::new(),
        };
        let mut present = Bitmap::empty(frame.rows);
        let mut buffer = String::new();
        for row in mask.iter() {
            for column in columns {
                if column.read(row, &mut buffer, &mut |value| walk.value(row as u32, value)) {
                    present.insert(row);
                    if !every {
                        break;
                    }
                }
            }
        }
        self.remembered += walk.decided as usize;
        self.counts.values += walk.looked_up;
        self.counts.decided += walk.decided;
        let encoded = Encoded::new(present, walk.hits, &walk.pairs, walk.values as usize);
        if let Some(place) = frame.encoded.get_mut(view as usize) {
            *place = Some(encoded);
        }
    }

    /// Runs the rules that may match.
    fn combine(&mut self, rows: &RecordBatch, live: &[(usize, Bitmap)], frame: &mut Frame<'_>) -> Vec<(usize, usize)> {
        let rules = self.rules.clone();
        let live: FxHashMap<usize, &Bitmap> = live.iter().map(|(at, rows)| (*at, rows)).collect();
        let mut candidates = Vec::new();
        for encoded in frame.encoded.iter().flatten() {
            let mut last = None;
            for (predicate, _) in &encoded.hits {
                if last.replace(*predicate) != Some(*predicate) {
                    candidates
                        .extend(rules.witnessed.get(*predicate as usize).into_iter().flatten().map(|at| *at as usize));
                }
            }
        }
        for at in live.keys() {
            candidates.extend(rules.log_sources.get(*at).into_iter().flat_map(|routed| &routed.unwitnessed));
        }
        let timed = self.batch.is_multiple_of(SAMPLE);
        let mut tenants: FxHashMap<&str, Bitmap> = FxHashMap::default();
        let mut found = Vec::new();
        for at in candidates {
            let (Some(rule), Some(tried)) = (rules.rules.get(at), self.tried.get_mut(at)) else { continue };
            let Some(mask) = live.get(&rule.log_source) else { continue };
            if std::mem::replace(tried, self.batch) == self.batch || self.budget.is_parked(at) {
                continue;
            }
            self.counts.candidates += 1;
            let started = timed.then(Instant::now);
            let mut matched = frame.run(&rule.program, mask, &view_of(&rules));
            if let Some(org_id) = rule.org_id.as_deref()
                && !matched.is_empty()
            {
                matched.and(tenants.entry(org_id).or_insert_with(|| rows_of_tenant(rows, org_id)));
            }
            for filters in [Some(&rule.filters), rules.log_sources.get(rule.log_source).map(|routed| &routed.filters)] {
                if let Some(filters) = filters
                    && !matched.is_empty()
                {
                    self.counts.filtered += suppress(filters, &rules, &self.budget, rows, &mut matched, frame);
                }
            }
            found.extend(matched.iter().map(|row| (row, at)));
            if let Some(started) = started {
                self.budget.sampled(at, started.elapsed().as_nanos() as u64);
            }
        }
        found
    }

    /// Charges rules for their regular expressions, and parks those that are too slow.
    fn settle(&mut self, rows: u64) {
        for (predicate, ns) in self.scratch.timed.drain(..) {
            for rule in self.rules.users.get(predicate as usize).into_iter().flatten() {
                self.budget.sampled(*rule as usize, ns);
            }
        }
        let parked = self.budget.end_batch(rows, &self.rules);
        if parked.is_empty() {
            return;
        }
        ::metrics::gauge!(metrics::PARKED).set(self.budget.reports.len() as f64);
        let mut views = Vec::new();
        for program in parked.iter().filter_map(|at| self.rules.program(*at)) {
            program.visit(&mut |leaf| {
                if let Leaf::Predicate(id) = leaf {
                    views.push(view_of(&self.rules)(id));
                }
            });
        }
        // What is remembered stays right: it may only name predicates that nobody asks for now.
        for (view, decider) in self.deciders(|view| views.contains(&view)) {
            if let Some(state) = self.views.get_mut(view as usize) {
                state.decider = decider;
            }
        }
    }

    fn forget(&mut self) {
        self.views.iter_mut().for_each(|view| view.memo.age());
        self.remembered = 0;
    }

    /// Values that are remembered now.
    pub fn remembered(&self) -> usize {
        self.views.iter().map(|view| view.memo.len()).sum()
    }
}

fn view_of(rules: &RuleSet) -> impl Fn(PredicateId) -> ViewId + '_ {
    |id| rules.predicates.get(id as usize).map_or(ViewId::MAX, |predicate| predicate.view)
}

fn rows_of_tenant(rows: &RecordBatch, org_id: &str) -> Bitmap {
    let mut tenant = Bitmap::empty(rows.num_rows());
    if let Some(orgs) = rows.column_by_name(Dataset::ORG_ID).and_then(|array| array.as_string_opt::<i32>()) {
        orgs.iter().enumerate().filter(|(_, own)| *own == Some(org_id)).for_each(|(row, _)| tenant.insert(row));
    }
    tenant
}

/// Takes away the matches that filters do not let stay. How many.
fn suppress(
    filters: &Filters,
    rules: &RuleSet,
    budget: &Budget,
    rows: &RecordBatch,
    matched: &mut Bitmap,
    frame: &mut Frame<'_>,
) -> u64 {
    if filters.is_empty() {
        return 0;
    }
    let before = matched.iter().count();
    let mut keep = |matched: &Bitmap, numbers: &[u32]| {
        let mut kept = matched.clone();
        for number in numbers {
            // A filter that is too slow stops, like a rule: better an alert too many than one too few.
            let parked = budget.is_parked(rules.rules.len() + *number as usize);
            if let Some(filter) = rules.filters.get(*number as usize).filter(|_| !parked) {
                kept = frame.run(&filter.keeps, &kept, &view_of(rules));
            }
        }
        kept
    };
    *matched = keep(matched, &filters.everyone);
    let orgs = rows.column_by_name(Dataset::ORG_ID).and_then(|array| array.as_string_opt::<i32>());
    if let Some(orgs) = orgs.filter(|_| !filters.tenants.is_empty()) {
        let mut by_tenant: FxHashMap<&str, Bitmap> = FxHashMap::default();
        for row in matched.iter().filter(|row| filters.tenants.contains_key(orgs.value(*row))) {
            by_tenant.entry(orgs.value(row)).or_insert_with(|| Bitmap::empty(rows.num_rows())).insert(row);
        }
        for (org_id, mut own) in by_tenant {
            let kept = keep(&own, filters.tenants.get(org_id).map(Vec::as_slice).unwrap_or_default());
            own.and_not(&kept);
            matched.and_not(&own);
        }
    }
    (before - matched.iter().count()) as u64
}

/// The walk over the values of one view in one batch.
struct Walk<'a> {
    state: &'a mut ViewState,
    scratch: &'a mut Scratch,
    satisfied: Vec<PredicateId>,
    seed: u64,
    batch: u64,
    /// Distinct values that satisfy something.
    values: u32,
    looked_up: u64,
    decided: u64,
    hits: Vec<(PredicateId, u32)>,
    pairs: Vec<(u32, u32)>,
}

impl Walk<'_> {
    fn value(&mut self, row: u32, value: &str) {
        let ViewState { decider, memo } = &mut *self.state;
        let (scratch, satisfied) = (&mut *self.scratch, &mut self.satisfied);
        self.looked_up += 1;
        let (decided, met) = memo.get_or_decide(key_of(value, self.seed), || {
            decider.decide(value, scratch, satisfied);
            (!satisfied.is_empty()).then(|| Arc::from(satisfied.as_slice()))
        });
        // A value that comes back from the old generation counts for the bound of the young one again.
        self.decided += u64::from(met != Met::Young);
        let Some(satisfied) = &decided.satisfied else { return };
        if decided.batch != self.batch {
            decided.batch = self.batch;
            decided.number = self.values;
            self.values += 1;
            self.hits.extend(satisfied.iter().map(|id| (*id, decided.number)));
        }
        self.pairs.push((decided.number, row));
    }
}
