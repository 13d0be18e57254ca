//! How long a start with a long log takes. On demand: it writes a gibibyte.

use std::sync::Arc;
use std::time::Instant;

use tidegate_pipeline::StreamLog;
use tidegate_pipeline::fs::RealFs;
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::tailing::read_on;

use crate::log_rows::{events, one};

/// An environment variable for the size, in MiB.
#[expect(clippy::disallowed_methods, reason = "how much to write is asked for in the environment")]
fn mebibytes() -> u64 {
    std::env::var("TIDEGATE_LOG_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(1024)
}

#[test]
#[ignore = "writes a gibibyte: cargo test --release -p tidegate-pipeline --test it log_long -- --ignored --nocapture"]
fn a_long_log_opens_at_once_by_its_summaries_and_replays_at_the_speed_of_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("log");
    let open = || SegmentLog::open(Arc::new(RealFs), &dir, LogConfig::default()).expect("a log");
    let (log, _) = open();
    let (mut rows, started) = (0u64, Instant::now());
    while log.bytes_used() < mebibytes() << 20 {
        let ids: Vec<String> = (rows..rows + 2_000).map(|row| format!("{row:0>300}")).collect();
        rows += 2_000;
        let batch = events("a", &ids.iter().map(String::as_str).collect::<Vec<_>>());
        log.append(one(batch)).blocking_recv().expect("an answer").expect("stored");
    }
    let mib = log.bytes_used() as f64 / f64::from(1 << 20);
    println!("wrote {rows} rows, {mib:.0} MiB, {:.0} MiB/s", mib / started.elapsed().as_secs_f64());
    drop(log);

    let started = Instant::now();
    let (log, report) = open();
    println!(
        "opened by summaries in {:.3} s: {} segments, {} keys",
        started.elapsed().as_secs_f64(),
        report.segments,
        report.keys
    );
    assert_eq!((report.scanned, report.next), (0, rows));
    assert!(started.elapsed().as_secs() < 10);
    let started = Instant::now();
    let (mut at, mut read) = (0, 0);
    while at < rows {
        let reading = read_on(&log, at, 8 << 20).expect("readable");
        read += reading.batches.iter().map(|batch| batch.rows.num_rows() as u64).sum::<u64>();
        at = reading.next.max(at + 1);
    }
    assert_eq!(read, rows);
    println!("replayed at {:.0} MiB/s", mib / started.elapsed().as_secs_f64());
    drop(log);

    for entry in std::fs::read_dir(&dir).expect("a folder").flatten() {
        if entry.path().extension().is_some_and(|is| is == "sum") {
            std::fs::remove_file(entry.path()).expect("removed");
        }
    }
    let started = Instant::now();
    let (_log, report) = open();
    println!(
        "opened without any summary at {:.0} MiB/s: {} scanned",
        mib / started.elapsed().as_secs_f64(),
        report.scanned
    );
    assert_eq!(report.next, rows);
}
