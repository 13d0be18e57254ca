//! Small files that are whole or absent: checkpoints and snapshots.
//!
//! A save writes `<sequence>.tmp`, syncs it, renames it to `<sequence>.sealed` and syncs the folder; only then is it said
//! to be saved. The last good file before it is kept, older ones go. A load takes the newest file that is whole and that
//! its reader understands, and tells which ones were not. Layout, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic, which names the kind of file and the version of its body |
//! | 8 | length of the body |
//! | 4 | CRC32C of length and body |
//! | … | the body |

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::PipelineError;
use crate::fs::{DirChange, Fs, Open};

const HEADER_BYTES: usize = 20;
const SEALED: &str = "sealed";

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
        fs.change(DirChange::MakeDir(dir)).map_err(|error| failed("make folder", dir, error))?;
        for parent in dir.ancestors().skip(1).take(2).filter(|parent| !parent.as_os_str().is_empty()) {
            fs.sync_dir(parent).map_err(|error| failed("sync", parent, error))?;
        }
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
        let (draft, target) = (self.path(sequence, "tmp"), self.path(sequence, SEALED));
        if let Err(error) = self.write(&draft, &target, body) {
            // The draft is only in the way; if removing it fails as well, the next open removes it.
            self.fs.change(DirChange::Remove(&draft)).ok();
            return Err(error);
        }
        let before = self.good.replace(sequence);
        self.remove_all_but(before, sequence);
        Ok(())
    }

    fn write(&self, draft: &Path, target: &Path, body: &[u8]) -> Result<(), PipelineError> {
        let len = (body.len() as u64).to_le_bytes();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&len), body).to_le_bytes();
        let file = match self.fs.open(draft, Open::Create) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.fs.change(DirChange::Remove(draft)).map_err(|error| failed("remove", draft, error))?;
                self.fs.open(draft, Open::Create)
            }
            opened => opened,
        };
        let file = file.map_err(|error| failed("create", draft, error))?;
        let parts = [IoSlice::new(&self.magic), IoSlice::new(&len), IoSlice::new(&crc), IoSlice::new(body)];
        file.write_all_at(&parts, 0).map_err(|error| failed("write", draft, error))?;
        file.sync_data().map_err(|error| failed("sync", draft, error))?;
        self.fs.change(DirChange::Rename(draft, target)).map_err(|error| failed("rename", draft, error))?;
        self.fs.sync_dir(&self.dir).map_err(|error| failed("sync", &self.dir, error))
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, PipelineError> {
        let damaged =
            |at: usize, reason: String| PipelineError::Damaged { path: path.to_owned(), at: at as u64, reason };
        let file = self.fs.open(path, Open::Read).map_err(|error| failed("open", path, error))?;
        let size = file.size().map_err(|error| failed("read", path, error))?;
        if size > self.bytes_max || size < HEADER_BYTES as u64 {
            return Err(damaged(0, format!("{size} bytes is not a size that such a file has")));
        }
        let mut bytes = vec![0; size as usize];
        let read = file.read_at(&mut bytes, 0).map_err(|error| failed("read", path, error))?;
        bytes.truncate(read);
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| damaged(read, "cut".into()))?;
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
