//! How much of the time in which a thread worked it had a core. A sample of the clock grows with what else the machine does, and
//! that is no fault of a rule.

use std::time::{Duration, Instant};

use tidegate_pipeline::clock::thread_cpu;

/// The least that says something: the clocks of threads are not read at the very moment when the other is.
const WALL_MIN: Duration = Duration::from_millis(1);

/// The time that went by in batches, and the CPU time of the thread in them, as far as they count.
#[derive(Debug, Default)]
pub(super) struct CoreTime {
    wall: Duration,
    cpu: Duration,
    /// Both clocks when the batch at work began.
    begun: Option<(Instant, Duration)>,
    /// The part of that time in which the thread had no core, when it was last looked.
    without: f64,
}

impl CoreTime {
    /// A batch begins on this thread.
    pub fn begin(&mut self) {
        self.begun = Some((Instant::now(), thread_cpu()));
    }

    /// It ends.
    pub fn end(&mut self) {
        (self.wall, self.cpu) = self.sums();
        self.begun = None;
    }

    /// What there was until now counts half.
    pub fn age(&mut self) {
        (self.wall, self.cpu) = (self.wall / 2, self.cpu / 2);
    }

    /// Looks at the clocks.
    pub fn look(&mut self) {
        let (wall, cpu) = self.sums();
        let known = wall >= WALL_MIN;
        self.without = if known { wall.saturating_sub(cpu).as_secs_f64() / wall.as_secs_f64() } else { 0.0 };
    }

    /// Of so many nanoseconds by the other clock, in batches, those in which the thread had a core, by what was last seen.
    pub fn of(&self, ns: u64) -> u64 {
        ns.saturating_sub((ns as f64 * self.without) as u64)
    }

    fn sums(&self) -> (Duration, Duration) {
        let (wall, cpu) = self.begun.map_or_else(Default::default, |(wall, cpu)| {
            // Another thread's clock, should a batch have ended otherwise, says nothing.
            (wall.elapsed(), thread_cpu().checked_sub(cpu).unwrap_or_else(|| wall.elapsed()))
        });
        (self.wall + wall, self.cpu + cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(time: Duration) {
        let begun = thread_cpu();
        while thread_cpu() - begun < time {}
    }

    #[test]
    fn time_without_a_core_is_nobodys() {
        let mut own = CoreTime::default();
        own.look();
        assert_eq!((own.of(1_000), own.of(u64::MAX)), (1_000, u64::MAX), "nothing is known yet");
        own.begin();
        work(Duration::from_millis(20));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(own.of(1_000), 1_000, "not looked at");
        own.look();
        assert!((1..=260).contains(&own.of(1_000)), "{} in the middle of a batch", own.of(1_000));
        own.end();
        own.look();
        let of_batch = own.of(1_000);
        assert!((1..=260).contains(&of_batch), "{of_batch}");
        // What goes by between batches is not asked.
        std::thread::sleep(Duration::from_millis(30));
        own.look();
        assert_eq!(own.of(1_000), of_batch);
        own.begin();
        own.end();
        own.age();
        own.look();
        assert!(own.of(1_000).abs_diff(of_batch) <= 2, "{}", own.of(1_000));
    }
}
