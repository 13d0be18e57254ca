//! Parquet in its place: a sequential writer that sums what it writes, and a reader of ranges.

use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use tidegate_pipeline::fs::{FsFile, Open};

use super::bucket::Bucket;
use super::place::Place;
use super::upload::Upload;
use crate::error::SinksError;

/// Small writes (page headers, footers) are put together up to this size.
const WRITE_BYTES: usize = 1 << 20;
/// A file on disk is synced whenever it has grown by so much: a log that shares the disk waits for what the disk was given before,
/// and answers to clients wait for the log. With tens of megabytes at once that was 85 ms of p99 latency at half load, otherwise 8.
const SYNC_BYTES: u64 = 2 << 20;
/// Reads without a known length go in steps of this size.
const READ_BYTES: usize = 64 << 10;

/// Writes a new file from front to back and keeps the CRC32C of all its bytes.
#[derive(Debug)]
pub(crate) struct FileWriter {
    path: PathBuf,
    target: Target,
    buffer: Vec<u8>,
    written: u64,
    synced: u64,
    crc: u32,
    trouble: Trouble,
}

#[derive(Debug)]
enum Target {
    Disk(Arc<dyn FsFile>),
    Bucket(Upload),
}

/// The first file operation of a writer that failed. Parquet turns some of them into errors of its own, which do not tell any
/// more whether the machine or the rows are at fault.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<OnceLock<(io::ErrorKind, String)>>);

impl Trouble {
    fn note(&self, error: io::Error) -> io::Error {
        self.0.get_or_init(|| (error.kind(), error.to_string()));
        error
    }

    /// The error of the file operation, when there was one, in the place of what came of it.
    pub(crate) fn blame(&self, path: &Path, error: SinksError) -> SinksError {
        match self.0.get() {
            Some((kind, text)) => SinksError::io("write", path)(io::Error::new(*kind, text.clone())),
            None => error,
        }
    }
}

impl FileWriter {
    /// Creates the file; it must not exist.
    pub(crate) fn create(place: &Place, path: &Path, trouble: Trouble) -> Result<Self, SinksError> {
        let target = match place {
            Place::Disk(fs) => Target::Disk(fs.open(path, Open::Create).map_err(SinksError::io("create", path))?),
            Place::Bucket(bucket) => Target::Bucket(Upload::new(bucket.clone(), path)),
        };
        Ok(Self { path: path.to_owned(), target, buffer: Vec::new(), written: 0, synced: 0, crc: 0, trouble })
    }

    /// Writes what is buffered and makes the contents durable (not yet the name: that is for [`Place::sync_names`]). Says the
    /// length and the CRC32C.
    pub(crate) fn finish(mut self) -> Result<(u64, u32), SinksError> {
        self.spill().map_err(SinksError::io("write", &self.path))?;
        match self.target {
            Target::Disk(file) => file.sync_data().map_err(SinksError::io("sync", &self.path))?,
            Target::Bucket(upload) => upload.finish().map_err(SinksError::io("write", &self.path))?,
        }
        Ok((self.written, self.crc))
    }

    fn spill(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let buffer = std::mem::take(&mut self.buffer);
            self.put(&buffer)?;
            self.buffer = buffer;
            self.buffer.clear();
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = match &mut self.target {
            Target::Disk(file) => file.write_all_at(&[IoSlice::new(bytes)], self.written),
            Target::Bucket(upload) => upload.write(bytes),
        };
        written.map_err(|error| self.trouble.note(error))?;
        self.written += bytes.len() as u64;
        if let Target::Disk(file) = &self.target
            && self.written - self.synced >= SYNC_BYTES
        {
            file.sync_data().map_err(|error| self.trouble.note(error))?;
            self.synced = self.written;
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > WRITE_BYTES {
            self.spill()?;
        }
        if bytes.len() >= WRITE_BYTES {
            self.put(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An open file for Parquet's readers.
#[derive(Debug, Clone)]
pub(crate) struct FileSource {
    content: Content,
    len: u64,
}

#[derive(Debug, Clone)]
enum Content {
    Disk(Arc<dyn FsFile>),
    /// A request for each piece.
    Ranges(Arc<Bucket>, Arc<Path>),
    Whole(Bytes),
}

impl FileSource {
    /// Opens a file for reading a few pieces of it. `bytes` is its size, as far as it is known.
    pub(crate) fn open(place: &Place, path: &Path, bytes: Option<u64>) -> Result<Self, SinksError> {
        match place {
            Place::Disk(fs) => {
                let file = fs.open(path, Open::Read).map_err(SinksError::io("open", path))?;
                let len = file.size().map_err(SinksError::io("read", path))?;
                Ok(Self { content: Content::Disk(file), len })
            }
            Place::Bucket(bucket) => {
                let known = bytes.map_or_else(|| bucket.size(path), Ok);
                let len = known.map_err(SinksError::io("open", path))?;
                Ok(Self { content: Content::Ranges(bucket.clone(), path.into()), len })
            }
        }
    }

    /// The same for reading most of it: what is far away is fetched now.
    pub(crate) fn fetched(self) -> io::Result<Self> {
        match &self.content {
            Content::Ranges(bucket, path) => {
                let whole = bucket.read_whole(path, self.len)?;
                Ok(Self { content: Content::Whole(whole), len: self.len })
            }
            _ => Ok(self),
        }
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Exactly `length` bytes at `start`.
    pub(crate) fn exact(&self, start: u64, length: usize) -> io::Result<Bytes> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = match &self.content {
            Content::Disk(file) => {
                let mut bytes = vec![0; length];
                let read = file.read_at(&mut bytes, start)?;
                bytes.truncate(read);
                bytes.into()
            }
            Content::Ranges(..) if length == 0 => Bytes::new(),
            Content::Ranges(bucket, path) => bucket.read_range(path, start, end)?,
            Content::Whole(whole) => whole.slice(start as usize..end as usize),
        };
        if bytes.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    /// Up to `length` bytes at `at`; fewer only at the end.
    fn some(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let left = self.len.saturating_sub(at);
        self.exact(at, usize::try_from(left).unwrap_or(usize::MAX).min(length))
    }

    /// The CRC32C of all bytes.
    pub(crate) fn crc(&self) -> io::Result<u32> {
        let (mut at, mut crc) = (0, 0);
        loop {
            let bytes = self.some(at, WRITE_BYTES)?;
            if bytes.is_empty() {
                return Ok(crc);
            }
            crc = crc32c::crc32c_append(crc, &bytes);
            at += bytes.len() as u64;
        }
    }
}

impl Length for FileSource {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for FileSource {
    type T = SequentialReader;

    fn get_read(&self, start: u64) -> Result<SequentialReader, ParquetError> {
        Ok(SequentialReader { source: self.clone(), at: start, buffer: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.exact(start, length).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// Reads on from a position, in steps.
#[derive(Debug)]
pub(crate) struct SequentialReader {
    source: FileSource,
    at: u64,
    buffer: Bytes,
}

impl Read for SequentialReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            self.buffer = self.source.some(self.at, READ_BYTES)?;
            self.at += self.buffer.len() as u64;
        }
        let length = self.buffer.len().min(out.len());
        let (Some(to), from) = (out.get_mut(..length), self.buffer.split_to(length)) else { return Ok(0) };
        to.copy_from_slice(&from);
        Ok(length)
    }
}
