//! Bad values and bad batches in Arrow streams: each costs its own rows, the others are stored.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, DictionaryArray, FixedSizeListArray, Int32Array, Int64Array,
    LargeBinaryArray, ListArray, RecordBatch, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::ipc::writer::StreamWriter;
use tidegate_ingest::decode::{BodyFormat, DecodeConfig};

use super::decoding::{Case, Outcome, decode_with, decoder};

pub fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).expect("a writer");
    batches.iter().for_each(|batch| writer.write(batch).expect("a batch"));
    writer.finish().expect("an end");
    writer.into_inner().expect("bytes")
}

pub fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch")
}

/// The same bytes under a schema that calls them text: what a sender with a broken encoding sends.
pub fn called_text(batches: &[RecordBatch]) -> Vec<u8> {
    fn text(data_type: &DataType) -> DataType {
        let field = |field: &Arc<Field>| Arc::new(field.as_ref().clone().with_data_type(text(field.data_type())));
        match data_type {
            DataType::Binary => DataType::Utf8,
            DataType::LargeBinary => DataType::LargeUtf8,
            DataType::BinaryView => DataType::Utf8View,
            DataType::List(item) => DataType::List(field(item)),
            DataType::LargeList(item) => DataType::LargeList(field(item)),
            DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
            DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
            DataType::Dictionary(keys, values) => DataType::Dictionary(keys.clone(), Box::new(text(values))),
            other => other.clone(),
        }
    }
    let fields = batches[0].schema().fields().iter().map(|field| field.as_ref().clone()).collect::<Vec<_>>();
    let fields = fields.into_iter().map(|field| field.clone().with_data_type(text(field.data_type())));
    under(&Schema::new(fields.collect::<Vec<_>>()), &stream(batches))
}

/// A stream under another schema.
fn under(schema: &Schema, bytes: &[u8]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema).expect("a writer");
    writer.finish().expect("an end");
    let head = writer.into_inner().expect("bytes");
    [&head[..frames(&head)[1]], &bytes[frames(bytes)[1]..]].concat()
}

fn decode_stream(bytes: Vec<u8>, config: DecodeConfig) -> Outcome {
    let neighbour = || Case::json(r#"{"neighbour":"stored"}"#).org("other");
    let outcome =
        decode_with(&mut decoder(config), &[neighbour(), Case::new(BodyFormat::ArrowStream, bytes), neighbour()]);
    assert_eq!(outcome.column("security_events", "neighbour"), ["stored"; 2]);
    outcome
}

const TEXTS: [&[u8]; 5] = [b"one", b"a text that is longer than twelve bytes", b"\xff\xfe", b"\xc3", b"five"];

fn of_each_type() -> Vec<(&'static str, ArrayRef)> {
    let binary = BinaryArray::from(TEXTS.to_vec());
    let large = LargeBinaryArray::from(TEXTS.to_vec());
    let views = BinaryViewArray::from(TEXTS.to_vec());
    let item = |data_type: &DataType| Arc::new(Field::new_list_field(data_type.clone(), true));
    let lists = |items: ArrayRef| -> ArrayRef {
        let offsets = OffsetBuffer::from_lengths([1, 1, 1, 1, 1]);
        Arc::new(ListArray::new(item(items.data_type()), offsets, items, None))
    };
    let fixed: ArrayRef = Arc::new(FixedSizeListArray::new(item(&DataType::Binary), 1, Arc::new(binary.clone()), None));
    let keys = Int32Array::from(vec![0, 1, 2, 3, 4]);
    let dictionary =
        |values: ArrayRef| -> ArrayRef { Arc::new(DictionaryArray::<Int32Type>::new(keys.clone(), values)) };
    let inner = Arc::new(Field::new("x", DataType::Binary, true));
    vec![
        ("text", Arc::new(binary.clone())),
        ("large", Arc::new(large)),
        ("view", Arc::new(views.clone())),
        ("list", lists(Arc::new(binary.clone()))),
        ("list of views", lists(Arc::new(views.clone()))),
        ("fixed list", fixed),
        ("dictionary", dictionary(Arc::new(binary.clone()))),
        ("dictionary of views", dictionary(Arc::new(views))),
        ("struct", Arc::new(StructArray::new(vec![inner].into(), vec![Arc::new(binary)], None))),
    ]
}

#[test]
fn a_text_that_is_no_utf8_costs_its_row_in_every_type() {
    for (kind, column) in of_each_type() {
        let rows = || {
            let n: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5]));
            batch(vec![("n", n), ("x", column.clone())])
        };
        let outcome = decode_stream(called_text(&[rows(), rows(), rows()]), DecodeConfig::default());
        let bad: Vec<(u32, &str)> = [2, 3, 7, 8, 12, 13].map(|item| (item, "invalid_utf8")).to_vec();
        assert_eq!(outcome.rejected(1), bad, "{kind}: {:?}", outcome.results[1]);
        assert_eq!(outcome.results[1].items, 15, "{kind}");
        let n = ["1", "2", "5"].repeat(3);
        assert_eq!(outcome.column("security_events", "n"), n, "{kind}");
        let name = if kind == "struct" { "x.x" } else { "x" };
        for (item, text) in [(0, "one"), (6, "a text that is longer than twelve bytes"), (14, "five")] {
            let cell = outcome.cell(1, item, name);
            assert!(cell == text || cell == format!("[{text}]"), "{kind}: {cell}");
        }
        assert_eq!(outcome.column("dead_letters", "item_index"), ["2", "3", "7", "8", "12", "13"], "{kind}");
        assert_eq!(outcome.column("dead_letters", "payload_encoding"), ["base64"; 6], "{kind}");
        assert!(outcome.column("dead_letters", "payload").iter().all(|payload| payload.len() > 20), "{kind}");
    }
}

#[test]
fn what_no_row_has_may_be_anything() {
    // Under a null, before the first offset, and in a dictionary that no key names.
    let nulls = Some(NullBuffer::from(vec![true, true, false, false, true]));
    let (offsets, values, _) = BinaryArray::from(TEXTS.to_vec()).into_parts();
    let under_nulls: ArrayRef = Arc::new(BinaryArray::new(offsets, values, nulls));
    let keys = Int32Array::from(vec![0, 1, 0, 1, 4]);
    let unnamed: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(BinaryArray::from(TEXTS.to_vec()))));
    for (column, texts) in [(under_nulls, 3), (unnamed, 5)] {
        let outcome = decode_stream(called_text(&[batch(vec![("x", column)])]), DecodeConfig::default());
        assert_eq!(outcome.rejected(1), [], "{:?}", outcome.results[1]);
        assert_eq!(outcome.column("security_events", "x").len(), texts);
    }
}

#[test]
fn a_row_that_is_too_large_costs_only_itself() {
    let config = DecodeConfig { event_bytes_max: 1_000, ..DecodeConfig::default() };
    for (kind, column) in of_each_type() {
        let sizes = |long: usize| {
            let index = Int32Array::from(vec![0, 0, 1, 0]);
            let texts: ArrayRef = Arc::new(BinaryArray::from(vec![&b"short"[..], &b"y".repeat(long)]));
            let texts = arrow::compute::take(&texts, &index, None).expect("rows");
            batch(vec![("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef), ("x", retyped(&column, texts))])
        };
        for (long, bad) in [(990, vec![]), (1_100, vec![(2, "event_too_large"), (6, "event_too_large")])] {
            let outcome = decode_stream(called_text(&[sizes(long), sizes(long)]), config.clone());
            assert_eq!(outcome.rejected(1), bad, "{kind} of {long}: {:?}", outcome.results[1]);
            assert_eq!(outcome.column("security_events", "n").len(), 8 - bad.len(), "{kind}");
            assert_eq!(outcome.column("dead_letters", "payload").len(), bad.len(), "{kind}");
        }
    }
}

/// Four texts as a column of the type of another.
fn retyped(like: &ArrayRef, texts: ArrayRef) -> ArrayRef {
    let cast = |to: &DataType| arrow::compute::cast(&texts, to).expect("a column");
    let item = |data_type: &DataType| Arc::new(Field::new_list_field(data_type.clone(), true));
    match like.data_type() {
        DataType::List(of) => {
            let items = cast(of.data_type());
            Arc::new(ListArray::new(item(of.data_type()), OffsetBuffer::from_lengths([1; 4]), items, None))
        }
        DataType::FixedSizeList(of, _) => {
            Arc::new(FixedSizeListArray::new(item(of.data_type()), 1, cast(of.data_type()), None))
        }
        DataType::Dictionary(_, values) => {
            let keys = Int32Array::from(vec![0, 1, 2, 3]);
            Arc::new(DictionaryArray::new(keys, cast(values)))
        }
        DataType::Struct(fields) => Arc::new(StructArray::new(fields.clone(), vec![texts], None)),
        other => cast(other),
    }
}

/// Where each frame of a stream starts, and the end.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut places = vec![0];
    while let Some(at) = places.last().copied().filter(|at| at + 8 < bytes.len()) {
        let head = i32::from_le_bytes(bytes[at + 4..at + 8].try_into().expect("four")) as usize;
        let message = arrow::ipc::root_as_message(&bytes[at + 8..at + 8 + head]).expect("a message");
        places.push(at + 8 + head + message.bodyLength() as usize);
    }
    places
}

#[test]
fn a_bad_batch_costs_its_rows_and_no_later_ones() {
    let rows = |from: i64| {
        let texts: Vec<String> = (from..from + 4).map(|at| format!("text {at}")).collect();
        batch(vec![
            ("n", Arc::new(Int64Array::from_iter_values(from..from + 4)) as ArrayRef),
            ("x", Arc::new(arrow::array::StringArray::from(texts)) as ArrayRef),
        ])
    };
    let good = stream(&[rows(0), rows(4), rows(8)]);
    let starts = frames(&good);
    // The offsets of the texts of the second batch are after the numbers and before the texts: all that is damaged.
    let from = starts[2];
    let text = good[from..].windows(6).position(|window| window == b"text 4").expect("the text") + from;
    let mut bad = good.clone();
    bad[text - 64..text - 40].fill(0xee);
    let outcome = decode_stream(bad, DecodeConfig::default());
    assert_eq!(outcome.rejected(1), [4, 5, 6, 7].map(|item| (item, "malformed_arrow")), "{:?}", outcome.results[1]);
    let ns = ["0", "1", "2", "3", "8", "9", "10", "11"];
    assert_eq!(outcome.column("security_events", "n"), ns);
    assert_eq!(outcome.results[1].items, 12);
    assert_eq!(outcome.column("dead_letters", "item_index"), ["4", "5", "6", "7"]);
    // With an idempotency key the ids go by the place in the body, whatever became of those before.
    let keyed = Case::new(BodyFormat::ArrowStream, good).key("key");
    let outcome = decode_with(&mut decoder(DecodeConfig::default()), &[keyed]);
    assert_eq!(outcome.cell(0, 9, "event_id"), "key:9");
}

#[test]
fn a_dictionary_that_cannot_be_read_costs_the_rows_that_name_it() {
    let words: DictionaryArray<Int32Type> = ["red", "green", "red"].into_iter().collect();
    let n: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let rows = batch(vec![("n", n), ("d", Arc::new(words))]);
    let good = stream(&[rows.clone(), rows]);
    let starts = frames(&good);
    let text = good.windows(8).position(|window| window == b"redgreen").expect("the words");
    assert!(starts[1] < text && text < starts[2], "in the frame of the dictionary");
    let mut bad = good.clone();
    bad[text - 64..text - 48].fill(0xee);
    let outcome = decode_stream(bad, DecodeConfig::default());
    assert_eq!(outcome.results[1].rejected.len(), 6, "{:?}", outcome.results[1]);
    let outcome = decode_stream(good, DecodeConfig::default());
    assert_eq!(outcome.column("security_events", "d"), ["red", "green", "red", "red", "green", "red"]);
}

#[test]
fn nulls_in_a_column_that_says_it_has_none_are_nulls() {
    let strict = Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("x", DataType::Int64, true)]);
    let loose = batch(vec![
        ("n", Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef),
        ("x", Arc::new(Int64Array::from(vec![7, 8])) as ArrayRef),
    ]);
    let outcome = decode_stream(under(&strict, &stream(&[loose])), DecodeConfig::default());
    assert_eq!(outcome.rejected(1), []);
    assert_eq!(outcome.column("security_events", "x"), ["7", "8"]);
    assert_eq!(outcome.column("security_events", "n"), ["1"]);
}
