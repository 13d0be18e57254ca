//! The log tail as a stream of batches: read lazily in bounded chunks, this tenant's rows only, asked columns only.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, Scalar, StringArray, new_null_array,
};
use arrow::compute::kernels::{boolean, cmp};
use arrow::compute::{filter, prep_null_mask_filter};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream;
use tidegate_events::Dataset;
use tidegate_pipeline::{LogBatch, LogReader, Offset, PipelineError};

use crate::conform::conform;
use crate::error::{QueryError, internal};
use crate::gate::functions::bytes;
use crate::metrics;

/// Rows of a batch that the tail hands out, at most.
const PIECE_ROWS: usize = 8192;

/// Rows of a log in a range of offsets, of one dataset and some tenants, with some columns.
#[derive(Clone)]
pub(crate) struct TailPart {
    pub(crate) log: Arc<dyn LogReader>,
    pub(crate) rows: Range<Offset>,
    pub(crate) dataset: Dataset,
    pub(crate) orgs: Arc<[Arc<str>]>,
    pub(crate) schema: SchemaRef,
    pub(crate) chunk_bytes_max: usize,
}

impl std::fmt::Debug for TailPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TailPart").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

/// Batches of one chunk that are not handed out yet, and where the next chunk starts.
struct Reading {
    part: TailPart,
    next: Offset,
    ready: std::vec::IntoIter<RecordBatch>,
    reservation: datafusion::execution::memory_pool::MemoryReservation,
}

impl PartitionStream for TailPart {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let reservation = MemoryConsumer::new("log tail").register(context.memory_pool());
        let reading = Reading { part: self.clone(), next: self.rows.start, ready: Vec::new().into_iter(), reservation };
        let batches = stream::try_unfold(reading, |mut reading| async move {
            loop {
                if let Some(batch) = reading.ready.next() {
                    return Ok(Some((batch, reading)));
                }
                if reading.next >= reading.part.rows.end {
                    return Ok(None);
                }
                reading = reading.next_chunk().await?;
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches))
    }
}

impl Reading {
    /// Reads and cuts the next chunk on a thread that may block.
    async fn next_chunk(mut self) -> Result<Self, DataFusionError> {
        self.reservation.free();
        let (part, from) = (self.part.clone(), self.next);
        let read = tokio::task::spawn_blocking(move || part.chunk(from));
        let (batches, next) = read.await.map_err(|gone| DataFusionError::External(Box::new(gone)))??;
        let size: u128 = batches.iter().flat_map(RecordBatch::columns).map(bytes).sum();
        self.reservation.try_grow(usize::try_from(size).unwrap_or(usize::MAX))?;
        self.next = next;
        self.ready = batches.into_iter();
        Ok(self)
    }
}

impl TailPart {
    /// The rows of the chunk that starts at `from`, and the offset after it.
    fn chunk(&self, from: Offset) -> Result<(Vec<RecordBatch>, Offset), DataFusionError> {
        let read = self.log.read(from, self.chunk_bytes_max).map_err(|error| {
            let told = match error {
                PipelineError::Forgotten { .. } => QueryError::Moved,
                other => internal(&other),
            };
            DataFusionError::External(Box::new(told))
        })?;
        let mut out = Vec::with_capacity(read.len());
        let mut next = self.rows.end;
        for batch in &read {
            next = batch.next_offset().max(from + 1);
            let rows = if batch.dataset == self.dataset { self.cut(batch)? } else { None };
            if let Some(rows) = rows {
                // Large batches of the log go on in pieces, so that a query yields between them.
                for at in (0..rows.num_rows()).step_by(PIECE_ROWS) {
                    out.push(rows.slice(at, PIECE_ROWS.min(rows.num_rows() - at)));
                }
            }
            if next >= self.rows.end {
                break;
            }
        }
        metrics::counter(metrics::TAIL_ROWS, next.min(self.rows.end).saturating_sub(from));
        Ok((out, next))
    }

    /// The rows of a batch that lie in the range and belong to the tenant, as the table has them.
    fn cut(&self, batch: &LogBatch) -> Result<Option<RecordBatch>, ArrowError> {
        let start = self.rows.start.max(batch.offset);
        let end = self.rows.end.min(batch.next_offset());
        if start >= end {
            return Ok(None);
        }
        let rows = batch.rows.slice((start - batch.offset) as usize, (end - start) as usize);
        let Some(mine) = own_rows(&rows, &self.orgs)? else { return Ok(None) };
        let count = mine.true_count();
        if count == 0 {
            return Ok(None);
        }
        let asked = |field: &Arc<arrow::datatypes::Field>| -> Result<ArrayRef, ArrowError> {
            let Some(column) = rows.column_by_name(field.name()) else {
                return Ok(new_null_array(field.data_type(), count));
            };
            let column = if count == rows.num_rows() { column.clone() } else { filter(column, &mine)? };
            conform(&column, field.data_type())
        };
        let columns = self.schema.fields().iter().map(asked).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map(Some)
    }
}

/// Which rows belong to one of `orgs`; `None` when the batch says of no row whose it is.
pub(crate) fn own_rows(rows: &RecordBatch, orgs: &[Arc<str>]) -> Result<Option<BooleanArray>, ArrowError> {
    let Some(column) = rows.column_by_name(Dataset::ORG_ID) else { return Ok(None) };
    let mut mine: Option<BooleanArray> = None;
    for org in orgs {
        let equal = cmp::eq(column, &Scalar::new(StringArray::from(vec![&**org])))?;
        mine = Some(match mine {
            None => equal,
            Some(mine) => boolean::or_kleene(&mine, &equal)?,
        });
    }
    Ok(mine.map(|mine| if mine.null_count() > 0 { prep_null_mask_filter(&mine) } else { mine }))
}
