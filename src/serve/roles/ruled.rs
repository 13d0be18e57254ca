//! The rules of a worker: those of the topic of changes, which all partitions share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidegate_events::Dataset;
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{Emitter, LogBatch, Offset, Operator, PipelineError, StreamLog};
use tokio::sync::watch;

/// Memory of one read.
const READ_BYTES: usize = 4 << 20;

/// Before a failed read is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// An operator that is given, before each batch of its partition, the changes that were made since the batch before.
///
/// Unlike other operators it reads from a log. So a change takes effect at another offset of each partition, and a replay may see
/// it earlier than the first run did; how far it has read is part of its state, so that no replay sees rules that are older.
pub(super) struct Ruled<O> {
    rules: O,
    changes: Arc<dyn StreamLog>,
    /// Changes below are known to the rules.
    applied: Offset,
    stopping: Stopping,
}

/// How long the rules may wait for changes that cannot be read.
pub(super) struct Stopping {
    /// Until then, once it is said; not at all any more when nobody can say it.
    pub(super) until: watch::Receiver<Option<Instant>>,
    /// Set when they gave up: what came since was not looked at, and their state is not to be kept.
    pub(super) outdated: Arc<AtomicBool>,
}

impl Stopping {
    fn is_over(&self) -> bool {
        self.until.has_changed().is_err() || self.until.borrow().is_some_and(|until| Instant::now() >= until)
    }

    fn gave_up(&self) -> bool {
        self.outdated.load(Ordering::Acquire)
    }
}

impl<O: Operator> Ruled<O> {
    /// The rules that `rules` makes of these changes.
    pub(super) fn new(rules: O, changes: Arc<dyn StreamLog>, stopping: Stopping) -> Self {
        Self { rules, changes, applied: 0, stopping }
    }

    /// Reads what was changed; whether the rules are those of today.
    fn catch_up(&mut self, out: &mut Emitter) -> bool {
        if self.stopping.gave_up() {
            return false;
        }
        let end = self.changes.bounds().next;
        let mut failing = false;
        while self.applied < end {
            match read_on(&*self.changes, self.applied, READ_BYTES) {
                Ok(reading) => {
                    for batch in reading.batches.iter().filter(|batch| batch.dataset == Dataset::Changes) {
                        self.rules.process(batch, out);
                    }
                    self.applied = reading.next;
                }
                // Events that went on without the rules of today would not be looked at again.
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "rule changes cannot be read; the partition waits for them");
                    }
                    if self.stopping.is_over() {
                        tracing::warn!(
                            "rule changes could not be read before the end: rows after the checkpoint are processed again"
                        );
                        self.stopping.outdated.store(true, Ordering::Release);
                        return false;
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
        true
    }
}

impl<O: Operator> Operator for Ruled<O> {
    fn name(&self) -> &str {
        self.rules.name()
    }

    fn process(&mut self, batch: &LogBatch, out: &mut Emitter) {
        if self.catch_up(out) {
            self.rules.process(batch, out);
        }
    }

    fn advance(&mut self, watermark: i64, out: &mut Emitter) {
        if !self.stopping.gave_up() {
            self.rules.advance(watermark, out);
        }
    }

    fn save(&self) -> Vec<u8> {
        [self.applied.to_le_bytes().as_slice(), &self.rules.save()].concat()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PipelineError> {
        let (applied, rules) =
            state.split_first_chunk().ok_or_else(|| PipelineError::Invalid("the state is cut".to_owned()))?;
        self.rules.restore(rules)?;
        self.applied = Offset::from_le_bytes(*applied);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidegate_pipeline::log::MemoryLog;
    use tidegate_pipeline::registry::{Action, Change, changes_to_batch};
    use tidegate_pipeline::{Append, AppendReply, EventBatch, LogBounds, LogReader};

    use super::*;

    /// Remembers the offsets it was given, and of which dataset.
    #[derive(Default)]
    struct Seen(Vec<(Dataset, usize)>);

    impl Operator for Seen {
        fn name(&self) -> &str {
            "seen"
        }

        fn process(&mut self, batch: &LogBatch, _out: &mut Emitter) {
            self.0.push((batch.dataset, batch.rows.num_rows()));
        }

        fn save(&self) -> Vec<u8> {
            vec![self.0.len() as u8]
        }

        fn restore(&mut self, state: &[u8]) -> Result<(), PipelineError> {
            self.0 = vec![(Dataset::DeadLetters, 0); usize::from(state[0])];
            Ok(())
        }
    }

    fn change(log: &MemoryLog, name: &str) {
        let change = Change {
            time_us: 0,
            change_id: name.to_owned(),
            org_id: "default".to_owned(),
            actor: "a".to_owned(),
            kind: "rule".to_owned(),
            target_id: name.to_owned(),
            action: Action::Create,
            body: json!({}),
        };
        let rows = changes_to_batch(&[change]).expect("a batch");
        let batch = EventBatch { dataset: Dataset::Changes, rows, keys: Vec::new() };
        log.append(Append { batches: vec![batch], ..Append::default() })
            .blocking_recv()
            .expect("answer")
            .expect("stored");
    }

    #[test]
    fn changes_come_before_the_next_batch_each_once_also_after_a_restart() {
        let log = Arc::new(MemoryLog::new(10, 1 << 20));
        let mut out = Emitter::default();
        let events = LogBatch {
            offset: 0,
            dataset: Dataset::SecurityEvents,
            rows: arrow::array::RecordBatch::new_empty(Dataset::SecurityEvents.core_schema()),
        };
        change(&log, "a");
        change(&log, "b");
        let (_until, going_on) = stopping();
        let mut first = Ruled::new(Seen::default(), log.clone(), going_on);
        first.process(&events, &mut out);
        let (changed, event) = ((Dataset::Changes, 1), (Dataset::SecurityEvents, 0));
        assert_eq!(first.rules.0, [changed, changed, event]);
        change(&log, "c");
        let (_until, going_on) = stopping();
        let mut second = Ruled::new(Seen::default(), log, going_on);
        second.restore(&first.save()).expect("a state");
        second.process(&events, &mut out);
        assert_eq!(second.rules.0[3..], [changed, event]);
        assert!(second.restore(&[1, 2]).is_err());
    }

    fn stopping() -> (watch::Sender<Option<Instant>>, Stopping) {
        let (sender, until) = watch::channel(None);
        (sender, Stopping { until, outdated: Arc::default() })
    }

    /// A log that has something and cannot be read.
    struct Away(watch::Sender<LogBounds>);

    impl LogReader for Away {
        fn read(&self, _from: Offset, _bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
            Err(PipelineError::Invalid("away".to_owned()))
        }

        fn watch(&self) -> watch::Receiver<LogBounds> {
            self.0.subscribe()
        }
    }

    impl StreamLog for Away {
        fn append(&self, _append: Append) -> AppendReply {
            tokio::sync::oneshot::channel().1
        }

        fn forget(&self, _below: Offset) -> Result<(), PipelineError> {
            Ok(())
        }
    }

    #[test]
    fn who_is_told_to_stop_does_not_wait_for_changes_for_ever_and_looks_at_nothing_without_them() {
        for told in [true, false] {
            let away = Arc::new(Away(watch::Sender::new(LogBounds { first: 0, next: 1 })));
            let (until, stopping) = stopping();
            let outdated = stopping.outdated.clone();
            let mut rules = Ruled::new(Seen::default(), away, stopping);
            let (done, ended) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || {
                let rows = arrow::array::RecordBatch::new_empty(Dataset::SecurityEvents.core_schema());
                let batch = LogBatch { offset: 0, dataset: Dataset::SecurityEvents, rows };
                rules.process(&batch, &mut Emitter::default());
                rules.process(&batch, &mut Emitter::default());
                done.send(rules.rules.0).ok();
            });
            assert!(ended.recv_timeout(Duration::from_millis(300)).is_err(), "it waits for them");
            assert!(!outdated.load(Ordering::Acquire));
            if told {
                until.send_replace(Some(Instant::now()));
            } else {
                drop(until);
            }
            let seen = ended.recv_timeout(Duration::from_secs(5)).expect("it comes to an end");
            assert!(seen.is_empty() && outdated.load(Ordering::Acquire), "{seen:?}");
        }
    }
}
