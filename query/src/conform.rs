//! Brings a column to the type that a tenant's table has for it, in the log tail and in Parquet alike.
//!
//! A value keeps its meaning: int and float widen, everything becomes text, a scalar beside lists becomes a list of one
//! (null stays null). A file may have a wider type than the tenant's own, when another tenant in it needed one; then the
//! values narrow back.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray, UInt64Array, new_null_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options, take};
use arrow::datatypes::{DataType, Float64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory};

/// `column` as `target`. What cannot be cast is null.
///
/// # Errors
/// When Arrow has no cast between the two types at all.
pub fn conform(column: &ArrayRef, target: &DataType) -> Result<ArrayRef, ArrowError> {
    match (column.data_type(), target) {
        (from, to) if from == to => Ok(column.clone()),
        (DataType::Null, to) => Ok(new_null_array(to, column.len())),
        (DataType::List(_), DataType::List(item)) => {
            let Some(lists) = column.as_list_opt::<i32>() else {
                return Err(ArrowError::CastError("a list that is none".into()));
            };
            let values = cast(lists.values(), item.data_type())?;
            Ok(Arc::new(ListArray::try_new(item.clone(), lists.offsets().clone(), values, lists.nulls().cloned())?))
        }
        (_, DataType::List(item)) => {
            let values = cast(column, item.data_type())?;
            let present = (0..values.len()).map(|row| usize::from(values.is_valid(row)));
            let offsets = OffsetBuffer::from_lengths(present);
            let kept = UInt64Array::from_iter_values(
                (0..values.len()).filter(|row| values.is_valid(*row)).map(|row| row as u64),
            );
            let nulls = values.nulls().cloned();
            let values = if nulls.is_some() { take(&values, &kept, None)? } else { values };
            Ok(Arc::new(ListArray::try_new(item.clone(), offsets, values, nulls)?))
        }
        (DataType::List(_), _) => {
            let Some(lists) = column.as_list_opt::<i32>() else {
                return Err(ArrowError::CastError("a list that is none".into()));
            };
            let first = |row: usize| {
                (lists.is_valid(row) && lists.value_length(row) > 0).then(|| lists.value_offsets()[row] as u64)
            };
            let firsts: UInt64Array = (0..lists.len()).map(first).collect();
            cast(&take(lists.values(), &firsts, None)?, target)
        }
        _ => cast(column, target),
    }
}

fn cast(column: &ArrayRef, target: &DataType) -> Result<ArrayRef, ArrowError> {
    if let (DataType::Float64, DataType::Utf8) = (column.data_type(), target) {
        // Integers that met a float in one file are floats there and integers in the log: as text they are the same.
        let floats = column.as_primitive::<Float64Type>();
        return Ok(Arc::new(floats.iter().map(|value| value.map(|value| value.to_string())).collect::<StringArray>()));
    }
    cast_with_options(column, target, &CastOptions { safe: true, ..CastOptions::default() })
}

/// An expression that conforms a column of a file to the table's type.
#[derive(Debug)]
struct ConformExpr {
    column: Arc<dyn PhysicalExpr>,
    target: DataType,
}

impl PartialEq for ConformExpr {
    fn eq(&self, other: &Self) -> bool {
        self.column.eq(&other.column) && self.target == other.target
    }
}

impl Eq for ConformExpr {}

impl Hash for ConformExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.column.hash(state);
        self.target.hash(state);
    }
}

impl fmt::Display for ConformExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.column)
    }
}

impl PhysicalExpr for ConformExpr {
    fn data_type(&self, _input_schema: &Schema) -> Result<DataType> {
        Ok(self.target.clone())
    }

    fn nullable(&self, _input_schema: &Schema) -> Result<bool> {
        Ok(true)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let column = self.column.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(ColumnarValue::Array(conform(&column, &self.target)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.column]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let column = children.pop().unwrap_or_else(|| self.column.clone());
        Ok(Arc::new(Self { column, target: self.target.clone() }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes expressions on the table's columns into expressions on a file's columns.
#[derive(Debug)]
pub struct ConformFactory;

impl PhysicalExprAdapterFactory for ConformFactory {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        Ok(Arc::new(ConformAdapter { table, file }))
    }
}

#[derive(Debug)]
struct ConformAdapter {
    table: SchemaRef,
    file: SchemaRef,
}

impl PhysicalExprAdapter for ConformAdapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let on_file = |expr: Arc<dyn PhysicalExpr>| {
            let Some(column) = expr.downcast_ref::<Column>() else { return Ok(Transformed::no(expr)) };
            let Ok(wanted) = self.table.field_with_name(column.name()) else { return Ok(Transformed::no(expr)) };
            let Some((at, found)) = self.file.column_with_name(column.name()) else {
                return Ok(Transformed::yes(Arc::new(Literal::new(ScalarValue::try_from(wanted.data_type())?)) as _));
            };
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(column.name(), at));
            if found.data_type() == wanted.data_type() {
                return Ok(Transformed::yes(column));
            }
            Ok(Transformed::yes(Arc::new(ConformExpr { column, target: wanted.data_type().clone() }) as _))
        };
        // Bottom up, so that the column inside a new `ConformExpr` is not looked at again.
        expr.transform_up(on_file).data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BooleanArray, Float64Array, Int64Array};
    use arrow::util::display::array_value_to_string;
    use tidegate_events::{FieldType, Scalar};

    fn shown(column: &ArrayRef) -> Vec<String> {
        (0..column.len())
            .map(
                |row| {
                    if column.is_null(row) { "∅".into() } else { array_value_to_string(column, row).expect("shown") }
                },
            )
            .collect()
    }

    #[test]
    fn values_widen_and_narrow_by_type() {
        let ints: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("1"), None, Some("x")]));
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5), None, Some(2.0)]));
        let bools: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]));
        let listed = conform(&ints, &FieldType::list_of(Scalar::Text).data_type()).expect("a list");
        let cases: &[(&ArrayRef, FieldType, [&str; 3])] = &[
            (&ints, FieldType::TEXT, ["1", "∅", "3"]),
            (&ints, FieldType::FLOAT, ["1.0", "∅", "3.0"]),
            (&texts, FieldType::INT, ["1", "∅", "∅"]),
            (&floats, FieldType::TEXT, ["1.5", "∅", "2"]),
            (&bools, FieldType::TEXT, ["true", "∅", "false"]),
            (&ints, FieldType::list_of(Scalar::Int), ["[1]", "∅", "[3]"]),
            (&texts, FieldType::list_of(Scalar::Text), ["[1]", "∅", "[x]"]),
            (&listed, FieldType::TEXT, ["1", "∅", "3"]),
            (&listed, FieldType::list_of(Scalar::Int), ["[1]", "∅", "[3]"]),
        ];
        for (column, kind, wanted) in cases {
            let got = conform(column, &kind.data_type()).expect("a cast");
            assert_eq!(got.data_type(), &kind.data_type());
            assert_eq!(shown(&got), *wanted, "{:?} as {kind:?}", column.data_type());
        }
    }
}
