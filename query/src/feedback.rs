//! The view `alert_feedback`: what people said last about each alert, read from the rows of `changes`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, Result};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprFunctionExt, LogicalPlanBuilder, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, lit,
};
use tidegate_events::{Dataset, timestamp_type};

/// The name of the view.
pub(crate) const ALERT_FEEDBACK: &str = "alert_feedback";

/// The columns that are members of the body, in order.
const MEMBERS: [&str; 5] = ["rule_id", "group_key", "verdict", "comment", "silence_scope"];
/// The end of a silence in microseconds, shown as the time `silence_until`.
const UNTIL: &str = "silence_until_us";

/// The view on a table of changes.
///
/// # Errors
/// DataFusion's own, when the table is not one of changes.
pub(crate) fn view(changes: Arc<dyn TableProvider>) -> Result<ViewTable> {
    let said = column("kind").eq(lit(ALERT_FEEDBACK)).and(column("action").not_eq(lit("delete")));
    let newest = vec![column(Dataset::TIME).sort(false, false), column(Dataset::EVENT_ID).sort(false, false)];
    let nth = row_number().partition_by(vec![column("target_id")]).order_by(newest).build()?;
    let numbered = LogicalPlanBuilder::scan(Dataset::Changes.table_name(), provider_as_source(changes), None)?
        .filter(said)?
        .window(vec![nth])?;
    let nth = numbered.schema().fields().last().map(|field| column(field.name()));
    let mut columns = vec![column("target_id").alias("alert_id")];
    columns.extend(MEMBERS.map(|name| member(name, DataType::Utf8).alias(name)));
    columns.push(member(UNTIL, timestamp_type()).alias("silence_until"));
    columns.extend([column("actor"), column(Dataset::TIME)]);
    let last = nth.map_or(lit(false), |nth| nth.eq(lit(1u64)));
    let plan = numbered.filter(last)?.project(columns)?.build()?;
    Ok(ViewTable::new(plan, None))
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

/// A member of the body, null where the body has none.
fn member(name: &'static str, data_type: DataType) -> Expr {
    let signature = Signature::exact(vec![DataType::Utf8], Volatility::Immutable);
    ScalarUDF::from(BodyMember { name, data_type, signature }).call(vec![column("body")])
}

/// Reads one member of a JSON object. Part of the view only: no statement can name it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct BodyMember {
    name: &'static str,
    data_type: DataType,
    signature: Signature,
}

impl ScalarUDFImpl for BodyMember {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let bodies = ColumnarValue::values_to_arrays(&args.args)?;
        let bodies = bodies.first().and_then(|bodies| bodies.as_string_opt::<i32>());
        let member = |row: usize| {
            let bodies = bodies.filter(|bodies| bodies.len() > row && bodies.is_valid(row))?;
            let body: serde_json::Value = serde_json::from_str(bodies.value(row)).ok()?;
            body.get(self.name).cloned()
        };
        let rows = 0..args.number_rows;
        let column: ArrayRef = if self.data_type == DataType::Utf8 {
            let texts = rows.map(|row| member(row)?.as_str().map(str::to_owned));
            Arc::new(texts.collect::<StringArray>())
        } else {
            let times: TimestampMicrosecondArray = rows.map(|row| member(row)?.as_i64()).collect();
            Arc::new(times.with_timezone("UTC"))
        };
        Ok(ColumnarValue::Array(column))
    }
}
