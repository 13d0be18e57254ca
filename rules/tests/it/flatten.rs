//! JSON events to a batch with the column conventions of the product: dotted names, lists per path, joined types, FOCUS
//! columns as decimals and times. Small and slow; the product's own decoders live in another crate.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Decimal128Array, Float64Builder, Int64Builder, ListBuilder, RecordBatch, StringArray,
    StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use serde_json::Value;
use tidegate_events::focus::{self, FocusKind};
use tidegate_events::{Dataset, FieldType, RAW_PREFIX, Scalar};
use tidegate_pipeline::LogBatch;

/// The rows of one test batch.
pub struct Events {
    pub dataset: Dataset,
    /// (tenant, source, event)
    pub rows: Vec<(String, String, Value)>,
}

impl Events {
    pub fn new(dataset: Dataset) -> Self {
        Self { dataset, rows: Vec::new() }
    }

    pub fn security(source: &str, events: &[Value]) -> Self {
        let rows = events.iter().map(|event| ("acme".into(), source.into(), event.clone())).collect();
        Self { dataset: Dataset::SecurityEvents, rows }
    }

    /// The batch. Row `i` has the event id `e<i + offset>` and the time `i` seconds after the epoch.
    pub fn batch(&self, offset: u64) -> LogBatch {
        let mut fields = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        let count = self.rows.len() as i64;
        let time =
            |at: i64| TimestampMicrosecondArray::from_iter_values((0..count).map(|row| row * at)).with_timezone("UTC");
        let mut core = |name: &str, array: ArrayRef| {
            fields.push(Field::new(name, array.data_type().clone(), true));
            columns.push(array);
        };
        core("time", Arc::new(time(1_000_000)));
        core("received_time", Arc::new(time(0)));
        let ids = (0..self.rows.len()).map(|row| Some(format!("e{}", row as u64 + offset)));
        core("event_id", Arc::new(ids.collect::<StringArray>()));
        core("org_id", Arc::new(self.rows.iter().map(|(org, ..)| Some(org.as_str())).collect::<StringArray>()));
        core("source", Arc::new(self.rows.iter().map(|(_, source, _)| Some(source.as_str())).collect::<StringArray>()));
        let mut own: BTreeMap<String, Vec<(usize, Cell)>> = BTreeMap::new();
        for (row, (.., event)) in self.rows.iter().enumerate() {
            let mut cells = BTreeMap::new();
            flatten("", event, false, 0, &mut cells);
            for (name, cell) in cells {
                own.entry(name).or_default().push((row, cell));
            }
        }
        if self.dataset == Dataset::CostEvents {
            for column in focus::columns() {
                let Some(name) = column.focus_names.iter().find(|name| own.contains_key(**name)) else { continue };
                let cells = own.remove(*name).expect("just found");
                core(column.name, focus_column(column.kind, &cells, self.rows.len()));
            }
        }
        let schema = self.dataset.core_schema();
        for (name, cells) in own {
            let name = match schema.field_with_name(&name) {
                Ok(_) => format!("{RAW_PREFIX}{name}"),
                Err(_) => name,
            };
            core(&name, own_column(&cells, self.rows.len()));
        }
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns of one length");
        LogBatch { offset, dataset: self.dataset, rows }
    }
}

pub enum Cell {
    One(Value),
    Many(Vec<Option<Value>>),
}

pub fn flatten(path: &str, value: &Value, in_list: bool, at: usize, out: &mut BTreeMap<String, Cell>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, member, in_list, at, out);
            }
        }
        Value::Array(items) => {
            if items.is_empty() {
                out.entry(path.to_owned()).or_insert_with(|| Cell::Many(Vec::new()));
            }
            items.iter().enumerate().for_each(|(at, item)| flatten(path, item, true, at, out));
        }
        Value::Null => {}
        scalar if in_list => {
            let Cell::Many(list) = out.entry(path.to_owned()).or_insert_with(|| Cell::Many(Vec::new())) else { return };
            list.resize(at.max(list.len()), None);
            list.push(Some(scalar.clone()));
        }
        scalar => {
            out.insert(path.to_owned(), Cell::One(scalar.clone()));
        }
    }
}

fn type_of(value: &Value) -> Scalar {
    match value {
        Value::Bool(_) => Scalar::Bool,
        Value::Number(number) if number.is_i64() => Scalar::Int,
        Value::Number(_) => Scalar::Float,
        _ => Scalar::Text,
    }
}

fn own_column(cells: &[(usize, Cell)], rows: usize) -> ArrayRef {
    let types = cells.iter().flat_map(|(_, cell)| match cell {
        Cell::One(value) => vec![FieldType { scalar: type_of(value), list: false }],
        Cell::Many(values) => values.iter().flatten().map(|value| FieldType::list_of(type_of(value))).collect(),
    });
    let mut kind = types.reduce(FieldType::join).unwrap_or(FieldType::TEXT);
    kind.list |= cells.iter().any(|(_, cell)| matches!(cell, Cell::Many(_)));
    let mut by_row: BTreeMap<usize, Vec<Option<&Value>>> = BTreeMap::new();
    for (row, cell) in cells {
        let values = match cell {
            Cell::One(value) => vec![Some(value)],
            Cell::Many(values) => values.iter().map(Option::as_ref).collect(),
        };
        by_row.insert(*row, values);
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    macro_rules! build {
        ($builder:expr, $get:expr) => {{
            let get = $get;
            if kind.list {
                let mut lists = ListBuilder::new($builder);
                for row in 0..rows {
                    match by_row.get(&row) {
                        Some(values) => lists.append_value(values.iter().map(|value| value.map(&get))),
                        None => lists.append_null(),
                    }
                }
                Arc::new(lists.finish()) as ArrayRef
            } else {
                let mut builder = $builder;
                for row in 0..rows {
                    builder.append_option(by_row.get(&row).and_then(|values| values[0]).map(&get));
                }
                Arc::new(builder.finish()) as ArrayRef
            }
        }};
    }
    match kind.scalar {
        Scalar::Text => build!(StringBuilder::new(), text),
        Scalar::Int => build!(Int64Builder::new(), |value: &Value| value.as_i64().expect("an int")),
        Scalar::Float => build!(Float64Builder::new(), |value: &Value| value.as_f64().expect("a float")),
        Scalar::Bool => build!(BooleanBuilder::new(), |value: &Value| value.as_bool().expect("a bool")),
    }
}

fn focus_column(kind: FocusKind, cells: &[(usize, Cell)], rows: usize) -> ArrayRef {
    let text = |row: usize| {
        cells.iter().find(|(own, _)| *own == row).and_then(|(_, cell)| match cell {
            Cell::One(Value::String(text)) => Some(text.clone()),
            Cell::One(value) => Some(value.to_string()),
            Cell::Many(_) => None,
        })
    };
    match kind {
        FocusKind::Decimal => {
            let decimal = |text: String| {
                let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
                format!("{whole}{fraction:0<15}").parse::<i128>().expect("a decimal")
            };
            let array: Decimal128Array = (0..rows).map(|row| text(row).map(decimal)).collect();
            let DataType::Decimal128(precision, scale) = kind.data_type() else { panic!("decimals") };
            Arc::new(array.with_precision_and_scale(precision, scale).expect("it fits"))
        }
        FocusKind::Text | FocusKind::Json => Arc::new((0..rows).map(text).collect::<StringArray>()),
        FocusKind::DateTime => Arc::new(TimestampMicrosecondArray::from(vec![Some(0); rows]).with_timezone("UTC")),
    }
}
