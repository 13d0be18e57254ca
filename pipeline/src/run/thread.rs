//! The thread of the run loop.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::replay::Replay;
use super::stations::Stations;
use super::watermark::{Watermark, received_max};
use super::{CheckpointCopy, RunConfig, RunParts, RunStatus, Stop, panic_text};
use crate::backoff::Backoff;
use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::error::{AppendError, PipelineError};
use crate::health::Stage;
use crate::log::{LogBatch, Offset, StreamLog};
use crate::metrics as names;
use crate::output::{AlertGroup, OutputLog};
use crate::tailing::{Reading, read_on};

/// At most one part in so many of the time goes into checkpoints.
const CHECKPOINT_PART: u32 = 20;

/// Everything that the thread owns.
pub(super) struct State {
    log: Arc<dyn StreamLog>,
    output: Arc<OutputLog>,
    stations: Stations,
    checkpoints: Checkpoints,
    copy: Option<CheckpointCopy>,
    config: RunConfig,
    health: Troubles,
    shared: Arc<RwLock<RunStatus>>,
    offset_sender: watch::Sender<Offset>,
    dir: PathBuf,
    /// Processed up to here; the alerts of the last rows may still be pending.
    offset: Offset,
    watermark: Watermark,
    replay: Option<Replay>,
    pending: Vec<AlertGroup>,
    pending_alerts: usize,
    alerts: u64,
    backoff: Backoff,
}

/// Why the loop leaves off in the middle.
enum Left {
    /// It was told to, and its deadline is over (or nobody is interested any more).
    Stopped,
    /// It cannot go on.
    Failed(PipelineError),
}

impl State {
    /// Loads the checkpoint and restores the operators.
    pub(super) fn new(
        parts: RunParts,
        copy: Option<CheckpointCopy>,
        shared: Arc<RwLock<RunStatus>>,
        offset_sender: watch::Sender<Offset>,
    ) -> Result<Self, PipelineError> {
        let RunParts { log, output, operators, seed, fs, dir, config, stage } = parts;
        let mut stations = Stations::new(operators)?;
        let (checkpoints, checkpoint) = Checkpoints::open(fs, &dir, config.checkpoint_bytes_max)?;
        let bounds = log.bounds();
        let from = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.offset);
        let offset = from.clamp(bounds.first.min(bounds.next), bounds.next);
        if offset > from && checkpoint.is_some() {
            tracing::warn!(from, offset, "the log has forgotten rows after the checkpoint: they are not processed");
        } else if offset < from {
            tracing::warn!(from, offset, "the log ends before the checkpoint: it lost rows that were processed");
        }
        stations.restore(checkpoint.as_ref(), &seed, offset > 0);
        let output_from = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.output_offset);
        let replay = Replay::new(bounds.next, &**output.log(), output_from, config.replay_ids_max);
        let at = checkpoint.and_then(|checkpoint| checkpoint.watermark);
        let watermark = Watermark::new(micros(config.lateness_ms_max), micros(config.ahead_ms_max), at);
        let longest = Duration::from_millis(config.retry_ms_max);
        let mut state = Self {
            log,
            output,
            stations,
            checkpoints,
            copy,
            config,
            health: Troubles { stage, all: BTreeMap::new() },
            shared,
            offset_sender,
            dir,
            offset,
            watermark,
            replay: Some(replay),
            pending: Vec::new(),
            pending_alerts: 0,
            alerts: 0,
            backoff: Backoff::new(Duration::from_millis(20), longest, offset),
        };
        state.publish();
        Ok(state)
    }

    async fn follow(&mut self, stop: &mut watch::Receiver<Stop>) -> Result<(), Left> {
        let mut bounds = self.log.watch();
        let interval = Duration::from_millis(self.config.checkpoint_interval_ms);
        let mut due = Instant::now() + interval;
        loop {
            let next = bounds.borrow_and_update().next;
            match *stop.borrow_and_update() {
                Stop::Drain { until, .. } if self.offset >= until => return Ok(()),
                Stop::Drain { deadline, .. } if Instant::now() >= deadline => return Ok(()),
                _ => {}
            }
            self.health.stage.waiting(next.saturating_sub(self.offset), Instant::now());
            gauge!(names::RUN_LAG_ROWS).set(next.saturating_sub(self.offset) as f64);
            if next > self.offset {
                self.round(stop).await?;
            } else {
                tokio::select! {
                    changed = bounds.changed() => {
                        // The log is gone: nothing more will come.
                        changed.map_err(|_| Left::Failed(AppendError::Closed.into()))?;
                    }
                    told = stop.changed() => told.map_err(|_| Left::Stopped)?,
                    () = tokio::time::sleep_until(due.into()), if self.progressed() => {}
                }
            }
            if Instant::now() >= due {
                let started = Instant::now();
                if self.progressed() {
                    self.checkpoint();
                }
                // A large state takes long to write: the stream has the time, but for one part in so many.
                let pause = if interval.is_zero() { interval } else { started.elapsed() * (CHECKPOINT_PART - 1) };
                due = Instant::now() + interval.max(pause);
            }
        }
    }

    /// One read of the log, processed, with its alerts made durable.
    async fn round(&mut self, stop: &mut watch::Receiver<Stop>) -> Result<(), Left> {
        let Reading { batches, next, forgotten } = match read_on(&*self.log, self.offset, self.config.read_bytes_max) {
            Ok(reading) => reading,
            Err(error) => return self.wait("reading the log", error, stop).await,
        };
        self.health.clear("reading the log");
        if forgotten > 0 {
            tracing::warn!(from = self.offset, forgotten, "the log has forgotten rows before they were processed");
            counter!(names::RUN_FORGOTTEN_ROWS).increment(forgotten);
        }
        for batch in &batches {
            self.process(batch, stop).await?;
            if self.pending_alerts >= self.config.alerts_pending_max {
                self.append_pending(stop).await?;
            }
            self.health.stage.progressed(Instant::now());
            if over(stop)? {
                break;
            }
        }
        if batches.last().is_none_or(|last| last.next_offset() == self.offset) {
            self.offset = next;
        }
        self.append_pending(stop).await?;
        if self.replay.as_ref().is_some_and(|replay| self.offset >= replay.until) {
            self.replay = None;
        }
        self.publish();
        self.health.stage.progressed(Instant::now());
        Ok(())
    }

    async fn process(&mut self, batch: &LogBatch, stop: &mut watch::Receiver<Stop>) -> Result<(), Left> {
        let started = Instant::now();
        let watermark = self.watermark.observe(batch);
        let mut alerts = self.stations.process(batch, watermark);
        self.offset = batch.next_offset();
        counter!(names::RUN_BUSY_MICROSECONDS).increment(started.elapsed().as_micros() as u64);
        counter!(names::RUN_ROWS).increment(batch.rows.num_rows() as u64);
        let replay = self.replay.as_ref().is_some_and(|replay| batch.offset < replay.until);
        while replay && !alerts.is_empty() {
            let Some(replay) = &mut self.replay else { break };
            match replay.skip_known(&mut alerts, &**self.output.log(), self.config.read_bytes_max) {
                Ok(skipped) => {
                    counter!(names::RUN_REPLAYED_ALERTS).increment(skipped as u64);
                    self.health.clear("reading the output log");
                    break;
                }
                Err(error) => self.wait("reading the output log", error, stop).await?,
            }
        }
        if !alerts.is_empty() {
            self.pending_alerts += alerts.len();
            let received_us = received_max(&batch.rows).unwrap_or_default();
            self.pending.push(AlertGroup { alerts, received_us });
        }
        Ok(())
    }

    /// Makes the pending alerts durable. Comes back without that only when the loop is to end.
    async fn append_pending(&mut self, stop: &mut watch::Receiver<Stop>) -> Result<(), Left> {
        while !self.pending.is_empty() {
            match self.output.append_alerts(&self.pending, self.config.alert_rows_max).await {
                Ok(_) => {
                    counter!(names::RUN_ALERTS).increment(self.pending_alerts as u64);
                    self.alerts += self.pending_alerts as u64;
                    self.pending.clear();
                    self.pending_alerts = 0;
                    self.backoff.succeeded();
                    self.health.clear("appending alerts");
                }
                Err(error) => {
                    counter!(names::RUN_APPEND_RETRIES).increment(1);
                    self.wait("appending alerts", error, stop).await?;
                }
            }
        }
        Ok(())
    }

    /// Says what fails and waits before the next try.
    async fn wait(
        &mut self,
        doing: &'static str,
        error: PipelineError,
        stop: &mut watch::Receiver<Stop>,
    ) -> Result<(), Left> {
        if matches!(error, PipelineError::Append(AppendError::Closed) | PipelineError::Arrow(_)) {
            return Err(Left::Failed(error));
        }
        if self.backoff.failures() == 0 {
            tracing::warn!(%error, doing, "the run loop waits and tries again");
        }
        self.health.set(doing, error.to_string());
        let pause = self.backoff.failed();
        let deadline = match *stop.borrow_and_update() {
            Stop::Drain { deadline, .. } => deadline,
            Stop::No => Instant::now() + pause,
        };
        tokio::select! {
            () = tokio::time::sleep_until((Instant::now() + pause).min(deadline).into()) => {}
            told = stop.changed() => told.map_err(|_| Left::Stopped)?,
        }
        if over(stop)? { Err(Left::Stopped) } else { Ok(()) }
    }

    fn progressed(&self) -> bool {
        self.offset != self.checkpoints.newest_offset()
    }

    /// Writes a checkpoint. One that fails costs a longer replay, no more: it is told about and tried again later.
    fn checkpoint(&mut self) {
        // It may be all that is to be done, and the disk may hang: then this thread says nothing more.
        self.health.stage.waiting(1, Instant::now());
        let states = self.stations.save();
        let checkpoint = Checkpoint {
            offset: self.offset,
            output_offset: self.output_offset(),
            watermark: self.watermark.at(),
            states,
        };
        let copied = self.copy.as_ref().map_or(Ok(()), |copy| copy(&checkpoint));
        match copied.and_then(|()| self.checkpoints.save(&checkpoint)) {
            Ok(()) => {
                counter!(names::CHECKPOINTS).increment(1);
                self.health.clear("checkpoint");
            }
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "could not write a checkpoint: a restart replays more");
                counter!(names::CHECKPOINT_FAILURES).increment(1);
                self.health.set("checkpoint", error.to_string());
            }
        }
        self.health.stage.progressed(Instant::now());
        self.publish();
    }

    /// Where a replay from here has to look for its alerts. While rows are replayed, alerts that come later in the replay
    /// are in the output log already.
    fn output_offset(&self) -> Offset {
        let end = self.output.log().bounds().next;
        self.replay.as_ref().map_or(end, |replay| replay.needed_from().min(end))
    }

    fn publish(&mut self) {
        let (needed_from, output_needed_from) = self.checkpoints.needed_from();
        let parked = self.stations.parked();
        if !parked.is_empty() {
            let told: Vec<String> =
                parked.iter().map(|parked| format!("{} {}", parked.operator, parked.reason)).collect();
            self.health.set("parked", told.join(", "));
        }
        let down = parked.iter().map(|parked| format!("operator {} is parked", parked.operator));
        self.health.stage.set_down(down.collect());
        *self.shared.write() = RunStatus {
            offset: self.offset,
            checkpoint_offset: self.checkpoints.newest_offset(),
            needed_from,
            output_needed_from,
            watermark: self.watermark.at(),
            alerts: self.alerts,
            parked: self.stations.parked().to_vec(),
        };
        self.offset_sender.send_replace(self.offset);
        gauge!(names::RUN_OFFSET).set(self.offset as f64);
        if let Some(at) = self.watermark.at() {
            gauge!(names::RUN_WATERMARK_SECONDS).set(at as f64 / 1e6);
        }
    }
}

/// Runs until told to stop or until it cannot go on.
pub(super) fn run(mut state: State, mut stop: watch::Receiver<Stop>) -> Result<(), PipelineError> {
    let ended = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => {
            // Operators are guarded one by one; this is for what nobody thought of, which must not end in silence.
            let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(state.follow(&mut stop))));
            let bug = |panic: Box<dyn Any + Send>| format!("the run loop panicked: {}", panic_text(panic.as_ref()));
            ended.unwrap_or_else(|panic| Err(Left::Failed(PipelineError::Invalid(bug(panic)))))
        }
        Err(source) => Err(Left::Failed(PipelineError::Io { op: "start", path: state.dir.clone(), source })),
    };
    match ended {
        Ok(()) => {
            if state.progressed() {
                state.checkpoint();
            }
            Ok(())
        }
        Err(Left::Stopped) => {
            // It was dropped, perhaps long before: what it was doing then was told after whoever dropped it had cleared the stage.
            state.health.stage.waiting(0, Instant::now());
            state.health.stage.set_detail(None);
            state.health.stage.set_down(Vec::new());
            Ok(())
        }
        Err(Left::Failed(error)) => {
            tracing::error!(%error, "the run loop has ended: no more alerts until a restart");
            state.health.set("ended", error.to_string());
            // Work waits from now on, whether there is some at this moment or not.
            state.health.stage.waiting(1, Instant::now());
            Err(error)
        }
    }
}

/// Whether the loop is to leave off now.
fn over(stop: &watch::Receiver<Stop>) -> Result<bool, Left> {
    // An error here means that the handle was dropped.
    stop.has_changed().map_err(|_| Left::Stopped)?;
    Ok(matches!(*stop.borrow(), Stop::Drain { deadline, .. } if Instant::now() >= deadline))
}

fn micros(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000)
}

/// What is wrong now, for the detail of the stage.
struct Troubles {
    stage: Arc<Stage>,
    all: BTreeMap<&'static str, String>,
}

impl Troubles {
    fn set(&mut self, what: &'static str, how: String) {
        if self.all.get(what) != Some(&how) {
            self.all.insert(what, how);
            self.tell();
        }
    }

    fn clear(&mut self, what: &'static str) {
        if self.all.remove(what).is_some() {
            self.tell();
        }
    }

    fn tell(&self) {
        let all: Vec<String> = self.all.iter().map(|(what, how)| format!("{what}: {how}")).collect();
        self.stage.set_detail((!all.is_empty()).then(|| all.join("; ")));
    }
}
