//! The columns of an Arrow stream as columns of a dataset: by name, without a loop over rows where a type stays as it is.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Int32Array, ListArray, RecordBatch, StringArray, StringBuilder,
    StructArray, TimestampMicrosecondArray, TimestampNanosecondArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use chrono::{DateTime, SecondsFormat, Utc};
use tidegate_events::{Dataset, FieldType, IdGenerator, RAW_PREFIX, REST_COLUMN, Scalar, dedup_key, focus};
use tidegate_pipeline::EventBatch;

use super::arrow_stream::time_fields;
use super::config::DecodeConfig;
use super::family::{EVENT_ID, ORG_ID, RECEIVED_TIME, SOURCE, TIME};
use super::rows::Origin;
use crate::mapping::{Mappings, UNKNOWN, decimal, time};

/// A column of the stream, flattened.
#[derive(Debug)]
struct Input {
    /// The dotted name.
    name: String,
    /// Which child of which child.
    path: Vec<usize>,
    /// The core column that it fills.
    core: Option<usize>,
    kind: FieldType,
}

/// What becomes of each column of a stream.
#[derive(Debug)]
pub(super) struct ArrowPlan {
    dataset: Dataset,
    inputs: Vec<Input>,
    /// The input that is the time when there is no column `time`.
    time: Option<usize>,
}

impl ArrowPlan {
    /// Works out the columns; an error names the first that cannot be kept.
    pub(super) fn new(
        schema: &Schema,
        origin: &Origin,
        mappings: &Mappings,
        config: &DecodeConfig,
    ) -> Result<Self, String> {
        let mut inputs = Vec::new();
        for (at, field) in schema.fields().iter().enumerate() {
            flatten(field.name(), field.data_type(), vec![at], (origin.dataset, config), &mut inputs)?;
        }
        let own = inputs.iter().filter(|input| input.core.is_none());
        if own.count() > config.event_fields_max {
            return Err(format!("there are more than {} own columns", config.event_fields_max));
        }
        for (at, input) in inputs.iter().enumerate() {
            let twice = |other: &Input| other.name == input.name || (input.core.is_some() && other.core == input.core);
            if inputs.iter().skip(at + 1).any(twice) {
                return Err(format!("there are two columns for {:?}", input.name));
            }
            let name = &input.name;
            if name.is_empty() || name == REST_COLUMN {
                return Err(format!("a column cannot have the name {name:?}"));
            }
        }
        let has_time = inputs.iter().any(|input| input.core == Some(TIME));
        let fields = if has_time { Vec::new() } else { time_fields(mappings, origin) };
        let time = fields.iter().find_map(|name| inputs.iter().position(|input| input.name == **name));
        Ok(Self { dataset: origin.dataset, inputs, time })
    }

    /// The names of own fields.
    pub(super) fn own_names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().filter(|input| input.core.is_none()).map(|input| input.name.as_str())
    }

    /// The name under which a column is kept whose own name is taken.
    fn raw_name(&self, name: &str) -> String {
        let mut raw = format!("{RAW_PREFIX}{name}");
        while self.inputs.iter().any(|input| input.name == raw) {
            raw.insert_str(0, RAW_PREFIX);
        }
        raw
    }

    /// The names of the columns of the stream, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.name.as_str())
    }

    /// The columns of a batch, in the order of their names.
    pub(super) fn columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>, String> {
        self.inputs.iter().map(|input| pick(batch, &input.path)).collect()
    }

    /// Columns of texts and numbers as events, whose indexes in the body are `items`.
    pub(super) fn events(
        &self,
        columns: &[ArrayRef],
        items: &[u32],
        origin: &Origin,
        ids: &mut IdGenerator,
    ) -> Result<EventBatch, String> {
        let rows = items.len();
        let schema = self.dataset.core_schema();
        let mut core: Vec<Option<ArrayRef>> = vec![None; schema.fields().len()];
        let mut own: Vec<(String, ArrayRef)> = Vec::new();
        for (at, (input, array)) in self.inputs.iter().zip(columns).enumerate() {
            if array.null_count() == rows {
                continue;
            }
            if self.time == Some(at) {
                core[TIME] = Some(to_times(array)?);
            }
            let Some(place) = input.core else {
                own.push((input.name.clone(), to_own(array, input.kind)?));
                continue;
            };
            // A number called `event_id` is the kind of an event in Windows' logs, not its id.
            let no_id = place == EVENT_ID && !is_text(array.data_type());
            let ours = matches!(place, RECEIVED_TIME | ORG_ID) || (place == SOURCE && origin.source.is_some()) || no_id;
            let filled = if ours { None } else { Some(to_core(array, schema.field(place).data_type())?) };
            // What a core column does not hold just as it was sent is kept under another name.
            if filled.as_ref().is_none_or(|(_, exact)| !exact) {
                own.push((self.raw_name(&input.name), to_own(array, input.kind)?));
            }
            if let (Some(slot), Some((array, _))) = (core.get_mut(place), filled) {
                *slot = Some(array);
            }
        }
        let keys = fill_every_dataset(&mut core, items, origin, ids);
        let fields = schema.fields().iter().zip(core);
        let core = fields.filter_map(|(field, array)| array.map(|array| (field.clone(), array)));
        let own =
            own.into_iter().map(|(name, array)| (Arc::new(Field::new(name, array.data_type().clone(), true)), array));
        let held = core.chain(own).filter(|(_, array)| array.null_count() < rows);
        let (fields, arrays): (Vec<_>, Vec<_>) = held.unzip();
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| error.to_string())?;
        Ok(EventBatch { dataset: self.dataset, rows, keys })
    }
}

/// Adds the columns of a field, those of a struct each under its dotted name. Both are bounded as they are made: names of
/// structs in structs are written out for each of their columns.
fn flatten(
    name: &str,
    data_type: &DataType,
    path: Vec<usize>,
    (dataset, config): (Dataset, &DecodeConfig),
    inputs: &mut Vec<Input>,
) -> Result<(), String> {
    let shown = |text: &str| text.chars().take(100).collect::<String>();
    let max = config.field_name_bytes_max;
    let too_long = |name: &str| Err(format!("the name of column {:?}… is longer than {max} bytes", shown(name)));
    if name.len() > max {
        return too_long(name);
    }
    if let DataType::Struct(children) = data_type {
        for (at, child) in children.iter().enumerate() {
            if name.len() + 1 + child.name().len() > max {
                return too_long(child.name());
            }
            let name = format!("{name}.{}", child.name());
            let path = path.iter().copied().chain([at]).collect();
            flatten(&name, child.data_type(), path, (dataset, config), inputs)?;
        }
        return Ok(());
    }
    if let DataType::Null = data_type {
        return Ok(());
    }
    let unsupported = || {
        let kind = shown(&data_type.to_string());
        format!("column {name:?} has the type {kind}, which is not supported; send it as text")
    };
    let kind = own_type(data_type).ok_or_else(unsupported)?;
    let core = core_place(name, dataset);
    inputs.push(Input { name: name.to_owned(), path, core, kind });
    let most = config.event_fields_max.saturating_add(dataset.core_schema().fields().len());
    if inputs.len() > most { Err(format!("there are more than {most} columns")) } else { Ok(()) }
}

/// The core column of this name, or of this name in FOCUS.
fn core_place(name: &str, dataset: Dataset) -> Option<usize> {
    let schema = dataset.core_schema();
    let of_focus = || {
        let known = focus::columns().iter().find(|column| column.focus_names.contains(&name))?;
        (dataset == Dataset::CostEvents).then_some(known.name)
    };
    schema.fields().find(name).or_else(|| schema.fields().find(of_focus()?)).map(|(at, _)| at)
}

/// The type that an own field gets from a column of this type.
fn own_type(data_type: &DataType) -> Option<FieldType> {
    let scalar = |data_type: &DataType| match data_type {
        DataType::Boolean => Some(Scalar::Bool),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Some(Scalar::Int),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => Some(Scalar::Int),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => Some(Scalar::Float),
        // Above `i64::MAX` a number is text, and one column has one type.
        DataType::UInt64 | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Scalar::Text),
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => {
            Some(Scalar::Text)
        }
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            Some(Scalar::Text)
        }
        _ => None,
    };
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            scalar(item.data_type()).map(FieldType::list_of)
        }
        DataType::Dictionary(_, values) => scalar(values).map(|scalar| FieldType { scalar, list: false }),
        other => scalar(other).map(|scalar| FieldType { scalar, list: false }),
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// The array at a path; the nulls of a struct are those of its children too.
fn pick(batch: &RecordBatch, path: &[usize]) -> Result<ArrayRef, String> {
    let missing = || "a batch has other columns than the schema".to_owned();
    let (first, rest) = path.split_first().ok_or_else(missing)?;
    let mut array = batch.columns().get(*first).cloned().ok_or_else(missing)?;
    for at in rest {
        let parent: &StructArray = array.as_struct_opt().ok_or_else(missing)?;
        let child = parent.columns().get(*at).cloned().ok_or_else(missing)?;
        let nulls = NullBuffer::union(parent.nulls(), child.nulls());
        let joined = child.to_data().into_builder().nulls(nulls).build();
        array = arrow::array::make_array(joined.map_err(|error| error.to_string())?);
    }
    Ok(array)
}

fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, String> {
    // `safe`: what does not fit becomes null, and is seen as such by the caller.
    cast_with_options(array, to, &CastOptions { safe: true, ..CastOptions::default() })
        .map_err(|error| error.to_string())
}

fn to_own(array: &ArrayRef, kind: FieldType) -> Result<ArrayRef, String> {
    if !kind.list {
        return match kind.scalar {
            Scalar::Text => to_text(array).map(|texts| Arc::new(texts) as ArrayRef),
            _ => cast(array, &kind.data_type()),
        };
    }
    let item = |data_type: &DataType| DataType::List(Field::new_list_field(data_type.clone(), true).into());
    let lists = match array.data_type() {
        DataType::List(of) | DataType::LargeList(of) | DataType::FixedSizeList(of, _) => {
            cast(array, &item(of.data_type()))?
        }
        other => return Err(format!("{other} is no list")),
    };
    let lists: &ListArray = lists.as_list_opt().ok_or("a list cannot be read")?;
    let items = to_own(lists.values(), FieldType { scalar: kind.scalar, list: false })?;
    let field = Field::new_list_field(items.data_type().clone(), true).into();
    let lists = ListArray::try_new(field, lists.offsets().clone(), items, lists.nulls().cloned());
    Ok(Arc::new(lists.map_err(|error| error.to_string())?))
}

/// The values as text: times as RFC 3339, UTC.
fn to_text(array: &ArrayRef) -> Result<StringArray, String> {
    if let DataType::Timestamp(unit, _) = array.data_type() {
        let zone = if let DataType::Timestamp(_, zone) = array.data_type() { zone.clone() } else { None };
        let mut texts = StringBuilder::new();
        let mut push = |time: Option<DateTime<Utc>>| {
            texts.append_option(time.map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true)));
        };
        if *unit == TimeUnit::Nanosecond {
            let times: &TimestampNanosecondArray = array.as_primitive_opt().ok_or("a time cannot be read")?;
            times.iter().for_each(|ns| push(ns.map(DateTime::from_timestamp_nanos)));
        } else {
            let times = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone))?;
            let times: &TimestampMicrosecondArray = times.as_primitive_opt().ok_or("a time cannot be read")?;
            times.iter().for_each(|us| push(us.and_then(DateTime::from_timestamp_micros)));
        }
        return Ok(texts.finish());
    }
    let texts = cast(array, &DataType::Utf8)?;
    texts.as_string_opt().cloned().ok_or_else(|| "a column cannot be read as text".to_owned())
}

/// The values as times, and null where there is none.
fn to_times(array: &ArrayRef) -> Result<ArrayRef, String> {
    let times: TimestampMicrosecondArray = match array.data_type() {
        DataType::Timestamp(_, zone) => {
            // A time without a zone is UTC.
            let times = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
            times
                .as_primitive_opt::<arrow::datatypes::TimestampMicrosecondType>()
                .ok_or("a time cannot be read")?
                .clone()
        }
        data_type if data_type.is_integer() => {
            let numbers = cast(array, &DataType::Int64)?;
            let numbers = numbers.as_primitive_opt::<arrow::datatypes::Int64Type>().ok_or("a time cannot be read")?;
            numbers
                .iter()
                .map(|number| number.and_then(|number| time::from_int(number, time::TimeUnit::Auto)))
                .collect()
        }
        _ => to_text(array)?.iter().map(|text| time::from_text(text?, time::TimeUnit::Auto)).collect(),
    };
    Ok(Arc::new(times.with_timezone("UTC")))
}

/// The values as a core column's type, and whether it holds each just as it was sent.
fn to_core(array: &ArrayRef, data_type: &DataType) -> Result<(ArrayRef, bool), String> {
    let mut exact = true;
    let filled: ArrayRef = match data_type {
        DataType::Timestamp(..) => to_times(array)?,
        DataType::Decimal128(precision, scale) => {
            let texts = to_text(array)?;
            let decimals = texts.iter().map(|text| {
                let decimal = decimal::parse(text?);
                exact &= decimal.is_some_and(|decimal| decimal.exact);
                decimal.map(|decimal| decimal.unscaled)
            });
            let decimals: Decimal128Array = decimals.collect();
            Arc::new(decimals.with_precision_and_scale(*precision, *scale).map_err(|error| error.to_string())?)
        }
        DataType::Int32 => {
            let numbers = to_text(array)?;
            let numbers: Int32Array = numbers.iter().map(|text| text?.trim().parse().ok()).collect();
            Arc::new(numbers)
        }
        DataType::Utf8 if own_type(array.data_type()).is_some_and(|kind| kind.list) => {
            exact = false;
            new_null_array(&DataType::Utf8, array.len())
        }
        DataType::Utf8 => Arc::new(to_text(array)?),
        other => return Err(format!("a core column of type {other} cannot be sent")),
    };
    exact &= filled.null_count() == array.null_count();
    Ok((filled, exact))
}

/// Fills the columns that every row has; the de-duplication keys of the rows.
fn fill_every_dataset(
    core: &mut [Option<ArrayRef>],
    items: &[u32],
    origin: &Origin,
    ids: &mut IdGenerator,
) -> Vec<u128> {
    let rows = items.len();
    let of = |place: usize, core: &[Option<ArrayRef>]| core.get(place).cloned().flatten();
    let received = origin.received_us;
    let times = of(TIME, core).or_else(|| of(charge_period_start(origin.dataset), core));
    let times = times.and_then(|times| times.as_primitive_opt::<arrow::datatypes::TimestampMicrosecondType>().cloned());
    let time =
        |row: usize| times.as_ref().filter(|times| times.is_valid(row)).map_or(received, |times| times.value(row));
    let times = TimestampMicrosecondArray::from_iter_values((0..rows).map(time)).with_timezone("UTC");
    let received_times = TimestampMicrosecondArray::from_value(received, rows).with_timezone("UTC");
    let own_ids = of(EVENT_ID, core);
    let own_ids = own_ids.as_ref().and_then(|ids| ids.as_string_opt::<i32>());
    let mut event_ids = StringBuilder::with_capacity(rows, rows * 36);
    let mut keys = Vec::with_capacity(rows);
    for (row, item) in items.iter().enumerate() {
        let own = own_ids.filter(|ids| ids.is_valid(row)).map(|ids| ids.value(row)).filter(|id| !id.is_empty());
        let dataset = origin.dataset as u8;
        match (own, &origin.idempotency_key) {
            (Some(id), _) => {
                event_ids.append_value(id);
                keys.push(dedup_key(&origin.org_id, dataset, id));
            }
            (None, Some(key)) => {
                let id = format!("{key}:{item}");
                event_ids.append_value(&id);
                keys.push(dedup_key(&origin.org_id, dataset, &id));
            }
            (None, None) => {
                event_ids.append_value(std::str::from_utf8(&ids.next(received)).unwrap_or_default());
                keys.push(0);
            }
        }
    }
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, rows))) };
    let source: ArrayRef = match (&origin.source, of(SOURCE, core)) {
        (Some(source), _) => text(source),
        (None, Some(sources)) => match sources.as_string_opt::<i32>() {
            Some(sources) => {
                Arc::new(StringArray::from_iter_values(sources.iter().map(|source| source.unwrap_or(UNKNOWN))))
            }
            None => text(UNKNOWN),
        },
        (None, None) => text(UNKNOWN),
    };
    let filled: [ArrayRef; 5] =
        [Arc::new(times), Arc::new(received_times), Arc::new(event_ids.finish()), text(&origin.org_id), source];
    for (slot, array) in core.iter_mut().zip(filled) {
        *slot = Some(array);
    }
    if keys.iter().all(|key| *key == 0) { Vec::new() } else { keys }
}

/// The column that is the time of a cost row.
fn charge_period_start(dataset: Dataset) -> usize {
    dataset.core_schema().index_of("charge_period_start").unwrap_or(TIME)
}
