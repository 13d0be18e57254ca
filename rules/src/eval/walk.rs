//! Walks the values of columns: each distinct value of a batch is looked up, or decided, once.

use std::sync::Arc;

use arrow::array::Array;

use crate::bitmap::Bitmap;
use crate::compile::program::PredicateId;
use crate::eval::class::State;
use crate::eval::column::{Column, push_int};
use crate::eval::decider::Scratch;
use crate::eval::frame::Encoded;
use crate::eval::judge::Judge;
use crate::eval::memo::{Keys, Met};
use crate::eval::watch::Watch;

/// The walk over values that are asked for the same predicates, in one batch.
pub(crate) struct Walk<'a> {
    state: &'a mut State,
    scratch: &'a mut Scratch,
    judge: Judge<'a>,
    keys: &'a Keys,
    batch: u64,
    /// The number of this walk: no other of the evaluator has it.
    stamp: u64,
    /// Values are decided without a look into the memo.
    bypass: bool,
    /// Values of a column are compared with those met a short time ago.
    recent: bool,
    /// Distinct values that satisfy something.
    values: u32,
    /// Lookups, and values that had to be decided.
    pub looked_up: u32,
    pub decided: u32,
    /// Values that are new in the memo, or back from its old generation.
    pub remembered: usize,
    hits: Vec<(PredicateId, u32)>,
    pairs: Vec<(u32, u32)>,
    satisfied: Vec<u32>,
    buffer: String,
}

impl<'a> Walk<'a> {
    pub fn new(
        state: &'a mut State,
        (scratch, judge): (&'a mut Scratch, Judge<'a>),
        keys: &'a Keys,
        (batch, stamp): (u64, u64),
    ) -> Self {
        let idle = state.trial.bypass(batch);
        judge.stop(&state.predicates, &mut scratch.watch);
        scratch.watch.share(!state.shares.is_empty());
        // To search a value for keywords takes hardly longer than to hash it.
        let bypass = idle || state.keywords;
        Self {
            state,
            scratch,
            judge,
            keys,
            batch,
            stamp,
            bypass,
            recent: !idle,
            values: 0,
            looked_up: 0,
            decided: 0,
            remembered: 0,
            hits: Vec::new(),
            pairs: Vec::new(),
            satisfied: Vec::new(),
            buffer: String::new(),
        }
    }

    /// Walks the values of a column in some rows.
    pub fn column(&mut self, column: Column<'_>, rows: &Bitmap) {
        match column {
            Column::List(lists) => {
                let items = lists.values();
                let Some(items) = Column::new(items) else { return };
                let offsets = lists.value_offsets();
                let range = |row: usize| match (offsets.get(row), offsets.get(row + 1)) {
                    (Some(start), Some(end)) if lists.is_valid(row) => *start as usize..*end as usize,
                    _ => 0..0,
                };
                let pairs = rows.iter().flat_map(|row| range(row).map(move |item| (item, row as u32)));
                self.scalars(items, lists.values().len(), pairs);
            }
            Column::Rest(values) => {
                for (row, value) in values.iter().filter(|(row, _)| rows.contains(*row as usize)) {
                    if let Some(number) = self.number(value) {
                        self.pairs.push((number, *row));
                    }
                }
            }
            scalars => {
                // Most columns have few values: rows without one are left out 64 at a time.
                let mut rows = rows.clone();
                rows.and(&scalars.validity(rows.bound()));
                self.scalars(scalars, rows.len(), rows.iter().map(|row| (row, row as u32)));
            }
        }
    }

    /// Walks about `count` scalars: (item, row). A value that is that of the item before costs one comparison.
    fn scalars(&mut self, column: Column<'_>, count: usize, items: impl Iterator<Item = (usize, u32)>) {
        match column {
            Column::Text(array) => {
                let mut last: Option<(&str, Option<u32>)> = None;
                let mut recent = Recent::new(self.recent && count >= RECENT_COUNT_MIN);
                for (item, row) in items.filter(|(item, _)| array.is_valid(*item)) {
                    let value = array.value(item);
                    let number = match last {
                        Some((known, number)) if known == value => number,
                        _ => recent.get_or(value, || self.number(value)),
                    };
                    last = Some((value, number));
                    if let Some(number) = number {
                        self.pairs.push((number, row));
                    }
                }
            }
            Column::Int(array) => {
                let mut last: Option<(i64, Option<u32>)> = None;
                for (item, row) in items.filter(|(item, _)| array.is_valid(*item)) {
                    let value = array.value(item);
                    let number = match last {
                        Some((known, number)) if known == value => number,
                        _ => self.int(value),
                    };
                    last = Some((value, number));
                    if let Some(number) = number {
                        self.pairs.push((number, row));
                    }
                }
            }
            Column::Bool(array) => {
                let mut known: [Option<Option<u32>>; 2] = [None; 2];
                for (item, row) in items.filter(|(item, _)| array.is_valid(*item)) {
                    let value = array.value(item);
                    let Some(known) = known.get_mut(usize::from(value)) else { continue };
                    let number = *known.get_or_insert_with(|| self.number(if value { "true" } else { "false" }));
                    if let Some(number) = number {
                        self.pairs.push((number, row));
                    }
                }
            }
            other => {
                let mut buffer = std::mem::take(&mut self.buffer);
                for (item, row) in items {
                    let mut number = None;
                    other.read(item, &mut buffer, &mut |value| number = self.number(value));
                    if let Some(number) = number {
                        self.pairs.push((number, row));
                    }
                }
                self.buffer = buffer;
            }
        }
    }

    fn int(&mut self, value: i64) -> Option<u32> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        push_int(value, &mut buffer);
        let number = self.number(&buffer);
        self.buffer = buffer;
        number
    }

    /// The number of the value among those of the walk that satisfy something.
    fn number(&mut self, value: &str) -> Option<u32> {
        let State { decider, memo, predicates, shares, .. } = &mut *self.state;
        let (predicates, shares) = (predicates.as_slice(), shares.as_slice());
        let (scratch, satisfied, judge) = (&mut *self.scratch, &mut self.satisfied, &mut self.judge);
        let mut look = |watch: &mut Watch| judge.look(predicates, shares, watch);
        if scratch.watch.is_due() {
            look(&mut scratch.watch);
        }
        self.looked_up += 1;
        if !decider.may_satisfy(value) {
            return None;
        }
        if self.bypass {
            self.decided += 1;
            decider.decide(value, scratch, &mut look, satisfied);
            if satisfied.is_empty() {
                return None;
            }
            let number = self.values;
            self.values += 1;
            self.hits.extend(ids(satisfied, predicates).map(|id| (id, number)));
            return Some(number);
        }
        let (decided, met) = memo.get_or_decide(self.keys.key_of(value), || {
            decider.decide(value, scratch, &mut look, satisfied);
            (!satisfied.is_empty()).then(|| Arc::from(satisfied.as_slice()))
        });
        // A value that comes back from the old generation counts for the bound of the young one again.
        self.remembered += usize::from(met != Met::Young);
        self.decided += u32::from(met == Met::New);
        let satisfied = decided.satisfied.as_ref()?;
        if decided.walk != self.stamp {
            decided.walk = self.stamp;
            decided.number = self.values;
            self.values += 1;
            self.hits.extend(ids(satisfied, predicates).map(|id| (id, decided.number)));
        }
        Some(decided.number)
    }

    /// What was found.
    pub fn finish(mut self) -> Encoded {
        self.judge.charge(&self.state.predicates, &self.state.shares, &mut self.scratch.watch);
        if !self.bypass {
            self.state.trial.count(self.looked_up, self.looked_up - self.decided, self.batch);
        }
        Encoded::new(self.hits, &self.pairs, self.values as usize)
    }
}

/// Slots of [`Recent`].
const RECENT: usize = 128;
/// Fewer values than this are not worth the slots.
const RECENT_COUNT_MIN: usize = 256;

/// Values of one column that were looked up a short time ago: comparing with one costs less than hashing all of a value, and less
/// than the cache misses of the memo.
struct Recent<'a> {
    slots: Vec<Option<(&'a str, Option<u32>)>>,
}

impl<'a> Recent<'a> {
    fn new(on: bool) -> Self {
        Self { slots: if on { vec![None; RECENT] } else { Vec::new() } }
    }

    fn get_or(&mut self, value: &'a str, find: impl FnOnce() -> Option<u32>) -> Option<u32> {
        let Some(slot) = self.slots.get_mut(slot_of(value)) else { return find() };
        match slot {
            Some((known, number)) if *known == value => *number,
            _ => {
                let number = find();
                *slot = Some((value, number));
                number
            }
        }
    }
}

/// From the ends and the middle of a value.
fn slot_of(value: &str) -> usize {
    let bytes = value.as_bytes();
    let word = |from: usize| {
        let word = bytes.get(from..from + 8).and_then(|word| word.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    };
    let mixed = match bytes.len() {
        length @ 8.. => word(0) ^ word(length - 8).rotate_left(21) ^ word((length - 8) / 2).rotate_left(42),
        _ => bytes.iter().fold(0, |mixed, byte| mixed << 8 | u64::from(*byte)),
    };
    let mixed = (mixed ^ bytes.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 57) as usize
}

fn ids<'a>(numbers: &'a [u32], predicates: &'a [Vec<PredicateId>]) -> impl Iterator<Item = PredicateId> + 'a {
    numbers.iter().filter_map(|number| predicates.get(*number as usize)).flatten().copied()
}
