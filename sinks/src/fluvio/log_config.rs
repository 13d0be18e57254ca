//! The configuration of the logs of many machines.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{AcknowledgedBy, BatchCompression, ClusterConfig, check_address, check_prefix};
use super::frames::RECORD_BYTES_MAX;
use super::link::{SEGMENT_BYTES, TopicShape};
use super::repeats::WindowBounds;
use crate::error::SinksError;

/// The cluster that holds the logs of many machines, and their topics. All nodes need the same.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FluvioLogConfig {
    /// Where the cluster is: `host:port` of the SC's public door (9003, as a rule). Without TLS: for a network that can be
    /// trusted.
    pub address: String,
    /// What the names of the topics begin with: `<prefix>-log`, `<prefix>-output` and `<prefix>-changes`. Of a-z, 0-9 and `-`.
    pub prefix: String,
    /// Partitions of the log when its topics are made. Each tenant is in one of them, and one worker reads a partition. They can be
    /// neither more nor fewer later.
    #[schemars(range(min = 1, max = 256))]
    pub partitions: u32,
    /// Copies of each partition of a topic that is made, each on an SPU of its own.
    #[schemars(range(min = 1, max = 16))]
    pub replicas: u32,
    /// Who has a record when events are acknowledged: the `leader` of its partition, or all `replicas`. Fluvio does not sync
    /// files, so that each has it in the memory of its machine.
    pub acknowledged_by: AcknowledgedBy,
    /// How long a topic that is made keeps records, in seconds, read or not: longer than the workers may ever be away.
    #[schemars(range(min = 60, max = 315_360_000))]
    pub retention_s: u32,
    /// Bytes that each partition of a topic that is made keeps, about: the oldest go first, read or not.
    #[schemars(range(min = 33_554_432))]
    pub partition_bytes_max: u64,
    /// How batches of records are compressed: `none`, `lz4`, `zstd`, `snappy` or `gzip`.
    pub compression: BatchCompression,
    /// Bytes of rows (in memory) of one record, but for a single larger row. A larger append becomes several records.
    #[schemars(range(min = 4_096, max = 4_194_304))]
    pub record_bytes_max: usize,
    /// Bytes of appends that may wait for one partition. Over it appends are refused as full.
    #[schemars(range(min = 65_536))]
    pub queue_bytes_max: usize,
    /// Bytes of records that are on their way to one partition at once, and not yet acknowledged.
    #[schemars(range(min = 65_536, max = 16_777_216))]
    pub in_flight_bytes_max: usize,
    /// Memory for the newest batches of each log that is read; half of it may be ahead of the fastest reader.
    #[schemars(range(min = 1_048_576))]
    pub cache_bytes_max: usize,
    /// Ids of events that each log remembers to recognise duplicates, of the newest records, at most. About 80 bytes of memory
    /// each. All readers of a log need the same bound, or they leave out different rows.
    #[schemars(range(min = 65_536))]
    pub dedup_keys_max: usize,
    /// Records that are looked back for duplicates, at most. The same for all readers, too.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub dedup_records_max: usize,
    /// For a connection, or a topic, to be made, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub connect_ms_max: u64,
    /// For the cluster to acknowledge what it was sent, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub reply_ms_max: u64,
}

impl Default for FluvioLogConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            prefix: "tidegate".to_owned(),
            partitions: 8,
            replicas: 1,
            acknowledged_by: AcknowledgedBy::Leader,
            retention_s: 7 * 86_400,
            partition_bytes_max: 50 << 30,
            compression: BatchCompression::Lz4,
            record_bytes_max: 512 << 10,
            queue_bytes_max: 64 << 20,
            in_flight_bytes_max: 8 << 20,
            cache_bytes_max: 64 << 20,
            dedup_keys_max: 500_000,
            dedup_records_max: 16_384,
            connect_ms_max: 5_000,
            reply_ms_max: 5_000,
        }
    }
}

/// One of the three topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTopic {
    /// Events, cost events and the dead letters of ingest.
    Log,
    /// Alerts and the dead letters of delivery: as many partitions as the log has.
    Output,
    /// What people edit: one partition, kept for ever.
    Changes,
}

impl LogTopic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Log, Self::Output, Self::Changes];

    /// What follows the prefix.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Output => "output",
            Self::Changes => "changes",
        }
    }
}

impl FluvioLogConfig {
    /// Refuses values with which nothing could work.
    ///
    /// # Errors
    /// [`SinksError::Invalid`], which says what to write.
    pub fn check(&self) -> Result<(), SinksError> {
        check_address(&self.address)?;
        check_prefix(&self.prefix)
    }

    /// The name of a topic.
    pub fn topic(&self, topic: LogTopic) -> String {
        format!("{}-{}", self.prefix, topic.as_str())
    }

    /// How the cluster is reached.
    pub(super) fn cluster(&self) -> ClusterConfig {
        ClusterConfig {
            address: self.address.clone(),
            connect_ms_max: self.connect_ms_max,
            reply_ms_max: self.reply_ms_max,
            acknowledged_by: self.acknowledged_by,
        }
    }

    pub(super) fn shape(&self, topic: LogTopic) -> TopicShape {
        let of_rows = TopicShape {
            partitions: self.partitions,
            replicas: self.replicas,
            retention_s: Some(self.retention_s),
            partition_bytes_max: Some(self.partition_bytes_max),
            segment_bytes: SEGMENT_BYTES,
            batch_bytes_max: RECORD_BYTES_MAX,
        };
        match topic {
            LogTopic::Log | LogTopic::Output => of_rows,
            LogTopic::Changes => TopicShape { partitions: 1, retention_s: None, partition_bytes_max: None, ..of_rows },
        }
    }

    pub(super) fn window(&self) -> WindowBounds {
        WindowBounds { records: self.dedup_records_max.max(1), keys: self.dedup_keys_max.max(1 << 16) }
    }
}
