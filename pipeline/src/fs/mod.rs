//! The file seam: every file operation of the log, the checkpoints and the local Parquet store goes through [`Fs`], so that
//! a test can drop unsynced writes, fail the N-th call, or fill the disk.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; it must not exist. Durable only after [`Fs::sync_dir`] of its folder.
    Create,
}

/// One change of a folder. Durable only after [`Fs::sync_dir`] of the folders it touches.
#[derive(Debug, Clone, Copy)]
pub enum DirChange<'a> {
    /// Makes a folder and its parents.
    MakeDir(&'a Path),
    /// Renames atomically, replacing the target.
    Rename(&'a Path, &'a Path),
    /// Removes a file.
    Remove(&'a Path),
}

/// A folder tree. Paths are absolute or relative to the process.
pub trait Fs: Debug + Send + Sync + 'static {
    /// Opens or creates a file.
    ///
    /// # Errors
    /// What the operating system says.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn FsFile>>;

    /// The files and folders directly in `dir`, in no order.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Makes a folder, renames or removes.
    ///
    /// # Errors
    /// What the operating system says.
    fn change(&self, change: DirChange<'_>) -> io::Result<()>;

    /// Makes creations, renames and removals in `dir` durable.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes free for this process in the file system of `dir`.
    ///
    /// # Errors
    /// What the operating system says.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file. Methods take `&self`: one file may be read by many threads while one writes.
pub trait FsFile: Debug + Send + Sync {
    /// Reads up to `buf.len()` bytes at `at`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes all of `bufs`, one after the other, at `at`.
    ///
    /// # Errors
    /// What the operating system says; an unknown part may have been written.
    fn write_all_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<()>;

    /// `fdatasync`.
    ///
    /// # Errors
    /// What the operating system says. After one, the state of all unsynced writes is unknown: never retry.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends (with zeros) the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The length in bytes, now.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> io::Result<u64>;
}
