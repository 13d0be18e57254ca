//! Finds the window that an event completes without going through the windows that it is in.
//!
//! An event that comes in order is in one window that was not judged yet: the one that it ends. One that comes late is in the
//! windows that end at every event after it, up to a span; to judge each of them costs the square of their number, and an ordered
//! sequence is gone through whole besides. So a group that is large, and meets such an event, gets an index; it is kept up with
//! every event from then on. What it finds is what judging every window finds:
//!
//! - counts, sums, averages: the [`Levels`] of the windows, by their ends;
//! - percentiles: a level that says on which side of the bound the percentile lies, but for windows in which it lies between
//!   two events on either side of it: those are gone through, up to [`BETWEEN_STEPS_MAX`] events;
//! - temporal kinds: when each rule was seen. Seen in `[t, t + span)`: so over a stretch of a span the rules seen change at most
//!   twice for each rule. Of an ordered sequence through the new event, the latest start and the earliest end say which windows
//!   hold it.
//!
//! An index follows from the events of the group: it is not saved.

use std::collections::BTreeMap;

use rsigma_parser::CorrelationType;
use rustc_hash::FxHashMap;

use crate::correlation::amount::{Amount, Unit};
use crate::correlation::condition::{Bounds, Expression, Relation};
use crate::correlation::definition::{Condition, Definition};
use crate::correlation::entry::Entry;
use crate::correlation::levels::Levels;

/// The most events that are gone through, for one event, to judge windows whose percentile lies between two events.
const BETWEEN_STEPS_MAX: usize = 4_096;

/// What is known of the windows of a group.
#[derive(Debug)]
pub(crate) struct Index {
    kind: Kind,
    span: i64,
    /// What was looked at beside levels.
    looked_at: u64,
}

#[derive(Debug)]
enum Kind {
    Levels {
        levels: Levels,
        weigh: Weigh,
        /// The smallest level that satisfies the condition.
        least: i128,
        /// When each value was seen.
        values: FxHashMap<[u64; 2], Times>,
    },
    Rules {
        /// When each was seen, and how often then.
        seen: Vec<BTreeMap<i64, u32>>,
        /// The least sets of rules that satisfy an ordered condition.
        ways: Vec<Vec<usize>>,
    },
}

/// What an event adds to the windows that it is in.
#[derive(Debug, Clone, Copy)]
enum Weigh {
    Each,
    Distinct,
    Amount(Unit),
    /// What it has more than so many units.
    Above(Unit, i128),
    /// So much, and 100 less where its amount is below the bound: not above it when that is strict.
    Rank {
        percent: i128,
        bound: Amount,
        strict: bool,
    },
}

/// When a value was seen, and how often at each time.
#[derive(Debug)]
enum Times {
    Once(i64),
    Often(BTreeMap<i64, u32>),
}

impl Times {
    fn before(&self, time: i64) -> Option<i64> {
        match self {
            Self::Once(own) => Some(*own).filter(|own| *own < time),
            Self::Often(times) => times.range(..time).next_back().map(|(own, _)| *own),
        }
    }

    fn after(&self, time: i64) -> Option<i64> {
        match self {
            Self::Once(own) => Some(*own).filter(|own| *own > time),
            Self::Often(times) => times.range(time.saturating_add(1)..).next().map(|(own, _)| *own),
        }
    }

    /// Says whether the time is new.
    fn add(&mut self, time: i64) -> bool {
        if let Self::Once(own) = self {
            *self = Self::Often(BTreeMap::from([(*own, 1)]));
        }
        let Self::Often(times) = self else { return false };
        let count = times.entry(time).or_default();
        *count += 1;
        *count == 1
    }

    /// Whether the time is gone, and whether all are.
    fn remove(&mut self, time: i64) -> (bool, bool) {
        match self {
            Self::Once(_) => (true, true),
            Self::Often(times) => (take(times, time), times.is_empty()),
        }
    }
}

/// Takes one off; says whether the time is gone.
fn take(times: &mut BTreeMap<i64, u32>, time: i64) -> bool {
    match times.get_mut(&time) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        Some(_) => times.remove(&time).is_some(),
        None => false,
    }
}

/// The window that was found, and what could not be judged.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its end.
    pub end: Option<i64>,
    /// Windows that were passed over because that would have taken too long.
    pub unjudged: u64,
}

impl Index {
    /// The index of some events.
    pub fn new(definition: &Definition, needed: u64, entries: &[Entry]) -> Self {
        let kind = Kind::new(definition, needed);
        let mut index = Self { kind, span: definition.span.0, looked_at: 0 };
        entries.iter().for_each(|entry| index.insert(entry));
        index
    }

    /// About how many bytes the index of a group of so many events takes.
    pub fn bytes(kind: CorrelationType, events: usize) -> usize {
        let each = match kind {
            CorrelationType::ValueCount => 216,
            CorrelationType::Temporal | CorrelationType::TemporalOrdered => 56,
            _ => 136,
        };
        events * each
    }

    /// Takes up an event.
    pub fn insert(&mut self, entry: &Entry) {
        let end = entry.time.saturating_add(self.span);
        match &mut self.kind {
            Kind::Levels { levels, weigh, values, .. } => {
                match weigh.of(entry) {
                    Some(weight) => levels.raise(entry.time, end, weight),
                    None => {
                        let mut new = true;
                        let times = values.entry(entry.value.hash());
                        let times =
                            times.and_modify(|times| new = times.add(entry.time)).or_insert(Times::Once(entry.time));
                        if new {
                            let (from, to) = newly_seen(times, entry.time, self.span);
                            levels.raise(from, to, 1);
                        }
                    }
                }
                levels.set_end(entry.time, true);
            }
            Kind::Rules { seen, .. } => {
                if let Some(times) = seen.get_mut(usize::from(entry.slot)) {
                    *times.entry(entry.time).or_default() += 1;
                }
            }
        }
        self.looked_at += 1;
    }

    /// Forgets the first of the events; `next` is the time of the one after it.
    pub fn cut(&mut self, entry: &Entry, next: Option<i64>) {
        let end = entry.time.saturating_add(self.span);
        match &mut self.kind {
            Kind::Levels { levels, weigh, values, .. } => {
                match weigh.of(entry) {
                    Some(weight) => levels.raise(entry.time, end, weight.wrapping_neg()),
                    None => {
                        if let Some(times) = values.get_mut(&entry.value.hash()) {
                            let (gone, none) = times.remove(entry.time);
                            if gone {
                                let (from, to) = newly_seen(times, entry.time, self.span);
                                levels.raise(from, to, -1);
                            }
                            if none {
                                values.remove(&entry.value.hash());
                            }
                        }
                    }
                }
                if next != Some(entry.time) {
                    levels.set_end(entry.time, false);
                }
            }
            Kind::Rules { seen, .. } => {
                if let Some(times) = seen.get_mut(usize::from(entry.slot)) {
                    take(times, entry.time);
                }
            }
        }
    }

    /// The first end of a window in one of the stretches that holds now that `entry` is there.
    pub fn first(
        &mut self,
        entry: &Entry,
        entries: &[Entry],
        stretches: &[(i64, i64)],
        definition: &Definition,
    ) -> Found {
        let span = self.span;
        match &mut self.kind {
            Kind::Levels { levels, weigh: Weigh::Rank { percent, bound, strict }, least, .. } => {
                let mut between =
                    Between { entries, span, percent: *percent, side: (*bound, *strict), left: BETWEEN_STEPS_MAX };
                let mut found = Found::default();
                for stretch in stretches {
                    levels.ends(*stretch, *least, |end, level| {
                        // A whole place above: the bound is below the lower of the two events.
                        let holds = level >= least.saturating_add(100)
                            || between.holds(end, definition).unwrap_or_else(|| {
                                found.unjudged += 1;
                                false
                            });
                        found.end = holds.then_some(end);
                        holds
                    });
                    if found.end.is_some() {
                        break;
                    }
                }
                self.looked_at += (BETWEEN_STEPS_MAX - between.left) as u64;
                found
            }
            Kind::Levels { levels, least, .. } => {
                let mut end = None;
                for stretch in stretches {
                    levels.ends(*stretch, *least, |found, _| {
                        end = Some(found);
                        true
                    });
                    if end.is_some() {
                        break;
                    }
                }
                Found { end, unjudged: 0 }
            }
            Kind::Rules { seen, ways } => {
                self.looked_at += (seen.len() * 4) as u64;
                let end = if definition.kind == CorrelationType::TemporalOrdered {
                    in_order(seen, ways, entry, span)
                        .into_iter()
                        .filter_map(|(from, to)| {
                            let within = stretches.iter().map(|own| (own.0.max(from), own.1.min(to)));
                            within.filter_map(|(from, to)| first_time(entries, from, to)).min()
                        })
                        .min()
                } else {
                    stretches.iter().find_map(|stretch| seen_together(seen, *stretch, span, entries, definition))
                };
                Found { end, unjudged: 0 }
            }
        }
    }

    /// How much was looked at since this was asked last.
    pub fn take_looked_at(&mut self) -> u64 {
        let own = std::mem::take(&mut self.looked_at);
        match &mut self.kind {
            Kind::Levels { levels, .. } => own + std::mem::take(&mut levels.looked_at),
            _ => own,
        }
    }
}

impl Kind {
    fn new(definition: &Definition, needed: u64) -> Self {
        let levels =
            |weigh, least| Self::Levels { levels: Levels::default(), weigh, least, values: FxHashMap::default() };
        let none = Bounds(Vec::new());
        let bounds = match &definition.condition {
            Condition::Bounds(bounds) => bounds,
            Condition::Expression(_) => &none,
        };
        let unit = bounds.unit();
        match definition.kind {
            CorrelationType::EventCount => levels(Weigh::Each, i128::from(needed)),
            CorrelationType::ValueCount => levels(Weigh::Distinct, i128::from(needed)),
            CorrelationType::ValueSum => {
                let (bound, strict) = strongest_sum(bounds, unit);
                levels(Weigh::Amount(unit), bound + i128::from(strict))
            }
            CorrelationType::ValueAvg => {
                let (bound, strict) = strongest_sum(bounds, unit);
                levels(Weigh::Above(unit, bound), i128::from(strict))
            }
            CorrelationType::ValuePercentile | CorrelationType::ValueMedian => {
                let percent = i128::from(definition.percentile);
                let (bound, strict) = strongest(bounds).unwrap_or((Amount::Float(f64::MIN), false));
                levels(Weigh::Rank { percent, bound, strict }, percent - 100)
            }
            CorrelationType::Temporal | CorrelationType::TemporalOrdered => Self::Rules {
                seen: vec![BTreeMap::new(); definition.rules.len()],
                ways: match &definition.condition {
                    Condition::Expression(expression) if definition.kind == CorrelationType::TemporalOrdered => {
                        least_ways(expression, definition.rules.len())
                    }
                    _ => Vec::new(),
                },
            },
        }
    }
}

impl Weigh {
    /// `None` when it is not a matter of the event alone.
    fn of(&self, entry: &Entry) -> Option<i128> {
        let amount = entry.value.to_amount();
        match self {
            Self::Each => Some(1),
            Self::Amount(unit) => Some(unit.count(amount)),
            Self::Above(unit, bound) => Some(unit.count(amount).wrapping_sub(*bound)),
            Self::Rank { percent, bound, strict } => {
                Some(percent - if is_below(amount, *bound, *strict) { 100 } else { 0 })
            }
            Self::Distinct => None,
        }
    }
}

fn is_below(amount: Amount, bound: Amount, strict: bool) -> bool {
    let ordering = amount.compare_value(bound);
    ordering.is_lt() || (strict && ordering.is_eq())
}

/// Of bounds from below, the one that decides.
fn strongest(bounds: &Bounds) -> Option<(Amount, bool)> {
    let own = bounds.0.iter().map(|(relation, bound)| (*bound, *relation == Relation::Gt));
    own.reduce(|left, right| {
        let ordering = left.0.compare_value(right.0).then(left.1.cmp(&right.1));
        if ordering.is_lt() { right } else { left }
    })
}

/// The same of bounds on sums, in units.
fn strongest_sum(bounds: &Bounds, unit: Unit) -> (i128, bool) {
    let own = bounds.0.iter().map(|(relation, bound)| (unit.count(*bound), *relation == Relation::Gt));
    own.max().unwrap_or((i128::MIN / 4, false))
}

/// The ends of windows that see a value because it was there at `time`, and at no other time.
fn newly_seen(times: &Times, time: i64, span: i64) -> (i64, i64) {
    let from = times.before(time).map_or(time, |before| before.saturating_add(span).max(time));
    let to = time.saturating_add(span);
    (from, times.after(time).map_or(to, |after| after.min(to)))
}

/// Windows whose percentile lies between two events.
struct Between<'a> {
    entries: &'a [Entry],
    span: i64,
    percent: i128,
    side: (Amount, bool),
    /// Events that may still be gone through.
    left: usize,
}

impl Between<'_> {
    /// Whether the window holds; `None` when it has too many events.
    fn holds(&mut self, end: i64, definition: &Definition) -> Option<bool> {
        let from = self.entries.partition_point(|entry| entry.time <= end.saturating_sub(self.span));
        let to = self.entries.partition_point(|entry| entry.time <= end);
        let window = self.entries.get(from..to)?;
        self.left = self.left.checked_sub(window.len())?;
        let (mut low, mut high): (Option<Amount>, Option<Amount>) = (None, None);
        for amount in window.iter().map(|entry| entry.value.to_amount()) {
            if is_below(amount, self.side.0, self.side.1) {
                low = Some(low.map_or(amount, |low| if amount.compare(low).is_gt() { amount } else { low }));
            } else {
                high = Some(high.map_or(amount, |high| if amount.compare(high).is_lt() { amount } else { high }));
            }
        }
        let (Some(low), Condition::Bounds(bounds)) = (low, &definition.condition) else { return Some(false) };
        let part = (self.percent * (window.len() as i128 - 1)).rem_euclid(100) as u64;
        Some(bounds.hold(low.towards(high.unwrap_or(low), part, 100)))
    }
}

/// The first time of an event in `[from, to)`.
fn first_time(entries: &[Entry], from: i64, to: i64) -> Option<i64> {
    let at = entries.partition_point(|entry| entry.time < from);
    entries.get(at).map(|entry| entry.time).filter(|time| *time < to)
}

/// The first end in a stretch, of a span at most, of a window in which the right rules were seen.
fn seen_together(
    seen: &[BTreeMap<i64, u32>],
    (from, to): (i64, i64),
    span: i64,
    entries: &[Entry],
    definition: &Definition,
) -> Option<i64> {
    // For each rule: until when it is seen from the beginning on, and from when on it is seen again.
    let mut of_rules = Vec::with_capacity(seen.len());
    let mut moments = vec![from];
    for times in seen {
        let until = times.range(..=from).next_back().map_or(from, |(time, _)| time.saturating_add(span).max(from));
        let again = times.range(from.saturating_add(1)..to).next().map_or(to, |(time, _)| *time);
        moments.extend([until, again].into_iter().filter(|moment| *moment > from && *moment < to));
        of_rules.push((until, again));
    }
    moments.sort_unstable();
    moments.dedup();
    moments.push(to);
    moments.windows(2).find_map(|pair| {
        let &[moment, next] = pair else { return None };
        let is_seen =
            |slot: usize| of_rules.get(slot).is_some_and(|(until, again)| moment < *until || *again <= moment);
        let holds = match &definition.condition {
            Condition::Expression(expression) => expression.holds(&is_seen, &|slot| !is_seen(slot)),
            Condition::Bounds(bounds) => {
                bounds.hold(Amount::whole((0..of_rules.len()).filter(|slot| is_seen(*slot)).count() as u64))
            }
        };
        if holds { first_time(entries, moment, next) } else { None }
    })
}

/// For each way through the rules with the event in it: the ends of the windows that hold it. Besides the event's own time, as the
/// end of a window that was not there before, where that holds a way without the event.
fn in_order(seen: &[BTreeMap<i64, u32>], ways: &[Vec<usize>], entry: &Entry, span: i64) -> Vec<(i64, i64)> {
    let times = |slot: &usize| seen.get(*slot);
    // The latest beginning, the last rule first, up to a moment.
    let back = |slots: &[usize], until: i64| {
        slots
            .iter()
            .rev()
            .try_fold(until, |until, slot| times(slot)?.range(..=until).next_back().map(|(time, _)| *time))
    };
    let stretch = |way: &Vec<usize>| {
        let at = way.iter().position(|slot| *slot == usize::from(entry.slot))?;
        let (before, after) = way.split_at(at);
        let start = back(before, entry.time)?;
        let mut end = entry.time;
        for slot in after.iter().skip(1) {
            end = *times(slot)?.range(end..).next()?.0;
        }
        Some((end, start.saturating_add(span)))
    };
    let own = |way: &Vec<usize>| {
        let start = back(way, entry.time)?;
        (start > entry.time.saturating_sub(span)).then_some((entry.time, entry.time.saturating_add(1)))
    };
    let with = ways.iter().filter_map(stretch).filter(|(from, to)| from < to);
    with.chain(ways.iter().filter_map(own)).collect()
}

/// The sets of rules that satisfy an expression without absence, of which no part does.
fn least_ways(expression: &Expression, rules: usize) -> Vec<Vec<usize>> {
    if let Expression::All(parts) = expression
        && parts.iter().enumerate().all(|(at, part)| *part == Expression::Seen(at))
    {
        return vec![(0..parts.len()).collect()];
    }
    // At most 8 rules: see the definition.
    let holds = |way: u32| expression.holds(&|slot| way & 1u32.checked_shl(slot as u32).unwrap_or(0) != 0, &|_| false);
    let bits = |way: u32| (0..rules.min(8)).filter(move |slot| way & (1 << slot) != 0);
    let least = |way: &u32| holds(*way) && bits(*way).all(|slot| !holds(*way & !(1 << slot)));
    (1..1u32 << rules.min(8)).filter(least).map(|way| bits(way).collect()).collect()
}
