//! The contract of a stream log, held by each of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_pipeline::StreamLog;
use tidegate_pipeline::fs::{Fs, RealFs, SimFs};
use tidegate_pipeline::log::{LogConfig, MemoryLog, SegmentLog};

use crate::contract::stream_log::{Open, check, check_dense, check_lasting};

/// A log with segments of a few batches and almost no tail, so that reads go to files.
fn segments(fs: Arc<dyn Fs>, dir: &Path) -> Arc<dyn StreamLog> {
    let config = LogConfig { segment_bytes_max: 16 << 10, tail_bytes_max: 1, ..LogConfig::default() };
    Arc::new(SegmentLog::open(fs, dir, config).expect("a log").0)
}

#[test]
fn a_log_in_memory_keeps_the_contract() {
    let fresh = || -> Arc<dyn StreamLog> { Arc::new(MemoryLog::new(1000, 1 << 30)) };
    check("memory", fresh);
    check_dense("memory", fresh);
}

#[test]
fn a_segment_log_on_a_simulated_disk_keeps_the_contract() {
    let fresh = || segments(Arc::new(SimFs::new()), Path::new("/data/log"));
    check("simulated", fresh);
    check_dense("simulated", fresh);
    check_lasting("simulated", || -> Open {
        let fs: Arc<dyn Fs> = Arc::new(SimFs::new());
        Box::new(move || segments(fs.clone(), Path::new("/data/log")))
    });
}

#[test]
fn a_segment_log_on_real_files_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut nth = 0;
    let mut place = || -> PathBuf {
        nth += 1;
        folder.path().join(nth.to_string()).join("log")
    };
    check("real", || segments(Arc::new(RealFs), &place()));
    check_dense("real", || segments(Arc::new(RealFs), &place()));
    check_lasting("real", || -> Open {
        let dir = place();
        Box::new(move || segments(Arc::new(RealFs), &dir))
    });
}
