//! Arrow IPC streams from outside. The reader of arrow-rs trusts the lengths in a message (it allocates what they say) and
//! gives up a stream at the first batch that it cannot read. So the frames of a stream are found here, checked against its
//! bytes, and read one by one; a panic that is left is caught.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{Endianness, Message, MessageHeader, root_as_message};

use super::arrow_values;
use super::rows::Origin;
use crate::mapping::Mappings;

/// Rows of a batch without any bytes: a row has a bit at least, but for columns of nulls alone.
const ROWS_WITHOUT_BYTES_MAX: usize = 1_024;

/// The frames of a stream, one after the other.
pub(super) struct Stream<'b> {
    bytes: &'b [u8],
    at: usize,
    schema: SchemaRef,
    /// The schema with texts as bytes.
    unchecked: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
}

/// What comes next in a stream.
pub(super) enum Next {
    /// A batch, its texts as bytes.
    Batch(RecordBatch),
    /// A batch of so many rows (one at least) that cannot be read; the stream goes on after it.
    Bad(usize, String),
    /// There are more rows than a body may have.
    TooMany,
    /// The stream cannot be read any further.
    Broken(String),
    /// The end.
    End,
}

/// A frame: its message, its body, and where the next one starts.
struct Frame<'b> {
    message: Message<'b>,
    body: &'b [u8],
    next: usize,
}

impl<'b> Stream<'b> {
    /// Reads the schema.
    pub(super) fn open(bytes: &'b [u8]) -> Result<Self, String> {
        let frame = frame(bytes, 0)?.ok_or("it is empty")?;
        let schema = frame.message.header_as_schema().ok_or("its first frame is no schema")?;
        if schema.endianness() != Endianness::Little {
            return Err("its numbers are big-endian".to_owned());
        }
        let schema = guarded(|| Ok(fb_to_schema(schema)))?;
        let unchecked = Arc::new(arrow_values::unchecked(&schema));
        Ok(Self { bytes, at: frame.next, schema: Arc::new(schema), unchecked, dictionaries: HashMap::new() })
    }

    /// The schema as it was sent.
    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Goes on to the next batch, of at most `rows_max` rows. `room` takes the bytes of a dictionary that is read; when it has
    /// none, the stream ends.
    pub(super) fn next(&mut self, rows_max: usize, room: &mut dyn FnMut(usize) -> bool) -> Next {
        loop {
            let frame = match frame(self.bytes, self.at) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Next::End,
                Err(reason) => return Next::Broken(format!("{reason} (byte {})", self.at)),
            };
            match frame.message.header_type() {
                MessageHeader::RecordBatch => return self.batch(&frame, rows_max),
                MessageHeader::DictionaryBatch => {
                    if !self.dictionary(&frame, room) {
                        return Next::End;
                    }
                }
                other => {
                    return Next::Broken(format!("there is a frame of another kind, {other:?} (byte {})", self.at));
                }
            }
            self.at = frame.next;
        }
    }

    fn batch(&mut self, frame: &Frame<'b>, rows_max: usize) -> Next {
        let at = std::mem::replace(&mut self.at, frame.next);
        let bad = |rows: usize, reason: String| Next::Bad(rows.max(1), format!("{reason} (batch at byte {at})"));
        let Some(batch) = frame.message.header_as_record_batch() else { return bad(1, "it is no batch".to_owned()) };
        let Ok(rows) = usize::try_from(batch.length()) else {
            return bad(1, "a batch has a negative number of rows".to_owned());
        };
        if rows > rows_max {
            return Next::TooMany;
        }
        if rows > frame.body.len().saturating_mul(8).max(ROWS_WITHOUT_BYTES_MAX) {
            return bad(1, format!("a batch of {} bytes cannot have {rows} rows", frame.body.len()));
        }
        let (schema, version) = (self.unchecked.clone(), frame.message.version());
        let read = check_batch(&batch, frame.body.len()).and_then(|()| {
            let body = Buffer::from(frame.body);
            guarded(|| {
                read_record_batch(&body, batch, schema, &self.dictionaries, None, &version)
                    .map_err(|error| error.to_string())
            })
        });
        match read {
            Ok(batch) => Next::Batch(batch),
            Err(reason) => bad(rows, reason),
        }
    }

    /// Reads a dictionary, or more of one. Batches of one that cannot be read are bad: they find none.
    fn dictionary(&mut self, frame: &Frame<'b>, room: &mut dyn FnMut(usize) -> bool) -> bool {
        let Some(batch) = frame.message.header_as_dictionary_batch() else { return true };
        let known = self.dictionaries.get(&batch.id()).filter(|_| batch.isDelta());
        // More of a dictionary copies what there is of it.
        let known_bytes = known.map_or(0, |values| values.get_array_memory_size());
        if !room(known_bytes.saturating_add(frame.body.len())) {
            return false;
        }
        let version = frame.message.version();
        let read = batch.data().ok_or_else(|| "it has no values".to_owned()).and_then(|data| {
            check_batch(&data, frame.body.len())?;
            let body = Buffer::from(frame.body);
            guarded(|| {
                read_dictionary(&body, batch, &self.unchecked, &mut self.dictionaries, &version)
                    .map_err(|error| error.to_string())
            })
        });
        if read.is_err() {
            self.dictionaries.remove(&batch.id());
        }
        true
    }
}

/// The frame at `at`: continuation marker, length, metadata, body
/// (<https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format>); `None` at the end of the stream.
fn frame(bytes: &[u8], at: usize) -> Result<Option<Frame<'_>>, String> {
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
    let split = usize::try_from(metadata_bytes).ok().and_then(|len| rest.split_at_checked(len));
    let (metadata, rest) = split.ok_or("the stream ends within the metadata of a frame")?;
    // The verifier bounds depth and count of the tables.
    let message = root_as_message(metadata).map_err(|error| format!("the metadata of a frame is damaged: {error}"))?;
    let body = usize::try_from(message.bodyLength()).ok().and_then(|len| rest.get(..len));
    let body = body.ok_or("the stream ends within the body of a frame")?;
    Ok(Some(Frame { message, body, next: at + 8 + metadata.len() + body.len() }))
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

/// Runs code of arrow-rs on data from outside. It checks what it reads, but has panicked on hostile input before.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("the stream is damaged".to_owned()))
}

/// The name of the mapping whose rules say where the time is.
pub(super) fn time_fields(mappings: &Mappings, origin: &Origin) -> Vec<Arc<str>> {
    let fallback = || mappings.position(crate::mapping::UNKNOWN, origin.dataset);
    let mapping = origin.mapping.or_else(fallback).and_then(|at| mappings.get(at));
    let rules = mapping.and_then(|mapping| mapping.columns.iter().find(|(core, _)| *core == super::family::TIME));
    rules.map(|(_, rules)| rules.iter().flat_map(|rule| rule.needs().map(Arc::from)).collect()).unwrap_or_default()
}
