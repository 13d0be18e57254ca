//! A log in memory whose answers a test decides: it stores, refuses, or keeps everybody waiting.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tidegate_pipeline::{
    Ack, Append, AppendError, AppendReply, Appended, EventBatch, LogBatch, LogBounds, LogReader, Offset, PipelineError,
    StreamLog,
};
use tokio::sync::{oneshot, watch};

/// What the log does with an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Store,
    Full,
    Failed,
    Closed,
    /// Takes the append, and answers once it stores again.
    Hold,
    /// Keeps the thread that appends until it stores again.
    Block,
}

pub struct TestLog {
    state: Mutex<State>,
    unblocked: Condvar,
    bounds: watch::Sender<LogBounds>,
}

struct State {
    mood: Mood,
    seen: HashSet<u128>,
    next: Offset,
    /// What was stored: the ack level asked for and the rows without duplicates.
    stored: Vec<(Ack, EventBatch)>,
    appends: usize,
    held: Vec<(Append, oneshot::Sender<Result<Appended, AppendError>>)>,
}

impl TestLog {
    pub fn new() -> Arc<Self> {
        let state = State {
            mood: Mood::Store,
            seen: HashSet::new(),
            next: 0,
            stored: Vec::new(),
            appends: 0,
            held: Vec::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            unblocked: Condvar::new(),
            bounds: watch::Sender::new(LogBounds::default()),
        })
    }

    pub fn set(&self, mood: Mood) {
        let mut state = self.state.lock();
        state.mood = mood;
        self.unblocked.notify_all();
        if mood == Mood::Store {
            for (append, reply) in std::mem::take(&mut state.held) {
                let _ = reply.send(Ok(state.store(append)));
            }
        }
    }

    pub fn appends(&self) -> usize {
        self.state.lock().appends
    }

    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    pub fn stored(&self) -> Vec<(Ack, EventBatch)> {
        self.state.lock().stored.clone()
    }
}

impl State {
    fn store(&mut self, append: Append) -> Appended {
        let mut appended = Appended::default();
        for (at, batch) in append.batches.into_iter().enumerate() {
            let first = self.next;
            let mut keep = Vec::new();
            for row in 0..batch.rows.num_rows() {
                let key = batch.keys.get(row).copied().unwrap_or(0);
                let fresh = key == 0 || self.seen.insert(key);
                if !fresh {
                    appended.duplicates.push((at, row));
                }
                keep.push(fresh);
            }
            self.next += keep.iter().filter(|keep| **keep).count() as u64;
            appended.offsets.push(first..self.next);
            let rows = arrow::compute::filter_record_batch(&batch.rows, &keep.into()).expect("a filter");
            self.stored.push((append.ack, EventBatch { rows, ..batch }));
        }
        appended
    }
}

impl LogReader for TestLog {
    fn read(&self, _from: Offset, _bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        Ok(Vec::new())
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.bounds.subscribe()
    }
}

impl StreamLog for TestLog {
    fn append(&self, append: Append) -> AppendReply {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.appends += 1;
        while state.mood == Mood::Block {
            self.unblocked.wait(&mut state);
        }
        let answer = match state.mood {
            Mood::Store => Ok(state.store(append)),
            Mood::Full => Err(AppendError::Full("the test says so".into())),
            Mood::Failed => Err(AppendError::Failed("the test says so".into())),
            Mood::Closed | Mood::Block => Err(AppendError::Closed),
            Mood::Hold => {
                state.held.push((append, reply));
                return receiver;
            }
        };
        let _ = reply.send(answer);
        receiver
    }

    fn forget(&self, _below: Offset) -> Result<(), PipelineError> {
        Ok(())
    }
}
