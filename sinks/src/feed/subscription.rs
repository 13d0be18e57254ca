//! One subscriber's way through the alerts of its tenant: stored ones first, then the log, in order of `seq`.
//!
//! Nothing is buffered for a subscriber: it has a cursor on the log, and a slow one is behind. One that had caught up and is
//! then more than `lag_rows_max` behind is told how much it misses, and goes on with the newest.

use std::sync::Arc;
use std::time::Duration;

use tidegate_pipeline::{LogBounds, Offset, PipelineError};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::filter::{Facts, Filter};
use super::tail::{Found, Rendered, Tail};
use super::{Backfill, Stretch};
use crate::metrics as names;

const FORGOTTEN_PAUSE: Duration = Duration::from_millis(20);

/// Where a subscriber starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// With the next alert.
    Now,
    /// With the first alert whose `seq` is at least this.
    At(Offset),
}

/// What a subscriber is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// `{"seq":n,"alert":{…}}`
    Alert { seq: u64, frame: Utf8Bytes },
    /// It was too slow.
    Gap { missed: u64, resume_after: i64 },
}

impl Told {
    /// As a frame.
    pub(super) fn frame(&self) -> Utf8Bytes {
        match self {
            Self::Alert { frame, .. } => frame.clone(),
            Self::Gap { missed, resume_after } => {
                format!(r#"{{"type":"gap","missed":{missed},"resume_after":{resume_after}}}"#).into()
            }
        }
    }
}

/// Why a subscription ends by itself.
#[derive(Debug)]
pub(super) enum Broken {
    /// The log is closed.
    LogClosed,
    /// The log or the store of history cannot be read. The text is for the log of the server.
    Unreadable(String),
}

impl From<PipelineError> for Broken {
    fn from(error: PipelineError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

pub(super) struct Subscription {
    tail: Arc<Tail>,
    backfill: Backfill,
    bounds: watch::Receiver<LogBounds>,
    org_id: Arc<str>,
    pub(super) filter: Filter,
    cursor: Offset,
    /// Whether it ever was at the end of the log.
    caught_up: bool,
    lag_rows_max: u64,
    backfill_rows_max: usize,
}

impl Subscription {
    pub(super) fn new(
        tail: Arc<Tail>,
        backfill: Backfill,
        org_id: Arc<str>,
        filter: Filter,
        start: Start,
        bounds_max: (u64, usize),
    ) -> Self {
        let bounds = tail.log().watch();
        let next = bounds.borrow().next;
        let cursor = match start {
            Start::Now => next,
            Start::At(offset) => offset,
        };
        let (lag_rows_max, backfill_rows_max) = bounds_max;
        Self { tail, backfill, bounds, org_id, filter, cursor, caught_up: false, lag_rows_max, backfill_rows_max }
    }

    /// Waits for what comes next; never empty. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Vec<Told>, Broken> {
        loop {
            let bounds = *self.bounds.borrow_and_update();
            if self.cursor >= bounds.next {
                self.caught_up = true;
                self.bounds.changed().await.map_err(|_| Broken::LogClosed)?;
                continue;
            }
            let told = if self.cursor < bounds.first {
                self.read_history(bounds.first).await?
            } else if self.caught_up && bounds.next - self.cursor > self.lag_rows_max {
                self.skip_to(bounds.next).await?
            } else {
                self.read_log().await?
            };
            if !told.is_empty() {
                return Ok(told);
            }
        }
    }

    fn take<'a>(&self, alerts: impl IntoIterator<Item = &'a Rendered>, from: Offset) -> Vec<Told> {
        let wanted = alerts.into_iter().filter(|alert| alert.seq >= from && self.filter.matches(&alert.facts));
        wanted.map(|alert| Told::Alert { seq: alert.seq, frame: alert.frame.clone() }).collect()
    }

    async fn read_log(&mut self) -> Result<Vec<Told>, Broken> {
        let from = self.cursor;
        let Found::Pages(pages, next) = self.tail.read(from).await? else {
            // Retention passed the cursor while we looked; the bounds will say so in a moment.
            tokio::time::sleep(FORGOTTEN_PAUSE).await;
            return Ok(Vec::new());
        };
        let mut told = Vec::new();
        for page in pages {
            told.extend(self.take(page.alerts(&self.org_id).iter(), from));
        }
        self.cursor = next.max(from);
        Ok(told)
    }

    /// What the log no longer holds, below `first`.
    async fn read_history(&mut self, first: Offset) -> Result<Vec<Told>, Broken> {
        let signed = |offset: Offset| i64::try_from(offset).unwrap_or(i64::MAX);
        let stretch = Stretch {
            org_id: self.org_id.clone(),
            after_seq: signed(self.cursor) - 1,
            before_seq: signed(first),
            limit: self.backfill_rows_max,
        };
        let asked = (self.backfill)(stretch);
        let stored = asked.await.map_err(Broken::Unreadable)?;
        let whole = stored.len() < self.backfill_rows_max;
        let mut told = Vec::new();
        let mut cursor = self.cursor;
        for (seq, alert) in stored {
            if seq < cursor || seq >= first {
                return Err(Broken::Unreadable(format!("history gave seq {seq} between {cursor} and {first}")));
            }
            let rendered = Rendered::new(seq, &alert, Facts::of_json(&alert));
            told.extend(self.take([&rendered], cursor));
            cursor = seq + 1;
        }
        self.cursor = if whole { first } else { cursor };
        Ok(told)
    }

    /// Counts what is skipped up to `end`, and goes there.
    async fn skip_to(&mut self, end: Offset) -> Result<Vec<Told>, Broken> {
        let resume_after = i64::try_from(self.cursor).unwrap_or(i64::MAX) - 1;
        let (mut at, mut missed) = (self.cursor, 0);
        while at < end {
            let Found::Pages(pages, next) = self.tail.read(at).await? else { break };
            for page in pages {
                let alerts = page.alerts(&self.org_id);
                let skipped = alerts.iter().filter(|alert| (at..end).contains(&alert.seq));
                missed += skipped.filter(|alert| self.filter.matches(&alert.facts)).count() as u64;
            }
            if next <= at {
                break;
            }
            at = next;
        }
        self.cursor = end;
        if missed == 0 {
            return Ok(Vec::new());
        }
        metrics::counter!(names::FEED_GAPS).increment(1);
        metrics::counter!(names::FEED_MISSED_ALERTS).increment(missed);
        Ok(vec![Told::Gap { missed, resume_after }])
    }
}
