//! Where the files of a store lie: in a folder of the machine, or in an object store.
//!
//! Files are immutable: whole under their name, or not there. What differs between the two is how that is reached: a folder
//! wants files, names and renames synced; an object store shows an object when its upload has ended, and its manifest is
//! guarded by "put if absent" instead of by the lock of a folder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_pipeline::fs::{DirChange, Fs, Open, make_dir_durable, read_file, replace_file};

use super::bucket::Bucket;

/// A folder or an object store. Paths of an object store are `/<key>`.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A folder that this process holds alone.
    Disk(Arc<dyn Fs>),
    /// A prefix of an object store, which other processes reach as well.
    Bucket(Arc<Bucket>),
}

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: PathBuf,
    /// Its size, when the listing says it.
    pub(crate) bytes: Option<u64>,
}

/// Why a manifest edit could not be put.
#[derive(Debug)]
pub(crate) enum PutError {
    /// It is surely not there, and never will be.
    Refused(io::Error),
    /// It may be there, or come to be there. Only putting the same edit again tells.
    Doubt(io::Error),
    /// Another writer's edit has this number.
    Taken(Vec<u8>),
}

impl Place {
    /// Makes folders, where there are such things.
    pub(crate) fn make_folder(&self, folder: &Path) -> io::Result<()> {
        match self {
            Self::Disk(fs) => make_dir_durable(fs.as_ref(), folder),
            Self::Bucket(_) => Ok(()),
        }
    }

    /// The files in a folder.
    pub(crate) fn list(&self, folder: &Path) -> io::Result<Vec<Listed>> {
        match self {
            Self::Disk(fs) => {
                let paths = fs.list(folder)?;
                Ok(paths.into_iter().map(|path| Listed { path, bytes: None }).collect())
            }
            Self::Bucket(bucket) => bucket.list(folder),
        }
    }

    /// All of a small file.
    pub(crate) fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        match self {
            Self::Disk(fs) => read_file(fs.as_ref(), path, bytes_max),
            Self::Bucket(bucket) => bucket.read(path, bytes_max),
        }
    }

    /// Puts a manifest edit under a number that no other edit has.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), PutError> {
        match self {
            Self::Disk(fs) => replace_file(fs.as_ref(), path, bytes).map_err(|error| {
                // When in doubt, it is there.
                match fs.open(path, Open::Read) {
                    Err(opened) if opened.kind() == io::ErrorKind::NotFound => PutError::Refused(error),
                    _ => PutError::Doubt(error),
                }
            }),
            Self::Bucket(bucket) => bucket.put(path, bytes),
        }
    }

    /// Removes a file. That it is not there is no error.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match self {
            Self::Disk(fs) => fs.change(DirChange::Remove(path)),
            Self::Bucket(bucket) => bucket.remove(path),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Moves a file that no longer counts.
    pub(crate) fn move_aside(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Self::Disk(fs) => fs.change(DirChange::Rename(from, to)),
            Self::Bucket(bucket) => bucket.move_aside(from, to),
        }
    }

    /// Makes the names of finished files durable.
    pub(crate) fn sync_names(&self, folder: &Path) -> io::Result<()> {
        match self {
            Self::Disk(fs) => fs.sync_dir(folder),
            Self::Bucket(_) => Ok(()),
        }
    }
}
