//! Dead letters of rows that a sink refused.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;

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
    let payloads = json_rows(&batch.rows).unwrap_or_else(|error| {
        vec![format!("no JSON can be made of this row: {error}").into_bytes(); batch.rows.num_rows()]
    });
    let mut payloads = payloads.into_iter();
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

/// Each row as one JSON object in one line, without what is null; times in RFC 3339, UTC, to the microsecond.
///
/// # Errors
/// Arrow's, for rows of which no JSON can be made.
pub fn json_rows(rows: &RecordBatch) -> Result<Vec<Vec<u8>>, ArrowError> {
    let builder = WriterBuilder::new().with_timestamp_tz_format("%Y-%m-%dT%H:%M:%S%.6fZ".to_owned());
    let mut writer = builder.build::<_, LineDelimited>(Vec::with_capacity(rows.num_rows() * 256));
    writer.write(&in_offset_time(rows)?)?;
    writer.finish()?;
    let text = writer.into_inner();
    // Line breaks in texts are escaped.
    let lines: Vec<_> = text.split(|byte| *byte == b'\n').take(rows.num_rows()).map(<[u8]>::to_vec).collect();
    if lines.len() == rows.num_rows() {
        return Ok(lines);
    }
    Err(ArrowError::JsonError(format!("{} JSON texts for {} rows", lines.len(), rows.num_rows())))
}

/// The rows with their times at `+00:00`, which is UTC to Arrow's writers without a database of time zones.
fn in_offset_time(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let column = |column: &ArrayRef| match column.as_any().downcast_ref::<TimestampMicrosecondArray>() {
        Some(times) => Arc::new(times.clone().with_timezone("+00:00")),
        None => column.clone(),
    };
    let columns: Vec<ArrayRef> = rows.columns().iter().map(column).collect();
    let fields = rows.schema_ref().fields().iter().zip(&columns);
    let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
    RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns)
}

#[cfg(test)]
mod tests {
    use tidegate_events::Dataset;

    use super::*;

    #[test]
    fn a_letter_holds_its_row_as_streams_show_it() {
        let times = TimestampMicrosecondArray::from(vec![1_700_000_000_000_000, 1_700_000_000_000_001]);
        let columns: [(&str, ArrayRef); 3] = [
            ("time", Arc::new(times.with_timezone("UTC"))),
            ("org_id", Arc::new(StringArray::from(vec!["acme", "umbrella"]))),
            ("own", Arc::new(StringArray::from(vec![Some("two\nlines"), None]))),
        ];
        let rows = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)));
        let batch = LogBatch { offset: 5, dataset: Dataset::SecurityEvents, rows: rows.expect("a batch") };
        let letters = letters(&batch, "database", "a reason");
        let told: Vec<_> = letters.iter().map(|letter| String::from_utf8_lossy(&letter.payload)).collect();
        let expected = [
            r#"{"time":"2023-11-14T22:13:20.000000Z","org_id":"acme","own":"two\nlines"}"#,
            r#"{"time":"2023-11-14T22:13:20.000001Z","org_id":"umbrella"}"#,
        ];
        assert_eq!(told, expected);
        let places: Vec<_> = letters.iter().map(|letter| (letter.org_id.as_str(), letter.event_id.as_str())).collect();
        let expected =
            [("acme", "delivery:database:security_events:5"), ("umbrella", "delivery:database:security_events:6")];
        assert_eq!(places, expected);
    }
}
