//! What rules cost, and which cost too much. What looks at a clock does so for this: parking is for the operator of the program,
//! not for the stream, so a replay may park at another place or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::eval::core_time::CoreTime;

/// Rows after which an average says something, however short they were.
const ROWS_MIN: u64 = 1_000;
/// Nanoseconds below which a rule is never called slow, whatever the average.
const NS_MIN: u64 = 50_000_000;
/// Samples without which a rule is never called slow after many rows: a thread that lost its core in the middle of one is no
/// evidence.
const SAMPLES_MIN: u32 = 16;
/// Nanoseconds that say enough after a few rows, when they are large.
const NS_ENOUGH: u64 = 250_000_000;
/// Samples without which they do not.
const SAMPLES_ENOUGH: u32 = 4;
/// A rule may take one part in so many of the time that goes by, in all and of late: a stream that is idle has time for a slow
/// rule.
const PARTS: u32 = 10;
/// What is of late: the time after which it counts half, and the least of it that says something.
const LATE: Duration = Duration::from_secs(1);
const LATE_MIN: Duration = Duration::from_millis(500);
/// All that is of one tenant together may take one part in so many, however little each takes.
const TENANT_PARTS: u32 = 3;
/// How often it is looked what all that is of a tenant takes.
const TENANTS_TIME: Duration = Duration::from_millis(250);
/// What one sample counts at most, for the same reason, unless one shortly before it took half as long or more.
const SAMPLE_NS_MAX: u64 = 1_000_000;
/// By which part the longest sample is forgotten with each one after it.
const FORGOTTEN_PART: u64 = 16;
/// Rows after which old costs count half.
const ROWS_MAX: u64 = 200_000;
/// Time after which they do: what happened in hours before excuses nothing that happens now.
const TIME_MAX: Duration = Duration::from_secs(4);

/// A rule, a filter or a correlation that no longer runs because it took too much time or panicked. It runs again when it
/// asks something else or the program restarts; a correlation, when rules change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Its id.
    pub rule_id: String,
    /// The tenant whose it is, or for whose events alone it no longer runs; `None` for one of all tenants.
    pub org_id: Option<Arc<str>>,
    /// Why.
    pub reason: String,
}

/// Something that takes time, and can be parked: a rule, a filter, a correlation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub id: String,
    /// The tenant that it is of; `None` for everyone.
    pub org_id: Option<Arc<str>>,
}

/// The costs of units, by their numbers.
#[derive(Debug)]
pub(crate) struct Budget {
    units: Vec<Unit>,
    /// The units of each tenant.
    tenants: Vec<Vec<usize>>,
    /// When it was last looked what these take.
    tenants_at: Instant,
    terms: Terms,
    /// Events since then, as far as they count.
    rows: u64,
    since: Instant,
    /// Since when what was spent is of late.
    late_since: Instant,
    spent: Vec<Spent>,
    core: CoreTime,
    parked: Vec<bool>,
    /// Units that cost more than [`NS_MIN`] since they were last looked at.
    suspects: Vec<usize>,
    /// Units with something that had to be given up.
    cut: Vec<usize>,
    pub reports: Vec<Parked>,
}

/// What a unit may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Nanoseconds for each event, on average.
    pub event_ns_max: u64,
    /// Which events: all of the stream, or those that the unit was given.
    pub own_events: bool,
    /// What the configuration calls it.
    pub name: &'static str,
}

/// What the samples of one unit took.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    ns: u64,
    /// Of late.
    late_ns: u64,
    samples: u32,
    /// What they stand for.
    events: u64,
    /// The longest sample, as far as it is not forgotten.
    longest_ns: u64,
}

impl Budget {
    pub fn new(units: Vec<Unit>, terms: Terms) -> Self {
        let (spent, parked) = (vec![Spent::default(); units.len()], vec![false; units.len()]);
        let mut tenants: BTreeMap<&Arc<str>, Vec<usize>> = BTreeMap::new();
        for (at, unit) in units.iter().enumerate() {
            unit.org_id.iter().for_each(|org_id| tenants.entry(org_id).or_default().push(at));
        }
        let now = Instant::now();
        Self {
            tenants: tenants.into_values().collect(),
            tenants_at: now,
            units,
            terms,
            rows: 0,
            since: now,
            late_since: now,
            spent,
            core: CoreTime::default(),
            parked,
            suspects: Vec::new(),
            cut: Vec::new(),
            reports: Vec::new(),
        }
    }

    pub fn is_parked(&self, unit: usize) -> bool {
        self.parked.get(unit).copied().unwrap_or(false)
    }

    /// A batch begins on this thread. Without this, all that samples say counts as time that the thread had a core.
    pub fn begin_batch(&mut self) {
        self.core.begin();
    }

    /// What each unit took, in nanoseconds and by samples, and over how many rows.
    pub fn spent(&self) -> (impl Iterator<Item = u64> + '_, u64) {
        (self.spent.iter().map(|spent| spent.ns), self.rows)
    }

    /// Counts what a timed sample of a unit took, which stands for `weight` of its kind.
    pub fn sampled(&mut self, unit: usize, ns: u64, weight: u64) {
        if let Some(spent) = self.spent.get_mut(unit) {
            spent.events = spent.events.saturating_add(weight);
        }
        self.sampled_beside(unit, ns, weight);
    }

    /// The same of something else that is done for an event.
    pub fn sampled_beside(&mut self, unit: usize, ns: u64, weight: u64) {
        if let Some(spent) = self.spent.get_mut(unit) {
            let counted = ns.min(SAMPLE_NS_MAX.max(spent.longest_ns.saturating_mul(2)));
            let counted = counted.saturating_mul(weight);
            (spent.ns, spent.late_ns) = (spent.ns.saturating_add(counted), spent.late_ns.saturating_add(counted));
            spent.longest_ns = ns.max(spent.longest_ns - spent.longest_ns / FORGOTTEN_PART);
            spent.samples = spent.samples.saturating_add(1);
            if spent.ns > NS_MIN && spent.samples >= SAMPLES_ENOUGH && self.suspects.last() != Some(&unit) {
                self.suspects.push(unit);
            }
        }
    }

    /// Why a unit was parked, if it was.
    pub fn reason(&self, unit: usize) -> Option<&str> {
        let Unit { id, org_id } = self.units.get(unit)?;
        let own = |parked: &&Parked| parked.rule_id == *id && parked.org_id == *org_id;
        self.reports.iter().find(own).map(|parked| parked.reason.as_str())
    }

    /// Something of a unit took so long that it was given up.
    pub fn cut(&mut self, unit: usize) {
        self.cut.push(unit);
    }

    /// Parks what is too slow by now, in a batch of so many rows. The units that are parked now, in order.
    pub fn judge(&mut self, rows_open: u64) -> Vec<usize> {
        let tenants_due = self.tenants_at.elapsed() > TENANTS_TIME;
        let (mut suspects, mut cut) = (std::mem::take(&mut self.suspects), std::mem::take(&mut self.cut));
        if suspects.is_empty() && cut.is_empty() && !tenants_due {
            return Vec::new();
        }
        self.core.look();
        let rows = self.rows + rows_open;
        let mut parked = Vec::new();
        cut.sort_unstable();
        cut.dedup();
        for unit in cut.into_iter().filter(|unit| !self.is_parked(*unit)).collect::<Vec<_>>() {
            self.park(unit, "took so long for one event that it was given up".to_owned());
            parked.push(unit);
        }
        suspects.sort_unstable();
        suspects.dedup();
        let elapsed = self.since.elapsed();
        let is_slow = |unit: &usize| !self.is_parked(*unit) && self.is_slow(*unit, rows, elapsed / PARTS);
        let mut slow = self.slow_together(&suspects, rows, elapsed / PARTS);
        slow.extend(suspects.iter().copied().filter(is_slow));
        if tenants_due {
            self.tenants_at = Instant::now();
            slow.extend(self.slow_tenants(rows, elapsed / TENANT_PARTS));
        }
        for unit in slow {
            if !self.is_parked(unit) {
                let (average, max) = (self.average(unit, rows), self.terms.event_ns_max);
                self.park(unit, format!("took {average} ns per event, more than {max}"));
                parked.push(unit);
            }
        }
        parked.sort_unstable();
        parked
    }

    fn average(&self, unit: usize, rows: u64) -> u64 {
        let Some(spent) = self.spent.get(unit) else { return 0 };
        self.core.of(spent.ns) / if self.terms.own_events { spent.events } else { rows }.max(1)
    }

    fn is_slow(&self, unit: usize, rows: u64, share: Duration) -> bool {
        let Some(spent) = self.spent.get(unit) else { return false };
        let (ns, late_ns) = (self.core.of(spent.ns), self.core.of(spent.late_ns));
        let many = spent.samples >= SAMPLES_MIN && rows >= ROWS_MIN && !self.terms.own_events;
        let said_enough = many || ns >= NS_ENOUGH;
        let least = Duration::from_nanos(NS_MIN);
        // What was cheap for seconds and turns dear is not excused by them.
        let late_share = self.late_since.elapsed().max(LATE_MIN) / PARTS;
        said_enough
            && self.average(unit, rows) > self.terms.event_ns_max
            && (Duration::from_nanos(ns) > share.max(least) || Duration::from_nanos(late_ns) > late_share.max(least))
    }

    /// Ends a batch. The units that are parked now, in order.
    pub fn end_batch(&mut self, rows: u64) -> Vec<usize> {
        self.rows += rows;
        let parked = self.judge(0);
        self.core.end();
        while self.late_since.elapsed() > LATE {
            self.late_since += self.late_since.elapsed() / 2;
            self.spent.iter_mut().for_each(|spent| spent.late_ns /= 2);
        }
        while self.rows > ROWS_MAX || self.since.elapsed() > TIME_MAX {
            self.rows /= 2;
            self.core.age();
            self.since += self.since.elapsed() / 2;
            self.spent.iter_mut().for_each(|spent| {
                spent.ns /= 2;
                spent.samples /= 2;
                spent.events /= 2;
            });
        }
        parked
    }

    /// Of each tenant whose own units are each a little too dear to be cheap, and together take more than one may: the dearest, until
    /// the others take no more.
    fn slow_together(&self, suspects: &[usize], rows: u64, share: Duration) -> Vec<usize> {
        let mut tenants: BTreeMap<&Arc<str>, Vec<usize>> = BTreeMap::new();
        for unit in suspects {
            let org_id = self.units.get(*unit).and_then(|unit| unit.org_id.as_ref());
            org_id.into_iter().for_each(|org_id| tenants.entry(org_id).or_default().push(*unit));
        }
        let ns_min = if rows >= ROWS_MIN { 0 } else { NS_ENOUGH };
        tenants.values().flat_map(|own| self.dearest_of(own, rows, (share, ns_min))).collect()
    }

    /// The same of all units of each tenant, however cheap each is.
    fn slow_tenants(&self, rows: u64, share: Duration) -> Vec<usize> {
        self.tenants.iter().flat_map(|own| self.dearest_of(own, rows, (share, NS_ENOUGH))).collect()
    }

    /// The dearest of some units that together take too much, so many that the others do not.
    fn dearest_of(&self, units: &[usize], rows: u64, (share, ns_min): (Duration, u64)) -> Vec<usize> {
        let own = |unit: usize| self.spent.get(unit).map_or(0, |spent| self.core.of(spent.ns));
        let spent = |unit: usize| if self.is_parked(unit) { 0 } else { own(unit) };
        let event_ns_max = self.terms.event_ns_max.saturating_mul(2);
        let too_much =
            |sum: u64| sum >= ns_min && sum / rows.max(1) > event_ns_max && Duration::from_nanos(sum) > share;
        let mut sum: u64 = units.iter().map(|unit| spent(*unit)).sum();
        if !too_much(sum) {
            return Vec::new();
        }
        let mut dearest: Vec<usize> = units.to_vec();
        dearest.sort_by_key(|unit| std::cmp::Reverse(spent(*unit)));
        // One that takes all of it is judged alone.
        let beside_others = |unit: &usize| {
            let beside = sum > spent(*unit) && too_much(sum);
            sum -= spent(*unit);
            beside
        };
        dearest.into_iter().take_while(beside_others).collect()
    }

    fn park(&mut self, unit: usize, reason: String) {
        let rule_id = self.units.get(unit).map_or("", |unit| unit.id.as_str());
        tracing::warn!(rule_id, reason, "rule parked; make it cheaper or raise {}", self.terms.name);
        self.park_for(unit, reason);
    }

    /// Lets a unit that was parked go on, as if it had taken nothing.
    pub fn forgive(&mut self, unit: usize) {
        if let (Some(parked), Some(spent)) = (self.parked.get_mut(unit), self.spent.get_mut(unit)) {
            (*parked, *spent) = (false, Spent::default());
        }
    }

    /// Parks a unit for a reason.
    pub fn park_for(&mut self, unit: usize, reason: String) {
        if let Some(parked) = self.parked.get_mut(unit) {
            *parked = true;
        }
        if let Some(Unit { id, org_id }) = self.units.get(unit) {
            self.reports.push(Parked { rule_id: id.clone(), org_id: org_id.clone(), reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::watch::SAMPLE;

    const TERMS: Terms = Terms { event_ns_max: 1_000, own_events: false, name: "rule_event_ns_max" };

    fn budget(units: usize) -> Budget {
        Budget::new((0..units).map(|unit| Unit { id: unit.to_string(), org_id: Some("acme".into()) }).collect(), TERMS)
    }

    fn sampled(budget: &mut Budget, times: u32, ns: u64) {
        (0..times).for_each(|_| budget.sampled(0, ns, SAMPLE));
    }

    #[test]
    fn a_rule_is_parked_for_its_average_and_only_once() {
        let mut own = budget(1);
        sampled(&mut own, 1, 100_000_000);
        assert_eq!(own.end_batch(2_000), [0usize; 0], "too few samples");
        assert_eq!(own.spent().0.sum::<u64>(), SAMPLE_NS_MAX * SAMPLE, "one outlier");
        sampled(&mut own, 1, 90_000_000);
        assert_eq!(own.spent().0.sum::<u64>(), (SAMPLE_NS_MAX + 90_000_000) * SAMPLE, "no outlier");
        let mut own = budget(1);
        sampled(&mut own, 4 * SAMPLES_MIN, 1_000_000);
        assert_eq!(own.end_batch(1_000), [0]);
        assert_eq!(own.reports.len(), 1);
        sampled(&mut own, 4 * SAMPLES_MIN, 1_000_000);
        assert_eq!(own.end_batch(1_000), [0usize; 0], "once");
        let mut cheap = budget(1);
        sampled(&mut cheap, 1_000, 1_000);
        assert_eq!(cheap.end_batch(100_000), [0usize; 0]);
    }

    #[test]
    fn a_few_large_events_are_enough_and_outliers_are_not() {
        let mut large = budget(1);
        (0..12).for_each(|_| large.sampled(0, 22_000_000, 1));
        assert_eq!(large.judge(12), [0usize; 0], "not a quarter of a second yet");
        large.sampled(0, 22_000_000, 1);
        assert_eq!(large.judge(13), [0], "in the middle of a batch");
        // Now and then one is dear, and between them many are cheap.
        let mut mixed = budget(1);
        for at in 0..200 {
            mixed.sampled(0, if at % 10 == 0 { 22_000_000 } else { 500 }, 1);
        }
        assert_eq!(mixed.end_batch(200), [0]);
        // A machine that takes the core away for 10 ms in one of five thousand samples.
        let mut slow_machine = budget(1);
        for at in 0..20_000 {
            slow_machine.sampled(0, if at % 5_000 == 4_999 { 10_000_000 } else { 1_000 }, SAMPLE);
        }
        assert_eq!(slow_machine.end_batch(200_000), [0usize; 0]);
        let mut given_up = budget(1);
        given_up.cut(0);
        assert_eq!(given_up.judge(1), [0]);
        assert!(given_up.is_parked(0) && given_up.judge(1).is_empty());
    }

    #[test]
    fn what_went_by_while_the_thread_had_no_core_is_no_units_fault() {
        let (mut beside_others, mut alone) = (budget(1), budget(1));
        beside_others.begin_batch();
        std::thread::sleep(Duration::from_millis(60));
        for own in [&mut beside_others, &mut alone] {
            (0..20).for_each(|_| own.sampled(0, 20_000_000, 1));
        }
        assert_eq!((beside_others.judge(20), alone.judge(20)), (vec![], vec![0]));
        assert_eq!(beside_others.end_batch(20), [0usize; 0]);
    }

    #[test]
    fn what_was_long_ago_excuses_nothing_and_counts_for_nothing() {
        let long_ago =
            || Instant::now().checked_sub(Duration::from_secs(30)).expect("a clock that runs for half a minute");
        let mut idle = budget(1);
        idle.since = long_ago();
        idle.end_batch(1);
        assert!(idle.since.elapsed() <= TIME_MAX);
        (0..40).for_each(|_| idle.sampled(0, 22_000_000, 1));
        assert_eq!(idle.judge(40), [0], "after an idle time");
        let mut before = budget(1);
        (0..40).for_each(|_| before.sampled(0, 22_000_000, 1));
        before.suspects.clear();
        before.since = long_ago();
        before.end_batch(1);
        assert!(before.spent().0.sum::<u64>() < 40 * 22_000_000 / 4);
    }

    #[test]
    fn what_turns_dear_after_seconds_that_were_cheap_is_parked_for_what_it_takes_of_late() {
        let ago = |ms| Instant::now().checked_sub(Duration::from_millis(ms)).expect("a clock that runs");
        // A fifth of the last 900 ms, after 3 s of nothing.
        let spend = |late_ms: u64, ms: u64| {
            let mut own = budget(1);
            own.since = ago(3_900);
            own.late_since = ago(late_ms);
            (0..ms).for_each(|_| own.sampled(0, 1_000_000 / SAMPLE, SAMPLE));
            own.end_batch(100_000)
        };
        assert_eq!(spend(900, 180), [0], "a fifth of it");
        assert_eq!(spend(900, 80), [0usize; 0], "less than a tenth");
        assert_eq!(spend(100, 49), [0usize; 0], "half a second is the least that is looked at");
        // What was of late is not for ever.
        let mut own = budget(1);
        own.late_since = ago(4_000);
        (0..300).for_each(|_| own.sampled(0, 500_000 / SAMPLE, SAMPLE));
        own.suspects.clear();
        own.end_batch(1_000_000);
        assert!(own.late_since.elapsed() <= LATE && own.spent[0].late_ns == 18_750_000, "{:?}", own.spent[0]);
    }

    #[test]
    fn a_unit_with_events_of_its_own_is_judged_by_these() {
        let of = |own_events: bool| {
            let mut own = Budget::new(budget(1).units, Terms { own_events, ..TERMS });
            // Half a millisecond for each of 2,000 events, in a stream of a million.
            (0..250).for_each(|_| own.sampled(0, 500_000, SAMPLE));
            own.judge(1_000_000)
        };
        assert_eq!((of(true), of(false)), (vec![0], vec![]));
    }

    #[test]
    fn what_is_cheap_one_by_one_and_dear_together_goes_the_dearest_first() {
        let mut own = budget(3);
        for (unit, ns) in [(0, 900_000), (1, 950_000), (2, 900_000)] {
            (0..100).for_each(|_| own.sampled(unit, ns, SAMPLE));
        }
        assert_eq!(own.judge(1_000_000), [1]);
        assert_eq!(own.judge(1_000_000), [0usize; 0], "nothing new");
    }

    #[test]
    fn what_fills_the_time_of_all_with_many_cheap_units_of_one_tenant_is_parked_until_there_is_time() {
        let unit =
            |at: usize| Unit { id: at.to_string(), org_id: Some(if at < 200 { "acme" } else { "other" }.into()) };
        let mut own = Budget::new((0..400).map(unit).collect(), TERMS);
        let second_ago = Instant::now().checked_sub(Duration::from_secs(1)).expect("a clock that runs");
        own.since = second_ago;
        // 4 ms each: 0.8 s of this second, and a tenth of that for the other tenant.
        for at in 0..400 {
            (0..10).for_each(|_| own.sampled(at, if at < 200 { 50_000 + at as u64 } else { 5_000 }, SAMPLE));
        }
        assert_eq!(own.judge(10_000), [0usize; 0], "it was looked a moment ago");
        own.tenants_at = second_ago;
        let parked = own.judge(10_000);
        assert!((100..150).contains(&parked.len()), "{}", parked.len());
        assert_eq!(parked.first(), Some(&(200 - parked.len())), "the dearest");
        assert_eq!(parked.last(), Some(&199));
        own.tenants_at = second_ago;
        assert_eq!(own.judge(10_000), [0usize; 0], "there is time now");
    }
}
