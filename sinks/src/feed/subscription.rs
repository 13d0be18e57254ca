//! One subscriber's way through the alerts of its tenant: stored ones first, then the log, in order of `seq`.
//!
//! Nothing is buffered for a subscriber: it has a cursor on the log, and a slow one is behind. One that had caught up and is
//! then more than `lag_rows_max` behind is told how much it misses, and goes on with the newest.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tidegate_pipeline::{LogBounds, Offset, PipelineError};
use tokio::sync::watch;
use tokio::task::JoinSet;
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
    /// `{"seq":n,"alert":{…}}`; with other nodes, `after` is where the subscriber is in all of them.
    Alert { seq: u64, frame: Utf8Bytes, after: Option<Arc<str>> },
    /// It was too slow, or what it wants is gone: then nobody knows how much that was.
    Gap { missed: Option<u64>, resume_after: i64, place: Option<(Arc<str>, Arc<str>)> },
}

impl Told {
    /// As a frame.
    pub(super) fn frame(&self) -> Utf8Bytes {
        match self {
            Self::Alert { frame, .. } => frame.clone(),
            Self::Gap { missed, resume_after, place } => {
                let missed = missed.map_or_else(|| "null".to_owned(), |missed| missed.to_string());
                let place = place.as_ref().map(|(node, after)| format!(r#","node":"{node}","after":"{after}""#));
                let place = place.unwrap_or_default();
                format!(r#"{{"type":"gap","missed":{missed},"resume_after":{resume_after}{place}}}"#).into()
            }
        }
    }

    /// The same of one of several nodes. Neither name nor positions have anything that JSON escapes.
    pub(super) fn placed(self, node: &Arc<str>, positions: &Arc<str>) -> Self {
        match self {
            Self::Alert { seq, frame, .. } => {
                let rest = frame.as_str().strip_prefix('{').unwrap_or_default();
                let frame = format!(r#"{{"node":"{node}","after":"{positions}",{rest}"#).into();
                Self::Alert { seq, frame, after: Some(positions.clone()) }
            }
            Self::Gap { missed, resume_after, .. } => {
                Self::Gap { missed, resume_after, place: Some((node.clone(), positions.clone())) }
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

/// What a read brought.
enum Read {
    Log(Found),
    /// Stored alerts below the given first offset of the log.
    History(Vec<(u64, String)>, Offset),
    /// Nobody has what lies below the given first offset of the log.
    Gone(Offset),
}

/// A stretch that is counted instead of told.
struct Skip {
    end: Offset,
    missed: u64,
    resume_after: i64,
}

pub(super) struct Subscription {
    tail: Arc<Tail>,
    /// Where alerts are that the log has forgotten; `None` when they are nowhere.
    backfill: Option<Backfill>,
    bounds: watch::Receiver<LogBounds>,
    org_id: Arc<str>,
    pub(super) filter: Filter,
    cursor: Offset,
    /// Whether it ever was at the end of the log.
    caught_up: bool,
    skip: Option<Skip>,
    /// The read under way. It is kept here, so that a caller that stops waiting for a while does not start it again.
    reading: Option<BoxFuture<'static, Result<Read, Broken>>>,
    lag_rows_max: u64,
    backfill_rows_max: usize,
}

impl Subscription {
    pub(super) fn new(
        tail: Arc<Tail>,
        backfill: Option<Backfill>,
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
        Self {
            tail,
            backfill,
            bounds,
            org_id,
            filter,
            cursor,
            caught_up: false,
            skip: None,
            reading: None,
            lag_rows_max,
            backfill_rows_max,
        }
    }

    /// The last seq that it is past.
    pub(super) fn position(&self) -> i64 {
        signed(self.cursor) - 1
    }

    /// Waits for what comes next; never empty. Dropping the future loses nothing, and a read under way goes on.
    pub(super) async fn next(&mut self) -> Result<Vec<Told>, Broken> {
        loop {
            if self.reading.is_none() {
                let bounds = *self.bounds.borrow_and_update();
                if self.cursor >= bounds.next {
                    self.caught_up = true;
                    self.bounds.changed().await.map_err(|_| Broken::LogClosed)?;
                    continue;
                }
                self.reading = Some(self.read(bounds));
            }
            let Some(reading) = &mut self.reading else { continue };
            let read = reading.await;
            self.reading = None;
            let told = match read? {
                Read::Log(Found::Forgotten) => continue,
                Read::Log(Found::Pages(pages, next)) => {
                    let alerts: Vec<_> = pages.iter().map(|page| page.alerts(&self.org_id)).collect();
                    self.pass(alerts.iter().flat_map(|alerts| alerts.iter()), next)
                }
                Read::History(stored, first) => self.pass_stored(stored, first)?,
                Read::Gone(first) => {
                    self.cursor = self.cursor.max(first);
                    self.skip = None;
                    metrics::counter!(names::FEED_GAPS).increment(1);
                    vec![Told::Gap { missed: None, resume_after: self.position(), place: None }]
                }
            };
            if !told.is_empty() {
                return Ok(told);
            }
        }
    }

    /// Begins to read at the cursor, which is below the end of the log.
    fn read(&mut self, bounds: LogBounds) -> BoxFuture<'static, Result<Read, Broken>> {
        let cursor = self.cursor;
        if self.skip.is_none() && self.caught_up && bounds.next - cursor > self.lag_rows_max {
            self.skip = Some(Skip { end: bounds.next, missed: 0, resume_after: signed(cursor) - 1 });
        }
        if cursor < bounds.first {
            let Some(backfill) = &self.backfill else {
                return std::future::ready(Ok(Read::Gone(bounds.first))).boxed();
            };
            let stretch = Stretch {
                org_id: self.org_id.clone(),
                after_seq: signed(cursor) - 1,
                before_seq: signed(bounds.first),
                limit: self.backfill_rows_max,
            };
            let asked = backfill(stretch);
            return apart(async move { Ok(Read::History(asked.await.map_err(Broken::Unreadable)?, bounds.first)) });
        }
        if let Some(found) = self.tail.cached(cursor) {
            return std::future::ready(Ok(Read::Log(found))).boxed();
        }
        let tail = self.tail.clone();
        apart(async move {
            let found = tail.read(cursor).await?;
            if matches!(found, Found::Forgotten) {
                // Retention passed the cursor while we looked; the bounds will say so in a moment.
                tokio::time::sleep(FORGOTTEN_PAUSE).await;
            }
            Ok(Read::Log(found))
        })
    }

    fn pass_stored(&mut self, mut stored: Vec<(u64, String)>, first: Offset) -> Result<Vec<Told>, Broken> {
        let whole = stored.len() < self.backfill_rows_max;
        // A broker that lost an alert after it was stored gives its number to another one, and history has both. A subscriber
        // is past a number once.
        stored.dedup_by_key(|(seq, _)| *seq);
        let mut from = self.cursor;
        for (seq, _) in &stored {
            if !(from..first).contains(seq) {
                return Err(Broken::Unreadable(format!("history gave seq {seq} where {from}..{first} was asked for")));
            }
            from = seq + 1;
        }
        let render = |(seq, alert): &(u64, String)| Rendered::new(*seq, alert, Facts::of_json(alert));
        let rendered: Vec<Rendered> = stored.iter().map(render).collect();
        Ok(self.pass(rendered.iter(), if whole { first } else { from }))
    }

    /// Moves the cursor to `next` past `alerts`: tells of those that the filter lets through, or counts them.
    fn pass<'a>(&mut self, alerts: impl Iterator<Item = &'a Rendered>, next: Offset) -> Vec<Told> {
        let end = self.skip.as_ref().map_or(next, |skip| skip.end.min(next)).max(self.cursor);
        let from = std::mem::replace(&mut self.cursor, end);
        let wanted = alerts.filter(|alert| (from..end).contains(&alert.seq) && self.filter.matches(&alert.facts));
        let Some(skip) = &mut self.skip else {
            return wanted
                .map(|alert| Told::Alert { seq: alert.seq, frame: alert.frame.clone(), after: None })
                .collect();
        };
        skip.missed += wanted.count() as u64;
        if end < skip.end {
            return Vec::new();
        }
        let Skip { missed, resume_after, .. } = *skip;
        self.skip = None;
        if missed == 0 {
            return Vec::new();
        }
        metrics::counter!(names::FEED_GAPS).increment(1);
        metrics::counter!(names::FEED_MISSED_ALERTS).increment(missed);
        vec![Told::Gap { missed: Some(missed), resume_after, place: None }]
    }
}

/// Reads as a task of its own, which goes on whether or not it is waited for and ends with who waits. A subscriber whose peer takes
/// nothing waits for that peer alone; in the middle of a read it would keep everybody else from the log, or from history.
fn apart(
    read: impl Future<Output = Result<Read, Broken>> + Send + 'static,
) -> BoxFuture<'static, Result<Read, Broken>> {
    let mut task = JoinSet::new();
    task.spawn(read);
    async move {
        let read = task.join_next().await.unwrap_or_else(|| Ok(Err(Broken::Unreadable("nothing was read".to_owned()))));
        read.unwrap_or_else(|error| Err(Broken::Unreadable(format!("reading alerts: {error}"))))
    }
    .boxed()
}

fn signed(offset: Offset) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tidegate_pipeline::LogReader;
    use tokio::sync::Semaphore;

    use super::super::tail::READS_BELOW_MAX;
    use super::super::tail::tests::{Rows, read};
    use super::*;

    /// A log that has forgotten all below 10.
    struct Later;

    impl LogReader for Later {
        fn read(&self, asked: Offset, _: usize) -> Result<Vec<Arc<tidegate_pipeline::LogBatch>>, PipelineError> {
            Err(PipelineError::Forgotten { asked, first: 10 })
        }

        fn watch(&self) -> watch::Receiver<LogBounds> {
            watch::channel(LogBounds { first: 10, next: 10 }).1
        }
    }

    fn subscription(backfill: Backfill) -> Subscription {
        let tail = Arc::new(Tail::new(Arc::new(Later), 1 << 20));
        Subscription::new(tail, Some(backfill), "acme".into(), Filter::default(), Start::At(0), (1, 10))
    }

    #[tokio::test]
    async fn history_that_is_asked_for_is_read_whether_or_not_it_is_waited_for_and_ends_with_who_asked() {
        let places = Arc::new(Semaphore::new(1));
        let ended = Arc::new(AtomicBool::new(false));
        let (place_of, told) = (places.clone(), ended.clone());
        let quick: Backfill = Arc::new(move |_| {
            let (places, ended) = (place_of.clone(), told.clone());
            Box::pin(async move {
                let _place = places.acquire().await.map_err(|error| error.to_string())?;
                tokio::task::yield_now().await;
                ended.store(true, Ordering::Relaxed);
                Ok(Vec::new())
            })
        });
        let mut stopped = subscription(quick);
        assert!(futures::poll!(Box::pin(stopped.next())).is_pending());
        let place = tokio::time::timeout(Duration::from_secs(20), async {
            while !ended.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            places.acquire().await
        });
        drop(place.await.expect("the place is free again"));

        let place_of = places.clone();
        let endless: Backfill = Arc::new(move |_| {
            let places = place_of.clone();
            Box::pin(async move {
                let _place = places.acquire().await.map_err(|error| error.to_string())?;
                std::future::pending().await
            })
        });
        let mut gone = subscription(endless);
        assert!(futures::poll!(Box::pin(gone.next())).is_pending());
        while places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        drop(gone);
        let place = tokio::time::timeout(Duration::from_secs(20), places.acquire());
        drop(place.await.expect("what was asked ended with who asked"));
    }

    /// Subscribers that are asked once for what comes next, and then never again: as many as may read at a time.
    async fn stopped(tail: &Arc<Tail>, from: Offset) -> Vec<Subscription> {
        let mut all = Vec::new();
        for _ in 0..READS_BELOW_MAX {
            let bounds_max = (1_000, 10);
            let mut stopped =
                Subscription::new(tail.clone(), None, "acme".into(), Filter::default(), Start::At(from), bounds_max);
            assert!(futures::poll!(Box::pin(stopped.next())).is_pending());
            all.push(stopped);
        }
        all
    }

    async fn wait_for_reads(log: &Rows, reads: usize) {
        let waiting = async {
            while log.reads() < reads {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the reads");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_subscriber_that_stops_in_the_middle_of_a_read_holds_nobody_up() {
        let log = Rows::new();
        let tail = Arc::new(Tail::new(log.clone(), 1 << 20));
        assert_eq!(read(&tail, 100).await, 105);
        for from in [105, 0] {
            log.open.send_replace(false);
            let before = log.reads();
            let stopped = stopped(&tail, from).await;
            wait_for_reads(&log, before + 1).await;
            log.open.send_replace(true);
            assert_eq!(read(&tail, from).await, from + 5);
            drop(stopped);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn subscribers_that_come_and_go_read_no_more_at_a_time_than_there_are_places() {
        let log = Rows::new();
        let tail = Arc::new(Tail::new(log.clone(), 1 << 20));
        assert_eq!(read(&tail, 100).await, 105);
        log.open.send_replace(false);
        let first = stopped(&tail, 0).await;
        wait_for_reads(&log, 1 + READS_BELOW_MAX).await;
        drop(first);
        for _ in 0..3 {
            let stopped = stopped(&tail, 0).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(stopped);
        }
        assert_eq!(log.reads(), 1 + READS_BELOW_MAX);
        log.open.send_replace(true);
        assert_eq!(read(&tail, 0).await, 5);
        // Those that waited for a place are gone without a read.
        assert_eq!(log.reads(), 1 + READS_BELOW_MAX + 1);
    }
}
