//! Waiting longer after each failure, up to a bound, with jitter, so that many waiters do not come back at once.

use std::time::Duration;

/// Exponential backoff: the k-th wait in a row is drawn from the upper half of `min · 2^k`, at most `max`.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// A backoff between the two bounds; `seed` tells the jitter of one from that of another.
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max: max.max(min), failures: 0, random: seed | 1 }
    }

    /// Takes note of a failure; how long to wait before the next try.
    pub fn failed(&mut self) -> Duration {
        let doubled = self.min.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let whole = doubled.min(self.max);
        // Xorshift (Marsaglia 2003): any spread will do here.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        whole.mul_f64(0.5 + 0.5 * share)
    }

    /// Takes note of a success: the next wait is the shortest again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_never_past_it_and_start_over_after_a_success() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut backoff = Backoff::new(min, max, 42);
        for failure in 0..1_000u32 {
            let whole = min.saturating_mul(1u32.checked_shl(failure).unwrap_or(u32::MAX)).min(max);
            let wait = backoff.failed();
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} after {failure} failures");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= min);
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn two_seeds_wait_differently() {
        let waits = |seed| {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), seed);
            (0..8).map(|_| backoff.failed()).collect::<Vec<_>>()
        };
        assert_ne!(waits(3), waits(1_000_003));
    }
}
