//! The database as both sinks, the housekeeping and the readers share it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use deadpool_postgres::{Object, Pool};
use parking_lot::Mutex as SyncMutex;
use tidegate_events::Dataset;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::{FieldCatalog, LogBatch, Offset};
use tokio::sync::Mutex;

use super::chunks::{self, Chunks};
use super::config::TimescaleConfig;
use super::connect;
use super::ddl::{Layout, qualified};
use super::fields;
use super::lanes::{Lane, Share};
use super::leases::Lease;
use super::schema::{self, Found, rows, run};
use super::sink::TimescaleSink;
use crate::error::SinksError;
use crate::parquet::LogSource;

/// A database with the schema of this program. Opening it connects to nothing: a database that is down keeps nobody from
/// starting.
pub struct TimescaleStore {
    pub(super) config: TimescaleConfig,
    /// The id of the data folder, a UUID: whose logs these are.
    origin: String,
    /// Held by whoever writes, where several may.
    pub(super) lease: Option<Lease>,
    pool: Pool,
    ready: Mutex<Option<Ready>>,
    /// Own fields that are in the table of fields, as far as this process knows.
    fields: SyncMutex<FieldCatalog>,
    /// Whether the policies are as configured, as far as this process knows.
    pub(super) policies_set: AtomicBool,
}

/// What is known once the schema was looked at.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    pub(super) found: Found,
    pub(super) chunks: Arc<SyncMutex<Chunks>>,
}

impl TimescaleStore {
    /// A store for the logs of the data folder `origin` (a UUID as text).
    ///
    /// # Errors
    /// [`SinksError::Invalid`] when the configuration cannot be used.
    pub fn open(config: TimescaleConfig, origin: &str) -> Result<Arc<Self>, SinksError> {
        Self::open_for(config, origin, None)
    }

    /// The same for the logs of a partition, which are written for as long as its lease is held.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_leased(config: TimescaleConfig, origin: &str, lease: Lease) -> Result<Arc<Self>, SinksError> {
        Self::open_for(config, origin, Some(lease))
    }

    fn open_for(config: TimescaleConfig, origin: &str, lease: Option<Lease>) -> Result<Arc<Self>, SinksError> {
        config.check()?;
        if config.url.is_empty() {
            return Err(SinksError::Invalid(
                "sinks.timescale.url is missing: postgres://user@host:5432/database".to_owned(),
            ));
        }
        let letters = origin.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if origin.len() != 36 || !letters {
            return Err(SinksError::Invalid(format!("the id of the data folder is no UUID: {origin:?}")));
        }
        // Both sinks, the housekeeping, and one to spare.
        let pool = connect::pool(&config, 2 * config.connections + 2)?;
        Ok(Arc::new(Self {
            config,
            origin: origin.to_owned(),
            lease,
            pool,
            ready: Mutex::default(),
            fields: SyncMutex::default(),
            policies_set: AtomicBool::new(false),
        }))
    }

    /// The sink of one log. Until the database has been asked, it is taken that nothing from `from` on is there.
    pub fn sink(self: &Arc<Self>, source: LogSource, from: Offset) -> TimescaleSink {
        TimescaleSink::new(self.clone(), source, from)
    }

    /// The `log_id` of a log of this server. Connects, and migrates the schema, when that was not done yet.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do.
    pub async fn log_id(&self, source: LogSource) -> Result<i16, SinksError> {
        Ok(self.ready().await?.log_id(source))
    }

    /// The offset of a log below which all rows are in the database. Connects, and migrates the schema, when that was not
    /// done yet.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do.
    pub async fn cursor(&self, source: LogSource) -> Result<Offset, SinksError> {
        let ready = self.ready().await?;
        let client = self.connection().await?;
        let lanes = self.lanes(&client, ready.log_id(source), "").await?;
        Ok(lanes.iter().map(|lane| lane.next).min().unwrap_or_default())
    }

    /// A connection.
    pub(super) async fn connection(&self) -> Result<Object, SinksError> {
        connect::get(&self.pool, &self.config).await
    }

    /// Looks at the schema, and migrates it, once.
    pub(super) async fn ready(&self) -> Result<Ready, SinksError> {
        let mut ready = self.ready.lock().await;
        if let Some(ready) = ready.as_ref() {
            return Ok(ready.clone());
        }
        let client = self.connection().await?;
        let prepared = async {
            let found = schema::prepare(&client, &self.config, &self.origin).await?;
            let chunks = Chunks::load(&client, &self.config, found.layout).await?;
            Ok(Ready { found, chunks: Arc::new(SyncMutex::new(chunks)) })
        };
        match prepared.await {
            Ok(known) => {
                tracing::info!(schema = self.config.schema, found = ?known.found, "the database is ready");
                *ready = Some(known.clone());
                Ok(known)
            }
            Err(error) => {
                drop(Object::take(client));
                Err(error)
            }
        }
    }

    /// After a failure: idle connections may be as dead as the one that failed, and the schema may have changed.
    pub(super) async fn doubt(&self) {
        self.pool.retain(|_, _| false);
        *self.fields.lock() = FieldCatalog::default();
        *self.ready.lock().await = None;
    }

    /// The lanes of a log as the database has them, read with this lock.
    async fn lanes(&self, client: &Object, log_id: i16, lock: &str) -> Result<Vec<Lane>, SinksError> {
        let cursors = qualified(&self.config.schema, "cursors");
        let query = format!("SELECT lane, next_offset FROM {cursors} WHERE log_id = {log_id} ORDER BY lane {lock}");
        let found = rows(client, &self.config, "read the cursors", &query).await?;
        let lane = |row: &Vec<String>| {
            let number = row.first()?.parse().ok()?;
            Some(Lane { number, next: row.get(1)?.parse().ok()?, unsure: None })
        };
        Ok(found.iter().filter_map(lane).collect())
    }

    /// The lanes of a log once no transaction moves them any more.
    pub(super) async fn settled_lanes(&self, log_id: i16) -> Result<Vec<Lane>, SinksError> {
        let client = self.connection().await?;
        self.lanes(&client, log_id, "FOR SHARE").await
    }

    /// The lanes of a log, as many as configured when that can be: only lanes that all stand at one offset are made more or
    /// fewer.
    pub(super) async fn arranged_lanes(&self, log_id: i16) -> Result<Vec<Lane>, SinksError> {
        let client = self.connection().await?;
        let wanted = self.config.connections;
        // A transaction of the process before this one may still be on its way to its commit: that is waited for.
        let lanes = self.lanes(&client, log_id, "FOR SHARE").await?;
        let next = lanes.first().map_or(0, |lane| lane.next);
        if lanes.len() == wanted || lanes.iter().any(|lane| lane.next != next) {
            return Ok(lanes);
        }
        let cursors = qualified(&self.config.schema, "cursors");
        // One statement of several is one transaction. Should a cursor have moved on since, the insertion meets the row.
        let rearrange = format!(
            "DELETE FROM {cursors} WHERE log_id = {log_id} AND next_offset = {next}; \
             INSERT INTO {cursors} (log_id, lane, next_offset) SELECT {log_id}, lane, {next} FROM generate_series(0, {}) AS lane",
            wanted - 1
        );
        run(&client, &self.config, "arrange the cursors", &[rearrange]).await?;
        self.lanes(&client, log_id, "").await
    }

    /// Makes the partitions that these rows need, as far as there may be more; marks rows that have none (with the extension).
    pub(super) async fn place(&self, ready: &Ready, shares: &mut [Share]) -> Result<(), SinksError> {
        for dataset in Dataset::ALL {
            let batches: Vec<_> =
                shares.iter().filter(|share| share.batch.dataset == dataset).map(|share| &share.batch.rows).collect();
            let missing = ready.chunks.lock().missing(&self.config, dataset, &batches, now_us());
            if ready.found.layout == Layout::Hypertables {
                missing.into_iter().for_each(|stretch| ready.chunks.lock().add(dataset, stretch));
            } else if !missing.is_empty() {
                let client = self.connection().await?;
                chunks::make_all(&client, &self.config, &ready.chunks, (dataset, missing), now_us()).await?;
            }
        }
        if ready.found.layout == Layout::Hypertables {
            let chunks = ready.chunks.lock();
            for share in shares {
                share.strays = chunks.strays(share.batch.dataset, &share.batch.rows).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Puts the own fields of rows that come into the table of fields, as far as they are new.
    pub(super) async fn learn(&self, batches: &[Arc<LogBatch>]) -> Result<(), SinksError> {
        let mut seen = FieldCatalog::default();
        for batch in batches {
            seen.observe(batch.dataset, &batch.rows);
        }
        let fresh = fields::fresh(&self.fields.lock(), &seen);
        if !fresh.is_empty() {
            let client = self.connection().await?;
            let storing = fields::store(&**client, &self.config.schema, &fresh);
            connect::step(&self.config, "note the own fields", storing).await?;
            self.fields.lock().merge(&seen);
        }
        Ok(())
    }
}

impl Ready {
    pub(super) fn log_id(&self, source: LogSource) -> i16 {
        let [ingest, output] = self.found.log_ids;
        match source {
            LogSource::Ingest => ingest,
            LogSource::Output => output,
        }
    }
}

impl std::fmt::Debug for TimescaleStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimescaleStore")
            .field("config", &self.config)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}
