//! Alerts as JSON: rows of `alerts` rendered the same way whether they come from the log or from history.
//!
//! The form is that of `GET /v2/alerts`: times are RFC 3339, UTC, to the microsecond, lists are arrays, absent
//! values are left out, `matched` is the JSON object that the column's text holds, and the tenant, of which a reader sees only
//! one, is not said.

use arrow::array::types::TimestampMicrosecondType;
use arrow::array::{Array, AsArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value};
use tidegate_events::Dataset;

/// Each row of a batch of [`Dataset::Alerts`] as its `seq` and its JSON object. Rows without a `seq` are left out.
///
/// This is what a [`Backfill`](super::Backfill) gives for the rows that it finds in history.
pub fn render_alerts(rows: &RecordBatch) -> Vec<(u64, String)> {
    (0..rows.num_rows()).filter_map(|row| Some((seq(rows, row)?, render(rows, row)))).collect()
}

/// The `seq` of a row.
pub(super) fn seq(rows: &RecordBatch, row: usize) -> Option<u64> {
    let column = rows.column_by_name("seq")?.as_primitive_opt::<arrow::array::types::Int64Type>()?;
    column.is_valid(row).then(|| u64::try_from(column.value(row)).ok()).flatten()
}

/// The JSON object of a row.
pub(crate) fn render(rows: &RecordBatch, row: usize) -> String {
    let mut object = Map::new();
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        if column.is_valid(row)
            && field.name() != Dataset::ORG_ID
            && let Some(value) = value(column.as_ref(), row)
        {
            let value = if field.name() == "matched" { embedded(value) } else { value };
            object.insert(field.name().clone(), value);
        }
    }
    Value::Object(object).to_string()
}

/// The object that a text holds; the text itself when it holds none.
fn embedded(value: Value) -> Value {
    let object = value.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    object.map_or(value, Value::Object)
}

fn value(column: &dyn Array, row: usize) -> Option<Value> {
    match column.data_type() {
        DataType::Utf8 => Some(column.as_any().downcast_ref::<StringArray>()?.value(row).into()),
        DataType::Int32 => Some(column.as_any().downcast_ref::<Int32Array>()?.value(row).into()),
        DataType::Int64 => Some(column.as_any().downcast_ref::<Int64Array>()?.value(row).into()),
        DataType::Timestamp(..) => {
            let micros = column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row);
            let time = DateTime::from_timestamp_micros(micros)?;
            Some(time.to_rfc3339_opts(SecondsFormat::Micros, true).into())
        }
        DataType::List(_) => Some(texts(column.as_any().downcast_ref::<ListArray>()?, row).into()),
        _ => None,
    }
}

/// The texts of a list.
pub(super) fn texts(lists: &ListArray, row: usize) -> Vec<String> {
    let items = lists.value(row);
    let Some(items) = items.as_string_opt::<i32>() else { return Vec::new() };
    items.iter().flatten().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use tidegate_events::{Alert, Level, alerts_to_batch};

    use super::*;

    #[test]
    fn an_alert_is_an_object_without_absent_values() {
        let alert = Alert {
            alert_id: "a\"1".into(),
            org_id: "acme".into(),
            source: "s".into(),
            rule_id: "r".into(),
            title: "t".into(),
            level: Level::High,
            tags: vec!["attack.t1078".into(), "x".into()],
            group_key: String::new(),
            first_time: 1_700_000_000_000_000,
            last_time: 1_700_000_000_123_456,
            event_ids: vec![],
            event_count: 1,
            actor: Some("kim".into()),
            asset: None,
            resource: None,
            message: "two\nlines".into(),
            matched: r#"{"a":[1,2]}"#.into(),
            continues: None,
        };
        let batch = alerts_to_batch(&[alert.clone(), alert], 7, 3).expect("a batch");
        let rendered = render_alerts(&batch);
        assert_eq!(rendered.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [7, 8]);
        assert!(!rendered[0].1.contains('\n'), "one line: {}", rendered[0].1);
        let value: Value = serde_json::from_str(&rendered[0].1).expect("JSON");
        assert_eq!(value["matched"], serde_json::json!({"a": [1, 2]}));
        assert!(value.get("org_id").is_none());
        assert_eq!(embedded("cut {".into()), "cut {");
        assert_eq!(value["first_time"], "2023-11-14T22:13:20.000000Z");
        assert_eq!(value["last_time"], "2023-11-14T22:13:20.123456Z");
        assert_eq!(value["tags"][0], "attack.t1078");
        assert_eq!(value["alert_id"], "a\"1");
        assert!(value.get("asset").is_none());
    }
}
