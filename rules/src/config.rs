//! The bounds of the rules crate.

use std::collections::BTreeMap;

/// Bounds and choices for loading, compiling and evaluating rules. Every bound is on untrusted input: rule text comes from
/// an API, values come from events.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RulesConfig {
    /// The largest rule file in bytes; a larger one is reported and not loaded.
    pub file_bytes_max: usize,
    /// The most rule files for every tenant (rule folder and starter pack); those past it, in the order of their names, are
    /// reported and not loaded.
    pub files_max: usize,
    /// The most rule files of one tenant; those past it are reported and not loaded.
    pub tenant_files_max: usize,
    /// The most bytes that the rule files of one tenant may have together; a change that would exceed it is not taken.
    pub tenant_files_bytes_max: usize,
    /// The most bytes that all rule files may have together; a change that would exceed it is not taken.
    pub files_bytes_max: usize,
    /// The most bytes of the state that a checkpoint keeps of rules; groups of correlations that do not fit, those used longest
    /// ago, are not kept. Less than `run.checkpoint_bytes_max`.
    pub state_bytes_max: usize,
    /// The most YAML nodes in one document, after aliases are followed.
    pub document_nodes_max: usize,
    /// The most predicates (field and value) one rule may have.
    pub rule_predicates_max: usize,
    /// The largest compiled program of one regular expression in bytes.
    pub regex_bytes_max: usize,
    /// The most distinct values remembered with the predicates they satisfy, over all fields.
    pub memo_values_max: usize,
    /// The most alerts one rule raises for one tenant in one second of receive time; one more, at its end, counts the further
    /// ones.
    pub alerts_per_second_max: usize,
    /// How long, in seconds of event time, further matches of a rule for the same group are counted before the next alert
    /// says how many there were. 0: every match is an alert. A rule may say otherwise (`tidegate: {suppress: 1h}`).
    pub suppress_s: u64,
    /// The most groups of one rule and tenant whose matches are counted at once; beyond it the oldest are raised early.
    pub suppress_groups_max: usize,
    /// The most memory in bytes of all groups whose matches are counted; beyond it the oldest are raised early.
    pub suppress_bytes_max: usize,
    /// How far event time of a source stays behind the largest time that it sent: so late an event may come and be counted in every
    /// window it belongs to. A later one is counted in a correlation until event time has passed it by the timespan, or the window
    /// that it belongs to was decided.
    pub lateness_ms_max: u64,
    /// How far an event's time may be ahead of its receive time and still say how far event time has come.
    pub ahead_ms_max: u64,
    /// The most silences that one tenant may have at once.
    pub silences_max: usize,
    /// The most alerts of one tenant whose feedback is kept at hand; beyond it the oldest that silences nothing is let go
    /// (it stays in the tables).
    pub feedback_max: usize,
    /// The longest silence in seconds.
    pub silence_s_max: u64,
    /// The most groups of one correlation and tenant that are remembered at once; beyond it the one used longest ago is
    /// forgotten.
    pub correlation_groups_max: usize,
    /// The most events of one group that are remembered; beyond it the oldest is forgotten. No condition may need more.
    pub correlation_group_events_max: usize,
    /// The most memory in bytes of all groups of all correlations; beyond it those used longest ago are forgotten.
    pub correlation_bytes_max: usize,
    /// The most event ids kept in one alert.
    pub alert_event_ids_max: usize,
    /// The most bytes of one value shown in an alert.
    pub alert_value_bytes_max: usize,
    /// A rule is parked when it takes longer than this per event, in nanoseconds and on average over a window, and more than a
    /// tenth of the time that goes by. What counts is its own: its condition, its regular expressions and patterns, its part
    /// of the search for keywords, and of searches and comparisons that rules share where it has a fifth of them or more.
    pub rule_event_ns_max: u64,
    /// A correlation stops when it takes longer than this for each event that it is given, in nanoseconds and on average over a
    /// window, and more than a tenth of the time that goes by.
    pub correlation_event_ns_max: u64,
    /// Values of `%placeholder%`s for rules that use the `expand` modifier. A rule with a placeholder that has no value here
    /// is reported and not loaded.
    pub placeholders: BTreeMap<String, Vec<String>>,
}

impl Default for RulesConfig {
    fn default() -> Self {
        Self {
            file_bytes_max: 1 << 20,
            files_max: 20_000,
            tenant_files_max: 2_000,
            tenant_files_bytes_max: 16 << 20,
            files_bytes_max: 256 << 20,
            state_bytes_max: 768 << 20,
            document_nodes_max: 100_000,
            rule_predicates_max: 20_000,
            regex_bytes_max: 10 << 20,
            memo_values_max: 500_000,
            alerts_per_second_max: 100,
            suppress_s: 300,
            suppress_groups_max: 10_000,
            suppress_bytes_max: 64 << 20,
            lateness_ms_max: 60_000,
            ahead_ms_max: 600_000,
            silences_max: 1_000,
            feedback_max: 5_000,
            silence_s_max: 366 * 86_400,
            correlation_groups_max: 1_000_000,
            correlation_group_events_max: 10_000,
            correlation_bytes_max: 512 << 20,
            alert_event_ids_max: 100,
            alert_value_bytes_max: 1024,
            rule_event_ns_max: 150,
            correlation_event_ns_max: 5_000,
            placeholders: BTreeMap::new(),
        }
    }
}
