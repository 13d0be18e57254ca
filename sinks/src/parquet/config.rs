//! The configuration of the Parquet store and of its retention.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_events::Dataset;

use crate::error::SinksError;

/// How the Parquet store commits, encodes and compacts.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ParquetConfig {
    /// Where the files lie: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or `file:///folder`. Without it in
    /// the folder `store` of `data_dir`. Credentials come from the environment or the machine (`AWS_…`, `GOOGLE_…`, `AZURE_…`),
    /// never from here.
    pub url: Option<String>,
    /// The server of an object store that is not the cloud's own, such as `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// The region of an S3 bucket. By default that of the environment, or `us-east-1`.
    pub region: Option<String>,
    /// Whether requests to an object store may go without TLS.
    pub allow_http: bool,
    /// How long one request to an object store may take, in milliseconds.
    #[schemars(range(min = 100, max = 600_000))]
    pub request_timeout_ms: u64,
    /// How long a connection to an object store may take to open, in milliseconds.
    #[schemars(range(min = 100, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// How often a request to an object store is repeated at once. After that the delivery waits and tries again.
    #[schemars(range(max = 10))]
    pub request_retries_max: usize,
    /// A file larger than this goes to an object store in parts of this size.
    #[schemars(range(min = 5_242_880, max = 1_073_741_824))]
    pub upload_part_bytes: usize,
    /// A file that no longer counts stays in an object store for this many seconds, for readers in other processes.
    #[schemars(range(max = 604_800))]
    pub reader_grace_s: u64,
    /// Bytes of an object store's files that are kept in `data_dir` for queries. 0 keeps none.
    pub cache_bytes_max: u64,
    /// Bytes of rows (in memory) that one log's sink holds at most before it commits. A commit needs up to about as much
    /// again while it runs.
    pub buffer_bytes_max: usize,
    /// Commit once this many bytes of rows wait, even when no age bound asks for it. At most `buffer_bytes_max`.
    pub commit_bytes: usize,
    /// Commit once this many rows wait.
    pub commit_rows: usize,
    /// An hour (or else a day) of event time gets files of its own when it has at least this many rows; the rest shares one
    /// file a commit, so that a backfill over months does not become thousands of tiny files.
    pub file_rows_min: usize,
    /// A tenant with more rows than this in one commit gets files of its own.
    pub tenant_rows_min: usize,
    /// Rows of a row group.
    pub row_group_rows: usize,
    /// The zstd level of pages that a commit writes, 1 to 22.
    pub commit_zstd_level: i32,
    /// The zstd level of pages that compaction writes, 1 to 22.
    pub compact_zstd_level: i32,
    /// Columns with a bloom filter beside the built-in ones (event_id, actor, src_ip, asset, resource).
    pub bloom_columns: Vec<String>,
    /// Probability of a false hit of a bloom filter, above 0 and below 1.
    pub bloom_false_hits: f64,
    /// Compaction writes files of about this size, and leaves files of half this size and more alone.
    pub target_file_bytes: u64,
    /// Compaction starts when so many files of about one size wait side by side.
    pub compact_files_min: usize,
    /// Compaction merges at most this many files at once.
    pub compact_files_max: usize,
    /// Compaction merges at most this many rows at once (but at least two files). It needs up to 12 bytes for each.
    pub compact_rows_max: u64,
    /// Compaction reads at most this many bytes of files at once (but at least two files). It needs about as much memory.
    pub compact_bytes_max: u64,
    /// Into how many parts (large tenants, hours, days) compaction splits what it merges, at most.
    pub compact_outputs_max: usize,
    /// Hours (of event time) after which no more rows of an hour or a day are expected in number: what is left of it in
    /// smaller files is put together.
    pub settle_hours: u32,
    /// Every so many manifest edits one holds the whole state.
    pub edits_per_snapshot: u64,
}

impl Default for ParquetConfig {
    fn default() -> Self {
        Self {
            url: None,
            endpoint: None,
            region: None,
            allow_http: false,
            request_timeout_ms: 30_000,
            connect_timeout_ms: 5_000,
            request_retries_max: 2,
            upload_part_bytes: 16 << 20,
            reader_grace_s: 600,
            cache_bytes_max: 2 << 30,
            buffer_bytes_max: 96 << 20,
            commit_bytes: 64 << 20,
            commit_rows: 1 << 20,
            file_rows_min: 32_768,
            tenant_rows_min: 131_072,
            row_group_rows: 131_072,
            commit_zstd_level: 1,
            compact_zstd_level: 3,
            bloom_columns: Vec::new(),
            bloom_false_hits: 0.01,
            target_file_bytes: 64 << 20,
            compact_files_min: 8,
            compact_files_max: 32,
            compact_rows_max: 2 << 20,
            compact_bytes_max: 32 << 20,
            compact_outputs_max: 8,
            settle_hours: 2,
            edits_per_snapshot: 64,
        }
    }
}

impl ParquetConfig {
    /// Refuses values with which the store could not work.
    pub(crate) fn check(&self) -> Result<(), SinksError> {
        let zstd = 1..=22;
        let wrong = [
            (self.buffer_bytes_max == 0, "buffer_bytes_max must be at least 1"),
            (self.commit_bytes == 0 || self.commit_rows == 0, "commit_bytes and commit_rows must be at least 1"),
            (self.file_rows_min == 0, "file_rows_min must be at least 1"),
            (self.tenant_rows_min == 0, "tenant_rows_min must be at least 1"),
            (self.row_group_rows == 0, "row_group_rows must be at least 1"),
            (!zstd.contains(&self.commit_zstd_level), "commit_zstd_level must be 1 to 22"),
            (!zstd.contains(&self.compact_zstd_level), "compact_zstd_level must be 1 to 22"),
            (!(self.bloom_false_hits > 0.0 && self.bloom_false_hits < 1.0), "bloom_false_hits must be between 0 and 1"),
            (self.target_file_bytes == 0, "target_file_bytes must be at least 1"),
            (self.compact_files_min < 2, "compact_files_min must be at least 2"),
            (self.compact_files_max < self.compact_files_min, "compact_files_max must be at least compact_files_min"),
            (self.compact_outputs_max < 2, "compact_outputs_max must be at least 2"),
            (self.edits_per_snapshot < 2, "edits_per_snapshot must be at least 2"),
        ];
        match wrong.iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(SinksError::Invalid(format!("parquet: {what}"))),
            None => Ok(()),
        }
    }
}

/// Days (of event time) for which the rows of each dataset are kept. 0 keeps for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetDays {
    /// Days of security events.
    pub security_events: Option<u32>,
    /// Days of cost events.
    pub cost_events: Option<u32>,
    /// Days of alerts.
    pub alerts: Option<u32>,
    /// Days of changes: the audit trail, and the source of rules and keys. Best left at 0.
    pub changes: Option<u32>,
    /// Days of dead letters.
    pub dead_letters: Option<u32>,
}

impl DatasetDays {
    pub(crate) fn of(&self, dataset: Dataset) -> Option<u32> {
        match dataset {
            Dataset::SecurityEvents => self.security_events,
            Dataset::CostEvents => self.cost_events,
            Dataset::Alerts => self.alerts,
            Dataset::Changes => self.changes,
            Dataset::DeadLetters => self.dead_letters,
        }
    }
}

/// How long history is kept.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// For every tenant without a rule of its own. What is left out here is kept for ever.
    pub days: DatasetDays,
    /// For single tenants, by `org_id`. What is left out is as in `days`.
    pub tenants: BTreeMap<String, DatasetDays>,
    /// Expired rows may stay this many days longer in a file that also has live rows; then the file is rewritten without.
    pub grace_days: u32,
    /// Bytes of mixed files that one call rewrites at most (at least one file).
    pub rewrite_bytes_max: u64,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        // For ever: what is sent may be years old already, and nothing that was acknowledged goes away unasked.
        let days = DatasetDays::default();
        Self { days, tenants: BTreeMap::new(), grace_days: 1, rewrite_bytes_max: 512 << 20 }
    }
}

impl RetentionConfig {
    /// Rows of `org_id` in `dataset` with a `time` below this are expired. `i64::MIN` when they are kept for ever.
    pub fn cutoff(&self, org_id: &str, dataset: Dataset, now_us: i64) -> i64 {
        let days = self.tenants.get(org_id).and_then(|days| days.of(dataset)).or(self.days.of(dataset));
        match days {
            None | Some(0) => i64::MIN,
            Some(days) => now_us.saturating_sub(i64::from(days).saturating_mul(DAY_US)),
        }
    }
}

/// Microseconds of an hour.
pub(crate) const HOUR_US: i64 = 3_600_000_000;
/// Microseconds of a day.
pub(crate) const DAY_US: i64 = 24 * HOUR_US;
