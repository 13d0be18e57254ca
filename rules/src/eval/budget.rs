//! What rules cost, and which cost too much. The only place of this crate that looks at a clock: parking is for the operator
//! of the program, not for the stream, so a replay may park at another place or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::RuleSet;

/// One value in so many has its regular expressions and patterns timed, and one batch in so many its search for keywords.
pub(crate) const SAMPLE: u64 = 8;
/// Rows after which an average says something.
const ROWS_MIN: u64 = 1_000;
/// Nanoseconds below which a rule is never called slow, whatever the average.
const NS_MIN: u64 = 50_000_000;
/// Samples without which a rule is never called slow: a thread that lost its core in the middle of one is no evidence.
const SAMPLES_MIN: u32 = 16;
/// A rule may take one part in so many of the time that goes by: a stream that is idle has time for a slow rule.
const PARTS: u32 = 10;
/// What one sample counts at most, for the same reason, unless the one before it took half as long or more: two in a row are.
const SAMPLE_NS_MAX: u64 = 1_000_000;
/// Rows after which old costs count half.
const ROWS_MAX: u64 = 200_000;

/// A rule or a filter that no longer runs because it took too much time. It runs again when rules change or the program restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The id of the rule or filter.
    pub rule_id: String,
    /// The tenant whose rule or filter it is, or for whose events alone it no longer runs; `None` for one of all tenants.
    pub org_id: Option<Arc<str>>,
    /// Why.
    pub reason: String,
}

/// The costs of all rules, and of all filters after them.
#[derive(Debug)]
pub(crate) struct Budget {
    rule_event_ns_max: u64,
    /// Events since then, as far as they count.
    rows: u64,
    since: Instant,
    spent: Vec<Spent>,
    parked: Vec<bool>,
    /// Rules that cost more than [`NS_MIN`] since they were last looked at.
    suspects: Vec<usize>,
    pub reports: Vec<Parked>,
}

/// What the samples of one rule took.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    ns: u64,
    samples: u32,
    /// The last sample.
    last_ns: u64,
}

impl Budget {
    pub fn new(rules: usize, rule_event_ns_max: u64) -> Self {
        let (spent, parked) = (vec![Spent::default(); rules], vec![false; rules]);
        Self {
            rule_event_ns_max,
            rows: 0,
            since: Instant::now(),
            spent,
            parked,
            suspects: Vec::new(),
            reports: Vec::new(),
        }
    }

    pub fn is_parked(&self, rule: usize) -> bool {
        self.parked.get(rule).copied().unwrap_or(false)
    }

    /// What each rule and filter took, in nanoseconds and by samples, and over how many rows.
    pub fn spent(&self) -> (impl Iterator<Item = u64> + '_, u64) {
        (self.spent.iter().map(|spent| spent.ns), self.rows)
    }

    /// Counts what a timed sample of a rule took, which stands for `weight` of its kind.
    pub fn sampled(&mut self, rule: usize, ns: u64, weight: u64) {
        if let Some(spent) = self.spent.get_mut(rule) {
            spent.ns += ns.min(SAMPLE_NS_MAX.max(spent.last_ns.saturating_mul(2))) * weight;
            spent.last_ns = ns;
            spent.samples = spent.samples.saturating_add(1);
            if spent.ns > NS_MIN && spent.samples >= SAMPLES_MIN {
                self.suspects.push(rule);
            }
        }
    }

    /// Ends a batch. The rules that are parked now, in order.
    pub fn end_batch(&mut self, rows: u64, rules: &RuleSet) -> Vec<usize> {
        self.rows += rows;
        let mut parked = Vec::new();
        if self.rows >= ROWS_MIN {
            let mut suspects = std::mem::take(&mut self.suspects);
            suspects.sort_unstable();
            suspects.dedup();
            let share = self.since.elapsed() / PARTS;
            let together = self.slow_together(&suspects, share, rules);
            for rule in together {
                let average = self.spent.get(rule).map_or(0, |spent| spent.ns) / self.rows;
                self.park(rule, average, rules);
                parked.push(rule);
            }
            for rule in suspects {
                let spent = self.spent.get(rule).map_or(0, |spent| spent.ns);
                let average = spent / self.rows;
                let slow = average > self.rule_event_ns_max && Duration::from_nanos(spent) > share;
                if slow && !self.is_parked(rule) {
                    self.park(rule, average, rules);
                    parked.push(rule);
                }
            }
        }
        parked.sort_unstable();
        if self.rows > ROWS_MAX {
            self.rows /= 2;
            self.since += self.since.elapsed() / 2;
            self.spent.iter_mut().for_each(|spent| {
                spent.ns /= 2;
                spent.samples /= 2;
            });
        }
        parked
    }

    /// Of each tenant whose own rules are each a little too dear to be cheap, and together take more than one may: the dearest.
    fn slow_together(&self, suspects: &[usize], share: Duration, rules: &RuleSet) -> Vec<usize> {
        let mut tenants: BTreeMap<&Arc<str>, (u64, u64, usize)> = BTreeMap::new();
        for rule in suspects.iter().copied().filter(|rule| !self.is_parked(*rule)) {
            let Some(org_id) = rules.unit_org(rule) else { continue };
            let ns = self.spent.get(rule).map_or(0, |spent| spent.ns);
            let (sum, most, dearest) = tenants.entry(org_id).or_insert((0, 0, rule));
            *sum += ns;
            if ns > *most {
                (*most, *dearest) = (ns, rule);
            }
        }
        let slow = |(sum, most, _): &&(u64, u64, usize)| {
            sum > most && sum / self.rows.max(1) > 2 * self.rule_event_ns_max && Duration::from_nanos(*sum) > share
        };
        tenants.values().filter(slow).map(|(.., dearest)| *dearest).collect()
    }

    fn park(&mut self, rule: usize, average: u64, rules: &RuleSet) {
        let reason = format!("took {average} ns per event, more than {}", self.rule_event_ns_max);
        let rule_id = rules.unit_id(rule);
        tracing::warn!(rule_id, reason, "rule parked; make its expressions cheaper or raise rule_event_ns_max");
        self.park_for(rule, reason, rules);
    }

    /// Parks a rule for a reason.
    pub fn park_for(&mut self, rule: usize, reason: String, rules: &RuleSet) {
        if let Some(parked) = self.parked.get_mut(rule) {
            *parked = true;
        }
        let rule_id = rules.unit_id(rule).to_owned();
        let org_id = rules.unit_org(rule).cloned();
        self.reports.push(Parked { rule_id, org_id, reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RulesConfig;
    use crate::problem::RuleFile;

    #[test]
    fn a_rule_is_parked_for_its_average_and_only_once() {
        let text = "title: A\nid: a\nlogsource: {product: x}\ndetection: {s: {f: v}, condition: s}";
        let (rules, _) = RuleSet::compile(&[RuleFile::new("a", text)], &RulesConfig::default()).expect("tables");
        let sampled = |budget: &mut Budget, times: u32, ns: u64| (0..times).for_each(|_| budget.sampled(0, ns, SAMPLE));
        let mut budget = Budget::new(1, 1_000);
        sampled(&mut budget, 1, 100_000_000);
        assert_eq!(budget.end_batch(2_000, &rules), [0usize; 0], "too few samples");
        assert_eq!(budget.spent().0.sum::<u64>(), SAMPLE_NS_MAX * SAMPLE, "one outlier");
        sampled(&mut budget, 1, 90_000_000);
        assert_eq!(budget.spent().0.sum::<u64>(), (SAMPLE_NS_MAX + 90_000_000) * SAMPLE, "no outlier");
        let mut budget = Budget::new(1, 1_000);
        sampled(&mut budget, 4 * SAMPLES_MIN, 1_000_000);
        assert_eq!(budget.end_batch(1_000, &rules), [0]);
        assert_eq!(budget.reports.len(), 1);
        sampled(&mut budget, 4 * SAMPLES_MIN, 1_000_000);
        assert_eq!(budget.end_batch(1_000, &rules), [0usize; 0], "once");
        let mut cheap = Budget::new(1, 1_000);
        sampled(&mut cheap, 1_000, 1_000);
        assert_eq!(cheap.end_batch(100_000, &rules), [0usize; 0]);
    }
}
