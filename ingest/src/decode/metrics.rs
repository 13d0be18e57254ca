//! The metrics of decoding, recorded once a flush.

use metrics::{counter, gauge};

use super::Counts;

/// Keys that a later key of the same object overrode.
pub const DUPLICATE_KEYS: &str = "tidegate_ingest_duplicate_keys_total";
/// Events that were repaired.
pub const REPAIRED: &str = "tidegate_ingest_events_repaired_total";
/// Events whose time could not be read.
pub const TIMES_UNPARSABLE: &str = "tidegate_ingest_times_unparsable_total";
/// Fields that went to `_rest` because of a bound.
pub const FIELDS_REFUSED: &str = "tidegate_ingest_fields_refused_total";
/// Sets of columns that are built at a time.
pub const FAMILIES: &str = "tidegate_ingest_layout_families_count";

/// Name, kind and help of each.
pub const NAMES: &[(&str, &str, &str)] = &[
    (DUPLICATE_KEYS, "counter", "Values overridden by a later key of the same name in one object"),
    (REPAIRED, "counter", "Events with a number beyond 64 bits (kept as text) or a lone surrogate (replaced)"),
    (TIMES_UNPARSABLE, "counter", "Events whose own time could not be read, stored at their receive time"),
    (FIELDS_REFUSED, "counter", "Values kept in _rest because their tenant has as many own fields as it may"),
    (FAMILIES, "gauge", "Sets of columns that a decoder builds at a time, by the layouts that it sees"),
];

pub(super) fn count(counts: &Counts, families: usize) {
    for (name, value) in [
        (DUPLICATE_KEYS, counts.duplicate_keys),
        (REPAIRED, counts.repaired),
        (TIMES_UNPARSABLE, counts.times_unparsable),
        (FIELDS_REFUSED, counts.fields_refused),
    ] {
        if value > 0 {
            counter!(name).increment(value);
        }
    }
    gauge!(FAMILIES).set(families as f64);
}
