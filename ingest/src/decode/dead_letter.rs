//! Events that could not be stored, as rows of `dead_letters`.

use std::sync::Arc;

use tidegate_events::{Dataset, IdGenerator};
use tidegate_pipeline::EventBatch;
use tidegate_pipeline::delivery::LetterText;

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

    /// Keeps one rejected event.
    pub(super) fn push(&mut self, origin: &Origin, item: u32, why: &Malformed, payload: &[u8], ids: &mut IdGenerator) {
        let LetterText { text, encoding, .. } = LetterText::of(payload, self.payload_bytes_max);
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
