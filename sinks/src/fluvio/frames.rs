//! What a record of a log holds: rows of one append, of any datasets, and the keys by which readers know duplicates.
//!
//! ```text
//! record := header (32 bytes), one 16-byte key a row if bit 0 of the flags is set (0: the row has none), piece*
//! header := 0 magic 4 "TFR1" | 4 crc 4 of bytes 8.. | 8 flags 2 | 10 pieces 2 | 12 rows 4 | 16 time 8, of the append, µs | 24 zeros 8
//! piece  := 0 dataset 1 | 1 zeros 3 | 4 rows 4 | 8 length 4 | 12 schema and batch, see tidegate_pipeline::log::carried
//! ```
//!
//! All integers are little-endian; the CRC is CRC-32C. What compresses is the client library, a batch of records at a time. A row
//! is at the offset `record << 16 | row`, so that a record has at most 65,536 rows, and offsets have gaps.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use tidegate_events::Dataset;
use tidegate_pipeline::log::carried::Carrier;
use tidegate_pipeline::{EventBatch, LogBatch, Offset};

use crate::parquet::row_bytes;

/// Bits of an offset that count the rows of a record.
pub(super) const ROW_BITS: u32 = 16;
/// Rows of a record.
pub(super) const ROWS_MAX: usize = 1 << ROW_BITS;
/// Offsets of a record, of which its rows take the first.
pub const OFFSETS_OF_RECORD: u64 = 1 << ROW_BITS;
/// Key and value of the largest record: one row, since of several each gets a record.
pub(super) const RECORD_BYTES_MAX: usize = 8 << 20;

const MAGIC: [u8; 4] = *b"TFR1";
const HEADER_LEN: usize = 32;
const PIECE_LEN: usize = 12;
const FLAG_KEYS: u16 = 1;
/// Pieces of a record.
const PIECES_MAX: usize = u16::MAX as usize;

/// Rows of one batch of an append that stand in one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which batch.
    pub(super) batch: usize,
    pub(super) start: usize,
    pub(super) rows: usize,
    /// About, in memory.
    bytes: usize,
}

/// A record to be written, and what is in it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) value: Vec<u8>,
    pub(super) pieces: Vec<Piece>,
}

/// A record that was read.
#[derive(Debug, Default)]
pub(super) struct Unframed {
    /// One a row, or none at all.
    pub(super) keys: Vec<u128>,
    pub(super) batches: Vec<(Dataset, RecordBatch)>,
    pub(super) rows: usize,
}

/// The offset of the first row of a record.
pub(super) fn offset_of(record: u64) -> Offset {
    record << ROW_BITS
}

/// The record of the row at an offset.
pub(super) fn record_of(offset: Offset) -> u64 {
    offset >> ROW_BITS
}

/// How many records of a partition lie between two offsets, about: one that was read in part counts as read.
pub fn records_between(from: Offset, to: Offset) -> u64 {
    records_below(to).saturating_sub(records_below(from))
}

/// The record after all that have rows below an offset.
pub(super) fn records_below(offset: Offset) -> u64 {
    offset.div_ceil(OFFSETS_OF_RECORD)
}

/// The batches as records of about `bytes_max` in memory each.
///
/// # Errors
/// Arrow's, and one for a row that is larger than a record may be.
pub(super) fn encode(
    carrier: &Carrier,
    batches: &[EventBatch],
    bytes_max: usize,
    time_us: i64,
) -> Result<Vec<Frame>, ArrowError> {
    let append = Batches { carrier, batches, time_us };
    let mut frames = Vec::new();
    let (mut open, mut bytes, mut rows) = (Vec::new(), 0, 0);
    for piece in batches.iter().enumerate().flat_map(|(nth, batch)| pieces(nth, batch, bytes_max)) {
        let full = bytes + piece.bytes > bytes_max || rows + piece.rows > ROWS_MAX || open.len() == PIECES_MAX;
        if full && !open.is_empty() {
            append.frame(std::mem::take(&mut open), &mut frames)?;
            (bytes, rows) = (0, 0);
        }
        bytes += piece.bytes;
        rows += piece.rows;
        open.push(piece);
    }
    if !open.is_empty() {
        append.frame(open, &mut frames)?;
    }
    Ok(frames)
}

/// The rows of a batch, cut so that each piece has a record's size at most.
fn pieces(nth: usize, batch: &EventBatch, bytes_max: usize) -> impl Iterator<Item = Piece> + use<> {
    let total = batch.rows.num_rows();
    let row = row_bytes(&batch.rows) / total.max(1) + 16;
    let most = (bytes_max / row.max(1)).clamp(1, ROWS_MAX);
    (0..total).step_by(most).map(move |start| {
        let rows = most.min(total - start);
        Piece { batch: nth, start, rows, bytes: rows * row }
    })
}

/// The batches of an append that is being written.
struct Batches<'a> {
    carrier: &'a Carrier,
    batches: &'a [EventBatch],
    time_us: i64,
}

impl Batches<'_> {
    /// One record of these pieces, or several when they are larger than they seemed.
    fn frame(&self, pieces: Vec<Piece>, frames: &mut Vec<Frame>) -> Result<(), ArrowError> {
        let value = self.write(&pieces)?;
        if value.len() <= RECORD_BYTES_MAX {
            frames.push(Frame { value, pieces });
            return Ok(());
        }
        let cut = |piece: &Piece, start: usize, rows: usize| Piece { start, rows, bytes: piece.bytes / 2, ..*piece };
        let (first, second) = match pieces.as_slice() {
            [only] if only.rows <= 1 => {
                let bytes = value.len();
                return Err(ArrowError::InvalidArgumentError(format!(
                    "an event of {bytes} bytes; at most {RECORD_BYTES_MAX} fit a record"
                )));
            }
            [only] => {
                let half = only.rows / 2;
                (vec![cut(only, only.start, half)], vec![cut(only, only.start + half, only.rows - half)])
            }
            more => {
                let (first, second) = more.split_at(more.len() / 2);
                (first.to_vec(), second.to_vec())
            }
        };
        self.frame(first, frames)?;
        self.frame(second, frames)
    }

    fn write(&self, pieces: &[Piece]) -> Result<Vec<u8>, ArrowError> {
        let has_keys = pieces.iter().any(|piece| self.keys_of(piece).iter().any(|key| *key != 0));
        let rows: usize = pieces.iter().map(|piece| piece.rows).sum();
        let bytes: usize = pieces.iter().map(|piece| piece.bytes).sum();
        let mut value = Vec::with_capacity(HEADER_LEN + rows * 16 + bytes);
        value.extend(MAGIC);
        value.extend([0; 4]);
        value.extend((u16::from(has_keys) * FLAG_KEYS).to_le_bytes());
        value.extend((pieces.len() as u16).to_le_bytes());
        value.extend((rows as u32).to_le_bytes());
        value.extend(self.time_us.to_le_bytes());
        value.extend([0; 8]);
        for piece in pieces.iter().filter(|_| has_keys) {
            let keys = self.keys_of(piece);
            keys.iter().for_each(|key| value.extend(key.to_le_bytes()));
            value.resize(value.len() + 16 * (piece.rows - keys.len()), 0);
        }
        for piece in pieces {
            let Some(batch) = self.batches.get(piece.batch) else { continue };
            let at = value.len();
            value.extend([batch.dataset as u8, 0, 0, 0]);
            value.extend((piece.rows as u32).to_le_bytes());
            value.extend([0; 4]);
            self.carrier.write(&batch.rows.slice(piece.start, piece.rows), &mut value)?;
            let len = (value.len() - at - PIECE_LEN) as u32;
            value[at + 8..at + PIECE_LEN].copy_from_slice(&len.to_le_bytes());
        }
        let crc = crc32c::crc32c(&value[8..]);
        value[4..8].copy_from_slice(&crc.to_le_bytes());
        Ok(value)
    }

    fn keys_of(&self, piece: &Piece) -> &[u128] {
        let keys = self.batches.get(piece.batch).map_or(&[][..], |batch| &batch.keys);
        keys.get(piece.start..piece.start + piece.rows).unwrap_or_default()
    }
}

/// A header that is whole.
struct Header {
    keys: bool,
    pieces: u16,
    rows: usize,
}

fn header(value: &[u8]) -> Result<Header, String> {
    if value.len() < HEADER_LEN || !value.starts_with(&MAGIC) {
        return Err("it is no record of a log".to_owned());
    }
    if number::<4>(value, 4).map(u32::from_le_bytes) != Some(crc32c::crc32c(&value[8..])) {
        return Err("the checksum does not match".to_owned());
    }
    let flags = number(value, 8).map_or(0, u16::from_le_bytes);
    let pieces = number(value, 10).map_or(0, u16::from_le_bytes);
    let rows = number(value, 12).map_or(0, u32::from_le_bytes) as usize;
    if rows > ROWS_MAX {
        return Err(format!("it has {rows} rows"));
    }
    Ok(Header { keys: flags & FLAG_KEYS != 0, pieces, rows })
}

fn number<const N: usize>(value: &[u8], at: usize) -> Option<[u8; N]> {
    value.get(at..at + N)?.try_into().ok()
}

/// The keys of a record: one a row, or none at all.
///
/// # Errors
/// What is wrong with the record.
pub(super) fn keys(value: &[u8]) -> Result<Vec<u128>, String> {
    let header = header(value)?;
    Ok(keys_of(&header, value)?.0)
}

fn keys_of<'a>(header: &Header, value: &'a [u8]) -> Result<(Vec<u128>, &'a [u8]), String> {
    let len = if header.keys { header.rows * 16 } else { 0 };
    let (keys, rest) = value[HEADER_LEN..].split_at_checked(len).ok_or("its keys are cut")?;
    let (keys, _) = keys.as_chunks::<16>();
    Ok((keys.iter().map(|key| u128::from_le_bytes(*key)).collect(), rest))
}

/// The rows of a record.
///
/// # Errors
/// What is wrong with the record.
pub(super) fn decode(carrier: &Carrier, value: &Buffer) -> Result<Unframed, String> {
    let header = header(value)?;
    let (keys, rest) = keys_of(&header, value)?;
    let mut unframed = Unframed { keys, batches: Vec::new(), rows: 0 };
    let mut at = value.len() - rest.len();
    for _ in 0..header.pieces {
        let rest = &value[at..];
        let dataset = rest.first().copied().and_then(Dataset::from_code).ok_or("a piece is of no dataset")?;
        let rows = number(rest, 4).map(u32::from_le_bytes).ok_or("a piece is cut")?;
        let len = number(rest, 8).map(u32::from_le_bytes).ok_or("a piece is cut")? as usize;
        if rest.len() - PIECE_LEN < len {
            return Err("a piece is cut".to_owned());
        }
        let bytes = value.slice_with_length(at + PIECE_LEN, len);
        let batch = carrier.read(&bytes, dataset, rows).map_err(|error| error.to_string())?;
        unframed.rows += rows as usize;
        unframed.batches.push((dataset, batch));
        at += PIECE_LEN + len;
    }
    if unframed.rows == header.rows {
        Ok(unframed)
    } else {
        Err(format!("it has {} rows and not {}", unframed.rows, header.rows))
    }
}

impl Unframed {
    /// The rows as they stand in the log, but for those at the places of `repeats` (ascending).
    pub(super) fn into_batches(self, record: u64, repeats: &[usize]) -> Vec<Arc<LogBatch>> {
        let mut batches = Vec::with_capacity(self.batches.len());
        let (mut first, mut repeats) = (0, repeats.iter().copied().peekable());
        for (dataset, rows) in self.batches {
            let end = first + rows.num_rows();
            let mut start = first;
            while start < end {
                let gone = repeats.next_if(|gone| *gone < end);
                let stop = gone.unwrap_or(end);
                if start < stop {
                    let offset = offset_of(record) + start as Offset;
                    let rows = rows.slice(start - first, stop - start);
                    let rows = if dataset == Dataset::Alerts { numbered(rows, offset) } else { rows };
                    batches.push(Arc::new(LogBatch { offset, dataset, rows }));
                }
                start = stop + usize::from(gone.is_some());
            }
            first = end;
        }
        batches
    }
}

/// Alerts with their offset as `seq`.
fn numbered(rows: RecordBatch, offset: Offset) -> RecordBatch {
    let Ok(at) = rows.schema_ref().index_of("seq") else { return rows };
    let seq = Int64Array::from_iter_values((offset..).take(rows.num_rows()).map(Offset::cast_signed));
    let mut columns = rows.columns().to_vec();
    if columns[at].data_type() != seq.data_type() {
        return rows;
    }
    columns[at] = Arc::new(seq) as ArrayRef;
    RecordBatch::try_new(rows.schema(), columns).unwrap_or(rows)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};

    use super::*;

    fn batch(dataset: Dataset, ids: &[String], keys: bool) -> EventBatch {
        let schema = Schema::new(vec![Field::new("event_id", DataType::Utf8, true)]);
        let column: ArrayRef = Arc::new(ids.iter().map(|id| Some(id.as_str())).collect::<StringArray>());
        let keys = if keys { (1..=ids.len() as u128).collect() } else { Vec::new() };
        EventBatch { dataset, rows: RecordBatch::try_new(Arc::new(schema), vec![column]).expect("a batch"), keys }
    }

    fn ids(count: usize, bytes: usize) -> Vec<String> {
        (0..count).map(|at| format!("{at:0>bytes$}")).collect()
    }

    fn carrier() -> Carrier {
        Carrier::new().expect("random bits")
    }

    fn records(batches: &[EventBatch], bytes_max: usize) -> Result<Vec<Frame>, ArrowError> {
        encode(&carrier(), batches, bytes_max, 7)
    }

    fn read(value: &[u8]) -> Result<Unframed, String> {
        decode(&carrier(), &Buffer::from(value))
    }

    /// (record, row, id) of all rows, with the records numbered from 5.
    fn rows(frames: &[Frame], repeats: &[usize]) -> Vec<(u64, u64, String)> {
        let of = |(record, frame): (u64, &Frame)| {
            let unframed = read(&frame.value).expect("a record");
            let batches = unframed.into_batches(record, repeats);
            batches.into_iter().flat_map(move |batch| {
                let ids = batch.rows.column(0).as_string::<i32>().clone();
                let (offset, count) = (batch.offset, batch.rows.num_rows());
                let row = |at: usize| (record, (offset + at as u64) & 0xffff, ids.value(at).to_owned());
                (0..count).map(row).collect::<Vec<_>>()
            })
        };
        (5..).zip(frames).flat_map(of).collect()
    }

    #[test]
    fn rows_and_keys_come_back_however_an_append_is_cut() {
        for (count, bytes, bytes_max) in
            [(1, 10, 1 << 20), (1000, 10, 1 << 20), (1000, 10, 4096), (70_000, 4, 64 << 20)]
        {
            let texts = ids(count, bytes);
            let batches = [batch(Dataset::SecurityEvents, &texts, true), batch(Dataset::Changes, &texts[..1], false)];
            let frames = records(&batches, bytes_max).expect("records");
            assert_eq!(frames.len() == 1, bytes_max == 1 << 20, "{count} rows of {bytes}: {}", frames.len());
            let expected: Vec<String> = texts.iter().chain(&texts[..1]).cloned().collect();
            let found: Vec<String> = rows(&frames, &[]).into_iter().map(|(_, _, id)| id).collect();
            assert!(found == expected, "{count} rows of {bytes}");
            let found: Vec<u128> = frames.iter().flat_map(|frame| keys(&frame.value).expect("keys")).collect();
            let mut expected: Vec<u128> = (1..=count as u128).collect();
            expected.resize(found.len(), 0);
            assert!(found == expected && found.len() >= count, "{count} rows of {bytes}");
        }
    }

    #[test]
    fn repeats_are_left_out_and_the_others_keep_their_offsets() {
        let batches = [batch(Dataset::SecurityEvents, &ids(3, 1), true), batch(Dataset::CostEvents, &ids(2, 1), true)];
        let frames = records(&batches, 1 << 20).expect("records");
        let left = |repeats: &[usize]| rows(&frames, repeats).into_iter().map(|(_, row, _)| row).collect::<Vec<_>>();
        assert_eq!(left(&[]), [0, 1, 2, 3, 4]);
        assert_eq!(left(&[0, 2, 3]), [1, 4]);
        assert_eq!(left(&[1, 4]), [0, 2, 3]);
        assert_eq!(left(&[0, 1, 2, 3, 4]), [0u64; 0]);
    }

    #[test]
    fn a_row_that_no_record_holds_is_refused_and_its_neighbours_alone_fit() {
        let large = vec!["x".repeat(RECORD_BYTES_MAX)];
        assert!(records(&[batch(Dataset::SecurityEvents, &large, true)], 1 << 20).is_err());
        let halves = vec!["x".repeat(RECORD_BYTES_MAX * 2 / 3), "y".repeat(RECORD_BYTES_MAX * 2 / 3)];
        assert_eq!(records(&[batch(Dataset::SecurityEvents, &halves, true)], 64 << 20).expect("records").len(), 2);
    }

    #[test]
    fn records_are_counted_between_offsets_with_gaps() {
        let at = |record: u64, row: u64| offset_of(record) + row;
        for (from, to, wanted) in [
            (0, 0, 0),
            (0, at(0, 1), 1),
            (at(0, 3), at(1, 0), 0),
            (at(0, 3), at(1, 2), 1),
            (at(4, 0), at(9, 7), 6),
            (at(9, 7), at(4, 0), 0),
        ] {
            assert_eq!(records_between(from, to), wanted, "{from} {to}");
        }
    }

    #[test]
    fn alerts_get_their_offset_as_seq() {
        let schema = Schema::new(vec![Field::new("seq", DataType::Int64, true)]);
        let seq: ArrayRef = Arc::new(Int64Array::from(vec![7, 7, 7]));
        let rows = RecordBatch::try_new(Arc::new(schema), vec![seq]).expect("a batch");
        let frames = records(&[EventBatch { dataset: Dataset::Alerts, rows, keys: Vec::new() }], 1 << 20);
        let batches = read(&frames.expect("records")[0].value).expect("a record").into_batches(3, &[1]);
        let seqs = batches.iter().flat_map(|batch| batch.rows.column(0).as_primitive::<Int64Type>().values().to_vec());
        assert_eq!(seqs.collect::<Vec<_>>(), [3 << 16, (3 << 16) + 2]);
    }

    #[test]
    fn what_is_damaged_is_an_error_and_never_a_panic() {
        let frames = records(&[batch(Dataset::SecurityEvents, &ids(3, 10), true)], 1 << 20).expect("records");
        let whole = &frames[0].value;
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            assert!(read(&damaged).is_err() && keys(&damaged).is_err(), "byte {at}");
            // And with a checksum that somebody made to match.
            let crc = crc32c::crc32c(&damaged[8..]);
            damaged[4..8].copy_from_slice(&crc.to_le_bytes());
            let _ = read(&damaged);
        }
    }
}
