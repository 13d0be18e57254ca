//! History from the database: which rows are all there, and reading them.
//!
//! A task asks every `read_refresh_ms` milliseconds up to where the tables are complete (the least cursor of each log's lanes)
//! and which own fields they hold, and makes a snapshot of that. A query reads rows below the cursors of its snapshot from the database and the
//! rest from the logs. A snapshot that is behind is as right as a new one: the logs are kept from the
//! [oldest cursors](TimescaleHistory::oldest_live_cursors) of a living snapshot on.
//!
//! Other servers may write to the same tables, each with logs (`log_id`) of its own: a question is about the rows of all of them,
//! each below its own cursor. Logs of one's own that nobody reads beside the database, as the partitions of many machines, are
//! [kin](TimescaleReadParts::kin).
//!
//! The looks have a connection of their own, so that questions, however many, do not keep the cursors from being seen and the
//! logs from forgetting. Each question is one statement on a connection of a pool of its own, streamed: the database waits while nobody takes
//! rows. A question that is dropped is cancelled at the server, and its connection closed, so that a late cancel cannot hit the
//! next question.

mod answer;
mod json;
mod question;

pub use answer::column_of;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use deadpool_postgres::{Object, Pool, PoolError, TimeoutType};
use futures::TryStreamExt;
use metrics::{counter, histogram};
use parking_lot::Mutex;
use tidegate_events::Dataset;
use tidegate_pipeline::history_rows::{HistoryError, HistoryRows, RowsAsk};
use tidegate_pipeline::{History, Offset, Snapshot, Stage};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::config::TimescaleConfig;
use super::connect;
use super::ddl::qualified;
use super::failure::{self, failed, late};
use super::fields;
use crate::error::SinksError;
use crate::metrics as names;
use answer::Answer;
use question::Question;

/// Rows of a batch, at most.
const BATCH_ROWS: usize = 8192;
/// Bytes of a batch, about.
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait for a reader.
const WAITING_BATCHES: usize = 1;
/// How long a cancel may take to be sent.
const CANCEL: Duration = Duration::from_secs(5);
/// How long a look may take: a database that hangs is to be told of soon.
const LOOK: Duration = Duration::from_secs(10);
/// Why nothing can be asked before the first look.
const NOT_YET: &str = "the database has not been reached since the start";

/// What a [`TimescaleHistory`] is made of.
pub struct TimescaleReadParts {
    /// Where the database is.
    pub config: TimescaleConfig,
    /// The id of the data folder whose logs the sink writes, as the table `logs` has it: what is not yet in the tables is read
    /// from these logs.
    pub origin: String,
    /// The ids of further logs of the same installation, whose rows are asked of the database alone.
    pub kin: Vec<String>,
    /// How long a question may take, in milliseconds.
    pub query_ms_max: u64,
    /// Where connections live.
    pub runtime: Handle,
    /// Tells when the database cannot be read: work waits until it can.
    pub stage: Arc<Stage>,
}

/// History in the tables of the TimescaleDB sink.
#[derive(Debug)]
pub struct TimescaleHistory {
    state: Mutex<State>,
    link: Arc<Link>,
    /// One connection, for the looks at the cursors.
    looks: Pool,
    look_max: Duration,
}

/// The snapshot now, and the older ones that queries still read from.
#[derive(Debug, Default)]
struct State {
    snapshot: Arc<Snapshot>,
    views: Vec<Weak<Snapshot>>,
    /// What the snapshot was made of.
    seen: Option<(Cursors, fields::Mark)>,
}

/// The way to the database.
struct Link {
    pool: Pool,
    tls: MakeRustlsConnect,
    schema: String,
    origin: String,
    kin: Vec<String>,
    runtime: Handle,
}

/// Up to where the rows of each log are all there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cursors {
    /// The ids of this server's logs, once they are registered.
    ingest_id: Option<i16>,
    output_id: Option<i16>,
    /// Below which all rows of these logs are there.
    ingest: Offset,
    output: Offset,
    /// Logs of this installation that nobody reads beside the database.
    kin: Vec<(i16, Offset)>,
    /// Logs of other servers.
    others: Vec<(i16, Offset)>,
}

/// The tables as one snapshot has them.
#[derive(Debug)]
struct Rows {
    link: Arc<Link>,
    cursors: Cursors,
    /// Whether rows of odd times are in tables of their own, as with the extension.
    apart: bool,
}

/// Before the first look at the database.
#[derive(Debug)]
struct Unknown;

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl TimescaleHistory {
    /// Starts to look at the database. Until the first look succeeds, questions are answered with an error.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] when the URL or what it names cannot be used.
    pub fn start(parts: TimescaleReadParts) -> Result<Arc<Self>, SinksError> {
        let TimescaleReadParts { config, origin, kin, query_ms_max, runtime, stage } = parts;
        let (pool, tls) = connect::reading_pool(&config, Duration::from_millis(query_ms_max))?;
        let looks = connect::pool(&config, 1)?;
        let look_max = LOOK.min(Duration::from_millis(config.statement_ms_max));
        let link = Arc::new(Link { pool, tls, schema: config.schema.clone(), origin, kin, runtime: runtime.clone() });
        let state = State { snapshot: Arc::new(unknown()), ..State::default() };
        let history = Arc::new(Self { state: Mutex::new(state), link, looks, look_max });
        let every = Duration::from_millis(config.read_refresh_ms);
        runtime.spawn(refresh(Arc::downgrade(&history), every, stage));
        Ok(history)
    }

    /// Waits for a look, for a while at most: for who wants to answer from the start when the database is there.
    pub async fn looked(&self, patience: Duration) {
        // What keeps it from being seen is told by those who look again and again.
        let _ = tokio::time::timeout(patience, self.look()).await;
    }

    /// The offsets (ingest log, output log) from which on the logs are needed: the least cursors of all snapshots that live.
    pub fn oldest_live_cursors(&self) -> (Offset, Offset) {
        let state = self.state.lock();
        let live = state.views.iter().filter_map(Weak::upgrade).chain([state.snapshot.clone()]);
        live.fold((Offset::MAX, Offset::MAX), |(log, output), view| {
            (log.min(view.log_cursor), output.min(view.output_cursor))
        })
    }

    /// Looks at the database. A connection on which that fails is not used again.
    async fn look(&self) -> Result<(), SinksError> {
        let client = self.looks.get().await.map_err(|error| failure::unconnected(error, self.look_max))?;
        let looked = match tokio::time::timeout(self.look_max, self.look_with(&client)).await {
            Ok(looked) => looked.map_err(|error| failed("look at the cursors", &error)),
            Err(_) => Err(late("look at the cursors", self.look_max)),
        };
        if looked.is_err() {
            drop(Object::take(client));
        }
        looked
    }

    async fn look_with(&self, client: &Object) -> Result<(), tokio_postgres::Error> {
        let schema = &self.link.schema;
        // Cursors first: the fields of all rows below them are there then.
        let cursors = self.link.cursors(client).await?;
        let seen = self.state.lock().seen.clone();
        if seen.as_ref().is_some_and(|(before, _)| *before == cursors) {
            return Ok(());
        }
        let events = qualified(schema, Dataset::SecurityEvents.table_name());
        let kind = "SELECT relkind <> 'p' FROM pg_class WHERE oid = to_regclass($1::text)";
        let kind = client.query_opt(kind, &[&events]).await?;
        let apart = kind.map_or(Ok(false), |row| row.try_get(0))?;
        let mark = fields::mark(&***client, schema).await?;
        let fields = match seen {
            Some((_, before)) if before == mark => self.snapshot().fields.clone(),
            _ => Arc::new(fields::read(&***client, schema).await?),
        };
        let (log_cursor, output_cursor) = (cursors.ingest, cursors.output);
        let rows = Arc::new(Rows { link: self.link.clone(), cursors: cursors.clone(), apart });
        self.accept(Snapshot { rows: Some(rows), fields, log_cursor, output_cursor, ..Snapshot::default() });
        self.state.lock().seen = Some((cursors, mark));
        Ok(())
    }

    fn accept(&self, snapshot: Snapshot) {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.snapshot, Arc::new(snapshot));
        state.views.retain(|view| view.strong_count() > 0);
        if Arc::strong_count(&before) > 1 {
            state.views.push(Arc::downgrade(&before));
        }
    }
}

fn unknown() -> Snapshot {
    Snapshot { rows: Some(Arc::new(Unknown)), ..Snapshot::default() }
}

/// Looks at the database again and again, until nobody needs it.
async fn refresh(history: Weak<TimescaleHistory>, every: Duration, stage: Arc<Stage>) {
    let mut failing: Option<Instant> = None;
    loop {
        let Some(history) = history.upgrade() else { return };
        match history.look().await {
            Ok(()) => {
                if failing.take().is_some() {
                    tracing::info!("the database of history can be read again");
                    stage.set_detail(None);
                    stage.waiting(0, Instant::now());
                }
            }
            Err(error) => {
                if failing.is_none() {
                    tracing::warn!(%error, "the database of history cannot be read; it is tried again");
                }
                failing.get_or_insert_with(Instant::now);
                stage.waiting(1, Instant::now());
                stage.set_detail(Some(format!("history cannot be read: {error}")));
            }
        }
        drop(history);
        tokio::time::sleep(every).await;
    }
}

impl History for TimescaleHistory {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.state.lock().snapshot.clone()
    }
}

type Batch = Result<RecordBatch, HistoryError>;

impl HistoryRows for Unknown {
    fn read(&self, _ask: RowsAsk) -> mpsc::Receiver<Batch> {
        let (send, receive) = mpsc::channel(1);
        // The channel has room for one.
        let _ = send.try_send(Err(HistoryError::Unavailable(NOT_YET.into())));
        receive
    }

    fn known(&self) -> Result<(), HistoryError> {
        Err(HistoryError::Unavailable(NOT_YET.into()))
    }
}

impl HistoryRows for Rows {
    fn read(&self, ask: RowsAsk) -> mpsc::Receiver<Batch> {
        let (send, receive) = mpsc::channel(WAITING_BATCHES);
        let question = Question::new(&self.link.schema, &ask, &self.cursors, self.apart);
        let link = self.link.clone();
        self.link.runtime.spawn(async move {
            let started = Instant::now();
            let answered = tokio::select! {
                answered = link.answer(question, &ask, &send) => Some(answered),
                // Nobody waits any more: what runs is dropped, which cancels it.
                () = send.closed() => None,
            };
            let outcome = match &answered {
                Some(Ok(())) => "answered",
                Some(Err(HistoryError::Timeout)) => "late",
                Some(Err(HistoryError::Busy(_))) => "busy",
                Some(Err(_)) => "failed",
                None => "left",
            };
            counter!(names::TIMESCALE_QUESTIONS, "outcome" => outcome).increment(1);
            histogram!(names::TIMESCALE_QUESTION_SECONDS).record(started.elapsed().as_secs_f64());
            if let Some(Err(error)) = answered {
                let _ = send.send(Err(error)).await;
            }
        });
        receive
    }
}

impl Link {
    /// Up to where each log is complete.
    async fn cursors(&self, client: &Object) -> Result<Cursors, tokio_postgres::Error> {
        let sql = format!(
            "SELECT log_id, origin::text, log, coalesce(min(next_offset), 0) FROM {} LEFT JOIN {} USING (log_id) GROUP BY 1, 2, 3",
            qualified(&self.schema, "logs"),
            qualified(&self.schema, "cursors")
        );
        let mut cursors = Cursors::default();
        for row in client.query(&sql, &[]).await? {
            let (id, next): (i16, i64) = (row.try_get(0)?, row.try_get(3)?);
            let next = Offset::try_from(next).unwrap_or(0);
            let origin: &str = row.try_get(1)?;
            match (origin == self.origin, row.try_get(2)?) {
                (true, "ingest") => (cursors.ingest_id, cursors.ingest) = (Some(id), next),
                (true, "output") => (cursors.output_id, cursors.output) = (Some(id), next),
                _ if self.kin.iter().any(|kin| kin == origin) => cursors.kin.push((id, next)),
                _ => cursors.others.push((id, next)),
            }
        }
        cursors.kin.sort_unstable();
        cursors.others.sort_unstable();
        Ok(cursors)
    }

    async fn answer(&self, question: Question, ask: &RowsAsk, send: &mpsc::Sender<Batch>) -> Result<(), HistoryError> {
        let Question { sql, parameters, places } = question;
        let mut answer = Answer::new(&ask.schema, places).map_err(HistoryError::Invalid)?;
        let client = self.pool.get().await.map_err(unconnected)?;
        let mut running = Running { cancel: client.cancel_token(), client: Some(client), link: self };
        let Some(client) = &running.client else { return Ok(()) };
        let parameters = parameters
            .iter()
            .map(|(value, kind)| (&**value as &(dyn tokio_postgres::types::ToSql + Sync), kind.clone()));
        let rows = client.query_typed_raw(&sql, parameters).await.map_err(told)?;
        let mut rows = std::pin::pin!(rows);
        while let Some(row) = rows.try_next().await.map_err(told)? {
            answer.push(&row).map_err(HistoryError::Invalid)?;
            let (count, bytes) = answer.waiting();
            if count >= BATCH_ROWS || bytes >= BATCH_BYTES {
                let batch = answer.take().map_err(HistoryError::Invalid)?;
                if send.send(Ok(batch)).await.is_err() {
                    return Ok(());
                }
            }
        }
        running.ended();
        if answer.waiting().0 > 0 {
            let batch = answer.take().map_err(HistoryError::Invalid)?;
            let _ = send.send(Ok(batch)).await;
        }
        Ok(())
    }
}

/// A question that the server works on. Dropped before its end it is cancelled there.
struct Running<'a> {
    client: Option<Object>,
    cancel: tokio_postgres::CancelToken,
    link: &'a Link,
}

impl Running<'_> {
    /// Gives the connection back.
    fn ended(&mut self) {
        self.client = None;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        let (cancel, tls) = (self.cancel.clone(), self.link.tls.clone());
        self.link.runtime.spawn(async move {
            match tokio::time::timeout(CANCEL, cancel.cancel_query(tls)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a query could not be cancelled at the database"),
                Err(_) => tracing::debug!("a query could not be cancelled at the database in time"),
            }
            // Not back to the pool: the cancel may arrive late.
            drop(Object::take(client));
        });
    }
}

fn unconnected(error: PoolError) -> HistoryError {
    match error {
        PoolError::Timeout(TimeoutType::Wait) => HistoryError::Busy("all connections are taken".into()),
        PoolError::Backend(error) => told(error),
        other => HistoryError::Unavailable(other.to_string()),
    }
}

fn told(error: tokio_postgres::Error) -> HistoryError {
    match error.code() {
        Some(code) if *code == SqlState::QUERY_CANCELED => HistoryError::Timeout,
        _ => HistoryError::Unavailable(failed("read history", &error).to_string()),
    }
}
