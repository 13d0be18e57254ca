//! From matches to alerts: silences and suppression, row by row.

use std::sync::Arc;

use arrow::array::RecordBatch;
use tidegate_events::Alert;

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::correlation::{Correlations, Told};
use crate::feedback::{Silences, silenced};
use crate::group_key;
use crate::metrics;
use crate::off::Off;
use crate::raise::{Events, Moment};
use crate::suppress::{Bounds, Lane, Met, Outlet, Suppression};

/// An alert that took long to make.
#[derive(Debug)]
pub(crate) struct Dear {
    /// Whose event it is of.
    pub org_id: String,
    /// Index into [`RuleSet::rules`].
    pub rule: usize,
    pub ns: u64,
}

/// Makes alerts of matches. Its state is the open windows and the silences.
#[derive(Debug)]
pub(crate) struct Alerting {
    suppression: Suppression,
    silences: Silences,
    out: Outlet,
    /// Alerts that took long to make.
    dear: Vec<Dear>,
    /// The tenant and the rule of alerts of which nothing could be said because that panicked.
    panicked: Vec<(String, usize)>,
    /// The rules that `numbers` are of.
    rules: Option<Arc<RuleSet>>,
    numbers: Vec<u32>,
    /// Those of correlations.
    correlations: Vec<u32>,
}

impl Alerting {
    /// Without windows and silences.
    pub fn new(config: &RulesConfig) -> Self {
        let out = Outlet::new(config.alerts_per_second_max, config.alert_event_ids_max);
        Self::of(Suppression::new(bounds(config)), Silences::default(), out)
    }

    fn of(suppression: Suppression, silences: Silences, out: Outlet) -> Self {
        let (numbers, correlations) = (Vec::new(), Vec::new());
        Self { suppression, silences, out, dear: Vec::new(), panicked: Vec::new(), rules: None, numbers, correlations }
    }

    /// The alerts of a batch: of its matches, of the windows that its rows close, and those of correlations. All batches of
    /// events must come by, in order, whether they have matches or not.
    pub fn raise(
        &mut self,
        (rules, off): (&Arc<RuleSet>, &Arc<Off>),
        rows: &RecordBatch,
        (matches, correlations): (&[(usize, usize)], &mut Correlations),
        config: &RulesConfig,
    ) -> Vec<Alert> {
        self.number(rules);
        // Put back below.
        let out = std::mem::take(&mut self.out);
        let mut raising = Raising {
            events: Events::new(rows, rules, config),
            rows: rows.num_rows(),
            matches,
            begun: 0,
            tenant: None,
            out,
            silenced: 0,
            off,
            own: self,
            rules,
            config,
        };
        correlations.process((rules, off), rows, matches, &mut |told| raising.fired(told));
        raising.come_to(raising.rows);
        let Raising { mut out, silenced, .. } = raising;
        self.report(&mut out, silenced);
        let alerts = out.take_alerts();
        self.out = out;
        alerts
    }

    fn number(&mut self, rules: &Arc<RuleSet>) {
        if self.rules.as_ref().is_none_or(|known| !Arc::ptr_eq(known, rules)) {
            let detections = rules.rules().iter().map(|rule| rule.head.id.as_str());
            let correlations = rules.correlations.correlations.iter().map(|correlation| correlation.head.id.as_str());
            self.numbers = self.suppression.rules(detections.chain(correlations), &self.out);
            let numbers = self.numbers.split_off(rules.rules().len());
            self.correlations = numbers;
            self.rules = Some(rules.clone());
        }
    }

    /// What took long since this was last asked.
    pub fn take_dear(&mut self) -> Vec<Dear> {
        std::mem::take(&mut self.dear)
    }

    /// Tenants and rules for whose events writing an alert panicked since this was last asked.
    pub fn take_panicked(&mut self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.panicked)
    }

    fn report(&mut self, out: &mut Outlet, silenced: u64) {
        let counts = self.suppression.take_counts();
        let (windows, bytes) = self.suppression.size();
        ::metrics::counter!(metrics::ALERTS).increment(out.len() as u64);
        ::metrics::counter!(metrics::FOLDED).increment(out.take_merged());
        ::metrics::counter!(metrics::SUPPRESSED).increment(counts.suppressed);
        ::metrics::counter!(metrics::EVICTED).increment(counts.evicted);
        ::metrics::counter!(metrics::SILENCED).increment(silenced);
        ::metrics::gauge!(metrics::WINDOWS).set(windows as f64);
        ::metrics::gauge!(metrics::WINDOW_BYTES).set(bytes as f64);
    }

    /// Takes a row of `changes` that is feedback on an alert.
    pub fn take_feedback(&mut self, org_id: &str, alert_id: &str, body: Option<&str>) {
        if let Err(reason) = self.silences.take(org_id, alert_id, body, self.suppression.received()) {
            tracing::warn!(org_id, alert_id, reason, "feedback ignored: its body is not one");
        }
        ::metrics::gauge!(metrics::SILENCES).set(self.silences.len() as f64);
    }

    /// The open windows, and the silences, as bytes.
    pub fn save(&self) -> (Vec<u8>, Vec<u8>) {
        (self.suppression.save(&self.out), self.silences.save())
    }

    /// A state that was saved.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn restore(config: &RulesConfig, windows: &[u8], silences: &[u8]) -> Result<Self, String> {
        let mut out = Outlet::new(config.alerts_per_second_max, config.alert_event_ids_max);
        let suppression = Suppression::restore(bounds(config), windows, &mut out)?;
        let silences = Silences::restore(silences)?;
        Ok(Self::of(suppression, silences, out))
    }
}

/// A batch while its alerts are made: row by row, as far as the correlations have come.
struct Raising<'a> {
    own: &'a mut Alerting,
    rules: &'a RuleSet,
    off: &'a Off,
    config: &'a RulesConfig,
    events: Events<'a>,
    rows: usize,
    /// Those that were not looked at yet.
    matches: &'a [(usize, usize)],
    /// How many rows event time has gone on by. The matches of the last of them may wait.
    begun: usize,
    /// The last tenant, with its number.
    tenant: Option<(&'a str, u32)>,
    out: Outlet,
    silenced: u64,
}

impl Raising<'_> {
    /// Goes on to a row, past the matches of those before it.
    fn come_to(&mut self, row: usize) {
        while self.begun <= row {
            self.raise_matches();
            if self.begun == self.rows {
                return;
            }
            let moment = self.moment(self.begun);
            let number = self.number(self.begun);
            self.out.receive(moment.received);
            self.own.suppression.observe(number, moment.reached(), moment.received, &mut self.out);
            self.begun += 1;
        }
    }

    fn moment(&self, row: usize) -> Moment {
        self.events.moment(row, micros(self.config.ahead_ms_max, 1_000))
    }

    fn number(&mut self, row: usize) -> u32 {
        let org_id = self.events.org_id(row);
        match self.tenant {
            Some((known, number)) if known == org_id => number,
            _ => self.tenant.insert((org_id, self.own.suppression.tenant(org_id))).1,
        }
    }

    /// The alerts of the matches of the last row.
    fn raise_matches(&mut self) {
        while let Some(((row, at), later)) = self.matches.split_first().filter(|((row, _), _)| *row < self.begun) {
            self.matches = later;
            self.raise_match(*row, *at);
        }
    }

    fn raise_match(&mut self, row: usize, at: usize) {
        let (Some(rule), Some(number)) = (self.rules.rules().get(at), self.own.numbers.get(at).copied()) else {
            return;
        };
        let org_id = self.events.org_id(row);
        if !self.rules.correlations.raises(at, org_id, self.off) {
            return;
        }
        let (moment, tenant) = (self.moment(row), self.number(row));
        let Self { own, events, out, .. } = self;
        let group = || events.group(row, rule);
        if silenced(own.silences.of(org_id), &rule.head.id, moment.received, group) {
            self.silenced += 1;
            return;
        }
        let met = Met {
            lane: Lane { rule: number, tenant },
            group: events.group(row, rule),
            span: rule.suppress_us.unwrap_or(micros(self.config.suppress_s, 1_000_000)),
            time: moment.time.unwrap_or_default(),
            placed: moment.placed(),
            event_id: events.event_id(row),
        };
        own.suppression.offer(met, out, || events.alert(row, rule));
        if let Some(ns) = events.take_dear_ns() {
            own.dear.push(Dear { org_id: org_id.to_owned(), rule: at, ns });
        }
        if events.take_panicked() {
            own.panicked.push((org_id.to_owned(), at));
        }
    }

    /// What a correlation fired, for its own tenant: the row that brought it, by ending its window, may be another's. Whose group
    /// was raised is quiet for a span of its own: there is nothing to suppress.
    fn fired(&mut self, told: &Told<'_>) {
        self.come_to(told.row);
        if !told.before {
            self.raise_matches();
        }
        let received = self.moment(told.row).received;
        let Self { own, out, config, .. } = self;
        let group = || group_key::hash(&told.group_key());
        if silenced(own.silences.of(told.org_id), told.rule_id(), received, group) {
            self.silenced += 1;
            return;
        }
        let rule = own.correlations.get(told.number as usize).copied().unwrap_or(u32::MAX);
        let lane = Lane { rule, tenant: own.suppression.tenant(told.org_id) };
        match out.full(lane) {
            Some(last) => told.add_to(last, config.alert_event_ids_max),
            None => out.push(lane, told.alert(config.alert_event_ids_max)),
        }
    }
}

fn bounds(config: &RulesConfig) -> Bounds {
    Bounds {
        lateness_us: micros(config.lateness_ms_max, 1_000),
        ahead_us: micros(config.ahead_ms_max, 1_000),
        groups_max: config.suppress_groups_max,
        bytes_max: config.suppress_bytes_max,
        event_ids_max: config.alert_event_ids_max,
    }
}

fn micros(value: u64, unit: i64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX).saturating_mul(unit)
}
