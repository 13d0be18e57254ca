//! The command line of `tidegate rules`. As everywhere, a flag whose id is the path of a configuration key sets that key.

use clap::{Args, Subcommand, ValueHint};

use crate::cli::args::{ClientArgs, DataDir, RuleFolder};

/// What `rules` can do.
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Tell everything that is wrong with rules, and what is odd about them, with the place and a hint
    #[command(after_help = "\
Exit code 1 when a rule does not load. The warnings are explained in docs/rules.md.
Example: tidegate rules check ./rules --deny-warnings")]
    Check(RulesCheckArgs),
    /// Run test cases: events through the real decoder and the real rules, compared with the alerts expected
    #[command(after_help = "\
A case is a folder: rules (*.yml, or a file `rule` with paths), events (events.ndjson, .json, .csv) and expected.json:
  {\"source\": \"cloudtrail\", \"hits\": [0, 2]}                        events (from 0) that an alert stands on
  {\"alerts\": [{\"rule\": \"…\", \"events\": [0, 1], \"count\": 2}]}    each alert, for correlations
Example: tidegate rules test ./rules/tests --filter console_login
         tidegate rules test ./rules/tests/new_case --update")]
    Test(RulesTestArgs),
    /// Show what a rule compiles to: fields, columns, predicates, program; with events also why they match or not
    #[command(after_help = "\
RULE is a file, or the id or title of a rule of the starter pack or of --rules.
Example: tidegate rules explain ./rules/lsass.yml --events windows.ndjson.gz")]
    Explain(RulesExplainArgs),
    /// Count rules by ATT&CK tactic and technique, and write a layer for the ATT&CK Navigator
    #[command(after_help = "\
Without DIR: the starter pack, and the folder of --rules.
Example: tidegate rules coverage ./rules --navigator layer.json")]
    Coverage(RulesCoverageArgs),
    /// Measure rules over your own events: events per CPU second, and which rules cost most
    #[command(after_help = "\
Without --events: the events of the story that `tidegate demo` tells.
Example: tidegate rules bench --rules ./rules --events day.ndjson.zst --seconds 10")]
    Bench(RulesBenchArgs),
    /// Run a rule over the stored history of a server, and print what it would have raised
    #[command(after_help = "\
Nothing is stored and nobody is alerted.
Example: tidegate rules hunt ./rules/lsass.yml --from 2026-11-01 --to 2026-11-08")]
    Hunt(RulesHuntArgs),
}

/// Flags of `rules check`.
#[derive(Debug, Args)]
pub struct RulesCheckArgs {
    /// Rule files, and folders of them
    #[arg(value_name = "PATH", required = true, value_hint = ValueHint::AnyPath)]
    pub paths: Vec<std::path::PathBuf>,
    /// Print JSON: {"errors": […], "warnings": […], "summary": {…}}
    #[arg(long = "json", id = "rule_tools.json")]
    pub json: bool,
    /// Fail on warnings too
    #[arg(long = "deny-warnings", id = "rule_tools.deny_warnings")]
    pub deny_warnings: bool,
    /// Tell of errors only
    #[arg(long = "errors-only", id = "rule_tools.errors_only")]
    pub errors_only: bool,
}

/// Flags of `rules test`.
#[derive(Debug, Args)]
pub struct RulesTestArgs {
    /// Cases, and folders of them
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    pub paths: Vec<std::path::PathBuf>,
    /// Only cases whose path holds this text
    #[arg(long = "filter", id = "rule_tools.filter", value_name = "TEXT")]
    pub filter: Option<String>,
    /// Write what was raised into expected.json of cases that fail or have none
    #[arg(long = "update", id = "rule_tools.update")]
    pub update: bool,
    /// Print one line of JSON a case
    #[arg(long = "json", id = "rule_tools.json")]
    pub json: bool,
}

/// Which events a command reads.
#[derive(Debug, Args)]
pub struct RuleEventsArgs {
    /// Events: NDJSON, a JSON array or CSV; plain, gzip or zstd
    #[arg(long = "events", id = "rule_tools.events", value_name = "FILE", num_args = 1.., value_hint = ValueHint::FilePath)]
    pub events: Vec<String>,
    /// Their kind of record: cloudtrail, windows, … (default: found out)
    #[arg(long = "source", id = "rule_tools.source", value_name = "NAME")]
    pub source: Option<String>,
    /// Their table: security_events, cost_events (default: cost for CSV, else security)
    #[arg(long = "dataset", id = "rule_tools.dataset", value_name = "TABLE")]
    pub dataset: Option<String>,
    /// The most events that are read
    #[arg(long = "events-max", id = "rule_tools.events_max", value_name = "N")]
    pub events_max: Option<String>,
}

/// How a command prints what it found.
#[derive(Debug, Args)]
pub struct RulesPrintArgs {
    /// Print JSON
    #[arg(long = "json", id = "rule_tools.json")]
    pub json: bool,
}

/// Flags of `rules explain`.
#[derive(Debug, Args)]
pub struct RulesExplainArgs {
    /// A file, or the id or title of a rule
    #[arg(value_name = "RULE", value_hint = ValueHint::FilePath)]
    pub rule: String,
    /// The rules.
    #[command(flatten)]
    pub rules: RuleFolder,
    /// The events.
    #[command(flatten)]
    pub events: RuleEventsArgs,
    /// The most events that are told of
    #[arg(long = "top", id = "rule_tools.top", value_name = "N")]
    pub top: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub print: RulesPrintArgs,
}

/// Flags of `rules coverage`.
#[derive(Debug, Args)]
pub struct RulesCoverageArgs {
    /// Rule files, and folders of them
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<std::path::PathBuf>,
    /// A folder of Sigma rules, when no PATH is given
    #[arg(long = "rules", id = "rules", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub rules: Option<String>,
    /// Write a layer for the ATT&CK Navigator here
    #[arg(long = "navigator", id = "rule_tools.navigator", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub navigator: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub print: RulesPrintArgs,
}

/// Flags of `rules bench`.
#[derive(Debug, Args)]
pub struct RulesBenchArgs {
    /// A folder of Sigma rules, instead of the starter pack
    #[arg(long = "rules", id = "rules", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub rules: Option<String>,
    /// The events.
    #[command(flatten)]
    pub events: RuleEventsArgs,
    /// How long to measure, in seconds
    #[arg(long = "seconds", id = "rule_tools.seconds", value_name = "N")]
    pub seconds: Option<String>,
    /// The most rules and predicates that are listed
    #[arg(long = "top", id = "rule_tools.top", value_name = "N")]
    pub top: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub print: RulesPrintArgs,
}

/// Flags of `rules hunt`.
#[derive(Debug, Args)]
pub struct RulesHuntArgs {
    /// A file, the id or title of a rule here, or the id of one of the server's
    #[arg(value_name = "RULE", value_hint = ValueHint::FilePath)]
    pub rule: String,
    /// The rules.
    #[command(flatten)]
    pub rules: RuleFolder,
    /// From this time on: RFC 3339, or a date
    #[arg(long = "from", id = "rule_tools.from", value_name = "TIME")]
    pub from: Option<String>,
    /// Before this time (default: now)
    #[arg(long = "to", id = "rule_tools.to", value_name = "TIME")]
    pub to: Option<String>,
    /// The table: security_events, cost_events (default: the one that the rule is for)
    #[arg(long = "dataset", id = "rule_tools.dataset", value_name = "TABLE")]
    pub dataset: Option<String>,
    /// The tenant whose events are looked at: another than the key's for the operator of the machine only
    #[arg(long = "org", id = "rule_tools.org", value_name = "ORG")]
    pub org: Option<String>,
    /// The folder of a server here: with --org and without a key, it is asked as its operator.
    #[command(flatten)]
    pub data_dir: DataDir,
    /// The server.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print the server's lines of JSON as they come
    #[arg(long = "json", id = "rule_tools.json")]
    pub json: bool,
}
