//! Alerts are in the output log exactly once, wherever the process dies.

use std::path::PathBuf;
use std::sync::Arc;

use tidegate_events::Dataset;
use tidegate_pipeline::fs::{Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::{
    LogReader, Operator, OutputLog, PipelineError, RunConfig, RunLoop, RunParts, RunStatus, StreamLog,
};

use crate::scripted::{Each, Fate, ScriptedLog, Windows, events, print_rows, soon, stage};

fn operators() -> Vec<Box<dyn Operator>> {
    vec![
        // Every alert of it twice, with one id.
        Box::new(Each { actor: "eve", times: 2, poison: "" }),
        Box::new(Each { actor: "mallory", times: 1, poison: "" }),
        Box::new(Windows::new(10)),
    ]
}

/// Nine batches whose alerts come from single events, from windows that close, or from both.
fn ingest() -> Arc<ScriptedLog> {
    let log = ScriptedLog::new();
    for at in 0..9i64 {
        let time = 100 + at * 7;
        let ids = [format!("m{at}"), format!("e{at}"), format!("x{at}")];
        let actor = if at % 3 == 0 { "nobody" } else { "mallory" };
        log.push(
            Dataset::SecurityEvents,
            events(&[
                (&ids[0], actor, time, time + 1),
                (&ids[1], "eve", time - 5, time),
                (&ids[2], "alice", time - 9, time),
            ]),
        );
    }
    log
}

/// One batch a round, a checkpoint after each.
fn config() -> RunConfig {
    RunConfig {
        read_bytes_max: 1,
        checkpoint_interval_ms: 0,
        lateness_ms_max: 3_000,
        alert_rows_max: 2,
        ..RunConfig::default()
    }
}

async fn run(
    log: &Arc<ScriptedLog>,
    output: &Arc<ScriptedLog>,
    fs: &SimFs,
    config: RunConfig,
) -> Result<RunStatus, PipelineError> {
    let parts = RunParts {
        log: log.clone(),
        output: Arc::new(OutputLog::new(output.clone())),
        operators: operators(),
        seed: Vec::new(),
        fs: Arc::new(fs.clone()) as Arc<dyn Fs>,
        dir: PathBuf::from("/data/checkpoint"),
        config,
        stage: stage().1,
    };
    RunLoop::start(parts)?.drain(soon()).await
}

async fn undisturbed() -> Vec<String> {
    let output = ScriptedLog::new();
    run(&ingest(), &output, &SimFs::new(), config()).await.expect("a run");
    output.rows_of(Dataset::Alerts)
}

#[tokio::test]
async fn an_undisturbed_run_raises_what_is_to_be_raised_in_order() {
    let rows = undisturbed().await;
    assert_eq!(rows.iter().filter(|row| row.contains("rule_id=mallory")).count(), 6);
    assert_eq!(rows.iter().filter(|row| row.contains("rule_id=eve")).count(), 18);
    assert!(rows.iter().filter(|row| row.contains("rule_id=windows")).count() > 10);
    for (seq, row) in rows.iter().enumerate() {
        assert!(row.contains(&format!(" seq={seq} ")), "{row}");
    }
}

#[tokio::test]
async fn reading_many_batches_at_once_gives_the_same_rows() {
    let output = ScriptedLog::new();
    run(&ingest(), &output, &SimFs::new(), RunConfig { lateness_ms_max: 3_000, ..RunConfig::default() })
        .await
        .expect("a run");
    assert_eq!(output.rows_of(Dataset::Alerts), undisturbed().await);
}

#[tokio::test]
async fn alerts_are_there_once_when_the_process_dies_at_any_append() {
    let (expected, log) = (undisturbed().await, ingest());
    let mut deaths = 0;
    for first in 0..20 {
        for second in 0..4 {
            for fate in [Fate::DiesBefore, Fate::DiesAfter] {
                let fs = SimFs::new();
                let output = ScriptedLog::new();
                output.fate(first, fate);
                deaths += usize::from(run(&log, &output, &fs, config()).await.is_err());
                let output = output.reopen();
                output.fate(second, fate);
                deaths += usize::from(run(&log, &output, &fs, config()).await.is_err());
                let output = output.reopen();
                run(&log, &output, &fs, config()).await.expect("the last run");
                assert_eq!(output.rows_of(Dataset::Alerts), expected, "died {fate:?} at {first} and {second}");
            }
        }
    }
    assert!(deaths > 60, "{deaths} runs died");
}

#[tokio::test]
async fn alerts_are_there_once_when_power_is_cut_at_any_call_of_the_file_system() {
    let (expected, log) = (undisturbed().await, ingest());
    let calls = {
        let fs = SimFs::new();
        run(&log, &ScriptedLog::new(), &fs, config()).await.expect("a run");
        fs.calls()
    };
    assert!(calls > 50, "{calls} calls");
    for cut in 0..calls {
        let fs = SimFs::new();
        let output = ScriptedLog::new();
        // The output log survives to its fifth append and dies there; the checkpoints stop earlier or later.
        output.fate(5, Fate::DiesAfter);
        fs.cut_power_after(cut);
        run(&log, &output, &fs, config()).await.err();
        fs.crash(cut);
        let output = output.reopen();
        run(&log, &output, &fs, config()).await.expect("the second run");
        assert_eq!(output.rows_of(Dataset::Alerts), expected, "power cut after {cut} calls");
    }
}

#[tokio::test]
async fn a_checkpoint_in_the_middle_of_a_replay_knows_which_alerts_are_there() {
    let (expected, log) = (undisturbed().await, ingest());
    for cut in (20..140).step_by(4) {
        // Everything is replayed from the start with most of the alerts there; the checkpoints of the replay stop somewhere.
        let output = ScriptedLog::new();
        output.fate(7, Fate::DiesAfter);
        run(&log, &output, &SimFs::new(), config()).await.err();
        let output = output.reopen();
        assert!(!output.rows_of(Dataset::Alerts).is_empty());
        let fs = SimFs::new();
        output.fate(0, Fate::DiesBefore);
        fs.cut_power_after(cut);
        run(&log, &output, &fs, config()).await.expect_err("dies at its first new alert");
        fs.crash(0);
        let output = output.reopen();
        run(&log, &output, &fs, config()).await.expect("the last run");
        assert_eq!(output.rows_of(Dataset::Alerts), expected, "checkpoints until call {cut}");
    }
}

#[tokio::test]
async fn an_output_log_that_is_full_or_fails_is_waited_for() {
    let (expected, log) = (undisturbed().await, ingest());
    let output = ScriptedLog::new();
    for (nth, fate) in [(0, Fate::Full), (1, Fate::Fails), (4, Fate::Full), (5, Fate::Full), (6, Fate::Fails)] {
        output.fate(nth, fate);
    }
    run(&log, &output, &SimFs::new(), config()).await.expect("a run");
    // A failed append burns offsets, which `seq` follows.
    let without_seq = |rows: Vec<String>| -> Vec<String> {
        let seq = |row: &String| row.split(' ').filter(|cell| !cell.starts_with("seq=")).collect::<Vec<_>>().join(" ");
        rows.iter().map(seq).collect()
    };
    assert_eq!(without_seq(output.rows_of(Dataset::Alerts)), without_seq(expected));
    let batches = output.batches_of(Dataset::Alerts);
    for batch in &batches {
        for (offset, row) in (batch.offset..).zip(print_rows(&batch.rows)) {
            assert!(row.contains(&format!(" seq={offset} ")), "{offset}: {row}");
        }
    }
    assert!(batches.iter().map(|batch| batch.rows.num_rows() as u64).sum::<u64>() < output.bounds().next);
}

#[tokio::test]
async fn any_call_of_the_file_system_may_fail_once_or_for_good() {
    let (expected, log) = (undisturbed().await, ingest());
    let counted = SimFs::new();
    run(&log, &ScriptedLog::new(), &counted, config()).await.expect("a run");
    for op in SimOp::ALL {
        for nth in 1..=counted.count(op) {
            for sticky in [false, true] {
                let (fs, output) = (SimFs::new(), ScriptedLog::new());
                fs.fail(Fault { sticky, ..Fault::eio(op, nth) });
                match run(&log, &output, &fs, config()).await {
                    Ok(_) => assert_eq!(output.rows_of(Dataset::Alerts), expected, "{op:?} {nth}"),
                    Err(error) => assert!(matches!(error, PipelineError::Io { .. }), "{op:?} {nth}: {error}"),
                }
                fs.crash(nth);
                let output = output.reopen();
                run(&log, &output, &fs, config()).await.expect("the second run");
                assert_eq!(output.rows_of(Dataset::Alerts), expected, "after {op:?} {nth}");
            }
        }
    }
}

#[tokio::test]
async fn a_log_that_forgot_its_beginning_is_read_from_its_first_row() {
    let log = ingest();
    log.forget(6).expect("forgotten");
    let output = ScriptedLog::new();
    let status = run(&log, &output, &SimFs::new(), config()).await.expect("a run");
    assert_eq!(status.offset, 27);
    assert_eq!(output.rows_of(Dataset::Alerts).iter().filter(|row| row.contains("rule_id=eve")).count(), 14);
}
