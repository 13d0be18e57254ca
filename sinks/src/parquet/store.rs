//! The store: what is visible, who still looks at what was, and the one place where a change becomes visible.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use metrics::gauge;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tidegate_events::Dataset;
use tidegate_pipeline::fs::{DirChange, Fs, Open, replace_file};
use tidegate_pipeline::{History, HistoryFile, Offset, Snapshot};

use super::config::ParquetConfig;
use super::encode::{discard, file_path};
use super::manifest::{Cursors, Diff, Edit, FileMeta, Ledger, Table, Why};
use super::recover::{self, OpenReport, Opened};
use super::sink::ParquetSink;
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

/// A Parquet store in one folder. One process and one `ParquetStore` at a time may use a folder.
#[derive(Debug)]
pub struct ParquetStore {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) dir: PathBuf,
    pub(crate) config: ParquetConfig,
    held: Mutex<Held>,
    current: RwLock<Arc<Snapshot>>,
    next_file: AtomicU64,
    /// Compaction, retention and the setting aside of files go one at a time.
    pub(crate) maintenance: Mutex<()>,
    /// Files whose bytes are right and that cannot be merged all the same.
    pub(crate) spoiled: Mutex<BTreeSet<u64>>,
}

#[derive(Debug)]
struct Held {
    table: Table,
    files: BTreeMap<u64, Arc<HistoryFile>>,
    journal: Journal,
    condemned: Vec<Condemned>,
    /// Views given out before the current one, with their cursors, as long as someone holds them.
    views: Vec<(Weak<Snapshot>, Cursors)>,
    /// New files of an edit that may or may not be on disk; the next edit with its number decides.
    doubtful: Vec<PathBuf>,
}

/// Where the manifest stands.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) last: u64,
    pub(crate) last_diff: Option<Diff>,
    /// The cursors before the last edit: where reading would resume if that edit were lost.
    pub(crate) cursors_before: Cursors,
    pub(crate) last_full: u64,
    pub(crate) previous_full: u64,
    /// The oldest edit on disk.
    pub(crate) first: u64,
    /// The next edit must hold the whole state.
    pub(crate) needs_full: bool,
}

#[derive(Debug)]
struct Condemned {
    path: PathBuf,
    readers: Weak<HistoryFile>,
    /// The edit that dropped it.
    edit: u64,
}

impl ParquetStore {
    /// Opens the store in `dir`, which is made if it is missing. Damaged files never make this fail: the report says what
    /// was found and set aside.
    ///
    /// # Errors
    /// [`SinksError::Io`] when the folder cannot be made, listed or read, [`SinksError::Invalid`] for the configuration.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, config: ParquetConfig) -> Result<(Arc<Self>, OpenReport), SinksError> {
        config.check()?;
        let dir = std::path::absolute(dir).map_err(SinksError::io("open", dir))?;
        let Opened { table, journal, bad_files, strays, mut report } = recover::load(fs.as_ref(), &dir)?;
        let files = table.files.values().map(|file| (file.id, history_file(&dir, file))).collect();
        let next_file = AtomicU64::new(table.next_file);
        let held = Held { table, files, journal, condemned: Vec::new(), views: Vec::new(), doubtful: Vec::new() };
        let current = RwLock::new(Arc::new(held.snapshot()));
        let maintenance = Mutex::new(());
        let (held, spoiled) = (Mutex::new(held), Mutex::default());
        let store = Self { fs, dir, config, held, current, next_file, maintenance, spoiled };
        store.settle(&bad_files, &strays, &mut report);
        report.files = store.held.lock().table.files.len() as u64;
        store.show_gauges();
        Ok((Arc::new(store), report))
    }

    /// A sink for one log. Use one at a time for each log.
    pub fn sink(self: &Arc<Self>, source: LogSource) -> ParquetSink {
        ParquetSink::new(self.clone(), source)
    }

    /// The offset up to which the rows of a log are in the store. Never waits for the disk.
    pub fn cursor(&self, source: LogSource) -> Offset {
        let current = self.current.read();
        source.cursor(Cursors { ingest: current.log_cursor, output: current.output_cursor })
    }

    /// The smallest cursor of any snapshot that is still held, and of the manifest's last edit but one: the log must be
    /// kept from there on, so that readers of old snapshots see no gap and a damaged last edit can be made good. Hold the
    /// `Arc` of a snapshot while reading; a clone of the `Snapshot` itself keeps the files, but is not seen here. May wait
    /// for a manifest edit that is being written, as [`stats`](Self::stats) and [`sweep`](Self::sweep) may.
    pub fn oldest_live_cursor(&self, source: LogSource) -> Offset {
        let held = self.held.lock();
        let views = held.views.iter().filter(|(view, _)| view.strong_count() > 0);
        let cursors = views.map(|(_, cursors)| *cursors);
        let own = [held.table.cursors, held.journal.cursors_before];
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
            edit: held.journal.last,
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

    /// Makes a change visible, all of it or nothing. `make` sees the state that the change will be applied to and says what
    /// the change is; `added` are the files it may name, already durable. When the change fails they are removed (or kept
    /// until it is known whether the edit is on disk).
    pub(crate) fn publish(
        &self,
        added: &[FileMeta],
        make: impl FnOnce(&Table) -> Result<Change, SinksError>,
    ) -> Result<(), SinksError> {
        let mut held = self.held.lock();
        let new_paths: Vec<PathBuf> = added.iter().map(|file| self.path_of(file)).collect();
        let change = match make(&held.table) {
            Ok(change) => change,
            Err(error) => {
                new_paths.iter().for_each(|path| discard(self.fs.as_ref(), path));
                return Err(error);
            }
        };
        let diff = Diff {
            why: change.why,
            added: added.to_vec(),
            removed: change.removed,
            cursors: change.cursors,
            fields: change.fields,
            next_file: self.next_file.load(Ordering::Relaxed),
        };
        if let Err(error) = self.write_edit(&mut held, diff) {
            if self.edit_exists(held.journal.last + 1) {
                held.doubtful.extend(new_paths);
            } else {
                new_paths.iter().for_each(|path| discard(self.fs.as_ref(), path));
            }
            return Err(error);
        }
        let snapshot = Arc::new(held.snapshot());
        let mut current = self.current.write();
        let old = std::mem::replace(&mut *current, snapshot);
        held.views.retain(|(view, _)| view.strong_count() > 0);
        let cursors = Cursors { ingest: old.log_cursor, output: old.output_cursor };
        held.views.push((Arc::downgrade(&old), cursors));
        Ok(())
    }

    /// Drops damaged files from the manifest, or, when that cannot be written, from what is visible: the next start then
    /// finds them damaged again.
    pub(crate) fn forget_bad(&self, removed: Vec<u64>) {
        let dropped = self.publish(&[], |table| {
            let removed = removed.iter().copied().filter(|id| table.files.contains_key(id)).collect();
            Ok(Change::new(Why::Quarantine, table.cursors).removing(removed))
        });
        if let Err(error) = dropped {
            tracing::warn!(%error, "damaged files could not be dropped from the manifest; they are hidden until the next start");
            let mut held = self.held.lock();
            for id in &removed {
                held.files.remove(id);
                if let Some(file) = held.table.files.remove(id) {
                    held.table.ledger.lost += file.rows;
                }
            }
            *self.current.write() = Arc::new(held.snapshot());
        }
    }

    /// Whether an edit that failed may be there after all. When in doubt: yes.
    fn edit_exists(&self, number: u64) -> bool {
        let opened = self.fs.open(&recover::edit_path(&self.dir, number), Open::Read);
        !matches!(opened, Err(error) if error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Writes the next edit, then applies it to the state in memory.
    fn write_edit(&self, held: &mut Held, diff: Diff) -> Result<(), SinksError> {
        let number = held.journal.last + 1;
        let full = held.journal.needs_full || number - held.journal.last_full >= self.config.edits_per_snapshot;
        let state = full.then(|| {
            let mut after = held.table.clone();
            after.apply(&diff);
            after.to_state()
        });
        let edit = Edit { number, previous: held.journal.last_diff.take(), diff, state };
        let path = recover::edit_path(&self.dir, number);
        let bytes = edit.encode().map_err(|error| SinksError::Invalid(format!("manifest edit: {error}")));
        let written = bytes
            .and_then(|bytes| replace_file(self.fs.as_ref(), &path, &bytes).map_err(SinksError::io("write", &path)));
        if let Err(error) = written {
            held.journal.last_diff = edit.previous;
            return Err(error);
        }
        held.accept(&self.dir, edit.diff, number);
        if full {
            held.journal.needs_full = false;
            held.journal.previous_full = std::mem::replace(&mut held.journal.last_full, number);
            self.drop_old_edits(&mut held.journal);
        }
        Ok(())
    }

    /// Removes the edits below the last full edit but one.
    fn drop_old_edits(&self, journal: &mut Journal) {
        while journal.first < journal.previous_full {
            let path = recover::edit_path(&self.dir, journal.first);
            match self.fs.change(DirChange::Remove(&path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "an old manifest edit could not be removed");
                    return;
                }
                _ => journal.first += 1,
            }
        }
    }

    /// Removes files from disk that no edit names, no reader holds, and whose removal a later edit has confirmed. Says how
    /// many were removed. Call it after compaction and retention, and now and then.
    ///
    /// # Errors
    /// [`SinksError::Io`] when an edit that confirms the removal could not be written; nothing is lost then.
    pub fn sweep(&self) -> Result<usize, SinksError> {
        let unconfirmed = {
            let held = self.held.lock();
            held.condemned.iter().any(|file| file.edit == held.journal.last && file.readers.strong_count() == 0)
        };
        if unconfirmed {
            self.publish(&[], |table| Ok(Change::new(Why::Confirm, table.cursors)))?;
        }
        let mut held = self.held.lock();
        let last = held.journal.last;
        let mut swept = 0;
        held.condemned.retain(|file| {
            if file.edit >= last || file.readers.strong_count() > 0 {
                return true;
            }
            match self.fs.change(DirChange::Remove(&file.path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %file.path.display(), %error, "a Parquet file no longer needed stays on disk");
                    true
                }
                _ => {
                    swept += 1;
                    false
                }
            }
        });
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

/// A change to be published, without its new files.
#[derive(Debug)]
pub(crate) struct Change {
    why: Why,
    removed: Vec<u64>,
    cursors: Cursors,
    fields: Vec<super::manifest::TenantFields>,
}

impl Change {
    pub(crate) fn new(why: Why, cursors: Cursors) -> Self {
        Self { why, removed: Vec::new(), cursors, fields: Vec::new() }
    }

    pub(crate) fn removing(mut self, removed: Vec<u64>) -> Self {
        self.removed = removed;
        self
    }

    pub(crate) fn with_fields(mut self, fields: Vec<super::manifest::TenantFields>) -> Self {
        self.fields = fields;
        self
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

    /// The edit is durable: the state in memory follows.
    fn accept(&mut self, dir: &Path, diff: Diff, number: u64) {
        for id in &diff.removed {
            if let Some(file) = self.files.remove(id) {
                let path = file.path.clone();
                self.condemned.push(Condemned { path, readers: Arc::downgrade(&file), edit: number });
            }
        }
        for file in &diff.added {
            self.files.insert(file.id, history_file(dir, file));
        }
        for path in self.doubtful.drain(..) {
            self.condemned.push(Condemned { path, readers: Weak::new(), edit: number });
        }
        self.journal.cursors_before = self.table.cursors;
        self.table.apply(&diff);
        self.journal.last = number;
        self.journal.last_diff = Some(diff);
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
