//! Batches as bytes, for logs that are not made of segment files: a schema message and a record batch message side by side, both
//! as in segment files.
//!
//! ```text
//! 0 length of the schema message 4 | 4 schema message | then the record batch message
//! ```

use std::collections::HashMap;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;
use tidegate_events::Dataset;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::decode;
use super::encode::Encoder;
use super::format::{FrameHeader, FrameKind, le32};
use super::recover::random_salt;

/// Schemas that are remembered; past it all are read again.
const SCHEMAS_MAX: usize = 1024;

/// Writes and reads batches, and remembers their layouts: one schema in memory for all batches of a layout.
#[derive(Debug)]
pub struct Carrier {
    encoder: Encoder,
    seed: u64,
    schemas: Mutex<HashMap<u64, SchemaRef, FxBuildHasher>>,
}

impl Carrier {
    /// One that remembers nothing yet.
    ///
    /// # Errors
    /// When the operating system gives no random bits.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { encoder: Encoder::new()?, seed: random_salt()?, schemas: Mutex::default() })
    }

    /// Appends the bytes of a batch to `bytes`.
    ///
    /// # Errors
    /// For columns of a type that logs do not take.
    pub fn write(&self, rows: &RecordBatch, bytes: &mut Vec<u8>) -> Result<(), ArrowError> {
        let schema = self.encoder.schema(&rows.schema())?;
        bytes.extend((schema.message.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&schema.message);
        for piece in schema.encode(rows, &[])?.pieces {
            bytes.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// The batch of `rows` rows in these bytes, which may come from anywhere.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(&self, bytes: &Buffer, dataset: Dataset, rows: u32) -> Result<RecordBatch, ArrowError> {
        let cut = || ArrowError::IpcError("a batch is cut".to_owned());
        let end = 4 + le32(bytes, 0) as usize;
        if bytes.len() < end.max(4) {
            return Err(cut());
        }
        let schema = self.schema(&bytes.slice_with_length(4, end - 4))?;
        let payload = bytes.slice(end);
        let header = FrameHeader {
            kind: FrameKind::Batch,
            dataset,
            has_keys: false,
            starts_group: false,
            rows,
            schema_id: 0,
            base: 0,
            time_us: 0,
            salt: 0,
            payload_len: u32::try_from(payload.len()).map_err(|_| cut())?,
            payload_crc: 0,
        };
        decode::rows(&header, &payload, schema)
    }

    fn schema(&self, message: &Buffer) -> Result<SchemaRef, ArrowError> {
        // Field names are chosen by strangers, who must not be able to make two schemas share an id.
        let id = xxh3_64_with_seed(message, self.seed);
        if let Some(known) = self.schemas.lock().get(&id) {
            return Ok(known.clone());
        }
        let schema = decode::schema(message)?;
        let mut schemas = self.schemas.lock();
        if schemas.len() >= SCHEMAS_MAX {
            schemas.clear();
        }
        Ok(schemas.entry(id).or_insert(schema).clone())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn batches_come_back_whole_or_not_at_all() {
        let carrier = Carrier::new().expect("random bits");
        let column = |texts: &[&str]| std::sync::Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
        let numbers = std::sync::Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
        for columns in [vec![("a", column(&["x", "yy"]))], vec![("a", column(&["x", "yy"])), ("b", numbers)]] {
            let rows = RecordBatch::try_from_iter(columns).expect("a batch");
            let mut bytes = Vec::new();
            carrier.write(&rows, &mut bytes).expect("written");
            let whole = Buffer::from_vec(bytes);
            // The second time the schema is known.
            for carrier in [&carrier, &carrier, &Carrier::new().expect("random bits")] {
                assert_eq!(carrier.read(&whole, Dataset::SecurityEvents, 2).expect("whole"), rows);
                assert!(carrier.read(&whole, Dataset::SecurityEvents, 3).is_err(), "of another number of rows");
            }
            for len in (0..whole.len()).step_by(3) {
                let cut = whole.slice_with_length(0, len);
                match carrier.read(&cut, Dataset::SecurityEvents, 2) {
                    // What pads the last column may be missing.
                    Ok(read) => assert!(read == rows && whole.len() - len < 64, "{len} of {} bytes", whole.len()),
                    Err(_) => assert!(len < whole.len()),
                }
            }
        }
        assert!(carrier.schemas.lock().len() <= SCHEMAS_MAX);
    }

    #[test]
    fn batches_of_a_layout_share_its_schema_whatever_comes_between() {
        let carrier = Carrier::new().expect("random bits");
        let schema_of = |name: &str| {
            let column = std::sync::Arc::new(Int64Array::from(vec![1])) as ArrayRef;
            let mut bytes = Vec::new();
            carrier
                .write(&RecordBatch::try_from_iter([(name, column)]).expect("a batch"), &mut bytes)
                .expect("written");
            carrier.read(&Buffer::from_vec(bytes), Dataset::SecurityEvents, 1).expect("whole").schema()
        };
        let first = schema_of("a");
        schema_of("b");
        assert!(std::sync::Arc::ptr_eq(&first, &schema_of("a")));
    }
}
