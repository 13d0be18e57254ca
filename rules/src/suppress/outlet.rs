//! Where alerts of one batch are collected, with the last bound on how many there are.

use rustc_hash::FxHashMap;
use tidegate_events::Alert;

use super::Lane;

/// Alerts of one batch: at most so many of one rule for one tenant; the last of these counts the rest.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    alerts: Vec<Alert>,
    /// How many of a lane there are, and where the last one is.
    counts: FxHashMap<Lane, (usize, usize)>,
    per_batch_max: usize,
    event_ids_max: usize,
    merged: u64,
}

impl Outlet {
    /// An empty one, for one batch.
    pub fn new(per_batch_max: usize, event_ids_max: usize) -> Self {
        Self { per_batch_max: per_batch_max.max(1), event_ids_max, ..Self::default() }
    }

    /// The alert that counts what comes next, if the lane may have no more alerts of its own.
    pub fn full(&mut self, lane: Lane) -> Option<&mut Alert> {
        let (count, last) = *self.counts.get(&lane)?;
        if count < self.per_batch_max {
            return None;
        }
        self.merged += 1;
        self.alerts.get_mut(last)
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
        let (count, last) = self.counts.entry(lane).or_default();
        *count += 1;
        *last = self.alerts.len();
        self.alerts.push(alert);
    }

    /// What was collected, in order.
    pub fn alerts(self) -> Vec<Alert> {
        self.alerts
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.alerts.len()
    }

    /// How many matches and alerts are counted in another alert because a lane was full.
    pub fn merged(&self) -> u64 {
        self.merged
    }
}
