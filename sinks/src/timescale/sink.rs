//! The sink of one log: takes batches, and commits them when they are many, old, or when it is asked to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tidegate_pipeline::{Delivery, LogBatch, Offset, Sink, SinkError, SinkFuture};
use tokio::task::JoinSet;

use super::checkpoints::LeasedCheckpoint;
use super::lanes::{Done, Lane, Share, Work, lanes_of};
use super::schema;
use super::store::TimescaleStore;
use super::tails::TailAt;
use crate::error::SinksError;
use crate::metrics as names;
use crate::parquet::{LogSource, check_batch, row_bytes};

/// Writes one log into a database, exactly once: rows and cursor are committed together.
#[derive(Debug)]
pub struct TimescaleSink {
    store: Arc<TimescaleStore>,
    source: LogSource,
    name: &'static str,
    /// What is known of the lanes; empty until the database was asked.
    lanes: Vec<Lane>,
    /// What is taken to be committed until the database was asked.
    assumed: Offset,
    /// Taken and not yet committed, in offset order.
    buffer: Vec<Arc<LogBatch>>,
    buffer_bytes: usize,
    buffer_rows: usize,
    /// When the oldest of it was taken.
    since: Option<Instant>,
    /// The offset after the last row taken.
    taken: Offset,
    tail_at: Option<TailAt>,
    checkpoint: Option<LeasedCheckpoint>,
}

impl TimescaleSink {
    pub(super) fn new(store: Arc<TimescaleStore>, source: LogSource, from: Offset) -> Self {
        let name = match source {
            LogSource::Ingest => "timescale:ingest",
            LogSource::Output => "timescale:output",
        };
        let (lanes, buffer) = (Vec::new(), Vec::new());
        Self {
            store,
            source,
            name,
            lanes,
            assumed: from,
            buffer,
            buffer_bytes: 0,
            buffer_rows: 0,
            since: None,
            taken: from,
            tail_at: None,
            checkpoint: None,
        }
    }

    /// Keeps what the log ends with beside the cursor, in the same transactions. For a store that has a lease, and one lane.
    pub fn keep_tails(&mut self, tail_at: TailAt) {
        self.tail_at = Some(tail_at);
    }

    /// Takes along, in its transactions, the checkpoints that are left at a place. For a store that has the same lease.
    pub fn take_along(&mut self, checkpoint: LeasedCheckpoint) {
        self.checkpoint = Some(checkpoint);
    }

    /// Asks the database where the lanes stand, when that is not known. Whoever starts the sink may do so beforehand, so that
    /// [`committed`](Sink::committed) tells what is there.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do.
    pub async fn connect(&mut self) -> Result<(), SinksError> {
        if self.lanes.is_empty() {
            let ready = self.store.ready().await?;
            self.lanes = self.store.arranged_lanes(ready.log_id(self.source)).await?;
            self.taken = self.taken.max(self.known());
        }
        Ok(())
    }

    /// Below it all lanes have their rows in the tables.
    fn known(&self) -> Offset {
        self.lanes.iter().map(|lane| lane.next).min().unwrap_or(self.assumed)
    }

    async fn take(&mut self, delivery: Delivery) -> Result<(), SinksError> {
        for batch in delivery.batches {
            if batch.next_offset() <= self.taken {
                continue;
            }
            self.taken = batch.next_offset();
            self.buffer_bytes += row_bytes(&batch.rows);
            self.buffer_rows += batch.rows.num_rows();
            self.since.get_or_insert_with(Instant::now);
            self.buffer.push(batch);
        }
        self.taken = self.taken.max(delivery.next_offset);
        self.show_buffer();
        let config = &self.store.config;
        let old = Duration::from_millis(config.commit_interval_ms);
        let many = self.buffer_rows >= config.commit_rows || self.buffer_bytes >= config.commit_bytes;
        if many || self.since.is_some_and(|since| since.elapsed() >= old) {
            self.commit().await?;
        }
        Ok(())
    }

    /// Commits all that was taken: one transaction for each lane that has rows, and the cursors of the others with one of them.
    async fn commit(&mut self) -> Result<(), SinksError> {
        self.connect().await?;
        if self.taken <= self.known() {
            self.clear();
            return Ok(());
        }
        let started = Instant::now();
        let done = self.commit_lanes().await;
        let (source, outcome) = (self.source.as_str(), if done.is_ok() { "done" } else { "failed" });
        counter!(names::TIMESCALE_COMMITS, "source" => source, "outcome" => outcome).increment(1);
        let done = done?;
        counter!(names::TIMESCALE_ROWS, "source" => source).increment(done.rows);
        counter!(names::TIMESCALE_BYTES, "source" => source).increment(done.bytes);
        counter!(names::TIMESCALE_REPLACED, "source" => source).increment(done.replaced);
        histogram!(names::TIMESCALE_COMMIT_SECONDS, "source" => source).record(started.elapsed().as_secs_f64());
        tracing::debug!(source, rows = done.rows, bytes = done.bytes, "committed to the database");
        if self.lanes.len() != self.store.config.connections {
            // They stand at one offset now, so that there can be more or fewer. Below it nothing else is known of them.
            self.assumed = self.known();
            self.lanes.clear();
        }
        self.clear();
        Ok(())
    }

    async fn commit_lanes(&mut self) -> Result<Done, SinksError> {
        let ready = self.store.ready().await?;
        self.store.learn(&self.buffer).await?;
        let count = self.lanes.len();
        let share =
            |batch: &Arc<LogBatch>| Share { batch: batch.clone(), lanes: lanes_of(batch, count), strays: Vec::new() };
        let mut shares: Vec<Share> = self.buffer.iter().map(share).collect();
        self.store.place(&ready, &mut shares).await?;
        let shares = Arc::new(shares);
        let behind = self.lanes.iter().filter(|lane| lane.next < self.taken);
        let (busy, idle): (Vec<Lane>, Vec<Lane>) =
            behind.partition(|lane| shares.iter().any(|share| share.concerns(**lane)));
        let mut groups: Vec<Vec<Lane>> = busy.into_iter().map(|lane| vec![lane]).collect();
        match groups.first_mut() {
            Some(first) => first.extend(idle),
            None => groups.push(idle),
        }
        let (mut tasks, mut along) = (JoinSet::new(), self.checkpoint.as_ref().and_then(LeasedCheckpoint::along));
        for lanes in groups.into_iter().filter(|lanes| !lanes.is_empty()) {
            let numbers: Vec<i32> = lanes.iter().map(|lane| lane.number).collect();
            let work = Work {
                store: self.store.clone(),
                layout: ready.found.layout,
                log_id: ready.log_id(self.source),
                lanes,
                shares: shares.clone(),
                tail: self.tail_at.as_ref().map(|tail_at| tail_at.tail(self.taken)),
                to: self.taken,
                along: along.take(),
            };
            tasks.spawn(async move { (numbers, work.commit().await) });
        }
        // Should this future be dropped, the transactions may have been committed.
        self.lanes.iter_mut().filter(|lane| lane.next < self.taken).for_each(|lane| lane.unsure = Some(self.taken));
        self.settle(tasks).await
    }

    /// Waits for the transactions and takes note of what they did.
    async fn settle(&mut self, mut tasks: JoinSet<(Vec<i32>, Result<Done, SinksError>)>) -> Result<Done, SinksError> {
        let (mut all, mut failure) = (Done::default(), None);
        while let Some(ended) = tasks.join_next().await {
            let (numbers, done) = ended.map_err(|error| SinksError::Stopped(error.to_string()))?;
            for lane in self.lanes.iter_mut().filter(|lane| numbers.contains(&lane.number)) {
                if done.is_ok() {
                    (lane.next, lane.unsure) = (self.taken, None);
                }
            }
            match done {
                Ok(done) => {
                    all.rows += done.rows;
                    all.bytes += done.bytes;
                    all.replaced += done.replaced;
                }
                // Rows that are refused come first: then it is known what to do.
                Err(error) if failure.is_none() || matches!(error, SinksError::Refused { .. }) => failure = Some(error),
                Err(_) => {}
            }
        }
        failure.map_or(Ok(all), Err)
    }

    /// What the delivery is told of a failed commit. When its rows are the reason, they are forgotten.
    async fn told(&mut self, error: SinksError) -> SinkError {
        let error = match error {
            // A column that was changed refuses all rows: then they are not the reason.
            SinksError::Refused { .. } => self.looked_at().await.err().unwrap_or(error),
            other => other,
        };
        // Before the rows are forgotten: what is given next may end elsewhere than the commit that is in doubt.
        let error = match self.made_sure(error.is_of_the_rows()).await {
            Ok(()) => error,
            Err(unknown) => unknown,
        };
        if !error.is_of_the_rows() {
            self.store.doubt().await;
            return SinkError::from(error);
        }
        self.taken = self.known();
        self.clear();
        SinkError::Withdrawn(error.into_refusal())
    }

    async fn looked_at(&self) -> Result<(), SinksError> {
        let client = self.store.connection().await?;
        schema::verify(&client, &self.store.config).await
    }

    /// Asks the database where the lanes stand whose commit was not answered, if that `matters` now.
    async fn made_sure(&mut self, matters: bool) -> Result<(), SinksError> {
        if !matters || self.lanes.iter().all(|lane| lane.unsure.is_none()) {
            return Ok(());
        }
        let log_id = self.store.ready().await?.log_id(self.source);
        let found = self.store.settled_lanes(log_id).await?;
        for lane in self.lanes.iter_mut() {
            lane.next = lane.stands(found.iter().find(|found| found.number == lane.number).map(|found| found.next))?;
            lane.unsure = None;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.buffer_bytes = 0;
        self.buffer_rows = 0;
        self.since = None;
        self.show_buffer();
    }

    fn show_buffer(&self) {
        gauge!(names::TIMESCALE_BUFFER_BYTES, "source" => self.source.as_str()).set(self.buffer_bytes as f64);
    }
}

impl Sink for TimescaleSink {
    fn name(&self) -> &str {
        self.name
    }

    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_> {
        Box::pin(async move {
            for batch in &delivery.batches {
                check_batch(batch.dataset, &batch.rows)?;
            }
            match self.take(delivery).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.told(error).await),
            }
        })
    }

    fn flush(&mut self) -> SinkFuture<'_> {
        Box::pin(async move {
            match self.commit().await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.told(error).await),
            }
        })
    }

    fn committed(&self) -> Offset {
        self.known()
    }
}
