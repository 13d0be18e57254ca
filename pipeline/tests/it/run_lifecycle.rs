//! Operators that panic, checkpoints that are damaged, states that do not restore, and how a loop ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_events::Dataset;
use tidegate_pipeline::checkpoint::{Checkpoint, Checkpoints};
use tidegate_pipeline::fs::{Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::{
    Append, AppendReply, Emitter, Health, LogBatch, LogBounds, LogReader, Offset, Operator, OutputLog, PipelineError,
    RunConfig, RunHandle, RunLoop, RunParts, StreamLog,
};
use tokio::sync::watch;

use crate::scripted::{Each, Fate, ScriptedLog, events, soon, until};

const DIR: &str = "/data/checkpoint";

/// What the operators of a run share with its test.
struct Run {
    log: Arc<ScriptedLog>,
    output: Arc<ScriptedLog>,
    fs: SimFs,
    health: Health,
    config: RunConfig,
    seed: Vec<LogBatch>,
}

impl Run {
    fn new() -> Self {
        let config = RunConfig { checkpoint_interval_ms: 5, read_bytes_max: 1, ..RunConfig::default() };
        Self {
            log: ScriptedLog::new(),
            output: ScriptedLog::new(),
            fs: SimFs::new(),
            health: Health::default(),
            config,
            seed: Vec::new(),
        }
    }

    fn push(&self, ids: &[&str]) {
        let rows: Vec<_> = ids.iter().map(|id| (*id, "mallory", 100, 100)).collect();
        self.log.push(Dataset::SecurityEvents, events(&rows));
    }

    fn parts(&self, operators: Vec<Box<dyn Operator>>) -> RunParts {
        RunParts {
            log: self.log.clone(),
            output: Arc::new(OutputLog::new(self.output.clone())),
            operators,
            seed: self.seed.clone(),
            fs: Arc::new(self.fs.clone()),
            dir: PathBuf::from(DIR),
            config: self.config.clone(),
            stage: self.health.stage("run"),
        }
    }

    fn start(&self, operators: Vec<Box<dyn Operator>>) -> Result<RunHandle, PipelineError> {
        RunLoop::start(self.parts(operators))
    }

    /// The events behind the alerts.
    fn alerted(&self) -> Vec<String> {
        let batches = self.output.batches_of(Dataset::Alerts);
        batches.iter().flat_map(|batch| crate::scripted::texts(&batch.rows, "group_key")).collect()
    }

    /// What `/readyz` names though nothing of it is late.
    fn stuck(&self) -> Vec<String> {
        self.health.stuck(Instant::now(), Duration::MAX)
    }

    fn detail(&self) -> String {
        self.health.details().pop().map(|(_, detail)| detail).unwrap_or_default()
    }
}

fn each(poison: &'static str) -> Box<dyn Operator> {
    Box::new(Each { actor: "mallory", times: 1, poison })
}

/// Sums what it sees; its state, as text; says what was called.
struct Sum {
    name: &'static str,
    sum: u64,
    calls: Arc<Mutex<Vec<String>>>,
    panics_in: &'static str,
}

impl Sum {
    fn boxed(name: &'static str, calls: &Arc<Mutex<Vec<String>>>, panics_in: &'static str) -> Box<dyn Operator> {
        Box::new(Self { name, sum: 0, calls: calls.clone(), panics_in })
    }

    fn call(&self, call: &str) {
        assert_ne!(call, self.panics_in, "scripted");
    }
}

impl Operator for Sum {
    fn name(&self) -> &str {
        self.name
    }

    fn process(&mut self, batch: &LogBatch, _out: &mut Emitter) {
        self.call("process");
        self.sum += batch.rows.num_rows() as u64;
        self.calls.lock().push(format!("{} {} at {}", self.name, batch.dataset.table_name(), self.sum));
    }

    fn advance(&mut self, _watermark: i64, _out: &mut Emitter) {
        self.call("advance");
    }

    fn save(&self) -> Vec<u8> {
        self.call("save");
        self.sum.to_string().into_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PipelineError> {
        self.call("restore");
        let text = std::str::from_utf8(state).ok().and_then(|text| text.parse().ok());
        self.sum = text.ok_or_else(|| PipelineError::Invalid("not a sum".into()))?;
        Ok(())
    }
}

#[tokio::test]
async fn a_panicking_operator_is_parked_and_the_others_go_on() {
    for panics_in in ["process", "advance", "save", "restore"] {
        let run = Run::new();
        let calls = Arc::default();
        if panics_in == "restore" {
            run.push(&["z"]);
            run.start(vec![Sum::boxed("bad", &calls, "")]).expect("a loop").drain(soon()).await.expect("drained");
        }
        let handle = run.start(vec![Sum::boxed("bad", &calls, panics_in), each("")]).expect("a loop");
        run.push(&["a"]);
        run.push(&["b", "c"]);
        until("the operator is parked", || !handle.status().parked.is_empty()).await;
        assert_eq!(run.stuck(), ["run: operator bad is parked"], "{panics_in}");
        run.push(&["d"]);
        let status = handle.drain(soon()).await.expect("drained");
        assert!(run.alerted().ends_with(&["a", "b", "c", "d"].map(String::from)), "{:?}", run.alerted());
        assert_eq!(status.parked.len(), 1, "{panics_in}");
        assert_eq!(status.parked[0].operator, "bad");
        assert!(status.parked[0].reason.starts_with(&format!("panicked in {panics_in}: ")), "{:?}", status.parked);
        assert!(run.detail().contains("parked: bad panicked"), "{}", run.detail());
    }
}

#[tokio::test]
async fn what_an_operator_emits_before_it_panics_is_dropped() {
    let run = Run::new();
    run.push(&["a", "b", "poison", "c"]);
    run.push(&["d"]);
    let status = run.start(vec![each("poison")]).expect("a loop").drain(soon()).await.expect("drained");
    assert_eq!(run.alerted(), Vec::<String>::new());
    assert_eq!(status.offset, 5, "the loop goes on past it");
}

#[tokio::test]
async fn a_parked_operator_is_back_after_a_restart() {
    let mut run = Run::new();
    run.push(&["poison"]);
    let status = run.start(vec![each("poison")]).expect("a loop").drain(soon()).await.expect("drained");
    assert_eq!(status.parked.len(), 1);
    assert_eq!(run.stuck(), ["run: operator mallory is parked"]);
    run.health = Health::default();
    run.push(&["a"]);
    let status = run.start(vec![each("poison")]).expect("a loop").drain(soon()).await.expect("drained");
    assert!(status.parked.is_empty());
    assert_eq!(run.stuck(), [""; 0]);
    assert_eq!(run.alerted(), ["a"]);
}

#[tokio::test]
async fn two_operators_of_one_name_are_refused() {
    let run = Run::new();
    assert!(matches!(run.start(vec![each(""), each("")]), Err(PipelineError::Invalid(_))));
}

#[tokio::test]
async fn states_are_restored_by_name_and_an_operator_without_one_gets_the_seed() {
    let mut run = Run::new();
    let calls = Arc::default();
    run.push(&["a", "b"]);
    run.start(vec![Sum::boxed("old", &calls, "")]).expect("a loop").drain(soon()).await.expect("drained");
    assert_eq!(*calls.lock(), ["old security_events at 2"]);
    calls.lock().clear();

    let rows = events(&[("seed", "x", 1, 1)]);
    run.seed = vec![LogBatch { offset: 0, dataset: Dataset::Changes, rows }];
    run.push(&["c"]);
    let operators = vec![Sum::boxed("new", &calls, ""), Sum::boxed("old", &calls, "")];
    run.start(operators).expect("a loop").drain(soon()).await.expect("drained");
    assert_eq!(*calls.lock(), ["new changes at 1", "new security_events at 2", "old security_events at 3"]);
}

#[tokio::test]
async fn a_state_that_is_refused_starts_its_operator_afresh_and_no_other() {
    let run = Run::new();
    let calls = Arc::default();
    run.push(&["a"]);
    run.push(&["b"]);
    let fs: Arc<dyn Fs> = Arc::new(run.fs.clone());
    let states = vec![("bad".to_owned(), b"what?".to_vec()), ("good".to_owned(), b"41".to_vec())];
    let (mut checkpoints, _) = Checkpoints::open(fs, Path::new(DIR), 1 << 20).expect("a folder");
    checkpoints.save(&Checkpoint { offset: 1, states, ..Checkpoint::default() }).expect("saved");
    let operators = vec![Sum::boxed("bad", &calls, ""), Sum::boxed("good", &calls, "")];
    run.start(operators).expect("a loop").drain(soon()).await.expect("drained");
    assert_eq!(*calls.lock(), ["bad security_events at 1", "good security_events at 42"]);
}

/// Two checkpoints, the newer one at offset 2; then `damage`; the offset at which a loop goes on.
async fn offset_after(damage: impl FnOnce(&SimFs, &[PathBuf])) -> u64 {
    let run = Run::new();
    let calls = Arc::default();
    for id in ["a", "b"] {
        run.push(&[id]);
        run.start(vec![Sum::boxed("sum", &calls, "")]).expect("a loop").drain(soon()).await.expect("drained");
    }
    let files = run.fs.files();
    assert_eq!(files.len(), 2, "{files:?}");
    damage(&run.fs, &files);
    run.log.push(Dataset::SecurityEvents, events(&[("c", "x", 1, 1)]));
    calls.lock().clear();
    let status = run.start(vec![Sum::boxed("sum", &calls, "")]).expect("a loop").drain(soon()).await.expect("drained");
    assert_eq!(calls.lock().last().map(String::as_str), Some("sum security_events at 3"), "nothing is counted twice");
    assert_eq!((status.offset, status.checkpoint_offset), (3, 3));
    3 - calls.lock().len() as u64
}

#[tokio::test]
async fn a_damaged_checkpoint_falls_back_to_the_one_before_and_that_to_the_start() {
    assert_eq!(offset_after(|_, _| {}).await, 2);
    let whole = |fs: &SimFs, path: &Path| fs.bytes(path).expect("a file");
    let flip = |fs: &SimFs, path: &Path, at: usize| {
        let mut bytes = whole(fs, path);
        bytes[at] ^= 1;
        fs.set_bytes(path, bytes);
    };
    assert_eq!(offset_after(|fs, files| fs.set_bytes(&files[1], Vec::new())).await, 1, "zero bytes");
    assert_eq!(offset_after(|fs, files| fs.lose(&files[1])).await, 1, "lost");
    assert_eq!(offset_after(|fs, files| fs.set_bytes(&files[1], whole(fs, &files[1])[..30].to_vec())).await, 1, "cut");
    assert_eq!(offset_after(|fs, files| files.iter().for_each(|file| flip(fs, file, 40))).await, 0, "both flipped");
    assert_eq!(
        offset_after(|fs, files| fs.set_bytes(Path::new("/data/checkpoint/what.sealed"), whole(fs, &files[0]))).await,
        2
    );
}

#[tokio::test]
async fn every_flipped_bit_of_a_checkpoint_is_noticed() {
    let fs = SimFs::new();
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let checkpoint =
        Checkpoint { offset: 9, output_offset: 4, watermark: Some(1), states: vec![("a".into(), vec![1, 2, 3])] };
    Checkpoints::open(shared.clone(), Path::new(DIR), 1 << 20).expect("a folder").0.save(&checkpoint).expect("saved");
    let path = &fs.files()[0];
    let good = fs.bytes(path).expect("a file");
    let load = || Checkpoints::open(shared.clone(), Path::new(DIR), 1 << 20).expect("a folder").1;
    assert_eq!(load(), Some(checkpoint));
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs.set_bytes(path, bytes);
        assert_eq!(load(), None, "bit {bit}");
    }
    for len in 0..good.len() {
        fs.set_bytes(path, good[..len].to_vec());
        assert_eq!(load(), None, "cut to {len}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_written_is_told_and_tried_again() {
    let run = Run::new();
    run.fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::SyncData, 1) });
    let handle = run.start(vec![each("")]).expect("a loop");
    run.push(&["a"]);
    until("the stage says so", || run.detail().contains("checkpoint: ")).await;
    assert_eq!(handle.status().checkpoint_offset, 0);
    assert_eq!(handle.status().offset, 1, "the loop goes on");
    run.fs.heal();
    run.push(&["b"]);
    until("a checkpoint", || handle.status().checkpoint_offset == 2).await;
    assert_eq!(run.detail(), "");
    assert_eq!(run.alerted(), ["a", "b"]);
}

#[tokio::test]
async fn states_beyond_the_bound_are_not_checkpointed() {
    let mut run = Run::new();
    run.config.checkpoint_bytes_max = 40;
    let handle = run.start(vec![Sum::boxed("sum", &Arc::default(), "")]).expect("a loop");
    run.push(&["a"]);
    until("the stage says so", || run.detail().contains("raise the bound")).await;
    assert!(run.fs.files().is_empty());
    handle.drain(soon()).await.expect("drained");
}

#[tokio::test]
async fn the_log_may_forget_what_no_kept_checkpoint_needs() {
    let run = Run::new();
    let handle = run.start(vec![each("")]).expect("a loop");
    for at in 1..4u64 {
        run.push(&["a"]);
        until("a checkpoint", || handle.status().checkpoint_offset == at).await;
        let status = handle.status();
        assert_eq!(status.needed_from, at.saturating_sub(1).max(1), "the checkpoint before the newest needs it");
        assert_eq!(status.output_needed_from, status.needed_from);
    }
}

#[tokio::test]
async fn a_drain_ends_by_its_deadline_while_the_output_log_is_full() {
    let run = Run::new();
    (0..1_000).for_each(|nth| run.output.fate(nth, Fate::Full));
    run.push(&["a"]);
    let handle = run.start(vec![each("")]).expect("a loop");
    until("the stage says so", || run.detail().contains("appending alerts: the log is full")).await;
    let started = Instant::now();
    let status = handle.drain(started + Duration::from_millis(50)).await.expect("an end");
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!((status.offset, status.checkpoint_offset), (0, 0), "nothing is said to be done");
    assert!(run.fs.files().is_empty());
    let output = run.output.reopen();
    let run = Run { output, ..run };
    run.start(vec![each("")]).expect("a loop").drain(soon()).await.expect("drained");
    assert_eq!(run.alerted(), ["a"]);
}

#[tokio::test]
async fn damaged_stretches_are_passed_over() {
    for damaged in [vec![0], vec![1], vec![2], vec![1, 2], vec![0, 1, 2]] {
        let run = Run::new();
        let ids = ["a", "b", "c"];
        ids.iter().for_each(|id| run.push(&[id]));
        damaged.iter().for_each(|offset| run.log.damage(*offset));
        let handle = run.start(vec![each("")]).expect("a loop");
        until("the end", || handle.status().offset == 3).await;
        run.push(&["d"]);
        let status = handle.drain(soon()).await.expect("drained");
        assert_eq!((status.offset, status.checkpoint_offset), (4, 4));
        let whole = ids.iter().zip(0u64..).filter(|(_, at)| !damaged.contains(at)).map(|(id, _)| *id);
        assert_eq!(run.alerted(), whole.chain(["d"]).collect::<Vec<_>>(), "{damaged:?}");
    }
}

#[tokio::test]
async fn dropping_the_handle_ends_the_loop_without_a_checkpoint() {
    let mut run = Run::new();
    run.config.checkpoint_interval_ms = 60_000;
    let handle = run.start(vec![each("")]).expect("a loop");
    run.push(&["a"]);
    let mut offset = handle.offset();
    offset.wait_for(|offset| *offset == 1).await.expect("progress");
    drop(handle);
    until("the loop lets go of its log", || Arc::strong_count(&run.log) == 1).await;
    assert!(run.fs.files().is_empty());
}

#[tokio::test]
async fn a_loop_whose_log_is_closed_says_so() {
    let run = Run::new();
    run.output.fate(0, Fate::DiesBefore);
    run.push(&["a"]);
    let handle = run.start(vec![each("")]).expect("a loop");
    until("the stage says so", || run.detail().contains("ended: ")).await;
    until("the stage is stuck", || !run.health.stuck(Instant::now(), Duration::from_micros(1_000)).is_empty()).await;
    assert!(matches!(handle.drain(soon()).await, Err(PipelineError::Append(_))));
}

/// A log with a bug.
struct Buggy(Arc<ScriptedLog>);

impl LogReader for Buggy {
    fn read(&self, _from: Offset, _bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        panic!("a bug")
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.0.watch()
    }
}

impl StreamLog for Buggy {
    fn append(&self, append: Append) -> AppendReply {
        self.0.append(append)
    }

    fn forget(&self, below: Offset) -> Result<(), PipelineError> {
        self.0.forget(below)
    }
}

#[tokio::test]
async fn a_panic_outside_of_operators_does_not_end_the_loop_in_silence() {
    let run = Run::new();
    let mut parts = run.parts(vec![each("")]);
    parts.log = Arc::new(Buggy(run.log.clone()));
    let handle = RunLoop::start(parts).expect("a loop");
    run.push(&["a"]);
    until("the stage says so", || run.detail().contains("ended: the run loop panicked: a bug")).await;
    until("the stage is stuck", || !run.health.stuck(Instant::now(), Duration::from_micros(1_000)).is_empty()).await;
    until("and the handle, too", || handle.has_ended()).await;
    handle.drain(soon()).await.expect_err("it ended before");
}

#[tokio::test]
async fn a_loop_that_waits_for_its_output_log_is_stuck_until_it_does_not() {
    let run = Run::new();
    (0..1_000).for_each(|nth| run.output.fate(nth, Fate::Full));
    run.push(&["a"]);
    let _handle = run.start(vec![each("")]).expect("a loop");
    let stuck = || run.health.stuck(Instant::now(), Duration::from_micros(20_000));
    until("the stage is stuck", || stuck() == ["run"]).await;
    run.output.forgive();
    until("the stage works", || stuck().is_empty()).await;
}

#[tokio::test]
async fn a_loop_that_was_dropped_while_it_took_a_checkpoint_elsewhere_says_nothing_of_it() {
    let run = Run::new();
    let (called, calls) = std::sync::mpsc::sync_channel(16);
    let (unblock, blocked) = std::sync::mpsc::sync_channel::<()>(1);
    let lives = Arc::new(());
    let thread = lives.clone();
    let copy = move |_: &Checkpoint| {
        let _of_the_thread = &thread;
        called.send(()).ok();
        blocked.recv().ok();
        Err(PipelineError::Invalid("the database hangs".to_owned()))
    };
    let handle = RunLoop::start_with(run.parts(vec![each("")]), Some(Box::new(copy))).expect("a loop");
    run.push(&["a"]);
    tokio::task::spawn_blocking(move || calls.recv()).await.expect("no panic").expect("a checkpoint");
    run.push(&["b"]);
    assert!(!handle.has_ended());
    drop(handle);
    drop(unblock);
    until("the thread has ended", || Arc::strong_count(&lives) == 1).await;
    assert_eq!(run.health.details(), []);
    assert!(run.health.stuck(Instant::now() + Duration::from_secs(100), Duration::ZERO).is_empty());
}
