//! The command line: reads the arguments and the configuration, runs one command, and says with the exit code how it went.

pub mod args;
pub mod check;
pub mod demo;
pub mod doctor;
pub mod feed;
pub mod http;
pub mod key;
pub mod log;
pub mod rules;
pub mod send;
pub mod sql;
pub mod style;
pub mod tail;
pub mod timescale;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::config::{self, Config, ConfigErrors};
use crate::serve::telemetry;
use args::{Command, DocsPage, Invocation};
use style::Style;

/// The parts of the program that a command may start.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Runs the server until it is told to stop.
    pub serve: fn(Config) -> anyhow::Result<()>,
    /// Starts a server in a temporary folder, tells it the story, and leaves it up unless told otherwise.
    pub demo: fn(Config) -> anyhow::Result<()>,
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Good,
    /// It worked, and found something wrong: events that were refused, damaged files, rules that do not compile.
    Bad,
}

/// Everything is as it should be.
const EXIT_DONE: u8 = 0;
/// Something failed, or is not as it should be.
const EXIT_FAILED: u8 = 1;
/// The command line or the configuration is not valid: nothing was started.
const EXIT_USAGE: u8 = 2;

/// Runs the program with these arguments, the program's name first.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>, parts: Parts) -> ExitCode {
    let invocation = match args::parse(args) {
        Ok(invocation) => invocation,
        Err(error) => {
            // What cannot be printed cannot be told either.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    ExitCode::from(exit_code(run(invocation, parts, &mut std::io::stdout())))
}

fn exit_code(result: anyhow::Result<Ending>) -> u8 {
    let error = match result {
        Ok(Ending::Good) => return EXIT_DONE,
        Ok(Ending::Bad) => return EXIT_FAILED,
        Err(error) => error,
    };
    // `tidegate sql … | head` is no failure.
    let closed = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(closed) {
        return EXIT_DONE;
    }
    let _ = writeln!(std::io::stderr(), "tidegate: {error:#}");
    if error.is::<ConfigErrors>() || error.is::<UsageError>() { EXIT_USAGE } else { EXIT_FAILED }
}

/// A command that cannot run as it was written.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

fn run(invocation: Invocation, parts: Parts, out: &mut (dyn Write + Send)) -> anyhow::Result<Ending> {
    match invocation.command {
        Command::Completions { shell } => return print(&completions(shell), out),
        Command::Docs { page: DocsPage::Configuration } => return print(config::reference().as_bytes(), out),
        Command::Docs { page: DocsPage::Metrics } => return print(telemetry::metrics_page().as_bytes(), out),
        _ => {}
    }
    if let Command::Check(_) = invocation.command {
        return check::run(&invocation.sources, out);
    }
    let config = config::load(&invocation.sources)?.config;
    match invocation.command {
        Command::Serve(_) => (parts.serve)(config).map(|()| Ending::Good),
        Command::Demo(_) => (parts.demo)(config).map(|()| Ending::Good),
        Command::Send(args) => send_file(&config, &args.file, out),
        Command::Sql(args) => block_on(sql::run(&config, args.query.as_deref(), out)).map(|()| Ending::Good),
        Command::Tail(_) => block_on(tail::run(&config, Style::of_stdout(), out)).map(|()| Ending::Good),
        Command::Log { command } => log::run(&config, &command, out),
        Command::Timescale { command } => timescale::run(&config, &command, out),
        Command::Key { command } => block_on(key::run(&config, &command, out)),
        Command::Rules { command } => rules::run(&config, &command, Style::of_stdout(), out),
        Command::Doctor(_) => Ok(doctor::run(&config, out)?),
        Command::Check(_) | Command::Completions { .. } | Command::Docs { .. } => Ok(Ending::Good),
    }
}

fn send_file(config: &Config, file: &Path, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let summary = block_on(send::send(config, file, send::progress::Progress::on_stderr))?;
    send::print(&summary, out)?;
    Ok(if summary.outcome.rejected == 0 { Ending::Good } else { Ending::Bad })
}

fn print(text: &[u8], out: &mut dyn Write) -> anyhow::Result<Ending> {
    out.write_all(text)?;
    out.flush()?;
    Ok(Ending::Good)
}

/// The completion script of a shell.
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "tidegate", &mut script);
    script
}

/// Runs a client command. What still blocks afterwards (a read of standard input) does not hold up the exit.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let result = runtime.block_on(command);
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}
