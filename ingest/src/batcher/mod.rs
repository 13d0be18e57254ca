//! From bodies to appends: decode threads that take what is waiting, decode it together, and append it at once.
//!
//! There is no timer. A thread takes one body and as many more as are waiting, up to the group bounds; under load groups
//! grow by themselves, without load a body is alone and does not wait. The thread goes on to its next group while the log
//! makes this one durable; the answer of the log is turned into answers to the requests by a task of the I/O runtime.
//!
//! A decoder that panics is replaced. The bodies that it held are then decoded one by one, so that only the body that
//! causes the panic fails.

mod inflating;
mod settle;
mod worker;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_events::Dataset;
use tidegate_pipeline::{Ack, Health, Problem, Stage, StreamLog};
use tokio::runtime::Handle;

pub use settle::{ItemState, Reply, Settled, StoredItem};

use crate::decode::{BodyFormat, DecodeConfig, Decoder};
use crate::error::IngestError;
use crate::http::Sent;
use crate::inflate::Encoding;
use crate::mapping::Mappings;
use crate::metrics as names;

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
    /// Rows that are appended together; a single body may have more.
    pub group_rows_max: usize,
}

impl Default for BatcherConfig {
    fn default() -> Self {
        Self {
            decode_threads: 0,
            inflated_bytes_max: 256 * 1024 * 1024,
            group_bytes_max: 8 * 1024 * 1024,
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
        log: Arc<dyn StreamLog>,
        runtime: Handle,
        health: &Health,
    ) -> Result<Self, IngestError> {
        let queue = Arc::new(Queue {
            waiting: Mutex::new(Jobs::default()),
            more: Condvar::new(),
            stage: health.stage("decode"),
            group_bytes_max: config.group_bytes_max,
        });
        let batcher = Self { queue: queue.clone(), threads: Mutex::new(Vec::new()) };
        let threads = match config.decode_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let (mappings, decode_config) = decode;
        for at in 0..threads {
            let (mappings, decode_config) = (mappings.clone(), decode_config.clone());
            let new_decoder = move || Decoder::new(mappings.clone(), decode_config.clone(), random());
            let worker = worker::Worker::new(Box::new(new_decoder), config, log.clone(), runtime.clone());
            let queue = queue.clone();
            let thread = std::thread::Builder::new().name(format!("decode-{at}")).spawn(move || worker.run(&queue));
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
        self.queue.put(job)
    }

    /// Bodies waiting for a decode thread.
    pub fn waiting(&self) -> usize {
        self.queue.waiting.lock().jobs.len()
    }

    /// Takes no more bodies, decodes and appends those that are queued, and ends the threads. Blocks until they have
    /// ended; answers to the last appends may still be on their way.
    pub fn stop(&self) {
        self.queue.waiting.lock().closed = true;
        self.queue.more.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a decode thread had ended by a panic");
            }
        }
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.queue.waiting.lock().closed = true;
        self.queue.more.notify_all();
    }
}

/// 64 bits that the operating system seeds: the start of a decoder's ids.
fn random() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[derive(Debug, Default)]
struct Jobs {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Jobs>,
    more: Condvar,
    stage: Arc<Stage>,
    group_bytes_max: usize,
}

impl Queue {
    fn put(&self, job: Job) -> Result<(), Problem> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(settle::stopping());
        }
        waiting.jobs.push_back(job);
        let count = waiting.jobs.len() as u64;
        self.stage.waiting(count, Instant::now());
        drop(waiting);
        self.more.notify_one();
        Ok(())
    }

    /// The next bodies: one, and those behind it up to the group bound. Waits for the first. `None` once closed and empty.
    fn take(&self) -> Option<Vec<Job>> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() {
            if waiting.closed {
                return None;
            }
            self.more.wait(&mut waiting);
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(job) = waiting.jobs.front() {
            bytes += job.sent.len();
            if !taken.is_empty() && bytes > self.group_bytes_max {
                break;
            }
            taken.extend(waiting.jobs.pop_front());
        }
        let left = waiting.jobs.len();
        drop(waiting);
        let now = Instant::now();
        self.stage.progressed(now);
        self.stage.waiting(left as u64, now);
        metrics::gauge!(names::QUEUE_BODIES).set(left as f64);
        Some(taken)
    }
}
