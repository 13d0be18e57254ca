//! A registry over a log to which others write too: what they change is applied as it is read, in the order of the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::gauge;
use tidegate_events::Dataset;
use tokio::task::JoinHandle;

use super::entries::Kinds;
use super::{Registry, Shared, apply_batch};
use crate::error::PipelineError;
use crate::log::{Appended, Offset};
use crate::metrics as names;
use crate::tailing::{Reading, read_on};

/// Memory of one read.
const READ_BYTES: usize = 4 << 20;

/// Before a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How long a change of our own may take to be read.
const SEEN_MAX: Duration = Duration::from_secs(10);

impl Registry {
    /// From now on, applies what anybody writes to the log, and what this registry writes once it has read it there. The task
    /// goes on until it is aborted or the log is gone. Needs a runtime.
    pub fn follow(&self) -> JoinHandle<()> {
        self.shared.follows.store(true, Ordering::Release);
        tokio::spawn(self.shared.clone().follow())
    }
}

impl Shared {
    async fn follow(self: Arc<Self>) {
        let mut bounds = self.log.watch();
        let mut failing = false;
        loop {
            let next = bounds.borrow_and_update().next;
            let from = *self.applied.borrow();
            if next <= from {
                if bounds.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let log = self.log.clone();
            let read = tokio::task::spawn_blocking(move || read_on(&*log, from, READ_BYTES)).await;
            match read.map_err(|error| error.to_string()).and_then(|read| read.map_err(|error| error.to_string())) {
                Ok(reading) => {
                    failing = false;
                    self.absorb(&reading, from);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            error,
                            "changes cannot be read from the log; those known stay, and it is tried again"
                        );
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn absorb(&self, reading: &Reading, from: Offset) {
        let mut kinds = self.kinds.write();
        let mut changed = false;
        for batch in reading.batches.iter().filter(|batch| batch.dataset == Dataset::Changes) {
            apply_batch(&mut kinds, batch, from);
            changed = true;
        }
        gauge!(names::REGISTRY_ENTRIES).set(kinds.len() as f64);
        // Under the lock, so that whoever sees the one sees the other.
        self.applied.send_replace(reading.next);
        drop(kinds);
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Waits until an append of our own was read back.
    ///
    /// # Errors
    /// [`PipelineError::Unseen`] when that takes too long.
    pub(super) async fn seen(&self, appended: &Appended) -> Result<(), PipelineError> {
        let end = appended.offsets.iter().map(|range| range.end).max().unwrap_or_default();
        let mut applied = self.applied.subscribe();
        match tokio::time::timeout(SEEN_MAX, applied.wait_for(|applied| *applied >= end)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(PipelineError::Unseen(
                "the change is stored, but this node cannot read it back now: it counts once it can".to_owned(),
            )),
        }
    }

    /// What is known now, and up to where it holds all changes.
    pub(super) fn now(&self) -> (Offset, Kinds) {
        if !self.follows.load(Ordering::Acquire) {
            // The offset first: every change below it is applied, since changes are made under the turn of the caller.
            let offset = self.log.bounds().next;
            return (offset, self.kinds.read().clone());
        }
        let kinds = self.kinds.read();
        let offset = *self.applied.borrow();
        (offset, kinds.clone())
    }
}
