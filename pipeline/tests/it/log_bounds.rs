//! Bounds of a log, to the byte.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_pipeline::fs::{Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::{AppendError, Health, LogReader, PipelineError, StreamLog};

use crate::counted::Counted;
use crate::log_faults::{SEGMENTS, synced};
use crate::log_ledger::{DIR, answer, config, open};
use crate::log_rows::{events, one};

fn open_with(fs: &SimFs, config: LogConfig) -> SegmentLog {
    SegmentLog::open(Arc::new(fs.clone()), Path::new(DIR), config).expect("a log").0
}

/// The bytes of all segment files, oldest first.
fn segments(fs: &SimFs) -> Vec<u64> {
    let logs = fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "log"));
    logs.map(|path| fs.bytes(&path).expect("bytes").len() as u64).collect()
}

/// Appends rows with these numbers, which take the same bytes each, one after the other.
fn fill(log: &SegmentLog, rows: std::ops::Range<u64>) {
    for row in rows {
        answer(log.append(one(events("a", &[&format!("{row:0>9}")])))).expect("stored");
    }
}

/// The bytes that such a row takes in the queue.
fn bytes_of_a_row() -> u64 {
    let log = open_with(&SimFs::new(), config());
    let (reply, counted) = Counted::during(|| log.append(one(events("a", &["000000000"]))));
    answer(reply).expect("stored");
    counted.gauge("log_queue_bytes").expect("what waits is told") as u64
}

#[test]
fn the_bytes_of_a_log_are_those_of_its_segment_files() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let check =
        |log: &SegmentLog, what: &str| assert_eq!(log.bytes_used(), segments(&fs).iter().sum::<u64>(), "{what}");
    check(&log, "nothing");
    fill(&log, 0..60);
    check(&log, "several segments");
    for short_bytes in [0, 1000, usize::MAX] {
        for what in ["in a segment with rows", "in a new one"] {
            let nth = fs.count(SimOp::Write) + 1;
            fs.track_sites();
            fs.fail(Fault { op: SimOp::Write, nth, errno: 5, sticky: true, short_bytes });
            answer(log.append(one(events("a", &["failed"])))).expect_err("the disk fails");
            fs.heal();
            check(&log, what);
        }
        fill(&log, 60 + short_bytes as u64 % 7..61 + short_bytes as u64 % 7);
        check(&log, "after a failure");
    }
    log.forget(30).expect("forgotten");
    check(&log, "forgotten");
    drop(log);
    check(&open(&fs).expect("it opens").0, "after a start");
}

#[test]
fn a_segment_is_closed_once_it_has_its_bytes() {
    let one_row = SimFs::new();
    fill(&open_with(&one_row, config()), 0..1);
    // Larger than what a segment must be allowed at least.
    let rows = 8192 / segments(&one_row)[0] + 1;
    let fs = SimFs::new();
    fill(&open_with(&fs, LogConfig { segment_bytes_max: u64::MAX, ..config() }), 0..rows);
    let size = segments(&fs)[0];
    for (segment_bytes_max, expected) in [(size - 1, 2), (size, 2), (size + 1, 1)] {
        let fs = SimFs::new();
        fill(&open_with(&fs, LogConfig { segment_bytes_max, ..config() }), 0..rows + 1);
        assert_eq!(segments(&fs).len(), expected, "{segment_bytes_max} bytes");
    }
}

#[test]
fn newer_segments_are_kept_up_to_the_bytes_that_are_to_be_retained() {
    let made = SimFs::new();
    fill(&open(&made).expect("a log").0, 0..60);
    let sizes = segments(&made);
    assert!(sizes.len() > 4, "{sizes:?}");
    for gone in 1..sizes.len() - 1 {
        let kept: u64 = sizes[gone..].iter().sum();
        for (retain_bytes_min, left) in [(kept, sizes.len() - gone), (kept + 1, sizes.len() - gone + 1)] {
            let fs = made.after_kill();
            let log = open_with(&fs, LogConfig { retain_bytes_min, ..config() });
            log.forget(60).expect("forgotten");
            assert_eq!(segments(&fs).len(), left, "{retain_bytes_min} bytes to be kept of {sizes:?}");
        }
    }
}

#[test]
fn a_log_and_its_disk_are_full_to_the_byte() {
    // What a group keeps beside its rows.
    const SLACK: u64 = 1 << 20;
    let made = SimFs::new();
    let log = open_with(&made, LogConfig { segment_bytes_max: 1 << 20, ..config() });
    let mut nth = 0;
    // A bound below 4 MiB is no bound.
    while log.bytes_used() < (3 << 20) + 100_000 {
        answer(log.append(one(events("a", &[&format!("{nth}-{}", "x".repeat(90_000))])))).expect("stored");
        nth += 1;
    }
    drop(log);
    let used: u64 = segments(&made).iter().sum();
    let all: u64 = made.files().iter().map(|path| made.bytes(path).expect("bytes").len() as u64).sum();
    let needed = bytes_of_a_row() + SLACK;
    for missing in [0, 1] {
        let config = LogConfig { free_bytes_min: 1000, ..config() };
        for (what, capacity, log_bytes_max) in [
            ("log", None, used + needed - missing),
            ("disk", Some(all + 1000 + needed - missing), config.log_bytes_max),
        ] {
            let fs = made.after_kill();
            let log = open_with(&fs, LogConfig { log_bytes_max, ..config.clone() });
            fs.set_capacity(capacity);
            let appended = answer(log.append(one(events("a", &["000000000"]))));
            match missing {
                0 => _ = appended.unwrap_or_else(|error| panic!("{what}: {error}")),
                _ => assert!(matches!(appended, Err(AppendError::Full(_))), "{what}: {appended:?}"),
            }
        }
    }
}

/// With the writer held at the disk by one append, sends more of the same size; how many are taken, and in how many groups they
/// are written.
fn behind_one(appends: usize, config: LogConfig) -> (usize, u64) {
    let fs = SimFs::new();
    let log = open_with(&fs, LogConfig { segment_bytes_max: u64::MAX, ..config });
    fs.hold_sync(true);
    let mut replies = vec![log.append(one(events("a", &["000000000"])))];
    let started = Instant::now();
    while fs.count(SimOp::Write) == 0 {
        assert!(started.elapsed() < Duration::from_secs(30), "nothing is written");
        std::thread::sleep(Duration::from_millis(1));
    }
    replies.extend((1..=appends).map(|row| log.append(one(events("a", &[&format!("{row:0>9}")])))));
    fs.hold_sync(false);
    let answers: Vec<_> = replies.into_iter().map(answer).collect();
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert!(matches!(refused, AppendError::Full(_)), "{refused}");
    }
    (answers.iter().filter(|answer| answer.is_ok()).count() - 1, fs.count(SimOp::Write) - 1)
}

#[test]
fn a_group_and_the_queue_take_what_fits_to_the_byte() {
    let bytes = bytes_of_a_row() as usize;
    for (group_bytes_max, groups) in
        [(1, 4), (bytes, 4), (2 * bytes - 1, 4), (2 * bytes, 2), (4 * bytes - 1, 2), (4 * bytes, 1)]
    {
        let config = LogConfig { group_bytes_max, ..config() };
        assert_eq!(behind_one(4, config), (4, groups), "{group_bytes_max} bytes, {bytes} each");
    }
    for (queue_bytes_max, taken) in [(1, 0), (2 * bytes - 1, 0), (2 * bytes, 1), (5 * bytes - 1, 3), (5 * bytes, 4)] {
        let config = LogConfig { queue_bytes_max, ..config() };
        assert_eq!(behind_one(6, config).0, taken, "{queue_bytes_max} bytes, {bytes} each");
    }
}

#[test]
fn a_segment_that_is_gone_is_forgotten_and_one_that_cannot_be_removed_is_tried_again() {
    let made = SimFs::new();
    fill(&open(&made).expect("a log").0, 0..60);
    let first = made.files().into_iter().find(|path| path.extension().is_some_and(|is| is == "log")).expect("a file");

    let fs = made.after_kill();
    let (log, _) = open(&fs).expect("it opens");
    fs.lose(&first);
    log.forget(30).expect("it is gone, as it should be");
    assert!(log.bounds().first > 10);

    let fs = made.after_kill();
    let (log, _) = open(&fs).expect("it opens");
    fs.track_sites();
    fs.fail_at("log/*.log", Fault { sticky: true, ..Fault::eio(SimOp::Remove, 1) });
    let refused = log.forget(30);
    assert!(matches!(refused, Err(PipelineError::Io { op: "remove", .. })), "{refused:?}");
    fs.heal();
    log.forget(30).expect("the disk is well");
    assert!(!fs.list(Path::new(DIR)).expect("a folder").contains(&first));
    assert_eq!(log.bytes_used(), segments(&fs).iter().sum::<u64>());
}

#[test]
fn who_has_an_answer_finds_room_and_a_log_that_is_well() {
    let fs = SimFs::new();
    fs.track_sites();
    let health = Health::default();
    let log = open_with(&fs, LogConfig { queue_bytes_max: 1, ..config() });
    log.report_health(health.stage("log"));
    for row in 0..300 {
        if row % 3 == 0 {
            fs.fail_at(SEGMENTS, Fault::eio(SimOp::SyncData, synced(&fs) + 1));
            let failed = answer(log.append(one(events("a", &["failed"]))));
            assert!(matches!(failed, Err(AppendError::Failed(_))), "row {row}: {failed:?}");
            assert_eq!(health.details().len(), 1, "row {row}");
            // Who failed may find the writer still at it.
            let started = Instant::now();
            while !health.stuck(Instant::now() + Duration::from_secs(3600), Duration::ZERO).is_empty() {
                assert!(started.elapsed() < Duration::from_secs(30), "row {row}: work waits for ever");
            }
        }
        // A queue with room for one append at a time.
        answer(log.append(one(events("a", &[&row.to_string()])))).unwrap_or_else(|error| panic!("row {row}: {error}"));
        assert!(health.details().is_empty(), "row {row}: {:?}", health.details());
    }
}
