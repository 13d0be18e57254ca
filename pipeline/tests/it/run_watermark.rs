//! The watermark depends on the batches and their order alone, one broken clock does not move it, and it goes back with the clock by
//! which events are received.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use proptest::prelude::*;
use tidegate_events::Dataset;
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::run::watermark::Watermark;
use tidegate_pipeline::{LogBatch, OutputLog, RunConfig, RunLoop, RunParts, RunStatus};

use crate::scripted::{Event, ScriptedLog, Windows, events, soon, stage};

const DAY_S: i64 = 86_400;

fn batch(dataset: Dataset, rows: RecordBatch) -> LogBatch {
    LogBatch { offset: 0, dataset, rows }
}

/// A batch of (time, received time) and the watermark after it, in seconds.
type Observed<'a> = (Dataset, &'a [(i64, i64)], Option<i64>);

/// Observes batches with 60 s of lateness; checks the watermark after each.
fn check(batches: &[Observed<'_>]) {
    let mut watermark = Watermark::new(60_000_000, DAY_S * 1_000_000, None);
    for (nth, (dataset, times, expected)) in batches.iter().enumerate() {
        let rows: Vec<Event<'_>> = times.iter().map(|(time, received)| ("e", "a", *time, *received)).collect();
        let before = watermark.at();
        let moved = watermark.observe(&batch(*dataset, events(&rows)));
        assert_eq!(watermark.at(), expected.map(|seconds| seconds * 1_000_000), "after batch {nth}");
        assert_eq!(moved, watermark.at().filter(|_| watermark.at() != before), "what batch {nth} moved");
    }
}

#[test]
fn it_is_the_latest_time_less_the_lateness_and_never_goes_back() {
    let security = Dataset::SecurityEvents;
    check(&[
        (security, &[(1_000, 1_000), (900, 1_000)], Some(940)),
        (security, &[(500, 1_001)], Some(940)),
        (security, &[(1_000, 1_002)], Some(940)),
        (Dataset::CostEvents, &[(1_010, 1_011)], Some(950)),
    ]);
}

#[test]
fn changes_alerts_and_dead_letters_do_not_move_it() {
    for dataset in [Dataset::Changes, Dataset::Alerts, Dataset::DeadLetters] {
        check(&[(dataset, &[(5_000, 5_000)], None), (Dataset::SecurityEvents, &[(1_000, 1_000)], Some(940))]);
    }
}

#[test]
fn a_time_too_far_ahead_of_its_receive_time_does_not_move_it() {
    let security = Dataset::SecurityEvents;
    check(&[
        (security, &[(1_000 + DAY_S + 1, 1_000)], None),
        (security, &[(1_000 + DAY_S + 1, 1_000), (1_000, 1_000)], Some(940)),
        (security, &[(1_000 + DAY_S, 1_000)], Some(940 + DAY_S)),
        (security, &[(i64::MAX / 1_000_000, 2_000)], Some(940 + DAY_S)),
    ]);
}

#[test]
fn it_goes_back_with_a_clock_that_was_ahead_and_stays_with_one_that_is_a_little_behind() {
    let security = Dataset::SecurityEvents;
    let check = |lateness_s: i64, ahead_s: i64, batches: &[(i64, i64, Option<i64>)]| {
        let mut whole = Watermark::new(lateness_s * 1_000_000, ahead_s * 1_000_000, None);
        for (nth, (time, received, moved)) in batches.iter().enumerate() {
            // As it would be after a restart.
            let mut again = Watermark::new(lateness_s * 1_000_000, ahead_s * 1_000_000, whole.at());
            let rows = batch(security, events(&[("e", "a", *time, *received)]));
            assert_eq!(whole.observe(&rows), moved.map(|seconds| seconds * 1_000_000), "batch {nth}");
            again.observe(&rows);
            assert_eq!(again.at(), whole.at(), "batch {nth}, after a restart");
        }
    };
    let ahead = 100_000 + DAY_S;
    check(
        60,
        600,
        &[(100_000, 100_000, Some(99_940)), (ahead, ahead, Some(ahead - 60)), (100_001, 100_001, Some(99_941))],
    );
    // Also where the events bring times of their own.
    check(
        60,
        600,
        &[(ahead, ahead, Some(ahead - 60)), (99_000, 100_001, Some(98_940)), (100_000, 100_002, Some(99_940))],
    );
    // A day behind, and back.
    check(
        60,
        600,
        &[(ahead, ahead, Some(ahead - 60)), (100_000, 100_000, Some(99_940)), (ahead, ahead, Some(ahead - 60))],
    );
    // As far as an event may be ahead nobody can tell.
    check(60, 600, &[(100_600, 100_000, Some(100_540)), (100_000, 100_000, None), (99_999, 99_999, Some(99_939))]);
    // Batches that come a little out of order.
    check(60, 600, &[(100_000, 100_000, Some(99_940)), (99_900, 99_900, None), (99_400, 99_400, None)]);
}

#[test]
fn rows_without_times_are_passed_over() {
    let rows = events(&[("e", "a", 1_000, 1_000)]);
    let without = |name: &str| {
        let kept: Vec<usize> =
            (0..rows.num_columns()).filter(|at| rows.schema_ref().field(*at).name() != name).collect();
        batch(Dataset::SecurityEvents, rows.project(&kept).expect("fewer columns"))
    };
    let mut watermark = Watermark::new(0, 0, None);
    assert_eq!(watermark.observe(&without("time")), None);
    assert_eq!(watermark.observe(&without("received_time")), Some(1_000_000_000), "nothing to hold it against");
}

async fn run(log: &Arc<ScriptedLog>, output: &Arc<ScriptedLog>, fs: &SimFs, read_bytes_max: usize) -> RunStatus {
    let parts = RunParts {
        log: log.clone(),
        output: Arc::new(OutputLog::new(output.clone())),
        operators: vec![Box::new(Windows::new(10))],
        seed: Vec::new(),
        fs: Arc::new(fs.clone()),
        dir: PathBuf::from("/data/checkpoint"),
        config: RunConfig { lateness_ms_max: 5_000, read_bytes_max, ..RunConfig::default() },
        stage: stage().1,
    };
    RunLoop::start(parts).expect("a run loop").drain(soon()).await.expect("a drained run loop")
}

#[tokio::test]
async fn late_events_count_until_the_watermark_has_closed_their_window() {
    let log = ScriptedLog::new();
    let push = |times: &[i64]| {
        let rows: Vec<Event<'_>> = times.iter().map(|time| ("e", "a", *time, 1_000)).collect();
        log.push(Dataset::SecurityEvents, events(&rows));
    };
    push(&[101, 102]);
    push(&[114, 103]);
    push(&[115]);
    push(&[104, 116]);
    push(&[130]);
    let output = ScriptedLog::new();
    let status = run(&log, &output, &SimFs::new(), 1 << 20).await;
    let rows = output.rows_of(Dataset::Alerts);
    assert_eq!(rows.len(), 2, "{rows:?}");
    // 103 is late but counts; 104 comes when the window up to 110 is closed (115 less 5), so it counts nowhere.
    assert!(rows[0].contains("group_key=a 3 at 100"), "{rows:?}");
    assert!(rows[1].contains("group_key=a 3 at 110"), "{rows:?}");
    assert_eq!(status.watermark, Some(125_000_000));
    assert!(rows.iter().all(|row| row.contains("received_time=1000000000 ")), "{rows:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Stopped after any number of rows and gone on with, read in steps of any size: the same alerts.
    #[test]
    fn any_cut_of_the_stream_gives_the_same_alerts(
        batches in prop::collection::vec(prop::collection::vec((0..200i64, 0..3usize), 1..6), 1..12),
        cut in 0..12usize,
        read_bytes_max in prop::sample::select(vec![1usize, 2_000, 1 << 20]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let push = |log: &ScriptedLog, batch: &Vec<(i64, usize)>| {
            let rows: Vec<Event<'_>> =
                batch.iter().map(|(time, actor)| ("e", ["a", "b", "c"][*actor], *time, *time)).collect();
            log.push(Dataset::SecurityEvents, events(&rows));
        };
        let whole = ScriptedLog::new();
        batches.iter().for_each(|batch| push(&whole, batch));
        let expected = ScriptedLog::new();
        runtime.block_on(run(&whole, &expected, &SimFs::new(), 1 << 20));

        let (log, output, fs) = (ScriptedLog::new(), ScriptedLog::new(), SimFs::new());
        let (before, after) = batches.split_at(cut.min(batches.len()));
        before.iter().for_each(|batch| push(&log, batch));
        runtime.block_on(run(&log, &output, &fs, read_bytes_max));
        after.iter().for_each(|batch| push(&log, batch));
        runtime.block_on(run(&log, &output, &fs, read_bytes_max));
        prop_assert_eq!(output.rows_of(Dataset::Alerts), expected.rows_of(Dataset::Alerts));
    }
}
