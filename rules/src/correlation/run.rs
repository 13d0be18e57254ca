//! Runs correlations over matches, row by row.

use std::cmp::Reverse;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::TimestampMicrosecondType;
use rsigma_parser::CorrelationType;
use rustc_hash::FxHashMap;
use tidegate_events::{Alert, Dataset};

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::correlation::alert::{alert, push_value, values};
use crate::correlation::amount::Amount;
use crate::correlation::bucket::Bucket;
use crate::correlation::clock::{Clock, Timer};
use crate::correlation::entry::{Entry, EventId, Value};
use crate::correlation::group::{Completing, Fire, Group, Terms};
use crate::correlation::saved::{Identity, Kept};
use crate::correlation::set::{Correlation, CorrelationSet, Feed, Views};
use crate::group_key;
use crate::metrics;
use crate::shown::ShownRows;

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
struct Counts {
    late: u64,
    ungrouped: u64,
    dropped: u64,
    evicted: u64,
    closed: u64,
    fired: u64,
}

/// An event on its way into a correlation.
#[derive(Debug)]
struct Work {
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
struct Firing {
    correlation: u32,
    tenant: u32,
    key: Box<[u8]>,
    /// The moment at which it happened, for other correlations.
    time: i64,
    sources: u64,
    id: EventId,
    origin: Option<(usize, u32)>,
    completing: Completing,
    alert: Option<Alert>,
}

/// The columns of a batch that correlations read.
struct Batch<'a> {
    shown: ShownRows<'a>,
    times: Option<&'a TimestampMicrosecondArray>,
    received: Option<&'a TimestampMicrosecondArray>,
    org_id: Option<&'a StringArray>,
    source: Option<&'a StringArray>,
    event_id: Option<&'a StringArray>,
    actor: Option<&'a StringArray>,
    asset: Option<&'a StringArray>,
    resource: Option<&'a StringArray>,
    buffer: String,
}

impl<'a> Batch<'a> {
    fn new(rows: &'a RecordBatch, set: &'a CorrelationSet) -> Self {
        let text = |name: &str| rows.column_by_name(name).and_then(|array| array.as_string_opt::<i32>());
        let times = |name: &str| {
            rows.column_by_name(name).and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>())
        };
        Self {
            shown: ShownRows::new(rows, &set.views),
            times: times(Dataset::TIME),
            received: times("received_time"),
            org_id: text(Dataset::ORG_ID),
            source: text("source"),
            event_id: text(Dataset::EVENT_ID),
            actor: text("actor"),
            asset: text("asset"),
            resource: text("resource").or_else(|| text("resource_id")),
            buffer: String::new(),
        }
    }

    fn text(column: Option<&'a StringArray>, row: usize) -> &'a str {
        column.filter(|column| column.is_valid(row)).map_or("", |column| column.value(row))
    }

    fn time(column: Option<&TimestampMicrosecondArray>, row: usize) -> Option<i64> {
        column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
    }

    fn completing(&self, row: usize) -> Completing {
        let some = |column| Some(Self::text(column, row)).filter(|text| !text.is_empty()).map(Box::from);
        Completing {
            source: Self::text(self.source, row).into(),
            actor: some(self.actor),
            asset: some(self.asset),
            resource: some(self.resource),
        }
    }

    /// Calls `visit` with the first value of a field; says whether there is one.
    fn first(&mut self, view: u32, row: usize, mut visit: impl FnMut(&str)) -> bool {
        let mut any = false;
        self.shown.visit(view, row, &mut self.buffer, &mut |value| {
            if !any {
                any = true;
                visit(value);
            }
        });
        any
    }
}

/// All correlations with their state.
#[derive(Debug)]
pub(crate) struct Correlations {
    groups_max: usize,
    bytes_max: usize,
    events_max: usize,
    event_ids_max: usize,
    pub(super) clock: Clock,
    pub(super) rules: Option<Arc<RuleSet>>,
    pub(super) buckets: Vec<Bucket>,
    bucket_ids: FxHashMap<(u32, u32), u32>,
    bytes: usize,
    pub(super) next_number: u64,
    /// State that waits for its rules.
    pub(super) kept: Vec<Kept>,
    counts: Counts,
}

impl Correlations {
    pub fn new(config: &RulesConfig) -> Self {
        let micros = |ms: u64| i64::try_from(ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
        Self {
            groups_max: config.correlation_groups_max.max(1),
            bytes_max: config.correlation_bytes_max,
            events_max: config.correlation_group_events_max,
            event_ids_max: config.alert_event_ids_max,
            clock: Clock::new(micros(config.lateness_ms_max), micros(config.ahead_ms_max)),
            rules: None,
            buckets: Vec::new(),
            bucket_ids: FxHashMap::default(),
            bytes: 0,
            next_number: 0,
            kept: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The alerts of a batch, in the order of rows. All batches of events must come by, in order, with all of their matches.
    pub fn process(&mut self, rules: &Arc<RuleSet>, rows: &RecordBatch, matches: &[(usize, usize)]) -> Vec<Fired> {
        self.adopt(rules);
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
            while let Some(tenant) = self.clock.woken() {
                self.pass(set, &mut batch, tenant, EXPIRED_PER_ROW, (row, &mut out));
                self.clock.arm(tenant);
            }
            if let Some(tenant) = self.clock.wakes_up(org_id, source, received) {
                self.pass(set, &mut batch, tenant, usize::MAX, (row, &mut out));
            }
            let stand = self.clock.observe(org_id, source, time, received);
            if let Some(stand) = stand {
                self.pass(set, &mut batch, stand.tenant, EXPIRED_PER_ROW, (row, &mut out));
            }
            while let Some((_, rule)) = matches.next_if(|(own, _)| *own == row) {
                let Some(targets) = set.targets.get(&(rule as u32)) else { continue };
                let Some(stand) = stand.filter(|stand| !stand.late) else {
                    self.counts.late += 1;
                    continue;
                };
                for target in targets {
                    let Some(correlation) = set.correlations.get(target.correlation as usize) else { continue };
                    if correlation.org_id.as_ref().is_some_and(|own| **own != *org_id) {
                        continue;
                    }
                    let mut key = Vec::new();
                    let Some(value) = measured(&mut batch, row, &mut key, (correlation, &target.views), None) else {
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
            if let Some(stand) = stand.filter(|_| !work.is_empty()) {
                once_each(set, &mut work);
                self.run(set, &mut batch, stand.tenant, &mut work, (row, false, &mut out));
            }
        }
        self.report();
        out
    }

    /// Feeds events, and what follows from them, in the order of correlations.
    fn run(
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
    fn follow(
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
            if other.org_id.as_ref().is_some_and(|scope| *scope != org_id) {
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
        let terms = Terms::new(&correlation.definition, self.events_max);
        let bucket_id = self.bucket(work.correlation, tenant);
        let slot = self.group(bucket_id, &work.key, correlation, tenant, &terms)?;
        let bucket = self.buckets.get_mut(bucket_id as usize)?;
        bucket.touch(slot);
        let group = bucket.get_mut(slot)?;
        let bytes_before = group.bytes();
        let known = group.sources;
        group.sources = self.clock.bounded(tenant, known | work.sources);
        let mark = self.clock.mark(tenant, group.sources);
        let completing = || work.origin.map_or_else(|| work.completing.clone(), |(row, _)| batch.completing(row));
        let id = work.id.clone();
        let entry = Entry { time: work.time, id: work.id, value: work.value, slot: work.slot };
        let (fire, dropped) = if correlation.eager {
            group.feed_eager(entry, mark, &terms)
        } else {
            (None, group.feed_closing(entry, completing(), &terms))
        };
        let firing = fire.map(|fire| {
            let completing = completing();
            Firing {
                correlation: work.correlation,
                tenant,
                key: group.key.clone(),
                time: fire.at,
                sources: work.sources,
                id,
                origin: work.origin,
                alert: self.clock.tenants.get(tenant as usize).and_then(|tenant| {
                    raised(set, work.correlation, &tenant.org_id, group, (&fire, &completing), self.event_ids_max)
                }),
                completing,
            }
        });
        let deadline = group.deadline(&terms, correlation.eager);
        let arm =
            known != group.sources || if correlation.eager { deadline < group.armed } else { deadline != group.armed };
        let (number, sources, bytes_after) = (group.number, group.sources, group.bytes());
        if arm {
            group.armed = deadline;
        }
        bucket.bytes = (bucket.bytes + bytes_after).saturating_sub(bytes_before);
        self.bytes = (self.bytes + bytes_after).saturating_sub(bytes_before);
        self.counts.dropped += dropped;
        self.counts.fired += u64::from(firing.is_some());
        if arm {
            self.schedule(tenant, sources, correlation.eager, Timer { at: deadline, number, bucket: bucket_id, slot });
        }
        if self.bytes > self.bytes_max {
            self.free();
        }
        firing
    }

    fn bucket(&mut self, correlation: u32, tenant: u32) -> u32 {
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
            let over = correlation.eager && group.deadline(terms, true) <= self.clock.mark(tenant, group.sources);
            if over {
                let before = group.bytes();
                group.reset(self.next_number, &correlation.definition);
                let after = group.bytes();
                self.next_number += 1;
                bucket.bytes = (bucket.bytes + after).saturating_sub(before);
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
        let bytes = group.bytes();
        self.bytes += bytes;
        let bucket = self.buckets.get_mut(bucket_id as usize)?;
        bucket.bytes += bytes;
        Some(bucket.insert(Box::new(group)))
    }

    fn remove(&mut self, bucket_id: u32, slot: u32) {
        let Some(bucket) = self.buckets.get_mut(bucket_id as usize) else { return };
        if let Some(group) = bucket.remove(slot) {
            let bytes = group.bytes();
            bucket.bytes = bucket.bytes.saturating_sub(bytes);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }

    /// Drops the groups that were used longest ago, where most of the memory is.
    fn free(&mut self) {
        let target = self.bytes_max - self.bytes_max / FREED_PART;
        while self.bytes > target {
            let largest = self.buckets.iter().enumerate().max_by_key(|(at, bucket)| (bucket.bytes, Reverse(*at)));
            let Some((at, quarter)) = largest.map(|(at, bucket)| (at as u32, bucket.len().div_ceil(4))) else { return };
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

    fn schedule(&mut self, tenant: u32, sources: u64, eager: bool, timer: Timer) {
        if let Some(queue) = self.clock.queue(tenant, sources) {
            let heap = if eager { &mut queue.expiring } else { &mut queue.closing };
            let first = heap.peek().is_none_or(|Reverse(known)| timer.at < known.at);
            heap.push(Reverse(timer));
            if first {
                self.clock.arm(tenant);
            }
        }
    }

    /// Decides the windows of a tenant that are over and drops groups that are of no use any more, so many at most.
    fn pass(
        &mut self,
        set: &CorrelationSet,
        batch: &mut Batch<'_>,
        tenant: u32,
        expired_max: usize,
        (row, out): (usize, &mut Vec<Fired>),
    ) {
        loop {
            let mut fired = self.close(set, tenant);
            if fired.is_empty() {
                break;
            }
            fired.sort_by(|(left_end, left), (right_end, right)| {
                (left_end, left.correlation, &left.key).cmp(&(right_end, right.correlation, &right.key))
            });
            let mut work = Vec::new();
            for (_, mut firing) in fired {
                out.extend(firing.alert.take().map(|alert| Fired { row, before: true, alert }));
                let Some(correlation) = set.correlations.get(firing.correlation as usize) else { continue };
                self.follow(set, correlation, batch, &firing, &mut work);
                self.run(set, batch, tenant, &mut work, (row, true, out));
            }
        }
        self.expire(set, tenant, expired_max);
    }

    /// Takes the windows that are over out of their groups; those that fired with the end of each.
    fn close(&mut self, set: &CorrelationSet, tenant: u32) -> Vec<(i64, Firing)> {
        let mut fired = Vec::new();
        let mut at = 0;
        while let Some(queue) = self.clock.tenants.get(tenant as usize).and_then(|tenant| tenant.queues.get(at)) {
            let sources = queue.sources;
            let first = queue.closing.peek().map(|Reverse(timer)| *timer);
            at += 1;
            let Some(mut timer) = first else { continue };
            let mark = self.clock.mark(tenant, sources);
            while timer.at <= mark {
                if let Some(queue) = self.clock.queue(tenant, sources) {
                    queue.closing.pop();
                }
                self.decide(set, tenant, (sources, mark), timer, &mut fired);
                let next = self.clock.queue(tenant, sources).and_then(|queue| queue.closing.peek().copied());
                let Some(Reverse(next)) = next else { break };
                timer = next;
            }
        }
        fired
    }

    fn decide(
        &mut self,
        set: &CorrelationSet,
        tenant: u32,
        (sources, mark): (u64, i64),
        timer: Timer,
        fired: &mut Vec<(i64, Firing)>,
    ) {
        let Some(bucket) = self.buckets.get_mut(timer.bucket as usize) else { return };
        let Some(correlation) = set.correlations.get(bucket.correlation as usize) else { return };
        let terms = Terms::new(&correlation.definition, self.events_max);
        let number = bucket.correlation;
        let Some(group) = bucket.get_mut(timer.slot) else { return };
        if group.number != timer.number || group.sources != sources || group.armed != timer.at {
            return;
        }
        let before = group.bytes();
        while group.deadline(&terms, false) <= mark {
            let Some((window, fire)) = group.close(&terms) else { break };
            self.counts.closed += 1;
            let Some(fire) = fire else { continue };
            self.counts.fired += 1;
            let end = window.start.saturating_add(correlation.definition.span.0);
            let completing = *window.last.1;
            let org_id =
                self.clock.tenants.get(tenant as usize).map(|tenant| tenant.org_id.clone()).unwrap_or_default();
            let firing = Firing {
                correlation: number,
                tenant,
                key: group.key.clone(),
                time: end,
                sources,
                id: group.window(&fire).last().map_or_else(|| EventId::new(""), |entry| entry.id.clone()),
                origin: None,
                alert: raised(set, number, &org_id, group, (&fire, &completing), self.event_ids_max),
                completing,
            };
            fired.push((end, firing));
        }
        group.settle(&terms);
        if group.windows.is_empty() {
            self.bytes = (self.bytes + group.bytes()).saturating_sub(before);
            bucket.bytes = (bucket.bytes + bucket.get(timer.slot).map_or(0, Group::bytes)).saturating_sub(before);
            self.remove(timer.bucket, timer.slot);
            return;
        }
        group.armed = group.deadline(&terms, false);
        let (at, after) = (group.armed, group.bytes());
        bucket.bytes = (bucket.bytes + after).saturating_sub(before);
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.schedule(tenant, sources, false, Timer { at, ..timer });
    }

    /// Drops groups that no event can concern any more. Which are dropped first does not matter to what fires: one that is
    /// still there begins anew when it is found.
    fn expire(&mut self, set: &CorrelationSet, tenant: u32, mut expired_max: usize) {
        let mut at = 0;
        while let Some(queue) = self.clock.tenants.get(tenant as usize).and_then(|tenant| tenant.queues.get(at)) {
            let sources = queue.sources;
            let first = queue.expiring.peek().map(|Reverse(timer)| *timer);
            at += 1;
            let Some(mut timer) = first else { continue };
            let mark = self.clock.mark(tenant, sources);
            while timer.at <= mark && expired_max > 0 {
                if let Some(queue) = self.clock.queue(tenant, sources) {
                    queue.expiring.pop();
                }
                expired_max -= usize::from(self.outlived(set, tenant, sources, timer));
                let next = self.clock.queue(tenant, sources).and_then(|queue| queue.expiring.peek().copied());
                let Some(Reverse(next)) = next else { break };
                timer = next;
            }
        }
        self.clock.tidy(tenant);
    }

    /// Drops the group of a timer, or waits on when there were events since. Says whether it was dropped.
    fn outlived(&mut self, set: &CorrelationSet, tenant: u32, sources: u64, timer: Timer) -> bool {
        let Some(bucket) = self.buckets.get_mut(timer.bucket as usize) else { return false };
        let Some(correlation) = set.correlations.get(bucket.correlation as usize) else { return false };
        let terms = Terms::new(&correlation.definition, self.events_max);
        let Some(group) = bucket.get_mut(timer.slot) else { return false };
        if group.number != timer.number || group.sources != sources || group.armed != timer.at {
            return false;
        }
        let deadline = group.deadline(&terms, true);
        if deadline > timer.at {
            group.armed = deadline;
            self.schedule(tenant, sources, true, Timer { at: deadline, ..timer });
            return false;
        }
        self.remove(timer.bucket, timer.slot);
        true
    }

    /// Takes up other rules: the state of a correlation that is the same as before goes on, that of others is dropped.
    fn adopt(&mut self, rules: &Arc<RuleSet>) {
        if self.rules.as_ref().is_some_and(|known| Arc::ptr_eq(known, rules)) {
            return;
        }
        let known = self.rules.replace(rules.clone());
        let same =
            known.as_ref().is_some_and(|known| identities(&known.correlations) == identities(&rules.correlations));
        if same {
            return;
        }
        if let Some(known) = known {
            self.detach(&known.correlations);
        }
        self.attach(&rules.correlations);
    }

    /// Puts all state aside.
    fn detach(&mut self, set: &CorrelationSet) {
        for mut bucket in std::mem::take(&mut self.buckets) {
            let correlation = set.correlations.get(bucket.correlation as usize);
            let tenant = self.clock.tenants.get(bucket.tenant as usize);
            if let (Some(correlation), Some(tenant)) = (correlation, tenant) {
                let groups = bucket.drain();
                self.kept.push(Kept { org_id: tenant.org_id.clone(), identity: Identity::of(correlation), groups });
            }
        }
    }

    /// Takes up the state that was put aside, as far as there are correlations for it.
    fn attach(&mut self, set: &CorrelationSet) {
        self.buckets.clear();
        self.bucket_ids.clear();
        self.clock.clear();
        self.bytes = 0;
        let numbers: FxHashMap<Identity, u32> = identities(set).into_iter().zip(0..).collect();
        for kept in std::mem::take(&mut self.kept) {
            let Some(number) = numbers.get(&kept.identity).copied() else { continue };
            let Some(correlation) = set.correlations.get(number as usize) else { continue };
            let Some(tenant) = self.clock.tenant(&kept.org_id) else { continue };
            let terms = Terms::new(&correlation.definition, self.events_max);
            let bucket_id = self.bucket(number, tenant);
            for mut group in kept.groups {
                group.begin(&correlation.definition);
                group.armed = group.deadline(&terms, correlation.eager);
                let (at, own, sources) = (group.armed, group.number, group.sources);
                let Some(bucket) = self.buckets.get_mut(bucket_id as usize) else { continue };
                bucket.bytes += group.bytes();
                self.bytes += group.bytes();
                let slot = bucket.insert(group);
                let timer = Timer { at, number: own, bucket: bucket_id, slot };
                self.schedule(tenant, sources, correlation.eager, timer);
            }
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
        ::metrics::gauge!(metrics::CORRELATION_GROUPS).set(self.groups() as f64);
        ::metrics::gauge!(metrics::CORRELATION_BYTES).set(self.bytes as f64);
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.buckets.iter().map(Bucket::len).sum()
    }
}

/// The alert of a firing; none for a correlation that only others refer to.
fn raised(
    set: &CorrelationSet,
    number: u32,
    org_id: &str,
    group: &Group,
    (fire, completing): (&Fire, &Completing),
    event_ids_max: usize,
) -> Option<Alert> {
    let correlation = set.correlations.get(number as usize)?;
    let raises = set.referred.get(number as usize).is_none_or(|referred| referred.raises(org_id));
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

/// Reads the group of an event into `key` and what is measured of it; `None` when something is missing. The values of a firing
/// come from its own group where it has them.
fn measured(
    batch: &mut Batch<'_>,
    row: usize,
    key: &mut Vec<u8>,
    (correlation, views): (&Correlation, &Views),
    firing: Option<(&Feed, &[&str])>,
) -> Option<Value> {
    let definition = &correlation.definition;
    let mut read = |group: bool, at: usize, visit: &mut dyn FnMut(&str)| -> Option<()> {
        let place = firing.and_then(|(feed, own)| {
            let places = if group { &feed.group } else { &feed.measured };
            own.get((*places.get(at)?)?).copied()
        });
        if let Some(value) = place {
            visit(value);
            return Some(());
        }
        let views = if group { &views.group } else { &views.measured };
        batch.first(*views.get(at)?, row, visit).then_some(())
    };
    for at in 0..definition.group_by.len() {
        read(true, at, &mut |value| push_value(key, value))?;
    }
    match definition.kind {
        CorrelationType::EventCount | CorrelationType::Temporal | CorrelationType::TemporalOrdered => Some(Value::None),
        CorrelationType::ValueCount => {
            let mut tuple = String::new();
            for at in 0..definition.fields.len() {
                read(false, at, &mut |value| {
                    tuple.push_str(&value.len().to_string());
                    tuple.push(':');
                    tuple.push_str(value);
                })?;
            }
            Some(Value::counted(group_key::hash(&tuple)))
        }
        _ => {
            let mut amount = None;
            read(false, 0, &mut |value| amount = Amount::parse(value))?;
            Some(Value::amount(amount?))
        }
    }
}

/// What tells whether state can be kept, in order.
fn identities(set: &CorrelationSet) -> Vec<Identity> {
    set.correlations.iter().map(Identity::of).collect()
}
