//! Logs and checkpoints on one disk that loses power: every alert of every acknowledged event is there once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_events::Dataset;
use tidegate_pipeline::fs::{Fs, SimFs};
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::{
    Append, EventBatch, LogBatch, LogReader, Offset, OutputLog, PipelineError, RunConfig, RunLoop, RunParts, StreamLog,
};

use crate::scripted::{Each, Windows, events, print_rows, stage};

fn open(fs: &SimFs, dir: &str) -> Result<Arc<SegmentLog>, PipelineError> {
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let config = LogConfig { segment_bytes_max: 6_000, free_bytes_min: 0, ..LogConfig::default() };
    Ok(Arc::new(SegmentLog::open(shared, Path::new(dir), config)?.0))
}

/// A disk with an ingest log of twelve batches.
async fn disk() -> SimFs {
    let fs = SimFs::new();
    let log = open(&fs, "/data/log").expect("a log");
    for at in 0..12i64 {
        let (one, other, time) = (format!("m{at}"), format!("a{at}"), 100 + at * 4);
        let rows = events(&[(&one, "mallory", time, time), (&other, "alice", time - 3, time)]);
        let batch = EventBatch { dataset: Dataset::SecurityEvents, rows, keys: Vec::new() };
        log.append(Append { batches: vec![batch], ..Append::default() }).await.expect("an answer").expect("stored");
    }
    log.close();
    fs
}

/// For a run whose disk lives: it ends by itself, also on a busy machine.
const WHOLE: Duration = Duration::from_secs(20);

/// Runs over everything that the disk has, until the end or, at the latest, until `patience` is over.
async fn run(fs: &SimFs, patience: Duration) -> Result<(), PipelineError> {
    let (log, output) = (open(fs, "/data/log")?, open(fs, "/data/output")?);
    let parts = RunParts {
        log: log.clone(),
        output: Arc::new(OutputLog::new(output.clone())),
        operators: vec![Box::new(Each { actor: "mallory", times: 1, poison: "" }), Box::new(Windows::new(10))],
        seed: Vec::new(),
        fs: Arc::new(fs.clone()),
        dir: PathBuf::from("/data/checkpoint"),
        config: RunConfig {
            lateness_ms_max: 3_000,
            read_bytes_max: 1,
            checkpoint_interval_ms: 0,
            retry_ms_max: 20,
            ..RunConfig::default()
        },
        stage: stage().1,
    };
    let handle = RunLoop::start(parts)?;
    let end = log.bounds().next;
    let mut offset = handle.offset();
    let done = offset.wait_for(|offset| *offset == end);
    // A dead disk is tried again without end.
    tokio::time::timeout(patience, done).await.ok();
    let drained = handle.drain(Instant::now() + Duration::from_millis(10)).await;
    log.close();
    output.close();
    drained.map(|_| ())
}

/// The alerts on the disk with their offsets, as printed rows.
fn alerts(fs: &SimFs) -> Vec<(Offset, String)> {
    let output = open(fs, "/data/output").expect("a log");
    let read = output.read(output.bounds().first, usize::MAX).expect("readable");
    output.close();
    let rows = |batch: &Arc<LogBatch>| (batch.offset..).zip(print_rows(&batch.rows)).collect::<Vec<_>>();
    read.iter().flat_map(rows).collect()
}

fn without_seq(alerts: &[(Offset, String)]) -> Vec<String> {
    let cells = |row: &str| row.split(' ').filter(|cell| !cell.starts_with("seq=")).collect::<Vec<_>>().join(" ");
    alerts.iter().map(|(_, row)| cells(row)).collect()
}

#[tokio::test]
async fn power_may_be_cut_at_any_call_and_no_alert_is_lost_or_doubled() {
    let disk = disk().await;
    let undisturbed = disk.after_crash(0);
    run(&undisturbed, WHOLE).await.expect("a run");
    let expected = without_seq(&alerts(&undisturbed));
    assert!(expected.len() > 20, "{expected:?}");
    let calls = undisturbed.calls();
    for (nth, cut) in (0..calls).step_by(7).enumerate() {
        let fs = disk.after_crash(0);
        for seed in [cut, cut + 1] {
            fs.cut_power_after(fs.calls() + cut);
            run(&fs, Duration::from_millis(60)).await.err();
            fs.crash(if nth % 3 == 0 { 0 } else { seed });
        }
        run(&fs, WHOLE).await.expect("the last run");
        let alerts = alerts(&fs);
        assert_eq!(without_seq(&alerts), expected, "power cut after {cut} of {calls} calls");
        for (offset, row) in &alerts {
            assert!(row.contains(&format!(" seq={offset} ")), "power cut after {cut}: {offset}: {row}");
        }
    }
}
