//! What can go wrong in this crate, and whose fault it is.

use std::path::PathBuf;

use thiserror::Error;

/// Why a log did not take an append. Nothing of the append is acknowledged.
#[derive(Debug, Clone, Error)]
pub enum AppendError {
    /// Load: the log's disk bound or its queue is reached. The client should retry after a while.
    #[error("the log is full: {0}")]
    Full(String),
    /// The machine: the write or the fsync failed. The log has moved, or will move, to a new segment; retry.
    #[error("the log could not make the events durable: {0}")]
    Failed(String),
    /// The program is stopping.
    #[error("the log is closed")]
    Closed,
}

/// Every other failure of the pipeline.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// The machine: a file operation failed.
    #[error("{op} {path}")]
    Io {
        /// What was tried: `open`, `read`, `write`, `sync`, `rename`, `remove`, `list`.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The disk or a crash: a file does not hold what its format says.
    #[error("{path} is damaged at byte {at}: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The reader: the offset was forgotten by retention.
    #[error("offset {asked} is gone, the log starts at {first}")]
    Forgotten {
        /// The offset asked for.
        asked: u64,
        /// The first one there is.
        first: u64,
    },
    /// The operator of the program: another process uses this folder.
    #[error("{0} is in use by another tidegate process")]
    Locked(PathBuf),
    /// The operator of the program: a configured value or a name is not valid.
    #[error("{0}")]
    Invalid(String),
    /// The machines around: a change is in the log and could not be read back in time, so that it is not known here whether it counts.
    #[error("{0}")]
    Unseen(String),
    /// A bug or an exhausted machine: Arrow refused a batch.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// An append of our own (a change, an alert) was refused.
    #[error(transparent)]
    Append(#[from] AppendError),
}
