//! What developers run: `cargo xtask test` runs every test and sets up what they need.

mod peers;
mod servers;
#[cfg(test)]
mod supply;
#[cfg(test)]
mod tidy;

use std::ffi::OsStr;
use std::process::{Command, ExitCode};

use servers::Servers;

const USAGE: &str = "\
usage: cargo xtask <task>

tasks:
  test [FILTER]   run every test of every crate, the demo and the tidy test among them; starts throw-away servers for them
  with-servers COMMAND…
                  run a command beside throw-away PostgreSQL and Redis servers: TIDEGATE_TEST_POSTGRES and
                  TIDEGATE_TEST_REDIS say where (cargo xtask with-servers cargo test -p tidegate-sinks)
  docs            write the generated pages of docs/ anew
  load CASE…      run cases of load-tests/cases against a server, both in release; without any, list them
  peers [EVENTS]  install the peers that PyPI offers into an environment that is removed again, run them and the server on
                  the same events (500,000), and print one table
  ci              what .ci/run does: tests, formatting, lints
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let done = match task.as_str() {
        "test" => test(&rest),
        "with-servers" if !rest.is_empty() => with_servers(rest[0], &rest[1..]),
        "docs" => page("configuration") && page("metrics"),
        "load" => load(&rest),
        "peers" => peers::run(&rest),
        "ci" => test(&[]) && cargo(&["fmt", "--all", "--check"]) && lint(),
        "-h" | "--help" | "help" => {
            print!("{USAGE}");
            true
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every test. Nothing has to be there but Rust and a C compiler: the tests start the program themselves, on free
/// loopback ports and in temporary folders, and so are the servers started that they write to.
fn test(rest: &[&str]) -> bool {
    with_servers(env!("CARGO"), &[&["test", "--workspace"], rest].concat())
}

/// Runs a command with throw-away servers at its disposal.
fn with_servers(program: &str, arguments: &[&str]) -> bool {
    let servers = match Servers::start() {
        Ok(servers) => servers,
        Err(error) => {
            eprintln!("{error:#}");
            return false;
        }
    };
    let environment = servers.environment().iter().map(|(name, value)| (*name, value.as_str()));
    run(plain(program).args(arguments).envs(environment))
}

/// Writes one generated page of docs/ anew. A test compares them with the program, which is built here as that test builds it:
/// with the features of another set of packages, half of all crates would be compiled for a page.
fn page(name: &str) -> bool {
    let Some(program) = std::env::current_exe().ok().map(|own| own.with_file_name("tidegate")) else { return false };
    if !cargo(&["test", "--quiet", "--workspace", "--test", "it", "--no-run"]) {
        return false;
    }
    match plain(&program).args(["docs", name]).output() {
        Ok(output) if output.status.success() => {
            let path = format!("docs/{name}.md");
            let written = std::fs::write(&path, output.stdout);
            written.map_err(|error| eprintln!("cannot write {path}: {error}")).is_ok()
        }
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            eprintln!("cannot run {}: {error}", program.display());
            false
        }
    }
}

/// The driver takes the server beside it. It stands in for neither `cargo bench` nor a quiet machine: see docs/performance.md.
fn load(rest: &[&str]) -> bool {
    cargo(&["build", "--release", "--package", "tidegate", "--package", "tidegate-load-tests"])
        && cargo(&[&["run", "--quiet", "--release", "--package", "tidegate-load-tests", "--"], rest].concat())
}

fn lint() -> bool {
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
}

fn cargo(arguments: &[&str]) -> bool {
    run(plain(env!("CARGO")).args(arguments))
}

/// A command without what cargo told this program about its own package: build scripts that look at it (ring's does) would run
/// anew each time that `cargo` and `cargo xtask` take turns, and half of all crates be compiled with them.
fn plain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

fn run(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cannot run {command:?}: {error}");
            false
        }
    }
}
