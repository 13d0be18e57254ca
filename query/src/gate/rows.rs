//! Bounds on rows that go into an operator which multiplies them: a join copies a row once per match, `unnest` once per
//! element. Both build whole batches, so that one wide row would become thousands of copies of itself at once.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{StreamExt, stream};

use super::functions::bytes;
use crate::error::QueryError;

/// How many copies of a row a join is taken to make in one batch, at most.
const COPIES: u64 = 2048;

/// What the operator above does with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Multiplies {
    /// Copies it once per match, a batch of copies at a time.
    Rows,
    /// Copies it once per element of its lists, all at once.
    Lists,
}

/// Passes batches on, cut so that what becomes of each stays within a bound. A row that alone is too much is an error.
#[derive(Debug, Clone)]
pub(crate) struct BoundedRowsExec {
    input: Arc<dyn ExecutionPlan>,
    multiplies: Multiplies,
    bytes_max: u64,
}

impl BoundedRowsExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, multiplies: Multiplies, bytes_max: usize) -> Self {
        Self { input, multiplies, bytes_max: bytes_max as u64 }
    }

    /// The batch, or pieces of it.
    fn cut(&self, batch: RecordBatch) -> Result<Vec<RecordBatch>> {
        let costs = self.costs(&batch);
        let (mut pieces, mut from, mut sum) = (Vec::new(), 0, 0u64);
        for (row, cost) in costs.into_iter().enumerate() {
            if cost > self.bytes_max {
                let message = match self.multiplies {
                    Multiplies::Rows => {
                        format!("a row of more than {} bytes goes into a join", self.bytes_max / COPIES)
                    }
                    Multiplies::Lists => format!("unnest would make more than {} bytes of one row", self.bytes_max),
                };
                return Err(DataFusionError::External(Box::new(QueryError::TooLarge(message))));
            }
            sum = sum.saturating_add(cost);
            if self.multiplies == Multiplies::Lists && sum > self.bytes_max / 4 && row > from {
                pieces.push(batch.slice(from, row - from));
                (from, sum) = (row, cost);
            }
        }
        pieces.push(batch.slice(from, batch.num_rows() - from));
        Ok(pieces)
    }

    /// What becomes of each row, in bytes.
    fn costs(&self, batch: &RecordBatch) -> Vec<u64> {
        let mut widths = vec![0u64; batch.num_rows()];
        let mut longest = vec![1u64; batch.num_rows()];
        for column in batch.columns() {
            add_widths(column, &mut widths, &mut longest);
        }
        let times = |(width, longest): (&u64, &u64)| match self.multiplies {
            Multiplies::Rows => width.saturating_mul(COPIES),
            Multiplies::Lists => width.saturating_mul(*longest),
        };
        widths.iter().zip(&longest).map(times).collect()
    }
}

/// Adds the width of each value of a column, and keeps the length of the longest list of each row.
fn add_widths(column: &ArrayRef, widths: &mut [u64], longest: &mut [u64]) {
    match column.data_type() {
        DataType::Utf8 => add_spans(column.as_string::<i32>().offsets(), 1, widths),
        DataType::LargeUtf8 => {
            for (width, pair) in widths.iter_mut().zip(column.as_string::<i64>().offsets().windows(2)) {
                *width = width.saturating_add((pair[1] - pair[0]).unsigned_abs());
            }
        }
        DataType::Utf8View => {
            for (width, text) in widths.iter_mut().zip(column.as_string_view().iter()) {
                *width = width.saturating_add(text.map_or(0, str::len) as u64 + 16);
            }
        }
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            // The mean size of an element stands for each: only the order of magnitude matters.
            let elements = list.values().len().max(1) as u64;
            let each = u64::try_from(bytes(list.values())).unwrap_or(u64::MAX) / elements + 1;
            add_spans(list.offsets(), each, widths);
            for (longest, pair) in longest.iter_mut().zip(list.offsets().windows(2)) {
                *longest = (*longest).max((pair[1] - pair[0]).unsigned_abs().into());
            }
        }
        DataType::Struct(_) => {
            column.as_struct().columns().iter().for_each(|column| add_widths(column, widths, longest));
        }
        other => {
            let rows = column.len().max(1) as u64;
            let each =
                other.primitive_width().map_or(column.get_array_memory_size() as u64 / rows, |width| width as u64);
            widths.iter_mut().for_each(|width| *width = width.saturating_add(each));
        }
    }
}

fn add_spans(offsets: &[i32], each: u64, widths: &mut [u64]) {
    for (width, pair) in widths.iter_mut().zip(offsets.windows(2)) {
        *width = width.saturating_add(u64::from((pair[1] - pair[0]).unsigned_abs()).saturating_mul(each) + 4);
    }
}

impl DisplayAs for BoundedRowsExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundedRowsExec")
    }
}

impl ExecutionPlan for BoundedRowsExec {
    fn name(&self) -> &str {
        "BoundedRowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.pop()) {
            (Some(input), None) => Ok(Arc::new(Self { input, ..Self::clone(&self) })),
            _ => internal_err!("BoundedRowsExec has one child"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let bounded = self.clone();
        let pieces = self.input.execute(partition, context)?.flat_map(move |batch| {
            let pieces = match batch.and_then(|batch| bounded.cut(batch)) {
                Ok(pieces) => pieces.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            stream::iter(pieces)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.input.schema(), pieces)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, ListBuilder, PrimitiveBuilder, StringArray};
    use arrow::datatypes::Int64Type;
    use datafusion::physical_plan::empty::EmptyExec;

    fn batch(texts: &[usize], lists: &[usize]) -> RecordBatch {
        let mut builder = ListBuilder::new(PrimitiveBuilder::<Int64Type>::new());
        for length in lists {
            builder.append_value((0..*length as i64).map(Some));
        }
        let texts: StringArray = texts.iter().map(|length| Some("x".repeat(*length))).collect();
        let numbers = Int64Array::from_iter_values(0..texts.len() as i64);
        let columns: Vec<(&str, ArrayRef)> =
            vec![("s", Arc::new(texts)), ("l", Arc::new(builder.finish())), ("n", Arc::new(numbers))];
        RecordBatch::try_from_iter(columns).expect("a batch")
    }

    #[test]
    fn batches_are_cut_by_what_becomes_of_their_rows() {
        for (multiplies, texts, lists, wanted) in [
            (Multiplies::Rows, vec![100, 100, 100], vec![1, 1, 1], Some(vec![3])),
            (Multiplies::Rows, vec![100, 10_000, 100], vec![1, 1, 1], None),
            (Multiplies::Lists, vec![100, 100, 100], vec![1, 1, 1], Some(vec![3])),
            (Multiplies::Lists, vec![1_000, 1_000, 1_000], vec![200, 200, 200], Some(vec![1, 1, 1])),
            (Multiplies::Lists, vec![1_000, 1_000, 1_000], vec![1, 10_000, 1], None),
            (Multiplies::Lists, vec![], vec![], Some(vec![0])),
        ] {
            let batch = batch(&texts, &lists);
            let bounded = BoundedRowsExec::new(Arc::new(EmptyExec::new(batch.schema())), multiplies, 1 << 20);
            let cut = bounded.cut(batch).map(|pieces| pieces.iter().map(RecordBatch::num_rows).collect::<Vec<_>>());
            assert_eq!(cut.ok(), wanted, "{multiplies:?} {texts:?} {lists:?}");
        }
    }

    fn bounded(multiplies: Multiplies, bytes_max: usize) -> BoundedRowsExec {
        BoundedRowsExec::new(
            Arc::new(EmptyExec::new(Arc::new(arrow::datatypes::Schema::empty()))),
            multiplies,
            bytes_max,
        )
    }

    #[test]
    fn a_row_costs_what_its_copies_take() {
        let mut lists = ListBuilder::new(PrimitiveBuilder::<Int64Type>::new());
        lists.append_value([Some(1), Some(2), Some(3)]);
        lists.append_value([Some(4)]);
        let texts = || Arc::new(StringArray::from(vec!["ab", "cdef"])) as ArrayRef;
        let numbers = || Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
        let field =
            |name: &str, of: &ArrayRef| Arc::new(arrow::datatypes::Field::new(name, of.data_type().clone(), true));
        let both =
            arrow::array::StructArray::from(vec![(field("t", &texts()), texts()), (field("n", &numbers()), numbers())]);
        let flags: ArrayRef = Arc::new(arrow::array::BooleanArray::from(vec![true, false]));
        let flag = flags.get_array_memory_size() as u64 / 2;
        let cases: Vec<(ArrayRef, [u64; 2], [u64; 2])> = vec![
            (texts(), [2 + 4, 4 + 4], [1, 1]),
            (Arc::new(arrow::array::LargeStringArray::from(vec!["ab", "cdef"])), [2, 4], [1, 1]),
            (Arc::new(arrow::array::StringViewArray::from(vec!["ab", "cdef"])), [18, 20], [1, 1]),
            (numbers(), [8, 8], [1, 1]),
            (flags, [flag, flag], [1, 1]),
            // Four elements of 8 bytes, and one for luck.
            (Arc::new(lists.finish()), [3 * 9 + 4, 9 + 4], [3, 1]),
            (Arc::new(both), [6 + 8, 8 + 8], [1, 1]),
        ];
        for (column, widths, longest) in cases {
            let batch = RecordBatch::try_from_iter([("a", column.clone())]).expect("a batch");
            let copies = widths.map(|width| width * COPIES);
            assert_eq!(bounded(Multiplies::Rows, 0).costs(&batch), copies, "{column:?}");
            let elements = [widths[0] * longest[0], widths[1] * longest[1]];
            assert_eq!(bounded(Multiplies::Lists, 0).costs(&batch), elements, "{column:?}");
        }
    }

    #[test]
    fn the_bounds_of_rows_are_exact() {
        let texts = |lengths: &[usize]| {
            let texts: StringArray = lengths.iter().map(|length| Some("x".repeat(*length))).collect();
            RecordBatch::try_from_iter([("s", Arc::new(texts) as ArrayRef)]).expect("a batch")
        };
        let copies = COPIES as usize;
        for (multiplies, bytes_max, lengths, wanted) in [
            (Multiplies::Rows, 100 * copies, vec![96, 96], Some(vec![2])),
            (Multiplies::Rows, 100 * copies - 1, vec![1, 96], None),
            (Multiplies::Lists, 100, vec![96], Some(vec![1])),
            (Multiplies::Lists, 99, vec![96], None),
            (Multiplies::Lists, 1_000, vec![121; 5], Some(vec![2, 2, 1])),
            (Multiplies::Lists, 1_000, vec![122; 5], Some(vec![1, 1, 1, 1, 1])),
            (Multiplies::Lists, 1_000, vec![500, 1, 1, 500], Some(vec![1, 2, 1])),
        ] {
            let batch = texts(&lengths);
            let cut = bounded(multiplies, bytes_max).cut(batch.clone()).ok();
            let sizes = cut.as_ref().map(|pieces| pieces.iter().map(RecordBatch::num_rows).collect::<Vec<_>>());
            assert_eq!(sizes, wanted, "{multiplies:?} {bytes_max} {lengths:?}");
            if let Some(pieces) = cut {
                let whole = arrow::compute::concat_batches(&batch.schema(), &pieces).expect("the pieces fit together");
                assert_eq!(whole, batch, "no row is lost, doubled or moved");
            }
        }
    }
}
