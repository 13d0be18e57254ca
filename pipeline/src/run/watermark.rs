//! The watermark: how far event time has come.
//!
//! It is the largest `time` of the security and cost events so far, less the allowed lateness, and depends on nothing but
//! the batches and their order, so that a replay closes every window where the first run did. An event whose time lies
//! further ahead of its own receive time than allowed says nothing about where event time is: it does not move the
//! watermark, else one agent with a broken clock would close the windows of everybody.
//!
//! Where the watermark is further ahead than the events of a batch could have brought it, by when they were received, the clock
//! was set back: it goes back to where these events bring it, or nothing would be waited for until the clock is there again.

use arrow::array::{Array, RecordBatch, TimestampMicrosecondArray};
use tidegate_events::Dataset;

use crate::log::LogBatch;

/// Keeps the watermark.
#[derive(Debug)]
pub struct Watermark {
    lateness_us: i64,
    ahead_us_max: i64,
    at: Option<i64>,
}

impl Watermark {
    /// A watermark that stands at `at` already, when a checkpoint says so.
    pub fn new(lateness_us: i64, ahead_us_max: i64, at: Option<i64>) -> Self {
        Self { lateness_us, ahead_us_max, at }
    }

    /// Where it stands (µs); `None` before the first event.
    pub fn at(&self) -> Option<i64> {
        self.at
    }

    /// Takes a batch into account; the new watermark when that moved it, ahead or back.
    pub fn observe(&mut self, batch: &LogBatch) -> Option<i64> {
        if !matches!(batch.dataset, Dataset::SecurityEvents | Dataset::CostEvents) {
            return None;
        }
        let reached = latest(&batch.rows, self.ahead_us_max)?.saturating_sub(self.lateness_us);
        let possible = received_max(&batch.rows)
            .map_or(i64::MAX, |received| received.saturating_add(self.ahead_us_max).saturating_sub(self.lateness_us));
        if self.at.is_none_or(|at| reached > at || at > possible) {
            self.at = Some(reached);
            return self.at;
        }
        None
    }
}

/// The largest `time` that is not further ahead of the row's receive time than allowed. A row without a receive time has
/// nothing to be held against and counts.
fn latest(rows: &RecordBatch, ahead_us_max: i64) -> Option<i64> {
    let times = times(rows, "time")?;
    let received = times_of_every_row(rows);
    match received {
        Some(received) if times.null_count() == 0 => {
            let sane = times.values().iter().zip(received.values());
            sane.filter(|(time, received)| **time <= received.saturating_add(ahead_us_max)).map(|(time, _)| *time).max()
        }
        _ => {
            let received = self::times(rows, "received_time");
            let limit = |row: usize| match received {
                Some(received) if received.is_valid(row) => received.value(row).saturating_add(ahead_us_max),
                _ => i64::MAX,
            };
            let rows = times.iter().enumerate().filter_map(|(row, time)| Some((row, time?)));
            rows.filter(|(row, time)| *time <= limit(*row)).map(|(_, time)| time).max()
        }
    }
}

/// The latest receive time of a batch; `None` when no row has one.
pub(super) fn received_max(rows: &RecordBatch) -> Option<i64> {
    times(rows, "received_time")?.iter().flatten().max()
}

fn times_of_every_row(rows: &RecordBatch) -> Option<&TimestampMicrosecondArray> {
    times(rows, "received_time").filter(|received| received.null_count() == 0)
}

fn times<'a>(rows: &'a RecordBatch, name: &str) -> Option<&'a TimestampMicrosecondArray> {
    rows.column_by_name(name)?.as_any().downcast_ref()
}
