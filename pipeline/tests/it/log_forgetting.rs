//! Readers beside retention: who is read to while rows are forgotten gets them, or is told how many it missed.

use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_pipeline::fs::{Fault, Open, SimFs, SimOp};
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{LogBatch, LogReader, Offset, PipelineError, StreamLog};

use crate::log_ledger::{DIR, answer, config, open};
use crate::log_rows::{events, ids, one};
use crate::watched_fs::{Watch, WatchedFs};

const ROWS: u64 = 60;

/// The log forgets in the very moment in which a reader opens a segment.
#[derive(Debug, Default)]
struct Forgets {
    /// The segments that may be opened before it happens, and below which row is forgotten then.
    plan: Mutex<Option<(usize, Offset)>>,
    log: OnceLock<Weak<SegmentLog>>,
}

impl Forgets {
    fn now(&self) {
        let mut plan = self.plan.lock();
        match plan.take() {
            Some((0, below)) => {
                drop(plan);
                let log = self.log.get().and_then(Weak::upgrade).expect("a log that is open");
                log.forget(below).expect("forgotten");
            }
            Some((opens, below)) => *plan = Some((opens - 1, below)),
            None => {}
        }
    }
}

impl Watch for Forgets {
    fn opens(&self, path: &Path, how: Open) {
        if how == Open::Read && path.extension().is_some_and(|is| is == "log") {
            self.now();
        }
    }
}

/// Reads from the start of a log to the row `until`: the rows, and how many were told to be forgotten. No row is missing
/// between two others without a word.
fn follow(log: &SegmentLog, until: Offset, bytes_max: usize, context: &str) -> (u64, u64) {
    let (mut at, mut rows, mut forgotten) = (0, 0, 0);
    while at < until {
        let reading = read_on(log, at, bytes_max).unwrap_or_else(|error| panic!("{context}: {error}"));
        at += reading.forgotten;
        forgotten += reading.forgotten;
        for (offset, id) in ids(&reading.batches) {
            assert_eq!((offset, id), (at, at.to_string()), "{context}");
            (at, rows) = (at + 1, rows + 1);
        }
        assert_eq!(reading.next.max(at), at, "{context}: read past rows of which there was no word");
    }
    (rows, forgotten)
}

#[test]
fn rows_that_are_forgotten_while_they_are_read_are_told_of() {
    let made = SimFs::new();
    let (log, _) = open(&made).expect("a log");
    for row in 0..ROWS {
        answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
    }
    drop(log);
    let segments = made.files().iter().filter(|path| path.extension().is_some_and(|is| is == "log")).count();
    assert!(segments > 5, "{segments} segments");
    let mut missed = 0;
    for bytes_max in [1, usize::MAX] {
        for opens in 0..segments {
            for below in [10, ROWS / 2, ROWS] {
                let context = format!("below {below} at opening {opens}, {bytes_max} bytes at a time");
                let fs = Arc::new(WatchedFs { fs: made.after_kill(), watch: Forgets::default() });
                let (log, _) = SegmentLog::open(fs.clone(), Path::new(DIR), config()).expect("it opens");
                let log = Arc::new(log);
                fs.watch.log.set(Arc::downgrade(&log)).expect("set once");
                *fs.watch.plan.lock() = Some((opens, below));
                let (rows, forgotten) = follow(&log, ROWS, bytes_max, &context);
                assert_eq!(rows + forgotten, ROWS, "{context}");
                missed += forgotten;
            }
        }
    }
    assert!(missed > 100, "{missed} rows were forgotten before they were read");
}

/// What a read of the whole log gives that forgets half of it at the opening of segment `opens`, and where the log begins then.
fn read_while_it_forgets(opens: usize) -> (Result<Vec<Arc<LogBatch>>, PipelineError>, Offset) {
    let fs = Arc::new(WatchedFs { fs: SimFs::new(), watch: Forgets::default() });
    let (log, _) = SegmentLog::open(fs.clone(), Path::new(DIR), config()).expect("a log");
    for row in 0..ROWS {
        answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
    }
    drop(log);
    let (log, _) = SegmentLog::open(fs.clone(), Path::new(DIR), config()).expect("it opens");
    let log = Arc::new(log);
    fs.watch.log.set(Arc::downgrade(&log)).expect("set once");
    *fs.watch.plan.lock() = Some((opens, ROWS / 2));
    let read = log.read(0, usize::MAX);
    (read, log.bounds().first)
}

#[test]
fn what_is_forgotten_before_it_is_read_is_an_error_of_its_own() {
    match read_while_it_forgets(0) {
        (Err(PipelineError::Forgotten { asked: 0, first }), begins) => assert_eq!(first, begins),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_read_before_it_was_forgotten_is_given() {
    let (read, begins) = read_while_it_forgets(1);
    let rows: Vec<_> = ids(&read.expect("the first segment")).into_iter().map(|(offset, _)| offset).collect();
    assert!(begins > 0 && rows.len() as u64 <= begins, "{rows:?} of {begins}");
    assert_eq!(rows, (0..rows.len() as u64).collect::<Vec<_>>());
    assert!(!rows.is_empty());
}

#[test]
fn who_reads_at_the_edge_of_what_is_forgotten_gets_the_row_or_is_told() {
    const APPENDS: u64 = 800;
    let config = LogConfig { segment_bytes_max: 4096, ..config() };
    let (log, _) = SegmentLog::open(Arc::new(SimFs::new()), Path::new(DIR), config).expect("a log");
    let log = &log;
    std::thread::scope(|scope| {
        for bytes_max in [1, usize::MAX] {
            scope.spawn(move || {
                while log.bounds().next < APPENDS {
                    let asked = log.bounds().first;
                    match log.read(asked, bytes_max) {
                        Ok(batches) => {
                            let rows: Vec<_> = ids(&batches).into_iter().map(|(offset, _)| offset).collect();
                            assert!(rows.first().is_none_or(|first| *first == asked), "asked for {asked}: {rows:?}");
                            assert!(rows.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a hole: {rows:?}");
                        }
                        Err(PipelineError::Forgotten { first, .. }) => assert!(first > asked),
                        Err(error) => panic!("asked for {asked}: {error}"),
                    }
                }
            });
        }
        for row in 0..APPENDS {
            answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
            log.forget(row).expect("forgotten");
        }
    });
}

fn segments(fs: &SimFs) -> usize {
    fs.files().iter().filter(|path| path.extension().is_some_and(|is| is == "log")).count()
}

/// A log of [`ROWS`] rows with these ids, of whose segments none has a summary, on a disk that is well again.
fn without_summaries(fs: &SimFs, id: impl Fn(u64) -> String) -> SegmentLog {
    let (log, _) = open(fs).expect("a log");
    fs.track_sites();
    fs.fail_at("log/*.sum.tmp", Fault { sticky: true, ..Fault::eio(SimOp::Create, 1) });
    for row in 0..ROWS {
        answer(log.append(one(events("a", &[&id(row)])))).expect("stored");
    }
    // The last one is not closed.
    let closed = segments(fs) as u64 - 1;
    let started = Instant::now();
    while fs.failed() < closed {
        assert!(started.elapsed() < Duration::from_secs(30), "{} of {closed} summaries were tried", fs.failed());
        std::thread::sleep(Duration::from_millis(1));
    }
    fs.heal();
    log
}

#[test]
fn keys_are_given_for_space_on_a_full_disk_and_for_nothing_else() {
    // ENOSPC, EDQUOT and EFBIG; EIO and EROFS.
    for (errno, is_full) in [(28, true), (122, true), (27, true), (5, false), (30, false)] {
        let fs = SimFs::new();
        let log = without_summaries(&fs, |row| row.to_string());
        let (files, bytes) = (fs.files().len(), log.bytes_used());
        let summary = Fault { op: SimOp::Create, nth: 1, errno, sticky: true, short_bytes: 0 };
        fs.fail_at("log/*.sum.tmp", summary);
        let forgotten = log.forget(ROWS / 2);
        let first = log.bounds().first;
        if is_full {
            forgotten.unwrap_or_else(|error| panic!("{errno}: {error}"));
            assert!(first > 10 && log.bytes_used() < bytes && fs.files().len() < files, "{errno}: from {first}");
        } else {
            assert!(matches!(forgotten, Err(PipelineError::Io { op: "summarise", .. })), "{errno}: {forgotten:?}");
            assert_eq!((first, log.bytes_used(), fs.files().len()), (0, bytes, files), "{errno}: nothing is gone");
            fs.heal();
            log.forget(ROWS / 2).expect("the disk is well");
            assert!(log.bounds().first > 10, "{errno}");
        }
        fs.heal();
        drop(log);
        let (log, report) = open(&fs).expect("it opens");
        let known = if is_full { ROWS - first } else { ROWS };
        assert_eq!((report.keys as u64, report.damage.len()), (known, 0), "{errno}: {report:?}");
        let again = answer(log.append(one(events("a", &["0", "59"])))).expect("answered");
        assert_eq!(again.duplicates.len(), if is_full { 1 } else { 2 }, "{errno}");
    }
}

#[test]
fn a_segment_is_read_for_its_keys_only_when_it_has_some_and_no_summary() {
    for (what, summarised, id) in [
        ("summarised", true, (|row| row.to_string()) as fn(u64) -> String),
        ("without keys", false, |row| format!("-{row}")),
    ] {
        let fs = SimFs::new();
        let log = if summarised {
            let (log, _) = open(&fs).expect("a log");
            for row in 0..ROWS {
                answer(log.append(one(events("a", &[&id(row)])))).expect("stored");
            }
            drop(log);
            open(&fs).expect("it opens").0
        } else {
            without_summaries(&fs, id)
        };
        let (reads, files) = (fs.count(SimOp::Read), fs.files().len());
        log.forget(ROWS / 2).expect("forgotten");
        assert!(log.bounds().first > 10, "{what}");
        assert_eq!(fs.count(SimOp::Read), reads, "{what}");
        assert!(fs.files().len() < files, "{what}: nothing was made for it");
    }
}
