//! The rows of a running query, with the bounds on time and output. Dropping it stops the query.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use crate::config::QueryConfig;
use crate::error::{QueryError, from_datafusion};
use crate::gate::functions::bytes;
use crate::meter::Meter;
use crate::metrics;
use crate::view::View;
use crate::watch::Place;

/// Batches that wait for a slow reader, at most.
const WAITING_BATCHES: usize = 2;

/// The result of a query: batches in the order of the query. Nothing runs ahead of a slow reader but a few batches.
#[derive(Debug)]
pub struct QueryStream {
    schema: SchemaRef,
    batches: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    meter: Arc<Meter>,
    started: Instant,
    rows_left: u64,
    bytes_left: u64,
    rows_max: u64,
    bytes_max: u64,
    ended: bool,
}

impl QueryStream {
    /// Starts `plan` on the runtime `workers`. Its place and its view are given back when nothing of the plan runs any more.
    pub(crate) fn start(
        plan: Arc<dyn ExecutionPlan>,
        context: Arc<TaskContext>,
        workers: &tokio::runtime::Handle,
        config: &QueryConfig,
        kept: (Place, Arc<View>),
        (meter, started): (Arc<Meter>, Instant),
    ) -> Self {
        let schema = plan.schema();
        let (send, batches) = mpsc::channel(WAITING_BATCHES);
        let task = workers.spawn(async move {
            let _kept = kept;
            // An answer that a panic cut short must not pass for a whole one.
            let ran = AssertUnwindSafe(run(plan, context, &send)).catch_unwind().await;
            if ran.is_err() {
                tracing::error!("a query has panicked");
                let _ = send.send(Err(QueryError::Internal)).await;
            }
        });
        meter.set_task(task.abort_handle());
        Self {
            schema,
            batches,
            meter,
            started,
            rows_left: config.rows_max,
            bytes_left: config.output_bytes_max,
            rows_max: config.rows_max,
            bytes_max: config.query_memory_bytes_max as u64,
            ended: false,
        }
    }

    /// The columns of the result.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next batch. After an error or `None` there is nothing more.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        if self.ended {
            return None;
        }
        let batch = tokio::select! {
            batch = self.batches.recv() => batch,
            () = self.meter.notify.notified() => Some(Err(QueryError::Cancelled)),
        };
        let batch = match (batch, self.meter.reason()) {
            (Some(Ok(batch)), _) => self.within_bounds(batch),
            // A query that was stopped ends with the reason, whatever its operators made of it.
            (_, Some(reason)) => Err(reason),
            (Some(Err(QueryError::Memory { .. })), None) => Err(QueryError::Memory { bytes_max: self.bytes_max }),
            (Some(Err(QueryError::Timeout { .. })), None) => Err(QueryError::Timeout { ms_max: self.meter.ms_max }),
            (Some(Err(error)), None) => Err(error),
            (None, None) => {
                self.ended = true;
                metrics::seconds(metrics::SECONDS, self.started);
                return None;
            }
        };
        if let Err(error) = &batch {
            self.ended = true;
            self.meter.stop(QueryError::Cancelled);
            metrics::error(error);
        }
        Some(batch)
    }

    /// All batches. For answers that are known to be small.
    ///
    /// # Errors
    /// The first error of the stream.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, QueryError> {
        let mut all = Vec::new();
        while let Some(batch) = self.next().await {
            all.push(batch?);
        }
        Ok(all)
    }

    fn within_bounds(&mut self, batch: RecordBatch) -> Result<RecordBatch, QueryError> {
        let rows = batch.num_rows() as u64;
        let size = batch.columns().iter().map(bytes).sum::<u128>().min(u128::from(u64::MAX)) as u64;
        if rows > self.rows_left {
            return Err(QueryError::TooLarge(format!("the answer has more than {} rows", self.rows_max)));
        }
        if size > self.bytes_left {
            return Err(QueryError::TooLarge("the answer has more bytes than query.output_bytes_max".into()));
        }
        self.rows_left -= rows;
        self.bytes_left -= size;
        metrics::counter(metrics::ROWS, rows);
        Ok(batch)
    }
}

async fn run(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    send: &mpsc::Sender<Result<RecordBatch, QueryError>>,
) {
    let mut rows = match execute_stream(plan, context) {
        Ok(rows) => rows,
        Err(error) => {
            let _ = send.send(Err(from_datafusion(&error))).await;
            return;
        }
    };
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(|error| from_datafusion(&error));
        let failed = batch.is_err();
        if send.send(batch).await.is_err() || failed {
            return;
        }
    }
}

impl Drop for QueryStream {
    fn drop(&mut self) {
        if !self.ended {
            metrics::counter(metrics::ABANDONED, 1);
        }
        self.meter.stop(QueryError::Cancelled);
    }
}
