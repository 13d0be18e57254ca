//! What becomes of events that cannot be read, and of bodies that are refused while they are read.

use std::ops::Range;

use arrow::array::{Array, BooleanArray};
use arrow::compute::filter_record_batch;
use tidegate_pipeline::EventBatch;

use super::budget::REJECTED_BYTES;
use super::json::Malformed;
use super::{BodyError, Decoded, Decoder, IngestError, Reading, Rejected};

impl Decoder {
    /// Whether no further event of the body is taken.
    #[inline]
    pub(super) fn is_full(&mut self, reading: &mut Reading<'_>, at: usize) -> bool {
        reading.result.items as usize >= reading.budget.items() && self.has_no_room(reading, at)
    }

    /// Takes room for further events. False if there is; else what follows from `at` on is rejected as one item, or the whole body
    /// is refused.
    #[cold]
    pub(super) fn has_no_room(&mut self, reading: &mut Reading<'_>, at: usize) -> bool {
        let items = reading.result.items as usize;
        if reading.budget.is_refused() {
            return true;
        }
        if items >= reading.budget.items_max() {
            let end = reading.bytes.len();
            self.reject(reading, at..end, too_many_events(reading.budget.items_max()));
            return true;
        }
        !reading.budget.cover(items + 1)
    }

    /// Answers for an event that is not stored, and keeps it as a dead letter.
    #[cold]
    pub(super) fn reject(&mut self, reading: &mut Reading<'_>, range: Range<usize>, malformed: Malformed) {
        let payload = reading.bytes.get(range).unwrap_or_default();
        let index = reading.result.items;
        reading.result.items += 1;
        self.reject_item(reading, index, malformed, payload);
    }

    /// The same for an item that is counted.
    pub(super) fn reject_item(&mut self, reading: &mut Reading<'_>, index: u32, malformed: Malformed, payload: &[u8]) {
        let max = self.config.rejected_items_max;
        if reading.result.rejected.len() >= max {
            let reason = format!("more than {max} events of the body cannot be read; the last: {}", malformed.reason);
            return reading.budget.refuse(BodyError { code: "too_many_rejected", reason: shortened(reason) });
        }
        let malformed = Malformed { reason: shortened(malformed.reason), ..malformed };
        if !reading.budget.charge(REJECTED_BYTES + 2 * malformed.reason.len()) {
            return;
        }
        self.dead.push(&reading.origin, index, &malformed, payload, &mut self.rows.ids);
        reading.result.rejected.push(Rejected { index, code: malformed.code, reason: malformed.reason });
    }
}

impl Decoded {
    /// Takes out the rows of these bodies, dead letters too.
    pub(super) fn forget(&mut self, bodies: &[u32]) -> Result<(), IngestError> {
        let all = std::mem::take(self);
        for (batch, rows) in all.batches.into_iter().zip(all.rows) {
            let keep: Vec<bool> = rows.iter().map(|row| !bodies.contains(&row.body)).collect();
            if !keep.contains(&true) {
                continue;
            }
            let kept = |at: &usize| keep.get(*at).copied().unwrap_or(false);
            let keys = batch.keys.iter().enumerate().filter(|(at, _)| kept(at)).map(|(_, key)| *key).collect();
            self.rows.push(rows.iter().enumerate().filter(|(at, _)| kept(at)).map(|(_, row)| *row).collect());
            let rows = filter_record_batch(&batch.rows, &BooleanArray::from(keep))?;
            // A column without a value is left out of a batch.
            let held: Vec<usize> =
                (0..rows.num_columns()).filter(|at| rows.column(*at).null_count() < rows.num_rows()).collect();
            self.batches.push(EventBatch { dataset: batch.dataset, rows: rows.project(&held)?, keys });
        }
        Ok(())
    }
}

/// The most letters of a reason: names from the body stand in some.
const REASON_LETTERS_MAX: usize = 1_000;

fn shortened(mut reason: String) -> String {
    if let Some((at, _)) = reason.char_indices().nth(REASON_LETTERS_MAX) {
        reason.truncate(at);
    }
    reason
}

pub(super) fn too_many_events(max: usize) -> Malformed {
    Malformed { code: "too_many_events", reason: format!("the body has more than {max} events; send it in parts") }
}
