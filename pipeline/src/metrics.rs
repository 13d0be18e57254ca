//! The metrics of this crate: a closed set of names.

/// Every metric: name, kind, help.
pub const NAMES: &[(&str, &str, &str)] = &[
    // The segment log.
    (LOG_APPENDED_ROWS, "counter", "Rows made durable in a log"),
    (LOG_APPENDED_BYTES, "counter", "Bytes written to segment files"),
    (LOG_DUPLICATE_ROWS, "counter", "Rows not stored because their key was in the de-duplication window"),
    (LOG_GROUPS, "counter", "Group commits: one write and one fsync each"),
    (LOG_GROUP_SECONDS, "histogram", "Seconds from the start of a group commit to durability"),
    (LOG_FAILED_GROUPS, "counter", "Group commits whose write or fsync failed"),
    (LOG_REFUSED, "counter", "Appends refused as full, by bound: queue, log, disk, offsets"),
    (LOG_QUEUE_BYTES, "gauge", "Bytes of appends waiting for the writer"),
    (LOG_BYTES, "gauge", "Bytes of all files of a log"),
    (LOG_SEGMENTS, "gauge", "Segment files of a log"),
    (LOG_DEDUP_KEYS, "gauge", "Keys in the de-duplication window"),
    (LOG_TAIL_BYTES, "gauge", "Memory of the newest batches"),
    (LOG_DAMAGE, "counter", "Damaged places found in segment files"),
    (LOG_LOST_ROWS, "counter", "Rows lost to damage"),
    (
        LOG_SUMMARY_FAILURES,
        "counter",
        "Summaries of closed segments that could not be written; they are rebuilt at the next start",
    ),
    // The run loop, checkpoints and delivery.
    (RUN_ROWS, "counter", "Rows the run loop has processed"),
    (RUN_LAG_ROWS, "gauge", "Rows in the log that the run loop has not processed yet"),
    (RUN_OFFSET, "gauge", "The offset the run loop has reached"),
    (RUN_WATERMARK_SECONDS, "gauge", "The watermark, seconds since the epoch"),
    (RUN_BUSY_MICROSECONDS, "counter", "Microseconds spent in operators"),
    (RUN_ALERTS, "counter", "Alerts written to the output log"),
    (RUN_REPLAYED_ALERTS, "counter", "Alerts that were already in the output log when a replay raised them again"),
    (RUN_APPEND_RETRIES, "counter", "Appends to the output log that were tried again"),
    (RUN_FORGOTTEN_ROWS, "counter", "Rows the log had forgotten before the run loop read them"),
    (RUN_OPERATOR_PANICS, "counter", "Operators that panicked, by operator"),
    (RUN_PARKED_OPERATORS, "gauge", "Operators that were taken out of the loop"),
    (CHECKPOINTS, "counter", "Checkpoints written"),
    (CHECKPOINT_FAILURES, "counter", "Checkpoints that could not be written"),
    (DELIVERY_ROWS, "counter", "Rows a sink has taken, by sink"),
    (DELIVERY_LAG_ROWS, "gauge", "Rows that are not durable at a sink yet, by sink"),
    (DELIVERY_RETRIES, "counter", "Deliveries tried again, by sink"),
    (DELIVERY_CIRCUIT_OPEN, "gauge", "1 while a sink fails and is tried again and again, by sink"),
    (DELIVERY_DEAD_ROWS, "counter", "Rows that went to the dead letters, by sink"),
    (
        DELIVERY_REFUSED_LETTERS,
        "counter",
        "Dead letters that a sink refused for good: they stay in the log only, by sink",
    ),
    (DELIVERY_FORGOTTEN_ROWS, "counter", "Rows the log had forgotten before a sink read them, by sink"),
    // The registry and the keys.
    (REGISTRY_CHANGES, "counter", "Changes applied"),
    (REGISTRY_ENTRIES, "gauge", "Rules, keys and the like in the registry"),
    (REGISTRY_SNAPSHOT_FAILURES, "counter", "Snapshots of the registry that could not be written"),
    (KEYS_REFUSED, "counter", "Requests refused for their key, by reason: missing, malformed, unknown, revoked"),
];

pub(crate) const LOG_APPENDED_ROWS: &str = "tidegate_pipeline_log_appended_rows_total";
pub(crate) const LOG_APPENDED_BYTES: &str = "tidegate_pipeline_log_appended_bytes_total";
pub(crate) const LOG_DUPLICATE_ROWS: &str = "tidegate_pipeline_log_duplicate_rows_total";
pub(crate) const LOG_GROUPS: &str = "tidegate_pipeline_log_groups_total";
pub(crate) const LOG_GROUP_SECONDS: &str = "tidegate_pipeline_log_group_seconds";
pub(crate) const LOG_FAILED_GROUPS: &str = "tidegate_pipeline_log_failed_groups_total";
pub(crate) const LOG_REFUSED: &str = "tidegate_pipeline_log_refused_total";
pub(crate) const LOG_QUEUE_BYTES: &str = "tidegate_pipeline_log_queue_bytes";
pub(crate) const LOG_BYTES: &str = "tidegate_pipeline_log_bytes";
pub(crate) const LOG_SEGMENTS: &str = "tidegate_pipeline_log_segments";
pub(crate) const LOG_DEDUP_KEYS: &str = "tidegate_pipeline_log_dedup_keys";
pub(crate) const LOG_TAIL_BYTES: &str = "tidegate_pipeline_log_tail_bytes";
pub(crate) const LOG_DAMAGE: &str = "tidegate_pipeline_log_damage_total";
pub(crate) const LOG_LOST_ROWS: &str = "tidegate_pipeline_log_lost_rows_total";
pub(crate) const LOG_SUMMARY_FAILURES: &str = "tidegate_pipeline_log_summary_failures_total";

pub(crate) const RUN_ROWS: &str = "tidegate_pipeline_run_rows_total";
pub(crate) const RUN_LAG_ROWS: &str = "tidegate_pipeline_run_lag_rows";
pub(crate) const RUN_OFFSET: &str = "tidegate_pipeline_run_offset";
pub(crate) const RUN_WATERMARK_SECONDS: &str = "tidegate_pipeline_run_watermark_seconds";
pub(crate) const RUN_BUSY_MICROSECONDS: &str = "tidegate_pipeline_run_busy_microseconds_total";
pub(crate) const RUN_ALERTS: &str = "tidegate_pipeline_run_alerts_total";
pub(crate) const RUN_REPLAYED_ALERTS: &str = "tidegate_pipeline_run_replayed_alerts_total";
pub(crate) const RUN_APPEND_RETRIES: &str = "tidegate_pipeline_run_append_retries_total";
pub(crate) const RUN_FORGOTTEN_ROWS: &str = "tidegate_pipeline_run_forgotten_rows_total";
pub(crate) const RUN_OPERATOR_PANICS: &str = "tidegate_pipeline_run_operator_panics_total";
pub(crate) const RUN_PARKED_OPERATORS: &str = "tidegate_pipeline_run_parked_operators";
pub(crate) const CHECKPOINTS: &str = "tidegate_pipeline_checkpoints_total";
pub(crate) const CHECKPOINT_FAILURES: &str = "tidegate_pipeline_checkpoint_failures_total";
pub(crate) const DELIVERY_ROWS: &str = "tidegate_pipeline_delivery_rows_total";
pub(crate) const DELIVERY_LAG_ROWS: &str = "tidegate_pipeline_delivery_lag_rows";
pub(crate) const DELIVERY_RETRIES: &str = "tidegate_pipeline_delivery_retries_total";
pub(crate) const DELIVERY_CIRCUIT_OPEN: &str = "tidegate_pipeline_delivery_circuit_open";
pub(crate) const DELIVERY_DEAD_ROWS: &str = "tidegate_pipeline_delivery_dead_rows_total";
pub(crate) const DELIVERY_REFUSED_LETTERS: &str = "tidegate_pipeline_delivery_refused_letters_total";
pub(crate) const DELIVERY_FORGOTTEN_ROWS: &str = "tidegate_pipeline_delivery_forgotten_rows_total";

pub(crate) const REGISTRY_CHANGES: &str = "tidegate_pipeline_registry_changes_total";
pub(crate) const REGISTRY_ENTRIES: &str = "tidegate_pipeline_registry_entries";
pub(crate) const REGISTRY_SNAPSHOT_FAILURES: &str = "tidegate_pipeline_registry_snapshot_failures_total";
pub(crate) const KEYS_REFUSED: &str = "tidegate_pipeline_keys_refused_total";
