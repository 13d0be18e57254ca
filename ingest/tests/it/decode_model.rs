//! Random events against a model: what is read back from the columns is what the model flattens.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::decoding::{Case, decode};

/// The model: dotted names with scalars or lists, and the rest. It is written from the rules in `docs/mappings.md`, not from
/// the decoder.
#[derive(Debug, Default)]
struct Flat {
    fields: BTreeMap<String, Value>,
    rest: Map<String, Value>,
}

fn is_scalar(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

impl Flat {
    fn object(&mut self, path: &str, object: &Map<String, Value>) {
        for (key, value) in object {
            let name = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match value {
                Value::Null => {}
                Value::Object(inner) if !inner.is_empty() => self.object(&name, inner),
                Value::Array(items) => self.array(&name, items, value),
                Value::Object(_) => self.put_rest(name, value),
                scalar => self.put(name, scalar.clone()),
            }
        }
    }

    fn array(&mut self, name: &str, items: &[Value], whole: &Value) {
        let some = items.iter().any(|item| !item.is_null());
        if some && items.iter().all(is_scalar) {
            return self.put(name.to_owned(), whole.clone());
        }
        if !some || !items.iter().all(|item| item.is_null() || item.is_object()) {
            return self.put_rest(name.to_owned(), whole);
        }
        let before = (self.fields.len(), self.rest.len());
        for (at, item) in items.iter().enumerate() {
            if let Value::Object(object) = item {
                self.element(name, object, at, items.len());
            }
        }
        if (self.fields.len(), self.rest.len()) == before {
            self.put_rest(name.to_owned(), whole);
        }
    }

    fn element(&mut self, path: &str, object: &Map<String, Value>, at: usize, count: usize) {
        for (key, value) in object {
            let name = format!("{path}.{key}");
            let into = match value {
                Value::Null => continue,
                Value::Object(inner) if !inner.is_empty() => {
                    self.element(&name, inner, at, count);
                    continue;
                }
                scalar if is_scalar(scalar) => {
                    self.fields.entry(name).or_insert_with(|| Value::Array(vec![Value::Null; count]))
                }
                _ => self.rest.entry(name).or_insert_with(|| Value::Array(vec![Value::Null; count])),
            };
            into[at] = value.clone();
        }
    }

    fn put(&mut self, name: String, value: Value) {
        self.fields.insert(name, value);
    }

    fn put_rest(&mut self, name: String, value: &Value) {
        self.rest.insert(name, value.clone());
    }
}

/// The JSON value of a cell.
fn read(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => json!(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Value::Array((0..items.len()).map(|at| read(&items, at)).collect())
        }
        other => panic!("an own field of type {other}"),
    }
}

/// Whether a cell says what the model says, when its column may have been widened by other rows.
fn same(model: &Value, read: &Value) -> bool {
    match (model, read) {
        (Value::Array(model), Value::Array(read)) => {
            model.len() == read.len() && model.iter().zip(read).all(|(model, read)| same(model, read))
        }
        (scalar, Value::Array(read)) => matches!(&read[..], [one] if same(scalar, one)),
        (Value::String(model), Value::String(read)) => model == read,
        (Value::Number(model), Value::String(read)) => match model.as_i64() {
            Some(model) => *read == model.to_string(),
            None => read.parse::<f64>().ok() == model.as_f64(),
        },
        (Value::Bool(model), Value::String(read)) => *read == model.to_string(),
        (Value::Number(model), Value::Number(read)) => model.as_f64() == read.as_f64(),
        (model, read) => model == read,
    }
}

/// Whether two JSON values are the same. serde_json reads floats to the nearest but one, so theirs may differ by that.
fn same_json(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same_json(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let same = |(key, value): (&String, &Value)| right.get(key).is_some_and(|other| same_json(value, other));
            left.len() == right.len() && left.iter().all(same)
        }
        (Value::Number(left), Value::Number(right)) => {
            match (left.as_i64(), right.as_i64(), left.as_f64(), right.as_f64()) {
                (Some(left), Some(right), ..) => left == right,
                (_, _, Some(left), Some(right)) => (left - right).abs() <= left.abs() * 1e-15,
                _ => false,
            }
        }
        (left, right) => left == right,
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1000i64..1000).prop_map(Value::from),
        // Of numbers below 2^-1022 the parsers (simd-json's, and the model's serde_json) may be off by one in the last place.
        any::<f64>().prop_filter("normal", |value| value.is_normal() || *value == 0.0).prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec(prop::collection::btree_map("[a-e]", inner.clone(), 0..4), 0..4)
                .prop_map(|maps| maps.into_iter().map(|map| Value::Object(map.into_iter().collect())).collect()),
            prop::collection::btree_map("[a-h]", inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn event() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("[a-h]", value(), 0..6).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn columns_read_back_as_the_model_flattens(events in prop::collection::vec(event(), 1..8), array in any::<bool>()) {
        let texts: Vec<String> = events.iter().map(|event| Value::Object(event.clone()).to_string()).collect();
        let body = if array { format!("[{}]", texts.join(",")) } else { texts.join("\n") };
        let outcome = decode(&[Case::json(body.clone())]);
        prop_assert_eq!(outcome.results[0].rejected.len(), 0, "{}", body);
        for (batch, rows) in outcome.decoded.batches.iter().zip(&outcome.decoded.rows) {
            let core = batch.dataset.core_schema();
            for (at, row) in rows.iter().enumerate() {
                let mut model = Flat::default();
                model.object("", &events[row.item as usize]);
                for (field, column) in batch.rows.schema().fields().iter().zip(batch.rows.columns()) {
                    if core.index_of(field.name()).is_ok() {
                        continue;
                    }
                    let read = read(column, at);
                    if field.name() == "_rest" {
                        let rest: Value = read.as_str().map_or(json!({}), |text| serde_json::from_str(text).expect("JSON"));
                        let want = Value::Object(std::mem::take(&mut model.rest));
                        prop_assert!(same_json(&rest, &want), "{} is not {} in {}", rest, want, body);
                        continue;
                    }
                    let want = model.fields.remove(field.name()).unwrap_or(Value::Null);
                    prop_assert!(same(&want, &read), "{}: {} is not {} in {}", field.name(), read, want, body);
                }
                prop_assert!(model.fields.is_empty(), "{:?} are missing in {}", model.fields, body);
                prop_assert!(model.rest.is_empty(), "{:?} is missing in {}", model.rest, body);
            }
        }
    }

    #[test]
    fn any_bytes_are_answered_for(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for case in [Case::json(bytes.clone()), Case::json(bytes.clone()).cost()] {
            let outcome = decode(&[case]);
            prop_assert!(outcome.results[0].error.is_none() || outcome.results[0].items == 0);
        }
    }

    #[test]
    fn any_brackets_are_answered_for(text in "[\\[\\]{}\",:1a\n\\\\ ]{0,60}") {
        for case in [Case::json(text.clone()), Case::json(format!("{{\"events\":[{text}]}}")).cost()] {
            decode(&[case]);
        }
    }
}
