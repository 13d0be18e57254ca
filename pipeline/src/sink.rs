//! The sink seam: one destination, idempotent. Retry, backoff and dead letters live in `delivery`, never here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use thiserror::Error;

use crate::log::{LogBatch, Offset};

/// Consecutive batches of one log for one sink.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// In offset order; the first one's offset is the sink's cursor, or lies below it when the batch straddles it.
    pub batches: Vec<Arc<LogBatch>>,
    /// The offset after the last row.
    pub next_offset: Offset,
}

/// Why a delivery did not succeed.
#[derive(Debug, Error)]
pub enum SinkError {
    /// The destination or the way to it: trying the same again may work.
    #[error("{0}")]
    Retryable(String),
    /// The rows of this delivery: trying again cannot work. They go to the dead letters with this reason. Where the sink says which
    /// rows are meant, the others are given again without them.
    #[error("{0}")]
    Fatal(Refusal),
    /// Rows that were taken and are not committed, one or many: they can never be made durable together. The sink has forgotten
    /// all that it took after [`committed`](Sink::committed). It is given again, a delivery and a flush at a time, so that
    /// the rows that are the reason go to the dead letters and the others do not.
    #[error("{0}")]
    Withdrawn(Refusal),
}

/// Rows that a destination can never take, and why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Refusal {
    /// For people: what the destination said.
    pub reason: String,
    /// The offsets of the refused rows, ascending, when the sink knows them: without these the others may be taken. Empty when it
    /// does not; then they are searched for, with a bounded number of tries.
    pub rows: Vec<Offset>,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, rows: Vec::new() }
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Self::from(reason.to_owned())
    }
}

/// The future of a sink's answer.
pub type SinkFuture<'a> = Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + 'a>>;

/// A destination with a cursor of its own on a log.
pub trait Sink: Send {
    /// A stable name: label of metrics, stage of dead letters.
    fn name(&self) -> &str;

    /// Takes a delivery. The sink may buffer it; what [`committed`](Self::committed) covers is durable at the
    /// destination. The same offsets twice are harmless.
    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_>;

    /// Makes all that was taken durable. Called on age bounds and at drain.
    fn flush(&mut self) -> SinkFuture<'_>;

    /// The offset up to which everything is durable at the destination: where reading resumes after a restart.
    fn committed(&self) -> Offset;
}
