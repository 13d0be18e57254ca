//! From bodies to appends: decode threads that take what is waiting, decode it together, and append it at once.
//!
//! There is no timer. A thread takes one body and as many more as are waiting, up to the group bounds; under load groups
//! grow by themselves, without load a body is alone and does not wait. While the log makes a group durable, the next one
//! waits for it unless it has grown to `group_bytes_eager`: it would be committed after it in any case, and a group costs
//! as much for ten rows as for a thousand. The answer of the log is turned into answers to the requests by a task of the I/O
//! runtime.
//!
//! A decoder that panics is replaced. The bodies that it held are then decoded one by one, so that only the body that
//! causes the panic fails.

mod answering;
mod inflating;
mod partitions;
mod queue;
mod settle;
mod worker;

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_events::Dataset;
use tidegate_pipeline::{Ack, Health, Problem};
use tokio::runtime::Handle;

pub use partitions::Partitions;
use queue::Queue;
pub use settle::{ItemState, Reply, Settled, StoredItem};

use crate::decode::{BodyFormat, DecodeConfig, Decoder};
use crate::error::IngestError;
use crate::http::Sent;
use crate::inflate::Encoding;
use crate::mapping::Mappings;

/// Bounds of the batcher.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatcherConfig {
    /// Threads that inflate and decode bodies. 0 means one for each CPU.
    pub decode_threads: usize,
    /// Bytes of one body after all of its content encodings were undone.
    pub inflated_bytes_max: usize,
    /// Bytes of bodies that are decoded together; a single body may be larger.
    pub group_bytes_max: usize,
    /// Bytes of waiting bodies that are decoded although the log is still making the rows before them durable. Fewer wait
    /// until it has, and become one group. After a group of very many columns `group_bytes_max` counts instead.
    pub group_bytes_eager: usize,
    /// Rows that are appended together; a single body may have more.
    pub group_rows_max: usize,
}

impl Default for BatcherConfig {
    fn default() -> Self {
        Self {
            decode_threads: 0,
            inflated_bytes_max: 256 * 1024 * 1024,
            group_bytes_max: 8 * 1024 * 1024,
            group_bytes_eager: 256 * 1024,
            group_rows_max: 32 * 1024,
        }
    }
}

/// One body on its way to a decode thread.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) sent: Sent,
    pub(crate) encodings: Vec<Encoding>,
    pub(crate) org_id: Arc<str>,
    pub(crate) dataset: Dataset,
    pub(crate) source: Option<Arc<str>>,
    pub(crate) format: BodyFormat,
    pub(crate) received_us: i64,
    pub(crate) idempotency_key: Option<Arc<str>>,
    pub(crate) request_id: Arc<str>,
    pub(crate) ack: Ack,
    pub(crate) detail: bool,
    pub(crate) reply: Reply,
}

/// The decode threads and their queue. Its bytes are bounded by [`InFlight`](crate::http::InFlight), of which each body in
/// it holds a share.
#[derive(Debug)]
pub struct Batcher {
    queue: Arc<Queue>,
    partitions: Partitions,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Batcher {
    /// Starts the decode threads. Answers are sent by tasks on `runtime`.
    ///
    /// # Errors
    /// [`IngestError::Io`] when a thread cannot be started.
    pub fn start(
        config: &BatcherConfig,
        decode: (Arc<Mappings>, DecodeConfig),
        partitions: Partitions,
        runtime: Handle,
        health: &Health,
    ) -> Result<Self, IngestError> {
        let queue = Arc::new(Queue::new(config, partitions.count(), health.stage("decode")));
        let batcher = Self { queue: queue.clone(), partitions: partitions.clone(), threads: Mutex::new(Vec::new()) };
        let threads = match config.decode_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let (mappings, decode_config) = decode;
        for at in 0..threads {
            let (mappings, decode_config) = (mappings.clone(), decode_config.clone());
            let new_decoder = move || Decoder::new(mappings.clone(), decode_config.clone(), random());
            let worker = worker::Worker::new(
                Box::new(new_decoder),
                config,
                (partitions.clone(), queue.clone()),
                runtime.clone(),
            );
            let thread = std::thread::Builder::new().name(format!("decode-{at}")).spawn(move || worker.run());
            match thread {
                Ok(thread) => batcher.threads.lock().push(thread),
                Err(source) => {
                    batcher.stop();
                    return Err(IngestError::Io { op: "start", path: format!("thread decode-{at}").into(), source });
                }
            }
        }
        Ok(batcher)
    }

    /// Queues a body.
    ///
    /// # Errors
    /// 503 once [`stop`](Self::stop) was called.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Problem> {
        self.queue.put(self.partitions.of(&job.org_id), job)
    }

    /// Bodies waiting for a decode thread.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Takes no more bodies, decodes and appends those that are queued, and ends the threads. Blocks until they have
    /// ended; answers to the last appends may still be on their way.
    pub fn stop(&self) {
        self.queue.close();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a decode thread had ended by a panic");
            }
        }
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// 64 bits that the operating system seeds: the start of a decoder's ids.
fn random() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_pipeline::log::MemoryLog;
    use tokio::sync::oneshot;

    use super::*;

    pub(super) type Answer = oneshot::Receiver<Result<Settled, Problem>>;

    /// A body of plain bytes, acknowledged on disk.
    pub(super) fn job(text: &str) -> Job {
        job_with_answer(text, Ack::Disk).0
    }

    pub(super) fn job_with_answer(text: &str, ack: Ack) -> (Job, Answer) {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            sent: Sent::of(text.as_bytes()),
            encodings: Vec::new(),
            org_id: "acme".into(),
            dataset: Dataset::SecurityEvents,
            source: None,
            format: BodyFormat::Json,
            received_us: 0,
            idempotency_key: None,
            request_id: "r".into(),
            ack,
            detail: true,
            reply,
        };
        (job, answer)
    }

    #[tokio::test]
    async fn threads_end_with_the_batcher_although_nobody_stopped_it() {
        let log: Arc<dyn tidegate_pipeline::StreamLog> = Arc::new(MemoryLog::new(1, 1));
        let decode = (Arc::new(Mappings::builtin().expect("mappings")), DecodeConfig::default());
        let config = BatcherConfig { decode_threads: 2, ..BatcherConfig::default() };
        let partitions = Partitions::one(log.clone());
        let batcher = Batcher::start(&config, decode, partitions, Handle::current(), &Health::default());
        let batcher = batcher.expect("threads");
        assert!(Arc::strong_count(&log) > 2, "each thread has the log");
        let threads = std::mem::take(&mut *batcher.threads.lock());
        assert_eq!(threads.len(), 2);
        drop(batcher);
        let (ended, waiting) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || ended.send(threads.into_iter().all(|thread| thread.join().is_ok())));
        assert_eq!(waiting.recv_timeout(Duration::from_secs(10)), Ok(true), "without a panic");
        assert_eq!(Arc::strong_count(&log), 1);
    }

    #[test]
    fn no_two_decoders_begin_with_the_same_ids() {
        let seeds: std::collections::HashSet<u64> = (0..16).map(|_| random()).collect();
        assert_eq!(seeds.len(), 16);
    }
}
