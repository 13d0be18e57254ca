//! Edges of the log that mutated code has shown no other test to lean on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::Schema;
use tidegate_pipeline::fs::{DirChange, Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::log::format::SegmentHeader;
use tidegate_pipeline::log::{LogConfig, MemoryLog, SegmentLog, memory_bytes, verify};
use tidegate_pipeline::{Ack, LogReader, StreamLog};

use crate::log_ledger::{DIR, answer, config, open};
use crate::log_rows::{events, one};

fn files(fs: &SimFs, extension: &str) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == extension)).collect()
}

/// A log of two rows, closed.
fn two_rows() -> SimFs {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    answer(log.append(one(events("a", &["1", "2"])))).expect("stored");
    drop(log);
    fs
}

#[test]
fn the_last_rows_are_not_forgotten_for_an_empty_segment_after_them() {
    let fs = two_rows();
    let header = SegmentHeader { first: 2, sealed_at: 2, salt: 7, made_us: 0 };
    fs.set_bytes(&Path::new(DIR).join("00000000000000000002.log"), header.encode().to_vec());
    let (log, report) = open(&fs).expect("it opens");
    assert_eq!((report.segments, report.damage.len()), (2, 0), "{report:?}");
    log.forget(2).expect("nothing to do");
    assert_eq!(log.bounds().first, 0, "the log would not know any more how far it has counted");
    assert_eq!(log.read(0, usize::MAX).expect("readable").len(), 1);
    // With rows after it, it may go.
    answer(log.append(one(events("a", &["3"])))).expect("stored");
    log.forget(2).expect("forgotten");
    assert!(log.bounds().first >= 2);
}

/// As [`two_rows`], with a summary whose last byte, one of its keys, is another.
fn two_rows_with_damaged_keys() -> SimFs {
    let fs = two_rows();
    let path = files(&fs, "sum").remove(0);
    let mut bytes = fs.bytes(&path).expect("bytes");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs.set_bytes(&path, bytes);
    fs
}

#[test]
fn a_summary_whose_keys_are_damaged_is_whole_again_after_a_start() {
    let fs = two_rows_with_damaged_keys();
    assert!(!verify(&fs, Path::new(DIR)).expect("reports")[0].summarised, "its keys are damaged");
    let (log, report) = open(&fs).expect("it opens");
    assert_eq!(report.keys, 2, "from the segment");
    drop(log);
    assert!(verify(&fs, Path::new(DIR)).expect("reports")[0].summarised);
}

#[test]
fn keys_that_cannot_be_read_now_keep_the_log_from_opening_rather_than_being_forgotten() {
    let fs = two_rows_with_damaged_keys();
    // From any read on, the disk is gone: opening fails, and never comes back without the keys.
    let mut refused = 0;
    for nth in 1..60 {
        let fs = fs.after_kill();
        fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Read, nth) });
        match open(&fs) {
            Ok((_, report)) => assert_eq!(report.keys, 2, "read {nth}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 3, "{refused} starts were refused");
}

#[test]
fn a_batch_takes_memory_even_without_columns() {
    let options = RecordBatchOptions::new().with_row_count(Some(3));
    let bare = RecordBatch::try_new_with_options(Schema::empty().into(), Vec::new(), &options).expect("rows");
    assert_eq!(memory_bytes(&bare), size_of::<RecordBatch>());
    let rows = events("a", &["1"]).rows;
    let one = rows.project(&[0]).expect("a column");
    let buffer = one.column(0).to_data().buffers()[0].capacity();
    assert_eq!(memory_bytes(&one), size_of::<RecordBatch>() + buffer);
    let twice = rows.project(&[0, 0]).expect("the same column");
    assert_eq!(memory_bytes(&twice), memory_bytes(&one), "an allocation counts once");
}

#[test]
fn what_was_reached_is_said_in_the_words_of_the_header() {
    assert_eq!([Ack::Disk, Ack::Memory, Ack::Broker].map(Ack::as_str), ["disk", "memory", "broker"]);
}

#[test]
fn a_log_in_memory_has_no_batch_without_a_row() {
    let log = MemoryLog::new(100, usize::MAX);
    for ids in [["1", "2"].as_slice(), &[], &["2", "1"], &["3"]] {
        answer(log.append(one(events("a", ids)))).expect("answered");
    }
    let batches = log.read(0, usize::MAX).expect("batches");
    assert_eq!(batches.iter().map(|batch| batch.offset).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn an_append_larger_than_a_group_may_be_is_stored_all_the_same() {
    let config = LogConfig { group_bytes_max: 1, queue_bytes_max: 1, ..config() };
    let (log, _) = SegmentLog::open(Arc::new(SimFs::new()), Path::new(DIR), config).expect("a log");
    for row in 0..5 {
        answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
    }
    assert_eq!(log.bounds().next, 5);
}

#[test]
fn verify_tells_which_rows_a_missing_segment_had() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for row in 0..60 {
        answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
    }
    drop(log);
    let whole = verify(&fs, Path::new(DIR)).expect("reports");
    assert!(whole.len() > 4 && whole.iter().all(|report| report.damage.is_empty()), "{whole:?}");
    for missing in [1, 2, whole.len() - 2] {
        let fs = fs.after_kill();
        fs.change(DirChange::Remove(&whole[missing].path)).expect("removed");
        let reports = verify(&fs, Path::new(DIR)).expect("reports");
        let told: Vec<_> = reports
            .iter()
            .flat_map(|report| &report.damage)
            .map(|damage| (damage.rows.start, damage.rows.end))
            .collect();
        assert_eq!(told, [(whole[missing].first, whole[missing].end)], "without segment {missing}");
    }
}
