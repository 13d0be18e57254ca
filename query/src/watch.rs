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

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(ms: u64) -> Arc<Meter> {
        Arc::new(Meter::new(Instant::now() + Duration::from_millis(ms), ms))
    }

    #[test]
    fn places_are_bounded_for_all_and_for_each_tenant() {
        let watch = Watch::start(0).expect("a thread");
        let enter = |org: &str| watch.enter(&org.into(), &meter(60_000), 3, 2);
        let mut places = Vec::new();
        for (org, enters) in [("a", true), ("a", true), ("a", false), ("b", true), ("c", false), ("a", false)] {
            match enter(org) {
                Ok(place) => {
                    assert!(enters, "{org}, with {} running", places.len());
                    places.push(place);
                }
                Err(error) => assert!(!enters && matches!(error, QueryError::Busy(_)), "{org}: {error:?}"),
            }
            assert_eq!(watch.running(), places.len());
        }
        drop(places.remove(0));
        assert_eq!(watch.running(), 2);
        let again = enter("a").expect("a place is free again");
        assert_eq!(
            places.iter().map(|place| place.id).chain([again.id]).collect::<Vec<_>>(),
            [1, 2, 3],
            "none is used twice"
        );
        drop((places, again));
        assert_eq!(watch.running(), 0);
    }

    /// Waits until a query is stopped; the reason, or `None` after 20 s.
    fn stopped(meter: &Meter) -> Option<QueryError> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if let Some(reason) = meter.reason() {
                return Some(reason);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    #[test]
    fn who_is_over_the_time_is_stopped_and_nobody_else() {
        let watch = Watch::start(0).expect("a thread");
        let (short, long) = (meter(30), meter(600_000));
        let places = [&short, &long].map(|meter| watch.enter(&"a".into(), meter, 9, 9).expect("a place"));
        assert!(matches!(stopped(&short), Some(QueryError::Timeout { ms_max: 30 })));
        assert!(Instant::now() >= short.deadline, "not before its time");
        assert!(long.reason().is_none());
        drop(places);
    }

    #[test]
    fn a_process_that_grew_too_much_stops_its_largest_query() {
        let resident = rss_bytes().expect("this operating system tells");
        assert!(resident > 1 << 20 && resident < 1 << 40, "{resident} bytes");
        let watch = Watch::start(1).expect("a thread");
        let (small, large) = (meter(600_000), meter(600_000));
        let all = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let pool = |meter: &Arc<Meter>| -> Arc<dyn datafusion::execution::memory_pool::MemoryPool> {
            Arc::new(crate::meter::QueryPool::new(meter.clone(), usize::MAX, all.clone(), usize::MAX))
        };
        let reserve = |meter: &Arc<Meter>, bytes: usize| {
            let reservation = datafusion::execution::memory_pool::MemoryConsumer::new("x").register(&pool(meter));
            reservation.grow(bytes);
            reservation
        };
        let kept = (reserve(&small, 1), reserve(&large, 1 << 20));
        let places = [&small, &large].map(|meter| watch.enter(&"a".into(), meter, 9, 9).expect("a place"));
        let grown = vec![1u8; 64 << 20];
        assert!(matches!(stopped(&large), Some(QueryError::Memory { bytes_max: 1 })));
        assert_eq!(grown.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
        drop((places, kept));
    }

    #[test]
    fn a_bound_of_zero_on_growth_stops_nobody() {
        let watch = Watch::start(0).expect("a thread");
        let meter = meter(600_000);
        let place = watch.enter(&"a".into(), &meter, 9, 9).expect("a place");
        let grown = vec![1u8; 64 << 20];
        assert_eq!(grown.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
        std::thread::sleep(8 * TICK);
        assert!(meter.reason().is_none(), "{:?}", meter.reason());
        drop(place);
    }
}
