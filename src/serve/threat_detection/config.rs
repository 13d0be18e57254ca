//! The bounds of the rules API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bounds of `/v2/threat-detection`: rules that are made over the API, and rules that are tried on events.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThreatDetectionConfig {
    /// The most rule files that one tenant may make over the API, and the most rules that it may turn off.
    #[schemars(range(min = 0, max = 100_000))]
    pub tenant_rules_max: usize,
    /// Rules that are compiled for requests at the same time; the next request waits.
    #[schemars(range(min = 1, max = 64))]
    pub compilations_max: usize,
    /// Analyses that run at the same time; the next one is answered with 429.
    #[schemars(range(min = 1, max = 256))]
    pub analyses_max: usize,
    /// Analyses of one tenant that run at the same time; the next one is answered with 429.
    #[schemars(range(min = 1, max = 256))]
    pub tenant_analyses_max: usize,
    /// The largest body of an analysis, in bytes.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub analyze_body_bytes_max: usize,
    /// The most events in the body of an analysis.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub analyze_events_max: usize,
    /// The most matches, and the most alerts, that the answer of an analysis of events holds; more are counted.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub analyze_matches_max: usize,
    /// Longest time of an analysis of events, in milliseconds.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub analyze_ms_max: u64,
    /// The most stored rows that an analysis of a time range reads.
    #[schemars(range(min = 1))]
    pub range_rows_max: u64,
    /// The most alerts that an analysis of a time range answers with; it ends there.
    #[schemars(range(min = 1))]
    pub range_alerts_max: u64,
    /// Longest time of an analysis of a time range, in milliseconds.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub range_ms_max: u64,
    /// Rows that are sorted by time at once: what an analysis of a time range holds in memory.
    #[schemars(range(min = 1_000, max = 10_000_000))]
    pub range_slice_rows: u64,
}

impl Default for ThreatDetectionConfig {
    fn default() -> Self {
        Self {
            tenant_rules_max: 1_000,
            compilations_max: 2,
            analyses_max: 4,
            tenant_analyses_max: 2,
            analyze_body_bytes_max: 32 << 20,
            analyze_events_max: 100_000,
            analyze_matches_max: 10_000,
            analyze_ms_max: 30_000,
            range_rows_max: 100_000_000,
            range_alerts_max: 100_000,
            range_ms_max: 600_000,
            range_slice_rows: 200_000,
        }
    }
}
