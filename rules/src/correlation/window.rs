//! Measures a window as it moves over the events of a group.
//!
//! A [`Gauge`] knows what is in one window, and follows when the window moves, event by event, in either direction. So a
//! window that moves on with the events costs the same for each event, however many it holds; only an ordered sequence is gone
//! through whole: see [`index`](super::index) for what is done where that would be too much.

use rsigma_parser::CorrelationType;
use rustc_hash::FxHashMap;

use crate::correlation::amount::{Amount, Unit};
use crate::correlation::condition::Expression;
use crate::correlation::definition::{Condition, Definition};
use crate::correlation::entry::Entry;
use crate::correlation::line;
use crate::correlation::sorted::Sorted;

/// What is in a window: the entries from `from` up to `to`, of at most 2²⁰.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauge {
    from: u32,
    to: u32,
    content: Content,
}

#[derive(Debug, Clone, Default)]
enum Content {
    /// Only their number matters.
    #[default]
    Count,
    /// How many entries have each value.
    Values(FxHashMap<[u64; 2], u32>),
    /// How many entries there are of each rule.
    Rules(Vec<u32>),
    /// The sum in units, and how many of the amounts are floats.
    Sum { units: Units, floats: u32, unit: Unit },
    /// All amounts in order.
    Sorted(Sorted),
}

/// A sum in two halves, so that a gauge stays small.
#[derive(Debug, Clone, Copy, Default)]
struct Units([u64; 2]);

impl Units {
    fn get(self) -> i128 {
        let [low, high] = self.0;
        ((u128::from(high) << 64) | u128::from(low)) as i128
    }

    fn add(&mut self, units: i128) {
        let sum = self.get() + units;
        self.0 = [sum as u64, (sum >> 64) as u64];
    }
}

impl Gauge {
    pub fn new(definition: &Definition) -> Self {
        let content = match definition.kind {
            CorrelationType::EventCount => Content::Count,
            CorrelationType::ValueCount => Content::Values(FxHashMap::default()),
            CorrelationType::Temporal | CorrelationType::TemporalOrdered => {
                Content::Rules(vec![0; definition.rules.len()])
            }
            CorrelationType::ValueSum | CorrelationType::ValueAvg => {
                let unit = match &definition.condition {
                    Condition::Bounds(bounds) => bounds.unit(),
                    Condition::Expression(_) => Unit::of(std::iter::empty()),
                };
                Content::Sum { units: Units::default(), floats: 0, unit }
            }
            CorrelationType::ValuePercentile | CorrelationType::ValueMedian => Content::Sorted(Sorted::default()),
        };
        Self { from: 0, to: 0, content }
    }

    fn from(&self) -> usize {
        self.from as usize
    }

    fn to(&self) -> usize {
        self.to as usize
    }

    /// Takes up an entry that was put into the list at `at`, which is no longer as it was.
    pub fn inserted(&mut self, at: usize, entry: &Entry) {
        if at < self.from() {
            self.from += 1;
            self.to += 1;
        } else if at < self.to() {
            self.add(entry);
            self.to += 1;
        }
    }

    /// The first `count` entries are about to be taken off the list.
    pub fn cut(&mut self, entries: &[Entry], count: usize) {
        if self.from() < count {
            let to = self.to().max(count);
            self.seek(entries, count, to);
        }
        self.from -= count as u32;
        self.to -= count as u32;
    }

    /// Over how many entries it moves to get to a window.
    pub fn distance(&self, from: usize, to: usize) -> usize {
        if from >= self.to() || to <= self.from() {
            return self.to() - self.from() + to.saturating_sub(from);
        }
        self.from().abs_diff(from) + self.to().abs_diff(to)
    }

    /// How many entries of a window are not in this one, at most.
    pub fn outside(&self, from: usize, to: usize) -> usize {
        self.from().saturating_sub(from) + to.saturating_sub(self.to())
    }

    /// Moves to the window from `from` up to `to`; over how many entries.
    pub fn seek(&mut self, entries: &[Entry], from: usize, to: usize) -> u64 {
        let (mut own_from, mut own_to, mut moved) = (self.from(), self.to(), 0);
        if from >= own_to || to <= own_from {
            for at in own_from..own_to {
                entries.get(at).into_iter().for_each(|entry| self.remove(entry));
                moved += 1;
            }
            (own_from, own_to) = (from, from);
        }
        while own_to < to {
            entries.get(own_to).into_iter().for_each(|entry| self.add(entry));
            own_to += 1;
            moved += 1;
        }
        while own_from > from {
            own_from -= 1;
            entries.get(own_from).into_iter().for_each(|entry| self.add(entry));
            moved += 1;
        }
        while own_to > to {
            own_to -= 1;
            entries.get(own_to).into_iter().for_each(|entry| self.remove(entry));
            moved += 1;
        }
        while own_from < from {
            entries.get(own_from).into_iter().for_each(|entry| self.remove(entry));
            own_from += 1;
            moved += 1;
        }
        (self.from, self.to) = (own_from as u32, own_to as u32);
        moved
    }

    fn add(&mut self, entry: &Entry) {
        match &mut self.content {
            Content::Count => {}
            Content::Values(counts) => *counts.entry(entry.value.hash()).or_default() += 1,
            Content::Rules(counts) => counts.get_mut(usize::from(entry.slot)).into_iter().for_each(|count| *count += 1),
            Content::Sum { units, floats, unit } => {
                let amount = entry.value.to_amount();
                units.add(unit.count(amount));
                *floats += u32::from(matches!(amount, Amount::Float(_)));
            }
            Content::Sorted(amounts) => amounts.insert(entry.value.to_amount()),
        }
    }

    fn remove(&mut self, entry: &Entry) {
        match &mut self.content {
            Content::Count => {}
            Content::Values(counts) => {
                let hash = entry.value.hash();
                if let Some(count) = counts.get_mut(&hash) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&hash);
                    }
                }
            }
            Content::Rules(counts) => counts.get_mut(usize::from(entry.slot)).into_iter().for_each(|count| *count -= 1),
            Content::Sum { units, floats, unit } => {
                let amount = entry.value.to_amount();
                units.add(-unit.count(amount));
                *floats -= u32::from(matches!(amount, Amount::Float(_)));
            }
            Content::Sorted(amounts) => amounts.remove(entry.value.to_amount()),
        }
    }

    /// Whether a window of `more` entries beside those of this one cannot hold, so that it need not be looked at.
    pub fn is_hopeless(&self, needed: u64, more: usize) -> bool {
        match &self.content {
            Content::Values(counts) => ((counts.len() + more) as u64) < needed,
            _ => false,
        }
    }

    /// Measures the window, of which `window` is the entries: the value, and whether the condition holds. `None` when there is
    /// nothing to measure.
    pub fn measure(&self, definition: &Definition, window: &[Entry]) -> Option<(Amount, bool)> {
        let count = window.len() as u64;
        if count == 0 {
            return None;
        }
        let value = match &self.content {
            Content::Count => Amount::whole(count),
            Content::Values(counts) => Amount::whole(counts.len() as u64),
            Content::Rules(counts) => Amount::whole(counts.iter().filter(|count| **count > 0).count() as u64),
            Content::Sum { units, floats, unit } => {
                let Condition::Bounds(bounds) = &definition.condition else { return None };
                let of = if definition.kind == CorrelationType::ValueAvg { count } else { 1 };
                let units = units.get();
                let holds = bounds.hold_sum(*unit, units, of);
                // Only what fires is told, and then a group is quiet for a span.
                let known = !holds || (*floats == 0 && unit.is_least());
                let sum = if known { Amount::Exact(units) } else { line::sum(window) };
                return Some((sum.divided(of), holds));
            }
            Content::Sorted(amounts) => percentile(amounts, definition.percentile)?,
        };
        let holds = match &definition.condition {
            Condition::Bounds(bounds) => bounds.hold(value),
            Condition::Expression(expression) => {
                let seen = |slot: usize| match &self.content {
                    Content::Rules(counts) => counts.get(slot).is_some_and(|count| *count > 0),
                    _ => false,
                };
                expression.holds(&seen, &|slot| !seen(slot))
                    && (definition.kind != CorrelationType::TemporalOrdered || in_order(expression, window, &seen))
            }
        };
        Some((value, holds))
    }

    /// About how many bytes it may take on the heap for a group of so many events: by the events alone, whatever is in the
    /// window.
    pub fn bytes(&self, events: usize) -> usize {
        match &self.content {
            Content::Count | Content::Sum { .. } => 0,
            Content::Values(_) => events * 40,
            Content::Rules(counts) => counts.len() * 4,
            Content::Sorted(_) => events * 32,
        }
    }
}

/// The percentile by linear interpolation between the two closest ranks (`percentile_cont` of SQL).
fn percentile(sorted: &Sorted, percent: u64) -> Option<Amount> {
    let place = percent * (sorted.len() as u64).checked_sub(1)?;
    let low = sorted.get((place / 100) as usize)?;
    let high = sorted.get((place / 100) as usize + 1).unwrap_or(low);
    Some(low.towards(high, place % 100, 100))
}

/// Whether there are events, one after the other in the order of the rules, that satisfy the expression. Events of the same
/// time are in order.
fn in_order(expression: &Expression, window: &[Entry], seen: &impl Fn(usize) -> bool) -> bool {
    if let Expression::All(parts) = expression
        && parts.iter().enumerate().all(|(at, part)| *part == Expression::Seen(at))
    {
        return in_full_order(window, parts.len());
    }
    if let Expression::Seen(_) = expression {
        return true;
    }
    // Every set of rules that can be gone through in order; at most 8 rules, see `ORDERED_RULES_MAX`.
    let mut ways = [false; 256];
    if let Some(none) = ways.first_mut() {
        *none = true;
    }
    each_time(window, |slots| {
        for slot in slots {
            for way in 0..(1usize << slot).min(256) {
                if ways.get(way) == Some(&true)
                    && let Some(longer) = ways.get_mut(way | (1 << slot))
                {
                    *longer = true;
                }
            }
        }
        false
    });
    let holds = |way: usize| expression.holds(&|slot| way & (1 << slot) != 0, &|slot| !seen(slot));
    ways.iter().enumerate().any(|(way, reached)| *reached && holds(way))
}

/// Whether there are events of all `count` rules in order.
fn in_full_order(window: &[Entry], count: usize) -> bool {
    let mut reached = 0;
    each_time(window, |slots| {
        for slot in slots {
            reached += usize::from(*slot == reached);
        }
        reached >= count
    });
    reached >= count
}

/// Calls `visit` with the rules seen at each time, ascending, until it says that this is enough.
fn each_time(window: &[Entry], mut visit: impl FnMut(&[usize]) -> bool) {
    let mut slots = Vec::new();
    for same in window.chunk_by(|left, right| left.time == right.time) {
        slots.clear();
        slots.extend(same.iter().map(|entry| usize::from(entry.slot)));
        slots.sort_unstable();
        slots.dedup();
        if visit(&slots) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_small_and_a_sum_keeps_its_sign() {
        assert!(size_of::<Gauge>() <= 48, "{}", size_of::<Gauge>());
        let mut units = Units::default();
        for step in [5, -7, i128::from(u64::MAX) * 9, -i128::from(u64::MAX) * 20, 3] {
            let before = units.get();
            units.add(step);
            assert_eq!(units.get(), before + step);
        }
    }
}
