//! What one of many machines does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What this node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Everything, with a log on its own disk.
    #[default]
    All,
    /// Takes events and writes them to the log in Fluvio.
    Ingest,
    /// Runs the rules over partitions of the log in Fluvio, and writes events and alerts to TimescaleDB.
    Worker,
    /// Answers SQL from TimescaleDB and follows alerts in Fluvio.
    Query,
}

/// A node with the role `worker`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// How long a lease on a partition is good without being renewed, in milliseconds: after about as long others take over what a
    /// worker had that was killed.
    #[schemars(range(min = 1_000, max = 600_000))]
    pub lease_ms: u64,
    /// What this worker is called in the table of leases, beside a random part. By default the name of its machine.
    pub name: Option<String>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self { lease_ms: 10_000, name: None }
    }
}
