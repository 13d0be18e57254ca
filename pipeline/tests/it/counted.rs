//! The counters that a piece of work raises on this thread, and the gauges that it sets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;

/// Keeps gauges by name, and counters by name and the values of their labels.
#[derive(Debug, Default)]
pub struct Counted {
    counters: Values,
    gauges: Values,
}

type Values = Mutex<BTreeMap<String, Arc<AtomicU64>>>;

impl Counted {
    /// Runs `work` and gives what it gave, and the counters that it raised.
    pub fn during<T>(work: impl FnOnce() -> T) -> (T, Self) {
        let counted = Self::default();
        let done = metrics::with_local_recorder(&counted, work);
        (done, counted)
    }

    /// The counter of this name (without `tidegate_pipeline_`) whatever its labels, 0 when it was never raised.
    pub fn of(&self, name: &str) -> u64 {
        self.labelled(name).values().sum()
    }

    /// The same by the values of its labels, joined by commas.
    pub fn labelled(&self, name: &str) -> BTreeMap<String, u64> {
        let prefix = format!("tidegate_pipeline_{name} ");
        let counters = self.counters.lock();
        let of_it = counters.iter().filter_map(|(key, count)| Some((key.strip_prefix(&prefix)?, count)));
        of_it.map(|(labels, count)| (labels.to_owned(), count.load(Ordering::Relaxed))).collect()
    }

    /// What the gauge of this name was set to last, if it was.
    pub fn gauge(&self, name: &str) -> Option<f64> {
        let gauges = self.gauges.lock();
        gauges.get(&format!("tidegate_pipeline_{name}")).map(|bits| f64::from_bits(bits.load(Ordering::Relaxed)))
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<&str> = key.labels().map(|label| label.value()).collect();
        let name = format!("{} {}", key.name(), labels.join(","));
        Counter::from_arc(self.counters.lock().entry(name).or_default().clone())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.gauges.lock().entry(key.name().to_owned()).or_default().clone())
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
