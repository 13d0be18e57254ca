//! From what the log says about a group of bodies to what each request is told.

use arrow::array::{Array, ArrayRef, AsArray};
use tidegate_events::Dataset;
use tidegate_pipeline::{Ack, AppendError, Appended, EventBatch, Problem};
use tokio::sync::oneshot;

use crate::decode::{Rejected, RowRef};
use crate::http::Held;
use crate::metrics as names;

/// What became of the items of one request.
#[derive(Debug, Default)]
pub struct Settled {
    /// Items stored by this request.
    pub accepted: usize,
    /// Items that were stored before.
    pub duplicates: usize,
    /// Items that were not stored, in order of their index.
    pub rejected: Vec<Rejected>,
    /// The others, in order of their index; empty unless asked for.
    pub stored: Vec<StoredItem>,
    /// When they were acknowledged, where the log has another level than the one that was asked for.
    pub ack: Option<Ack>,
    /// What the answer takes of the budget of all requests.
    pub(crate) held: Option<Held>,
}

/// An item that is stored, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredItem {
    /// Its place in the request, from 0.
    pub index: u32,
    /// Whether this request stored it.
    pub state: ItemState,
    /// The id of its row.
    pub event_id: String,
}

/// See [`StoredItem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemState {
    /// By this request.
    Stored,
    /// Before: the window of de-duplication knows its id.
    Duplicate,
}

/// The answer to a request.
pub type Reply = oneshot::Sender<Result<Settled, Problem>>;

/// A request whose items were decoded.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) reply: Reply,
    pub(crate) detail: bool,
    /// Items that were decoded, rejected ones included.
    pub(crate) items: usize,
    pub(crate) rejected: Vec<Rejected>,
    /// Why nothing of the body could be read.
    pub(crate) broken: Option<Problem>,
    /// What its rows and its answer take of the budget of all requests.
    pub(crate) held: Option<Held>,
}

/// The requests of one append, and where their rows are in it.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) waiting: Vec<Waiting>,
    rows: Vec<Vec<RowRef>>,
    /// The event ids of each batch, when a request asked for them. `None` for dead letters.
    event_ids: Vec<Option<ArrayRef>>,
}

impl Group {
    pub(crate) fn new(waiting: Vec<Waiting>, batches: &[EventBatch], rows: Vec<Vec<RowRef>>) -> Self {
        let detail = waiting.iter().any(|waiting| waiting.detail);
        let ids = |batch: &EventBatch| {
            let wanted = detail && batch.dataset != Dataset::DeadLetters;
            wanted.then(|| batch.rows.column_by_name(Dataset::EVENT_ID).cloned()).flatten()
        };
        Self { event_ids: batches.iter().map(ids).collect(), waiting, rows }
    }

    /// Answers every request of the group.
    pub(crate) fn settle(self, appended: Result<Appended, AppendError>) {
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                let problem = refusal(&error);
                for waiting in self.waiting {
                    // The client may have gone; nothing is acknowledged, so nothing is owed.
                    let _ = waiting.reply.send(Err(problem.clone()));
                }
                return;
            }
        };
        let mut duplicates = vec![0usize; self.waiting.len()];
        for (batch, row) in &appended.duplicates {
            let at = self.rows.get(*batch).and_then(|rows| rows.get(*row));
            if let Some(count) = at.and_then(|at| duplicates.get_mut(at.body as usize)) {
                *count += 1;
            }
        }
        let mut stored = self.stored_items(&appended);
        let (mut accepted_total, mut duplicates_total, mut rejected_total) = (0, 0, 0);
        for (at, waiting) in self.waiting.into_iter().enumerate() {
            let duplicates = duplicates.get(at).copied().unwrap_or(0);
            if let Some(problem) = waiting.broken {
                // The client may have gone; then nobody is told.
                let _ = waiting.reply.send(Err(problem));
                continue;
            }
            let mut rejected = waiting.rejected;
            let accepted = waiting.items.saturating_sub(rejected.len() + duplicates);
            rejected.sort_by_key(|item| item.index);
            let mut stored = stored.get_mut(at).map(std::mem::take).unwrap_or_default();
            stored.sort_by_key(|item| item.index);
            accepted_total += accepted as u64;
            duplicates_total += duplicates as u64;
            rejected_total += rejected.len() as u64;
            let held = waiting.held;
            let _ = waiting.reply.send(Ok(Settled { accepted, duplicates, rejected, stored, ack: appended.ack, held }));
        }
        metrics::counter!(names::EVENTS_STORED_TOTAL).increment(accepted_total);
        metrics::counter!(names::EVENTS_DUPLICATE_TOTAL).increment(duplicates_total);
        metrics::counter!(names::EVENTS_REJECTED_TOTAL).increment(rejected_total);
    }

    /// For each request that asked for them, its stored items.
    fn stored_items(&self, appended: &Appended) -> Vec<Vec<StoredItem>> {
        let mut stored: Vec<Vec<StoredItem>> = vec![Vec::new(); self.waiting.len()];
        let mut duplicates = appended.duplicates.iter().peekable();
        for (batch, (rows, ids)) in self.rows.iter().zip(&self.event_ids).enumerate() {
            let Some(ids) = ids.as_ref().and_then(|ids| ids.as_string_opt::<i32>()) else { continue };
            for (row, of) in rows.iter().enumerate() {
                while duplicates.next_if(|duplicate| **duplicate < (batch, row)).is_some() {}
                let duplicate = duplicates.next_if(|duplicate| **duplicate == (batch, row)).is_some();
                let body = of.body as usize;
                if row >= ids.len() || !self.waiting.get(body).is_some_and(|waiting| waiting.detail) {
                    continue;
                }
                if let Some(items) = stored.get_mut(body) {
                    let state = if duplicate { ItemState::Duplicate } else { ItemState::Stored };
                    items.push(StoredItem { index: of.item, state, event_id: ids.value(row).to_owned() });
                }
            }
        }
        stored
    }
}

fn refusal(error: &AppendError) -> Problem {
    match error {
        AppendError::Full(_) => Problem::new(429, "log_full", "the log is full for now; nothing was stored")
            .hint("send again after Retry-After seconds"),
        AppendError::Failed(_) => {
            Problem::new(503, "log_failed", "the log could not make the events durable; they do not count as stored")
                .hint("send again after Retry-After seconds; the log of the server says what the disk said")
        }
        AppendError::Closed => stopping(),
    }
}

pub(crate) fn stopping() -> Problem {
    Problem::new(503, "stopping", "the server is stopping").hint("send again after Retry-After seconds")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn batch(dataset: Dataset, ids: &[&str]) -> EventBatch {
        let schema = Schema::new(vec![Field::new("event_id", DataType::Utf8, true)]);
        let ids: ArrayRef = Arc::new(ids.iter().map(|id| Some(*id)).collect::<StringArray>());
        EventBatch { dataset, rows: RecordBatch::try_new(Arc::new(schema), vec![ids]).expect("a batch"), keys: vec![] }
    }

    fn at(body: u32, item: u32) -> RowRef {
        RowRef { body, item }
    }

    #[test]
    fn each_request_learns_of_its_own_rows_only() {
        let mut receivers = Vec::new();
        let mut waiting = Vec::new();
        for (items, detail) in [(3, true), (2, false), (2, true)] {
            let (reply, receiver) = oneshot::channel();
            receivers.push(receiver);
            waiting.push(Waiting { reply, detail, items, rejected: Vec::new(), broken: None, held: None });
        }
        waiting[2].rejected = vec![Rejected { index: 0, code: "invalid_json", reason: "no".into() }];
        let batches = [
            batch(Dataset::SecurityEvents, &["a", "b", "c", "d"]),
            batch(Dataset::DeadLetters, &["x"]),
            batch(Dataset::CostEvents, &["e", "f"]),
        ];
        let rows = vec![vec![at(0, 0), at(1, 0), at(0, 2), at(2, 1)], vec![at(2, 0)], vec![at(1, 1), at(0, 1)]];
        let group = Group::new(waiting, &batches, rows);
        let counters = [names::EVENTS_STORED_TOTAL, names::EVENTS_DUPLICATE_TOTAL, names::EVENTS_REJECTED_TOTAL];
        let raised = names::counted::during(counters, || {
            group.settle(Ok(Appended { duplicates: vec![(0, 1), (0, 2), (2, 0)], ..Appended::default() }));
        });
        assert_eq!(raised, [3, 3, 1], "the metrics say the same as the answers together");
        let settled: Vec<Settled> =
            receivers.iter_mut().map(|receiver| receiver.try_recv().expect("answered").expect("settled")).collect();
        let counts: Vec<_> =
            settled.iter().map(|one| (one.accepted, one.duplicates, one.rejected.len(), one.stored.len())).collect();
        assert_eq!(counts, [(2, 1, 0, 3), (0, 2, 0, 0), (1, 0, 1, 1)]);
        let ids: Vec<_> =
            settled[0].stored.iter().map(|item| (item.index, item.event_id.as_str(), item.state)).collect();
        use ItemState::{Duplicate, Stored};
        assert_eq!(ids, [(0, "a", Stored), (1, "f", Stored), (2, "c", Duplicate)]);
        assert_eq!(settled[2].stored[0].event_id, "d");
    }

    #[test]
    fn a_refused_append_refuses_every_request() {
        for (error, status) in
            [(AppendError::Full("x".into()), 429), (AppendError::Failed("x".into()), 503), (AppendError::Closed, 503)]
        {
            let (reply, mut receiver) = oneshot::channel();
            let waiting = Waiting { reply, detail: false, items: 1, rejected: Vec::new(), broken: None, held: None };
            Group::new(vec![waiting], &[], Vec::new()).settle(Err(error));
            assert_eq!(receiver.try_recv().expect("answered").expect_err("refused").status, status);
        }
    }
}
