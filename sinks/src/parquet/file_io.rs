//! Parquet over the file seam: a sequential writer that sums what it writes, and a reader of ranges.

use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use tidegate_pipeline::fs::{Fs, FsFile, Open};

use crate::error::SinksError;

/// Small writes (page headers, footers) are put together up to this size.
const WRITE_BYTES: usize = 1 << 20;
/// Reads without a known length go in steps of this size.
const READ_BYTES: usize = 64 << 10;

/// Writes a new file from front to back and keeps the CRC32C of all its bytes.
#[derive(Debug)]
pub(crate) struct FileWriter {
    path: PathBuf,
    file: Arc<dyn FsFile>,
    buffer: Vec<u8>,
    written: u64,
    crc: u32,
    trouble: Trouble,
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
    pub(crate) fn create(fs: &dyn Fs, path: &Path, trouble: Trouble) -> Result<Self, SinksError> {
        let file = fs.open(path, Open::Create).map_err(SinksError::io("create", path))?;
        Ok(Self { path: path.to_owned(), file, buffer: Vec::new(), written: 0, crc: 0, trouble })
    }

    /// Writes what is buffered and makes the contents durable (not yet the name: that is for `sync_dir`). Says the length
    /// and the CRC32C.
    pub(crate) fn finish(mut self) -> Result<(u64, u32), SinksError> {
        self.spill().map_err(SinksError::io("write", &self.path))?;
        self.file.sync_data().map_err(SinksError::io("sync", &self.path))?;
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
        let written = self.file.write_all_at(&[IoSlice::new(bytes)], self.written);
        written.map_err(|error| self.trouble.note(error))?;
        self.written += bytes.len() as u64;
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
    file: Arc<dyn FsFile>,
    len: u64,
}

impl FileSource {
    /// Opens a file for reading.
    pub(crate) fn open(fs: &dyn Fs, path: &Path) -> Result<Self, SinksError> {
        let file = fs.open(path, Open::Read).map_err(SinksError::io("open", path))?;
        let len = file.size().map_err(SinksError::io("read", path))?;
        Ok(Self { file, len })
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Exactly `length` bytes at `start`.
    pub(crate) fn exact(&self, start: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; length];
        let read = self.file.read_at(&mut bytes, start)?;
        if read < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// The CRC32C of all bytes.
    pub(crate) fn crc(&self) -> io::Result<u32> {
        let mut buffer = vec![0; WRITE_BYTES];
        let (mut at, mut crc) = (0, 0);
        loop {
            let read = self.file.read_at(&mut buffer, at)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(crc) };
            crc = crc32c::crc32c_append(crc, bytes);
            at += read as u64;
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
        Ok(SequentialReader { source: self.clone(), at: start, buffer: Vec::new(), filled: 0, taken: 0 })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.exact(start, length).map(Bytes::from).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// Reads on from a position, in steps.
#[derive(Debug)]
pub(crate) struct SequentialReader {
    source: FileSource,
    at: u64,
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl Read for SequentialReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.filled {
            if self.buffer.is_empty() {
                self.buffer = vec![0; READ_BYTES];
            }
            self.filled = self.source.file.read_at(&mut self.buffer, self.at)?;
            self.at += self.filled as u64;
            self.taken = 0;
        }
        let waiting = self.buffer.get(self.taken..self.filled).unwrap_or_default();
        let length = waiting.len().min(out.len());
        let (Some(to), Some(from)) = (out.get_mut(..length), waiting.get(..length)) else { return Ok(0) };
        to.copy_from_slice(from);
        self.taken += length;
        Ok(length)
    }
}
