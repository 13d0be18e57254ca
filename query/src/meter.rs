//! What one query uses and whether it must stop: shared by its memory pool, its functions, its stream and the watch.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool, MemoryReservation};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::error::QueryError;

/// The state of one running query. Cheap to look at from any thread.
#[derive(Debug)]
pub(crate) struct Meter {
    stopped: AtomicBool,
    reason: Mutex<Option<QueryError>>,
    task: Mutex<Option<AbortHandle>>,
    /// Wakes the reader of the result when the query is stopped.
    pub(crate) notify: Notify,
    pub(crate) deadline: Instant,
    pub(crate) ms_max: u64,
    reserved: AtomicUsize,
}

impl Meter {
    pub(crate) fn new(deadline: Instant, ms_max: u64) -> Self {
        Self {
            stopped: AtomicBool::new(false),
            reason: Mutex::new(None),
            task: Mutex::new(None),
            notify: Notify::new(),
            deadline,
            ms_max,
            reserved: AtomicUsize::new(0),
        }
    }

    /// Stops the query; the first reason stays. What runs sees it at its next step, what waits is aborted.
    pub(crate) fn stop(&self, reason: QueryError) {
        self.reason.lock().get_or_insert(reason);
        self.stopped.store(true, Ordering::Release);
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
        self.notify.notify_waiters();
        self.notify.notify_one();
    }

    /// Names the task to abort when the query is stopped, and aborts it if that has already happened.
    pub(crate) fn set_task(&self, task: AbortHandle) {
        *self.task.lock() = Some(task);
        if self.stopped.load(Ordering::Acquire)
            && let Some(task) = self.task.lock().take()
        {
            task.abort();
        }
    }

    /// Why the query was stopped, if it was.
    pub(crate) fn reason(&self) -> Option<QueryError> {
        if self.stopped.load(Ordering::Acquire) { self.reason.lock().clone() } else { None }
    }

    /// An error once the query is stopped: for loops that run long between two yields.
    pub(crate) fn check(&self) -> Result<()> {
        match self.reason() {
            None => Ok(()),
            Some(reason) => Err(DataFusionError::External(Box::new(reason))),
        }
    }

    /// Memory that the operators of the query hold, in bytes.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }
}

/// The memory pool of one query: its own bound, and a share of the bound of all queries.
pub(crate) struct QueryPool {
    meter: Arc<Meter>,
    bytes_max: usize,
    all: Arc<AtomicUsize>,
    all_bytes_max: usize,
}

impl QueryPool {
    pub(crate) fn new(meter: Arc<Meter>, bytes_max: usize, all: Arc<AtomicUsize>, all_bytes_max: usize) -> Self {
        Self { meter, bytes_max, all, all_bytes_max }
    }

    fn add(&self, additional: usize) -> bool {
        let own = self.meter.reserved.fetch_add(additional, Ordering::Relaxed) + additional;
        let all = self.all.fetch_add(additional, Ordering::Relaxed) + additional;
        own <= self.bytes_max && all <= self.all_bytes_max
    }

    fn sub(&self, freed: usize) {
        self.meter.reserved.fetch_sub(freed, Ordering::Relaxed);
        self.all.fetch_sub(freed, Ordering::Relaxed);
    }

    fn exhausted(&self) -> QueryError {
        QueryError::Memory { bytes_max: self.bytes_max as u64 }
    }
}

impl fmt::Debug for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueryPool({} of {} bytes)", self.meter.reserved(), self.bytes_max)
    }
}

impl fmt::Display for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn grow(&self, _reservation: &MemoryReservation, additional: usize) {
        // Some operators take without asking: they get it, and the query is stopped.
        if !self.add(additional) {
            self.meter.stop(self.exhausted());
        }
    }

    fn shrink(&self, _reservation: &MemoryReservation, shrink: usize) {
        self.sub(shrink);
    }

    fn try_grow(&self, _reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.meter.check()?;
        if self.add(additional) {
            return Ok(());
        }
        self.sub(additional);
        Err(DataFusionError::ResourcesExhausted(self.exhausted().to_string()))
    }

    fn reserved(&self) -> usize {
        self.meter.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use datafusion::execution::memory_pool::MemoryConsumer;

    use super::*;

    fn pool(bytes_max: usize, all: &Arc<AtomicUsize>) -> (Arc<Meter>, Arc<dyn MemoryPool>) {
        let meter = Arc::new(Meter::new(Instant::now() + Duration::from_secs(60), 60_000));
        (meter.clone(), Arc::new(QueryPool::new(meter, bytes_max, all.clone(), 150)))
    }

    #[test]
    fn memory_is_bounded_for_each_query_and_for_all() {
        let all = Arc::new(AtomicUsize::new(0));
        let held = || all.load(Ordering::Relaxed);
        let ((meter, one), (other_meter, other)) = (pool(100, &all), pool(100, &all));
        let reservation = MemoryConsumer::new("one").register(&one);
        reservation.try_grow(60).expect("within its bound");
        reservation.try_grow(40).expect("to its bound");
        assert!(reservation.try_grow(1).is_err(), "over its bound");
        assert_eq!((one.reserved(), meter.reserved(), held()), (100, 100, 100), "what was refused is not held");
        let second = MemoryConsumer::new("other").register(&other);
        second.try_grow(50).expect("to the bound of all");
        assert!(second.try_grow(1).is_err(), "over the bound of all");
        assert_eq!((other.reserved(), held()), (50, 150));
        reservation.shrink(30);
        assert_eq!((meter.reserved(), held()), (70, 120));
        second.grow(30);
        assert!(other_meter.reason().is_none(), "to the bound of all");
        second.grow(1);
        assert!(
            matches!(other_meter.reason(), Some(QueryError::Memory { bytes_max: 100 })),
            "who takes without asking is stopped"
        );
        assert!(second.try_grow(0).is_err(), "who is stopped gets nothing more");
        drop((reservation, second));
        assert_eq!((meter.reserved(), other_meter.reserved(), held()), (0, 0, 0));
    }

    #[tokio::test]
    async fn what_waits_is_aborted_when_its_query_stops_before_or_after_it_begins() {
        for stop_first in [false, true] {
            let (meter, _) = pool(1, &Arc::default());
            assert!(meter.check().is_ok());
            if stop_first {
                meter.stop(QueryError::Cancelled);
            }
            let task = tokio::spawn(std::future::pending::<()>());
            meter.set_task(task.abort_handle());
            if !stop_first {
                meter.stop(QueryError::Cancelled);
            }
            meter.stop(QueryError::Timeout { ms_max: 1 });
            assert!(matches!(meter.reason(), Some(QueryError::Cancelled)), "the first reason stays");
            assert!(meter.check().is_err());
            let ended = tokio::time::timeout(Duration::from_secs(20), task).await.expect("it ends");
            assert!(ended.expect_err("aborted").is_cancelled());
            meter.notify.notified().await;
        }
    }
}
