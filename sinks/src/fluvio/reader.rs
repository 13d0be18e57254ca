//! Reading a partition as a log: record after record, decoded, without the rows that were written twice.

use std::sync::Arc;
use std::time::Duration;

use arrow::buffer::Buffer;
use metrics::counter;
use tidegate_pipeline::log::carried::Carrier;
use tidegate_pipeline::log::memory_bytes_of;
use tidegate_pipeline::{LogBatch, Offset};

use super::failure::FluvioFailure;
use super::frames::{self, offset_of, records_below};
use super::link::{Cluster, Link, PartitionBounds};
use super::records::Records;
use super::repeats::{RecordWindow, WindowBounds};
use super::tail::mark;
use crate::metrics as names;

/// How long nothing may come before the partition is asked whether there is something.
const QUIET: Duration = Duration::from_secs(5);

/// Records of the first look back; each further one is for four times as many.
const LOOK_BACK: u64 = 64;

/// The partition that holds a log, and how it is read.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) cluster: Arc<Cluster>,
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) window: WindowBounds,
    pub(super) carrier: Carrier,
}

/// A record as readers see it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: u64,
    /// Rows, those left out included.
    pub(super) rows: usize,
    pub(super) batches: Vec<Arc<LogBatch>>,
    /// Of memory.
    pub(super) bytes: usize,
    /// See [`super::tail`].
    pub(super) mark: u32,
}

impl Entry {
    fn new(record: u64, rows: usize, batches: Vec<Arc<LogBatch>>, mark: u32) -> Self {
        // Batches that are parts of one record share its memory.
        let bytes = memory_bytes_of(batches.iter().map(|batch| &batch.rows));
        Self { record, rows, batches, bytes, mark }
    }

    /// The offset after its last row.
    pub(super) fn end(&self) -> Offset {
        offset_of(self.record) + self.rows as Offset
    }
}

/// See the module. After a failure it is of no use.
#[derive(Debug)]
pub(super) struct Reader {
    place: Arc<Place>,
    link: Link,
    records: Records,
    window: RecordWindow,
    /// What the partition held when this was opened.
    pub(super) bounds: PartitionBounds,
}

impl Place {
    /// What the partition holds.
    pub(super) async fn bounds(&self, link: &Link) -> Result<PartitionBounds, FluvioFailure> {
        link.bounds(&self.topic, self.partition).await
    }

    /// That a partition ends at a record before one that was there: what all replicas have may be known late again after a leader
    /// came back.
    fn ends_before(&self, end: u64, expected: u64) -> FluvioFailure {
        self.away(&format!("it ends at record {end}, before {expected}"))
    }

    fn away(&self, what: &str) -> FluvioFailure {
        let doing = format!("read {}-{}", self.topic, self.partition);
        self.cluster.away(&doing, &what)
    }
}

impl Reader {
    /// A reader from the record `from` on, or the first one there is. Looks back for the keys of the records before. Fails while the
    /// partition ends before it.
    pub(super) async fn open(place: Arc<Place>, link: Link, from: u64) -> Result<Self, FluvioFailure> {
        let bounds = place.bounds(&link).await?;
        if bounds.next < from {
            return Err(place.ends_before(bounds.next, from));
        }
        let from = from.max(bounds.first);
        let window = look_back(&place, bounds.first, from).await?;
        let records = link.records(&place.topic, place.partition, from).await?;
        Ok(Self { place, link, records, window, bounds })
    }

    /// The next record; `None` when nothing comes and nothing is there.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>, FluvioFailure> {
        for _ in 0..2 {
            if let Some(record) = self.records.next(QUIET).await? {
                let at = u64::try_from(record.offset()).unwrap_or_default();
                let value = Buffer::from(record.value());
                return Ok(Some(self.entry(at, &value)));
            }
            // A stream that hangs looks like one that has nothing.
            let (next, expected) =
                (self.link.next_record(&self.place.topic, self.place.partition).await?, self.records.expected());
            if next == expected {
                return Ok(None);
            }
            if next < expected {
                // Whoever reads on compares the ends.
                return Err(self.place.ends_before(next, expected));
            }
        }
        Err(self.place.away("records are there and do not come"))
    }

    /// That rows below an offset were there, and the partition ends here.
    pub(super) fn ends_before(&self, until: Offset) -> FluvioFailure {
        self.place.ends_before(self.expected(), records_below(until))
    }

    /// The record that comes next.
    pub(super) fn expected(&self) -> u64 {
        self.records.expected()
    }

    fn entry(&mut self, record: u64, value: &Buffer) -> Entry {
        let unframed = frames::decode(&self.place.carrier, value).unwrap_or_else(|reason| {
            let Place { topic, partition, .. } = &*self.place;
            tracing::error!(topic, partition, record, reason, "a record is damaged; its rows are lost");
            counter!(names::FLUVIO_LOG_DAMAGED).increment(1);
            // Its keys count as far as whoever looks back can read them.
            let keys = frames::keys(value).unwrap_or_default();
            frames::Unframed { keys, ..frames::Unframed::default() }
        });
        let rows = unframed.rows;
        let repeats = self.window.take(record, unframed.keys.clone());
        counter!(names::FLUVIO_LOG_REPEATS).increment(repeats.len() as u64);
        Entry::new(record, rows, unframed.into_batches(record, &repeats), mark(value))
    }
}

/// The window before the record `from`.
async fn look_back(place: &Place, first: u64, from: u64) -> Result<RecordWindow, FluvioFailure> {
    let mut known: Vec<(u64, Vec<u128>)> = Vec::new();
    let (mut start, mut step, mut keys) = (from, LOOK_BACK, 0);
    while start > first && !place.window.reached(known.len(), keys) {
        let begin = start.saturating_sub(step).max(first);
        let mut earlier = Vec::new();
        // On a connection of its own: an SPU serves a reader for as long as the connection is there, though nobody reads.
        let link = place.cluster.connect().await?;
        let mut records = link.records(&place.topic, place.partition, begin).await?;
        while records.expected() < start {
            let at = records.expected();
            let Some(record) = records.next(place.cluster.reply_max).await? else {
                return Err(place.cluster.late(&format!("look back in {}", place.topic), place.cluster.reply_max));
            };
            // One that is damaged has none, to every reader.
            earlier.push((at, frames::keys(record.value()).unwrap_or_default()));
        }
        keys += earlier.iter().map(|(_, keys)| keys.len()).sum::<usize>();
        earlier.append(&mut known);
        (known, start, step) = (earlier, begin, step * 4);
    }
    let mut window = RecordWindow::new(place.window);
    for (record, keys) in known {
        window.take(record, keys);
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use tidegate_events::Dataset;
    use tidegate_pipeline::EventBatch;

    use super::*;

    #[test]
    fn a_record_of_which_rows_are_left_out_counts_once() {
        let ids: Vec<String> = (0..1_000).map(|at| format!("{at:0>100}")).collect();
        let column: ArrayRef = Arc::new(StringArray::from(ids));
        let rows = RecordBatch::try_from_iter([("event_id", column)]).expect("a batch");
        let carrier = Carrier::new().expect("random bits");
        let batch = EventBatch { dataset: Dataset::SecurityEvents, rows, keys: (1..=1_000).collect() };
        let frames = frames::encode(&carrier, &[batch], 1 << 20, 7).expect("a record");
        let value = Buffer::from(frames[0].value.as_slice());
        // Every other row was there before.
        let repeats: Vec<usize> = (0..1_000).step_by(2).collect();
        let unframed = frames::decode(&carrier, &value).expect("a record");
        let entry = Entry::new(5, unframed.rows, unframed.into_batches(5, &repeats), mark(&value));
        assert_eq!((entry.batches.len(), entry.rows), (500, 1_000));
        let overhead = entry.batches.len() * std::mem::size_of::<RecordBatch>();
        assert!(entry.bytes <= 2 * value.len() + overhead, "{} bytes of a record of {}", entry.bytes, value.len());
    }
}
