//! The task of one delivery.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tidegate_events::{Dataset, dedup_key};
use tokio::sync::watch;

use super::letters::letters;
use super::parts::{apart, halves, rows};
use super::{DeadLetter, DeliveryConfig, DeliveryParts, Drain, dead_letter_batch};
use crate::backoff::Backoff;
use crate::clock::now_us;
use crate::error::{AppendError, PipelineError};
use crate::health::Stage;
use crate::log::{EventBatch, LogBatch, Offset, StreamLog};
use crate::metrics as names;
use crate::output::OutputLog;
use crate::run::panic_text;
use crate::sink::{Delivery, Refusal, Sink, SinkError, SinkFuture};
use crate::tailing::{Reading, read_on};

/// Panics in a row after which the rows are held to be the reason.
const PANICS_MAX: u32 = 3;
/// Dead letters of one batch of the output log.
const LETTERS_MAX: usize = 1_024;

pub(super) struct Worker {
    sink: Box<dyn Sink>,
    name: String,
    log: Arc<dyn StreamLog>,
    output: Arc<OutputLog>,
    config: DeliveryConfig,
    stage: Arc<Stage>,
    committed_sender: watch::Sender<Offset>,
    /// The sink took everything below.
    cursor: Offset,
    /// When the oldest row was taken that may not be durable yet.
    taken_since: Option<Instant>,
    backoff: Backoff,
    panics: u32,
    /// Rows below it are given again after a withdrawal: each delivery is flushed at once.
    careful_until: Offset,
    /// Rows that went to the dead letters since the start, and why the last of them did.
    buried: Option<(u64, String)>,
}

/// What became of a delivery that was written.
enum Written {
    /// The sink has it.
    Taken,
    /// The sink can never have it as it is.
    Refused(Refusal),
    /// Neither this nor what was taken before it: the cursor is back at what is committed.
    Withdrawn,
}

type Stopping = watch::Receiver<Option<Drain>>;

/// The handle was dropped, or the deadline of a drain is over.
struct Stopped;

impl Worker {
    pub(super) fn new(parts: DeliveryParts, committed_sender: watch::Sender<Offset>) -> Self {
        let DeliveryParts { sink, log, output, config, stage } = parts;
        let name = sink.name().to_owned();
        let cursor = sink.committed();
        let seed = xxhash_rust::xxh3::xxh3_64(name.as_bytes()) ^ now_us() as u64;
        let min = Duration::from_millis(config.retry_ms_min);
        let backoff = Backoff::new(min, Duration::from_millis(config.retry_ms_max), seed);
        Self {
            sink,
            name,
            log,
            output,
            config,
            stage,
            committed_sender,
            cursor,
            taken_since: None,
            backoff,
            panics: 0,
            careful_until: 0,
            buried: None,
        }
    }

    /// Delivers until told to stop; the committed offset.
    pub(super) async fn run(mut self, mut stop: Stopping) -> Result<Offset, PipelineError> {
        let ended = self.follow(&mut stop).await;
        let committed = self.sink.committed();
        match ended {
            Ok(()) => Ok(self.published()),
            Err(Stopped) => Err(PipelineError::Invalid(format!(
                "{} did not take everything in time: it goes on from offset {committed} after the next start",
                self.name
            ))),
        }
    }

    async fn follow(&mut self, stop: &mut Stopping) -> Result<(), Stopped> {
        let mut bounds = self.log.watch();
        let next = bounds.borrow().next;
        if self.cursor > next {
            tracing::error!(sink = self.name, cursor = self.cursor, next, "the log ends before the sink's cursor");
        }
        loop {
            let next = bounds.borrow_and_update().next;
            let drain = *stop.borrow_and_update();
            gauge!(names::DELIVERY_LAG_ROWS, "sink" => self.name.clone())
                .set(next.saturating_sub(self.sink.committed()) as f64);
            self.stage.waiting(next.saturating_sub(self.cursor), Instant::now());
            if let Some(drain) = drain.filter(|drain| self.cursor >= drain.until) {
                self.flush(stop).await?;
                if self.cursor >= drain.until {
                    return Ok(());
                }
                continue;
            }
            if next > self.cursor {
                self.deliver_some(stop).await?;
            } else {
                let due = self.flush_due();
                tokio::select! {
                    changed = bounds.changed() => changed.map_err(|_| Stopped)?,
                    told = stop.changed() => told.map_err(|_| Stopped)?,
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                }
            }
            if self.flush_due().is_some_and(|due| Instant::now() >= due) {
                self.flush(stop).await?;
            }
        }
    }

    fn flush_due(&self) -> Option<Instant> {
        self.taken_since.map(|since| since + Duration::from_millis(self.config.flush_interval_ms))
    }

    /// Reads one delivery and gets it to the sink or to the dead letters.
    async fn deliver_some(&mut self, stop: &mut Stopping) -> Result<(), Stopped> {
        let (log, from, bytes_max) = (self.log.clone(), self.cursor, self.config.delivery_bytes_max);
        // Off the I/O threads: a read may touch the disk and decode.
        let read = tokio::task::spawn_blocking(move || read_on(&*log, from, bytes_max)).await;
        let Reading { batches, next, forgotten } = match read {
            Ok(Ok(reading)) => reading,
            Ok(Err(error)) => return self.wait("reading the log", &error.to_string(), stop).await,
            Err(error) => return self.wait("reading the log", &error.to_string(), stop).await,
        };
        if forgotten > 0 {
            tracing::warn!(sink = self.name, from, forgotten, "the log has forgotten rows that the sink never got");
            counter!(names::DELIVERY_FORGOTTEN_ROWS, "sink" => self.name.clone()).increment(forgotten);
        }
        let mut splits = 0;
        let mut parts = Vec::new();
        parts.extend((!batches.is_empty()).then_some(Delivery { batches, next_offset: next }));
        while let Some(part) = parts.pop() {
            let Refusal { reason, rows } = match self.write(&part, stop).await? {
                Written::Taken => continue,
                Written::Refused(refusal) => refusal,
                Written::Withdrawn => return Ok(()),
            };
            if let Some(apart) = apart(&part, &rows) {
                // Before the others, so that no cursor passes a row that is in no dead letter yet.
                self.bury(&apart.refused, &reason, stop).await?;
                parts.extend(apart.others.into_iter().rev());
                continue;
            }
            match halves(&part) {
                Some((first, second)) if splits < self.config.splits_max => {
                    splits += 1;
                    parts.extend([second, first]);
                }
                _ => {
                    self.bury(&part.batches, &reason, stop).await?;
                    self.cursor = part.next_offset;
                }
            }
        }
        self.cursor = self.cursor.max(next);
        self.publish();
        Ok(())
    }

    /// Writes until that succeeds or never can.
    async fn write(&mut self, part: &Delivery, stop: &mut Stopping) -> Result<Written, Stopped> {
        let from = part.batches.first().map_or(part.next_offset, |first| first.offset);
        let careful = from < self.careful_until;
        loop {
            self.taken_since.get_or_insert_with(Instant::now);
            match self.guard(|sink| sink.write(part.clone()), stop).await? {
                Ok(()) => {
                    self.cursor = part.next_offset;
                    counter!(names::DELIVERY_ROWS, "sink" => self.name.clone()).increment(rows(part));
                    self.succeeded();
                    break;
                }
                Err(SinkError::Retryable(reason)) => self.wait("write", &reason, stop).await?,
                Err(SinkError::Fatal(refusal)) => {
                    // The destination is up: it looked at the rows.
                    self.answered();
                    return Ok(Written::Refused(refusal));
                }
                Err(SinkError::Withdrawn(refusal)) => {
                    return Ok(self.withdrawn(careful.then_some(from), part.next_offset, refusal));
                }
            }
        }
        if careful && let Some(refusal) = self.flush_taken(stop).await? {
            return Ok(self.withdrawn(Some(from), part.next_offset, refusal));
        }
        Ok(Written::Taken)
    }

    /// The sink has forgotten what it took. When it had nothing but a delivery `alone`, which begins there, that delivery is the
    /// reason.
    fn withdrawn(&mut self, alone: Option<Offset>, until: Offset, refusal: Refusal) -> Written {
        self.taken_since = None;
        self.answered();
        if let Some(from) = alone {
            self.cursor = from;
            return Written::Refused(refusal);
        }
        let from = self.sink.committed().max(*self.committed_sender.borrow());
        tracing::warn!(
            sink = self.name,
            from,
            until,
            reason = refusal.reason,
            "rows cannot be stored together: they are given again one delivery at a time"
        );
        self.careful_until = self.careful_until.max(until).max(self.cursor);
        self.cursor = from;
        Written::Withdrawn
    }

    async fn flush(&mut self, stop: &mut Stopping) -> Result<(), Stopped> {
        if self.taken_since.is_some() {
            // Before the call, so that one that never comes back shows as stuck.
            self.stage.waiting(1, Instant::now());
        }
        if let Some(refusal) = self.flush_taken(stop).await? {
            self.withdrawn(None, self.cursor, refusal);
            return Ok(());
        }
        self.stage.waiting(0, Instant::now());
        self.publish();
        Ok(())
    }

    /// Flushes what the sink took until that succeeds, or the sink withdraws it: then the reason.
    async fn flush_taken(&mut self, stop: &mut Stopping) -> Result<Option<Refusal>, Stopped> {
        while self.taken_since.is_some() {
            match self.guard(|sink| sink.flush(), stop).await? {
                Ok(()) => {
                    self.taken_since = None;
                    self.succeeded();
                }
                // A refusal of rows that the sink still has is tried again: they cannot be given without the refused ones.
                Err(SinkError::Retryable(reason) | SinkError::Fatal(Refusal { reason, .. })) => {
                    self.wait("flush", &reason, stop).await?;
                }
                Err(SinkError::Withdrawn(refusal)) => return Ok(Some(refusal)),
            }
        }
        Ok(None)
    }

    /// Calls the sink. A panic is a failure to be tried again, but for the last of several in a row.
    async fn guard(
        &mut self,
        call: impl for<'a> FnOnce(&'a mut dyn Sink) -> SinkFuture<'a> + Send,
        stop: &mut Stopping,
    ) -> Result<Result<(), SinkError>, Stopped> {
        let sink = self.sink.as_mut();
        let answer = async {
            let mut future = match catch_unwind(AssertUnwindSafe(|| call(sink))) {
                Ok(future) => future,
                Err(panic) => return Err(panic),
            };
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(polled) => polled.map(Ok),
                Err(panic) => std::task::Poll::Ready(Err(panic)),
            })
            .await
        };
        let answer = tokio::select! {
            answer = answer => answer,
            () = stopped(stop) => return Err(Stopped),
        };
        Ok(match answer {
            Ok(answer) => {
                self.panics = 0;
                answer
            }
            Err(panic) => {
                self.panics += 1;
                let reason = format!("the sink panicked: {}", panic_text(panic.as_ref()));
                tracing::error!(sink = self.name, reason, "a bug in the sink");
                if self.panics < PANICS_MAX {
                    Err(SinkError::Retryable(reason))
                } else {
                    Err(SinkError::Fatal(reason.into()))
                }
            }
        })
    }

    /// Makes dead letters of refused rows.
    async fn bury(&mut self, refused: &[Arc<LogBatch>], reason: &str, stop: &mut Stopping) -> Result<(), Stopped> {
        let mut waiting: Vec<DeadLetter> = Vec::new();
        let mut buried = 0;
        for batch in refused {
            let rows = batch.rows.num_rows();
            if batch.dataset == Dataset::DeadLetters {
                tracing::error!(sink = self.name, offset = batch.offset, rows, reason, "dead letters were refused");
                counter!(names::DELIVERY_REFUSED_LETTERS, "sink" => self.name.clone()).increment(rows as u64);
                continue;
            }
            if buried == 0 {
                tracing::warn!(sink = self.name, offset = batch.offset, rows, reason, "rows go to the dead letters");
            }
            buried += rows as u64;
            for start in (0..rows).step_by(LETTERS_MAX) {
                let length = LETTERS_MAX.min(rows - start);
                let slice = LogBatch {
                    offset: batch.offset + start as u64,
                    dataset: batch.dataset,
                    rows: batch.rows.slice(start, length),
                };
                if waiting.len() + length > LETTERS_MAX {
                    self.append_letters(std::mem::take(&mut waiting), stop).await?;
                }
                waiting.extend(letters(&slice, &self.name, reason));
            }
        }
        self.append_letters(waiting, stop).await?;
        if buried > 0 {
            counter!(names::DELIVERY_DEAD_ROWS, "sink" => self.name.clone()).increment(buried);
            let before = self.buried.as_ref().map_or(0, |(rows, _)| *rows);
            self.buried = Some((before + buried, reason.to_owned()));
        }
        self.stage.set_detail(self.detail());
        self.stage.progressed(Instant::now());
        Ok(())
    }

    async fn append_letters(&mut self, letters: Vec<DeadLetter>, stop: &mut Stopping) -> Result<(), Stopped> {
        if letters.is_empty() {
            return Ok(());
        }
        let keys = letters.iter().map(|letter| dedup_key(&letter.org_id, Dataset::DeadLetters as u8, &letter.event_id));
        let keys: Vec<u128> = keys.collect();
        let rows = match dead_letter_batch(&letters, self.config.payload_bytes_max) {
            Ok(rows) => rows,
            Err(error) => {
                let letters = letters.len();
                tracing::error!(sink = self.name, letters, %error, "no dead letters can be made of refused rows");
                return Ok(());
            }
        };
        loop {
            let batch = EventBatch { dataset: Dataset::DeadLetters, rows: rows.clone(), keys: keys.clone() };
            let appended = tokio::select! {
                appended = self.output.append_batch(batch) => appended,
                () = stopped(stop) => return Err(Stopped),
            };
            match appended {
                Ok(()) => return Ok(()),
                Err(PipelineError::Append(AppendError::Closed)) => return Err(Stopped),
                Err(error) => self.wait("appending dead letters", &error.to_string(), stop).await?,
            }
        }
    }

    /// Says what fails and waits before the next try.
    async fn wait(&mut self, doing: &str, reason: &str, stop: &mut Stopping) -> Result<(), Stopped> {
        let pause = self.backoff.failed();
        let failures = self.backoff.failures();
        counter!(names::DELIVERY_RETRIES, "sink" => self.name.clone()).increment(1);
        let open = failures >= self.config.open_after_failures;
        if open {
            gauge!(names::DELIVERY_CIRCUIT_OPEN, "sink" => self.name.clone()).set(1.0);
        }
        if failures == 1 || failures == self.config.open_after_failures {
            tracing::warn!(sink = self.name, doing, reason, failures, "a delivery failed and is tried again");
        }
        let state = if open { "out of order" } else { "retrying" };
        let pause_ms = pause.as_millis();
        self.stage
            .set_detail(Some(format!("{state}: {doing} failed {failures} times, again in {pause_ms} ms: {reason}")));
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = stopped(stop) => Err(Stopped),
        }
    }

    fn succeeded(&mut self) {
        self.stage.progressed(Instant::now());
        self.answered();
        self.publish();
    }

    /// The destination works again, whether it takes the rows or refuses some of them.
    fn answered(&mut self) {
        if self.backoff.failures() > 0 {
            tracing::info!(sink = self.name, failures = self.backoff.failures(), "a delivery works again");
            self.backoff.succeeded();
            self.stage.set_detail(self.detail());
            gauge!(names::DELIVERY_CIRCUIT_OPEN, "sink" => self.name.clone()).set(0.0);
        }
    }

    /// What the stage says while the sink works.
    fn detail(&self) -> Option<String> {
        let (rows, reason) = self.buried.as_ref()?;
        Some(format!("{rows} rows refused since the start; they are in dead_letters, the last because: {reason}"))
    }

    fn publish(&mut self) {
        let committed = self.published();
        if committed >= self.cursor {
            self.taken_since = None;
        }
        self.committed_sender.send_if_modified(|known| std::mem::replace(known, committed) != committed);
    }

    /// What is durable at the destination. With nothing taken and not committed, that is also what came to the dead letters.
    fn published(&self) -> Offset {
        if self.taken_since.is_none() { self.cursor } else { self.sink.committed() }
    }
}

/// Comes back when the handle is dropped or the deadline of a drain is over.
async fn stopped(stop: &mut Stopping) {
    loop {
        let drain = *stop.borrow_and_update();
        let told = match drain {
            None => stop.changed().await,
            Some(drain) => tokio::select! {
                told = stop.changed() => told,
                () = tokio::time::sleep_until(drain.deadline.into()) => return,
            },
        };
        if told.is_err() {
            return;
        }
    }
}
