//! Compaction: the same rows in fewer files, and an end to it.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::{History, Sink};
use tidegate_sinks::parquet::{LogSource, ParquetConfig, ParquetStore};

use crate::parquet_rows::{
    HOUR, Row, batch_with, commit, contents, delivery, flush, group_rows, ids, open, small, write,
};

/// Compacts until there is nothing to do; how many merges that took.
fn compact_all(store: &ParquetStore) -> u64 {
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

/// Three commits of one tenant and hour, of 12, 16 and 9 rows whose times overlap; the second has a field of its own.
fn commit_groups(store: &Arc<ParquetStore>) {
    for (part, count) in [12u64, 16, 9].into_iter().enumerate() {
        let rows: Vec<Row> =
            (0..count).map(|at| ("a", (part as u64 * 8 + at) as i64, part as u64 * 100 + at)).collect();
        let texts = |name: &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| format!("{name}{}", row.2 % 3))))
        };
        let mut more = vec![("actor", texts("user"))];
        more.extend((part == 1).then(|| ("own", texts("value"))));
        let mut sink = store.sink(LogSource::Ingest);
        let at = sink.committed();
        write(&mut sink, delivery(at, batch_with(&rows, more))).expect("taken");
        flush(&mut sink).expect("committed");
    }
}

#[test]
fn full_row_groups_of_one_tenant_and_hour_are_joined_as_they_are() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    commit_groups(&store);
    let before = contents(&fs, &store);
    assert_eq!(compact_all(&store), 1);
    assert_eq!(contents(&fs, &store), before);
    let file = store.snapshot().files[0].clone();
    assert_eq!(group_rows(&fs, &file.path), [12, 16, 9], "merged anew, they would be three of at most 16 without gaps");
    let bytes = Bytes::from(fs.bytes(&file.path).expect("the file"));
    let metadata = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
    let metadata = metadata.parse_and_finish(&bytes).expect("a footer with page indexes");
    assert_eq!(metadata.offset_index().map(|groups| groups.len()), Some(3));
    let actor = metadata.file_metadata().schema_descr().columns().iter().position(|column| column.name() == "actor");
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a footer");
    for group in 0..3 {
        let bloom = reader.get_row_group_column_bloom_filter(group, actor.expect("the column")).expect("readable");
        let bloom = bloom.expect("its bloom filter");
        assert!(bloom.check(&"user1") && !bloom.check(&"nobody"));
        let group = metadata.row_group(group);
        assert!(group.sorting_columns().is_some());
        assert!(group.columns().iter().all(|column| column.statistics().is_some()));
    }
    drop(store);
    let (store, _) = open(&fs, small()).expect("opens again");
    assert_eq!(contents(&fs, &store), before);
}

#[test]
fn a_damaged_row_group_is_not_joined_to_whole_ones() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    commit_groups(&store);
    let damaged = store.snapshot().files[1].path.clone();
    let mut bytes = fs.bytes(&damaged).expect("the file");
    bytes[100] ^= 1;
    fs.set_bytes(&damaged, bytes);
    let done = store.compact_once().expect("compacts");
    assert_eq!((done.files_in, done.set_aside.len()), (0, 1), "{done:?}");
    assert_eq!(store.snapshot().files.len(), 2, "the whole ones");
}

#[test]
fn row_groups_of_two_tenants_hours_or_types_are_merged_anew() {
    for (tenants, hours, typed) in [(2, 1, false), (1, 2, false), (1, 1, true)] {
        let fs = SimFs::new();
        let (store, _) = open(&fs, ParquetConfig { file_rows_min: 1_000, ..small() }).expect("opens");
        for part in 0..3u64 {
            let rows: Vec<Row> = (0..12u64)
                .map(|at| {
                    let tenant = if (part + at) % tenants == 0 { "a" } else { "b" };
                    (tenant, ((part % hours) as i64) * HOUR + at as i64, part * 100 + at)
                })
                .collect();
            if typed && part == 1 {
                let texts: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.2.to_string())));
                let mut sink = store.sink(LogSource::Ingest);
                let at = sink.committed();
                write(&mut sink, delivery(at, batch_with(&rows, vec![("n", texts)]))).expect("taken");
                flush(&mut sink).expect("committed");
            } else {
                commit(&store, &rows);
            }
        }
        let before = contents(&fs, &store);
        compact_all(&store);
        assert_eq!(contents(&fs, &store).values().sum::<u32>(), before.values().sum::<u32>());
        let groups: Vec<_> = store.snapshot().files.iter().map(|file| group_rows(&fs, &file.path)).collect();
        assert_eq!(groups, [vec![16, 16, 4]], "{tenants} tenants, {hours} hours, types differ: {typed}");
    }
}
