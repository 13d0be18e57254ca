//! The batches of changes, which are read by the marks of their segments and without the rest.

use tidegate_events::Dataset;
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::log::SegmentLog;
use tidegate_pipeline::{LogReader, Offset, StreamLog};

use crate::counted::Counted;
use crate::log_ledger::{answer, open};
use crate::log_rows::{batch, ids, one};

/// A log of several segments in which every third append is a batch of two changes; the first offsets of those.
fn written() -> (SimFs, SegmentLog, Vec<Offset>) {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    let mut changes = Vec::new();
    for nth in 0..40 {
        let dataset = if nth % 3 == 1 { Dataset::Changes } else { Dataset::SecurityEvents };
        let rows = batch(dataset, &["a", "a"], &[&format!("{nth}"), &format!("{nth}'")]);
        let offsets = answer(log.append(one(rows))).expect("stored").offsets;
        if dataset == Dataset::Changes {
            changes.push(offsets[0].start);
        }
    }
    (fs, log, changes)
}

fn found(log: &SegmentLog, from: Offset) -> Vec<Offset> {
    let batches = log.changes_from(from).expect("readable");
    assert!(batches.iter().all(|batch| batch.dataset == Dataset::Changes && batch.rows.num_rows() == 2));
    batches.iter().map(|batch| batch.offset).collect()
}

#[test]
fn changes_begin_with_the_batch_that_holds_the_row() {
    let (fs, live, changes) = written();
    let (killed, _) = open(&fs.after_kill()).expect("it opens");
    let check = |log: &SegmentLog, what: &str| {
        for from in 0..=log.bounds().next {
            let expected: Vec<_> = changes.iter().copied().filter(|offset| offset + 2 > from).collect();
            assert_eq!(found(log, from), expected, "{what}, from {from}");
        }
    };
    check(&live, "live");
    check(&killed, "after a kill");
    drop(live);
    let (log, report) = open(&fs).expect("it opens");
    assert_eq!(report.scanned, 0);
    check(&log, "by its summaries");
    log.forget(changes[4]).expect("forgotten");
    let left: Vec<_> = changes.iter().copied().filter(|offset| *offset >= log.bounds().first).collect();
    assert!(left.len() < changes.len());
    assert_eq!(found(&log, 0), left, "those of forgotten segments are gone");
}

#[test]
fn a_damaged_batch_of_changes_costs_itself_and_is_counted_once() {
    let (fs, log, changes) = written();
    drop(log);
    let paths: Vec<_> = fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "log")).collect();
    let (log, _) = open(&fs.after_kill()).expect("it opens");
    let at = changes[4];
    let text = ids(&log.changes_from(at).expect("readable"))[1].1.clone();
    // In the segment of the batch, the one place where the id of its second row stands beside its first one.
    let holds = paths.iter().rposition(|path| {
        let first: Offset = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).expect("an offset");
        first <= at
    });
    let path = &paths[holds.expect("a segment")];
    let mut bytes = fs.bytes(path).expect("bytes");
    let both = format!("{}{text}", text.trim_end_matches('\''));
    let place = bytes.windows(both.len()).position(|window| window == both.as_bytes()).expect("the ids");
    bytes[place] ^= 1;
    fs.set_bytes(path, bytes);
    let (log, _) = open(&fs).expect("it opens");
    let others: Vec<_> = changes.iter().copied().filter(|offset| *offset != at).collect();
    let (rest, counted) = Counted::during(|| found(&log, 0));
    assert_eq!((rest, counted.of("log_damage_total")), (others.clone(), 1));
    let (rest, counted) = Counted::during(|| found(&log, 0));
    assert_eq!((rest, counted.of("log_damage_total")), (others, 0), "once");
    let (rows, counted) = Counted::during(|| ids(&log.read(0, usize::MAX).expect("readable")).len());
    assert_eq!((rows, counted.of("log_lost_rows_total")), (78, 2), "who reads all of it tells of the rows");
}
