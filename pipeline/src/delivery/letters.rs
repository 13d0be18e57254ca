//! Dead letters of rows that a sink refused.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;

use super::DeadLetter;
use crate::log::LogBatch;

/// One letter a row. The receive time is that of the row, so that the letter of a row is the same whenever it is made.
pub(super) fn letters(batch: &LogBatch, sink: &str, reason: &str) -> Vec<DeadLetter> {
    let text = |name: &str, row: usize| {
        let column = batch.rows.column_by_name(name)?.as_any().downcast_ref::<StringArray>()?;
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let time = |name: &str, row: usize| {
        let column = batch.rows.column_by_name(name)?.as_any().downcast_ref::<TimestampMicrosecondArray>()?;
        column.is_valid(row).then(|| column.value(row))
    };
    let mut payloads = json_rows(&batch.rows).into_iter();
    let letter = |row: usize| DeadLetter {
        org_id: text("org_id", row).unwrap_or_default(),
        source: text("source", row).unwrap_or_default(),
        dataset: batch.dataset,
        stage: format!("delivery:{sink}"),
        code: "refused_by_sink".into(),
        reason: reason.chars().take(1_000).collect(),
        request_id: None,
        item_index: None,
        payload: payloads.next().unwrap_or_default(),
        time_us: time("time", row).unwrap_or_default(),
        received_us: time("received_time", row).unwrap_or_default(),
        event_id: format!("delivery:{sink}:{}:{}", batch.dataset.table_name(), batch.offset + row as u64),
    };
    (0..batch.rows.num_rows()).map(letter).collect()
}

/// Each row as a JSON object, without what is null. Rows of which Arrow makes no JSON are told by the error instead.
fn json_rows(rows: &RecordBatch) -> Vec<Vec<u8>> {
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    match in_offset_time(rows).and_then(|rows| writer.write(&rows)).and_then(|()| writer.finish()) {
        Ok(()) => writer.into_inner().split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect(),
        Err(error) => vec![format!("no JSON can be made of this row: {error}").into_bytes(); rows.num_rows()],
    }
}

/// The rows with their times at `+00:00`, which is UTC to Arrow's writers without a database of time zones.
///
/// # Errors
/// Arrow's, for rows that fit no schema.
pub fn in_offset_time(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let column = |column: &ArrayRef| match column.as_any().downcast_ref::<TimestampMicrosecondArray>() {
        Some(times) => Arc::new(times.clone().with_timezone("+00:00")),
        None => column.clone(),
    };
    let columns: Vec<ArrayRef> = rows.columns().iter().map(column).collect();
    let fields = rows.schema_ref().fields().iter().zip(&columns);
    let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
    RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns)
}
