//! The stream log: an ordered, durable sequence of record batches. Offsets count rows.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::error::ArrowError;
use tidegate_events::Dataset;
use tokio::sync::{oneshot, watch};

use crate::error::{AppendError, PipelineError};

pub mod carried;
mod config;
mod decode;
pub mod dedup;
mod encode;
pub mod format;
mod group;
mod listing;
mod memory;
mod recover;
mod scan;
mod schemas;
mod sectors;
mod segment;
mod segment_log;
mod shared;
pub mod summary;
mod verify;
mod whole;
mod writer;

pub use config::LogConfig;
pub use memory::MemoryLog;
pub use recover::OpenReport;
pub use scan::Damage;
pub use segment::{memory_bytes, memory_bytes_of};
pub use segment_log::{LogLock, SegmentLog};
pub use verify::{SegmentReport, dump, verify};

/// The position of a row in a log: the first row ever has offset 0, each row adds one.
pub type Offset = u64;

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ack {
    /// After `fdatasync`: survives the death of the process and a power cut.
    #[default]
    Disk,
    /// Once the log has it in order, before it is written: lost if the process dies within the next group commit.
    Memory,
    /// After a broker on another machine has it in its memory: survives the death of this machine and of the broker's process, and
    /// with replicas that of a broker's machine, but not a power cut of all that have it. Nobody asks for it: it is what a log of
    /// many machines answers.
    Broker,
}

impl Ack {
    /// The word in `?ack=` and in the reply header `Tidegate-Ack`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Broker => "broker",
        }
    }
}

/// Rows of one dataset on their way into a log. They may belong to several tenants (`org_id` is a column).
#[derive(Debug, Clone)]
pub struct EventBatch {
    /// The table of the rows.
    pub dataset: Dataset,
    /// Core columns that have a value, in core order, then own fields.
    pub rows: RecordBatch,
    /// One de-duplication key a row ([`tidegate_events::dedup_key`]), or 0 for a row whose id was made here and needs no
    /// look-up. Empty when no row needs one.
    pub keys: Vec<u128>,
}

impl EventBatch {
    /// The same without the rows at these places, and without their keys.
    ///
    /// # Errors
    /// Arrow's, which no well-made batch gets.
    pub fn without(self, places: impl IntoIterator<Item = usize>) -> Result<Self, ArrowError> {
        let mut keep = vec![true; self.rows.num_rows()];
        for place in places {
            if let Some(keep) = keep.get_mut(place) {
                *keep = false;
            }
        }
        let keys = self.keys.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(key, _)| *key).collect();
        let rows = filter_record_batch(&self.rows, &BooleanArray::from(keep))?;
        Ok(Self { dataset: self.dataset, rows, keys })
    }
}

/// One atomic request to append: all of its batches get consecutive offsets and are acknowledged together.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// The batches, in order.
    pub batches: Vec<EventBatch>,
    /// When to answer.
    pub ack: Ack,
}

/// What became of an [`Append`].
#[derive(Debug, Clone, Default)]
pub struct Appended {
    /// The offsets of the stored rows of each batch, in order; empty where all rows were duplicates. Where the offsets of a log
    /// have gaps, a range from the first to the last may have some in it.
    pub offsets: Vec<Range<Offset>>,
    /// Rows that were not stored because their key was seen within the window: (batch, row), ascending.
    pub duplicates: Vec<(usize, usize)>,
    /// The level that was reached, by a log that has another than those that are asked for.
    pub ack: Option<Ack>,
}

/// The pending answer to an append. Dropping it does not undo the append.
pub type AppendReply = oneshot::Receiver<AppendResult>;

/// The answer to an append.
pub type AppendResult = Result<Appended, AppendError>;

/// A batch as it stands in the log.
#[derive(Debug, Clone)]
pub struct LogBatch {
    /// Offset of the first row.
    pub offset: Offset,
    /// The table of the rows.
    pub dataset: Dataset,
    /// Shared, immutable rows.
    pub rows: RecordBatch,
}

impl LogBatch {
    /// The offset after the last row.
    pub fn next_offset(&self) -> Offset {
        self.offset + self.rows.num_rows() as u64
    }
}

/// What a log holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogBounds {
    /// The first offset that can be read.
    pub first: Offset,
    /// The offset after the last acknowledged (visible) row.
    pub next: Offset,
}

/// An ordered log of batches, for those who read it. What is written elsewhere, as the alerts of another node, is no more than that.
pub trait LogReader: Send + Sync + 'static {
    /// Batches from the one that holds `from` (batches are not split: its first rows may lie below `from`) up to the
    /// visible end, at least one if there is any, stopping once `bytes_max` of memory is reached, or at what has come so far
    /// when the rows are on another machine.
    ///
    /// Offsets may have gaps (burnt by a failed group commit, or lost to damage): the first batch may start after `from`. No
    /// batch at all, although `from` lies below the end, means that nothing up to the end as it is now can be read: wait for
    /// the bounds to change.
    ///
    /// # Errors
    /// [`PipelineError::Forgotten`] below the first offset, also when the log forgets while it is read: rows are never passed
    /// over for that without a word. Damaged frames are skipped and counted, not an error.
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError>;

    /// A receiver of the bounds, which changes with every group commit and every forgotten segment.
    fn watch(&self) -> watch::Receiver<LogBounds>;

    /// The bounds now.
    fn bounds(&self) -> LogBounds {
        *self.watch().borrow()
    }
}

/// A log that is written here: segment files by default, memory in tests, Fluvio for many machines.
pub trait StreamLog: LogReader {
    /// Queues the batches; the reply comes when the ack level is reached. Encoding happens on the caller's thread, so call
    /// it where CPU work belongs. Fullness is an answer, never a wait.
    fn append(&self, append: Append) -> AppendReply;

    /// Allows the log to drop what lies below `below`. Whole segments go, and only when no retention bound keeps them.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when a segment cannot be removed.
    fn forget(&self, below: Offset) -> Result<(), PipelineError>;
}

/// Whether a batch is one that a log takes.
///
/// # Errors
/// [`AppendError::Failed`], for the caller.
pub fn check_batch(batch: &EventBatch) -> Result<(), AppendError> {
    let (rows, keys) = (batch.rows.num_rows(), batch.keys.len());
    if keys != 0 && keys != rows {
        return Err(AppendError::Failed(format!("{keys} keys for {rows} rows")));
    }
    if u32::try_from(rows).is_err() {
        return Err(AppendError::Failed(format!("{rows} rows in one batch, at most {} fit", u32::MAX)));
    }
    Ok(())
}
