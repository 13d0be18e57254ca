//! The command line. A flag whose id is the dotted path of a configuration key sets that key: its value, its environment
//! twin and its default are read and documented by [`crate::config`], so that no flag can be without them.

use clap::{
    ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint, parser::ValueSource,
};
use clap_complete::Shell;
use serde_json::Value;

use super::rules::args::RulesCommand;
use crate::config::Sources;
use crate::config::env;
use crate::config::keys::{Key, Keys};

/// Takes security and cost events in bulk, makes them durable before it answers, runs Sigma rules while they stream,
/// answers SQL and pushes alerts.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    max_term_width = 110,
    disable_help_subcommand = true,
    after_help = "\
Start:    tidegate demo                 a server with a story in it, for a first look
          tidegate serve                the real thing, on 127.0.0.1:4000, in ./tidegate-data
Exit:     0 done, 1 failed, 2 the command line or the configuration is not valid
Settings: every flag is also an environment variable and a TOML key, see docs/configuration.md"
)]
pub struct Cli {
    /// Read settings from this TOML file [env: TIDEGATE_CONFIG]
    #[arg(long = "config", id = "config", value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    pub config: Option<std::path::PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    #[command(after_help = "Example: tidegate serve --data-dir /var/lib/tidegate --rules /etc/tidegate/rules")]
    Serve(ServeArgs),
    /// Start a server in a temporary folder and tell it a story of attacks and costs
    #[command(after_help = "Example: tidegate demo --seed 42")]
    Demo(DemoArgs),
    /// Check the configuration and the rules without starting anything
    #[command(after_help = "Example: tidegate check --config tidegate.toml --rules ./rules")]
    Check(CheckArgs),
    /// Send a file of events to a server; run again to resume after an interruption
    #[command(after_help = "\
FILE holds NDJSON, a JSON array, {\"Records\":[…]}, {\"events\":[…]}, or FOCUS CSV (cost); plain, gzip or zstd.
Example: tidegate send --source cloudtrail events.ndjson.gz")]
    Send(SendArgs),
    /// Ask a server in SQL, once or interactively
    #[command(after_help = "\
Without QUERY, statements are read from the terminal, or from standard input.
Example: tidegate sql \"SELECT source, count(*) AS n FROM security_events GROUP BY source\"")]
    Sql(SqlArgs),
    /// Follow alerts as they fire
    #[command(after_help = "Example: tidegate tail --level high")]
    Tail(TailArgs),
    /// Look into the log files of a data folder, without changing them
    #[command(after_help = "Example: tidegate log verify --data-dir /var/lib/tidegate")]
    Log {
        /// What to look at.
        #[command(subcommand)]
        command: LogCommand,
    },
    /// Show what the TimescaleDB sink does to a database
    #[command(after_help = "Example: tidegate timescale ddl --extension off | less")]
    Timescale {
        /// What to show.
        #[command(subcommand)]
        command: TimescaleCommand,
    },
    /// Make, list and revoke API keys, whether the server runs or not
    #[command(after_help = "Example: tidegate key create --org acme --role ingest --label 'edge agents'")]
    Key {
        /// What to do with keys.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Write rules: check, test, explain, measure them, and run them over what happened
    #[command(after_help = "Example: tidegate rules check ./rules")]
    Rules {
        /// What to do with rules.
        #[command(subcommand)]
        command: RulesCommand,
    },
    /// Check this machine: disk, limits, clock, ports, folders
    #[command(after_help = "Example: tidegate doctor --data-dir /var/lib/tidegate")]
    Doctor(DoctorArgs),
    /// Print the completion script of a shell
    #[command(after_help = "Example: tidegate completions bash > /etc/bash_completion.d/tidegate")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print a page of the documentation that is made from the program
    #[command(hide = true)]
    Docs {
        /// Which page.
        page: DocsPage,
    },
}

/// A page of the documentation that is made from the program.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum DocsPage {
    /// `docs/configuration.md`.
    Configuration,
    /// `docs/metrics.md`.
    Metrics,
}

/// Flags that start a server.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The folder of the server.
    #[command(flatten)]
    pub data_dir: DataDir,
    /// One of many machines, with a log in Fluvio: all (default: one machine), ingest, worker, query
    #[arg(long = "role", id = "role", value_name = "ROLE")]
    pub role: Option<String>,
    /// Listen here
    #[arg(long = "listen", id = "listen", value_name = "ADDR")]
    pub listen: Option<String>,
    /// A folder of Sigma rules, beside the starter pack
    #[arg(long = "rules", id = "rules", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub rules: Option<String>,
    /// Log lines for people or for programs: human, json
    #[arg(long = "log-format", id = "log.format", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log: error, warn, info, debug, or by module (info,tidegate_ingest=debug)
    #[arg(long = "log-level", id = "log.level", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// Where the server keeps its files.
#[derive(Debug, Args)]
pub struct DataDir {
    /// The folder of the server
    #[arg(long = "data-dir", id = "data_dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<String>,
}

/// Where rules of one's own are.
#[derive(Debug, Args)]
pub struct RuleFolder {
    /// A folder of Sigma rules
    #[arg(long = "rules", id = "rules", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub rules: Option<String>,
}

/// How to reach a server.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The server
    #[arg(long = "url", id = "client.url", value_name = "URL", value_hint = ValueHint::Url)]
    pub url: Option<String>,
    /// The API key (better in the environment: flags can be seen by others)
    #[arg(long = "key", id = "client.key", value_name = "KEY")]
    pub key: Option<String>,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Listen here
    #[arg(long = "listen", id = "listen", value_name = "ADDR")]
    pub listen: Option<String>,
    /// The same seed tells the same story
    #[arg(long = "seed", id = "demo.seed", value_name = "N")]
    pub seed: Option<String>,
    /// How many events
    #[arg(long = "events", id = "demo.events", value_name = "N")]
    pub events: Option<String>,
    /// Tell the story without pauses
    #[arg(long = "fast", id = "demo.fast")]
    pub fast: bool,
    /// Stop after the answers instead of leaving the server up
    #[arg(long = "exit", id = "demo.exit")]
    pub exit: bool,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The rules.
    #[command(flatten)]
    pub rules: RuleFolder,
}

/// Flags of `send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// The file, or - for standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: std::path::PathBuf,
    /// The server.
    #[command(flatten)]
    pub client: ClientArgs,
    /// The table: security_events, cost_events (default: cost for CSV, else security)
    #[arg(long = "dataset", id = "send.dataset", value_name = "TABLE")]
    pub dataset: Option<String>,
    /// The kind of record: cloudtrail, windows, … (default: the server finds out)
    #[arg(long = "source", id = "send.source", value_name = "NAME")]
    pub source: Option<String>,
    /// The most events in a request
    #[arg(long = "batch-events", id = "send.batch_events_max", value_name = "N")]
    pub batch_events: Option<String>,
    /// The most bytes in a request
    #[arg(long = "batch-bytes", id = "send.batch_bytes_max", value_name = "BYTES")]
    pub batch_bytes: Option<String>,
    /// Requests under way at the same time
    #[arg(long = "connections", id = "send.connections", value_name = "N")]
    pub connections: Option<String>,
    /// Compress the bodies
    #[arg(long = "zstd", id = "send.zstd")]
    pub zstd: bool,
    /// How long to try again while the server is away or full, in seconds
    #[arg(long = "retry-s", id = "send.retry_s_max", value_name = "SECONDS")]
    pub retry_s: Option<String>,
    /// Where to note the position in the file
    #[arg(long = "state-dir", id = "send.state_dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<String>,
    /// Forget the noted position: send the file from its start
    #[arg(long = "restart", id = "send.restart")]
    pub restart: bool,
}

/// Flags of `sql`.
#[derive(Debug, Args)]
pub struct SqlArgs {
    /// One statement
    #[arg(value_name = "QUERY")]
    pub query: Option<String>,
    /// The server.
    #[command(flatten)]
    pub client: ClientArgs,
    /// How to print rows: table, json, csv
    #[arg(long = "format", id = "sql.format", value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Flags of `tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The server.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Start after this sequence number instead of now; -1 for all alerts there are
    #[arg(long = "after", id = "tail.after", value_name = "SEQ", allow_negative_numbers = true)]
    pub after: Option<String>,
    /// Only this level and above: informational, low, medium, high, critical
    #[arg(long = "level", id = "tail.level", value_name = "LEVEL")]
    pub level: Option<String>,
    /// One line of JSON an alert
    #[arg(long = "json", id = "tail.json")]
    pub json: bool,
}

/// What `timescale` can do.
#[derive(Debug, Subcommand)]
pub enum TimescaleCommand {
    /// Print all statements that make the schema, without connecting to a database
    #[command(after_help = "Example: tidegate timescale ddl --schema tidegate")]
    Ddl(TimescaleArgs),
}

/// Flags of `timescale ddl`.
#[derive(Debug, Args)]
pub struct TimescaleArgs {
    /// The schema that holds all tables
    #[arg(long = "schema", id = "sinks.timescale.schema", value_name = "NAME")]
    pub schema: Option<String>,
    /// With the extension (auto), or for plain PostgreSQL (off)
    #[arg(long = "extension", id = "sinks.timescale.extension", value_name = "USE")]
    pub extension: Option<String>,
}

/// What `log` can do.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Read every frame, check every checksum, tell what is damaged
    #[command(after_help = "Example: tidegate log verify --data-dir /var/lib/tidegate")]
    Verify(LogArgs),
    /// List the segments
    #[command(after_help = "Example: tidegate log ls --log output")]
    Ls(LogArgs),
    /// Print rows as JSON lines
    #[command(after_help = "Example: tidegate log dump --from 1000 --rows 10")]
    Dump(LogDumpArgs),
}

/// Flags of every `log` command.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The folder.
    #[command(flatten)]
    pub data_dir: DataDir,
    /// Which log: ingest (events), output (alerts)
    #[arg(long = "log", id = "log_files.which", value_name = "LOG")]
    pub which: Option<String>,
}

/// Flags of `log dump`.
#[derive(Debug, Args)]
pub struct LogDumpArgs {
    /// Where.
    #[command(flatten)]
    pub log: LogArgs,
    /// The first offset
    #[arg(long = "from", id = "log_files.from", value_name = "OFFSET")]
    pub from: Option<String>,
    /// The most rows; 0 for all
    #[arg(long = "rows", id = "log_files.rows_max", value_name = "N")]
    pub rows: Option<String>,
}

/// What `key` can do.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it, once
    #[command(after_help = "Example: tidegate key create --org acme --role ingest --label 'edge agents'")]
    Create(KeyCreateArgs),
    /// List the keys (never their secrets)
    #[command(after_help = "Example: tidegate key list --data-dir /var/lib/tidegate")]
    List(DataDir),
    /// Revoke a key: it stops working at once
    #[command(after_help = "Example: tidegate key revoke 3f9a1c0e")]
    Revoke(KeyRevokeArgs),
}

/// Flags of `key create`.
#[derive(Debug, Args)]
pub struct KeyCreateArgs {
    /// The folder.
    #[command(flatten)]
    pub data_dir: DataDir,
    /// The tenant
    #[arg(long = "org", id = "key.org", value_name = "ORG")]
    pub org: Option<String>,
    /// What it allows: ingest, read, admin
    #[arg(long = "role", id = "key.role", value_name = "ROLE")]
    pub role: Option<String>,
    /// What it is for
    #[arg(long = "label", id = "key.label", value_name = "TEXT")]
    pub label: Option<String>,
}

/// Flags of `key revoke`.
#[derive(Debug, Args)]
pub struct KeyRevokeArgs {
    /// The public id of the key, as `key list` shows it
    #[arg(value_name = "KEY_ID")]
    pub key_id: String,
    /// The folder.
    #[command(flatten)]
    pub data_dir: DataDir,
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The folder.
    #[command(flatten)]
    pub data_dir: DataDir,
    /// Listen here
    #[arg(long = "listen", id = "listen", value_name = "ADDR")]
    pub listen: Option<String>,
    /// The rules.
    #[command(flatten)]
    pub rules: RuleFolder,
    /// How many times to time the disk
    #[arg(long = "fsyncs", id = "doctor.fsyncs", value_name = "N")]
    pub fsyncs: Option<String>,
}

/// The command with the environment name and the default of each flag in its help.
pub fn command() -> clap::Command {
    let keys = Keys::of_config();
    document(Cli::command(), &keys)
}

fn document(command: clap::Command, keys: &Keys) -> clap::Command {
    let command = command.mut_args(|arg| match keys.get(arg.get_id().as_str()) {
        Some(key) => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} {}", twin(key)))
        }
        None => arg,
    });
    command.mut_subcommands(|subcommand| document(subcommand, keys))
}

fn twin(key: &Key) -> String {
    let default = match &key.default {
        Value::Null | Value::Bool(_) => String::new(),
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => format!(" [default: {text}]"),
        other => format!(" [default: {other}]"),
    };
    format!("[env: {}]{default}", key.env_name())
}

/// A parsed command line: the command, and the layers of the configuration.
#[derive(Debug)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// What was written, for [`crate::config::load`].
    pub sources: Sources,
}

/// Parses the arguments, the program's name first.
///
/// # Errors
/// What clap says: also `--help` and `--version` arrive as one.
pub fn parse(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Invocation, clap::Error> {
    let command = command();
    let matches = command.clone().try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let mut flags = Vec::new();
    collect_flags(&command, &matches, &mut flags);
    let file = cli.config.or_else(env::config_file);
    Ok(Invocation { command: cli.command, sources: Sources { file, env: env::variables().collect(), flags } })
}

/// A TOML string that is this text.
fn toml_string(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn collect_flags(command: &clap::Command, matches: &ArgMatches, flags: &mut Vec<(String, String, String)>) {
    for arg in command.get_arguments().filter(|arg| arg.get_id() != "config") {
        let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
        if matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine) {
            let texts: Vec<String> =
                matches.get_raw(id).into_iter().flatten().map(|text| text.to_string_lossy().into_owned()).collect();
            let text = if matches!(arg.get_action(), ArgAction::Append) {
                // As the list that stands in the configuration file.
                format!("[{}]", texts.iter().map(|text| toml_string(text)).collect::<Vec<_>>().join(","))
            } else {
                texts.last().cloned().unwrap_or_else(|| "true".to_owned())
            };
            flags.push((id.to_owned(), long.to_owned(), text));
        }
    }
    if let Some((name, matches)) = matches.subcommand()
        && let Some(subcommand) = command.find_subcommand(name)
    {
        collect_flags(subcommand, matches, flags);
    }
}
