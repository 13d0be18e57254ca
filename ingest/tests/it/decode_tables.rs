//! Bodies with columns: CSV of cost rows, and Arrow streams, whole, odd and hostile.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, ListArray,
    RecordBatch, StringArray, StringViewArray, StructArray, TimestampMillisecondArray, TimestampNanosecondArray,
    UInt64Array, new_null_array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::ipc::writer::StreamWriter;
use proptest::prelude::*;
use tidegate_ingest::decode::{BodyFormat, DecodeConfig};

use super::decoding::{Case, Outcome, decode, decode_with, decoder};

fn csv(text: impl Into<Vec<u8>>) -> Outcome {
    decode(&[Case::new(BodyFormat::Csv, text).cost()])
}

#[test]
fn csv_rows_that_are_bad_cost_only_themselves() {
    let body = b"BilledCost,x_Note,Tags\n1.5,a,\n2,b\n3,\"c\"d,\n4,\xff,\n5,\"e,\nf\",NULL\n6,NULL,\"NULL\"\n\n7,\"g";
    let outcome = csv(body.to_vec());
    assert_eq!(outcome.column("cost_events", "billed_cost").len(), 3);
    assert_eq!(outcome.column("cost_events", "x_Note"), ["a", "e,\nf"]);
    assert_eq!(
        outcome.rejected(0),
        [(1, "malformed_csv"), (2, "malformed_csv"), (3, "invalid_utf8"), (6, "malformed_csv")]
    );
    assert_eq!(outcome.column("dead_letters", "payload"), ["2,b", "3,\"c\"d,", "NCz/LA==", "7,\"g"]);
    assert_eq!(outcome.column("dead_letters", "dataset"), ["cost_events"; 4]);
}

#[test]
fn a_csv_header_must_be_known() {
    for (body, code) in [
        ("", "empty_body"),
        ("\u{feff}", "empty_body"),
        ("BilledCost,ChargeCategory\r\n", "empty_body"),
        ("a,b\n1,2\n", "unknown_csv_header"),
        ("BilledCost,BilledCost\n1,2\n", "unknown_csv_header"),
        ("BilledCost,\n1,2\n", "unknown_csv_header"),
        ("\"BilledCost\n1\n", "unknown_csv_header"),
    ] {
        let outcome = csv(body);
        assert_eq!(outcome.results[0].error.as_ref().map(|error| error.code), Some(code), "{body:?}");
        assert_eq!(outcome.results[0].items, 0);
    }
    let security = decode(&[Case::new(BodyFormat::Csv, "BilledCost\n1\n")]);
    assert_eq!(security.results[0].error.as_ref().map(|error| error.code), Some("wrong_dataset"));
    let outcome = csv("\u{feff}\"ServiceProviderName\", billed_cost\r\nGCP,-0.10\r\n");
    assert_eq!(outcome.cell(0, 0, "provider_name"), "GCP");
    assert_eq!(outcome.cell(0, 0, "billed_cost"), "-0.100000000000000");
}

fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &batches[0].schema()).expect("a writer");
    batches.iter().for_each(|batch| writer.write(batch).expect("a batch"));
    writer.finish().expect("an end");
    drop(writer);
    bytes
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch")
}

fn arrow(columns: Vec<(&str, ArrayRef)>) -> Outcome {
    decode(&[Case::new(BodyFormat::ArrowStream, stream(&[batch(columns)]))])
}

#[test]
fn arrow_columns_fill_core_columns_and_become_own_fields() {
    let inner = StructArray::from(vec![
        (Arc::new(Field::new("n", DataType::Int32, true)), Arc::new(Int32Array::from(vec![Some(1), None])) as ArrayRef),
        (Arc::new(Field::new("s", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["x", "y"])) as ArrayRef),
    ]);
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
    let dictionary: DictionaryArray<Int32Type> = [Some("red"), Some("red")].into_iter().collect();
    let outcome = arrow(vec![
        ("time", Arc::new(TimestampMillisecondArray::from(vec![Some(1_704_067_200_123), None]))),
        ("event_id", Arc::new(StringArray::from(vec![Some("e1"), None]))),
        ("org_id", Arc::new(StringArray::from(vec!["evil", "evil"]))),
        ("source", Arc::new(StringArray::from(vec![Some("fw"), None]))),
        ("severity", Arc::new(Int64Array::from(vec![4, 1 << 40]))),
        ("message", Arc::new(LargeStringArray::from(vec!["hello", "world"]))),
        ("src_port", Arc::new(StringArray::from(vec!["80", "443"]))),
        ("u", Arc::new(UInt64Array::from(vec![u64::MAX, 1]))),
        ("f", Arc::new(Float64Array::from(vec![0.5, 1.0]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("v", Arc::new(StringViewArray::from(vec!["short", "a text that is longer than twelve bytes"]))),
        ("t", Arc::new(TimestampNanosecondArray::from(vec![1, 1_704_067_200_000_000_000]).with_timezone("+02:00"))),
        ("d", Arc::new(dictionary)),
        ("in", Arc::new(inner)),
        ("l", Arc::new(list)),
        ("nothing", new_null_array(&DataType::Utf8, 2)),
        ("null", new_null_array(&DataType::Null, 2)),
    ]);
    assert!(outcome.results[0].error.is_none(), "{:?}", outcome.results[0].error);
    for (row, columns) in [
        (
            0,
            [
                ("time", "2024-01-01T00:00:00.123Z"),
                ("event_id", "e1"),
                ("source", "fw"),
                ("severity", "4"),
                ("raw.severity", "4"),
                ("u", "18446744073709551615"),
                ("t", "1970-01-01T00:00:00.000000001Z"),
                ("in.n", "1"),
                ("l", "[1, ]"),
                ("d", "red"),
            ],
        ),
        (
            1,
            [
                ("time", "2023-11-14T22:13:20Z"),
                ("org_id", "acme"),
                ("source", "unknown"),
                ("severity", ""),
                ("raw.severity", "1099511627776"),
                ("raw.org_id", "evil"),
                ("message", "world"),
                ("src_port", "443"),
                ("in.s", "y"),
                ("v", "a text that is longer than twelve bytes"),
            ],
        ),
    ] {
        for (column, want) in columns {
            assert_eq!(outcome.cell(0, row, column), want, "{column} of row {row}");
        }
    }
    assert_eq!(outcome.decoded.batches[0].keys.iter().filter(|key| **key != 0).count(), 1);
    assert!(outcome.batches("security_events")[0].column_by_name("nothing").is_none());
}

#[test]
fn arrow_names_that_clash_are_kept_apart() {
    let outcome = arrow(vec![
        ("severity", Arc::new(StringArray::from(vec!["grave"]))),
        ("raw.severity", Arc::new(Int64Array::from(vec![7]))),
        ("event_id", Arc::new(Int64Array::from(vec![4688]))),
    ]);
    for (column, want) in
        [("severity", ""), ("raw.severity", "7"), ("raw.raw.severity", "grave"), ("raw.event_id", "4688")]
    {
        assert_eq!(outcome.cell(0, 0, column), want, "{column}");
    }
    assert!(outcome.decoded.batches[0].keys.is_empty());
}

#[test]
fn arrow_cost_rows_keep_money_exactly() {
    let rows = batch(vec![
        ("BilledCost", Arc::new(StringArray::from(vec!["1.25", "0.0000000000000000001"]))),
        ("EffectiveCost", Arc::new(Float64Array::from(vec![0.1, 2.0]))),
        ("ChargePeriodStart", Arc::new(StringArray::from(vec!["2024-09-01 00:00:00", "2024-09-02T00:00:00Z"]))),
        ("ServiceProviderName", Arc::new(StringArray::from(vec!["AWS", "GCP"]))),
    ]);
    let outcome = decode(&[Case::new(BodyFormat::ArrowStream, stream(&[rows])).cost()]);
    for (column, want) in [
        ("billed_cost", "0.000000000000000"),
        ("raw.BilledCost", "0.0000000000000000001"),
        ("effective_cost", "2.000000000000000"),
        ("time", "2024-09-02T00:00:00Z"),
        ("provider_name", "GCP"),
        ("BilledCost", ""),
    ] {
        assert_eq!(outcome.cell(0, 1, column), want, "{column}");
    }
    assert_eq!(outcome.cell(0, 0, "effective_cost"), "0.100000000000000");
}

#[test]
fn an_arrow_stream_that_breaks_keeps_its_whole_batches() {
    let one = || batch(vec![("a", Arc::new(Int64Array::from_iter_values(0..100)) as ArrayRef)]);
    let whole = stream(&[one()]);
    let two = stream(&[one(), one()]);
    let outcome = decode(&[
        Case::new(BodyFormat::ArrowStream, two[..two.len() - 20].to_vec()),
        Case::new(BodyFormat::ArrowStream, two[..whole.len() - 8].to_vec()),
        Case::new(BodyFormat::ArrowStream, [&two[..whole.len() - 8], b"garbage and more"].concat()),
        Case::json(r#"{"a":1}"#),
    ]);
    assert_eq!(outcome.rejected(0), [(100, "malformed_arrow")]);
    assert_eq!(
        (outcome.results[1].items, outcome.results[1].rejected.len()),
        (100, 0),
        "an end without a mark is an end"
    );
    assert_eq!(outcome.rejected(2), [(100, "malformed_arrow")]);
    assert_eq!(outcome.column("security_events", "a").len(), 301);
}

#[test]
fn what_cannot_be_kept_is_an_error_of_the_body() {
    let ints = || Arc::new(Int32Array::from(vec![1])) as ArrayRef;
    let list_of_structs = new_null_array(
        &DataType::new_list(DataType::Struct(vec![Field::new("a", DataType::Int32, true)].into()), true),
        1,
    );
    for (columns, code) in [
        (vec![("a", Arc::new(arrow::array::BinaryArray::from(vec![&b"x"[..]])) as ArrayRef)], "unsupported_column"),
        (vec![("a", list_of_structs)], "unsupported_column"),
        (vec![("a", ints()), ("a", ints())], "unsupported_column"),
        (vec![("_rest", ints())], "unsupported_column"),
        (vec![("", ints())], "unsupported_column"),
    ] {
        let outcome = arrow(columns);
        assert_eq!(outcome.results[0].error.as_ref().map(|error| error.code), Some(code));
    }
    for body in
        [&b""[..], b"ARROW1", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x00\x00\x00\x00", b"{\"a\":1}"]
    {
        let outcome = decode(&[Case::new(BodyFormat::ArrowStream, body)]);
        let code = outcome.results[0].error.as_ref().map(|error| error.code);
        assert!(matches!(code, Some("malformed_arrow")), "{body:?}: {code:?}");
    }
    let many: Vec<(String, ArrayRef)> = (0..20).map(|at| (format!("f{at}"), ints())).collect();
    let config = DecodeConfig { fields_max: 10, ..DecodeConfig::default() };
    let body = stream(&[batch(many.iter().map(|(name, array)| (name.as_str(), array.clone())).collect())]);
    let outcome = decode_with(&mut decoder(config), &[Case::new(BodyFormat::ArrowStream, body)]);
    assert_eq!(outcome.results[0].error.as_ref().map(|error| error.code), Some("too_many_fields"));
}

#[test]
fn a_small_stream_does_not_become_a_large_column() {
    let long = "x".repeat(1 << 20);
    let keys = Int32Array::from(vec![0; 1000]);
    let dictionary = DictionaryArray::new(keys, Arc::new(StringArray::from(vec![long.as_str()])));
    let outcome = arrow(vec![("d", Arc::new(dictionary))]);
    let error = outcome.results[0].error.as_ref().expect("an error");
    assert!(error.code == "body_too_large" && error.reason.contains("written out"), "{error:?}");
    let view = StringViewArray::from(vec![long.as_str()]);
    let views = StringViewArray::new(vec![view.views()[0]; 1000].into(), view.data_buffers().to_vec(), None);
    let outcome = arrow(vec![("v", Arc::new(views))]);
    assert!(outcome.results[0].error.is_some());
}

fn sample() -> Vec<u8> {
    let rows = || {
        batch(vec![
            ("time", Arc::new(Int64Array::from_iter_values(0..20)) as ArrayRef),
            ("s", Arc::new(StringArray::from_iter_values((0..20).map(|at| "x".repeat(at))))),
            (
                "l",
                Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>((0..20).map(|at| Some(vec![Some(at); 2])))),
            ),
            ("b", Arc::new(BooleanArray::from(vec![true; 20]))),
        ])
    };
    stream(&[rows(), rows()])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_stream_is_answered_for(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut bytes = sample();
        for (at, byte) in &damage {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let outcome = decode(&[Case::new(BodyFormat::ArrowStream, bytes), Case::json(r#"{"n":1}"#)]);
        prop_assert_eq!(outcome.column("security_events", "n"), ["1"]);
    }
}
