//! From matches to alerts: silences and suppression, row by row.

use std::sync::Arc;

use arrow::array::RecordBatch;
use rustc_hash::FxHashMap;
use tidegate_events::Alert;

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::correlation::Fired;
use crate::feedback::{Silences, silenced};
use crate::group_key;
use crate::metrics;
use crate::off::Off;
use crate::raise::Events;
use crate::suppress::{Bounds, Lane, Met, Outlet, Suppression};

/// Makes alerts of matches. Its state is the open windows and the silences.
#[derive(Debug)]
pub(crate) struct Alerting {
    suppression: Suppression,
    silences: Silences,
    out: Outlet,
    /// The rules that `numbers` are of.
    rules: Option<Arc<RuleSet>>,
    numbers: Vec<u32>,
    /// Those of correlations, by id.
    correlations: FxHashMap<String, u32>,
}

impl Alerting {
    /// Without windows and silences.
    pub fn new(config: &RulesConfig) -> Self {
        let out = Outlet::new(config.alerts_per_second_max, config.alert_event_ids_max);
        Self::of(Suppression::new(bounds(config)), Silences::default(), out)
    }

    fn of(suppression: Suppression, silences: Silences, out: Outlet) -> Self {
        Self { suppression, silences, out, rules: None, numbers: Vec::new(), correlations: FxHashMap::default() }
    }

    /// The alerts of a batch: of its matches, of the windows that its rows close, and those of correlations. All batches of
    /// events must come by, in order, whether they have matches or not.
    pub fn raise(
        &mut self,
        (rules, off): (&Arc<RuleSet>, &Off),
        rows: &RecordBatch,
        (matches, fired): (&[(usize, usize)], Vec<Fired>),
        config: &RulesConfig,
    ) -> Vec<Alert> {
        self.number(rules);
        let mut events = Events::new(rows, rules, config);
        // Put back below.
        let mut out = std::mem::take(&mut self.out);
        let mut quiet = 0;
        let mut matches = matches.iter().copied().peekable();
        let mut fired = fired.into_iter().peekable();
        let mut tenant: Option<(&str, u32)> = None;
        let span_us = micros(config.suppress_s, 1_000_000);
        let ahead_us = micros(config.ahead_ms_max, 1_000);
        for row in 0..rows.num_rows() {
            let org_id = events.org_id(row);
            let (_, number) = match tenant {
                Some(known) if known.0 == org_id => known,
                _ => *tenant.insert((org_id, self.suppression.tenant(org_id))),
            };
            let moment = events.moment(row, ahead_us);
            let received = moment.received;
            out.receive(received);
            self.suppression.observe(number, moment.reached(), received, &mut out);
            while let Some(next) = fired.next_if(|next| next.row == row && next.before) {
                quiet += self.raise_fired(next.alert, received, &mut out);
            }
            let silences = self.silences.of(org_id);
            while let Some((_, at)) = matches.next_if(|(own, _)| *own == row) {
                let (Some(rule), Some(rule_number)) = (rules.rules().get(at), self.numbers.get(at)) else { continue };
                if !rules.correlations.raises(at, org_id, off) {
                    continue;
                }
                if silenced(silences, &rule.head.id, received, || events.group(row, rule)) {
                    quiet += 1;
                    continue;
                }
                let met = Met {
                    lane: Lane { rule: *rule_number, tenant: number },
                    group: events.group(row, rule),
                    span: rule.suppress_us.unwrap_or(span_us),
                    time: moment.time.unwrap_or_default(),
                    placed: moment.placed(),
                    event_id: events.event_id(row),
                };
                self.suppression.offer(met, &mut out, || events.alert(row, rule));
            }
            while let Some(next) = fired.next_if(|next| next.row == row) {
                quiet += self.raise_fired(next.alert, received, &mut out);
            }
        }
        self.report(&mut out, quiet);
        let alerts = out.take_alerts();
        self.out = out;
        alerts
    }

    /// An alert of a correlation; 1 if it is silenced. It goes by its own tenant: the row that brought it, by ending its
    /// window, may be another's. Whose group was raised is quiet for a span of its own: there is nothing to suppress.
    fn raise_fired(&mut self, alert: Alert, received: i64, out: &mut Outlet) -> u64 {
        let silences = self.silences.of(&alert.org_id);
        if silenced(silences, &alert.rule_id, received, || group_key::hash(&alert.group_key)) {
            return 1;
        }
        let rule = self.correlations.get(&alert.rule_id).copied().unwrap_or(u32::MAX);
        out.push(Lane { rule, tenant: self.suppression.tenant(&alert.org_id) }, alert);
        0
    }

    fn number(&mut self, rules: &Arc<RuleSet>) {
        if self.rules.as_ref().is_none_or(|known| !Arc::ptr_eq(known, rules)) {
            let detections = rules.rules().iter().map(|rule| rule.head.id.as_str());
            let correlations = rules.correlations.correlations.iter().map(|correlation| correlation.head.id.as_str());
            self.numbers = self.suppression.rules(detections.chain(correlations.clone()), &self.out);
            let numbers = self.numbers.split_off(rules.rules().len());
            self.correlations = correlations.map(str::to_owned).zip(numbers).collect();
            self.rules = Some(rules.clone());
        }
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

fn bounds(config: &RulesConfig) -> Bounds {
    Bounds {
        lateness_us: micros(config.lateness_ms_max, 1_000),
        groups_max: config.suppress_groups_max,
        bytes_max: config.suppress_bytes_max,
        event_ids_max: config.alert_event_ids_max,
    }
}

fn micros(value: u64, unit: i64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX).saturating_mul(unit)
}
