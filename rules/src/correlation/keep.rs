//! The groups that there are: made, found, and forgotten where there are too many.

use std::cmp::Reverse;

use crate::correlation::bucket::Bucket;
use crate::correlation::clock::Timer;
use crate::correlation::feed::Work;
use crate::correlation::group::{Group, Terms};
use crate::correlation::run::Correlations;
use crate::correlation::set::Correlation;

/// What is freed beyond the bound when memory is short, as a part of it.
const FREED_PART: usize = 256;

/// The group that an event goes into.
pub(super) struct Found {
    pub bucket: u32,
    pub slot: u32,
    /// The sources that feed it, with that of the event.
    pub sources: u64,
    /// How far event time has come for these.
    pub mark: i64,
}

impl Correlations {
    fn bucket(&mut self, correlation: u32, tenant: u32) -> u32 {
        if let Some(known) = self.bucket_ids.get(&(correlation, tenant)) {
            return *known;
        }
        let new = Bucket::new(correlation, tenant);
        let place = self.free_buckets.pop().and_then(|id| Some((id, self.buckets.get_mut(id as usize)?)));
        let id = match place {
            Some((id, place)) => {
                *place = new;
                id
            }
            None => {
                self.buckets.push(new);
                (self.buckets.len() - 1) as u32
            }
        };
        self.bucket_ids.insert((correlation, tenant), id);
        id
    }

    /// Lets another correlation, or tenant, have the place of a bucket that is empty.
    pub(super) fn release(&mut self, bucket_id: u32) {
        let Some(bucket) = self.buckets.get(bucket_id as usize).filter(|bucket| bucket.len() == 0) else { return };
        let key = (bucket.correlation, bucket.tenant);
        if self.bucket_ids.get(&key) == Some(&bucket_id) {
            self.bucket_ids.remove(&key);
            self.free_buckets.push(bucket_id);
        }
    }

    /// The group that an event goes into, which is made if it is new, and begun anew if its time is over. `None` when the event is
    /// late: every window that it belongs to is decided, or as good as that.
    pub(super) fn group_for(
        &mut self,
        work: &Work,
        correlation: &Correlation,
        tenant: u32,
        terms: &Terms<'_>,
    ) -> Option<Found> {
        let id = self.bucket_ids.get(&(work.correlation, tenant)).copied();
        let found = id.and_then(|id| Some((id, self.buckets.get(id as usize)?.find(&work.key)?)));
        let group = found.and_then(|(id, slot)| self.buckets.get(id as usize)?.get(slot));
        let known = group.map(|group| (group.sources, self.clock.mark(tenant, group.sources)));
        let is_over = |group: &Group, mark: i64| {
            let wait = group.wait(terms, correlation.eager);
            wait.is_last && wait.at <= mark
        };
        let over = group.zip(known).is_some_and(|(group, (_, mark))| is_over(group, mark));
        let (group, known) = if over { (None, None) } else { (group, known) };
        let sources = self.clock.bounded(tenant, known.map_or(0, |(sources, _)| sources) | work.sources);
        let mark = match known {
            Some((known, mark)) if known == sources => mark,
            _ => self.clock.mark(tenant, sources),
        };
        let passed = work.time.saturating_add(terms.span()) <= mark;
        if group.map_or(passed, |group| group.is_late(work.time, passed, terms)) {
            return None;
        }
        let evicted = self.counts.evicted;
        let (bucket, slot) = match found {
            Some(found) => found,
            None => self.begin(work, tenant, terms)?,
        };
        if over {
            self.begin_anew(bucket, slot, terms);
        }
        if (over || found.is_none()) && self.counts.evicted == evicted {
            // One that gave way for it took its step.
            self.allowed += 1;
        }
        Some(Found { bucket, slot, sources, mark })
    }

    fn begin_anew(&mut self, bucket_id: u32, slot: u32, terms: &Terms<'_>) {
        let Some(bucket) = self.buckets.get_mut(bucket_id as usize) else { return };
        let tenant = bucket.tenant;
        let Some(group) = bucket.get_mut(slot) else { return };
        self.clock.moved(tenant, group.sources, 0);
        group.reset(self.next_number, terms.definition);
        self.next_number += 1;
        let (before, after) = bucket.recount(slot, terms.definition);
        self.bytes = (self.bytes + after).saturating_sub(before);
    }

    fn begin(&mut self, work: &Work, tenant: u32, terms: &Terms<'_>) -> Option<(u32, u32)> {
        let bucket_id = self.bucket(work.correlation, tenant);
        let bucket = self.buckets.get(bucket_id as usize)?;
        if bucket.len() >= self.groups_max
            && let Some(oldest) = bucket.oldest()
        {
            self.counts.evicted += 1;
            self.remove(bucket_id, oldest);
        }
        let group = Group::new(work.key.as_slice().into(), self.next_number, terms.definition);
        self.next_number += 1;
        Some((bucket_id, self.put(bucket_id, group, terms)?))
    }

    fn put(&mut self, bucket_id: u32, group: Group, terms: &Terms<'_>) -> Option<u32> {
        let bucket = self.buckets.get_mut(bucket_id as usize)?;
        let slot = bucket.insert(group);
        self.bytes += bucket.recount(slot, terms.definition).1;
        self.live += 1;
        Some(slot)
    }

    /// Takes up groups that were put aside, with what they wait for.
    pub(super) fn take_up(&mut self, groups: Vec<Group>, (number, correlation): (u32, &Correlation), tenant: u32) {
        let terms = Terms::new(correlation, self.events_max);
        let bucket_id = self.bucket(number, tenant);
        for mut group in groups {
            group.begin(&correlation.definition);
            let wait = group.wait(&terms, correlation.eager);
            if !correlation.eager || group.armed == i64::MAX {
                group.armed = wait.at;
            }
            group.uncount();
            let (at, own, sources) = (group.armed, group.number, group.sources);
            let Some(slot) = self.put(bucket_id, group, &terms) else { continue };
            self.clock.moved(tenant, 0, sources);
            self.schedule(tenant, sources, wait.is_last, Timer { at, number: own, bucket: bucket_id, slot });
        }
        self.release(bucket_id);
    }

    pub(super) fn remove(&mut self, bucket_id: u32, slot: u32) {
        let Some(bucket) = self.buckets.get_mut(bucket_id as usize) else { return };
        if let Some(group) = bucket.remove(slot) {
            self.clock.moved(bucket.tenant, group.sources, 0);
            self.bytes = self.bytes.saturating_sub(group.counted());
            self.live -= 1;
        }
    }

    /// Drops the groups that were used longest ago, of the tenant that has most of the memory, where most of that is.
    pub(super) fn free(&mut self) {
        let target = self.bytes_max - self.bytes_max / FREED_PART;
        while self.bytes > target {
            let Some((at, quarter)) = self.largest() else { return };
            for _ in 0..quarter {
                let Some(oldest) = self.buckets.get(at as usize).and_then(Bucket::oldest) else { break };
                self.counts.evicted += 1;
                self.remove(at, oldest);
                if self.bytes <= target {
                    break;
                }
            }
            self.release(at);
        }
    }

    /// The largest bucket of the largest tenant, and a quarter of its groups.
    fn largest(&self) -> Option<(u32, usize)> {
        let mut tenants = vec![0; self.clock.tenants.len()];
        for bucket in &self.buckets {
            if let Some(bytes) = tenants.get_mut(bucket.tenant as usize) {
                *bytes += bucket.bytes;
            }
        }
        let tenant = tenants.iter().enumerate().max_by_key(|(at, bytes)| (**bytes, Reverse(*at)))?.0 as u32;
        let own = self.buckets.iter().enumerate().filter(|(_, bucket)| bucket.tenant == tenant && bucket.len() > 0);
        // Not by places, which are others after a restart.
        let largest = own.max_by_key(|(_, bucket)| (bucket.bytes, Reverse(bucket.correlation)));
        largest.map(|(at, bucket)| (at as u32, bucket.len().div_ceil(4)))
    }

    /// Waits for a moment: the group is of no use after it (`is_last`), or its first open window is over then.
    pub(super) fn schedule(&mut self, tenant: u32, sources: u64, is_last: bool, timer: Timer) {
        let Some(queue) = self.clock.queue(tenant, sources) else { return };
        let timers = if is_last { &mut queue.expiring } else { &mut queue.closing };
        let first = timers.push(timer);
        if timers.is_long() {
            // Those of groups that are gone, or wait for something else by now.
            let buckets = &self.buckets;
            timers.retain(|timer| {
                let group = buckets.get(timer.bucket as usize).and_then(|bucket| bucket.get(timer.slot));
                group.is_some_and(|group| {
                    group.number == timer.number && group.sources == sources && group.armed == timer.at
                })
            });
        }
        if first {
            self.clock.arm(tenant);
        }
    }
}
