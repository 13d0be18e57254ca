//! The metrics of this crate: a closed set of names.

/// Queries taken, by door.
pub const QUERIES: &str = "tidegate_query_queries_total";
/// Queries that ended in an error, by code.
pub const ERRORS: &str = "tidegate_query_errors_total";
/// Queries running now.
pub const RUNNING: &str = "tidegate_query_running_queries";
/// Time from arrival to the first rows.
pub const PLAN_SECONDS: &str = "tidegate_query_plan_seconds";
/// Time from arrival to the last row.
pub const SECONDS: &str = "tidegate_query_seconds";
/// Rows answered.
pub const ROWS: &str = "tidegate_query_rows_total";
/// Rows of the log tail that were looked at.
pub const TAIL_ROWS: &str = "tidegate_query_tail_rows_total";
/// Rows that a database of history answered.
pub const HISTORY_ROWS: &str = "tidegate_query_history_rows_total";
/// Parquet files that plans read.
pub const FILES: &str = "tidegate_query_files_total";
/// Parquet files that plans left out by tenant or time.
pub const FILES_PRUNED: &str = "tidegate_query_pruned_files_total";
/// Queries whose client left before the end.
pub const ABANDONED: &str = "tidegate_query_abandoned_total";

/// Every metric of this crate: name, kind, help.
pub const NAMES: &[(&str, &str, &str)] = &[
    (QUERIES, "counter", "Queries taken, by door"),
    (ERRORS, "counter", "Queries that ended in an error, by code"),
    (RUNNING, "gauge", "Queries running now"),
    (PLAN_SECONDS, "histogram", "Time from arrival to a plan"),
    (SECONDS, "histogram", "Time from arrival to the last row"),
    (ROWS, "counter", "Rows answered"),
    (TAIL_ROWS, "counter", "Rows of the log tail that were looked at"),
    (HISTORY_ROWS, "counter", "Rows that a database of history answered"),
    (FILES, "counter", "Parquet files that plans read"),
    (FILES_PRUNED, "counter", "Parquet files that plans left out by tenant or time"),
    (ABANDONED, "counter", "Queries whose client left before the end"),
];

/// Adds to a counter, once per batch of work.
pub(crate) fn counter(name: &'static str, amount: u64) {
    metrics::counter!(name).increment(amount);
}

/// Counts an error under its code.
pub(crate) fn error(error: &crate::error::QueryError) {
    metrics::counter!(ERRORS, "code" => error.code()).increment(1);
}

/// Records the time since `started`.
pub(crate) fn seconds(name: &'static str, started: std::time::Instant) {
    metrics::histogram!(name).record(started.elapsed().as_secs_f64());
}

/// Counts a query at a door.
pub(crate) fn query(door: &'static str) {
    metrics::counter!(QUERIES, "door" => door).increment(1);
}
