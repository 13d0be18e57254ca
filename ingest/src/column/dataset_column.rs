//! Builders of core columns: their type is fixed by the dataset, and they hold one value a row.

use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int32Array, Int64Array, NullBufferBuilder, TimestampMicrosecondArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

use super::atoms::Texts;

/// The builder of one core column. Rows are given ascending; rows that are skipped are null.
#[derive(Debug)]
pub struct CoreColumn {
    nulls: NullBufferBuilder,
    values: Values,
    overflow: bool,
}

#[derive(Debug)]
enum Values {
    Texts(Texts),
    Ints(Vec<i32>),
    /// 64-bit integers, and times in microseconds.
    Longs(Vec<i64>),
    /// Unscaled decimals.
    Decimals(Vec<i128>),
}

impl CoreColumn {
    /// A builder for `data_type`: text, `Int32`, `Int64`, times in microseconds or 128-bit decimals.
    pub fn new(data_type: &DataType, rows: usize) -> Self {
        let values = match data_type {
            DataType::Int32 => Values::Ints(Vec::new()),
            DataType::Int64 | DataType::Timestamp(..) => Values::Longs(Vec::new()),
            DataType::Decimal128(..) => Values::Decimals(Vec::new()),
            _ => Values::Texts(Texts::with_capacity(0)),
        };
        Self { nulls: NullBufferBuilder::new(rows), values, overflow: false }
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Texts(values) => values.offsets.len() - 1,
            Values::Ints(values) => values.len(),
            Values::Longs(values) => values.len(),
            Values::Decimals(values) => values.len(),
        }
    }

    /// Whether no row came yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn pad_to(&mut self, row: usize) {
        let missing = row.saturating_sub(self.len());
        if missing == 0 {
            return;
        }
        self.nulls.append_n_nulls(missing);
        match &mut self.values {
            Values::Texts(values) => values.pad(missing),
            Values::Ints(values) => values.resize(row, 0),
            Values::Longs(values) => values.resize(row, 0),
            Values::Decimals(values) => values.resize(row, 0),
        }
    }

    /// Sets the text of `row`; ignored by columns of another type.
    #[inline]
    pub fn append_text(&mut self, row: usize, text: &str) {
        self.append_bytes(row, text.as_bytes());
    }

    /// The same for text as bytes. If they are not UTF-8, [`finish`](Self::finish) fails.
    #[inline]
    pub(crate) fn append_bytes(&mut self, row: usize, text: &[u8]) {
        self.pad_to(row);
        if let Values::Texts(values) = &mut self.values {
            self.overflow |= !values.push(text);
            self.nulls.append_non_null();
        }
    }

    /// Sets the number of `row`: microseconds for a time, unscaled for a decimal, as it is for an integer. A number that the
    /// type cannot hold leaves the row null. Ignored by columns of text.
    #[inline]
    pub fn append_number(&mut self, row: usize, number: i128) {
        self.pad_to(row);
        match &mut self.values {
            Values::Texts(_) => return,
            Values::Ints(values) => match i32::try_from(number) {
                Ok(number) => values.push(number),
                Err(_) => return,
            },
            Values::Longs(values) => match i64::try_from(number) {
                Ok(number) => values.push(number),
                Err(_) => return,
            },
            Values::Decimals(values) => values.push(number),
        }
        self.nulls.append_non_null();
    }

    /// The text of `row` as bytes, when it is the last one and holds text.
    #[inline]
    pub fn last_text(&self, row: usize) -> Option<&[u8]> {
        let Values::Texts(values) = &self.values else { return None };
        let [.., start, end] = values.offsets.as_slice() else { return None };
        if values.offsets.len() != row + 2 || !self.nulls.is_valid(row) {
            return None;
        }
        values.bytes.get(usize::try_from(*start).ok()?..usize::try_from(*end).ok()?)
    }

    /// The integer of `row`, when it is the last one and an `Int32`.
    pub fn last_int(&self, row: usize) -> Option<i32> {
        let Values::Ints(values) = &self.values else { return None };
        values.get(row).copied().filter(|_| values.len() == row + 1 && self.nulls.is_valid(row))
    }

    /// The column as an array of `rows` rows of `data_type`, and the builder empty again; `None` when it holds no value.
    ///
    /// # Errors
    /// [`ArrowError`] when a column of text passed 2 GiB, or a decimal does not fit its precision.
    pub fn finish(&mut self, data_type: &DataType, rows: usize) -> Result<Option<ArrayRef>, ArrowError> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut done = std::mem::replace(self, Self::new(data_type, rows));
        if done.overflow {
            return Err(ArrowError::OffsetOverflowError(i32::MAX as usize));
        }
        done.pad_to(rows);
        let nulls = done.nulls.finish();
        if nulls.as_ref().is_some_and(|nulls| nulls.null_count() == rows) {
            return Ok(None);
        }
        Ok(Some(match (done.values, data_type) {
            (Values::Texts(values), _) => Arc::new(values.into_array(nulls)?),
            (Values::Ints(values), _) => Arc::new(Int32Array::try_new(ScalarBuffer::from(values), nulls)?),
            (Values::Longs(values), DataType::Timestamp(_, zone)) => {
                let times = TimestampMicrosecondArray::try_new(ScalarBuffer::from(values), nulls)?;
                Arc::new(times.with_timezone_opt(zone.clone()))
            }
            (Values::Longs(values), _) => Arc::new(Int64Array::try_new(ScalarBuffer::from(values), nulls)?),
            (Values::Decimals(values), DataType::Decimal128(precision, scale)) => Arc::new(
                Decimal128Array::try_new(ScalarBuffer::from(values), nulls)?
                    .with_precision_and_scale(*precision, *scale)?,
            ),
            (Values::Decimals(values), _) => Arc::new(Decimal128Array::try_new(ScalarBuffer::from(values), nulls)?),
        }))
    }
}
