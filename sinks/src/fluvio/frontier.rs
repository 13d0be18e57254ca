//! The readers of a log: one that fills the cache ahead of all that follow the log, and some for those that fell behind it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tidegate_pipeline::backoff::Backoff;
use tidegate_pipeline::{LogBatch, Offset, PipelineError};

use super::failure::FluvioFailure;
use super::frames::{offset_of, record_of};
use super::log::{Shared, Side};
use super::reader::{Entry, Reader};
use super::tail::lost_from;
use crate::metrics as names;

/// Between two tries to read.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Readers for those that fell behind; past it the oldest is given up.
const BEHIND_MAX: usize = 4;

/// A reader of one that fell behind, and where he will go on.
#[derive(Debug)]
pub(super) struct Behind {
    reader: Reader,
    at: Offset,
}

/// Fills the cache until it is aborted, or the partition no longer has what was read.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1, u64::from(shared.place.partition));
    loop {
        let Err(failure) = shared.follow_on(&mut backoff).await;
        match &failure {
            FluvioFailure::Forgotten { first, .. } => shared.skip_to(*first),
            FluvioFailure::Lost { .. } => return shared.lose(&failure),
            _ => {}
        }
        shared.tell(Side::Read, Some(failure.to_string()));
        tokio::time::sleep(backoff.failed()).await;
    }
}

impl Shared {
    async fn follow_on(&self, backoff: &mut Backoff) -> Result<Infallible, FluvioFailure> {
        let link = self.place.cluster.connect().await?;
        let from = self.cache.lock().next();
        self.still_there().await?;
        let mut reader = Reader::open(self.place.clone(), link, from).await?;
        let bounds = reader.bounds;
        if bounds.first > from {
            self.skip_to(bounds.first);
        }
        self.visible(offset_of(bounds.next));
        self.tell(Side::Read, None);
        backoff.succeeded();
        loop {
            while self.cache.lock().is_ahead() {
                self.room.notified().await;
            }
            if let Some(entry) = reader.next().await? {
                self.take(entry);
            }
        }
    }

    /// Looks whether what was read is there before a new connection reads on: the numbers of the records mean others otherwise.
    async fn still_there(&self) -> Result<(), FluvioFailure> {
        let tail = self.marks.lock().tail(Offset::MAX);
        // The futures of the client library are deep.
        match Box::pin(lost_from(&self.leader, &tail)).await? {
            Some(from) => Err(tail.lost(&self.place, from)),
            None => Ok(()),
        }
    }

    fn take(&self, entry: Entry) {
        let end = entry.end();
        self.marks.lock().push(entry.record, entry.mark);
        let mut cache = self.cache.lock();
        cache.push(entry);
        gauge!(names::FLUVIO_LOG_CACHE_BYTES, "partition" => self.place.partition.to_string())
            .set(cache.bytes() as f64);
        drop(cache);
        self.visible(end);
        self.filled.notify_all();
    }

    /// Nothing more is read: what comes now has the numbers of what was there before.
    pub(super) fn lose(&self, failure: &FluvioFailure) {
        if self.lost.swap(true, Ordering::AcqRel) {
            return;
        }
        counter!(names::FLUVIO_LOG_LOST_ENDS).increment(1);
        tracing::error!(%failure, "a broker has lost records that it had acknowledged: this log is opened anew");
        self.tell(Side::Read, Some(failure.to_string()));
        self.stage_waits();
        self.filled.notify_all();
    }

    /// Retention was faster.
    fn skip_to(&self, first: u64) {
        let mut cache = self.cache.lock();
        if first > cache.next() {
            cache.skip_to(first);
        }
        drop(cache);
        self.forgotten(offset_of(first));
        self.filled.notify_all();
    }

    /// Reads from a record that the cache no longer has, with the reader that was there last if there is one.
    pub(super) async fn read_behind(
        &self,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        if self.lost.load(Ordering::Acquire) {
            return Err(self.unreadable("the partition has lost records"));
        }
        match self.try_read_behind(from, bytes_max).await {
            Ok(batches) => Ok(batches),
            Err(FluvioFailure::Forgotten { first, .. }) => {
                self.forgotten(offset_of(first));
                Err(PipelineError::Forgotten { asked: from, first: offset_of(first) })
            }
            Err(failure @ FluvioFailure::Lost { .. }) => {
                self.lose(&failure);
                Err(self.unreadable(&failure.to_string()))
            }
            Err(failure) => Err(self.unreadable(&failure.to_string())),
        }
    }

    async fn try_read_behind(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, FluvioFailure> {
        let until = self.bounds.borrow().next;
        let known = {
            let mut behind = self.behind.lock();
            behind.iter().position(|behind| behind.at == from).map(|at| behind.swap_remove(at).reader)
        };
        let mut reader = match known {
            Some(reader) => reader,
            None => {
                counter!(names::FLUVIO_LOG_REREADS).increment(1);
                // The one that follows may wait for room, and know nothing of a broker that came back.
                self.still_there().await?;
                let link = self.place.cluster.connect().await?;
                let reader = Reader::open(self.place.clone(), link, record_of(from)).await?;
                if offset_of(reader.bounds.first) > from && reader.bounds.first > 0 {
                    return Err(FluvioFailure::Forgotten {
                        topic: self.place.topic.clone(),
                        partition: self.place.partition,
                        offset: record_of(from),
                        first: reader.bounds.first,
                    });
                }
                reader
            }
        };
        let started = Instant::now();
        let (mut batches, mut left): (Vec<Arc<LogBatch>>, _) = (Vec::new(), bytes_max);
        // Somebody waits for it: what was read so far will do.
        while batches.is_empty() || (left > 0 && started.elapsed() < self.place.cluster.reply_max) {
            let Some(entry) = reader.next().await? else {
                if batches.is_empty() && offset_of(reader.expected()) < until {
                    // Who got nothing would go on after `until`.
                    return Err(reader.ends_before(until));
                }
                break;
            };
            left = left.saturating_sub(entry.bytes);
            let last = offset_of(entry.record + 1) >= until;
            batches.extend(entry.batches.into_iter().filter(|batch| batch.next_offset() > from));
            if last {
                break;
            }
        }
        if let Some(last) = batches.last() {
            let mut behind = self.behind.lock();
            if behind.len() >= BEHIND_MAX {
                behind.remove(0);
            }
            behind.push(Behind { reader, at: last.next_offset() });
        }
        Ok(batches)
    }
}
