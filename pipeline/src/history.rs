//! What history is to the query layer: a consistent set of immutable Parquet files, or a database, and the offsets they cover.
//!
//! A table is history up to the cursor of a [`Snapshot`], plus the log after that cursor. As long as a snapshot (or a clone
//! of one of its files) lives, the store keeps the files and the composition root keeps the log from its cursors on.

use std::path::PathBuf;
use std::sync::Arc;

use tidegate_events::Dataset;

use crate::fields::FieldCatalog;
use crate::history_rows::HistoryRows;
use crate::log::Offset;

/// One immutable Parquet file, sorted by `org_id`, then `time`.
#[derive(Debug)]
pub struct HistoryFile {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// The table of its rows.
    pub dataset: Dataset,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// Smallest `time` (µs).
    pub time_min: i64,
    /// Largest `time` (µs).
    pub time_max: i64,
    /// The first tenant in it, in byte order.
    pub org_min: Arc<str>,
    /// The last tenant in it, in byte order.
    pub org_max: Arc<str>,
}

/// A consistent view of history.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The files of all datasets.
    pub files: Vec<Arc<HistoryFile>>,
    /// The store that answers questions about its rows, where history is not in files: a database.
    pub rows: Option<Arc<dyn HistoryRows>>,
    /// Own fields that history holds, by tenant.
    pub fields: Arc<FieldCatalog>,
    /// Rows of the ingest log below this offset are in history.
    pub log_cursor: Offset,
    /// Rows of the output log (alerts) below this offset are in history.
    pub output_cursor: Offset,
}

/// A store of history.
pub trait History: Send + Sync + 'static {
    /// The view now. Cheap.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// For a reader that could not read one file of a snapshot: looks whether it is damaged, and if so sets it aside. Whether a
    /// later snapshot is without it, so that trying again is of use. May read all of the file: needs a thread that may block.
    fn suspect(&self, _file: &HistoryFile) -> bool {
        false
    }
}
