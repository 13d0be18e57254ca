//! Several layouts in one segment: a schema stands twice, and no copy of another one is taken for it. And what stands after the
//! last frame.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use tidegate_events::Dataset;
use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::log::format::{FRAMES_START, FrameHeader, FrameKind};
use tidegate_pipeline::{Ack, Append, EventBatch, LogReader, StreamLog};

use crate::counted::Counted;
use crate::log_ledger::{Ledger, answer, open};
use crate::log_rows::{events, one};

/// The same event with more or fewer of its columns.
fn layout(columns: usize, id: &str) -> EventBatch {
    let batch = events("a", &[id]);
    let kept: Vec<usize> = (0..columns).collect();
    EventBatch { rows: batch.rows.project(&kept).expect("columns"), ..batch }
}

#[test]
fn a_flipped_byte_in_a_schema_costs_no_row_whatever_layouts_stand_around_it() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let mut sent: Vec<RecordBatch> = Vec::new();
    for (nth, columns) in [7, 4, 5, 7].into_iter().enumerate() {
        let batch = layout(columns, &nth.to_string());
        sent.push(batch.rows.clone());
        answer(log.append(one(batch))).expect("stored");
    }
    let fs = fs.after_kill();
    let path = fs.files().into_iter().find(|path| path.extension().is_some_and(|is| is == "log")).expect("a segment");
    let whole = fs.bytes(&path).expect("bytes");
    let mut at = FRAMES_START as usize;
    let mut flips = 0;
    while let Some(header) = whole.get(at..).and_then(FrameHeader::decode) {
        let end = at + header.frame_len() as usize;
        let places = if header.kind == FrameKind::Schema { at..end } else { 0..0 };
        for place in places.step_by(13) {
            let fs = fs.after_kill();
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            fs.set_bytes(&path, bytes);
            // Once by the scan of a start, and once by a reader that goes by the summary.
            for start in ["scanned", "by its summary"] {
                let (log, _) = open(&fs).expect("it opens");
                let read = log.read(0, usize::MAX).expect("readable");
                let rows: Vec<_> = read.iter().map(|batch| batch.rows.clone()).collect();
                assert_eq!(rows, sent, "{start}, byte {place} flipped");
            }
            flips += 1;
        }
        at = end;
    }
    assert!(flips > 200, "{flips} flips");
    assert_eq!(Arc::new(fs).files().len(), 2, "one segment and the lock");
}

#[test]
fn each_layout_of_a_group_stands_twice_in_it_and_no_more() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let sent: Vec<EventBatch> = [7, 4, 7, 5, 4].iter().zip(0..).map(|(n, id)| layout(*n, &format!("{id}"))).collect();
    let append = Append { batches: sent.clone(), ack: Ack::Disk };
    answer(log.append(append)).expect("stored");
    // A group after it, so that a start does not write this one again.
    answer(log.append(one(layout(5, "after")))).expect("stored");
    let fs = fs.after_kill();
    let path = files(&fs, "log").remove(0);
    let whole = fs.bytes(&path).expect("bytes");
    let (mut at, mut schemas) = (FRAMES_START as usize, std::collections::BTreeMap::new());
    while let Some(header) = whole.get(at..).and_then(FrameHeader::decode) {
        if header.kind == FrameKind::Schema {
            *schemas.entry(header.schema_id).or_insert(0) += 1;
        }
        at += header.frame_len() as usize;
    }
    assert_eq!(schemas.into_values().collect::<Vec<_>>(), [2, 2, 2]);
    let (log, report) = open(&fs).expect("it opens");
    assert!(report.damage.is_empty(), "{report:?}");
    let read = log.read(0, usize::MAX).expect("readable");
    assert!(read.iter().zip(&sent).all(|(read, sent)| read.rows == sent.rows), "each with its own schema");
    assert_eq!(read.len(), 6);
}

#[test]
fn rows_of_the_last_group_that_are_of_no_use_are_told_once() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let batches = [(7, "1"), (4, "2"), (5, "3")].map(|(columns, id)| layout(columns, id)).to_vec();
    let append = Append { batches, ack: Ack::Disk };
    answer(log.append(append)).expect("stored");
    let fs = fs.after_kill();
    let path = files(&fs, "log").remove(0);
    let whole = fs.bytes(&path).expect("bytes");
    let (mut at, mut headers) = (FRAMES_START as usize, Vec::new());
    while let Some(header) = whole.get(at..).and_then(FrameHeader::decode) {
        headers.push((at, header));
        at += header.frame_len() as usize;
    }
    let second = headers.iter().find(|(_, header)| header.rows > 0 && header.base == 1).expect("a batch").1;
    let mut bytes = whole;
    for (at, header) in headers {
        if header.kind == FrameKind::Schema && header.schema_id == second.schema_id {
            bytes[at + 64 + 20] ^= 1;
        }
    }
    fs.set_bytes(&path, bytes);
    let work = || {
        let (log, report) = open(&fs).expect("it opens");
        let read = || log.read(0, usize::MAX).expect("readable").iter().map(|batch| batch.offset).collect::<Vec<_>>();
        (report.rewritten_rows, read(), read())
    };
    let ((_, first, again), counted) = Counted::during(work);
    assert_eq!((first, again), (vec![0, 2], vec![0, 2]));
    assert_eq!(counted.of("log_lost_rows_total"), 1);
}

#[test]
fn zeros_after_the_last_frame_are_its_end_and_anything_else_is_a_torn_tail() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    answer(log.append(one(layout(7, "1")))).expect("stored");
    let fs = fs.after_kill();
    let path = fs.files().into_iter().find(|path| path.extension().is_some_and(|is| is == "log")).expect("a segment");
    let whole = fs.bytes(&path).expect("bytes");
    for (tail, torn_bytes) in [(vec![0; 4096], 0), (vec![0x55; 4096], 4096), ([vec![0; 100], vec![1]].concat(), 101)] {
        let fs = fs.after_kill();
        fs.set_bytes(&path, [whole.clone(), tail].concat());
        let (log, report) = open(&fs).expect("it opens");
        assert_eq!((report.torn_bytes, report.damage.len()), (torn_bytes, 0), "{report:?}");
        assert_eq!(log.read(0, 1).expect("readable").len(), 1);
    }
}

#[test]
fn changes_that_cannot_be_read_now_are_an_error_and_not_nothing() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let changes = EventBatch { dataset: Dataset::Changes, ..layout(7, "1") };
    answer(log.append(one(changes))).expect("stored");
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Read, fs.count(SimOp::Read) + 1) });
    log.changes_from(0).expect_err("the disk is gone: rules and keys are not");
    fs.heal();
    assert_eq!(log.changes_from(0).expect("readable").len(), 1);
}

fn files(fs: &SimFs, extension: &str) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == extension)).collect()
}

/// Flips a bit in the payload of every schema frame of a segment; returns its bytes as they were.
fn lose_schemas(fs: &SimFs, path: &Path) -> Vec<u8> {
    let whole = fs.bytes(path).expect("bytes");
    let mut bytes = whole.clone();
    let mut at = FRAMES_START as usize;
    while let Some(header) = whole.get(at..).and_then(FrameHeader::decode) {
        if header.kind == FrameKind::Schema {
            bytes[at + 64 + 20] ^= 1;
        }
        at += header.frame_len() as usize;
    }
    fs.set_bytes(path, bytes);
    whole
}

#[test]
fn rows_whose_schema_is_lost_in_their_segment_are_read_with_that_of_another() {
    let (fs, mut ledger) = (SimFs::new(), Ledger::default());
    let (log, _) = open(&fs).expect("a log");
    let ids: Vec<String> = (0..12).map(|nth| format!("{nth}-{}", "x".repeat(700))).collect();
    for id in &ids {
        ledger.append(&log, &[id], Ack::Disk).expect("stored");
    }
    let killed = fs.after_kill();
    log.close();
    let segments = files(&fs, "log");
    assert!(segments.len() > 2, "{segments:?}");
    // A start that goes by summaries, and one that reads everything; the schema lost in the first, the last, all but one.
    for (fs, what) in [(fs, "closed"), (killed, "killed")] {
        // (The last group of a killed log is written again, with a schema of its own.)
        for kept in [0, 1, if what == "closed" { segments.len() - 1 } else { 1 }] {
            let fs = fs.after_kill();
            for (_, path) in segments.iter().enumerate().filter(|(nth, _)| *nth != kept) {
                lose_schemas(&fs, path);
            }
            for start in ["first", "second"] {
                let (log, _) = open(&fs).expect("it opens");
                ledger.check(&log, &format!("{what}, kept in {kept}, {start} start"));
                let again =
                    answer(log.append(one(events("acme", &[ids[0].as_str(), ids[11].as_str()])))).expect("answered");
                assert_eq!(again.duplicates.len(), 2, "{what}, kept in {kept}, {start} start");
            }
        }
    }
}

#[test]
fn a_schema_whose_segment_cannot_be_opened_now_is_looked_for_again() {
    let (fs, mut ledger) = (SimFs::new(), Ledger::default());
    let (log, _) = open(&fs).expect("a log");
    for nth in 0..12 {
        ledger.append(&log, &[&format!("{nth}-{}", "x".repeat(700))], Ack::Disk).expect("stored");
    }
    log.close();
    let segments = files(&fs, "log");
    for path in &segments[..segments.len() - 1] {
        lose_schemas(&fs, path);
    }
    let mut failed = 0;
    for nth in 1..=2 * segments.len() as u64 {
        let fs = fs.after_kill();
        let (log, _) = open(&fs).expect("it opens");
        fs.fail(Fault::eio(SimOp::Open, fs.count(SimOp::Open) + nth));
        failed += usize::from(log.read(0, usize::MAX).is_err());
        fs.heal();
        ledger.check(&log, &format!("opening {nth} failed"));
    }
    assert!(failed > segments.len(), "{failed} reads met the fault");
}

#[test]
fn rows_that_a_start_gave_up_do_not_come_back_beside_their_own_retry() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for ids in [["1", "2"], ["3", "4"]] {
        answer(log.append(one(events("acme", &ids)))).expect("stored");
    }
    let fs = fs.after_kill();
    let segment = files(&fs, "log").remove(0);
    let whole = lose_schemas(&fs, &segment);
    let (log, report) = open(&fs).expect("it opens");
    let lost: u64 = report.damage.iter().map(|(_, damage)| damage.rows_lost()).sum();
    assert_eq!(lost, 4, "told: {report:?}");
    let mut ledger = Ledger::default();
    ledger.append(&log, &["1", "2"], Ack::Disk).expect("what was lost is stored again");
    ledger.append(&log, &["3", "4", "5"], Ack::Disk).expect("what was lost is stored again");
    fs.set_bytes(&segment, whole);
    let ((), counted) = Counted::during(|| ledger.check(&log, "the bytes are back"));
    assert_eq!(counted.of("log_lost_rows_total"), 0, "the start has told of them");
    drop(log);
    let (log, report) = open(&fs).expect("it opens");
    assert!(report.damage.is_empty(), "by its summary: {report:?}");
    ledger.check(&log, "after a start");
    drop(log);
    // The summary is made anew, and remembers.
    let summary = files(&fs, "sum").remove(0);
    let mut bytes = fs.bytes(&summary).expect("bytes");
    bytes[16] ^= 1; // The CRC of the keys.
    fs.set_bytes(&summary, bytes);
    for start in ["that scans", "after it"] {
        let (log, _) = open(&fs).expect("it opens");
        ledger.check(&log, start);
    }
}
