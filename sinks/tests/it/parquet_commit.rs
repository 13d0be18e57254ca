//! Commits: what becomes visible, in which files, and that nothing is there twice.

use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::{History, Sink};
use tidegate_sinks::parquet::LogSource;

use crate::parquet_rows::{HOUR, batch, commit, contents, delivery, flush, ids, open, small, write};

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
