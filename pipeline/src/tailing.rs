//! Reading a log on and on: what every follower of a log does with holes, forgotten rows and batches that straddle its
//! cursor.

use std::sync::Arc;

use crate::error::PipelineError;
use crate::log::{LogBatch, LogReader, Offset};

/// One read of a follower.
#[derive(Debug, Default)]
pub struct Reading {
    /// Batches that begin at or after the cursor, in order.
    pub batches: Vec<Arc<LogBatch>>,
    /// Where to read on: past the last batch, or past a stretch of which nothing could be read.
    pub next: Offset,
    /// Rows after the cursor that retention forgot before they were read.
    pub forgotten: u64,
}

/// Reads from the cursor `from`, about `bytes_max` of memory. A batch that straddles the cursor is cut to the rows from it
/// on; forgotten rows are skipped and counted; a stretch that is damaged to its end is skipped.
///
/// # Errors
/// [`PipelineError::Io`] when the log cannot be read now.
pub fn read_on(log: &dyn LogReader, from: Offset, bytes_max: usize) -> Result<Reading, PipelineError> {
    // Taken before the read, so that an empty answer means that there is nothing whole below it.
    let bounds = log.bounds();
    let mut start = from;
    let read = loop {
        match log.read(start, bytes_max) {
            // Retention may move on between the two calls, so it may take more than one step; each is forward.
            Err(PipelineError::Forgotten { first, .. }) if first > start => start = first,
            read => break read?,
        }
    };
    let batches: Vec<_> = read.iter().filter_map(|batch| rows_from(batch, start)).collect();
    let next = batches.last().map_or(bounds.next.max(start), |batch| batch.next_offset());
    Ok(Reading { batches, next, forgotten: start - from })
}

/// The rows of a batch from `from` on; `None` when there are none.
fn rows_from(batch: &Arc<LogBatch>, from: Offset) -> Option<Arc<LogBatch>> {
    if batch.offset >= from {
        return (batch.rows.num_rows() > 0).then(|| batch.clone());
    }
    let below = from - batch.offset;
    let rows = batch.rows.num_rows() as u64;
    (below < rows).then(|| {
        let rows = batch.rows.slice(below as usize, (rows - below) as usize);
        Arc::new(LogBatch { offset: from, dataset: batch.dataset, rows })
    })
}
