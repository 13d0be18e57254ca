//! Batches with different columns in one file: union, widening, and that no value changes.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, ListBuilder, StringArray, StringBuilder,
};
use arrow::datatypes::DataType;
use tidegate_events::{Dataset, FieldType, Scalar};
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::{Delivery, History, LogBatch, SinkError};
use tidegate_sinks::parquet::LogSource;

use crate::parquet_rows::{batch_with, contents, delivery, flush, open, read_file, small, write};

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn ints(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn floats(values: &[f64]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

fn bools(values: &[bool]) -> ArrayRef {
    Arc::new(BooleanArray::from(values.to_vec()))
}

fn lists(values: &[&[&str]]) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for value in values {
        lists.append_value(value.iter().map(Some));
    }
    Arc::new(lists.finish())
}

/// Commits a column `f` of each array (one batch each, and one batch without it), in one commit or in several that are
/// compacted afterwards, and says type and values of `f` in the one file.
fn joined(arrays: &[ArrayRef], compacted: bool) -> (DataType, Vec<String>) {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    let mut offset = 0;
    for (at, array) in arrays.iter().map(Some).chain([None]).enumerate() {
        let rows: Vec<_> = (0..array.map_or(1, |array| array.len()))
            .map(|row| ("a", (at * 10 + row) as i64, offset + row as u64))
            .collect();
        let more = array.map(|array| vec![("f", array.clone())]).unwrap_or_default();
        write(&mut sink, delivery(offset, batch_with(&rows, more))).expect("taken");
        offset += rows.len() as u64;
        if compacted {
            flush(&mut sink).expect("committed");
        }
    }
    flush(&mut sink).expect("committed");
    if compacted {
        assert!(store.compact_once().expect("compacts").files_in > 1);
    }
    let snapshot = store.snapshot();
    assert_eq!(snapshot.files.len(), 1);
    let schema = read_file(&fs, &snapshot.files[0].path)[0].schema();
    let value = |row: &String| row.split(' ').find_map(|part| part.strip_prefix("f=")).map(str::to_owned);
    let mut rows: Vec<String> = contents(&fs, &store).into_keys().collect();
    rows.sort_by_key(|row| row.split("event_id=").nth(1).map(str::to_owned));
    let declared = snapshot.fields.fields("a", Dataset::SecurityEvents).get("f").copied();
    let field = schema.field_with_name("f").expect("the column");
    let stored = FieldType::from_data_type(field.data_type()).expect("a field type");
    assert_eq!(
        declared.map(|kind| kind.join(stored)),
        Some(if stored.scalar == Scalar::Text { stored } else { declared.expect("declared") })
    );
    (field.data_type().clone(), rows.iter().filter_map(value).collect())
}

#[test]
fn types_widen_within_a_file_and_keep_their_values() {
    let list = FieldType::list_of(Scalar::Text).data_type();
    let cases: Vec<(Vec<ArrayRef>, DataType, Vec<&str>)> = vec![
        (vec![ints(&[1, 2]), ints(&[3])], DataType::Int64, vec!["1", "2", "3"]),
        (vec![ints(&[1, -2]), floats(&[0.5])], DataType::Float64, vec!["1.0", "-2.0", "0.5"]),
        (vec![ints(&[1]), floats(&[0.5]), texts(&["x"])], DataType::Utf8, vec!["1", "0.5", "x"]),
        (vec![bools(&[true, false]), ints(&[7])], DataType::Utf8, vec!["true", "false", "7"]),
        (vec![ints(&[9_007_199_254_740_993]), floats(&[0.5])], DataType::Utf8, vec!["9007199254740993", "0.5"]),
        (vec![texts(&["x"]), lists(&[&["y", "z"]])], list.clone(), vec!["[x]", "[y,"]),
        (vec![ints(&[4]), lists(&[&["y"]])], list, vec!["[4]", "[y]"]),
    ];
    for (arrays, data_type, values) in cases {
        for compacted in [false, true] {
            let (found, read) = joined(&arrays, compacted);
            assert_eq!(
                (&found, &read),
                (&data_type, &values.iter().map(|value| (*value).to_owned()).collect()),
                "compacted: {compacted}"
            );
        }
    }
}

#[test]
fn a_null_is_not_an_empty_list_when_a_scalar_becomes_a_list() {
    let scalars: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
    let (_, values) = joined(&[scalars, lists(&[&[], &["y"]])], false);
    assert_eq!(values, ["[x]", "[]", "[y]"]);
}

#[test]
fn columns_without_a_value_are_left_out_and_core_columns_come_first() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    let empty: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>, None]));
    let more = vec![
        ("zeta", texts(&["1", "2"])),
        ("actor", texts(&["u", "v"])),
        ("alpha", empty),
        ("severity", Arc::new(Int32Array::from(vec![Some(3), None])) as ArrayRef),
    ];
    write(&mut sink, delivery(0, batch_with(&[("a", 1, 0), ("b", 2, 1)], more))).expect("taken");
    flush(&mut sink).expect("committed");
    let schema = read_file(&fs, &store.snapshot().files[0].path)[0].schema();
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["time", "received_time", "event_id", "org_id", "source", "severity", "actor", "zeta"]);
}

#[test]
fn a_tenant_declares_only_the_fields_it_has() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    let sparse: ArrayRef = Arc::new(StringArray::from(vec![None, Some("x"), None]));
    write(
        &mut sink,
        delivery(0, batch_with(&[("a", 1, 0), ("b", 2, 1), ("c", 3, 2)], vec![("f", sparse), ("g", ints(&[1, 2, 3]))])),
    )
    .expect("taken");
    flush(&mut sink).expect("committed");
    let declared = |org| {
        let fields = store.snapshot().fields.fields(org, Dataset::SecurityEvents);
        fields.keys().map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (declared("a"), declared("b"), declared("c"), declared("d")),
        (vec!["g".into()], vec!["f".into(), "g".into()], vec!["g".to_owned()], vec![])
    );
    drop(store);
    let (store, _) = open(&fs, small()).expect("opens");
    assert_eq!(store.snapshot().fields.fields("b", Dataset::SecurityEvents).len(), 2, "the manifest keeps them");
}

#[test]
fn a_batch_that_is_not_one_of_its_dataset_is_refused_before_anything_is_taken() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    let good = batch_with(&[("a", 1, 0)], vec![]);
    let cases = [
        batch_with(&[("a", 1, 0)], vec![("severity", texts(&["high"]))]),
        batch_with(&[("a", 1, 0)], vec![("f", Arc::new(Int32Array::from(vec![1])))]),
        batch_with(&[("a", 1, 0)], vec![("f", texts(&["1"])), ("f", texts(&["2"]))]),
        good.project(&[0, 1, 2, 4]).expect("without org_id"),
        good.project(&[1, 2, 3, 4]).expect("without time"),
    ];
    for bad in cases {
        let batch = |offset, rows| Arc::new(LogBatch { offset, dataset: Dataset::SecurityEvents, rows });
        let both = Delivery { batches: vec![batch(0, good.clone()), batch(1, bad)], next_offset: 2 };
        let refused = write(&mut sink, both).expect_err("refused");
        assert!(matches!(refused, SinkError::Fatal(_)), "{refused}");
    }
    flush(&mut sink).expect("nothing to do");
    assert!(store.snapshot().files.is_empty());
}
