//! Offsets that no log can have come to: a file that claims them, checksums and all, costs no later event.

use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::log::format::{ALIGN, FRAMES_START, FrameHeader, FrameKind, OFFSET_MAX, SegmentHeader};
use tidegate_pipeline::{AppendError, LogReader, StreamLog};

use crate::log_ledger::{answer, open};
use crate::log_rows::{events, ids, one};

/// The ids that can be read.
fn readable(log: &dyn LogReader) -> Vec<String> {
    let (mut all, mut from) = (Vec::new(), log.bounds().first);
    while from < log.bounds().next {
        let batches = log.read(from, usize::MAX).expect("reads");
        let Some(last) = batches.last() else { break };
        from = last.next_offset();
        all.extend(ids(&batches).into_iter().map(|(_, id)| id));
    }
    all
}

/// A log of two groups of a row, whose second row says that its offset is `base`.
fn forged(base: u64) -> SimFs {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for id in ["1", "2"] {
        answer(log.append(one(events("a", &[id])))).expect("stored");
    }
    drop(log);
    let path = fs.files().into_iter().find(|path| path.extension().is_some_and(|end| end == "log")).expect("a segment");
    let mut bytes = fs.bytes(&path).expect("its bytes");
    let frames = (FRAMES_START as usize..bytes.len()).step_by(ALIGN as usize);
    let mut batches = frames.filter_map(|at| Some((at, FrameHeader::decode(&bytes[at..])?)));
    let (at, header) = batches.rfind(|(_, header)| header.kind == FrameKind::Batch).expect("a batch");
    assert_eq!(header.base, 1);
    let claim = FrameHeader { base, ..header }.encode();
    bytes[at..at + claim.len()].copy_from_slice(&claim);
    fs.set_bytes(&path, bytes);
    fs.files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "sum"))
        .for_each(|sum| fs.lose(&sum));
    fs
}

#[test]
fn a_row_beyond_the_largest_offset_is_damage_and_the_log_goes_on_at_its_own() {
    for base in [OFFSET_MAX, OFFSET_MAX + 1, u64::MAX - 1, u64::MAX] {
        let fs = forged(base);
        let (log, _) = open(&fs).expect("opens");
        assert_eq!(readable(&log), ["1"], "{base}");
        answer(log.append(one(events("a", &["3"])))).expect("stored");
        assert!(log.bounds().next < 1_000, "{base}: {:?}", log.bounds());
        drop(log);
        assert_eq!(readable(&open(&fs).expect("opens").0), ["1", "3"], "{base}");
    }
}

#[test]
fn a_log_whose_offsets_are_used_up_takes_what_fits_and_refuses_the_rest() {
    let fs = forged(OFFSET_MAX - 2);
    let (log, _) = open(&fs).expect("opens");
    assert_eq!(readable(&log), ["1", "2"]);
    answer(log.append(one(events("a", &["3"])))).expect("the last offset");
    for _ in 0..2 {
        let refused = answer(log.append(one(events("a", &["4"])))).expect_err("none is left");
        assert!(matches!(&refused, AppendError::Full(told) if told.contains("offsets")), "{refused:?}");
    }
    drop(log);
    let (log, _) = open(&fs).expect("opens");
    assert_eq!(readable(&log), ["1", "2", "3"]);
    answer(log.append(one(events("a", &["4"])))).expect_err("nor after a start");
    assert_eq!(readable(&log), ["1", "2", "3"]);
}

#[test]
fn a_file_with_a_name_beyond_the_largest_offset_is_none_of_the_log() {
    for first in [OFFSET_MAX + 1, u64::MAX] {
        let fs = forged(OFFSET_MAX);
        let name = fs.files()[0].with_file_name(format!("{first:020}.log"));
        let header = SegmentHeader { first, sealed_at: first, salt: 7, made_us: 1 };
        fs.set_bytes(&name, header.encode().to_vec());
        let (log, _) = open(&fs).expect("opens");
        answer(log.append(one(events("a", &["3"])))).expect("stored");
        drop(log);
        assert_eq!(readable(&open(&fs).expect("opens").0), ["1", "3"], "{first}");
        assert!(fs.bytes(&name).is_some(), "and stays");
    }
}
