//! Several layouts in one segment: a schema stands twice, and no copy of another one is taken for it. And what stands after the
//! last frame.

use std::sync::Arc;

use arrow::array::RecordBatch;
use tidegate_events::Dataset;
use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::log::format::{FRAMES_START, FrameHeader, FrameKind};
use tidegate_pipeline::{EventBatch, StreamLog};

use crate::log_ledger::{answer, open};
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
