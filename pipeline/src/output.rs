//! The output log and its one writing turn.
//!
//! An alert's `seq` is its offset in the output log, and it is a column of the row: it must be known before the append.
//! So there is one writer at a time: who appends holds the turn until the answer is there. The run loop appends alerts,
//! deliveries append dead letters, both through here. While the log is full both wait: what frees it is the delivery of what
//! it holds, or a higher bound.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use tidegate_events::{Alert, Dataset, alerts_to_batch};
use tokio::sync::Mutex;

use crate::error::{AppendError, PipelineError};
use crate::log::{Ack, Append, EventBatch, Offset, StreamLog};

/// Alerts that came of one batch of the ingest log.
#[derive(Debug, Clone)]
pub struct AlertGroup {
    /// In the order in which they were emitted.
    pub alerts: Vec<Alert>,
    /// The receive time (µs) of the rows: that of the batch that caused them, so that a replay gives the same rows.
    pub received_us: i64,
}

/// The output log, shared by all that write to it.
pub struct OutputLog {
    log: Arc<dyn StreamLog>,
    /// Where the next append lands. Not known at first, after a failure (which may burn offsets), and after a writer who
    /// did not wait for the answer.
    turn: Mutex<Option<Offset>>,
    /// Whether the log itself writes `seq`, since its offsets cannot be told beforehand.
    numbers: bool,
}

impl OutputLog {
    /// The one writer of `log`.
    pub fn new(log: Arc<dyn StreamLog>) -> Self {
        Self { log, turn: Mutex::default(), numbers: false }
    }

    /// The same for a log whose offsets have gaps, and which gives rows that are read their offset as `seq`.
    pub fn of_numbering_log(log: Arc<dyn StreamLog>) -> Self {
        Self { log, turn: Mutex::default(), numbers: true }
    }

    /// The log, for readers.
    pub fn log(&self) -> &Arc<dyn StreamLog> {
        &self.log
    }

    /// Appends alerts, in batches of at most `rows_max`, durably. They get consecutive `seq`s, which are returned, unless the log
    /// numbers them.
    ///
    /// # Errors
    /// [`PipelineError::Append`] when the log does not take them now (nothing is stored then), [`PipelineError::Arrow`] when
    /// they do not make a batch.
    pub async fn append_alerts(&self, groups: &[AlertGroup], rows_max: usize) -> Result<Range<Offset>, PipelineError> {
        let mut turn = self.turn.lock().await;
        let first = self.next_offset(&mut turn).await?;
        let mut next = first;
        let mut batches = Vec::with_capacity(groups.len());
        for group in groups {
            for alerts in group.alerts.chunks(rows_max.max(1)) {
                let rows = alerts_to_batch(alerts, next, group.received_us)?;
                batches.push(EventBatch { dataset: Dataset::Alerts, rows, keys: Vec::new() });
                next += alerts.len() as u64;
            }
        }
        let stored = self.append(&mut turn, batches).await?;
        if self.numbers {
            return Ok(stored.unwrap_or(first..first));
        }
        if stored.as_ref().is_some_and(|stored| *stored != (first..next)) {
            tracing::error!(
                ?stored,
                first,
                next,
                "alerts did not get the offsets they carry as seq: someone else writes"
            );
        }
        Ok(first..next)
    }

    /// Appends rows of another dataset, durably. `keys` as in [`EventBatch`].
    ///
    /// # Errors
    /// [`PipelineError::Append`] when the log does not take them now.
    pub async fn append_batch(&self, batch: EventBatch) -> Result<(), PipelineError> {
        let mut turn = self.turn.lock().await;
        self.append(&mut turn, vec![batch]).await?;
        Ok(())
    }

    /// Where the next append lands. When that is not known, the log is asked: an append without rows has no effect, and its
    /// answer, which comes after those of all appends before it, names the offset.
    async fn next_offset(&self, turn: &mut Option<Offset>) -> Result<Offset, PipelineError> {
        if turn.is_none() {
            let rows = RecordBatch::new_empty(Dataset::Alerts.core_schema());
            self.append(turn, vec![EventBatch { dataset: Dataset::Alerts, rows, keys: Vec::new() }]).await?;
        }
        Ok(turn.unwrap_or_else(|| self.log.bounds().next))
    }

    async fn append(
        &self,
        turn: &mut Option<Offset>,
        batches: Vec<EventBatch>,
    ) -> Result<Option<Range<Offset>>, PipelineError> {
        *turn = None;
        let reply = self.log.append(Append { batches, ack: Ack::Disk });
        let offsets = reply.await.unwrap_or(Err(AppendError::Closed))?.offsets;
        *turn = offsets.last().map(|range| range.end);
        let first = offsets.iter().find(|range| !range.is_empty());
        let last = offsets.iter().rfind(|range| !range.is_empty());
        Ok(first.zip(last).map(|(first, last)| first.start..last.end))
    }
}

impl std::fmt::Debug for OutputLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputLog").field("bounds", &self.log.bounds()).finish_non_exhaustive()
    }
}
