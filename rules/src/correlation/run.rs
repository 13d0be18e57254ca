//! Runs correlations over matches, row by row.

use std::cmp::Reverse;
use std::sync::Arc;

use arrow::array::RecordBatch;
use rsigma_parser::CorrelationType;
use rustc_hash::FxHashMap;
use tidegate_events::Alert;

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::correlation::alert::{alert, values};
use crate::correlation::bucket::Bucket;
use crate::correlation::clock::{Clock, Stand, Timer};
use crate::correlation::costs::{Costs, Stopped};
use crate::correlation::entry::{Entry, EventId, Value};
use crate::correlation::group::{Completing, Fed, Fire, Group, Terms};
use crate::correlation::read::{Batch, measured};
use crate::correlation::saved::Kept;
use crate::correlation::set::{Correlation, CorrelationSet, Target, Views};
use crate::eval::Parked;
use crate::metrics;
use crate::off::Off;

/// How many groups that are of no use are dropped at each row, so that a great number of them is no pause.
const EXPIRED_PER_ROW: usize = 64;
/// What is freed beyond the bound when memory is short, as a part of it.
const FREED_PART: usize = 256;

/// An alert of a correlation, with its place among those of single events.
#[derive(Debug)]
pub(crate) struct Fired {
    /// The row that brought it.
    pub row: usize,
    /// Whether it comes before what the row itself matches: a window that was over.
    pub before: bool,
    /// What it says.
    pub alert: Alert,
}

/// What happened since it was last asked.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub late: u64,
    pub ungrouped: u64,
    pub dropped: u64,
    pub evicted: u64,
    pub closed: u64,
    pub fired: u64,
    pub unjudged: u64,
    pub looked_at: u64,
}

/// An event on its way into a correlation.
#[derive(Debug)]
pub(super) struct Work {
    correlation: u32,
    slot: u16,
    time: i64,
    sources: u64,
    id: EventId,
    key: Vec<u8>,
    value: Value,
    /// The row, and the detection rule that it matched; none for a window that was over.
    origin: Option<(usize, u32)>,
    /// Who and what it is about, when there is no row.
    completing: Completing,
}

/// A window that fired, before it is known what follows from it.
pub(super) struct Firing {
    pub correlation: u32,
    pub tenant: u32,
    pub key: Box<[u8]>,
    /// The moment at which it happened, for other correlations.
    pub time: i64,
    pub sources: u64,
    pub id: EventId,
    pub origin: Option<(usize, u32)>,
    pub completing: Completing,
    pub alert: Option<Alert>,
}

/// All correlations with their state.
#[derive(Debug)]
pub(crate) struct Correlations {
    groups_max: usize,
    bytes_max: usize,
    pub(super) events_max: usize,
    pub(super) event_ids_max: usize,
    pub(super) event_ns_max: u64,
    pub(super) clock: Clock,
    pub(super) rules: Option<Arc<RuleSet>>,
    /// Rules that tenants turned off.
    pub(super) off: Arc<Off>,
    pub(super) buckets: Vec<Bucket>,
    pub(super) bucket_ids: FxHashMap<(u32, u32), u32>,
    pub(super) bytes: usize,
    /// How many groups there are.
    pub(super) live: usize,
    /// Events and steps of indexes that were looked at, ever.
    looked_at: u64,
    pub(super) next_number: u64,
    /// The moment whose windows are being decided: event time is that far then, though its marks are further. Else `i64::MAX`.
    pub(super) moment: i64,
    /// State that waits for its rules.
    pub(super) kept: Vec<Kept>,
    pub(super) counts: Counts,
    pub(super) costs: Costs,
}

impl Correlations {
    pub fn new(config: &RulesConfig) -> Self {
        let micros = |ms: u64| i64::try_from(ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
        Self {
            groups_max: config.correlation_groups_max.max(1),
            bytes_max: config.correlation_bytes_max,
            events_max: config.correlation_group_events_max,
            event_ids_max: config.alert_event_ids_max,
            event_ns_max: config.correlation_event_ns_max,
            clock: Clock::new(micros(config.lateness_ms_max), micros(config.ahead_ms_max)),
            rules: None,
            off: Arc::default(),
            buckets: Vec::new(),
            bucket_ids: FxHashMap::default(),
            bytes: 0,
            live: 0,
            looked_at: 0,
            next_number: 0,
            moment: i64::MAX,
            kept: Vec::new(),
            counts: Counts::default(),
            costs: Costs::new(&CorrelationSet::default(), config.correlation_event_ns_max),
        }
    }

    /// The alerts of a batch, in the order of rows. All batches of events must come by, in order, with all of their matches.
    pub fn process(
        &mut self,
        (rules, off): (&Arc<RuleSet>, &Arc<Off>),
        rows: &RecordBatch,
        matches: &[(usize, usize)],
    ) -> Vec<Fired> {
        self.adopt(rules);
        self.off = off.clone();
        let set = &rules.correlations;
        let mut out = Vec::new();
        if set.correlations.is_empty() {
            return out;
        }
        let mut batch = Batch::new(rows, set);
        let mut matches = matches.iter().copied().peekable();
        let mut work = Vec::new();
        for row in 0..rows.num_rows() {
            let (org_id, source) = (Batch::text(batch.org_id, row), Batch::text(batch.source, row));
            let (time, received) = (Batch::time(batch.times, row), Batch::time(batch.received, row));
            self.clock.receive(received);
            let place = self.clock.place(org_id, source);
            let mut woken: Vec<u32> = std::iter::from_fn(|| self.clock.woken()).collect();
            woken.sort_unstable();
            let own = place.map(|(tenant, _)| tenant);
            for tenant in woken.iter().copied().filter(|tenant| Some(*tenant) != own) {
                self.pass(set, &mut batch, tenant, EXPIRED_PER_ROW, (row, true, &mut out));
                self.clock.arm(tenant);
            }
            // The row's own tenant last, whatever it is looked at for: its source comes back and may go back in time.
            let back = place.and_then(|place| self.clock.wakes_up(place, received));
            let woken = own.filter(|own| back.is_some() || woken.contains(own));
            if let Some(tenant) = woken {
                let expired_max = if back.is_some() { usize::MAX } else { EXPIRED_PER_ROW };
                self.pass(set, &mut batch, tenant, expired_max, (row, true, &mut out));
            }
            let stand = place.and_then(|place| self.clock.observe(place, time, received));
            if let Some(tenant) = woken {
                // Its next silence may come before what was waited for.
                self.clock.arm(tenant);
            }
            if let Some(stand) = stand {
                self.pass(set, &mut batch, stand.tenant, EXPIRED_PER_ROW, (row, true, &mut out));
            }
            while let Some((_, rule)) = matches.next_if(|(own, _)| *own == row) {
                let Some(targets) = set.targets.get(&(rule as u32)) else { continue };
                let Some(stand) = stand.filter(|stand| !stand.late) else {
                    self.counts.late += 1;
                    continue;
                };
                self.aim(set, &mut batch, (row, rule, targets), (org_id, stand), &mut work);
            }
            if let Some(stand) = stand.filter(|_| !work.is_empty()) {
                once_each(set, &mut work);
                self.run(set, &mut batch, stand.tenant, &mut work, (row, false, &mut out));
                // A window that waits for another source now may be over: at once, or it would depend on who sends next.
                if self.next_over(stand.tenant).is_some() {
                    self.pass(set, &mut batch, stand.tenant, EXPIRED_PER_ROW, (row, false, &mut out));
                }
            }
            if self.costs.is_due() {
                let stopped = self.costs.judge(rows.num_rows() as u64);
                self.stop(&stopped);
            }
        }
        let stopped = self.costs.end_batch(rows.num_rows() as u64);
        self.stop(&stopped);
        self.report();
        out
    }

    /// Forgets the groups of correlations that take too long.
    fn stop(&mut self, stopped: &[Stopped]) {
        if stopped.is_empty() {
            return;
        }
        let tenants = &self.clock.tenants;
        self.costs.name(stopped, |tenant| tenants.get(tenant as usize).map(|tenant| tenant.org_id.clone()));
        for bucket in &mut self.buckets {
            let (correlation, tenant) = (bucket.correlation, bucket.tenant);
            if stopped.iter().any(|(own, of)| *own == correlation && of.is_none_or(|of| of == tenant)) {
                self.bytes = self.bytes.saturating_sub(bucket.bytes);
                self.live -= bucket.len();
                *bucket = Bucket::new(correlation, tenant);
            }
        }
    }

    /// Correlations that were stopped because they took too much time.
    pub fn parked(&self) -> &[Parked] {
        self.costs.reports()
    }

    /// Puts a match to the work: an event for each correlation that its tenant has and that refers to the rule.
    fn aim(
        &mut self,
        set: &CorrelationSet,
        batch: &mut Batch<'_>,
        (row, rule, targets): (usize, usize, &[Target]),
        (org_id, stand): (&str, Stand),
        work: &mut Vec<Work>,
    ) {
        for target in targets {
            let Some(correlation) = set.correlations.get(target.correlation as usize) else { continue };
            let foreign = correlation.head.org_id.as_ref().is_some_and(|own| **own != *org_id);
            let place = (target.correlation, stand.tenant);
            let stopped = self.costs.is_stopped(place.0, place.1);
            if foreign || stopped || self.off.is_off(org_id, &correlation.head.id) {
                continue;
            }
            let mut key = Vec::new();
            let step = self.costs.begin();
            let value = measured(batch, row, &mut key, (correlation, &target.views), None);
            self.costs.end(&step, place, false);
            let Some(value) = value else {
                self.counts.ungrouped += 1;
                continue;
            };
            work.push(Work {
                correlation: target.correlation,
                slot: target.slot,
                time: stand.time,
                sources: stand.source,
                id: EventId::new(Batch::text(batch.event_id, row)),
                key,
                value,
                origin: Some((row, rule as u32)),
                completing: Completing::default(),
            });
        }
    }

    /// Feeds events, and what follows from them, in the order of correlations.
    pub(super) fn run(
        &mut self,
        set: &CorrelationSet,
        batch: &mut Batch<'_>,
        tenant: u32,
        work: &mut Vec<Work>,
        (row, before, out): (usize, bool, &mut Vec<Fired>),
    ) {
        // Last first.
        work.sort_by_key(|work| Reverse((work.correlation, work.slot)));
        while let Some(next) = work.pop() {
            let Some(correlation) = set.correlations.get(next.correlation as usize) else { continue };
            if let Some(mut firing) = self.feed(set, correlation, tenant, next, batch) {
                out.extend(firing.alert.take().map(|alert| Fired { row, before, alert }));
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
        let Some(org_id) = self.clock.tenants.get(firing.tenant as usize).map(|tenant| tenant.org_id.clone()) else {
            return;
        };
        let own = values(&firing.key);
        for feed in &correlation.feeds {
            let Some(other) = set.correlations.get(feed.correlation as usize) else { continue };
            let foreign = other.head.org_id.as_ref().is_some_and(|scope| *scope != org_id);
            let stopped = self.costs.is_stopped(feed.correlation, firing.tenant);
            if foreign || stopped || self.off.is_off(&org_id, &other.head.id) {
                continue;
            }
            let none = Views { group: Box::default(), measured: Box::default() };
            let views = firing.origin.and_then(|(_, rule)| feed.through.get(&rule)).unwrap_or(&none);
            let row = firing.origin.map_or(usize::MAX, |(row, _)| row);
            let mut key = Vec::new();
            let Some(value) = measured(batch, row, &mut key, (other, views), Some((feed, &own))) else {
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

    /// Puts one event into its group.
    fn feed(
        &mut self,
        set: &CorrelationSet,
        correlation: &Correlation,
        tenant: u32,
        work: Work,
        batch: &Batch<'_>,
    ) -> Option<Firing> {
        if self.costs.is_stopped(work.correlation, tenant) {
            return None;
        }
        let (step, place) = (self.costs.begin(), (work.correlation, tenant));
        let terms = Terms::new(correlation, self.events_max);
        let bucket_id = self.bucket(work.correlation, tenant);
        let slot = self.group(bucket_id, &work.key, correlation, tenant, &terms)?;
        let bucket = self.buckets.get_mut(bucket_id as usize)?;
        bucket.touch(slot);
        let group = bucket.get_mut(slot)?;
        let known = group.sources;
        group.sources = self.clock.bounded(tenant, known | work.sources);
        let mark = self.clock.mark(tenant, group.sources).min(self.moment);
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
            Firing {
                correlation: work.correlation,
                tenant,
                key: group.key.clone(),
                time: fire.at,
                sources: group.sources,
                id,
                origin: work.origin,
                alert: self.clock.tenants.get(tenant as usize).and_then(|tenant| {
                    let about = (&*tenant.org_id, &*self.off);
                    raised(set, work.correlation, about, group, (&fire, &completing), self.event_ids_max)
                }),
                completing,
            }
        });
        let deadline = group.deadline(&terms, correlation.eager);
        let arm =
            known != group.sources || if correlation.eager { deadline < group.armed } else { deadline != group.armed };
        let (number, sources) = (group.number, group.sources);
        if arm {
            group.armed = deadline;
        }
        let (before, after) = bucket.recount(slot, &correlation.definition);
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.counts.unjudged += unjudged;
        self.counts.looked_at += looked_at;
        self.counts.dropped += dropped;
        self.counts.fired += u64::from(firing.is_some());
        if arm {
            self.schedule(tenant, sources, correlation.eager, Timer { at: deadline, number, bucket: bucket_id, slot });
        }
        if self.bytes > self.bytes_max {
            self.free();
        }
        self.costs.end(&step, place, true);
        firing
    }

    pub(super) fn bucket(&mut self, correlation: u32, tenant: u32) -> u32 {
        let next = self.buckets.len() as u32;
        *self.bucket_ids.entry((correlation, tenant)).or_insert_with(|| {
            self.buckets.push(Bucket::new(correlation, tenant));
            next
        })
    }

    /// The place of the group with this key, which is made if it is new, and begun anew if its time is over.
    fn group(
        &mut self,
        bucket_id: u32,
        key: &[u8],
        correlation: &Correlation,
        tenant: u32,
        terms: &Terms<'_>,
    ) -> Option<u32> {
        let bucket = self.buckets.get_mut(bucket_id as usize)?;
        if let Some(slot) = bucket.find(key) {
            let group = bucket.get_mut(slot)?;
            let mark = self.clock.mark(tenant, group.sources).min(self.moment);
            let over = correlation.eager && group.deadline(terms, true) <= mark;
            if over {
                group.reset(self.next_number, &correlation.definition);
                self.next_number += 1;
                let (before, after) = bucket.recount(slot, &correlation.definition);
                self.bytes = (self.bytes + after).saturating_sub(before);
            }
            return Some(slot);
        }
        if bucket.len() >= self.groups_max
            && let Some(oldest) = bucket.oldest()
        {
            self.counts.evicted += 1;
            self.remove(bucket_id, oldest);
        }
        let group = Group::new(key.into(), self.next_number, &correlation.definition);
        self.next_number += 1;
        let bucket = self.buckets.get_mut(bucket_id as usize)?;
        let slot = bucket.insert(group);
        self.bytes += bucket.recount(slot, &correlation.definition).1;
        self.live += 1;
        Some(slot)
    }

    pub(super) fn remove(&mut self, bucket_id: u32, slot: u32) {
        let Some(bucket) = self.buckets.get_mut(bucket_id as usize) else { return };
        if let Some(group) = bucket.remove(slot) {
            self.bytes = self.bytes.saturating_sub(group.counted);
            self.live -= 1;
        }
    }

    /// Drops the groups that were used longest ago, of the tenant that has most of the memory, where most of that is.
    fn free(&mut self) {
        let target = self.bytes_max - self.bytes_max / FREED_PART;
        while self.bytes > target {
            let Some((at, quarter)) = self.largest() else { return };
            for _ in 0..quarter {
                let Some(oldest) = self.buckets.get(at as usize).and_then(Bucket::oldest) else { return };
                self.counts.evicted += 1;
                self.remove(at, oldest);
                if self.bytes <= target {
                    return;
                }
            }
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
        let largest = own.max_by_key(|(at, bucket)| (bucket.bytes, Reverse(*at)));
        largest.map(|(at, bucket)| (at as u32, bucket.len().div_ceil(4)))
    }

    pub(super) fn schedule(&mut self, tenant: u32, sources: u64, eager: bool, timer: Timer) {
        let Some(queue) = self.clock.queue(tenant, sources) else { return };
        let timers = if eager { &mut queue.expiring } else { &mut queue.closing };
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

    fn report(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        ::metrics::counter!(metrics::CORRELATION_LATE).increment(counts.late);
        ::metrics::counter!(metrics::CORRELATION_UNGROUPED).increment(counts.ungrouped);
        ::metrics::counter!(metrics::CORRELATION_DROPPED).increment(counts.dropped);
        ::metrics::counter!(metrics::CORRELATION_EVICTED).increment(counts.evicted);
        ::metrics::counter!(metrics::CORRELATION_CLOSED).increment(counts.closed);
        ::metrics::counter!(metrics::CORRELATION_FIRED).increment(counts.fired);
        ::metrics::counter!(metrics::CORRELATION_UNJUDGED).increment(counts.unjudged);
        ::metrics::counter!(metrics::CORRELATION_STEPS).increment(counts.looked_at);
        self.looked_at += counts.looked_at;
        ::metrics::gauge!(metrics::CORRELATION_GROUPS).set(self.groups() as f64);
        ::metrics::gauge!(metrics::CORRELATION_BYTES).set(self.bytes as f64);
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.live
    }

    /// How many timers there are, and how much was looked at so far to judge windows.
    pub fn work(&self) -> (usize, u64) {
        let queues = self.clock.tenants.iter().flat_map(|tenant| &tenant.queues);
        (queues.map(|queue| queue.closing.len() + queue.expiring.len()).sum(), self.looked_at)
    }

    /// About how many bytes they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The alert of a firing; none for a correlation that only others refer to.
pub(super) fn raised(
    set: &CorrelationSet,
    number: u32,
    (org_id, off): (&str, &Off),
    group: &Group,
    (fire, completing): (&Fire, &Completing),
    event_ids_max: usize,
) -> Option<Alert> {
    let correlation = set.correlations.get(number as usize)?;
    let raises = set.referred.get(number as usize).is_none_or(|referred| referred.raises(org_id, off));
    raises.then(|| alert(correlation, org_id, &group.key, (fire, group.window(fire)), completing, event_ids_max))
}

/// An event counts once for a correlation, but for temporal ones, which see each of their rules.
fn once_each(set: &CorrelationSet, work: &mut Vec<Work>) {
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
