//! Small files that are whole or absent: checkpoints and snapshots.
//!
//! A save writes `<sequence>.sealed.tmp`, syncs it, renames it to `<sequence>.sealed` and syncs the folder; only then is it
//! said to be saved. The last good file before it is kept, older ones go. A load takes the newest file that is whole and that
//! its reader understands, and tells which ones were not. Layout, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic, which names the kind of file and the version of its body |
//! | 8 | length of the body |
//! | 4 | CRC32C of length and body |
//! | … | the body |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::PipelineError;
use crate::fs::{DirChange, Fs, make_dir_durable, read_file, replace_file};

const HEADER_BYTES: usize = 20;
const SEALED: &str = "sealed";
/// What [`replace_file`] calls a file that is not whole yet.
const DRAFT: &str = "sealed.tmp";

/// A folder of sealed files of one kind, newest last.
#[derive(Debug)]
pub struct SealedFiles {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    magic: [u8; 8],
    bytes_max: u64,
    /// The sequence number of the last attempt to save; never used twice.
    last: u64,
    /// The last file that is known to be good.
    good: Option<u64>,
}

/// What a folder of sealed files gave.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The newest value that could be read.
    pub value: Option<T>,
    /// The newer files that could not, with the reason.
    pub damaged: Vec<PipelineError>,
}

impl SealedFiles {
    /// Opens the folder, making it when it is not there. Files of more than `bytes_max` are neither written nor read.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be made, synced or listed.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, magic: [u8; 8], bytes_max: u64) -> Result<Self, PipelineError> {
        make_dir_durable(&*fs, dir).map_err(|error| failed("make folder", dir, error))?;
        let mut files = Self { fs, dir: dir.to_owned(), magic, bytes_max, last: 0, good: None };
        files.last = files.sequences()?.last().copied().unwrap_or(0);
        Ok(files)
    }

    /// The newest value that is whole and that `parse` accepts.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be listed. A file that cannot be read counts as damaged.
    pub fn load<T>(&mut self, mut parse: impl FnMut(&[u8]) -> Result<T, String>) -> Result<Loaded<T>, PipelineError> {
        let mut damaged = Vec::new();
        for sequence in self.sequences()?.into_iter().rev() {
            let path = self.path(sequence, SEALED);
            let parsed = self.read(&path).and_then(|file| {
                let body = file.get(HEADER_BYTES..).unwrap_or_default();
                parse(body).map_err(|reason| PipelineError::Damaged { path, at: HEADER_BYTES as u64, reason })
            });
            match parsed {
                Ok(value) => {
                    self.good = Some(sequence);
                    return Ok(Loaded { value: Some(value), damaged });
                }
                Err(error) => damaged.push(error),
            }
        }
        Ok(Loaded { value: None, damaged })
    }

    /// The newest value before the one that [`load`](Self::load) gave.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be listed.
    pub fn load_older<T>(&self, mut parse: impl FnMut(&[u8]) -> Result<T, String>) -> Result<Option<T>, PipelineError> {
        let older = self.sequences()?.into_iter().rev().filter(|sequence| Some(*sequence) < self.good);
        let mut values = older.filter_map(|sequence| {
            let file = self.read(&self.path(sequence, SEALED)).ok()?;
            parse(file.get(HEADER_BYTES..)?).ok()
        });
        Ok(values.next())
    }

    /// Removes all files.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be listed or a file cannot be removed.
    pub fn clear(&mut self) -> Result<(), PipelineError> {
        for path in self.fs.list(&self.dir).map_err(|error| failed("list", &self.dir, error))? {
            self.fs.change(DirChange::Remove(&path)).map_err(|error| failed("remove", &path, error))?;
        }
        self.good = None;
        Ok(())
    }

    /// Makes `body` the newest file, durably.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] when it is too large, [`PipelineError::Io`] when a file operation fails; the files before
    /// it are untouched then.
    pub fn save(&mut self, body: &[u8]) -> Result<(), PipelineError> {
        let bytes = (body.len() + HEADER_BYTES) as u64;
        if bytes > self.bytes_max {
            let dir = self.dir.display();
            return Err(PipelineError::Invalid(format!(
                "a file of {bytes} bytes for {dir} is larger than its bound of {} bytes: raise the bound",
                self.bytes_max
            )));
        }
        self.last = self.last.saturating_add(1);
        let sequence = self.last;
        let path = self.path(sequence, SEALED);
        let len = (body.len() as u64).to_le_bytes();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&len), body).to_le_bytes();
        let file = [&self.magic, &len, &crc as &[u8], body].concat();
        if let Err(error) = replace_file(&*self.fs, &path, &file) {
            // The draft only takes up space, and that may be what is missing; if this fails as well, the next save removes it.
            self.fs.change(DirChange::Remove(&self.path(sequence, DRAFT))).ok();
            return Err(failed("write", &path, error));
        }
        let before = self.good.replace(sequence);
        self.remove_all_but(before, sequence);
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, PipelineError> {
        let damaged =
            |at: usize, reason: String| PipelineError::Damaged { path: path.to_owned(), at: at as u64, reason };
        let bytes = read_file(&*self.fs, path, self.bytes_max).map_err(|error| failed("read", path, error))?;
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| damaged(bytes.len(), "cut".into()))?;
        if header[..8] != self.magic {
            return Err(damaged(0, "not a file of this kind and version".into()));
        }
        if header[8..16] != (body.len() as u64).to_le_bytes() {
            return Err(damaged(8, format!("the length is not that of the body, {}", body.len())));
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[8..16]), body);
        if header[16..20] != crc.to_le_bytes() {
            return Err(damaged(16, "the checksum does not match".into()));
        }
        Ok(bytes)
    }

    /// Best effort: a file too many costs nothing but its space, and the next save tries again.
    fn remove_all_but(&self, before: Option<u64>, newest: u64) {
        let Ok(paths) = self.fs.list(&self.dir) else { return };
        let kept = [before, Some(newest)].map(|kept| kept.map(|kept| self.path(kept, SEALED)));
        for path in paths {
            if !kept.contains(&Some(path.clone()))
                && let Err(error) = self.fs.change(DirChange::Remove(&path))
            {
                tracing::debug!(path = %path.display(), %error, "could not remove an old file");
            }
        }
    }

    /// The sequence numbers of the sealed files, ascending.
    fn sequences(&self) -> Result<Vec<u64>, PipelineError> {
        let paths = self.fs.list(&self.dir).map_err(|error| failed("list", &self.dir, error))?;
        let sealed = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == SEALED));
        let mut sequences: Vec<u64> = sealed.filter_map(|path| path.file_stem()?.to_str()?.parse().ok()).collect();
        sequences.sort_unstable();
        Ok(sequences)
    }

    fn path(&self, sequence: u64, extension: &str) -> PathBuf {
        self.dir.join(format!("{sequence:020}.{extension}"))
    }
}

fn failed(op: &'static str, path: &Path, source: io::Error) -> PipelineError {
    PipelineError::Io { op, path: path.to_owned(), source }
}
