//! Alerts as JSON: rows of `alerts` rendered the same way whether they come from the log or from history.
//!
//! `time`s are RFC 3339 with microseconds, absent values are left out, `matched` is an object. The tenant is not part of it:
//! a subscriber has exactly one.

use arrow::array::{Array, AsArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::array::types::TimestampMicrosecondType;
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
pub(super) fn render(rows: &RecordBatch, row: usize) -> String {
    let mut object = Map::new();
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        if field.name() == Dataset::ORG_ID || column.is_null(row) {
            continue;
        }
        let Some(value) = value(column.as_ref(), row) else { continue };
        let value = match value {
            // What matched is JSON already; a text that is not stays a text.
            Value::String(text) if field.name() == "matched" => {
                serde_json::from_str(&text).unwrap_or(Value::String(text))
            }
            other => other,
        };
        object.insert(field.name().clone(), value);
    }
    Value::Object(object).to_string()
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
    fn an_alert_is_an_object_without_its_tenant_and_without_absent_values() {
        let mut alert = Alert {
            alert_id: "a\"1".into(),
            org_id: "acme".into(),
            source: "s".into(),
            rule_id: "r".into(),
            title: "t".into(),
            level: Level::High,
            tags: vec!["attack.t1078".into(), "x".into()],
            group_key: String::new(),
            first_time: 1,
            last_time: 1_700_000_000_123_456,
            event_ids: vec![],
            event_count: 1,
            actor: Some("kim".into()),
            asset: None,
            resource: None,
            message: "m".into(),
            matched: r#"{"a":[1,2]}"#.into(),
        };
        let good = alert.clone();
        alert.matched = "{not json".into();
        let batch = alerts_to_batch(&[good, alert], 7, 3).expect("a batch");
        let rendered = render_alerts(&batch);
        assert_eq!(rendered.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [7, 8]);
        let values: Vec<Value> = rendered.iter().map(|(_, json)| serde_json::from_str(json).expect("JSON")).collect();
        assert_eq!(values[0]["matched"]["a"][1], 2);
        assert_eq!(values[1]["matched"], "{not json");
        assert_eq!(values[0]["last_time"], "2023-11-14T22:13:20.123456Z");
        assert_eq!(values[0]["tags"][0], "attack.t1078");
        assert_eq!(values[0]["alert_id"], "a\"1");
        assert!(values[0].get("org_id").is_none() && values[0].get("asset").is_none());
    }
}
