//! Moves sorts with a limit and simple aggregates into the question to the store of history.
//!
//! The rule runs first, when a plan is as the planner made it: `Sort(fetch)` or `Aggregate(Partial)` over projections over
//! a table, which is a [`HistoryRowsExec`] and, beside it under a union, the log tail. Of a sort the store is asked for the
//! first rows only; the sort stays where it is. Of an aggregate the store is asked for its partial results, the tail computes
//! its own, and the final aggregate above puts both together, as it does with any two partitions.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use tidegate_events::timestamp_type;
use tidegate_pipeline::history_rows::{ColumnName, Order, Output, RowsAsk, TimeUnit};

use super::exec::{HistoryAnswer, HistoryRowsExec};
use super::filter::comparable;
use crate::leaf::LeafExec;

type Plan = Arc<dyn ExecutionPlan>;
type Expr = Arc<dyn PhysicalExpr>;

/// The rule.
#[derive(Debug)]
pub(crate) struct AskMore;

impl PhysicalOptimizerRule for AskMore {
    fn optimize(&self, plan: Plan, _config: &ConfigOptions) -> Result<Plan> {
        plan.transform_down(|node| {
            let asked = if let Some(sort) = node.downcast_ref::<SortExec>() {
                sorted(sort, &node)?
            } else if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
                grouped(aggregate)?
            } else {
                None
            };
            Ok(asked.map_or_else(|| Transformed::no(node), Transformed::yes))
        })
        .data()
    }

    fn name(&self) -> &str {
        "ask_more_of_history"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A sort with a limit, whose history is asked for no more rows than that.
fn sorted(sort: &SortExec, node: &Plan) -> Result<Option<Plan>> {
    let Some(limit) = sort.fetch() else { return Ok(None) };
    let steps: Vec<PhysicalSortExpr> = sort.expr().iter().cloned().collect();
    let Some(input) = first_rows(sort.input(), &steps, limit)? else { return Ok(None) };
    over(node, input).map(Some)
}

fn first_rows(plan: &Plan, steps: &[PhysicalSortExpr], limit: usize) -> Result<Option<Plan>> {
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let below = |step: &PhysicalSortExpr| {
            Some(PhysicalSortExpr { expr: below(&step.expr, projection)?, options: step.options })
        };
        let Some(steps) = steps.iter().map(below).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let Some(input) = first_rows(projection.input(), &steps, limit)? else { return Ok(None) };
        return over(plan, input).map(Some);
    }
    if plan.is::<UnionExec>() {
        let mut children: Vec<Plan> = plan.children().into_iter().cloned().collect();
        let mut found = false;
        for child in &mut children {
            if let Some(asked) = first_rows(child, steps, limit)? {
                *child = asked;
                found = true;
            }
        }
        return if found { UnionExec::try_new(children).map(Some) } else { Ok(None) };
    }
    let Some(history) = plain(plan) else { return Ok(None) };
    let ask = history.ask();
    let order = |step: &PhysicalSortExpr| {
        let column = core_column(&step.expr, ask)?;
        Some(Order { column, descending: step.options.descending, nulls_first: step.options.nulls_first })
    };
    let Some(order) = steps.iter().map(order).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let ask = RowsAsk { order, limit: Some(limit as u64), ..ask.clone() };
    let schema = ask.schema.clone();
    Ok(Some(Arc::new(LeafExec::new(history.with_ask(ask, schema)))))
}

fn over(plan: &Plan, input: Plan) -> Result<Plan> {
    plan.clone().replace_children(vec![input], ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// The union of what history and the rest give for a partial aggregate.
fn grouped(aggregate: &AggregateExec) -> Result<Option<Plan>> {
    let groups = aggregate.group_expr();
    let simple = *aggregate.mode() == AggregateMode::Partial
        && (groups.is_single() || groups.is_true_no_grouping())
        && aggregate.limit_options().is_none()
        && aggregate.filter_expr().iter().all(Option::is_none);
    if !simple {
        return Ok(None);
    }
    let mut projections: Vec<&ProjectionExec> = Vec::new();
    let mut input = aggregate.input();
    while let Some(projection) = input.downcast_ref::<ProjectionExec>() {
        projections.push(projection);
        input = projection.input();
    }
    let parts: Vec<&Plan> = if input.is::<UnionExec>() { input.children() } else { vec![input] };
    let (histories, rest): (Vec<&Plan>, Vec<&Plan>) = parts.into_iter().partition(|part| plain(part).is_some());
    let [history] = histories[..] else { return Ok(None) };
    let Some(history) = plain(history) else { return Ok(None) };
    let base = |expr: &Expr| projections.iter().try_fold(expr.clone(), |expr, projection| below(&expr, projection));
    let ask = history.ask();
    let keys = groups.expr().iter().map(|(expr, _)| key(&base(expr)?, ask));
    let values = aggregate.aggr_expr().iter().map(|expr| value(expr, &base, ask));
    let Some(outputs) = keys.chain(values).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let schema = aggregate.schema();
    if outputs.is_empty() || !fits(&outputs, ask, &schema) {
        return Ok(None);
    }
    let answer = Arc::new(in_microseconds(&schema));
    let ask = RowsAsk { outputs, schema: answer, grouped: true, order: Vec::new(), ..ask.clone() };
    let asked: Plan = Arc::new(LeafExec::new(history.with_ask(ask, schema)));
    let mut rest: Vec<Plan> = rest.into_iter().cloned().collect();
    let mut tail = match rest.len() {
        0 => return Ok(Some(asked)),
        1 => rest.swap_remove(0),
        _ => UnionExec::try_new(rest)?,
    };
    for projection in projections.iter().rev() {
        tail = Arc::new(ProjectionExec::try_new(projection.expr().to_vec(), tail)?);
    }
    let of_tail = AggregateExec::try_new(
        AggregateMode::Partial,
        groups.clone(),
        aggregate.aggr_expr().to_vec(),
        aggregate.filter_expr().to_vec(),
        tail,
        aggregate.input_schema(),
    )?;
    UnionExec::try_new(vec![asked, Arc::new(of_tail)]).map(Some)
}

/// History that is asked for rows, all that meet its filters.
fn plain(plan: &Plan) -> Option<&HistoryAnswer> {
    plan.downcast_ref::<HistoryRowsExec>()
        .map(LeafExec::leaf)
        .filter(|history| !history.ask().grouped && history.ask().limit.is_none() && history.ask().order.is_empty())
}

/// An expression on the columns of a projection as one on the columns below it.
fn below(expr: &Expr, projection: &ProjectionExec) -> Option<Expr> {
    let columns = projection.expr();
    let moved = expr.clone().transform_up(|expr| {
        let column = expr.downcast_ref::<Column>().and_then(|column| columns.get(column.index()));
        Ok(match column.map(|column| column.expr.clone()) {
            Some(below) => Transformed::new(below, true, datafusion::common::tree_node::TreeNodeRecursion::Jump),
            None => Transformed::no(expr),
        })
    });
    moved.data().ok()
}

/// The name of a core column that the store compares as we do, if an expression is one.
fn core_column(expr: &Expr, ask: &RowsAsk) -> Option<ColumnName> {
    match ask.outputs.get(expr.downcast_ref::<Column>()?.index())? {
        Output::Column(name) => comparable(&ask.dataset.core_schema(), name).then(|| name.clone()),
        _ => None,
    }
}

fn key(expr: &Expr, ask: &RowsAsk) -> Option<Output> {
    if let Some(name) = core_column(expr, ask) {
        return Some(Output::Column(name));
    }
    let call = expr.downcast_ref::<ScalarFunctionExpr>()?;
    let literal = |at: usize| call.args().get(at)?.downcast_ref::<Literal>().map(|literal| literal.value().clone());
    // Times may be brought to another unit before they are cut.
    let time = call.args().get(1)?;
    let other_unit = |cast: &&CastExpr| matches!(cast.cast_type(), DataType::Timestamp(_, Some(_)));
    let time = time.downcast_ref::<CastExpr>().filter(other_unit).map_or(time, |cast| cast.expr());
    let column = core_column(time, ask).filter(|name| is_time(ask, name))?;
    match (call.name(), call.args().len()) {
        ("date_trunc", 2) => {
            let unit = literal(0)?;
            let unit = unit.try_as_str()??.to_lowercase();
            let unit = TimeUnit::ALL.into_iter().find(|known| known.as_str() == unit)?;
            Some(Output::TimeTrunc(unit, column))
        }
        ("date_bin", 2 | 3) => {
            let ScalarValue::IntervalMonthDayNano(Some(width)) = literal(0)? else { return None };
            let origin_us = match call.args().len() {
                2 => 0,
                _ => match literal(2)? {
                    ScalarValue::TimestampMicrosecond(Some(us), Some(_)) => us,
                    ScalarValue::TimestampNanosecond(Some(ns), Some(_)) if ns % 1000 == 0 => ns / 1000,
                    _ => return None,
                },
            };
            let day_us = i64::from(width.days).checked_mul(86_400_000_000)?;
            let width_us = day_us.checked_add(width.nanoseconds / 1000)?;
            let whole = width.months == 0 && width.nanoseconds % 1000 == 0 && width_us > 0;
            whole.then_some(Output::TimeBin { width_us, origin_us, column })
        }
        _ => None,
    }
}

fn value(expr: &AggregateFunctionExpr, base: &dyn Fn(&Expr) -> Option<Expr>, ask: &RowsAsk) -> Option<Output> {
    if expr.is_distinct() || !expr.order_bys().is_empty() || expr.is_reversed() {
        return None;
    }
    let arguments = expr.expressions();
    let argument = match &arguments[..] {
        [] if expr.fun().name() == "count" => return Some(Output::Count),
        [argument] => base(argument)?,
        _ => return None,
    };
    match expr.fun().name() {
        "count" => match argument.downcast_ref::<Literal>() {
            Some(constant) if !constant.value().is_null() => Some(Output::Count),
            Some(_) => None,
            None => core_column(&argument, ask).map(Output::CountOf),
        },
        "min" => core_column(&argument, ask).map(Output::Min),
        "max" => core_column(&argument, ask).map(Output::Max),
        "sum" => {
            // Integers are widened before they are summed.
            let widened = argument.downcast_ref::<CastExpr>().filter(|cast| *cast.cast_type() == DataType::Int64);
            core_column(widened.map_or(&argument, |cast| cast.expr()), ask).map(Output::Sum)
        }
        _ => None,
    }
}

fn is_time(ask: &RowsAsk, name: &str) -> bool {
    let core = ask.dataset.core_schema();
    core.field_with_name(name).is_ok_and(|field| *field.data_type() == timestamp_type())
}

fn is_utc(kind: &DataType) -> bool {
    matches!(kind, DataType::Timestamp(_, Some(zone)) if matches!(&**zone, "UTC" | "+00:00" | "Z"))
}

/// The columns as a store answers them.
fn in_microseconds(schema: &Schema) -> Schema {
    let column = |field: &Arc<Field>| match field.data_type() {
        DataType::Timestamp(..) => field.as_ref().clone().with_data_type(timestamp_type()),
        _ => field.as_ref().clone(),
    };
    Schema::new(schema.fields().iter().map(column).collect::<Vec<_>>())
}

/// Whether the answers to `outputs` have the types that the final aggregate expects of a partial one.
fn fits(outputs: &[Output], ask: &RowsAsk, schema: &Schema) -> bool {
    let core = ask.dataset.core_schema();
    let kind = |name: &str| core.field_with_name(name).ok().map(|field| field.data_type().clone());
    let fits = |(output, wanted): (&Output, &DataType)| match output {
        Output::Column(name) | Output::Min(name) | Output::Max(name) => kind(name).as_ref() == Some(wanted),
        Output::TimeTrunc(..) | Output::TimeBin { .. } => is_utc(wanted),
        Output::Count | Output::CountOf(_) => *wanted == DataType::Int64,
        Output::Sum(name) => match (kind(name), wanted) {
            (Some(DataType::Int32 | DataType::Int64), DataType::Int64) => true,
            (Some(DataType::Decimal128(_, scale)), DataType::Decimal128(38, sum)) => scale == *sum,
            _ => false,
        },
    };
    outputs.len() == schema.fields().len()
        && outputs.iter().zip(schema.fields().iter().map(|field| field.data_type())).all(fits)
}
