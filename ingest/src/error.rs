//! What can go wrong in this crate, and whose fault it is.

use std::path::PathBuf;

use thiserror::Error;

/// A failure of ingest that is not the fault of one event or one body (those are answered per item).
#[derive(Debug, Error)]
pub enum IngestError {
    /// The operator of the program: a mapping file does not say what it must.
    #[error("{path}: {reason}")]
    Mapping {
        /// The file, with the line after a colon when it is known.
        path: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The machine: a file or a socket operation failed.
    #[error("{op} {path}")]
    Io {
        /// What was tried: `read`, `list`, `bind`, `accept`.
        op: &'static str,
        /// On which file or address.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A bug or an exhausted machine: Arrow refused columns that were built here.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// The caller: more was buffered between two flushes than a column can address; flush more often.
    #[error("column {0:?} has more than 2 GiB of text: flush at a lower `buffered_bytes_max`")]
    ColumnFull(String),
}
