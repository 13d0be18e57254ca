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
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::sim_pages::{Content, Dice, PAGE};

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

pub(super) type Inode = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(Inode),
}

/// One change of the tree that is not durable yet: what each path becomes.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) dirs: Vec<PathBuf>,
    pub(super) becomes: Vec<(PathBuf, Option<Node>)>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) live: BTreeMap<PathBuf, Node>,
    pub(super) durable: BTreeMap<PathBuf, Node>,
    pub(super) pending: Vec<Pending>,
    pub(super) files: HashMap<Inode, Content>,
    pub(super) inodes: Inode,
    pub(super) locked: BTreeSet<PathBuf>,
    /// Raised by a crash: handles of an earlier boot are dead.
    pub(super) boot: u64,
    counts: BTreeMap<SimOp, u64>,
    calls: u64,
    power_until: Option<u64>,
    faults: Vec<Fault>,
    /// How often each operation was called at each site, once somebody wants to know.
    sites: Option<BTreeMap<(SimOp, String), u64>>,
    site_faults: Vec<(String, Fault)>,
    failed: u64,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) sync_delay: Duration,
    pub(super) held: bool,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct SimFs {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) released: Arc<Condvar>,
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

    /// Counts calls by their site from now on: what the path is but for its numbers, `log/*.log` say.
    pub fn track_sites(&self) {
        self.state.lock().sites.get_or_insert_default();
    }

    /// How often each operation was called at each site since [`track_sites`](Self::track_sites).
    pub fn sites(&self) -> BTreeMap<(SimOp, String), u64> {
        self.state.lock().sites.clone().unwrap_or_default()
    }

    /// Arms a fault whose `nth` counts the calls at one site only. Needs [`track_sites`](Self::track_sites).
    pub fn fail_at(&self, site: &str, fault: Fault) {
        self.state.lock().site_faults.push((site.to_owned(), fault));
    }

    /// How many calls failed for an armed fault.
    pub fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    /// Makes the sectors that hold these bytes of a file unreadable: every read of them fails with EIO, until the file is
    /// replaced. `None` for `len` means to the end.
    pub fn spoil(&self, path: &Path, at: u64, len: Option<u64>) {
        let mut state = self.state.lock();
        let Some(Node::File(inode)) = state.live.get(path).copied() else { return };
        if let Some(content) = state.files.get_mut(&inode) {
            content.spoil(at, len);
        }
    }

    /// Disarms all faults and lifts the cut of [`cut_power_after`](Self::cut_power_after).
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.faults.clear();
        state.site_faults.clear();
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
        state.site_faults.clear();
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
    pub(super) fn call(&mut self, op: SimOp, path: &Path) -> Result<(), Fault> {
        self.calls += 1;
        let count = self.counts.entry(op).or_insert(0);
        *count += 1;
        if self.power_until.is_some_and(|until| self.calls > until) {
            return Err(Fault::eio(op, *count));
        }
        let hit =
            |fault: &Fault, count: u64| fault.op == op && (count == fault.nth || (fault.sticky && count > fault.nth));
        let mut failing = self.faults.iter().find(|fault| hit(fault, *count)).copied();
        if let Some(sites) = &mut self.sites {
            let site = site_of(path);
            let here = sites.entry((op, site.clone())).or_insert(0);
            *here += 1;
            let fault = self.site_faults.iter().find(|(at, fault)| *at == site && hit(fault, *here));
            failing = failing.or(fault.map(|(_, fault)| *fault));
        }
        match failing {
            Some(fault) => {
                self.failed += 1;
                Err(fault)
            }
            None => Ok(()),
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let size = |node: &Node| match node {
            Node::Dir => 0,
            Node::File(inode) => self.files.get(inode).map_or(0, |content| content.live.len() as u64),
        };
        self.live.values().map(size).sum()
    }

    pub(super) fn stage(&mut self, dirs: Vec<PathBuf>, becomes: Vec<(PathBuf, Option<Node>)>) {
        apply(&mut self.live, &becomes);
        self.pending.push(Pending { dirs, becomes });
    }

    pub(super) fn write(&mut self, inode: Inode, bytes: &[u8], at: usize) -> io::Result<()> {
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

pub(super) fn apply(tree: &mut BTreeMap<PathBuf, Node>, becomes: &[(PathBuf, Option<Node>)]) {
    for (path, node) in becomes {
        match node {
            Some(node) => _ = tree.insert(path.clone(), *node),
            None => _ = tree.remove(path),
        }
    }
}

pub(super) fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/") || path == Path::new(".")
}

/// The last two parts of a path, with stars for numbers.
fn site_of(path: &Path) -> String {
    let parts: Vec<_> = path.components().rev().take(2).collect();
    let text = |part: &std::path::Component<'_>| part.as_os_str().to_string_lossy().into_owned();
    let name = parts.first().map(text).unwrap_or_default();
    let (digits, rest) = name.split_at(name.bytes().take_while(u8::is_ascii_digit).count());
    let name = if digits.is_empty() { name.clone() } else { format!("*{rest}") };
    format!("{}/{name}", parts.get(1).map(text).unwrap_or_default())
}
