//! Rows of a record batch as rows of `COPY … WITH (FORMAT binary)`.
//!
//! A batch is looked at once: each core column of the table is bound to the column of the batch, or known to be null in all
//! rows; each own field to its key as JSON. Then rows are written one after the other into one buffer, straight from the
//! Arrow buffers.

use arrow::array::{
    Array, AsArray, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use bytes::{BufMut, BytesMut};
use tidegate_events::{Dataset, REST_COLUMN};

use super::{binary, json};
use crate::error::SinksError;

/// The version of `jsonb`'s binary format.
const JSONB_VERSION: u8 = 1;

/// A batch that is ready to be written row by row.
pub(super) struct Rows<'a> {
    core: Vec<Core<'a>>,
    /// In the order in which `jsonb` keeps keys: then the server need not sort those of each row.
    own: Vec<Own<'a>>,
    /// Fields of a row: core columns, attributes, log id, offset.
    fields: i16,
    log_id: i16,
    /// Values in which a NUL was replaced.
    pub(super) replaced: u64,
}

/// A core column, or a run of them that the batch does not have.
enum Core<'a> {
    Absent(usize),
    Time(&'a TimestampMicrosecondArray),
    Int(&'a Int32Array),
    Long(&'a Int64Array),
    Float(&'a Float64Array),
    Bool(&'a BooleanArray),
    Decimal(&'a Decimal128Array, u8),
    Text(&'a StringArray),
    Texts(&'a ListArray, &'a StringArray),
}

/// An own field: its key with quotes and colon, and its values.
struct Own<'a> {
    key: Vec<u8>,
    column: &'a dyn Array,
    values: Values<'a>,
}

enum Values<'a> {
    /// Text that is JSON already.
    Json(&'a StringArray),
    One(Scalars<'a>),
    List(&'a ListArray, Scalars<'a>),
}

#[derive(Clone, Copy)]
enum Scalars<'a> {
    Bool(&'a BooleanArray),
    Int(&'a Int64Array),
    Float(&'a Float64Array),
    Text(&'a StringArray),
}

impl<'a> Rows<'a> {
    /// Binds the columns of a batch of `dataset`.
    ///
    /// # Errors
    /// [`SinksError::Rows`] when a column is not what its dataset says.
    pub(super) fn of(dataset: Dataset, rows: &'a RecordBatch, log_id: i16) -> Result<Self, SinksError> {
        let wrong = |name: &str| SinksError::Rows {
            dataset: dataset.table_name(),
            reason: format!("column {name:?} has a type that it cannot have"),
        };
        let schema = dataset.core_schema();
        let mut core: Vec<Core<'_>> = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            match rows.column_by_name(field.name()) {
                Some(column) => core.push(Core::of(column.as_ref()).ok_or_else(|| wrong(field.name()))?),
                None => match core.last_mut() {
                    Some(Core::Absent(count)) => *count += 1,
                    _ => core.push(Core::Absent(1)),
                },
            }
        }
        let own_fields = rows.schema_ref().fields().iter().zip(rows.columns());
        let mut own_fields: Vec<_> =
            own_fields.filter(|(field, _)| schema.fields().find(field.name()).is_none()).collect();
        // By length, then by bytes: `lengthCompareJsonbString` in src/backend/utils/adt/jsonb_util.c.
        own_fields.sort_by_key(|(field, _)| (field.name().len(), field.name()));
        let (mut own, mut replaced) = (Vec::with_capacity(own_fields.len()), 0);
        for (field, column) in own_fields {
            let values = match field.name().as_str() {
                REST_COLUMN => column.as_string_opt::<i32>().map(Values::Json),
                _ => Values::of(column.as_ref()),
            };
            let values = values.ok_or_else(|| wrong(field.name()))?;
            let mut key = BytesMut::new();
            replaced += u64::from(json::string(&mut key, field.name()));
            key.put_u8(b':');
            own.push(Own { key: key.to_vec(), column: column.as_ref(), values });
        }
        let fields = schema.fields().len() as i16 + 3;
        Ok(Self { core, own, fields, log_id, replaced })
    }

    /// Appends one row, which stands at `offset` of its log.
    pub(super) fn write(&mut self, row: usize, offset: u64, out: &mut BytesMut) {
        out.put_i16(self.fields);
        for column in &self.core {
            self.replaced += u64::from(column.write(row, out));
        }
        self.replaced += self.write_attributes(row, out);
        binary::int2(out, self.log_id);
        // Offsets count rows: they stay far below the end of `i64`.
        binary::int8(out, offset as i64);
    }

    /// How many values had a NUL.
    fn write_attributes(&self, row: usize, out: &mut BytesMut) -> u64 {
        let at = binary::begin(out);
        out.put_u8(JSONB_VERSION);
        let (mut replaced, mut before) = (0, b'{');
        for own in &self.own {
            if own.column.is_null(row) {
                continue;
            }
            out.put_u8(before);
            before = b',';
            out.put_slice(&own.key);
            replaced += u64::from(own.values.write(row, out));
        }
        if before == b'{' {
            out.truncate(at - 4);
            binary::null(out);
        } else {
            out.put_u8(b'}');
            binary::end(out, at);
        }
        replaced
    }
}

impl<'a> Core<'a> {
    fn of(column: &'a dyn Array) -> Option<Self> {
        Some(match column.data_type() {
            DataType::Timestamp(..) => Self::Time(column.as_primitive_opt::<TimestampMicrosecondType>()?),
            DataType::Int32 => Self::Int(column.as_primitive_opt::<Int32Type>()?),
            DataType::Int64 => Self::Long(column.as_primitive_opt::<Int64Type>()?),
            DataType::Float64 => Self::Float(column.as_primitive_opt::<Float64Type>()?),
            DataType::Boolean => Self::Bool(column.as_boolean_opt()?),
            DataType::Decimal128(_, scale) => {
                Self::Decimal(column.as_primitive_opt::<Decimal128Type>()?, u8::try_from(*scale).ok()?)
            }
            DataType::Utf8 => Self::Text(column.as_string_opt::<i32>()?),
            DataType::List(_) => {
                let lists = column.as_list_opt::<i32>()?;
                Self::Texts(lists, lists.values().as_string_opt::<i32>()?)
            }
            _ => return None,
        })
    }

    /// Whether a NUL had to be replaced.
    #[inline]
    fn write(&self, row: usize, out: &mut BytesMut) -> bool {
        match self {
            Self::Absent(count) => binary::nulls(out, *count),
            Self::Text(texts) if texts.is_valid(row) => return binary::text(out, texts.value(row)),
            Self::Time(times) if times.is_valid(row) => binary::timestamp(out, times.value(row)),
            Self::Int(ints) if ints.is_valid(row) => binary::int4(out, ints.value(row)),
            Self::Long(ints) if ints.is_valid(row) => binary::int8(out, ints.value(row)),
            Self::Float(floats) if floats.is_valid(row) => binary::float8(out, floats.value(row)),
            Self::Bool(bools) if bools.is_valid(row) => binary::boolean(out, bools.value(row)),
            Self::Decimal(decimals, scale) if decimals.is_valid(row) => {
                binary::numeric(out, decimals.value(row), *scale);
            }
            Self::Texts(lists, texts) if lists.is_valid(row) => {
                let range = range(lists, row);
                let has_nulls = texts.null_count() > 0 && range.clone().any(|at| texts.is_null(at));
                let values = range.clone().map(|at| texts.is_valid(at).then(|| texts.value(at)));
                return binary::texts(out, range.len(), has_nulls, values);
            }
            _ => binary::null(out),
        }
        false
    }
}

/// Where the elements of a list stand among all.
fn range(lists: &ListArray, row: usize) -> std::ops::Range<usize> {
    let offsets = lists.value_offsets();
    offsets[row] as usize..offsets[row + 1] as usize
}

impl<'a> Values<'a> {
    fn of(column: &'a dyn Array) -> Option<Self> {
        match column.as_list_opt::<i32>() {
            Some(lists) => Some(Self::List(lists, Scalars::of(lists.values().as_ref())?)),
            None => Some(Self::One(Scalars::of(column)?)),
        }
    }

    /// Whether a NUL had to be replaced.
    #[inline]
    fn write(&self, row: usize, out: &mut BytesMut) -> bool {
        let (lists, scalars) = match self {
            Self::Json(texts) => return json::raw(out, texts.value(row)),
            Self::One(scalars) => return scalars.write(row, out),
            Self::List(lists, scalars) => (lists, scalars),
        };
        let (mut replaced, mut before) = (false, b'[');
        for at in range(lists, row) {
            out.put_u8(before);
            before = b',';
            replaced |= scalars.write(at, out);
        }
        out.put_slice(if before == b'[' { b"[]" } else { b"]" });
        replaced
    }
}

impl<'a> Scalars<'a> {
    fn of(column: &'a dyn Array) -> Option<Self> {
        Some(match column.data_type() {
            DataType::Boolean => Self::Bool(column.as_boolean_opt()?),
            DataType::Int64 => Self::Int(column.as_primitive_opt::<Int64Type>()?),
            DataType::Float64 => Self::Float(column.as_primitive_opt::<Float64Type>()?),
            DataType::Utf8 => Self::Text(column.as_string_opt::<i32>()?),
            _ => return None,
        })
    }

    /// One value, `null` where there is none; whether a NUL had to be replaced.
    #[inline]
    fn write(self, at: usize, out: &mut BytesMut) -> bool {
        match self {
            Self::Text(texts) if texts.is_valid(at) => return json::string(out, texts.value(at)),
            Self::Int(ints) if ints.is_valid(at) => json::integer(out, ints.value(at)),
            Self::Float(floats) if floats.is_valid(at) => json::float(out, floats.value(at)),
            Self::Bool(bools) if bools.is_valid(at) => json::boolean(out, bools.value(at)),
            _ => out.put_slice(b"null"),
        }
        false
    }
}

/// `COPY` of a dataset's rows into `table`, which is quoted already.
pub(super) fn copy_statement(table: &str, dataset: Dataset) -> String {
    let schema = dataset.core_schema();
    let columns = schema.fields().iter().map(|field| super::ddl::quoted(field.name()));
    let columns =
        columns.chain([super::ddl::ATTRIBUTES, super::ddl::LOG_ID, super::ddl::LOG_OFFSET].map(str::to_owned));
    format!("COPY {table} ({}) FROM STDIN WITH (FORMAT binary)", columns.collect::<Vec<_>>().join(", "))
}
