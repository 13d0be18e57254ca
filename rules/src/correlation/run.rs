//! Runs correlations over matches, row by row.

use std::sync::Arc;

use arrow::array::RecordBatch;
use rustc_hash::FxHashMap;

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::correlation::alert::Told;
use crate::correlation::bucket::Bucket;
use crate::correlation::clock::{Clock, Met, Stand};
use crate::correlation::completing::Completing;
use crate::correlation::costs::{Costs, Stopped};
use crate::correlation::entry::EventId;
use crate::correlation::feed::{Work, once_each};
use crate::correlation::read::{Batch, measured};
use crate::correlation::saved::Kept;
use crate::correlation::set::CorrelationSet;
use crate::correlation::targets::{ByTenant, Target};
use crate::eval::Parked;
use crate::metrics;
use crate::off::Off;

/// Receive time (µs) that lets one window that is over be decided, or one group that is of no use be dropped. Rows let more: see
/// [`Correlations::allowed`].
const STEP_US: i64 = 250;
/// The most of these at one row, however long nothing came.
const STEPS_MAX: u64 = 10_000;

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

/// A row, and where what it fires is told.
pub(super) struct Row<'t> {
    pub row: usize,
    /// Whether it is not yet what the row itself matches.
    pub before: bool,
    pub sink: &'t mut dyn FnMut(&Told<'_>),
}

impl Row<'_> {
    /// Tells of a window that fired, unless its correlation is one that only others refer to.
    pub fn tell(&mut self, set: &CorrelationSet, off: &Off, mut told: Told<'_>) {
        let referred = set.referred.get(told.number as usize);
        if referred.is_none_or(|referred| referred.raises(told.org_id, off)) {
            (told.row, told.before) = (self.row, self.before);
            (self.sink)(&told);
        }
    }
}

/// All correlations with their state.
#[derive(Debug)]
pub(crate) struct Correlations {
    pub(super) groups_max: usize,
    pub(super) bytes_max: usize,
    pub(super) events_max: usize,
    pub(super) event_ns_max: u64,
    pub(super) clock: Clock,
    pub(super) rules: Option<Arc<RuleSet>>,
    /// Rules that tenants turned off.
    pub(super) off: Arc<Off>,
    pub(super) buckets: Vec<Bucket>,
    pub(super) bucket_ids: FxHashMap<(u32, u32), u32>,
    /// The places of buckets that have no groups.
    pub(super) free_buckets: Vec<u32>,
    pub(super) bytes: usize,
    /// How many groups there are.
    pub(super) live: usize,
    /// Events and steps of indexes that were looked at, ever.
    looked_at: u64,
    pub(super) next_number: u64,
    /// How many steps of passing time may still be made at this row: a window decided, a group dropped or waited for anew. A row
    /// lets one be made, and more for the groups and windows that it begins and for each further event that it is, so that there
    /// are never more and more of them; and there are those that go by receive time. What is left is not for later rows.
    pub(super) allowed: u64,
    /// How many events of this row were put into groups.
    pub(super) fed: u64,
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
            event_ns_max: config.correlation_event_ns_max,
            clock: Clock::new(micros(config.lateness_ms_max), micros(config.ahead_ms_max)),
            rules: None,
            off: Arc::default(),
            buckets: Vec::new(),
            bucket_ids: FxHashMap::default(),
            free_buckets: Vec::new(),
            bytes: 0,
            live: 0,
            looked_at: 0,
            next_number: 0,
            allowed: 0,
            fed: 0,
            kept: Vec::new(),
            counts: Counts::default(),
            costs: Costs::new(&CorrelationSet::default(), config.correlation_event_ns_max),
        }
    }

    /// Tells of the windows that fire, in the order of rows. All batches of events must come by, in order, with all of their
    /// matches.
    pub fn process(
        &mut self,
        (rules, off): (&Arc<RuleSet>, &Arc<Off>),
        rows: &RecordBatch,
        matches: &[(usize, usize)],
        tell: &mut dyn FnMut(&Told<'_>),
    ) {
        self.adopt(rules);
        self.off = off.clone();
        let set = &rules.correlations;
        if set.correlations.is_empty() {
            return;
        }
        self.costs.begin_batch();
        let mut batch = Batch::new(rows, set);
        let mut matches = matches;
        let mut work = Vec::new();
        for row in 0..rows.num_rows() {
            let count = matches.iter().take_while(|(own, _)| *own == row).count();
            let (own, later) = matches.split_at(count);
            matches = later;
            self.row(set, &mut batch, own, &mut work, &mut Row { row, before: true, sink: &mut *tell });
            if self.costs.is_due() {
                let stopped = self.costs.judge(rows.num_rows() as u64, &shared(&self.buckets));
                self.stop(&stopped);
            }
        }
        let stopped = self.costs.end_batch(rows.num_rows() as u64, &shared(&self.buckets));
        self.stop(&stopped);
        self.report();
    }

    /// Takes one row with its matches.
    fn row(
        &mut self,
        set: &CorrelationSet,
        batch: &mut Batch<'_>,
        matches: &[(usize, usize)],
        work: &mut Vec<Work>,
        out: &mut Row<'_>,
    ) {
        let row = out.row;
        let (org_id, source) = (Batch::text(batch.org_id, row), Batch::text(batch.source, row));
        let (time, received) = (Batch::time(batch.times, row), Batch::time(batch.received, row));
        if let Some(received) = received.filter(|received| self.clock.falls(*received)) {
            self.clock.fall(received);
        }
        self.allowed = self.clock.receive(received, STEP_US, STEPS_MAX);
        self.fed = 0;
        let place = self.clock.place(org_id, source);
        let mut woken: Vec<u32> = std::iter::from_fn(|| self.clock.woken()).collect();
        woken.sort_unstable();
        let own = place.map(|(tenant, _)| tenant);
        for tenant in woken.iter().copied().filter(|tenant| Some(*tenant) != own) {
            self.pass(set, batch, tenant, out);
            self.clock.arm(tenant);
        }
        // The row's own tenant last, whatever it is looked at for: its source comes back and may go back in time.
        let back = place.and_then(|place| self.clock.wakes_up(place, received));
        let woken = own.filter(|own| back.is_some() || woken.contains(own));
        if let Some(tenant) = woken {
            self.pass(set, batch, tenant, out);
        }
        let stand = place.and_then(|place| self.clock.observe(place, time, received));
        if let Some(tenant) = woken {
            // Its next silence may come before what was waited for.
            self.clock.arm(tenant);
        }
        let Some(stand) = stand else { return };
        self.allowed += 1;
        self.pass(set, batch, stand.tenant, out);
        for (_, rule) in matches {
            if let Some(targets) = set.targets.get(&(*rule as u32)) {
                self.aim(set, batch, (row, *rule, targets), (org_id, stand), work);
            }
        }
        if !work.is_empty() {
            out.before = false;
            once_each(set, work);
            self.run(set, batch, stand.tenant, work, out);
            // A window that waits for another source now may be over: at once, or it would depend on who sends next.
            self.pass(set, batch, stand.tenant, out);
        }
    }

    /// Forgets the groups of correlations that take too long.
    fn stop(&mut self, stopped: &[Stopped]) {
        if stopped.is_empty() {
            return;
        }
        let tenants = &self.clock.tenants;
        self.costs.name(stopped, |tenant| tenants.get(tenant as usize).map(|tenant| tenant.org_id.clone()));
        for at in 0..self.buckets.len() as u32 {
            let Some(bucket) = self.buckets.get_mut(at as usize) else { continue };
            let (correlation, tenant) = (bucket.correlation, bucket.tenant);
            if stopped.iter().any(|(own, of)| *own == correlation && of.is_none_or(|of| of == tenant)) {
                self.bytes = self.bytes.saturating_sub(bucket.bytes);
                self.live -= bucket.len();
                bucket.iter().for_each(|group| self.clock.moved(tenant, group.sources, 0));
                *bucket = Bucket::new(correlation, tenant);
                self.release(at);
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
        (row, rule, targets): (usize, usize, &ByTenant<Target>),
        (org_id, stand): (&str, Stand),
        work: &mut Vec<Work>,
    ) {
        for target in targets.of(org_id) {
            let Some(correlation) = set.correlations.get(target.correlation as usize) else { continue };
            let place = (target.correlation, stand.tenant);
            if self.costs.is_stopped(place.0, place.1) || self.off.is_off(org_id, &correlation.head.id) {
                continue;
            }
            let mut key = Vec::new();
            let step = self.costs.begin();
            let value = self.step(set, place, |_| measured(batch, row, &mut key, (correlation, &target.views), None));
            // An event that it has no use for is one of its events all the same.
            self.costs.end(&step, place, value.is_none());
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
        let Met { tenants, sources, sets } = std::mem::take(&mut self.clock.met);
        for (bound, met) in [("tenants", tenants), ("sources", sources), ("sets", sets)] {
            ::metrics::counter!(metrics::CORRELATION_BOUNDED, "bound" => bound).increment(met);
        }
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

    /// Whether windows that are over wait to be decided.
    pub fn is_behind(&self) -> bool {
        self.clock.tenants.iter().any(|tenant| tenant.held < i64::MAX)
    }

    /// About how many bytes they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Says whether a correlation has groups of several tenants.
fn shared(buckets: &[Bucket]) -> impl Fn(u32) -> bool {
    |correlation| buckets.iter().filter(|bucket| bucket.correlation == correlation && bucket.len() > 0).nth(1).is_some()
}
