//! The sizes by which functions are bounded, to the byte, and what becomes of calls around a bound.

use std::time::{Duration, Instant};

use arrow::array::{
    BooleanArray, Int32Array, Int64Array, LargeStringArray, ListBuilder, NullArray, PrimitiveBuilder, StringArray,
    StringViewArray, StructArray,
};
use arrow::datatypes::{Field, Int64Type as I64};
use datafusion::arrow::datatypes::IntervalMonthDayNanoType;
use datafusion::common::config::ConfigOptions;
use datafusion::logical_expr::{LogicalPlanBuilder, cast, col, lit, try_cast};

use super::*;

fn array(array: impl Array + 'static) -> ColumnarValue {
    ColumnarValue::Array(Arc::new(array))
}

fn texts(texts: &[&str]) -> ColumnarValue {
    array(StringArray::from(texts.to_vec()))
}

fn text(text: &str) -> ColumnarValue {
    ColumnarValue::Scalar(ScalarValue::from(text))
}

fn int(number: i64) -> ColumnarValue {
    ColumnarValue::Scalar(ScalarValue::from(number))
}

fn ints(numbers: &[i64]) -> ColumnarValue {
    array(Int64Array::from(numbers.to_vec()))
}

fn lists(lengths: &[usize]) -> ArrayRef {
    let mut builder = ListBuilder::new(PrimitiveBuilder::<I64>::new());
    for length in lengths {
        builder.append_value((0..*length as i64).map(Some));
    }
    Arc::new(builder.finish())
}

#[test]
fn estimates_grow_as_they_say() {
    let two = || texts(&["ab", "cdef"]);
    let long = "x".repeat(20);
    let wide = text(&"x".repeat(100));
    let deep = texts(&[&"x".repeat(32), "y"]);
    let cases: Vec<(Growth, Vec<ColumnarValue>, u128)> = vec![
        // 6 bytes and 2 offsets of 4; a constant counts in each row.
        (Growth::Sum, vec![two()], 14),
        (Growth::Sum, vec![two(), text("xyz")], 14 + 2 * 7),
        (Growth::Sum, vec![], 0),
        (Growth::Join, vec![text("--"), two(), two()], (12 + 14 + 14) * 4 + 2 * 3 * 2),
        (Growth::Join, vec![two(), text("")], (14 + 8) * 3 + 2 * 2),
        (Growth::Times, vec![two(), int(3)], 6 * 3 + 32),
        (Growth::Times, vec![two(), ints(&[1, 5])], 6 * 5 + 32),
        (Growth::Times, vec![two(), int(-3)], 32),
        (Growth::Times, vec![ints(&[1, 2]), int(3)], (16 + 8) * 3 + 32),
        (Growth::Width, vec![two(), int(10)], 2 * 10 * 4),
        (Growth::Width, vec![two(), int(10), text("ab")], 2 * 10 * 6),
        (Growth::Width, vec![two(), int(10), wide], 2 * 10 * 68),
        (Growth::Width, vec![two(), int(-1)], 0),
        (Growth::Replace, vec![two(), text("a"), text("xyz")], 16 * 4),
        (Growth::Replace, vec![two(), text("0123456789"), text("")], 16 * 11),
        (Growth::Replace, vec![two(), text(&long), text("")], 16 * 17),
        (Growth::Product, vec![deep, text("01234567")], 2 * 32 * 8 / 64),
        (Growth::Slow, vec![two()], 14 * 16),
        (Growth::Series, vec![int(10)], 2 * 10 * 8),
        (Growth::Series, vec![int(-10)], 2 * 10 * 8),
        (Growth::Series, vec![int(5), int(20)], 2 * 15 * 8),
        (Growth::Series, vec![int(20), int(5), int(-1)], 2 * 15 * 8),
        (Growth::Series, vec![ints(&[1, 5]), ints(&[10, 3])], 2 * 9 * 8),
        (Growth::Series, vec![], 0),
    ];
    for (growth, args, wanted) in cases {
        assert_eq!(estimate(&args, 2, growth).expect("sizes"), wanted, "{growth:?} {args:?}");
    }
    let days = ColumnarValue::Scalar(ScalarValue::Date32(Some(1)));
    assert!(estimate(&[days, int(1)], 2, Growth::Series).is_err(), "lists of dates are refused");
}

#[test]
fn arrays_have_the_bytes_of_the_rows_they_show() {
    let three = [Some("ab"), None, Some("cdef")];
    let fields = vec![
        (Arc::new(Field::new("t", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["ab", "cdef"])) as ArrayRef),
        (Arc::new(Field::new("n", DataType::Int64, true)), Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
    ];
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
    let flag_bytes = flags.get_array_memory_size() as u128;
    let cases: Vec<(ArrayRef, u128, u128)> = vec![
        (Arc::new(StringArray::from(three.to_vec())), 6 + 3 * 4, 4),
        (Arc::new(StringArray::from(three.to_vec()).slice(2, 1)), 4 + 4, 4),
        (Arc::new(StringArray::from(three.to_vec()).slice(0, 2)), 2 + 2 * 4, 2),
        (Arc::new(LargeStringArray::from(three.to_vec())), 6 + 3 * 8, 4),
        (Arc::new(LargeStringArray::from(three.to_vec()).slice(2, 1)), 4 + 8, 4),
        (Arc::new(StringViewArray::from(three.to_vec())), 6 + 3 * 16, 4),
        (lists(&[2, 1, 0]), 3 * 8 + 3 * 4, 36),
        (lists(&[2, 1, 0]).slice(1, 2), 8 + 2 * 4, 16),
        (lists(&[2, 1, 4]).slice(0, 2), 3 * 8 + 2 * 4, 32),
        (Arc::new(StructArray::from(fields)), 14 + 16, 30),
        (Arc::new(NullArray::new(5)), 0, 24),
        (Arc::new(Int64Array::from(vec![1, 2, 3])), 24, 24),
        (Arc::new(Int32Array::from(vec![1, 2, 3])), 12, 24),
        (flags, flag_bytes, 24),
        (Arc::new(StringArray::from(Vec::<&str>::new())), 0, 0),
    ];
    for (array, size, long) in cases {
        assert_eq!(bytes(&array), size, "{array:?}");
        assert_eq!(longest(&ColumnarValue::Array(array.clone())).expect("a length"), long, "{array:?}");
    }
    let mixed = array(Int64Array::from(vec![Some(3), None, Some(-7)]));
    assert_eq!((number(&mixed, true).expect("a number"), number(&mixed, false).expect("a number")), (3, -7));
}

#[test]
fn a_series_has_the_rows_between_its_ends() {
    const DAY: i64 = 86_400_000_000_000;
    let date = |days: i32| lit(ScalarValue::Date32(Some(days)));
    let time = |ns: i64| lit(ScalarValue::TimestampNanosecond(Some(ns), None));
    let every = |months: i32, days: i32, ns: i64| {
        lit(ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNanoType::make_value(months, days, ns))))
    };
    let cases: Vec<(Vec<Expr>, i128)> = vec![
        (vec![lit(5i64)], 5),
        (vec![lit(3i64), lit(10i64)], 7),
        (vec![lit(10i64), lit(3i64)], 7),
        (vec![lit(3i64), lit(10i64), lit(2i64)], 3),
        (vec![lit(10i64), lit(3i64), lit(-2i64)], 3),
        (vec![lit(3i64), lit(10i64), lit(0i64)], 7),
        (vec![date(1), date(4), every(0, 1, 0)], 3),
        (vec![time(DAY), time(5 * DAY), every(0, 0, DAY / 2)], 8),
        (vec![time(0), time(6_000 * DAY), every(2, 3, DAY)], 100),
        (vec![col("a"), lit(10i64)], 0),
        (vec![], 0),
    ];
    for (exprs, wanted) in cases {
        assert_eq!(steps(&exprs), wanted, "{exprs:?}");
    }
}

#[test]
fn a_table_of_a_series_is_bounded_to_the_row() {
    let state = datafusion::prelude::SessionContext::new().state();
    for function in table_functions(10) {
        for (start, end, fits) in
            [(1i64, 11i64, true), (1, 12, false), (-5, 5, true), (-5, 6, false), (0, i64::MAX, false)]
        {
            let exprs = [lit(start), lit(end)];
            let made = function.create_table_provider_with_args(TableFunctionArgs::new(&exprs, &state));
            assert_eq!(made.is_ok(), fits, "{} from {start} to {end}", function.name());
        }
    }
}

fn bounds(bytes_max: usize) -> Bounds {
    Bounds::new(Arc::new(Meter::new(Instant::now() + Duration::from_secs(60), 60_000)), bytes_max)
}

/// Runs a call that gives 4 bytes a row; the rows of each call, and what came of it all.
fn ran(args: Vec<ColumnarValue>, rows: usize, growth: Growth, bounds: &Bounds) -> (Vec<usize>, Result<ArrayRef>) {
    let calls = std::cell::RefCell::new(Vec::new());
    let arg_fields = args.iter().map(|arg| Arc::new(Field::new("a", arg.data_type(), true))).collect();
    let return_field = Arc::new(Field::new("r", DataType::Int32, true));
    let config_options = Arc::new(ConfigOptions::new());
    let args = ScalarFunctionArgs { args, arg_fields, number_rows: rows, return_field, config_options };
    let lengths = |args: ScalarFunctionArgs| {
        calls.borrow_mut().push(args.number_rows);
        let texts = args.args[0].clone().into_array(args.number_rows)?;
        let lengths: Int32Array =
            texts.as_string::<i32>().iter().map(|text| text.map(|text| text.len() as i32)).collect();
        Ok(ColumnarValue::Array(Arc::new(lengths)))
    };
    let result = run(args, growth, bounds, "f", &lengths).and_then(|value| value.into_array(rows));
    (calls.into_inner(), result)
}

#[test]
fn a_call_is_cut_in_halves_until_it_fits() {
    // Eight rows of 10 to 17 bytes: 108, and 32 of offsets.
    let owned: Vec<String> = (10..18).map(|length| "x".repeat(length)).collect();
    let rows: Vec<&str> = owned.iter().map(String::as_str).collect();
    let lengths: Vec<i32> = (10..18).collect();
    for (bytes_max, calls) in [
        (140, Some(vec![8])),
        (139, Some(vec![4, 4])),
        (78, Some(vec![4, 4])),
        (77, Some(vec![4, 2, 2])),
        (32, Some(vec![2, 1, 1, 1, 1, 1, 1])),
        // What comes out, 32 bytes, counts as well.
        (31, None),
        (41, Some(vec![2, 2, 2, 2])),
        (20, None),
    ] {
        let (called, result) = ran(vec![texts(&rows)], 8, Growth::Sum, &bounds(bytes_max));
        match calls {
            Some(calls) => {
                let result = result.expect("within the bound");
                assert_eq!(result.as_primitive::<arrow::datatypes::Int32Type>().values(), &lengths[..], "{bytes_max}");
                assert_eq!(called, calls, "{bytes_max}");
            }
            None => assert!(result.is_err(), "{bytes_max}: {called:?}"),
        }
    }
    let short: Vec<&str> = vec!["x"; 8];
    let (called, result) = ran(vec![texts(&short)], 8, Growth::Slow, &bounds(32));
    assert!(result.is_err() && called.is_empty(), "80 bytes of work a row");
    let (called, result) = ran(vec![texts(&short)], 8, Growth::Sum, &bounds(31));
    assert!(result.is_err() && called == [4, 4], "{called:?}");
}

#[test]
fn a_constant_has_a_bound_of_its_own() {
    let max = CONSTANT_BYTES_MAX as usize;
    for (length, growth, bytes_max, fits) in [
        (max - 4, Growth::Sum, 10, true),
        (max - 3, Growth::Sum, 1 << 30, false),
        // What is slow, and does not grow, has that of all calls.
        (max - 3, Growth::Slow, 1 << 30, true),
        (12, Growth::Slow, 256, true),
        (13, Growth::Slow, 256, false),
    ] {
        let (_, result) = ran(vec![text(&"x".repeat(length))], 1, growth, &bounds(bytes_max));
        assert_eq!(result.is_ok(), fits, "{length} bytes, {growth:?}");
    }
    let stopped = bounds(1 << 20);
    stopped.meter.stop(QueryError::Cancelled);
    let (called, result) = ran(vec![text("x")], 1, Growth::Sum, &stopped);
    assert!(result.is_err() && called.is_empty(), "a query that was stopped calls nothing more");
}

#[test]
fn all_that_may_copy_a_value_shares_the_bound() {
    let branch = datafusion::logical_expr::when(lit(true), lit("a")).otherwise(lit("b")).expect("a case");
    let cases: Vec<(Vec<Expr>, u64)> = vec![
        (vec![lit(1i64)], 1 << 20),
        (vec![cast(lit("1"), DataType::Int64)], 1 << 20),
        (vec![cast(lit("1"), DataType::Int64), try_cast(lit("1"), DataType::Int64).alias("t")], 1 << 19),
        (
            vec![cast(lit("1"), DataType::Int64), branch.alias("b"), cast(lit(2i64), DataType::Utf8).alias("c")],
            (1 << 20) / 3,
        ),
        (vec![cast(cast(lit("1"), DataType::Int64), DataType::Utf8); 1], 1 << 19),
        ((0..64).map(|at| cast(lit(at), DataType::Utf8).alias(format!("c{at}"))).collect(), CONSTANT_BYTES_MAX),
    ];
    for (exprs, wanted) in cases {
        let shown = format!("{exprs:?}");
        let plan = LogicalPlanBuilder::empty(true).project(exprs).and_then(LogicalPlanBuilder::build).expect("a plan");
        let bounds = bounds(1 << 30);
        bound(plan, &bounds, 1 << 20).expect("allowed");
        assert_eq!(bounds.bytes_max(), wanted, "{shown}");
    }
}
