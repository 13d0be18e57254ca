//! A case: what is sent, how, to a server with which settings and on how much of the machine, and what must come of it.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// One `cases/<name>/case.toml`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// One sentence for people.
    pub what: String,
    /// The whole run ends after this, whatever happens.
    #[serde(default = "run_seconds_max")]
    pub run_seconds_max: u64,
    /// The events.
    #[serde(default)]
    pub events: Events,
    /// How they are sent.
    #[serde(default)]
    pub load: Load,
    /// Events that raise alerts, sent beside the load.
    pub alerts: Option<Alerts>,
    /// A start after the load, on what it left.
    pub restart: Option<Restart>,
    /// Followers of the alert feed beside the load.
    #[serde(default)]
    pub followers: usize,
    /// Rules that are in force: a folder beside the case file, or a `.tar.gz` in the folder that `--samples` names.
    pub rules: Option<String>,
    /// The server's settings, as in its configuration file.
    #[serde(default)]
    pub server: toml::Table,
    /// How much of the machine the server gets.
    #[serde(default)]
    pub allotment: Allotment,
    /// What must come of it.
    #[serde(default)]
    pub goals: Goals,
}

fn run_seconds_max() -> u64 {
    300
}

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The reference event: a cloud-audit record of about 516 bytes, 19 fields and a nested object.
    Reference,
    /// CloudTrail records of the demo's story.
    Cloudtrail,
    /// Windows events of the demo's story. They bring no id.
    Windows,
    /// About 100 bytes.
    Small,
    /// About 8 kB: the reference event with a long message and a stack.
    Large,
    /// Ten fields out of `distinct_fields`, about 250 bytes.
    Fields,
}

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One event a line.
    Ndjson,
    /// A JSON array.
    Array,
    /// An Arrow IPC stream.
    Arrow,
}

/// How a body is compressed. Compressed bodies are all made before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// gzip, level 6.
    Gzip,
    /// zstd, level 3.
    Zstd,
}

/// The events.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// What they are.
    pub kind: Kind,
    /// The first event's number, or the story's seed.
    pub seed: u64,
    /// Events of a request.
    pub per_request: usize,
    /// What the events are sent as (`?source=`), where it is not what their kind says.
    pub source: Option<String>,
    /// So many distinct events are made before the run; then they come again, with new ids and times.
    pub corpus: usize,
    /// The fields that all events of kind `fields` have between them.
    pub distinct_fields: usize,
    /// Whether the events carry an id that the server de-duplicates by (`_id`) where their kind would not.
    pub own_ids: bool,
    /// The form of a body.
    pub format: Format,
    /// Its compression.
    pub encoding: Encoding,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kind: Kind::Reference,
            seed: 7,
            per_request: 2_000,
            source: None,
            corpus: 65_536,
            distinct_fields: 10,
            own_ids: false,
            format: Format::Ndjson,
            encoding: Encoding::Identity,
        }
    }
}

/// How the events are sent.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Tenants, of which each request is the next one's. With 1, there are no keys.
    pub tenants: usize,
    /// `disk` or `memory`.
    pub ack: String,
    /// Requests before the measured ones.
    pub warmup_requests: u64,
    /// Requests that are measured. 0 sends nothing: then `seconds_max` is how long the idle server is watched.
    pub requests: u64,
    /// No request is begun after this time.
    pub seconds_max: u64,
    /// Requests a second, at intended times (open loop). Without it each connection sends when it got its answer (closed loop).
    pub requests_per_s: Option<f64>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            connections: 4,
            tenants: 1,
            ack: "disk".to_owned(),
            warmup_requests: 50,
            requests: 1_000,
            seconds_max: 60,
            requests_per_s: None,
        }
    }
}

/// Events that raise an alert each.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Alerts {
    /// Time between two of them.
    pub every_ms: u64,
    /// How many.
    pub count: u32,
}

/// A start of a server that was killed, of which no page is left in memory.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Whether the checkpoints are removed, so that the run loop processes the whole log again.
    pub from_first_row: bool,
}

/// How much of the machine the server gets.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allotment {
    /// The server runs on so many cores, the driver on the others where there are any. 0 leaves both on all.
    pub cores: usize,
    /// What the peak of the server's resident memory is checked against. It is not enforced.
    pub memory_mib: u64,
}

impl Default for Allotment {
    fn default() -> Self {
        Self { cores: 0, memory_mib: 512 }
    }
}

/// Bounds of the result. What is left out is not checked; that nothing is lost is checked always.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Goals {
    /// Events that are stored, by CPU second of the server.
    pub events_per_cpu_s_min: Option<f64>,
    /// The median of request latencies.
    pub p50_ms_max: Option<f64>,
    /// Their 99th percentile.
    pub p99_ms_max: Option<f64>,
    /// The 99th percentile from the POST of an event to the frame of its alert.
    pub alert_p99_ms_max: Option<f64>,
    /// Bytes of the Parquet store for each event.
    pub store_bytes_per_event_max: Option<f64>,
    /// CPU seconds of an idle server for each second.
    pub idle_cpu_share_max: Option<f64>,
    /// Resident memory of an idle server.
    pub idle_mib_max: Option<f64>,
    /// From the start of the process to the answer to the first request, on a log that is there.
    pub accepts_s_max: Option<f64>,
    /// How fast that log is processed again.
    pub replay_mb_per_s_min: Option<f64>,
}

impl Case {
    /// Reads and checks a case.
    ///
    /// # Errors
    /// When the file cannot be read, does not parse, or asks for what cannot be.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let case: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        case.check().with_context(|| format!("in {}", path.display()))?;
        Ok(case)
    }

    /// Whether it asks for what can be.
    ///
    /// # Errors
    /// For the first key that it cannot have so.
    pub fn check(&self) -> anyhow::Result<()> {
        let (events, load) = (&self.events, &self.load);
        ensure!((1..=1_000_000).contains(&events.per_request), "events.per_request is from 1 to 1000000");
        ensure!((1..=1_000_000).contains(&events.corpus), "events.corpus is from 1 to 1000000");
        ensure!((10..=100_000).contains(&events.distinct_fields), "events.distinct_fields is from 10 to 100000");
        let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        ensure!(
            events.source.as_ref().is_none_or(|source| source.chars().all(plain)),
            "events.source has letters, digits, '.', '_' and '-'"
        );
        ensure!(self.followers <= 1_000, "followers is from 0 to 1000");
        ensure!((1..=10_000).contains(&load.connections), "load.connections is from 1 to 10000");
        ensure!((1..=100_000).contains(&load.tenants), "load.tenants is from 1 to 100000");
        ensure!(load.tenants == 1 || self.alerts.is_none(), "alerts are of one tenant");
        ensure!((1..=3_600).contains(&load.seconds_max), "load.seconds_max is from 1 to 3600");
        ensure!((1..=7_200).contains(&self.run_seconds_max), "run_seconds_max is from 1 to 7200");
        ensure!(matches!(load.ack.as_str(), "disk" | "memory"), "load.ack is disk or memory");
        ensure!(load.requests_per_s.is_none_or(|rate| rate > 0.0), "load.requests_per_s is above 0");
        ensure!(
            load.requests.saturating_add(load.warmup_requests) < u64::from(u32::MAX),
            "ids of events have room for 2^32 requests"
        );
        let ready = events.encoding != Encoding::Identity;
        let bodies = load.requests.saturating_add(load.warmup_requests);
        ensure!(!ready || bodies <= 20_000, "compressed bodies are made before the run: at most 20000 requests");
        ensure!(
            events.format != Format::Arrow || events.kind == Kind::Reference,
            "Arrow bodies are made of reference events"
        );
        if let Some(alerts) = &self.alerts {
            ensure!((1..=60_000).contains(&alerts.every_ms), "alerts.every_ms is from 1 to 60000");
            ensure!((1..=100_000).contains(&alerts.count), "alerts.count is from 1 to 100000");
        }
        Ok(())
    }

    /// The server's settings as environment variables.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        flatten("TIDEGATE", "_", &self.server, &mut variables);
        variables
    }
}

/// `{query: {query_ms_max: 5}}` is `TIDEGATE_QUERY__QUERY_MS_MAX=5`.
fn flatten(prefix: &str, joint: &str, table: &toml::Table, into: &mut Vec<(String, String)>) {
    for (name, value) in table {
        let name = format!("{prefix}{joint}{}", name.to_ascii_uppercase());
        match value {
            toml::Value::Table(inner) => flatten(&name, "__", inner, into),
            toml::Value::String(text) => into.push((name, text.clone())),
            other => into.push((name, other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_in_the_folder_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let entries = std::fs::read_dir(folder).expect("the cases").map(|entry| entry.expect("a case").path());
        let cases: Vec<_> = entries.map(|path| Case::read(&path.join("case.toml"))).collect();
        assert!(cases.len() >= 9, "{} cases", cases.len());
        for case in cases {
            case.unwrap_or_else(|error| panic!("{error:#}"));
        }
    }

    #[test]
    fn settings_become_the_variables_of_the_configuration_page() {
        let text =
            "what = ''\n[server]\nstarter_pack = false\nlisten = 'x'\nquery.query_ms_max = 5\nfeed.origins = ['a']";
        let case: Case = toml::from_str(text).expect("a case");
        let mut variables = case.environment();
        variables.sort();
        let wanted = [
            ("TIDEGATE_FEED__ORIGINS", "[\"a\"]"),
            ("TIDEGATE_LISTEN", "x"),
            ("TIDEGATE_QUERY__QUERY_MS_MAX", "5"),
            ("TIDEGATE_STARTER_PACK", "false"),
        ];
        assert_eq!(variables, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for wrong in
            ["[load]\nack = 'hope'", "[events]\nper_request = 0", "[events]\nformat = 'arrow'\nkind = 'windows'"]
        {
            let case: Case = toml::from_str(&format!("what = ''\n{wrong}")).expect("a case");
            assert!(case.check().is_err(), "{wrong}");
        }
        assert!(toml::from_str::<Case>("what = ''\nrequest = 1").is_err());
    }
}
