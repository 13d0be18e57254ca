//! The sink that writes a log to topics: a record is an event as JSON, its key the tenant.
//!
//! At least once: the cursor moves behind what the cluster has acknowledged, in the order of the log, and what was not is sent
//! again by a new producer. A record of which the acknowledgement did not come may be there already, or come to be there later;
//! consumers know it by the event's id. The cursor is a note in the data folder.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::error::ArrowError;
use metrics::{counter, histogram};
use tidegate_events::Dataset;
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::{Delivery, LogBatch, Offset, Refusal, Sink, SinkError, SinkFuture};
use tokio::task::JoinHandle;

use super::config::{FluvioConfig, KEY_BYTES_MAX};
use super::failure::FluvioFailure;
use super::link::{Cluster, Link};
use super::producer::{Producer, ProducerConfig, room_of};
use super::window::Window;
use crate::cursor_file::CursorFile;
use crate::entries::{Entry, entries};
use crate::error::SinksError;
use crate::metrics as names;

/// Between two notes of the cursor, but for those that a flush asks for. A process that dies sends again what it sent since.
pub(super) const NOTE_PAUSE: Duration = Duration::from_secs(1);

/// What a sink of a log is made of, beside the cluster.
pub struct FluvioParts {
    /// The name of the log: `ingest` or `output`.
    pub log_name: &'static str,
    /// Where the cursor is kept.
    pub fs: Arc<dyn Fs>,
    /// The folder of the cursor.
    pub dir: PathBuf,
}

/// See the module.
pub struct FluvioSink {
    name: String,
    log_name: &'static str,
    cluster: Arc<Cluster>,
    config: FluvioConfig,
    exported: Vec<Dataset>,
    link: Option<Link>,
    producers: HashMap<Dataset, Arc<Producer>>,
    file: CursorFile,
    /// Rows below it are acknowledged, or not exported.
    cursor: Offset,
}

/// Why rows did not get to the cluster.
enum Unsent {
    Failed(FluvioFailure),
    Rows(Refusal),
}

impl From<FluvioFailure> for Unsent {
    fn from(failure: FluvioFailure) -> Self {
        Self::Failed(failure)
    }
}

impl Unsent {
    fn of_row(failure: FluvioFailure, offset: Offset) -> Self {
        match failure {
            FluvioFailure::TooLarge { .. } => Self::Rows(Refusal { reason: failure.to_string(), rows: vec![offset] }),
            other => Self::Failed(other),
        }
    }
}

impl FluvioSink {
    pub(super) fn new(cluster: Arc<Cluster>, config: FluvioConfig, parts: FluvioParts) -> Result<Self, SinksError> {
        let FluvioParts { log_name, fs, dir } = parts;
        let (file, cursor) = CursorFile::open(fs, &dir, NOTE_PAUSE)
            .map_err(|error| SinksError::Invalid(format!("the cursor's note: {error}")))?;
        Ok(Self {
            name: format!("fluvio:{log_name}"),
            log_name,
            cluster,
            exported: config.exported()?,
            config,
            link: None,
            producers: HashMap::new(),
            file,
            cursor,
        })
    }

    async fn take(&mut self, delivery: Delivery) -> Result<(), SinkError> {
        let started = Instant::now();
        let mut window = Window::new(self.cursor);
        let sent = self.send(&delivery.batches, &mut window).await;
        // What was sent before something failed may be acknowledged all the same.
        let settled = window.settle(0).await;
        self.cursor = window.cursor();
        match settled.map_err(Unsent::from).and(sent) {
            Ok(()) => {
                self.cursor = self.cursor.max(delivery.next_offset);
                histogram!(names::FLUVIO_DELIVERY_SECONDS, "log" => self.log_name)
                    .record(started.elapsed().as_secs_f64());
            }
            Err(Unsent::Failed(failure)) => {
                drop(window);
                self.close();
                return Err(SinkError::Retryable(failure.to_string()));
            }
            Err(Unsent::Rows(refusal)) => return Err(SinkError::Fatal(refusal)),
        }
        self.file.note(self.cursor).await;
        Ok(())
    }

    /// Sends the rows from the cursor on. Returns while some are still on their way.
    async fn send(&mut self, batches: &[Arc<LogBatch>], window: &mut Window) -> Result<(), Unsent> {
        let wanted =
            |batch: &&Arc<LogBatch>| self.exported.contains(&batch.dataset) && batch.next_offset() > self.cursor;
        let wanted: Vec<&Arc<LogBatch>> = batches.iter().filter(wanted).collect();
        let mut made = None;
        for (nth, batch) in wanted.iter().enumerate() {
            // First, so that nothing is made for a cluster that is away.
            let producer = self.producer(batch.dataset).await?;
            let making = made.take().unwrap_or_else(|| self.make(batch));
            let entries = self.entries(making).await?;
            // While these are sent.
            made = wanted.get(nth + 1).map(|next| self.make(next));
            let (mut count, mut bytes) = (0, 0);
            for Entry { offset, org_id, event, .. } in entries {
                // All of them fit: the others were refused.
                let Ok(event) = event else { continue };
                let room = room_of(org_id.len() + event.len());
                window.settle(self.config.in_flight_bytes_max.saturating_sub(room)).await?;
                (count, bytes) = (count + 1, bytes + org_id.len() + event.len());
                let sending = producer.send(org_id.into_bytes(), event).await;
                let sending = sending.map_err(|failure| Unsent::of_row(failure, offset))?;
                window.add(sending, offset, room);
            }
            counter!(names::FLUVIO_RECORDS, "dataset" => batch.dataset.table_name()).increment(count);
            counter!(names::FLUVIO_BYTES).increment(bytes as u64);
        }
        Ok(())
    }

    /// Begins to make records of the rows of a batch from the cursor on.
    fn make(&self, batch: &Arc<LogBatch>) -> JoinHandle<Result<Vec<Entry>, ArrowError>> {
        let (of_batch, from, bytes_max) = (batch.clone(), self.cursor, self.config.event_bytes_max);
        // Off the I/O threads: making JSON takes CPU.
        tokio::task::spawn_blocking(move || entries(&of_batch, from, bytes_max))
    }

    /// The records that were made.
    async fn entries(&self, making: JoinHandle<Result<Vec<Entry>, ArrowError>>) -> Result<Vec<Entry>, Unsent> {
        let bytes_max = self.config.event_bytes_max;
        let made = making.await.map_err(|error| FluvioFailure::Away(format!("making records: {error}")))?;
        let made =
            made.map_err(|error| Unsent::Rows(Refusal::from(format!("no JSON can be made of these rows: {error}"))))?;
        let too_large = |entry: &Entry| Some((entry.offset, *entry.event.as_ref().err()?));
        let large: Vec<(Offset, usize)> = made.iter().filter_map(too_large).collect();
        if let Some(largest) = large.iter().map(|(_, bytes)| bytes).max() {
            let reason =
                format!("an event of {largest} bytes, at most event_bytes_max = {bytes_max} are written to Fluvio");
            let rows = large.into_iter().map(|(offset, _)| offset).collect();
            return Err(Unsent::Rows(Refusal { reason, rows }));
        }
        Ok(made)
    }

    /// The producer of a dataset.
    async fn producer(&mut self, dataset: Dataset) -> Result<Arc<Producer>, FluvioFailure> {
        if let Some(producer) = self.producers.get(&dataset).filter(|producer| !producer.is_broken()) {
            return Ok(producer.clone());
        }
        let link = match &self.link {
            Some(link) => link.clone(),
            None => self.link.insert(self.cluster.connect().await?).clone(),
        };
        let topic = self.config.topic(dataset);
        let partitions = link.ensure_topic(&topic, self.config.shape()).await?;
        for partition in 0..partitions {
            // The library keeps what it is given for as long as a leader is away, also when nobody wants it any more. So nothing
            // is given to it before all leaders are seen.
            link.next_record(&topic, partition).await?;
        }
        let config = ProducerConfig {
            partition: None,
            compression: self.config.compression,
            record_bytes_max: self.config.event_bytes_max + KEY_BYTES_MAX,
            batch_bytes_max: self.config.batch_bytes_max,
            in_flight_bytes_max: self.config.in_flight_bytes_max,
        };
        let producer = Arc::new(link.producer(&topic, &config).await?);
        self.producers.insert(dataset, producer.clone());
        Ok(producer)
    }

    /// Gives up the connection with all that was made by it.
    fn close(&mut self) {
        if self.link.take().is_some() {
            counter!(names::FLUVIO_BROKEN, "log" => self.log_name).increment(1);
        }
        self.producers.clear();
    }
}

impl Sink for FluvioSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_> {
        Box::pin(self.take(delivery))
    }

    fn flush(&mut self) -> SinkFuture<'_> {
        // What was taken is acknowledged; it remains to be remembered.
        Box::pin(async {
            let noted = self.file.save(self.cursor).await;
            noted.map_err(|error| SinkError::Retryable(format!("the cursor's note: {error}")))
        })
    }

    fn committed(&self) -> Offset {
        self.file.noted()
    }
}

impl std::fmt::Debug for FluvioSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FluvioSink").field("name", &self.name).field("cursor", &self.cursor).finish_non_exhaustive()
    }
}
