//! Opens what is to be sent: a file or standard input, plain, gzip or zstd by its first bytes, with the bytes read counted.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};

/// How the bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

/// What makes a file the same file as at the last run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// Its canonical path.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its modification time, nanoseconds since the epoch.
    pub modified_ns: u128,
}

/// Something to send.
pub struct Input {
    /// The bytes, decompressed.
    pub reader: Box<dyn Read + Send>,
    /// Bytes read so far, before decompression.
    pub raw_read: Arc<AtomicU64>,
    /// The file; `None` for standard input.
    pub identity: Option<FileIdentity>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Opens a file, or standard input for `-`.
///
/// # Errors
/// When there is no such file, or it cannot be read.
pub fn open(path: &Path) -> anyhow::Result<Input> {
    if path == Path::new("-") {
        return from_reader(io::stdin(), None);
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let about = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    if about.is_dir() {
        bail!("{} is a folder: send its files one by one", path.display());
    }
    // A pipe or a device has neither a size nor a second beginning to resume from.
    let identity = about.is_file().then(|| FileIdentity {
        path: path.canonicalize().unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned(),
        bytes: about.len(),
        modified_ns: about
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_nanos()),
    });
    from_reader(file, identity).with_context(|| format!("cannot read {}", path.display()))
}

/// An input over any reader.
///
/// # Errors
/// When its first bytes cannot be read.
pub fn from_reader(reader: impl Read + Send + 'static, identity: Option<FileIdentity>) -> anyhow::Result<Input> {
    let raw_read = Arc::new(AtomicU64::new(0));
    let mut raw = BufReader::with_capacity(READ_BYTES, Counting { inner: reader, count: raw_read.clone() });
    let reader: Box<dyn Read + Send> = match compression(raw.fill_buf()?) {
        Compression::Plain => Box::new(raw),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(raw)?),
    };
    Ok(Input { reader, raw_read, identity })
}

/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;

/// Tells by the magic bytes: 1f 8b (RFC 1952, 2.3.1), 28 b5 2f fd and the skippable 5? 2a 4d 18 (RFC 8878, 3.1).
pub fn compression(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::Plain,
    }
}

struct Counting<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
