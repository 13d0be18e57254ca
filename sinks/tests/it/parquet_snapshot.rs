//! Readers: a snapshot keeps its files and the log, for as long as it is held and no longer.

use std::sync::Arc;

use tidegate_pipeline::History;
use tidegate_pipeline::fs::SimFs;
use tidegate_sinks::parquet::{DatasetDays, LogSource, RetentionConfig};

use crate::parquet_rows::{HOUR, commit, contents, ids, open, read_file, small};

#[test]
fn files_stay_for_those_who_hold_them() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    for id in 0..3 {
        commit(&store, &[("a", id, id as u64)]);
    }
    let old = store.snapshot();
    let one = old.files[0].clone();
    assert_eq!(store.compact_once().expect("compacts").files_in, 3);
    assert_eq!(store.sweep().expect("sweeps"), 0, "all three are held");
    assert_eq!((old.files.len(), store.snapshot().files.len()), (3, 1));
    old.files.iter().for_each(|file| assert_eq!(read_file(&fs, &file.path).len(), 1));
    drop(old);
    assert_eq!(store.sweep().expect("sweeps"), 2, "one is held by itself");
    assert_eq!(read_file(&fs, &one.path).len(), 1);
    let path = one.path.clone();
    drop(one);
    assert_eq!(store.sweep().expect("sweeps"), 1);
    assert_eq!((fs.bytes(&path), store.sweep().expect("sweeps"), store.stats().condemned), (None, 0, 0));
    assert_eq!(contents(&fs, &store).len(), 3);
}

#[test]
fn the_log_is_wanted_from_the_oldest_snapshot_on() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    commit(&store, &[("a", 1, 0)]);
    let old = store.snapshot();
    for id in 1..4 {
        commit(&store, &[("a", 1, id)]);
    }
    assert_eq!((old.log_cursor, store.oldest_live_cursor(LogSource::Ingest)), (1, 1));
    let clone = old.clone();
    drop(old);
    assert_eq!(store.oldest_live_cursor(LogSource::Ingest), 1);
    drop(clone);
    assert_eq!(store.oldest_live_cursor(LogSource::Ingest), 3, "the last edit might be damaged");
    assert_eq!(store.oldest_live_cursor(LogSource::Output), 0);
}

#[test]
fn commits_compaction_retention_and_readers_at_once() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let policy = RetentionConfig {
        days: DatasetDays { security_events: Some(1), ..DatasetDays::default() },
        ..RetentionConfig::default()
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (0..60).for_each(|id| commit(&store, &[("a", id as i64 * HOUR, id), ("b", id as i64, id + 1000)]))
        });
        let reader = scope.spawn(|| {
            for _ in 0..200 {
                let snapshot = store.snapshot();
                let rows: u64 = snapshot.files.iter().map(|file| file.rows).sum();
                assert_eq!(rows, snapshot.log_cursor, "rows and cursor agree in every snapshot");
                for file in &snapshot.files {
                    assert_eq!(
                        read_file(&fs, &file.path).iter().map(|batch| batch.num_rows() as u64).sum::<u64>(),
                        file.rows
                    );
                }
            }
        });
        while !writer.is_finished() || !reader.is_finished() {
            store.compact_once().expect("compacts");
            store.retain(0, &policy).expect("nothing is that old");
            store.sweep().expect("sweeps");
        }
    });
    let all: Vec<u64> = (0..60).chain(1000..1060).collect();
    assert_eq!(ids(&fs, &store), all);
    let stats = store.stats();
    assert_eq!((stats.ledger.committed, stats.ledger.expired, stats.ledger.lost), (120, 0, 0));
    let _: Arc<dyn History> = store;
}
