//! A vector of scalars of one type that widens when a value of another type comes.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Float64Array, Int64Array, NullBufferBuilder, StringArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::error::ArrowError;

/// One scalar of an event. Text points into the parsed body.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Atom<'a> {
    /// Absent.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number that fits 64 signed bits.
    Int(i64),
    /// A whole number above `i64::MAX`: kept as text.
    Big(u64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// Text.
    Text(&'a str),
}

impl Atom<'_> {
    /// Appends the value as text: numbers in their shortest exact form.
    pub fn write_text(self, into: &mut String) {
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Null => Ok(()),
            Self::Bool(value) => write!(into, "{value}"),
            Self::Int(value) => write!(into, "{value}"),
            Self::Big(value) => write!(into, "{value}"),
            // `Debug` is the shortest text that reads back the same, with an exponent when that is shorter.
            Self::Float(value) => write!(into, "{value:?}"),
            Self::Text(value) => into.write_str(value),
        };
    }
}

/// Scalars of one type, with nulls.
#[derive(Debug)]
pub struct Atoms {
    nulls: NullBufferBuilder,
    values: Values,
    hint: usize,
    overflow: bool,
}

#[derive(Debug)]
enum Values {
    /// Only nulls so far, this many.
    Nulls(usize),
    Bools(BooleanBufferBuilder),
    Ints(Vec<i64>),
    Floats(Floats),
    Texts(Texts),
}

/// Floats, and which of them came as whole numbers: those widen to text as what they were.
#[derive(Debug, Default)]
struct Floats {
    values: Vec<f64>,
    ints: Vec<usize>,
}

impl Floats {
    fn push_int(&mut self, value: i64) {
        self.ints.push(self.values.len());
        self.values.push(value as f64);
    }
}

#[derive(Debug, Default)]
pub(super) struct Texts {
    pub(super) offsets: Vec<i32>,
    pub(super) bytes: Vec<u8>,
}

impl Texts {
    pub(super) fn with_capacity(rows: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, bytes: Vec::new() }
    }

    /// Appends a value; false, and an empty one instead, when the column would pass 2 GiB.
    #[inline]
    pub(super) fn push(&mut self, text: &[u8]) -> bool {
        let fits = i32::try_from(self.bytes.len() + text.len()).ok();
        if fits.is_some() {
            self.bytes.extend_from_slice(text);
        }
        self.close(fits);
        fits.is_some()
    }

    #[inline]
    fn close(&mut self, end: Option<i32>) {
        let end = end.unwrap_or_else(|| self.offsets.last().copied().unwrap_or(0));
        self.offsets.push(end);
    }

    pub(super) fn pad(&mut self, count: usize) {
        let last = self.offsets.last().copied().unwrap_or(0);
        self.offsets.resize(self.offsets.len() + count, last);
    }

    pub(super) fn into_array(mut self, nulls: Option<NullBuffer>) -> Result<StringArray, ArrowError> {
        give_back(&mut self.offsets);
        give_back(&mut self.bytes);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        StringArray::try_new(offsets, Buffer::from_vec(self.bytes), nulls)
    }
}

/// Frees room that a vector has far beyond its length: an array keeps it for as long as the batch lives.
pub(super) fn give_back<T>(values: &mut Vec<T>) {
    if values.capacity() > 2 * values.len() + 64 {
        values.shrink_to_fit();
    }
}

/// Whole numbers up to here are exact as floats.
const EXACT_FLOAT_MAX: u64 = 1 << 53;

fn exact(value: i64) -> bool {
    value.unsigned_abs() <= EXACT_FLOAT_MAX
}

impl Atoms {
    /// Room for about `rows` values.
    pub fn with_capacity(rows: usize) -> Self {
        Self { nulls: NullBufferBuilder::new(rows), values: Values::Nulls(0), hint: rows, overflow: false }
    }

    /// Values and nulls so far.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Nulls(count) => *count,
            Values::Bools(values) => values.len(),
            Values::Ints(values) => values.len(),
            Values::Floats(floats) => floats.values.len(),
            Values::Texts(values) => values.offsets.len() - 1,
        }
    }

    /// Whether there is neither value nor null.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the value at `at` is not null.
    pub fn is_valid(&self, at: usize) -> bool {
        self.nulls.is_valid(at)
    }

    /// Appends nulls until there are `len` values.
    pub fn pad_to(&mut self, len: usize) {
        let missing = len.saturating_sub(self.len());
        if missing == 0 {
            return;
        }
        self.nulls.append_n_nulls(missing);
        match &mut self.values {
            Values::Nulls(count) => *count += missing,
            Values::Bools(values) => values.append_n(missing, false),
            Values::Ints(values) => values.resize(len, 0),
            Values::Floats(floats) => floats.values.resize(len, 0.0),
            Values::Texts(values) => values.pad(missing),
        }
    }

    /// Appends a text to values that are texts already; false, and nothing done, when they are not.
    #[inline]
    pub(super) fn push_text(&mut self, row: usize, text: &str) -> bool {
        let Values::Texts(values) = &mut self.values else { return false };
        if values.offsets.len() != row + 1 {
            return false;
        }
        self.overflow |= !values.push(text.as_bytes());
        self.nulls.append_non_null();
        true
    }

    /// Appends one value, widening the type of all when needed.
    #[inline]
    pub fn push(&mut self, atom: Atom<'_>) {
        match (&mut self.values, atom) {
            (Values::Texts(values), Atom::Text(text)) => self.overflow |= !values.push(text.as_bytes()),
            (Values::Ints(values), Atom::Int(value)) => values.push(value),
            (Values::Floats(floats), Atom::Float(value)) => floats.values.push(value),
            (Values::Bools(values), Atom::Bool(value)) => values.append(value),
            (Values::Floats(floats), Atom::Int(value)) if exact(value) => floats.push_int(value),
            _ => return self.push_other(atom),
        }
        self.nulls.append_non_null();
    }

    /// A null, the first value, or a value of another type than the column's.
    #[cold]
    fn push_other(&mut self, atom: Atom<'_>) {
        if atom == Atom::Null {
            return self.pad_to(self.len() + 1);
        }
        self.make_room_for(atom);
        match (&mut self.values, atom) {
            (Values::Bools(values), Atom::Bool(value)) => values.append(value),
            (Values::Ints(values), Atom::Int(value)) => values.push(value),
            (Values::Floats(floats), Atom::Float(value)) => floats.values.push(value),
            (Values::Texts(values), atom) => {
                let mut text = String::new();
                atom.write_text(&mut text);
                self.overflow |= !values.push(text.as_bytes());
            }
            // `make_room_for` left a type that takes the atom.
            _ => return self.pad_to(self.len() + 1),
        }
        self.nulls.append_non_null();
    }

    fn make_room_for(&mut self, atom: Atom<'_>) {
        if let Values::Nulls(count) = self.values {
            self.values = self.first_values(atom, count);
            return;
        }
        match (&self.values, atom) {
            (Values::Texts(_), _) => {}
            (Values::Bools(_), Atom::Bool(_))
            | (Values::Ints(_), Atom::Int(_))
            | (Values::Floats(_), Atom::Float(_)) => {}
            (Values::Ints(ints), Atom::Float(_)) if ints.iter().copied().all(exact) => {
                let values = ints.iter().map(|value| *value as f64).collect();
                let ints = (0..ints.len()).filter(|at| self.nulls.is_valid(*at)).collect();
                self.values = Values::Floats(Floats { values, ints });
            }
            _ => self.widen_to_text(),
        }
    }

    fn first_values(&self, atom: Atom<'_>, nulls: usize) -> Values {
        let room = self.hint.max(nulls + 1);
        match atom {
            Atom::Bool(_) => {
                let mut values = BooleanBufferBuilder::new(room);
                values.append_n(nulls, false);
                Values::Bools(values)
            }
            Atom::Int(_) => {
                let mut values = Vec::with_capacity(room);
                values.resize(nulls, 0);
                Values::Ints(values)
            }
            Atom::Float(_) => {
                let mut values = Vec::with_capacity(room);
                values.resize(nulls, 0.0);
                Values::Floats(Floats { values, ints: Vec::new() })
            }
            Atom::Text(_) | Atom::Big(_) | Atom::Null => {
                let mut values = Texts::with_capacity(room);
                values.pad(nulls);
                Values::Texts(values)
            }
        }
    }

    fn widen_to_text(&mut self) {
        let len = self.len();
        let mut texts = Texts::with_capacity(self.hint.max(len + 1));
        let mut text = String::new();
        for at in 0..len {
            text.clear();
            if self.nulls.is_valid(at) {
                self.scalar_at(at).write_text(&mut text);
            }
            self.overflow |= !texts.push(text.as_bytes());
        }
        self.values = Values::Texts(texts);
    }

    /// The scalar at `at`, for types other than text.
    fn scalar_at(&self, at: usize) -> Atom<'static> {
        match &self.values {
            Values::Bools(values) => Atom::Bool(values.get_bit(at)),
            Values::Ints(values) => values.get(at).map_or(Atom::Null, |value| Atom::Int(*value)),
            Values::Floats(floats) => match floats.values.get(at) {
                Some(value) if floats.ints.binary_search(&at).is_ok() => Atom::Int(*value as i64),
                Some(value) => Atom::Float(*value),
                None => Atom::Null,
            },
            Values::Nulls(_) | Values::Texts(_) => Atom::Null,
        }
    }

    /// Drops the nulls, so that value `i` is the `i`-th that is not null.
    pub(super) fn remove_nulls(&mut self) {
        let len = self.len();
        let keep: Vec<usize> = (0..len).filter(|at| self.nulls.is_valid(*at)).collect();
        match &mut self.values {
            Values::Nulls(count) => *count = 0,
            Values::Bools(values) => {
                let mut kept = BooleanBufferBuilder::new(keep.len());
                keep.iter().for_each(|at| kept.append(values.get_bit(*at)));
                *values = kept;
            }
            Values::Ints(values) => *values = keep.iter().filter_map(|at| values.get(*at).copied()).collect(),
            Values::Floats(floats) => {
                let ints = keep.iter().enumerate().filter(|(_, at)| floats.ints.binary_search(at).is_ok());
                floats.ints = ints.map(|(kept, _)| kept).collect();
                floats.values = keep.iter().filter_map(|at| floats.values.get(*at).copied()).collect();
            }
            // A null has no bytes, so the text itself stays as it is.
            Values::Texts(values) => {
                let mut offsets = Vec::with_capacity(keep.len() + 1);
                offsets.push(0);
                offsets.extend(keep.iter().filter_map(|at| values.offsets.get(at + 1).copied()));
                values.offsets = offsets;
            }
        }
        self.nulls = NullBufferBuilder::new(keep.len());
        self.nulls.append_n_non_nulls(keep.len());
    }

    /// The values as an array; text when every value is null.
    ///
    /// # Errors
    /// [`ArrowError`] when a column of text passed 2 GiB.
    pub fn into_array(mut self) -> Result<ArrayRef, ArrowError> {
        if self.overflow {
            return Err(ArrowError::OffsetOverflowError(i32::MAX as usize));
        }
        let nulls = self.nulls.finish();
        Ok(match self.values {
            Values::Nulls(count) => {
                let mut texts = Texts::with_capacity(count);
                texts.pad(count);
                Arc::new(texts.into_array(nulls)?)
            }
            Values::Bools(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Ints(mut values) => {
                give_back(&mut values);
                Arc::new(Int64Array::try_new(ScalarBuffer::from(values), nulls)?)
            }
            Values::Floats(mut floats) => {
                give_back(&mut floats.values);
                Arc::new(Float64Array::try_new(ScalarBuffer::from(floats.values), nulls)?)
            }
            Values::Texts(values) => Arc::new(values.into_array(nulls)?),
        })
    }
}
