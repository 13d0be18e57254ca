//! The newest alerts, read from the log once and rendered once for all subscribers of a tenant.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::AsArray;
use parking_lot::Mutex;
use tidegate_events::Dataset;
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{LogBatch, LogReader, Offset, PipelineError};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::filter::Facts;
use super::render;

/// Memory of one read of the log for all.
const READ_BYTES_MAX: usize = 1 << 20;

/// Memory of one read for a single subscriber that is behind. Each may have one that waits for its peer, so it is small.
const READ_BELOW_BYTES_MAX: usize = 256 << 10;

/// Reads for single subscribers at a time.
pub(super) const READS_BELOW_MAX: usize = 4;

/// Pages that a subscriber gets at a time.
const PAGES_AT_ONCE: usize = 16;

/// An alert on its way to subscribers.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) seq: u64,
    /// `{"seq":n,"alert":{…}}`
    pub(super) frame: Utf8Bytes,
    pub(super) facts: Facts,
}

impl Rendered {
    pub(super) fn new(seq: u64, alert: &str, facts: Facts) -> Self {
        Self { seq, frame: format!(r#"{{"seq":{seq},"alert":{alert}}}"#).into(), facts }
    }
}

/// A batch of the output log by tenant.
#[derive(Debug)]
pub(super) struct Page {
    /// From here on, and below `next`, it has all that there is: where the page before it ends, as offsets may have gaps.
    start: Offset,
    pub(super) offset: Offset,
    pub(super) next: Offset,
    /// Memory: the batch, and as much again for what is rendered of it.
    bytes: usize,
    batch: Arc<LogBatch>,
    by_org: HashMap<Box<str>, Vec<usize>>,
    rendered: Mutex<HashMap<Box<str>, Arc<[Rendered]>>>,
}

impl Page {
    fn new(start: Offset, batch: Arc<LogBatch>) -> Self {
        let mut by_org: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        let orgs = batch.rows.column_by_name(Dataset::ORG_ID).and_then(|column| column.as_string_opt::<i32>());
        if let Some(orgs) = orgs.filter(|_| batch.dataset == Dataset::Alerts) {
            for (row, org) in orgs.iter().enumerate() {
                let Some(org) = org else { continue };
                match by_org.get_mut(org) {
                    Some(rows) => rows.push(row),
                    None => drop(by_org.insert(org.into(), vec![row])),
                }
            }
        }
        let bytes = batch.rows.get_array_memory_size().saturating_mul(2);
        let (offset, next) = (batch.offset, batch.next_offset());
        Self { start, offset, next, bytes, batch, by_org, rendered: Mutex::default() }
    }

    /// The alerts of a tenant, in order.
    pub(super) fn alerts(&self, org_id: &str) -> Arc<[Rendered]> {
        let Some(rows) = self.by_org.get(org_id) else { return Arc::new([]) };
        let mut rendered = self.rendered.lock();
        if let Some(alerts) = rendered.get(org_id) {
            return alerts.clone();
        }
        let batch = &self.batch.rows;
        let alert = |row: &usize| {
            // The offset is the seq; the column says the same.
            let seq = self.offset + *row as u64;
            Rendered::new(seq, &render::render(batch, *row), Facts::of_row(batch, *row))
        };
        let alerts: Arc<[Rendered]> = rows.iter().map(alert).collect();
        rendered.insert(org_id.into(), alerts.clone());
        alerts
    }
}

/// What a read found.
#[derive(Debug)]
pub(super) enum Found {
    /// Pages from the offset on (the first may begin before it), and where to read on.
    Pages(Vec<Arc<Page>>, Offset),
    /// The log has forgotten the offset.
    Forgotten,
}

/// Consecutive pages, the newest last, and their memory.
#[derive(Debug, Default)]
struct Pages {
    pages: VecDeque<Arc<Page>>,
    bytes: usize,
}

impl Pages {
    /// Some pages from the one that holds `from` on.
    fn from(&self, from: Offset) -> Vec<Arc<Page>> {
        let first = self.pages.partition_point(|page| page.next <= from);
        let pages = self.pages.range(first..).take(PAGES_AT_ONCE);
        if self.pages.get(first).is_some_and(|page| page.start <= from) { pages.cloned().collect() } else { Vec::new() }
    }

    fn end(&self) -> Option<Offset> {
        self.pages.back().map(|page| page.next)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds pages that follow the newest one; drops the oldest ones over the bound.
    fn push(&mut self, fresh: &[Arc<Page>], bytes_max: usize) {
        for page in fresh {
            self.bytes += page.bytes;
            self.pages.push_back(page.clone());
        }
        while self.bytes > bytes_max
            && let Some(page) = self.pages.pop_front()
        {
            self.bytes -= page.bytes;
        }
    }
}

/// The newest pages of a log.
pub(super) struct Tail {
    log: Arc<dyn LogReader>,
    bytes_max: usize,
    pages: Mutex<Pages>,
    /// Who reads at the end of the log, for all.
    at_end: Arc<tokio::sync::Mutex<()>>,
    /// Who reads below the pages, each for himself.
    below: Arc<Semaphore>,
}

impl Tail {
    pub(super) fn new(log: Arc<dyn LogReader>, bytes_max: usize) -> Self {
        let (at_end, below) = (Arc::default(), Arc::new(Semaphore::new(READS_BELOW_MAX)));
        Self { log, bytes_max, pages: Mutex::default(), at_end, below }
    }

    pub(super) fn log(&self) -> &Arc<dyn LogReader> {
        &self.log
    }

    /// What is in memory from an offset on.
    pub(super) fn cached(&self, from: Offset) -> Option<Found> {
        let cached = self.pages.lock().from(from);
        let next = cached.last()?.next;
        Some(Found::Pages(cached, next))
    }

    /// Reads from an offset below the visible end. Who waits here has a place in a queue of all: the future has to be polled to
    /// its end, or dropped.
    ///
    /// # Errors
    /// What the log says.
    pub(super) async fn read(self: &Arc<Self>, from: Offset) -> Result<Found, PipelineError> {
        // Subscribers that wait for the same new batch queue here; the first reads it, the others find it.
        let at_end = self.at_end.clone().lock_owned().await;
        if let Some(found) = self.cached(from) {
            return Ok(found);
        }
        if self.pages.lock().end().is_some_and(|end| from < end) {
            drop(at_end);
            let place = self.below.clone().acquire_owned().await;
            return self.in_place(place, move |tail| tail.read_log(from, READ_BELOW_BYTES_MAX)).await;
        }
        self.in_place(at_end, move |tail| tail.read_for_all(from)).await
    }

    /// Reads on a thread that may wait for the disk. It keeps the place to its end, even if nobody waits for it any more: else
    /// subscribers that come and go would have more reads under way than there are places.
    async fn in_place(
        self: &Arc<Self>,
        place: impl Send + 'static,
        read: impl FnOnce(&Self) -> Result<Found, PipelineError> + Send + 'static,
    ) -> Result<Found, PipelineError> {
        let tail = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let found = read(&tail);
            drop(place);
            found
        });
        reading.await.map_err(|error| PipelineError::Invalid(format!("reading alerts: {error}")))?
    }

    /// Reads at the end of the pages or ahead of them, and keeps what it finds for the others.
    fn read_for_all(&self, from: Offset) -> Result<Found, PipelineError> {
        let end = self.pages.lock().end();
        if let Some(end) = end.filter(|end| *end < from) {
            // Who comes new is ahead of those who have not read the newest yet: what lies between is read for them too.
            if let Ok(Found::Pages(fresh, next)) = self.read_log(end, READ_BYTES_MAX)
                && next > from
            {
                self.pages.lock().push(&fresh, self.bytes_max);
                if let Some(found) = self.cached(from) {
                    return Ok(found);
                }
            }
            // More lies between them than a read brings, or it cannot be read.
            self.pages.lock().clear();
        }
        let found = self.read_log(from, READ_BYTES_MAX)?;
        if let Found::Pages(fresh, _) = &found {
            // What is read next begins where the last page ends, or after a stretch without rows, which is looked up anew.
            self.pages.lock().push(fresh, self.bytes_max);
        }
        Ok(found)
    }

    fn read_log(&self, from: Offset, bytes_max: usize) -> Result<Found, PipelineError> {
        let reading = read_on(self.log.as_ref(), from, bytes_max)?;
        if reading.forgotten > 0 {
            return Ok(Found::Forgotten);
        }
        let mut start = from;
        let page = |batch: Arc<LogBatch>| {
            let page = Page::new(start, batch);
            start = page.next;
            Arc::new(page)
        };
        let pages = reading.batches.into_iter().map(page).collect();
        Ok(Found::Pages(pages, reading.next))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use arrow::array::{Int64Array, RecordBatch};
    use tidegate_pipeline::LogBounds;
    use tokio::sync::watch;

    use super::*;

    /// A log with a row at each offset below a thousand, which counts its reads, and answers while it is open.
    pub(in crate::feed) struct Rows {
        reads: AtomicUsize,
        pub(in crate::feed) open: watch::Sender<bool>,
        bounds: watch::Sender<LogBounds>,
    }

    impl Rows {
        pub(in crate::feed) fn new() -> Arc<Self> {
            let bounds = watch::Sender::new(LogBounds { first: 0, next: 1_000 });
            Arc::new(Self { reads: AtomicUsize::new(0), open: watch::Sender::new(true), bounds })
        }

        pub(in crate::feed) fn reads(&self) -> usize {
            self.reads.load(Ordering::Relaxed)
        }
    }

    impl LogReader for Rows {
        /// Five batches of a row.
        fn read(&self, from: Offset, _: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            // Not for ever, as the end of a test waits for it.
            let asked = Instant::now();
            while !*self.open.borrow() && asked.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let column = Arc::new(Int64Array::from(vec![0])) as arrow::array::ArrayRef;
            let rows = RecordBatch::try_from_iter([("n", column)]).expect("a column");
            let batch = |offset| Arc::new(LogBatch { offset, dataset: Dataset::Alerts, rows: rows.clone() });
            Ok((from..1_000.min(from + 5)).map(batch).collect())
        }

        fn watch(&self) -> watch::Receiver<LogBounds> {
            self.bounds.subscribe()
        }
    }

    pub(in crate::feed) async fn read(tail: &Arc<Tail>, from: Offset) -> Offset {
        match tokio::time::timeout(Duration::from_secs(20), tail.read(from)).await.expect("in time").expect("rows") {
            Found::Pages(pages, next) => {
                assert!(pages.first().is_some_and(|page| page.start <= from && from < page.next), "from {from}");
                next
            }
            Found::Forgotten => panic!("nothing is forgotten"),
        }
    }

    #[tokio::test]
    async fn who_comes_new_takes_nothing_from_those_who_have_not_read_the_newest() {
        let log = Rows::new();
        let tail = Arc::new(Tail::new(log.clone(), 1 << 20));
        assert_eq!(read(&tail, 0).await, 5);
        // Ahead of the pages, but not far: one read for all that are between.
        assert_eq!(read(&tail, 8).await, 10);
        for from in [5, 6, 7, 0, 9] {
            assert_eq!(read(&tail, from).await, 10);
        }
        assert_eq!(log.reads(), 2);
        // Far ahead: the pages begin anew there.
        assert_eq!(read(&tail, 500).await, 505);
        assert_eq!(read(&tail, 502).await, 505);
        assert_eq!(log.reads(), 4);
        // Who is behind reads for himself, and the others keep theirs.
        assert_eq!(read(&tail, 20).await, 25);
        assert_eq!(read(&tail, 501).await, 505);
        assert_eq!(log.reads(), 5);
    }
}
