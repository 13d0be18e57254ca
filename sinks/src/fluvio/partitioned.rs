//! The partitions of a log as one log to append to: each tenant's rows go to the partition of that tenant.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use tidegate_events::Dataset;
use tidegate_pipeline::log::{AppendResult, check_batch};
use tidegate_pipeline::{
    Append, AppendError, AppendReply, Appended, EventBatch, LogBatch, LogBounds, Offset, PipelineError, StreamLog,
};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

/// A [`StreamLog`] to append to. An append is answered once all partitions that have rows of it have answered; when one of them
/// fails, it has failed, though the others may have their rows. The offsets in an answer count the rows of each batch and are no
/// places in a log: those belong to a partition.
pub struct PartitionedLog {
    partitions: Vec<Arc<dyn StreamLog>>,
    bounds: watch::Sender<LogBounds>,
    runtime: Handle,
}

/// The partition of a tenant.
pub fn partition_of(org_id: &str, partitions: usize) -> usize {
    (xxh3_64(org_id.as_bytes()) % partitions.max(1) as u64) as usize
}

/// Of each batch of a part: which batch of the append it is of, and which of its rows; `None` for all.
type Places = Vec<(usize, Option<Vec<u32>>)>;

/// The part of an append that goes to one partition.
#[derive(Default)]
struct Part {
    append: Append,
    places: Places,
}

impl PartitionedLog {
    /// These partitions, in their order.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] without any.
    pub fn new(partitions: Vec<Arc<dyn StreamLog>>, runtime: Handle) -> Result<Self, PipelineError> {
        if partitions.is_empty() {
            return Err(PipelineError::Invalid("a log needs a partition".to_owned()));
        }
        Ok(Self { partitions, bounds: watch::Sender::default(), runtime })
    }

    fn split(&self, append: Append) -> Result<Vec<Part>, AppendError> {
        append.batches.iter().try_for_each(check_batch)?;
        let mut parts: Vec<Part> = self.partitions.iter().map(|_| Part::default()).collect();
        for (nth, batch) in append.batches.into_iter().enumerate() {
            let rows_of = rows_of(&batch.rows, self.partitions.len());
            if let Some(only) = only(&rows_of, batch.rows.num_rows()) {
                parts[only].add(batch, (nth, None));
                continue;
            }
            for (part, rows) in parts.iter_mut().zip(rows_of).filter(|(_, rows)| !rows.is_empty()) {
                part.add(taken(&batch, &rows)?, (nth, Some(rows)));
            }
        }
        parts.iter_mut().for_each(|part| part.append.ack = append.ack);
        Ok(parts)
    }
}

impl Part {
    fn add(&mut self, batch: EventBatch, place: (usize, Option<Vec<u32>>)) {
        self.append.batches.push(batch);
        self.places.push(place);
    }
}

/// The rows of each partition. Rows of one tenant mostly stand together.
fn rows_of(rows: &RecordBatch, partitions: usize) -> Vec<Vec<u32>> {
    let orgs = rows.column_by_name(Dataset::ORG_ID).and_then(|column| column.as_string_opt::<i32>());
    let mut of = vec![Vec::new(); partitions];
    let (mut last, mut partition) = ("", partition_of("", partitions));
    for row in 0..rows.num_rows() {
        let org = orgs.filter(|orgs| orgs.is_valid(row)).map_or("", |orgs| orgs.value(row));
        if org != last {
            (last, partition) = (org, partition_of(org, partitions));
        }
        of[partition].push(row as u32);
    }
    of
}

/// The partition that has all rows; the first for a batch without any.
fn only(rows_of: &[Vec<u32>], rows: usize) -> Option<usize> {
    rows_of.iter().position(|of| of.len() == rows)
}

fn taken(batch: &EventBatch, rows: &[u32]) -> Result<EventBatch, AppendError> {
    let keys = rows.iter().filter_map(|row| batch.keys.get(*row as usize).copied()).collect();
    let rows = take_record_batch(&batch.rows, &UInt32Array::from_iter_values(rows.iter().copied()));
    let rows = rows.map_err(|error| AppendError::Failed(error.to_string()))?;
    Ok(EventBatch { dataset: batch.dataset, rows, keys })
}

impl StreamLog for PartitionedLog {
    fn append(&self, append: Append) -> AppendReply {
        let (reply, receiver) = oneshot::channel();
        let sizes: Vec<usize> = append.batches.iter().map(|batch| batch.rows.num_rows()).collect();
        let parts = match self.split(append) {
            Ok(parts) => parts,
            Err(error) => {
                // Who asked may have gone.
                reply.send(Err(error)).ok();
                return receiver;
            }
        };
        let busy = self.partitions.iter().zip(parts).filter(|(_, part)| !part.append.batches.is_empty());
        let pending: Vec<_> = busy.map(|(log, part)| (log.append(part.append), part.places)).collect();
        self.runtime.spawn(async move {
            let mut answers = Vec::with_capacity(pending.len());
            for (answer, places) in pending {
                answers.push((answer.await.unwrap_or(Err(AppendError::Closed)), places));
            }
            reply.send(joined(&sizes, answers)).ok();
        });
        receiver
    }

    fn read(&self, _from: Offset, _bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        Err(PipelineError::Invalid("a log of several partitions is read one by one".to_owned()))
    }

    fn forget(&self, _below: Offset) -> Result<(), PipelineError> {
        Ok(())
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.bounds.subscribe()
    }
}

/// The answer to an append of batches of these sizes.
fn joined(sizes: &[usize], answers: Vec<(AppendResult, Places)>) -> AppendResult {
    let mut joined = Appended::default();
    for (answer, places) in answers {
        let appended = answer?;
        joined.ack = appended.ack;
        for (part, row) in appended.duplicates {
            let Some((nth, rows)) = places.get(part) else { continue };
            let row = match rows {
                None => Some(row),
                Some(rows) => rows.get(row).map(|row| *row as usize),
            };
            joined.duplicates.extend(row.map(|row| (*nth, row)));
        }
    }
    joined.duplicates.sort_unstable();
    let gone = |nth: usize| joined.duplicates.iter().filter(|(of, _)| *of == nth).count();
    joined.offsets = sizes.iter().enumerate().map(|(nth, rows)| 0..(rows - gone(nth)) as Offset).collect();
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use tidegate_pipeline::log::MemoryLog;

    use super::*;

    fn batch(rows: &[(&str, u128)]) -> EventBatch {
        let schema = Schema::new(vec![Field::new("org_id", DataType::Utf8, true)]);
        let orgs: ArrayRef = Arc::new(rows.iter().map(|(org, _)| Some(*org)).collect::<StringArray>());
        EventBatch {
            dataset: Dataset::SecurityEvents,
            rows: RecordBatch::try_new(Arc::new(schema), vec![orgs]).expect("a batch"),
            keys: rows.iter().map(|(_, key)| *key).collect(),
        }
    }

    fn append(log: &PartitionedLog, batches: Vec<EventBatch>) -> Appended {
        log.append(Append { batches, ..Append::default() }).blocking_recv().expect("an answer").expect("stored")
    }

    #[test]
    fn each_tenant_is_in_its_partition_and_duplicates_are_told_in_the_places_of_the_request() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let logs: Vec<Arc<MemoryLog>> = (0..3).map(|_| Arc::new(MemoryLog::new(1000, 1 << 20))).collect();
        let dyn_logs = logs.iter().map(|log| log.clone() as Arc<dyn StreamLog>).collect();
        let log = PartitionedLog::new(dyn_logs, runtime.handle().clone()).expect("a log");
        let tenants = ["a", "b", "c", "d", "e"];
        let mixed: Vec<(&str, u128)> = (0..30).map(|at| (tenants[at % 5], at as u128 + 1)).collect();
        let first = append(&log, vec![batch(&mixed), batch(&[]), batch(&[("a", 100)])]);
        assert_eq!((first.duplicates.len(), first.offsets), (0, vec![0..30, 0..0, 0..1]));
        let again =
            append(&log, vec![batch(&[("z", 200)]), batch(&[("a", 300), ("b", 2), ("c", 3), ("a", 1), ("d", 301)])]);
        assert_eq!(again.duplicates, [(1, 1), (1, 2), (1, 3)]);
        assert_eq!(again.offsets, [0..1, 0..2]);
        let mut rows = 0;
        for (at, log) in logs.iter().enumerate() {
            for batch in log.read(0, usize::MAX).expect("batches") {
                rows += batch.rows.num_rows();
                let orgs = batch.rows.column(0).as_string::<i32>();
                assert!(orgs.iter().flatten().all(|org| partition_of(org, 3) == at), "{at}: {orgs:?}");
            }
        }
        assert_eq!(rows, 34);
        assert!(logs.iter().filter(|log| log.bounds().next > 0).count() > 1, "the tenants are spread");
    }
}
