//! A store that answers questions, in memory: DataFusion over the rows of a log, so that answers are computed in another
//! way than a database computes them.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{Column, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::functions::datetime::expr_fn::{date_bin, date_trunc};
use datafusion::functions_aggregate::expr_fn::{count, max, min, sum};
use datafusion::logical_expr::{Expr, lit};
use datafusion::prelude::SessionContext;
use parking_lot::Mutex;
use tidegate_events::Dataset;
use tidegate_pipeline::history_rows::{Comparison, Filter, Output, Value};
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{FieldCatalog, HistoryError, HistoryRows, LogBatch, LogReader, RowsAsk, Snapshot};
use tokio::sync::mpsc;

use super::fixture::{Mode, World, observe, widen};

/// Where the rows are in tests of all places.
pub const MODES: [Mode; 5] = [Mode::Tail, Mode::Parquet, Mode::Mixed, Mode::Asked, Mode::AskedMixed];
/// Where they are for statements that want to break something.
pub const HOSTILE: Mode = Mode::Tail;
/// Where the `.slt` files are.
pub const SLT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slt");

/// Nothing has to be kept for a store in memory.
pub type Kept = ();

/// Gives what the logs of a world hold to a store that answers questions, and makes what is below two cursors its snapshot.
pub async fn answer(world: &World, log_cursor: u64, output_cursor: u64) -> Arc<TwinRows> {
    let all = |log: &MemoryLog| log.read(0, usize::MAX).expect("read");
    let rows = Arc::new(TwinRows { log: all(&world.log), output: all(&world.output), ..TwinRows::default() });
    let mut fields = FieldCatalog::default();
    for batch in rows.log.iter().filter(|batch| batch.offset < log_cursor) {
        observe(&mut fields, batch.dataset, &batch.rows);
    }
    *world.history.0.lock() = Arc::new(Snapshot {
        rows: Some(Arc::new(Twin(rows.clone()))),
        fields: Arc::new(fields),
        log_cursor,
        output_cursor,
        ..Snapshot::default()
    });
    rows
}

/// The same of all rows: here all are of one log.
pub async fn answer_parts(world: &World) -> Arc<TwinRows> {
    answer(world, world.log.bounds().next, world.output.bounds().next).await
}

/// The offset of a row in its log.
const OFFSET: &str = "log_offset";

/// The rows of both logs, and every question that was asked.
#[derive(Debug, Default)]
pub struct TwinRows {
    pub log: Vec<Arc<LogBatch>>,
    pub output: Vec<Arc<LogBatch>>,
    pub asked: Mutex<Vec<RowsAsk>>,
    /// What it answers instead.
    pub refuses: Mutex<Option<HistoryError>>,
}

impl HistoryRows for Twin {
    fn read(&self, ask: RowsAsk) -> mpsc::Receiver<Result<RecordBatch, HistoryError>> {
        let (send, receive) = mpsc::channel(1);
        let twin = self.0.clone();
        twin.asked.lock().push(ask.clone());
        tokio::spawn(async move {
            let refuses = twin.refuses.lock().clone();
            if let Some(error) = refuses {
                let _ = send.send(Err(error)).await;
                return;
            }
            for batch in twin.answer(&ask).await {
                if send.send(Ok(batch)).await.is_err() {
                    return;
                }
            }
        });
        receive
    }
}

/// The store as the seam wants it.
#[derive(Debug, Clone)]
pub struct Twin(pub Arc<TwinRows>);

impl TwinRows {
    async fn answer(&self, ask: &RowsAsk) -> Vec<RecordBatch> {
        let mut rows = self.table(ask);
        for filter in &ask.filters {
            rows = rows.filter(expr(filter)).expect("a filter");
        }
        if !ask.order.is_empty() {
            let order = ask.order.iter().map(|step| column(&step.column).sort(!step.descending, step.nulls_first));
            rows = rows.sort(order.collect()).expect("an order");
        }
        if let Some(limit) = ask.limit {
            rows = rows.limit(0, Some(limit as usize)).expect("a limit");
        }
        let outputs =
            ask.outputs.iter().enumerate().map(|(at, of)| (of.is_aggregate(), output(of).alias(format!("o{at}"))));
        let org = (false, column(Dataset::ORG_ID).alias("org"));
        let all: Vec<(bool, Expr)> = outputs.chain([org]).collect();
        let names: Vec<Expr> =
            (0..ask.outputs.len()).map(|at| column(&format!("o{at}"))).chain([column("org")]).collect();
        let of = |wanted: bool| all.iter().filter(|(is, _)| *is == wanted).map(|(_, expr)| expr.clone()).collect();
        rows = if ask.grouped {
            rows.aggregate(of(false), of(true)).and_then(|rows| rows.select(names)).expect("groups")
        } else {
            rows.select(of(false)).expect("columns")
        };
        let mut fields: Vec<Field> = ask.schema.fields().iter().map(|field| field.as_ref().clone()).collect();
        fields.push(Field::new(Dataset::ORG_ID, DataType::Utf8, true));
        let schema = Arc::new(Schema::new(fields));
        let batches = rows.collect().await.expect("rows").into_iter().map(|batch| {
            let columns = batch.columns().iter().zip(schema.fields());
            let columns = columns.map(|(column, field)| widen(column, field.data_type())).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            RecordBatch::try_new_with_options(schema.clone(), columns, &options).expect("a batch")
        });
        batches.collect()
    }

    /// The tenants' rows below the cursors, with all columns of the dataset and the asked ones.
    fn table(&self, ask: &RowsAsk) -> DataFrame {
        let mut fields: Vec<Field> =
            ask.dataset.core_schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        for (output, field) in ask.outputs.iter().zip(ask.schema.fields()) {
            if matches!(output, Output::Column(name) if fields.iter().all(|known| known.name() != &**name)) {
                fields.push(field.as_ref().clone());
            }
        }
        fields.push(Field::new(OFFSET, DataType::Int64, false));
        let schema = Arc::new(Schema::new(fields));
        let below = |batches: &[Arc<LogBatch>], cursor: u64| {
            let of_dataset = batches.iter().filter(|batch| batch.dataset == ask.dataset && batch.offset < cursor);
            let cut = of_dataset.map(|batch| {
                let count = (cursor - batch.offset).min(batch.rows.num_rows() as u64) as usize;
                whole(&batch.rows.slice(0, count), batch.offset, &schema)
            });
            cut.collect::<Vec<_>>()
        };
        let mut all = below(&self.log, ask.log_cursor);
        all.extend(below(&self.output, ask.output_cursor));
        all.push(RecordBatch::new_empty(schema));
        let orgs = ask.orgs.iter().map(|org| lit(&**org)).collect();
        let rows = SessionContext::new().read_batches(all).expect("a table");
        rows.filter(column(Dataset::ORG_ID).in_list(orgs, false)).expect("the tenants' rows")
    }
}

fn whole(rows: &RecordBatch, offset: u64, schema: &Arc<Schema>) -> RecordBatch {
    let offsets = Int64Array::from_iter_values((offset..offset + rows.num_rows() as u64).map(|at| at as i64));
    let column = |field: &Arc<Field>| -> ArrayRef {
        match rows.column_by_name(field.name()) {
            _ if field.name() == OFFSET => Arc::new(offsets.clone()),
            Some(column) => widen(column, field.data_type()),
            None => new_null_array(field.data_type(), rows.num_rows()),
        }
    };
    RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect()).expect("a batch")
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

fn output(output: &Output) -> Expr {
    match output {
        Output::Column(name) => column(name),
        Output::TimeTrunc(unit, name) => date_trunc(lit(unit.as_str()), column(name)),
        Output::TimeBin { width_us, origin_us, column: name } => {
            let width = ScalarValue::new_interval_mdn(0, 0, width_us * 1000);
            date_bin(
                lit(width),
                column(name),
                lit(ScalarValue::TimestampMicrosecond(Some(*origin_us), Some("UTC".into()))),
            )
        }
        Output::Count => count(lit(1)),
        Output::CountOf(name) => count(column(name)),
        Output::Min(name) => min(column(name)),
        Output::Max(name) => max(column(name)),
        Output::Sum(name) => sum(column(name)),
    }
}

fn expr(filter: &Filter) -> Expr {
    match filter {
        Filter::And(filters) => filters.iter().map(expr).reduce(Expr::and).expect("a filter"),
        Filter::Or(filters) => filters.iter().map(expr).reduce(Expr::or).expect("a filter"),
        Filter::Not(inner) => datafusion::logical_expr::not(expr(inner)),
        Filter::Compare(name, op, value) => {
            let (column, value) = (column(name), literal(value));
            match op {
                Comparison::Eq => column.eq(value),
                Comparison::NotEq => column.not_eq(value),
                Comparison::Lt => column.lt(value),
                Comparison::LtEq => column.lt_eq(value),
                Comparison::Gt => column.gt(value),
                Comparison::GtEq => column.gt_eq(value),
            }
        }
        Filter::In(name, values) => column(name).in_list(values.iter().map(literal).collect(), false),
        Filter::IsNull(name) => column(name).is_null(),
        Filter::Like(name, pattern) => column(name).like(lit(&**pattern)),
        // More rows may come.
        Filter::OwnHas(_) | Filter::OwnIn(..) | Filter::OwnCompare(..) => lit(true),
    }
}

fn literal(value: &Value) -> Expr {
    match value {
        Value::Text(text) => lit(&**text),
        Value::Int(value) => lit(*value),
        Value::Float(value) => lit(*value),
        Value::Bool(value) => lit(*value),
        Value::Time(us) => lit(ScalarValue::TimestampMicrosecond(Some(*us), Some("UTC".into()))),
        Value::Decimal { digits, scale } => lit(ScalarValue::Decimal128(Some(*digits), 38, *scale as i8)),
    }
}
