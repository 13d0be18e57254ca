//! Seeds of Arrow streams that are small and become large, or whose texts are none.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BinaryViewArray, Decimal128Array, DictionaryArray, FixedSizeListArray, Int8Array,
    Int64Array, LargeListArray, ListArray, NullArray, RecordBatch, RecordBatchOptions, StringArray, StringViewArray,
    UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int8Type, Schema};
use arrow::ipc::writer::StreamWriter;

fn batch(columns: Vec<(&str, ArrayRef)>, rows: usize) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).expect("columns of one length")
}

fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).expect("a schema");
    batches.iter().for_each(|batch| writer.write(batch).expect("memory"));
    writer.finish().expect("memory");
    writer.into_inner().expect("memory")
}

/// The frames after the schema of one stream, after the schema of another.
fn under(schema: &Schema, bytes: &[u8]) -> Vec<u8> {
    let after_schema = |bytes: &[u8]| {
        let head = bytes.get(4..8).and_then(|head| <[u8; 4]>::try_from(head).ok()).expect("a frame");
        8 + i32::from_le_bytes(head) as usize
    };
    let mut writer = StreamWriter::try_new(Vec::new(), schema).expect("a schema");
    writer.finish().expect("memory");
    let head = writer.into_inner().expect("memory");
    [&head[..after_schema(&head)], &bytes[after_schema(bytes)..]].concat()
}

/// So many views of one text of 150 bytes, which is near the narrow bound of an event.
fn views(count: usize) -> ArrayRef {
    let one = StringViewArray::from(vec!["x".repeat(150).as_str()]);
    Arc::new(StringViewArray::new(vec![one.views()[0]; count].into(), one.data_buffers().to_vec(), None))
}

/// The names and bytes of the seeds.
pub fn arrow_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let item = |data_type: DataType| Arc::new(Field::new_list_field(data_type, true));
    let view = || item(DataType::Utf8View);
    let named = |values: ArrayRef| -> ArrayRef {
        Arc::new(DictionaryArray::<Int8Type>::new(Int8Array::from(vec![0, 0, 0]), values))
    };
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["y".repeat(150)]));
    let lists = vec![
        ("l", Arc::new(ListArray::new(view(), OffsetBuffer::from_lengths([1, 2, 0]), views(3), None)) as ArrayRef),
        ("g", Arc::new(LargeListArray::new(view(), OffsetBuffer::from_lengths([0, 1, 1]), views(2), None)) as ArrayRef),
        ("f", Arc::new(FixedSizeListArray::new(view(), 2, views(6), None)) as ArrayRef),
    ];
    let dictionaries = || batch(vec![("d", named(texts.clone())), ("v", named(views(1))), ("w", views(3))], 3);
    let bytes: Vec<&[u8]> = vec![b"good", b"\xff\xfe", b"a text that is longer than twelve bytes"];
    let wrong = vec![
        ("t", Arc::new(BinaryArray::from(bytes.clone())) as ArrayRef),
        ("v", Arc::new(BinaryViewArray::from(bytes)) as ArrayRef),
    ];
    let wrong = batch(wrong, 3);
    let text = Schema::new(vec![Field::new("t", DataType::Utf8, true), Field::new("v", DataType::Utf8View, true)]);
    let decimals = Decimal128Array::from(vec![1, -2, 3]).with_precision_and_scale(38, 30).expect("digits");
    let numbers = vec![
        ("billed_cost", Arc::new(decimals) as ArrayRef),
        ("u", Arc::new(UInt64Array::from(vec![u64::MAX, 0, 1])) as ArrayRef),
        ("event_id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
    ];
    vec![
        ("views_in_lists", stream(&[batch(lists, 3)])),
        ("dictionaries_of_views", stream(&[dictionaries(), dictionaries(), dictionaries()])),
        ("texts_that_are_none", under(&text, &stream(&[wrong.clone(), wrong]))),
        ("rows_without_bytes", stream(&[batch(Vec::new(), 3), batch(Vec::new(), 2_000)])),
        ("nulls", stream(&[batch(vec![("n", Arc::new(NullArray::new(3)) as ArrayRef)], 3)])),
        ("numbers_as_text", stream(&[batch(numbers, 3)])),
    ]
}
