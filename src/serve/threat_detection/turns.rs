//! How often a tenant may change its rules: every change compiles, is a row of the log, and is kept by everyone who keeps rules.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Tenants that are remembered; of more, those that may change as they like anyway are forgotten.
const TENANTS_MAX: usize = 10_000;

/// A number of turns for each tenant, which fills up again as time goes by.
#[derive(Debug)]
pub struct Turns {
    per_minute: f64,
    burst: f64,
    /// How many each has left, and when that was so.
    left: Mutex<HashMap<Arc<str>, (f64, Instant)>>,
}

impl Turns {
    /// So many in a minute on average, and so many at once.
    pub fn new(per_minute: u32, burst: u32) -> Self {
        Self { per_minute: f64::from(per_minute.max(1)), burst: f64::from(burst.max(1)), left: Mutex::default() }
    }

    /// Takes a turn.
    ///
    /// # Errors
    /// How long it is until there is one.
    pub fn take(&self, org_id: &Arc<str>, now: Instant) -> Result<(), Duration> {
        let mut all = self.left.lock();
        let filled = |(left, since): (f64, Instant)| {
            let seconds = now.saturating_duration_since(since).as_secs_f64();
            (left + seconds * self.per_minute / 60.0).min(self.burst)
        };
        if all.len() >= TENANTS_MAX && !all.contains_key(org_id) {
            all.retain(|_, own| filled(*own) < self.burst);
        }
        let left = all.get(org_id).map_or(self.burst, |own| filled(*own));
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) * 60.0 / self.per_minute));
        }
        all.insert(org_id.clone(), (left - 1.0, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_that_changes_too_often_waits_and_others_do_not() {
        let turns = Turns::new(60, 3);
        let (acme, zeta): (Arc<str>, Arc<str>) = ("acme".into(), "zeta".into());
        let start = Instant::now();
        let taken = |org: &Arc<str>, seconds: f64| turns.take(org, start + Duration::from_secs_f64(seconds));
        assert!((0..3).all(|_| taken(&acme, 0.0).is_ok()));
        let wait = taken(&acme, 0.5).expect_err("too soon");
        assert!(wait > Duration::from_millis(400) && wait < Duration::from_millis(600), "{wait:?}");
        assert_eq!(taken(&zeta, 0.5), Ok(()));
        assert_eq!((taken(&acme, 1.1), taken(&acme, 1.2).is_err()), (Ok(()), true));
        assert!((0..3).all(|_| taken(&acme, 100.0).is_ok()) && taken(&acme, 100.0).is_err(), "no more than at first");
    }
}
