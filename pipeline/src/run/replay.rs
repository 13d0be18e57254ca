//! Which alerts of a replay are in the output log already.
//!
//! The run loop appends alerts before it checkpoints. After a crash, the rows after the checkpoint are processed again and
//! raise the same alerts again; those that reached the output log before the crash are told from those that did not by
//! their ids. Each id counts as often as it is there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use arrow::array::{Array, StringArray};
use rustc_hash::FxBuildHasher;
use tidegate_events::{Alert, Dataset, dedup_key};

use crate::error::PipelineError;
use crate::log::{LogBatch, Offset, StreamLog};
use crate::tailing::read_on;

/// Alerts of the output log after the checkpoint, read as the replay uses them up.
pub(super) struct Replay {
    /// Where the replay of the ingest log ends: from there on nothing can be in the output log.
    pub(super) until: Offset,
    cursor: Offset,
    end: Offset,
    /// Alerts below this offset of the output log were raised again already, or never will be.
    matched: Offset,
    ids_max: usize,
    seen: HashMap<u128, Known, FxBuildHasher>,
}

/// An id that is in the output log and was not raised again yet.
#[derive(Clone, Copy)]
struct Known {
    first: Offset,
    times: u32,
}

impl Replay {
    /// A replay up to `until` of the ingest log, with the output log's rows from `from` on. At most `ids_max` ids are in
    /// memory at a time.
    pub(super) fn new(until: Offset, output: &dyn StreamLog, from: Offset, ids_max: usize) -> Self {
        let end = output.bounds().next;
        Self { until, cursor: from, end, matched: from, ids_max: ids_max.max(1), seen: HashMap::default() }
    }

    /// Where a replay that begins after what was processed so far has to look for its alerts.
    pub(super) fn needed_from(&self) -> Offset {
        self.matched
    }

    /// Removes from `alerts` those that are in the output log; says how many.
    ///
    /// # Errors
    /// When the output log cannot be read now. Nothing is changed then.
    pub(super) fn skip_known(
        &mut self,
        alerts: &mut Vec<Alert>,
        output: &dyn StreamLog,
        bytes_max: usize,
    ) -> Result<usize, PipelineError> {
        let mut kept = Vec::new();
        let mut taken = Vec::new();
        for alert in alerts.iter() {
            // The oldest come first in both, so filling up on the way finds each before it is asked for.
            while self.cursor < self.end && self.seen.len() < self.ids_max {
                if let Err(error) = self.fill(output, bytes_max) {
                    taken.into_iter().for_each(|(key, at)| self.put(key, at));
                    return Err(error);
                }
            }
            let key = dedup_key(&alert.org_id, Dataset::Alerts as u8, &alert.alert_id);
            match self.take(key) {
                Some(at) => taken.push((key, at)),
                None => kept.push(alert.clone()),
            }
        }
        *alerts = kept;
        self.matched = taken.iter().map(|(_, at)| at + 1).fold(self.matched, Offset::max);
        Ok(taken.len())
    }

    fn fill(&mut self, output: &dyn StreamLog, bytes_max: usize) -> Result<(), PipelineError> {
        let reading = read_on(output, self.cursor, bytes_max)?;
        for batch in &reading.batches {
            self.add(batch);
        }
        // Forward in any case, so that a damaged stretch cannot hold the replay up.
        self.cursor = reading.next.max(self.cursor + 1);
        Ok(())
    }

    fn add(&mut self, batch: &LogBatch) {
        if batch.dataset != Dataset::Alerts {
            return;
        }
        let text = |name| batch.rows.column_by_name(name)?.as_any().downcast_ref::<StringArray>();
        if let (Some(orgs), Some(ids)) = (text("org_id"), text("alert_id")) {
            for (at, (org, id)) in (batch.offset..self.end).zip(orgs.iter().zip(ids)) {
                if let (Some(org), Some(id)) = (org, id) {
                    self.put(dedup_key(org, Dataset::Alerts as u8, id), at);
                }
            }
        }
    }

    fn put(&mut self, key: u128, at: Offset) {
        let known = self.seen.entry(key).or_insert(Known { first: at, times: 0 });
        known.times += 1;
    }

    fn take(&mut self, key: u128) -> Option<Offset> {
        let Entry::Occupied(mut entry) = self.seen.entry(key) else { return None };
        entry.get_mut().times -= 1;
        let Known { first, times } = *entry.get();
        if times == 0 {
            entry.remove();
        }
        Some(first)
    }
}
