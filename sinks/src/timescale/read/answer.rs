//! Rows in PostgreSQL's binary formats as record batches.

use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, BooleanBuilder, Decimal128Builder, Float64Builder, Int32Builder, Int64Builder, ListBuilder,
    RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use tidegate_events::{Dataset, FieldType, Scalar};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::json::{Json, Members, compact, members, parse};
use super::question::{EPOCH_2000_US, Place, is_rest};

/// The bytes of a value as they came.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_kind: &Type) -> bool {
        true
    }
}

/// Builds batches of the asked columns and, last, `org_id`.
pub(super) struct Answer {
    schema: SchemaRef,
    places: Vec<Place>,
    columns: Vec<Values>,
    orgs: StringBuilder,
    rows: usize,
    bytes: usize,
}

/// The values of one column.
enum Values {
    Time(TimestampMicrosecondBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Text(StringBuilder),
    Texts(ListBuilder<StringBuilder>),
    Decimal(Decimal128Builder, i8),
    Own(Own),
    Rest(StringBuilder),
}

/// The values of an own field, by its type.
enum Own {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
    Bools(ListBuilder<BooleanBuilder>),
    Ints(ListBuilder<Int64Builder>),
    Floats(ListBuilder<Float64Builder>),
    Texts(ListBuilder<StringBuilder>),
}

/// What is wrong with an answer.
pub(super) type Misfit = String;

impl Answer {
    /// For columns of `schema` whose values stand at `places`.
    pub(super) fn new(schema: &SchemaRef, places: Vec<Place>) -> Result<Self, Misfit> {
        let columns = schema.fields().iter().zip(&places).map(|(field, place)| Values::new(field, place));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(Dataset::ORG_ID, DataType::Utf8, true)));
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            places,
            columns,
            orgs: StringBuilder::new(),
            rows: 0,
            bytes: 0,
        })
    }

    /// Rows that wait to be taken, and about how many bytes they are.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.rows, self.bytes)
    }

    /// Takes a row in.
    pub(super) fn push(&mut self, row: &Row) -> Result<(), Misfit> {
        let mut objects: Option<(usize, Members<'_>)> = None;
        for (values, place) in self.columns.iter_mut().zip(&self.places) {
            let (Place::Plain(at) | Place::Sum(at) | Place::Json(at) | Place::Member(at, _)) = place;
            let raw = raw(row, *at)?;
            let Place::Member(_, name) = place else {
                self.bytes += raw.map_or(0, <[u8]>::len) + 8;
                let kind = row.columns().get(*at).map_or(&Type::UNKNOWN, |column| column.type_());
                values.push(raw, kind)?;
                continue;
            };
            if objects.as_ref().is_none_or(|(of, _)| of != at) {
                self.bytes += raw.map_or(0, <[u8]>::len);
                let found = match raw.map(jsonb).transpose()? {
                    Some(text) => members(text).ok_or("attributes that are no object")?,
                    None => Vec::new(),
                };
                objects = Some((*at, found));
            }
            let members = objects.iter().flat_map(|(_, members)| members);
            let value = members.into_iter().find(|(member, _)| *member == **name).map(|(_, text)| *text);
            values.push_json(value)?;
        }
        let org = raw(row, row.len().saturating_sub(1))?.map(text).transpose()?;
        self.orgs.append_option(org);
        self.rows += 1;
        Ok(())
    }

    /// The rows since the last call.
    pub(super) fn take(&mut self) -> Result<RecordBatch, Misfit> {
        let mut columns: Vec<ArrayRef> = self.columns.iter_mut().map(Values::finish).collect();
        columns.push(Arc::new(self.orgs.finish()));
        (self.rows, self.bytes) = (0, 0);
        RecordBatch::try_new(self.schema.clone(), columns).map_err(|error| error.to_string())
    }
}

fn raw(row: &Row, at: usize) -> Result<Option<&[u8]>, Misfit> {
    row.try_get::<_, Option<Raw<'_>>>(at).map(|raw| raw.map(|raw| raw.0)).map_err(|error| error.to_string())
}

fn text(raw: &[u8]) -> Result<&str, Misfit> {
    std::str::from_utf8(raw).map_err(|_| "text that is not UTF-8: the database must have the encoding UTF8".to_owned())
}

/// The text of a `jsonb` value, which begins with its version.
fn jsonb(raw: &[u8]) -> Result<&str, Misfit> {
    match raw.split_first() {
        Some((1, json)) => text(json),
        _ => Err("jsonb of an unknown version".into()),
    }
}

fn number<const N: usize>(raw: &[u8]) -> Result<[u8; N], Misfit> {
    raw.try_into().map_err(|_| format!("a number of {} bytes instead of {N}", raw.len()))
}

impl Values {
    fn new(field: &Field, place: &Place) -> Result<Self, Misfit> {
        if matches!(place, Place::Json(_) | Place::Member(..)) {
            if is_rest(field.name()) {
                return Ok(Self::Rest(StringBuilder::new()));
            }
            let kind = FieldType::from_data_type(field.data_type());
            return kind.map(|kind| Self::Own(Own::new(kind))).ok_or_else(|| format!("an own field {field}"));
        }
        Ok(match field.data_type() {
            DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) => {
                Self::Time(TimestampMicrosecondBuilder::new().with_timezone(zone.clone()))
            }
            DataType::Int32 => Self::Int(Int32Builder::new()),
            DataType::Int64 => Self::Long(Int64Builder::new()),
            DataType::Utf8 => Self::Text(StringBuilder::new()),
            DataType::List(item) if *item.data_type() == DataType::Utf8 => {
                Self::Texts(ListBuilder::new(StringBuilder::new()).with_field(item.clone()))
            }
            DataType::Decimal128(precision, scale) => {
                let builder = Decimal128Builder::new().with_precision_and_scale(*precision, *scale);
                Self::Decimal(builder.map_err(|error| error.to_string())?, *scale)
            }
            other => return Err(format!("a column {} of {other}", field.name())),
        })
    }

    fn push(&mut self, raw: Option<&[u8]>, kind: &Type) -> Result<(), Misfit> {
        match self {
            Self::Time(builder) => {
                let since_2000 = raw.map(number).transpose()?.map(i64::from_be_bytes);
                builder.append_option(since_2000.map(|us| us.saturating_add(EPOCH_2000_US)));
            }
            Self::Int(builder) => builder.append_option(raw.map(number).transpose()?.map(i32::from_be_bytes)),
            Self::Long(builder) if *kind == Type::NUMERIC => {
                // A sum of many large integers: it wraps around, as the sum over the log does.
                builder.append_option(raw.map(|raw| decimal(raw, 0)).transpose()?.map(|sum| sum as i64));
            }
            Self::Long(builder) => builder.append_option(raw.map(number).transpose()?.map(i64::from_be_bytes)),
            Self::Text(builder) => builder.append_option(raw.map(text).transpose()?),
            Self::Texts(builder) => match raw {
                Some(raw) => {
                    texts(raw, builder.values())?;
                    builder.append(true);
                }
                None => builder.append(false),
            },
            Self::Decimal(builder, scale) => {
                let scale = *scale;
                builder.append_option(raw.map(|raw| decimal(raw, scale)).transpose()?);
            }
            Self::Own(_) | Self::Rest(_) => return self.push_json(raw.map(jsonb).transpose()?),
        }
        Ok(())
    }

    fn push_json(&mut self, json: Option<&str>) -> Result<(), Misfit> {
        let json = json.filter(|json| *json != "null");
        match self {
            Self::Rest(builder) => builder.append_option(json.map(compact)),
            Self::Own(own) => {
                let value = json.map(|json| parse(json).ok_or("a value that is no JSON")).transpose()?;
                own.push(value.as_ref().unwrap_or(&Json::Null));
            }
            _ => return Err("JSON for a core column".into()),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Time(builder) => ArrayBuilder::finish(builder),
            Self::Int(builder) => ArrayBuilder::finish(builder),
            Self::Long(builder) => ArrayBuilder::finish(builder),
            Self::Text(builder) | Self::Rest(builder) => ArrayBuilder::finish(builder),
            Self::Texts(builder) => ArrayBuilder::finish(builder),
            Self::Decimal(builder, _) => ArrayBuilder::finish(builder),
            Self::Own(own) => own.finish(),
        }
    }
}

/// A column of the type of `field`, from the values of a column of a table as PostgreSQL sends them in binary; own fields come as
/// `jsonb`.
///
/// # Errors
/// What is wrong: a type that no table has, or a value that is none of its type.
pub fn column_of(field: &Field, own: bool, values: &[Option<&[u8]>]) -> Result<ArrayRef, String> {
    let place = if own { Place::Json(0) } else { Place::Plain(0) };
    let mut column = Values::new(field, &place)?;
    for value in values {
        column.push(*value, &Type::UNKNOWN)?;
    }
    Ok(column.finish())
}

impl Own {
    fn new(kind: FieldType) -> Self {
        match (kind.scalar, kind.list) {
            (Scalar::Bool, false) => Self::Bool(BooleanBuilder::new()),
            (Scalar::Int, false) => Self::Int(Int64Builder::new()),
            (Scalar::Float, false) => Self::Float(Float64Builder::new()),
            (Scalar::Text, false) => Self::Text(StringBuilder::new()),
            (Scalar::Bool, true) => Self::Bools(ListBuilder::new(BooleanBuilder::new())),
            (Scalar::Int, true) => Self::Ints(ListBuilder::new(Int64Builder::new())),
            (Scalar::Float, true) => Self::Floats(ListBuilder::new(Float64Builder::new())),
            (Scalar::Text, true) => Self::Texts(ListBuilder::new(StringBuilder::new())),
        }
    }

    /// Appends a value brought to the type of the field, as the other sides of a table bring theirs: a scalar is a list of
    /// one, of a list for a scalar the first item counts, null stays null.
    fn push(&mut self, value: &Json<'_>) {
        match self {
            Self::Bool(builder) => builder.append_option(boolean(first(value))),
            Self::Int(builder) => builder.append_option(integer(first(value))),
            Self::Float(builder) => builder.append_option(float(first(value))),
            Self::Text(builder) => builder.append_option(words(first(value))),
            Self::Bools(builder) => {
                items(value, |item| builder.values().append_option(boolean(item)));
                builder.append(*value != Json::Null);
            }
            Self::Ints(builder) => {
                items(value, |item| builder.values().append_option(integer(item)));
                builder.append(*value != Json::Null);
            }
            Self::Floats(builder) => {
                items(value, |item| builder.values().append_option(float(item)));
                builder.append(*value != Json::Null);
            }
            Self::Texts(builder) => {
                items(value, |item| builder.values().append_option(words(item)));
                builder.append(*value != Json::Null);
            }
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(builder) => ArrayBuilder::finish(builder),
            Self::Int(builder) => ArrayBuilder::finish(builder),
            Self::Float(builder) => ArrayBuilder::finish(builder),
            Self::Text(builder) => ArrayBuilder::finish(builder),
            Self::Bools(builder) => ArrayBuilder::finish(builder),
            Self::Ints(builder) => ArrayBuilder::finish(builder),
            Self::Floats(builder) => ArrayBuilder::finish(builder),
            Self::Texts(builder) => ArrayBuilder::finish(builder),
        }
    }
}

fn first<'a, 'b>(value: &'a Json<'b>) -> &'a Json<'b> {
    match value {
        Json::List(items) => items.first().unwrap_or(&Json::Null),
        scalar => scalar,
    }
}

fn items<'b>(value: &Json<'b>, mut each: impl FnMut(&Json<'b>)) {
    match value {
        Json::Null => {}
        Json::List(items) => items.iter().for_each(each),
        scalar => each(scalar),
    }
}

fn boolean(value: &Json<'_>) -> Option<bool> {
    if let Json::Bool(value) = value { Some(*value) } else { None }
}

fn integer(value: &Json<'_>) -> Option<i64> {
    match value {
        Json::Number(digits) => digits.parse().ok(),
        Json::Text(text) => text.parse().ok(),
        _ => None,
    }
}

/// What is not finite is written as text: JSON has no number for it.
fn float(value: &Json<'_>) -> Option<f64> {
    match value {
        Json::Number(digits) => digits.parse().ok(),
        Json::Text(text) => text.parse().ok(),
        _ => None,
    }
}

/// A value as text, as Arrow casts it: a float that is whole has no point.
fn words(value: &Json<'_>) -> Option<String> {
    Some(match value {
        Json::Null => return None,
        Json::Bool(value) => value.to_string(),
        Json::Text(text) => text.to_string(),
        Json::Number(digits) => match (digits.parse::<i64>(), digits.parse::<f64>()) {
            (Err(_), Ok(float)) => float.to_string(),
            _ => (*digits).to_owned(),
        },
        Json::List(_) => return None,
        Json::Object(text) => compact(text),
    })
}

/// A `numeric` as an integer of `10^-scale`; what has more digits after the point is cut.
fn decimal(raw: &[u8], scale: i8) -> Result<i128, Misfit> {
    let word = |at: usize| raw.get(2 * at..2 * at + 2).map(|pair| i16::from_be_bytes([pair[0], pair[1]]));
    let header = (word(0), word(1), word(2));
    let (Some(count), Some(weight), Some(sign)) = header else { return Err("a numeric without its header".into()) };
    // 0xC000 and above: not a number, or infinite.
    if !matches!(sign as u16, 0 | 0x4000) {
        return Err("a numeric that is no number".into());
    }
    let too_large = || "a numeric with more digits than a decimal has".to_owned();
    let mut sum: i128 = 0;
    for nth in 0..count {
        let group = word(4 + usize::from(nth.unsigned_abs())).ok_or("a numeric without its digits")?;
        // The power of ten of the group's last digit, in units of the result.
        let power = 4 * (i32::from(weight) - i32::from(nth)) + i32::from(scale);
        let group = i128::from(group);
        let value = match u32::try_from(power) {
            Ok(power) => 10i128.checked_pow(power).and_then(|ten| group.checked_mul(ten)).ok_or_else(too_large)?,
            Err(_) => group / 10i128.pow(power.unsigned_abs().min(4)),
        };
        sum = sum.checked_add(value).ok_or_else(too_large)?;
    }
    if sign == 0 { Ok(sum) } else { sum.checked_neg().ok_or_else(too_large) }
}

/// The items of a `text[]` of one dimension.
fn texts(raw: &[u8], out: &mut StringBuilder) -> Result<(), Misfit> {
    let int = |at: usize| raw.get(at..at + 4).map(|four| i32::from_be_bytes([four[0], four[1], four[2], four[3]]));
    let cut = || "an array that ends early".to_owned();
    match int(0).ok_or_else(cut)? {
        0 => return Ok(()),
        1 => {}
        dimensions => return Err(format!("an array of {dimensions} dimensions")),
    }
    let count = int(12).ok_or_else(cut)?;
    let mut at = 20;
    for _ in 0..count {
        let length = int(at).ok_or_else(cut)?;
        at += 4;
        match usize::try_from(length) {
            Err(_) => out.append_null(),
            Ok(length) => {
                let item = at.checked_add(length).and_then(|end| raw.get(at..end)).ok_or_else(cut)?;
                out.append_value(text(item)?);
                at += length;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Array;
    use arrow::util::display::array_value_to_string;

    fn numeric(weight: i16, sign: u16, groups: &[i16]) -> Vec<u8> {
        let head = [groups.len() as i16, weight, sign as i16, 0];
        head.iter().chain(groups).flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn numerics_become_exact_decimals_and_damage_is_an_error() {
        for (raw, scale, wanted) in [
            (numeric(0, 0, &[]), 15, Some(0)),
            (numeric(0, 0, &[12, 3400]), 15, Some(12_340_000_000_000_000)),
            (numeric(0, 0x4000, &[12, 3400]), 2, Some(-1234)),
            (numeric(1, 0, &[1]), 0, Some(10_000)),
            (numeric(-2, 0, &[5]), 8, Some(5)),
            (numeric(-1, 0, &[1234]), 2, Some(12)),
            (numeric(0, 0xC000, &[]), 2, None),
            (numeric(40, 0, &[1]), 2, None),
            (vec![0, 5, 0, 0, 0, 0, 0, 0], 2, None),
            (vec![0], 2, None),
        ] {
            assert_eq!(decimal(&raw, scale).ok(), wanted, "{raw:?}");
        }
    }

    #[test]
    fn arrays_of_text_are_read_and_damage_is_an_error() {
        let whole: Vec<u8> = [
            &1i32.to_be_bytes()[..],
            &1i32.to_be_bytes(),
            &25i32.to_be_bytes(),
            &2i32.to_be_bytes(),
            &1i32.to_be_bytes(),
            &1i32.to_be_bytes(),
            b"a",
            &(-1i32).to_be_bytes(),
        ]
        .concat();
        let mut builder = StringBuilder::new();
        texts(&whole, &mut builder).expect("an array");
        let found = builder.finish();
        assert_eq!(found.iter().collect::<Vec<_>>(), [Some("a"), None]);
        for end in 4..whole.len() {
            assert!(texts(&whole[..end], &mut builder).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn values_of_own_fields_are_brought_to_the_type_of_the_field() {
        let list = FieldType::list_of;
        for (json, kind, wanted) in [
            ("2.0", FieldType::TEXT, "2"),
            ("2.50", FieldType::TEXT, "2.5"),
            ("7", FieldType::TEXT, "7"),
            ("true", FieldType::TEXT, "true"),
            ("[\"a\", \"b\"]", FieldType::TEXT, "a"),
            ("7", FieldType::FLOAT, "7.0"),
            ("\"NaN\"", FieldType::FLOAT, "NaN"),
            ("9007199254740993", FieldType::INT, "9007199254740993"),
            ("\"x\"", FieldType::INT, ""),
            ("false", FieldType::BOOL, "false"),
            ("22", list(Scalar::Int), "[22]"),
            ("[80, null, 443]", list(Scalar::Int), "[80, , 443]"),
            ("[]", list(Scalar::Int), "[]"),
            ("[1, 2.5, \"x\"]", list(Scalar::Text), "[1, 2.5, x]"),
            ("null", list(Scalar::Text), ""),
        ] {
            let mut values = Values::Own(Own::new(kind));
            values.push_json(Some(json)).expect("JSON");
            let column = values.finish();
            assert_eq!(column.data_type(), &kind.data_type());
            assert_eq!(array_value_to_string(&column, 0).expect("shown"), wanted, "{json} as {kind:?}");
        }
    }
}
