//! The contract of a stream log, held by each of them.

use std::path::Path;
use std::sync::Arc;

use tidegate_pipeline::StreamLog;
use tidegate_pipeline::fs::{Fs, RealFs, SimFs};
use tidegate_pipeline::log::{LogConfig, MemoryLog, SegmentLog};

use crate::contract::stream_log::check;

/// A log with segments of a few batches and almost no tail, so that reads go to files.
fn segments(fs: impl Fs, dir: &Path) -> Arc<dyn StreamLog> {
    let config = LogConfig { segment_bytes_max: 16 << 10, tail_bytes_max: 1, ..LogConfig::default() };
    Arc::new(SegmentLog::open(Arc::new(fs), dir, config).expect("a log").0)
}

#[test]
fn a_log_in_memory_keeps_the_contract() {
    check("memory", || Arc::new(MemoryLog::new(1000, 1 << 30)));
}

#[test]
fn a_segment_log_on_a_simulated_disk_keeps_the_contract() {
    check("simulated", || segments(SimFs::new(), Path::new("/data/log")));
}

#[test]
fn a_segment_log_on_real_files_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut nth = 0;
    check("real", || {
        nth += 1;
        segments(RealFs, &folder.path().join(nth.to_string()).join("log"))
    });
}
