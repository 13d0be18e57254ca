//! Edges of the log that mutated code has shown no other test to lean on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{DataType, Field, Schema};
use tidegate_events::Dataset;
use tidegate_pipeline::fs::{DirChange, Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::log::format::SegmentHeader;
use tidegate_pipeline::log::{LogConfig, MemoryLog, SegmentLog, memory_bytes, verify};
use tidegate_pipeline::{Ack, AppendError, EventBatch, Health, LogReader, StreamLog};

use crate::log_ledger::{DIR, answer, config, open};
use crate::log_rows::{events, one};
use crate::watched_fs::{Watch, WatchedFs};

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
fn a_log_in_memory_is_full_until_it_forgets() {
    let log = MemoryLog::new(100, 1);
    answer(log.append(one(events("a", &["1"])))).expect("the first batch has room");
    let refused = answer(log.append(one(events("a", &["2"]))));
    assert!(matches!(refused, Err(AppendError::Full(_))), "{refused:?}");
    log.forget(1).expect("forgotten");
    assert_eq!(answer(log.append(one(events("a", &["2"])))).expect("room again").offsets[0], 1..2);
    assert_eq!((log.bounds().first, log.bounds().next), (1, 2));
}

#[test]
fn columns_that_could_not_be_read_again_are_refused() {
    let (log, _) = open(&SimFs::new()).expect("a log");
    let item = |kind| DataType::List(Arc::new(Field::new("item", kind, true)));
    for kind in [
        DataType::Float32,
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        item(item(DataType::Utf8)),
        item(DataType::Utf8View),
    ] {
        let rows = RecordBatch::try_from_iter([("column", new_null_array(&kind, 2))]).expect("a batch");
        let batch = EventBatch { dataset: Dataset::SecurityEvents, rows, keys: Vec::new() };
        let refused = answer(log.append(one(batch)));
        assert!(matches!(refused, Err(AppendError::Failed(_))), "{kind}: {refused:?}");
    }
    assert_eq!(log.bounds().next, 0);
}

#[test]
fn on_a_full_disk_the_last_group_is_made_durable_where_it_is() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    answer(log.append(one(events("a", &["1"])))).expect("stored");
    let fs = fs.after_kill();
    let used = fs.files().iter().map(|path| fs.bytes(path).expect("bytes").len() as u64).sum();
    fs.set_capacity(Some(used));
    let syncs = fs.count(SimOp::SyncData);
    let (log, report) = open(&fs).expect("a full disk is no reason not to start");
    assert_eq!((report.rewritten_rows, report.next, report.keys), (0, 1, 1), "{report:?}");
    assert!(fs.count(SimOp::SyncData) > syncs);
    assert_eq!(log.read(0, usize::MAX).expect("readable").len(), 1);
    drop(log);
    // A disk that fails is one.
    let fs = fs.after_kill();
    for path in files(&fs, "sum") {
        fs.lose(&path);
    }
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Create, 1) });
    open(&fs).expect_err("what is shown must be durable");
}

#[test]
fn a_file_in_the_place_of_the_next_segment_is_left_alone_and_passed_over() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let place = Path::new(DIR).join(format!("{:020}.log", 0));
    fs.set_bytes(&place, b"of somebody else".to_vec());
    answer(log.append(one(events("a", &["1"])))).expect_err("there is a file");
    assert_eq!(answer(log.append(one(events("a", &["1"])))).expect("in another one").offsets[0], 1..2);
    assert_eq!(fs.bytes(&place).expect("bytes"), b"of somebody else");
}

#[test]
fn what_a_crash_left_half_written_is_removed_at_the_next_start_and_nothing_else() {
    let fs = two_rows();
    let names = ["00000000000000000000.sum.tmp", "00000000000000000007.log.tmp", "0.log.tmp", "notes.txt", "1.sum"];
    for name in names {
        fs.set_bytes(&Path::new(DIR).join(name), vec![1]);
    }
    let (_, report) = open(&fs).expect("it opens");
    assert_eq!((report.segments, report.next), (1, 2), "{report:?}");
    let left = names.map(|name| fs.bytes(&Path::new(DIR).join(name)).is_some());
    assert_eq!(left, [false, false, true, true, true]);
}

/// The writer of the log falls over, once it is told to.
#[derive(Debug, Default)]
struct Panics {
    now: AtomicBool,
}

impl Watch for Panics {
    fn asks_free_bytes(&self) {
        assert!(!self.now.load(Ordering::Relaxed), "the test makes the writer panic");
    }
}

#[test]
fn when_the_writer_panics_everybody_is_answered_and_it_is_said() {
    let fs = Arc::new(WatchedFs { fs: SimFs::new(), watch: Panics::default() });
    let (log, _) = SegmentLog::open(fs.clone(), Path::new(DIR), config()).expect("a log");
    let health = Health::default();
    log.report_health(health.stage("log"));
    answer(log.append(one(events("a", &["1"])))).expect("stored");
    fs.watch.now.store(true, Ordering::Relaxed);
    let replies: Vec<_> = (0..20).map(|row| log.append(one(events("a", &[&format!("more {row}")])))).collect();
    for reply in replies {
        let answer = answer(reply);
        assert!(matches!(answer, Err(AppendError::Closed)), "{answer:?}");
    }
    let refused = answer(log.append(one(events("a", &["late"]))));
    assert!(matches!(refused, Err(AppendError::Closed)), "{refused:?}");
    assert_eq!(health.details().len(), 1);
    assert_eq!(log.read(0, usize::MAX).expect("reading goes on").len(), 1);
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
