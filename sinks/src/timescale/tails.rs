//! What the log of a partition ended with when its cursor was committed, kept beside the cursor: whoever takes the partition over
//! tells by it whether the log still holds what was read (docs/many-machines.md). To this module it is bytes.
//!
//! ```text
//! tails (log_id, tail, rewind_to)
//! ```
//!
//! `rewind_to` is for people: an offset from which on whoever takes the partition next delivers again.

use std::fmt::Write as _;

use tidegate_pipeline::Offset;

use super::config::TimescaleConfig;
use super::connect::step;
use super::ddl::qualified;
use super::leases::hold;
use super::schema::rows;
use super::store::TimescaleStore;
use crate::error::SinksError;
use crate::parquet::LogSource;

/// Gives the tail of a log at an offset.
pub struct TailAt(Box<dyn Fn(Offset) -> Vec<u8> + Send + Sync>);

impl TailAt {
    /// What is asked.
    pub fn new(tail_at: impl Fn(Offset) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self(Box::new(tail_at))
    }

    pub(super) fn tail(&self, at: Offset) -> Vec<u8> {
        (self.0)(at)
    }
}

impl std::fmt::Debug for TailAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TailAt")
    }
}

/// What was kept beside a cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredTail {
    /// The tail; empty when none was kept.
    pub tail: Vec<u8>,
    /// From where on people want it delivered again.
    pub rewind_to: Option<Offset>,
}

/// The statement that makes the table.
pub(super) fn table(schema: &str) -> String {
    let table = qualified(schema, "tails");
    format!(
        "CREATE TABLE IF NOT EXISTS {table} (log_id int2 PRIMARY KEY, tail bytea NOT NULL, rewind_to int8 CHECK (rewind_to >= 0))"
    )
}

/// The statement that keeps a tail.
pub(super) fn keep(schema: &str, log_id: i16, tail: &[u8]) -> String {
    let table = qualified(schema, "tails");
    let mut hex = String::with_capacity(tail.len() * 2);
    for byte in tail {
        // Writing to memory does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    format!(
        "INSERT INTO {table} (log_id, tail) VALUES ({log_id}, '\\x{hex}') ON CONFLICT (log_id) DO UPDATE SET tail = excluded.tail"
    )
}

impl TimescaleStore {
    /// What was kept beside the cursor of a log, for a store that has a lease.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do.
    pub async fn tail(&self, source: LogSource) -> Result<StoredTail, SinksError> {
        let log_id = self.ready().await?.log_id(source);
        let client = self.connection().await?;
        let table = qualified(&self.config.schema, "tails");
        let query = format!("SELECT encode(tail, 'hex'), rewind_to FROM {table} WHERE log_id = {log_id}");
        let found = rows(&client, &self.config, "read the end of the log", &query).await?;
        let text = |at: usize| found.first().and_then(|row| row.get(at)).map_or("", String::as_str);
        Ok(StoredTail { tail: unhex(text(0)), rewind_to: text(1).parse().ok() })
    }

    /// Puts the cursor of a log back to an offset, if it is beyond, and forgets what was kept beside it.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do, also when the lease is lost.
    pub async fn rewind(&self, source: LogSource, to: Offset) -> Result<(), SinksError> {
        let log_id = self.ready().await?.log_id(source);
        let client = self.connection().await?;
        let done = self.rewind_with(&client, log_id, to).await;
        if done.is_err() {
            // In the middle of a transaction. Dropped, it is closed.
            drop(deadpool_postgres::Object::take(client));
        }
        done
    }

    async fn rewind_with(&self, client: &deadpool_postgres::Object, log_id: i16, to: Offset) -> Result<(), SinksError> {
        let config: &TimescaleConfig = &self.config;
        step(config, "begin a transaction", client.batch_execute("BEGIN")).await?;
        if let Some(lease) = self.lease {
            hold(client, config, lease).await?;
        }
        let (cursors, tails) = (qualified(&config.schema, "cursors"), qualified(&config.schema, "tails"));
        let statements = format!(
            "UPDATE {cursors} SET next_offset = least(next_offset, {to}), updated = now() WHERE log_id = {log_id}; \
             DELETE FROM {tails} WHERE log_id = {log_id}; COMMIT"
        );
        step(config, "put the cursor back", client.batch_execute(&statements)).await
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let (digits, _) = text.as_bytes().as_chunks::<2>();
    let byte =
        |digits: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(digits).unwrap_or_default(), 16).unwrap_or_default();
    digits.iter().map(byte).collect()
}
