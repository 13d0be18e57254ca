//! The configuration of a log.

use serde::{Deserialize, Serialize};

/// Bounds of a segment log. Each is a limit on what one log may use; there are two logs, ingest and output.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A segment file is closed once it has this many bytes.
    pub segment_bytes_max: u64,
    /// All segment files of the log together. Over it appends are refused as full until old segments are forgotten.
    pub log_bytes_max: u64,
    /// Appends are refused as full when the file system has fewer bytes free than this: what is kept to close segments, to write
    /// checkpoints and to compact.
    pub free_bytes_min: u64,
    /// Bytes of appends that may wait for the writer. Over it appends are refused as full. A single append that is larger is
    /// taken when nothing else waits.
    pub queue_bytes_max: usize,
    /// Bytes that one group commit (one write, one fsync) takes from the queue, at least one append.
    pub group_bytes_max: usize,
    /// Memory for the newest batches, from which readers that keep up are served.
    pub tail_bytes_max: usize,
    /// Ids of events that are remembered to recognise duplicates, also across restarts. About 40 bytes of memory each.
    pub dedup_keys_max: usize,
    /// Bytes of the newest closed segments that are kept although every consumer is past them.
    pub retain_bytes_min: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes_max: 128 << 20,
            log_bytes_max: 8 << 30,
            free_bytes_min: 64 << 20,
            queue_bytes_max: 64 << 20,
            group_bytes_max: 8 << 20,
            tail_bytes_max: 64 << 20,
            dedup_keys_max: 2_000_000,
            retain_bytes_min: 0,
        }
    }
}
