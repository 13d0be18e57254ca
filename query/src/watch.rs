//! The watch: one thread that stops queries which are over their time, and the largest one when the process grows too much.
//!
//! It does not depend on the threads that run queries: a query that never yields is still told to stop, and its client
//! still gets an answer.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::QueryError;
use crate::meter::Meter;

/// How often running queries are looked at.
const TICK: Duration = Duration::from_millis(25);

/// The queries that run now.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    state: Mutex<State>,
    changed: Condvar,
    rss_growth_bytes_max: u64,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    running: HashMap<u64, Running>,
    /// Resident memory when the first of the running queries started.
    rss_before: u64,
}

#[derive(Debug)]
struct Running {
    meter: Arc<Meter>,
    org_id: Arc<str>,
}

/// A place among the running queries. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Place {
    watch: Arc<Watch>,
    id: u64,
}

impl Watch {
    /// Starts the thread, which ends when the last reference to the watch is gone.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(rss_growth_bytes_max: u64) -> std::io::Result<Arc<Self>> {
        let watch = Arc::new(Self { rss_growth_bytes_max, ..Self::default() });
        let weak = Arc::downgrade(&watch);
        std::thread::Builder::new().name("query-watch".into()).spawn(move || run(&weak))?;
        Ok(watch)
    }

    /// Takes a place for a query.
    ///
    /// # Errors
    /// [`QueryError::Busy`] when all places, or all of the tenant's, are taken.
    pub(crate) fn enter(
        self: &Arc<Self>,
        org_id: &Arc<str>,
        meter: &Arc<Meter>,
        queries_max: usize,
        tenant_queries_max: usize,
    ) -> Result<Place, QueryError> {
        let mut state = self.state.lock();
        if state.running.len() >= queries_max {
            return Err(QueryError::Busy(format!("{queries_max} queries are running, which is the bound")));
        }
        if state.running.values().filter(|running| running.org_id == *org_id).count() >= tenant_queries_max {
            return Err(QueryError::Busy(format!(
                "{tenant_queries_max} of your queries are running, which is the bound"
            )));
        }
        if state.running.is_empty() {
            state.rss_before = rss_bytes().unwrap_or(0);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.running.insert(id, Running { meter: meter.clone(), org_id: org_id.clone() });
        metrics::gauge!(crate::metrics::RUNNING).set(state.running.len() as f64);
        drop(state);
        self.changed.notify_one();
        Ok(Place { watch: self.clone(), id })
    }

    /// How many queries run.
    pub(crate) fn running(&self) -> usize {
        self.state.lock().running.len()
    }

    fn look(&self) {
        let mut state = self.state.lock();
        if state.running.is_empty() {
            self.changed.wait_for(&mut state, Duration::from_millis(500));
            return;
        }
        let now = Instant::now();
        for running in state.running.values() {
            if now >= running.meter.deadline {
                running.meter.stop(QueryError::Timeout { ms_max: running.meter.ms_max });
            }
        }
        let over = |rss: u64| rss > state.rss_before.saturating_add(self.rss_growth_bytes_max);
        if self.rss_growth_bytes_max > 0 && rss_bytes().is_some_and(over) {
            let largest = state.running.values().filter(|running| running.meter.reason().is_none());
            if let Some(largest) = largest.max_by_key(|running| running.meter.reserved()) {
                largest.meter.stop(QueryError::Memory { bytes_max: self.rss_growth_bytes_max });
            }
        }
        drop(state);
        std::thread::sleep(TICK);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.watch.state.lock();
        state.running.remove(&self.id);
        metrics::gauge!(crate::metrics::RUNNING).set(state.running.len() as f64);
    }
}

fn run(watch: &Weak<Watch>) {
    while let Some(watch) = watch.upgrade() {
        watch.look();
    }
}

/// Resident memory of this process, where the operating system tells.
fn rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
