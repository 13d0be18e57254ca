//! The metrics of this crate: a closed set, recorded per request, group or connection, never per event.

use crate::decode::metrics as decode;

/// Connections open now, upgraded ones not included.
pub const HTTP_CONNECTIONS: &str = "tidegate_ingest_http_connections";
/// Times that the accept loop waited because `connections_max` was reached.
pub const HTTP_CONNECTIONS_FULL_TOTAL: &str = "tidegate_ingest_http_connections_full_total";
/// Errors of the accept call that were not about one connection (descriptors or memory ran out).
pub const HTTP_ACCEPT_ERRORS_TOTAL: &str = "tidegate_ingest_http_accept_errors_total";
/// Connections and requests ended by a timer.
pub const HTTP_REAPED_TOTAL: &str = "tidegate_ingest_http_reaped_total";
/// Refused ingest requests.
pub const REQUESTS_REFUSED_TOTAL: &str = "tidegate_ingest_requests_refused_total";
/// Bodies turned away by `inflight_bytes_max`.
pub const INFLIGHT_FULL_TOTAL: &str = "tidegate_ingest_inflight_full_total";
/// Bodies waiting for a decode thread.
pub const QUEUE_BODIES: &str = "tidegate_ingest_queue_bodies";
/// Bodies decoded.
pub const BODIES_TOTAL: &str = "tidegate_ingest_bodies_total";
/// Bytes of decoded bodies as they were sent.
pub const BODY_BYTES_TOTAL: &str = "tidegate_ingest_body_bytes_total";
/// Bytes of decoded bodies after their content encodings were undone.
pub const INFLATED_BYTES_TOTAL: &str = "tidegate_ingest_inflated_bytes_total";
/// Events stored.
pub const EVENTS_STORED_TOTAL: &str = "tidegate_ingest_events_stored_total";
/// Events answered as duplicates.
pub const EVENTS_DUPLICATE_TOTAL: &str = "tidegate_ingest_events_duplicate_total";
/// Events rejected.
pub const EVENTS_REJECTED_TOTAL: &str = "tidegate_ingest_events_rejected_total";
/// Rows of a group that was appended at once.
pub const GROUP_ROWS: &str = "tidegate_ingest_group_rows";
/// Seconds of a decode thread for one group, appending included.
pub const DECODE_SECONDS: &str = "tidegate_ingest_decode_seconds";
/// Seconds from appending a group to the log's answer.
pub const ACK_SECONDS: &str = "tidegate_ingest_ack_seconds";
/// Panics of a decoder that were caught.
pub const DECODE_PANICS_TOTAL: &str = "tidegate_ingest_decode_panics_total";

/// Every metric of this crate: name, kind, help.
pub const NAMES: &[(&str, &str, &str)] = &[
    (HTTP_CONNECTIONS, "gauge", "HTTP connections open now."),
    (HTTP_CONNECTIONS_FULL_TOTAL, "counter", "Times the accept loop waited at connections_max."),
    (HTTP_ACCEPT_ERRORS_TOTAL, "counter", "Accept errors (descriptors or memory ran out)."),
    (HTTP_REAPED_TOTAL, "counter", "Connections (head, idle, write) and requests (body) ended by a timer, by why."),
    (REQUESTS_REFUSED_TOTAL, "counter", "Ingest requests refused as a whole, by code."),
    (INFLIGHT_FULL_TOTAL, "counter", "Bodies turned away at inflight_bytes_max."),
    (QUEUE_BODIES, "gauge", "Bodies waiting for a decode thread."),
    (BODIES_TOTAL, "counter", "Bodies decoded."),
    (BODY_BYTES_TOTAL, "counter", "Bytes of decoded bodies as sent."),
    (INFLATED_BYTES_TOTAL, "counter", "Bytes of decoded bodies after inflating."),
    (EVENTS_STORED_TOTAL, "counter", "Events stored and acknowledged."),
    (EVENTS_DUPLICATE_TOTAL, "counter", "Events answered as duplicates of stored ones."),
    (EVENTS_REJECTED_TOTAL, "counter", "Events rejected, each with a reason in dead_letters."),
    (GROUP_ROWS, "histogram", "Rows appended to the log at once."),
    (DECODE_SECONDS, "histogram", "Seconds a decode thread spent on a group."),
    (ACK_SECONDS, "histogram", "Seconds from appending a group to the log's answer."),
    (DECODE_PANICS_TOTAL, "counter", "Panics of a decoder, caught; the body that caused one is answered with 500."),
    // Of decoding.
    (decode::DUPLICATE_KEYS, "counter", "Values overridden by a later key of the same name in one object."),
    (decode::REPAIRED, "counter", "Events with a number beyond 64 bits (kept as text) or a lone surrogate (replaced)."),
    (decode::TIMES_UNPARSABLE, "counter", "Events whose own time could not be read, stored at their receive time."),
    (decode::FIELDS_REFUSED, "counter", "Values kept in _rest because their tenant has as many own fields as it may."),
    (decode::FAMILIES, "gauge", "Sets of columns that a decoder builds at a time, by the layouts that it sees."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_of_decoding_are_among_all() {
        for (name, kind, _) in decode::NAMES {
            assert!(NAMES.iter().any(|(known, of, _)| known == name && of == kind), "{name}");
        }
    }
}

#[cfg(test)]
pub(crate) mod counted {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
    use parking_lot::Mutex;

    /// Keeps counters by name.
    #[derive(Debug, Default)]
    struct Counted(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

    /// What `work` raised on this thread: the counters of these names.
    pub(crate) fn during<const N: usize>(names: [&str; N], work: impl FnOnce()) -> [u64; N] {
        let counted = Counted::default();
        metrics::with_local_recorder(&counted, work);
        let counters = counted.0.into_inner();
        names.map(|name| counters.get(name).map_or(0, |count| count.load(Ordering::Relaxed)))
    }

    impl Recorder for Counted {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.0.lock().entry(key.name().to_owned()).or_default().clone())
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }
}
