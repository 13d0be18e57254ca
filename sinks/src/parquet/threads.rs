//! The threads on which a store encodes and compacts.

use std::fmt;
use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// A thread of the store's own, which runs one thing after the other. An allocator keeps what a thread freed for that thread's next
/// need: on the many threads of a runtime's blocking work, which take turns, each commit would find none of it, and the
/// process would hold the memory of many.
pub(super) struct OwnThread {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl OwnThread {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().thread_name(name).max_blocking_threads(1).build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Runs work that blocks, when what was asked for before is done.
    pub(super) fn spawn<T, F>(&self, work: F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.handle.spawn_blocking(work)
    }
}

impl Drop for OwnThread {
    /// The last owner of a store may be a task of a runtime, or work on this very thread, which must not wait for itself.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for OwnThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnThread").finish_non_exhaustive()
    }
}
