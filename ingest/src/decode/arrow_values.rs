//! The values of Arrow columns before they are trusted: what they take once they are written out, and whether their texts
//! are UTF-8.
//!
//! A stream is read with its texts as bytes: arrow-rs refuses a whole batch for one text that is not UTF-8, and casts of
//! dictionaries and views ask for as much memory as all their values together, whatever that is.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, FixedSizeListArray, GenericBinaryArray, GenericListArray,
    GenericStringArray, GenericStringBuilder, OffsetSizeTrait, StringViewArray, StringViewBuilder,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// The schema with texts as bytes, and with nulls in any column: a row is not refused for one.
pub(super) fn unchecked(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(unchecked_field).collect::<Vec<_>>())
}

fn unchecked_field(field: &FieldRef) -> FieldRef {
    let data_type = unchecked_type(field.data_type());
    Arc::new(field.as_ref().clone().with_data_type(data_type).with_nullable(true))
}

fn unchecked_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8 => DataType::Binary,
        DataType::LargeUtf8 => DataType::LargeBinary,
        DataType::Utf8View => DataType::BinaryView,
        DataType::List(item) => DataType::List(unchecked_field(item)),
        DataType::LargeList(item) => DataType::LargeList(unchecked_field(item)),
        DataType::FixedSizeList(item, len) => DataType::FixedSizeList(unchecked_field(item), *len),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(unchecked_field).collect()),
        DataType::Dictionary(keys, values) => {
            DataType::Dictionary(keys.clone(), Box::new(unchecked_type(values.as_ref())))
        }
        other => other.clone(),
    }
}

/// How many bytes each value of an array takes once it is written out.
enum Lengths<'a> {
    Fixed(u64),
    Offsets(&'a [i32]),
    LargeOffsets(&'a [i64]),
    Views(&'a [u128]),
}

impl<'a> Lengths<'a> {
    fn of(array: &'a dyn Array) -> Self {
        match array.data_type() {
            DataType::Binary => Self::Offsets(array.as_binary::<i32>().value_offsets()),
            DataType::LargeBinary => Self::LargeOffsets(array.as_binary::<i64>().value_offsets()),
            DataType::BinaryView => Self::Views(array.as_binary_view().views()),
            other => Self::Fixed(text_bytes(other)),
        }
    }

    /// Of the values in a range.
    fn sum(&self, range: Range<usize>) -> u64 {
        let between = |start: Option<i64>, end: Option<i64>| match (start, end) {
            (Some(start), Some(end)) => u64::try_from(end - start).unwrap_or(0),
            _ => 0,
        };
        match self {
            Self::Fixed(bytes) => bytes.saturating_mul(range.len() as u64),
            Self::Offsets(offsets) => {
                let at = |at: usize| offsets.get(at).map(|offset| i64::from(*offset));
                between(at(range.start), at(range.end))
            }
            Self::LargeOffsets(offsets) => between(offsets.get(range.start).copied(), offsets.get(range.end).copied()),
            // The low half of the low half of a view is its length.
            Self::Views(views) => views.get(range).into_iter().flatten().map(|view| u64::from(*view as u32)).sum(),
        }
    }

    fn at(&self, at: usize) -> u64 {
        self.sum(at..at + 1)
    }

    /// Of the longest value.
    fn max(&self) -> u64 {
        fn longest(lengths: impl Iterator<Item = i64>) -> u64 {
            lengths.max().and_then(|longest| u64::try_from(longest).ok()).unwrap_or(0)
        }
        match self {
            Self::Fixed(bytes) => *bytes,
            Self::Offsets(offsets) => longest(offsets.windows(2).map(|pair| i64::from(pair[1]) - i64::from(pair[0]))),
            Self::LargeOffsets(offsets) => longest(offsets.windows(2).map(|pair| pair[1] - pair[0])),
            Self::Views(views) => longest(views.iter().map(|view| i64::from(*view as u32))),
        }
    }
}

/// The most bytes of a value of this type, as a number or as the text that it becomes.
fn text_bytes(data_type: &DataType) -> u64 {
    match data_type {
        DataType::Boolean => 1,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => 40,
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale) => 80 + u64::from(scale.unsigned_abs()),
        DataType::UInt64 => 24,
        _ => 8,
    }
}

/// The items of a list's rows, and which of them a row has.
type Children<'a> = (ArrayRef, Box<dyn Fn(usize) -> Range<usize> + 'a>);

/// The children of each row of a list.
fn children(array: &dyn Array) -> Option<Children<'_>> {
    fn of<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> Children<'_> {
        let offset = move |at: usize| list.value_offsets().get(at).map_or(0, |offset| offset.as_usize());
        (list.values().clone(), Box::new(move |row| offset(row)..offset(row + 1)))
    }
    match array.data_type() {
        DataType::List(_) => array.as_list_opt::<i32>().map(of),
        DataType::LargeList(_) => array.as_list_opt::<i64>().map(of),
        DataType::FixedSizeList(..) => {
            let list: &FixedSizeListArray = array.as_fixed_size_list_opt()?;
            let start = move |row: usize| usize::try_from(list.value_offset(row)).unwrap_or(0);
            Some((list.values().clone(), Box::new(move |row| start(row)..start(row + 1))))
        }
        _ => None,
    }
}

/// No row of a column takes more than this once it is written out, in bytes: quickly known, so that rows are looked at only
/// where one may be too large.
pub(super) fn row_bytes_max(column: &ArrayRef) -> u64 {
    if let Some((items, range)) = children(column.as_ref()) {
        let lengths = Lengths::of(items.as_ref());
        (0..column.len()).map(|row| lengths.sum(range(row))).max().unwrap_or(0)
    } else if let Some(dictionary) = column.as_any_dictionary_opt() {
        Lengths::of(dictionary.values().as_ref()).max()
    } else {
        Lengths::of(column.as_ref()).max()
    }
}

/// Adds to each row what its value in a column takes once it is written out, in bytes.
pub(super) fn add_row_bytes(column: &ArrayRef, rows: &mut [u64]) {
    let mut add = |bytes: &dyn Fn(usize) -> u64| {
        for (row, sum) in rows.iter_mut().enumerate().filter(|(row, _)| column.is_valid(*row)) {
            *sum = sum.saturating_add(bytes(row));
        }
    };
    if let Some((items, range)) = children(column.as_ref()) {
        let lengths = Lengths::of(items.as_ref());
        add(&|row| lengths.sum(range(row)));
    } else if let Some(dictionary) = column.as_any_dictionary_opt() {
        if !dictionary.values().is_empty() {
            let lengths = Lengths::of(dictionary.values().as_ref());
            let keys = dictionary.normalized_keys();
            add(&|row| keys.get(row).map_or(0, |key| lengths.at(*key)));
        }
    } else {
        let lengths = Lengths::of(column.as_ref());
        add(&|row| lengths.at(row));
    }
}

/// What a column takes once it is written out, in bytes: also the items of lists that no row has, which casts write out too.
pub(super) fn column_bytes(column: &ArrayRef) -> u64 {
    if let Some((items, _)) = children(column.as_ref()) {
        Lengths::of(items.as_ref()).sum(0..items.len())
    } else if column.as_any_dictionary_opt().is_some() {
        let mut rows = vec![0; column.len()];
        add_row_bytes(column, &mut rows);
        rows.into_iter().fold(0, u64::saturating_add)
    } else {
        Lengths::of(column.as_ref()).sum(0..column.len())
    }
}

/// A dictionary written out; views stay views.
pub(super) fn unpacked(column: &ArrayRef) -> Result<ArrayRef, String> {
    match column.as_any_dictionary_opt() {
        Some(dictionary) => take(dictionary.values(), dictionary.keys(), None).map_err(|error| error.to_string()),
        None => Ok(column.clone()),
    }
}

/// The bytes of a value of text.
fn text_at(array: &dyn Array, at: usize) -> Option<&[u8]> {
    if at >= array.len() || array.is_null(at) {
        return None;
    }
    match array.data_type() {
        DataType::Binary => Some(array.as_binary::<i32>().value(at)),
        DataType::LargeBinary => Some(array.as_binary::<i64>().value(at)),
        DataType::BinaryView => Some(array.as_binary_view().value(at)),
        _ => None,
    }
}

/// The rows of a column (no dictionary) with a text that is not UTF-8.
pub(super) fn rows_not_utf8(column: &ArrayRef) -> Vec<usize> {
    let wrong =
        |array: &dyn Array, at: usize| text_at(array, at).is_some_and(|text| std::str::from_utf8(text).is_err());
    let rows = (0..column.len()).filter(|row| column.is_valid(*row));
    match children(column.as_ref()) {
        Some((items, range)) => rows.filter(|row| range(*row).any(|at| wrong(items.as_ref(), at))).collect(),
        None => rows.filter(|row| wrong(column.as_ref(), *row)).collect(),
    }
}

/// A column (no dictionary) with its bytes as texts again. Unless `repair` is set it is an error when they are not UTF-8;
/// with it, they are replaced: in values that no row has.
pub(super) fn texts(column: &ArrayRef, repair: bool) -> Result<ArrayRef, String> {
    fn of<O: OffsetSizeTrait>(values: &GenericBinaryArray<O>, repair: bool) -> Result<ArrayRef, String> {
        if !repair {
            let texts = GenericStringArray::<O>::try_from_binary(values.clone());
            return texts.map(|texts| Arc::new(texts) as ArrayRef).map_err(|error| error.to_string());
        }
        let mut texts = GenericStringBuilder::<O>::with_capacity(values.len(), values.value_data().len());
        values.iter().for_each(|value| texts.append_option(value.map(String::from_utf8_lossy)));
        Ok(Arc::new(texts.finish()))
    }
    fn views(values: &BinaryViewArray, repair: bool) -> Result<ArrayRef, String> {
        let texts: StringViewArray = if repair {
            let mut texts = StringViewBuilder::with_capacity(values.len());
            values.iter().for_each(|value| texts.append_option(value.map(String::from_utf8_lossy)));
            texts.finish()
        } else {
            values.clone().to_string_view().map_err(|error| error.to_string())?
        };
        Ok(Arc::new(texts))
    }
    fn lists<O: OffsetSizeTrait>(list: &GenericListArray<O>, repair: bool) -> Result<ArrayRef, String> {
        let items = texts(list.values(), repair)?;
        let field = Field::new_list_field(items.data_type().clone(), true).into();
        let lists = GenericListArray::try_new(field, list.offsets().clone(), items, list.nulls().cloned());
        lists.map(|lists| Arc::new(lists) as ArrayRef).map_err(|error| error.to_string())
    }
    match column.data_type() {
        DataType::Binary => of(column.as_binary::<i32>(), repair),
        DataType::LargeBinary => of(column.as_binary::<i64>(), repair),
        DataType::BinaryView => views(column.as_binary_view(), repair),
        DataType::List(_) => lists(column.as_list::<i32>(), repair),
        DataType::LargeList(_) => lists(column.as_list::<i64>(), repair),
        DataType::FixedSizeList(_, size) => {
            let list = column.as_fixed_size_list();
            let items = texts(list.values(), repair)?;
            let field = Field::new_list_field(items.data_type().clone(), true).into();
            let lists = FixedSizeListArray::try_new_with_length(field, *size, items, list.nulls().cloned(), list.len());
            lists.map(|lists| Arc::new(lists) as ArrayRef).map_err(|error| error.to_string())
        }
        _ => Ok(column.clone()),
    }
}

/// A row as the text of a JSON object for its dead letter, of about `bytes_max` bytes at most. Bytes that are no UTF-8 stay.
pub(super) fn payload<'a>(
    columns: impl Iterator<Item = (&'a str, &'a ArrayRef)>,
    row: usize,
    bytes_max: usize,
) -> Vec<u8> {
    let mut out = Vec::new();
    let values = columns.filter(|(_, column)| row < column.len() && column.is_valid(row));
    for (name, column) in values {
        if out.len() >= bytes_max {
            return out;
        }
        out.push(if out.is_empty() { b'{' } else { b',' });
        quote(name.as_bytes(), bytes_max, &mut out);
        out.push(b':');
        value(column, row, bytes_max, &mut out);
    }
    if out.is_empty() {
        out.push(b'{');
    }
    out.push(b'}');
    out
}

fn value(column: &ArrayRef, row: usize, bytes_max: usize, out: &mut Vec<u8>) {
    if let Some((items, range)) = children(column.as_ref()) {
        out.push(b'[');
        for (at, item) in range(row).enumerate() {
            if out.len() >= bytes_max {
                return;
            }
            if at > 0 {
                out.push(b',');
            }
            value(&items, item, bytes_max, out);
        }
        out.push(b']');
    } else if let DataType::Dictionary(..) = column.data_type() {
        // Of this row alone: the keys of all rows for each of them would cost the square of their number.
        let one = column.slice(row, 1);
        let values = one.as_any_dictionary_opt().map(|dictionary| (dictionary.values(), dictionary.normalized_keys()));
        match values.map(|(values, keys)| (values, keys.first().copied().unwrap_or(0))) {
            Some((values, key)) => value(values, key, bytes_max, out),
            None => out.extend_from_slice(b"null"),
        }
    } else if let Some(text) = text_at(column.as_ref(), row) {
        quote(text, bytes_max, out);
    } else if row >= column.len() || column.is_null(row) {
        out.extend_from_slice(b"null");
    } else {
        let options = FormatOptions::new();
        let shown =
            ArrayFormatter::try_new(column.as_ref(), &options).and_then(|cells| cells.value(row).try_to_string());
        quote(shown.unwrap_or_default().as_bytes(), bytes_max, out);
    }
}

fn quote(text: &[u8], bytes_max: usize, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.iter().take(bytes_max.saturating_sub(out.len())) {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}
