//! Walks the frames of a segment file and finds its way past damage.

use std::io;
use std::ops::Range;

use arrow::buffer::{Buffer, MutableBuffer};

use super::Offset;
use super::format::{ALIGN, FRAME_HEADER_LEN, FRAME_MAGIC, FRAMES_START, FrameHeader, FrameKind};
use super::sectors::Sectors;
use crate::fs::FsFile;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// A place where a file does not hold what its format says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where it starts in the file.
    pub at: u64,
    /// How many bytes could not be used.
    pub bytes: u64,
    /// The rows lost there, as far as the frames around it tell. At the end of the last segment they may be rows that were
    /// never acknowledged.
    pub rows: Range<Offset>,
    /// What is wrong.
    pub reason: String,
}

impl Damage {
    /// How many rows are lost there.
    pub fn rows_lost(&self) -> u64 {
        self.rows.end.saturating_sub(self.rows.start)
    }
}

/// What a scan meets.
#[derive(Debug)]
pub(crate) enum Found {
    /// A whole frame.
    Frame(Frame),
    /// Something that is not.
    Damage(Damage),
    /// The end, after which there may be bytes that are no frames: their count.
    End { residue: u64 },
}

/// A whole frame.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Where it starts.
    pub at: u64,
    /// Its header.
    pub header: FrameHeader,
    /// Its payload.
    pub payload: Buffer,
}

/// A walk over the frames of one file.
pub(crate) struct Scanner<'a> {
    file: &'a dyn FsFile,
    sectors: &'a Sectors,
    size: u64,
    at: u64,
    salt: Option<u64>,
    expected: Offset,
    void_at: Offset,
    chunk: Buffer,
    chunk_at: u64,
}

impl<'a> Scanner<'a> {
    /// Starts at `at`, where a row of offset `expected` is to come, and ends before row `void_at`. Without a salt, that of the
    /// first frame whose header checks is taken.
    pub fn new(
        (file, sectors): (&'a dyn FsFile, &'a Sectors),
        at: u64,
        salt: Option<u64>,
        rows: Range<Offset>,
    ) -> io::Result<Self> {
        let at = at.max(FRAMES_START).next_multiple_of(ALIGN);
        let size = file.size()?;
        let (expected, void_at) = (rows.start, rows.end);
        Ok(Self { file, sectors, size, at, salt, expected, void_at, chunk: Buffer::default(), chunk_at: 0 })
    }

    /// Ends the file for this walk at `bytes`: what lies beyond may be half written.
    pub fn ending_at(mut self, bytes: u64) -> Self {
        self.size = self.size.min(bytes);
        self
    }

    /// The bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The offset after the last row that was met, whole or not.
    pub fn expected(&self) -> Offset {
        self.expected
    }

    /// The salt, once it is known.
    pub fn salt(&self) -> Option<u64> {
        self.salt
    }

    /// The next thing. After [`Found::End`] it is the end again.
    pub fn next(&mut self) -> io::Result<Found> {
        let at = self.at;
        let Some(header) = self.header(at)? else {
            return self.search(at);
        };
        if header.base >= self.void_at && (header.kind == FrameKind::Batch || header.base > self.void_at) {
            self.at = self.size.max(at);
            return Ok(Found::End { residue: self.size.saturating_sub(at) });
        }
        if header.base > self.expected {
            // Whole frames around a gap within one segment: nothing writes that, so rows in between are gone.
            let rows = self.expected..header.base;
            self.expected = header.base;
            return Ok(Found::Damage(Damage {
                at,
                bytes: 0,
                rows,
                reason: "rows are missing before this frame".into(),
            }));
        }
        if at + FRAME_HEADER_LEN as u64 + u64::from(header.payload_len) > self.size {
            // The file ends within the frame. If later segments know of its rows, they say so.
            self.at = self.size;
            return Ok(Found::End { residue: self.size - at });
        }
        let payload = self.bytes(at + FRAME_HEADER_LEN as u64, header.payload_len as usize)?;
        self.at = at + header.frame_len();
        self.expected = header.next();
        if header.matches(&payload) {
            return Ok(Found::Frame(Frame { at, header, payload }));
        }
        let bytes = header.frame_len().min(self.size - at);
        self.at = self.at.min(self.size);
        let reason = "the payload does not match its checksum".to_owned();
        Ok(Found::Damage(Damage { at, bytes, rows: header.base..header.next(), reason }))
    }

    /// The header at `at` if it is whole and plausible here.
    fn header(&mut self, at: u64) -> io::Result<Option<FrameHeader>> {
        let bytes = self.bytes(at, FRAME_HEADER_LEN)?;
        let plausible = |header: &FrameHeader| {
            header.base >= self.expected && self.salt.is_none_or(|salt| salt == header.salt) && at < self.size
        };
        let header = FrameHeader::decode(&bytes).filter(plausible);
        if let Some(header) = &header {
            self.salt = Some(header.salt);
        }
        Ok(header)
    }

    /// Looks for the next frame after something that is none.
    fn search(&mut self, from: u64) -> io::Result<Found> {
        let mut at = from;
        let mut all_zero = true;
        while at < self.size {
            let window = self.bytes(at, CHUNK)?;
            if window.is_empty() {
                break;
            }
            for step in (0..window.len()).step_by(ALIGN as usize) {
                let here = &window[step..(step + ALIGN as usize).min(window.len())];
                all_zero &= here.iter().all(|byte| *byte == 0);
                let candidate = at + step as u64;
                if candidate > from && here.starts_with(&FRAME_MAGIC) && self.header(candidate)?.is_some() {
                    return self.resume(from, candidate);
                }
            }
            at += window.len() as u64;
        }
        self.at = self.size.max(from);
        let residue = if all_zero { 0 } else { self.size.saturating_sub(from) };
        Ok(Found::End { residue })
    }

    fn resume(&mut self, from: u64, at: u64) -> io::Result<Found> {
        let base = self.header(at)?.map_or(self.expected, |header| header.base);
        let rows = self.expected..base.min(self.void_at).max(self.expected);
        self.at = at;
        self.expected = base;
        let reason = "no whole frame header".to_owned();
        Ok(Found::Damage(Damage { at: from, bytes: at - from, rows, reason }))
    }

    /// Up to `len` bytes at `at`; fewer only at the end of the file.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<Buffer> {
        let len = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX).min(len);
        let start = at.checked_sub(self.chunk_at).and_then(|start| usize::try_from(start).ok());
        if let Some(start) = start
            && start.checked_add(len).is_some_and(|end| end <= self.chunk.len())
        {
            return Ok(self.chunk.slice_with_length(start, len));
        }
        // One frame that is larger than a chunk gets memory of its own; small ones share a chunk.
        let ahead = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX).min(CHUNK);
        let mut read = MutableBuffer::from_len_zeroed(len.max(ahead));
        let count = self.sectors.read(self.file, read.as_slice_mut(), at)?;
        read.truncate(count);
        self.chunk = read.into();
        self.chunk_at = at;
        Ok(self.chunk.slice_with_length(0, len.min(count)))
    }
}

/// The whole frame at `at`, or `None`.
pub(crate) fn frame_at((file, sectors): (&dyn FsFile, &Sectors), at: u64, salt: u64) -> io::Result<Option<Frame>> {
    let mut head = [0; FRAME_HEADER_LEN];
    sectors.read(file, &mut head, at)?;
    let Some(header) = FrameHeader::decode(&head).filter(|header| header.salt == salt) else {
        return Ok(None);
    };
    let start = at + FRAME_HEADER_LEN as u64;
    // The header checks, but memory is only spent on bytes that are there.
    if file.size()? < start + u64::from(header.payload_len) {
        return Ok(None);
    }
    let mut payload = MutableBuffer::from_len_zeroed(header.payload_len as usize);
    let count = sectors.read(file, payload.as_slice_mut(), start)?;
    payload.truncate(count);
    let payload = payload.into();
    Ok(header.matches(&payload).then_some(Frame { at, header, payload }))
}
