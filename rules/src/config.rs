//! The bounds of the rules crate.

use std::collections::BTreeMap;

/// Bounds and choices for loading, compiling and evaluating rules. Every bound is on untrusted input: rule text comes from
/// an API, values come from events.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RulesConfig {
    /// The largest rule file in bytes; a larger one is reported and not loaded.
    pub file_bytes_max: usize,
    /// The most rule files at once; those past it, in the order of their names, are reported and not loaded.
    pub files_max: usize,
    /// The most YAML nodes in one document, after aliases are followed.
    pub document_nodes_max: usize,
    /// The most predicates (field and value) one rule may have.
    pub rule_predicates_max: usize,
    /// The largest compiled program of one regular expression in bytes.
    pub regex_bytes_max: usize,
    /// The most distinct values remembered with the predicates they satisfy, over all fields.
    pub memo_values_max: usize,
    /// The most alerts one rule raises for one tenant in one batch; further matches are counted in the last of them.
    pub alerts_per_batch_max: usize,
    /// The most event ids kept in one alert.
    pub alert_event_ids_max: usize,
    /// The most bytes of one value shown in an alert.
    pub alert_value_bytes_max: usize,
    /// A rule whose own expressions take longer than this per event, in nanoseconds and on average over a window, is parked.
    pub rule_event_ns_max: u64,
    /// Values of `%placeholder%`s for rules that use the `expand` modifier. A rule with a placeholder that has no value here
    /// is reported and not loaded.
    pub placeholders: BTreeMap<String, Vec<String>>,
}

impl Default for RulesConfig {
    fn default() -> Self {
        Self {
            file_bytes_max: 1 << 20,
            files_max: 20_000,
            document_nodes_max: 100_000,
            rule_predicates_max: 20_000,
            regex_bytes_max: 10 << 20,
            memo_values_max: 500_000,
            alerts_per_batch_max: 100,
            alert_event_ids_max: 100,
            alert_value_bytes_max: 1024,
            rule_event_ns_max: 20_000,
            placeholders: BTreeMap::new(),
        }
    }
}
