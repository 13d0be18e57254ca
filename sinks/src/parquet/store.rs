//! The store: what is visible, and who still looks at what was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use metrics::gauge;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tidegate_events::Dataset;
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::{History, HistoryFile, Offset, Snapshot};
use tokio::task::JoinHandle;

use super::bucket::Bucket;
use super::commit::{Commit, Committed};
use super::config::ParquetConfig;
use super::encode::file_path;
use super::manifest::{Cursors, Diff, FileMeta, Ledger, Table, Why};
use super::place::Place;
use super::publish::{Change, Journal};
use super::recover::{self, OpenReport, Opened};
use super::sink::ParquetSink;
use super::threads::OwnThread;
use crate::error::SinksError;
use crate::metrics as names;

/// Which log a sink reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogSource {
    /// The ingest log: security and cost events, changes, dead letters of ingest.
    Ingest,
    /// The output log: alerts, dead letters of delivery.
    Output,
}

impl LogSource {
    /// The label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Output => "output",
        }
    }

    pub(crate) fn cursor(self, cursors: Cursors) -> Offset {
        match self {
            Self::Ingest => cursors.ingest,
            Self::Output => cursors.output,
        }
    }

    pub(crate) fn with_cursor(self, mut cursors: Cursors, cursor: Offset) -> Cursors {
        match self {
            Self::Ingest => cursors.ingest = cursor,
            Self::Output => cursors.output = cursor,
        }
        cursors
    }
}

/// What the store holds of one dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DatasetStats {
    /// Visible files.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their bytes on disk.
    pub bytes: u64,
}

/// What the store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// By table name; datasets without files are left out.
    pub datasets: BTreeMap<&'static str, DatasetStats>,
    /// Where the rows went.
    pub ledger: Ledger,
    /// Rows of the ingest log below this offset are in the store.
    pub log_cursor: Offset,
    /// Rows of the output log below this offset are in the store.
    pub output_cursor: Offset,
    /// The number of the last manifest edit.
    pub edit: u64,
    /// Files no longer visible that are still on disk.
    pub condemned: u64,
}

/// A Parquet store in one folder, or under one prefix of an object store. One process and one `ParquetStore` at a time may use a
/// folder; of those that use a prefix, the one that opened it last may write.
#[derive(Debug)]
pub struct ParquetStore {
    pub(crate) place: Place,
    pub(crate) dir: PathBuf,
    pub(crate) config: ParquetConfig,
    /// Taken before `held`, and for as long as an edit is being written.
    pub(crate) journal: Mutex<Journal>,
    /// Never taken for longer than a look.
    pub(crate) held: Mutex<Held>,
    current: RwLock<Arc<Snapshot>>,
    pub(crate) next_file: AtomicU64,
    /// Compaction, retention and the setting aside of files go one at a time.
    pub(crate) maintenance: Mutex<()>,
    /// Files whose bytes are right and that cannot be merged all the same.
    pub(crate) spoiled: Mutex<BTreeSet<u64>>,
    /// Files that no edit names and that could not be removed yet.
    pub(crate) litter: Mutex<Vec<PathBuf>>,
    commits: OwnThread,
    upkeep: OwnThread,
}

/// What is visible.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) table: Table,
    /// The number of the last edit.
    last: u64,
    /// The cursors before the last edit: where reading would resume if that edit were lost.
    cursors_before: Cursors,
    files: BTreeMap<u64, Arc<HistoryFile>>,
    condemned: Vec<Condemned>,
    /// Views given out before the current one, with their cursors, as long as someone holds them.
    views: Vec<(Weak<Snapshot>, Cursors)>,
}

#[derive(Debug)]
struct Condemned {
    path: PathBuf,
    readers: Weak<HistoryFile>,
    /// The edit that dropped it.
    edit: u64,
    /// Readers that this process does not know have until then.
    due: Instant,
}

impl ParquetStore {
    /// Opens the store in `dir`, which is made if it is missing. Damaged files never make this fail: the report says what
    /// was found and set aside.
    ///
    /// # Errors
    /// [`SinksError::Io`] when the folder cannot be made, listed or read, [`SinksError::Invalid`] for the configuration.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, config: ParquetConfig) -> Result<(Arc<Self>, OpenReport), SinksError> {
        let dir = std::path::absolute(dir).map_err(SinksError::io("open", dir))?;
        Self::open_in(Place::Disk(fs), dir, config)
    }

    /// Opens the store in an object store, as its writer from now on. Needs a thread that may block.
    ///
    /// # Errors
    /// [`SinksError::Io`] when it cannot be reached or used: trying again may work. [`SinksError::Foreign`] when it holds the
    /// rows of another server's log, [`SinksError::Replaced`] when another writer opens it at the same time,
    /// [`SinksError::Invalid`] for the configuration or an object store that is not up to it.
    pub fn open_bucket(bucket: Bucket, config: ParquetConfig) -> Result<(Arc<Self>, OpenReport), SinksError> {
        let dir = bucket.dir();
        Self::open_in(Place::Bucket(Arc::new(bucket)), dir, config)
    }

    fn open_in(place: Place, dir: PathBuf, config: ParquetConfig) -> Result<(Arc<Self>, OpenReport), SinksError> {
        config.check()?;
        let own_thread = |name| OwnThread::new(name).map_err(SinksError::io("start a thread for", &dir));
        let (commits, upkeep) = (own_thread("commits")?, own_thread("upkeep")?);
        let Opened { table, journal, cursors_before, bad_files, strays, mut report } = recover::load(&place, &dir)?;
        let files = table.files.values().map(|file| (file.id, history_file(&dir, file))).collect();
        let next_file = AtomicU64::new(table.next_file);
        let last = journal.last;
        let held = Held { table, last, cursors_before, files, condemned: Vec::new(), views: Vec::new() };
        let store = Self {
            place,
            dir,
            config,
            journal: Mutex::new(journal),
            current: RwLock::new(Arc::new(held.snapshot())),
            held: Mutex::new(held),
            next_file,
            maintenance: Mutex::new(()),
            spoiled: Mutex::default(),
            litter: Mutex::default(),
            commits,
            upkeep,
        };
        store.claim()?;
        store.settle_files(&bad_files, &strays, &mut report);
        report.files = store.held.lock().table.files.len() as u64;
        store.show_gauges();
        Ok((Arc::new(store), report))
    }

    /// Reads the files of snapshots, when they are in an object store.
    pub fn reads(&self) -> Option<Arc<dyn object_store::ObjectStore>> {
        match &self.place {
            Place::Disk(_) => None,
            Place::Bucket(bucket) => Some(bucket.parts.reads.clone()),
        }
    }

    /// What it is called in messages: a folder, or the URL of an object store.
    pub fn name(&self) -> String {
        self.shown()
    }

    /// A sink for one log. Use one at a time for each log.
    pub fn sink(self: &Arc<Self>, source: LogSource) -> ParquetSink {
        ParquetSink::new(self.clone(), source)
    }

    /// Runs [`Self::compact_once`], [`Self::retain`] or [`Self::sweep`], which block, on the store's thread for them. May be
    /// called outside of a runtime.
    pub fn spawn_upkeep<T, F>(&self, work: F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.upkeep.spawn(work)
    }

    /// Runs a commit on the store's thread for commits.
    pub(super) fn spawn_commit(self: &Arc<Self>, commit: Commit) -> JoinHandle<Result<Committed, SinksError>> {
        let store = self.clone();
        self.commits.spawn(move || store.commit(commit))
    }

    /// The offset up to which the rows of a log are in the store. Never waits for the disk.
    pub fn cursor(&self, source: LogSource) -> Offset {
        let current = self.current.read();
        source.cursor(Cursors { ingest: current.log_cursor, output: current.output_cursor })
    }

    /// The smallest cursor of any snapshot that is still held, and of the manifest's last edit but one: the log must be
    /// kept from there on, so that readers of old snapshots see no gap and a damaged last edit can be made good. Hold the
    /// `Arc` of a snapshot while reading; a clone of the `Snapshot` itself keeps the files, but is not seen here. Never waits
    /// for the disk.
    pub fn oldest_live_cursor(&self, source: LogSource) -> Offset {
        let held = self.held.lock();
        let views = held.views.iter().filter(|(view, _)| view.strong_count() > 0);
        let cursors = views.map(|(_, cursors)| *cursors);
        let own = [held.table.cursors, held.cursors_before];
        cursors.chain(own).map(|cursors| source.cursor(cursors)).min().unwrap_or(0)
    }

    /// What the store holds now.
    pub fn stats(&self) -> StoreStats {
        let held = self.held.lock();
        let mut datasets: BTreeMap<&'static str, DatasetStats> = BTreeMap::new();
        for file in held.table.files.values() {
            let stats = datasets.entry(file.dataset.table_name()).or_default();
            stats.files += 1;
            stats.rows += file.rows;
            stats.bytes += file.bytes;
        }
        StoreStats {
            datasets,
            ledger: held.table.ledger,
            log_cursor: held.table.cursors.ingest,
            output_cursor: held.table.cursors.output,
            edit: held.last,
            condemned: held.condemned.len() as u64,
        }
    }

    /// A number for a new file, never used before.
    pub(crate) fn take_file_id(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    /// The visible files with what the manifest says of them.
    pub(crate) fn metas(&self) -> Vec<Arc<FileMeta>> {
        self.held.lock().table.files.values().cloned().collect()
    }

    /// Where a file is.
    pub(crate) fn path_of(&self, file: &FileMeta) -> PathBuf {
        file_path(&self.dir, file.dataset, file.id)
    }

    /// Makes an edit visible that is durable now.
    pub(crate) fn show(&self, diff: &Diff, number: u64) {
        let mut held = self.held.lock();
        let due = Instant::now() + self.reader_grace();
        for id in &diff.removed {
            if let Some(file) = held.files.remove(id) {
                let path = file.path.clone();
                held.condemned.push(Condemned { path, readers: Arc::downgrade(&file), edit: number, due });
            }
        }
        for file in &diff.added {
            held.files.insert(file.id, history_file(&self.dir, file));
        }
        held.cursors_before = held.table.cursors;
        held.table.apply(diff);
        held.last = number;
        let snapshot = Arc::new(held.snapshot());
        let old = std::mem::replace(&mut *self.current.write(), snapshot);
        held.views.retain(|(view, _)| view.strong_count() > 0);
        let cursors = Cursors { ingest: old.log_cursor, output: old.output_cursor };
        held.views.push((Arc::downgrade(&old), cursors));
    }

    /// Takes damaged files out of what is visible, although the manifest still names them.
    pub(crate) fn hide(&self, removed: &[u64]) {
        let mut held = self.held.lock();
        for id in removed {
            held.files.remove(id);
            if let Some(file) = held.table.files.remove(id) {
                held.table.ledger.lost += file.rows;
            }
        }
        *self.current.write() = Arc::new(held.snapshot());
    }

    /// Has a file removed that the last edit does not name, once readers of older edits had their time.
    pub(crate) fn condemn(&self, path: PathBuf) {
        let due = Instant::now() + self.reader_grace();
        let mut held = self.held.lock();
        let edit = held.last.saturating_sub(1);
        held.condemned.push(Condemned { path, readers: Weak::new(), edit, due });
    }

    /// How long readers may hold what this process does not know of.
    pub(crate) fn reader_grace(&self) -> Duration {
        match &self.place {
            Place::Disk(_) => Duration::ZERO,
            Place::Bucket(bucket) => bucket.parts.reader_grace,
        }
    }

    /// Removes files that no edit names, no reader holds, and whose removal a later edit has confirmed. Says how
    /// many were removed. Call it after compaction and retention, and now and then.
    ///
    /// # Errors
    /// [`SinksError::Io`] when an edit that confirms the removal could not be written; nothing is lost then.
    pub fn sweep(&self) -> Result<usize, SinksError> {
        self.clear_litter();
        let now = Instant::now();
        let unconfirmed = {
            let held = self.held.lock();
            held.condemned.iter().any(|file| file.edit == held.last && file.is_free(now))
        };
        if unconfirmed {
            self.publish(&[], |table| Ok(Change::new(Why::Confirm, table.cursors)))?;
        }
        let free: Vec<Condemned> = {
            let mut held = self.held.lock();
            let last = held.last;
            let (free, waiting) =
                std::mem::take(&mut held.condemned).into_iter().partition(|file| file.edit < last && file.is_free(now));
            held.condemned = waiting;
            free
        };
        let (mut swept, mut left) = (0, Vec::new());
        for file in free {
            match self.place.remove(&file.path) {
                Ok(()) => swept += 1,
                Err(error) => {
                    tracing::warn!(path = %file.path.display(), %error, "a Parquet file no longer needed stays on disk");
                    left.push(file);
                }
            }
        }
        let mut held = self.held.lock();
        held.condemned.append(&mut left);
        gauge!(names::PARQUET_CONDEMNED_FILES).set(held.condemned.len() as f64);
        Ok(swept)
    }

    /// Sets the gauges of [`stats`](Self::stats).
    pub(crate) fn show_gauges(&self) {
        let stats = self.stats();
        for dataset in Dataset::ALL {
            let name = dataset.table_name();
            let held = stats.datasets.get(name).copied().unwrap_or_default();
            gauge!(names::PARQUET_FILES, "dataset" => name).set(held.files as f64);
            gauge!(names::PARQUET_STORED_ROWS, "dataset" => name).set(held.rows as f64);
            gauge!(names::PARQUET_STORED_BYTES, "dataset" => name).set(held.bytes as f64);
        }
    }
}

impl Condemned {
    fn is_free(&self, now: Instant) -> bool {
        self.readers.strong_count() == 0 && self.due <= now
    }
}

impl Held {
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            files: self.files.values().cloned().collect(),
            rows: None,
            fields: self.table.fields.clone(),
            log_cursor: self.table.cursors.ingest,
            output_cursor: self.table.cursors.output,
        }
    }
}

fn history_file(dir: &Path, file: &FileMeta) -> Arc<HistoryFile> {
    Arc::new(HistoryFile {
        path: file_path(dir, file.dataset, file.id),
        dataset: file.dataset,
        rows: file.rows,
        bytes: file.bytes,
        time_min: file.time_min,
        time_max: file.time_max,
        org_min: file.org_min.as_str().into(),
        org_max: file.org_max.as_str().into(),
    })
}

impl History for ParquetStore {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().clone()
    }

    fn suspect(&self, file: &HistoryFile) -> bool {
        match self.recheck(&file.path) {
            Ok(bad) => bad.is_some() || self.snapshot().files.iter().all(|known| known.path != file.path),
            Err(error) => {
                tracing::warn!(path = %file.path.display(), %error, "a file that a reader gave up could not be checked");
                false
            }
        }
    }
}
