//! The leaf of a plan that asks a store of history.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::BaselineMetrics;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;
use tidegate_pipeline::history_rows::{Filter, HistoryError, HistoryRows, Output, RowsAsk, Value};
use tokio::sync::mpsc;

use crate::error::{QueryError, internal};
use crate::gate::functions::bytes;
use crate::history::own;
use crate::leaf::{Leaf, LeafExec};
use crate::metrics;

/// The operator that asks a store.
pub(crate) type HistoryRowsExec = LeafExec<HistoryAnswer>;

/// What a store answers, of which only the rows of the asked tenants come out, whatever it answers.
#[derive(Debug, Clone)]
pub(crate) struct HistoryAnswer {
    store: Arc<dyn HistoryRows>,
    ask: RowsAsk,
    /// What the plan expects: the columns of the answer, times in the unit that the plan has for them.
    schema: SchemaRef,
}

impl HistoryAnswer {
    /// The answer to `ask`, as it is.
    pub(crate) fn new(store: Arc<dyn HistoryRows>, ask: RowsAsk) -> Self {
        let schema = ask.schema.clone();
        Self { store, ask, schema }
    }

    /// What is asked.
    pub(crate) fn ask(&self) -> &RowsAsk {
        &self.ask
    }

    /// The same store, asked something else, the answer brought to the types of `schema`.
    pub(crate) fn with_ask(&self, ask: RowsAsk, schema: SchemaRef) -> Self {
        Self { store: self.store.clone(), ask, schema }
    }
}

fn shown_output(output: &Output) -> String {
    match output {
        Output::Column(name) => name.to_string(),
        Output::TimeTrunc(unit, name) => format!("date_trunc({}, {name})", unit.as_str()),
        Output::TimeBin { width_us, column, .. } => format!("date_bin({width_us} us, {column})"),
        Output::Count => "count(*)".into(),
        Output::CountOf(name) => format!("count({name})"),
        Output::Min(name) => format!("min({name})"),
        Output::Max(name) => format!("max({name})"),
        Output::Sum(name) => format!("sum({name})"),
    }
}

/// A filter for people.
pub(crate) fn shown(filter: &Filter) -> String {
    let joined =
        |filters: &[Filter], word: &str| format!("({})", filters.iter().map(shown).collect::<Vec<_>>().join(word));
    let values = |values: &[Value]| values.iter().map(shown_value).collect::<Vec<_>>().join(", ");
    match filter {
        Filter::And(filters) => joined(filters, " AND "),
        Filter::Or(filters) => joined(filters, " OR "),
        Filter::Not(inner) => format!("NOT {}", shown(inner)),
        Filter::Compare(name, op, value) | Filter::OwnCompare(name, op, value) => {
            format!("{name} {} {}", op.symbol(), shown_value(value))
        }
        Filter::OwnIn(name, all) if all.len() == 1 => format!("{name} = {}", values(all)),
        Filter::In(name, all) | Filter::OwnIn(name, all) => format!("{name} IN ({})", values(all)),
        Filter::IsNull(name) => format!("{name} IS NULL"),
        Filter::Like(name, pattern) => format!("{name} LIKE '{pattern}'"),
        Filter::OwnHas(name) => format!("{name} IS NOT NULL"),
    }
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::Text(text) => format!("'{text}'"),
        Value::Int(value) | Value::Time(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Decimal { digits, scale } => format!("{digits}e-{scale}"),
    }
}

impl Leaf for HistoryAnswer {
    const NAME: &'static str = "HistoryRowsExec";

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ask = &self.ask;
        let outputs: Vec<_> = ask.outputs.iter().map(shown_output).collect();
        write!(f, "table={}, columns=[{}]", ask.dataset.table_name(), outputs.join(", "))?;
        if !ask.filters.is_empty() {
            let filters: Vec<_> = ask.filters.iter().map(shown).collect();
            write!(f, ", filters=[{}]", filters.join(", "))?;
        }
        if ask.grouped {
            let keys = ask.outputs.iter().filter(|output| !output.is_aggregate()).map(shown_output);
            write!(f, ", group_by=[{}]", keys.collect::<Vec<_>>().join(", "))?;
        }
        if !ask.order.is_empty() {
            let order = ask.order.iter().map(|step| {
                let (way, nulls) =
                    (if step.descending { "DESC" } else { "ASC" }, if step.nulls_first { "FIRST" } else { "LAST" });
                format!("{} {way} NULLS {nulls}", step.column)
            });
            write!(f, ", order_by=[{}]", order.collect::<Vec<_>>().join(", "))?;
        }
        ask.limit.map_or(Ok(()), |limit| write!(f, ", limit={limit}"))
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn partitions(&self) -> usize {
        1
    }

    fn read(
        &self,
        _partition: usize,
        context: Arc<TaskContext>,
        measured: BaselineMetrics,
    ) -> Result<SendableRecordBatchStream> {
        let reading = Reading {
            store: self.store.clone(),
            ask: self.ask.clone(),
            schema: self.schema.clone(),
            rows: None,
            reservation: MemoryConsumer::new("history rows").register(context.memory_pool()),
            measured,
        };
        let batches = stream::try_unfold(reading, |mut reading| async move {
            let batch = reading.next().await?;
            Ok(batch.map(|batch| (batch, reading)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }
}

/// An answer that is being read. The store is asked when the first batch is wanted.
struct Reading {
    store: Arc<dyn HistoryRows>,
    ask: RowsAsk,
    schema: SchemaRef,
    rows: Option<mpsc::Receiver<Result<RecordBatch, HistoryError>>>,
    reservation: MemoryReservation,
    measured: BaselineMetrics,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let rows = self.rows.get_or_insert_with(|| self.store.read(self.ask.clone()));
        while let Some(batch) = rows.recv().await {
            let batch = batch.map_err(|error| DataFusionError::External(Box::new(told(error))))?;
            let batch = checked(&batch, &self.ask.orgs, &self.schema)?;
            metrics::counter(metrics::HISTORY_ROWS, batch.num_rows() as u64);
            if batch.num_rows() > 0 {
                let size: u128 = batch.columns().iter().map(bytes).sum();
                self.reservation.try_resize(usize::try_from(size).unwrap_or(usize::MAX))?;
                self.measured.record_output(batch.num_rows());
                return Ok(Some(batch));
            }
        }
        self.reservation.free();
        Ok(None)
    }
}

/// The tenant's rows of a batch, as the plan expects them.
fn checked(batch: &RecordBatch, orgs: &[Arc<str>], schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.num_columns() != schema.fields().len() + 1 {
        return internal_err!("history answered {} columns of {}", batch.num_columns(), schema.fields().len() + 1);
    }
    let asked: Vec<usize> = (0..schema.fields().len()).collect();
    let own = own(batch, orgs, &asked)?;
    let options = RecordBatchOptions::new().with_row_count(Some(own.num_rows()));
    let columns = own.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| cast(column, field.data_type())).collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// What the client is told. The cause goes to the log of the program.
pub(crate) fn told(error: HistoryError) -> QueryError {
    match error {
        HistoryError::Unavailable(_) => {
            tracing::warn!(%error, "a query could not read history");
            QueryError::HistoryUnavailable
        }
        HistoryError::Busy(_) => QueryError::Busy("all connections to the store of history are busy".into()),
        // The stream of the query puts the bound in.
        HistoryError::Timeout => QueryError::Timeout { ms_max: 0 },
        HistoryError::Invalid(_) => internal(&error),
    }
}
