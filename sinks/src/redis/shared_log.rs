//! The ingest log of a node that shares event ids with others: what another node has stored is not appended again.

use std::sync::Arc;
use std::time::Instant;

use metrics::{counter, histogram};
use tidegate_pipeline::log::AppendResult;
use tidegate_pipeline::{
    Ack, Append, AppendError, AppendReply, Appended, LogBatch, LogBounds, LogReader, Offset, PipelineError, StreamLog,
};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::shared_ids::{Known, SharedIds};
use crate::metrics as names;

/// A [`StreamLog`] that asks Redis what of an append is stored elsewhere before it appends the rest to its own log, which goes on
/// to recognise what it stored itself. Without ids in an append, or while Redis is away, it is that log.
///
/// An append that is answered from memory asks and claims nothing, as it is durable at no known moment.
pub struct SharedIdsLog {
    own: Arc<dyn StreamLog>,
    ids: Arc<SharedIds>,
    runtime: Handle,
}

/// A place in an append.
type Place = (usize, usize);

impl SharedIdsLog {
    pub(super) fn new(own: Arc<dyn StreamLog>, ids: Arc<SharedIds>, runtime: Handle) -> Self {
        runtime.spawn(ids.clone().keep_connected());
        Self { own, ids, runtime }
    }

    /// Whether Redis is asked at present.
    pub fn is_shared(&self) -> bool {
        self.ids.is_up()
    }

    /// Appends by what this node knows, and remembers the ids for when Redis is back.
    fn append_alone(&self, append: Append, ids: Vec<u128>, why: &'static str) -> AppendReply {
        counter!(names::REDIS_IDS_ALONE, "why" => why).increment(1);
        let durable = append.ack == Ack::Disk;
        let appended = self.own.append(append);
        if !durable {
            return appended;
        }
        let (reply, receiver) = oneshot::channel();
        let shared = self.ids.clone();
        self.runtime.spawn(async move {
            let appended = appended.await.unwrap_or(Err(AppendError::Closed));
            if appended.is_ok() {
                shared.missed(&ids);
            }
            // Who asked may have gone.
            reply.send(appended).ok();
        });
        receiver
    }
}

impl LogReader for SharedIdsLog {
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        self.own.read(from, bytes_max)
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.own.watch()
    }
}

impl StreamLog for SharedIdsLog {
    fn append(&self, append: Append) -> AppendReply {
        let ids: Vec<u128> =
            append.batches.iter().flat_map(|batch| &batch.keys).copied().filter(|key| *key != 0).collect();
        if ids.is_empty() {
            return self.own.append(append);
        }
        if !self.ids.is_up() {
            return self.append_alone(append, ids, "away");
        }
        let Ok(place) = self.ids.groups.clone().try_acquire_owned() else {
            return self.append_alone(append, ids, "busy");
        };
        let (reply, receiver) = oneshot::channel();
        let (shared, own) = (self.ids.clone(), self.own.clone());
        self.runtime.spawn(async move {
            let appended = append_shared(&shared, own, append, ids).await;
            drop(place);
            reply.send(appended).ok();
        });
        receiver
    }

    fn forget(&self, below: Offset) -> Result<(), PipelineError> {
        self.own.forget(below)
    }
}

/// Asks, appends what is not stored elsewhere, and says that it is stored.
async fn append_shared(shared: &SharedIds, own: Arc<dyn StreamLog>, append: Append, ids: Vec<u128>) -> AppendResult {
    let (ack, started) = (append.ack, Instant::now());
    let known = shared.known(&ids, ack == Ack::Disk).await;
    histogram!(names::REDIS_IDS_SECONDS).record(started.elapsed());
    if known.is_none() {
        counter!(names::REDIS_IDS_ALONE, "why" => "slow").increment(1);
    }
    let known = known.unwrap_or_default();
    let of_others: Vec<bool> = known.iter().map(|known| *known == Known::Stored).collect();
    // Off the threads that serve sockets: encoding takes CPU.
    let appended = tokio::task::spawn_blocking(move || {
        let (kept, removed) = without(append, &of_others)?;
        Ok::<_, AppendError>((own.append(kept), removed))
    });
    let result = match appended.await {
        Ok(Ok((appended, removed))) => {
            let appended = appended.await.unwrap_or(Err(AppendError::Closed));
            appended.map(|appended| with(appended, &removed))
        }
        Ok(Err(error)) => Err(error),
        Err(error) => Err(AppendError::Failed(format!("appending stopped: {error}"))),
    };
    if ack == Ack::Disk {
        let others = |at: usize| known.get(at) == Some(&Known::Stored);
        let ours: Vec<u128> = ids.iter().enumerate().filter(|(at, _)| !others(*at)).map(|(_, id)| *id).collect();
        if !ours.is_empty() {
            shared.settle(&ours, result.is_ok()).await;
        }
    }
    result
}

/// What is left of an append without the rows that are stored elsewhere, and their places, ascending. `of_others` goes by the
/// rows that have an id.
fn without(append: Append, of_others: &[bool]) -> Result<(Append, Vec<Place>), AppendError> {
    if !of_others.contains(&true) {
        return Ok((append, Vec::new()));
    }
    let mut of_others = of_others.iter();
    let mut removed = Vec::new();
    let mut batches = Vec::with_capacity(append.batches.len());
    for (nth, batch) in append.batches.into_iter().enumerate() {
        let mut stored = |key: &u128| *key != 0 && of_others.next().is_some_and(|stored| *stored);
        let gone: Vec<usize> =
            batch.keys.iter().enumerate().filter(|(_, key)| stored(key)).map(|(row, _)| row).collect();
        if gone.is_empty() {
            batches.push(batch);
            continue;
        }
        removed.extend(gone.iter().map(|row| (nth, *row)));
        batches.push(batch.without(gone).map_err(|error| AppendError::Failed(error.to_string()))?);
    }
    counter!(names::REDIS_IDS_DUPLICATES).increment(removed.len() as u64);
    Ok((Append { batches, ack: append.ack }, removed))
}

/// What became of an append, in the places of the append as it came.
fn with(mut appended: Appended, removed: &[Place]) -> Appended {
    if removed.is_empty() {
        return appended;
    }
    let mut all = Vec::with_capacity(removed.len() + appended.duplicates.len());
    let mut own = appended.duplicates.iter().copied().peekable();
    let batches = removed.iter().map(|(nth, _)| *nth).chain(own.clone().map(|(nth, _)| nth)).max().unwrap_or(0);
    let mut removed = removed.iter().copied().peekable();
    for nth in 0..=batches {
        // A row that was left has moved up by as many places as there are removed ones before it.
        let mut moved = 0;
        let mut of_batch: Vec<Place> = Vec::new();
        while let Some((_, row)) = own.next_if(|(of, _)| *of == nth) {
            while let Some(gone) = removed.next_if(|(of, at)| *of == nth && *at <= row + moved) {
                of_batch.push(gone);
                moved += 1;
            }
            of_batch.push((nth, row + moved));
        }
        while let Some(gone) = removed.next_if(|(of, _)| *of == nth) {
            of_batch.push(gone);
        }
        all.append(&mut of_batch);
    }
    appended.duplicates = all;
    appended
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The places of the rows that are left, found the slow way.
    fn expected(rows: &[Vec<(bool, bool)>]) -> Vec<Place> {
        let mut all = Vec::new();
        for (nth, rows) in rows.iter().enumerate() {
            let either = rows.iter().enumerate().filter(|(_, (removed, own))| *removed || *own);
            all.extend(either.map(|(row, _)| (nth, row)));
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Each row is stored elsewhere, is found a duplicate by the own log, both, or neither.
        #[test]
        fn duplicates_are_told_in_the_places_of_the_request(
            rows in proptest::collection::vec(proptest::collection::vec((any::<bool>(), any::<bool>()), 0..8), 1..5),
        ) {
            let mut removed = Vec::new();
            let mut duplicates = Vec::new();
            for (nth, rows) in rows.iter().enumerate() {
                let mut left = 0;
                for (row, (is_removed, is_own)) in rows.iter().enumerate() {
                    if *is_removed {
                        removed.push((nth, row));
                        continue;
                    }
                    if *is_own {
                        duplicates.push((nth, left));
                    }
                    left += 1;
                }
            }
            let appended = with(Appended { duplicates, ..Appended::default() }, &removed);
            prop_assert_eq!(appended.duplicates, expected(&rows));
        }
    }
}
