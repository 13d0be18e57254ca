//! Commits: what becomes visible, in which files, and that nothing is there twice.

use std::sync::Arc;

use tidegate_pipeline::fs::{Fault, RealFs, SimFs, SimOp};
use tidegate_pipeline::{History, Sink, SinkError};
use tidegate_sinks::parquet::{LogSource, ParquetConfig, ParquetStore};

use crate::parquet_rows::{HOUR, Row, batch, commit, contents, delivery, flush, ids, open, small, wait, write};

#[test]
fn rows_and_cursor_appear_together_and_survive_a_restart() {
    let fs = SimFs::new();
    let (store, report) = open(&fs, small()).expect("opens");
    assert!(report.is_clean(), "{report:?}");
    let mut sink = store.sink(LogSource::Ingest);
    assert_eq!(sink.name(), "parquet:ingest");
    write(&mut sink, delivery(0, batch(&[("b", 2, 0), ("a", 3, 1), ("a", 1, 2)]))).expect("taken");
    assert_eq!((sink.committed(), store.snapshot().files.len()), (0, 0), "buffered only");
    flush(&mut sink).expect("committed");
    assert_eq!((sink.committed(), store.snapshot().log_cursor), (3, 3));
    let before = contents(&fs, &store);
    assert_eq!(before.len(), 3);

    fs.crash(0);
    let (store, report) = open(&fs, small()).expect("opens");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((store.cursor(LogSource::Ingest), store.cursor(LogSource::Output)), (3, 0));
    assert_eq!(contents(&fs, &store), before);
    assert_eq!(store.snapshot().fields.fields("a", tidegate_events::Dataset::SecurityEvents).len(), 1);
}

#[test]
fn the_same_offsets_twice_and_a_batch_across_the_cursor_are_harmless() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let rows: Vec<_> = (0..10).map(|id| ("a", id as i64 * HOUR / 10, id)).collect();
    commit(&store, &rows[..4]);
    let mut sink = store.sink(LogSource::Ingest);
    for _ in 0..2 {
        write(&mut sink, delivery(2, batch(&rows[2..8]))).expect("taken");
        write(&mut sink, delivery(0, batch(&rows[..8]))).expect("taken");
    }
    flush(&mut sink).expect("committed");
    write(&mut sink, delivery(0, batch(&rows))).expect("taken");
    flush(&mut sink).expect("committed");
    assert_eq!(ids(&fs, &store), (0..10).collect::<Vec<_>>());
    assert_eq!(sink.committed(), 10);
}

#[test]
fn a_real_folder_holds_it_all_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("history");
    let open = || ParquetStore::open(Arc::new(RealFs), &dir, small()).expect("opens");
    let (store, _) = open();
    for id in 0..6 {
        commit(&store, &[("a", id as i64, id), ("b", id as i64, id + 100)]);
    }
    assert!(store.compact_once().expect("compacts").files_in > 2);
    store.sweep().expect("sweeps");
    let stats = store.stats();
    drop(store);
    let (store, report) = open();
    assert!(report.is_clean() && report.strays_removed == 0, "{report:?}");
    assert_eq!(store.stats().datasets, stats.datasets);
    let checks = store.verify();
    assert_eq!(checks.iter().map(|check| (check.rows_read, check.problem.clone())).collect::<Vec<_>>(), [(12, None)]);
    let files = std::fs::read_dir(dir.join("security_events")).expect("the folder").count();
    assert_eq!(files, store.snapshot().files.len());
    assert!(store.snapshot().files.iter().all(|file| file.path.is_absolute() && file.path.exists()));
}

#[test]
fn a_commit_whose_future_was_dropped_is_not_made_twice() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    write(&mut sink, delivery(0, batch(&[("a", 1, 0), ("a", 2, 1)]))).expect("taken");
    fs.hold_sync(true);
    wait(async {
        let dropped = tokio::time::timeout(std::time::Duration::from_millis(50), sink.flush()).await;
        assert!(dropped.is_err(), "the disk does not answer");
    });
    fs.hold_sync(false);
    write(&mut sink, delivery(2, batch(&[("a", 3, 2)]))).expect("taken");
    flush(&mut sink).expect("committed");
    assert_eq!((ids(&fs, &store), sink.committed()), (vec![0, 1, 2], 3));
}

#[test]
fn two_sinks_of_one_log_cannot_commit_a_row_twice() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let (mut one, mut two) = (store.sink(LogSource::Ingest), store.sink(LogSource::Ingest));
    let rows = [("a", 1, 0), ("a", 2, 1), ("a", 3, 2)];
    write(&mut one, delivery(0, batch(&rows[..2]))).expect("taken");
    write(&mut two, delivery(0, batch(&rows))).expect("taken");
    flush(&mut one).expect("committed");
    flush(&mut two).expect("committed");
    write(&mut one, delivery(2, batch(&rows[2..]))).expect("taken");
    flush(&mut one).expect("nothing to do");
    assert_eq!(ids(&fs, &store), [0, 1, 2]);
}

#[test]
fn rows_that_can_never_be_committed_together_are_withdrawn_and_stored_apart() {
    // A Parquet file has at most 32,767 row groups: with a row in each, these rows fail together, however often.
    let fs = SimFs::new();
    let config = ParquetConfig { row_group_rows: 1, commit_rows: 1 << 20, file_rows_min: 1 << 20, ..small() };
    let (store, _) = open(&fs, config).expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    let rows: Vec<Row> = (0..32_800).map(|id| ("a", id as i64, id)).collect();
    let bare = |rows: &[Row]| batch(rows).project(&[0, 2, 3]).expect("time, id and tenant");
    write(&mut sink, delivery(0, bare(&rows))).expect("taken");
    let refused = flush(&mut sink).expect_err("too many row groups");
    assert!(matches!(&refused, SinkError::Withdrawn(why) if why.reason.contains("row groups")), "{refused}");
    assert_eq!((sink.committed(), store.stats().ledger.committed), (0, 0));
    for (from, half) in [(0, &rows[..16_400]), (16_400, &rows[16_400..])] {
        write(&mut sink, delivery(from, bare(half))).expect("taken");
        flush(&mut sink).expect("committed");
    }
    assert_eq!(sink.committed(), 32_800);
}

#[test]
fn a_failing_disk_is_never_the_fault_of_the_rows() {
    let life = |fs: &SimFs| -> Result<(), SinkError> {
        let (store, _) = open(fs, small()).map_err(|error| SinkError::Retryable(error.to_string()))?;
        let mut sink = store.sink(LogSource::Ingest);
        let rows: Vec<Row> = (0..40).map(|id| ("a", id as i64, id)).collect();
        write(&mut sink, delivery(0, batch(&rows)))?;
        flush(&mut sink)
    };
    let counted = SimFs::new();
    life(&counted).expect("lives");
    for op in SimOp::ALL {
        for nth in 1..=counted.count(op) {
            for (errno, short_bytes) in [(5, 0), (28, 7)] {
                let fs = SimFs::new();
                fs.fail(Fault { errno, short_bytes, ..Fault::eio(op, nth) });
                let answer = life(&fs);
                assert!(matches!(answer, Ok(()) | Err(SinkError::Retryable(_))), "{op:?} {nth}: {answer:?}");
            }
        }
    }
}
