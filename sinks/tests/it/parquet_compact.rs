//! Compaction: the same rows in fewer files, and an end to it.

use tidegate_pipeline::History;
use tidegate_pipeline::fs::SimFs;
use tidegate_sinks::parquet::ParquetConfig;

use crate::parquet_rows::{HOUR, Row, commit, contents, ids, open, small};

/// Compacts until there is nothing to do; how many merges that took.
fn compact_all(store: &tidegate_sinks::parquet::ParquetStore) -> u64 {
    let mut merges = 0;
    loop {
        let before = store.snapshot().files.len();
        let done = store.compact_once().expect("compacts");
        if done.files_in == 0 {
            return merges;
        }
        assert_eq!(store.snapshot().files.len(), before - done.files_in as usize + done.files_out as usize);
        assert!(done.set_aside.is_empty());
        merges += 1;
        assert!(merges < 1000, "compaction comes to an end");
    }
}

#[test]
fn many_small_commits_become_few_files_with_the_same_rows() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, ParquetConfig { settle_hours: u32::MAX, ..small() }).expect("opens");
    let mut most = 0;
    let mut written = 0;
    for id in 0..200 {
        let time = id as i64 * HOUR / 7;
        commit(&store, &[("b", time, 3 * id), ("a", time + 5, 3 * id + 1), ("a", time - HOUR, 3 * id + 2)]);
        loop {
            let done = store.compact_once().expect("compacts");
            written += done.rows;
            if done.files_in == 0 {
                break;
            }
        }
        store.sweep().expect("sweeps");
        most = most.max(store.snapshot().files.len());
    }
    assert_eq!(contents(&fs, &store).values().sum::<u32>(), 600);
    assert_eq!(ids(&fs, &store), (0..600).collect::<Vec<_>>());
    assert!(most <= 40, "{most} files at once");
    assert!(written <= 600 * 10, "each row was rewritten {} times", written / 600);
    let on_disk = fs.files().iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).count();
    assert_eq!(on_disk, store.snapshot().files.len(), "sweeping leaves nothing behind");
}

#[test]
fn what_is_left_of_a_settled_day_is_put_together() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, ParquetConfig { settle_hours: 0, ..small() }).expect("opens");
    for hour in 0..24 {
        let rows: Vec<Row> = (0..9).map(|at| ("a", hour * HOUR + at, (hour * 10 + at) as u64)).collect();
        commit(&store, &rows);
    }
    assert_eq!(store.snapshot().files.len(), 24, "each hour has the rows for a file");
    let before = contents(&fs, &store);
    compact_all(&store);
    assert_eq!(contents(&fs, &store), before);
    assert_eq!(store.snapshot().files.len(), 1, "a day of little");
}

#[test]
fn a_backlog_of_mixed_files_is_sorted_into_hours_and_tenants() {
    let fs = SimFs::new();
    let config = ParquetConfig { compact_files_min: 6, compact_files_max: 64, settle_hours: u32::MAX, ..small() };
    let (store, _) = open(&fs, config).expect("opens");
    for part in 0..40u64 {
        let row = |at: u64| ("a", (at % 4) as i64 * 100 * HOUR + part as i64, part * 10 + at);
        let mut rows: Vec<Row> = (0..4).map(row).collect();
        rows.push(("small", 0, part * 10 + 4));
        commit(&store, &rows);
    }
    let before = contents(&fs, &store);
    assert!(store.compact_once().expect("compacts").files_in > 2);
    assert_eq!(contents(&fs, &store), before);
    let snapshot = store.snapshot();
    let tenants: Vec<_> =
        snapshot.files.iter().map(|file| (file.org_min.to_string(), file.org_max.to_string())).collect();
    assert!(tenants.iter().any(|(min, max)| min == "a" && max == "a"), "{tenants:?}");
    compact_all(&store);
    assert_eq!(contents(&fs, &store), before);
}

#[test]
fn outputs_end_at_the_target_size() {
    let fs = SimFs::new();
    let config = ParquetConfig { target_file_bytes: 16 << 10, compact_files_min: 4, ..small() };
    let (store, _) = open(&fs, config).expect("opens");
    for part in 0..8u64 {
        // Ids that do not compress, in one hour.
        let rows: Vec<Row> =
            (0..2000).map(|at| ("a", at, (part * 2000 + at as u64).wrapping_mul(7_919_777) % 999_983)).collect();
        commit(&store, &rows);
    }
    let before = contents(&fs, &store);
    compact_all(&store);
    assert_eq!(contents(&fs, &store), before);
    let sizes: Vec<u64> = store.snapshot().files.iter().map(|file| file.bytes).collect();
    assert!(sizes.len() > 2 && sizes.iter().filter(|bytes| **bytes < 8 << 10).count() <= 1, "{sizes:?}");
}
