//! Reading a partition as a log: record after record, decoded, without the rows that were written twice.

use std::sync::Arc;
use std::time::Duration;

use arrow::buffer::Buffer;
use metrics::counter;
use tidegate_pipeline::log::carried::Carrier;
use tidegate_pipeline::log::memory_bytes;
use tidegate_pipeline::{LogBatch, Offset};

use super::failure::FluvioFailure;
use super::frames::{self, offset_of};
use super::link::{Cluster, Link, PartitionBounds};
use super::records::Records;
use super::repeats::{RecordWindow, WindowBounds};
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
}

impl Entry {
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
}

impl Reader {
    /// A reader from the record `from` on, or the first one there is. Looks back for the keys of the records before.
    pub(super) async fn open(place: Arc<Place>, link: Link, from: u64) -> Result<Self, FluvioFailure> {
        let bounds = place.bounds(&link).await?;
        let from = from.min(bounds.next).max(bounds.first);
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
            if self.link.next_record(&self.place.topic, self.place.partition).await? <= self.records.expected() {
                return Ok(None);
            }
        }
        let doing = format!("read {}-{}", self.place.topic, self.place.partition);
        Err(self.place.cluster.away(&doing, &"records are there and do not come"))
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
        let batches = unframed.into_batches(record, &repeats);
        let bytes = batches.iter().map(|batch| memory_bytes(&batch.rows)).sum();
        Entry { record, rows, batches, bytes }
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
