//! Writing to a partition as a log: what waits is sent as one group, and answered when all of it is acknowledged.
//!
//! A group is known to the local window of keys only once it is acknowledged. When a record of it is not, all of the group is
//! answered as failed, though some of it may be there: who sends it again makes repeats, which readers leave out.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use arrow::error::ArrowError;
use metrics::{counter, histogram};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::log::AppendResult;
use tidegate_pipeline::log::dedup::{GroupKeys, Window};
use tidegate_pipeline::{Ack, AppendError, Appended, EventBatch, Offset};
use tokio::sync::oneshot;

use super::failure::FluvioFailure;
use super::frames::{Frame, RECORD_BYTES_MAX, encode, offset_of, records_below};
use super::log::{Shared, Side};
use super::producer::{Producer, ProducerConfig};
use crate::metrics as names;

/// An append that waits, encoded as it will be written unless rows of it turn out to be duplicates.
pub(super) struct Pending {
    pub(super) batches: Vec<EventBatch>,
    pub(super) frames: Vec<Frame>,
    pub(super) bytes: usize,
    pub(super) reply: oneshot::Sender<AppendResult>,
}

/// One of a group, without its duplicates.
struct Prepared {
    frames: Vec<Frame>,
    batches: usize,
    duplicates: Vec<(usize, usize)>,
    reply: oneshot::Sender<AppendResult>,
}

/// Writes until it is aborted.
pub(super) async fn write(shared: Arc<Shared>) {
    let mut window = Window::new(shared.config.dedup_keys_max);
    let mut producer = None;
    loop {
        let group = shared.next_group().await;
        let (bytes, started) = (group.iter().map(|pending| pending.bytes).sum(), Instant::now());
        commit(&shared, group, &mut window, &mut producer).await;
        histogram!(names::FLUVIO_LOG_GROUP_SECONDS).record(started.elapsed());
        shared.group_done(bytes);
    }
}

async fn commit(shared: &Shared, group: Vec<Pending>, window: &mut Window, producer: &mut Option<Producer>) {
    let mut keys = GroupKeys::default();
    let mut prepared = Vec::with_capacity(group.len());
    let mut refused = None;
    for pending in group {
        let Pending { batches, frames, reply, .. } = pending;
        let duplicates = duplicates(&batches, &mut keys, window);
        let count = batches.len();
        let frames = match duplicates.is_empty() {
            true => Ok(frames),
            false => without(shared, batches, &duplicates),
        };
        let frames = frames.unwrap_or_else(|error| {
            refused = Some(AppendError::Failed(error.to_string()));
            Vec::new()
        });
        prepared.push(Prepared { frames, batches: count, duplicates, reply });
    }
    // Whatever is written from now on comes after that.
    let known = records_below(shared.bounds.borrow().next);
    let sent = match refused {
        Some(error) => Err(error),
        None => send(shared, &mut prepared, producer).await,
    };
    match sent {
        Ok(placed) => {
            if shared.goes_back(known, &placed) {
                // What a broker has lost is no duplicate.
                *window = Window::new(shared.config.dedup_keys_max);
            }
            keys.commit(window);
            shared.tell(Side::Write, None);
            answer(shared, prepared, &placed);
        }
        Err(error) => {
            counter!(names::FLUVIO_LOG_FAILED_GROUPS).increment(1);
            for Prepared { reply, .. } in prepared {
                // Who asked may have gone.
                reply.send(Err(error.clone())).ok();
            }
        }
    }
}

fn duplicates(batches: &[EventBatch], keys: &mut GroupKeys, window: &Window) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    for (nth, batch) in batches.iter().enumerate() {
        all.extend(keys.duplicates(&batch.keys, window).into_iter().map(|row| (nth, row)));
    }
    all
}

/// The records of an append without these rows.
fn without(shared: &Shared, batches: Vec<EventBatch>, duplicates: &[(usize, usize)]) -> Result<Vec<Frame>, ArrowError> {
    let of = |nth: usize| duplicates.iter().filter(move |(of, _)| *of == nth).map(|(_, row)| *row);
    let batches = batches.into_iter().enumerate().map(|(nth, batch)| batch.without(of(nth)));
    let batches = batches.collect::<Result<Vec<EventBatch>, ArrowError>>()?;
    encode(&shared.place.carrier, &batches, shared.config.record_bytes_max, now_us())
}

/// Sends the records of a group, in order; the record of each, in that order.
async fn send(
    shared: &Shared,
    group: &mut [Prepared],
    producer: &mut Option<Producer>,
) -> Result<Vec<u64>, AppendError> {
    let values = group.iter_mut().flat_map(|one| &mut one.frames).map(|frame| std::mem::take(&mut frame.value));
    let values: Vec<Vec<u8>> = values.collect();
    let (records, bytes) = (values.len() as u64, values.iter().map(Vec::len).sum::<usize>() as u64);
    let sent = send_all(shared, values, producer).await;
    let placed = sent.map_err(|failure| {
        *producer = None;
        shared.tell(Side::Write, Some(failure.to_string()));
        AppendError::Failed(failure.to_string())
    })?;
    counter!(names::FLUVIO_LOG_RECORDS).increment(records);
    counter!(names::FLUVIO_LOG_BYTES).increment(bytes);
    Ok(placed)
}

async fn send_all(
    shared: &Shared,
    values: Vec<Vec<u8>>,
    producer: &mut Option<Producer>,
) -> Result<Vec<u64>, FluvioFailure> {
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let producer = match producer {
        Some(producer) if !producer.is_broken() => producer,
        other => other.insert(open(shared).await?),
    };
    // Some of the room is for what the producer counts beside the records.
    let in_flight_max = shared.config.in_flight_bytes_max / 2;
    let mut placed = Vec::with_capacity(values.len());
    let (mut under_way, mut in_flight) = (VecDeque::new(), 0);
    for value in values {
        let bytes = value.len();
        while in_flight + bytes > in_flight_max
            && let Some((sending, bytes)) = under_way.pop_front()
        {
            placed.push(acknowledged(sending).await?);
            in_flight -= bytes;
        }
        under_way.push_back((producer.send(Vec::new(), value).await?, bytes));
        in_flight += bytes;
    }
    for (sending, _) in under_way {
        placed.push(acknowledged(sending).await?);
    }
    Ok(placed)
}

impl Shared {
    /// Whether a group has got numbers that others had before it was sent, when there were so many `known`: the broker has lost
    /// their records.
    fn goes_back(&self, known: u64, placed: &[u64]) -> bool {
        let Some(from) = placed.first().copied().filter(|first| *first < known) else { return false };
        let (topic, partition) = (self.place.topic.clone(), self.place.partition);
        let failure = FluvioFailure::Lost { topic, partition, read: known, from: Some(from) };
        if self.follows {
            self.lose(&failure);
        } else {
            counter!(names::FLUVIO_LOG_LOST_ENDS).increment(1);
            tracing::error!(%failure, "a broker has lost records that it had acknowledged");
            self.bounds.send_modify(|bounds| bounds.next = offset_of(from));
        }
        true
    }
}

async fn acknowledged(sending: super::producer::Sending) -> Result<u64, FluvioFailure> {
    Ok(sending.acknowledged().await?.offset)
}

async fn open(shared: &Shared) -> Result<Producer, FluvioFailure> {
    let link = shared.place.cluster.connect().await?;
    // While the partition has no leader, the client would keep what it is given, and wait.
    link.next_record(&shared.place.topic, shared.place.partition).await?;
    let config = ProducerConfig {
        partition: Some(shared.place.partition),
        compression: shared.config.compression,
        record_bytes_max: RECORD_BYTES_MAX,
        batch_bytes_max: shared.config.record_bytes_max.min(1 << 20),
        in_flight_bytes_max: shared.config.in_flight_bytes_max,
    };
    link.producer(&shared.place.topic, &config).await
}

/// Tells where the rows of each are.
fn answer(shared: &Shared, group: Vec<Prepared>, placed: &[u64]) {
    let mut placed = placed.iter().copied();
    let mut end = shared.bounds.borrow().next;
    let mut answers = Vec::with_capacity(group.len());
    for Prepared { frames, batches, duplicates, reply } in group {
        let mut offsets: Vec<Option<Range<Offset>>> = vec![None; batches];
        for (frame, record) in frames.iter().zip(placed.by_ref()) {
            let mut at = offset_of(record);
            for piece in &frame.pieces {
                let next = at + piece.rows as Offset;
                if let Some(range) = offsets.get_mut(piece.batch) {
                    *range = Some(range.as_ref().map_or(at, |range| range.start)..next);
                }
                at = next;
            }
            end = end.max(at);
        }
        let mut last = end;
        let offsets = offsets.into_iter().map(|range| {
            let range = range.unwrap_or(last..last);
            last = range.end;
            range
        });
        let appended = Appended { offsets: offsets.collect(), duplicates, ack: Some(Ack::Broker) };
        answers.push((reply, appended));
    }
    shared.visible(end);
    for (reply, appended) in answers {
        reply.send(Ok(appended)).ok();
    }
}
