//! From the payloads of frames back to record batches, without copying columns.
//!
//! A payload has passed its CRC when it comes here, but a CRC is no proof against somebody who writes files: every length
//! is checked before Arrow, which panics on some, gets to see it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::RecordBatchDecoder;
use arrow::ipc::{Message, MetadataVersion, root_as_message};

use super::encode::check_type;
use super::format::{FrameHeader, le32};

/// The start of an encapsulated message.
const CONTINUATION: u32 = u32::MAX;
const PREFIX_LEN: usize = 8;

/// The schema in the payload of a schema frame.
pub(crate) fn schema(payload: &Buffer) -> Result<SchemaRef, ArrowError> {
    let (message, _) = message(payload)?;
    let schema = message.header_as_schema().ok_or_else(|| bad("not a schema message"))?;
    // `fb_to_schema` panics on what no Arrow library writes.
    let schema = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fb_to_schema(schema)))
        .map_err(|_| bad("a schema that Arrow does not know"))?;
    for field in schema.fields() {
        check_type(field.data_type())?;
    }
    Ok(Arc::new(schema))
}

/// The keys in the payload of a batch frame: one a row, or none at all.
pub(crate) fn keys(header: &FrameHeader, payload: &Buffer) -> Vec<u128> {
    let bytes = payload.get(..keys_len(header)).unwrap_or_default();
    let (keys, _) = bytes.as_chunks::<16>();
    keys.iter().map(|key| u128::from_le_bytes(*key)).collect()
}

/// The rows in the payload of a batch frame.
pub(crate) fn rows(header: &FrameHeader, payload: &Buffer, schema: SchemaRef) -> Result<RecordBatch, ArrowError> {
    let keys_len = keys_len(header);
    if keys_len > payload.len() {
        return Err(bad("keys longer than the payload"));
    }
    let payload = payload.slice(keys_len);
    let (message, body_at) = message(&payload)?;
    if message.version() != MetadataVersion::V5 {
        return Err(bad("not of version 5"));
    }
    let batch = message.header_as_record_batch().ok_or_else(|| bad("not a record batch message"))?;
    let body = payload.slice(body_at);
    let variadic = batch.variadicBufferCounts().is_some_and(|counts| !counts.is_empty());
    if batch.length() != i64::from(header.rows) || batch.compression().is_some() || variadic {
        return Err(bad("a record batch of another form"));
    }
    let fits = |offset: i64, length: i64| {
        offset >= 0 && length >= 0 && offset.checked_add(length).is_some_and(|end| end as u64 <= body.len() as u64)
    };
    if !batch.buffers().into_iter().flatten().all(|buffer| fits(buffer.offset(), buffer.length())) {
        return Err(bad("a buffer beyond the end"));
    }
    // A list's child has as many elements as its offsets say; no buffer holds more than eight a byte. Rows of columns
    // without a single value in them take no byte at all.
    let elements_max = (body.len() as i64).saturating_mul(8).max(i64::from(header.rows));
    let sane = |length: i64, nulls: i64| (0..=elements_max).contains(&length) && (0..=length).contains(&nulls);
    if !batch.nodes().into_iter().flatten().all(|node| sane(node.length(), node.null_count())) {
        return Err(bad("a column of impossible length"));
    }
    let dictionaries = HashMap::new();
    // What is left for Arrow to find (a bitmap that is shorter than its column) it may find with a panic.
    let read =
        || RecordBatchDecoder::try_new(&body, batch, schema, &dictionaries, &MetadataVersion::V5)?.read_record_batch();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .map_err(|_| bad("columns that do not fit their buffers"))?
}

/// The message and where its body starts.
fn message(payload: &Buffer) -> Result<(Message<'_>, usize), ArrowError> {
    if payload.len() < PREFIX_LEN || le32(payload, 0) != CONTINUATION {
        return Err(bad("no message"));
    }
    let end = PREFIX_LEN + le32(payload, 4) as usize;
    let metadata = payload.get(PREFIX_LEN..end).ok_or_else(|| bad("a message longer than its frame"))?;
    let message = root_as_message(metadata).map_err(|error| bad(&error.to_string()))?;
    Ok((message, end))
}

fn keys_len(header: &FrameHeader) -> usize {
    if header.has_keys { header.rows as usize * 16 } else { 0 }
}

fn bad(reason: &str) -> ArrowError {
    ArrowError::IpcError(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use tidegate_events::Dataset;

    use super::super::format::FrameKind;
    use super::*;

    #[test]
    fn keys_longer_than_their_payload_are_an_error_and_never_a_panic() {
        for (rows, bytes) in [(2, 0), (2, 31), (2, 32), (2, 33), (u32::MAX, 64)] {
            let header = FrameHeader {
                kind: FrameKind::Batch,
                dataset: Dataset::SecurityEvents,
                has_keys: true,
                starts_group: true,
                rows,
                schema_id: 0,
                base: 0,
                time_us: 0,
                salt: 0,
                payload_len: bytes,
                payload_crc: 0,
            };
            let payload = Buffer::from_vec(vec![0u8; bytes as usize]);
            let schema = Arc::new(arrow::datatypes::Schema::empty());
            assert!(super::rows(&header, &payload, schema).is_err(), "{rows} rows, {bytes} bytes");
            assert_eq!(keys(&header, &payload).len(), if bytes >= rows.saturating_mul(16) { 2 } else { 0 });
        }
    }
}
