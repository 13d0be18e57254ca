//! Which rows of a batch are stored: one that is too large, or whose text is no text, costs only itself.

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter;
use tidegate_events::IdGenerator;
use tidegate_pipeline::EventBatch;

use super::arrow_columns::ArrowPlan;
use super::arrow_stream::guarded;
use super::arrow_values as values;
use super::json::Malformed;
use super::rows::Origin;

/// A row of a batch that is not stored.
#[derive(Debug)]
pub(super) struct BadRow {
    pub(super) item: u32,
    pub(super) why: Malformed,
    /// The row as JSON, where it can be read.
    pub(super) payload: Vec<u8>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// The rows to be stored, and the index of each in the body.
    pub(super) events: Option<(EventBatch, Vec<u32>)>,
    /// The others, in order.
    pub(super) bad: Vec<BadRow>,
}

/// Bounds of the rows of a batch, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowBounds {
    /// Of the values of one row.
    pub(super) event_bytes_max: usize,
    /// Of what is kept of a bad row.
    pub(super) payload_bytes_max: usize,
    /// So many bad rows are found at most; more refuse the body.
    pub(super) bad_max: usize,
}

/// The columns of a batch while rows are taken out of it.
struct Sorting<'p> {
    plan: &'p ArrowPlan,
    bounds: RowBounds,
    columns: Vec<ArrayRef>,
    /// The index of each row in the body.
    items: Vec<u32>,
    bad: Vec<BadRow>,
    payload_bytes: usize,
}

/// Once the payloads of the bad rows of a batch have so many bytes together, less is kept of each: a long value in a
/// dictionary may be that of all rows.
const PAYLOADS_BYTES: usize = 16 << 20;
const PAYLOAD_BYTES_THEN: usize = 1 << 10;

impl Sorting<'_> {
    /// How many more bad rows are looked for: one more than may be is enough to know that there are too many.
    fn bad_left(&self) -> usize {
        self.bounds.bad_max.saturating_add(1).saturating_sub(self.bad.len())
    }

    fn are_too_many(&self) -> bool {
        self.bad_left() == 0
    }

    /// Takes rows out, given in order with the reason of each.
    fn take_out(&mut self, rows: Vec<(usize, Malformed)>) -> Result<(), String> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut keep = vec![true; self.items.len()];
        for (row, why) in rows {
            if let Some(keep) = keep.get_mut(row) {
                *keep = false;
            }
            let Some(item) = self.items.get(row).copied() else { continue };
            let named = self.plan.names().zip(&self.columns);
            let most = if self.payload_bytes < PAYLOADS_BYTES { usize::MAX } else { PAYLOAD_BYTES_THEN };
            let payload = values::payload(named, row, self.bounds.payload_bytes_max.min(most));
            self.payload_bytes += payload.len();
            self.bad.push(BadRow { item, why, payload });
        }
        let mut kept = keep.iter();
        self.items.retain(|_| kept.next().copied().unwrap_or(false));
        let keep = BooleanArray::from(keep);
        for column in &mut self.columns {
            *column = filter(column.as_ref(), &keep).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Takes out the rows whose values have more bytes than an event may.
    fn take_out_large(&mut self) -> Result<(), String> {
        let max = self.bounds.event_bytes_max as u64;
        if self.columns.iter().map(values::row_bytes_max).fold(0, u64::saturating_add) <= max {
            return Ok(());
        }
        let mut bytes = vec![0; self.items.len()];
        self.columns.iter().for_each(|column| values::add_row_bytes(column, &mut bytes));
        let large = bytes.iter().enumerate().filter(|(_, bytes)| **bytes > max);
        let large = large.map(|(row, bytes)| {
            let reason = format!("the row has {bytes} bytes once it is written out, more than {max}");
            (row, Malformed { code: "event_too_large", reason })
        });
        let large = large.take(self.bad_left()).collect();
        self.take_out(large)
    }

    /// Writes dictionaries out and makes bytes texts, without the rows whose texts are not UTF-8.
    fn make_text(&mut self) -> Result<(), String> {
        for at in 0..self.columns.len() {
            let Some(column) = self.columns.get(at) else { continue };
            let column = values::unpacked(column)?;
            let text = values::texts(&column, false);
            if let Some(slot) = self.columns.get_mut(at) {
                *slot = text.as_ref().unwrap_or(&column).clone();
            }
            if text.is_ok() {
                continue;
            }
            let name = self.plan.names().nth(at).unwrap_or_default();
            let wrong = values::rows_not_utf8(&column).into_iter().map(|row| {
                let reason = format!("not UTF-8 in column {name:?}");
                (row, Malformed { code: "invalid_utf8", reason })
            });
            let wrong = wrong.take(self.bad_left()).collect();
            self.take_out(wrong)?;
            if self.are_too_many() {
                return Ok(());
            }
            if let Some(slot) = self.columns.get_mut(at) {
                *slot = values::texts(slot, true)?;
            }
        }
        Ok(())
    }
}

impl ArrowPlan {
    /// The rows of a batch, its texts as bytes; `first_item` is the index of its first row in the body. `room` takes the rows
    /// and bytes of what is made of them.
    ///
    /// # Errors
    /// Why none of the rows can be stored.
    pub(super) fn sort(
        &self,
        batch: &RecordBatch,
        (origin, first_item): (&Origin, u32),
        bounds: RowBounds,
        room: &mut dyn FnMut(usize, u64) -> bool,
        ids: &mut IdGenerator,
    ) -> Result<Sorted, String> {
        guarded(|| {
            let rows = batch.num_rows() as u32;
            let columns = self.columns(batch)?;
            let items = (first_item..first_item + rows).collect();
            let mut sorting = Sorting { plan: self, bounds, columns, items, bad: Vec::new(), payload_bytes: 0 };
            sorting.take_out_large()?;
            let bytes = sorting.columns.iter().map(values::column_bytes).fold(0, u64::saturating_add);
            if !sorting.are_too_many() && room(sorting.items.len(), bytes) {
                sorting.make_text()?;
            } else {
                // The body is refused.
                sorting.items.clear();
            }
            let all = !sorting.are_too_many();
            let Sorting { columns, items, mut bad, .. } = sorting;
            bad.sort_by_key(|row| row.item);
            let events = match all && !items.is_empty() {
                true => Some((self.events(&columns, &items, origin, ids)?, items)),
                false => None,
            };
            Ok(Sorted { events, bad })
        })
    }
}
