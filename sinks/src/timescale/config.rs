//! The configuration of the TimescaleDB sink.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::SinksError;
use crate::parquet::DatasetDays;

/// Whether the tables are made with the TimescaleDB extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExtensionUse {
    /// With the extension when the server has it, on plain PostgreSQL otherwise.
    Auto,
    /// On plain PostgreSQL, even when the server has the extension.
    Off,
}

/// Where the TimescaleDB (or PostgreSQL) is and how rows are written to it.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TimescaleConfig {
    /// `postgres://user@host:5432/database?sslmode=verify-full`. Several hosts (`host1,host2`) are tried in order, and only one
    /// that takes writes is used. `sslmode` is `disable`, `prefer` (default), `require`, `verify-ca` or `verify-full`; `sslrootcert`
    /// names a PEM file of the authorities to trust instead of the system's.
    pub url: String,
    /// The password, when it is not in the URL. Better in the environment or in `password_file` than in a file that many read.
    pub password: Option<String>,
    /// A file that holds the password. It is read at every connection, so that a new password needs no restart.
    pub password_file: Option<PathBuf>,
    /// The schema that holds all tables. Made when it is missing. Servers (data folders) that share it get a `log_id` each.
    pub schema: String,
    /// Whether the tables are made with the TimescaleDB extension. Decided once, when they are made.
    pub extension: ExtensionUse,
    /// Connections that write at the same time, for each of the two logs. Rows of a tenant go over one of them.
    #[schemars(range(min = 1, max = 64))]
    pub connections: usize,
    /// Connections that read history at the same time, with `store = "timescale"`. Each table of a query needs one while its
    /// rows are read.
    #[schemars(range(min = 1, max = 1_000))]
    pub read_connections: usize,
    /// How often the reader looks up to where the tables are complete, in milliseconds. What came later is read from the
    /// logs: nothing is seen later for it.
    #[schemars(range(min = 10, max = 60_000))]
    pub read_refresh_ms: u64,
    /// Commit once this many rows wait.
    #[schemars(range(min = 1))]
    pub commit_rows: usize,
    /// Commit once this many bytes of rows (in memory) wait. About as much again is needed while they are sent.
    #[schemars(range(min = 1))]
    pub commit_bytes: usize,
    /// Commit once the oldest row that waits has waited this long, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub commit_interval_ms: u64,
    /// How long a connection may take to be made, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub connect_ms_max: u64,
    /// How long one statement, or one step of a COPY, may make no progress before the connection is given up, in milliseconds.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub statement_ms_max: u64,
    /// Idle seconds after which the operating system asks whether the server is still there.
    #[schemars(range(min = 1, max = 7_200))]
    pub keepalive_s: u64,
    /// A GIN index on `attributes`, for conditions like `attributes @> '{"userIdentity.type": "Root"}'`. It costs writes.
    pub attributes_index: bool,
    /// Hours (of event time) in one partition or chunk of `security_events`.
    #[schemars(range(min = 1, max = 8_784))]
    pub security_chunk_hours: u32,
    /// Hours (of event time) in one partition or chunk of the other tables.
    #[schemars(range(min = 1, max = 8_784))]
    pub other_chunk_hours: u32,
    /// Partitions (chunks) that a table may have, at most. Rows of other times go to the default partition.
    #[schemars(range(min = 2, max = 100_000))]
    pub chunks_max: usize,
    /// Hours (of event time) after which the extension compresses a chunk. 0 for never.
    #[schemars(range(min = 0, max = 876_000))]
    pub compress_after_hours: u32,
    /// Continuous aggregates (materialised views on plain PostgreSQL) for dashboards.
    pub aggregates: bool,
    /// Seconds between two refreshes of the materialised views on plain PostgreSQL.
    #[schemars(range(min = 1, max = 86_400))]
    pub refresh_s: u64,
    /// For how long rows are kept in the database. What is left out is kept for ever.
    pub retention: DatasetDays,
}

impl Default for TimescaleConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            password: None,
            password_file: None,
            schema: "tidegate".to_owned(),
            extension: ExtensionUse::Auto,
            connections: 2,
            read_connections: 8,
            read_refresh_ms: 500,
            commit_rows: 100_000,
            commit_bytes: 32 << 20,
            commit_interval_ms: 1_000,
            connect_ms_max: 5_000,
            statement_ms_max: 60_000,
            keepalive_s: 30,
            attributes_index: false,
            security_chunk_hours: 24,
            other_chunk_hours: 720,
            chunks_max: 2_000,
            compress_after_hours: 168,
            aggregates: true,
            refresh_s: 60,
            retention: DatasetDays::default(),
        }
    }
}

impl TimescaleConfig {
    /// Refuses values with which the sink could not work.
    ///
    /// # Errors
    /// [`SinksError::Invalid`], which says what to write.
    pub fn check(&self) -> Result<(), SinksError> {
        let name = self.schema.as_bytes();
        let letters = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        let plain = name.iter().all(letters) && name.first().is_some_and(|first| !first.is_ascii_digit());
        let wrong = [
            (
                !plain || name.len() > 40 || name.starts_with(b"pg_"),
                "schema must be 1 to 40 of a-z, 0-9 and _, start with no digit and not with pg_",
            ),
            (self.password.is_some() && self.password_file.is_some(), "give password or password_file, not both"),
            (!(1..=64).contains(&self.connections), "connections must be 1 to 64"),
            (
                self.read_connections == 0 || self.read_refresh_ms == 0,
                "read_connections and read_refresh_ms must be at least 1",
            ),
            (self.commit_rows == 0 || self.commit_bytes == 0, "commit_rows and commit_bytes must be at least 1"),
            (self.security_chunk_hours == 0 || self.other_chunk_hours == 0, "chunk hours must be at least 1"),
        ];
        match wrong.iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(SinksError::Invalid(format!("sinks.timescale: {what}"))),
            None => Ok(()),
        }
    }
}

/// Without secrets.
impl std::fmt::Debug for TimescaleConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimescaleConfig")
            .field("schema", &self.schema)
            .field("connections", &self.connections)
            .field("extension", &self.extension)
            .finish_non_exhaustive()
    }
}
