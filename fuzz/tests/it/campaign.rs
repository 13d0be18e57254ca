//! One target: its crashes and its corpus are replayed, then mutants of them are tried until the time is up.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{Seek as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use tidegate_fuzz::{TARGETS, Target};

use crate::mutate::{Dice, mutant, words};

/// Longest time that one input may take, on a machine that does other things too.
const SLOW: Duration = Duration::from_secs(20);
/// Of a failing input, what is shown; all of it is in a file.
const SHOWN_BYTES: usize = 1024;
/// Inputs that are tried to make a failing one shorter.
const REDUCTIONS_MAX: usize = 3000;

#[expect(clippy::disallowed_methods, reason = "how long and from what seed to try is asked for in the environment")]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not {text:?}")))
}

pub fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target)
}

/// The files of a folder by name; none when there is no folder.
pub fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(&path).expect("a file of the corpus"))).collect()
}

pub fn target(name: &str) -> Target {
    TARGETS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("there is no target {name:?}")).1
}

thread_local! {
    /// Whether panics of this thread are told. Most are expected: of inputs that are made shorter, and of arrow-rs.
    static LOUD: Cell<bool> = const { Cell::new(true) };
}

fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if LOUD.get() {
                told(panic);
            }
        }));
    });
}

fn fails(run: Target, bytes: &[u8]) -> bool {
    LOUD.set(false);
    let failed = catch_unwind(AssertUnwindSafe(|| run(bytes))).is_err();
    LOUD.set(true);
    failed
}

/// A shorter input that fails as well.
fn reduced(run: Target, bytes: &[u8]) -> Vec<u8> {
    let mut kept = bytes.to_vec();
    let mut size = kept.len() / 2;
    let mut tries = 0;
    while size > 0 && tries < REDUCTIONS_MAX {
        let mut at = 0;
        while at < kept.len() && tries < REDUCTIONS_MAX {
            let mut shorter = kept.clone();
            shorter.drain(at..(at + size).min(kept.len()));
            tries += 1;
            if fails(run, &shorter) {
                kept = shorter;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    kept
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where an input is written before it is tried, so that one that ends the process can be found.
fn scratch(name: &str, what: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}.{what}"))
}

fn keep(file: &mut std::fs::File, bytes: &[u8]) -> std::io::Result<()> {
    file.rewind()?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}

/// Runs a target. Panics with the input, made short, when the target does.
pub fn run(name: &str) {
    hush();
    let run = target(name);
    let mut seeds = Vec::new();
    for (path, bytes) in files(&folder("crashes", name)).into_iter().chain(files(&folder("corpus", name))) {
        if fails(run, &bytes) {
            println!("{name} fails on {}", path.display());
            run(&bytes);
        }
        seeds.push(bytes);
    }
    assert!(!seeds.is_empty(), "{name} has no corpus");
    let asked = from_environment("TIDEGATE_FUZZ_SECONDS");
    let seed = from_environment("TIDEGATE_FUZZ_SEED").unwrap_or(1);
    let time = Duration::from_secs(asked.unwrap_or(2));
    let started = Instant::now();
    let mut dice = Dice(seed);
    let (mut tried, mut slowest) = (0u64, Duration::ZERO);
    let mut now = std::fs::File::create(scratch(name, "now")).expect("a folder for what is tried");
    while started.elapsed() < time {
        let input = mutant(&mut dice, &seeds, words(name));
        keep(&mut now, &input).expect("what is tried is kept");
        let began = Instant::now();
        if fails(run, &input) {
            let short = reduced(run, &input);
            let file = scratch(name, "failed");
            std::fs::write(&file, &short).expect("a folder for what is tried");
            _ = catch_unwind(AssertUnwindSafe(|| run(&short)));
            let shown = &short[..short.len().min(SHOWN_BYTES)];
            panic!(
                "{name} fails at input {tried} of seed {seed}; replay it with TIDEGATE_FUZZ_INPUT={} TIDEGATE_FUZZ_TARGET={name} \
                 cargo test -p tidegate-fuzz replay\n{} bytes, the first in hex: {}\nas text: {}",
                file.display(),
                short.len(),
                hex(shown),
                String::from_utf8_lossy(shown),
            );
        }
        let took = began.elapsed();
        if took > slowest {
            slowest = took;
            _ = std::fs::write(scratch(name, "slowest"), &input);
        }
        assert!(took < SLOW, "{name} took {took:?} over the input in {}", scratch(name, "slowest").display());
        tried += 1;
    }
    println!("{name}: {tried} inputs of seed {seed} in {:?}, the slowest took {slowest:?}", started.elapsed());
}

/// Runs one target on one file, when the environment names them.
#[expect(clippy::disallowed_methods, reason = "what to replay is asked for in the environment")]
pub fn replay() {
    let named = |name: &str| std::env::var(name).ok();
    let (Some(name), Some(path)) = (named("TIDEGATE_FUZZ_TARGET"), named("TIDEGATE_FUZZ_INPUT")) else { return };
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    target(&name)(&bytes);
    println!("{name} holds on {path}");
}
