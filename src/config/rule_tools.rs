//! Settings of the commands `rules check`, `test`, `explain`, `coverage`, `bench` and `hunt`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The commands `rules …`, for the people who write rules.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleToolsConfig {
    /// Print JSON for programs instead of text for people.
    pub json: bool,
    /// Whether `rules check` fails on warnings too.
    pub deny_warnings: bool,
    /// Whether `rules check` tells of errors only.
    pub errors_only: bool,
    /// Only those test cases whose path holds this text.
    pub filter: Option<String>,
    /// Whether `rules test` writes what was raised as what is expected.
    pub update: bool,
    /// Files of events for `rules explain` and `rules bench`: NDJSON, JSON or CSV; plain, gzip or zstd.
    pub events: Vec<PathBuf>,
    /// The kind of record of these events (`cloudtrail`, `windows`, …). By default it is found out.
    pub source: Option<String>,
    /// The table of these events, and the one that `rules hunt` looks at: `security_events` or `cost_events`. By default cost for
    /// CSV, security for JSON, and for a hunt the one that the rule is for.
    pub dataset: Option<String>,
    /// The most events that are read of these files.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub events_max: usize,
    /// How long `rules bench` runs, in seconds.
    #[schemars(range(min = 1, max = 86_400))]
    pub seconds: u64,
    /// How many rules, predicates or events lists show at most.
    #[schemars(range(min = 1, max = 10_000))]
    pub top: usize,
    /// Where `rules coverage` writes a layer for the ATT&CK Navigator.
    pub navigator: Option<PathBuf>,
    /// The start of the time that `rules hunt` looks at, RFC 3339 or a date.
    pub from: Option<String>,
    /// The end of that time, not included; now when it is left out.
    pub to: Option<String>,
    /// The tenant whose events `rules hunt` looks at; that of the key when it is left out.
    pub org: Option<String>,
}

impl Default for RuleToolsConfig {
    fn default() -> Self {
        Self {
            json: false,
            deny_warnings: false,
            errors_only: false,
            filter: None,
            update: false,
            events: Vec::new(),
            source: None,
            dataset: None,
            events_max: 1_000_000,
            seconds: 5,
            top: 20,
            navigator: None,
            from: None,
            to: None,
            org: None,
        }
    }
}
