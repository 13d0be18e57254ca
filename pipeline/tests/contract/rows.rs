//! Batches for the tests of the log.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};
use tidegate_events::{Dataset, dedup_key, timestamp_type};
use tidegate_pipeline::{Ack, Append, EventBatch, LogBatch};

/// A batch of `security_events` with one row an id, of the tenant `org`; ids that start with `-` have no key.
pub fn events(org: &str, ids: &[&str]) -> EventBatch {
    batch(Dataset::SecurityEvents, &vec![org; ids.len()], ids)
}

/// A batch of `dataset` with one row a (tenant, id); ids that start with `-` have no key.
pub fn batch(dataset: Dataset, orgs: &[&str], ids: &[&str]) -> EventBatch {
    let times: Vec<i64> = (0..ids.len() as i64).map(|row| 1_700_000_000_000_000 + row).collect();
    let mut tags = ListBuilder::new(StringBuilder::new());
    for id in ids {
        tags.append_value([Some("a"), Some(*id)]);
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("time", Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC"))),
        ("received_time", Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))),
        ("event_id", Arc::new(StringArray::from(ids.to_vec()))),
        ("org_id", Arc::new(StringArray::from(orgs.to_vec()))),
        ("own.text", Arc::new(StringArray::from_iter(ids.iter().map(|id| (id.len() % 2 == 1).then_some(*id))))),
        ("own.count", Arc::new(Int64Array::from_iter_values(0..ids.len() as i64))),
        ("own.tags", Arc::new(tags.finish())),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    assert_eq!(fields[0].data_type(), &timestamp_type());
    let rows =
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, column)| column).collect());
    let keys = orgs.iter().zip(ids).map(|(org, id)| match id.starts_with('-') {
        true => 0,
        false => dedup_key(org, dataset as u8, id),
    });
    EventBatch { dataset, keys: keys.collect(), rows: rows.expect("columns of one length") }
}

/// An append of one batch.
pub fn one(batch: EventBatch) -> Append {
    Append { batches: vec![batch], ack: Ack::Disk }
}

/// The ids of the rows, each with its offset.
pub fn ids(batches: &[Arc<LogBatch>]) -> Vec<(u64, String)> {
    batches.iter().flat_map(|batch| ids_of(batch)).collect()
}

/// The ids of the rows of a batch, each with its offset.
pub fn ids_of(batch: &LogBatch) -> Vec<(u64, String)> {
    let column = batch.rows.column_by_name("event_id").expect("an id").as_string::<i32>().clone();
    (0..column.len()).map(|row| (batch.offset + row as u64, column.value(row).to_owned())).collect()
}
