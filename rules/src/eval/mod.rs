//! Runs a [`RuleSet`] over batches.
//!
//! 1. **Route**: the few fields that tell log sources apart are decided, and each log source gets its rows. Rules of a log
//!    source without rows cost nothing.
//! 2. **Decide**: each column that rules of the live log sources read is walked once. Each *distinct value* is decided once,
//!    against all predicates of all rules on columns of that name, and remembered across batches, unless values of the column
//!    hardly ever come back. Most values satisfy nothing and leave nothing behind.
//! 3. **Witness**: only rules of which a witness predicate is satisfied somewhere in the batch are looked at.
//! 4. **Combine**: their programs run on bitmaps of rows, narrowing as they go.

mod budget;
mod class;
mod column;
mod decider;
mod frame;
mod memo;
mod plan;
pub mod profile;
mod route;
pub mod trial;
mod walk;

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
use class::Class;
pub(crate) use column::Column;
use decider::Scratch;
use frame::Frame;
pub(crate) use plan::is_searched;
use plan::{ClassId, ColumnIndex};
use route::Router;
use walk::Walk;

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
    classes: Vec<Class>,
    /// The predicates of each view.
    by_view: Vec<Vec<PredicateId>>,
    /// For each predicate, whether a log source or a rule that is not parked needs it.
    needed: Vec<bool>,
    /// For each log source, the views that its rules read; the keyword views are apart.
    sources: Vec<Vec<ViewId>>,
    /// For each log source, whether its rules have keywords.
    searching: Vec<bool>,
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
        let mut by_view = vec![Vec::new(); rules.views.len()];
        for (id, predicate) in rules.predicates.iter().enumerate() {
            if let Some(own) = by_view.get_mut(predicate.view as usize) {
                own.push(id as PredicateId);
            }
        }
        let mut evaluator = Self {
            index,
            router: Router::new(&rules),
            classes: classes.into_iter().map(Class::new).collect(),
            by_view,
            needed: Vec::new(),
            sources: Vec::new(),
            searching: Vec::new(),
            memo_values_max: config.memo_values_max,
            remembered: 0,
            batch: 0,
            walks: 0,
            tried: vec![0; rules.rules.len()],
            budget: Budget::new(rules.rules.len() + rules.filters.len(), config.rule_event_ns_max),
            counts: Counts::default(),
            scratch: Scratch::default(),
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

    /// Finds what log sources, and the rules that are not parked, read.
    fn find_needed(&mut self) {
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
        let wanted = |view: &ViewId| {
            let own = self.by_view.get(*view as usize).into_iter().flatten();
            own.into_iter().any(|id| needed.get(*id as usize) == Some(&true))
        };
        let keywords = |view: &ViewId| matches!(rules.views.get(*view as usize), Some(View::Keywords { .. }));
        self.sources = Vec::with_capacity(rules.log_sources.len());
        self.searching = Vec::with_capacity(rules.log_sources.len());
        for routed in &rules.log_sources {
            let (keywords, fields): (Vec<ViewId>, Vec<ViewId>) =
                routed.views.iter().filter(|view| wanted(view)).partition(|view| keywords(view));
            self.sources.push(fields);
            self.searching.push(!keywords.is_empty());
        }
        self.needed = needed;
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
        let rest = self.index.rest(&batch.rows);
        let plan = self.index.plan(&batch.rows, &rest, &self.sources);
        let columns = plan::columns(&plan, &batch.rows, &rest);
        let mut frame = Frame::new(rows, &rules, &plan, &columns);
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
        let all = Bitmap::full(frame.rows);
        let views = std::mem::take(&mut self.router.views);
        for view in &views {
            for at in frame.plan.views.get(view).into_iter().flatten() {
                self.encode(*at as usize, &all, frame);
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

    /// Decides every column that rules of live log sources read, on the rows of those log sources.
    fn decide(&mut self, live: &[(usize, Bitmap)], frame: &mut Frame<'_>) {
        let mut wanted: Vec<Option<Bitmap>> = vec![None; frame.columns.len()];
        let mut searching = Vec::new();
        let add = |place: &mut Option<Bitmap>, rows: &Bitmap| match place {
            Some(place) => place.or(rows),
            None => *place = Some(rows.clone()),
        };
        for (at, rows) in live {
            for column in frame.plan.sources.get(*at).into_iter().flatten() {
                if let Some(place) = wanted.get_mut(*column as usize) {
                    add(place, rows);
                }
            }
            if self.searching.get(*at) == Some(&true) {
                searching.extend(self.index.keywords_of(*at).map(|keywords| (keywords, rows)));
            }
        }
        for (at, rows) in wanted.iter().enumerate() {
            if let Some(rows) = rows {
                self.encode(at, rows, frame);
            }
        }
        for ((class, view), rows) in searching {
            let columns = frame.plan.columns.iter().zip(frame.columns).filter(|(planned, _)| planned.searched);
            let columns = columns.filter_map(|(_, column)| *column);
            let started = self.batch.is_multiple_of(SAMPLE).then(Instant::now);
            let encoded = self.walk(class, |walk| columns.for_each(|column| walk.column(column, rows)));
            if let Some(started) = started {
                self.charge_keywords(view, started.elapsed().as_nanos() as u64);
            }
            frame.keywords.extend(encoded.map(|encoded| (view, encoded)));
        }
    }

    /// Charges a search for keywords to all of them, so to rules by how many each has: without them there would be none.
    fn charge_keywords(&mut self, view: ViewId, ns: u64) {
        let own = self.by_view.get(view as usize).into_iter().flatten();
        let own: Vec<PredicateId> = own.filter(|id| self.needed.get(**id as usize) == Some(&true)).copied().collect();
        let each = ns / own.len().max(1) as u64;
        self.scratch.charged.extend(own.into_iter().map(|id| (id, each)));
    }

    /// Walks the values of a column in some rows, unless that was done.
    fn encode(&mut self, at: usize, rows: &Bitmap, frame: &mut Frame<'_>) {
        let class = frame.plan.columns.get(at).and_then(|planned| planned.class);
        let (Some(class), Some(Some(column)), Some(None)) = (class, frame.columns.get(at), frame.encoded.get(at))
        else {
            return;
        };
        let encoded = self.walk(class, |walk| walk.column(*column, rows));
        if let Some(place) = frame.encoded.get_mut(at) {
            *place = encoded;
        }
    }

    /// Walks values that are asked for the predicates of a class.
    fn walk(&mut self, class: ClassId, values: impl FnOnce(&mut Walk<'_>)) -> Option<frame::Encoded> {
        let state = self.classes.get_mut(class as usize)?.state(&self.rules, &self.by_view, &self.needed);
        if state.predicates.is_empty() {
            return None;
        }
        self.walks += 1;
        let mut walk = Walk::new(state, &mut self.scratch, &self.index.keys, self.batch, self.walks);
        values(&mut walk);
        self.remembered += walk.remembered;
        self.counts.values += u64::from(walk.looked_up);
        self.counts.decided += u64::from(walk.decided);
        let encoded = walk.finish();
        for (number, ns) in self.scratch.timed.drain(..) {
            let predicates = state.predicates.get(number as usize).into_iter().flatten();
            self.scratch.charged.extend(predicates.map(|id| (*id, ns)));
        }
        Some(encoded)
    }

    /// Runs the rules that may match.
    fn combine(&mut self, rows: &RecordBatch, live: &[(usize, Bitmap)], frame: &mut Frame<'_>) -> Vec<(usize, usize)> {
        let rules = frame.rules;
        let mut masks: Vec<Option<&Bitmap>> = vec![None; rules.log_sources.len()];
        let mut candidates = Vec::new();
        for (at, rows) in live {
            if let (Some(mask), Some(routed)) = (masks.get_mut(*at), rules.log_sources.get(*at)) {
                *mask = Some(rows);
                candidates.extend(&routed.unwitnessed);
            }
        }
        let witnessed = frame.holding().filter_map(|predicate| rules.witnessed.get(predicate as usize)).flatten();
        candidates.extend(witnessed.map(|at| *at as usize));
        let mut tenants: FxHashMap<&str, Bitmap> = FxHashMap::default();
        let mut found = Vec::new();
        for at in candidates {
            let (Some(rule), Some(tried)) = (rules.rules.get(at), self.tried.get_mut(at)) else { continue };
            let Some(Some(mask)) = masks.get(rule.log_source) else { continue };
            if std::mem::replace(tried, self.batch) == self.batch || self.budget.is_parked(at) {
                continue;
            }
            self.counts.candidates += 1;
            let started = Instant::now();
            let mut matched = frame.run(&rule.program, mask, &view_of(rules));
            if let Some(org_id) = rule.org_id.as_deref()
                && !matched.is_empty()
            {
                matched.and(tenants.entry(org_id).or_insert_with(|| rows_of_tenant(rows, org_id)));
            }
            for filters in [Some(&rule.filters), rules.log_sources.get(rule.log_source).map(|routed| &routed.filters)] {
                if let Some(filters) = filters
                    && !matched.is_empty()
                {
                    self.counts.filtered += suppress(filters, rules, &self.budget, rows, &mut matched, frame);
                }
            }
            found.extend(matched.iter().map(|row| (row, at)));
            self.budget.sampled(at, started.elapsed().as_nanos() as u64, 1);
        }
        found
    }

    /// Charges rules for what their predicates took, and parks those that are too slow.
    fn settle(&mut self, rows: u64) {
        for (predicate, ns) in self.scratch.charged.drain(..) {
            for rule in self.rules.users.get(predicate as usize).into_iter().flatten() {
                self.budget.sampled(*rule as usize, ns, SAMPLE);
            }
        }
        let parked = self.budget.end_batch(rows, &self.rules);
        self.leave_out(&parked);
    }

    /// Parks a rule because another evaluator found it too slow.
    pub fn park(&mut self, rule: usize, reason: &str) {
        self.budget.park_for(rule, reason.to_owned(), &self.rules);
        self.leave_out(&[rule]);
    }

    /// Goes on without rules that were parked.
    fn leave_out(&mut self, parked: &[usize]) {
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
        self.find_needed();
        self.index.forget_plans();
        let of_parked = |class: &&mut Class| class.views().iter().any(|view| views.contains(view));
        self.classes.iter_mut().filter(of_parked).for_each(Class::rules_changed);
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
    let before = matched.len();
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
    (before - matched.len()) as u64
}
