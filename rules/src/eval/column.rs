//! Reads the values of a column as text, row by row.

use std::fmt::Write;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListArray,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, TimeUnit};

use crate::bitmap::Bitmap;
use crate::datetime::write_time;

/// A column whose values can be read as text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column<'a> {
    Text(&'a StringArray),
    Int(&'a Int64Array),
    Int32(&'a Int32Array),
    Float(&'a Float64Array),
    Bool(&'a BooleanArray),
    Decimal(&'a Decimal128Array),
    Time(&'a TimestampMicrosecondArray),
    List(&'a ListArray),
    /// Values of fields that have no column, by row.
    Rest(&'a [(u32, String)]),
}

impl<'a> Column<'a> {
    /// The column; `None` for types that events never have.
    pub fn new(array: &'a ArrayRef) -> Option<Self> {
        use arrow::datatypes::{Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
        Some(match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string_opt()?),
            DataType::Int64 => Self::Int(array.as_primitive_opt::<Int64Type>()?),
            DataType::Int32 => Self::Int32(array.as_primitive_opt::<Int32Type>()?),
            DataType::Float64 => Self::Float(array.as_primitive_opt::<Float64Type>()?),
            DataType::Boolean => Self::Bool(array.as_boolean_opt()?),
            DataType::Decimal128(..) => Self::Decimal(array.as_primitive_opt::<Decimal128Type>()?),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Self::Time(array.as_primitive_opt::<TimestampMicrosecondType>()?)
            }
            DataType::List(_) => Self::List(array.as_list_opt::<i32>()?),
            _ => return None,
        })
    }

    /// Whether the row has a value, without looking into lists.
    fn is_valid(self, row: usize) -> bool {
        match self {
            Self::Text(array) => array.is_valid(row),
            Self::Int(array) => array.is_valid(row),
            Self::Int32(array) => array.is_valid(row),
            Self::Float(array) => array.is_valid(row),
            Self::Bool(array) => array.is_valid(row),
            Self::Decimal(array) => array.is_valid(row),
            Self::Time(array) => array.is_valid(row),
            Self::List(array) => array.is_valid(row),
            Self::Rest(_) => true,
        }
    }

    /// The rows that have a value.
    pub fn validity(self, rows: usize) -> Bitmap {
        let nulls = match self {
            Self::Text(array) => array.nulls(),
            Self::Int(array) => array.nulls(),
            Self::Int32(array) => array.nulls(),
            Self::Float(array) => array.nulls(),
            Self::Bool(array) => array.nulls(),
            Self::Decimal(array) => array.nulls(),
            Self::Time(array) => array.nulls(),
            Self::List(lists) => {
                let (items, offsets) = (lists.values(), lists.value_offsets());
                let mut valid = Bitmap::empty(rows);
                for (row, bounds) in offsets.windows(2).enumerate().filter(|(row, _)| lists.is_valid(*row)) {
                    if let [start, end] = bounds
                        && (*start..*end).any(|item| items.is_valid(item as usize))
                    {
                        valid.insert(row);
                    }
                }
                return valid;
            }
            Self::Rest(values) => {
                let mut valid = Bitmap::empty(rows);
                values.iter().for_each(|(row, _)| valid.insert(*row as usize));
                return valid;
            }
        };
        match nulls {
            None => Bitmap::full(rows),
            Some(nulls) => Bitmap::from_words(nulls.inner().bit_chunks().iter_padded(), rows),
        }
    }

    /// Calls `visit` with each value of the row; a list has several, null has none. Says whether there was any.
    pub fn read(self, row: usize, buffer: &mut String, visit: &mut impl FnMut(&str)) -> bool {
        if !self.is_valid(row) {
            return false;
        }
        if let Self::Text(array) = self {
            visit(array.value(row));
            return true;
        }
        match self {
            Self::List(lists) => {
                let items = lists.value(row);
                let Some(column) = Column::new(&items) else { return false };
                let mut any = false;
                for at in 0..items.len() {
                    any |= column.read_scalar(at, buffer, visit);
                }
                any
            }
            Self::Rest(values) => {
                let start = values.partition_point(|(own, _)| (*own as usize) < row);
                let own = values.get(start..).into_iter().flatten().take_while(|(own, _)| *own as usize == row);
                let mut any = false;
                for (_, value) in own {
                    visit(value);
                    any = true;
                }
                any
            }
            scalar => scalar.read_scalar(row, buffer, visit),
        }
    }

    fn read_scalar(self, row: usize, buffer: &mut String, visit: &mut impl FnMut(&str)) -> bool {
        if !self.is_valid(row) {
            return false;
        }
        buffer.clear();
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Text(array) => {
                visit(array.value(row));
                return true;
            }
            Self::Int(array) => {
                push_int(array.value(row), buffer);
                Ok(())
            }
            Self::Int32(array) => write!(buffer, "{}", array.value(row)),
            Self::Float(array) => write!(buffer, "{}", array.value(row)),
            Self::Bool(array) => write!(buffer, "{}", array.value(row)),
            Self::Decimal(array) => {
                write_decimal(array.value(row), array.scale(), buffer);
                Ok(())
            }
            Self::Time(array) => {
                write_time(array.value(row), buffer);
                Ok(())
            }
            Self::List(_) | Self::Rest(_) => return false,
        };
        visit(buffer);
        true
    }
}

/// A whole number in decimal notation.
pub(crate) fn push_int(value: i64, out: &mut String) {
    if value < 0 {
        out.push('-');
    }
    let (mut rest, mut digits, mut at) = (value.unsigned_abs(), [0u8; 20], 20);
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    digits.iter().skip(at).for_each(|digit| out.push(char::from(*digit)));
}

/// An exact decimal without trailing zeros: `12.5`, `-0.001`, `3`.
fn write_decimal(value: i128, scale: i8, out: &mut String) {
    let digits = value.unsigned_abs().to_string();
    let scale = usize::try_from(scale).unwrap_or(0);
    if value < 0 {
        out.push('-');
    }
    let padded = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    out.push_str(whole);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_print_as_everywhere() {
        for value in [0, 7, -1, 10, 99, 1_000_000, i64::MAX, i64::MIN] {
            let mut out = String::new();
            push_int(value, &mut out);
            assert_eq!(out, value.to_string());
        }
    }

    #[test]
    fn decimals_print_without_trailing_zeros() {
        for (value, scale, text) in [
            (12_500, 3, "12.5"),
            (-1, 3, "-0.001"),
            (3_000, 3, "3"),
            (0, 15, "0"),
            (42, 0, "42"),
            (100_000_000_000_000_001, 15, "100.000000000000001"),
        ] {
            let mut out = String::new();
            write_decimal(value, scale, &mut out);
            assert_eq!(out, text);
        }
    }
}
