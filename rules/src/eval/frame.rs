//! One batch while it is evaluated: which rows satisfy which predicate, and which program.

use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::bitmap::Bitmap;
use crate::compile::RuleSet;
use crate::compile::interner::View;
use crate::compile::matcher::Place;
use crate::compile::program::{Node, PredicateId, ViewId};
use crate::eval::column::Column;
use crate::eval::plan::Plan;
use crate::eval::watch::{Meter, piece_of};
use crate::fold::fold;

/// A column of one batch, or all that keywords are searched in: which rows have which of the values that satisfy anything.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    /// (predicate, value), ascending.
    hits: Vec<(PredicateId, u32)>,
    /// Where the rows of each value start in `rows`; one more at the end.
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Encoded {
    /// From (value, row) pairs in row order, of `values` values.
    pub fn new(mut hits: Vec<(PredicateId, u32)>, pairs: &[(u32, u32)], values: usize) -> Self {
        hits.sort_unstable();
        let mut starts = vec![0u32; values + 1];
        for (value, _) in pairs {
            if let Some(count) = starts.get_mut(*value as usize + 1) {
                *count += 1;
            }
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut rows = vec![0u32; pairs.len()];
        for (value, row) in pairs {
            if let Some(at) = next.get_mut(*value as usize)
                && let Some(place) = rows.get_mut(*at as usize)
            {
                *place = *row;
                *at += 1;
            }
        }
        Self { hits, starts, rows }
    }

    /// The predicates that any value satisfies, ascending.
    fn predicates(&self) -> impl Iterator<Item = PredicateId> + '_ {
        self.hits.chunk_by(|(left, _), (right, _)| left == right).filter_map(|same| Some(same.first()?.0))
    }

    /// Adds the rows that satisfy a predicate.
    fn add_rows_of(&self, predicate: PredicateId, bitmap: &mut Bitmap) {
        let from = self.hits.partition_point(|(own, _)| *own < predicate);
        for (_, value) in self.hits.get(from..).into_iter().flatten().take_while(|(own, _)| *own == predicate) {
            let bounds = (self.starts.get(*value as usize), self.starts.get(*value as usize + 1));
            if let (Some(start), Some(end)) = bounds {
                let rows = self.rows.get(*start as usize..*end as usize);
                rows.into_iter().flatten().for_each(|row| bitmap.insert(*row as usize));
            }
        }
    }
}

/// A batch under evaluation.
pub(crate) struct Frame<'a> {
    pub rows: usize,
    pub rules: &'a RuleSet,
    pub plan: &'a Plan,
    /// In the order of the plan.
    pub columns: &'a [Option<Column<'a>>],
    encoded: Vec<Vec<Encoded>>,
    /// For each column, the rows whose values were walked.
    walked: Vec<Option<Bitmap>>,
    /// Of keyword views: all columns that are searched.
    pub keywords: Vec<(ViewId, Encoded)>,
    bitmaps: FxHashMap<PredicateId, Bitmap>,
    /// How long the fields of rows may be compared with each other for one rule.
    compare_ns_max: u64,
    /// What that took for the rule of now.
    meter: Option<Meter>,
    /// Steps until the meter is asked.
    steps_left: usize,
    /// Whether that was too long.
    cut: bool,
}

/// Bytes that count as one step when one value is looked for in another.
const STEP_BYTES: usize = 16;

impl<'a> Frame<'a> {
    pub fn new(
        rows: usize,
        rules: &'a RuleSet,
        (plan, columns): (&'a Plan, &'a [Option<Column<'a>>]),
        compare_ns_max: u64,
    ) -> Self {
        Self {
            compare_ns_max,
            meter: None,
            steps_left: piece_of(1),
            cut: false,
            rows,
            rules,
            plan,
            columns,
            encoded: std::iter::repeat_with(Vec::new).take(columns.len()).collect(),
            walked: vec![None; columns.len()],
            keywords: Vec::new(),
            bitmaps: FxHashMap::default(),
        }
    }

    /// Ends the run of a rule or a filter. Whether it took so long that it was given up; what it gave says nothing then.
    pub fn take_cut(&mut self) -> bool {
        self.meter = None;
        std::mem::take(&mut self.cut)
    }

    /// Whether fields may go on being compared, after so many steps more.
    fn goes_on(&mut self, steps: usize) -> bool {
        self.steps_left = self.steps_left.saturating_sub(steps);
        if self.steps_left == 0 {
            self.steps_left = piece_of(1);
            self.cut = !self.meter.as_mut().is_none_or(Meter::goes_on);
        }
        !self.cut
    }

    /// Of these rows, those whose values in a column were not walked yet; they count as walked from now on.
    pub fn take_open(&mut self, column: usize, mut rows: Bitmap) -> Bitmap {
        match self.walked.get_mut(column) {
            Some(Some(walked)) => {
                rows.and_not(walked);
                walked.or(&rows);
            }
            Some(none) => *none = Some(rows.clone()),
            None => {}
        }
        rows
    }

    /// Adds what was found in a column.
    pub fn add(&mut self, column: usize, encoded: Encoded) {
        if let Some(own) = self.encoded.get_mut(column) {
            own.push(encoded);
        }
    }

    /// The rows of `mask` in which any of the predicates holds, as far as values were walked. Unlike
    /// [`satisfied`](Self::satisfied) it may be asked before all values that the predicates look at were.
    pub fn any_of(
        &self,
        predicates: &[PredicateId],
        mask: &Bitmap,
        view_of: &impl Fn(PredicateId) -> ViewId,
    ) -> Bitmap {
        let mut rows = Bitmap::empty(self.rows);
        for predicate in predicates {
            match self.bitmaps.get(predicate) {
                Some(known) => rows.or(known),
                None => self.find_into(*predicate, view_of(*predicate), &mut rows),
            }
        }
        rows.and(mask);
        rows
    }

    /// The predicates that hold somewhere in what was encoded so far; some more than once.
    pub fn holding(&self) -> impl Iterator<Item = PredicateId> + '_ {
        let keywords = self.keywords.iter().map(|(_, encoded)| encoded);
        self.encoded.iter().flatten().chain(keywords).flat_map(Encoded::predicates)
    }

    fn is_keywords(&self, view: ViewId) -> bool {
        matches!(self.rules.views.get(view as usize), Some(View::Keywords { .. }))
    }

    /// The columns of a view, best first.
    fn columns_of(&self, view: ViewId) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let columns = self.columns;
        let own = self.plan.views.get(&view).into_iter().flatten();
        own.filter_map(move |at| columns.get(*at as usize).copied().flatten())
    }

    /// The rows with a value in the view.
    fn present(&self, view: ViewId) -> Bitmap {
        let mut present = Bitmap::empty(self.rows);
        if self.is_keywords(view) {
            let searched = self.plan.columns.iter().zip(self.columns).filter(|(planned, _)| planned.searched);
            searched.filter_map(|(_, column)| *column).for_each(|column| present.or(&column.validity(self.rows)));
        } else {
            self.columns_of(view).for_each(|column| present.or(&column.validity(self.rows)));
        }
        present
    }

    /// The rows of `mask` for which the program is true.
    pub fn run(&mut self, program: &Node, mask: &Bitmap, view_of: &impl Fn(PredicateId) -> ViewId) -> Bitmap {
        match program {
            Node::Predicate(id) => {
                let mut rows = mask.clone();
                rows.and(self.satisfied(*id, view_of(*id)));
                rows
            }
            Node::Present(view) => {
                let mut rows = self.present(*view);
                rows.and(mask);
                rows
            }
            Node::Fields { left, right, place, cased } => self.related(*left, *right, *place, *cased, mask),
            Node::And(nodes) => {
                let mut rows = mask.clone();
                for node in nodes {
                    if rows.is_empty() {
                        break;
                    }
                    rows = self.run(node, &rows, view_of);
                }
                rows
            }
            Node::Or(nodes) => {
                let mut rows = Bitmap::empty(self.rows);
                for node in nodes {
                    rows.or(&self.run(node, mask, view_of));
                }
                rows
            }
            Node::Not(node) => {
                let mut rows = mask.clone();
                rows.and_not(&self.run(node, mask, view_of));
                rows
            }
            Node::AtLeast(least, nodes) => {
                let mut counts = vec![0usize; self.rows];
                for node in nodes {
                    for row in self.run(node, mask, view_of).iter() {
                        counts[row] += 1;
                    }
                }
                let mut rows = Bitmap::empty(self.rows);
                mask.iter().filter(|row| counts[*row] >= *least).for_each(|row| rows.insert(row));
                rows
            }
        }
    }

    /// The rows that satisfy a predicate: of each row, the first column of the view that has a value counts.
    pub fn satisfied(&mut self, predicate: PredicateId, view: ViewId) -> &Bitmap {
        if !self.bitmaps.contains_key(&predicate) {
            let mut rows = Bitmap::empty(self.rows);
            self.find_into(predicate, view, &mut rows);
            self.bitmaps.insert(predicate, rows);
        }
        self.bitmaps.entry(predicate).or_default()
    }

    fn find_into(&self, predicate: PredicateId, view: ViewId, found: &mut Bitmap) {
        if self.is_keywords(view) {
            let own = self.keywords.iter().filter(|(own, _)| *own == view);
            own.for_each(|(_, encoded)| encoded.add_rows_of(predicate, found));
            return;
        }
        let Some(own) = self.plan.views.get(&view) else { return };
        let encoded = |at: usize| self.encoded.get(at).into_iter().flatten();
        if let [only] = own.as_slice() {
            encoded(*only as usize).for_each(|encoded| encoded.add_rows_of(predicate, found));
            return;
        }
        let mut open = Bitmap::full(self.rows);
        for at in own {
            let at = *at as usize;
            let mut rows = Bitmap::empty(self.rows);
            encoded(at).for_each(|encoded| encoded.add_rows_of(predicate, &mut rows));
            rows.and(&open);
            found.or(&rows);
            if let Some(Some(column)) = self.columns.get(at) {
                open.and_not(&column.validity(self.rows));
            }
        }
    }

    fn related(&mut self, left: ViewId, right: ViewId, place: Place, cased: bool, mask: &Bitmap) -> Bitmap {
        let mut rows = Bitmap::empty(self.rows);
        if self.cut {
            return rows;
        }
        let mut buffer = String::new();
        let columns = |view: ViewId| self.columns_of(view).collect::<Vec<_>>();
        let (left, right) = (columns(left), columns(right));
        let mut read = |columns: &[Column<'_>], row: usize| {
            let mut values = Vec::new();
            for column in columns {
                let mut take =
                    |value: &str| values.push(if cased { value.to_owned() } else { fold(value).into_owned() });
                if column.read(row, &mut buffer, &mut take) {
                    break;
                }
            }
            values
        };
        let (now, ns_max) = (Instant::now(), self.compare_ns_max);
        self.meter.get_or_insert_with(|| Meter::new(now, ns_max)).resume(now);
        let steps_of = |value: &String| 1 + value.len() / STEP_BYTES;
        for row in mask.iter() {
            let (lefts, rights) = (read(&left, row), read(&right, row));
            let mut found = false;
            let read_steps = lefts.iter().chain(&rights).map(steps_of).sum();
            if !self.goes_on(read_steps) {
                return Bitmap::empty(self.rows);
            }
            for left in &lefts {
                found |= rights.iter().any(|right| place.holds(left, right));
                if !self.goes_on(rights.len() * steps_of(left)) {
                    return Bitmap::empty(self.rows);
                }
                if found {
                    break;
                }
            }
            if found {
                rows.insert(row);
            }
        }
        rows
    }
}

/// Columns that are to be walked, and in which rows.
pub(crate) struct Wanted {
    pub columns: Vec<Option<Bitmap>>,
}

impl Wanted {
    pub fn new(frame: &Frame<'_>) -> Self {
        Self { columns: vec![None; frame.columns.len()] }
    }

    pub fn add(&mut self, column: u32, rows: &Bitmap) {
        match self.columns.get_mut(column as usize) {
            Some(Some(place)) => place.or(rows),
            Some(none) => *none = Some(rows.clone()),
            None => {}
        }
    }
}
