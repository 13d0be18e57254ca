//! The file seam: every file operation of the log, the checkpoints and the local Parquet store goes through [`Fs`], so that
//! a test can drop unsynced writes, fail the N-th call, or fill the disk.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod real;
mod sim;
mod sim_files;
mod sim_pages;

pub use real::RealFs;
pub use sim::{Fault, SimFs, SimOp};

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; it must not exist. Durable only after [`Fs::sync_dir`] of its folder.
    Create,
    /// For holding, not for its content: makes the file when there is none and locks it for this process until the handle is
    /// dropped. [`io::ErrorKind::WouldBlock`] says that another one holds it.
    Lock,
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

/// Makes `dir` and its parents, and makes them durable by syncing each into its parent. Also those that are there already: the
/// process that made them may have died, or failed, before it synced them.
///
/// # Errors
/// What the operating system says; but a parent that was there and may not be opened is left alone.
pub fn make_dir_durable(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    let ancestors: Vec<_> = dir.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
    let mut found = ancestors.len();
    for (at, ancestor) in ancestors.iter().enumerate() {
        match fs.list(ancestor) {
            Ok(_) => found = found.min(at),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && at > 0 => found = found.min(at),
            Err(error) => return Err(error),
        }
        if found <= at {
            break;
        }
    }
    if found > 0 {
        fs.change(DirChange::MakeDir(dir))?;
    }
    for (at, ancestor) in ancestors.iter().enumerate().rev() {
        match fs.sync_dir(parent_of(ancestor)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && at >= found => {}
            synced => synced?,
        }
    }
    fs.sync_dir(dir)
}

/// Whether an error of a read may be that of a sector which the device, or a file system that keeps checksums, cannot read: EIO,
/// ENODATA (medium error), EBADMSG, EILSEQ. A device that is gone says the same.
pub fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| [5, 61, 74, 84].contains(&number))
}

/// The folder that holds `path`; `.` for a bare name.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Writes a small file so that a reader sees all of it or the former one: a temporary file, synced, renamed, folder synced.
///
/// # Errors
/// What the operating system says. The former file is then still there; the temporary one may be left (`<path>.tmp`).
pub fn replace_file(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let file = match fs.open(&temporary, Open::Create) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs.change(DirChange::Remove(&temporary))?;
            fs.open(&temporary, Open::Create)?
        }
        other => other?,
    };
    file.write_all_at(&[IoSlice::new(bytes)], 0)?;
    file.sync_data()?;
    fs.change(DirChange::Rename(&temporary, path))?;
    fs.sync_dir(parent_of(path))
}

/// All of a file.
///
/// # Errors
/// What the operating system says, or `InvalidData` when the file is larger than `bytes_max`.
pub fn read_file(fs: &dyn Fs, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = fs.open(path, Open::Read)?;
    let size = file.size()?;
    if size > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{size} bytes, more than {bytes_max}")));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}
