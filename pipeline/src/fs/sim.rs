//! A file system in memory that can lose power, fail the N-th call, fill up, and be slow.
//!
//! Constraints, in order:
//! 1. What a real one may lose, this one loses. Writes live in the page cache until [`FsFile::sync_data`]; creations,
//!    renames and removals until [`Fs::sync_dir`] of the folder. [`SimFs::crash`] drops the rest, or keeps parts of it: whole
//!    pages of 4 KiB in any order, or the first sectors of a page.
//! 2. A failed `sync_data` loses its pages for good while reads go on seeing them, as Linux does: the next one succeeds and
//!    writes nothing.
//! 3. Everything is decided by the calls and the seed, so that a failure can be replayed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::sim_pages::{Content, Dice, PAGE};
use super::{DirChange, Fs, FsFile, Open, parent_of};

/// A kind of operation, to count it and to make it fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SimOp {
    /// [`Fs::open`] of a file that is there.
    Open,
    /// [`Fs::open`] with [`Open::Create`].
    Create,
    /// [`Fs::open`] with [`Open::Lock`].
    Lock,
    /// [`Fs::list`].
    List,
    /// [`DirChange::MakeDir`].
    MakeDir,
    /// [`DirChange::Rename`].
    Rename,
    /// [`DirChange::Remove`].
    Remove,
    /// [`Fs::sync_dir`].
    SyncDir,
    /// [`Fs::free_bytes`].
    FreeBytes,
    /// [`FsFile::read_at`].
    Read,
    /// [`FsFile::write_all_at`].
    Write,
    /// [`FsFile::sync_data`].
    SyncData,
    /// [`FsFile::set_len`].
    SetLen,
    /// [`FsFile::size`].
    Size,
}

impl SimOp {
    /// Every kind.
    pub const ALL: [SimOp; 14] = [
        Self::Open,
        Self::Create,
        Self::Lock,
        Self::List,
        Self::MakeDir,
        Self::Rename,
        Self::Remove,
        Self::SyncDir,
        Self::FreeBytes,
        Self::Read,
        Self::Write,
        Self::SyncData,
        Self::SetLen,
        Self::Size,
    ];
}

/// Makes calls fail.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which kind of call.
    pub op: SimOp,
    /// Which of them, counted from 1 since the file system was made (see [`SimFs::count`]).
    pub nth: u64,
    /// The error number of the operating system (5 is EIO, 28 is ENOSPC).
    pub errno: i32,
    /// Whether all later calls of the kind fail too.
    pub sticky: bool,
    /// For [`SimOp::Write`]: how many bytes get written before it fails.
    pub short_bytes: usize,
}

impl Fault {
    /// The `nth` call of `op` fails with EIO, once, having done nothing.
    pub fn eio(op: SimOp, nth: u64) -> Self {
        Self { op, nth, errno: 5, sticky: false, short_bytes: 0 }
    }
}

type Inode = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(Inode),
}

/// One change of the tree that is not durable yet: what each path becomes.
#[derive(Debug, Clone)]
struct Pending {
    dirs: Vec<PathBuf>,
    becomes: Vec<(PathBuf, Option<Node>)>,
}

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    pending: Vec<Pending>,
    files: HashMap<Inode, Content>,
    inodes: Inode,
    locked: BTreeSet<PathBuf>,
    /// Raised by a crash: handles of an earlier boot are dead.
    boot: u64,
    counts: BTreeMap<SimOp, u64>,
    calls: u64,
    power_until: Option<u64>,
    faults: Vec<Fault>,
    capacity_bytes: Option<u64>,
    sync_delay: Duration,
    held: bool,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct SimFs {
    state: Arc<Mutex<State>>,
    released: Arc<Condvar>,
}

impl SimFs {
    /// An empty file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Arms a fault.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Disarms all faults and lifts the cut of [`cut_power_after`](Self::cut_power_after).
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.faults.clear();
        state.power_until = None;
    }

    /// How many calls of the kind there were.
    pub fn count(&self, op: SimOp) -> u64 {
        self.state.lock().counts.get(&op).copied().unwrap_or(0)
    }

    /// How many calls of any kind there were.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// From the call after the `calls`-th on, everything fails with EIO and does nothing, until [`crash`](Self::crash) or
    /// [`heal`](Self::heal).
    pub fn cut_power_after(&self, calls: u64) {
        self.state.lock().power_until = Some(calls);
    }

    /// Whether the power is cut by now.
    pub fn is_cut(&self) -> bool {
        let state = self.state.lock();
        state.power_until.is_some_and(|until| state.calls > until)
    }

    /// Bounds the bytes of all files; writes beyond fail with ENOSPC having written what fits.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity_bytes = bytes;
    }

    /// Makes every `sync_data` take this long.
    pub fn set_sync_delay(&self, delay: Duration) {
        self.state.lock().sync_delay = delay;
    }

    /// While held, `sync_data` does not return.
    pub fn hold_sync(&self, held: bool) {
        self.state.lock().held = held;
        self.released.notify_all();
    }

    /// Loses power and boots again: what was not synced is dropped (seed 0) or partly kept as the seed decides. Open
    /// handles, locks, faults and the power cut are gone.
    pub fn crash(&self, seed: u64) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut dice = Dice::new(seed);
        for pending in std::mem::take(&mut state.pending) {
            if dice.keeps() {
                apply(&mut state.durable, &pending.becomes);
            }
        }
        let orphan = |tree: &BTreeMap<PathBuf, Node>, path: &Path| {
            path.parent().is_some_and(|parent| !is_root(parent) && tree.get(parent) != Some(&Node::Dir))
        };
        while let Some(lost) = state.durable.keys().find(|path| orphan(&state.durable, path)).cloned() {
            state.durable.remove(&lost);
        }
        state.live = state.durable.clone();
        let mut inodes: Vec<_> = state.files.keys().copied().collect();
        inodes.sort_unstable();
        for inode in inodes {
            if let Some(content) = state.files.get_mut(&inode) {
                content.crash(&mut dice);
            }
        }
        state.locked.clear();
        state.boot += 1;
        state.faults.clear();
        state.power_until = None;
        state.held = false;
        self.released.notify_all();
    }

    /// A copy as the next process finds it when this one is killed now: what was written is there, durable or not; handles
    /// and locks are gone. Faults stay behind.
    pub fn after_kill(&self) -> SimFs {
        let state = self.state.lock();
        let twin = State {
            live: state.live.clone(),
            durable: state.durable.clone(),
            pending: state.pending.clone(),
            files: state.files.clone(),
            inodes: state.inodes,
            ..State::default()
        };
        SimFs { state: Arc::new(Mutex::new(twin)), released: Arc::default() }
    }

    /// A copy of the tree as a power cut now would leave it (as [`crash`](Self::crash) with this seed), in a new file system.
    pub fn after_crash(&self, seed: u64) -> SimFs {
        let twin = self.after_kill();
        twin.crash(seed);
        twin
    }

    /// The bytes of a file as a reader sees them now; `None` when there is no such file. Counts no call.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        match state.live.get(path) {
            Some(Node::File(inode)) => state.files.get(inode).map(|content| content.live.clone()),
            _ => None,
        }
    }

    /// Replaces the bytes of a file, durably (damage). Makes the file when there is none. Counts no call.
    pub fn set_bytes(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        let inode = match state.live.get(path) {
            Some(Node::File(inode)) => *inode,
            _ => {
                state.inodes += 1;
                let node = Node::File(state.inodes);
                state.live.insert(path.to_owned(), node);
                state.durable.insert(path.to_owned(), node);
                state.inodes
            }
        };
        let content = Content { live: bytes.clone(), durable: bytes, ..Content::default() };
        state.files.insert(inode, content);
    }

    /// Removes a file, durably (damage). Counts no call.
    pub fn lose(&self, path: &Path) {
        let mut state = self.state.lock();
        state.live.remove(path);
        state.durable.remove(path);
    }

    /// The paths of all files, in order. Counts no call.
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.state.lock();
        state.live.iter().filter(|(_, node)| **node != Node::Dir).map(|(path, _)| path.clone()).collect()
    }
}

impl State {
    /// Counts a call; an error when it is to fail.
    fn call(&mut self, op: SimOp) -> Result<(), Fault> {
        self.calls += 1;
        let count = self.counts.entry(op).or_insert(0);
        *count += 1;
        if self.power_until.is_some_and(|until| self.calls > until) {
            return Err(Fault::eio(op, *count));
        }
        let hit = |fault: &Fault| fault.op == op && (*count == fault.nth || (fault.sticky && *count > fault.nth));
        match self.faults.iter().find(|fault| hit(fault)) {
            Some(fault) => Err(*fault),
            None => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        let size = |node: &Node| match node {
            Node::Dir => 0,
            Node::File(inode) => self.files.get(inode).map_or(0, |content| content.live.len() as u64),
        };
        self.live.values().map(size).sum()
    }

    fn stage(&mut self, dirs: Vec<PathBuf>, becomes: Vec<(PathBuf, Option<Node>)>) {
        apply(&mut self.live, &becomes);
        self.pending.push(Pending { dirs, becomes });
    }

    fn write(&mut self, inode: Inode, bytes: &[u8], at: usize) -> io::Result<()> {
        let room = self.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used_bytes()));
        let content = self.files.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?;
        let fits = (content.live.len() as u64).saturating_add(room).saturating_sub(at as u64);
        let count = bytes.len().min(usize::try_from(fits).unwrap_or(usize::MAX));
        if count > 0 {
            let end = at + count;
            if content.live.len() < end {
                content.live.resize(end, 0);
            }
            content.live[at..end].copy_from_slice(&bytes[..count]);
            content.dirty.extend(at / PAGE..=(end - 1) / PAGE);
        }
        if count < bytes.len() { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }
}

fn apply(tree: &mut BTreeMap<PathBuf, Node>, becomes: &[(PathBuf, Option<Node>)]) {
    for (path, node) in becomes {
        match node {
            Some(node) => _ = tree.insert(path.clone(), *node),
            None => _ = tree.remove(path),
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/") || path == Path::new(".")
}

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
        state.call(op).map_err(errno)?;
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
        let lock = (how == Open::Lock).then(|| path.to_owned());
        if let Some(path) = &lock
            && !state.locked.insert(path.clone())
        {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Arc::new(SimFile { fs: self.clone(), inode, boot: state.boot, lock }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.state.lock();
        state.call(SimOp::List).map_err(errno)?;
        if !is_root(dir) && state.live.get(dir) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state.live.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn change(&self, change: DirChange<'_>) -> io::Result<()> {
        let mut state = self.state.lock();
        match change {
            DirChange::MakeDir(path) => {
                state.call(SimOp::MakeDir).map_err(errno)?;
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
                state.call(SimOp::Rename).map_err(errno)?;
                let node = *state.live.get(from).ok_or(io::ErrorKind::NotFound)?;
                let dirs = vec![parent_of(from).to_owned(), parent_of(to).to_owned()];
                state.stage(dirs, vec![(from.to_owned(), None), (to.to_owned(), Some(node))]);
            }
            DirChange::Remove(path) => {
                state.call(SimOp::Remove).map_err(errno)?;
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
        state.call(SimOp::SyncDir).map_err(errno)?;
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

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.call(SimOp::FreeBytes).map_err(errno)?;
        Ok(state.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used_bytes())))
    }
}

#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    inode: Inode,
    boot: u64,
    lock: Option<PathBuf>,
}

impl SimFile {
    fn with<T>(&self, op: SimOp, run: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut state = self.fs.state.lock();
        state.call(op).map_err(errno)?;
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
            buf[..count].copy_from_slice(&content.live[start..start + count]);
            count
        })
    }

    fn write_all_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let at = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut state = self.fs.state.lock();
        let called = state.call(SimOp::Write);
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
        let called = state.call(SimOp::SyncData);
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
        if let Some(path) = &self.lock {
            let mut state = self.fs.state.lock();
            if state.boot == self.boot {
                state.locked.remove(path);
            }
        }
    }
}
