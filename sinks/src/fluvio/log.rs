//! A partition of a topic as a [`StreamLog`]: the log of many machines.
//!
//! One append is one record, or several when it is large ([`super::frames`]). Any number of nodes write to a partition; one reads
//! it. An append is answered once the broker has it, which is weaker than a disk ([`Ack::Broker`](tidegate_pipeline::Ack::Broker),
//! docs/many-machines.md). A duplicate is told where this node has written the row before; one that another node wrote is left
//! out by the readers, all of whom see the same rows ([`super::repeats`]).
//!
//! A reader ([`super::frontier`]) decodes the partition once, ahead of all that follow the log, into a cache; who falls behind it
//! gets a reader of his own. The log forgets by the retention of its topic only.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use metrics::counter;
use parking_lot::{Condvar, Mutex};
use tidegate_events::{Dataset, dedup_key};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::log::carried::Carrier;
use tidegate_pipeline::log::{AppendResult, check_batch};
use tidegate_pipeline::{
    Append, AppendError, AppendReply, EventBatch, LogBatch, LogBounds, LogReader, Offset, PipelineError, Stage,
    StreamLog,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;

use super::cache::Cache;
use super::config::AcknowledgedBy;
use super::failure::FluvioFailure;
use super::frames::{encode, offset_of, record_of};
use super::frontier::{Behind, follow};
use super::link::Cluster;
use super::log_config::{FluvioLogConfig, LogTopic};
use super::reader::Place;
use super::tail::{LogTail, Marks, lost_from};
use super::writer::{Pending, write};
use crate::error::SinksError;
use crate::metrics as names;

/// Appends of one group.
const GROUP_MAX: usize = 256;

/// See the module. Dropping it ends what it does; appends that wait are answered as closed.
#[derive(Debug)]
pub struct FluvioLog {
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

/// Which log, and what is known of its readers.
#[derive(Debug)]
pub struct FluvioLogParts {
    /// One of the topics.
    pub topic: LogTopic,
    /// Its partition.
    pub partition: u32,
    /// The smallest offset from which the log will be followed. `None` for a log that is only appended to.
    pub follow: Option<Offset>,
    /// Rows below it were read before, and are there: the log does not end earlier, though it may not be known again yet after a leader
    /// came back that all replicas have them.
    pub seen: Offset,
    /// Of a cursor at or after it, where there is one: what the partition [still has](FluvioLog::lost_from).
    pub tail: LogTail,
    /// The health of this log.
    pub stage: Arc<Stage>,
}

/// What the appending threads, the readers and the tasks share.
pub(super) struct Shared {
    pub(super) place: Arc<Place>,
    /// The same as its leader has it.
    pub(super) leader: Arc<Place>,
    pub(super) config: FluvioLogConfig,
    pub(super) bounds: watch::Sender<LogBounds>,
    pub(super) cache: Mutex<Cache>,
    /// The cache has more.
    pub(super) filled: Condvar,
    /// The cache has room.
    pub(super) room: Notify,
    pub(super) behind: Mutex<Vec<Behind>>,
    pub(super) marks: Mutex<Marks>,
    /// The partition no longer has what was read.
    pub(super) lost: AtomicBool,
    pub(super) follows: bool,
    queue: Mutex<Queue>,
    wake: Notify,
    stage: Arc<Stage>,
    troubles: Mutex<[Option<String>; 2]>,
    runtime: Handle,
}

/// Appends that wait.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Pending>,
    /// Of those that wait and of the group that is being written.
    bytes: usize,
}

/// The two ends of a partition.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Read,
    Write,
}

impl FluvioLog {
    /// Makes sure of the topics; how many partitions the log has.
    ///
    /// # Errors
    /// [`SinksError::Fluvio`] when the cluster is away, or has other topics of these names; [`SinksError::Invalid`].
    pub async fn prepare(config: &FluvioLogConfig) -> Result<u32, SinksError> {
        config.check()?;
        let link = Cluster::new(&config.cluster())?.connect().await?;
        let mut partitions = [0; 3];
        for (found, topic) in partitions.iter_mut().zip(LogTopic::ALL) {
            *found = link.ensure_topic(&config.topic(topic), config.shape(topic)).await?;
        }
        let [log, output, changes] = partitions;
        if log != output || changes != 1 {
            let refused = format!(
                "the topics {}-… have {log}, {output} and {changes} partitions; log and output need as many, changes one: \
                 remove what is not of tidegate, or set another prefix",
                config.prefix
            );
            return Err(FluvioFailure::Refused(refused).into());
        }
        Ok(log)
    }

    /// Opens a log whose topics [`prepare`](Self::prepare) has seen. What it does runs on the runtime of the caller.
    ///
    /// # Errors
    /// [`SinksError::Fluvio`] when the cluster is away or has no such partition.
    pub async fn open(config: &FluvioLogConfig, parts: FluvioLogParts) -> Result<Self, SinksError> {
        let FluvioLogParts { topic, partition, follow: followed, seen, tail, stage } = parts;
        let place = place(config, topic, partition)?;
        let link = place.cluster.connect().await?;
        let found = place.bounds(&link).await?;
        let first = if found.first == 0 { 0 } else { offset_of(found.first) };
        let bounds = LogBounds { first, next: offset_of(found.next).max(seen) };
        let from = record_of(followed.unwrap_or(bounds.next)).clamp(found.first, found.next.max(found.first));
        let shared = Arc::new(Shared {
            place,
            leader: leader(config, topic, partition)?,
            config: config.clone(),
            bounds: watch::Sender::new(bounds),
            cache: Mutex::new(Cache::new(from, config.cache_bytes_max)),
            filled: Condvar::new(),
            room: Notify::new(),
            behind: Mutex::default(),
            marks: Mutex::new(Marks::before(from, &tail)),
            lost: AtomicBool::new(false),
            follows: followed.is_some(),
            queue: Mutex::default(),
            wake: Notify::new(),
            stage,
            troubles: Mutex::default(),
            runtime: Handle::current(),
        });
        let mut tasks = vec![tokio::spawn(write(shared.clone())).abort_handle()];
        if followed.is_some() {
            tasks.push(tokio::spawn(follow(shared.clone())).abort_handle());
        }
        Ok(Self { shared, tasks })
    }

    /// Whether a partition still has the records that a tail tells of: the offset from which on it has others, if it has not.
    ///
    /// # Errors
    /// [`SinksError::Fluvio`]: [`FluvioFailure::Lost`] when that offset is not known, or that the cluster is away.
    pub async fn lost_from(
        config: &FluvioLogConfig,
        topic: LogTopic,
        partition: u32,
        tail: &LogTail,
    ) -> Result<Option<Offset>, SinksError> {
        let leader = leader(config, topic, partition)?;
        // The futures of the client library are deep.
        Ok(Box::pin(lost_from(&leader, tail)).await?.map(offset_of))
    }

    /// Whether records that a tail tells of are lost, wherever they began.
    ///
    /// # Errors
    /// [`SinksError::Fluvio`] that the cluster is away.
    pub async fn has_lost_of(
        config: &FluvioLogConfig,
        topic: LogTopic,
        partition: u32,
        tail: &LogTail,
    ) -> Result<bool, SinksError> {
        match Self::lost_from(config, topic, partition, tail).await {
            Err(SinksError::Fluvio(FluvioFailure::Lost { .. })) => Ok(true),
            found => found.map(|from| from.is_some()),
        }
    }

    /// What is to be kept with a cursor at this offset, so that it can be told later whether the partition still has what
    /// stands before it.
    pub fn tail(&self, offset: Offset) -> LogTail {
        self.shared.marks.lock().tail(offset)
    }

    /// Whether the partition has lost records that were read: it is to be opened anew then, after a look at the
    /// [tails](Self::lost_from). Nothing is read or written any more.
    pub fn has_lost(&self) -> bool {
        self.shared.lost.load(Ordering::Acquire)
    }

    fn try_append(&self, append: Append, reply: oneshot::Sender<AppendResult>) {
        let prepared = self.shared.admits().and_then(|()| self.prepare_append(append));
        let refused = match prepared {
            Ok((batches, frames)) => {
                let bytes = frames.iter().map(|frame| frame.value.len()).sum();
                self.shared.enqueue(Pending { batches, frames, bytes, reply })
            }
            Err(error) => Err((reply, error)),
        };
        if let Err((reply, error)) = refused {
            // Who asked may have gone.
            reply.send(Err(error)).ok();
        }
    }

    fn prepare_append(&self, append: Append) -> Result<(Vec<EventBatch>, Vec<super::frames::Frame>), AppendError> {
        append.batches.iter().try_for_each(check_batch)?;
        let batches: Vec<EventBatch> = append.batches.into_iter().map(with_alert_keys).collect();
        let (carrier, bytes_max) = (&self.shared.place.carrier, self.shared.config.record_bytes_max);
        let frames = encode(carrier, &batches, bytes_max, now_us());
        Ok((batches, frames.map_err(|error| AppendError::Failed(error.to_string()))?))
    }

    /// Reads what the cache no longer has.
    fn read_behind(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let shared = self.shared.clone();
        self.shared.runtime.spawn(async move {
            // Who asked may have lost patience.
            answer.send(shared.read_behind(from, bytes_max).await).ok();
        });
        match answered.recv_timeout(self.shared.patience() * 4) {
            Ok(read) => read,
            Err(_) => Err(self.shared.unreadable("no answer in time")),
        }
    }
}

impl LogReader for FluvioLog {
    /// Waits for the network. Not for the threads of the runtime on which the log was opened.
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let LogBounds { first, next } = self.bounds();
        if from < first {
            return Err(PipelineError::Forgotten { asked: from, first });
        }
        if from >= next {
            return Ok(Vec::new());
        }
        if !self.shared.follows {
            return Err(PipelineError::Invalid("this node only appends to this log".to_owned()));
        }
        let deadline = Instant::now() + self.shared.patience();
        let mut cache = self.shared.cache.lock();
        cache.want(from);
        self.shared.room.notify_one();
        while from >= cache.start() {
            let batches = cache.batches(from, bytes_max);
            if !batches.is_empty() || offset_of(cache.next()) >= next {
                // Who has it all asks again only once there is more, which comes only if this does not count as ahead of him.
                let handed_out = batches.last().map_or(offset_of(cache.next()), |last| last.next_offset());
                cache.want(handed_out);
                self.shared.room.notify_one();
                return Ok(batches);
            }
            let late = self.shared.filled.wait_until(&mut cache, deadline).timed_out();
            if late || self.has_lost() {
                return Err(self.shared.unreadable("what is there does not come"));
            }
        }
        drop(cache);
        let batches = self.read_behind(from, bytes_max)?;
        if let Some(last) = batches.last() {
            self.shared.cache.lock().want(last.next_offset());
            self.shared.room.notify_one();
        }
        Ok(batches)
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.shared.bounds.subscribe()
    }
}

impl StreamLog for FluvioLog {
    fn append(&self, append: Append) -> AppendReply {
        let (reply, receiver) = oneshot::channel();
        self.try_append(append, reply);
        receiver
    }

    /// Nothing is forgotten but by the retention of the topic.
    fn forget(&self, _below: Offset) -> Result<(), PipelineError> {
        Ok(())
    }
}

impl Drop for FluvioLog {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.shared.queue.lock().waiting.clear();
        self.shared.tell(Side::Read, None);
        self.shared.tell(Side::Write, None);
        self.shared.stage.waiting(0, Instant::now());
    }
}

/// Where a log is, and how it is read.
fn place(config: &FluvioLogConfig, topic: LogTopic, partition: u32) -> Result<Arc<Place>, SinksError> {
    let cluster = Cluster::new(&config.cluster())?;
    let carrier = Carrier::new().map_err(|error| SinksError::Stopped(format!("no random bits: {error}")))?;
    Ok(Arc::new(Place { cluster, topic: config.topic(topic), partition, window: config.window(), carrier }))
}

/// The same as the leader of the partition has it: what all replicas have may be known late again after a leader came back.
fn leader(config: &FluvioLogConfig, topic: LogTopic, partition: u32) -> Result<Arc<Place>, SinksError> {
    place(&FluvioLogConfig { acknowledged_by: AcknowledgedBy::Leader, ..config.clone() }, topic, partition)
}

impl Shared {
    fn admits(&self) -> Result<(), AppendError> {
        if self.lost.load(Ordering::Acquire) {
            return Err(AppendError::Failed(self.trouble("the partition has lost records")));
        }
        let bytes = self.queue.lock().bytes;
        if bytes < self.config.queue_bytes_max { Ok(()) } else { Err(self.full(bytes)) }
    }

    fn enqueue(&self, pending: Pending) -> Result<(), (oneshot::Sender<AppendResult>, AppendError)> {
        let mut queue = self.queue.lock();
        let bytes = queue.bytes + pending.bytes;
        if bytes > self.config.queue_bytes_max && queue.bytes > 0 {
            return Err((pending.reply, self.full(bytes)));
        }
        queue.bytes = bytes;
        queue.waiting.push_back(pending);
        drop(queue);
        self.stage_waits();
        self.wake.notify_one();
        Ok(())
    }

    fn full(&self, bytes: usize) -> AppendError {
        counter!(names::FLUVIO_LOG_REFUSED).increment(1);
        let (topic, partition, max) = (&self.place.topic, self.place.partition, self.config.queue_bytes_max);
        AppendError::Full(format!("{bytes} bytes wait for {topic}-{partition}, at most {max} may (queue_bytes_max)"))
    }

    /// The next appends to write together.
    pub(super) async fn next_group(&self) -> Vec<Pending> {
        loop {
            let group = {
                let mut queue = self.queue.lock();
                let (mut group, mut bytes) = (Vec::new(), 0);
                while let Some(next) = queue.waiting.front() {
                    let full = bytes + next.bytes > self.config.in_flight_bytes_max || group.len() >= GROUP_MAX;
                    if full && !group.is_empty() {
                        break;
                    }
                    bytes += next.bytes;
                    group.extend(queue.waiting.pop_front());
                }
                group
            };
            if !group.is_empty() {
                return group;
            }
            self.wake.notified().await;
        }
    }

    pub(super) fn group_done(&self, bytes: usize) {
        self.queue.lock().bytes -= bytes;
        self.stage_waits();
        if !self.lost.load(Ordering::Acquire) {
            self.stage.progressed(Instant::now());
        }
    }

    /// Tells the stage whether something waits: appends, or whoever would read on.
    pub(super) fn stage_waits(&self) {
        let queue = self.queue.lock();
        let waiting = queue.bytes as u64 + u64::from(!queue.waiting.is_empty());
        let lost = u64::from(self.lost.load(Ordering::Acquire));
        self.stage.waiting(waiting + lost, Instant::now());
    }

    /// Rows below are there to be read.
    pub(super) fn visible(&self, next: Offset) {
        self.bounds.send_if_modified(|bounds| {
            let more = next > bounds.next;
            bounds.next = bounds.next.max(next);
            more
        });
    }

    /// Rows below are gone.
    pub(super) fn forgotten(&self, first: Offset) {
        self.bounds.send_if_modified(|bounds| {
            let more = first > bounds.first;
            bounds.first = bounds.first.max(first);
            bounds.next = bounds.next.max(first);
            more
        });
    }

    /// Says what is wrong on a side, or that nothing is.
    pub(super) fn tell(&self, side: Side, trouble: Option<String>) {
        let mut troubles = self.troubles.lock();
        if troubles[side as usize] == trouble {
            return;
        }
        if let Some(trouble) = &trouble {
            tracing::warn!(trouble, ?side, "the log in Fluvio does not work now; it is tried again");
        }
        troubles[side as usize] = trouble;
        let all: Vec<String> = troubles.iter().flatten().cloned().collect();
        self.stage.set_detail((!all.is_empty()).then(|| all.join("; ")));
    }

    /// How long a reader waits for what is there.
    pub(super) fn patience(&self) -> Duration {
        (self.place.cluster.connect_max + self.place.cluster.reply_max) * 2
    }

    /// What is wrong with reading, or else this.
    fn trouble(&self, reason: &str) -> String {
        let said = self.troubles.lock()[Side::Read as usize].clone();
        said.unwrap_or_else(|| reason.to_owned())
    }

    /// A read that may work later.
    pub(super) fn unreadable(&self, reason: &str) -> PipelineError {
        let source = std::io::Error::other(self.trouble(reason));
        let path = format!("{}-{}", self.place.topic, self.place.partition).into();
        PipelineError::Io { op: "read", path, source }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Place { topic, partition, .. } = &*self.place;
        f.debug_struct("Shared").field("topic", topic).field("partition", partition).finish_non_exhaustive()
    }
}

/// Alerts have their ids as keys: who takes a partition over may raise some again.
fn with_alert_keys(batch: EventBatch) -> EventBatch {
    if batch.dataset != Dataset::Alerts || !batch.keys.is_empty() {
        return batch;
    }
    let text = |name: &str| batch.rows.column_by_name(name)?.as_string_opt::<i32>();
    let (Some(orgs), Some(ids)) = (text(Dataset::ORG_ID), text("alert_id")) else { return batch };
    let key = |(org, id): (Option<&str>, Option<&str>)| match (org, id) {
        (Some(org), Some(id)) => dedup_key(org, Dataset::Alerts as u8, id),
        _ => 0,
    };
    let keys = orgs.iter().zip(ids.iter()).map(key).collect();
    EventBatch { keys, ..batch }
}
