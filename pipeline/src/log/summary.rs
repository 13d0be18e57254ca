//! The summary of a segment: what a start needs to know of it without reading it.
//!
//! A closed segment has one in `<first offset, 20 digits>.sum`, written beside the writer's path and replaced atomically. It is
//! a cache: missing or damaged, it is rebuilt by scanning the segment. The keys in it make duplicates known across a restart,
//! so it outlives its segment as long as the de-duplication window reaches back to it.
//!
//! ```text
//! 0  magic       8  "TIDESUM2"
//! 8  meta len    4
//! 12 meta crc    4  of the meta bytes
//! 16 keys crc    4  of the key bytes
//! 20 zeros       4
//! 24 keys        8  count
//! 32 meta           first, end, end at, salt, sealed at, frames (8 each), smallest and largest time (8 each),
//!                   then marks, change marks, schema marks, rows given up (each: count, then two 8-byte numbers an item), then the
//!                   field catalog
//! .. keys           16 bytes each, in the order of their rows
//! ```

use std::io;
use std::ops::Range;
use std::path::Path;

use super::Offset;
use super::format::{FrameHeader, FrameKind, OFFSET_MAX, le32, le64};
use crate::fields::FieldCatalog;
use crate::fs::{Fs, Open, replace_file};
use tidegate_events::Dataset;

const MAGIC: [u8; 8] = *b"TIDESUM2";
const HEAD_LEN: usize = 32;
/// A frame is marked when the last mark is at least this far back.
const MARK_EVERY_BYTES: u64 = 64 << 10;
/// What a damaged length cannot make us allocate.
const META_BYTES_MAX: u32 = 256 << 20;

/// Where the frames of a segment are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    /// Offset of the first row.
    pub first: Offset,
    /// The offset after the last row.
    pub end: Offset,
    /// The byte after the last frame.
    pub end_at: u64,
    /// Of the segment's header.
    pub salt: u64,
    /// Of the segment's header.
    pub sealed_at: Offset,
    /// Batch frames.
    pub frames: u64,
    /// Smallest `time` of a row, µs; `i64::MAX` without rows.
    pub time_min: i64,
    /// Largest `time` of a row, µs; `i64::MIN` without rows.
    pub time_max: i64,
    /// Some batch frames: (offset of the first row, position).
    pub marks: Vec<(Offset, u64)>,
    /// All batch frames of `changes`: (offset of the first row, position).
    pub changes: Vec<(Offset, u64)>,
    /// All schema frames: (schema id, position).
    pub schemas: Vec<(u64, u64)>,
    /// Rows that a start found lost, ascending: (first, end). Their keys are not known as duplicates, so they stay lost even
    /// should their frames come back: an event that was sent again in between would be there twice.
    pub given_up: Vec<(Offset, Offset)>,
}

impl Index {
    /// Of an empty segment.
    pub fn new(first: Offset, sealed_at: Offset, salt: u64) -> Self {
        Self {
            first,
            end: first,
            end_at: super::format::FRAMES_START,
            salt,
            sealed_at,
            frames: 0,
            time_min: i64::MAX,
            time_max: i64::MIN,
            marks: Vec::new(),
            changes: Vec::new(),
            schemas: Vec::new(),
            given_up: Vec::new(),
        }
    }

    /// Gives up rows for good.
    pub fn give_up(&mut self, rows: Range<Offset>) {
        match self.given_up.last_mut() {
            _ if rows.is_empty() => {}
            Some((_, end)) if rows.start <= *end => *end = rows.end.max(*end),
            _ => self.given_up.push((rows.start, rows.end)),
        }
    }

    /// Whether the rows of a batch frame were given up.
    pub fn is_given_up(&self, header: &FrameHeader) -> bool {
        let after = self.given_up.partition_point(|(_, end)| *end <= header.base);
        self.given_up.get(after).is_some_and(|(first, _)| *first < header.next())
    }

    /// Takes in a frame.
    pub fn note(&mut self, at: u64, header: &FrameHeader) {
        self.end_at = self.end_at.max(at + header.frame_len());
        if header.kind == FrameKind::Schema {
            self.schemas.push((header.schema_id, at));
            return;
        }
        self.frames += 1;
        self.end = self.end.max(header.next());
        if self.marks.last().is_none_or(|(_, last)| at >= last + MARK_EVERY_BYTES) {
            self.marks.push((header.base, at));
        }
        if header.dataset == Dataset::Changes {
            self.changes.push((header.base, at));
        }
    }

    /// Takes in the times of a frame's rows.
    pub fn note_times(&mut self, times: Option<(i64, i64)>) {
        if let Some((min, max)) = times {
            self.time_min = self.time_min.min(min);
            self.time_max = self.time_max.max(max);
        }
    }

    /// Where to start reading for `from`: a frame at or before it.
    pub fn position(&self, from: Offset) -> (Offset, u64) {
        let after = self.marks.partition_point(|(offset, _)| *offset <= from);
        after.checked_sub(1).and_then(|at| self.marks.get(at)).copied().unwrap_or((self.first, 0))
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Where the frames are.
    pub index: Index,
    /// The own fields of its rows.
    pub fields: FieldCatalog,
    /// The keys of its rows, in order, without the zeros.
    pub keys: Vec<u128>,
}

impl Summary {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let index = &self.index;
        let mut meta = Vec::new();
        let numbers = [index.first, index.end, index.end_at, index.salt, index.sealed_at, index.frames];
        let times = [index.time_min.cast_unsigned(), index.time_max.cast_unsigned()];
        for number in numbers.into_iter().chain(times) {
            meta.extend_from_slice(&number.to_le_bytes());
        }
        for list in [&index.marks, &index.changes, &index.schemas, &index.given_up] {
            meta.extend_from_slice(&(list.len() as u64).to_le_bytes());
            for (left, right) in list {
                meta.extend_from_slice(&left.to_le_bytes());
                meta.extend_from_slice(&right.to_le_bytes());
            }
        }
        meta.extend_from_slice(&self.fields.encode());
        let keys: Vec<u8> = self.keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        let mut bytes = Vec::with_capacity(HEAD_LEN + meta.len() + keys.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&meta).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&keys).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&meta);
        bytes.extend_from_slice(&keys);
        bytes
    }

    /// Writes the file, replacing a former one. Durable when it returns.
    pub fn write(&self, fs: &dyn Fs, path: &Path) -> io::Result<()> {
        replace_file(fs, path, &self.encode())
    }

    /// Reads the file, with its keys or without. `None` when it is damaged.
    pub fn read(fs: &dyn Fs, path: &Path, with_keys: bool) -> io::Result<Option<(Self, u64)>> {
        let file = fs.open(path, Open::Read)?;
        let size = file.size()?;
        let mut head = [0; HEAD_LEN];
        file.read_at(&mut head, 0)?;
        let (meta_len, keys_count) = (le32(&head, 8), le64(&head, 24));
        let expected =
            keys_count.checked_mul(16).and_then(|keys| keys.checked_add(HEAD_LEN as u64 + u64::from(meta_len)));
        if !head.starts_with(&MAGIC) || meta_len > META_BYTES_MAX || expected != Some(size) {
            return Ok(None);
        }
        let mut meta = vec![0; meta_len as usize];
        file.read_at(&mut meta, HEAD_LEN as u64)?;
        if crc32c::crc32c(&meta) != le32(&head, 12) {
            return Ok(None);
        }
        let mut keys = Vec::new();
        if with_keys {
            let mut bytes = vec![0; usize::try_from(keys_count * 16).unwrap_or(0)];
            file.read_at(&mut bytes, HEAD_LEN as u64 + u64::from(meta_len))?;
            if crc32c::crc32c(&bytes) != le32(&head, 16) {
                return Ok(None);
            }
            let (chunks, _) = bytes.as_chunks::<16>();
            keys = chunks.iter().map(|key| u128::from_le_bytes(*key)).collect();
        }
        Ok(decode_meta(&meta).map(|(index, fields)| (Self { index, fields, keys }, keys_count)))
    }
}

fn decode_meta(meta: &[u8]) -> Option<(Index, FieldCatalog)> {
    let mut rest = meta;
    let mut number = || {
        let (number, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        Some(u64::from_le_bytes(*number))
    };
    let mut index = Index::new(number()?, 0, 0);
    index.end = number()?;
    index.end_at = number()?;
    index.salt = number()?;
    index.sealed_at = number()?;
    index.frames = number()?;
    index.time_min = number()?.cast_signed();
    index.time_max = number()?.cast_signed();
    for list in [&mut index.marks, &mut index.changes, &mut index.schemas, &mut index.given_up] {
        for _ in 0..number()? {
            list.push((number()?, number()?));
        }
    }
    let fields = FieldCatalog::decode(rest).ok()?;
    (index.end <= OFFSET_MAX).then_some((index, fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(base: Offset, rows: u32, dataset: Dataset) -> FrameHeader {
        FrameHeader {
            kind: if rows == 0 { FrameKind::Schema } else { FrameKind::Batch },
            dataset,
            has_keys: false,
            starts_group: false,
            rows,
            schema_id: 77,
            base,
            time_us: 0,
            salt: 0,
            payload_len: 64,
            payload_crc: 0,
        }
    }

    #[test]
    fn a_frame_is_given_up_when_one_of_its_rows_is() {
        let mut index = Index::new(0, 0, 0);
        for rows in [2..2, 3..5, 5..7, 4..6, 9..9, 8..10, 9..12, 20..21] {
            index.give_up(rows);
        }
        assert_eq!(index.given_up, [(3, 7), (8, 12), (20, 21)]);
        for (base, rows, given_up) in [
            (0, 3, false),
            (2, 2, true),
            (3, 1, true),
            (6, 2, true),
            (7, 1, false),
            (8, 1, true),
            (11, 2, true),
            (12, 8, false),
            (12, 9, true),
            (21, 5, false),
            (0, 100, true),
        ] {
            assert_eq!(index.is_given_up(&frame(base, rows, Dataset::Alerts)), given_up, "{rows} rows from {base}");
        }
    }

    #[test]
    fn an_index_knows_where_its_frames_are() {
        let mut index = Index::new(5, 5, 0);
        let apart = MARK_EVERY_BYTES;
        assert_eq!(index.position(7), (5, 0), "of nothing");
        for (at, base, rows, dataset) in [
            (128, 5, 0, Dataset::Changes),
            (256, 5, 2, Dataset::SecurityEvents),
            (384, 7, 1, Dataset::Changes),
            (256 + apart - 16, 8, 1, Dataset::SecurityEvents),
            (256 + apart, 9, 3, Dataset::SecurityEvents),
            (256 + 2 * apart, 12, 1, Dataset::Changes),
        ] {
            index.note(at, &frame(base, rows, dataset));
        }
        assert_eq!(index.marks, [(5, 256), (9, 256 + apart), (12, 256 + 2 * apart)]);
        assert_eq!(index.changes, [(7, 384), (12, 256 + 2 * apart)], "rows of changes, not their schema");
        assert_eq!(index.schemas, [(77, 128)]);
        assert_eq!((index.frames, index.end, index.end_at), (5, 13, 256 + 2 * apart + 128));
        for (from, position) in [
            (4, (5, 0)),
            (5, (5, 256)),
            (8, (5, 256)),
            (9, (9, 256 + apart)),
            (11, (9, 256 + apart)),
            (12, (12, 256 + 2 * apart)),
            (99, (12, 256 + 2 * apart)),
        ] {
            assert_eq!(index.position(from), position, "from {from}");
        }
    }
}
