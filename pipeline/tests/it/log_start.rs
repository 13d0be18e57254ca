//! What a start finds, beside damage: what it writes again, whose keys it knows, what it gives up for good.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_events::Dataset;
use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::log::format::{FRAMES_START, FrameHeader, FrameKind, SegmentHeader};
use tidegate_pipeline::log::{LogConfig, OpenReport, SegmentLog, dump, verify};
use tidegate_pipeline::{Ack, Append, LogReader, Offset, StreamLog};

use crate::counted::Counted;
use crate::log_ledger::{DIR, answer, config, open};
use crate::log_rows::{batch, events, ids, ids_of, one};

fn files(fs: &SimFs, extension: &str) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == extension)).collect()
}

/// Appends rows with these numbers, each on its own.
fn fill(log: &SegmentLog, rows: std::ops::Range<u64>) {
    for row in rows {
        answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
    }
}

/// The headers of the frames of a segment, and where they are.
fn frames(bytes: &[u8]) -> Vec<(usize, FrameHeader)> {
    let (mut at, mut frames) = (FRAMES_START as usize, Vec::new());
    while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
        frames.push((at, header));
        at += header.frame_len() as usize;
    }
    frames
}

#[test]
fn a_first_start_has_nothing_to_tell() {
    let (log, report) = open(&SimFs::new()).expect("a log");
    assert_eq!(report, OpenReport::default());
    assert_eq!((log.bounds().first, log.bounds().next, log.bytes_used()), (0, 0, 0));
}

#[test]
fn a_log_that_nothing_happened_to_counts_no_damage() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    fill(&log, 0..60);
    let check = |log: &SegmentLog, what: &str| {
        let (rows, counted) = Counted::during(|| {
            log.read(0, usize::MAX).expect("readable");
            (0..60).map(|from| ids(&log.read(from, 1).expect("readable"))[0].0).collect::<Vec<_>>()
        });
        assert_eq!(rows, (0..60).collect::<Vec<_>>(), "{what}");
        assert_eq!(counted.of("log_damage_total"), 0, "{what}");
    };
    // What is there already leaves no trace.
    let bytes = log.bytes_used();
    answer(log.append(one(events("a", &["59", "0"])))).expect("answered");
    assert_eq!(log.bytes_used(), bytes);
    check(&log, "live");
    check(&open(&fs.after_kill()).expect("it opens").0, "killed");
    drop(log);
    check(&open(&fs).expect("it opens").0, "closed");
}

#[test]
fn all_of_the_last_group_is_written_again_and_of_a_closed_segment_nothing() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    fill(&log, 0..3);
    let batches = vec![
        events("a", &["3", "4"]),
        batch(Dataset::CostEvents, &["a"], &["5"]),
        batch(Dataset::Changes, &["a", "b"], &["6", "7"]),
    ];
    answer(log.append(Append { batches, ack: Ack::Disk })).expect("stored");
    let killed = fs.after_kill();
    let (again, report) = open(&killed).expect("it opens");
    assert_eq!(report.rewritten_rows, 5, "{report:?}");
    let rows = |log: &SegmentLog| ids(&log.read(0, usize::MAX).expect("readable"));
    assert_eq!(rows(&again), (0..8).map(|row| (row, row.to_string())).collect::<Vec<_>>());
    fill(&log, 8..60);
    drop(log);
    for path in files(&fs, "sum").iter().rev().skip(1) {
        // Of an older segment nothing needs to be written again: it was closed, and what follows was stored after it.
        let fs = fs.after_kill();
        fs.lose(path);
        let before = files(&fs, "log");
        let (log, report) = open(&fs).expect("it opens");
        assert_eq!((report.scanned, report.rewritten_rows), (1, 0), "{report:?}");
        assert_eq!(files(&fs, "log"), before);
        assert_eq!(rows(&log).len(), 60);
    }
}

#[test]
fn the_last_group_is_written_again_behind_whatever_was_begun_after_it() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    fill(&log, 0..3);
    let fs = fs.after_kill();
    let segment = files(&fs, "log").remove(0);
    let whole = fs.bytes(&segment).expect("bytes");
    let header = SegmentHeader { first: 3, sealed_at: 3, salt: 7, made_us: 0 }.encode();
    // A segment that was being made.
    for bytes in [Vec::new(), header[..40].to_vec(), header.to_vec()] {
        let fs = fs.after_kill();
        fs.set_bytes(&Path::new(DIR).join(format!("{:020}.log", 3)), bytes);
        let (_, report) = open(&fs).expect("it opens");
        assert_eq!((report.rewritten_rows, report.damage.len()), (1, 0), "{report:?}");
    }
    // A frame that is torn: all of it is said to be a tail, and the group before it is the last one.
    let (last, header) = frames(&whole).into_iter().rfind(|(_, header)| header.rows > 0).expect("a batch");
    for left in [1, 63, 64, 100, header.frame_len() as usize - 1] {
        let fs = fs.after_kill();
        fs.set_bytes(&segment, whole[..last + left].to_vec());
        let (log, report) = open(&fs).expect("it opens");
        assert_eq!((report.torn_bytes, report.rewritten_rows), (left as u64, 1), "{report:?}");
        assert_eq!(ids(&log.read(0, usize::MAX).expect("readable")).len(), 2);
    }
}

#[test]
fn what_a_failed_group_left_is_residue_and_nothing_else() {
    for (op, short_bytes) in [(SimOp::Write, 0), (SimOp::Write, 100), (SimOp::SyncData, 0)] {
        let fs = SimFs::new();
        let (log, _) = open(&fs).expect("a log");
        fill(&log, 0..1);
        let before = fs.bytes(&files(&fs, "log")[0]).expect("bytes").len();
        fs.fail(Fault { op, nth: fs.count(op) + 1, errno: 5, sticky: false, short_bytes });
        answer(log.append(one(events("a", &["failed"])))).expect_err("the disk fails");
        fill(&log, 1..2);
        drop(log);
        let left = fs.bytes(&files(&fs, "log")[0]).expect("bytes").len() - before;
        assert_eq!(left > 0, short_bytes > 0 || op == SimOp::SyncData);
        let reports = verify(&fs, Path::new(DIR)).expect("reports");
        let told: Vec<_> = reports.iter().map(|report| (report.residue_bytes, report.damage.len())).collect();
        assert_eq!(told, [(left as u64, 0), (0, 0)], "{op:?}, {short_bytes} bytes");
    }
}

#[test]
fn of_a_failed_group_whose_frames_are_damaged_too_no_row_is_lost() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    fill(&log, 0..1);
    let segment = files(&fs, "log").remove(0);
    let before = fs.bytes(&segment).expect("bytes").len();
    fs.fail(Fault { op: SimOp::SyncData, nth: fs.count(SimOp::SyncData) + 1, errno: 5, sticky: false, short_bytes: 0 });
    // Of a layout that is new in the segment: its schema stands behind its rows once more.
    let mut narrow = events("a", &["failed"]);
    narrow.rows = narrow.rows.project(&[0, 1, 2, 3]).expect("columns");
    answer(log.append(one(narrow))).expect_err("the disk fails");
    fill(&log, 1..2);
    drop(log);
    let mut bytes = fs.bytes(&segment).expect("bytes");
    let failed: Vec<_> = frames(&bytes).into_iter().filter(|(at, _)| *at >= before).collect();
    let kinds: Vec<_> = failed.iter().map(|(_, header)| header.kind).collect();
    assert_eq!(kinds, [FrameKind::Schema, FrameKind::Batch, FrameKind::Schema]);
    bytes[failed[1].0 + 20] ^= 1;
    fs.set_bytes(&segment, bytes);
    for path in files(&fs, "sum") {
        fs.lose(&path);
    }
    let (log, report) = open(&fs).expect("it opens");
    let lost: u64 = report.damage.iter().map(|(_, damage)| damage.rows_lost()).sum();
    assert_eq!((lost, report.damage.len()), (0, 1), "{report:?}");
    assert_eq!(ids(&log.read(0, usize::MAX).expect("readable")).len(), 2);
}

#[test]
fn rows_lost_at_the_end_of_a_segment_are_told_by_it_and_not_by_the_next_one_too() {
    let fs = SimFs::new();
    fill(&open(&fs).expect("a log").0, 0..60);
    for path in files(&fs, "sum") {
        fs.lose(&path);
    }
    for path in files(&fs, "log").iter().skip(1).rev().skip(1) {
        let fs = fs.after_kill();
        let mut bytes = fs.bytes(path).expect("bytes");
        let (at, last) = frames(&bytes).into_iter().rfind(|(_, header)| header.rows > 0).expect("a batch");
        bytes[at + 64 + 40] ^= 1;
        fs.set_bytes(path, bytes);
        let rows = |damage: &tidegate_pipeline::log::Damage| (damage.rows.start, damage.rows.end);
        let reports = verify(&fs, Path::new(DIR)).expect("reports");
        let told: Vec<_> = reports.iter().flat_map(|report| &report.damage).map(rows).collect();
        assert_eq!(told, [(last.base, last.next())], "verified");
        let ((_, report), counted) = Counted::during(|| open(&fs).expect("it opens"));
        let told: Vec<_> = report.damage.iter().map(|(_, damage)| rows(damage)).collect();
        assert_eq!(told, [(last.base, last.next())], "opened");
        assert_eq!(counted.of("log_lost_rows_total"), 1);
    }
}

#[test]
fn text_that_is_full_of_the_magic_of_frames_is_passed_over_as_one_damage() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for id in ["1", &"TGF1".repeat(300), "3", "4"] {
        answer(log.append(one(events("a", &[id])))).expect("stored");
    }
    let fs = fs.after_kill();
    let segment = files(&fs, "log").remove(0);
    let mut bytes = fs.bytes(&segment).expect("bytes");
    let at = frames(&bytes).iter().find(|(_, header)| header.base == 1 && header.rows > 0).expect("the batch").0;
    assert!((at + 64..bytes.len()).step_by(16).any(|at| bytes[at..].starts_with(b"TGF1TGF1")), "where frames begin");
    bytes[at + 9] ^= 1;
    fs.set_bytes(&segment, bytes);
    let reports = verify(&fs, Path::new(DIR)).expect("reports");
    let told: Vec<_> = reports.iter().flat_map(|report| &report.damage).map(|damage| &damage.rows).collect();
    assert_eq!(told, [&(1..2)]);
}

#[test]
fn segments_and_processes_cannot_be_taken_for_each_other() {
    let (mut salts, mut schemas) = (BTreeSet::new(), BTreeSet::new());
    let mut segments = 0;
    for _ in 0..3 {
        let fs = SimFs::new();
        fill(&open(&fs).expect("a log").0, 0..30);
        let mut of_this = BTreeSet::new();
        for path in files(&fs, "log") {
            let bytes = fs.bytes(&path).expect("bytes");
            salts.insert(SegmentHeader::decode(&bytes).expect("a header").salt);
            segments += 1;
            of_this.extend(frames(&bytes).into_iter().map(|(_, header)| header.schema_id));
        }
        assert_eq!(of_this.len(), 1, "one layout");
        schemas.extend(of_this);
    }
    assert_eq!((salts.len(), schemas.len()), (segments, 3), "a stranger cannot guess either");
}

#[test]
fn a_summary_of_another_segment_of_the_same_name_is_not_believed() {
    let filled = |user: &str| {
        let fs = SimFs::new();
        let (log, _) = open(&fs).expect("a log");
        for row in 0..60 {
            answer(log.append(one(events(user, &[&row.to_string()])))).expect("stored");
        }
        fs
    };
    let (fs, other) = (filled("a"), filled("b"));
    for path in files(&fs, "sum") {
        let fs = fs.after_kill();
        fs.set_bytes(&path, other.bytes(&path).expect("the same segments"));
        let (log, report) = open(&fs).expect("it opens");
        assert_eq!((report.scanned, report.damage.len()), (1, 0), "{report:?}");
        let (rows, counted) = Counted::during(|| ids(&log.read(0, usize::MAX).expect("readable")));
        assert_eq!((rows.len(), counted.of("log_damage_total")), (60, 0), "{}", path.display());
    }
}

#[test]
fn the_times_of_a_segment_are_those_of_its_rows() {
    const START: i64 = 1_700_000_000_000_000;
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let five: Vec<String> = (0..5).map(|row| row.to_string()).collect();
    answer(log.append(one(events("a", &five.iter().map(String::as_str).collect::<Vec<_>>())))).expect("stored");
    answer(log.append(one(events("a", &["5", "6"])))).expect("stored");
    drop(log);
    let report = verify(&fs, Path::new(DIR)).expect("reports").remove(0);
    assert_eq!((report.time_min, report.time_max), (Some(START), Some(START + 4)));
    assert_eq!((report.rows, report.frames, report.first, report.end), (7, 2, 0, 7));
    assert_eq!(report.bytes, fs.bytes(&report.path).expect("bytes").len() as u64);
    fs.set_bytes(&report.path, fs.bytes(&report.path).expect("bytes")[..FRAMES_START as usize].to_vec());
    let empty = verify(&fs, Path::new(DIR)).expect("reports").remove(0);
    assert_eq!((empty.time_min, empty.time_max, empty.rows), (None, None, 0));
}

/// A closed log of which the first segments are forgotten: 600 keys a segment, so that they do not all stand in the page of the
/// summary's beginning.
fn with_outlived_summaries(keys_max: usize) -> (SimFs, LogConfig) {
    let fs = SimFs::new();
    let config = LogConfig { dedup_keys_max: keys_max, ..config() };
    let (log, _) = SegmentLog::open(Arc::new(fs.clone()), Path::new(DIR), config.clone()).expect("a log");
    for segment in 0..4 {
        let ids: Vec<String> = (0..600).map(|row| format!("{segment}.{row}")).collect();
        answer(log.append(one(events("a", &ids.iter().map(String::as_str).collect::<Vec<_>>())))).expect("stored");
    }
    log.forget(1200).expect("forgotten");
    drop(log);
    assert_eq!((files(&fs, "log").len(), files(&fs, "sum").len()), (2, 4));
    (fs, config)
}

#[test]
fn keys_in_a_bad_sector_are_taken_from_their_segment_and_cost_no_start() {
    let (fs, _) = with_outlived_summaries(100_000);
    for (nth, path) in files(&fs, "sum").into_iter().enumerate() {
        let size = fs.bytes(&path).expect("bytes").len() as u64;
        for (what, at) in [("keys", size - 1), ("all", 0)] {
            let fs = fs.after_kill();
            fs.spoil(&path, at, None);
            let (log, report) = open(&fs).unwrap_or_else(|error| panic!("{what} of summary {nth}: {error}"));
            // Those of a forgotten segment stand nowhere else.
            let known = if nth < 2 { 1800 } else { 2400 };
            assert_eq!((report.keys, report.damage.len()), (known, 0), "{what} of summary {nth}");
            let again = answer(log.append(one(events("a", &[&format!("{nth}.1")])))).expect("answered");
            assert_eq!(again.duplicates.len(), usize::from(nth >= 2), "{what} of summary {nth}");
        }
    }
}

#[test]
fn keys_of_forgotten_rows_that_cannot_be_read_now_keep_the_log_from_opening() {
    let (fs, _) = with_outlived_summaries(100_000);
    let mut refused = 0;
    for nth in 1..60 {
        let fs = fs.after_kill();
        fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Read, nth) });
        match open(&fs) {
            Ok((_, report)) => assert_eq!(report.keys, 2400, "read {nth}"),
            Err(_) => refused += 1,
        }
    }
    assert!((6..50).contains(&refused), "{refused} starts were refused");
}

#[test]
fn outlived_summaries_go_after_a_restart_too_once_the_window_is_past_them() {
    let (fs, config) = with_outlived_summaries(2000);
    let first =
        |path: &PathBuf| -> Offset { path.file_stem().and_then(|s| s.to_str()?.parse().ok()).expect("an offset") };
    let (log, report) = SegmentLog::open(Arc::new(fs.clone()), Path::new(DIR), config).expect("it opens");
    assert!(report.keys >= 1000, "{report:?}");
    for segment in 4..6 {
        let ids: Vec<String> = (0..600).map(|row| format!("{segment}.{row}")).collect();
        answer(log.append(one(events("a", &ids.iter().map(String::as_str).collect::<Vec<_>>())))).expect("stored");
    }
    log.forget(1800).expect("forgotten");
    drop(log);
    assert_eq!(files(&fs, "log").iter().map(first).collect::<Vec<_>>(), [1800, 2400, 3000]);
    assert_eq!(
        files(&fs, "sum").iter().map(first).collect::<Vec<_>>(),
        [1200, 1800, 2400, 3000],
        "as far as the window reaches"
    );
}

/// Flips a bit in the payload of every schema frame of a segment; returns its bytes as they were.
fn lose_schemas(fs: &SimFs, path: &Path) -> Vec<u8> {
    let whole = fs.bytes(path).expect("bytes");
    let mut bytes = whole.clone();
    for (at, header) in frames(&whole) {
        if header.kind == FrameKind::Schema {
            bytes[at + 64 + 20] ^= 1;
        }
    }
    fs.set_bytes(path, bytes);
    whole
}

#[test]
fn rows_that_were_given_up_are_shown_by_nobody_and_told_by_each_once() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    fill(&log, 0..4);
    let fs = fs.after_kill();
    drop(log);
    let segment = files(&fs, "log").remove(0);
    let whole = lose_schemas(&fs, &segment);
    let (log, report) = open(&fs).expect("it opens");
    let lost: u64 = report.damage.iter().map(|(_, damage)| damage.rows_lost()).sum();
    assert_eq!(lost, 4, "told: {report:?}");
    fill(&log, 4..8);
    drop(log);
    fs.set_bytes(&segment, whole.clone());

    let mut shown = Vec::new();
    dump(&fs, Path::new(DIR), 0, u64::MAX, &mut |batch| shown.extend(ids_of(batch))).expect("dumped");
    let rest: Vec<_> = shown.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(rest, ["4", "5", "6", "7"], "a dump");
    let reports = verify(&fs, Path::new(DIR)).expect("reports");
    let told: u64 = reports.iter().flat_map(|report| &report.damage).map(|damage| damage.rows_lost()).sum();
    assert_eq!((told, reports.iter().map(|report| report.rows).sum::<u64>()), (4, 4), "{reports:?}");

    // By the summary; then without the end of the file, of which the summary does not speak any more.
    let cut = frames(&whole).last().expect("a frame").0;
    for (what, bytes) in [("whole", whole.clone()), ("cut", whole[..cut].to_vec())] {
        let fs = fs.after_kill();
        fs.set_bytes(&segment, bytes);
        let work = || {
            let (log, report) = open(&fs).expect("it opens");
            let read = || ids(&log.read(log.bounds().first, usize::MAX).expect("readable"));
            (read(), read(), report.scanned)
        };
        let ((first, second, scanned), counted) = Counted::during(work);
        assert_eq!((&first, &first), (&shown, &second), "{what}");
        assert_eq!((scanned, counted.of("log_lost_rows_total")), (usize::from(what == "cut"), 4), "{what}: once");
    }
    // A summary of another file of that name says nothing about this one.
    let mut other = whole;
    let salt = SegmentHeader::decode(&other).expect("a header").salt ^ 1;
    let header = SegmentHeader { salt, ..SegmentHeader::decode(&other).expect("a header") };
    for (at, frame) in frames(&other) {
        other[at..at + 64].copy_from_slice(&FrameHeader { salt, ..frame }.encode());
    }
    other[..FRAMES_START as usize].copy_from_slice(&header.encode());
    fs.set_bytes(&segment, other);
    let mut shown = Vec::new();
    dump(&fs, Path::new(DIR), 0, u64::MAX, &mut |batch| shown.extend(ids_of(batch))).expect("dumped");
    assert_eq!(shown.len(), 8, "{shown:?}");
    let (log, report) = open(&fs).expect("it opens");
    assert_eq!((report.scanned, ids(&log.read(0, usize::MAX).expect("readable")).len()), (1, 8), "{report:?}");
}
