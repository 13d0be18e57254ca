//! What the appending threads, the readers and the writer of a segment log share.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::error::ArrowError;
use metrics::{counter, gauge};
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use super::config::LogConfig;
use super::encode::Encoder;
use super::format::OFFSET_MAX;
use super::group::Ready;
use super::listing::summary_path;
use super::schemas::Schemas;
use super::segment::{Segment, memory_bytes, time_range};
use super::summary::Summary;
use super::whole::{Target, scan};
use super::writer::Pending;
use super::{EventBatch, LogBatch, LogBounds, Offset};
use crate::error::AppendError;
use crate::fields::FieldObserver;
use crate::fs::Fs;
use crate::health::Stage;
use crate::metrics as names;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    /// The name of the folder: the label `log` of the metrics.
    pub name: String,
    pub config: LogConfig,
    pub encoder: Encoder,
    pub schemas: Schemas,
    pub fields: FieldObserver,
    /// In offset order; the last one may be the one that is written.
    pub segments: RwLock<Vec<Arc<Segment>>>,
    pub tail: RwLock<Tail>,
    pub bounds: watch::Sender<LogBounds>,
    /// Bytes of all segment files.
    pub used_bytes: AtomicU64,
    pub stage: OnceLock<Arc<Stage>>,
    pub queue: Mutex<Queue>,
    pub wake: Condvar,
    pub ailing: AtomicBool,
}

/// Appends that wait.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: VecDeque<Pending>,
    /// Of those that wait and of the group that is being committed.
    bytes: usize,
    committing_bytes: usize,
    closed: bool,
}

impl Shared {
    /// Encodes a batch and takes in its fields. For CPU threads.
    pub fn prepare(&self, batch: EventBatch) -> Result<Ready, ArrowError> {
        let EventBatch { dataset, rows, keys } = batch;
        let schema = self.encoder.schema(&rows.schema())?;
        // One schema in memory for all batches of a layout, so that readers can know a layout by its address.
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(schema.schema.clone(), rows.columns().to_vec(), &options)?;
        let payload = schema.encode(&rows, &keys)?;
        let times = time_range(&rows);
        let seen = self.fields.observe(dataset, schema.id, &rows);
        let memory = memory_bytes(&rows);
        Ok(Ready { dataset, rows, keys, schema, payload, times, memory, seen })
    }

    /// Whether an append may come now: a cheap look before it is encoded.
    pub fn admits(&self) -> Result<(), AppendError> {
        let (closed, bytes) = {
            let queue = self.queue.lock();
            (queue.closed, queue.bytes)
        };
        if closed {
            return Err(AppendError::Closed);
        }
        if bytes >= self.config.queue_bytes_max {
            return Err(self.queue_is_full(bytes));
        }
        Ok(())
    }

    /// Puts an append into the queue, or gives it back with the reason why not.
    pub fn enqueue(&self, pending: Pending) -> Result<(), (Pending, AppendError)> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err((pending, AppendError::Closed));
        }
        let bytes = queue.bytes + pending.bytes;
        if bytes > self.config.queue_bytes_max && queue.bytes > 0 {
            return Err((pending, self.queue_is_full(bytes)));
        }
        queue.bytes = bytes;
        queue.waiting.push_back(pending);
        self.waiting(bytes);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn queue_is_full(&self, bytes: usize) -> AppendError {
        counter!(names::LOG_REFUSED, "log" => self.name.clone(), "bound" => "queue").increment(1);
        let max = self.config.queue_bytes_max;
        AppendError::Full(format!("{bytes} bytes wait to be written, at most {max} may (queue_bytes_max)"))
    }

    /// The next appends to commit together; `None` once the log is closed and none is left. Waits.
    pub fn next_group(&self) -> Option<Vec<Pending>> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.waiting.front() {
            if !group.is_empty() && bytes + next.bytes > self.config.group_bytes_max {
                break;
            }
            bytes += next.bytes;
            group.extend(queue.waiting.pop_front());
        }
        queue.committing_bytes = bytes;
        Some(group)
    }

    /// Says that the group of [`next_group`](Self::next_group) waits no more. To say it twice does no harm.
    pub fn group_done(&self) {
        let mut queue = self.queue.lock();
        queue.bytes -= std::mem::take(&mut queue.committing_bytes);
        self.waiting(queue.bytes);
        if let Some(stage) = self.stage.get() {
            stage.progressed(Instant::now());
        }
    }

    fn waiting(&self, bytes: usize) {
        gauge!(names::LOG_QUEUE_BYTES, "log" => self.name.clone()).set(bytes as f64);
        if let Some(stage) = self.stage.get() {
            stage.waiting(bytes as u64, Instant::now());
        }
    }

    /// Refuses all further appends; what waits is still committed.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_all();
    }

    /// Closes, and answers what waits: for a writer that is gone.
    pub fn fail_all(&self) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.bytes = 0;
            std::mem::take(&mut queue.waiting)
        };
        for pending in waiting {
            _ = pending.reply.send(Err(AppendError::Closed));
        }
    }

    /// Whether the bounds of disk and numbers let a group of `bytes` be written whose rows end at `end`.
    pub fn room(&self, bytes: u64, end: Offset) -> Result<(), AppendError> {
        if end > OFFSET_MAX {
            counter!(names::LOG_REFUSED, "log" => self.name.clone(), "bound" => "offsets").increment(1);
            let dir = self.dir.display();
            let reason =
                format!("it has no offsets left: a damaged or forged file of {dir} says that there are {end} rows");
            return Err(self.full(format!("{reason}; `tidegate log ls` shows which")));
        }
        let used = self.used_bytes.load(Ordering::Relaxed);
        let max = self.config.log_bytes_max;
        if used.saturating_add(bytes) > max {
            counter!(names::LOG_REFUSED, "log" => self.name.clone(), "bound" => "log").increment(1);
            return Err(self.full(format!("the log has {used} bytes, at most {max} may be (log_bytes_max)")));
        }
        // A file system that cannot say is not a reason to refuse; the write will tell.
        let free = self.fs.free_bytes(&self.dir).unwrap_or(u64::MAX);
        let min = self.config.free_bytes_min;
        if free < min.saturating_add(bytes) {
            counter!(names::LOG_REFUSED, "log" => self.name.clone(), "bound" => "disk").increment(1);
            return Err(self.full(format!("the disk has {free} bytes free, {min} are kept (free_bytes_min)")));
        }
        Ok(())
    }

    fn full(&self, reason: String) -> AppendError {
        self.degraded(reason.clone());
        AppendError::Full(reason)
    }

    /// Says in the health report that the log does not take appends.
    pub fn degraded(&self, detail: String) {
        self.ailing.store(true, Ordering::Relaxed);
        if let Some(stage) = self.stage.get() {
            stage.set_detail(Some(detail));
        }
    }

    /// Says that it takes them again.
    pub fn healthy(&self) {
        if self.ailing.swap(false, Ordering::Relaxed)
            && let Some(stage) = self.stage.get()
        {
            stage.set_detail(None);
        }
    }

    /// Writes the summary of a closed segment unless it is there.
    pub fn summarise(&self, segment: &Segment, summary: &Summary) -> io::Result<()> {
        let mut summarised = segment.summarised.lock();
        if !*summarised {
            summary.write(&*self.fs, &summary_path(&self.dir, summary.index.first))?;
            *summarised = true;
        }
        Ok(())
    }

    /// Makes sure that the keys of a closed segment outlive it.
    pub fn keep_keys(&self, segment: &Segment) -> io::Result<()> {
        if *segment.summarised.lock() || segment.keys.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let index = segment.index.read().clone();
        let file = segment.file(&*self.fs)?;
        let mut scanned = scan(&Target::again((&*self.fs, &self.dir), &*file, &index), &self.schemas)?;
        scanned.settle();
        self.summarise(segment, &scanned.summary)
    }

    /// Lets readers see durable batches, each with its bytes of memory.
    pub fn publish(&self, batches: Vec<(Arc<LogBatch>, usize)>, next: Offset) {
        let mut tail = self.tail.write();
        for (batch, bytes) in batches {
            tail.push(batch, bytes, self.config.tail_bytes_max);
        }
        gauge!(names::LOG_TAIL_BYTES, "log" => self.name.clone()).set(tail.bytes as f64);
        drop(tail);
        self.bounds.send_modify(|bounds| bounds.next = next);
        gauge!(names::LOG_BYTES, "log" => self.name.clone()).set(self.used_bytes.load(Ordering::Relaxed) as f64);
        gauge!(names::LOG_SEGMENTS, "log" => self.name.clone()).set(self.segments.read().len() as f64);
    }
}

/// The newest batches, in memory.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    batches: VecDeque<(Arc<LogBatch>, usize)>,
    bytes: usize,
    /// Every row from here on is in the tail.
    start: Offset,
}

impl Tail {
    /// An empty tail before the row `start`.
    pub fn new(start: Offset) -> Self {
        Self { start, ..Self::default() }
    }

    /// Adds a batch at the end and drops the oldest ones past `bytes_max`, but never the new one.
    pub fn push(&mut self, batch: Arc<LogBatch>, bytes: usize, bytes_max: usize) {
        self.batches.push_back((batch, bytes));
        self.bytes += bytes;
        while self.bytes > bytes_max && self.batches.len() > 1 {
            if let Some((dropped, bytes)) = self.batches.pop_front() {
                self.bytes -= bytes;
                self.start = dropped.next_offset();
            }
        }
    }

    /// Batches from `from` on, up to `bytes_max` but at least one; `None` when the tail does not reach back that far.
    pub fn read(&self, from: Offset, bytes_max: usize) -> Option<Vec<Arc<LogBatch>>> {
        if from < self.start {
            return None;
        }
        let at = self.batches.partition_point(|(batch, _)| batch.next_offset() <= from);
        let mut left = Some(bytes_max);
        let within = |(batch, bytes): &(Arc<LogBatch>, usize)| {
            let room = left?;
            left = room.checked_sub(*bytes).filter(|left| *left > 0);
            Some(batch.clone())
        };
        Some(self.batches.range(at..).map_while(within).collect())
    }

    /// Bytes of all batches.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first row from which on the tail is complete.
    pub fn start(&self) -> Offset {
        self.start
    }

    /// Drops what lies below `below`.
    pub fn forget(&mut self, below: Offset) {
        while let Some((batch, bytes)) = self.batches.front()
            && batch.next_offset() <= below
        {
            self.bytes -= bytes;
            self.start = batch.next_offset();
            self.batches.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use tidegate_events::Dataset;

    use super::*;

    fn batch(offset: Offset) -> Arc<LogBatch> {
        let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1, 2])) as _)]).expect("a batch");
        Arc::new(LogBatch { offset, dataset: Dataset::SecurityEvents, rows })
    }

    fn offsets(read: Option<Vec<Arc<LogBatch>>>) -> Option<Vec<Offset>> {
        read.map(|batches| batches.iter().map(|batch| batch.offset).collect())
    }

    #[test]
    fn the_tail_keeps_the_newest_batches_within_its_bytes() {
        // Batches of two rows: what is pushed, the bound, the first row that is left and the bytes.
        for (sizes, bytes_max, start, bytes) in [
            (vec![10, 10, 10], 30, 0, 30),
            (vec![10, 10, 10], 29, 2, 20),
            (vec![10, 10, 10, 10], 10, 6, 10),
            (vec![10, 50], 20, 2, 50),
            (vec![50], 20, 0, 50),
            (vec![10, 20, 30], 0, 4, 30),
        ] {
            let mut tail = Tail::new(0);
            for (at, size) in sizes.iter().enumerate() {
                tail.push(batch(2 * at as u64), *size, bytes_max);
            }
            assert_eq!((tail.start(), tail.bytes()), (start, bytes), "{sizes:?} within {bytes_max}");
            assert!(start == 0 || tail.read(start - 1, 1).is_none(), "what is gone is not here");
        }
    }

    #[test]
    fn the_tail_is_read_from_the_batch_of_a_row_on() {
        let mut tail = Tail::new(4);
        for offset in [4, 6, 8, 10] {
            tail.push(batch(offset), 10, 100);
        }
        for (from, bytes_max, wanted) in [
            (3, 100, None),
            (4, 100, Some(vec![4, 6, 8, 10])),
            (5, 100, Some(vec![4, 6, 8, 10])),
            (6, 0, Some(vec![6])),
            (6, 10, Some(vec![6])),
            (6, 11, Some(vec![6, 8])),
            (6, 20, Some(vec![6, 8])),
            (11, 100, Some(vec![10])),
            (12, 100, Some(vec![])),
        ] {
            assert_eq!(offsets(tail.read(from, bytes_max)), wanted, "from {from}, {bytes_max} bytes");
        }
        // A batch goes once all of its rows may.
        for (below, start, bytes) in [(5, 4, 40), (6, 6, 30), (9, 8, 20), (12, 12, 0), (20, 12, 0)] {
            tail.forget(below);
            assert_eq!((tail.start(), tail.bytes()), (start, bytes), "below {below}");
        }
    }
}
