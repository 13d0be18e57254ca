//! Column chunks of columns that few rows have a value in, written from these values alone.
//!
//! Arrow has a place for every row in every column, and so has Parquet's column writer: a thousand fields of which an event has ten
//! cost a hundred times what their values cost. In the file a gap is a run of definition levels, two or three bytes however long it
//! is. So the values of such a column are gathered with the numbers of their rows, and what lies between them is never made. The
//! chunk is a common one: data pages of version 1, levels as runs, values in their plain encoding, bounds, an offset index.

use arrow::array::{Array, AsArray, BooleanArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, PageType, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageEncodingStats};
use parquet::file::page_index::offset_index::{OffsetIndexMetaData, PageLocation};
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use tidegate_events::Dataset;
use zstd::bulk::Compressor;

use super::columns::{Joined, Pick};
use crate::error::SinksError;

/// A column is written so when at most one row in so many has a value.
const SPARSE: usize = 8;
/// A page ends when its values pass so many bytes.
const PAGE_BYTES: usize = 1 << 20;
/// Texts longer than this have no bounds.
const BOUND_BYTES_MAX: usize = 64;

/// Where each row of the batches stands in a file.
#[derive(Debug)]
pub(crate) struct Places {
    /// By batch and row; [`NOT_HERE`] when the row is in another file.
    by_batch: Vec<Vec<u32>>,
}

const NOT_HERE: u32 = u32::MAX;

impl Places {
    /// The places that the picks of a file give to the rows of batches of these lengths.
    pub(crate) fn new(lengths: impl Iterator<Item = usize>, picks: &[Pick]) -> Self {
        let mut by_batch: Vec<Vec<u32>> = lengths.map(|rows| vec![NOT_HERE; rows]).collect();
        for (place, (batch, row)) in picks.iter().enumerate() {
            let slot = by_batch.get_mut(*batch as usize).and_then(|rows| rows.get_mut(*row as usize));
            if let (Some(slot), Ok(place)) = (slot, u32::try_from(place)) {
                *slot = place;
            }
        }
        Self { by_batch }
    }
}

/// One value of a column: its row in the row group, and where it is.
#[derive(Debug, Clone, Copy)]
struct Value {
    at: u32,
    part: u32,
    row: u32,
}

/// A column chunk that is encoded.
#[derive(Debug)]
pub(crate) struct SparseChunk {
    pub(crate) bytes: Bytes,
    pub(crate) close: ColumnCloseResult,
}

/// Encodes one sparse column after the other.
pub(crate) struct SparseEncoder {
    compressor: Compressor<'static>,
    level: ZstdLevel,
    values: Vec<Value>,
    page: PageBuild,
    body: Vec<u8>,
}

/// Whether a column is of a type and of so few values that it is written sparsely in a row group of `rows` rows.
pub(crate) fn is_sparse(column: &Joined, rows: usize) -> bool {
    let kind =
        matches!(column.field.data_type(), DataType::Utf8 | DataType::Int64 | DataType::Float64 | DataType::Boolean);
    kind && column.values.saturating_mul(SPARSE) <= rows
        && ![Dataset::ORG_ID, Dataset::TIME].contains(&column.field.name().as_str())
}

impl SparseEncoder {
    /// An encoder of pages with this zstd level.
    pub(crate) fn new(zstd_level: i32) -> Result<Self, SinksError> {
        let compressor = Compressor::new(zstd_level).map_err(ParquetError::from)?;
        let level = ZstdLevel::try_new(zstd_level)?;
        Ok(Self { compressor, level, values: Vec::new(), page: PageBuild::default(), body: Vec::new() })
    }

    /// Encodes the values of `column` in the rows `from..to` of the file.
    pub(crate) fn encode(
        &mut self,
        column: &Joined,
        places: &Places,
        (from, to): (usize, usize),
        descriptor: ColumnDescPtr,
    ) -> Result<SparseChunk, SinksError> {
        self.find(column, places, (from, to));
        self.page.start(0);
        let mut chunk = Chunk::default();
        let parts = || column.parts.iter().map(|(_, array)| array);
        let bounds = match column.field.data_type() {
            DataType::Int64 => {
                let parts: Vec<&Int64Array> = parts().filter_map(|part| part.as_primitive_opt::<Int64Type>()).collect();
                self.ints(&mut chunk, &parts)?
            }
            DataType::Float64 => {
                let parts: Vec<&Float64Array> =
                    parts().filter_map(|part| part.as_primitive_opt::<Float64Type>()).collect();
                self.floats(&mut chunk, &parts)?
            }
            DataType::Boolean => {
                let parts: Vec<&BooleanArray> = parts().filter_map(|part| part.as_boolean_opt()).collect();
                self.booleans(&mut chunk, &parts)?
            }
            _ => {
                let parts: Vec<&StringArray> = parts().filter_map(|part| part.as_string_opt::<i32>()).collect();
                self.texts(&mut chunk, &parts)?
            }
        };
        self.end_page(&mut chunk, to - from)?;
        chunk.finish(descriptor, (to - from, self.values.len()), self.level, bounds)
    }

    /// Finds the values and puts them into the order of their rows.
    fn find(&mut self, column: &Joined, places: &Places, (from, to): (usize, usize)) {
        self.values.clear();
        for (part, (batch, array)) in column.parts.iter().enumerate() {
            let Some(rows) = places.by_batch.get(*batch as usize) else { continue };
            let mut add = |row: usize| {
                let place = rows.get(row).map_or(NOT_HERE, |place| *place) as usize;
                if (from..to).contains(&place) {
                    self.values.push(Value { at: (place - from) as u32, part: part as u32, row: row as u32 });
                }
            };
            match array.nulls().filter(|nulls| nulls.null_count() > 0) {
                Some(nulls) => nulls.valid_indices().for_each(add),
                None => (0..array.len()).for_each(&mut add),
            }
        }
        // Batches come about in the order of their rows, which this sort makes use of.
        self.values.sort_by_key(|value| value.at);
    }

    fn texts(&mut self, chunk: &mut Chunk, parts: &[&StringArray]) -> Result<Option<Bounds>, SinksError> {
        let mut range: Option<(&str, &str)> = None;
        for at in 0..self.values.len() {
            let Some((value, part)) = value_in(&self.values, parts, at) else { continue };
            let text = part.value(value.row as usize);
            self.page.value(value.at);
            self.page.values.extend_from_slice(&(text.len() as u32).to_le_bytes());
            self.page.values.extend_from_slice(text.as_bytes());
            range = match range {
                None => Some((text, text)),
                Some((min, max)) if text < min => Some((text, max)),
                Some((min, max)) if text > max => Some((min, text)),
                known => known,
            };
            self.end_full_page(chunk, value.at)?;
        }
        Ok(range
            .filter(|(min, max)| min.len().max(max.len()) <= BOUND_BYTES_MAX)
            .map(|(min, max)| Bounds::Texts(ByteArray::from(min), ByteArray::from(max))))
    }

    fn ints(&mut self, chunk: &mut Chunk, parts: &[&Int64Array]) -> Result<Option<Bounds>, SinksError> {
        let mut range: Option<(i64, i64)> = None;
        for at in 0..self.values.len() {
            let Some((value, part)) = value_in(&self.values, parts, at) else { continue };
            let number = part.value(value.row as usize);
            self.page.value(value.at);
            self.page.values.extend_from_slice(&number.to_le_bytes());
            range = Some(range.map_or((number, number), |(min, max)| (min.min(number), max.max(number))));
            self.end_full_page(chunk, value.at)?;
        }
        Ok(range.map(|(min, max)| Bounds::Ints(min, max)))
    }

    fn floats(&mut self, chunk: &mut Chunk, parts: &[&Float64Array]) -> Result<Option<Bounds>, SinksError> {
        let mut range: Option<(f64, f64)> = None;
        for at in 0..self.values.len() {
            let Some((value, part)) = value_in(&self.values, parts, at) else { continue };
            let number = part.value(value.row as usize);
            self.page.value(value.at);
            self.page.values.extend_from_slice(&number.to_le_bytes());
            if !number.is_nan() {
                range = Some(range.map_or((number, number), |(min, max)| (min.min(number), max.max(number))));
            }
            self.end_full_page(chunk, value.at)?;
        }
        // Of the two zeros the format wants the wider one as a bound.
        Ok(range
            .map(|(min, max)| Bounds::Floats(if min == 0.0 { -0.0 } else { min }, if max == 0.0 { 0.0 } else { max })))
    }

    fn booleans(&mut self, chunk: &mut Chunk, parts: &[&BooleanArray]) -> Result<Option<Bounds>, SinksError> {
        let mut range: Option<(bool, bool)> = None;
        for at in 0..self.values.len() {
            let Some((value, part)) = value_in(&self.values, parts, at) else { continue };
            let flag = part.value(value.row as usize);
            self.page.value(value.at);
            self.page.flag(flag);
            range = Some(range.map_or((flag, flag), |(min, max)| (min & flag, max | flag)));
            self.end_full_page(chunk, value.at)?;
        }
        Ok(range.map(|(min, max)| Bounds::Booleans(min, max)))
    }

    #[inline]
    fn end_full_page(&mut self, chunk: &mut Chunk, at: u32) -> Result<(), SinksError> {
        if self.page.values.len() < PAGE_BYTES {
            return Ok(());
        }
        self.end_page(chunk, at as usize + 1)
    }

    /// Ends the page before row `end`, unless it has no rows.
    fn end_page(&mut self, chunk: &mut Chunk, end: usize) -> Result<(), SinksError> {
        let end = u32::try_from(end).map_err(|_| SinksError::Invalid("a row group has too many rows".into()))?;
        let rows = end - self.page.first;
        if rows == 0 {
            return Ok(());
        }
        self.page.end_levels(end);
        self.body.clear();
        self.body.extend_from_slice(&(self.page.levels.len() as u32).to_le_bytes());
        self.body.extend_from_slice(&self.page.levels);
        self.body.extend_from_slice(&self.page.values);
        let packed = self.compressor.compress(&self.body).map_err(ParquetError::from)?;
        chunk.push(packed, self.body.len(), (self.page.first, rows))?;
        self.page.start(end);
        Ok(())
    }
}

/// A value and the array it is in.
#[inline]
fn value_in<'a, A>(values: &[Value], parts: &[&'a A], at: usize) -> Option<(Value, &'a A)> {
    let value = *values.get(at)?;
    Some((value, parts.get(value.part as usize)?))
}

/// A page in the making.
#[derive(Debug, Default)]
struct PageBuild {
    /// Its first row.
    first: u32,
    /// The row after those whose levels are there or in `run`.
    next: u32,
    /// Rows with a value, side by side, whose levels are not there yet.
    run: u32,
    levels: Vec<u8>,
    values: Vec<u8>,
    /// Bits in use of the last byte of values.
    bits: u32,
}

impl PageBuild {
    fn start(&mut self, first: u32) {
        (self.first, self.next, self.run, self.bits) = (first, first, 0, 0);
        self.levels.clear();
        self.values.clear();
    }

    /// The row `at` has a value.
    #[inline]
    fn value(&mut self, at: u32) {
        if at != self.next {
            self.end_run();
            put_run(&mut self.levels, at - self.next, 0);
        }
        self.run += 1;
        self.next = at + 1;
    }

    fn flag(&mut self, flag: bool) {
        if self.bits == 0 {
            self.values.push(0);
        }
        if let Some(last) = self.values.last_mut() {
            *last |= u8::from(flag) << self.bits;
        }
        self.bits = (self.bits + 1) % 8;
    }

    fn end_run(&mut self) {
        put_run(&mut self.levels, std::mem::take(&mut self.run), 1);
    }

    fn end_levels(&mut self, end: u32) {
        self.end_run();
        put_run(&mut self.levels, end - self.next, 0);
        self.next = end;
    }
}

/// A run of equal definition levels: twice its length as a varint, then the level in a byte.
#[inline]
fn put_run(levels: &mut Vec<u8>, rows: u32, level: u8) {
    if rows == 0 {
        return;
    }
    let mut head = u64::from(rows) << 1;
    while head >= 0x80 {
        levels.push(head as u8 | 0x80);
        head >>= 7;
    }
    levels.extend_from_slice(&[head as u8, level]);
}

/// The least and the greatest value of a chunk.
#[derive(Debug)]
enum Bounds {
    Texts(ByteArray, ByteArray),
    Ints(i64, i64),
    Floats(f64, f64),
    Booleans(bool, bool),
}

/// The pages of a chunk that are done.
struct Chunk {
    bytes: TrackedWrite<Vec<u8>>,
    locations: Vec<PageLocation>,
    unpacked: usize,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { bytes: TrackedWrite::new(Vec::new()), locations: Vec::new(), unpacked: 0 }
    }
}

impl Chunk {
    fn push(&mut self, packed: Vec<u8>, unpacked: usize, (first, rows): (u32, u32)) -> Result<(), SinksError> {
        let page = Page::DataPage {
            buf: packed.into(),
            num_values: rows,
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let written = SerializedPageWriter::new(&mut self.bytes).write_page(CompressedPage::new(page, unpacked))?;
        let too_large = |_| SinksError::Invalid("a page has too many bytes".into());
        self.locations.push(PageLocation {
            offset: i64::try_from(written.offset).map_err(too_large)?,
            compressed_page_size: i32::try_from(written.compressed_size).map_err(too_large)?,
            first_row_index: i64::from(first),
        });
        self.unpacked += written.uncompressed_size;
        Ok(())
    }

    fn finish(
        self,
        descriptor: ColumnDescPtr,
        (rows, values): (usize, usize),
        level: ZstdLevel,
        bounds: Option<Bounds>,
    ) -> Result<SparseChunk, SinksError> {
        let pages = PageEncodingStats {
            page_type: PageType::DATA_PAGE,
            encoding: Encoding::PLAIN,
            count: self.locations.len() as i32,
        };
        let nulls = Some((rows - values) as u64);
        let signed = descriptor.sort_order().is_signed();
        let statistics = statistics(descriptor.physical_type(), bounds, nulls, signed);
        let bytes = Bytes::from(self.bytes.into_inner()?);
        let mut metadata = ColumnChunkMetaData::builder(descriptor)
            .set_compression(Compression::ZSTD(level))
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_page_encoding_stats(vec![pages])
            .set_total_compressed_size(bytes.len() as i64)
            .set_total_uncompressed_size(self.unpacked as i64)
            .set_num_values(rows as i64)
            .set_data_page_offset(0);
        if let Some(statistics) = statistics {
            metadata = metadata.set_statistics(statistics);
        }
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: rows as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(OffsetIndexMetaData {
                page_locations: self.locations,
                unencoded_byte_array_data_bytes: None,
            }),
        };
        Ok(SparseChunk { bytes, close })
    }
}

/// Bounds and the number of nulls as they stand in the footer.
fn statistics(
    kind: parquet::basic::Type,
    bounds: Option<Bounds>,
    nulls: Option<u64>,
    signed: bool,
) -> Option<Statistics> {
    use parquet::basic::Type;
    Some(match (kind, bounds) {
        (_, Some(Bounds::Texts(min, max))) => {
            let both = ValueStatistics::new(Some(min), Some(max), None, nulls, false);
            Statistics::ByteArray(both.with_backwards_compatible_min_max(signed))
        }
        (_, Some(Bounds::Ints(min, max))) => {
            let both = ValueStatistics::new(Some(min), Some(max), None, nulls, false);
            Statistics::Int64(both.with_backwards_compatible_min_max(signed))
        }
        (_, Some(Bounds::Floats(min, max))) => {
            let both = ValueStatistics::new(Some(min), Some(max), None, nulls, false);
            Statistics::Double(both.with_backwards_compatible_min_max(signed))
        }
        (_, Some(Bounds::Booleans(min, max))) => {
            let both = ValueStatistics::new(Some(min), Some(max), None, nulls, false);
            Statistics::Boolean(both.with_backwards_compatible_min_max(signed))
        }
        (Type::BYTE_ARRAY, None) => Statistics::ByteArray(ValueStatistics::new(None, None, None, nulls, false)),
        (Type::INT64, None) => Statistics::Int64(ValueStatistics::new(None, None, None, nulls, false)),
        (Type::DOUBLE, None) => Statistics::Double(ValueStatistics::new(None, None, None, nulls, false)),
        (Type::BOOLEAN, None) => Statistics::Boolean(ValueStatistics::new(None, None, None, nulls, false)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch};
    use arrow::datatypes::{Field, Schema};
    use parquet::arrow::ArrowWriter;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    /// The rows of `column` as a file of one sparse chunk has them, in row groups of `group` rows, and that file's metadata.
    fn through_a_file(column: &Joined, places: &Places, rows: usize, group: usize) -> (Vec<ArrayRef>, Vec<Statistics>) {
        let schema = Arc::new(Schema::new(vec![column.field.clone()]));
        let writer = ArrowWriter::try_new(Vec::new(), schema, None).expect("a writer");
        let (mut writer, _) = writer.into_serialized_writer().expect("a file");
        let mut encoder = SparseEncoder::new(1).expect("an encoder");
        for from in (0..rows).step_by(group) {
            let descriptor = writer.schema_descr().column(0);
            let to = rows.min(from + group);
            let chunk = encoder.encode(column, places, (from, to), descriptor).expect("a chunk");
            let mut row_group = writer.next_row_group().expect("a row group");
            row_group.append_column(&chunk.bytes, chunk.close).expect("it fits");
            row_group.close().expect("closed");
        }
        let file = Bytes::from(writer.into_inner().expect("a file"));
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("readable");
        let groups = reader.metadata().row_groups().iter();
        let statistics = groups.filter_map(|group| group.column(0).statistics().cloned()).collect();
        let batches = reader.with_batch_size(77).build().expect("a reader");
        (batches.map(|batch| batch.expect("rows").column(0).clone()).collect(), statistics)
    }

    fn joined(arrays: Vec<(u32, ArrayRef)>) -> Joined {
        let data_type = arrays[0].1.data_type().clone();
        let values = arrays.iter().map(|(_, array)| array.len() - array.null_count()).sum();
        Joined { field: Arc::new(Field::new("f", data_type, true)), parts: arrays, values }
    }

    /// Values in every seventh row of the second of three batches, and in all of a short fourth; rows are taken backwards.
    fn check(make: impl Fn(&[Option<usize>]) -> ArrayRef) {
        let second: Vec<Option<usize>> = (0..500).map(|row| (row % 7 == 3).then_some(row)).collect();
        let fourth = [Some(1_000), Some(1_001)];
        let lengths = [40, 500, 10, 2];
        let mut picks: Vec<Pick> =
            (0..4u32).flat_map(|batch| (0..lengths[batch as usize]).map(move |row| (batch, row))).collect();
        picks.reverse();
        let column = joined(vec![(1, make(&second)), (3, make(&fourth))]);
        assert!(is_sparse(&column, 40 * SPARSE + 500 * SPARSE));
        let mut wanted: Vec<Option<usize>> = vec![None; 40];
        wanted.extend(&second);
        wanted.extend([None; 10]);
        wanted.extend(&fourth);
        wanted.reverse();
        let whole = make(&wanted);
        let places = Places::new(lengths.iter().map(|rows| *rows as usize), &picks);
        for group in [552, 300, 64, 1] {
            let (read, statistics) = through_a_file(&column, &places, 552, group);
            let read: Vec<&dyn Array> = read.iter().map(AsRef::as_ref).collect();
            let read = arrow::compute::concat(&read).expect("of one type");
            assert_eq!(&read, &whole, "row groups of {group}");
            let nulls: u64 = statistics.iter().filter_map(Statistics::null_count_opt).sum();
            assert_eq!(nulls as usize, whole.null_count(), "row groups of {group}");
        }
    }

    #[test]
    fn values_come_back_in_their_rows() {
        let number = |value: &Option<usize>| value.map(|value| value as i64 - 900);
        check(|values| Arc::new(values.iter().map(number).collect::<Int64Array>()));
        check(|values| {
            Arc::new(values.iter().map(|value| number(value).map(|value| value as f64 / 3.0)).collect::<Float64Array>())
        });
        check(|values| {
            Arc::new(values.iter().map(|value| value.map(|value| value % 3 == 0)).collect::<BooleanArray>())
        });
        check(|values| {
            Arc::new(values.iter().map(|value| value.map(|value| "é".repeat(value % 90))).collect::<StringArray>())
        });
        let long = |value: usize| "x".repeat(PAGE_BYTES / 9 + value);
        check(|values| Arc::new(values.iter().map(|value| value.map(long)).collect::<StringArray>()));
    }

    #[test]
    fn bounds_are_those_of_the_values() {
        let places = Places::new([4].into_iter(), &[(0, 3), (0, 1), (0, 2), (0, 0)]);
        let text = |texts: [Option<&str>; 4]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let floats = |floats: [Option<f64>; 4]| -> ArrayRef { Arc::new(Float64Array::from(floats.to_vec())) };
        let long = "y".repeat(BOUND_BYTES_MAX + 1);
        for (array, min, max) in [
            (text([Some("b"), None, Some("a"), Some("ab")]), Some(&b"a"[..]), Some(&b"b"[..])),
            (text([Some("b"), None, Some(&long), None]), None, None),
            (
                floats([Some(f64::NAN), None, Some(0.0), None]),
                Some(&(-0.0f64).to_le_bytes()),
                Some(&0.0f64.to_le_bytes()),
            ),
            (floats([Some(f64::NAN), None, None, None]), None, None),
            (
                Arc::new(Int64Array::from(vec![None, Some(-5), Some(7), None])),
                Some(&(-5i64).to_le_bytes()),
                Some(&7i64.to_le_bytes()),
            ),
            (Arc::new(BooleanArray::from(vec![None, Some(true), None, None])), Some(&[1]), Some(&[1])),
        ] {
            let (_, statistics) = through_a_file(&joined(vec![(0, array.clone())]), &places, 4, 4);
            assert_eq!((statistics[0].min_bytes_opt(), statistics[0].max_bytes_opt()), (min, max), "{array:?}");
        }
    }

    #[test]
    fn rows_of_another_file_are_left_out() {
        let array: ArrayRef = Arc::new(Int64Array::from_iter_values(0..4));
        let places = Places::new([4].into_iter(), &[(0, 2), (0, 0)]);
        let (read, _) = through_a_file(&joined(vec![(0, array)]), &places, 2, 2);
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].as_primitive::<Int64Type>().values(), &[2, 0]);
        let schema = Schema::new(vec![Field::new("f", DataType::Int64, true)]);
        RecordBatch::try_new(Arc::new(schema), read).expect("of the schema");
    }
}
