//! Every byte of a log's end cut and flipped, and single bits flipped all over it: it opens every time, loses at most the frame
//! that was hit, and counts what it lost.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::log::format::{FRAMES_START, FrameHeader, FrameKind};
use tidegate_pipeline::log::{LogConfig, OpenReport, SegmentLog};
use tidegate_pipeline::{LogReader, PipelineError, StreamLog};

use crate::counted::Counted;
use crate::log_ledger::{DIR, answer};
use crate::log_rows::{events, ids, one};

/// A log in segments of so many bytes.
fn open(fs: &SimFs, segment_bytes_max: u64) -> Result<(SegmentLog, OpenReport), PipelineError> {
    let config = LogConfig { segment_bytes_max, tail_bytes_max: 1, dedup_keys_max: 0, ..LogConfig::default() };
    SegmentLog::open(std::sync::Arc::new(fs.clone()), Path::new(DIR), config)
}

fn segments(fs: &SimFs) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "log")).collect()
}

/// The whole frames of a segment: where they are without their padding, and their headers.
fn frames(bytes: &[u8]) -> Vec<(Range<usize>, FrameHeader)> {
    let mut at = FRAMES_START as usize;
    let mut frames = Vec::new();
    while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
        frames.push((at..at + 64 + header.payload_len as usize, header));
        at += header.frame_len() as usize;
    }
    frames
}

/// What a log with a changed file gives: the offsets that can be read, what its opening said, and what was counted.
fn look(fs: &SimFs, context: &str) -> (BTreeSet<u64>, OpenReport, Counted) {
    let work = || {
        let (log, report) = open(fs, u64::MAX).unwrap_or_else(|error| panic!("{context}: {error}"));
        let batches = log.read(log.bounds().first, usize::MAX).unwrap_or_else(|error| panic!("{context}: {error}"));
        (ids(&batches), report)
    };
    let ((rows, report), counted) = Counted::during(work);
    for (offset, id) in &rows {
        assert_eq!(offset.to_string(), *id, "{context}: a row is another one");
    }
    assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0), "{context}: rows in order, once");
    (rows.into_iter().map(|(offset, _)| offset).collect(), report, counted)
}

/// A log whose process was killed, so many rows a frame, until `done`.
fn killed(segment_bytes_max: u64, (frame_rows, org): (u64, &str), done: impl Fn(&SimFs) -> bool) -> (SimFs, u64) {
    let fs = SimFs::new();
    let (log, _) = open(&fs, segment_bytes_max).expect("a log");
    let mut rows = 0;
    while !done(&fs) {
        let names: Vec<_> = (rows..rows + frame_rows).map(|row| row.to_string()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        answer(log.append(one(events(org, &names)))).expect("stored");
        rows += frame_rows;
    }
    (fs.after_kill(), rows)
}

/// Cuts the last segment at each of its last `bytes` bytes, and flips a bit of each of them; every `step`-th from `first` on.
fn every_byte(bytes: usize, frame: (u64, &str), (first, step): (usize, usize)) {
    let len = |fs: &SimFs| segments(fs).pop().and_then(|path| fs.bytes(&path)).map_or(0, |bytes| bytes.len());
    let (fs, rows) = killed(u64::MAX, frame, |fs| len(fs) > bytes);
    let path = segments(&fs).pop().expect("a segment");
    let whole = fs.bytes(&path).expect("bytes");
    let frames = frames(&whole);
    let all: BTreeSet<u64> = (0..rows).collect();
    for at in (whole.len() - bytes + first..whole.len()).step_by(step) {
        let context = format!("cut at {at} of {}", whole.len());
        fs.set_bytes(&path, whole[..at].to_vec());
        let (found, report, _) = look(&fs.after_kill(), &context);
        let kept = frames.iter().filter(|(place, header)| place.end <= at && header.kind == FrameKind::Batch);
        assert_eq!(found, kept.flat_map(|(_, header)| header.base..header.next()).collect(), "{context}");
        assert!(report.damage.is_empty(), "{context}: a torn tail is no damage: {report:?}");

        let context = format!("byte {at} of {} flipped", whole.len());
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs.set_bytes(&path, flipped);
        let (found, report, counted) = look(&fs.after_kill(), &context);
        let hit = frames.iter().find(|(place, header)| place.contains(&at) && header.kind == FrameKind::Batch);
        let lost: BTreeSet<u64> = all.difference(&found).copied().collect();
        let of_hit = hit.iter().flat_map(|(_, header)| header.base..header.next());
        assert_eq!(lost, of_hit.collect(), "{context}: {report:?}");
        // Of the very last frame nobody can say whether it was ever whole.
        let told = counted.of("log_lost_rows_total") == lost.len() as u64 || report.torn_bytes > 0;
        assert!(told, "{context}: {report:?}");
    }
}

#[test]
fn every_byte_of_frames_of_one_row_may_be_cut_or_flipped() {
    every_byte(3_000, (1, "a"), (0, 1));
}

/// The size that the promise names, in two halves that run side by side: four rows of a kibibyte a frame, as what a look takes is its rows.
fn every_second_byte_of_64_kib(first: usize) {
    every_byte(64 << 10, (4, &"a".repeat(1_000)), (first, 2));
}

#[test]
fn every_even_byte_of_the_last_64_kib_of_a_log_may_be_cut_or_flipped() {
    every_second_byte_of_64_kib(0);
}

#[test]
fn every_odd_byte_of_the_last_64_kib_of_a_log_may_be_cut_or_flipped() {
    every_second_byte_of_64_kib(1);
}

#[test]
fn ten_thousand_flipped_bits_over_many_segments_cost_a_frame_each_and_are_counted() {
    let (fs, rows) = killed(12 << 10, (1, "a"), |fs| segments(fs).len() > 6);
    let paths = segments(&fs);
    let wholes: Vec<_> = paths.iter().map(|path| fs.bytes(path).expect("bytes")).collect();
    let total: usize = wholes.iter().map(Vec::len).sum();
    let frames: Vec<_> = wholes.iter().map(|whole| frames(whole)).collect();
    let all: BTreeSet<u64> = (0..rows).collect();
    // With all summaries there: what a closed segment holds is looked at when it is read.
    drop(open(&fs, u64::MAX).expect("a log"));
    let mut lost_rows = 0;
    for nth in 0..10_000usize {
        let mut at = nth * total / 10_000;
        let segment = wholes.iter().position(|whole| {
            let here = at < whole.len();
            at -= if here { 0 } else { whole.len() };
            here
        });
        let Some(segment) = segment else { continue };
        let context = format!("byte {at} of segment {segment} flipped");
        let mut flipped = wholes[segment].clone();
        flipped[at] ^= 1 << (nth % 8);
        let fs = fs.after_kill();
        fs.set_bytes(&paths[segment], flipped);
        let (found, report, counted) = look(&fs, &context);
        let hit = frames[segment].iter().find(|(place, _)| place.contains(&at));
        let lost: BTreeSet<u64> = all.difference(&found).copied().collect();
        let batch = hit.filter(|(_, header)| header.kind == FrameKind::Batch);
        assert_eq!(lost, batch.iter().map(|(_, header)| header.base).collect(), "{context}: {report:?}");
        assert_eq!(counted.of("log_lost_rows_total"), lost.len() as u64, "{context}: {report:?}");
        if batch.is_some() {
            assert_eq!(counted.of("log_damage_total"), 1, "{context}: {report:?}");
        }
        lost_rows += lost.len();
    }
    assert!(lost_rows > 3_000, "{lost_rows} rows lost");
}
