//! The sink that writes a log to Redis Streams.
//!
//! A call of [`EXPORT`] adds entries and moves the node's cursor in one step of the server, and does nothing when the cursor is
//! not where it must be. So an answer that never came costs nothing: the next call learns from the cursor whether it was done.
//! What a server has that was restored from an older state is behind the cursor: it is written again from the log, as
//! far as that reaches back. A server without any cursor is a new one: writing goes on from where this node was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use redis::{Pipeline, Value};
use tidegate_events::Dataset;
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::tailing::{Reading, read_on};
use tidegate_pipeline::{Delivery, LogBatch, Offset, Sink, SinkError, SinkFuture, StreamLog};

use super::config::StreamsConfig;
use super::keys::KeyNames;
use super::link::{Link, Server, as_error, as_text, is_of_the_connection};
use crate::cursor_file::CursorFile;
use crate::entries::{Entry, entries};
use crate::error::SinksError;
use crate::metrics as names;

/// See the file.
pub(super) const EXPORT: &str = include_str!("export.lua");

/// Calls of the script that are under way at once.
const CALLS_MAX: usize = 8;

/// Between two notes of the cursor. They are for the time while Redis, which has the exact one, cannot be asked.
pub(super) const NOTE_PAUSE: Duration = Duration::from_secs(5);

/// Memory of one read of the log, when lost entries are written again.
const REFILL_BYTES_MAX: usize = 4 << 20;

/// What a sink of a log is made of, beside the server.
pub struct StreamsParts {
    /// The log that is written.
    pub log: Arc<dyn StreamLog>,
    /// Its name: `ingest` or `output`.
    pub log_name: &'static str,
    /// The name of this node: of its data folder, the same for as long as that lives.
    pub node: String,
    /// Where a note of the cursor is kept.
    pub fs: Arc<dyn Fs>,
    /// The folder of that note.
    pub dir: PathBuf,
}

/// See the module.
pub struct RedisStreams {
    name: String,
    log_name: &'static str,
    node: String,
    log: Arc<dyn StreamLog>,
    link: Link,
    keys: KeyNames,
    config: StreamsConfig,
    exported: Vec<Dataset>,
    file: CursorFile,
    /// Rows below it are in Redis, as far as this node knows.
    cursor: Offset,
    /// The largest cursor that this node may have sent.
    sent: Offset,
    /// Redis was asked for its cursor on this connection.
    met: bool,
    /// Redis was asked for its cursor by this process.
    met_before: bool,
    /// Rows from the cursor up to here were in Redis once, and are lost there.
    lost_until: Option<Offset>,
}

/// What became of entries that were sent.
enum Sent {
    /// They are in Redis.
    Done,
    /// The cursor is elsewhere.
    Moved(Option<Offset>),
}

impl RedisStreams {
    pub(super) fn new(
        server: Arc<Server>,
        keys: KeyNames,
        config: StreamsConfig,
        parts: StreamsParts,
    ) -> Result<Self, SinksError> {
        let StreamsParts { log, log_name, node, fs, dir } = parts;
        let (file, cursor) = CursorFile::open(fs, &dir, NOTE_PAUSE)
            .map_err(|error| SinksError::Invalid(format!("the cursor's note: {error}")))?;
        let exported = config.exported()?;
        let sent = log.bounds().next.max(cursor);
        Ok(Self {
            name: format!("redis:{log_name}"),
            log_name,
            node,
            log,
            link: Link::new(server, &[EXPORT]),
            keys,
            config,
            exported,
            file,
            cursor,
            sent,
            met: false,
            met_before: false,
            lost_until: None,
        })
    }

    async fn take(&mut self, delivery: Delivery) -> Result<(), SinkError> {
        loop {
            let sent = match self.meet().await? {
                Sent::Done if self.lost_until.is_some() => self.refill().await?,
                Sent::Done => self.export(&delivery.batches, delivery.next_offset).await?,
                moved => moved,
            };
            match sent {
                Sent::Moved(at) => self.moved(at).await?,
                Sent::Done if self.lost_until.is_some() => {}
                Sent::Done => break,
            }
        }
        self.file.note(self.cursor).await;
        Ok(())
    }

    /// Makes sure of a connection, and on a new one of the cursor.
    async fn meet(&mut self) -> Result<Sent, SinkError> {
        if self.link.open().await.map_err(SinkError::Retryable)? {
            self.met = false;
        }
        if self.met {
            return Ok(Sent::Done);
        }
        let at = self.link.ask_one(redis::Cmd::get(self.cursor_key())).await.map_err(SinkError::Retryable)?;
        let at = as_text(&at).and_then(|at| at.parse().ok());
        self.met = true;
        if at != Some(self.cursor) {
            return Ok(Sent::Moved(at));
        }
        self.met_before = true;
        Ok(Sent::Done)
    }

    /// Takes note of a cursor that is not where it was left.
    async fn moved(&mut self, at: Option<Offset>) -> Result<(), SinkError> {
        let (log, ours) = (self.log_name, self.cursor);
        match at {
            Some(at) if at < ours => {
                counter!(names::REDIS_REWINDS, "log" => log).increment(1);
                tracing::warn!(log, at, ours, "Redis is back at an older state; what it lost is written again");
                self.lost_until = Some(self.lost_until.unwrap_or(0).max(ours));
                self.cursor = at;
            }
            // An earlier call has been done although its answer did not come, or by the process before this one.
            Some(at) if at <= self.sent => self.cursor = at,
            Some(_) if self.met_before => {
                return Err(SinkError::Retryable(format!(
                    "another process writes to Redis as node {}: was its data folder copied? Remove the file origin of \
                     one of them and start it again",
                    self.node
                )));
            }
            Some(_) | None => {
                // A server that never had this log, or has the cursor of a log that was since restored from a backup.
                tracing::warn!(log, ?at, ours, "Redis does not know how far this log is; writing goes on from here");
                let set = redis::Cmd::set(self.cursor_key(), ours.to_string());
                self.link.ask_one(set).await.map_err(SinkError::Retryable)?;
            }
        }
        self.met_before = true;
        Ok(())
    }

    /// Writes again what Redis lost, a read of the log at a time.
    async fn refill(&mut self) -> Result<Sent, SinkError> {
        let Some(until) = self.lost_until.filter(|until| self.cursor < *until) else {
            self.lost_until = None;
            return Ok(Sent::Done);
        };
        let (log, from) = (self.log.clone(), self.cursor);
        let read = tokio::task::spawn_blocking(move || read_on(&*log, from, REFILL_BYTES_MAX)).await;
        let read = read.map_err(|error| SinkError::Retryable(format!("reading the log: {error}")))?;
        let Reading { batches, next, forgotten } =
            read.map_err(|error| SinkError::Retryable(format!("reading the log: {error}")))?;
        if forgotten > 0 {
            counter!(names::REDIS_LOST_ROWS, "log" => self.log_name).increment(forgotten.min(until - from));
            tracing::warn!(log = self.log_name, from, forgotten, "the log no longer has what Redis lost");
        }
        let next = if batches.is_empty() { next.max(until) } else { next };
        self.export(&batches, next).await
    }

    /// Writes rows from the cursor up to `next`, which is the cursor then.
    async fn export(&mut self, batches: &[Arc<LogBatch>], next: Offset) -> Result<Sent, SinkError> {
        let mut waiting = Vec::new();
        let mut bytes = 0;
        for batch in batches {
            if !self.exported.contains(&batch.dataset) {
                continue;
            }
            let (of_batch, from, bytes_max) = (batch.clone(), self.cursor, self.config.event_bytes_max);
            // Off the I/O threads: making JSON takes CPU.
            let made = tokio::task::spawn_blocking(move || entries(&of_batch, from, bytes_max)).await;
            let made = made.map_err(|error| SinkError::Retryable(format!("making entries: {error}")))?;
            let made =
                made.map_err(|error| SinkError::Fatal(format!("no JSON can be made of these rows: {error}").into()))?;
            bytes += made.iter().map(Entry::bytes).sum::<usize>();
            waiting.extend(made.into_iter().map(|entry| (batch.dataset, entry)));
            if bytes >= CALLS_MAX * self.config.batch_bytes_max
                || waiting.len() >= CALLS_MAX * self.config.batch_entries_max
            {
                bytes = 0;
                if let moved @ Sent::Moved(_) = self.send(std::mem::take(&mut waiting), batch.next_offset()).await? {
                    return Ok(moved);
                }
            }
        }
        if self.cursor < next { self.send(waiting, next).await } else { Ok(Sent::Done) }
    }

    /// Sends entries, at most [`CALLS_MAX`] calls at a time; the cursor is `until` then.
    async fn send(&mut self, entries: Vec<(Dataset, Entry)>, until: Offset) -> Result<Sent, SinkError> {
        let mut parts = self.parts(&entries);
        if parts.is_empty() {
            parts.push(&entries);
        }
        let starts: Vec<Offset> = parts.iter().filter_map(|part| Some(part.first()?.1.offset)).collect();
        let ends = starts.into_iter().skip(1).chain([until]);
        let calls: Vec<(&[(Dataset, Entry)], Offset)> = parts.into_iter().zip(ends).collect();
        self.sent = self.sent.max(until);
        for calls in calls.chunks(CALLS_MAX) {
            let started = Instant::now();
            let mut requests = Pipeline::with_capacity(calls.len());
            let mut cursor = self.cursor;
            for (entries, next) in calls {
                requests.add_command(self.call(entries, cursor, *next));
                cursor = *next;
            }
            let answers = self.link.ask(&mut requests).await.map_err(SinkError::Retryable)?;
            histogram!(names::REDIS_REQUEST_SECONDS, "log" => self.log_name).record(started.elapsed().as_secs_f64());
            for (answer, (entries, next)) in answers.iter().zip(calls) {
                match self.answered(answer)? {
                    Sent::Done => self.cursor = *next,
                    moved => return Ok(moved),
                }
                count(entries);
            }
        }
        Ok(Sent::Done)
    }

    /// Entries by the bounds of one call.
    fn parts<'a>(&self, entries: &'a [(Dataset, Entry)]) -> Vec<&'a [(Dataset, Entry)]> {
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (at, (_, entry)) in entries.iter().enumerate() {
            let full = bytes + entry.bytes() > self.config.batch_bytes_max;
            if at > start && (full || at - start >= self.config.batch_entries_max) {
                parts.extend(entries.get(start..at));
                (start, bytes) = (at, 0);
            }
            bytes += entry.bytes();
        }
        parts.extend(entries.get(start..).filter(|rest| !rest.is_empty()));
        parts
    }

    /// One call of the script.
    fn call(&self, entries: &[(Dataset, Entry)], cursor: Offset, next: Offset) -> redis::Cmd {
        let mut streams: Vec<String> = Vec::new();
        let mut numbers = std::collections::HashMap::new();
        let mut of_entry = Vec::with_capacity(entries.len());
        for (dataset, entry) in entries {
            let number = *numbers.entry((*dataset, entry.org_id.as_str())).or_insert_with(|| {
                streams.push(self.keys.stream(&entry.org_id, dataset.table_name()));
                streams.len()
            });
            of_entry.push(number);
        }
        let mut call = redis::cmd("EVALSHA");
        call.arg(redis::Script::new(EXPORT).get_hash()).arg(1 + streams.len()).arg(self.cursor_key());
        for stream in &streams {
            call.arg(stream);
        }
        call.arg(cursor.to_string()).arg(next.to_string()).arg(self.config.entries_max);
        call.arg(self.config.age_s_max.unwrap_or(0)).arg(&self.node);
        for ((_, entry), number) in entries.iter().zip(of_entry) {
            call.arg(number).arg(entry.offset).arg(&entry.id).arg(&entry.time).arg(&entry.source);
            match &entry.event {
                Ok(event) => call.arg("event").arg(event.as_slice()),
                Err(bytes) => call.arg("omitted_bytes").arg(*bytes),
            };
        }
        call
    }

    /// What an answer of the script says.
    fn answered(&mut self, answer: &Value) -> Result<Sent, SinkError> {
        if let Some(error) = as_error(answer) {
            if is_of_the_connection(&error) {
                self.link.close();
            }
            return Err(SinkError::Retryable(self.link.server.refused(&error)));
        }
        let words = match answer {
            Value::Array(words) => words.iter().map(as_text).collect::<Option<Vec<_>>>().unwrap_or_default(),
            _ => Vec::new(),
        };
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["done"] => Ok(Sent::Done),
            ["at", at] => Ok(Sent::Moved(at.parse().ok())),
            ["error", at, text] => {
                self.cursor = at.parse().unwrap_or(self.cursor);
                Err(SinkError::Retryable(self.link.server.refused(text)))
            }
            _ => Err(SinkError::Retryable(self.link.server.refused("the script has an unknown answer"))),
        }
    }

    fn cursor_key(&self) -> String {
        self.keys.cursor(&self.node, self.log_name)
    }
}

fn count(entries: &[(Dataset, Entry)]) {
    let mut omitted = 0;
    for dataset in Dataset::ALL {
        let of_dataset = entries.iter().filter(|(of, _)| *of == dataset).count();
        if of_dataset > 0 {
            counter!(names::REDIS_ENTRIES, "dataset" => dataset.table_name()).increment(of_dataset as u64);
        }
    }
    for (_, entry) in entries {
        omitted += u64::from(entry.event.is_err());
    }
    counter!(names::REDIS_OMITTED).increment(omitted);
    counter!(names::REDIS_BYTES).increment(entries.iter().map(|(_, entry)| entry.bytes() as u64).sum());
}

impl Sink for RedisStreams {
    fn name(&self) -> &str {
        &self.name
    }

    fn write(&mut self, delivery: Delivery) -> SinkFuture<'_> {
        Box::pin(self.take(delivery))
    }

    fn flush(&mut self) -> SinkFuture<'_> {
        // What was taken is in Redis.
        Box::pin(async { Ok(()) })
    }

    fn committed(&self) -> Offset {
        self.cursor
    }
}

impl std::fmt::Debug for RedisStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStreams").field("name", &self.name).field("cursor", &self.cursor).finish_non_exhaustive()
    }
}
