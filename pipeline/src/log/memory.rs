//! The stream log in memory: for tests, and for what need not outlive the process.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::dedup::{GroupKeys, Window};
use super::segment::memory_bytes;
use super::shared::Tail;
use super::{
    Append, AppendReply, AppendResult, Appended, EventBatch, LogBatch, LogBounds, LogReader, Offset, StreamLog,
    check_batch,
};
use crate::error::{AppendError, PipelineError};

/// A log that holds its batches in memory and answers at once, with the same offsets and de-duplication as
/// [`SegmentLog`](super::SegmentLog).
#[derive(Debug)]
pub struct MemoryLog {
    state: Mutex<State>,
    bounds: watch::Sender<LogBounds>,
    bytes_max: usize,
}

#[derive(Debug)]
struct State {
    batches: Tail,
    window: Window,
    next: Offset,
}

impl MemoryLog {
    /// An empty log that remembers `dedup_keys_max` keys and is full at `bytes_max` bytes of batches, until
    /// [`forget`](StreamLog::forget) makes room.
    pub fn new(dedup_keys_max: usize, bytes_max: usize) -> Self {
        let state = State { batches: Tail::default(), window: Window::new(dedup_keys_max), next: 0 };
        Self { state: Mutex::new(state), bounds: watch::channel(LogBounds::default()).0, bytes_max }
    }

    fn store(&self, append: Append) -> AppendResult {
        append.batches.iter().try_for_each(check_batch)?;
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.batches.bytes() >= self.bytes_max {
            return Err(AppendError::Full(format!("the log has {} bytes of memory", self.bytes_max)));
        }
        let mut keys = GroupKeys::default();
        let mut appended = Appended::default();
        let mut stored = Vec::new();
        let mut next = state.next;
        for (nth, batch) in append.batches.into_iter().enumerate() {
            let duplicates = keys.duplicates(&batch.keys, &state.window);
            appended.duplicates.extend(duplicates.iter().map(|row| (nth, *row)));
            let kept = batch.without(duplicates).map_err(|error| AppendError::Failed(error.to_string()))?;
            let EventBatch { dataset, rows, .. } = kept;
            let offset = next;
            next += rows.num_rows() as u64;
            appended.offsets.push(offset..next);
            if offset < next {
                stored.push(LogBatch { offset, dataset, rows });
            }
        }
        keys.commit(&mut state.window);
        state.next = next;
        for batch in stored {
            let bytes = memory_bytes(&batch.rows);
            state.batches.push(Arc::new(batch), bytes, usize::MAX);
        }
        self.bounds.send_modify(|bounds| bounds.next = next);
        Ok(appended)
    }
}

impl LogReader for MemoryLog {
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let state = self.state.lock();
        let first = self.bounds.borrow().first;
        state.batches.read(from, bytes_max).ok_or(PipelineError::Forgotten { asked: from, first })
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.bounds.subscribe()
    }
}

impl StreamLog for MemoryLog {
    fn append(&self, append: Append) -> AppendReply {
        let (reply, receiver) = oneshot::channel();
        _ = reply.send(self.store(append));
        receiver
    }

    fn forget(&self, below: Offset) -> Result<(), PipelineError> {
        let mut state = self.state.lock();
        state.batches.forget(below);
        self.bounds.send_modify(|bounds| bounds.first = state.batches.start());
        Ok(())
    }
}
