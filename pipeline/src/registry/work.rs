//! What the registry is about, for its stage in `/readyz`: whoever changes something waits for those before, and all wait for the
//! disk.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::health::Stage;

/// Changes and saves that wait or are under way.
#[derive(Debug, Default)]
pub(super) struct Work {
    state: Mutex<(u64, Option<Arc<Stage>>)>,
}

impl Work {
    pub(super) fn report_to(&self, stage: Arc<Stage>) {
        let mut state = self.state.lock();
        stage.waiting(state.0, Instant::now());
        state.1 = Some(stage);
    }

    /// One more, until the guard is dropped.
    pub(super) fn begin(&self) -> Working<'_> {
        self.count(1, false);
        Working(self)
    }

    fn count(&self, by: i64, ended: bool) {
        let mut state = self.state.lock();
        state.0 = state.0.saturating_add_signed(by);
        if let Some(stage) = &state.1 {
            stage.waiting(state.0, Instant::now());
            if ended {
                stage.progressed(Instant::now());
            }
        }
    }
}

/// Something under way.
pub(super) struct Working<'w>(&'w Work);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.count(-1, true);
    }
}
