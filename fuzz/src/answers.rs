//! What other servers send: a record of a topic that is a log, a value of a table of PostgreSQL.

use std::sync::{Arc, LazyLock};

use arrow::array::Array;
use arrow::datatypes::{DataType, Field, FieldRef};
use tidegate_events::{Dataset, FieldType, Scalar};
use tidegate_pipeline::log::carried::Carrier;
use tidegate_pipeline::{EventBatch, LogBatch};
use tidegate_sinks::fluvio::{record_of_rows, rows_of_record};
use tidegate_sinks::timescale::column_of;

use crate::rows::{batch, ids};

static CARRIER: LazyLock<Carrier> = LazyLock::new(|| Carrier::new().expect("random bits"));

fn check_record(value: &[u8]) {
    let Ok(batches) = rows_of_record(&CARRIER, 3, value) else { return };
    let mut at = 3 << 16;
    for batch in &batches {
        assert_eq!(batch.offset, at, "rows follow each other");
        at = batch.next_offset();
        batch.rows.columns().iter().for_each(|column| column.to_data().validate_full().expect("a sound column"));
    }
    assert!(at <= 4 << 16, "a record has places for 65,536 rows");
}

/// The record with its checksum put right.
fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut fixed = bytes.to_vec();
    fixed.resize(fixed.len().max(32), 0);
    fixed[..4].copy_from_slice(b"TFR1");
    let crc = crc32c::crc32c(&fixed[8..]);
    fixed[4..8].copy_from_slice(&crc.to_le_bytes());
    fixed
}

/// A record of a topic that is a log, as it is and with its checksum put right. A whole record that is read after it has its rows.
pub fn fluvio_record(bytes: &[u8]) {
    check_record(bytes);
    check_record(&with_checksum(bytes));
    let rows = rows_of_record(&CARRIER, 4, &WHOLE).expect("a whole record");
    let found: Vec<String> = rows.iter().flat_map(|rows: &Arc<LogBatch>| ids(&rows.rows)).collect();
    assert_eq!(found, ["one", "two"], "layouts of broken records do not come into others");
}

static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| seed_of_record(&["one", "two"]));

/// A record with a row an id.
pub fn seed_of_record(ids: &[&str]) -> Vec<u8> {
    let keys = (1..=ids.len() as u128).collect();
    let rows = EventBatch { dataset: Dataset::SecurityEvents, rows: batch(ids), keys };
    record_of_rows(&CARRIER, &[rows], 7).expect("small rows")
}

/// Columns of each type that tables have, and whether they are own fields.
static COLUMNS: LazyLock<Vec<(FieldRef, bool)>> = LazyLock::new(|| {
    let core = [Dataset::SecurityEvents, Dataset::CostEvents, Dataset::Alerts];
    let core = core.iter().flat_map(|dataset| dataset.core_schema().fields().iter().cloned().collect::<Vec<_>>());
    let mut columns: Vec<(FieldRef, bool)> = Vec::new();
    for field in core {
        if !columns.iter().any(|(known, _)| known.data_type() == field.data_type()) {
            columns.push((field, false));
        }
    }
    for scalar in [Scalar::Bool, Scalar::Int, Scalar::Float, Scalar::Text] {
        for list in [false, true] {
            let kind = FieldType { scalar, list };
            columns.push((Field::new("own", kind.data_type(), true).into(), true));
        }
    }
    columns.push((Field::new("_rest", FieldType::TEXT.data_type(), true).into(), true));
    columns
});

/// A field, whether it is an own one, and its values.
type Column<'a> = (&'static Field, bool, Vec<Option<&'a [u8]>>);

/// The column that the first byte of a seed chooses, and its values: each has its length before it, 255 for null.
fn column_and_values(bytes: &[u8]) -> Option<Column<'_>> {
    let (choice, mut rest) = bytes.split_first()?;
    let (field, own) = &COLUMNS[usize::from(*choice) % COLUMNS.len()];
    let mut values = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let length = if *length == 255 { 0 } else { usize::from(*length).min(after.len()) };
        let (value, after) = after.split_at(length);
        values.push((rest[0] != 255).then_some(value));
        rest = after;
    }
    Some((field, *own, values))
}

/// Values of a column as PostgreSQL sends them.
pub fn database_value(bytes: &[u8]) {
    let Some((field, own, values)) = column_and_values(bytes) else { return };
    if let Ok(column) = column_of(field, own, &values) {
        assert_eq!(column.len(), values.len(), "each row has a value or null");
        assert_eq!(column.data_type(), field.data_type());
        column.to_data().validate_full().expect("a sound column");
    }
}

/// How many values of a seed of `database_value` are there and not null, or what is wrong with them.
pub fn values_taken(bytes: &[u8]) -> Result<usize, String> {
    let (field, own, values) = column_and_values(bytes).ok_or("no column")?;
    column_of(field, own, &values).map(|column| column.len() - column.null_count())
}

/// A seed for each column of `database_value`: a null, and two values of its type.
pub fn seeds_of_values() -> Vec<Vec<u8>> {
    let words = |words: &[i16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let numbers = |numbers: &[i32]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>();
    let json = |text: &str| [b"\x01", text.as_bytes()].concat();
    let of = |field: &Field, own: bool| match field.data_type() {
        _ if field.name() == "_rest" => [json("{\"a\": [1, {\"b\": null}]}"), json("{}")],
        DataType::Boolean => [json("true"), json("false")],
        DataType::Float64 => [json("-12.50"), json("\"NaN\"")],
        DataType::Int64 if own => [json("9007199254740993"), json("[7]")],
        DataType::Utf8 if own => [json("\"some \\u00e9 text\""), json("2.0")],
        DataType::List(item) if own && *item.data_type() == DataType::Utf8 => [json("[\"a\", null]"), json("\"a\"")],
        DataType::List(item) if own && *item.data_type() == DataType::Boolean => [json("[true, null]"), json("false")],
        DataType::List(_) if own => [json("[1, 2.5, null]"), json("3")],
        DataType::Int32 => [numbers(&[7]), numbers(&[-1])],
        DataType::Utf8 => [b"some text".to_vec(), Vec::new()],
        DataType::List(_) => {
            let item = [numbers(&[1, 1, 25, 2, 1, 1]), b"a".to_vec(), numbers(&[-1])].concat();
            [item, numbers(&[0, 0, 25])]
        }
        DataType::Decimal128(..) => [words(&[2, 0, 0, 2, 12, 3400]), words(&[1, -1, 0x4000, 4, 5])],
        _ => [700_000_000_000_000i64.to_be_bytes().to_vec(), 0i64.to_be_bytes().to_vec()],
    };
    let seed = |(at, (field, own)): (usize, &(FieldRef, bool))| {
        let mut seed = vec![at as u8, 255];
        for value in of(field, *own) {
            seed.push(value.len() as u8);
            seed.extend(value);
        }
        seed
    };
    COLUMNS.iter().enumerate().map(seed).collect()
}
