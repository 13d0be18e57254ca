//! Which filters a store of history can be asked, in its own closed words.
//!
//! A filter on core columns is asked only where its meaning is surely the same: equality and order of integers, times,
//! decimals and text (by bytes), null tests, `LIKE` without escapes. On own fields, whose values have the types that events
//! brought, the store may let more rows through, and the filter is evaluated once more here.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Like, Operator, expr::InList};
use tidegate_events::Dataset;
use tidegate_pipeline::history_rows::{Comparison, Filter, Value};

/// Times that every store knows, in microseconds: the years -4000 to 9999.
const TIMES: std::ops::RangeInclusive<i64> = -188_000_000_000_000_000..=253_402_300_799_999_999;

/// What of a filter the store is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) filter: Filter,
    /// Whether exactly the rows that the store lets through meet the filter.
    pub(crate) exact: bool,
}

/// The words for a filter on the columns of a table; `None` when the store cannot be asked for it.
pub(crate) fn asked(expr: &Expr, dataset: Dataset, table: &Schema) -> Option<Asked> {
    Columns { core: &dataset.core_schema(), table }.asked(expr)
}

/// Whether a column is one of `core` whose values the store compares, sorts and groups as this crate does.
pub(crate) fn comparable(core: &Schema, name: &str) -> bool {
    core.field_with_name(name).is_ok_and(|field| {
        use DataType::{Decimal128, Int32, Int64, Timestamp, Utf8};
        matches!(field.data_type(), Utf8 | Int32 | Int64 | Timestamp(..) | Decimal128(..))
    })
}

struct Columns<'a> {
    core: &'a Schema,
    table: &'a Schema,
}

/// A column with its type.
enum Of<'a> {
    Core(&'a str, &'a DataType),
    Own(&'a str, &'a DataType),
}

impl<'a> Columns<'a> {
    fn asked(&self, expr: &'a Expr) -> Option<Asked> {
        let exactly = |filter| Some(Asked { filter, exact: true });
        match expr {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                match (self.asked(left), self.asked(right)) {
                    (Some(left), Some(right)) => {
                        let exact = left.exact && right.exact;
                        Some(Asked { filter: Filter::And(vec![left.filter, right.filter]), exact })
                    }
                    // Less than the whole is asked: more rows come.
                    (Some(one), None) | (None, Some(one)) => Some(Asked { exact: false, ..one }),
                    (None, None) => None,
                }
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                let (left, right) = (self.asked(left)?, self.asked(right)?);
                let exact = left.exact && right.exact;
                Some(Asked { filter: Filter::Or(vec![left.filter, right.filter]), exact })
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let op = comparison(*op)?;
                match (&**left, &**right) {
                    (column, Expr::Literal(value, _)) => self.compare(column, op, value),
                    (Expr::Literal(value, _), column) => self.compare(column, mirrored(op), value),
                    _ => None,
                }
            }
            Expr::Not(inner) => {
                self.asked(inner).filter(|inner| inner.exact).and_then(|inner| exactly(not(inner.filter)))
            }
            Expr::Column(_) => match self.column(expr)? {
                Of::Own(name, DataType::Boolean) => some(Filter::OwnIn(name.into(), vec![Value::Bool(true)])),
                _ => None,
            },
            Expr::IsNull(inner) => match self.column(inner)? {
                Of::Core(name, _) => exactly(Filter::IsNull(name.into())),
                Of::Own(..) => None,
            },
            Expr::IsNotNull(inner) => match self.column(inner)? {
                Of::Core(name, _) => exactly(not(Filter::IsNull(name.into()))),
                Of::Own(name, _) => some(Filter::OwnHas(name.into())),
            },
            Expr::Between(Between { expr, negated, low, high }) => {
                let (Expr::Literal(low, _), Expr::Literal(high, _)) = (&**low, &**high) else { return None };
                let low = self.compare(expr, Comparison::GtEq, low)?;
                let high = self.compare(expr, Comparison::LtEq, high)?;
                let both = Filter::And(vec![low.filter, high.filter]);
                match (negated, low.exact && high.exact) {
                    (false, exact) => Some(Asked { filter: both, exact }),
                    (true, true) => exactly(not(both)),
                    (true, false) => None,
                }
            }
            Expr::InList(list) => self.in_list(list),
            Expr::Like(like) => self.like(like),
            _ => None,
        }
    }

    fn column(&self, expr: &'a Expr) -> Option<Of<'a>> {
        let Expr::Column(column) = expr else { return None };
        let name = column.name.as_str();
        if let Ok(field) = self.core.field_with_name(name) {
            return Some(Of::Core(name, field.data_type()));
        }
        let field = self.table.field_with_name(name).ok()?;
        (name != tidegate_events::REST_COLUMN).then(|| Of::Own(name, field.data_type()))
    }

    fn compare(&self, column: &'a Expr, op: Comparison, value: &ScalarValue) -> Option<Asked> {
        match self.column(column)? {
            Of::Core(name, kind) => {
                let filter = Filter::Compare(name.into(), op, core_value(value, kind)?);
                Some(Asked { filter, exact: true })
            }
            Of::Own(name, kind) if op == Comparison::Eq => {
                some(Filter::OwnIn(name.into(), vec![own_value(value, kind)?]))
            }
            Of::Own(name, kind @ DataType::Int64) if op != Comparison::NotEq => {
                some(Filter::OwnCompare(name.into(), op, own_value(value, kind)?))
            }
            Of::Own(..) => None,
        }
    }

    fn in_list(&self, list: &'a InList) -> Option<Asked> {
        let literal = |item: &'a Expr| if let Expr::Literal(value, _) = item { Some(value) } else { None };
        let literals: Vec<_> = list.list.iter().map(literal).collect::<Option<_>>()?;
        if literals.is_empty() {
            return None;
        }
        match self.column(&list.expr)? {
            Of::Core(name, kind) => {
                let values = literals.into_iter().map(|value| core_value(value, kind)).collect::<Option<_>>()?;
                let filter = Filter::In(name.into(), values);
                Some(Asked { filter: if list.negated { not(filter) } else { filter }, exact: true })
            }
            Of::Own(name, kind) if !list.negated => {
                let values = literals.into_iter().map(|value| own_value(value, kind)).collect::<Option<_>>()?;
                some(Filter::OwnIn(name.into(), values))
            }
            Of::Own(..) => None,
        }
    }

    fn like(&self, like: &'a Like) -> Option<Asked> {
        let Of::Core(name, DataType::Utf8) = self.column(&like.expr)? else { return None };
        let Expr::Literal(pattern, _) = &*like.pattern else { return None };
        let pattern = text(pattern).filter(|pattern| !pattern.contains('\\'))?;
        // What is upper and lower case is not the same everywhere.
        if like.case_insensitive || like.escape_char.is_some_and(|escape| escape != '\\') {
            return None;
        }
        let filter = Filter::Like(name.into(), pattern);
        Some(Asked { filter: if like.negated { not(filter) } else { filter }, exact: true })
    }
}

fn some(filter: Filter) -> Option<Asked> {
    Some(Asked { filter, exact: false })
}

fn not(filter: Filter) -> Filter {
    Filter::Not(Box::new(filter))
}

fn comparison(op: Operator) -> Option<Comparison> {
    Some(match op {
        Operator::Eq => Comparison::Eq,
        Operator::NotEq => Comparison::NotEq,
        Operator::Lt => Comparison::Lt,
        Operator::LtEq => Comparison::LtEq,
        Operator::Gt => Comparison::Gt,
        Operator::GtEq => Comparison::GtEq,
        _ => return None,
    })
}

/// The comparison with its sides changed.
fn mirrored(op: Comparison) -> Comparison {
    match op {
        Comparison::Lt => Comparison::Gt,
        Comparison::LtEq => Comparison::GtEq,
        Comparison::Gt => Comparison::Lt,
        Comparison::GtEq => Comparison::LtEq,
        same => same,
    }
}

/// A text that a database can hold too.
fn text(value: &ScalarValue) -> Option<Arc<str>> {
    match value {
        ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text)) => {
            (!text.contains('\0')).then(|| text.as_str().into())
        }
        _ => None,
    }
}

fn integer(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::Int32(value) => value.map(i64::from),
        ScalarValue::Int64(value) => *value,
        _ => None,
    }
}

fn core_value(value: &ScalarValue, kind: &DataType) -> Option<Value> {
    match kind {
        DataType::Utf8 => text(value).map(Value::Text),
        DataType::Int32 | DataType::Int64 => integer(value).map(Value::Int),
        DataType::Timestamp(..) => match value {
            ScalarValue::TimestampMicrosecond(Some(us), Some(_)) => TIMES.contains(us).then_some(Value::Time(*us)),
            _ => None,
        },
        DataType::Decimal128(..) => match value {
            ScalarValue::Decimal128(Some(digits), _, scale) => {
                u8::try_from(*scale).ok().map(|scale| Value::Decimal { digits: *digits, scale })
            }
            _ => None,
        },
        _ => None,
    }
}

/// A value that an own field of this type has as itself in the store. A field of text may hold numbers and booleans of
/// events that came before it was text: as text they may be written in another way.
fn own_value(value: &ScalarValue, kind: &DataType) -> Option<Value> {
    match kind {
        DataType::Utf8 => {
            let text = text(value)?;
            let other = text.parse::<f64>().is_ok() || matches!(&*text, "true" | "false");
            (!other).then_some(Value::Text(text))
        }
        DataType::Int64 => integer(value).map(Value::Int),
        DataType::Boolean => match value {
            ScalarValue::Boolean(Some(value)) => Some(Value::Bool(*value)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Field;
    use datafusion::logical_expr::{col, ident, lit, not as not_expr};

    /// What a store is asked for a filter: `=` exactly, `⊇` at least.
    fn shown(expr: &Expr) -> String {
        let mut columns: Vec<_> = Dataset::SecurityEvents.core_schema().fields().iter().cloned().collect();
        let own = [("t", DataType::Utf8), ("n", DataType::Int64), ("f", DataType::Float64), ("b", DataType::Boolean)];
        columns.extend(own.map(|(name, kind)| Arc::new(Field::new(name, kind, true))));
        let table = Schema::new(columns);
        match asked(expr, Dataset::SecurityEvents, &table) {
            None => "-".into(),
            Some(Asked { filter, exact }) => {
                format!("{} {}", if exact { "=" } else { "⊇" }, super::super::exec::shown(&filter))
            }
        }
    }

    #[test]
    fn filters_are_asked_as_far_as_their_meaning_is_the_same() {
        let time = |us: i64| lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())));
        let severity = || col("severity").gt(lit(3i32));
        for (expr, wanted) in [
            (severity(), "= severity > 3"),
            (lit(3i32).gt(col("severity")), "= severity < 3"),
            (col("actor").eq(lit("it's")), "= actor = 'it's'"),
            (col("actor").eq(lit("nul\0")), "-"),
            (col("actor").eq(lit(ScalarValue::Utf8(None))), "-"),
            (col("actor").in_list(vec![lit("a"), lit("b")], true), "= NOT actor IN ('a', 'b')"),
            (col("actor").in_list(vec![lit("a"), lit(ScalarValue::Utf8(None))], false), "-"),
            (col("time").between(time(1), time(2)), "= (time >= 1 AND time <= 2)"),
            (col("time").gt(time(i64::MAX)), "-"),
            (col("message").like(lit("a%b_")), "= message LIKE 'a%b_'"),
            (col("message").like(lit("a\\%")), "-"),
            (col("message").ilike(lit("a%")), "-"),
            (col("asset").is_not_null(), "= NOT asset IS NULL"),
            (not_expr(severity()), "= NOT severity > 3"),
            (severity().and(col("actor").eq(col("asset"))), "⊇ severity > 3"),
            (severity().or(col("actor").eq(col("asset"))), "-"),
            (severity().or(col("asset").is_null()), "= (severity > 3 OR asset IS NULL)"),
            (not_expr(severity().and(ident("t").eq(lit("x")))), "-"),
            (ident("t").eq(lit("x")), "⊇ t = 'x'"),
            (ident("t").eq(lit("1.0")), "-"),
            (ident("t").not_eq(lit("x")), "-"),
            (ident("t").is_not_null(), "⊇ t IS NOT NULL"),
            (ident("t").is_null(), "-"),
            (ident("n").gt(lit(5i64)), "⊇ n > 5"),
            (ident("n").in_list(vec![lit(1i64)], false), "⊇ n = 1"),
            (ident("f").gt(lit(5f64)), "-"),
            (ident("b"), "⊇ b = true"),
            (ident("_rest").is_not_null(), "-"),
            (lit(true), "-"),
        ] {
            assert_eq!(shown(&expr), wanted, "{expr}");
        }
    }
}
