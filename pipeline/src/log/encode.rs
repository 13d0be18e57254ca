//! From record batches to the payloads of frames, on the caller's thread, without copying columns.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Fields, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::MetadataVersion;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::format::{ALIGN, PAYLOAD_BYTES_MAX};
use super::recover::random_salt;

/// Layouts that are remembered; past it all are forgotten and learnt again.
const SCHEMAS_MAX: usize = 4096;
/// Addresses of schemas that are remembered.
const ADDRESSES_MAX: usize = 4096;
/// Idle encoders kept for a layout.
const ENCODERS_MAX: usize = 8;
/// A payload below this is gathered into one buffer: many slices of a few bytes cost more than the copy.
const GATHER_BYTES_MAX: usize = 64 << 10;

/// A schema as it stands in segments.
#[derive(Debug)]
pub(crate) struct KnownSchema {
    /// XXH3 of `message` with the encoder's seed.
    pub id: u64,
    /// The encapsulated IPC message.
    pub message: Buffer,
    /// CRC of `message`.
    pub crc: u32,
    /// The schema itself.
    pub schema: SchemaRef,
    encoders: Mutex<Encoders>,
}

/// Idle encoders of one schema.
struct Encoders(Vec<StreamEncoder>);

impl fmt::Debug for Encoders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} idle", self.0.len())
    }
}

/// The payload of a batch frame, ready to be written.
#[derive(Debug)]
pub(crate) struct Payload {
    /// The bytes, in pieces.
    pub pieces: Vec<Buffer>,
    /// Bytes of all pieces.
    pub len: u32,
    /// CRC of all pieces.
    pub crc: u32,
    /// Whether keys precede the columns.
    pub has_keys: bool,
}

/// Encodes batches. Shared by all appending threads and the writer.
#[derive(Debug)]
pub(crate) struct Encoder {
    // Field names are chosen by strangers, who must not be able to make two schemas share an id.
    seed: u64,
    caches: Mutex<Caches>,
}

#[derive(Debug, Default)]
struct Caches {
    // By the address of the schema, for callers who pool theirs: the same `Arc` comes again and again. The value holds that
    // `Arc`, so its address cannot be taken by another schema while it is a key.
    by_address: HashMap<usize, (SchemaRef, Arc<KnownSchema>), FxBuildHasher>,
    by_fields: HashMap<Fields, Arc<KnownSchema>>,
}

impl Encoder {
    /// An encoder with a secret seed of its own for schema ids.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { seed: random_salt()?, caches: Mutex::default() })
    }

    /// The schema of a batch, encoded. Refuses types that the format does not have.
    pub fn schema(&self, schema: &SchemaRef) -> Result<Arc<KnownSchema>, ArrowError> {
        let address = Arc::as_ptr(schema) as usize;
        if let Some((_, known)) = self.caches.lock().by_address.get(&address) {
            return Ok(known.clone());
        }
        let known = self.caches.lock().by_fields.get(schema.fields()).cloned();
        let known = known.map_or_else(|| KnownSchema::new(schema, self.seed).map(Arc::new), Ok)?;
        let mut caches = self.caches.lock();
        if caches.by_address.len() >= ADDRESSES_MAX {
            caches.by_address.clear();
        }
        if caches.by_fields.len() >= SCHEMAS_MAX {
            caches.by_fields.clear();
        }
        caches.by_address.insert(address, (schema.clone(), known.clone()));
        Ok(caches.by_fields.entry(schema.fields().clone()).or_insert(known).clone())
    }
}

impl KnownSchema {
    fn new(schema: &SchemaRef, seed: u64) -> Result<Self, ArrowError> {
        for field in schema.fields() {
            check_type(field.data_type())?;
        }
        let mut encoder = StreamEncoder::try_new_with_options(schema, options()?)?;
        // The first batch brings the schema message before its own, and no other way leads to just the schema's bytes.
        let empty = RecordBatch::new_empty(schema.clone());
        let with_schema = gather(&encoder.encode(&empty)?);
        let without = gather(&encoder.encode(&empty)?);
        let message = with_schema.slice_with_length(0, with_schema.len().saturating_sub(without.len()));
        Ok(Self {
            id: xxh3_64_with_seed(&message, seed),
            crc: crc32c::crc32c(&message),
            message,
            schema: schema.clone(),
            encoders: Mutex::new(Encoders(vec![encoder])),
        })
    }

    /// Encodes rows of this schema, with their keys unless all are zero. `rows` must not be empty.
    pub fn encode(&self, rows: &RecordBatch, keys: &[u128]) -> Result<Payload, ArrowError> {
        let pooled = self.encoders.lock().0.pop();
        let mut encoder = match pooled {
            Some(encoder) => encoder,
            None => {
                let mut encoder = StreamEncoder::try_new_with_options(&self.schema, options()?)?;
                encoder.encode(&RecordBatch::new_empty(self.schema.clone()))?;
                encoder
            }
        };
        let mut pieces = encoder.encode(rows)?;
        let mut encoders = self.encoders.lock();
        if encoders.0.len() < ENCODERS_MAX {
            encoders.0.push(encoder);
        }
        drop(encoders);
        let has_keys = keys.iter().any(|key| *key != 0);
        if has_keys {
            let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
            pieces.insert(0, Buffer::from_vec(bytes));
        }
        let len: usize = pieces.iter().map(Buffer::len).sum();
        let len = u32::try_from(len).ok().filter(|len| *len <= PAYLOAD_BYTES_MAX).ok_or_else(|| {
            ArrowError::InvalidArgumentError(format!("a batch of {len} bytes; at most {PAYLOAD_BYTES_MAX} fit a frame"))
        })?;
        if len as usize <= GATHER_BYTES_MAX {
            pieces = vec![gather(&pieces)];
        }
        let crc = pieces.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
        Ok(Payload { pieces, len, crc, has_keys })
    }
}

fn options() -> Result<IpcWriteOptions, ArrowError> {
    IpcWriteOptions::try_new(ALIGN as usize, false, MetadataVersion::V5)
}

fn gather(pieces: &[Buffer]) -> Buffer {
    let mut bytes = Vec::with_capacity(pieces.iter().map(Buffer::len).sum());
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
    Buffer::from_vec(bytes)
}

/// The types of columns that a log takes: those of the core schemas and of own fields.
pub(crate) fn check_type(kind: &DataType) -> Result<(), ArrowError> {
    match kind {
        DataType::Boolean
        | DataType::Int32
        | DataType::Int64
        | DataType::Float64
        | DataType::Utf8
        | DataType::Timestamp(_, _)
        | DataType::Decimal128(_, _) => Ok(()),
        DataType::List(item) if !item.data_type().is_nested() => check_type(item.data_type()),
        other => Err(ArrowError::InvalidArgumentError(format!("a log has no columns of type {other}"))),
    }
}
