//! The metrics of the composition: requests, and the process itself.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram};

use super::routes::ROUTES;

/// Requests answered, by endpoint and status class.
pub const REQUESTS: &str = "tidegate_http_requests_total";
/// Time from the request head to the response head.
pub const REQUEST_SECONDS: &str = "tidegate_http_request_seconds";
/// Requests about rules that were refused.
pub const RULES_REFUSED: &str = "tidegate_http_rules_refused_total";
/// Partitions of the log that a worker holds.
pub const PARTITIONS_HELD: &str = "tidegate_worker_partitions_held";
/// Whether a worker holds a partition, by `partition`.
pub const PARTITION_HELD: &str = "tidegate_worker_partition_held";
/// Records behind the end of a partition, by `partition` and `stage`.
pub const PARTITION_LAG: &str = "tidegate_worker_partition_lag_records";
/// Leases that a worker took, by `partition`.
pub const LEASES_TAKEN: &str = "tidegate_worker_leases_taken_total";
/// Partitions that a worker lost.
pub const LEASES_LOST: &str = "tidegate_worker_leases_lost_total";
/// Resident memory.
pub const RESIDENT_BYTES: &str = "tidegate_process_resident_bytes";
/// CPU time.
pub const CPU_SECONDS: &str = "tidegate_process_cpu_seconds_total";
/// Open file descriptors.
pub const OPEN_FILES: &str = "tidegate_process_open_files";

/// The closed set of this module.
pub const NAMES: &[(&str, &str, &str)] = &[
    (REQUESTS, "counter", "Requests answered, by `endpoint` and `status`"),
    (REQUEST_SECONDS, "histogram", "Seconds from the request's head to the response's head, by `endpoint`"),
    (RULES_REFUSED, "counter", "Requests about rules that were refused, by `code`: among them those that met a bound"),
    (PARTITIONS_HELD, "gauge", "Partitions of the log that this worker holds"),
    (PARTITION_HELD, "gauge", "1 while this worker holds the `partition` of the log"),
    (
        PARTITION_LAG,
        "gauge",
        "Records between the end of a `partition` and a `stage` of this worker: `rules`; `events` and `alerts` on their way to \
         the database; 0 while it does not hold the partition",
    ),
    (LEASES_TAKEN, "counter", "Leases that this worker took, from others or at the start, by `partition`"),
    (
        LEASES_LOST,
        "counter",
        "Partitions that this worker lost, because it could not renew their leases in time, by `partition`",
    ),
    (RESIDENT_BYTES, "gauge", "Resident memory of the process in bytes"),
    (CPU_SECONDS, "counter", "CPU seconds of the process, user and system"),
    (OPEN_FILES, "gauge", "Open file descriptors of the process"),
];

/// The classes of answers in metrics, and where each starts. 429 and 503 are classes of their own: a client is to come back.
const CLASSES: [&str; 7] = ["1xx", "2xx", "3xx", "4xx", "429", "5xx", "503"];

/// The metrics of requests, each looked up when it is first met: to look one up takes longer than to count.
#[derive(Default)]
pub struct Requests {
    endpoints: HashMap<&'static str, Endpoint>,
    other: Endpoint,
}

/// Those of one endpoint.
#[derive(Default)]
struct Endpoint {
    answers: [OnceLock<Counter>; CLASSES.len()],
    seconds: OnceLock<Histogram>,
}

impl Requests {
    /// Of all routes.
    pub fn new() -> Self {
        let endpoints = ROUTES.iter().map(|route| (route.path, Endpoint::default())).collect();
        Self { endpoints, other: Endpoint::default() }
    }

    /// Counts an answer to a request of an endpoint: the path of a route, or another word for all that have none.
    pub fn answered(&self, endpoint: &'static str, status: u16, took: Duration) {
        let own = self.endpoints.get(endpoint).unwrap_or(&self.other);
        let class = class(status);
        let label = CLASSES[class];
        let answers = || metrics::counter!(REQUESTS, "endpoint" => endpoint, "status" => label);
        own.answers[class].get_or_init(answers).increment(1);
        own.seconds.get_or_init(|| metrics::histogram!(REQUEST_SECONDS, "endpoint" => endpoint)).record(took);
    }
}

/// The class of a status, by its place in [`CLASSES`].
fn class(status: u16) -> usize {
    match status {
        100..=199 => 0,
        200..=299 => 1,
        300..=399 => 2,
        429 => 4,
        400..=499 => 3,
        503 => 6,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_class() {
        for (status, of) in [
            (101, "1xx"),
            (200, "2xx"),
            (207, "2xx"),
            (304, "3xx"),
            (400, "4xx"),
            (428, "4xx"),
            (429, "429"),
            (499, "4xx"),
            (500, "5xx"),
            (502, "5xx"),
            (503, "503"),
            (999, "5xx"),
        ] {
            assert_eq!(CLASSES[class(status)], of, "{status}");
        }
    }
}
