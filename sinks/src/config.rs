//! The destinations beside the Parquet store: each is off until its table is in the configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
}
