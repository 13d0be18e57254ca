//! The configuration of everything that uses Fluvio.

use fluvio::{Compression, Isolation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_events::Dataset;

use super::link::{FETCH_BYTES, SEGMENT_BYTES, TopicShape};
use crate::entries::{exported, exported_by_default};
use crate::error::SinksError;

/// What the key of a record, a tenant's name, has at most.
pub(super) const KEY_BYTES_MAX: usize = 64 << 10;

/// How a cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `host:port` of the SC's public door.
    pub address: String,
    /// For a connection, or a topic, to be made, in milliseconds.
    pub connect_ms_max: u64,
    /// For a request to be answered, in milliseconds.
    pub reply_ms_max: u64,
    /// Who has a record when it is acknowledged.
    pub acknowledged_by: AcknowledgedBy,
}

/// Who has a record when it is acknowledged. Fluvio does not sync files: each has it in the memory of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AcknowledgedBy {
    /// The leader of the partition.
    #[default]
    Leader,
    /// All replicas of the partition.
    Replicas,
}

impl AcknowledgedBy {
    pub(super) fn isolation(self) -> Isolation {
        match self {
            Self::Leader => Isolation::ReadUncommitted,
            Self::Replicas => Isolation::ReadCommitted,
        }
    }
}

/// How batches of records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BatchCompression {
    /// Not at all.
    None,
    /// LZ4: little CPU time.
    #[default]
    Lz4,
    /// Zstandard: smaller, more CPU time.
    Zstd,
    /// Snappy.
    Snappy,
    /// gzip.
    Gzip,
}

impl From<BatchCompression> for Compression {
    fn from(compression: BatchCompression) -> Self {
        match compression {
            BatchCompression::None => Self::None,
            BatchCompression::Lz4 => Self::Lz4,
            BatchCompression::Zstd => Self::Zstd,
            BatchCompression::Snappy => Self::Snappy,
            BatchCompression::Gzip => Self::Gzip,
        }
    }
}

/// Events and alerts as topics of a Fluvio cluster, one for each dataset, partitioned by tenant.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FluvioConfig {
    /// Where the cluster is: `host:port` of the SC's public door (9003, as a rule). The SPUs must be reachable by the
    /// addresses under which they are registered. Without TLS: for a network that can be trusted.
    pub address: String,
    /// What the names of the topics begin with: `<prefix>-security-events`, and so on. Of a-z, 0-9 and `-`.
    pub prefix: String,
    /// The datasets that are written: of `security_events`, `cost_events`, `alerts`, `dead_letters` and `changes`.
    pub datasets: Vec<String>,
    /// Partitions of a topic that is made. One that is there keeps its own. Rows of a tenant are in one of them, in order.
    #[schemars(range(min = 1, max = 1_000))]
    pub partitions: u32,
    /// Copies of each partition of a topic that is made, each on an SPU of its own.
    #[schemars(range(min = 1, max = 16))]
    pub replicas: u32,
    /// Who has a record when it counts as delivered: `leader`, or all `replicas`. Fluvio does not sync files, so that each has
    /// it in the memory of its machine.
    pub acknowledged_by: AcknowledgedBy,
    /// How long a topic that is made keeps records, in seconds, read or not.
    #[schemars(range(min = 60, max = 315_360_000))]
    pub retention_s: u32,
    /// Bytes that each partition of a topic that is made keeps, about: the oldest go first.
    #[schemars(range(min = 33_554_432))]
    pub partition_bytes_max: u64,
    /// Bytes of a segment of a topic that is made. Consumers must fetch more than that at once (`max_bytes`), or the client library
    /// skips records without an error. 1000000 is below what a client fetches by default, for consumers that cannot be
    /// configured; it makes many files.
    #[schemars(range(min = 1_000_000, max = 31_457_280))]
    pub segment_bytes: u32,
    /// How batches of records are compressed: `none`, `lz4`, `zstd`, `snappy` or `gzip`.
    pub compression: BatchCompression,
    /// Bytes of the JSON of one event. A larger one goes to the dead letters.
    #[schemars(range(min = 1024, max = 8_388_608))]
    pub event_bytes_max: usize,
    /// Bytes of records (before compression) that are sent as one batch, but for a single larger one.
    #[schemars(range(min = 1024, max = 1_048_576))]
    pub batch_bytes_max: usize,
    /// Bytes of records that are on their way to a topic at once, and not yet acknowledged. As much may come again, and out of
    /// its order, after a failure.
    #[schemars(range(min = 65_536, max = 16_777_216))]
    pub in_flight_bytes_max: usize,
    /// For a connection, or a topic, to be made, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub connect_ms_max: u64,
    /// For the cluster to acknowledge what it was sent, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub reply_ms_max: u64,
}

impl Default for FluvioConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            prefix: "tidegate".to_owned(),
            datasets: exported_by_default(),
            partitions: 4,
            replicas: 1,
            acknowledged_by: AcknowledgedBy::Leader,
            retention_s: 7 * 86_400,
            partition_bytes_max: 10 << 30,
            segment_bytes: SEGMENT_BYTES,
            compression: BatchCompression::Lz4,
            event_bytes_max: 1 << 20,
            batch_bytes_max: 256 << 10,
            in_flight_bytes_max: 2 << 20,
            connect_ms_max: 5_000,
            reply_ms_max: 5_000,
        }
    }
}

impl FluvioConfig {
    /// Refuses values with which nothing could work.
    ///
    /// # Errors
    /// [`SinksError::Invalid`], which says what to write.
    pub fn check(&self) -> Result<(), SinksError> {
        check_address(&self.address)?;
        check_prefix(&self.prefix)?;
        let batch_bytes = self.batch_bytes();
        if batch_bytes > self.segment_bytes as usize || self.segment_bytes >= FETCH_BYTES {
            return Err(SinksError::Invalid(format!(
                "segment_bytes must be at least {batch_bytes}, which a batch may have by event_bytes_max and batch_bytes_max, and \
                 less than {FETCH_BYTES}"
            )));
        }
        self.exported().map(drop)
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

    /// What a batch may have.
    fn batch_bytes(&self) -> usize {
        self.event_bytes_max + self.batch_bytes_max + KEY_BYTES_MAX
    }

    /// A topic as it is made.
    pub(super) fn shape(&self) -> TopicShape {
        TopicShape {
            partitions: self.partitions,
            replicas: self.replicas,
            retention_s: Some(self.retention_s),
            partition_bytes_max: Some(self.partition_bytes_max),
            segment_bytes: self.segment_bytes,
            batch_bytes_max: self.batch_bytes(),
        }
    }

    /// The datasets that are written.
    pub(super) fn exported(&self) -> Result<Vec<Dataset>, SinksError> {
        exported(&self.datasets)
    }

    /// The topic of a dataset.
    pub(super) fn topic(&self, dataset: Dataset) -> String {
        format!("{}-{}", self.prefix, dataset.table_name().replace('_', "-"))
    }
}

/// Refuses what is no `host:port`.
pub(super) fn check_address(address: &str) -> Result<(), SinksError> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(()),
        _ if address.is_empty() => Err(SinksError::Invalid("address is missing: host:9003 of the SC".to_owned())),
        _ => Err(SinksError::Invalid(format!("the address {address:?} is not host:port, for example fluvio-sc:9003"))),
    }
}

/// Refuses what names of topics cannot begin with.
pub(super) fn check_prefix(prefix: &str) -> Result<(), SinksError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if prefix.is_empty() || prefix.len() > 40 || prefix.starts_with('-') || !prefix.bytes().all(plain) {
        return Err(SinksError::Invalid(format!(
            "the prefix {prefix:?} must be 1 to 40 of a-z, 0-9 and -, not - first"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        let good = FluvioConfig { address: "sc:9003".to_owned(), ..FluvioConfig::default() };
        good.check().expect("works");
        assert_eq!(good.topic(Dataset::SecurityEvents), "tidegate-security-events");
        let with = |change: fn(&mut FluvioConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.check().expect_err("refused").to_string()
        };
        let refusals = [
            (with(|config| config.address.clear()), "address is missing"),
            (with(|config| config.address = "sc".to_owned()), "host:port"),
            (with(|config| config.address = ":9003".to_owned()), "host:port"),
            (with(|config| config.address = "sc:99999".to_owned()), "host:port"),
            (with(|config| config.prefix = "Tide".to_owned()), "prefix"),
            (with(|config| config.prefix.clear()), "prefix"),
            (with(|config| config.segment_bytes = 1_000_000), "segment_bytes must be at least"),
            (with(|config| config.segment_bytes = 32 << 20), "less than"),
            (with(|config| config.datasets = vec!["events".to_owned()]), "no dataset"),
        ];
        for (said, expected) in refusals {
            assert!(said.contains(expected), "{said}");
        }
    }
}
