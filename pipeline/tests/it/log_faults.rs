//! The log on a disk that loses power, fails calls, fills up and is slow.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_pipeline::fs::{Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::{Ack, Append, AppendError, Health, LogReader, PipelineError, StreamLog};

use crate::log_ledger::{DIR, Ledger, answer, config, open};
use crate::log_rows::{events, ids, one};

/// Where the segments are written, and not their summaries, which a thread of its own writes at its own time.
pub const SEGMENTS: &str = "log/*.log";

/// How often a segment was synced since sites are tracked.
pub fn synced(fs: &SimFs) -> u64 {
    fs.sites().get(&(SimOp::SyncData, SEGMENTS.to_owned())).copied().unwrap_or(0)
}

/// Opens, appends over several segments, forgets, closes, opens again and appends once more. Every step may fail.
fn workload(fs: &SimFs, ledger: &mut Ledger) {
    for round in 0..2 {
        let Ok((log, _)) = open(fs) else { continue };
        for nth in 0..14 {
            let id = format!("{round}-{nth}-{}", "x".repeat(700));
            // Every third append repeats an earlier id.
            let again = format!("{}-{}-{}", round / 2, nth / 3, "x".repeat(700));
            let ack = if nth == 5 { Ack::Memory } else { Ack::Disk };
            let both = [id.as_str(), again.as_str()];
            _ = ledger.append(&log, &both[..if nth % 3 == 2 { 2 } else { 1 }], ack);
        }
        let below = log.bounds().next / 3;
        ledger.forgot(below);
        _ = log.forget(below);
        log.close();
    }
}

/// The log opens on what is left, holds what it owes, and takes more.
fn must_recover(fs: &SimFs, ledger: &Ledger, context: &str) {
    let mut ledger = ledger.clone();
    let (log, _) = open(fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    ledger.check(&log, context);
    let all: Vec<String> = ledger.owed.keys().cloned().collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let again = ledger.append(&log, &all, Ack::Disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(again.duplicates.len(), all.len(), "{context}: duplicates are known after a restart");
    ledger.append(&log, &["one more"], Ack::Disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    ledger.check(&log, context);
}

/// Calls that one undisturbed run of the workload makes.
fn calls_of(count: impl Fn(&SimFs) -> u64) -> u64 {
    let fs = SimFs::new();
    workload(&fs, &mut Ledger::default());
    count(&fs)
}

/// The `nth` call of `op` fails, with `errno`, once or for good, after `short_bytes` of a write.
fn fail_one(fault: Fault, seed: u64) {
    let context = format!("{fault:?}, seed {seed}");
    eprintln!("{context}");
    let fs = SimFs::new();
    fs.fail(fault);
    let mut ledger = Ledger::default();
    workload(&fs, &mut ledger);
    fs.heal();
    must_recover(&fs.after_kill(), &ledger, &format!("{context}, healed"));
    must_recover(&fs.after_crash(seed), &ledger, &format!("{context}, power cut"));
}

#[test]
fn any_call_may_fail_once_or_for_good_and_no_acknowledgement_is_false() {
    for op in SimOp::ALL {
        let calls = calls_of(|fs| fs.count(op));
        // Some calls more, because a failure makes others.
        for nth in 1..=calls + 3 {
            for (errno, sticky, short_bytes) in [(5, false, 0), (5, true, 0), (28, false, 333)] {
                fail_one(Fault { op, nth, errno, sticky, short_bytes }, nth);
            }
        }
    }
}

/// Power fails after the `calls`-th call of the workload.
fn cut_power(calls: u64, seed: u64) {
    let fs = SimFs::new();
    fs.cut_power_after(calls);
    let mut ledger = Ledger::default();
    workload(&fs, &mut ledger);
    fs.crash(seed);
    must_recover(&fs, &ledger, &format!("power cut after call {calls}, seed {seed}"));
}

#[test]
fn power_may_fail_after_any_call() {
    let calls = calls_of(SimFs::calls);
    for call in 0..=calls {
        cut_power(call, 0);
        cut_power(call, call * 7 + 1);
    }
}

#[test]
fn a_failed_group_withdraws_its_keys_burns_its_offsets_and_never_comes_back() {
    for op in [SimOp::Write, SimOp::SyncData] {
        for short_bytes in [0, 100, usize::MAX] {
            let fs = SimFs::new();
            let mut ledger = Ledger::default();
            let (log, _) = open(&fs).expect("a log");
            ledger.append(&log, &["before"], Ack::Disk).expect("stored");
            fs.fail(Fault { op, nth: fs.count(op) + 1, errno: 5, sticky: false, short_bytes });
            let failed = ledger.append(&log, &["failed", "before"], Ack::Disk);
            assert!(matches!(failed, Err(AppendError::Failed(_))), "{op:?}: {failed:?}");
            assert_eq!(log.bounds().next, 1, "{op:?}: nobody sees rows that were not acknowledged");
            let again = ledger.append(&log, &["failed", "before"], Ack::Disk).expect("stored in a new segment");
            assert_eq!(again.duplicates, [(0, 1)], "{op:?}: the failed key was withdrawn");
            assert_eq!(again.offsets[0], 2..3, "{op:?}: the failed offset is burnt");
            ledger.check(&log, "at once");
            assert_eq!(ids(&log.read(1, 1).expect("past the gap")), [(2, "failed".to_owned())], "{op:?}");
            must_recover(&fs.after_kill(), &ledger, &format!("{op:?} {short_bytes}, killed"));
            must_recover(&fs.after_crash(3), &ledger, &format!("{op:?} {short_bytes}, power cut"));
            drop(log);
            must_recover(&fs, &ledger, &format!("{op:?} {short_bytes}, closed"));
        }
    }
}

/// PostgreSQL's fsyncgate, over a restart: the fsync failed, no new segment could be made, the process was restarted, reads its
/// rows from the page cache, and the next fsync "succeeds".
#[test]
fn rows_that_an_fsync_lost_are_made_durable_before_they_count_as_duplicates() {
    let fs = SimFs::new();
    let mut ledger = Ledger::default();
    let (log, _) = open(&fs).expect("a log");
    ledger.append(&log, &["before"], Ack::Disk).expect("stored");
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::SyncData, fs.count(SimOp::SyncData) + 1) });
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Create, fs.count(SimOp::Create) + 1) });
    assert!(ledger.append(&log, &["lost"], Ack::Disk).is_err());
    let fs = fs.after_kill();
    let (log, report) = open(&fs).expect("a log");
    assert_eq!(report.rewritten_rows, 1, "{report:?}");
    let again = ledger.append(&log, &["lost"], Ack::Disk).expect("an answer");
    ledger.check(&log, "after the restart");
    must_recover(&fs.after_crash(0), &ledger, &format!("power cut after {again:?}"));
}

#[test]
fn while_the_disk_fails_every_append_is_answered_and_it_heals_without_a_restart() {
    let fs = SimFs::new();
    fs.track_sites();
    let health = Health::default();
    let mut ledger = Ledger::default();
    let (log, _) = open(&fs).expect("a log");
    log.report_health(health.stage("log"));
    ledger.append(&log, &["1"], Ack::Disk).expect("stored");
    for op in [SimOp::Write, SimOp::SyncData, SimOp::Create, SimOp::SyncDir] {
        fs.fail(Fault { sticky: true, ..Fault::eio(op, fs.count(op) + 1) });
        ledger.append(&log, &["2"], Ack::Disk).expect_err("the disk fails");
        for _ in 0..20 {
            let result = ledger.append(&log, &["2"], Ack::Disk);
            // A folder that cannot be synced only matters when a segment is made, which a failure before has brought about.
            assert!(result.is_err(), "{op:?}: {result:?}");
        }
        assert_eq!(health.details().len(), 1, "{op:?}");
        let files = fs.files().len();
        assert!(files < 10, "{op:?}: a failing disk is not filled with files: {files}");
        fs.heal();
        let id = format!("{op:?}");
        ledger.append(&log, &[&id], Ack::Disk).expect("healed");
        assert!(health.details().is_empty(), "{op:?}");
        ledger.check(&log, &id);
        // Leave the segment, so that the next kind of failure meets the making of one.
        fs.fail_at(SEGMENTS, Fault::eio(SimOp::SyncData, synced(&fs) + 1));
        ledger.append(&log, &["3"], Ack::Disk).expect_err("fails once");
    }
    must_recover(&fs.after_crash(5), &ledger, "at the end");
}

#[test]
fn a_queue_over_its_bound_refuses_at_once_and_forgets_nothing() {
    let fs = SimFs::new();
    let config = LogConfig { queue_bytes_max: 20_000, ..config() };
    let (log, _) = SegmentLog::open(Arc::new(fs.clone()), Path::new(DIR), config).expect("a log");
    let health = Health::default();
    log.report_health(health.stage("log"));
    fs.hold_sync(true);
    let big = "x".repeat(4000);
    let mut waiting = Vec::new();
    let refused = loop {
        let id = format!("{}-{big}", waiting.len());
        let mut reply = log.append(one(events("a", &[&id])));
        match reply.try_recv() {
            Ok(answer) => break answer.expect_err("nothing can be stored now"),
            Err(_) => waiting.push(reply),
        }
        assert!(waiting.len() < 100, "the queue has no bound");
    };
    assert!(matches!(refused, AppendError::Full(_)), "{refused}");
    assert!(!health.stuck(Instant::now() + Duration::from_secs(3600), Duration::ZERO).is_empty(), "work waits");
    assert!(log.read(0, 1).expect("reading goes on").is_empty());
    let stored = waiting.len() as u64;
    fs.hold_sync(false);
    for reply in waiting {
        answer(reply).expect("stored");
    }
    assert_eq!(log.bounds().next, stored);
    answer(log.append(one(events("a", &["after"])))).expect("room again");
}

#[test]
fn a_memory_ack_does_not_wait_for_the_disk() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    fs.hold_sync(true);
    let append = |id: &str, ack| log.append(Append { batches: vec![events("a", &[id])], ack });
    answer(append("1", Ack::Memory)).expect("taken");
    let mut disk = append("2", Ack::Disk);
    std::thread::sleep(Duration::from_millis(20));
    assert!(disk.try_recv().is_err(), "not durable, not acknowledged");
    assert_eq!(log.bounds().next, 0);
    fs.hold_sync(false);
    assert_eq!(answer(disk).expect("stored").offsets[0], 1..2);
}

#[test]
fn a_log_at_its_bound_is_full_until_something_is_forgotten() {
    let fs = SimFs::new();
    let config = LogConfig { log_bytes_max: 4 << 20, segment_bytes_max: 256 << 10, ..config() };
    let (log, _) = SegmentLog::open(Arc::new(fs), Path::new(DIR), config.clone()).expect("a log");
    let mut next = 0;
    let refused = loop {
        match answer(log.append(one(events("a", &[&format!("{next}-{}", "x".repeat(50_000))])))) {
            Ok(_) => next += 1,
            Err(error) => break error,
        }
        assert!(next < 100, "the log has no bound");
    };
    assert!(matches!(refused, AppendError::Full(_)), "{refused}");
    assert!(log.bytes_used() <= config.log_bytes_max);
    assert_eq!(ids(&log.read(0, usize::MAX).expect("reading goes on")).len(), next);
    log.forget(next as u64).expect("forgotten");
    answer(log.append(one(events("a", &["more"])))).expect("room again");
}

#[test]
fn a_full_disk_refuses_before_it_breaks_and_goes_on_when_there_is_space() {
    // With a reserve the log stops in time; without one it meets ENOSPC in the middle of a write.
    for free_bytes_min in [200_000, 0] {
        let fs = SimFs::new();
        fs.set_capacity(Some(2 << 20));
        let config = LogConfig { free_bytes_min, ..config() };
        let (log, _) = SegmentLog::open(Arc::new(fs.clone()), Path::new(DIR), config).expect("a log");
        let mut ledger = Ledger::default();
        let refused = (0..200)
            .find_map(|nth| ledger.append(&log, &[&format!("{nth}-{}", "x".repeat(30_000))], Ack::Disk).err())
            .expect("a disk has an end");
        assert!(matches!(refused, AppendError::Full(_)), "{refused}");
        assert!(fs.free_bytes(Path::new(DIR)).expect("known") >= free_bytes_min);
        ledger.check(&log, "full");
        must_recover(&fs_with_space(&fs.after_crash(1)), &ledger, "full, power cut");
        fs.set_capacity(Some(8 << 20));
        ledger.append(&log, &["more"], Ack::Disk).expect("space again");
        ledger.check(&log, "space again");
    }
}

fn fs_with_space(fs: &SimFs) -> SimFs {
    fs.set_capacity(None);
    fs.clone()
}

#[test]
fn a_log_is_open_once() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    assert!(matches!(open(&fs), Err(PipelineError::Locked(_))));
    drop(log);
    open(&fs).expect("free again");
}

#[test]
fn a_closed_log_refuses_and_was_drained() {
    let fs = SimFs::new();
    fs.set_sync_delay(Duration::from_millis(2));
    let (log, _) = open(&fs).expect("a log");
    let replies: Vec<_> = (0..20).map(|id| log.append(one(events("a", &[&id.to_string()])))).collect();
    log.close();
    for reply in replies {
        answer(reply).expect("what was queued is stored");
    }
    assert!(matches!(answer(log.append(one(events("a", &["late"])))), Err(AppendError::Closed)));
    assert_eq!(ids(&log.read(0, usize::MAX).expect("reading goes on")).len(), 20);
}

#[test]
fn bounds_that_cannot_work_are_refused() {
    type Change = fn(&mut LogConfig);
    let wrong: [(&str, Change); 4] = [
        ("segment_bytes_max", |config| config.segment_bytes_max = 4095),
        ("log_bytes_max", |config| config.log_bytes_max = (4 << 20) - 1),
        ("queue_bytes_max", |config| config.queue_bytes_max = 0),
        ("group_bytes_max", |config| config.group_bytes_max = 0),
    ];
    for (name, change) in wrong {
        let mut config = config();
        change(&mut config);
        let refused = SegmentLog::open(Arc::new(SimFs::new()), Path::new(DIR), config).err();
        let told = matches!(&refused, Some(PipelineError::Invalid(why)) if why.contains(name));
        assert!(told, "{name}: {refused:?}");
    }
}

#[test]
fn an_outlived_summary_that_cannot_be_removed_is_removed_later() {
    let fs = SimFs::new();
    let config = LogConfig { dedup_keys_max: 4, ..config() };
    let (log, _) = SegmentLog::open(Arc::new(fs.clone()), Path::new(DIR), config).expect("a log");
    let fill = |from: usize| {
        for nth in from..from + 30 {
            answer(log.append(one(events("a", &[&format!("{nth}-{}", "x".repeat(900))])))).expect("stored");
        }
    };
    let orphans = || {
        let files = fs.files();
        let of = |end: &str| files.iter().filter(|path| path.extension().is_some_and(|is| is == end)).count();
        of("sum").saturating_sub(of("log"))
    };
    fill(0);
    fs.track_sites();
    fs.fail_at("log/*.sum", Fault { sticky: true, ..Fault::eio(SimOp::Remove, 1) });
    log.forget(25).expect("forgotten, if not to the last file");
    assert!(fs.failed() > 0 && orphans() > 1, "{} failures, {} orphans", fs.failed(), orphans());
    fs.heal();
    fill(30);
    log.forget(50).expect("forgotten");
    assert!(orphans() <= 1, "{} summaries have outlived their use", orphans());
}
