//! A file system that tells a test of the calls made to it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_pipeline::fs::{DirChange, Fs, FsFile, Open, SimFs};

/// What a test does before a file is opened, to what a folder lists, before the free bytes are told.
pub trait Watch: std::fmt::Debug + Send + Sync + 'static {
    fn opens(&self, _path: &Path, _how: Open) {}

    fn listed(&self, _dir: &Path, _paths: &mut Vec<PathBuf>) {}

    fn asks_free_bytes(&self) {}
}

/// See the module.
#[derive(Debug)]
pub struct WatchedFs<W> {
    pub fs: SimFs,
    pub watch: W,
}

impl<W: Watch> Fs for WatchedFs<W> {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn FsFile>> {
        self.watch.opens(path, how);
        self.fs.open(path, how)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = self.fs.list(dir)?;
        self.watch.listed(dir, &mut paths);
        Ok(paths)
    }

    fn change(&self, change: DirChange<'_>) -> io::Result<()> {
        self.fs.change(change)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.watch.asks_free_bytes();
        self.fs.free_bytes(dir)
    }
}
