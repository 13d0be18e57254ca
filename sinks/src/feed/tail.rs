//! The newest alerts, read from the log once and rendered once for all subscribers of a tenant.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::AsArray;
use parking_lot::Mutex;
use tidegate_events::Dataset;
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{LogBatch, LogReader, Offset, PipelineError};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::filter::Facts;
use super::render;

/// Memory of one read of the log.
const READ_BYTES_MAX: usize = 1 << 20;

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
    pages: tokio::sync::Mutex<Pages>,
}

impl Tail {
    pub(super) fn new(log: Arc<dyn LogReader>, bytes_max: usize) -> Self {
        Self { log, bytes_max, pages: tokio::sync::Mutex::default() }
    }

    pub(super) fn log(&self) -> &Arc<dyn LogReader> {
        &self.log
    }

    /// Reads from an offset below the visible end.
    ///
    /// # Errors
    /// What the log says.
    pub(super) async fn read(&self, from: Offset) -> Result<Found, PipelineError> {
        // Subscribers that wait for the same new batch queue here; the first reads it, the others find it.
        let mut pages = self.pages.lock().await;
        let cached = pages.from(from);
        if let Some(last) = cached.last() {
            let next = last.next;
            return Ok(Found::Pages(cached, next));
        }
        match pages.pages.back().map(|page| page.next) {
            // Someone who catches up reads for himself, beside the others.
            Some(end) if from < end => {
                drop(pages);
                return self.read_log(from).await;
            }
            Some(end) if from > end => pages.clear(),
            _ => {}
        }
        let found = self.read_log(from).await?;
        if let Found::Pages(fresh, _) = &found {
            // What is read next begins where the last page ends, or after a stretch without rows, which is looked up anew.
            pages.push(fresh, self.bytes_max);
        }
        Ok(found)
    }

    async fn read_log(&self, from: Offset) -> Result<Found, PipelineError> {
        let log = self.log.clone();
        let reading = tokio::task::spawn_blocking(move || read_on(log.as_ref(), from, READ_BYTES_MAX));
        let reading = reading.await.map_err(|error| PipelineError::Invalid(format!("reading alerts: {error}")))??;
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
