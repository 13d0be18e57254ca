//! How far event time has come, for each source of each tenant, and what waits for it.
//!
//! The run loop's watermark is one for everyone: the history that one tenant sends, or a source that is an hour behind, would
//! be late for ever. So each source has a **mark**: the largest time of its events, less the lateness. An event is late
//! when the marks have passed it by the span of a correlation, for that correlation. An event whose time is further ahead of its receive time than allowed counts
//! as of its receive time and moves no mark.
//!
//! A group waits for the sources that fed it. Those that sent something within the lateness, in receive time of the whole
//! stream, must all have passed the moment that it waits for. A source that was silent for longer holds nobody back; when all
//! are silent, event time goes on with receive time from where the furthest of them stood.
//!
//! Receive times come from a clock that may be set. When they fall by more than the lateness, those before were wrong, or these
//! are: nobody can tell. Event time goes back with them: no mark, and nothing that was received, stays ahead of the row that
//! says so, or all of the sources would be taken for late, or silent, until the clock is where it was. What was decided stays
//! decided. After receive time went on by more than the lateness at once, groups that are of no use any more are kept for as long
//! again: if it falls back meanwhile they are of use.
//!
//! Everything follows from the rows and their order: not from batches, and not from a clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

/// The most sources of a tenant that are told apart; all further ones are taken for the last.
pub(crate) const SOURCES_MAX: usize = 64;
/// The most tenants; events of further ones are not correlated.
const TENANTS_MAX: usize = 100_000;
/// The most different sets of sources of one tenant; further ones count as all sources.
const QUEUES_MAX: usize = 64;
/// With fewer timers it is not looked which are still needed.
const TIMERS_MIN: usize = 256;

/// One source of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub name: Box<str>,
    /// The largest sane time; `i64::MIN` before the first.
    pub latest: i64,
    /// When it last sent something.
    pub received: i64,
}

/// Something that waits until event time has come to `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timer {
    pub at: i64,
    /// The number of the group: of no other, ever.
    pub number: u64,
    pub bucket: u32,
    pub slot: u32,
}

/// Timers, the next one first. Some may be of groups that are gone.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Timer>>,
    /// How many were kept when it was last looked which are needed.
    kept: usize,
}

impl Timers {
    /// Says whether it is the next one now.
    pub fn push(&mut self, timer: Timer) -> bool {
        let first = self.peek().is_none_or(|known| timer.at < known.at);
        self.heap.push(Reverse(timer));
        first
    }

    pub fn peek(&self) -> Option<Timer> {
        self.heap.peek().map(|Reverse(timer)| *timer)
    }

    pub fn pop(&mut self) {
        self.heap.pop();
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether it is time to see which are still needed: there are twice as many as then.
    pub fn is_long(&self) -> bool {
        self.len() > TIMERS_MIN.max(self.kept.saturating_mul(2))
    }

    /// Drops those that `needed` says no of.
    pub fn retain(&mut self, needed: impl Fn(&Timer) -> bool) {
        self.heap.retain(|Reverse(timer)| needed(timer));
        self.heap.shrink_to(self.len() * 2);
        self.kept = self.len();
    }
}

/// What waits for the same sources. There is one for each set of sources that groups wait for, and for no other: what there is
/// must follow from the groups, which are all that is saved.
#[derive(Debug)]
pub(crate) struct Queue {
    pub sources: u64,
    /// How many groups wait for them.
    groups: usize,
    /// Windows that are decided when they are over.
    pub closing: Timers,
    /// Groups that are of no use after that.
    pub expiring: Timers,
}

/// The sources of one tenant and what waits for them.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub org_id: Arc<str>,
    pub sources: Vec<Source>,
    pub queues: Vec<Queue>,
    /// The end of the first window that is over and not decided yet: event time waits there. `i64::MAX` for none.
    pub held: i64,
    /// The receive time at which it is looked at even if it sends nothing; `i64::MAX` for never.
    wake: i64,
}

/// Where a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stand {
    pub tenant: u32,
    /// The bit of its source.
    pub source: u64,
    /// The time it counts as of.
    pub time: i64,
}

/// Events that met a bound, since it was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Met {
    /// They are of a tenant that is one too many.
    pub tenants: u64,
    /// They are of a source that is one too many.
    pub sources: u64,
    /// With them a group would wait for a set of sources that is one too many.
    pub sets: u64,
}

/// Event time of all tenants.
#[derive(Debug)]
pub(crate) struct Clock {
    lateness_us: i64,
    ahead_us: i64,
    /// The largest receive time of the stream since it fell.
    pub received: i64,
    /// Until this receive time nothing is forgotten: it may fall back.
    pub doubted_until: i64,
    pub tenants: Vec<Tenant>,
    by_name: FxHashMap<Arc<str>, u32>,
    wakes: BinaryHeap<Reverse<(i64, u32)>>,
    /// The tenant and source of the last row.
    last: (u32, usize),
    pub met: Met,
}

impl Clock {
    pub fn new(lateness_us: i64, ahead_us: i64) -> Self {
        Self {
            lateness_us: lateness_us.max(0),
            ahead_us: ahead_us.max(0),
            received: i64::MIN,
            doubted_until: i64::MIN,
            tenants: Vec::new(),
            by_name: FxHashMap::default(),
            wakes: BinaryHeap::new(),
            last: (u32::MAX, 0),
            met: Met::default(),
        }
    }

    /// The number of a tenant; `None` when there are too many.
    pub fn tenant(&mut self, org_id: &str) -> Option<u32> {
        if let Some(known) = self.by_name.get(org_id) {
            return Some(*known);
        }
        if self.tenants.len() >= TENANTS_MAX {
            return None;
        }
        let number = self.tenants.len() as u32;
        let org_id: Arc<str> = org_id.into();
        self.by_name.insert(org_id.clone(), number);
        self.tenants.push(Tenant { org_id, sources: Vec::new(), queues: Vec::new(), held: i64::MAX, wake: i64::MAX });
        Some(number)
    }

    /// The place of the row's tenant and source; `None` when its tenant is one too many.
    pub fn place(&mut self, org_id: &str, source: &str) -> Option<(u32, usize)> {
        let (tenant, at) = self.last;
        if let Some(known) = self.tenants.get(tenant as usize)
            && *known.org_id == *org_id
            && known.sources.get(at).is_some_and(|known| *known.name == *source)
        {
            return Some(self.last);
        }
        let Some(tenant) = self.tenant(org_id) else {
            self.met.tenants += 1;
            return None;
        };
        let sources = &mut self.tenants.get_mut(tenant as usize)?.sources;
        let at = match sources.iter().position(|known| *known.name == *source) {
            Some(at) => at,
            None if sources.len() < SOURCES_MAX => {
                sources.push(Source { name: source.into(), latest: i64::MIN, received: i64::MIN });
                sources.len() - 1
            }
            None => {
                self.met.sources += 1;
                SOURCES_MAX - 1
            }
        };
        self.last = (tenant, at);
        Some(self.last)
    }

    /// Whether a row of this source would bring it back after a silence: marks may go down then, so that what they have
    /// passed must be settled before.
    pub fn wakes_up(&self, (tenant, at): (u32, usize), received: Option<i64>) -> Option<u32> {
        let now = self.received.max(received.unwrap_or(i64::MIN));
        let own = self.tenants.get(tenant as usize)?;
        let is_new = own.sources.get(at).is_some_and(|source| source.received == i64::MIN && source.latest == i64::MIN);
        let silent = own.sources.get(at).is_some_and(|source| self.is_silent(source, now));
        (!is_new && silent && !own.queues.is_empty()).then_some(tenant)
    }

    /// Whether receive time falls so far with a row that a clock was set.
    pub fn falls(&self, received: i64) -> bool {
        received < self.received.saturating_sub(self.lateness_us)
    }

    /// Receive time falls to `received`, and event time with it.
    pub fn fall(&mut self, received: i64) {
        (self.received, self.doubted_until) = (received, i64::MIN);
        self.wakes.clear();
        for own in &mut self.tenants {
            (own.held, own.wake) = (i64::MAX, i64::MAX);
            for source in &mut own.sources {
                source.latest = source.latest.min(received);
                source.received = source.received.min(received);
            }
        }
        (0..self.tenants.len() as u32).for_each(|tenant| self.arm(tenant));
    }

    /// Whether it is too early to forget anything.
    pub fn is_doubted(&self) -> bool {
        self.received < self.doubted_until
    }

    /// Receive time goes on, before the row itself is taken into account: by how many steps of `step_us`, at most `steps_max`.
    pub fn receive(&mut self, received: Option<i64>, step_us: i64, steps_max: u64) -> u64 {
        let before = self.received;
        self.received = before.max(received.unwrap_or(i64::MIN));
        if before == i64::MIN {
            return 0;
        }
        if self.received > before.saturating_add(self.lateness_us) {
            self.doubted_until = self.received.saturating_add(self.lateness_us);
        }
        // By the steps that were gone through: rows that come one after the other at once are not each rounded down.
        let steps = self.received.div_euclid(step_us).saturating_sub(before.div_euclid(step_us));
        steps.unsigned_abs().min(steps_max)
    }

    /// Takes a row into account. `None` when it has no time at all.
    pub fn observe(&mut self, (tenant, at): (u32, usize), time: Option<i64>, received: Option<i64>) -> Option<Stand> {
        let known = self.tenants.get_mut(tenant as usize)?.sources.get_mut(at)?;
        let time = time.or(received)?;
        let latest_sane = received.map_or(i64::MAX, |received| received.saturating_add(self.ahead_us));
        known.received = known.received.max(received.unwrap_or(time));
        let counted = if time <= latest_sane {
            known.latest = known.latest.max(time);
            time
        } else {
            received.unwrap_or(time)
        };
        Some(Stand { tenant, source: 1 << at, time: counted })
    }

    fn is_silent(&self, source: &Source, now: i64) -> bool {
        now.saturating_sub(source.received) > self.lateness_us
    }

    /// How far event time has come for what these sources fed. Windows that are over and not decided yet hold it back, for all of
    /// the tenant: they are open as long, and decided in the order of their ends.
    pub fn mark(&self, tenant: u32, sources: u64) -> i64 {
        let held = self.tenants.get(tenant as usize).map_or(i64::MAX, |tenant| tenant.held);
        self.reached(tenant, sources).min(held)
    }

    /// Event time waits at a moment until the windows that end then are decided.
    pub fn hold(&mut self, tenant: u32, moment: i64) {
        if let Some(own) = self.tenants.get_mut(tenant as usize) {
            own.held = moment;
        }
    }

    /// How far event time would have come if nothing held it back.
    pub fn reached(&self, tenant: u32, sources: u64) -> i64 {
        let Some(tenant) = self.tenants.get(tenant as usize) else { return i64::MIN };
        let (mut slowest, mut furthest) = (i64::MAX, i64::MIN);
        let mut any_heard = false;
        for (at, source) in tenant.sources.iter().enumerate() {
            if sources & (1 << at) == 0 {
                continue;
            }
            let latest = if source.latest == i64::MIN { source.received } else { source.latest };
            let mark = latest.saturating_sub(self.lateness_us);
            if self.is_silent(source, self.received) {
                furthest = furthest.max(mark.saturating_add(self.received.saturating_sub(source.received)));
            } else {
                any_heard = true;
                slowest = slowest.min(mark);
            }
        }
        if any_heard { slowest } else { furthest }
    }

    /// A group waits for other sources than it did: for none before it began, and after it is gone. A queue that nothing waits in
    /// any more goes, with timers that are left of groups that are gone.
    pub fn moved(&mut self, tenant: u32, from: u64, to: u64) {
        let Some(own) = self.tenants.get_mut(tenant as usize).filter(|_| from != to) else { return };
        let queues = &mut own.queues;
        let place = |queues: &[Queue], sources: u64| queues.iter().position(|queue| queue.sources == sources);
        if let Some(at) = place(queues, from)
            && let Some(queue) = queues.get_mut(at)
        {
            queue.groups -= 1;
            if queue.groups == 0 {
                queues.swap_remove(at);
            }
        }
        match place(queues, to).and_then(|at| queues.get_mut(at)) {
            _ if to == 0 => {}
            Some(queue) => queue.groups += 1,
            None => {
                let (closing, expiring) = (Timers::default(), Timers::default());
                queues.push(Queue { sources: to, groups: 1, closing, expiring });
            }
        }
    }

    /// The queue of a tenant for a set of sources that a group waits for.
    pub fn queue(&mut self, tenant: u32, sources: u64) -> Option<&mut Queue> {
        let queues = &mut self.tenants.get_mut(tenant as usize)?.queues;
        queues.iter_mut().find(|queue| queue.sources == sources)
    }

    /// The windows that wait for these sources.
    pub fn closing(&mut self, tenant: u32, sources: u64) -> Option<&mut Timers> {
        self.queue(tenant, sources).map(|queue| &mut queue.closing)
    }

    /// The set of sources to wait for: all of them when there are too many different sets.
    pub fn bounded(&mut self, tenant: u32, sources: u64) -> u64 {
        let Some(tenant) = self.tenants.get(tenant as usize) else { return sources };
        let known = tenant.queues.iter().any(|queue| queue.sources == sources);
        if known || tenant.queues.len() < QUEUES_MAX {
            return sources;
        }
        self.met.sets += 1;
        u64::MAX
    }

    /// Makes sure that the tenant is looked at when silence alone lets something of it pass.
    pub fn arm(&mut self, tenant: u32) {
        let Some(own) = self.tenants.get(tenant as usize) else { return };
        let mut wake = i64::MAX;
        for queue in &own.queues {
            for (timers, earliest) in [(&queue.closing, i64::MIN), (&queue.expiring, self.doubted_until)] {
                let Some(at) = timers.peek().map(|timer| timer.at) else { continue };
                // What is passed already goes on with whatever row comes next in receive time.
                let passed = at <= self.reached(tenant, queue.sources);
                let next = if passed { self.received.saturating_add(1) } else { self.wake_of(own, queue.sources, at) };
                wake = wake.min(next.max(earliest));
            }
        }
        if wake < own.wake {
            if let Some(own) = self.tenants.get_mut(tenant as usize) {
                own.wake = wake;
            }
            self.wakes.push(Reverse((wake, tenant)));
        }
    }

    /// The first receive time at which silence may change the mark of these sources, when `at` is what is waited for.
    fn wake_of(&self, tenant: &Tenant, sources: u64, at: i64) -> i64 {
        let mut heard = i64::MAX;
        let mut silent = i64::MAX;
        for (_, source) in tenant.sources.iter().enumerate().filter(|(bit, _)| sources & (1 << bit) != 0) {
            let latest = if source.latest == i64::MIN { source.received } else { source.latest };
            if self.is_silent(source, self.received) {
                let missing = at.saturating_sub(latest.saturating_sub(self.lateness_us));
                silent = silent.min(source.received.saturating_add(missing));
            } else {
                heard = heard.min(source.received.saturating_add(self.lateness_us).saturating_add(1));
            }
        }
        (if heard < i64::MAX { heard } else { silent }).max(self.received.saturating_add(1))
    }

    /// A tenant whose moment has come with receive time.
    pub fn woken(&mut self) -> Option<u32> {
        while let Some(Reverse((wake, tenant))) = self.wakes.peek().copied() {
            if wake > self.received {
                return None;
            }
            self.wakes.pop();
            if let Some(own) = self.tenants.get_mut(tenant as usize)
                && own.wake == wake
            {
                own.wake = i64::MAX;
                return Some(tenant);
            }
        }
        None
    }

    /// Forgets what waits. Tenants and sources stay.
    pub fn clear(&mut self) {
        for tenant in &mut self.tenants {
            tenant.queues.clear();
            tenant.held = i64::MAX;
            tenant.wake = i64::MAX;
        }
        self.wakes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_a_bound_is_counted_and_sets_that_no_group_waits_for_are_none() {
        let mut clock = Clock::new(0, 0);
        for number in 0..SOURCES_MAX + 3 {
            let place = clock.place("0", &format!("source {number}"));
            assert_eq!(place, Some((0, number.min(SOURCES_MAX - 1))));
        }
        for set in 1..QUEUES_MAX as u64 + 1 {
            assert_eq!(clock.bounded(0, set), set);
            clock.moved(0, 0, set);
            clock.moved(0, 0, set);
        }
        assert_eq!((clock.bounded(0, 7), clock.bounded(0, 100)), (7, u64::MAX));
        clock.moved(0, 7, 8);
        assert_eq!(clock.bounded(0, 100), u64::MAX, "one group still waits for these");
        clock.moved(0, 7, 0);
        assert_eq!(clock.bounded(0, 100), 100);
        for number in 1..TENANTS_MAX {
            clock.tenant(&number.to_string());
        }
        assert_eq!((clock.place("7", "s"), clock.place("one more", "s")), (Some((7, 0)), None));
        assert_eq!(clock.met, Met { tenants: 1, sources: 3, sets: 2 });
    }
}
