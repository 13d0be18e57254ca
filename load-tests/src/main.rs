//! `load-tests`: starts a server, loads it as a case says, and prints what that took as JSON. It knows the server only as a program
//! and by its HTTP API.
//!
//! Runs are bounded in requests and in time. `docs/performance.md` says how to read a result.

mod alerts;
mod case;
mod corpus;
mod followers;
mod histogram;
mod http;
mod load;
mod outcome;
mod process;
mod run;
mod server;
mod tenants;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use chrono::Utc;
use clap::Parser;

use case::Case;
use corpus::Corpus;
use outcome::Outcome;
use run::Run;

// Bodies are copied and freed all the time; the driver must not be the slow side.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Loads a tidegate server as cases say, and prints a JSON result for each.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The cases, by the names of their folders. Without any, the cases are listed.
    cases: Vec<String>,
    /// The server's program. By default the `tidegate` beside this one.
    #[arg(long)]
    server: Option<PathBuf>,
    /// The folder of the cases.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cases"))]
    cases_dir: PathBuf,
    /// Where the server's folder is made, and removed again: the disk that is measured.
    #[arg(long, default_value = "/tmp")]
    folder: PathBuf,
    /// The folder of rule archives that are not part of the repository.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data"))]
    samples: PathBuf,
    /// Write each result to load-tests/results.
    #[arg(long)]
    keep: bool,
    /// Send so many requests instead of what the case says.
    #[arg(long)]
    requests: Option<u64>,
    /// Begin no request after so many seconds instead of what the case says.
    #[arg(long)]
    seconds: Option<u64>,
    /// Write the bodies of the first case to this file, one after the other, instead of running it.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Send so many requests a second, at intended times, instead of what the case says.
    #[arg(long)]
    requests_per_s: Option<f64>,
    /// Give the server so many cores instead of what the case says; 0 for all.
    #[arg(long)]
    cores: Option<usize>,
}

fn main() -> ExitCode {
    match run_all(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all goals of all cases were met.
fn run_all(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.cases.is_empty() {
        list(&arguments.cases_dir)?;
        return Ok(true);
    }
    if let (Some(path), Some(name)) = (&arguments.write, arguments.cases.first()) {
        write_bodies(arguments, name, path).with_context(|| format!("write {}", path.display()))?;
        return Ok(true);
    }
    let program = match &arguments.server {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("where this program is")?.with_file_name("tidegate"),
    };
    ensure!(program.is_file(), "{} is not there: build the server, or name it with --server", program.display());
    let mut met = true;
    for name in &arguments.cases {
        let outcome = one(arguments, &program, name).with_context(|| format!("case {name}"))?;
        println!("{}", serde_json::to_string_pretty(&outcome)?);
        for goal in outcome.goals.iter().filter(|goal| !goal.met) {
            eprintln!("{name}: {} is {:.3}, the bound is {}", goal.name, goal.measured, goal.bound);
            met = false;
        }
    }
    Ok(met)
}

fn list(folder: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    for path in paths {
        let case = Case::read(&path.join("case.toml"))?;
        println!("{:24} {}", path.file_name().unwrap_or_default().to_string_lossy(), case.what);
    }
    Ok(())
}

/// A case with what the arguments say instead.
fn case(arguments: &Arguments, name: &str) -> anyhow::Result<Case> {
    let mut case = Case::read(&arguments.cases_dir.join(name).join("case.toml"))?;
    case.load.requests = arguments.requests.unwrap_or(case.load.requests);
    case.load.seconds_max = arguments.seconds.unwrap_or(case.load.seconds_max);
    case.load.requests_per_s = arguments.requests_per_s.or(case.load.requests_per_s);
    case.allotment.cores = arguments.cores.unwrap_or(case.allotment.cores);
    case.check()?;
    Ok(case)
}

/// The bodies that a case sends after its warm-up, for other programs to read.
fn write_bodies(arguments: &Arguments, name: &str, path: &Path) -> anyhow::Result<()> {
    let case = case(arguments, name)?;
    let corpus = Corpus::make(&case.events, Utc::now().timestamp_micros(), case.load.requests)?;
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for number in 0..case.load.requests {
        file.write_all(&corpus.body(number))?;
    }
    Ok(file.flush()?)
}

/// Runs one case on a thread of its own, so that the cores it leaves to the server are given back afterwards.
fn one(arguments: &Arguments, program: &Path, name: &str) -> anyhow::Result<Outcome> {
    let case = case(arguments, name)?;
    let unpacked = tempfile::Builder::new().prefix("tidegate-rules-").tempdir_in(&arguments.folder)?;
    let rules = case.rules.as_deref().map(|rules| rules_folder(arguments, name, rules, unpacked.path())).transpose()?;
    let (program, folder, name) = (program.to_owned(), arguments.folder.clone(), name.to_owned());
    let (now, machine) = (Utc::now(), process::machine());
    let thread = std::thread::spawn(move || {
        let cores = server::split_cores(case.allotment.cores)?;
        let run = Run { program, folder, name, case, rules, machine, cores };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        runtime.block_on(run.run(now))
    });
    let outcome = thread.join().map_err(|_| anyhow::anyhow!("the run panicked"))??;
    if arguments.keep {
        let results = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/results"));
        eprintln!("kept as {}", outcome.keep(results, now)?.display());
    }
    Ok(outcome)
}

/// The folder of a case's rules; an archive is unpacked into `unpacked`.
fn rules_folder(arguments: &Arguments, case: &str, rules: &str, unpacked: &Path) -> anyhow::Result<PathBuf> {
    if !rules.ends_with(".tar.gz") {
        let folder = arguments.cases_dir.join(case).join(rules);
        ensure!(folder.is_dir(), "{} is not there", folder.display());
        return Ok(std::path::absolute(folder)?);
    }
    let archive = arguments.samples.join(rules);
    ensure!(archive.is_file(), "{} is not there: name its folder with --samples", archive.display());
    let status = Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(unpacked).status().context("run tar")?;
    ensure!(status.success(), "cannot unpack {}", archive.display());
    Ok(unpacked.to_owned())
}
