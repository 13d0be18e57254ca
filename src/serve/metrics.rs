//! The metrics of the composition: requests, and the process itself.

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
