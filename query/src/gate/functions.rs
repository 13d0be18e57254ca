//! Functions that can blow up what they are given, bounded by what they would produce.
//!
//! Before such a function runs on a batch, an upper bound of its result is computed from the sizes of its arguments. Beyond
//! the bound the batch is halved until it fits; a single row that does not fit is an error. Between two pieces the query can
//! be stopped. Lists that a planner writes by itself (`||`, `[1, 2]`) are covered as well: the swap happens on the plan.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::kernels::concat_elements::concat_elements_utf8_many;
use arrow::compute::{concat, max};
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::catalog::{TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue};
use datafusion::functions_table::generate_series::{GenerateSeriesFunc, RangeFunc};
use datafusion::logical_expr::expr::{ScalarFunction, WindowFunction};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility, WindowFunctionDefinition,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use crate::error::QueryError;
use crate::meter::Meter;

/// A constant takes part in every row of a batch: it must be much smaller than a column.
const CONSTANT_BYTES_MAX: u64 = 64 << 10;

/// How the result of a function grows with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// As the sum of all arguments, each counted once.
    Sum,
    /// As the sum, the first argument (a separator) counted between all others.
    Join,
    /// As the first argument times the number in the second.
    Times,
    /// As the number in the second argument.
    Width,
    /// As the first argument times the length of the third.
    Replace,
    /// As the distance of two numbers.
    Series,
    /// As the product of two lengths, in time, not in memory.
    Product,
    /// Slow for its size: run in small pieces.
    Slow,
}

/// The bounded functions. A name is that of the function, not of an alias.
const BOUNDED: &[(&str, Growth)] = &[
    ("array_append", Growth::Sum),
    ("array_concat", Growth::Sum),
    ("array_prepend", Growth::Sum),
    ("array_repeat", Growth::Times),
    ("array_replace", Growth::Replace),
    ("array_replace_all", Growth::Replace),
    ("array_replace_n", Growth::Replace),
    ("array_resize", Growth::Width),
    ("array_to_string", Growth::Join),
    ("array_union", Growth::Sum),
    ("arrays_zip", Growth::Sum),
    ("concat", Growth::Sum),
    ("concat_ws", Growth::Join),
    ("find_in_set", Growth::Product),
    ("generate_series", Growth::Series),
    ("levenshtein", Growth::Product),
    ("lpad", Growth::Width),
    ("make_array", Growth::Sum),
    ("map", Growth::Sum),
    ("named_struct", Growth::Sum),
    ("overlay", Growth::Sum),
    ("range", Growth::Series),
    ("regexp_count", Growth::Slow),
    ("regexp_instr", Growth::Slow),
    ("regexp_like", Growth::Slow),
    ("regexp_match", Growth::Slow),
    ("regexp_replace", Growth::Replace),
    ("repeat", Growth::Times),
    ("replace", Growth::Replace),
    ("rpad", Growth::Width),
    ("string_to_array", Growth::Slow),
    ("strpos", Growth::Slow),
    ("struct", Growth::Sum),
    ("to_char", Growth::Slow),
    ("translate", Growth::Sum),
];

/// Aggregates whose state grows with every row: over a window they would keep a copy for each row.
const NOT_OVER_WINDOWS: [&str; 2] = ["array_agg", "string_agg"];

/// What the bounds are and who is to be asked whether to go on.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub(crate) meter: Arc<Meter>,
    /// Of one call on one batch. Shared: it shrinks when a plan has many calls.
    pub(crate) bytes_max: Arc<AtomicU64>,
}

impl Bounds {
    pub(crate) fn new(meter: Arc<Meter>, bytes_max: usize) -> Self {
        Self { meter, bytes_max: Arc::new(AtomicU64::new(bytes_max as u64)) }
    }

    fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }
}

/// Swaps every function of the plan that needs a bound for its bounded twin. What all calls of the plan may produce for one
/// batch together is `batch_bytes_max`.
///
/// # Errors
/// [`QueryError::NotAllowed`] for an aggregate that may not run over a window.
pub(crate) fn bound(plan: LogicalPlan, bounds: &Bounds, batch_bytes_max: u64) -> Result<LogicalPlan> {
    let share = batch_bytes_max / copies(&plan)?.max(1);
    bounds.bytes_max.fetch_min(share.max(CONSTANT_BYTES_MAX), Ordering::Relaxed);
    let swap = |expr: Expr| match expr {
        Expr::ScalarFunction(call) => Ok(match Bounded::of(&call.func, bounds) {
            Some(bounded) => {
                Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(bounded.into()), call.args)))
            }
            None => Transformed::no(Expr::ScalarFunction(call)),
        }),
        Expr::WindowFunction(call) if keeps_all(&call) => {
            let refused = QueryError::not_allowed("array_agg and string_agg are not allowed over a window");
            Err(DataFusionError::External(Box::new(refused)))
        }
        other => Ok(Transformed::no(other)),
    };
    let node = |plan: LogicalPlan| plan.map_expressions(|expr| expr.transform_up(swap));
    Ok(plan.transform_up_with_subqueries(node)?.data)
}

/// How many expressions of the plan may hold a copy of a value at the same time.
fn copies(plan: &LogicalPlan) -> Result<u64> {
    let mut copies = 0;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                let copies_values =
                    matches!(expr, Expr::ScalarFunction(_) | Expr::Case(_) | Expr::Cast(_) | Expr::TryCast(_));
                copies += u64::from(copies_values);
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(copies)
}

fn keeps_all(call: &WindowFunction) -> bool {
    match &call.fun {
        WindowFunctionDefinition::AggregateUDF(aggregate) => NOT_OVER_WINDOWS.contains(&aggregate.name()),
        WindowFunctionDefinition::WindowUDF(_) => false,
    }
}

/// A function with a bound on what it produces.
#[derive(Debug, Clone)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
    bounds: Bounds,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl Bounded {
    fn of(function: &Arc<ScalarUDF>, bounds: &Bounds) -> Option<Self> {
        if function.inner().is::<Self>() {
            return None;
        }
        let (_, growth) = BOUNDED.iter().find(|(name, _)| *name == function.name())?;
        Some(Self { inner: function.clone(), growth: *growth, bounds: bounds.clone() })
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let inner = &self.inner;
        run(args, self.growth, &self.bounds, inner.name(), &|args| inner.invoke_with_args(args))
    }
}

type Call<'a> = &'a dyn Fn(ScalarFunctionArgs) -> Result<ColumnarValue>;

/// Runs `call` in pieces that stay within the bound.
fn run(args: ScalarFunctionArgs, growth: Growth, bounds: &Bounds, name: &str, call: Call<'_>) -> Result<ColumnarValue> {
    bounds.meter.check()?;
    let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    let rows = if constant { 1 } else { args.number_rows };
    let grows = !matches!(growth, Growth::Slow | Growth::Product);
    let bytes_max = if constant && grows { CONSTANT_BYTES_MAX } else { bounds.bytes_max() };
    let too_large = || {
        let message = format!("{name} would produce more than {bytes_max} bytes, or take too long");
        Err(DataFusionError::External(Box::new(QueryError::TooLarge(message))))
    };
    let estimate = estimate(&args.args, rows as u128, growth)?;
    if estimate <= u128::from(bytes_max) {
        return call(args);
    }
    if rows <= 1 {
        return too_large();
    }
    let half = rows / 2;
    let mut pieces: Vec<ArrayRef> = Vec::new();
    for (from, count) in [(0, half), (half, rows - half)] {
        let piece = ScalarFunctionArgs {
            args: args.args.iter().map(|arg| slice(arg, from, count)).collect(),
            number_rows: count,
            arg_fields: args.arg_fields.clone(),
            return_field: args.return_field.clone(),
            config_options: args.config_options.clone(),
        };
        pieces.push(run(piece, growth, bounds, name, call)?.into_array(count)?);
        if pieces.iter().map(bytes).sum::<u128>() > u128::from(bytes_max) {
            return too_large();
        }
    }
    let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
    Ok(ColumnarValue::Array(concat(&pieces)?))
}

fn slice(arg: &ColumnarValue, from: usize, count: usize) -> ColumnarValue {
    match arg {
        ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(from, count)),
        scalar => scalar.clone(),
    }
}

/// An upper bound, in bytes, of what a function produces (or of its time, for those that are slow).
fn estimate(args: &[ColumnarValue], rows: u128, growth: Growth) -> Result<u128> {
    let size = |at: usize| args.get(at).map_or(Ok(0), |arg| size(arg, rows));
    let longest = |at: usize| args.get(at).map_or(Ok(0), longest);
    let number = |at: usize| args.get(at).map_or(Ok(0), |arg| number(arg, true));
    let all = || (0..args.len()).try_fold(0u128, |sum, at| Ok::<_, DataFusionError>(sum + size(at)?));
    Ok(match growth {
        Growth::Sum => all()?,
        Growth::Join => {
            // `concat_ws(sep, …)` has the separator first, `array_to_string(list, sep)` second.
            let separator = longest(0)?.min(longest(1)?.max(1)).max(longest(1)?.min(longest(0)?));
            all()? * (separator + 2) + separator * args.len() as u128 * rows
        }
        Growth::Times => {
            let text = args.first().is_some_and(|arg| arg.data_type().is_string());
            // A text has its offset besides; an element of a list may be as small as a bit.
            let once = if text { size(0)?.saturating_sub(4 * rows) } else { size(0)? + 4 * rows };
            once * number(1)?.max(0) as u128 + 16 * rows
        }
        Growth::Width => rows * number(1)?.max(0) as u128 * (4 + longest(2)?.min(64)),
        Growth::Replace => (size(0)? + rows) * (1 + longest(2)?.max(longest(1)?.min(16))),
        Growth::Series => series(args, rows)?,
        Growth::Product => rows * longest(0)? * longest(1)? / 64,
        Growth::Slow => all()? * 16,
    })
}

/// The bytes of a list of numbers from a start to an end. Series of dates are for the table function.
fn series(args: &[ColumnarValue], rows: u128) -> Result<u128> {
    if args.iter().any(|arg| !arg.data_type().is_integer() && !arg.data_type().is_null()) {
        let message = "lists of dates are not allowed: use generate_series as a table";
        return Err(DataFusionError::External(Box::new(QueryError::not_allowed(message))));
    }
    let (low, high) = match args {
        [end] => (0, number(end, true)?.max(-number(end, false)?)),
        [start, end, ..] => {
            let low = number(start, false)?.min(number(end, false)?);
            (low, number(start, true)?.max(number(end, true)?))
        }
        [] => (0, 0),
    };
    Ok(rows * (high - low).max(0) as u128 * 8)
}

/// The largest (or smallest) number in an argument.
fn number(arg: &ColumnarValue, largest: bool) -> Result<i128> {
    let array = match arg {
        ColumnarValue::Array(array) => array.clone(),
        ColumnarValue::Scalar(scalar) => scalar.to_array()?,
    };
    let numbers = arrow::compute::cast(&array, &DataType::Int64)?;
    let numbers = numbers.as_primitive::<Int64Type>();
    let found = if largest { max(numbers) } else { arrow::compute::min(numbers) };
    Ok(i128::from(found.unwrap_or(0)))
}

fn size(arg: &ColumnarValue, rows: u128) -> Result<u128> {
    Ok(match arg {
        ColumnarValue::Array(array) => bytes(array),
        ColumnarValue::Scalar(scalar) => bytes(&scalar.to_array()?) * rows,
    })
}

/// The length of the longest text of an argument; of all of it for other types.
fn longest(arg: &ColumnarValue) -> Result<u128> {
    let array = match arg {
        ColumnarValue::Array(array) => array.clone(),
        ColumnarValue::Scalar(scalar) => scalar.to_array()?,
    };
    Ok(match array.data_type() {
        DataType::Utf8 => {
            array.as_string::<i32>().offsets().windows(2).map(|pair| (pair[1] - pair[0]) as u128).max().unwrap_or(0)
        }
        DataType::LargeUtf8 => {
            array.as_string::<i64>().offsets().windows(2).map(|pair| (pair[1] - pair[0]) as u128).max().unwrap_or(0)
        }
        DataType::Utf8View => array.as_string_view().iter().flatten().map(|text| text.len() as u128).max().unwrap_or(0),
        other if other.is_nested() => bytes(&array),
        _ => 24,
    })
}

/// The bytes that the values of an array take, of the rows it shows and not of the buffers behind it.
pub(crate) fn bytes(array: &ArrayRef) -> u128 {
    let rows = array.len() as u128;
    match array.data_type() {
        DataType::Utf8 => span(array.as_string::<i32>().offsets()) + 4 * rows,
        DataType::LargeUtf8 => span(array.as_string::<i64>().offsets()) + 8 * rows,
        DataType::Utf8View => {
            array.as_string_view().iter().flatten().map(|text| text.len() as u128).sum::<u128>() + 16 * rows
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (first, last) =
                (list.offsets().first().copied().unwrap_or(0), list.offsets().last().copied().unwrap_or(0));
            bytes(&list.values().slice(first as usize, (last - first) as usize)) + 4 * rows
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(bytes).sum(),
        DataType::Null => 0,
        other => match other.primitive_width() {
            Some(width) => width as u128 * rows,
            None => array.get_array_memory_size() as u128,
        },
    }
}

fn span<O: Copy + Into<i64>>(offsets: &[O]) -> u128 {
    let (first, last) = (offsets.first().copied().map_or(0, Into::into), offsets.last().copied().map_or(0, Into::into));
    (last - first).max(0) as u128
}

/// `text || text` as a bounded function: the operator itself has no bound.
#[derive(Debug)]
pub(crate) struct ConcatPlanner(pub(crate) Bounds);

impl ExprPlanner for ConcatPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let listed = |expr: &Expr| expr.get_type(schema).map(|kind| kind.is_nested() || kind.is_binary());
        if expr.op != BinaryOperator::StringConcat || listed(&expr.left)? || listed(&expr.right)? {
            return Ok(PlannerResult::Original(expr));
        }
        // `a || b || c` is one call: a tree of calls would be as deep as the chain is long.
        let (function, mut args) = match expr.left {
            Expr::ScalarFunction(call) if call.func.inner().is::<Concat>() => (call.func, call.args),
            left => {
                let signature = Signature::variadic_any(Volatility::Immutable);
                let concat = Concat { signature, bounds: self.0.clone() };
                (Arc::new(ScalarUDF::new_from_impl(concat)), vec![left])
            }
        };
        args.push(expr.right);
        let call = ScalarFunction::new_udf(function, args);
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }
}

#[derive(Debug)]
struct Concat {
    signature: Signature,
    bounds: Bounds,
}

impl PartialEq for Concat {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Concat {}

impl Hash for Concat {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl ScalarUDFImpl for Concat {
    fn name(&self) -> &str {
        "||"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<_> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(names.join(" || "))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let join = |args: ScalarFunctionArgs| {
            let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
            let rows = if constant { 1 } else { args.number_rows };
            let texts =
                args.args.into_iter().map(|arg| Ok(arrow::compute::cast(&arg.into_array(rows)?, &DataType::Utf8)?));
            let texts = texts.collect::<Result<Vec<ArrayRef>>>()?;
            let texts: Vec<_> = texts.iter().map(|text| text.as_string::<i32>()).collect();
            let joined = concat_elements_utf8_many(&texts)?;
            Ok(match constant {
                true => ColumnarValue::Scalar(ScalarValue::try_from_array(&joined, 0)?),
                false => ColumnarValue::Array(Arc::new(joined)),
            })
        };
        run(args, Growth::Sum, &self.bounds, "||", &join)
    }
}

/// The table functions: series with a bound on their rows.
pub(crate) fn table_functions(rows_max: u64) -> Vec<Arc<TableFunction>> {
    let series = |name: &str, inner: Arc<dyn TableFunctionImpl>| {
        Arc::new(TableFunction::new(name.to_owned(), Arc::new(BoundedSeries { inner, rows_max })))
    };
    vec![series("generate_series", Arc::new(GenerateSeriesFunc {})), series("range", Arc::new(RangeFunc {}))]
}

#[derive(Debug)]
struct BoundedSeries {
    inner: Arc<dyn TableFunctionImpl>,
    rows_max: u64,
}

impl TableFunctionImpl for BoundedSeries {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        if steps(args.exprs()) > i128::from(self.rows_max) {
            let message = format!("a series of more than {} rows", self.rows_max);
            return Err(DataFusionError::External(Box::new(QueryError::TooLarge(message))));
        }
        self.inner.call_with_args(args)
    }
}

/// How many rows a series of literals has; what is not a series of literals is refused by the function itself.
fn steps(exprs: &[Expr]) -> i128 {
    let value = |at: usize| match exprs.get(at) {
        Some(Expr::Literal(value, _)) => Some(value.clone()),
        _ => None,
    };
    let int = |at: usize| match value(at) {
        Some(ScalarValue::Int64(Some(value))) => Some(i128::from(value)),
        Some(ScalarValue::TimestampNanosecond(Some(value), _)) => Some(i128::from(value)),
        Some(ScalarValue::Date32(Some(days))) => Some(i128::from(days) * 86_400_000_000_000),
        Some(ScalarValue::IntervalMonthDayNano(Some(step))) => Some(
            (i128::from(step.months) * 28 + i128::from(step.days)) * 86_400_000_000_000 + i128::from(step.nanoseconds),
        ),
        _ => None,
    };
    match (int(0), int(1), int(2)) {
        (Some(end), None, _) => end,
        (Some(start), Some(end), step) => (end - start).abs() / step.unwrap_or(1).abs().max(1),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
