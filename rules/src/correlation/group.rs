//! The events of one group of one correlation, and when they fire.

use std::collections::VecDeque;

use rsigma_parser::CorrelationType;
use rustc_hash::FxHashSet;

use crate::correlation::amount::Amount;
use crate::correlation::completing::Completing;
use crate::correlation::definition::Definition;
use crate::correlation::entry::Entry;
use crate::correlation::index::Index;
use crate::correlation::line::Line;
use crate::correlation::repeats::Repeats;
use crate::correlation::set::Correlation;
use crate::correlation::window::Gauge;

/// The most moments of firing that are remembered: the latest. Which of them still matter cannot be told from event time, since
/// a source that was silent may go back in it.
const FIRES_MAX: usize = 64;
/// What a group takes beside what it points to: itself, its place in the table, in the queue and on the heap.
const GROUP_BYTES: usize = size_of::<Group>() + 64;
/// The most events after one, within a span, with which the windows that end at them are judged one by one: with more of them
/// the window is looked for in an index.
const NEAR_MAX: usize = 64;
/// The most events that a gauge is moved over to judge a window: past that the index tells.
const SEEK_MAX: usize = 1_024;
/// Unless it was moved that far so long ago that it comes to this for each event since.
const SEEK_EACH: usize = 32;
/// What the events of a large group take in the set that tells which of them are there.
const REPEATS_BYTES: usize = 16;

/// A window that waits for its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenWindow {
    pub start: i64,
    /// Its latest event: the time and what an alert takes from it.
    pub last: (i64, Completing),
}

/// What a group has only in a correlation that decides windows when they are over.
#[derive(Debug)]
pub(crate) struct Closing {
    /// Windows that wait for their end, by start.
    pub windows: VecDeque<OpenWindow>,
    /// The end of the last window that was decided; `i64::MIN` before the first.
    pub decided: i64,
    /// What the windows take on the heap.
    pub bytes: usize,
}

impl Default for Closing {
    fn default() -> Self {
        Self { windows: VecDeque::new(), decided: i64::MIN, bytes: 0 }
    }
}

/// What few groups have: those that fired, or that have very many events.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// When it fired, ascending.
    pub fires: Vec<i64>,
    /// What finds windows where many would have to be judged.
    index: Option<Box<Index>>,
    /// What tells quickly that an event is new among very many of its time.
    repeats: Option<Box<Repeats>>,
    /// How many events come in before it is tried again to make room by leaving out repetitions.
    pub crowded: u32,
}

/// A group. There may be a million of them: what most have no use for is apart.
#[derive(Debug)]
pub(crate) struct Group {
    /// The values of the group fields, each with its length before it.
    pub key: Box<[u8]>,
    /// The number of the group: of no other, ever.
    pub number: u64,
    /// The sources that fed it, as bits.
    pub sources: u64,
    /// By time, then arrival.
    line: Line,
    /// What is in the window that was looked at last; none where the number of events is all that matters.
    gauge: Option<Box<Gauge>>,
    closing: Option<Box<Closing>>,
    rare: Option<Box<Rare>>,
    /// For when its timer is set.
    pub armed: i64,
    /// The bytes that it was last counted with.
    counted: u32,
    /// Events since the gauge was moved far.
    since_seek: u32,
    /// Neighbours in the order of use.
    pub before: u32,
    pub after: u32,
}

/// What a group waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    pub at: i64,
    /// Whether it is of no use after that; else its first open window is over then.
    pub is_last: bool,
}

/// A window that satisfied the condition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fire {
    /// The end of a window that was judged with an event; the start of one that was over.
    pub at: i64,
    pub value: Amount,
    /// The entries in the window.
    pub from: usize,
    pub to: usize,
}

/// What came of an event.
#[derive(Debug, Default)]
pub(crate) struct Fed {
    pub fire: Option<Fire>,
    /// Events that are forgotten for it, itself perhaps.
    pub dropped: u64,
    /// Windows that were not judged, or not opened, because there are too many.
    pub unjudged: u64,
    /// Events, and steps of an index, that were looked at.
    pub looked_at: u64,
}

/// What is the same for all groups of a correlation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub definition: &'a Definition,
    pub events_max: usize,
    /// The smallest count that can satisfy the condition.
    pub needed: u64,
    /// See [`NEAR_MAX`].
    pub near_max: usize,
}

impl<'a> Terms<'a> {
    pub fn new(correlation: &'a Correlation, events_max: usize) -> Self {
        let events_max = events_max.clamp(1, 1 << 20);
        Self { definition: &correlation.definition, events_max, needed: correlation.needed, near_max: NEAR_MAX }
    }

    pub fn span(&self) -> i64 {
        self.definition.span.0
    }
}

impl Group {
    pub fn new(key: Box<[u8]>, number: u64, definition: &Definition) -> Self {
        let mut group = Self::from_parts(key, number, 0, Vec::new());
        group.begin(definition);
        group
    }

    /// The events, by time.
    pub fn entries(&self) -> &[Entry] {
        self.line.as_slice()
    }

    /// The entries of a [`Fire`].
    pub fn window(&self, fire: &Fire) -> &[Entry] {
        self.entries().get(fire.from..fire.to).unwrap_or_default()
    }

    /// A group from its saved parts; its events are in order.
    pub fn from_parts(key: Box<[u8]>, number: u64, sources: u64, entries: Vec<Entry>) -> Self {
        Self {
            key,
            number,
            sources,
            line: Line::new(entries),
            gauge: None,
            closing: None,
            rare: None,
            armed: i64::MAX,
            counted: 0,
            since_seek: u32::MAX,
            before: u32::MAX,
            after: u32::MAX,
        }
    }

    /// Makes a group from elsewhere ready for its correlation.
    pub fn begin(&mut self, definition: &Definition) {
        let counts_only = definition.kind == CorrelationType::EventCount;
        self.gauge = (!counts_only).then(|| Box::new(Gauge::new(definition)));
        if let Some(rare) = &mut self.rare {
            rare.index = None;
        }
    }

    /// Windows that wait for their end, by start.
    pub fn windows(&self) -> impl ExactSizeIterator<Item = &OpenWindow> {
        const NONE: &VecDeque<OpenWindow> = &VecDeque::new();
        self.closing.as_ref().map_or(NONE, |closing| &closing.windows).iter()
    }

    /// The end of the last window that was decided when it was over.
    pub fn decided(&self) -> Option<i64> {
        self.closing.as_ref().map(|closing| closing.decided).filter(|end| *end > i64::MIN)
    }

    pub(super) fn closing(&mut self) -> &mut Closing {
        self.closing.get_or_insert_default()
    }

    /// When it fired, ascending.
    pub fn fires(&self) -> &[i64] {
        self.rare.as_ref().map_or(&[], |rare| &rare.fires)
    }

    /// How many events come in before it is tried again to make room by leaving out repetitions.
    pub fn crowded(&self) -> u32 {
        self.rare.as_ref().map_or(0, |rare| rare.crowded)
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The bytes that it was last counted with.
    pub fn counted(&self) -> usize {
        self.counted as usize
    }

    /// Counts it anew; what it was counted with before.
    pub fn recount(&mut self, definition: &Definition) -> usize {
        let counted = u32::try_from(self.bytes(definition)).unwrap_or(u32::MAX);
        std::mem::replace(&mut self.counted, counted) as usize
    }

    /// It is counted nowhere.
    pub fn uncount(&mut self) {
        self.counted = 0;
    }

    /// Drops everything, as if it had just begun.
    pub fn reset(&mut self, number: u64, definition: &Definition) {
        let key = std::mem::take(&mut self.key);
        let Self { before, after, counted, .. } = *self;
        *self = Self { before, after, counted, ..Self::new(key, number, definition) };
    }

    /// What it waits for.
    pub fn wait(&self, terms: &Terms<'_>, eager: bool) -> Wait {
        let (moment, is_last) = match self.windows().next() {
            _ if eager => (self.entries().last().map(|entry| entry.time), true),
            Some(window) => (Some(window.start), false),
            None => (self.decided(), true),
        };
        Wait { at: moment.map_or(i64::MIN, |moment| moment.saturating_add(terms.span())), is_last }
    }

    /// About how many bytes it takes, whatever way it came to be.
    pub fn bytes(&self, definition: &Definition) -> usize {
        let entries = self.entries();
        let gauge = self.gauge.as_ref().map_or(0, |gauge| gauge.bytes(entries.len()) + size_of::<Gauge>() + 16);
        let indexed = if entries.len() > NEAR_MAX {
            Index::bytes(definition.kind, entries.len()) + entries.len() * REPEATS_BYTES
        } else {
            0
        };
        let windows = self.closing.as_ref().map_or(0, |closing| closing.bytes + size_of::<Closing>() + 8);
        let fires = self.fires().len();
        let rare = if fires + indexed > 0 { size_of::<Rare>() + 16 } else { 0 };
        GROUP_BYTES
            + self.key.len().next_multiple_of(16)
            + Line::room(entries.len()) * size_of::<Entry>()
            + self.line.id_bytes()
            + gauge
            + indexed
            + windows
            + rare
            + fires * 8
    }

    /// Forgets events that cannot be in a window any more now that event time has come to `mark`.
    pub(super) fn prune(&mut self, mark: i64, terms: &Terms<'_>, eager: bool) {
        let gone = mark.saturating_sub(terms.span());
        let keep_from = match (eager, self.windows().next()) {
            (true, _) => gone,
            // Every event is in an open window, or was.
            (false, Some(first)) => first.start.saturating_sub(1),
            (false, None) => i64::MAX,
        };
        let old = self.entries().partition_point(|entry| entry.time <= keep_from);
        self.cut(old);
    }

    /// Takes the first `count` events off.
    fn cut(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let entries = self.line.as_slice();
        if let Some(gauge) = &mut self.gauge {
            gauge.cut(entries, count);
        }
        if let Some(rare) = &mut self.rare
            && entries.len() - count.min(entries.len()) < NEAR_MAX / 2
        {
            (rare.index, rare.repeats) = (None, None);
        }
        if let Some(index) = self.rare.as_mut().and_then(|rare| rare.index.as_mut()) {
            for (at, entry) in entries.iter().enumerate().take(count) {
                index.cut(entry, entries.get(at + 1).map(|next| next.time));
            }
        }
        self.line.cut(count);
    }

    /// Takes an event up, unless it is there already or has no room. Says whether it did.
    pub(super) fn insert(&mut self, entry: Entry, terms: &Terms<'_>, fed: &mut Fed) -> bool {
        let Self { line, rare, .. } = self;
        let known = line.as_slice();
        let at = known.partition_point(|known| known.time <= entry.time);
        let first = known.partition_point(|known| known.time < entry.time);
        let same_time = known.get(first..at).unwrap_or_default();
        let oldest = known.first().map_or(i64::MAX, |first| first.time);
        let may_repeat = same_time.len() <= NEAR_MAX
            || rare.get_or_insert_default().repeats.get_or_insert_default().may_have(&entry, same_time, oldest);
        fed.looked_at += if may_repeat { same_time.len() as u64 } else { 1 };
        if may_repeat && same_time.iter().any(|known| known.repeats(&entry)) {
            return false;
        }
        if self.entries().len() >= terms.events_max && !self.make_room(terms, fed) {
            fed.dropped += 1;
            if at == 0 {
                // It would be the first to go.
                return false;
            }
            self.cut(1);
        }
        let at = self.entries().partition_point(|known| known.time <= entry.time);
        if let Some(gauge) = &mut self.gauge {
            gauge.inserted(at, &entry);
        }
        #[cfg(test)]
        crate::fuse::burst("insert", &String::from_utf8_lossy(&self.key));
        if let Some(rare) = &mut self.rare {
            rare.index.iter_mut().for_each(|index| index.insert(&entry));
            rare.repeats.iter_mut().for_each(|repeats| repeats.add(&entry));
        }
        self.line.insert(at, entry);
        true
    }

    /// Makes room in a group that has too many events where only the latest of each value, or of each rule, can still matter: so
    /// that many events of one value do not push the others out. Says whether there is room now.
    fn make_room(&mut self, terms: &Terms<'_>, fed: &mut Fed) -> bool {
        let by_value = terms.definition.kind == CorrelationType::ValueCount;
        if !by_value && terms.definition.kind != CorrelationType::Temporal {
            return false;
        }
        if self.crowded() > 0 {
            self.rare().crowded -= 1;
            return false;
        }
        fed.looked_at += self.entries().len() as u64;
        let mut seen = FxHashSet::default();
        let mut is_latest = |entry: &Entry| seen.insert((entry.value.hash(), entry.slot * u16::from(!by_value)));
        let distinct = self.entries().iter().filter(|entry| is_latest(entry)).count();
        if distinct > terms.events_max / 4 * 3 {
            // Not worth it for a while.
            self.rare().crowded = (terms.events_max / 8) as u32;
            return false;
        }
        seen.clear();
        self.line.retain_from_last(|entry| seen.insert((entry.value.hash(), entry.slot * u16::from(!by_value))));
        if let Some(gauge) = &mut self.gauge {
            **gauge = Gauge::new(terms.definition);
        }
        self.rare().index = None;
        true
    }

    /// Takes an event up and finds the first window that it is in, and that ends at it or at a later event, which holds.
    pub fn feed_eager(&mut self, entry: Entry, mark: i64, terms: &Terms<'_>) -> Fed {
        self.prune(mark, terms, true);
        let mut fed = Fed { looked_at: 1, ..Fed::default() };
        let (about, span) = (entry.clone(), terms.span());
        if !self.insert(entry, terms, &mut fed) {
            return fed;
        }
        let reach = (about.time, about.time.saturating_add(span));
        let own_end = self.entries().partition_point(|known| known.time <= reach.0);
        let last_end = self.entries().partition_point(|known| known.time < reach.1);
        let begin = self.entries().partition_point(|known| known.time <= reach.0.saturating_sub(span));
        // By what is in the group alone: a group that was saved and restored must go the same way.
        let ordered = terms.definition.kind == CorrelationType::TemporalOrdered;
        let near = last_end - own_end <= terms.near_max && (!ordered || own_end - begin <= terms.near_max);
        if near && !self.is_far((begin, own_end), terms) {
            self.judge_each(reach, (own_end, last_end), terms, &mut fed);
        } else {
            self.look_up(&about, reach, terms, &mut fed);
        }
        fed
    }

    /// Whether the gauge is so far from a window that to move it there costs more than the index. What is between two events of a
    /// percentile only the gauge knows.
    fn is_far(&mut self, (from, to): (usize, usize), terms: &Terms<'_>) -> bool {
        self.since_seek = self.since_seek.saturating_add(1);
        let kind = terms.definition.kind;
        let between = matches!(kind, CorrelationType::ValuePercentile | CorrelationType::ValueMedian);
        let Some(gauge) = self.gauge.as_deref().filter(|_| !between) else { return false };
        let distance = gauge.distance(from, to);
        if distance <= SEEK_MAX || gauge.is_hopeless(terms.needed, gauge.outside(from, to)) {
            return false;
        }
        let far = distance / SEEK_EACH > self.since_seek as usize;
        if !far {
            self.since_seek = 0;
        }
        far
    }

    /// Judges the windows that end at each of these entries, until one holds.
    fn judge_each(&mut self, (time, _): (i64, i64), (own, last): (usize, usize), terms: &Terms<'_>, fed: &mut Fed) {
        let span = terms.span();
        let (mut end, mut end_time) = (own, time);
        loop {
            if !self.is_quiet(end_time, span) {
                self.judge_end(end_time, end, terms, fed);
            }
            let next = self.entries().get(end).filter(|_| end < last && fed.fire.is_none());
            let Some(next) = next.map(|entry| entry.time) else { return };
            // The window ends at the last of the events of one time.
            (end, end_time) = (self.entries().partition_point(|entry| entry.time <= next), next);
        }
    }

    fn judge_end(&mut self, time: i64, end: usize, terms: &Terms<'_>, fed: &mut Fed) {
        let from = self.entries().partition_point(|entry| entry.time <= time.saturating_sub(terms.span()));
        if let Some(fire) = self.judge((from, end), time, terms, fed) {
            self.fired(time);
            fed.fire = Some(fire);
        }
    }

    /// Finds the first window that holds in the index.
    fn look_up(&mut self, about: &Entry, reach: (i64, i64), terms: &Terms<'_>, fed: &mut Fed) {
        let stretches = self.loud(reach, terms.span());
        let Self { line, rare, .. } = self;
        let make = || Box::new(Index::new(terms.definition, terms.needed, line.as_slice()));
        let index = rare.get_or_insert_default().index.get_or_insert_with(make);
        let found = index.first(about, line.as_slice(), &stretches, terms.definition);
        fed.looked_at += index.take_looked_at();
        fed.unjudged += found.unjudged;
        if let Some(time) = found.end {
            let end = self.entries().partition_point(|entry| entry.time <= time);
            self.judge_end(time, end, terms, fed);
        }
    }

    /// The parts of a stretch in which the group is not quiet, ascending.
    fn loud(&self, (mut from, to): (i64, i64), span: i64) -> Vec<(i64, i64)> {
        let mut loud = Vec::new();
        for fire in self.fires() {
            let quiet = (fire.saturating_sub(span).saturating_add(1), fire.saturating_add(span));
            if quiet.1 <= from {
                continue;
            }
            if quiet.0 > from && from < to {
                loud.push((from, quiet.0.min(to)));
            }
            from = from.max(quiet.1);
        }
        if from < to {
            loud.push((from, to));
        }
        loud
    }

    pub(super) fn is_quiet(&self, at: i64, span: i64) -> bool {
        self.fires().iter().any(|fire| at.abs_diff(*fire) < span.unsigned_abs())
    }

    pub(super) fn fired(&mut self, at: i64) {
        let fires = &mut self.rare().fires;
        let place = fires.partition_point(|known| *known <= at);
        if fires.len() >= FIRES_MAX {
            fires.remove(0);
            fires.insert(place.saturating_sub(1), at);
        } else {
            if fires.is_empty() {
                fires.reserve_exact(1);
            }
            fires.insert(place, at);
        }
    }

    /// Whether the window satisfies the condition.
    pub(super) fn judge(
        &mut self,
        (from, to): (usize, usize),
        at: i64,
        terms: &Terms<'_>,
        fed: &mut Fed,
    ) -> Option<Fire> {
        let entries = self.line.as_slice();
        let window = entries.get(from..to).unwrap_or_default();
        let (value, holds) = match &mut self.gauge {
            None => {
                if (window.len() as u64) < terms.needed {
                    return None;
                }
                Gauge::new(terms.definition).measure(terms.definition, window)?
            }
            Some(gauge) => {
                let outside = gauge.outside(from, to);
                if gauge.is_hopeless(terms.needed, outside) {
                    return None;
                }
                fed.looked_at += gauge.seek(entries, from, to) + 1;
                if terms.definition.kind == CorrelationType::TemporalOrdered {
                    fed.looked_at += window.len() as u64;
                }
                gauge.measure(terms.definition, window)?
            }
        };
        holds.then_some(Fire { at, value, from, to })
    }
}
