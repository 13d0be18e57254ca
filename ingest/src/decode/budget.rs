//! What the events of one body may cost beside its bytes: their rows, what is kept of rejected ones, the answer. A body of
//! millions of tiny events costs a hundred times its bytes, and a compressed one a hundred thousand times what was sent.

use super::{BodyError, BodyFormat};

/// Where a decoder asks for room before it makes rows of a body.
pub struct Room<'a> {
    /// Takes so many bytes, or says why there are none: then nothing of the body is stored.
    pub grant: &'a mut dyn FnMut(usize) -> Result<(), BodyError>,
    /// What each item costs beside its row, in bytes: its place in the answer.
    pub item_bytes: usize,
}

/// What a row costs beside the values of its event, in bytes: times, id, tenant, source, and whence it came. As many bytes
/// of the body as this pay for one row, because they are held while it is decoded and given back then.
pub(super) const ROW_BYTES: usize = 128;

/// What a rejected item costs beside its reason, in bytes: its row of dead letters, its place in the answer.
pub(super) const REJECTED_BYTES: usize = 512;

/// The fewest and the most items for which room is taken at a time, within which it is doubled.
const ITEMS_AT_A_TIME: (usize, usize) = (64, 8_192);

/// Of one body.
pub(super) struct Budget<'a> {
    room: Room<'a>,
    /// Bytes that are paid for and not used.
    left: usize,
    /// So many items have room. None once the body is refused.
    items: usize,
    items_max: usize,
    /// Bytes that the values of columns take once they are written out, so far.
    values: u64,
    refused: Option<BodyError>,
}

impl<'a> Budget<'a> {
    pub(super) fn new(room: Room<'a>, format: BodyFormat, body_bytes: usize, items_max: usize) -> Self {
        // The rows of a stream are counted batch by batch, with their values.
        let columns = format == BodyFormat::ArrowStream;
        let items = if columns || room.item_bytes > 0 { 0 } else { (body_bytes / ROW_BYTES).max(ITEMS_AT_A_TIME.0) };
        let left = if columns { body_bytes } else { 0 };
        Self { room, left, items: items.min(items_max), items_max, values: 0, refused: None }
    }

    /// How many items have room.
    #[inline]
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// The most items of a body.
    pub(super) fn items_max(&self) -> usize {
        self.items_max
    }

    /// Whether nothing of the body is to be stored.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Nothing of the body is to be stored.
    pub(super) fn refuse(&mut self, error: BodyError) {
        self.items = 0;
        self.refused.get_or_insert(error);
    }

    pub(super) fn into_refusal(self) -> Option<BodyError> {
        self.refused
    }

    /// Takes room for `bytes`; false when the body is refused.
    pub(super) fn charge(&mut self, bytes: usize) -> bool {
        if let Some(missing) = bytes.checked_sub(self.left).filter(|missing| *missing > 0) {
            if let Err(error) = (self.room.grant)(missing) {
                self.refuse(error);
            }
            self.left = bytes;
        }
        self.left -= bytes;
        !self.is_refused()
    }

    /// Takes room for `items` in all, of which there are at most `items_max`; false when the body is refused.
    #[cold]
    pub(super) fn cover(&mut self, items: usize) -> bool {
        while self.items < items.min(self.items_max) && !self.is_refused() {
            let (least, most) = ITEMS_AT_A_TIME;
            let more = (items - self.items).max(self.items.clamp(least, most)).min(self.items_max - self.items);
            if self.charge(more.saturating_mul(ROW_BYTES.saturating_add(self.room.item_bytes))) {
                self.items += more;
            }
        }
        !self.is_refused()
    }

    /// Takes room for a batch of columns: its rows, and their values once they are written out, of which a body may have
    /// `values_max` bytes. False when the body is refused.
    pub(super) fn charge_columns(&mut self, rows: usize, values: u64, values_max: usize) -> bool {
        self.values = self.values.saturating_add(values);
        if self.values > values_max as u64 {
            let reason = format!("the body has more than {values_max} bytes once its columns are written out");
            self.refuse(BodyError { code: "body_too_large", reason });
            return false;
        }
        let rows = rows.saturating_mul(ROW_BYTES.saturating_add(self.room.item_bytes));
        self.charge(rows.saturating_add(usize::try_from(values).unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a body of `bytes` asks for, for so many items one after the other; whether it got it.
    fn asked(bytes: usize, items: usize, item_bytes: usize, bytes_max: usize) -> (usize, bool) {
        let mut granted = 0;
        let mut grant = |more: usize| {
            granted += more;
            let full = || BodyError { code: "full", reason: String::new() };
            if granted > bytes_max { Err(full()) } else { Ok(()) }
        };
        let room = Room { grant: &mut grant, item_bytes };
        let mut budget = Budget::new(room, BodyFormat::Json, bytes, 1_000_000);
        let fits = (1..=items).all(|item| item <= budget.items() || budget.cover(item));
        assert_eq!(budget.into_refusal().map(|error| error.code), (!fits).then_some("full"));
        (granted, fits)
    }

    #[test]
    fn common_events_cost_nothing_beside_their_bytes_and_tiny_ones_do() {
        for (bytes, items, item_bytes, least, most) in [
            (500 * 1_000, 1_000, 0, 0, 0),
            (3, 1, 0, 0, 0),
            (3 * 64, 64, 0, 0, 0),
            (3 * 1_000_000, 1_000_000, 0, 120_000_000, 128_000_000),
            (500, 1, 192, 320, 64 * 320),
            (500 * 1_000, 1_000, 192, 320_000, 2 * 320_000),
        ] {
            let (granted, fits) = asked(bytes, items, item_bytes, usize::MAX);
            let context = format!("{items} items of {bytes} bytes, {item_bytes} each: {granted}");
            assert!(fits && (least..=most).contains(&granted), "{context}");
            assert!(most == 0 || !asked(bytes, items, item_bytes, least / 2).1, "{context}");
        }
    }
}
