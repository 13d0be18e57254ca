//! Configuration: what was written, in a TOML file, the environment and the flags, checked as [`raw`]; then built into one
//! [`Config`] of plain structs, each crate's own nested in it.
//!
//! The types are the only description: the keys, their environment names, the reference page and the checks all come from
//! the schema of [`Config`] (see [`keys`]). Precedence: flag, environment, file, default.

pub mod env;
pub mod keys;
pub mod problem;
pub mod raw;
mod reference;
mod roles;
pub mod rule_tools;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use problem::{ConfigErrors, ConfigProblem, Origin};
pub use reference::reference;
pub use roles::{NodeRole, WorkerConfig};
pub use rule_tools::RuleToolsConfig;

use keys::Keys;
use raw::Raw;

/// All settings of the program.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What this node does: `all` of it, with a log on its own disk; or, with the log in Fluvio, `ingest`, `worker` or `query`.
    /// See docs/many-machines.md.
    pub role: NodeRole,
    /// The folder that holds everything the server keeps: logs, Parquet files, checkpoints. One server a folder.
    pub data_dir: PathBuf,
    /// Where queries find what is no longer in the logs: `parquet`, files of our own (`[parquet]`); or `timescale`, the tables
    /// of `[sinks.timescale]`, and then no Parquet file is written or read. A node with the role `query` has the tables, whatever
    /// this says.
    pub store: StoreKind,
    /// The address the server listens on. While no API key exists, only a loopback address is accepted.
    pub listen: SocketAddr,
    /// A folder of Sigma rules, beside the starter pack that ships with the program. Watched for changes.
    pub rules: Option<PathBuf>,
    /// Whether the rules that ship with the program are in force. Without them, and without a rule folder, nothing is detected.
    pub starter_pack: bool,
    /// What the program tells about itself, on standard error.
    pub log: LogOutputConfig,
    /// How the server stops.
    pub shutdown: ShutdownConfig,
    /// The HTTP listener.
    pub http: tidegate_ingest::http::HttpConfig,
    /// Bodies of events on their way in.
    pub ingest: tidegate_ingest::http::IngestConfig,
    /// The threads that inflate and decode bodies.
    pub batcher: tidegate_ingest::batcher::BatcherConfig,
    /// What is taken of an event.
    pub decode: tidegate_ingest::decode::DecodeConfig,
    /// The ingest log and the output log, each.
    pub log_store: tidegate_pipeline::log::LogConfig,
    /// What people edit: keys and rules.
    pub registry: tidegate_pipeline::registry::RegistryConfig,
    /// The run loop.
    pub run: tidegate_pipeline::run::RunConfig,
    /// The delivery to each sink.
    pub delivery: tidegate_pipeline::delivery::DeliveryConfig,
    /// Sigma rules.
    pub sigma: tidegate_rules::RulesConfig,
    /// Rules over the API.
    pub threat_detection: crate::serve::threat_detection::ThreatDetectionConfig,
    /// The Parquet store.
    pub parquet: tidegate_sinks::parquet::ParquetConfig,
    /// How long the Parquet store keeps rows.
    pub retention: tidegate_sinks::parquet::RetentionConfig,
    /// Destinations beside the Parquet store. Each is off until one of its keys is set.
    pub sinks: tidegate_sinks::SinksConfig,
    /// The log of many machines, for nodes of the roles `ingest`, `worker` and `query`.
    pub fluvio: tidegate_sinks::fluvio::FluvioLogConfig,
    /// A node with the role `worker`.
    pub worker: WorkerConfig,
    /// Queries.
    pub query: tidegate_query::QueryConfig,
    /// The alert feed.
    pub feed: tidegate_sinks::feed::FeedConfig,
    /// How the commands that talk to a server reach it.
    pub client: ClientConfig,
    /// The command `send`.
    pub send: SendConfig,
    /// The command `sql`.
    pub sql: SqlConfig,
    /// The command `tail`.
    pub tail: TailConfig,
    /// The command `demo`.
    pub demo: DemoConfig,
    /// The command `key`.
    pub key: KeyConfig,
    /// The command `log`.
    pub log_files: LogFilesConfig,
    /// The command `doctor`.
    pub doctor: DoctorConfig,
    /// The commands `rules …`, for the people who write rules.
    pub rule_tools: RuleToolsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: NodeRole::All,
            data_dir: PathBuf::from("./tidegate-data"),
            store: StoreKind::Parquet,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)),
            rules: None,
            starter_pack: true,
            log: LogOutputConfig::default(),
            shutdown: ShutdownConfig::default(),
            http: Default::default(),
            ingest: Default::default(),
            batcher: Default::default(),
            decode: Default::default(),
            log_store: Default::default(),
            registry: Default::default(),
            run: Default::default(),
            delivery: Default::default(),
            sigma: Default::default(),
            threat_detection: Default::default(),
            parquet: Default::default(),
            retention: Default::default(),
            sinks: Default::default(),
            fluvio: Default::default(),
            worker: WorkerConfig::default(),
            query: Default::default(),
            feed: Default::default(),
            client: ClientConfig::default(),
            send: SendConfig::default(),
            sql: SqlConfig::default(),
            tail: TailConfig::default(),
            demo: DemoConfig::default(),
            key: KeyConfig::default(),
            log_files: LogFilesConfig::default(),
            doctor: DoctorConfig::default(),
            rule_tools: RuleToolsConfig::default(),
        }
    }
}

/// Where queries find what is no longer in the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Parquet files, in a folder or an object store.
    Parquet,
    /// The tables of the TimescaleDB sink.
    Timescale,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What the program tells about itself, on standard error.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogOutputConfig {
    /// Lines for people or JSON objects.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives by module (`info,tidegate_ingest=debug`).
    pub level: String,
}

impl Default for LogOutputConfig {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: "info".to_owned() }
    }
}

/// How the server stops.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// After SIGTERM, requests under way and buffered rows get this long, in milliseconds.
    #[schemars(range(min = 0, max = 600_000))]
    pub drain_ms_max: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { drain_ms_max: 10_000 }
    }
}

/// How the commands that talk to a server reach it.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// The server's URL. `http` only: TLS ends at a proxy in front of the server.
    pub url: String,
    /// The API key. In a file or in the environment rather than as a flag, which other users of the machine can see.
    pub key: Option<String>,
    /// How long a request may take, in milliseconds.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_ms: u64,
    /// The largest reply that is held in memory, in bytes.
    #[schemars(range(min = 1024))]
    pub reply_bytes_max: u64,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:4000".to_owned(),
            key: None,
            timeout_ms: 60_000,
            reply_bytes_max: 256 * 1024 * 1024,
        }
    }
}

/// The command `send`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SendConfig {
    /// The table to send to: `security_events` or `cost_events`. By default cost for CSV, security for JSON.
    pub dataset: Option<String>,
    /// The kind of record (`cloudtrail`, `windows`, …). By default the server finds it out.
    pub source: Option<String>,
    /// The most events in a request.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch_events_max: usize,
    /// The most bytes in a request, before compression. The server's bound `ingest.body_bytes_max` must be larger.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub batch_bytes_max: usize,
    /// The largest single event, in bytes.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub event_bytes_max: usize,
    /// Requests under way at the same time.
    #[schemars(range(min = 1, max = 256))]
    pub connections: usize,
    /// Whether bodies are compressed with zstd: worth it over a slow network.
    pub zstd: bool,
    /// How long a batch is tried again while the server is away or full, in seconds.
    #[schemars(range(min = 0, max = 604_800))]
    pub retry_s_max: u64,
    /// Where the position in an interrupted file is noted. By default `$XDG_STATE_HOME/tidegate`.
    pub state_dir: Option<PathBuf>,
    /// Whether to forget the noted position and send the file from its start.
    pub restart: bool,
}

impl Default for SendConfig {
    fn default() -> Self {
        Self {
            dataset: None,
            source: None,
            batch_events_max: 5_000,
            batch_bytes_max: 4 * 1024 * 1024,
            event_bytes_max: 16 * 1024 * 1024,
            connections: 4,
            zstd: false,
            retry_s_max: 300,
            state_dir: None,
            restart: false,
        }
    }
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RowFormat {
    /// A table for people.
    Table,
    /// A JSON array of objects.
    Json,
    /// Comma-separated values with a header row.
    Csv,
}

/// The command `sql`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SqlConfig {
    /// How rows are printed.
    pub format: RowFormat,
    /// How many lines the interactive history keeps.
    #[schemars(range(min = 0, max = 100_000))]
    pub history_lines_max: usize,
}

impl Default for SqlConfig {
    fn default() -> Self {
        Self { format: RowFormat::Table, history_lines_max: 1_000 }
    }
}

/// The command `tail`.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TailConfig {
    /// Start after this sequence number instead of now; -1 is before the first alert ever.
    #[schemars(range(min = -1))]
    pub after: Option<i64>,
    /// Only alerts of this level and above: informational, low, medium, high, critical.
    pub level: Option<String>,
    /// Print each alert as one line of JSON.
    pub json: bool,
}

/// The command `demo`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DemoConfig {
    /// How many events the story has.
    #[schemars(range(min = 1_000, max = 100_000_000))]
    pub events: usize,
    /// The seed of the story: the same seed tells the same story.
    pub seed: u64,
    /// Tell it without pauses.
    pub fast: bool,
    /// Stop after the answers instead of leaving the server up.
    pub exit: bool,
}

impl Default for DemoConfig {
    fn default() -> Self {
        Self { events: 20_000, seed: 7, fast: false, exit: false }
    }
}

/// The command `key`.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyConfig {
    /// The tenant that a new key belongs to.
    pub org: Option<String>,
    /// What a new key allows: ingest, read or admin.
    pub role: Option<String>,
    /// A word on what a new key is for.
    pub label: String,
}

/// The command `log`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogFilesConfig {
    /// Which log: `ingest` or `output` (alerts).
    pub which: WhichLog,
    /// The first offset that `log dump` prints.
    pub from: u64,
    /// The most rows that `log dump` prints; 0 for all.
    pub rows_max: u64,
}

impl Default for LogFilesConfig {
    fn default() -> Self {
        Self { which: WhichLog::Ingest, from: 0, rows_max: 100 }
    }
}

/// One of the two logs of a data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhichLog {
    /// Events, changes, and what could not be decoded.
    Ingest,
    /// Alerts, and what could not be delivered.
    Output,
}

/// The command `doctor`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DoctorConfig {
    /// How many times the disk is asked to make a block durable.
    #[schemars(range(min = 1, max = 100_000))]
    pub fsyncs: usize,
}

impl Default for DoctorConfig {
    fn default() -> Self {
        Self { fsyncs: 200 }
    }
}

/// The layers to load.
#[derive(Debug, Default)]
pub struct Sources {
    /// The TOML file, if one was named.
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Flags: (dotted path of the key, long name of the flag, text).
    pub flags: Vec<(String, String, String)>,
}

/// A built configuration, and where each value that is not a default was written.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Origins by dotted path.
    pub origins: BTreeMap<String, Origin>,
}

/// Reads, checks and builds the configuration.
///
/// # Errors
/// All problems of all layers at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let (loaded, problems) = examine(sources);
    if problems.is_empty() { Ok(loaded) } else { Err(ConfigErrors(problems)) }
}

/// The configuration that what is valid makes, and all that is wrong: for those who want to look further.
pub fn examine(sources: &Sources) -> (Loaded, Vec<ConfigProblem>) {
    let keys = Keys::of_config();
    let mut raw = Raw::default();
    if let Some(path) = &sources.file {
        match std::fs::read_to_string(path) {
            Ok(text) => raw.add_file(&keys, path, &text),
            Err(error) => raw.problems.push(unreadable(path, &error)),
        }
    }
    raw.add_env(&keys, sources.env.iter().cloned());
    raw.add_flags(&keys, sources.flags.iter().cloned());
    build(raw)
}

fn unreadable(path: &Path, error: &std::io::Error) -> ConfigProblem {
    let hint = Some("give the path of a TOML file, or leave --config and TIDEGATE_CONFIG away".to_owned());
    ConfigProblem { origin: None, message: format!("cannot read {}: {error}", path.display()), hint }
}

fn build(raw: Raw) -> (Loaded, Vec<ConfigProblem>) {
    let tree = raw.tree();
    let mut problems = raw.problems;
    // Each value was tried alone, so that together they fail only if a type of some crate checks one field against another.
    let config = serde_json::from_value(tree).unwrap_or_else(|error| {
        problems.push(ConfigProblem { origin: None, message: error.to_string(), hint: None });
        Config::default()
    });
    let origins = raw.values.into_iter().map(|(path, (_, origin))| (path, origin)).collect();
    problems.extend(conflicts(&config, &origins));
    (Loaded { config, origins }, problems)
}

/// Values that are fine alone but not together, or not for what they name.
fn conflicts(config: &Config, origins: &BTreeMap<String, Origin>) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut check = |path: &str, wrong: Option<String>, hint: &str| {
        if let Some(message) = wrong {
            let hint = (!hint.is_empty()).then(|| hint.to_owned());
            problems.push(ConfigProblem {
                origin: origins.get(path).cloned(),
                message: format!("{path}: {message}"),
                hint,
            });
        }
    };
    let level = config.tail.level.as_deref().and_then(|text| text.parse::<tidegate_events::Level>().err());
    check("tail.level", level, "");
    let role = config.key.role.as_deref().and_then(|text| text.parse::<tidegate_pipeline::keys::Role>().err());
    check("key.role", role, "");
    let dataset = config.send.dataset.as_deref().filter(|name| !matches!(*name, "security_events" | "cost_events"));
    check("send.dataset", dataset.map(|name| format!("no such table: {name:?}")), "security_events or cost_events");
    let directives = config.log.level.parse::<tracing_subscriber::filter::Targets>().err();
    let dataset =
        config.rule_tools.dataset.as_deref().filter(|name| !matches!(*name, "security_events" | "cost_events"));
    check(
        "rule_tools.dataset",
        dataset.map(|name| format!("no such table: {name:?}")),
        "security_events or cost_events",
    );
    check("log.level", directives.map(|error| error.to_string()), "info, debug, or info,tidegate_ingest=debug");
    let away = config.sinks.timescale.as_ref().is_none_or(|timescale| timescale.url.is_empty());
    let missing = (config.store == StoreKind::Timescale && away).then(|| "timescale needs a database".to_owned());
    check("store", missing, "set sinks.timescale.url, see docs/sinks/timescale.md");
    let timescale = config.sinks.timescale.as_ref().and_then(|timescale| timescale.check().err());
    check("sinks.timescale", timescale.map(|error| error.to_string()), "see docs/sinks/timescale.md");
    let redis = config.sinks.redis.as_ref().and_then(|redis| redis.check().err());
    check("sinks.redis", redis.map(|error| error.to_string()), "see docs/sinks/redis.md");
    let fluvio = config.sinks.fluvio.as_ref().and_then(|fluvio| fluvio.check().err());
    check("sinks.fluvio", fluvio.map(|error| error.to_string()), "see docs/sinks/fluvio.md");
    if config.role != NodeRole::All {
        let fluvio = config.fluvio.check().err();
        check(
            "role",
            fluvio.map(|error| format!("it needs the cluster of `fluvio`: {error}")),
            "see docs/many-machines.md",
        );
    }
    if matches!(config.role, NodeRole::Worker | NodeRole::Query) {
        let missing = config.sinks.timescale.is_none().then(|| "it needs `sinks.timescale`".to_owned());
        check("role", missing, "see docs/many-machines.md");
    }
    problems
}
