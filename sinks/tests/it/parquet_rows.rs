//! What the Parquet tests share: batches made from short descriptions, and what a store holds, read back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema, TimestampMicrosecondType};
use arrow::util::display::array_value_to_string;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tidegate_events::{Dataset, timestamp_type};
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::{Delivery, History, LogBatch, Sink};
use tidegate_sinks::SinksError;
use tidegate_sinks::parquet::{LogSource, OpenReport, ParquetConfig, ParquetSink, ParquetStore};
use tokio::runtime::Runtime;

/// Microseconds of an hour.
pub const HOUR: i64 = 3_600_000_000;

/// Where the tests keep their store.
pub fn dir() -> PathBuf {
    PathBuf::from("/data/history")
}

/// A configuration with small bounds.
pub fn small() -> ParquetConfig {
    ParquetConfig {
        file_rows_min: 8,
        tenant_rows_min: 16,
        row_group_rows: 16,
        compact_files_min: 3,
        compact_files_max: 6,
        edits_per_snapshot: 4,
        ..ParquetConfig::default()
    }
}

/// Opens the store of the tests.
pub fn open(fs: &SimFs, config: ParquetConfig) -> Result<(Arc<ParquetStore>, OpenReport), SinksError> {
    ParquetStore::open(Arc::new(fs.clone()), &dir(), config)
}

/// A row: tenant, time, id.
pub type Row = (&'static str, i64, u64);

/// A batch of security events with the columns that all have, and `more`.
pub fn batch_with(rows: &[Row], more: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let times = || TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1)).with_timezone("UTC");
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("time", Arc::new(times())),
        ("received_time", Arc::new(times())),
        ("event_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| format!("e{:06}", row.2))))),
        ("org_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)))),
        ("source", Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "test")))),
    ];
    columns.extend(more);
    let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    assert_eq!(schema.field(0).data_type(), &timestamp_type());
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new_with_options(Arc::new(schema), arrays, &options).expect("a batch")
}

/// The same with one own field, the id as a number.
pub fn batch(rows: &[Row]) -> RecordBatch {
    batch_with(rows, vec![("n", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2 as i64))))])
}

/// One batch as a delivery at an offset.
pub fn delivery(offset: u64, rows: RecordBatch) -> Delivery {
    let batch = LogBatch { offset, dataset: Dataset::SecurityEvents, rows };
    Delivery { next_offset: batch.next_offset(), batches: vec![Arc::new(batch)] }
}

/// Writes one delivery.
pub fn write(sink: &mut ParquetSink, delivery: Delivery) -> Result<(), tidegate_pipeline::SinkError> {
    wait(sink.write(delivery))
}

/// Commits what the sink has taken.
pub fn flush(sink: &mut ParquetSink) -> Result<(), tidegate_pipeline::SinkError> {
    wait(sink.flush())
}

/// The runtime of the tests that are not async themselves.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
    &RUNTIME
}

/// Runs a future of a sink.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

/// Commits a batch at the cursor.
pub fn commit(store: &Arc<ParquetStore>, rows: &[Row]) {
    let mut sink = store.sink(LogSource::Ingest);
    let at = sink.committed();
    write(&mut sink, delivery(at, batch(rows))).expect("taken");
    flush(&mut sink).expect("committed");
}

/// The batches of one file of a simulated file system.
pub fn read_file(fs: &SimFs, path: &Path) -> Vec<RecordBatch> {
    let bytes = Bytes::from(fs.bytes(path).unwrap_or_else(|| panic!("{} is missing", path.display())));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a footer").build().expect("a reader");
    reader.collect::<Result<_, _>>().expect("readable")
}

/// The rows of each row group of a file.
pub fn group_rows(fs: &SimFs, path: &Path) -> Vec<usize> {
    let bytes = Bytes::from(fs.bytes(path).unwrap_or_else(|| panic!("{} is missing", path.display())));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a footer");
    reader.metadata().row_groups().iter().map(|group| group.num_rows() as usize).collect()
}

/// Every visible row as text, with how often it is there, columns that are null left out. Checks that every row group is sorted,
/// and that a file holds what its entry says.
pub fn contents(fs: &SimFs, store: &ParquetStore) -> BTreeMap<String, u32> {
    let mut rows = BTreeMap::new();
    for file in &store.snapshot().files {
        let mut keys: Vec<(String, i64)> = Vec::new();
        for batch in read_file(fs, &file.path) {
            let orgs = batch.column_by_name("org_id").expect("org_id").as_string::<i32>();
            let times = batch.column_by_name("time").expect("time").as_primitive::<TimestampMicrosecondType>();
            for row in 0..batch.num_rows() {
                keys.push((orgs.value(row).to_owned(), times.value(row)));
                *rows.entry(row_text(&batch, row)).or_default() += 1;
            }
        }
        let mut left = keys.as_slice();
        for rows in group_rows(fs, &file.path) {
            let (group, more) = left.split_at(rows);
            assert!(group.is_sorted(), "a row group of {} is not sorted", file.path.display());
            left = more;
        }
        assert_eq!(keys.len() as u64, file.rows);
        assert_eq!(keys.iter().map(|key| key.1).min(), Some(file.time_min));
        assert_eq!(keys.iter().map(|key| key.1).max(), Some(file.time_max));
        assert_eq!(keys.first().map(|key| key.0.as_str()), Some(&*file.org_min));
        assert_eq!(keys.last().map(|key| key.0.as_str()), Some(&*file.org_max));
    }
    rows
}

fn row_text(batch: &RecordBatch, row: usize) -> String {
    let mut text = String::new();
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        if array.is_valid(row) && field.name() != "received_time" && field.name() != "source" {
            let value = match array.as_primitive_opt::<TimestampMicrosecondType>() {
                Some(times) => times.value(row).to_string(),
                None => array_value_to_string(array, row).expect("displays"),
            };
            text.push_str(&format!("{}={value} ", field.name()));
        }
    }
    text
}

/// The ids of all visible rows, sorted; an id that is there twice is twice in the list.
pub fn ids(fs: &SimFs, store: &ParquetStore) -> Vec<u64> {
    let mut ids = Vec::new();
    for file in &store.snapshot().files {
        for batch in read_file(fs, &file.path) {
            let column = batch.column_by_name("event_id").expect("event_id").as_string::<i32>();
            ids.extend(column.iter().flatten().map(|id| id[1..].parse::<u64>().expect("a number")));
        }
    }
    ids.sort_unstable();
    ids
}
