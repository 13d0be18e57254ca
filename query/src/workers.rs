//! The threads that run plans: a runtime of its own.
//!
//! Two reasons. An expression is evaluated by recursion, as deep as the gate lets it be, and a thread whose stack is too small
//! for that would end the process: the stack has to be chosen here. And a plan may run for long between two yields: it
//! must not keep other CPU work (decoding, rules) from its threads.

use tokio::runtime::{Builder, Handle, Runtime};

use crate::config::QueryConfig;

/// A runtime that ends without waiting for what runs on it.
#[derive(Debug)]
pub(crate) struct Workers(Option<Runtime>);

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(config: &QueryConfig) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.partitions().max(1))
            .max_blocking_threads(config.partitions().max(1) * 4)
            .thread_stack_size(config.run_stack_bytes)
            .thread_name("query-run")
            .enable_time()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn; `None` while the program ends.
    pub(crate) fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
