//! Latencies counted in buckets that widen with the value, so that a quantile is right to 1.6 % from 1 µs to hours at the cost of
//! a few kilobytes (the idea of HdrHistogram).

use std::time::Duration;

/// Sub-buckets of each power of two.
const SUBS: u64 = 64;
/// Below this every value has a bucket of its own.
const EXACT: u64 = 2 * SUBS;
const BUCKETS: usize = (EXACT + (63 - 6) * SUBS) as usize;

/// Counts of durations, in microseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max_us: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(us)) {
            *count += 1;
        }
        self.total += 1;
        self.max_us = self.max_us.max(us);
    }

    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many durations were counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// The longest one, in milliseconds, exactly.
    pub fn max_ms(&self) -> f64 {
        self.max_us as f64 / 1e3
    }

    /// A quantile in milliseconds, never too low: the upper end of its bucket. 0 when nothing was counted.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let wanted = ((self.total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0.0, |at| upper_end(at as u64).min(self.max_us) as f64 / 1e3)
    }
}

fn bucket(us: u64) -> usize {
    if us < EXACT {
        return us as usize;
    }
    let exponent = u64::from(63 - us.leading_zeros());
    let sub = (us >> (exponent - 6)) & (SUBS - 1);
    (EXACT + (exponent - 7) * SUBS + sub) as usize
}

/// The largest value of a bucket.
fn upper_end(bucket: u64) -> u64 {
    if bucket < EXACT {
        return bucket;
    }
    let (exponent, sub) = ((bucket - EXACT) / SUBS + 7, (bucket - EXACT) % SUBS);
    let width = 1u64 << (exponent - 6);
    (1u64 << exponent).saturating_add(sub * width).saturating_add(width - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_that_ends_at_most_a_sixty_fourth_above_it() {
        for us in (0..200_000).chain([u64::MAX, u64::MAX / 3, 1 << 40, (1 << 40) - 1]) {
            let end = upper_end(bucket(us) as u64);
            assert!(bucket(us) < BUCKETS, "{us}");
            assert!(end >= us && end - us <= us / 64, "{us} in a bucket up to {end}");
        }
    }

    #[test]
    fn quantiles_of_a_thousand_milliseconds() {
        let mut halves = [Histogram::default(), Histogram::default()];
        for ms in 1..=1_000 {
            halves[ms as usize % 2].record(Duration::from_millis(ms));
        }
        let [mut histogram, other] = halves;
        histogram.merge(&other);
        assert_eq!((histogram.len(), histogram.max_ms()), (1_000, 1_000.0));
        for (quantile, ms) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let found = histogram.quantile_ms(quantile);
            assert!(found >= ms && found <= ms * 1.016, "{quantile}: {found}");
        }
        assert_eq!(Histogram::default().quantile_ms(0.5), 0.0);
    }
}
