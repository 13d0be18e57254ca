//! Arrow streams that are small and say that they are large.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, DictionaryArray, FixedSizeListArray, Int8Array, LargeListArray,
    ListArray, NullArray, RecordBatch, RecordBatchOptions, StringArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Int8Type, Schema};
use arrow::ipc::writer::StreamWriter;
use tidegate_ingest::decode::{BodyError, BodyFormat, DecodeConfig, Room};

use super::decode_arrow_poison::{batch, called_text, stream};
use super::decoding::{Case, Outcome, computed, decode_with, decoder};

fn decode_stream(bytes: Vec<u8>, config: DecodeConfig) -> Outcome {
    let neighbour = || Case::json(r#"{"neighbour":"stored"}"#).org("other");
    let outcome =
        decode_with(&mut decoder(config), &[neighbour(), Case::new(BodyFormat::ArrowStream, bytes), neighbour()]);
    assert_eq!(outcome.column("security_events", "neighbour"), ["stored"; 2]);
    outcome
}

/// So many views of one text: as bytes, because arrow-rs looks at each text of an array that is made, which are terabytes.
fn views(count: usize, bytes: usize) -> ArrayRef {
    let one = BinaryViewArray::from(vec!["x".repeat(bytes).as_bytes()]);
    Arc::new(BinaryViewArray::new(vec![one.views()[0]; count].into(), one.data_buffers().to_vec(), None))
}

fn item(data_type: &DataType) -> Arc<Field> {
    Arc::new(Field::new_list_field(data_type.clone(), true))
}

fn named(values: ArrayRef, rows: usize) -> ArrayRef {
    Arc::new(DictionaryArray::<Int8Type>::new(Int8Array::from(vec![0; rows]), values))
}

/// A row of 256 GiB in a column of each type that could be written out, and one that is not.
fn one_huge_row() -> Vec<(&'static str, ArrayRef)> {
    let (count, bytes) = (65_536, 1 << 22);
    let items = || views(count, bytes);
    let text = DataType::BinaryView;
    vec![
        ("list", Arc::new(ListArray::new(item(&text), OffsetBuffer::from_lengths([count]), items(), None))),
        ("large list", Arc::new(LargeListArray::new(item(&text), OffsetBuffer::from_lengths([count]), items(), None))),
        ("fixed list", Arc::new(FixedSizeListArray::new(item(&text), count as i32, items(), None))),
    ]
}

#[test]
fn a_list_of_views_is_counted_before_it_is_written_out() {
    for (kind, column) in one_huge_row() {
        let started = computed();
        let n: ArrayRef = Arc::new(StringArray::from(vec!["n"]));
        let small = called_text(&[batch(vec![("n", n), ("x", column)])]);
        assert!(small.len() < 8 << 20, "{kind}: {}", small.len());
        let outcome = decode_stream(small, DecodeConfig::default());
        assert_eq!(outcome.rejected(1), [(0, "event_too_large")], "{kind}: {:?}", outcome.results[1]);
        let payload = outcome.column("dead_letters", "payload").concat();
        assert!(payload.starts_with(r#"{"n":"n","x":["xxx"#) && payload.len() < 100_000, "{kind}");
        assert!((computed() - started).as_secs() < 5, "{kind}: {:?}", (computed() - started));
    }
}

#[test]
fn columns_and_batches_are_counted_together() {
    let text = "x".repeat(1 << 19);
    let dictionary = || named(Arc::new(StringArray::from(vec![text.as_str()])), 100);
    let of_views = || named(views(1, 1 << 19), 100);
    let in_struct = || -> ArrayRef {
        let fields: Fields = vec![Field::new("x", dictionary().data_type().clone(), true)].into();
        Arc::new(StructArray::new(fields, vec![dictionary()], None))
    };
    // Views that no row has: a null among lists of one, with four thousand.
    let under_a_null = || -> ArrayRef {
        let offsets = OffsetBuffer::from_lengths((0..100).map(|row| if row == 50 { 4_000 } else { 1 }));
        let nulls = (0..100).map(|row| row != 50).collect::<Vec<_>>().into();
        Arc::new(ListArray::new(item(&DataType::BinaryView), offsets, views(4_099, 1 << 19), Some(nulls)))
    };
    let unnamed = || named(views(100, 60 << 20), 100);
    // Ten batches of 50 MiB each, or columns.
    type Make<'a> = &'a dyn Fn() -> ArrayRef;
    let makes: [(&str, Make<'_>, usize); 4] = [
        ("dictionary", &dictionary, 10),
        ("dictionary of views", &of_views, 10),
        ("struct", &in_struct, 10),
        ("views under a null", &under_a_null, 1),
    ];
    for (kind, make, batches) in makes {
        let rows: Vec<RecordBatch> = (0..batches).map(|_| batch(vec![("x", make())])).collect();
        let outcome = decode_stream(called_text(&rows), DecodeConfig::default());
        let error = outcome.results[1].error.as_ref().expect(kind);
        assert!(error.code == "body_too_large" && error.reason.contains("written out"), "{kind}: {error:?}");
        assert_eq!(outcome.results[1].items, 0, "{kind}");
        assert_eq!(outcome.batches("security_events").iter().map(|batch| batch.num_rows()).sum::<usize>(), 2, "{kind}");
        let outcome = decode_stream(called_text(&rows[..1]), DecodeConfig::default());
        assert_eq!(outcome.results[1].error.is_some(), kind == "views under a null", "{kind}");
    }
    let columns: Vec<String> = (0..10).map(|at| format!("x{at}")).collect();
    // Rows of 5 MiB, so that no single one is too large.
    let config = DecodeConfig { event_bytes_max: 16 << 20, ..DecodeConfig::default() };
    let rows = batch(columns.iter().map(|name| (name.as_str(), dictionary())).collect());
    let outcome = decode_stream(stream(&[rows]), config);
    assert_eq!(outcome.results[1].error.as_ref().map(|error| error.code), Some("body_too_large"));
    // 60 MiB behind a hundred names is one row too large each; that nobody names them all costs nothing.
    let started = computed();
    let outcome = decode_stream(called_text(&[batch(vec![("x", unnamed())])]), DecodeConfig::default());
    assert_eq!(outcome.results[1].rejected.len(), 100);
    assert!((computed() - started).as_secs() < 20, "{:?}", (computed() - started));
}

/// A batch that says it has so many rows, of columns that need no bytes.
fn empty_columns(rows: usize) -> Vec<(&'static str, RecordBatch)> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let of = |fields: Vec<Field>, columns: Vec<ArrayRef>| {
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).expect("a batch")
    };
    let fields = |data_type: DataType| vec![Field::new("x", data_type, true)];
    let no_fields: ArrayRef = Arc::new(StructArray::new_empty_fields(rows, None));
    let no_items: ArrayRef = Arc::new(
        FixedSizeListArray::try_new_with_length(
            item(&DataType::Boolean),
            0,
            Arc::new(BooleanArray::from(Vec::<bool>::new())),
            None,
            rows,
        )
        .expect("lists of nothing"),
    );
    vec![
        ("no columns", of(Vec::new(), Vec::new())),
        ("nulls", of(fields(DataType::Null), vec![Arc::new(NullArray::new(rows))])),
        ("no fields", of(fields(no_fields.data_type().clone()), vec![no_fields])),
        ("no items", of(fields(no_items.data_type().clone()), vec![no_items])),
    ]
}

#[test]
fn rows_without_bytes_are_not_made() {
    for (kind, rows) in empty_columns(2_000_000) {
        let bytes = stream(&[rows]);
        assert!(bytes.len() < 4_096, "{kind}: {}", bytes.len());
        let outcome = decode_stream(bytes, DecodeConfig::default());
        assert_eq!(outcome.rejected(1), [(0, "malformed_arrow")], "{kind}: {:?}", outcome.results[1]);
    }
    for (kind, rows) in empty_columns(1_000) {
        let outcome = decode_stream(stream(&[rows]), DecodeConfig::default());
        assert_eq!((outcome.results[1].items, outcome.results[1].rejected.len()), (1_000, 0), "{kind}");
    }
}

#[test]
fn a_row_count_from_nowhere_is_refused() {
    for (kind, rows) in empty_columns(1_000) {
        let good = stream(&[rows]);
        let count = 1_000i64.to_le_bytes();
        for lie in [-1i64, 1 << 31, i64::MAX, i64::MIN, 2_000_001] {
            // Of the batch and of its columns.
            let mut bad = good.clone();
            let places: Vec<usize> = (0..bad.len() - 8).filter(|at| bad[*at..*at + 8] == count).collect();
            assert!(!places.is_empty(), "{kind}");
            places.iter().for_each(|at| bad[*at..*at + 8].copy_from_slice(&lie.to_le_bytes()));
            let outcome = decode_stream(bad, DecodeConfig::default());
            let result = &outcome.results[1];
            assert!(result.items <= 1 && result.rejected.len() == result.items as usize, "{kind} of {lie}: {result:?}");
        }
    }
}

#[test]
fn types_that_are_not_taken_are_refused_before_a_batch_is_read() {
    let fixed = |size: i32| DataType::FixedSizeBinary(size);
    let runs = DataType::RunEndEncoded(
        Arc::new(Field::new("run_ends", DataType::Int32, false)),
        Arc::new(Field::new("values", DataType::Utf8View, true)),
    );
    let list = |of: DataType| DataType::new_list(of, true);
    for data_type in [
        fixed(0),
        fixed(-1),
        fixed(16),
        runs.clone(),
        list(runs),
        list(list(DataType::Utf8View)),
        list(DataType::Null),
        list(DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8View))),
        DataType::ListView(item(&DataType::Utf8)),
        DataType::Dictionary(Box::new(DataType::Int8), Box::new(list(DataType::Utf8View))),
    ] {
        let schema = Schema::new(vec![Field::new("x", data_type.clone(), true)]);
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).expect("a writer");
        writer.finish().expect("an end");
        let outcome = decode_stream(writer.into_inner().expect("bytes"), DecodeConfig::default());
        let code = outcome.results[1].error.as_ref().map(|error| error.code);
        assert!(matches!(code, Some("unsupported_column" | "malformed_arrow")), "{data_type}: {code:?}");
    }
}

#[test]
fn names_of_structs_in_structs_are_not_written_out_without_end() {
    let long = "x".repeat(1 << 20);
    let children: Fields = (0..20_000).map(|at| Field::new(format!("{at}"), DataType::Int8, true)).collect();
    for fields in [
        vec![Field::new(&long, DataType::Struct(children.clone()), true)],
        vec![Field::new("s", DataType::Struct(children), true)],
    ] {
        let started = computed();
        let mut writer = StreamWriter::try_new(Vec::new(), &Schema::new(fields)).expect("a writer");
        writer.finish().expect("an end");
        let outcome = decode_stream(writer.into_inner().expect("bytes"), DecodeConfig::default());
        let error = outcome.results[1].error.as_ref().expect("an error");
        assert!(error.code == "unsupported_column" && error.reason.len() < 1_000, "{error:?}");
        assert!((computed() - started).as_secs() < 5, "{:?}", (computed() - started));
    }
}

#[test]
fn what_a_stream_becomes_is_asked_for_before_it_is_made() {
    let text = "x".repeat(1 << 16);
    let rows = batch(vec![("x", named(Arc::new(StringArray::from(vec![text.as_str()])), 100))]);
    let bytes = stream(&[rows.clone(), rows]);
    let sum = 2 * 100 * text.len();
    let decode = |bytes_max: usize| {
        let mut asked = 0;
        let mut grant = |more: usize| {
            asked += more;
            let none = || BodyError { code: "no_room", reason: String::new() };
            if asked > bytes_max { Err(none()) } else { Ok(()) }
        };
        let mut decoder = decoder(DecodeConfig::default());
        let body = Case::new(BodyFormat::ArrowStream, bytes.clone()).body;
        let result = decoder.push_within(body, Room { grant: &mut grant, item_bytes: 0 });
        let stored: usize = decoder.flush().expect("rows").batches.iter().map(|batch| batch.rows.num_rows()).sum();
        (result.error.map(|error| error.code), stored, asked)
    };
    let (error, stored, asked) = decode(usize::MAX);
    assert_eq!((error, stored), (None, 200));
    assert!(asked >= sum - bytes.len() && asked <= sum + 200 * 1_024, "{asked} of {sum}");
    assert_eq!(decode(asked).1, 200, "to the byte");
    for bytes_max in [asked - 1, sum / 2, 0] {
        let (error, stored, _) = decode(bytes_max);
        assert_eq!((error, stored), (Some("no_room"), 0), "nothing of it is stored: {bytes_max}");
    }
}
