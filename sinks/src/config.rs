//! The destinations beside the Parquet store: each is off until its table is in the configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fluvio::FluvioConfig;
use crate::redis::RedisConfig;
use crate::timescale::TimescaleConfig;

/// Destinations beside the Parquet store. Each is off until one of its keys is set.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SinksConfig {
    /// TimescaleDB, or PostgreSQL 15 and later without it. On once one of its keys is set; `url` must be.
    pub timescale: Option<TimescaleConfig>,
    /// Redis: streams, shared event ids, alerts of other nodes. On once one of its keys is set; `url` must be.
    pub redis: Option<RedisConfig>,
    /// Fluvio: topics of events and alerts. On once one of its keys is set; `address` must be.
    pub fluvio: Option<FluvioConfig>,
}
