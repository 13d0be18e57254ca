//! Bugs of other systems that must not be ours. Each test names where it comes from.

use std::path::Path;
use std::sync::Arc;

use tidegate_pipeline::fs::{Fault, SimFs, SimOp, make_dir_durable};
use tidegate_pipeline::log::SegmentLog;
use tidegate_pipeline::{Ack, Health, LogReader, StreamLog};

use crate::log_ledger::{Ledger, answer, config, open};
use crate::log_rows::{events, ids, one};

fn segments(fs: &SimFs) -> Vec<std::path::PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "log")).collect()
}

/// A log of several segments, and what it owes.
fn several() -> (SimFs, Ledger) {
    let (fs, mut ledger) = (SimFs::new(), Ledger::default());
    let (log, _) = open(&fs).expect("a log");
    for nth in 0..40 {
        ledger.append(&log, &[&format!("{nth}-{}", "x".repeat(500))], Ack::Disk).expect("stored");
    }
    (fs.after_kill(), ledger)
}

/// InfluxDB #26549 and #26970: a power cut leaves a zero-byte newest file, and the server panics, or skips it in silence.
#[test]
fn influxdb_26549_a_zero_byte_newest_file_opens_and_is_told() {
    let (fs, ledger) = several();
    let newest = fs.files().iter().filter_map(|path| path.file_stem()?.to_str()?.parse::<u64>().ok()).max();
    let path = Path::new("/data/log").join(format!("{:020}.log", newest.expect("a segment") + 1));
    for bytes in [0, 1, 63, 64] {
        let fs = fs.after_kill();
        fs.set_bytes(&path, vec![0; bytes]);
        let (log, report) = open(&fs).expect("it opens");
        assert_eq!(report.half_made, std::slice::from_ref(&path), "{bytes} bytes: {report:?}");
        assert!(report.damage.is_empty(), "{bytes} bytes: it costs nothing: {report:?}");
        ledger.check(&log, "at once");
        let mut ledger = ledger.clone();
        ledger.append(&log, &["more"], Ack::Disk).expect("stored");
        ledger.check(&log, "after an append");
    }
}

/// Vector #25570: a crash after a consumed file was removed, but before the position behind it was saved, and the next start
/// crashes over the missing file, again and again.
#[test]
fn vector_25570_a_segment_removed_before_the_checkpoint_was_saved_is_no_error() {
    let (fs, mut ledger) = several();
    let (log, _) = open(&fs).expect("a log");
    let below = log.bounds().next / 2;
    ledger.forgot(below);
    log.forget(below).expect("forgotten");
    let first = log.bounds().first;
    assert!(first > 0);
    // A consumer whose position is older than what is left.
    for fs in [fs.after_kill(), fs.after_crash(0), fs.after_crash(3)] {
        let (log, report) = open(&fs).expect("it opens");
        assert!(report.damage.is_empty(), "{report:?}");
        let reading =
            tidegate_pipeline::tailing::read_on(&log, 0, usize::MAX).expect("it goes on where there is something");
        assert_eq!(reading.forgotten, first, "and says how much is gone");
        ledger.check(&log, "after a start");
    }
}

/// Vector #25766: the folders of a first start were not durable, so a power cut took the acknowledged events with them.
#[test]
fn vector_25766_the_folders_of_a_first_start_are_durable_before_the_first_answer() {
    let fs = SimFs::new();
    let dir = Path::new("/srv/new/deeply/nested/log");
    let open = |fs: &SimFs| SegmentLog::open(Arc::new(fs.clone()), dir, config()).expect("a log").0;
    answer(open(&fs).append(one(events("a", &["first"])))).expect("stored");
    let log = open(&fs.after_crash(0));
    assert_eq!(ids(&log.read(0, usize::MAX).expect("readable")), [(0, "first".to_owned())]);
    let made = SimFs::new();
    make_dir_durable(&made, dir).expect("made");
    made.crash(0);
    assert!(tidegate_pipeline::fs::Fs::list(&made, dir).is_ok(), "every folder of the chain");
}

/// Fluent Bit #11847 and OpenTelemetry #35899: one file with a bad checksum, and nothing flows any more, or nothing starts.
#[test]
fn fluent_bit_11847_a_bad_checksum_in_one_segment_stops_nothing_else() {
    let (fs, mut ledger) = several();
    let path = &segments(&fs)[1];
    let mut bytes = fs.bytes(path).expect("bytes");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs.set_bytes(path, bytes);
    let (log, _) = open(&fs).expect("it opens");
    let health = Health::default();
    log.report_health(health.stage("log"));
    ledger.append(&log, &["more"], Ack::Disk).expect("ingest goes on");
    let rows = ids(&log.read(0, usize::MAX).expect("reading goes on"));
    assert_eq!(rows.len(), 40, "all but the one that was hit");
    assert!(health.details().is_empty(), "ingest works, and is not said to be broken: {:?}", health.details());
}

/// Vector #22489, Quickwit's ingest and VictoriaLogs: the answer comes before the next tick of a timer makes it durable.
#[test]
fn vector_22489_what_was_answered_survives_a_power_cut_in_the_very_next_moment() {
    let (fs, mut ledger) = (SimFs::new(), Ledger::default());
    let (log, _) = open(&fs).expect("a log");
    for nth in 0..50 {
        ledger.append(&log, &[&nth.to_string()], Ack::Disk).expect("stored");
        for fs in [fs.after_kill(), fs.after_crash(0)] {
            ledger.check(&open(&fs).expect("it opens").0, &format!("after answer {nth}"));
        }
    }
}

/// PostgreSQL's fsyncgate: after a failed fsync the next one succeeds, and has written nothing.
#[test]
fn postgresql_fsyncgate_a_segment_whose_fsync_failed_is_never_written_or_synced_again() {
    let (fs, mut ledger) = (SimFs::new(), Ledger::default());
    let (log, _) = open(&fs).expect("a log");
    ledger.append(&log, &["before"], Ack::Disk).expect("stored");
    let segment = segments(&fs).remove(0);
    fs.track_sites();
    fs.fail(Fault::eio(SimOp::SyncData, fs.count(SimOp::SyncData) + 1));
    ledger.append(&log, &["failed"], Ack::Disk).expect_err("its fsync failed");
    let left = fs.bytes(&segment).expect("bytes");
    for nth in 0..5 {
        ledger.append(&log, &[&nth.to_string()], Ack::Disk).expect("stored in another segment");
    }
    assert_eq!(fs.bytes(&segment).expect("bytes"), left, "not a byte more");
    assert_eq!(segments(&fs).len(), 2);
    // The disk lost the pages of the failed fsync; what was answered before and after it is there.
    ledger.check(&open(&fs.after_crash(0)).expect("it opens").0, "after a power cut");
}

/// NATS 2.12.1 (Jepsen): one flipped bit in the middle of a file, and everything after it is gone.
#[test]
fn nats_2_12_1_a_flipped_bit_costs_its_record_and_not_what_follows() {
    let (fs, _) = several();
    for path in segments(&fs) {
        let whole = fs.bytes(&path).expect("bytes");
        for at in (128..whole.len()).step_by(whole.len() / 9) {
            let fs = fs.after_kill();
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs.set_bytes(&path, bytes);
            let (log, _) = open(&fs).expect("it opens");
            let rows = ids(&log.read(log.bounds().first, usize::MAX).expect("readable"));
            assert!(rows.len() >= 39, "byte {at} of {}: {} rows", path.display(), rows.len());
        }
    }
}
