//! Health of the stages: who has work waiting, and who made progress when.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;

/// One stage (log, run loop, a sink, …). Cheap to update from any thread.
#[derive(Debug)]
pub struct Stage {
    name: String,
    waiting: AtomicU64,
    progressed_us: AtomicI64,
    detail: RwLock<Option<String>>,
}

impl Stage {
    /// Says how much work waits (rows, bytes or requests: only zero or not matters). Work that arrives at an idle stage
    /// starts its clock.
    pub fn waiting(&self, amount: u64, now_us: i64) {
        if self.waiting.swap(amount, Ordering::Relaxed) == 0 {
            self.progressed_us.store(now_us, Ordering::Relaxed);
        }
    }

    /// Says that a piece of work was finished now.
    pub fn progressed(&self, now_us: i64) {
        self.progressed_us.store(now_us, Ordering::Relaxed);
    }

    /// A word on a degraded state for `/readyz`, or `None` when all is well.
    pub fn set_detail(&self, detail: Option<String>) {
        *self.detail.write() = detail;
    }

    /// The name of the stage.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// All stages of a process.
#[derive(Debug, Clone, Default)]
pub struct Health {
    stages: Arc<RwLock<Vec<Arc<Stage>>>>,
}

impl Health {
    /// Registers a stage.
    pub fn stage(&self, name: &str) -> Arc<Stage> {
        let stage = Arc::new(Stage {
            name: name.to_owned(),
            waiting: AtomicU64::new(0),
            progressed_us: AtomicI64::new(0),
            detail: RwLock::new(None),
        });
        self.stages.write().push(stage.clone());
        stage
    }

    /// The stages that have had work waiting without progress for longer than `stuck_us`.
    pub fn stuck(&self, now_us: i64, stuck_us: i64) -> Vec<String> {
        let stuck = |stage: &&Arc<Stage>| {
            stage.waiting.load(Ordering::Relaxed) > 0 && now_us - stage.progressed_us.load(Ordering::Relaxed) > stuck_us
        };
        self.stages.read().iter().filter(stuck).map(|stage| stage.name.clone()).collect()
    }

    /// The stages with a word on a degraded state: (name, detail).
    pub fn details(&self) -> Vec<(String, String)> {
        let stages = self.stages.read();
        stages.iter().filter_map(|stage| Some((stage.name.clone(), stage.detail.read().clone()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_stuck_only_with_work_and_without_progress() {
        let health = Health::default();
        let stage = health.stage("log");
        assert!(health.stuck(100, 10).is_empty(), "idle");
        stage.waiting(1, 100);
        assert!(health.stuck(110, 10).is_empty(), "just started");
        assert_eq!(health.stuck(111, 10), ["log"]);
        stage.progressed(111);
        assert!(health.stuck(120, 10).is_empty());
        stage.waiting(0, 120);
        assert!(health.stuck(1_000, 10).is_empty());
    }
}
