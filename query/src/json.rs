//! Rows as JSON objects, the same at every door and in the alert feed.
//!
//! Times are RFC 3339 in UTC; decimals are numbers with all their digits; lists are arrays; a float that JSON cannot say
//! (NaN, infinity) is null. Columns come in the order of the batch. Types that no table has (intervals, …) are text.

use std::fmt::Write as _;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Decimal128Type, Schema, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// What becomes of a null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nulls {
    /// `"column":null`.
    Keep,
    /// The column is left out.
    Omit,
}

/// Writes rows of one schema.
#[derive(Debug)]
pub struct RowWriter {
    keys: Vec<Vec<u8>>,
    nulls: Nulls,
    embedded: Option<usize>,
}

impl RowWriter {
    /// A writer for batches of `schema`.
    pub fn new(schema: &Schema, nulls: Nulls) -> Self {
        let key = |name: &String| {
            let mut key = Vec::with_capacity(name.len() + 3);
            write_text(name, &mut key);
            key.push(b':');
            key
        };
        Self { keys: schema.fields().iter().map(|field| key(field.name())).collect(), nulls, embedded: None }
    }

    /// The same, but the text of the column `at` is JSON already: it is put in as it is, unless it does not parse.
    #[must_use]
    pub fn embed(mut self, at: Option<usize>) -> Self {
        self.embedded = at;
        self
    }

    /// Appends each row of `batch` as an object to `out`, with `end` called after each.
    ///
    /// # Errors
    /// When Arrow cannot show a value of an unusual type.
    pub fn write(
        &self,
        batch: &RecordBatch,
        out: &mut Vec<u8>,
        mut end: impl FnMut(&mut Vec<u8>),
    ) -> Result<(), ArrowError> {
        let columns = batch.columns().iter().map(Column::new).collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            out.push(b'{');
            let mut first = true;
            for (at, (key, column)) in self.keys.iter().zip(&columns).enumerate() {
                if self.nulls == Nulls::Omit && column.is_null(row) {
                    continue;
                }
                if !first {
                    out.push(b',');
                }
                first = false;
                out.extend_from_slice(key);
                match column {
                    Column::Text(texts) if self.embedded == Some(at) && is_json(texts, row) => {
                        out.extend_from_slice(texts.value(row).as_bytes());
                    }
                    column => column.write(row, out)?,
                }
            }
            out.push(b'}');
            end(out);
        }
        Ok(())
    }
}

fn is_json(texts: &StringArray, row: usize) -> bool {
    texts.is_valid(row) && serde_json::from_str::<serde::de::IgnoredAny>(texts.value(row)).is_ok()
}

/// Each value of a column as JSON text; `None` for null.
pub(crate) fn column_texts(array: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let column = Column::new(array)?;
    let text = |row: usize| {
        let mut out = Vec::new();
        column.write(row, &mut out)?;
        String::from_utf8(out).map_err(|error| ArrowError::ComputeError(error.to_string()))
    };
    (0..array.len()).map(|row| if column.is_null(row) { Ok(None) } else { text(row).map(Some) }).collect()
}

/// A column, its type looked at once.
enum Column {
    Text(StringArray),
    Bool(BooleanArray),
    Int(Int64Array),
    UInt(UInt64Array),
    Float(Float64Array),
    /// Numbers in units of `1 / per_second`, and whether they are UTC.
    Time {
        ticks: Int64Array,
        per_second: i64,
        utc: bool,
    },
    Decimal {
        array: ArrayRef,
        scale: i8,
    },
    List {
        offsets: Vec<(usize, usize)>,
        values: Box<Column>,
        array: ArrayRef,
    },
    Struct {
        keys: Vec<Vec<u8>>,
        columns: Vec<Column>,
        array: ArrayRef,
    },
    Null,
    Other(ArrayRef),
}

impl Column {
    fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string::<i32>().clone()),
            DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => Self::new_cast(
                array,
                &match array.data_type() {
                    DataType::Dictionary(_, value) => (**value).clone(),
                    _ => DataType::Utf8,
                },
            )?,
            DataType::Boolean => Self::Bool(array.as_boolean().clone()),
            DataType::Int64 => Self::Int(array.as_primitive().clone()),
            DataType::UInt64 => Self::UInt(array.as_primitive().clone()),
            DataType::Float64 => Self::Float(array.as_primitive().clone()),
            kind if kind.is_integer() => Self::new_cast(array, &DataType::Int64)?,
            kind if kind.is_floating() => Self::new_cast(array, &DataType::Float64)?,
            DataType::Timestamp(unit, zone) => {
                let (ticks, per_second) = ticks(array, *unit);
                Self::Time { ticks, per_second, utc: zone.is_some() }
            }
            DataType::Decimal128(_, scale) => Self::Decimal { array: array.clone(), scale: *scale },
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let offsets = list.offsets().windows(2).map(|pair| (pair[0] as usize, pair[1] as usize)).collect();
                Self::List { offsets, values: Box::new(Self::new(list.values())?), array: array.clone() }
            }
            DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                Self::new_cast(array, &DataType::List(item.clone()))?
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns().iter().map(Self::new).collect::<Result<_, _>>()?;
                let keys = RowWriter::new(&Schema::new(fields.clone()), Nulls::Keep).keys;
                Self::Struct { keys, columns, array: array.clone() }
            }
            DataType::Null => Self::Null,
            _ => Self::Other(array.clone()),
        })
    }

    fn new_cast(array: &ArrayRef, kind: &DataType) -> Result<Self, ArrowError> {
        Self::new(&cast(array, kind)?)
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Text(array) => array.is_null(row),
            Self::Bool(array) => array.is_null(row),
            Self::Int(array) => array.is_null(row),
            Self::UInt(array) => array.is_null(row),
            Self::Float(array) => array.is_null(row) || !array.value(row).is_finite(),
            Self::Time { ticks, .. } => ticks.is_null(row),
            Self::Decimal { array, .. }
            | Self::List { array, .. }
            | Self::Struct { array, .. }
            | Self::Other(array) => array.is_null(row),
            Self::Null => true,
        }
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        if self.is_null(row) {
            out.extend_from_slice(b"null");
            return Ok(());
        }
        match self {
            Self::Text(array) => write_text(array.value(row), out),
            Self::Bool(array) => out.extend_from_slice(if array.value(row) { b"true" } else { b"false" }),
            Self::Int(array) => write_shown(array.value(row), out),
            Self::UInt(array) => write_shown(array.value(row), out),
            Self::Float(array) => write_float(array.value(row), out),
            Self::Time { ticks, per_second, utc } => {
                out.push(b'"');
                write_time(ticks.value(row), *per_second, out);
                out.extend_from_slice(if *utc { b"Z\"" } else { b"\"" });
            }
            Self::Decimal { array, scale } => {
                write_decimal(array.as_primitive::<Decimal128Type>().value(row), *scale, out);
            }
            Self::List { offsets, values, .. } => {
                out.push(b'[');
                let (from, to) = offsets[row];
                for at in from..to {
                    if at > from {
                        out.push(b',');
                    }
                    values.write(at, out)?;
                }
                out.push(b']');
            }
            Self::Struct { keys, columns, .. } => {
                out.push(b'{');
                for (at, (key, column)) in keys.iter().zip(columns).enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    column.write(row, out)?;
                }
                out.push(b'}');
            }
            Self::Null => {}
            Self::Other(array) => {
                let shown = ArrayFormatter::try_new(array.as_ref(), &FormatOptions::default())?;
                write_text(&shown.value(row).try_to_string()?, out);
            }
        }
        Ok(())
    }
}

fn ticks(array: &ArrayRef, unit: TimeUnit) -> (Int64Array, i64) {
    match unit {
        TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().reinterpret_cast(), 1),
        TimeUnit::Millisecond => (array.as_primitive::<TimestampMillisecondType>().reinterpret_cast(), 1_000),
        TimeUnit::Microsecond => (array.as_primitive::<TimestampMicrosecondType>().reinterpret_cast(), 1_000_000),
        TimeUnit::Nanosecond => (array.as_primitive::<TimestampNanosecondType>().reinterpret_cast(), 1_000_000_000),
    }
}

fn write_shown(value: impl std::fmt::Display, out: &mut Vec<u8>) {
    let mut text = Text(out);
    let _ = write!(text, "{value}");
}

/// A `Vec<u8>` that takes formatted text.
struct Text<'a>(&'a mut Vec<u8>);

impl std::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn write_float(value: f64, out: &mut Vec<u8>) {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-7..1e21).contains(&magnitude) {
        write_shown(format_args!("{value:e}"), out);
    } else {
        write_shown(value, out);
    }
}

/// All digits of a decimal, without zeros at the end of its fraction.
fn write_decimal(value: i128, scale: i8, out: &mut Vec<u8>) {
    if scale <= 0 {
        write_shown(value, out);
        out.extend(std::iter::repeat_n(b'0', if value == 0 { 0 } else { usize::from(scale.unsigned_abs()) }));
        return;
    }
    let scale = usize::from(scale.unsigned_abs());
    if value < 0 {
        out.push(b'-');
    }
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    out.extend_from_slice(whole.as_bytes());
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    }
}

/// A time without its zone: `2026-11-22T00:13:19.250000`, with as many digits (0, 3, 6, 9) as its type has.
fn write_time(ticks: i64, per_second: i64, out: &mut Vec<u8>) {
    let (seconds, rest) = (ticks.div_euclid(per_second), ticks.rem_euclid(per_second));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    write_shown(
        format_args!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60),
        out,
    );
    match per_second {
        1 => {}
        1_000 => write_shown(format_args!(".{rest:03}"), out),
        1_000_000 => write_shown(format_args!(".{rest:06}"), out),
        _ => write_shown(format_args!(".{rest:09}"), out),
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Appends `text` as a JSON string.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use arrow::array::{Decimal128Array, Int32Array, ListBuilder, StringBuilder, TimestampMicrosecondArray};

    #[test]
    fn each_type_is_shown_without_loss() {
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("a"), None]);
        lists.append_null();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("t", Arc::new(StringArray::from(vec![Some("q\"\\\u{1}é"), None]))),
            ("f", Arc::new(Float64Array::from(vec![Some(1e300), Some(f64::NAN)]))),
            ("i", Arc::new(Int32Array::from(vec![Some(-5), None]))),
            ("u", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
            ("d", Arc::new(Decimal128Array::from(vec![-1_500, 0]).with_precision_and_scale(30, 3).expect("fits"))),
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![1_700_000_000_250_000, -1]).with_timezone("UTC"))),
            ("l", Arc::new(lists.finish())),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("a batch");
        let shown = |nulls| {
            let mut out = Vec::new();
            RowWriter::new(&batch.schema(), nulls).write(&batch, &mut out, |out| out.push(b'\n')).expect("rows");
            String::from_utf8(out).expect("text")
        };
        let first = "{\"t\":\"q\\\"\\\\\\u0001é\",\"f\":1e300,\"i\":-5,\"u\":18446744073709551615,\"d\":-1.5,\
                     \"at\":\"2023-11-14T22:13:20.250000Z\",\"l\":[\"a\",null]}\n";
        let second =
            "{\"t\":null,\"f\":null,\"i\":null,\"u\":0,\"d\":0,\"at\":\"1969-12-31T23:59:59.999999Z\",\"l\":null}\n";
        assert_eq!(shown(Nulls::Keep), format!("{first}{second}"));
        assert!(shown(Nulls::Omit).ends_with("{\"u\":0,\"d\":0,\"at\":\"1969-12-31T23:59:59.999999Z\"}\n"));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, wanted) in
            [(0, (1970, 1, 1)), (-1, (1969, 12, 31)), (11_016, (2000, 2, 29)), (20_779, (2026, 11, 22))]
        {
            assert_eq!(civil(days), wanted);
        }
    }
}
