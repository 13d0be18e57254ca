//! The configuration of everything that uses Redis.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_events::Dataset;

use crate::entries::{exported, exported_by_default};
use crate::error::SinksError;

/// A Redis server, and what it is used for.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// Where the server is: `redis://[user[:password]@]host[:port][/database]`, `rediss://…` for TLS, or
    /// `redis+unix:///path`. Redis 6.2 or later; one server (with replicas), not Redis Cluster.
    pub url: String,
    /// A file with the password, instead of one in the URL. It is read at every connection, so that a new password needs no
    /// restart.
    pub password_file: Option<PathBuf>,
    /// A file of certificates (PEM) that may sign the server's, instead of those that the operating system trusts.
    pub ca_file: Option<PathBuf>,
    /// What the names of all keys begin with. Installations that share a server differ here; nodes of one installation do not.
    pub prefix: String,
    /// For a connection to be made and authenticated, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub connect_ms_max: u64,
    /// For the server to answer a request of a sink, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub reply_ms_max: u64,
    /// Events and alerts as Redis Streams, for consumers that want a tail.
    pub streams: StreamsConfig,
    /// The set of event ids that several ingest nodes share.
    pub shared_ids: SharedIdsConfig,
    /// Alerts for the feeds of all nodes.
    pub fan_out: FanOutConfig,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            password_file: None,
            ca_file: None,
            prefix: "tidegate".to_owned(),
            connect_ms_max: 2_000,
            reply_ms_max: 5_000,
            streams: StreamsConfig::default(),
            shared_ids: SharedIdsConfig::default(),
            fan_out: FanOutConfig::default(),
        }
    }
}

/// Events and alerts as Redis Streams, one for each tenant and dataset.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StreamsConfig {
    /// Whether events and alerts are written to streams.
    pub enabled: bool,
    /// The datasets that are written: of `security_events`, `cost_events`, `alerts`, `dead_letters` and `changes`.
    pub datasets: Vec<String>,
    /// Entries that one stream keeps, about: the oldest go first, whether they were read or not.
    #[schemars(range(min = 1))]
    pub entries_max: u64,
    /// Entries older than this many seconds go as well, and a stream to which nothing is added for as long.
    #[schemars(range(min = 1, max = 315_360_000))]
    pub age_s_max: Option<u64>,
    /// Bytes of the JSON of one event. A larger one is written without its JSON, with its size in `omitted_bytes`.
    #[schemars(range(min = 1024, max = 268_435_456))]
    pub event_bytes_max: usize,
    /// Entries that are added at once; while they are, the server answers nobody else.
    #[schemars(range(min = 1, max = 100_000))]
    pub batch_entries_max: usize,
    /// Bytes of the entries that are added at once, but for a single larger one.
    #[schemars(range(min = 1024, max = 268_435_456))]
    pub batch_bytes_max: usize,
}

impl Default for StreamsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            datasets: exported_by_default(),
            entries_max: 100_000,
            age_s_max: None,
            event_bytes_max: 1 << 20,
            batch_entries_max: 512,
            batch_bytes_max: 1 << 20,
        }
    }
}

/// The set of event ids that several ingest nodes share, so that an event which is sent to two of them is stored once.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SharedIdsConfig {
    /// Whether ids are looked up in Redis before events are stored.
    pub enabled: bool,
    /// How long an id is known to the other nodes, in seconds. One takes about 150 bytes of Redis' memory.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub window_s: u64,
    /// The longest that a group of events waits for Redis before it is stored by what this node knows, in milliseconds; and
    /// once more as long, at most, before it is answered.
    #[schemars(range(min = 1, max = 10_000))]
    pub wait_ms_max: u64,
    /// How long an id counts as being stored by a node that has not said what became of it, in seconds.
    #[schemars(range(min = 1, max = 3_600))]
    pub claim_s: u64,
    /// Groups of events that may wait for Redis at once. Those beyond are stored by what this node knows.
    #[schemars(range(min = 1, max = 10_000))]
    pub groups_max: usize,
    /// Failures in a row after which Redis is left alone until it answers a ping.
    #[schemars(range(min = 1, max = 1_000))]
    pub open_after_failures: u32,
    /// Ids stored while Redis was away, or too slow to say that it knows them, that are made known to the other nodes as soon as
    /// it answers. 16 bytes each.
    pub missed_ids_max: usize,
}

impl Default for SharedIdsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            window_s: 600,
            wait_ms_max: 20,
            claim_s: 10,
            groups_max: 64,
            open_after_failures: 3,
            missed_ids_max: 200_000,
        }
    }
}

/// Alerts for the feeds of all nodes, so that a client of any node sees every alert of its tenant.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FanOutConfig {
    /// Whether this node publishes its alerts, and its feed tells those of the others.
    pub enabled: bool,
    /// Batches of alerts of one node that Redis keeps, about: how far back a client of another node can resume.
    #[schemars(range(min = 1))]
    pub batches_max: u64,
    /// Rows of the output log that are published again when Redis has lost what it had.
    pub refill_rows_max: u64,
    /// Memory for the newest alerts of each other node.
    pub memory_bytes_max: usize,
    /// Other nodes that are followed at once.
    #[schemars(range(min = 1, max = 1_000))]
    pub nodes_max: usize,
    /// A node that has not shown itself for this many seconds is forgotten, with what it published.
    #[schemars(range(min = 60, max = 315_360_000))]
    pub forget_s: u64,
}

impl Default for FanOutConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            batches_max: 10_000,
            refill_rows_max: 10_000,
            memory_bytes_max: 8 << 20,
            nodes_max: 32,
            forget_s: 7 * 86_400,
        }
    }
}

impl RedisConfig {
    /// Checks what can be checked without the server.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] for the operator, with what to write instead.
    pub fn check(&self) -> Result<(), SinksError> {
        let invalid = |message: String| Err(SinksError::Invalid(message));
        if self.url.is_empty() {
            return invalid("url is missing: redis://host:6379".to_owned());
        }
        if self.prefix.is_empty() || !self.prefix.bytes().all(is_plain) {
            return invalid(format!("the prefix {:?} may only have letters, digits, and any of _ - .", self.prefix));
        }
        self.streams.exported().map(drop)
    }
}

impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the URL, which may have a password.
        f.debug_struct("RedisConfig").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl StreamsConfig {
    /// The datasets that are written.
    pub(super) fn exported(&self) -> Result<Vec<Dataset>, SinksError> {
        exported(&self.datasets)
    }
}

/// A byte that stands for itself in the name of a key.
pub(super) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}
