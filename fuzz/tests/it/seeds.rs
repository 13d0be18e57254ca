//! Writes the seeds that are not text anew: `cargo test -p tidegate-fuzz seeds -- --ignored`, after a change of a format.

use std::io::Write;

use arrow::array::{ArrayRef, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray};
use arrow::array::{DictionaryArray, Float64Array, TimestampMicrosecondArray};
use arrow::datatypes::Int32Type;
use arrow::ipc::writer::StreamWriter;
use std::sync::Arc;

use crate::arrow_seeds::arrow_seeds;
use crate::campaign::folder;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = folder("corpus", target);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(name), bytes).expect("a file");
}

fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a schema");
    writer.write(&batch).expect("memory");
    writer.finish().expect("memory");
    writer.into_inner().expect("memory")
}

fn text(values: [&str; 2]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[test]
#[ignore = "it writes into the tree"]
fn write_the_seeds_that_are_not_text() {
    let times = TimestampMicrosecondArray::from(vec![1_700_000_000_000_000, 1]).with_timezone("UTC");
    let mut tags = ListBuilder::new(StringBuilder::new());
    tags.append_value([Some("a"), None]);
    tags.append_null();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let inner = StructArray::try_from(vec![("x", numbers.clone())]).expect("a struct");
    let words: DictionaryArray<Int32Type> = ["w", "w"].into_iter().collect();
    let plain = vec![("time", Arc::new(times) as ArrayRef), ("actor", text(["kim", "lee"])), ("n", numbers)];
    write("arrow_body", "plain.arrows", &stream(plain));
    let nested: Vec<(&str, ArrayRef)> =
        vec![("tags", Arc::new(tags.finish())), ("s", Arc::new(inner)), ("d", Arc::new(words))];
    write("arrow_body", "nested.arrows", &stream(nested));
    let cost: Vec<(&str, ArrayRef)> = vec![
        ("BilledCost", Arc::new(Float64Array::from(vec![0.5, 1e300]))),
        ("ChargePeriodStart", text(["2024-01-01", "x"])),
    ];
    write("arrow_body", "cost.arrows", &stream(cost));
    for (name, bytes) in arrow_seeds() {
        write("arrow_body", &format!("{name}.arrows"), &bytes);
    }

    let event = br#"{"time":"2024-01-01T00:00:00Z","actor":"kim"}"#.repeat(20);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&event).expect("memory");
    let gzip = gzip.finish().expect("memory");
    write("inflate", "two_members.gz", &[&gzip[..], &gzip[..]].concat());
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(&event).expect("memory");
    write("inflate", "zlib", &zlib.finish().expect("memory"));
    let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    raw.write_all(&event).expect("memory");
    write("inflate", "raw_deflate", &raw.finish().expect("memory"));
    let frame = zstd::encode_all(&event[..], 3).expect("memory");
    write("inflate", "skippable_and_frame.zst", &[&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], &frame[..]].concat());
    write("inflate", "bomb.zst", &zstd::encode_all(&vec![0; 1 << 20][..], 19).expect("memory"));

    write("fluvio_record", "rows.record", &tidegate_fuzz::seed_of_record(&["one", "two", "three"]));
    for (at, seed) in tidegate_fuzz::seeds_of_values().iter().enumerate() {
        write("database_value", &format!("column_{at:02}"), seed);
    }

    let (segment, summary, edits) = tidegate_fuzz::seeds_of_disk();
    write("log_segment", "three_groups.log", &segment);
    write("log_summary", "first.sum", &summary);
    for (at, edit) in edits.iter().enumerate() {
        write("parquet_manifest", &format!("{}.edit", at + 1), edit);
    }
}
