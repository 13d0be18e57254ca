//! A producer of a topic: what is on its way is bounded, and each record is acknowledged in time or the producer is broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fluvio::{
    DeliverySemantic, ProduceOutput, RetryPolicy, TopicProducerConfig, TopicProducerConfigBuilder, TopicProducerPool,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::config::BatchCompression;
use super::failure::FluvioFailure;
use super::link::{Cluster, Link};

/// What a record takes in a batch beside its key and its value, at most.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// What a batch takes beside its records, at most.
const BATCH_OVERHEAD_BYTES: usize = 4 << 10;

/// How a producer sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProducerConfig {
    /// The one partition to which it writes. `None`: by the key of a record, as all clients of Fluvio do it.
    pub(super) partition: Option<u32>,
    pub(super) compression: BatchCompression,
    /// Key and value of one record.
    pub(super) record_bytes_max: usize,
    /// Records that are sent as one batch, but for a single larger one.
    pub(super) batch_bytes_max: usize,
    /// Records that are not acknowledged yet.
    pub(super) in_flight_bytes_max: usize,
}

/// See the module. After a failure it is of no use: drop it and make a new one.
pub(super) struct Producer {
    link: Link,
    /// For failures.
    doing: Arc<str>,
    pool: TopicProducerPool,
    room: Arc<Semaphore>,
    room_bytes: usize,
    record_bytes_max: usize,
    broken: Arc<AtomicBool>,
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) partition: u32,
    pub(super) offset: u64,
}

/// A record on its way. One that is dropped breaks its producer, since nobody will know what became of it.
pub(super) struct Sending {
    output: Option<ProduceOutput>,
    cluster: Arc<Cluster>,
    doing: Arc<str>,
    deadline: Instant,
    after: Duration,
    broken: Arc<AtomicBool>,
    _room: OwnedSemaphorePermit,
}

impl ProducerConfig {
    /// As the client library has it.
    pub(super) fn settings(&self, cluster: &Cluster) -> Result<TopicProducerConfig, FluvioFailure> {
        let mut builder = TopicProducerConfigBuilder::default();
        if let Some(partition) = self.partition {
            builder.set_specific_partitioner(partition);
        }
        // The library applies this bound to a batch that has records already, before it thinks of a new one.
        let request = self.record_bytes_max + self.batch_bytes_max + BATCH_OVERHEAD_BYTES;
        let once = RetryPolicy { max_retries: 0, timeout: cluster.reply_max, ..RetryPolicy::default() };
        builder
            .batch_size(self.batch_bytes_max)
            .max_request_size(request)
            // A full queue would be waited for in a busy loop; the room of the producer bounds it.
            .batch_queue_size(usize::MAX)
            .linger(Duration::ZERO)
            .compression(self.compression)
            .timeout(cluster.reply_max)
            .isolation(cluster.isolation)
            .delivery_semantic(DeliverySemantic::AtLeastOnce(once))
            .build()
            .map_err(|error| cluster.away("set up a producer", &error))
    }
}

impl Producer {
    pub(super) fn new(link: Link, topic: &str, pool: TopicProducerPool, config: &ProducerConfig) -> Self {
        let room_bytes = config.in_flight_bytes_max.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self {
            link,
            doing: format!("write to {topic}").into(),
            pool,
            room: Arc::new(Semaphore::new(room_bytes)),
            room_bytes,
            record_bytes_max: config.record_bytes_max,
            broken: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Sends a record: comes back once it is in order behind those before. Waits for room, which is made by
    /// [`Sending::acknowledged`] of others.
    ///
    /// # Errors
    /// [`FluvioFailure::TooLarge`], after which the producer goes on; any other breaks it.
    pub(super) async fn send(&self, key: Vec<u8>, value: Vec<u8>) -> Result<Sending, FluvioFailure> {
        let cluster = self.link.cluster();
        let bytes = key.len() + value.len();
        if bytes > self.record_bytes_max {
            return Err(FluvioFailure::TooLarge { bytes, bytes_max: self.record_bytes_max });
        }
        let doing = &self.doing;
        if self.is_broken() {
            return Err(FluvioFailure::Away(format!("{doing}: an earlier record was not acknowledged")));
        }
        let mut unsure = Unsure { broken: &self.broken, settled: false };
        let permits = room_of(bytes).min(self.room_bytes) as u32;
        let room = self.room.clone().acquire_many_owned(permits);
        let room = cluster.in_time(doing, cluster.reply_max, room).await?;
        let room = room.map_err(|error| cluster.away(doing, &error))?;
        let sent = cluster.in_time(doing, cluster.reply_max, self.pool.send(key, value)).await?;
        let output = sent.map_err(|error| cluster.away(doing, &error))?;
        unsure.settled = true;
        // The library has the same bound for one request, and others may be before it.
        let after = cluster.reply_max * 2;
        Ok(Sending {
            output: Some(output),
            cluster: cluster.clone(),
            doing: doing.clone(),
            deadline: Instant::now() + after,
            after,
            broken: self.broken.clone(),
            _room: room,
        })
    }

    /// Whether a record was not acknowledged.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

/// The room that a record of key and value takes while it is on its way.
pub(super) fn room_of(bytes: usize) -> usize {
    bytes + RECORD_OVERHEAD_BYTES
}

impl Sending {
    /// Waits for the acknowledgement.
    ///
    /// # Errors
    /// [`FluvioFailure::Away`] or [`FluvioFailure::Late`]; then the record may be there, or come to be there later.
    pub(super) async fn acknowledged(mut self) -> Result<Placed, FluvioFailure> {
        // Without an output the flag is set when this is dropped.
        let Some(output) = self.output.as_mut().map(std::mem::take) else {
            return Err(self.cluster.away(&self.doing, &"it was asked twice"));
        };
        let placed = timeout_at(self.deadline, output.wait()).await;
        let placed = placed.map_err(|_| self.cluster.late(&self.doing, self.after))?;
        let placed = placed.map_err(|error| self.cluster.away(&self.doing, &error))?;
        let offset = u64::try_from(placed.offset());
        let offset = offset.map_err(|_| self.cluster.away(&self.doing, &"it acknowledged no offset"))?;
        self.output = None;
        Ok(Placed { partition: placed.partition_id(), offset })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.output.is_some() {
            self.broken.store(true, Ordering::Release);
        }
    }
}

/// Breaks the producer unless it is known what became of a record.
struct Unsure<'a> {
    broken: &'a AtomicBool,
    settled: bool,
}

impl Drop for Unsure<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.broken.store(true, Ordering::Release);
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("doing", &self.doing)
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}
