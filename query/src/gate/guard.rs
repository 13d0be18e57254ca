//! The physical plan made stoppable: joins yield between batches, join conditions ask whether to go on, and constants that
//! would be copied into every row of a batch are bounded.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::logical_expr::sort_properties::ExprProperties;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, SortMergeJoinExec,
};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::unnest::UnnestExec;

use super::functions::bytes;
use super::rows::{BoundedRowsExec, Multiplies};
use crate::error::QueryError;
use crate::meter::Meter;

/// Computed columns of a projection that are not worth a look at the meter each.
const UNWATCHED_COLUMNS: usize = 16;

/// Makes `plan` stoppable, and bounds the rows that go into what multiplies rows. Call it last, after the optimizer.
///
/// # Errors
/// [`QueryError::TooLarge`] for constants that would fill more than `bytes_max` in a batch of `batch_rows`.
pub(crate) fn guard(
    plan: Arc<dyn ExecutionPlan>,
    meter: &Arc<Meter>,
    batch_rows: usize,
    bytes_max: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let node = |plan: Arc<dyn ExecutionPlan>| {
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            bounded_constants(projection, batch_rows, bytes_max)?;
            return watched_projection(projection, meter);
        }
        let multiplies = plan.is::<CrossJoinExec>()
            || plan.is::<NestedLoopJoinExec>()
            || plan.is::<HashJoinExec>()
            || plan.is::<SortMergeJoinExec>()
            || plan.is::<UnnestExec>();
        if !multiplies {
            return Ok(Transformed::no(plan));
        }
        let multiplies = if plan.is::<UnnestExec>() { Multiplies::Lists } else { Multiplies::Rows };
        let children = plan.children().into_iter();
        let children = children.map(|child| Arc::new(BoundedRowsExec::new(child.clone(), multiplies, bytes_max)) as _);
        let children = children.collect();
        let plan = plan.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep))?;
        let plan = match plan.downcast_ref::<NestedLoopJoinExec>() {
            Some(join) => watched_join(join, meter)?,
            None => plan,
        };
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(plan)) as _))
    };
    plan.transform_up(node).data()
}

fn bounded_constants(projection: &ProjectionExec, batch_rows: usize, bytes_max: usize) -> Result<()> {
    let constants = projection.expr().iter().filter_map(|column| column.expr.downcast_ref::<Literal>());
    let sizes = constants.map(|constant| Ok(bytes(&constant.value().to_array()?)));
    let sum = sizes.sum::<Result<u128>>()?;
    if sum * batch_rows as u128 <= bytes_max as u128 {
        return Ok(());
    }
    let refused = QueryError::TooLarge(format!("constants of {sum} bytes in every row"));
    Err(DataFusionError::External(Box::new(refused)))
}

/// A projection that computes many columns, each of which may copy a wide one, asks between them whether to go on.
fn watched_projection(projection: &ProjectionExec, meter: &Arc<Meter>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let computed = |expr: &Arc<dyn PhysicalExpr>| !expr.is::<Literal>() && !expr.is::<Column>();
    if projection.expr().iter().filter(|column| computed(&column.expr)).count() <= UNWATCHED_COLUMNS {
        return Ok(Transformed::no(Arc::new(projection.clone())));
    }
    let watched = projection.expr().iter().map(|column| {
        let expr = column.expr.clone();
        let expr = if computed(&expr) { Arc::new(Watched { inner: expr, meter: meter.clone() }) as _ } else { expr };
        ProjectionExpr { expr, alias: column.alias.clone() }
    });
    let watched = ProjectionExec::try_new(watched.collect::<Vec<_>>(), projection.input().clone())?;
    Ok(Transformed::yes(Arc::new(watched)))
}

fn watched_join(join: &NestedLoopJoinExec, meter: &Arc<Meter>) -> Result<Arc<dyn ExecutionPlan>> {
    let filter = join.filter().map(|filter| {
        let watched = Arc::new(Watched { inner: filter.expression().clone(), meter: meter.clone() });
        JoinFilter::new(watched, filter.column_indices().to_vec(), filter.schema().clone())
    });
    let builder = NestedLoopJoinExecBuilder::new(join.left().clone(), join.right().clone(), *join.join_type());
    let join = builder.with_filter(filter).with_projection_ref(join.projection().clone()).build()?;
    Ok(Arc::new(join))
}

/// An expression that is an error once its query is stopped.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn PhysicalExpr>,
    meter: Arc<Meter>,
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

impl PhysicalExpr for Watched {
    fn data_type(&self, input_schema: &Schema) -> Result<DataType> {
        self.inner.data_type(input_schema)
    }

    fn nullable(&self, input_schema: &Schema) -> Result<bool> {
        self.inner.nullable(input_schema)
    }

    fn return_field(&self, input_schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.meter.check()?;
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let inner = children.pop().unwrap_or_else(|| self.inner.clone());
        Ok(Arc::new(Self { inner, meter: self.meter.clone() }))
    }

    fn get_properties(&self, children: &[ExprProperties]) -> Result<ExprProperties> {
        // The order of what is watched is that of what it watches.
        Ok(children.first().cloned().unwrap_or_else(ExprProperties::new_unknown))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use datafusion::physical_expr::expressions::{NotExpr, lit};
    use datafusion::physical_plan::displayable;
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    fn meter() -> Arc<Meter> {
        Arc::new(Meter::new(Instant::now() + Duration::from_secs(600), 600_000))
    }

    fn flag() -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new("a", 0))
    }

    fn projection(exprs: Vec<Arc<dyn PhysicalExpr>>) -> Arc<dyn ExecutionPlan> {
        let schema = Schema::new(vec![arrow::datatypes::Field::new("a", DataType::Boolean, true)]);
        let exprs = exprs.into_iter().enumerate().map(|(at, expr)| ProjectionExpr { expr, alias: format!("c{at}") });
        let input = Arc::new(EmptyExec::new(Arc::new(schema)));
        Arc::new(ProjectionExec::try_new(exprs.collect::<Vec<_>>(), input).expect("a projection"))
    }

    #[test]
    fn a_projection_that_computes_many_columns_is_watched_at_each_of_them() {
        for (computed, plain, wanted) in [(0, 60, 0), (16, 0, 0), (16, 60, 0), (17, 0, 17), (17, 60, 17)] {
            let columns = (0..computed).map(|_| Arc::new(NotExpr::new(flag())) as Arc<dyn PhysicalExpr>);
            let others = (0..plain).map(|at| if at % 2 == 0 { flag() } else { lit(true) });
            let plan = projection(columns.chain(others).collect());
            let meter = meter();
            let guarded = guard(plan.clone(), &meter, 8192, 1 << 30).expect("a plan");
            assert_eq!(guarded.schema(), plan.schema());
            let columns = guarded.downcast_ref::<ProjectionExec>().expect("a projection").expr().to_vec();
            let (watched, others): (Vec<_>, Vec<_>) =
                columns.into_iter().map(|column| column.expr).partition(|expr| expr.is::<Watched>());
            assert_eq!(watched.len(), wanted, "{computed} computed of {}", computed + plain);
            assert_eq!(others.len(), computed + plain - wanted);
            let rows = RecordBatch::new_empty(plan.children()[0].schema());
            assert!(watched.iter().all(|expr| expr.evaluate(&rows).is_ok()));
            meter.stop(QueryError::Cancelled);
            assert!(watched.iter().all(|expr| expr.evaluate(&rows).is_err()), "nothing more is computed");
        }
    }

    #[test]
    fn constants_are_bounded_by_what_a_batch_of_them_takes() {
        // 96 bytes and an offset of 4.
        let text = || lit("x".repeat(96).as_str());
        for (constants, rows, bytes_max, fits) in [
            (1, 10, 1_000, true),
            (1, 10, 999, false),
            (1, 11, 1_000, false),
            (2, 10, 2_000, true),
            (2, 10, 1_999, false),
            (0, 10, 0, true),
        ] {
            let exprs = (0..constants).map(|_| text()).chain([flag()]).collect();
            let guarded = guard(projection(exprs), &meter(), rows, bytes_max);
            assert_eq!(guarded.is_ok(), fits, "{constants} constants, {rows} rows, {bytes_max} bytes");
        }
    }

    /// The operators of a statement's plan after the guard, one a line.
    async fn guarded(sql: &str, hashes: bool) -> String {
        let mut config = SessionConfig::new().with_target_partitions(2);
        config.options_mut().optimizer.prefer_hash_join = hashes;
        let context = SessionContext::new_with_config(config);
        for name in ["a", "b"] {
            let column = Arc::new(arrow::array::Int64Array::from(vec![1, 2])) as arrow::array::ArrayRef;
            context.register_batch(name, RecordBatch::try_from_iter([("x", column)]).expect("rows")).expect("a table");
        }
        let plan = context.sql(sql).await.expect("a plan").create_physical_plan().await.expect("a plan");
        let plan = guard(plan, &meter(), 8192, 1 << 20).expect("a plan");
        displayable(plan.as_ref()).indent(false).to_string()
    }

    #[tokio::test]
    async fn what_multiplies_rows_yields_and_is_given_bounded_rows_only() {
        for (sql, hashes, operator, inputs) in [
            ("SELECT a.x, b.x FROM a CROSS JOIN b", true, "CrossJoinExec", 2),
            ("SELECT a.x, b.x FROM a JOIN b ON a.x + b.x < 3", true, "NestedLoopJoinExec", 2),
            ("SELECT a.x, b.x FROM a JOIN b ON a.x = b.x", true, "HashJoinExec", 2),
            ("SELECT a.x, b.x FROM a JOIN b ON a.x = b.x", false, "SortMergeJoinExec", 2),
            ("SELECT unnest([x, x]) FROM a", true, "UnnestExec", 1),
        ] {
            let plan = guarded(sql, hashes).await;
            let lines: Vec<&str> = plan.lines().map(str::trim).collect();
            let at = lines.iter().position(|line| line.starts_with(operator));
            let at = at.unwrap_or_else(|| panic!("no {operator}: {plan}"));
            assert!(at > 0 && lines[at - 1].starts_with("CooperativeExec"), "{plan}");
            let bounded = lines.iter().filter(|line| line.starts_with("BoundedRowsExec")).count();
            assert_eq!(bounded, inputs, "{plan}");
        }
        let plan = guarded("SELECT x, count(*) FROM a GROUP BY x ORDER BY x", true).await;
        assert!(!plan.contains("BoundedRowsExec"), "{plan}");
    }
}
