//! The run loop: one thread that hands the ingest log, in order, to the operators and makes their alerts durable.
//!
//! ```text
//! ingest log ──read──► watermark ──► operators ──alerts──► output log (Ack::Disk) ──► checkpoint
//! ```
//!
//! What it promises:
//! - **Exactly once.** Alerts are appended before the checkpoint that covers them. After a crash the rows after the
//!   checkpoint are processed again, and alerts that reached the output log before the crash are not appended again.
//! - **Replay gives the same rows.** Operators see batches and a [watermark](watermark::Watermark) that depends on the
//!   batches alone; an alert's `received_time` is the latest one of the batch that caused it. The clock is read for
//!   health, metrics and the pace of checkpoints only.
//! - **One bad operator harms only itself.** One that panics is parked until a restart; the stage is down until
//!   then, and the reason is in [`RunStatus`], in the stage's detail and in a metric.
//! - **Nothing is dropped.** While the output log is full or failing, the loop waits and tries again; so it falls behind,
//!   which its stage and the lag metric show, and the ingest log keeps what it has not seen.

mod replay;
mod stations;
mod thread;
pub mod watermark;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

pub use stations::Parked;
pub(crate) use stations::panic_text;

use crate::checkpoint::Checkpoint;
use crate::error::PipelineError;
use crate::fs::Fs;
use crate::health::Stage;
use crate::log::{LogBatch, Offset, StreamLog};
use crate::operator::Operator;
use crate::output::OutputLog;

/// Bounds and pace of the run loop.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// How far the watermark of the run loop stays behind the largest event time. (Correlations have their own: sigma.lateness_ms_max.)
    pub lateness_ms_max: u64,
    /// How far an event's time may be ahead of its receive time and still move the watermark.
    pub ahead_ms_max: u64,
    /// Memory of one read of the ingest log.
    pub read_bytes_max: usize,
    /// Rows of one batch of alerts in the output log.
    pub alert_rows_max: usize,
    /// Alerts that are collected before they are appended, at most; one batch of events may exceed it by its own alerts.
    pub alerts_pending_max: usize,
    /// Time between two checkpoints while there is progress: more when writing them takes long. 0: after every read.
    pub checkpoint_interval_ms: u64,
    /// Size of a checkpoint: operators whose states exceed it together are not checkpointed, which the stage says.
    pub checkpoint_bytes_max: u64,
    /// Ids of alerts that are remembered while rows are replayed after a crash.
    pub replay_ids_max: usize,
    /// Longest wait before a failed append or read is tried again.
    pub retry_ms_max: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            lateness_ms_max: 60_000,
            ahead_ms_max: 600_000,
            read_bytes_max: 8 << 20,
            alert_rows_max: 4_096,
            alerts_pending_max: 16_384,
            checkpoint_interval_ms: 5_000,
            checkpoint_bytes_max: 1 << 30,
            replay_ids_max: 1_000_000,
            retry_ms_max: 2_000,
        }
    }
}

/// What a run loop is made of.
pub struct RunParts {
    /// The ingest log.
    pub log: Arc<dyn StreamLog>,
    /// The output log, shared with the deliveries.
    pub output: Arc<OutputLog>,
    /// The operators, in the order in which they see a batch.
    pub operators: Vec<Box<dyn Operator>>,
    /// What people have set up by now, as batches of `changes` ([`crate::registry::Registry::as_batch`]): given to an
    /// operator that starts without the state of earlier rows, so that a lost state does not silence its rules. May be empty.
    pub seed: Vec<LogBatch>,
    /// Where the checkpoints are written.
    pub fs: Arc<dyn Fs>,
    /// The folder of the checkpoints, `<data>/checkpoint`.
    pub dir: PathBuf,
    /// Bounds and pace.
    pub config: RunConfig,
    /// The health of the loop.
    pub stage: Arc<Stage>,
}

/// Takes a copy of each checkpoint to where others find it, before it counts as written. Called on the thread of the loop.
pub type CheckpointCopy = Box<dyn Fn(&Checkpoint) -> Result<(), PipelineError> + Send>;

/// Where a run loop is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunStatus {
    /// Rows of the ingest log below this offset are processed and their alerts are durable.
    pub offset: Offset,
    /// The offset of the newest checkpoint.
    pub checkpoint_offset: Offset,
    /// The log may forget rows below this offset: no kept checkpoint needs them.
    pub needed_from: Offset,
    /// The same for the output log.
    pub output_needed_from: Offset,
    /// The watermark (µs), once there is one.
    pub watermark: Option<i64>,
    /// Alerts appended since the start.
    pub alerts: u64,
    /// Operators that were taken out.
    pub parked: Vec<Parked>,
}

/// How a loop is told to end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    No,
    /// Process what the log held when this was asked, unless the deadline comes first; then checkpoint.
    Drain {
        until: Offset,
        deadline: Instant,
    },
}

/// The run loop. See [`RunLoop::start`].
#[derive(Debug)]
pub struct RunLoop;

impl RunLoop {
    /// Loads the newest checkpoint, restores the operators and starts the thread, which replays what lies after it first.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the checkpoint folder cannot be made or listed, or the thread cannot be started;
    /// [`PipelineError::Invalid`] when two operators have one name.
    pub fn start(parts: RunParts) -> Result<RunHandle, PipelineError> {
        Self::start_with(parts, None)
    }

    /// The same, with checkpoints that `copy` takes elsewhere. One that cannot be taken there is one that could not be written.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(parts: RunParts, copy: Option<CheckpointCopy>) -> Result<RunHandle, PipelineError> {
        let status = Arc::new(RwLock::new(RunStatus::default()));
        let (offset_sender, offset) = watch::channel(0);
        let (stop, stopping) = watch::channel(Stop::No);
        let (done_sender, done) = oneshot::channel();
        let log = parts.log.clone();
        let dir = parts.dir.clone();
        let state = thread::State::new(parts, copy, status.clone(), offset_sender)?;
        let body = move || {
            // Nobody listens any more when the handle was dropped.
            done_sender.send(thread::run(state, stopping)).ok();
        };
        let spawned = std::thread::Builder::new().name("run-loop".into()).spawn(body);
        spawned.map_err(|source| PipelineError::Io { op: "start a thread for", path: dir, source })?;
        Ok(RunHandle { log, status, offset, stop, done })
    }
}

/// A running loop. Dropping it stops the loop after the batch at hand, without a checkpoint, as a crash would.
pub struct RunHandle {
    log: Arc<dyn StreamLog>,
    status: Arc<RwLock<RunStatus>>,
    offset: watch::Receiver<Offset>,
    stop: watch::Sender<Stop>,
    done: oneshot::Receiver<Result<(), PipelineError>>,
}

impl RunHandle {
    /// Where the loop is now.
    pub fn status(&self) -> RunStatus {
        self.status.read().clone()
    }

    /// The same for whoever does not hold the handle; what it says last stays after the end.
    pub fn status_reader(&self) -> impl Fn() -> RunStatus + Send + Sync + use<> {
        let status = self.status.clone();
        move || status.read().clone()
    }

    /// A receiver of the offset up to which everything is processed and durable.
    pub fn offset(&self) -> watch::Receiver<Offset> {
        self.offset.clone()
    }

    /// Whether the loop has ended by itself: it could not go on.
    pub fn has_ended(&self) -> bool {
        // What the thread says ends with it.
        self.offset.has_changed().is_err()
    }

    /// Processes what the log holds now, as far as the deadline allows, writes a checkpoint and ends the thread. What is
    /// left over is replayed after the next start.
    ///
    /// # Errors
    /// What ended the loop, when it was not this call; [`PipelineError::Invalid`] when an operator does not come back in
    /// time.
    pub async fn drain(self, deadline: Instant) -> Result<RunStatus, PipelineError> {
        let Self { log, status, stop, done, .. } = self;
        stop.send(Stop::Drain { until: log.bounds().next, deadline }).ok();
        // The last batch and the checkpoint come after the deadline.
        let grace = deadline + Duration::from_secs(1);
        match tokio::time::timeout_at(grace.into(), done).await {
            Ok(Ok(ended)) => ended.map(|()| status.read().clone()),
            Ok(Err(_)) => Err(PipelineError::Invalid("the run loop ended without a word: a bug".into())),
            Err(_) => Err(PipelineError::Invalid(
                "an operator did not come back in time: its rows are replayed after the next start".into(),
            )),
        }
    }
}

impl std::fmt::Debug for RunHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunHandle").field("status", &self.status.read()).finish_non_exhaustive()
    }
}
