//! Where alerts are collected, with the last bound on how many there are.

use rustc_hash::FxHashMap;
use tidegate_events::Alert;

use super::Lane;

/// How far receive time goes back without a clock that was set.
const OUT_OF_ORDER_S: i64 = 2;

/// Alerts on their way out: in a second of receive time at most so many of one rule for one tenant. What comes beyond is counted
/// in one more alert, which is kept back until the second is over. Seconds are in the rows, so that it does not matter where
/// batches begin and end.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    alerts: Vec<Alert>,
    /// The second of receive time.
    second: i64,
    /// How many of a lane there were in it.
    counts: FxHashMap<Lane, usize>,
    /// Alerts that count what is too much, in the order in which they began to.
    kept_back: Vec<(Lane, Alert)>,
    /// Where that of a lane is.
    places: FxHashMap<Lane, usize>,
    per_second_max: usize,
    event_ids_max: usize,
    merged: u64,
}

/// What of an outlet is to be saved.
pub(super) struct Kept<'a> {
    pub second: i64,
    pub counts: Vec<(Lane, usize)>,
    pub kept_back: &'a [(Lane, Alert)],
}

impl Outlet {
    /// An empty one.
    pub fn new(per_second_max: usize, event_ids_max: usize) -> Self {
        Self { second: i64::MIN, per_second_max: per_second_max.max(1), event_ids_max, ..Self::default() }
    }

    /// Receive time (µs) has come to here: if the second is over, what was kept back goes out. Batches come a little out of order;
    /// a clock that was set back begins a second of its own, or all would count in one alert until it is where it was.
    pub fn receive(&mut self, received: i64) {
        let second = received.div_euclid(1_000_000);
        if second > self.second || second < self.second.saturating_sub(OUT_OF_ORDER_S) {
            self.second = second;
            self.counts.clear();
            self.places.clear();
            self.alerts.extend(self.kept_back.drain(..).map(|(_, alert)| alert));
        }
    }

    /// The alert that counts what comes next, if the lane may have no more alerts of its own.
    pub fn full(&mut self, lane: Lane) -> Option<&mut Alert> {
        let at = *self.places.get(&lane)?;
        self.merged += 1;
        self.kept_back.get_mut(at).map(|(_, alert)| alert)
    }

    /// Takes an alert.
    pub fn push(&mut self, lane: Lane, alert: Alert) {
        let event_ids_max = self.event_ids_max;
        if let Some(last) = self.full(lane) {
            last.event_count = last.event_count.saturating_add(alert.event_count);
            last.first_time = last.first_time.min(alert.first_time);
            last.last_time = last.last_time.max(alert.last_time);
            let room = event_ids_max.saturating_sub(last.event_ids.len());
            last.event_ids.extend(alert.event_ids.into_iter().take(room));
            return;
        }
        let count = self.counts.entry(lane).or_default();
        if *count < self.per_second_max {
            *count += 1;
            self.alerts.push(alert);
        } else {
            self.keep_back(lane, alert);
        }
    }

    fn keep_back(&mut self, lane: Lane, alert: Alert) {
        self.places.insert(lane, self.kept_back.len());
        self.kept_back.push((lane, alert));
    }

    /// What was collected, in order.
    pub fn take_alerts(&mut self) -> Vec<Alert> {
        std::mem::take(&mut self.alerts)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.alerts.len()
    }

    /// How many matches and alerts were counted in another alert since this was asked last.
    pub fn take_merged(&mut self) -> u64 {
        std::mem::take(&mut self.merged)
    }

    /// What is to be saved: the second, how many there were of each lane, in any order, and what is kept back.
    pub(super) fn state(&self) -> Kept<'_> {
        let counts = self.counts.iter().map(|(lane, count)| (*lane, *count)).collect();
        Kept { second: self.second, counts, kept_back: &self.kept_back }
    }

    /// Takes up what was saved.
    pub fn resume(&mut self, second: i64, counts: Vec<(Lane, usize)>, kept_back: Vec<(Lane, Alert)>) {
        self.second = second;
        self.counts = counts.into_iter().collect();
        kept_back.into_iter().for_each(|(lane, alert)| self.keep_back(lane, alert));
    }
}
