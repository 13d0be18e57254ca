//! Arrow IPC streams from outside. The reader of arrow-rs trusts the lengths in a message (it allocates what they say), so the
//! frames of a stream are checked against its bytes before the reader sees them; a panic that is left is caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::root_as_message;
use tidegate_events::IdGenerator;
use tidegate_pipeline::EventBatch;

use super::BodyError;
use super::arrow_columns::{self, ArrowPlan};
use super::config::DecodeConfig;
use super::rows::Origin;
use crate::mapping::Mappings;

/// What the frames of a stream say.
#[derive(Debug)]
pub(super) struct Frames {
    /// The bytes up to the first frame that cannot be read.
    pub(super) whole_bytes: usize,
    /// What is wrong with that frame.
    pub(super) broken: Option<String>,
}

impl Frames {
    /// Checks each frame: continuation marker, length, metadata, body
    /// (<https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format>). At most `rows_max` rows in all.
    pub(super) fn check(bytes: &[u8], rows_max: usize) -> Self {
        let mut at = 0;
        let mut rows = 0;
        loop {
            match frame(bytes, at, rows_max - rows) {
                Ok(Some((next, frame_rows))) => {
                    at = next;
                    rows += frame_rows;
                }
                Ok(None) => return Self { whole_bytes: at, broken: None },
                Err(reason) => return Self { whole_bytes: at, broken: Some(format!("{reason} (byte {at})")) },
            }
        }
    }
}

/// The end of the frame at `at` and its rows; `None` at the end of the stream.
fn frame(bytes: &[u8], at: usize, rows_max: usize) -> Result<Option<(usize, usize)>, String> {
    let rest = bytes.get(at..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(None);
    }
    let [0xff, 0xff, 0xff, 0xff, a, b, c, d, rest @ ..] = rest else {
        return Err("this is no frame of an Arrow IPC stream".to_owned());
    };
    let metadata_bytes = i32::from_le_bytes([*a, *b, *c, *d]);
    if metadata_bytes == 0 {
        return Ok(None);
    }
    let metadata = usize::try_from(metadata_bytes).ok().and_then(|len| rest.get(..len));
    let metadata = metadata.ok_or("the stream ends within the metadata of a frame")?;
    // The verifier bounds depth and count of the tables.
    let message = root_as_message(metadata).map_err(|error| format!("the metadata of a frame is damaged: {error}"))?;
    let body = usize::try_from(message.bodyLength()).ok().filter(|len| *len <= rest.len() - metadata.len());
    let body_bytes = body.ok_or("the stream ends within the body of a frame")?;
    let mut rows = 0;
    let batch = message.header_as_record_batch();
    if let Some(batch) = message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()).or(batch) {
        check_batch(&batch, body_bytes)?;
        rows = usize::try_from(batch.length()).map_err(|_| "a batch has a negative number of rows")?;
        if message.header_as_record_batch().is_none() {
            rows = 0;
        } else if rows > rows_max {
            return Err("the stream has more rows than one body may have; send it in parts".to_owned());
        }
    }
    Ok(Some((at + 8 + metadata.len() + body_bytes, rows)))
}

/// The buffers of a batch lie within its body, and do not share bytes: shared bytes would be written out many times.
fn check_batch(batch: &arrow::ipc::RecordBatch<'_>, body_bytes: usize) -> Result<(), String> {
    if batch.compression().is_some() {
        let reason = "its buffers are compressed: write it without, and compress the body (Content-Encoding: zstd)";
        return Err(reason.to_owned());
    }
    let mut sum = 0usize;
    for buffer in batch.buffers().iter().flatten() {
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let fits = range.and_then(|(offset, length)| {
            sum = sum.checked_add(length)?;
            offset.checked_add(length).filter(|end| *end <= body_bytes)
        });
        fits.ok_or("a buffer lies outside the body of its frame")?;
    }
    for node in batch.nodes().iter().flatten() {
        // A column without buffers (nulls, an empty struct) has only its length to say how long it is.
        let fits =
            usize::try_from(node.length()).is_ok_and(|length| length <= body_bytes.saturating_mul(8).max(1 << 21));
        if !fits || node.null_count() < 0 || node.null_count() > node.length() {
            return Err("a column has an impossible length".to_owned());
        }
    }
    if sum > body_bytes { Err("buffers of a frame share bytes".to_owned()) } else { Ok(()) }
}

/// A reader of the checked frames.
pub(super) fn open(bytes: &[u8]) -> Result<StreamReader<&[u8]>, String> {
    guarded(|| StreamReader::try_new(bytes, None).map_err(|error| error.to_string()))
}

/// The next batch.
pub(super) fn next(reader: &mut StreamReader<&[u8]>) -> Result<Option<RecordBatch>, String> {
    guarded(|| reader.next().transpose().map_err(|error| error.to_string()))
}

/// Runs code of arrow-rs on data from outside. It checks what it reads, but has panicked on hostile input before.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("the stream is damaged".to_owned()))
}

/// What becomes of each column of a schema.
pub(super) fn plan(
    schema: &Schema,
    origin: &Origin,
    mappings: &Mappings,
    config: &DecodeConfig,
) -> Result<ArrowPlan, BodyError> {
    let unsupported = |reason| BodyError { code: "unsupported_column", reason };
    arrow_columns::ArrowPlan::new(schema, origin, mappings, config).map_err(unsupported)
}

impl ArrowPlan {
    /// A batch of the stream as events.
    pub(super) fn batch(
        &self,
        batch: &RecordBatch,
        origin: &Origin,
        first_item: u32,
        ids: &mut IdGenerator,
    ) -> Result<EventBatch, String> {
        guarded(|| self.events(batch, origin, first_item, ids))
    }
}

/// The name of the mapping whose rules say where the time is.
pub(super) fn time_fields(mappings: &Mappings, origin: &Origin) -> Vec<Arc<str>> {
    let fallback = || mappings.position(crate::mapping::UNKNOWN, origin.dataset);
    let mapping = origin.mapping.or_else(fallback).and_then(|at| mappings.get(at));
    let rules = mapping.and_then(|mapping| mapping.columns.iter().find(|(core, _)| *core == super::family::TIME));
    rules.map(|(_, rules)| rules.iter().flat_map(|rule| rule.needs().map(Arc::from)).collect()).unwrap_or_default()
}
