//! Runs a [`RuleSet`] over batches.
//!
//! 1. **Route**: the few fields that tell log sources apart are decided, and each log source gets its rows. Rules of a log
//!    source without rows cost nothing.
//! 2. **Decide**: each field that rules of the live log sources read is walked once. Each *distinct value* is decided once,
//!    against all predicates of all rules on that field, and remembered across batches. Most values satisfy nothing and
//!    leave nothing behind.
//! 3. **Witness**: only rules of which a witness predicate is satisfied somewhere in the batch are looked at.
//! 4. **Combine**: their programs run on bitmaps of rows, narrowing as they go.

pub(crate) mod column;
mod decider;
mod frame;
mod memo;

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use rustc_hash::FxHashMap;
use tidegate_events::Dataset;
use tidegate_pipeline::LogBatch;

use crate::bitmap::Bitmap;
use crate::compile::RuleSet;
use crate::compile::interner::View;
use crate::compile::program::{Leaf, PredicateId, ViewId};
use crate::config::RulesConfig;
use crate::metrics;
use column::Column;
use decider::{Decider, Scratch};
use frame::{ColumnIndex, Encoded, Frame, RestFields};
use memo::{Memo, Met, key_of};

/// How many batches go by between two whose rules are timed.
const TIMED_EVERY: u64 = 8;
/// Timed rows after which the average of a rule says something.
const TIMED_ROWS_MIN: u64 = 1_000;
/// Timed nanoseconds of one rule below which it is never called slow, whatever the average.
const TIMED_NS_MIN: u64 = 20_000_000;

/// A rule that no longer runs because it took too much time. It runs again when rules change or the program restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The id of the rule.
    pub rule_id: String,
    /// Why.
    pub reason: String,
}

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
    spent: Vec<Spent>,
    rule_event_ns_max: u64,
    parked: Vec<Parked>,
    counts: Counts,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct ViewState {
    decider: Decider,
    memo: Memo,
}

/// What a rule cost in timed batches.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    ns: u64,
    rows: u64,
    parked: bool,
}

impl Evaluator {
    /// An evaluator with an empty memo.
    pub fn new(rules: Arc<RuleSet>, config: &RulesConfig) -> Self {
        let mut used = vec![false; rules.predicates.len()];
        let mut routing = vec![rules.source_view];
        let view_of = |id: PredicateId| rules.predicates.get(id as usize).map(|predicate| predicate.view);
        for routed in &rules.log_sources {
            routed.program.visit(&mut |leaf| {
                routing.extend(match leaf {
                    Leaf::Predicate(id) => view_of(id),
                    Leaf::View(view) => Some(view),
                })
            });
        }
        routing.sort_unstable();
        routing.dedup();
        let programs = rules.rules.iter().map(|rule| &rule.program);
        for program in programs.chain(rules.log_sources.iter().map(|routed| &routed.program)) {
            program.visit(&mut |leaf| {
                if let Leaf::Predicate(id) = leaf
                    && let Some(used) = used.get_mut(id as usize)
                {
                    *used = true;
                }
            });
        }
        let mut by_view: Vec<Vec<PredicateId>> = vec![Vec::new(); rules.views.len()];
        for (id, predicate) in rules.predicates.iter().enumerate() {
            if let (Some(true), Some(own)) = (used.get(id), by_view.get_mut(predicate.view as usize)) {
                own.push(id as PredicateId);
            }
        }
        let state = |ids: Vec<PredicateId>| {
            let predicates = ids.iter().filter_map(|id| Some((*id, rules.predicates.get(*id as usize)?)));
            ViewState { decider: Decider::new(predicates), memo: Memo::default() }
        };
        Self {
            index: ColumnIndex::new(&rules.views),
            views: by_view.into_iter().map(state).collect(),
            routing,
            memo_values_max: config.memo_values_max,
            remembered: 0,
            seed: std::hash::RandomState::new().build_hasher().finish(),
            batch: 0,
            tried: vec![0; rules.rules.len()],
            spent: vec![Spent::default(); rules.rules.len()],
            rule_event_ns_max: config.rule_event_ns_max,
            parked: Vec::new(),
            counts: Counts::default(),
            scratch: Scratch::default(),
            rules,
        }
    }

    /// The rules.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Rules that were parked.
    pub fn parked(&self) -> &[Parked] {
        &self.parked
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
        let timed = self.batch.is_multiple_of(TIMED_EVERY);
        let mut tenants: FxHashMap<&str, Bitmap> = FxHashMap::default();
        let mut found = Vec::new();
        for at in candidates {
            let (Some(rule), Some(tried)) = (rules.rules.get(at), self.tried.get_mut(at)) else { continue };
            let Some(mask) = live.get(&rule.log_source) else { continue };
            if std::mem::replace(tried, self.batch) == self.batch
                || self.spent.get(at).is_some_and(|spent| spent.parked)
            {
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
            found.extend(matched.iter().map(|row| (row, at)));
            if let Some(started) = started {
                self.spend(at, started.elapsed().as_nanos() as u64, frame.rows as u64);
            }
        }
        found
    }

    /// Adds to what a rule cost, and parks it when that is too much on average.
    fn spend(&mut self, at: usize, ns: u64, rows: u64) {
        let Some(spent) = self.spent.get_mut(at) else { return };
        spent.ns += ns;
        spent.rows += rows;
        if spent.rows < TIMED_ROWS_MIN {
            return;
        }
        let average = spent.ns / spent.rows;
        if average > self.rule_event_ns_max && spent.ns > TIMED_NS_MIN {
            spent.parked = true;
            let rule_id = self.rules.rules.get(at).map(|rule| rule.id.clone()).unwrap_or_default();
            let reason = format!("took {average} ns per event, more than {}", self.rule_event_ns_max);
            tracing::warn!(rule_id, reason, "rule parked; make its expressions cheaper or raise rule_event_ns_max");
            self.parked.push(Parked { rule_id, reason });
            ::metrics::gauge!(metrics::PARKED).set(self.parked.len() as f64);
        } else if spent.rows > 100 * TIMED_ROWS_MIN {
            // Old costs count less and less.
            spent.ns /= 2;
            spent.rows /= 2;
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

/// The values of a view in one row, for alerts: each shortened to `bytes_max`.
pub(crate) fn values_of(rows: &RecordBatch, view: &View, row: usize, bytes_max: usize) -> Vec<String> {
    const VALUES_MAX: usize = 16;
    let View::Field(names) = view else { return Vec::new() };
    let mut values = Vec::new();
    let mut buffer = String::new();
    for name in names {
        let Some(column) = rows.column_by_name(name).and_then(Column::new) else { continue };
        let mut take = |value: &str| {
            if values.len() < VALUES_MAX {
                values.push(value[..value.floor_char_boundary(bytes_max)].to_owned());
            }
        };
        if column.read(row, &mut buffer, &mut take) {
            break;
        }
    }
    values
}
