//! Events that could not be stored, as rows of `dead_letters`.

use std::sync::Arc;

use tidegate_events::{Dataset, IdGenerator};
use tidegate_pipeline::EventBatch;

use super::family::{EVENT_ID, Family, ORG_ID, RECEIVED_TIME, SOURCE, TIME};
use super::json::Malformed;
use super::names::Names;
use super::rows::Origin;
use super::{IngestError, RowRef};
use crate::mapping::UNKNOWN;

/// Builds the batch of dead letters.
#[derive(Debug)]
pub(super) struct DeadLetters {
    family: Family,
    payload_bytes_max: usize,
    /// The places of the dataset's own core columns, in the order of [`COLUMNS`].
    places: Vec<usize>,
}

const COLUMNS: [&str; 8] =
    ["dataset", "stage", "code", "reason", "request_id", "item_index", "payload", "payload_encoding"];

impl DeadLetters {
    pub(super) fn new(payload_bytes_max: usize) -> Self {
        let schema = Dataset::DeadLetters.core_schema();
        let places = COLUMNS.iter().map(|name| schema.index_of(name).unwrap_or(usize::MAX)).collect();
        Self { family: Family::new(Dataset::DeadLetters), payload_bytes_max, places }
    }

    pub(super) fn len(&self) -> usize {
        self.family.len()
    }

    /// Keeps one rejected event. Its text is kept as it is when it is UTF-8 (`text`), else in hexadecimal (`hex`); `;cut` says
    /// that only its start is kept.
    pub(super) fn push(&mut self, origin: &Origin, item: u32, why: &Malformed, payload: &[u8], ids: &mut IdGenerator) {
        let kept = payload.get(..self.payload_bytes_max).unwrap_or(payload);
        let cut = kept.len() < payload.len();
        let (text, hex) = match std::str::from_utf8(kept) {
            Ok(text) => (text.to_owned(), false),
            // The cut may go through a letter.
            Err(error) if cut && error.error_len().is_none() => {
                (String::from_utf8_lossy(kept.get(..error.valid_up_to()).unwrap_or_default()).into_owned(), false)
            }
            Err(_) => (hex_of(kept.get(..self.payload_bytes_max / 2).unwrap_or(kept)), true),
        };
        let encoding = match (hex, cut || (hex && kept.len() > self.payload_bytes_max / 2)) {
            (false, false) => "text",
            (false, true) => "text;cut",
            (true, false) => "hex",
            (true, true) => "hex;cut",
        };
        let id = ids.next(origin.received_us);
        let family = &mut self.family;
        family.core_number(TIME, i128::from(origin.received_us));
        family.core_number(RECEIVED_TIME, i128::from(origin.received_us));
        family.core_text(EVENT_ID, std::str::from_utf8(&id).unwrap_or_default());
        family.core_text(ORG_ID, &origin.org_id);
        family.core_text(SOURCE, origin.source.as_deref().unwrap_or(UNKNOWN));
        let request_id: &Arc<str> = &origin.request_id;
        let texts = [origin.dataset.table_name(), "ingest", why.code, &why.reason, request_id, "", &text, encoding];
        for ((name, place), value) in COLUMNS.iter().zip(&self.places).zip(texts) {
            if *name == "item_index" {
                family.core_number(*place, i128::from(item));
            } else {
                family.core_text(*place, value);
            }
        }
        family.end_row(RowRef { body: origin.body, item }, 0);
    }

    pub(super) fn flush(&mut self, names: &Names) -> Result<Option<(EventBatch, Vec<RowRef>)>, IngestError> {
        self.family.flush(names)
    }
}

fn hex_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |at: u8| char::from(DIGITS[usize::from(at & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}
