//! Sectors that a disk cannot read any more: they cost the frames in them, and nobody waits for them for ever. A disk that is
//! gone altogether is waited for.

use std::path::PathBuf;
use std::sync::Arc;

use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::log::SegmentLog;
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{LogBatch, LogReader, StreamLog};

use crate::counted::Counted;
use crate::log_ledger::{answer, open};
use crate::log_rows::{events, ids, one};

const ROWS: u64 = 60;

/// A log of several segments, one row a frame, of which the process was killed.
fn killed() -> (SimFs, Vec<PathBuf>) {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for row in 0..ROWS {
        answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
    }
    let fs = fs.after_kill();
    let paths = fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "log")).collect();
    (fs, paths)
}

/// What a follower gets that tries again when a read fails: the rows, and how many tries failed.
fn follow(log: &SegmentLog) -> (Vec<u64>, usize) {
    let (mut at, mut rows, mut failures) = (0, Vec::new(), 0);
    while at < log.bounds().next {
        match read_on(log, at, 4096) {
            Ok(reading) => {
                rows.extend(ids(&reading.batches).into_iter().map(|(offset, _)| offset));
                at = reading.next.max(at + 1);
            }
            Err(_) => failures += 1,
        }
        assert!(failures < 100, "it waits for ever at {at}");
    }
    (rows, failures)
}

#[test]
fn a_bad_sector_in_a_closed_segment_costs_its_frames_and_is_counted_once() {
    let (fs, paths) = killed();
    drop(open(&fs).expect("summaries are written"));
    for at in [0, 3000, 4096, 7000] {
        let fs = fs.after_kill();
        fs.spoil(&paths[1], at, Some(1));
        let (log, report) = open(&fs).expect("it opens");
        assert!(report.damage.is_empty(), "a start does not read closed segments: {report:?}");
        let ((rows, failures), counted) = Counted::during(|| follow(&log));
        assert!(failures > 0, "byte {at}: an error may pass, so it is not damage at once");
        let lost = ROWS - rows.len() as u64;
        // A page has a few frames of a kilobyte each.
        assert!(lost <= 6, "byte {at}: {lost} rows lost");
        assert_eq!(counted.of("log_lost_rows_total"), lost, "byte {at}");
        let (again, counted) = Counted::during(|| follow(&log));
        assert_eq!((again.0, counted.of("log_lost_rows_total")), (rows, 0), "byte {at}: once");
        assert_eq!(again.1, 0, "byte {at}: what was given up is not waited for again");
    }
}

#[test]
fn a_bad_sector_in_the_newest_segment_does_not_keep_the_log_from_opening() {
    let (fs, paths) = killed();
    let last = paths.last().expect("a segment");
    let size = fs.bytes(last).expect("bytes").len() as u64;
    for at in [0, 4096, size - 1] {
        let fs = fs.after_kill();
        fs.spoil(last, at, Some(1));
        let (log, report) = open(&fs).expect("it opens");
        assert!(!report.damage.is_empty() || report.torn_bytes > 0, "byte {at}: {report:?}");
        let (rows, _) = follow(&log);
        assert!(ROWS - rows.len() as u64 <= 6, "byte {at}: {} rows", rows.len());
        let stored = answer(log.append(one(events("a", &["more"])))).expect("stored");
        assert!(stored.offsets[0].start >= ROWS, "byte {at}: offsets that were told are not used again: {stored:?}");
    }
}

#[test]
fn bad_sectors_in_summaries_cost_nothing() {
    let (fs, _) = killed();
    drop(open(&fs).expect("summaries are written"));
    for path in fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "sum")) {
        let fs = fs.after_kill();
        fs.spoil(&path, 0, None);
        let (log, report) = open(&fs).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(report.damage.is_empty(), "{report:?}");
        assert_eq!(follow(&log).0, (0..ROWS).collect::<Vec<_>>());
        let twice = answer(log.append(one(events("a", &["0", "59"])))).expect("an answer");
        assert_eq!(twice.duplicates.len(), 2, "{}: its keys are known", path.display());
    }
}

#[test]
fn a_disk_that_is_gone_is_waited_for_and_nothing_is_given_up() {
    let (fs, _) = killed();
    let (log, _) = open(&fs).expect("a log");
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Read, fs.count(SimOp::Read) + 1) });
    let ((), counted) = Counted::during(|| {
        for _ in 0..50 {
            read_on(&log, 0, 4096).expect_err("the disk is gone");
        }
    });
    assert_eq!(counted.of("log_damage_total"), 0);
    fs.heal();
    assert_eq!(follow(&log), ((0..ROWS).collect(), 0), "and it is there again");
}

#[test]
fn a_read_that_fails_once_while_a_schema_is_looked_up_loses_no_row() {
    let (fs, _) = killed();
    drop(open(&fs).expect("summaries are written"));
    let reads = {
        let fs = fs.after_kill();
        let (log, _) = open(&fs).expect("a log");
        let before = fs.count(SimOp::Read);
        log.read(7, 1).expect("a batch in the middle of a segment");
        before + 1..=fs.count(SimOp::Read)
    };
    for nth in reads {
        for op in [SimOp::Read, SimOp::Size] {
            let fs = fs.after_kill();
            let (log, _) = open(&fs).expect("a log");
            fs.fail(Fault::eio(op, nth));
            let all = |batches: Vec<Arc<LogBatch>>| ids(&batches);
            let first = log.read(7, 1).or_else(|_| log.read(7, 1)).map(all).expect("at the second try");
            assert_eq!(first[0].0, 7, "{op:?} {nth}");
        }
    }
}

#[test]
fn a_segment_that_somebody_removes_while_the_log_is_open_is_a_gap() {
    let (fs, paths) = killed();
    let (log, _) = open(&fs).expect("a log");
    fs.lose(&paths[1]);
    let ((rows, failures), counted) = Counted::during(|| follow(&log));
    assert_eq!(failures, 0);
    assert_eq!(counted.of("log_lost_rows_total"), ROWS - rows.len() as u64);
    assert!(rows.len() > 40 && rows.len() < 60, "{rows:?}");
    answer(log.append(one(events("a", &["more"])))).expect("ingest goes on");
}
