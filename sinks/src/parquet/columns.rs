//! Batches with different columns put together: the joined schema, widening, and gathering rows in any order.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{cast, concat, filter, interleave, is_not_null};
use arrow::datatypes::{
    DataType, Field, FieldRef, Float64Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use hashbrown::HashMap;
use tidegate_events::{Dataset, FieldType, Scalar, timestamp_type};

use crate::error::SinksError;

/// A row of a list of batches: (batch, row).
pub(crate) type Pick = (u32, u32);

/// The largest integer up to which every integer is a float too.
const EXACT_FLOAT: u64 = 1 << 53;

/// Says why a batch is not one of its dataset, if it is not.
pub(crate) fn check_batch(dataset: Dataset, rows: &RecordBatch) -> Result<(), SinksError> {
    let refuse = |reason| Err(SinksError::Rows { dataset: dataset.table_name(), reason });
    let core = dataset.core_schema();
    let schema = rows.schema();
    let mut names = HashSet::with_capacity(schema.fields().len());
    for field in schema.fields() {
        if !names.insert(field.name().as_str()) {
            return refuse(format!("it has two columns {:?}", field.name()));
        }
        let found = field.data_type();
        match core.fields().find(field.name()) {
            Some((_, core)) if core.data_type() != found => {
                return refuse(format!("column {:?} is {found}, not {}", field.name(), core.data_type()));
            }
            None if FieldType::from_data_type(found).is_none() => {
                return refuse(format!("own field {:?} has the type {found}", field.name()));
            }
            _ => {}
        }
    }
    for needed in [Dataset::TIME, Dataset::ORG_ID] {
        if !names.contains(needed) {
            return refuse(format!("it has no column {needed:?}"));
        }
    }
    Ok(())
}

/// Layouts that were found to be those of their dataset. Batches of a layout share their schema, so each is looked at once.
#[derive(Debug, Default)]
pub(crate) struct CheckedLayouts {
    /// By address; what is held here keeps its address.
    known: HashMap<(Dataset, usize), SchemaRef>,
}

/// Layouts that are remembered.
const CHECKED_MAX: usize = 4_096;

impl CheckedLayouts {
    /// The same as [`check_batch`].
    pub(crate) fn check(&mut self, dataset: Dataset, rows: &RecordBatch) -> Result<(), SinksError> {
        let key = (dataset, Arc::as_ptr(rows.schema_ref()) as usize);
        if self.known.contains_key(&key) {
            return Ok(());
        }
        check_batch(dataset, rows)?;
        if self.known.len() >= CHECKED_MAX {
            self.known.clear();
        }
        self.known.insert(key, rows.schema());
        Ok(())
    }
}

/// The columns by which rows are sorted. A null time counts as 0, a null tenant as the empty text.
#[derive(Debug, Clone)]
pub(crate) struct SortKeys {
    orgs: StringArray,
    times: TimestampMicrosecondArray,
}

impl SortKeys {
    /// The keys of a batch. A column that is not there is null in all rows.
    pub(crate) fn of(dataset: Dataset, rows: &RecordBatch) -> Result<Self, SinksError> {
        let [orgs, times] = [Dataset::ORG_ID, Dataset::TIME].map(|name| rows.column_by_name(name).cloned());
        Self::from_columns(dataset, orgs, times, rows.num_rows())
    }

    /// The keys from columns of so many rows.
    pub(crate) fn from_columns(
        dataset: Dataset,
        orgs: Option<ArrayRef>,
        times: Option<ArrayRef>,
        rows: usize,
    ) -> Result<Self, SinksError> {
        let orgs = orgs.unwrap_or_else(|| new_null_array(&DataType::Utf8, rows));
        let times = times.unwrap_or_else(|| new_null_array(&timestamp_type(), rows));
        match (orgs.as_string_opt::<i32>(), times.as_primitive_opt::<TimestampMicrosecondType>()) {
            (Some(orgs), Some(times)) => Ok(Self { orgs: orgs.clone(), times: times.clone() }),
            _ => Err(SinksError::Rows {
                dataset: dataset.table_name(),
                reason: "org_id or time is not of its type".into(),
            }),
        }
    }

    pub(crate) fn org(&self, row: usize) -> &str {
        if self.orgs.is_null(row) { "" } else { self.orgs.value(row) }
    }

    pub(crate) fn time(&self, row: usize) -> i64 {
        if self.times.is_null(row) { 0 } else { self.times.value(row) }
    }

    pub(crate) fn len(&self) -> usize {
        self.orgs.len()
    }
}

/// One column of a list of batches, all of one type; `None` where a batch does not have it.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) field: FieldRef,
    pub(crate) arrays: Vec<Option<ArrayRef>>,
}

/// One column of a list of batches, all of one type: of most batches a sparse one has nothing.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) field: FieldRef,
    /// The batches that have it, ascending.
    pub(crate) parts: Vec<(u32, ArrayRef)>,
    /// Values in these parts, whatever rows are picked of them.
    pub(crate) values: usize,
}

impl Joined {
    fn new(field: FieldRef) -> Self {
        Self { field, parts: Vec::new(), values: 0 }
    }

    /// The same with a place for each of so many batches.
    pub(crate) fn by_batch(&self, batches: usize) -> Column {
        let mut arrays = vec![None; batches];
        for (batch, array) in &self.parts {
            if let Some(slot) = arrays.get_mut(*batch as usize) {
                *slot = Some(array.clone());
            }
        }
        Column { field: self.field.clone(), arrays }
    }
}

/// The columns that have a value in one of `rows`, core columns first, own fields by name, each widened to the joined type.
/// `rows` are ascending row numbers, a list for each batch.
pub(crate) fn joined_columns<'a>(
    dataset: Dataset,
    batches: &'a [RecordBatch],
    rows: &[Vec<u32>],
) -> Result<Vec<Joined>, SinksError> {
    let core = dataset.core_schema();
    let mut columns: Vec<Joined> = core.fields().iter().cloned().map(Joined::new).collect();
    let mut numbers: HashMap<&str, usize> =
        core.fields().iter().enumerate().map(|(at, field)| (field.name().as_str(), at)).collect();
    // Batches of one layout share their schema, so most names need not be looked up.
    let mut by_schema: HashMap<*const Schema, Vec<usize>> = HashMap::new();
    for (at, (batch, rows)) in batches.iter().zip(rows).enumerate() {
        let schema = batch.schema_ref();
        let of_schema = by_schema.entry(Arc::as_ptr(schema)).or_insert_with(|| {
            let number = |field: &'a FieldRef| {
                *numbers.entry(field.name().as_str()).or_insert_with(|| {
                    columns.push(Joined::new(field.clone()));
                    columns.len() - 1
                })
            };
            schema.fields().iter().map(number).collect()
        });
        for (number, array) in of_schema.iter().zip(batch.columns()) {
            if let Some(column) = columns.get_mut(*number).filter(|_| has_value(array, rows)) {
                column.values += array.len() - array.null_count();
                column.parts.push((at as u32, array.clone()));
            }
        }
    }
    let mut own = columns.split_off(core.fields().len());
    columns.retain(|column| !column.parts.is_empty());
    own.retain(|column| !column.parts.is_empty());
    own.sort_unstable_by(|a, b| a.field.name().cmp(b.field.name()));
    for mut column in own {
        let arrays = column.parts.iter().map(|(_, array)| array);
        let data_type = joined_type(column.field.name(), arrays)?.data_type();
        for (_, array) in &mut column.parts {
            if array.data_type() != &data_type {
                *array = widen(array, &data_type)?;
            }
        }
        if column.field.data_type() != &data_type || !column.field.is_nullable() {
            column.field = Field::new(column.field.name(), data_type, true).into();
        }
        columns.push(column);
    }
    Ok(columns)
}

fn has_value(array: &ArrayRef, rows: &[u32]) -> bool {
    let nulls = array.null_count();
    if nulls == 0 || rows.is_empty() {
        return !rows.is_empty();
    }
    nulls < array.len() && (rows.len() == array.len() || rows.iter().any(|row| array.is_valid(*row as usize)))
}

/// The narrowest type that holds all values of the arrays. Integers that no float can hold turn a float column to text.
fn joined_type<'a>(name: &str, arrays: impl Iterator<Item = &'a ArrayRef> + Clone) -> Result<FieldType, SinksError> {
    let mut joined: Option<FieldType> = None;
    let mut last: Option<&DataType> = None;
    for array in arrays.clone() {
        if last.replace(array.data_type()) == Some(array.data_type()) {
            continue;
        }
        let kind = FieldType::from_data_type(array.data_type())
            .ok_or_else(|| SinksError::Invalid(format!("own field {name:?} has the type {}", array.data_type())))?;
        joined = Some(joined.map_or(kind, |joined| joined.join(kind)));
    }
    let mut joined = joined.unwrap_or(FieldType::TEXT);
    if joined.scalar == Scalar::Float && !arrays.clone().all(fits_float) {
        joined.scalar = Scalar::Text;
    }
    Ok(joined)
}

fn fits_float(array: &ArrayRef) -> bool {
    let values = array.as_list_opt::<i32>().map_or(array, |list| list.values());
    values
        .as_primitive_opt::<Int64Type>()
        .is_none_or(|ints| ints.iter().flatten().all(|int| int.unsigned_abs() <= EXACT_FLOAT))
}

/// Whether every integer between two bounds is a float too.
pub(crate) fn range_fits_float(min: i64, max: i64) -> bool {
    min.unsigned_abs() <= EXACT_FLOAT && max.unsigned_abs() <= EXACT_FLOAT
}

/// The array as `to`, a type that [`FieldType::join`] has given. A scalar becomes a list of one, null stays null.
pub(crate) fn widen(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(array.clone());
    }
    let DataType::List(item) = to else { return cast_scalars(array, to) };
    if let Some(lists) = array.as_list_opt::<i32>() {
        let values = cast_scalars(lists.values(), item.data_type())?;
        let (offsets, nulls) = (lists.offsets().clone(), lists.nulls().cloned());
        return Ok(Arc::new(ListArray::try_new(item.clone(), offsets, values, nulls)?));
    }
    let values = cast_scalars(array, item.data_type())?;
    let lengths = (0..array.len()).map(|row| usize::from(array.is_valid(row)));
    let offsets = OffsetBuffer::from_lengths(lengths);
    let values = if array.null_count() == 0 { values } else { filter(&values, &is_not_null(array)?)? };
    Ok(Arc::new(ListArray::try_new(item.clone(), offsets, values, array.nulls().cloned())?))
}

/// A whole number that met a float is a float in one file and an integer in another: as text both are the same, `2`.
fn cast_scalars(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    match (array.as_primitive_opt::<Float64Type>(), to) {
        (Some(floats), DataType::Utf8) => {
            Ok(Arc::new(floats.iter().map(|value| value.map(|value| value.to_string())).collect::<StringArray>()))
        }
        _ => cast(array, to),
    }
}

/// The schema of the columns.
pub(crate) fn schema_of(columns: &[Joined]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>()))
}

/// Rows of several batches in some order, made ready for one column after the other.
#[derive(Debug)]
pub(crate) struct Picked {
    rows: usize,
    how: How,
}

#[derive(Debug)]
enum How {
    /// Runs of consecutive rows: (batch, first row, rows).
    Runs(Vec<(usize, usize, usize)>),
    /// Single rows.
    Rows(Vec<(usize, usize)>),
}

/// From so many rows a run on, copying runs is cheaper than copying rows.
const RUN_ROWS: usize = 8;

impl Picked {
    pub(crate) fn new(picks: &[Pick]) -> Self {
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        for (batch, row) in picks {
            let (batch, row) = (*batch as usize, *row as usize);
            match runs.last_mut() {
                Some((last, first, rows)) if *last == batch && *first + *rows == row => *rows += 1,
                _ => runs.push((batch, row, 1)),
            }
            if runs.len() * RUN_ROWS > picks.len().max(RUN_ROWS) {
                let rows = picks.iter().map(|(batch, row)| (*batch as usize, *row as usize)).collect();
                return Self { rows: picks.len(), how: How::Rows(rows) };
            }
        }
        Self { rows: picks.len(), how: How::Runs(runs) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The picked rows of one column, in the order of the picks.
    pub(crate) fn gather(&self, column: &Column) -> Result<ArrayRef, ArrowError> {
        match &self.how {
            How::Runs(runs) => gather_runs(column, runs, self.rows),
            How::Rows(rows) => gather_rows(column, rows),
        }
    }
}

fn gather_runs(column: &Column, runs: &[(usize, usize, usize)], rows: usize) -> Result<ArrayRef, ArrowError> {
    let array_of = |batch: usize| column.arrays.get(batch).and_then(Option::as_ref);
    if runs.iter().all(|(batch, ..)| array_of(*batch).is_none()) {
        return Ok(new_null_array(column.field.data_type(), rows));
    }
    let longest_gap = runs.iter().filter(|(batch, ..)| array_of(*batch).is_none()).map(|(.., rows)| *rows).max();
    let nulls = longest_gap.map(|rows| new_null_array(column.field.data_type(), rows));
    let slice = |(batch, first, rows): &(usize, usize, usize)| match (array_of(*batch), &nulls) {
        (Some(array), _) => array.slice(*first, *rows),
        (None, Some(nulls)) => nulls.slice(0, *rows),
        (None, None) => new_null_array(column.field.data_type(), *rows),
    };
    let slices: Vec<ArrayRef> = runs.iter().map(slice).collect();
    match slices.as_slice() {
        [only] => Ok(only.clone()),
        slices => concat(&slices.iter().map(AsRef::as_ref).collect::<Vec<_>>()),
    }
}

fn gather_rows(column: &Column, pairs: &[(usize, usize)]) -> Result<ArrayRef, ArrowError> {
    if column.arrays.iter().all(Option::is_some) {
        let arrays: Vec<&dyn Array> = column.arrays.iter().flatten().map(AsRef::as_ref).collect();
        return interleave(&arrays, pairs);
    }
    // Batches without the column all point at one null; a thousand sparse columns then cost no null arrays.
    let null = new_null_array(column.field.data_type(), 1);
    let mut arrays: Vec<&dyn Array> = vec![null.as_ref()];
    let mut slots = vec![0; column.arrays.len()];
    for (array, slot) in column.arrays.iter().zip(&mut slots) {
        if let Some(array) = array {
            *slot = arrays.len();
            arrays.push(array.as_ref());
        }
    }
    let mut any = false;
    let pairs: Vec<(usize, usize)> = pairs
        .iter()
        .map(|(batch, row)| match slots.get(*batch) {
            Some(slot) if *slot > 0 => {
                any = true;
                (*slot, *row)
            }
            _ => (0, 0),
        })
        .collect();
    if any { interleave(&arrays, &pairs) } else { Ok(new_null_array(column.field.data_type(), pairs.len())) }
}

/// Bytes of the rows themselves, without what their buffers hold beside them.
pub(crate) fn row_bytes(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(column_bytes).sum()
}

fn column_bytes(column: &ArrayRef) -> usize {
    let Some(texts) = column.as_string_opt::<i32>() else {
        return column.to_data().get_slice_memory_size().unwrap_or(0);
    };
    // Nearly all columns are of text, and of few rows: to describe them as any array costs an allocation or two each.
    let offsets = texts.value_offsets();
    let [first, last] = [offsets.first(), offsets.last()].map(|offset| offset.copied().unwrap_or(0));
    let nulls = texts.nulls().map_or(0, |_| texts.len().div_ceil(8));
    std::mem::size_of_val(offsets) + usize::try_from(last - first).unwrap_or(0) + nulls
}
