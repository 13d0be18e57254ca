//! What correlations cost, and which cost too much. As with rules, this is for the operator of the program, not for the stream.
//!
//! One step in eight is timed: to read what an event has for a correlation, to put it into its group, to decide a window that is
//! over. A correlation that takes longer for each of its events than it may, and more than a tenth of the time that goes by, stops:
//! its groups are forgotten. Where the events of one tenant take most of it, it stops for that tenant.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::correlation::set::CorrelationSet;
use crate::eval::Parked;
use crate::eval::budget::{Budget, Terms, Unit};
use crate::panicked;

/// One step in so many is timed.
const SAMPLE: u64 = 8;
/// The time after which it is looked in the middle of a batch whether something must be stopped.
const LOOK_NS: u64 = 50_000_000;
/// The time after which what each tenant took counts half.
const TENANTS_TIME: Duration = Duration::from_secs(4);
/// Less than that is as good as nothing.
const TENANT_NS_MIN: u64 = 1_000;
/// A correlation for everyone that panicked for so many tenants stops for all.
const PANICKED_MAX: usize = 8;
/// The most correlations and tenants of which that is known.
const TENANTS_MAX: usize = 100_000;

/// A step that is timed.
#[derive(Debug)]
pub(crate) struct Step(Option<Instant>);

/// What is to stop: a correlation, for a tenant or for all.
pub(crate) type Stopped = (u32, Option<u32>);

/// The costs of correlations.
#[derive(Debug)]
pub(crate) struct Costs {
    budget: Budget,
    /// Of each correlation the tenant that it is of, by its number.
    units: Vec<Unit>,
    /// What correlations took of late for each tenant: nanoseconds.
    tenants: FxHashMap<Stopped, u64>,
    tenants_since: Instant,
    stopped: FxHashSet<Stopped>,
    reports: Vec<Parked>,
    /// Says which steps are timed: not every eighth, since an event may take eight.
    random: u64,
    open_ns: u64,
}

impl Costs {
    pub fn new(set: &CorrelationSet, event_ns_max: u64) -> Self {
        let unit =
            |own: &crate::correlation::Correlation| Unit { id: own.head.id.clone(), org_id: own.head.org_id.clone() };
        let units: Vec<Unit> = set.correlations.iter().map(unit).collect();
        let terms = Terms { event_ns_max, own_events: true, name: "correlation_event_ns_max" };
        Self {
            budget: Budget::new(units.clone(), terms),
            units,
            tenants: FxHashMap::default(),
            tenants_since: Instant::now(),
            stopped: FxHashSet::default(),
            reports: Vec::new(),
            random: 1,
            open_ns: 0,
        }
    }

    /// Correlations that were stopped.
    pub fn reports(&self) -> &[Parked] {
        &self.reports
    }

    /// Whether a correlation is stopped for a tenant.
    pub fn is_stopped(&self, correlation: u32, tenant: u32) -> bool {
        !self.stopped.is_empty()
            && (self.stopped.contains(&(correlation, None)) || self.stopped.contains(&(correlation, Some(tenant))))
    }

    /// Begins a batch.
    pub fn begin_batch(&mut self) {
        self.budget.begin_batch();
    }

    /// Begins a step.
    pub fn begin(&mut self) -> Step {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Step(((self.random >> 33).is_multiple_of(SAMPLE)).then(Instant::now))
    }

    /// Ends a step of an event in a correlation; of several steps of one event, one is counted as the event.
    pub fn end(&mut self, step: &Step, (correlation, tenant): (u32, u32), is_event: bool) {
        let Some(started) = step.0 else { return };
        let ns = started.elapsed().as_nanos() as u64;
        match is_event {
            true => self.budget.sampled(correlation as usize, ns, SAMPLE),
            false => self.budget.sampled_beside(correlation as usize, ns, SAMPLE),
        }
        let all = ns.saturating_mul(SAMPLE);
        if self.tenants.len() < TENANTS_MAX {
            *self.tenants.entry((correlation, Some(tenant))).or_default() += all;
        }
        self.open_ns = self.open_ns.saturating_add(all);
    }

    /// Whether it is time to look if something must be stopped.
    pub fn is_due(&self) -> bool {
        self.open_ns >= LOOK_NS
    }

    /// What must be stopped, in a batch of so many rows.
    /// `shared` says whether a correlation has groups of several tenants.
    pub fn judge(&mut self, rows: u64, shared: &dyn Fn(u32) -> bool) -> Vec<Stopped> {
        self.open_ns = 0;
        let parked = self.budget.judge(rows);
        self.stop(parked, shared)
    }

    /// Ends a batch. What must be stopped.
    pub fn end_batch(&mut self, rows: u64, shared: &dyn Fn(u32) -> bool) -> Vec<Stopped> {
        let parked = self.budget.end_batch(rows);
        let stopped = self.stop(parked, shared);
        if self.tenants_since.elapsed() > TENANTS_TIME {
            // What was a moment ago still tells who it is, and what was long ago no more.
            self.tenants.retain(|_, ns| {
                *ns /= 2;
                *ns > TENANT_NS_MIN
            });
            self.tenants_since = Instant::now();
        }
        stopped
    }

    fn stop(&mut self, parked: Vec<usize>, shared: &dyn Fn(u32) -> bool) -> Vec<Stopped> {
        let mut reports = std::mem::take(&mut self.budget.reports);
        let mut stopped = Vec::new();
        for unit in parked {
            let Some(Unit { id, org_id }) = self.units.get(unit) else { continue };
            let Some(at) = reports.iter().position(|report| report.rule_id == *id && report.org_id == *org_id) else {
                continue;
            };
            let report = reports.swap_remove(at);
            let culprit = if org_id.is_none() { self.culprit(unit as u32, shared) } else { None };
            if culprit.is_some() {
                // It goes on for the others.
                self.budget.forgive(unit);
                self.tenants.remove(&(unit as u32, culprit));
            }
            self.stopped.insert((unit as u32, culprit));
            self.reports.push(report);
            stopped.push((unit as u32, culprit));
        }
        stopped
    }

    /// Stops a correlation that panicked: one for everyone for this tenant only, unless it did so for several before.
    pub fn panicked(&mut self, (correlation, tenant): (u32, u32), org_id: Option<Arc<str>>) -> Stopped {
        let unit = self.units.get(correlation as usize).cloned();
        let (id, owner) = unit.map_or_else(Default::default, |unit| (unit.id, unit.org_id));
        let known = self.stopped.iter().filter(|(own, _)| *own == correlation).count();
        let culprit = (owner.is_none() && known < PANICKED_MAX).then_some(tenant);
        let org_id = owner.or(org_id.filter(|_| culprit.is_some()));
        panicked::tell(&id, org_id.as_deref());
        self.stopped.insert((correlation, culprit));
        self.reports.push(Parked { rule_id: id, org_id, reason: panicked::REASON.to_owned() });
        (correlation, culprit)
    }

    /// Names the tenants of the last reports.
    pub fn name(&mut self, stopped: &[Stopped], name: impl Fn(u32) -> Option<Arc<str>>) {
        let first = self.reports.len().saturating_sub(stopped.len());
        for (report, (_, tenant)) in self.reports.iter_mut().skip(first).zip(stopped) {
            if let Some(tenant) = tenant {
                report.org_id = name(*tenant);
            }
        }
    }

    /// The tenant whose events took most of what a correlation took, if there are several.
    fn culprit(&self, correlation: u32, shared: &dyn Fn(u32) -> bool) -> Option<u32> {
        let own = || self.tenants.iter().filter(|((own, _), _)| *own == correlation);
        let all: u64 = own().map(|(_, ns)| ns).sum();
        let most = own().max_by_key(|((_, tenant), ns)| (**ns, *tenant));
        let several = own().nth(1).is_some() || shared(correlation);
        most.filter(|(_, ns)| several && **ns >= all / 2).and_then(|((_, tenant), _)| *tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::RuleSet;
    use crate::config::RulesConfig;
    use crate::problem::RuleFile;

    fn costs() -> Costs {
        let text = "title: A\nid: a\nlogsource: {product: x}\ndetection: {s: {f: v}, condition: s}\n---\n\
            title: C\nid: c\ncorrelation: {type: event_count, rules: [a], timespan: 1m, condition: {gte: 2}}\n";
        let (rules, problems) = RuleSet::compile(&[RuleFile::new("a", text)], &RulesConfig::default()).expect("tables");
        assert_eq!(problems, []);
        Costs::new(&rules.correlations, 5_000)
    }

    /// Steps of some milliseconds each, as if they had been begun so long ago.
    fn spend(costs: &mut Costs, tenant: u32, steps: u32, ms: u64) {
        let ago = Duration::from_millis(ms);
        for _ in 0..steps {
            let started = Instant::now().checked_sub(ago).expect("a clock that runs");
            costs.end(&Step(Some(started)), (0, tenant), true);
        }
    }

    fn stopped(costs: &mut Costs, shared: bool) -> Vec<(String, Option<String>)> {
        let stopped = costs.end_batch(100, &|_| shared);
        costs.name(&stopped, |tenant| Some(format!("tenant {tenant}").into()));
        let report = |own: &Parked| (own.rule_id.clone(), own.org_id.as_deref().map(str::to_owned));
        costs.reports().iter().map(report).collect()
    }

    #[test]
    fn it_stops_for_the_tenant_whose_events_take_most_and_then_for_all() {
        let mut own = costs();
        (0..5).for_each(|tenant| spend(&mut own, tenant, 10, 0));
        assert_eq!(stopped(&mut own, false), []);
        spend(&mut own, 3, 40, 10);
        assert!(own.is_due());
        let third = ("c".to_owned(), Some("tenant 3".to_owned()));
        assert_eq!(stopped(&mut own, false), std::slice::from_ref(&third));
        assert!(own.is_stopped(0, 3) && !own.is_stopped(0, 2));
        // Nobody takes most of it.
        (0..5).filter(|tenant| *tenant != 3).for_each(|tenant| spend(&mut own, tenant, 40, 10));
        assert_eq!(stopped(&mut own, false), [third, ("c".to_owned(), None)]);
        assert!((0..5).all(|tenant| own.is_stopped(0, tenant)));
    }

    #[test]
    fn the_only_tenant_that_is_known_of_a_correlation_that_others_have_too_is_named() {
        let mut own = costs();
        spend(&mut own, 7, 40, 10);
        assert_eq!(stopped(&mut own, true), [("c".to_owned(), Some("tenant 7".to_owned()))]);
        let mut alone = costs();
        spend(&mut alone, 7, 40, 10);
        assert_eq!(stopped(&mut alone, false), [("c".to_owned(), None)]);
    }

    #[test]
    fn one_step_in_eight_is_timed_whatever_the_order_of_steps() {
        let mut own = costs();
        let timed: Vec<bool> = (0..80_000).map(|_| own.begin().0.is_some()).collect();
        for place in 0..8 {
            let count = timed.iter().skip(place).step_by(8).filter(|timed| **timed).count();
            assert!((1_100..1_400).contains(&count), "{count} of 10,000 in place {place}");
        }
    }
}
