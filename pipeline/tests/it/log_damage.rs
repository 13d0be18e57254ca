//! Bytes of the log that changed, vanished or never came.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::AsArray;
use tidegate_events::Dataset;
use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::log::format::{FRAMES_START, FrameHeader, FrameKind};
use tidegate_pipeline::log::{Damage, OpenReport, SegmentLog, dump, verify};
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{Ack, Append, EventBatch, FieldCatalog, LogReader, StreamLog};

use crate::log_ledger::{DIR, answer, config, open};
use crate::log_rows::{batch, events, ids, ids_of, one};

/// A log of several segments, of which the process was killed.
fn killed(appends: usize) -> SimFs {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for nth in 0..appends {
        let dataset = if nth % 5 == 4 { Dataset::Changes } else { Dataset::SecurityEvents };
        let batch = batch(dataset, &["a", "b"], &[&format!("{nth}"), &format!("{nth}'")]);
        answer(log.append(one(batch))).expect("stored");
    }
    fs.after_kill()
}

fn logs(fs: &SimFs) -> Vec<PathBuf> {
    let log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    fs.files().into_iter().filter(log).collect()
}

/// Every id that can be read, in order.
fn readable(log: &SegmentLog) -> Vec<String> {
    let bounds = log.bounds();
    let batches = log.read(bounds.first, usize::MAX).expect("reading never fails for damage");
    ids(&batches).into_iter().map(|(_, id)| id).collect()
}

/// The whole frames of a segment file: position and header.
fn frames(bytes: &[u8]) -> Vec<(usize, FrameHeader)> {
    let mut at = FRAMES_START as usize;
    let mut frames = Vec::new();
    while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
        frames.push((at, header));
        at += header.frame_len() as usize;
    }
    frames
}

/// Opens the log with a file changed; it takes appends, opens again, and gives the same rows then.
fn open_damaged(fs: &SimFs, path: &Path, bytes: Vec<u8>, context: &str) -> (Vec<String>, OpenReport) {
    let fs = fs.after_kill();
    fs.set_bytes(path, bytes);
    let (log, report) = open(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    let rows = readable(&log);
    let next = log.bounds().next;
    let appended =
        answer(log.append(one(events("a", &["-after"])))).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(appended.offsets[0].start >= next, "{context}");
    drop(log);
    let (log, _) = open(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut expected = rows.clone();
    expected.push("-after".to_owned());
    assert_eq!(readable(&log), expected, "{context}: a second start finds the same");
    (rows, report)
}

/// Cuts the last segment at these of its bytes: everything in whole frames before the cut is there.
fn cut_at(cuts: impl Iterator<Item = usize>) {
    let fs = killed(30);
    let path = logs(&fs).pop().expect("a segment");
    let whole = fs.bytes(&path).expect("bytes");
    let before = {
        let twin = fs.after_kill();
        twin.lose(&path);
        readable(&open(&twin).expect("a log").0).len()
    };
    let frames = frames(&whole);
    for cut in cuts.filter(|cut| *cut < whole.len()) {
        let context = format!("cut at {cut} of {}", whole.len());
        let (rows, report) = open_damaged(&fs, &path, whole[..cut].to_vec(), &context);
        let kept = frames.iter().filter(|(at, header)| at + header.frame_len() as usize - cut_padding(header) <= cut);
        let kept: u32 = kept.map(|(_, header)| header.rows).sum();
        assert_eq!(rows.len(), before + kept as usize, "{context}: {report:?}");
    }
}

fn cut_padding(header: &FrameHeader) -> usize {
    header.frame_len() as usize - 64 - header.payload_len as usize
}

#[test]
fn a_log_cut_at_any_byte_opens_with_all_that_is_whole() {
    cut_at((0..300).chain((300..16_000).step_by(61)));
}

/// Flips a bit of these bytes of the last segment: at most one append is lost, and it is said which.
fn flip_at(places: impl Iterator<Item = usize>) {
    let fs = killed(30);
    let path = logs(&fs).pop().expect("a segment");
    let whole = fs.bytes(&path).expect("bytes");
    let all = readable(&open(&fs.after_kill()).expect("a log").0);
    for at in places.filter(|at| *at < whole.len()) {
        let context = format!("bit flipped in byte {at}");
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let hit = frames(&whole)
            .into_iter()
            .find(|(start, header)| (*start..start + header.frame_len() as usize - cut_padding(header)).contains(&at));
        let (rows, report) = open_damaged(&fs, &path, bytes, &context);
        let lost: Vec<_> = all.iter().filter(|id| !rows.contains(id)).collect();
        match hit {
            Some((_, header)) if header.kind == FrameKind::Batch => {
                assert_eq!(lost.len(), header.rows as usize, "{context}: {lost:?}");
                let told = report.damage.iter().any(|(_, damage)| damage.rows.contains(&header.base));
                assert!(told || report.torn_bytes > 0, "{context}: {report:?}");
            }
            // A schema stands twice, so does the segment's header; padding means nothing.
            _ => assert!(lost.is_empty(), "{context}: {lost:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_loses_at_most_its_own_frame() {
    flip_at((0..700).step_by(3).chain((700..16_000).step_by(41)));
}

#[test]
fn a_bit_flipped_in_a_closed_segment_is_found_when_it_is_read_and_costs_one_batch() {
    let fs = killed(60);
    let paths = logs(&fs);
    let path = &paths[1];
    let whole = fs.bytes(path).expect("bytes");
    let (_, header) =
        frames(&whole).into_iter().filter(|(_, header)| header.kind == FrameKind::Batch).nth(3).expect("a batch");
    let at = frames(&whole).into_iter().find(|(_, other)| other.base == header.base && other.rows > 0).expect("it").0;
    for place in [at + 9, at + 64 + 40] {
        let fs = fs.after_kill();
        let mut bytes = whole.clone();
        bytes[place] ^= 4;
        fs.set_bytes(path, bytes);
        let (log, _) = open(&fs).expect("a log");
        assert_eq!(readable(&log).len(), 120 - 2, "byte {place}");
        let batches = log.read(header.base, 1).expect("the batch after it");
        assert_eq!(batches[0].offset, header.next(), "byte {place}");
        let reports = verify(&fs, Path::new(DIR)).expect("reports");
        let damage: Vec<_> = reports.iter().flat_map(|report| &report.damage).collect();
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert_eq!((damage[0].at, damage[0].rows.clone()), (at as u64, header.base..header.next()));
        assert_eq!(damage[0].bytes, header.frame_len(), "byte {place}");
        assert_eq!(reports.iter().map(|report| report.rows).sum::<u64>(), 118);
    }
}

#[test]
fn zero_byte_half_headed_and_missing_segments_are_told_and_cost_only_themselves() {
    let fs = killed(60);
    let paths = logs(&fs);
    assert!(paths.len() >= 4, "{paths:?}");
    let rows_in = |path: &Path| -> u64 {
        frames(&fs.bytes(path).expect("bytes")).iter().map(|(_, header)| u64::from(header.rows)).sum()
    };
    for (nth, path) in paths.iter().enumerate() {
        for left in [None, Some(0), Some(17), Some(100)] {
            let context = format!("segment {nth} of {}, {left:?} bytes left", paths.len());
            let fs = fs.after_kill();
            match left {
                None => fs.lose(path),
                Some(left) => fs.set_bytes(path, fs.bytes(path).expect("bytes")[..left].to_vec()),
            }
            let (log, report) = open(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(readable(&log).len() as u64, 120 - rows_in(path), "{context}");
            let told: u64 = report.damage.iter().map(|(_, damage)| damage.rows_lost()).sum();
            let first_or_last_is_gone = nth + 1 == paths.len() || (nth == 0 && left.is_none());
            if !first_or_last_is_gone {
                assert_eq!(told, rows_in(path), "{context}: {report:?}");
            }
            let answer =
                answer(log.append(one(events("a", &["more"])))).unwrap_or_else(|error| panic!("{context}: {error}"));
            if nth + 1 < paths.len() {
                assert_eq!(answer.offsets[0], 120..121, "{context}");
            }
        }
    }
}

#[test]
fn a_page_of_zeros_or_of_noise_in_the_middle_is_passed_over() {
    let fs = killed(60);
    let path = &logs(&fs)[1];
    let whole = fs.bytes(path).expect("bytes");
    for fill in [0, 0xa5] {
        let fs = fs.after_kill();
        let mut bytes = whole.clone();
        bytes[4096..6144].fill(fill);
        fs.set_bytes(path, bytes.clone());
        let hit = |(at, header): &(usize, FrameHeader)| *at < 6144 && at + header.frame_len() as usize > 4096;
        let lost: u32 = frames(&whole).iter().filter(|frame| hit(frame)).map(|(_, header)| header.rows).sum();
        let (log, _) = open(&fs).expect("a log");
        assert_eq!(readable(&log).len(), 120 - lost as usize);
    }
}

/// What a reader that lost its way in the second of three events sees of a frame that stands in that event's text. The
/// stranger who sent it knows all of a frame but the salt of the segment.
fn read_past_a_forged_frame(knows_salt: bool) -> Vec<String> {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    answer(log.append(one(events("a", &["1"])))).expect("stored");
    let own = fs.bytes(&logs(&fs)[0]).expect("bytes");
    let (at, header) = *frames(&own).iter().find(|(_, header)| header.rows > 0).expect("a batch");
    let salt = if knows_salt { header.salt } else { header.salt ^ 1 };
    let forged = FrameHeader { base: 1, salt, ..header };
    let payload = &own[at + 64..at + header.frame_len() as usize];
    // A text column takes no such bytes; they are put there afterwards.
    let frame: Vec<u8> = forged.encode().into_iter().chain(payload.iter().copied()).collect();
    answer(log.append(one(events("a", &["2", &"x".repeat(frame.len() + 64)])))).expect("stored");
    answer(log.append(one(events("a", &["3"])))).expect("stored");
    let fs = fs.after_kill();
    let path = &logs(&fs)[0];
    let mut bytes = fs.bytes(path).expect("bytes");
    let (at, _) = *frames(&bytes).iter().find(|(_, header)| header.rows == 2).expect("a batch");
    let text = (at..).find(|at| bytes[*at..].starts_with(b"xxxxxxxxxxxxxxxx") && at % 16 == 0).expect("the text");
    bytes[text..text + frame.len()].copy_from_slice(&frame);
    bytes[at + 1] ^= 1;
    fs.set_bytes(path, bytes);
    readable(&open(&fs).expect("a log").0)
}

#[test]
fn an_event_cannot_pass_for_a_frame() {
    assert_eq!(read_past_a_forged_frame(false), ["1", "3"]);
    assert_eq!(read_past_a_forged_frame(true), ["1", "1", "3"], "it is the salt that keeps it out");
}

#[test]
fn a_damaged_or_missing_summary_is_made_anew() {
    let fs = killed(60);
    let (log, _) = open(&fs).expect("a log");
    let (rows, fields) = (readable(&log), log.fields());
    drop(log);
    let sums: Vec<_> = fs.files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "sum")).collect();
    assert_eq!(sums.len(), logs(&fs).len(), "every closed segment has one");
    let intact = open(&fs.after_kill()).expect("a log").1;
    assert_eq!(intact.scanned, 0, "{intact:?}");
    for (nth, path) in sums.iter().enumerate() {
        let whole = fs.bytes(path).expect("bytes");
        for damage in [Some(3), Some(40), Some(whole.len() - 5), None] {
            let fs = fs.after_kill();
            let mut bytes = whole.clone();
            match damage {
                Some(at) => bytes[at] ^= 1,
                None => bytes.truncate(whole.len() / 2),
            }
            fs.set_bytes(path, bytes);
            let (log, report) = open(&fs).expect("a log");
            assert!(report.damage.is_empty(), "{report:?}");
            // Of damaged keys a start hears only when it reads them.
            assert_eq!(report.scanned, usize::from(damage != Some(whole.len() - 5)), "summary {nth}, {damage:?}");
            assert_eq!(readable(&log), rows, "summary {nth}");
            assert_eq!(log.fields(), fields, "summary {nth}");
            let twice =
                answer(log.append(one(batch(Dataset::SecurityEvents, &["a", "b"], &["0", "0'"])))).expect("an answer");
            assert_eq!(twice.duplicates.len(), 2, "summary {nth}: keys are known");
            drop(log);
            assert_eq!(open(&fs).expect("a log").1.scanned, 0, "summary {nth} is there again");
        }
    }
}

#[test]
fn a_start_reads_summaries_and_not_the_segments() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for nth in 0..100 {
        answer(log.append(one(events("a", &[&format!("{nth}-{}", "x".repeat(4000))])))).expect("stored");
    }
    drop(log);
    let reads = fs.count(SimOp::Read);
    let segments = logs(&fs).len() as u64;
    let (log, report) = open(&fs).expect("a log");
    assert_eq!((report.next, report.keys, report.scanned), (100, 100, 0));
    let read = fs.count(SimOp::Read) - reads;
    assert!(read <= segments * 6, "{read} reads for {segments} segments");
    assert_eq!(readable(&log).len(), 100);
}

#[test]
fn keys_outlive_their_segments_up_to_the_window() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for nth in 0..60 {
        answer(log.append(one(events("a", &[&format!("{nth}"), &format!("-{}", "x".repeat(1000))])))).expect("stored");
    }
    log.forget(100).expect("forgotten");
    let first = log.bounds().first;
    assert!(first > 60, "{first}");
    drop(log);
    let (log, report) = open(&fs).expect("a log");
    assert_eq!((report.first, report.keys), (first, 60));
    let twice = answer(log.append(one(events("a", &["0", "59"])))).expect("an answer");
    assert_eq!(twice.duplicates.len(), 2);
}

#[test]
fn changes_are_read_without_the_rest() {
    let fs = killed(60);
    let (log, _) = open(&fs).expect("a log");
    let append = Append { batches: vec![batch(Dataset::Changes, &["a"], &["live"])], ack: Ack::Disk };
    answer(log.append(append)).expect("stored");
    let reads = fs.count(SimOp::Read);
    let changes = log.changes_from(0).expect("changes");
    let read = fs.count(SimOp::Read) - reads;
    assert!(changes.iter().all(|batch| batch.dataset == Dataset::Changes));
    let found: Vec<_> = ids(&changes).into_iter().map(|(_, id)| id).collect();
    let mut expected: Vec<String> =
        (0..60).filter(|nth| nth % 5 == 4).flat_map(|nth| [format!("{nth}"), format!("{nth}'")]).collect();
    expected.push("live".to_owned());
    assert_eq!(found, expected);
    assert!(read <= 13 * 2 + 10, "{read} reads");
    let later = log.changes_from(changes[5].offset + 1).expect("changes");
    assert_eq!(ids(&later)[0], ids(&changes[5..])[0], "the batch that holds the offset comes too");
}

#[test]
fn the_catalog_knows_whose_fields_have_values_and_survives() {
    let fs = killed(7);
    let (log, _) = open(&fs).expect("a log");
    let mut expected = FieldCatalog::default();
    log.read(0, usize::MAX).expect("batches").iter().for_each(|batch| _ = expected.observe(batch.dataset, &batch.rows));
    assert_eq!(*log.fields(), expected);
    assert_eq!(FieldCatalog::decode(&expected.encode()).expect("a catalog"), expected);
    assert!(log.fields().fields("a", Dataset::SecurityEvents).contains_key("own.text"));
    // The ids of b are two letters long up to here, and only odd ones have a text: it has no such field.
    assert!(!log.fields().fields("b", Dataset::SecurityEvents).contains_key("own.text"));
    assert!(log.fields().fields("b", Dataset::SecurityEvents).contains_key("own.tags"));
    drop(log);
    assert_eq!(*open(&fs).expect("a log").0.fields(), expected);

    let (live, _) = open(&SimFs::new()).expect("a log");
    let dump_all = |take: &mut dyn FnMut(&tidegate_pipeline::LogBatch)| {
        dump(&fs, Path::new(DIR), 0, u64::MAX, take).expect("dumped");
    };
    dump_all(&mut |batch| {
        let events = EventBatch { dataset: batch.dataset, rows: batch.rows.clone(), keys: Vec::new() };
        for _ in 0..2 {
            answer(live.append(one(events.clone()))).expect("stored");
        }
    });
    assert_eq!(*live.fields(), expected, "known at once in a log that is appended to");
}

#[test]
fn dump_gives_the_rows_of_a_range_without_opening() {
    let fs = killed(60);
    let mut found = BTreeSet::new();
    dump(&fs, Path::new(DIR), 31, 50, &mut |batch| found.extend(ids_of(batch))).expect("dumped");
    let offsets: Vec<u64> = found.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (30..50).collect::<Vec<_>>(), "the batch that holds the first offset comes whole");
    let reports = verify(&fs, Path::new(DIR)).expect("reports");
    assert_eq!(reports.iter().map(|report| report.rows).sum::<u64>(), 120);
    assert!(reports.iter().all(|report| report.damage.is_empty() && report.residue_bytes == 0));
    assert_eq!(reports.windows(2).filter(|pair| pair[0].end != pair[1].first).count(), 0);
    assert!(reports.iter().all(|report| report.time_min <= report.time_max && report.time_min.is_some()));
}

#[test]
fn columns_come_back_from_files_as_they_went_in() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let sent = batch(Dataset::SecurityEvents, &["a", "b", "c"], &["1", "22", "333"]);
    answer(log.append(one(sent.clone()))).expect("stored");
    let sliced = EventBatch {
        rows: batch(Dataset::SecurityEvents, &["a", "b", "c"], &["4", "55", "666"]).rows.slice(1, 2),
        keys: Vec::new(),
        ..sent.clone()
    };
    answer(log.append(one(sliced.clone()))).expect("stored");
    drop(log);
    let (log, _) = open(&fs).expect("a log");
    let read = log.read(0, usize::MAX).expect("batches");
    assert_eq!(read[0].rows, sent.rows);
    assert_eq!(read[1].rows, sliced.rows, "a slice is stored as what it shows");
    assert_eq!(read[0].rows.column(0).as_primitive::<arrow::datatypes::TimestampMicrosecondType>().len(), 3);
}

#[test]
fn a_log_that_lost_its_end_goes_on_after_the_rows_that_others_hold() {
    let fs = killed(60);
    let paths = logs(&fs);
    let last = paths.last().expect("a segment");
    // (files lost, bytes left of the last one, what others hold rows up to)
    for (lost, left, next_min) in [
        (1, None, 120),
        (0, Some(0), 120),
        (0, Some(17), 120),
        (0, Some(1000), 300),
        (2, None, 118),
        (paths.len(), None, 120),
        (0, None, 0),
        (0, None, 120),
    ] {
        let context = format!("{lost} files lost, {left:?} bytes left, {next_min} rows held");
        let fs = fs.after_kill();
        paths.iter().rev().take(lost).for_each(|path| fs.lose(path));
        if let Some(left) = left {
            fs.set_bytes(last, fs.bytes(last).expect("bytes")[..left].to_vec());
        }
        let reopen = || SegmentLog::open_at_least(Arc::new(fs.clone()), Path::new(DIR), config(), next_min);
        let (log, report) = reopen().unwrap_or_else(|error| panic!("{context}: {error}"));
        let is_short = lost > 0 || left.is_some();
        assert_eq!(report.burnt_to, is_short.then_some(next_min), "{context}");
        let next = log.bounds().next;
        assert!(next >= next_min, "{context}: {next}");
        let rows = readable(&log);
        let stored = answer(log.append(one(events("a", &["-after"])))).expect("stored");
        assert!(stored.offsets[0].start >= next_min, "{context}: {stored:?}");
        drop(log);
        let (log, again) = reopen().unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(again.burnt_to, None, "{context}: once");
        let gap = |(_, damage): &&(PathBuf, Damage)| damage.reason.contains("missing");
        assert_eq!(again.damage.iter().find(gap), None, "{context}: burnt offsets are no damage");
        assert_eq!(log.bounds().next, stored.offsets[0].end, "{context}");
        assert_eq!(readable(&log), [rows.as_slice(), &["-after".to_owned()]].concat(), "{context}");
    }
}

#[test]
fn burnt_offsets_do_not_count_as_forgotten() {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let fail = |log: &SegmentLog| {
        fs.fail(Fault::eio(SimOp::SyncData, fs.count(SimOp::SyncData) + 1));
        answer(log.append(one(events("a", &["lost", "too"])))).expect_err("not stored");
    };
    fail(&log);
    assert_eq!(answer(log.append(one(events("a", &["1"])))).expect("stored").offsets[0], 2..3);
    drop(log);
    let (log, report) = open(&fs).expect("a log");
    let told = |log: &SegmentLog, from| {
        let reading = read_on(log, from, usize::MAX).expect("read");
        (reading.forgotten, ids(&reading.batches))
    };
    assert_eq!((report.first, told(&log, 0)), (0, (0, vec![(2, "1".to_owned())])), "after a restart");
    fail(&log);
    assert_eq!(answer(log.append(one(events("a", &["2"])))).expect("stored").offsets[0], 5..6);
    log.forget(3).expect("forgotten");
    assert_eq!(told(&log, 3), (0, vec![(5, "2".to_owned())]), "after retention");
    assert_eq!(told(&log, 1).0, 2, "what lay in the forgotten segment is");
    drop(log);
    assert_eq!(told(&open(&fs).expect("a log").0, 3).0, 0, "after both");
}
