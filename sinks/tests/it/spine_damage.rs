//! Every file of the whole spine, one after the other, vanishes, is emptied, cut or flipped: it starts every time, it says what
//! it found, it loses only what was in that file and nowhere else, and it goes on.

use std::path::{Path, PathBuf};

use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::{Ack, LogReader};
use tidegate_sinks::parquet::LogSource;

use crate::parquet_rows::wait;
use crate::spine_ledger::Ledger;
use crate::spine_world::{Spine, Tally};

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Gone,
    Cut(usize),
    Flipped(usize),
}

/// A disk on which everything has happened: rolled logs, forgotten segments, compaction, checkpoints, changes. Killed.
async fn disk() -> (SimFs, Ledger) {
    let (fs, mut ledger, mut tally) = (SimFs::new(), Ledger::default(), Tally::default());
    let (mut spine, _) = Spine::open(&fs).expect("opens");
    for round in 0..6u64 {
        for nth in 0..3 {
            let first = round * 12 + nth * 4;
            spine.append(&mut ledger, &[first, first + 1, first + 2, first + 3], Ack::Disk).await.expect("stored");
        }
        spine.change(&mut ledger, &format!("rule {round}")).await.expect("changed");
        spine.run_through().await.expect("runs");
        if round < 5 {
            spine.deliver_through(LogSource::Ingest).await.expect("delivers");
            spine.deliver_through(LogSource::Output).await.expect("delivers");
        }
        if round == 2 || round == 4 {
            (0..3).for_each(|what| spine.maintain(what, &mut tally).expect("maintains"));
            ledger.look(&spine, "before forgetting").expect("readable");
            spine.forget(None, &mut tally).expect("forgets");
        }
        spine.settle().await;
    }
    ledger.check(&spine, "undamaged");
    assert!(tally.compacted_files > 0 && tally.forgotten_rows > 0, "{tally:?}");
    (fs.after_kill(), ledger)
}

fn damage(fs: &SimFs, path: &Path, how: Damage) {
    let mut bytes = fs.bytes(path).expect("bytes");
    match how {
        Damage::Gone => return fs.lose(path),
        Damage::Cut(len) => bytes.truncate(len),
        Damage::Flipped(at) => bytes[at] ^= 1 << (at % 8),
    }
    fs.set_bytes(path, bytes);
}

/// Starts on a disk with one damaged file.
async fn start(fs: &SimFs, ledger: &mut Ledger, path: &Path, how: Damage) {
    let context = format!("{} {how:?}", path.display());
    let fs = fs.after_kill();
    damage(&fs, path, how);
    let (mut spine, reports) = Spine::open(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    let text = path.display().to_string();
    let is_log = text.ends_with(".log");
    let is_file = text.ends_with(".parquet");
    // What a short look at the start does not see, the whole look of `verify` does.
    let found: Vec<PathBuf> =
        spine.store.verify().into_iter().filter(|check| check.problem.is_some()).map(|check| check.path).collect();
    found.iter().for_each(|path| _ = spine.store.recheck(path).expect("readable"));
    let missing = ledger.missing(&spine, &context);
    let told = !reports.store.is_clean() || !found.is_empty();
    if is_file {
        assert!(told, "{context}: nothing is said: {:?}", reports.store);
    } else if !is_log {
        assert_eq!(missing, 0, "{context}: {reports:?}");
    }
    if missing > 0 {
        assert!(missing <= 40, "{context}: {missing} events are lost");
        let log = &reports.log;
        let told_by_log =
            !log.damage.is_empty() || log.torn_bytes > 0 || log.burnt_to.is_some() || !log.half_made.is_empty();
        // Of an oldest segment that is gone the log does not know that anybody needed it: the delivery misses it.
        let told_by_delivery = spine.log.bounds().first > spine.store.cursor(LogSource::Ingest);
        // A frame in a closed segment is looked at when it is read, which `missing` did: its counter has its own test.
        assert!(
            told || told_by_log || told_by_delivery || matches!(how, Damage::Flipped(_)),
            "{context}: nothing is said: {reports:?}"
        );
    }
    let next = spine.log.bounds().next;
    spine.append(ledger, &[5_000_001], Ack::Disk).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(spine.log.bounds().next > next, "{context}");
    spine.run_through().await.unwrap_or_else(|error| panic!("{context}: {error}"));
    for source in [LogSource::Ingest, LogSource::Output] {
        spine.deliver_through(source).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    }
    assert_eq!(ledger.missing(&spine, &context), missing, "{context}: afterwards");
    if !is_log && !is_file {
        ledger.check(&spine, &context);
        ledger.check_complete(&context);
    }
}

#[test]
fn spine_any_file_may_be_damaged_and_it_starts_and_goes_on() {
    let (fs, ledger) = wait(disk());
    let mut starts = 0;
    for path in fs.files() {
        let len = fs.bytes(&path).expect("bytes").len();
        let cuts = [0, 1, len / 3, len / 2, len.saturating_sub(1)].into_iter().filter(|cut| *cut < len);
        let flips = (0..7).map(|part| part * len / 7).filter(|at| *at < len);
        let all = [Damage::Gone].into_iter().chain(cuts.map(Damage::Cut)).chain(flips.map(Damage::Flipped));
        for how in all {
            let mut ledger = ledger.clone();
            ledger.forgive_cursors();
            wait(start(&fs, &mut ledger, &path, how));
            starts += 1;
        }
    }
    eprintln!("{starts} starts over {} files", fs.files().len());
    assert!(starts > 300, "{starts} starts");
}

/// A log whose files are all gone, on a disk where others have taken its rows.
async fn lose_log(delivered: bool, ran: bool, changed: bool) {
    let context = format!("delivered {delivered}, ran {ran}, changed {changed}");
    let (fs, mut ledger) = (SimFs::new(), Ledger::default());
    let (mut spine, _) = Spine::open(&fs).expect("opens");
    spine.append(&mut ledger, &[0, 3, 6, 9], Ack::Disk).await.expect("stored");
    if delivered {
        spine.deliver_through(LogSource::Ingest).await.expect("delivers");
    }
    if ran {
        spine.run_through().await.expect("runs");
    }
    if changed {
        spine.change(&mut ledger, "a rule").await.expect("changed");
    }
    let (next, seq) = (spine.log.bounds().next, spine.output.bounds().next);
    let fs = fs.after_kill();
    for path in fs.files() {
        let gone = path.extension().is_some_and(|is| is == "log" || is == "sum");
        if gone {
            fs.lose(&path);
        }
    }
    let (mut spine, reports) = Spine::open(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(reports.log.burnt_to, Some(next), "{context}: {reports:?}");
    let mut after = Ledger::default();
    spine.append(&mut after, &[12], Ack::Disk).await.expect("stored");
    assert!(spine.log.bounds().next > next, "{context}: no offset is used again");
    spine.run_through().await.expect("runs");
    let seqs = spine.output.read(spine.output.bounds().first, usize::MAX).expect("readable");
    assert!(seqs.iter().all(|batch| batch.offset >= if ran { seq } else { 0 }), "{context}: nor a seq");
    assert!(!changed || spine.registry.get("ever", "rule", "a rule").is_some(), "{context}");
}

#[test]
fn spine_a_log_that_lost_its_end_goes_on_after_all_who_hold_its_rows() {
    for (delivered, ran, changed) in
        [(true, false, false), (false, true, false), (false, false, true), (true, true, true)]
    {
        wait(lose_log(delivered, ran, changed));
    }
}
