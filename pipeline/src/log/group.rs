//! A group commit in the making: frames side by side, ready for one vectored write.

use std::collections::HashSet;
use std::io::{self, IoSlice};

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use rustc_hash::FxBuildHasher;
use tidegate_events::Dataset;

use std::sync::Arc;

use super::encode::{KnownSchema, Payload};
use super::format::{ALIGN, FRAME_HEADER_LEN, FrameHeader, FrameKind};
use super::{EventBatch, Offset};
use crate::fields::Seen;
use crate::fs::FsFile;

const ZEROS: [u8; ALIGN as usize] = [0; ALIGN as usize];

/// A batch that is encoded and waits for its offset.
#[derive(Debug)]
pub(crate) struct Ready {
    pub dataset: Dataset,
    pub rows: RecordBatch,
    pub keys: Vec<u128>,
    pub schema: Arc<KnownSchema>,
    pub payload: Payload,
    /// Smallest and largest `time`.
    pub times: Option<(i64, i64)>,
    /// Bytes of memory that the rows keep alive.
    pub memory: usize,
    /// What is known of the fields of its tenants.
    pub seen: Vec<Arc<Seen>>,
}

impl Ready {
    /// The batch again, for encoding a part of it.
    pub fn into_events(self) -> EventBatch {
        EventBatch { dataset: self.dataset, rows: self.rows, keys: self.keys }
    }
}

/// What all frames of a group have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    /// Where the group starts in its segment.
    pub at: u64,
    /// The segment's salt.
    pub salt: u64,
    /// The time of the append.
    pub now_us: i64,
}

#[derive(Debug)]
enum Piece {
    Header([u8; FRAME_HEADER_LEN]),
    Bytes(Buffer),
    Padding(usize),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Frames {
    commit: Commit,
    pieces: Vec<Piece>,
    /// Bytes so far.
    pub len: u64,
    /// The frames: position and header.
    pub notes: Vec<(u64, FrameHeader)>,
    /// Schemas that stand in this group for the first time in the segment.
    pub schemas: Vec<(Dataset, Arc<KnownSchema>)>,
}

impl Frames {
    pub fn new(commit: Commit) -> Self {
        Self { commit, pieces: Vec::new(), len: 0, notes: Vec::new(), schemas: Vec::new() }
    }

    /// Adds a batch at its offset, and its schema before it unless the segment has it already.
    pub fn batch(&mut self, ready: &Ready, base: Offset, known: &HashSet<u64, FxBuildHasher>) {
        let id = ready.schema.id;
        if !known.contains(&id) && !self.schemas.iter().any(|(_, schema)| schema.id == id) {
            self.schema(ready.dataset, &ready.schema, base);
            self.schemas.push((ready.dataset, ready.schema.clone()));
        }
        let header = FrameHeader {
            kind: FrameKind::Batch,
            has_keys: ready.payload.has_keys,
            rows: ready.rows.num_rows() as u32,
            payload_len: ready.payload.len,
            payload_crc: ready.payload.crc,
            ..self.header(ready.dataset, id, base)
        };
        self.frame(header, &ready.payload.pieces);
    }

    /// Adds the second copies of new schemas: at the other end of the group, so that one bad sector does not hit both.
    pub fn finish(&mut self, next: Offset) {
        for (dataset, schema) in self.schemas.clone() {
            self.schema(dataset, &schema, next);
        }
    }

    fn schema(&mut self, dataset: Dataset, schema: &KnownSchema, base: Offset) {
        let header = FrameHeader {
            payload_len: schema.message.len() as u32,
            payload_crc: schema.crc,
            ..self.header(dataset, schema.id, base)
        };
        self.frame(header, std::slice::from_ref(&schema.message));
    }

    fn header(&self, dataset: Dataset, schema_id: u64, base: Offset) -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Schema,
            dataset,
            has_keys: false,
            starts_group: self.notes.is_empty(),
            rows: 0,
            schema_id,
            base,
            time_us: self.commit.now_us,
            salt: self.commit.salt,
            payload_len: 0,
            payload_crc: 0,
        }
    }

    fn frame(&mut self, header: FrameHeader, payload: &[Buffer]) {
        self.notes.push((self.commit.at + self.len, header));
        self.pieces.push(Piece::Header(header.encode()));
        self.pieces.extend(payload.iter().cloned().map(Piece::Bytes));
        let padding = header.frame_len() - FRAME_HEADER_LEN as u64 - u64::from(header.payload_len);
        if padding > 0 {
            self.pieces.push(Piece::Padding(padding as usize));
        }
        self.len += header.frame_len();
    }

    /// Writes the group, and before it `start` (the header of a new segment, or nothing).
    pub fn write(&self, file: &dyn FsFile, start: &[u8]) -> io::Result<()> {
        let mut slices = Vec::with_capacity(self.pieces.len() + 1);
        slices.push(IoSlice::new(start));
        slices.extend(self.pieces.iter().map(|piece| {
            IoSlice::new(match piece {
                Piece::Header(bytes) => bytes,
                Piece::Bytes(bytes) => bytes,
                Piece::Padding(count) => &ZEROS[..*count],
            })
        }));
        file.write_all_at(&slices, self.commit.at - start.len() as u64)
    }
}
