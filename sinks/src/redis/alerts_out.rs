//! The sink that publishes a node's alerts for the feeds of the others.

use std::sync::Arc;

use metrics::counter;
use redis::{Pipeline, Value};
use tidegate_events::Dataset;
use tidegate_pipeline::tailing::{Reading, read_on};
use tidegate_pipeline::{Delivery, LogBatch, Offset, Sink, SinkError, SinkFuture, StreamLog};

use super::alert_frames::{add, position};
use super::config::FanOutConfig;
use super::keys::KeyNames;
use super::link::{Link, Server, as_error, as_text, is_of_the_connection};
use crate::metrics as names;

/// Batches that are sent together.
const BATCHES_AT_ONCE: usize = 64;

/// Memory of one read of the log, when alerts are published again.
const REFILL_BYTES_MAX: usize = 4 << 20;

/// Publishes the alerts of the output log. The stream's own last id is the cursor, and a batch that is there already is refused by
/// the server, so nothing is there twice. A server that lost the stream gets the newest alerts again.
///
/// It keeps nothing in the log: what the log forgets before Redis could be reached is a gap, which the clients of the other nodes
/// are told of.
pub struct AlertsOut {
    log: Arc<dyn StreamLog>,
    link: Link,
    stream: String,
    config: FanOutConfig,
    cursor: Offset,
    /// The offset up to which the newest entry goes.
    published: Offset,
    met: bool,
}

impl AlertsOut {
    pub(super) fn new(
        server: Arc<Server>,
        keys: &KeyNames,
        config: FanOutConfig,
        log: Arc<dyn StreamLog>,
        node: &str,
    ) -> Self {
        let bounds = log.bounds();
        let cursor = bounds.next.saturating_sub(config.refill_rows_max).max(bounds.first);
        let stream = keys.alerts(node);
        Self { log, link: Link::new(server, &[]), stream, config, cursor, published: cursor, met: false }
    }

    async fn take(&mut self, delivery: &Delivery) -> Result<(), SinkError> {
        self.meet().await?;
        // What was published and lost, or what a restart begins with: below what is delivered now.
        let first = delivery.batches.first().map_or(delivery.next_offset, |batch| batch.offset);
        while self.cursor < first {
            let (log, from) = (self.log.clone(), self.cursor);
            let read = tokio::task::spawn_blocking(move || read_on(&*log, from, REFILL_BYTES_MAX)).await;
            let read = read.map_err(|error| SinkError::Retryable(format!("reading the log: {error}")))?;
            let Reading { batches, next, .. } =
                read.map_err(|error| SinkError::Retryable(format!("reading the log: {error}")))?;
            let next = if batches.is_empty() { next.max(first) } else { next };
            self.publish(&batches, next).await?;
        }
        self.publish(&delivery.batches, delivery.next_offset).await
    }

    /// Makes sure of a connection, and on a new one of where the stream ends.
    async fn meet(&mut self) -> Result<(), SinkError> {
        if self.link.open().await.map_err(SinkError::Retryable)? {
            self.met = false;
        }
        if self.met {
            return Ok(());
        }
        let mut ask = Pipeline::new();
        ask.cmd("XINFO").arg("STREAM").arg(&self.stream);
        let answer = self.link.ask(&mut ask).await.map_err(SinkError::Retryable)?.pop().unwrap_or_default();
        let end = match as_error(&answer) {
            Some(error) if error.contains("no such key") => None,
            Some(error) => return Err(SinkError::Retryable(self.link.server.refused(&error))),
            None => last_id(&answer).as_deref().and_then(position),
        };
        let log_end = self.log.bounds().next;
        if end.is_some_and(|end| end > log_end) {
            return Err(SinkError::Retryable(format!(
                "{} has alerts that the output log does not have: was the data folder restored from a backup, or copied? \
                 Remove the file origin in it and start again",
                self.stream
            )));
        }
        self.met = true;
        let refill = self.cursor.saturating_sub(self.config.refill_rows_max);
        match end {
            Some(end) => {
                self.cursor = if end < self.cursor { end.max(refill) } else { end };
                self.published = end;
            }
            None => {
                self.cursor = refill.max(self.log.bounds().first).min(self.cursor);
                self.published = self.cursor;
            }
        }
        Ok(())
    }

    async fn publish(&mut self, batches: &[Arc<LogBatch>], next: Offset) -> Result<(), SinkError> {
        let alerts = |batch: &&Arc<LogBatch>| batch.dataset == Dataset::Alerts && batch.next_offset() > self.published;
        let alerts: Vec<&Arc<LogBatch>> = batches.iter().filter(alerts).collect();
        for batches in alerts.chunks(BATCHES_AT_ONCE) {
            let mut requests = Pipeline::with_capacity(batches.len());
            let mut previous = self.published;
            for batch in batches {
                let request = add(&self.stream, batch, previous, self.config.batches_max);
                requests.add_command(request.map_err(|error| SinkError::Fatal(error.to_string().into()))?);
                previous = batch.next_offset();
            }
            let answers = self.link.ask(&mut requests).await.map_err(SinkError::Retryable)?;
            for (answer, batch) in answers.iter().zip(batches) {
                match as_error(answer) {
                    // It came with a request whose answer did not.
                    Some(error) if error.contains("equal or smaller") => {}
                    Some(error) => {
                        if is_of_the_connection(&error) {
                            self.link.close();
                        }
                        return Err(SinkError::Retryable(self.link.server.refused(&error)));
                    }
                    None => counter!(names::REDIS_ALERTS_OUT).increment(batch.rows.num_rows() as u64),
                }
                (self.published, self.cursor) = (batch.next_offset(), batch.next_offset());
            }
        }
        self.cursor = self.cursor.max(next);
        Ok(())
    }
}

/// `last-generated-id` of an answer to XINFO STREAM.
fn last_id(answer: &Value) -> Option<String> {
    let found = |name: &Value| as_text(name).is_some_and(|name| name == "last-generated-id");
    match answer {
        Value::Array(words) => {
            words.chunks_exact(2).find_map(|pair| found(pair.first()?).then(|| as_text(pair.get(1)?))?)
        }
        Value::Map(pairs) => pairs.iter().find_map(|(name, value)| found(name).then(|| as_text(value))?),
        _ => None,
    }
}

impl Sink for AlertsOut {
    fn name(&self) -> &str {
        "redis:fan-out"
    }

    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_> {
        Box::pin(async move { self.take(&delivery).await })
    }

    fn flush(&mut self) -> SinkFuture<'_> {
        // What was taken is in Redis.
        Box::pin(async { Ok(()) })
    }

    fn committed(&self) -> Offset {
        self.cursor
    }
}

impl std::fmt::Debug for AlertsOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlertsOut").field("stream", &self.stream).field("cursor", &self.cursor).finish_non_exhaustive()
    }
}
