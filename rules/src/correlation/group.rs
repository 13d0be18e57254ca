//! The events of one group of one correlation, and when they fire.

use rsigma_parser::CorrelationType;
use rustc_hash::FxHashSet;

use crate::correlation::amount::Amount;
use crate::correlation::definition::Definition;
use crate::correlation::entry::Entry;
use crate::correlation::set::Correlation;
use crate::correlation::window::Gauge;

/// The most moments of firing that are remembered: the latest. Which of them still matter cannot be told from event time, since
/// a source that was silent may go back in it.
const FIRES_MAX: usize = 64;
/// What a group takes beside what it points to: itself, its place in the table, in the queue and on the heap.
const GROUP_BYTES: usize = size_of::<Group>() + 64;

/// Who and what an alert is about, taken from the event that completes a window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Completing {
    pub source: Box<str>,
    pub actor: Option<Box<str>>,
    pub asset: Option<Box<str>>,
    pub resource: Option<Box<str>>,
}

/// A window that waits for its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenWindow {
    pub start: i64,
    /// Its latest event: the time and what an alert takes from it.
    pub last: (i64, Box<Completing>),
}

/// A group.
#[derive(Debug)]
pub(crate) struct Group {
    /// The values of the group fields, each with its length before it.
    pub key: Box<[u8]>,
    /// The number of the group: of no other, ever.
    pub number: u64,
    /// The sources that fed it, as bits.
    pub sources: u64,
    /// By time, then arrival. What comes before `start` is gone.
    entries: Vec<Entry>,
    start: u32,
    /// What is in the window that was looked at last; none where the number of events is all that matters.
    gauge: Option<Box<Gauge>>,
    /// Windows that wait for their end, by start.
    pub windows: Vec<OpenWindow>,
    /// When it fired, ascending.
    pub fires: Vec<i64>,
    /// For when its timer is set.
    pub armed: i64,
    /// Neighbours in the order of use.
    pub before: u32,
    pub after: u32,
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

/// What is the same for all groups of a correlation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub definition: &'a Definition,
    pub events_max: usize,
    /// The smallest count that can satisfy the condition.
    pub needed: u64,
}

impl<'a> Terms<'a> {
    pub fn new(correlation: &'a Correlation, events_max: usize) -> Self {
        let events_max = events_max.clamp(1, 1 << 20);
        Self { definition: &correlation.definition, events_max, needed: correlation.needed }
    }

    fn span(&self) -> i64 {
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
        self.entries.get(self.start as usize..).unwrap_or_default()
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
            entries,
            start: 0,
            gauge: None,
            windows: Vec::new(),
            fires: Vec::new(),
            armed: i64::MAX,
            before: u32::MAX,
            after: u32::MAX,
        }
    }

    /// Makes a group from elsewhere ready for its correlation.
    pub fn begin(&mut self, definition: &Definition) {
        let counts_only = definition.kind == CorrelationType::EventCount;
        self.gauge = (!counts_only).then(|| Box::new(Gauge::new(definition)));
        self.armed = i64::MAX;
    }

    /// Drops everything, as if it had just begun.
    pub fn reset(&mut self, number: u64, definition: &Definition) {
        let key = std::mem::take(&mut self.key);
        let (before, after) = (self.before, self.after);
        *self = Self { before, after, ..Self::new(key, number, definition) };
    }

    /// When it is of no use any more (eager), or its next window is over (closing).
    pub fn deadline(&self, terms: &Terms<'_>, eager: bool) -> i64 {
        let moment = if eager {
            self.entries.last().map(|entry| entry.time)
        } else {
            self.windows.first().map(|window| window.start)
        };
        moment.map_or(i64::MIN, |moment| moment.saturating_add(terms.span()))
    }

    /// About how many bytes it takes, whatever way it came to be.
    pub fn bytes(&self) -> usize {
        let entries = self.entries();
        let ids = match entries.first() {
            // Ids of a group are of one kind.
            Some(first) => first.id.bytes() * entries.len(),
            None => 0,
        };
        let gauge = self.gauge.as_ref().map_or(0, |gauge| gauge.bytes(entries.len()) + size_of::<Gauge>() + 16);
        let windows = self.windows.len() * (size_of::<OpenWindow>() + size_of::<Completing>() + 64);
        GROUP_BYTES
            + self.key.len().next_multiple_of(16)
            + entries.len().next_power_of_two() * size_of::<Entry>()
            + ids
            + gauge
            + windows
            + self.fires.len() * 8
    }

    /// Forgets events that cannot be in a window any more now that event time has come to `mark`.
    fn prune(&mut self, mark: i64, terms: &Terms<'_>, eager: bool) {
        let gone = mark.saturating_sub(terms.span());
        let keep_from = match (eager, self.windows.first()) {
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
        if let Some(gauge) = &mut self.gauge {
            gauge.cut(self.entries.get(self.start as usize..).unwrap_or_default(), count);
        }
        self.start += count as u32;
        if self.start as usize * 2 >= self.entries.len() {
            self.entries.drain(..self.start as usize);
            self.start = 0;
            if self.entries.capacity() > 16 && self.entries.len() * 4 < self.entries.capacity() {
                self.entries.shrink_to(self.entries.len() * 2);
            }
        }
    }

    /// Takes an event up. `None` when it is there already; else its place, and how many others were dropped for it.
    fn insert(&mut self, entry: Entry, terms: &Terms<'_>) -> Option<(usize, u64)> {
        let time = entry.time;
        let at = self.entries().partition_point(|known| known.time <= time);
        let same_time = self.entries().get(..at).unwrap_or_default().iter().rev();
        if same_time.take_while(|known| known.time == entry.time).any(|known| known.repeats(&entry)) {
            return None;
        }
        if let Some(gauge) = &mut self.gauge {
            gauge.inserted(at, &entry);
        }
        if self.entries.len() == self.entries.capacity() && self.entries.len() < 4 {
            // The least that works: most groups never have more.
            self.entries.reserve_exact(self.entries.len().max(1));
        }
        self.entries.insert(self.start as usize + at, entry);
        if self.entries().len() <= terms.events_max {
            return Some((at, 0));
        }
        if self.compact(terms) {
            let time = self.entries().last().map_or(i64::MIN, |entry| entry.time).min(time);
            let at = self.entries().partition_point(|known| known.time <= time).saturating_sub(1);
            return Some((at, 0));
        }
        self.cut(1);
        Some((at.saturating_sub(1), 1))
    }

    /// Makes room in a group that has too many events where only the latest of each value, or of each rule, can still matter: so
    /// that many events of one value do not push the others out. Says whether that was enough.
    fn compact(&mut self, terms: &Terms<'_>) -> bool {
        let by_value = terms.definition.kind == CorrelationType::ValueCount;
        if !by_value && terms.definition.kind != CorrelationType::Temporal {
            return false;
        }
        self.entries.drain(..self.start as usize);
        self.start = 0;
        let mut seen = FxHashSet::default();
        let mut keep: Vec<bool> = self
            .entries
            .iter()
            .rev()
            .map(|entry| seen.insert((entry.value.hash(), entry.slot * u16::from(!by_value))))
            .collect();
        if seen.len() > terms.events_max / 4 * 3 {
            return false;
        }
        self.entries.retain(|_| keep.pop().unwrap_or(true));
        if let Some(gauge) = &mut self.gauge {
            **gauge = Gauge::new(terms.definition);
        }
        true
    }

    /// Takes an event up and judges every window that it is in and that ends at it or at a later event. Also says how many
    /// events were dropped.
    pub fn feed_eager(&mut self, entry: Entry, mark: i64, terms: &Terms<'_>) -> (Option<Fire>, u64) {
        self.prune(mark, terms, true);
        let (time, span) = (entry.time, terms.span());
        let Some((at, dropped)) = self.insert(entry, terms) else { return (None, 0) };
        let last = self.entries().len();
        // The window ends at the last of the events of one time.
        let mut end = at;
        while end < last {
            let Some(end_time) = self.entries().get(end).map(|entry| entry.time) else { break };
            if end_time >= time.saturating_add(span) {
                break;
            }
            end +=
                self.entries().get(end..).unwrap_or_default().iter().take_while(|entry| entry.time == end_time).count();
            if self.is_quiet(end_time, span) {
                continue;
            }
            let from = self.entries().partition_point(|entry| entry.time <= end_time.saturating_sub(span));
            if let Some(fire) = self.judge((from, end), end_time, terms) {
                self.fired(end_time);
                return (Some(fire), dropped);
            }
        }
        (None, dropped)
    }

    fn is_quiet(&self, at: i64, span: i64) -> bool {
        self.fires.iter().any(|fire| at.abs_diff(*fire) < span.unsigned_abs())
    }

    fn fired(&mut self, at: i64) {
        let place = self.fires.partition_point(|known| *known <= at);
        if self.fires.len() >= FIRES_MAX {
            self.fires.remove(0);
            self.fires.insert(place.saturating_sub(1), at);
        } else {
            if self.fires.is_empty() {
                self.fires.reserve_exact(1);
            }
            self.fires.insert(place, at);
        }
    }

    /// Whether the window satisfies the condition.
    fn judge(&mut self, (from, to): (usize, usize), at: i64, terms: &Terms<'_>) -> Option<Fire> {
        let entries = self.entries.get(self.start as usize..).unwrap_or_default();
        let window = entries.get(from..to).unwrap_or_default();
        let (value, holds) = match &mut self.gauge {
            None => {
                if (window.len() as u64) < terms.needed {
                    return None;
                }
                Gauge::new(terms.definition).measure(terms.definition, window)?
            }
            Some(gauge) => {
                let outside = gauge.from.saturating_sub(from) + to.saturating_sub(gauge.to);
                if gauge.is_hopeless(terms.definition, terms.needed, outside) {
                    return None;
                }
                gauge.seek(entries, from, to);
                gauge.measure(terms.definition, window)?
            }
        };
        holds.then_some(Fire { at, value, from, to })
    }

    /// Takes an event up, in a window that is open for it, or in one that it opens. Also says how many events were dropped.
    pub fn feed_closing(&mut self, entry: Entry, completing: Completing, terms: &Terms<'_>) -> u64 {
        let (time, span) = (entry.time, terms.span());
        let Some((_, dropped)) = self.insert(entry, terms) else { return 0 };
        let mut covered = false;
        for window in &mut self.windows {
            if (window.start..window.start.saturating_add(span)).contains(&time) {
                covered = true;
                if time >= window.last.0 {
                    window.last = (time, Box::new(completing.clone()));
                }
            }
        }
        if !covered {
            let place = self.windows.partition_point(|window| window.start <= time);
            let last = self.last_in(time, span, completing);
            self.windows.insert(place, OpenWindow { start: time, last });
        }
        dropped
    }

    /// The latest event of a window that opens at `start` before windows that are open: later events may be in it.
    fn last_in(&self, start: i64, span: i64, completing: Completing) -> (i64, Box<Completing>) {
        let inside =
            self.windows.iter().filter(|window| window.last.0 < start.saturating_add(span) && window.last.0 > start);
        match inside.max_by_key(|window| window.last.0) {
            Some(window) => window.last.clone(),
            None => (start, Box::new(completing)),
        }
    }

    /// Decides the first open window, which is over.
    pub fn close(&mut self, terms: &Terms<'_>) -> Option<(OpenWindow, Option<Fire>)> {
        if self.windows.is_empty() {
            return None;
        }
        let window = self.windows.remove(0);
        let end = window.start.saturating_add(terms.span());
        let from = self.entries().partition_point(|entry| entry.time < window.start);
        let to = self.entries().partition_point(|entry| entry.time < end);
        let fire =
            if self.is_quiet(window.start, terms.span()) { None } else { self.judge((from, to), window.start, terms) };
        if fire.is_some() {
            self.fired(window.start);
        }
        Some((window, fire))
    }

    /// Forgets what the windows that are still open do not need.
    pub fn settle(&mut self, terms: &Terms<'_>) {
        self.prune(i64::MIN, terms, false);
    }
}
