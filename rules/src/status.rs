//! What the operator in the run loop says of its rules to other threads. It is written to, never read, by the operator: what
//! the stream gives does not depend on it.

use std::sync::{Arc, PoisonError, RwLock};

use crate::eval::Parked;

/// What became of the rules in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesStatus {
    /// Rules, filters and correlations that no longer run because they took too much time or panicked.
    pub parked: Vec<Parked>,
}

/// A place where the operator leaves word. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard {
    status: Arc<RwLock<Arc<RulesStatus>>>,
}

impl StatusBoard {
    /// What was said last.
    pub fn read(&self) -> Arc<RulesStatus> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says how things are, if that is news.
    pub(crate) fn tell(&self, parked: &[Parked]) {
        if self.read().parked != parked {
            let status = Arc::new(RulesStatus { parked: parked.to_vec() });
            *self.status.write().unwrap_or_else(PoisonError::into_inner) = status;
        }
    }
}
