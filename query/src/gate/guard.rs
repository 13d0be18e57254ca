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
