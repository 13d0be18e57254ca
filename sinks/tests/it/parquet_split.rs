//! Which rows share a file.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tidegate_events::Dataset;
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::{Delivery, History, LogBatch, Sink};
use tidegate_sinks::parquet::{LogSource, ParquetConfig};

use crate::parquet_rows::{HOUR, Row, batch, commit, contents, delivery, flush, open, read_file, small, write};

const DAY: i64 = 24 * HOUR;

/// Rows, first and last tenant, first and last hour of each file that a commit of the rows makes.
fn files(rows: &[Row]) -> Vec<(u64, String, String, i64, i64)> {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    commit(&store, rows);
    assert_eq!(contents(&fs, &store).len(), rows.len());
    let snapshot = store.snapshot();
    let file = |file: &Arc<tidegate_pipeline::HistoryFile>| {
        (
            file.rows,
            file.org_min.to_string(),
            file.org_max.to_string(),
            file.time_min.div_euclid(HOUR),
            file.time_max.div_euclid(HOUR),
        )
    };
    let mut files: Vec<_> = snapshot.files.iter().map(file).collect();
    files.sort();
    files
}

fn rows(org: &'static str, start: i64, step: i64, count: u64, id: u64) -> Vec<Row> {
    (0..count).map(|at| (org, start + at as i64 * step, id + at)).collect()
}

#[test]
fn a_full_hour_has_a_file_then_a_full_day_and_the_rest_shares_one() {
    let mut all = rows("a", 5 * HOUR, 1, 8, 0);
    all.extend(rows("a", DAY, 2 * HOUR, 8, 100));
    all.extend(rows("b", 10 * DAY, 3 * DAY, 7, 200));
    let found = files(&all);
    let text = |org: &str| org.to_owned();
    assert_eq!(
        found,
        [(7, text("b"), text("b"), 240, 672), (8, text("a"), text("a"), 5, 5), (8, text("a"), text("a"), 24, 38)]
    );
}

#[test]
fn a_large_tenant_has_its_own_files_and_small_ones_share() {
    let mut all = rows("big", 0, 1, 17, 0);
    all.extend(rows("a", 0, 1, 3, 100));
    all.extend(rows("z", 0, 1, 3, 200));
    let text = |org: &str| org.to_owned();
    assert_eq!(files(&all), [(6, text("a"), text("z"), 0, 0), (17, text("big"), text("big"), 0, 0)]);
}

#[test]
fn a_backfill_over_two_years_is_one_file() {
    assert_eq!(files(&rows("a", -DAY, DAY, 7 * 100, 0)).len(), 1, "no day has the rows for a file");
}

#[test]
fn the_sink_commits_by_itself_before_it_holds_too_much() {
    let rows: Vec<Row> = rows("a", 0, 1, 64, 0);
    let bytes = 64 * 40;
    for (name, config, expected) in [
        ("rows", ParquetConfig { commit_rows: 16, ..small() }, 4),
        ("bytes", ParquetConfig { commit_bytes: bytes / 4, ..small() }, 4),
        ("bound", ParquetConfig { buffer_bytes_max: bytes / 4, ..small() }, 4),
        ("neither", small(), 0),
    ] {
        let fs = SimFs::new();
        let (store, _) = open(&fs, config).expect("opens");
        let mut sink = store.sink(LogSource::Ingest);
        for at in (0..64).step_by(4) {
            write(&mut sink, delivery(at as u64, batch(&rows[at..at + 4]))).expect("taken");
        }
        let commits = store.snapshot().files.len();
        assert!(commits >= expected && commits <= expected * 2, "{name}: {commits}");
        flush(&mut sink).expect("committed");
        assert_eq!((contents(&fs, &store).len(), sink.committed()), (64, 64), "{name}");
    }
}

#[test]
fn datasets_and_logs_are_kept_apart() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let (mut ingest, mut output) = (store.sink(LogSource::Ingest), store.sink(LogSource::Output));
    let core = batch(&[("a", 1, 1)]).project(&[0, 1, 2, 3, 4]).expect("core columns");
    let of = |offset, dataset| Arc::new(LogBatch { offset, dataset, rows: core.clone() });
    let batches = vec![of(0, Dataset::SecurityEvents), of(1, Dataset::CostEvents), of(2, Dataset::Changes)];
    write(&mut ingest, Delivery { batches, next_offset: 3 }).expect("taken");
    write(&mut output, Delivery { batches: vec![of(0, Dataset::Alerts)], next_offset: 1 }).expect("taken");
    flush(&mut output).expect("committed");
    assert_eq!((store.snapshot().log_cursor, store.snapshot().output_cursor), (0, 1));
    flush(&mut ingest).expect("committed");
    assert_eq!((store.snapshot().log_cursor, store.snapshot().output_cursor), (3, 1));
    let mut datasets: Vec<_> = store.snapshot().files.iter().map(|file| (file.dataset, file.rows)).collect();
    datasets.sort();
    let expected = [Dataset::SecurityEvents, Dataset::CostEvents, Dataset::Alerts, Dataset::Changes];
    assert_eq!(datasets, expected.map(|dataset| (dataset, 1)));
    assert_eq!(store.stats().datasets.len(), 4);
}

#[test]
fn a_file_can_be_pruned_by_statistics_pages_and_bloom_filters() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    commit(&store, &rows("a", 0, 1, 16, 0));
    let path = store.snapshot().files[0].path.clone();
    let bytes = Bytes::from(fs.bytes(&path).expect("the file"));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a footer");
    let group = reader.metadata().row_group(0);
    assert_eq!(
        group.sorting_columns().map(|columns| columns.iter().map(|column| column.column_idx).collect()),
        Some(vec![3, 0])
    );
    assert!(
        group.columns().iter().all(|column| column.statistics().is_some() && column.column_index_offset().is_some())
    );
    let bloom = reader.get_row_group_column_bloom_filter(0, 2).expect("readable").expect("event_id has one");
    assert!(bloom.check(&"e000003") && !bloom.check(&"e777777"));
    let first = read_file(&fs, &path).remove(0);
    assert_eq!(first.column(2).as_string::<i32>().len(), 16);
}
