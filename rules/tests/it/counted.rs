//! The counters and gauges that a piece of work moves on this thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// Counters and gauges by name, whatever their labels.
#[derive(Debug, Default)]
pub struct Counted {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
}

impl Counted {
    /// Does something while counters and gauges of this thread are these.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(self, work)
    }

    /// The counter or gauge of this name (without `tidegate_rules_`); `None` when there was none.
    pub fn of(&self, name: &str) -> Option<f64> {
        let name = format!("tidegate_rules_{name}");
        let value = |all: &Mutex<BTreeMap<String, Arc<AtomicU64>>>| {
            let all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&name).map(|value| value.load(Ordering::Relaxed))
        };
        value(&self.counters).map(|count| count as f64).or_else(|| value(&self.gauges).map(f64::from_bits))
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        Counter::from_arc(counters.entry(key.name().to_owned()).or_default().clone())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        Gauge::from_arc(gauges.entry(key.name().to_owned()).or_default().clone())
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
