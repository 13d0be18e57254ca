//! Events into groups, and what follows from them.

use std::cmp::Reverse;

use rsigma_parser::CorrelationType;

use crate::correlation::alert::{Told, values};
use crate::correlation::clock::Timer;
use crate::correlation::completing::Completing;
use crate::correlation::entry::{Entry, EventId, Value};
use crate::correlation::group::{Fed, Terms};
use crate::correlation::keep::Found;
use crate::correlation::read::{Batch, measured};
use crate::correlation::run::{Correlations, Row};
use crate::correlation::set::{Correlation, CorrelationSet};
use crate::correlation::targets::Views;

/// An event on its way into a correlation.
#[derive(Debug)]
pub(super) struct Work {
    pub correlation: u32,
    pub slot: u16,
    pub time: i64,
    pub sources: u64,
    pub id: EventId,
    pub key: Vec<u8>,
    pub value: Value,
    /// The row, and the detection rule that it matched; none for a window that was over.
    pub origin: Option<(usize, u32)>,
    /// Who and what it is about, when there is no row.
    pub completing: Completing,
}

/// A window that fired, before it is known what follows from it.
pub(super) struct Firing {
    pub tenant: u32,
    pub key: Box<[u8]>,
    /// The moment at which it happened, for other correlations.
    pub time: i64,
    pub sources: u64,
    pub id: EventId,
    pub origin: Option<(usize, u32)>,
    pub completing: Completing,
}

impl Correlations {
    /// Feeds events, and what follows from them, in the order of correlations.
    pub(super) fn run(
        &mut self,
        set: &CorrelationSet,
        batch: &mut Batch<'_>,
        tenant: u32,
        work: &mut Vec<Work>,
        out: &mut Row<'_>,
    ) {
        // Last first.
        work.sort_by_key(|work| Reverse((work.correlation, work.slot)));
        while let Some(next) = work.pop() {
            let Some(correlation) = set.correlations.get(next.correlation as usize) else { continue };
            let place = (next.correlation, tenant);
            let firing = self.step(set, place, |own| own.feed(set, correlation, tenant, next, (batch, out)));
            if let Some(firing) = firing {
                self.follow(set, correlation, batch, &firing, work);
            }
        }
    }

    /// Puts what follows from a firing to the work, in its order.
    pub(super) fn follow(
        &mut self,
        set: &CorrelationSet,
        correlation: &Correlation,
        batch: &mut Batch<'_>,
        firing: &Firing,
        work: &mut Vec<Work>,
    ) {
        if correlation.feeds.is_empty() {
            return;
        }
        let Some(org_id) = self.clock.tenants.get(firing.tenant as usize).map(|tenant| tenant.org_id.clone()) else {
            return;
        };
        let own = values(&firing.key);
        for feed in correlation.feeds.of(&org_id) {
            let Some(other) = set.correlations.get(feed.correlation as usize) else { continue };
            let stopped = self.costs.is_stopped(feed.correlation, firing.tenant);
            if stopped || self.off.is_off(&org_id, &other.head.id) {
                continue;
            }
            let none = Views { group: Box::default(), measured: Box::default() };
            let views = firing.origin.and_then(|(_, rule)| feed.through.get(&rule)).unwrap_or(&none);
            let row = firing.origin.map_or(usize::MAX, |(row, _)| row);
            let mut key = Vec::new();
            let through = Some((feed, own.as_slice()));
            let place = (feed.correlation, firing.tenant);
            let value = self.step(set, place, |_| measured(batch, row, &mut key, (other, views), through));
            let Some(value) = value else {
                self.counts.ungrouped += 1;
                continue;
            };
            let next = Work {
                correlation: feed.correlation,
                slot: feed.slot,
                time: firing.time,
                sources: firing.sources,
                id: firing.id.clone(),
                key,
                value,
                origin: firing.origin,
                completing: firing.completing.clone(),
            };
            let place = work.partition_point(|known| (known.correlation, known.slot) > (next.correlation, next.slot));
            work.insert(place, next);
        }
    }

    /// Puts one event into its group, unless it is late for that.
    fn feed(
        &mut self,
        set: &CorrelationSet,
        correlation: &Correlation,
        tenant: u32,
        work: Work,
        (batch, out): (&Batch<'_>, &mut Row<'_>),
    ) -> Option<Firing> {
        let place = (work.correlation, tenant);
        if self.costs.is_stopped(place.0, place.1) {
            return None;
        }
        let step = self.costs.begin();
        let terms = Terms::new(correlation, self.events_max);
        let Some(Found { bucket: bucket_id, slot, sources, mark }) = self.group_for(&work, correlation, tenant, &terms)
        else {
            self.counts.late += 1;
            self.costs.end(&step, place, true);
            return None;
        };
        let bucket = self.buckets.get_mut(bucket_id as usize)?;
        bucket.touch(slot);
        let group = bucket.get_mut(slot)?;
        let known = std::mem::replace(&mut group.sources, sources);
        self.clock.moved(tenant, known, sources);
        let (was, windows) = (group.wait(&terms, correlation.eager), group.windows().len());
        let completing = || work.origin.map_or_else(|| work.completing.clone(), |(row, _)| batch.completing(row));
        let id = work.id.clone();
        let entry = Entry { time: work.time, id: work.id, value: work.value, slot: work.slot };
        let fed = if correlation.eager {
            group.feed_eager(entry, mark, &terms)
        } else {
            group.feed_closing(entry, completing(), &terms)
        };
        let Fed { fire, dropped, unjudged, looked_at } = fed;
        let firing = fire.map(|fire| {
            let completing = completing();
            if let Some(tenant) = self.clock.tenants.get(tenant as usize) {
                let about = (correlation, work.correlation, &*tenant.org_id);
                out.tell(set, &self.off, Told::of(about, group, (&fire, &completing)));
            }
            Firing { tenant, key: group.key.clone(), time: fire.at, sources, id, origin: work.origin, completing }
        });
        let wait = group.wait(&terms, correlation.eager);
        let later = wait.at > group.armed && wait.is_last;
        let arm = known != sources || wait.is_last != was.is_last || (wait.at != group.armed && !later);
        self.allowed += (group.windows().len() - windows) as u64 + u64::from(self.fed > 0);
        self.fed += 1;
        let number = group.number;
        if arm {
            group.armed = wait.at;
        }
        let (before, after) = bucket.recount(slot, &correlation.definition);
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.counts.unjudged += unjudged;
        self.counts.looked_at += looked_at;
        self.counts.dropped += dropped;
        self.counts.fired += u64::from(firing.is_some());
        if arm {
            self.schedule(tenant, sources, wait.is_last, Timer { at: wait.at, number, bucket: bucket_id, slot });
        }
        if self.bytes > self.bytes_max {
            self.free();
        }
        self.costs.end(&step, place, true);
        firing
    }
}

/// An event counts once for a correlation, but for temporal ones, which see each of their rules.
pub(super) fn once_each(set: &CorrelationSet, work: &mut Vec<Work>) {
    if work.len() < 2 {
        return;
    }
    work.sort_by_key(|work| (work.correlation, work.slot, work.origin.map(|(_, rule)| rule)));
    work.dedup_by(|next, kept| {
        let kind = set.correlations.get(next.correlation as usize).map(|correlation| correlation.definition.kind);
        let temporal = matches!(kind, Some(CorrelationType::Temporal | CorrelationType::TemporalOrdered));
        next.correlation == kept.correlation && (!temporal || next.slot == kept.slot)
    });
}
