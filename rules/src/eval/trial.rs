//! One rule over events, row by row, to tell why each matched or not. Slow and plain: the
//! [`Evaluator`](crate::Evaluator) finds the same matches fast, which a test holds the two to.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tidegate_pipeline::LogBatch;

use super::column::Column;
use super::decider::{Decider, Scratch};
use super::plan::ColumnIndex;
use super::watch::Watch;
use crate::compile::RuleSet;
use crate::compile::interner::{View, is_name_of};
use crate::compile::matcher::Place;
use crate::compile::program::{Leaf, Node, PredicateId, ViewId};
use crate::explain::Numbers;
use crate::fold::fold;

/// Values remembered with what they satisfy, before all are forgotten.
const VALUES_MAX: usize = 200_000;
/// The most bytes of a value that is shown.
const SHOWN_BYTES_MAX: usize = 200;
/// The most values of a field that are shown.
const SHOWN_VALUES_MAX: usize = 4;

/// What became of events.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Findings {
    /// Events of the rule's table.
    pub events: u64,
    /// Those of them that the rule's log source covers.
    pub covered: u64,
    /// Those that the rule matches, before filters.
    pub matched: u64,
    /// Matches that a filter for everyone takes away.
    pub filtered: u64,
    /// For each predicate of the explanation: what it was asked, among the events covered.
    pub predicates: Vec<Asked>,
    /// For each field of the explanation: the columns that held it, and in how many events covered.
    pub columns: Vec<BTreeMap<String, u64>>,
    /// Events that matched, the first ones, and that a filter lets stay.
    pub matches: Vec<usize>,
    /// Events covered that came nearest to a match and did not, nearest first.
    pub nearest: Vec<Near>,
    /// Events that came nearest to being covered, when none is.
    pub uncovered: Vec<Near>,
    /// The values of `source`, and how many events have each.
    pub sources: BTreeMap<String, u64>,
}

/// How often a predicate was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Asked {
    /// Events with a value in its field.
    pub present: u64,
    /// Events of which it is true.
    pub satisfied: u64,
    /// Distinct values that it was decided for: what the evaluator has to do.
    pub decided: u64,
}

/// An event that did not match.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Near {
    /// Which event.
    pub event: usize,
    /// What would have to be otherwise: the fewest tests.
    pub reasons: Vec<Reason>,
}

/// One test that would have to come out otherwise.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reason {
    /// The number of the predicate in the explanation; `None` for a test of whether a field has a value, or of two fields.
    pub predicate: Option<usize>,
    /// What it is about.
    pub field: String,
    /// Whether it should have been true.
    pub wanted: bool,
    /// The values that the event has.
    pub values: Vec<String>,
}

/// Runs one rule over batches.
#[derive(Debug)]
pub struct Trial {
    set: Arc<RuleSet>,
    rule: usize,
    index: ColumnIndex,
    numbers: Numbers,
    /// The numbers of the log source's program.
    routing: Numbers,
    deciders: FxHashMap<PredicateId, Decider>,
    /// For each view, the values met and which of the predicates asked of it are satisfied.
    known: FxHashMap<ViewId, FxHashMap<String, Vec<PredicateId>>>,
    scratch: Scratch,
    /// The predicates of which one is true wherever the rule matches.
    witness: Vec<PredicateId>,
    nearest: BinaryHeap<Ranked>,
    uncovered: BinaryHeap<Ranked>,
    top: usize,
    findings: Findings,
}

/// A near miss in the heap: the farthest, and of these the latest, is on top.
#[derive(Debug, PartialEq, Eq)]
struct Ranked {
    distance: usize,
    near: Near,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.distance, self.near.event).cmp(&(other.distance, other.near.event))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What one event has, as far as the rule asks.
#[derive(Debug, Default)]
struct Row {
    /// Satisfied predicates.
    satisfied: BTreeSet<PredicateId>,
    /// The values of each view that has some.
    values: BTreeMap<ViewId, Vec<String>>,
}

impl Trial {
    /// A trial of a rule, which tells of at most `top` events; `None` when there is no rule of that index.
    pub fn new(set: Arc<RuleSet>, rule: usize, top: usize) -> Option<Self> {
        let own = set.rules.get(rule)?;
        let routed = set.log_sources.get(own.log_source)?;
        let mut numbers = Numbers::of_rule(&set, own);
        let mut routing = Numbers::default();
        routing.expression(&set, &routed.program);
        for filter in routed.filters.everyone.iter().chain(&own.filters.everyone) {
            if let Some(filter) = set.filters.get(*filter as usize) {
                numbers.expression(&set, &filter.keeps);
            }
        }
        let ids: BTreeSet<PredicateId> = numbers.predicates().iter().chain(routing.predicates()).copied().collect();
        let decider = |id: PredicateId| {
            let predicate = set.predicates.get(id as usize)?;
            Some((id, Decider::new(std::iter::once((id, predicate)))))
        };
        let deciders = ids.into_iter().filter_map(decider).collect();
        let selectivity = |id: PredicateId| set.predicates.get(id as usize).map_or(0, |own| own.matcher.selectivity());
        let findings = Findings {
            predicates: vec![Asked::default(); numbers.predicates().len()],
            columns: vec![BTreeMap::new(); numbers.views().count()],
            ..Findings::default()
        };
        Some(Self {
            index: ColumnIndex::new(&set.views).0,
            rule,
            numbers,
            routing,
            deciders,
            known: FxHashMap::default(),
            // Whoever asks for one rule waits for it.
            scratch: Scratch::new(Watch::new(u64::MAX)),
            witness: own.program.witness(&selectivity).map(|witness| witness.predicates).unwrap_or_default(),
            nearest: BinaryHeap::new(),
            uncovered: BinaryHeap::new(),
            top,
            findings,
            set,
        })
    }

    /// Looks at a batch whose rows are these events.
    pub fn batch(&mut self, batch: &LogBatch, events: &[usize]) {
        let set = self.set.clone();
        let Some(rule) = set.rules.get(self.rule) else { return };
        let Some(routed) = set.log_sources.get(rule.log_source) else { return };
        if batch.dataset != routed.dataset {
            return;
        }
        let rest = self.index.rest(&batch.rows);
        let columns = self.index.resolve(&batch.rows, &rest, &set.views);
        let names = ColumnNames::new(batch, &set);
        for (row, event) in events.iter().enumerate().take(batch.rows.num_rows()) {
            self.findings.events += 1;
            let seen = self.read(&columns, row, &self.routing_views());
            if let Some(source) = seen.values.get(&set.source_view).and_then(|values| values.first()) {
                *self.findings.sources.entry(source.clone()).or_default() += 1;
            }
            if !holds(&routed.program, &seen) {
                if self.findings.covered == 0 {
                    self.rank(&routed.program, &seen, *event, true);
                }
                continue;
            }
            self.findings.covered += 1;
            let own: Vec<ViewId> = self.numbers.views().collect();
            let seen = self.read(&columns, row, &own);
            self.count(&seen, &names, &columns, row);
            if !holds(&rule.program, &seen) {
                self.rank(&rule.program, &seen, *event, false);
                continue;
            }
            self.findings.matched += 1;
            let filters = routed.filters.everyone.iter().chain(&rule.filters.everyone);
            let mut keeps = filters.filter_map(|filter| set.filters.get(*filter as usize));
            if keeps.all(|filter| holds(&filter.keeps, &seen)) {
                if self.findings.matches.len() < self.top {
                    self.findings.matches.push(*event);
                }
            } else {
                self.findings.filtered += 1;
            }
        }
    }

    /// What was found in all batches.
    pub fn finish(mut self) -> Findings {
        let sorted = |heap: BinaryHeap<Ranked>| heap.into_sorted_vec().into_iter().map(|ranked| ranked.near).collect();
        self.findings.nearest = sorted(self.nearest);
        if self.findings.covered == 0 {
            self.findings.uncovered = sorted(self.uncovered);
        }
        self.findings
    }

    fn routing_views(&self) -> Vec<ViewId> {
        let mut views: Vec<ViewId> = self.routing.views().collect();
        views.push(self.set.source_view);
        views
    }

    /// Reads the values of one event and decides what was not met before.
    fn read(&mut self, columns: &[Vec<Column<'_>>], row: usize, views: &[ViewId]) -> Row {
        let mut seen = Row::default();
        let mut buffer = String::new();
        for view in views {
            let every = matches!(self.set.views.get(*view as usize), Some(View::Keywords { .. }));
            let mut values = Vec::new();
            for column in columns.get(*view as usize).into_iter().flatten() {
                if column.read(row, &mut buffer, &mut |value| values.push(value.to_owned())) && !every {
                    break;
                }
            }
            for value in &values {
                seen.satisfied.extend(self.satisfied(*view, value));
            }
            if !values.is_empty() {
                seen.values.insert(*view, values);
            }
        }
        seen
    }

    fn satisfied(&mut self, view: ViewId, value: &str) -> Vec<PredicateId> {
        let known = self.known.entry(view).or_default();
        if let Some(satisfied) = known.get(value) {
            return satisfied.clone();
        }
        if known.len() >= VALUES_MAX {
            known.clear();
        }
        let mut satisfied = Vec::new();
        let mut out = Vec::new();
        for (number, id) in self.numbers.predicates().iter().chain(self.routing.predicates()).enumerate() {
            let asked = self.set.predicates.get(*id as usize).is_some_and(|predicate| predicate.view == view);
            let (true, Some(decider)) = (asked, self.deciders.get_mut(id)) else { continue };
            decider.decide(value, &mut self.scratch, &mut |_| {}, &mut out);
            self.scratch.watch.timed.clear();
            satisfied.extend(out.iter().copied());
            if let Some(asked) = self.findings.predicates.get_mut(number) {
                asked.decided += 1;
            }
        }
        known.insert(value.to_owned(), satisfied.clone());
        satisfied
    }

    fn count(&mut self, seen: &Row, names: &ColumnNames, columns: &[Vec<Column<'_>>], row: usize) {
        for (asked, id) in self.findings.predicates.iter_mut().zip(self.numbers.predicates()) {
            let view = self.set.predicates.get(*id as usize).map(|predicate| predicate.view);
            asked.present += u64::from(view.is_some_and(|view| seen.values.contains_key(&view)));
            asked.satisfied += u64::from(seen.satisfied.contains(id));
        }
        let mut buffer = String::new();
        for (counts, view) in self.findings.columns.iter_mut().zip(self.numbers.views()) {
            let Some(View::Field(_)) = self.set.views.get(view as usize) else { continue };
            let own = columns.get(view as usize).into_iter().flatten().enumerate();
            let mut holding = own.filter_map(|(at, column)| column.read(row, &mut buffer, &mut |_| {}).then_some(at));
            if let Some(at) = holding.next() {
                *counts.entry(names.name(view, at)).or_default() += 1;
            }
        }
    }

    /// Keeps an event that did not make the program true if it is one of the nearest.
    fn rank(&mut self, program: &Node, seen: &Row, event: usize, routing: bool) {
        let mut distance = distance(program, seen, true).saturating_mul(2);
        // Of events that are as near, those that have what is rare about the rule tell more.
        if !routing && !self.witness.iter().any(|id| seen.satisfied.contains(id)) {
            distance = distance.saturating_add(1);
        }
        let heap = if routing { &self.uncovered } else { &self.nearest };
        let full = heap.len() >= self.top;
        if self.top == 0 || (full && heap.peek().is_some_and(|farthest| distance >= farthest.distance)) {
            return;
        }
        let mut leaves = Vec::new();
        nearest(program, seen, true, &mut leaves);
        let numbers = if routing { &self.routing } else { &self.numbers };
        let reasons = leaves.iter().map(|(node, wanted)| self.reason(node, *wanted, seen, numbers)).collect();
        let heap = if routing { &mut self.uncovered } else { &mut self.nearest };
        if full {
            heap.pop();
        }
        heap.push(Ranked { distance, near: Near { event, reasons } });
    }

    fn reason(&self, node: &Node, wanted: bool, seen: &Row, numbers: &Numbers) -> Reason {
        let mut views = Vec::new();
        node.visit(&mut |leaf| match leaf {
            Leaf::Predicate(id) => views.extend(self.set.predicates.get(id as usize).map(|own| own.view)),
            Leaf::View(view) => views.push(view),
        });
        let predicate = match node {
            Node::Predicate(id) => numbers.predicates().iter().position(|own| own == id),
            _ => None,
        };
        let names: Vec<String> = views.iter().map(|view| numbers.name(*view).to_owned()).collect();
        let values = views.iter().filter_map(|view| seen.values.get(view)).flatten().take(SHOWN_VALUES_MAX);
        let shorten =
            |value: &String| value.get(..value.floor_char_boundary(SHOWN_BYTES_MAX)).unwrap_or_default().to_owned();
        Reason { predicate, field: names.join(", "), wanted, values: values.map(shorten).collect() }
    }
}

/// The names of the columns of each view, in the order in which they are resolved.
struct ColumnNames(Vec<Vec<String>>);

impl ColumnNames {
    fn new(batch: &LogBatch, set: &RuleSet) -> Self {
        let schema = batch.rows.schema_ref();
        let names = set.views.iter().map(|view| match view {
            View::Field(columns) => {
                let of = |name: &String| {
                    let own: Vec<String> = schema
                        .fields()
                        .iter()
                        .map(|field| field.name())
                        .filter(|own| is_name_of(name, own))
                        .cloned()
                        .collect();
                    own
                };
                columns.iter().flat_map(of).collect()
            }
            View::Keywords { .. } => Vec::new(),
        });
        Self(names.collect())
    }

    fn name(&self, view: ViewId, at: usize) -> String {
        let names = self.0.get(view as usize);
        names.and_then(|names| names.get(at)).map_or(tidegate_events::REST_COLUMN, String::as_str).to_owned()
    }
}

/// Whether a program is true of an event.
fn holds(node: &Node, row: &Row) -> bool {
    match node {
        Node::Predicate(id) => row.satisfied.contains(id),
        Node::Present(view) => row.values.contains_key(view),
        Node::Fields { left, right, place, cased } => related(row, *left, *right, *place, *cased),
        Node::And(nodes) => nodes.iter().all(|node| holds(node, row)),
        Node::Or(nodes) => nodes.iter().any(|node| holds(node, row)),
        Node::Not(node) => !holds(node, row),
        Node::AtLeast(least, nodes) => nodes.iter().filter(|node| holds(node, row)).count() >= *least,
    }
}

fn related(row: &Row, left: ViewId, right: ViewId, place: Place, cased: bool) -> bool {
    let values = |view: ViewId| {
        let own = row.values.get(&view).into_iter().flatten();
        own.map(move |value| if cased { value.clone() } else { fold(value).into_owned() }).collect::<Vec<_>>()
    };
    let rights = values(right);
    values(left).iter().any(|left| rights.iter().any(|right| place.holds(left, right)))
}

/// How many tests would have to come out otherwise for the program to be `wanted`, at least.
fn distance(node: &Node, row: &Row, wanted: bool) -> usize {
    let each = |nodes: &[Node]| nodes.iter().map(|node| distance(node, row, wanted)).collect::<Vec<_>>();
    match node {
        Node::Not(node) => distance(node, row, !wanted),
        Node::And(nodes) if wanted => each(nodes).into_iter().fold(0, usize::saturating_add),
        Node::Or(nodes) if !wanted => each(nodes).into_iter().fold(0, usize::saturating_add),
        Node::And(nodes) | Node::Or(nodes) => each(nodes).into_iter().min().unwrap_or(FAR),
        Node::AtLeast(least, nodes) => {
            let needed = if wanted { *least } else { (nodes.len() + 1).saturating_sub(*least) };
            let mut costs = each(nodes);
            costs.sort_unstable();
            if needed > costs.len() { FAR } else { costs.into_iter().take(needed).fold(0, usize::saturating_add) }
        }
        leaf => usize::from(holds(leaf, row) != wanted),
    }
}

/// The distance of what cannot be: no event makes an empty alternative true.
const FAR: usize = 1 << 30;

/// The tests that [`distance`] counts, and what each should have been.
fn nearest<'n>(node: &'n Node, row: &Row, wanted: bool, out: &mut Vec<(&'n Node, bool)>) {
    match node {
        Node::Not(node) => nearest(node, row, !wanted, out),
        Node::And(nodes) if wanted => nodes.iter().for_each(|node| nearest(node, row, wanted, out)),
        Node::Or(nodes) if !wanted => nodes.iter().for_each(|node| nearest(node, row, wanted, out)),
        Node::And(nodes) | Node::Or(nodes) => {
            if let Some(best) = nodes.iter().min_by_key(|node| distance(node, row, wanted)) {
                nearest(best, row, wanted, out);
            }
        }
        Node::AtLeast(least, nodes) => {
            let needed = if wanted { *least } else { (nodes.len() + 1).saturating_sub(*least) };
            let mut ordered: Vec<&Node> = nodes.iter().collect();
            ordered.sort_by_key(|node| distance(node, row, wanted));
            ordered.into_iter().take(needed).for_each(|node| nearest(node, row, wanted, out));
        }
        leaf => {
            if holds(leaf, row) != wanted {
                out.push((leaf, wanted));
            }
        }
    }
}
