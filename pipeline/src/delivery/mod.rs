//! Delivery: what stands between a log and a sink. Retry, backoff, flushing and dead letters are written here, once.
//!
//! Each sink has one task and its own cursor, so a slow or failing one harms only itself: it lags, and the log keeps what
//! it has not made durable. The task reads from [`Sink::committed`] on, in deliveries of about `delivery_bytes_max`:
//! - **Retryable** failures (and a panic, a few times) are tried again without end, with exponential backoff and jitter;
//!   meanwhile the stage's detail says so.
//! - **Fatal** ones are narrowed down: where the sink says which rows it refuses, the others are given again without them;
//!   otherwise the delivery is halved and each half tried, so that the neighbours of a bad row go on; what remains becomes rows of `dead_letters` in the output log, with ids that depend on sink and offset alone, so that a
//!   retry after a crash does not double them. A dead letter that is refused itself stays in the log only, and is counted.
//! - **Withdrawn** rows, which a sink has taken and can never make durable, are given again from what is committed, a flush
//!   after each delivery: so it shows which are the reason, and these are treated as above.
//! - **Flush** is called when something was taken `flush_interval_ms` ago and is not committed, and at drain.

pub mod dead_letter;
mod letters;
mod parts;
mod worker;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::gauge;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

pub use dead_letter::{DeadLetter, LetterText, dead_letter_batch};
pub use letters::json_rows;

use crate::error::PipelineError;
use crate::health::Stage;
use crate::log::{Offset, StreamLog};
use crate::metrics as names;
use crate::output::OutputLog;
use crate::sink::Sink;

/// Between two looks at how far a sink is behind.
const LAG_SHOWN_EVERY: Duration = Duration::from_millis(500);

/// Bounds and pace of a delivery.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeliveryConfig {
    /// Memory of one delivery.
    pub delivery_bytes_max: usize,
    /// Age of the oldest row that a sink has taken but not made durable, before it is asked to.
    pub flush_interval_ms: u64,
    /// Wait after the first failure; it doubles with each further one.
    pub retry_ms_min: u64,
    /// Longest wait between two tries.
    pub retry_ms_max: u64,
    /// Failures in a row after which the stage says that the sink is out of order.
    pub open_after_failures: u32,
    /// How often a refused delivery is halved to find the rows that are refused, where the sink does not know them; what is left
    /// after that goes to the dead letters as a whole.
    pub splits_max: u32,
    /// Bytes of a row's JSON text that a dead letter keeps.
    pub payload_bytes_max: usize,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            delivery_bytes_max: 8 << 20,
            flush_interval_ms: 10_000,
            retry_ms_min: 100,
            retry_ms_max: 30_000,
            open_after_failures: 3,
            splits_max: 64,
            payload_bytes_max: 16 << 10,
        }
    }
}

/// What a delivery is made of.
pub struct DeliveryParts {
    /// The destination.
    pub sink: Box<dyn Sink>,
    /// The log that it follows.
    pub log: Arc<dyn StreamLog>,
    /// Where dead letters go.
    pub output: Arc<OutputLog>,
    /// Bounds and pace.
    pub config: DeliveryConfig,
    /// The health of this sink.
    pub stage: Arc<Stage>,
}

/// A running delivery. Dropping it ends the task at once, without a flush.
pub struct DeliveryHandle {
    name: String,
    log: Arc<dyn StreamLog>,
    committed: watch::Receiver<Offset>,
    stop: watch::Sender<Option<Drain>>,
    done: oneshot::Receiver<Result<Offset, PipelineError>>,
}

/// Up to where and until when to go on.
#[derive(Debug, Clone, Copy)]
struct Drain {
    until: Offset,
    deadline: Instant,
}

/// Starts the delivery of a log to a sink, as one task of `runtime`.
pub fn deliver(parts: DeliveryParts, runtime: &Handle) -> DeliveryHandle {
    let name = parts.sink.name().to_owned();
    let log = parts.log.clone();
    let (committed_sender, committed) = watch::channel(parts.sink.committed());
    let (stop, stopping) = watch::channel(None);
    let (done_sender, done) = oneshot::channel();
    let stage = parts.stage.clone();
    let worker = worker::Worker::new(parts, committed_sender);
    let task = runtime.spawn(worker.run(stopping));
    let shown = show_lag(name.clone(), log.clone(), committed.clone());
    runtime.spawn(async move {
        let ended = tokio::select! {
            ended = task => ended,
            never = shown => match never {},
        };
        let ended = ended.unwrap_or_else(|error| {
            // Calls of the sink are guarded; this is for what nobody thought of, which must not end in silence.
            tracing::error!(%error, "a delivery has ended: its sink gets nothing until a restart");
            stage.set_detail(Some(format!("ended: {error}")));
            stage.waiting(1, Instant::now());
            Err(PipelineError::Invalid(format!("the delivery ended: {error}")))
        });
        // Nobody listens any more when the handle was dropped.
        done_sender.send(ended).ok();
    });
    DeliveryHandle { name, log, committed, stop, done }
}

/// Keeps the metric of the lag true, also while a call of the sink hangs.
async fn show_lag(name: String, log: Arc<dyn StreamLog>, committed: watch::Receiver<Offset>) -> Infallible {
    let mut ticks = tokio::time::interval(LAG_SHOWN_EVERY);
    loop {
        ticks.tick().await;
        let lag = log.bounds().next.saturating_sub(*committed.borrow());
        gauge!(names::DELIVERY_LAG_ROWS, "sink" => name.clone()).set(lag as f64);
    }
}

impl DeliveryHandle {
    /// The name of the sink.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A receiver of the offset up to which everything is durable at the destination, or among the dead letters.
    pub fn committed(&self) -> watch::Receiver<Offset> {
        self.committed.clone()
    }

    /// Whether the delivery has ended by itself: it could not go on.
    pub fn has_ended(&self) -> bool {
        // What the task says ends with it.
        self.committed.has_changed().is_err()
    }

    /// Delivers what the log holds now, as far as the deadline allows, flushes and ends the task; the committed offset.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] when the sink could not take everything in time: the rest is delivered after the next
    /// start.
    pub async fn drain(self, deadline: Instant) -> Result<Offset, PipelineError> {
        let Self { name, log, stop, done, committed } = self;
        stop.send(Some(Drain { until: log.bounds().next, deadline })).ok();
        match tokio::time::timeout_at(deadline.into(), done).await {
            Ok(Ok(ended)) => ended,
            // Dropping `stop` now ends the task at its next wait.
            Err(_) | Ok(Err(_)) => Err(PipelineError::Invalid(format!(
                "{name} did not take everything in time: it goes on from offset {} after the next start",
                *committed.borrow()
            ))),
        }
    }
}

impl std::fmt::Debug for DeliveryHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeliveryHandle")
            .field("name", &self.name)
            .field("committed", &*self.committed.borrow())
            .finish_non_exhaustive()
    }
}
