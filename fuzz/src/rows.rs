//! Rows of security events, made of ids.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};

/// A batch with one row an id.
pub(crate) fn batch(ids: &[&str]) -> RecordBatch {
    let times =
        || TimestampMicrosecondArray::from_iter_values((0..ids.len() as i64).map(|row| 1_700_000_000_000_000 + row));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("time", Arc::new(times().with_timezone("UTC"))),
        ("received_time", Arc::new(times().with_timezone("UTC"))),
        ("event_id", Arc::new(StringArray::from(ids.to_vec()))),
        ("org_id", Arc::new(StringArray::from(vec!["neighbour"; ids.len()]))),
        ("source", Arc::new(StringArray::from(vec!["windows"; ids.len()]))),
        ("own.text", Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("text of {id}"))))),
        ("own.count", Arc::new(Int64Array::from_iter_values(0..ids.len() as i64))),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns of one length")
}

/// The ids of a batch, in order. A damaged log may hold rows without the column.
pub(crate) fn ids(batch: &RecordBatch) -> Vec<String> {
    let column = batch.column_by_name("event_id").and_then(|column| column.as_string_opt::<i32>());
    column.map(|ids| ids.iter().flatten().map(str::to_owned).collect()).unwrap_or_default()
}
