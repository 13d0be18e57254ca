//! From rows to what consumers of Redis Streams and Fluvio topics get of them.

use arrow::array::types::TimestampMicrosecondType;
use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::error::ArrowError;
use chrono::{DateTime, SecondsFormat};
use tidegate_events::Dataset;
use tidegate_pipeline::delivery::json_rows;
use tidegate_pipeline::{LogBatch, Offset};

use crate::error::SinksError;
use crate::feed::render_alert;

/// What a consumer gets of a row, beside node and offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: Offset,
    pub(crate) org_id: String,
    pub(crate) id: String,
    /// RFC 3339, UTC, to the microsecond.
    pub(crate) time: String,
    pub(crate) source: String,
    /// The row as one JSON object without what is null, or how long that would be when it is too long.
    pub(crate) event: Result<Vec<u8>, usize>,
}

impl Entry {
    /// Bytes that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let event = self.event.as_ref().map_or(0, Vec::len);
        event + self.org_id.len() + self.id.len() + self.time.len() + self.source.len() + 64
    }
}

/// The names of the datasets that consumers get unless others are configured.
pub(crate) fn exported_by_default() -> Vec<String> {
    let datasets = [Dataset::SecurityEvents, Dataset::CostEvents, Dataset::Alerts];
    datasets.map(|dataset| dataset.table_name().to_owned()).into()
}

/// The datasets of these names.
///
/// # Errors
/// [`SinksError::Invalid`], which says what there is.
pub(crate) fn exported(names: &[String]) -> Result<Vec<Dataset>, SinksError> {
    let known = |name: &String| {
        Dataset::from_table_name(name).ok_or_else(|| {
            SinksError::Invalid(format!(
                "no dataset {name:?}: use security_events, cost_events, alerts, dead_letters or changes"
            ))
        })
    };
    names.iter().map(known).collect()
}

/// The rows of a batch from `from` on. An event of more than `event_bytes_max` goes without its JSON.
///
/// # Errors
/// Arrow's own, for rows of which no JSON can be made.
pub(crate) fn entries(batch: &LogBatch, from: Offset, event_bytes_max: usize) -> Result<Vec<Entry>, ArrowError> {
    let skipped = usize::try_from(from.saturating_sub(batch.offset)).unwrap_or(usize::MAX).min(batch.rows.num_rows());
    let rows = batch.rows.slice(skipped, batch.rows.num_rows() - skipped);
    let texts = |name: &str| rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>()).cloned();
    let (orgs, ids, sources) = (texts(Dataset::ORG_ID), texts(Dataset::EVENT_ID), texts("source"));
    let times = rows.column_by_name(Dataset::TIME).cloned();
    let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>().cloned());
    let text = |texts: &Option<StringArray>, row: usize| {
        let texts = texts.as_ref().filter(|texts| texts.is_valid(row));
        texts.map(|texts| texts.value(row).to_owned()).unwrap_or_default()
    };
    let time = |row: usize| {
        let micros = times.as_ref().filter(|times| times.is_valid(row)).map(|times| times.value(row));
        let time = micros.and_then(DateTime::from_timestamp_micros);
        time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true)).unwrap_or_default()
    };
    let events = if batch.dataset == Dataset::Alerts { alerts(&rows) } else { json_rows(&rows)? };
    let entry = |(row, event): (usize, Vec<u8>)| Entry {
        offset: batch.offset + (skipped + row) as u64,
        org_id: text(&orgs, row),
        id: text(&ids, row),
        time: time(row),
        source: text(&sources, row),
        event: if event.len() > event_bytes_max { Err(event.len()) } else { Ok(event) },
    };
    Ok(events.into_iter().enumerate().map(entry).collect())
}

/// Alerts look as they do in the feed and over HTTP.
fn alerts(rows: &RecordBatch) -> Vec<Vec<u8>> {
    (0..rows.num_rows()).map(|row| render_alert(rows, row).into_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};

    use std::sync::Arc;

    use arrow::array::{ArrayRef, TimestampMicrosecondArray};

    use super::*;

    fn batch() -> LogBatch {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("time", Arc::new(TimestampMicrosecondArray::from(vec![1_700_000_000_000_001; 3]).with_timezone("UTC"))),
            ("event_id", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
            ("org_id", Arc::new(StringArray::from(vec!["acme", "x:y", "acme"]))),
            ("source", Arc::new(StringArray::from(vec![Some("s"), None, Some("s")]))),
            ("own.text", Arc::new(StringArray::from(vec![Some("two\nlines \"q\""), None, Some(&*"x".repeat(200))]))),
            ("own.n", Arc::new(Int64Array::from(vec![Some(7), None, None]))),
        ];
        let rows =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)));
        LogBatch { offset: 10, dataset: Dataset::SecurityEvents, rows: rows.expect("a batch") }
    }

    #[test]
    fn a_row_is_an_entry_with_its_json_and_a_long_one_without() {
        let all = entries(&batch(), 0, 200).expect("entries");
        let heads: Vec<_> = all.iter().map(|entry| (entry.offset, entry.org_id.as_str(), entry.id.as_str())).collect();
        assert_eq!(heads, [(10, "acme", "a"), (11, "x:y", "b"), (12, "acme", "c")]);
        assert_eq!((all[0].time.as_str(), all[0].source.as_str()), ("2023-11-14T22:13:20.000001Z", "s"));
        let event: serde_json::Value = serde_json::from_slice(all[0].event.as_ref().expect("short")).expect("JSON");
        let expected = serde_json::json!({
            "time": "2023-11-14T22:13:20.000001Z", "event_id": "a", "org_id": "acme", "source": "s",
            "own.text": "two\nlines \"q\"", "own.n": 7,
        });
        assert_eq!(event, expected);
        let second: serde_json::Value = serde_json::from_slice(all[1].event.as_ref().expect("short")).expect("JSON");
        assert!(second.get("source").is_none() && second.get("own.n").is_none(), "{second}");
        assert!(matches!(all[2].event, Err(bytes) if bytes > 200), "{:?}", all[2]);
        assert_eq!(entries(&batch(), 12, 1 << 20).expect("entries").len(), 1, "what lies below is left out");
        assert!(entries(&batch(), 13, 1 << 20).expect("entries").is_empty());
    }
}
