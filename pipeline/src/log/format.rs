//! The format of segment files, version 1. `docs/log-format.md` mirrors this page.
//!
//! # Constraints, before the format
//!
//! 1. A reader must find every frame that is whole, whatever happened to the bytes around it: a torn tail, pages that reached
//!    the disk in another order, a flipped bit, a zero-byte or half-headed file, a missing segment.
//! 2. One flipped bit costs at most one batch. So a schema, on which many batches hang, stands twice in its segment, and so
//!    does the segment's own header.
//! 3. What was answered as failed must not come back beside its own retry, nor share offsets with it.
//! 4. Event text is chosen by strangers. It must not be able to pass for a frame when a reader searches the bytes after damage.
//! 5. A frame of one event stays small; a frame of thousands is written without copying its columns, and read without copying.
//! 6. A segment is never written again once it is closed, and never overwritten at all.
//!
//! # Files
//!
//! `<first offset, 20 digits>.log` holds frames; `<first offset, 20 digits>.sum` is the summary of a closed segment
//! ([`super::summary`]), a cache that can always be rebuilt; `lock` is held by the process that writes. All integers are
//! little-endian. A CRC is CRC-32C (Castagnoli).
//!
//! # Segment
//!
//! ```text
//! segment  := header (64 bytes), header again, frame*, zeros*
//! header   := 0  magic        8  "TIDELOG1"
//!             8  version      4  1
//!             12 crc          4  of bytes 16..64
//!             16 first offset 8  that of the first row here; the file's name says it too
//!             24 sealed at    8  rows of earlier segments at or above this offset are void (3)
//!             32 salt         8  random; stands in every frame header here (4)
//!             40 made         8  microseconds since the epoch
//!             48 zeros        16
//! ```
//!
//! # Frame
//!
//! Frames start at multiples of 16 bytes, so that a 128-bit decimal column of a frame that was read into aligned memory is
//! aligned too. The header is 64 bytes, the payload follows, then zeros up to the next multiple of 16.
//!
//! ```text
//! 0  magic        4  "TGF1"
//! 4  header crc   4  of bytes 8..64
//! 8  payload len  4  without the padding
//! 12 payload crc  4  of the payload
//! 16 kind         1  1 schema, 2 batch
//! 17 dataset      1  its code (1 security events, 2 cost events, 3 alerts, 4 changes, 5 dead letters)
//! 18 flags        2  bit 0: keys precede the columns; bit 1: first frame of a group commit
//! 20 rows         4  0 in a schema frame
//! 24 schema id    8  XXH3 of the schema message, with a secret seed of the writing process
//! 32 base offset  8  offset of the first row; in a schema frame that of the next row
//! 40 time         8  of the append, microseconds since the epoch
//! 48 salt         8  that of the segment
//! 56 zeros        8
//! ```
//!
//! The payload of a **schema** frame is an Arrow IPC schema message in its encapsulated form (continuation, length, flatbuffer).
//! It precedes the first batch of its schema in the segment and stands again at the end of that group commit.
//! The payload of a **batch** frame is one 16-byte key a row if bit 0 of the flags is set (0: the row has none), then an
//! Arrow IPC record batch message: no dictionaries, no compression, buffers padded to 16 bytes.
//!
//! # The end
//!
//! Zeros after the last frame are the end, so that a segment may be preallocated. (It is not: on ext4 it made no difference to
//! `fdatasync` that could be measured, 0.07 ms either way.)
//!
//! # Reading
//!
//! A header that does not check makes the reader search on, 16 bytes at a time, for the next header with a right CRC, the
//! segment's salt and an offset not below the one expected. A header that checks over a payload that does not costs that frame
//! alone. Either is *damage*: it is counted and reported with its position and, where a later frame tells, the rows lost. A page
//! that a disk cannot read time and again, while it reads others of the file, is damage too. A header with an offset above 2^62
//! ([`OFFSET_MAX`]) does not check: nobody has written so many rows. A log whose offsets are used up takes no appends.
//!
//! When both frames of a schema are lost, another segment of the same writer may have it: the id is the same there, and nowhere
//! does it stand for anything else. What a start finds lost is *given up* in the summary of its segment, for good: its keys are not
//! known as duplicates, so should its bytes come back, its rows would stand beside their own retry.
//!
//! # After a crash or a failure
//!
//! A log never appends to a file that it did not create itself: opening ends the last segment where its last whole frame
//! ends, and the next append makes a new segment. A torn tail therefore stays where it is, as bytes that no reader takes
//! for frames; nothing is truncated or overwritten. Were there rows in it (after all a bit may have flipped in an acknowledged
//! frame), consumers may have seen them: so as many offsets are burnt as the unread bytes could have held rows. The rows of the last group commit may be in the page cache only
//! (a killed process, or an fsync that failed before it was killed), so opening writes that group again, into the new
//! segment, before any of its rows can be seen.
//!
//! When a write or an `fdatasync` fails, the state of its group on the disk is unknown. The group is answered as failed, its
//! offsets are burnt (the next rows come after them), and a new segment is started whose *sealed at* is the offset after the
//! last durable row. So rows of the failed group that did reach the disk are void to every later reader; offsets are never used
//! twice, and the gap from *sealed at* to the new segment's first offset is not a loss. Only if no new segment can be made before
//! the process ends may rows that were answered as failed become visible at the next start, once, together with their keys.
//!
//! # After the end was lost
//!
//! A log whose newest segment vanished, or holds nothing any more, would use offsets again that others (the Parquet store) have
//! rows of. Whoever opens it says up to where they have them; the log then burns the offsets up to there. The next segment's
//! *sealed at* is again the end of the rows there are, so the gap is told once, by the opening that made it, and no damage later.

use arrow::buffer::Buffer;
use tidegate_events::Dataset;

use super::Offset;

/// What a segment starts with.
pub const SEGMENT_MAGIC: [u8; 8] = *b"TIDELOG1";
/// The version of this format.
pub const VERSION: u32 = 1;
/// What a frame starts with.
pub const FRAME_MAGIC: [u8; 4] = *b"TGF1";
/// Bytes of one copy of a segment header.
pub const SEGMENT_HEADER_LEN: usize = 64;
/// Where the first frame of a segment starts.
pub const FRAMES_START: u64 = 2 * SEGMENT_HEADER_LEN as u64;
/// Bytes of a frame header.
pub const FRAME_HEADER_LEN: usize = 64;
/// Frames start at multiples of this.
pub const ALIGN: u64 = 16;
/// The largest payload that a reader believes: a bound against damage, far above what one append can hold.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 30;
/// The largest offset that a reader believes: nobody has written so many rows, and what comes after it can still be counted.
pub const OFFSET_MAX: Offset = 1 << 62;

const FLAG_KEYS: u16 = 1;
const FLAG_GROUP: u16 = 2;

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Offset of the first row.
    pub first: Offset,
    /// Rows of earlier segments at or above this offset are void.
    pub sealed_at: Offset,
    /// Stands in every frame header of the segment.
    pub salt: u64,
    /// When it was made, microseconds since the epoch.
    pub made_us: i64,
}

impl SegmentHeader {
    /// Both copies, as the file starts.
    pub fn encode(&self) -> [u8; FRAMES_START as usize] {
        let mut one = [0; SEGMENT_HEADER_LEN];
        one[..8].copy_from_slice(&SEGMENT_MAGIC);
        one[8..12].copy_from_slice(&VERSION.to_le_bytes());
        one[16..24].copy_from_slice(&self.first.to_le_bytes());
        one[24..32].copy_from_slice(&self.sealed_at.to_le_bytes());
        one[32..40].copy_from_slice(&self.salt.to_le_bytes());
        one[40..48].copy_from_slice(&self.made_us.to_le_bytes());
        let crc = crc32c::crc32c(&one[16..]);
        one[12..16].copy_from_slice(&crc.to_le_bytes());
        let mut both = [0; FRAMES_START as usize];
        both[..SEGMENT_HEADER_LEN].copy_from_slice(&one);
        both[SEGMENT_HEADER_LEN..].copy_from_slice(&one);
        both
    }

    /// The header from the start of a file: from the first copy that is whole. `None` when neither is.
    pub fn decode(start: &[u8]) -> Option<Self> {
        start.chunks_exact(SEGMENT_HEADER_LEN).take(2).find_map(Self::decode_one)
    }

    fn decode_one(bytes: &[u8]) -> Option<Self> {
        let whole = bytes.starts_with(&SEGMENT_MAGIC)
            && le32(bytes, 8) == VERSION
            && le32(bytes, 12) == crc32c::crc32c(&bytes[16..SEGMENT_HEADER_LEN])
            && le64(bytes, 16) <= OFFSET_MAX
            && le64(bytes, 24) <= OFFSET_MAX;
        whole.then(|| Self {
            first: le64(bytes, 16),
            sealed_at: le64(bytes, 24),
            salt: le64(bytes, 32),
            made_us: le64(bytes, 40).cast_signed(),
        })
    }
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// An Arrow schema message.
    Schema,
    /// Rows.
    Batch,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Schema or batch.
    pub kind: FrameKind,
    /// The table of the rows.
    pub dataset: Dataset,
    /// Whether one key a row precedes the columns.
    pub has_keys: bool,
    /// Whether it is the first frame of a group commit.
    pub starts_group: bool,
    /// Rows in it; 0 in a schema frame.
    pub rows: u32,
    /// XXH3 of the schema message, seeded.
    pub schema_id: u64,
    /// Offset of the first row; in a schema frame that of the next row.
    pub base: Offset,
    /// When it was appended, microseconds since the epoch.
    pub time_us: i64,
    /// That of the segment.
    pub salt: u64,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// The 64 bytes of the header.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let flags = (u16::from(self.has_keys) * FLAG_KEYS) | (u16::from(self.starts_group) * FLAG_GROUP);
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[16] = match self.kind {
            FrameKind::Schema => 1,
            FrameKind::Batch => 2,
        };
        bytes[17] = self.dataset as u8;
        bytes[18..20].copy_from_slice(&flags.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.rows.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.schema_id.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.base.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.time_us.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in `bytes` (at least 64), if it is whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER_LEN)?;
        if !bytes.starts_with(&FRAME_MAGIC) || le32(bytes, 4) != crc32c::crc32c(&bytes[8..]) {
            return None;
        }
        let kind = match bytes[16] {
            1 => FrameKind::Schema,
            2 => FrameKind::Batch,
            _ => return None,
        };
        let flags = u16::from_le_bytes([bytes[18], bytes[19]]);
        let header = Self {
            kind,
            dataset: Dataset::from_code(bytes[17])?,
            has_keys: flags & FLAG_KEYS != 0,
            starts_group: flags & FLAG_GROUP != 0,
            rows: le32(bytes, 20),
            schema_id: le64(bytes, 24),
            base: le64(bytes, 32),
            time_us: le64(bytes, 40).cast_signed(),
            salt: le64(bytes, 48),
            payload_len: le32(bytes, 8),
            payload_crc: le32(bytes, 12),
        };
        let plausible = header.payload_len <= PAYLOAD_BYTES_MAX
            && (kind == FrameKind::Batch) == (header.rows > 0)
            && header.base.checked_add(u64::from(header.rows)).is_some_and(|end| end <= OFFSET_MAX);
        plausible.then_some(header)
    }

    /// Bytes of the whole frame with its padding.
    pub fn frame_len(&self) -> u64 {
        align(FRAME_HEADER_LEN as u64 + u64::from(self.payload_len))
    }

    /// The offset after the last row.
    pub fn next(&self) -> Offset {
        self.base + u64::from(self.rows)
    }

    /// Whether `payload` is what the header was written for.
    pub fn matches(&self, payload: &Buffer) -> bool {
        payload.len() == self.payload_len as usize && crc32c::crc32c(payload) == self.payload_crc
    }
}

/// The next multiple of [`ALIGN`].
pub fn align(len: u64) -> u64 {
    len.next_multiple_of(ALIGN)
}

/// The little-endian u32 at `at`; 0 past the end.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// The little-endian u64 at `at`; 0 past the end.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Batch,
            dataset: Dataset::Changes,
            has_keys: true,
            starts_group: true,
            rows: 3,
            schema_id: 0x0102_0304_0506_0708,
            base: 1 << 40,
            time_us: -5,
            salt: u64::MAX,
            payload_len: 17,
            payload_crc: 99,
        }
    }

    #[test]
    fn headers_round_trip() {
        for (has_keys, starts_group) in [(false, false), (false, true), (true, false), (true, true)] {
            let frame = FrameHeader { has_keys, starts_group, ..frame() };
            assert_eq!(FrameHeader::decode(&frame.encode()), Some(frame));
        }
        assert_eq!(frame().frame_len(), 96);
        let segment = SegmentHeader { first: 7, sealed_at: 5, salt: 9, made_us: 11 };
        assert_eq!(SegmentHeader::decode(&segment.encode()), Some(segment));
        assert_eq!(SegmentHeader::decode(&segment.encode()[..64]), Some(segment), "one copy is enough");
        for beyond in [OFFSET_MAX + 1, u64::MAX] {
            let forged = SegmentHeader { first: beyond, ..segment };
            assert_eq!(SegmentHeader::decode(&forged.encode()), None, "starts at {beyond}");
            let forged = SegmentHeader { sealed_at: beyond, ..segment };
            assert_eq!(SegmentHeader::decode(&forged.encode()), None, "sealed at {beyond}");
        }
    }

    #[test]
    fn a_frame_header_that_checks_and_cannot_be_is_none() {
        let decoded = |header: FrameHeader| FrameHeader::decode(&header.encode());
        for (what, header) in [
            ("a batch without rows", FrameHeader { rows: 0, ..frame() }),
            ("a schema with rows", FrameHeader { kind: FrameKind::Schema, ..frame() }),
            ("a payload beyond its bound", FrameHeader { payload_len: PAYLOAD_BYTES_MAX + 1, ..frame() }),
            ("offsets beyond their end", FrameHeader { base: OFFSET_MAX - 2, ..frame() }),
            ("offsets beyond all numbers", FrameHeader { base: u64::MAX - 2, ..frame() }),
        ] {
            assert_eq!(decoded(header), None, "{what}");
        }
        for header in [
            FrameHeader { payload_len: PAYLOAD_BYTES_MAX, ..frame() },
            FrameHeader { base: OFFSET_MAX - 3, ..frame() },
            FrameHeader { kind: FrameKind::Schema, rows: 0, ..frame() },
        ] {
            assert_eq!(decoded(header), Some(header));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_frame_header_is_seen_and_any_of_a_segment_header_is_harmless() {
        let whole = frame().encode();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&flipped), None, "bit {bit}");
        }
        let segment = SegmentHeader { first: 7, sealed_at: 5, salt: 9, made_us: 11 };
        for bit in 0..segment.encode().len() * 8 {
            let mut flipped = segment.encode();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped), Some(segment), "bit {bit}");
        }
        // The magic, the version, the CRC, and what it is of.
        for at in [0, 8, 12, 20] {
            let mut both = segment.encode();
            both[at] ^= 1;
            both[64 + at] ^= 1;
            assert_eq!(SegmentHeader::decode(&both), None, "byte {at} of both");
        }
    }
}
