//! What can go wrong in this crate, and whose fault it is.

use std::path::{Path, PathBuf};

use thiserror::Error;
use tidegate_pipeline::{Offset, Refusal, SinkError};

use crate::fluvio::FluvioFailure;

/// Every failure of a sink.
#[derive(Debug, Error)]
pub enum SinksError {
    /// The machine: a file operation failed. Trying again may work once the cause (full disk, device) is gone.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried: `open`, `create`, `read`, `write`, `sync`, `rename`, `remove`, `list`, `make`.
        op: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The disk or a crash: a file does not hold what its format says. Run `tidegate doctor`; the store sets such files aside.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller: a batch does not have the columns of its dataset. Trying again cannot work.
    #[error("a batch of {dataset} cannot be stored: {reason}")]
    Rows {
        /// The table of the batch.
        dataset: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another writer of the same log has moved the cursor: what was to be committed is (partly) there already.
    #[error("the cursor stands at {now}, not at {expected}: another writer has committed")]
    CursorMoved {
        /// Where the commit was to begin.
        expected: u64,
        /// Where the cursor is.
        now: u64,
    },
    /// The database, or the way to it: trying again may work. Says what was tried, what the server said, and what to do.
    #[error("{reason}")]
    Database {
        /// With the SQLSTATE where there is one.
        reason: String,
    },
    /// The database: somebody else uses what was to be changed, and was not waited for any longer. Trying again later may work.
    #[error("{reason}")]
    Locked {
        /// With the SQLSTATE.
        reason: String,
    },
    /// The rows: the database refuses one of them, with its own words. Without that row the others can be stored.
    #[error("{reason}")]
    Refused {
        /// With the SQLSTATE.
        reason: String,
        /// The offset of that row, when the database says which one it is.
        row: Option<Offset>,
    },
    /// The operator of the program: another server has opened the same object store and writes it now. Start this one again when
    /// the other is stopped, or give it a place of its own.
    #[error(
        "{place} was taken over by {by}: this server writes to it no more, and its log keeps what is not stored; stop the other \
         server and start this one again, or give each a parquet.url of its own"
    )]
    Replaced {
        /// Which store.
        place: String,
        /// Who has it.
        by: String,
    },
    /// The operator of the program: an object store holds the rows of another server's log.
    #[error(
        "{place} holds the rows of the log {log} of {host}, and the log in data_dir is another one, with rows of its own; give this \
         server a parquet.url of its own, or an empty data_dir to go on where the other log ended"
    )]
    Foreign {
        /// Which store.
        place: String,
        /// The machine that wrote it.
        host: String,
        /// Its log.
        log: String,
    },
    /// The operator of the program: a configured value is not valid.
    #[error("{0}")]
    Invalid(String),
    /// A Fluvio cluster, or the way to it: each failure says who can do something about it.
    #[error(transparent)]
    Fluvio(FluvioFailure),
    /// A bug or an exhausted machine: Parquet refused to encode or decode.
    #[error("parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// A bug or an exhausted machine: Arrow refused a batch.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// A bug: work on a thread of its own ended without an answer. Nothing of it is visible; trying again may work.
    #[error("the work stopped: {0}")]
    Stopped(String),
}

impl SinksError {
    /// For `map_err` of a file operation.
    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source }
    }
}

impl SinksError {
    /// Whether the rows, and not the machine, are the reason why a commit failed: with the same rows it fails again.
    pub(crate) fn is_of_the_rows(&self) -> bool {
        match self {
            Self::Rows { .. } | Self::Refused { .. } | Self::Arrow(_) => true,
            Self::Parquet(parquet::errors::ParquetError::External(cause)) => !cause.is::<std::io::Error>(),
            Self::Parquet(_) => true,
            _ => false,
        }
    }

    /// What a delivery is told of rows that cannot be stored.
    pub(crate) fn into_refusal(self) -> Refusal {
        let reason = self.to_string();
        match self {
            Self::Refused { row, .. } => Refusal { reason, rows: row.into_iter().collect() },
            _ => Refusal::from(reason),
        }
    }
}

impl From<SinksError> for SinkError {
    fn from(error: SinksError) -> Self {
        match error {
            SinksError::Rows { .. } => Self::Fatal(error.into_refusal()),
            _ => Self::Retryable(error.to_string()),
        }
    }
}
