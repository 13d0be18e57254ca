//! The calls of the simulated file system.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sim::{Fault, Inode, Node, SimFs, SimOp, State, apply, is_root};
use super::sim_pages::Content;
use super::{DirChange, Fs, FsFile, Open, parent_of};

fn errno(fault: Fault) -> io::Error {
    io::Error::from_raw_os_error(fault.errno)
}

impl Fs for SimFs {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn FsFile>> {
        let mut state = self.state.lock();
        let op = match how {
            Open::Read | Open::Write => SimOp::Open,
            Open::Create => SimOp::Create,
            Open::Lock => SimOp::Lock,
        };
        state.call(op, path).map_err(errno)?;
        let found = match state.live.get(path) {
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(inode)) => Some(*inode),
            None => None,
        };
        let inode = match (how, found) {
            (Open::Create, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Open::Read | Open::Write, None) => return Err(io::ErrorKind::NotFound.into()),
            (_, Some(inode)) => inode,
            (Open::Create | Open::Lock, None) => {
                let parent = parent_of(path).to_owned();
                if !is_root(&parent) && state.live.get(&parent) != Some(&Node::Dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                state.inodes += 1;
                let inode = state.inodes;
                state.files.insert(inode, Content::default());
                state.stage(vec![parent], vec![(path.to_owned(), Some(Node::File(inode)))]);
                inode
            }
        };
        let locked = how == Open::Lock;
        if locked && !state.locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Arc::new(SimFile { fs: self.clone(), inode, boot: state.boot, path: path.to_owned(), locked }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.state.lock();
        state.call(SimOp::List, dir).map_err(errno)?;
        if !is_root(dir) && state.live.get(dir) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state.live.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn change(&self, change: DirChange<'_>) -> io::Result<()> {
        let mut state = self.state.lock();
        match change {
            DirChange::MakeDir(path) => {
                state.call(SimOp::MakeDir, path).map_err(errno)?;
                let ancestors: Vec<_> = path.ancestors().filter(|ancestor| !is_root(ancestor)).collect();
                for dir in ancestors.into_iter().rev() {
                    match state.live.get(dir) {
                        Some(Node::Dir) => {}
                        Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                        None => state.stage(vec![parent_of(dir).to_owned()], vec![(dir.to_owned(), Some(Node::Dir))]),
                    }
                }
            }
            DirChange::Rename(from, to) => {
                state.call(SimOp::Rename, to).map_err(errno)?;
                let node = *state.live.get(from).ok_or(io::ErrorKind::NotFound)?;
                let dirs = vec![parent_of(from).to_owned(), parent_of(to).to_owned()];
                state.stage(dirs, vec![(from.to_owned(), None), (to.to_owned(), Some(node))]);
            }
            DirChange::Remove(path) => {
                state.call(SimOp::Remove, path).map_err(errno)?;
                match state.live.get(path) {
                    Some(Node::File(_)) => {}
                    Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
                    None => return Err(io::ErrorKind::NotFound.into()),
                }
                state.stage(vec![parent_of(path).to_owned()], vec![(path.to_owned(), None)]);
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.call(SimOp::SyncDir, dir).map_err(errno)?;
        if !is_root(dir) && state.live.get(dir) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        for pending in std::mem::take(&mut state.pending) {
            if pending.dirs.iter().any(|touched| touched == dir) {
                apply(&mut state.durable, &pending.becomes);
            } else {
                state.pending.push(pending);
            }
        }
        Ok(())
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.call(SimOp::FreeBytes, dir).map_err(errno)?;
        Ok(state.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used_bytes())))
    }
}

#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    inode: Inode,
    boot: u64,
    path: PathBuf,
    locked: bool,
}

impl SimFile {
    fn with<T>(&self, op: SimOp, run: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut state = self.fs.state.lock();
        state.call(op, &self.path).map_err(errno)?;
        self.check_boot(&state)?;
        let content = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        Ok(run(content))
    }

    fn check_boot(&self, state: &State) -> io::Result<()> {
        // A thread of the former boot that wakes up late must not touch the disk of the next.
        if state.boot == self.boot { Ok(()) } else { Err(io::Error::from_raw_os_error(5)) }
    }
}

impl FsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.with(SimOp::Read, |content| {
            let start = usize::try_from(at).unwrap_or(usize::MAX).min(content.live.len());
            let count = buf.len().min(content.live.len() - start);
            if content.is_spoilt(start, count) {
                return Err(io::Error::from_raw_os_error(5));
            }
            buf[..count].copy_from_slice(&content.live[start..start + count]);
            Ok(count)
        })?
    }

    fn write_all_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let at = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut state = self.fs.state.lock();
        let called = state.call(SimOp::Write, &self.path);
        self.check_boot(&state)?;
        match called {
            Ok(()) => state.write(self.inode, &bytes, at),
            Err(fault) => {
                state.write(self.inode, &bytes[..fault.short_bytes.min(bytes.len())], at)?;
                Err(errno(fault))
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let delay = self.fs.state.lock().sync_delay;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let mut state = self.fs.state.lock();
        while state.held && state.boot == self.boot {
            self.fs.released.wait(&mut state);
        }
        let called = state.call(SimOp::SyncData, &self.path);
        self.check_boot(&state)?;
        let content = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        match called {
            Ok(()) => content.sync(),
            Err(_) => content.forget_dirty(),
        }
        called.map_err(errno)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.with(SimOp::SetLen, |content| {
            content.live.resize(len, 0);
            content.resized = true;
        })
    }

    fn size(&self) -> io::Result<u64> {
        self.with(SimOp::Size, |content| content.live.len() as u64)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.locked {
            let mut state = self.fs.state.lock();
            if state.boot == self.boot {
                state.locked.remove(&self.path);
            }
        }
    }
}
