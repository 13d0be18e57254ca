//! The bounds of the rules API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_rules::RulesConfig;

/// Bounds of `/v2/threat-detection`: rules that are made over the API, and rules that are tried on events.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThreatDetectionConfig {
    /// The most rule files that one tenant may make over the API, and the most rules that it may turn off.
    #[schemars(range(min = 0, max = 100_000))]
    pub tenant_rules_max: usize,
    /// Changes of rules (made, replaced, removed, turned on or off) that one tenant may make in a minute, on average; the next one
    /// is answered with 429 and says when to try again.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub tenant_changes_per_minute: u32,
    /// Changes of rules that one tenant may make at once after a while without any.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub tenant_changes_burst: u32,
    /// Rules that are compiled for requests at the same time; the next request waits.
    #[schemars(range(min = 1, max = 64))]
    pub compilations_max: usize,
    /// Analyses that run at the same time; the next one is answered with 429.
    #[schemars(range(min = 1, max = 256))]
    pub analyses_max: usize,
    /// Analyses of one tenant that run at the same time; the next one is answered with 429.
    #[schemars(range(min = 1, max = 256))]
    pub tenant_analyses_max: usize,
    /// The most memory in bytes of all groups of correlations in one analysis; beyond it those used longest ago are forgotten.
    #[schemars(range(min = 65_536))]
    pub analysis_correlation_bytes_max: usize,
    /// The most groups of one correlation in one analysis; beyond it the one used longest ago is forgotten.
    #[schemars(range(min = 1))]
    pub analysis_correlation_groups_max: usize,
    /// The most memory in bytes of groups whose matches are counted in one analysis; beyond it the oldest are raised early.
    #[schemars(range(min = 0))]
    pub analysis_suppress_bytes_max: usize,
    /// The most distinct values that one analysis remembers.
    #[schemars(range(min = 1))]
    pub analysis_memo_values_max: usize,
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

impl ThreatDetectionConfig {
    /// The bounds of rules in an analysis: those of the stream, but for the memory that one may take.
    pub fn of_analysis(&self, rules: &RulesConfig) -> RulesConfig {
        RulesConfig {
            correlation_bytes_max: rules.correlation_bytes_max.min(self.analysis_correlation_bytes_max),
            correlation_groups_max: rules.correlation_groups_max.min(self.analysis_correlation_groups_max),
            suppress_bytes_max: rules.suppress_bytes_max.min(self.analysis_suppress_bytes_max),
            memo_values_max: rules.memo_values_max.min(self.analysis_memo_values_max),
            ..rules.clone()
        }
    }
}

impl Default for ThreatDetectionConfig {
    fn default() -> Self {
        Self {
            tenant_rules_max: 1_000,
            tenant_changes_per_minute: 120,
            tenant_changes_burst: 120,
            compilations_max: 2,
            analyses_max: 4,
            tenant_analyses_max: 2,
            analysis_correlation_bytes_max: 32 << 20,
            analysis_correlation_groups_max: 100_000,
            analysis_suppress_bytes_max: 8 << 20,
            analysis_memo_values_max: 50_000,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_analysis_may_take_a_part_of_what_the_stream_may() {
        let (config, stream) = (ThreatDetectionConfig::default(), RulesConfig::default());
        let own = config.of_analysis(&stream);
        let places = config.analyses_max;
        assert!(places * own.correlation_bytes_max <= stream.correlation_bytes_max / 4);
        assert!(places * own.suppress_bytes_max <= stream.suppress_bytes_max);
        assert!(
            own.memo_values_max < stream.memo_values_max && own.correlation_groups_max < stream.correlation_groups_max
        );
        let small = RulesConfig { correlation_bytes_max: 1, ..stream };
        assert_eq!(config.of_analysis(&small).correlation_bytes_max, 1);
    }
}
