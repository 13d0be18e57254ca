//! The threads that parse and plan. They have a big stack, because both recurse as deep as the statement is nested, and
//! nothing else runs on them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::QueryConfig;
use crate::error::QueryError;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads and a bounded queue before them.
#[derive(Debug)]
pub(crate) struct Planners {
    jobs: SyncSender<Job>,
}

impl Planners {
    /// Starts the threads, which end when the pool is dropped.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(config: &QueryConfig) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(config.queries_max.max(1));
        let queue = Arc::new(Mutex::new(queue));
        for at in 0..config.planner_threads.max(1) {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("query-plan-{at}"))
                .stack_size(config.planner_stack_bytes)
                .spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `job` on one of the threads.
    ///
    /// # Errors
    /// [`QueryError::Busy`] when the queue is full; [`QueryError::Internal`] when the job panicked; else its own.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move || {
            // The client may have left: nobody needs the answer then.
            if answer.is_closed() {
                return;
            }
            let result = std::panic::catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| {
                tracing::error!("the planner panicked; the query is refused");
                Err(QueryError::Internal)
            });
            let _ = answer.send(result);
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => QueryError::Busy("the planners are busy".into()),
            TrySendError::Disconnected(_) => QueryError::Cancelled,
        })?;
        answered.await.unwrap_or(Err(QueryError::Cancelled))
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().recv();
        let Ok(job) = job else { return };
        job();
    }
}
