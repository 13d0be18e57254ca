//! The checkpoint of a partition in the database, written for as long as its lease is held.
//!
//! A checkpoint that is [left](LeasedCheckpoint::leave) goes with the rows: the next transaction of the sink that
//! [takes it along](super::TimescaleSink::take_along) writes rows, cursor and checkpoint together. Where no rows come, where it is
//! large, or where it could not be written so, [`write_left`](LeasedCheckpoint::write_left) writes it on its own; either way looks at
//! the lease in the same transaction. Nobody waits for it: while the database is away the newest one stays here.

use std::sync::Arc;
use std::time::Instant;

use deadpool_postgres::{Object, Pool};
use parking_lot::Mutex;
use tidegate_pipeline::Offset;
use tokio_postgres::types::ToSql;

use super::config::TimescaleConfig;
use super::connect::{self, step};
use super::ddl::qualified;
use super::leases::{Asked, Lease, lost};
use crate::error::SinksError;

/// Bytes of a checkpoint that goes with rows. A larger one would hold them up.
const ALONG_BYTES_MAX: usize = 8 << 20;

/// The place of the checkpoint of a partition, for as long as its lease is held.
#[derive(Clone)]
pub struct LeasedCheckpoint {
    config: TimescaleConfig,
    pool: Pool,
    lease: Lease,
    left: Arc<Mutex<Option<Left>>>,
}

/// A checkpoint that is not in the database yet.
struct Left {
    offset: Offset,
    body: Vec<u8>,
    /// Since when the database has had none newer than the one before.
    since: Instant,
    /// It does not go with rows.
    alone: bool,
}

/// A checkpoint in the hands of whoever writes it. Dropped, it is left again, if none came after it.
pub(super) struct Along {
    place: LeasedCheckpoint,
    left: Option<Left>,
}

impl LeasedCheckpoint {
    pub(super) fn new(config: TimescaleConfig, pool: Pool, lease: Lease) -> Self {
        Self { config, pool, lease, left: Arc::default() }
    }

    /// The body of the newest one, by whoever held the partition.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do.
    pub async fn load(&self) -> Result<Option<Vec<u8>>, SinksError> {
        let client = connect::get(&self.pool, &self.config).await?;
        let table = qualified(&self.config.schema, "checkpoints");
        let query = format!("SELECT body FROM {table} WHERE partition = $1");
        let partition = self.lease.partition.cast_signed();
        let found = step(&self.config, "read the checkpoint", client.query_opt(&query, &[&partition])).await?;
        let body = found.map(|row| row.try_get::<_, Vec<u8>>(0)).transpose();
        body.map_err(|error| SinksError::Database { reason: format!("read the checkpoint: {error}") })
    }

    /// Leaves a body that stands at an offset to be written soon, in place of one that was left before.
    pub fn leave(&self, offset: Offset, body: Vec<u8>) {
        let mut left = self.left.lock();
        let since = left.as_ref().map_or_else(Instant::now, |before| before.since);
        let alone = body.len() > ALONG_BYTES_MAX;
        *left = Some(Left { offset, body, since, alone });
    }

    /// Since when something was left that is not in the database, as far as nobody is writing it now.
    pub fn left_since(&self) -> Option<Instant> {
        self.left.lock().as_ref().map(|left| left.since)
    }

    /// Writes what was left, if anything was, on its own.
    ///
    /// # Errors
    /// As [`save`](Self::save); it is left again then.
    pub async fn write_left(&self) -> Result<(), SinksError> {
        let Some(along) = self.take(|_| true) else { return Ok(()) };
        if let Some(left) = &along.left {
            self.save(left.offset, &left.body).await?;
        }
        along.written();
        Ok(())
    }

    /// What was left and can go with rows.
    pub(super) fn along(&self) -> Option<Along> {
        self.take(|left| !left.alone)
    }

    fn take(&self, which: impl FnOnce(&mut Left) -> bool) -> Option<Along> {
        let left = self.left.lock().take_if(which)?;
        Some(Along { place: self.clone(), left: Some(left) })
    }

    /// Keeps a body that stands at an offset, unless the lease is lost, or one is there by then that is further: a save may come
    /// late, after its caller has lost patience and the next one was made.
    ///
    /// # Errors
    /// [`SinksError::Database`] when the lease is lost or the database does not answer; nothing is changed then.
    pub async fn save(&self, offset: Offset, body: &[u8]) -> Result<(), SinksError> {
        self.write(offset, body, FURTHER).await
    }

    /// Keeps a body whatever is there, unless the lease is lost: for who goes back to an earlier offset.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub async fn replace(&self, offset: Offset, body: &[u8]) -> Result<(), SinksError> {
        self.write(offset, body, "AND false").await
    }

    async fn write(&self, offset: Offset, body: &[u8], newer: &str) -> Result<(), SinksError> {
        let client = Asked::of(connect::get(&self.pool, &self.config).await?);
        self.write_with(&client, offset, body, newer).await?;
        client.answered();
        Ok(())
    }

    /// Keeps a body, but for one that is newer: of a later lease, or of this one where `newer` says so.
    async fn write_with(&self, client: &Object, offset: Offset, body: &[u8], newer: &str) -> Result<(), SinksError> {
        let checkpoints = qualified(&self.config.schema, "checkpoints");
        let leases = qualified(&self.config.schema, "leases");
        let query = format!(
            "WITH held AS (SELECT partition, epoch FROM {leases} WHERE partition = $1 AND epoch = $2 AND isfinite(until) FOR KEY SHARE), \
             done AS (INSERT INTO {checkpoints} AS kept (partition, epoch, next_offset, body) \
             SELECT partition, epoch, $3::int8, $4::bytea FROM held ON CONFLICT (partition) DO UPDATE SET \
             epoch = excluded.epoch, next_offset = excluded.next_offset, body = excluded.body, saved = now() \
             WHERE NOT (kept.epoch > excluded.epoch OR (kept.epoch = excluded.epoch {newer}))) \
             SELECT count(*) FROM held"
        );
        let Lease { partition, epoch } = self.lease;
        let (partition_id, epoch_id, offset) = (partition.cast_signed(), epoch.cast_signed(), offset.cast_signed());
        let parameters: [&(dyn ToSql + Sync); 4] = [&partition_id, &epoch_id, &offset, &body];
        let found = step(&self.config, "write the checkpoint", client.query_one(&query, &parameters)).await?;
        match found.try_get::<_, i64>(0) {
            Ok(0) => Err(lost(self.lease)),
            Ok(_) => Ok(()),
            Err(error) => Err(SinksError::Database { reason: format!("write the checkpoint: {error}") }),
        }
    }
}

/// What is there of the same lease stays, when it is further.
const FURTHER: &str = "AND kept.next_offset > excluded.next_offset";

impl Along {
    /// Writes it in the transaction that is open on a connection.
    ///
    /// # Errors
    /// [`SinksError::Database`]; it does not go with rows any more then.
    pub(super) async fn write(&mut self, client: &Object) -> Result<(), SinksError> {
        let Some(left) = &mut self.left else { return Ok(()) };
        let written = self.place.write_with(client, left.offset, &left.body, FURTHER).await;
        written.map_err(|error| {
            left.alone = true;
            // Whatever it is, the rows are not the reason.
            SinksError::Database { reason: error.to_string() }
        })
    }

    /// It is in the database.
    pub(super) fn written(mut self) {
        self.left = None;
    }
}

impl Drop for Along {
    fn drop(&mut self) {
        let Some(left) = self.left.take() else { return };
        let mut now = self.place.left.lock();
        match now.as_mut() {
            Some(newer) => newer.since = left.since,
            None => *now = Some(left),
        }
    }
}

impl std::fmt::Debug for LeasedCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeasedCheckpoint").field("lease", &self.lease).finish_non_exhaustive()
    }
}
