//! `cargo xtask peers`: the server beside what PyPI offers, on the same events in the same run. What is measured, and how, is in
//! `load-tests/peers/compare.py`; everything that is made here is removed again.

use std::path::Path;
use std::process::Command;

use super::cargo;

/// The case whose events are sent.
const CASE: &str = "reference-2000";
const EVENTS_PER_REQUEST: u64 = 2_000;
const EVENTS: u64 = 500_000;

/// Builds, installs, runs, prints; true when all of it went well.
pub(crate) fn run(rest: &[&str]) -> bool {
    let events = match rest.first().map(|text| text.replace(['_', ','], "").parse::<u64>()) {
        None => EVENTS,
        Some(Ok(events)) if events >= EVENTS_PER_REQUEST => events,
        Some(_) => {
            eprintln!("cargo xtask peers [EVENTS]: a number of at least {EVENTS_PER_REQUEST}");
            return false;
        }
    };
    let requests = (events / EVENTS_PER_REQUEST).to_string();
    let folder = std::env::temp_dir().join(format!("tidegate-peers-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir(&folder) {
        eprintln!("cannot make {}: {error}", folder.display());
        return false;
    }
    let done = compare(&folder, &requests);
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        eprintln!("cannot remove {}: {error}", folder.display());
    }
    done
}

fn compare(folder: &Path, requests: &str) -> bool {
    let environment = folder.join("environment");
    let python = environment.join("bin").join("python");
    let events = folder.join("events.ndjson");
    let (driver, server) = (program("load-tests"), program("tidegate"));
    cargo(&["build", "--release", "--package", "tidegate", "--package", "tidegate-load-tests"])
        && call(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        && call(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
                .arg("load-tests/peers/requirements.txt"),
        )
        && call(Command::new(driver).args([CASE, "--requests", requests, "--write"]).arg(&events))
        && call(
            Command::new(&python)
                .arg("load-tests/peers/compare.py")
                .arg("--server")
                .arg(server)
                .arg("--events")
                .arg(&events)
                .arg("--folder")
                .arg(folder)
                .args(["--json", "load-tests/results/peers.json"]),
        )
}

/// A program that the build made.
fn program(name: &str) -> std::path::PathBuf {
    Path::new("target").join("release").join(name)
}

fn call(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) if status.success() => true,
        Ok(status) => {
            eprintln!("{} ended with {status}", command.get_program().display());
            false
        }
        Err(error) => {
            eprintln!("cannot run {}: {error}", command.get_program().display());
            false
        }
    }
}
