//! Health of the stages: who has work waiting, and who made progress when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

/// One stage (log, run loop, a sink, …). Cheap to update from any thread. Times are of the monotonic clock: a wall clock that
/// jumps must neither make a stage look stuck nor hide one that is.
#[derive(Debug)]
pub struct Stage {
    name: String,
    waiting: AtomicU64,
    started: Instant,
    /// Nanoseconds after `started`.
    progressed_ns: AtomicU64,
    detail: RwLock<Option<String>>,
    /// What of the stage is down for good.
    down: RwLock<Vec<String>>,
    aside: bool,
}

impl Stage {
    /// Says how much work waits (rows, bytes or requests: only zero or not matters). Work that arrives at an idle stage
    /// starts its clock.
    pub fn waiting(&self, amount: u64, now: Instant) {
        if self.waiting.swap(amount, Ordering::Relaxed) == 0 {
            self.progressed(now);
        }
    }

    /// Says that a piece of work was finished now.
    pub fn progressed(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started).as_nanos();
        self.progressed_ns.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn idle_since(&self, now: Instant) -> Duration {
        let progressed = Duration::from_nanos(self.progressed_ns.load(Ordering::Relaxed));
        now.saturating_duration_since(self.started).saturating_sub(progressed)
    }

    /// A word on a degraded state for `/readyz`, or `None` when all is well.
    pub fn set_detail(&self, detail: Option<String>) {
        *self.detail.write() = detail;
    }

    /// The parts of the stage that are down and do not come back by themselves: it counts as stuck, with the name of each,
    /// whether work waits or not.
    pub fn set_down(&self, parts: Vec<String>) {
        *self.down.write() = parts;
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
        self.register(name, false)
    }

    /// Registers a stage beside the stream, such as a destination that others wait for but this process does not: its details are
    /// told, but the process is ready without it.
    pub fn stage_aside(&self, name: &str) -> Arc<Stage> {
        self.register(name, true)
    }

    fn register(&self, name: &str, aside: bool) -> Arc<Stage> {
        let stage = Arc::new(Stage {
            name: name.to_owned(),
            waiting: AtomicU64::new(0),
            started: Instant::now(),
            progressed_ns: AtomicU64::new(0),
            detail: RwLock::new(None),
            down: RwLock::default(),
            aside,
        });
        self.stages.write().push(stage.clone());
        stage
    }

    /// The stages that at `now` have had work waiting without progress for longer than `bound`, and those of which something is down:
    /// `stage` or `stage: part`.
    pub fn stuck(&self, now: Instant, bound: Duration) -> Vec<String> {
        let mut stuck = Vec::new();
        for stage in self.stages.read().iter().filter(|stage| !stage.aside) {
            if stage.waiting.load(Ordering::Relaxed) > 0 && stage.idle_since(now) > bound {
                stuck.push(stage.name.clone());
            }
            stuck.extend(stage.down.read().iter().map(|part| format!("{}: {part}", stage.name)));
        }
        stuck
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
        let (start, bound) = (Instant::now(), Duration::from_secs(10));
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(health.stuck(after(100), bound).is_empty(), "idle");
        stage.waiting(1, after(100));
        assert!(health.stuck(after(110), bound).is_empty(), "just started");
        assert_eq!(health.stuck(after(111), bound), ["log"]);
        stage.progressed(after(111));
        assert!(health.stuck(after(120), bound).is_empty());
        stage.waiting(0, after(120));
        assert!(health.stuck(after(1_000), bound).is_empty());
        let aside = health.stage_aside("redis");
        aside.waiting(1, after(120));
        aside.set_detail(Some("away".to_owned()));
        assert!(health.stuck(after(1_000), bound).is_empty(), "the process is ready without it");
        assert_eq!(health.details(), [("redis".to_owned(), "away".to_owned())]);
    }

    #[test]
    fn a_stage_of_which_a_part_is_down_is_stuck_without_any_work() {
        let (health, now) = (Health::default(), Instant::now());
        let (stage, aside) = (health.stage("run"), health.stage_aside("redis"));
        stage.set_down(vec!["operator a".to_owned(), "operator b".to_owned()]);
        aside.set_down(vec!["all".to_owned()]);
        assert_eq!(health.stuck(now, Duration::MAX), ["run: operator a", "run: operator b"]);
        stage.waiting(1, now);
        assert_eq!(health.stuck(now + Duration::from_secs(2), Duration::from_secs(1))[0], "run");
        stage.progressed(now + Duration::from_secs(2));
        assert_eq!(
            health.stuck(now + Duration::from_secs(2), Duration::from_secs(1)).len(),
            2,
            "progress mends nothing"
        );
        stage.set_down(Vec::new());
        assert!(health.stuck(now, Duration::MAX).is_empty());
    }
}
