//! The sink of one log: takes batches, and commits them when they are many or when it is asked to.

use std::sync::Arc;
use std::time::Instant;

use metrics::{counter, gauge, histogram};
use tidegate_pipeline::{Delivery, LogBatch, Offset, Sink, SinkError, SinkFuture};

use super::columns::{CheckedLayouts, row_bytes};
use super::commit::{Commit, Committed, rows_from};
use super::store::{LogSource, ParquetStore};
use crate::error::SinksError;
use crate::metrics as names;

/// Writes one log into a [`ParquetStore`]. Sorting and encoding run on a thread of the
/// store, never on the threads of the runtime that awaits the sink.
#[derive(Debug)]
pub struct ParquetSink {
    store: Arc<ParquetStore>,
    source: LogSource,
    name: &'static str,
    checked: CheckedLayouts,
    /// Taken and not yet committed, in offset order.
    buffer: Vec<Arc<LogBatch>>,
    buffer_bytes: usize,
    buffer_rows: usize,
    /// The offset after the last row taken.
    taken: Offset,
    /// Commits in a row that panicked.
    panics: u32,
    /// The last commit failed at the place: the next one asks whether it answers before anything is encoded.
    unanswered: bool,
}

/// Panics in a row after which the rows are held to be the reason.
const PANICS_MAX: u32 = 3;

impl ParquetSink {
    pub(crate) fn new(store: Arc<ParquetStore>, source: LogSource) -> Self {
        let taken = store.cursor(source);
        let name = match source {
            LogSource::Ingest => "parquet:ingest",
            LogSource::Output => "parquet:output",
        };
        Self {
            store,
            source,
            name,
            checked: CheckedLayouts::default(),
            buffer: Vec::new(),
            buffer_bytes: 0,
            buffer_rows: 0,
            taken,
            panics: 0,
            unanswered: false,
        }
    }

    async fn take(&mut self, delivery: Delivery) -> Result<(), SinksError> {
        let config = &self.store.config;
        let (bytes_max, commit_bytes, commit_rows) =
            (config.buffer_bytes_max, config.commit_bytes.min(config.buffer_bytes_max), config.commit_rows);
        for batch in delivery.batches {
            if batch.next_offset() <= self.taken {
                continue;
            }
            let bytes = row_bytes(&batch.rows);
            if !self.buffer.is_empty() && self.buffer_bytes + bytes > bytes_max {
                self.commit().await?;
            }
            self.taken = batch.next_offset();
            self.buffer_bytes += bytes;
            self.buffer_rows += batch.rows.num_rows();
            self.buffer.push(batch);
        }
        self.taken = self.taken.max(delivery.next_offset);
        gauge!(names::PARQUET_BUFFER_BYTES, "source" => self.source.as_str()).set(self.buffer_bytes as f64);
        if self.buffer_bytes >= commit_bytes || self.buffer_rows >= commit_rows {
            self.commit().await?;
        }
        Ok(())
    }

    /// Commits what is buffered. When another commit (one whose future was dropped, say) was there first, only what it did
    /// not cover is committed.
    async fn commit(&mut self) -> Result<(), SinksError> {
        loop {
            let from = self.store.cursor(self.source);
            if self.taken <= from {
                self.taken = from;
                self.clear();
                return Ok(());
            }
            match self.commit_from(from).await {
                Err(SinksError::CursorMoved { now, .. }) if now > from => {}
                other => {
                    if other.is_ok() {
                        self.clear();
                    }
                    return other;
                }
            }
        }
    }

    /// What the delivery is told of a failed commit. When its rows are the reason, they are forgotten.
    fn told(&mut self, error: SinksError) -> SinkError {
        if !error.is_of_the_rows() && self.panics < PANICS_MAX {
            return SinkError::from(error);
        }
        self.panics = 0;
        self.taken = self.store.cursor(self.source);
        self.clear();
        SinkError::Withdrawn(error.into_refusal())
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.buffer_bytes = 0;
        self.buffer_rows = 0;
        gauge!(names::PARQUET_BUFFER_BYTES, "source" => self.source.as_str()).set(0.0);
    }

    async fn commit_from(&mut self, from: Offset) -> Result<(), SinksError> {
        let batches = rows_from(&self.buffer, from);
        let commit = Commit { source: self.source, from, to: self.taken, batches, ask_first: self.unanswered };
        let started = Instant::now();
        let done = self.store.spawn_commit(commit).await;
        self.panics = if done.as_ref().is_err_and(tokio::task::JoinError::is_panic) { self.panics + 1 } else { 0 };
        let done = done.unwrap_or_else(|stopped| Err(SinksError::Stopped(stopped.to_string())));
        self.unanswered = matches!(done, Err(SinksError::Io { .. }));
        self.count(&done, started);
        done.map(|_| ())
    }

    fn count(&self, done: &Result<Committed, SinksError>, started: Instant) {
        let source = self.source.as_str();
        let outcome = if done.is_ok() { "done" } else { "failed" };
        counter!(names::PARQUET_COMMITS, "source" => source, "outcome" => outcome).increment(1);
        if let Ok(done) = done {
            counter!(names::PARQUET_ROWS, "source" => source).increment(done.rows);
            counter!(names::PARQUET_BYTES, "source" => source).increment(done.bytes);
            histogram!(names::PARQUET_COMMIT_SECONDS, "source" => source).record(started.elapsed().as_secs_f64());
            tracing::debug!(source, files = done.files, rows = done.rows, bytes = done.bytes, "committed to Parquet");
        }
    }
}

impl Sink for ParquetSink {
    fn name(&self) -> &str {
        self.name
    }

    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_> {
        Box::pin(async move {
            for batch in &delivery.batches {
                self.checked.check(batch.dataset, &batch.rows)?;
            }
            let taken = self.take(delivery).await;
            taken.map_err(|error| self.told(error))
        })
    }

    fn flush(&mut self) -> SinkFuture<'_> {
        Box::pin(async move {
            let committed = self.commit().await;
            committed.map_err(|error| self.told(error))
        })
    }

    fn committed(&self) -> Offset {
        self.store.cursor(self.source)
    }
}
