//! Retry, refusal, flush and drain of a delivery, with a sink that answers as scripted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;
use tidegate_events::Dataset;
use tidegate_pipeline::{
    DeliveryConfig, DeliveryHandle, DeliveryParts, Health, LogReader, OutputLog, PipelineError, StreamLog, deliver,
};
use tokio::runtime::{Builder, Handle};

use crate::counted::Counted;
use crate::scripted::{Answer, Fate, ScriptedLog, ScriptedSink, Seen, events, soon, texts, until};

struct Case {
    log: Arc<ScriptedLog>,
    output: Arc<ScriptedLog>,
    seen: Arc<Mutex<Seen>>,
    health: Health,
    config: DeliveryConfig,
}

impl Case {
    fn new() -> Self {
        let config = DeliveryConfig {
            flush_interval_ms: 5,
            retry_ms_min: 1,
            retry_ms_max: 4,
            delivery_bytes_max: 1,
            ..DeliveryConfig::default()
        };
        Self {
            log: ScriptedLog::new(),
            output: ScriptedLog::new(),
            seen: Arc::default(),
            health: Health::default(),
            config,
        }
    }

    fn push(&self, ids: &[&str]) {
        let rows: Vec<_> = ids.iter().map(|id| (*id, "a", 7, 8)).collect();
        self.log.push(Dataset::SecurityEvents, events(&rows));
    }

    fn start(&self) -> DeliveryHandle {
        let parts = DeliveryParts {
            sink: Box::new(ScriptedSink(self.seen.clone())),
            log: self.log.clone(),
            output: Arc::new(OutputLog::new(self.output.clone())),
            config: self.config.clone(),
            stage: self.health.stage("sink"),
        };
        deliver(parts, &Handle::current())
    }

    fn detail(&self) -> String {
        self.health.details().pop().map(|(_, detail)| detail).unwrap_or_default()
    }

    fn durable(&self) -> Vec<String> {
        self.seen.lock().durable.clone()
    }

    /// The ids of the dead letters.
    fn letters(&self) -> Vec<String> {
        let batches = self.output.batches_of(Dataset::DeadLetters);
        batches.iter().flat_map(|batch| texts(&batch.rows, "event_id")).collect()
    }
}

#[tokio::test]
async fn rows_are_delivered_in_order_and_made_durable_after_the_flush_interval() {
    let case = Case::new();
    case.push(&["a", "b"]);
    let handle = case.start();
    let mut committed = handle.committed();
    committed.wait_for(|committed| *committed == 2).await.expect("progress");
    case.push(&["c"]);
    committed.wait_for(|committed| *committed == 3).await.expect("progress");
    assert_eq!(case.durable(), ["a", "b", "c"]);
    let flushes = case.seen.lock().flushes;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(case.seen.lock().flushes, flushes, "nothing is taken, so nothing is flushed");
    assert_eq!(handle.drain(soon()).await.expect("drained"), 3);
}

#[tokio::test]
async fn a_delivery_has_about_the_bytes_it_may_have() {
    for (bytes, largest) in [(1, 2), (1 << 20, 20)] {
        let mut case = Case::new();
        case.config.delivery_bytes_max = bytes;
        (0..10).for_each(|_| case.push(&["a", "b"]));
        case.start().drain(soon()).await.expect("drained");
        assert_eq!(case.seen.lock().largest, largest);
        assert_eq!(case.durable().len(), 20);
    }
}

#[tokio::test]
async fn reading_goes_on_at_the_sinks_cursor_within_a_batch() {
    let case = Case::new();
    case.push(&["a", "b", "c"]);
    case.seen.lock().committed = 2;
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 3);
    assert_eq!(case.durable(), ["c"]);
}

#[tokio::test]
async fn a_retryable_failure_is_tried_again_and_told_while_it_lasts() {
    let case = Case::new();
    case.seen.lock().to_writes.extend(vec![Answer::Retry; 200]);
    case.push(&["a"]);
    let handle = case.start();
    until("the stage says so", || case.detail().starts_with("out of order: write failed")).await;
    assert!(case.detail().ends_with(": down"), "{}", case.detail());
    assert!(
        !case.health.stuck(Instant::now() + Duration::from_secs(11), Duration::from_secs(10)).is_empty(),
        "work waits"
    );
    let mut committed = handle.committed();
    committed.wait_for(|committed| *committed == 1).await.expect("progress");
    assert_eq!(case.seen.lock().writes, 201);
    assert_eq!(case.detail(), "");
    assert!(case.letters().is_empty());
    assert!(case.health.stuck(Instant::now() + Duration::from_secs(11), Duration::from_secs(10)).is_empty());
}

#[test]
fn the_circuit_closes_with_the_first_answer_also_when_that_refuses_rows() {
    for (refused, spoilt) in [(vec![], vec![]), (vec!["a".to_owned()], vec![]), (vec![], vec!["a".to_owned()])] {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let work = async {
            let case = Case::new();
            {
                let mut seen = case.seen.lock();
                let answers = if spoilt.is_empty() { &mut seen.to_writes } else { &mut seen.to_flushes };
                answers.extend(vec![Answer::Retry; 200]);
                (seen.refused, seen.spoilt) = (refused.clone(), spoilt.clone());
            }
            case.push(&["a"]);
            let handle = case.start();
            until("the circuit opens", || case.detail().starts_with("out of order")).await;
            handle.committed().wait_for(|committed| *committed == 1).await.expect("progress");
            assert!(!case.detail().contains("out of order"), "{}", case.detail());
        };
        // The delivery runs on this thread too.
        let ((), counted) = Counted::during(|| runtime.block_on(work));
        assert_eq!(counted.gauge("delivery_circuit_open"), Some(0.0), "{refused:?} {spoilt:?}");
    }
}

#[tokio::test]
async fn a_flush_that_fails_is_tried_again_whatever_it_says() {
    for answer in [Answer::Retry, Answer::Fatal, Answer::Panic] {
        let case = Case::new();
        case.seen.lock().to_flushes.extend(vec![answer; 2]);
        case.push(&["a"]);
        assert_eq!(case.start().drain(soon()).await.expect("drained"), 1);
        assert_eq!(case.seen.lock().flushes, 3);
        assert_eq!(case.durable(), ["a"]);
    }
}

#[tokio::test]
async fn a_flush_that_goes_on_failing_is_stuck_although_everything_was_taken() {
    let case = Case::new();
    case.seen.lock().to_flushes.extend(vec![Answer::Retry; 10_000]);
    case.push(&["a"]);
    let _handle = case.start();
    until("the stage says so", || case.detail().starts_with("out of order: flush failed")).await;
    assert_eq!(case.seen.lock().writes, 1);
    assert_eq!(case.health.stuck(Instant::now() + Duration::from_secs(11), Duration::from_secs(10)), ["sink"]);
}

#[tokio::test]
async fn a_flush_that_never_comes_back_is_stuck() {
    let case = Case::new();
    case.seen.lock().to_flushes.push_back(Answer::Hang);
    case.push(&["a"]);
    let _handle = case.start();
    until("the flush began", || case.seen.lock().flushes == 1).await;
    assert_eq!(case.health.stuck(Instant::now() + Duration::from_secs(11), Duration::from_secs(10)), ["sink"]);
}

#[tokio::test]
async fn refused_rows_become_dead_letters_and_their_neighbours_go_on() {
    let mut case = Case::new();
    case.config.delivery_bytes_max = 1 << 20;
    case.push(&["a", "b", "c", "d", "e"]);
    case.push(&["f"]);
    case.push(&["g", "h"]);
    case.seen.lock().refused = vec!["d".into(), "f".into()];
    let committed = case.start().drain(soon()).await.expect("drained");
    assert_eq!(committed, 8);
    assert_eq!(case.durable(), ["a", "b", "c", "e", "g", "h"]);
    assert_eq!(case.letters(), ["delivery:scripted:security_events:3", "delivery:scripted:security_events:5"]);
    let letter = case.output.rows_of(Dataset::DeadLetters).remove(0);
    for part in [
        "time=7000000 received_time=8000000 ",
        " org_id=acme source=test dataset=security_events stage=delivery:scripted code=refused_by_sink reason=refused ",
        r#""event_id":"d""#,
        r#""time":"1970-01-01T00:00:07.000000Z""#,
        " payload_encoding=utf8",
    ] {
        assert!(letter.contains(part), "{part} in {letter}");
    }
}

#[tokio::test]
async fn rows_that_spoil_a_flush_are_found_and_buried_and_all_others_are_stored_once() {
    for delivery_bytes_max in [1, 1 << 20] {
        let mut case = Case::new();
        case.config.delivery_bytes_max = delivery_bytes_max;
        case.config.flush_interval_ms = 50;
        case.push(&["a", "b", "c", "d", "e"]);
        case.push(&["f"]);
        case.push(&["g", "h"]);
        case.seen.lock().spoilt = vec!["d".into(), "f".into()];
        let handle = case.start();
        let mut committed = handle.committed();
        committed.wait_for(|committed| *committed == 8).await.expect("progress");
        assert_eq!(case.durable(), ["a", "b", "c", "e", "g", "h"]);
        assert_eq!(case.letters(), ["delivery:scripted:security_events:3", "delivery:scripted:security_events:5"]);
        assert_eq!(case.detail(), "2 rows refused since the start; they are in dead_letters, the last because: spoilt");
        case.push(&["i"]);
        assert_eq!(handle.drain(soon()).await.expect("drained"), 9, "the sink goes on");
        assert_eq!(case.durable().last().map(String::as_str), Some("i"));
    }
}

#[tokio::test]
async fn a_drain_gives_withdrawn_rows_again_before_it_ends() {
    let mut case = Case::new();
    case.config.delivery_bytes_max = 1 << 20;
    case.push(&["a", "b", "c"]);
    case.seen.lock().spoilt = vec!["b".into()];
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 3);
    assert_eq!(case.durable(), ["a", "c"]);
    assert_eq!(case.letters(), ["delivery:scripted:security_events:1"]);
}

#[tokio::test]
async fn a_delivery_that_is_refused_as_a_whole_is_buried_after_a_bounded_number_of_tries() {
    let mut case = Case::new();
    case.config.splits_max = 5;
    let ids: Vec<String> = (0..3_000).map(|id| id.to_string()).collect();
    case.push(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    case.seen.lock().refused = ids;
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 3_000);
    assert_eq!(case.seen.lock().writes, 11);
    assert_eq!(case.letters().len(), 3_000);
    assert!(case.output.batches_of(Dataset::DeadLetters).iter().all(|batch| batch.rows.num_rows() <= 1_024));
}

#[tokio::test]
async fn rows_that_the_sink_names_are_buried_however_many_they_are() {
    for spoils in [false, true] {
        let mut case = Case::new();
        case.config.splits_max = 0;
        case.config.delivery_bytes_max = 1 << 20;
        let ids: Vec<String> = (0..3_000).map(|id| id.to_string()).collect();
        case.push(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let (good, bad): (Vec<String>, Vec<String>) =
            ids.into_iter().partition(|id| id.len() != 3 || id.ends_with('7'));
        {
            let mut seen = case.seen.lock();
            seen.says_which = true;
            if spoils { seen.spoilt = bad.clone() } else { seen.refused = bad.clone() }
        }
        assert_eq!(case.start().drain(soon()).await.expect("drained"), 3_000);
        assert_eq!(case.durable(), good);
        let letters: Vec<String> = bad.iter().map(|id| format!("delivery:scripted:security_events:{id}")).collect();
        assert_eq!(case.letters(), letters);
        assert!(case.output.batches_of(Dataset::DeadLetters).len() <= 2, "not a letter at a time");
    }
}

#[tokio::test]
async fn a_sink_that_names_rows_it_was_not_given_is_not_believed() {
    let case = Case::new();
    case.push(&["a", "b", "c"]);
    case.seen.lock().refused = vec!["b".into()];
    case.seen.lock().names = vec![7, 9];
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 3);
    assert_eq!(case.durable(), ["a", "c"]);
    assert_eq!(case.letters(), ["delivery:scripted:security_events:1"]);
}

#[tokio::test]
async fn a_refusal_repeated_after_a_restart_doubles_no_dead_letter() {
    let mut case = Case::new();
    case.push(&["a", "b"]);
    case.seen.lock().refused = vec!["b".into()];
    case.start().drain(soon()).await.expect("drained");
    // The sink itself knows only what it took.
    case.seen.lock().committed = 1;
    case.output = case.output.reopen();
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 2);
    assert_eq!(case.letters(), ["delivery:scripted:security_events:1"]);
}

#[tokio::test]
async fn refused_dead_letters_make_no_further_dead_letters() {
    let mut case = Case::new();
    case.push(&["a", "b"]);
    case.seen.lock().refused = vec!["a".into()];
    case.start().drain(soon()).await.expect("drained");
    assert_eq!(case.letters().len(), 1);

    // Now a delivery of the output log itself, whose sink refuses the letter.
    let log = case.output.clone();
    case = Case { log, output: case.output, ..Case::new() };
    case.seen.lock().refused = case.letters();
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 1);
    assert_eq!(case.letters().len(), 1);
    assert_eq!(case.log.bounds().next, 1);
}

#[tokio::test]
async fn dead_letters_wait_for_an_output_log_that_is_full() {
    let case = Case::new();
    case.output.fate(0, Fate::Full);
    case.output.fate(1, Fate::Fails);
    case.push(&["a"]);
    case.seen.lock().refused = vec!["a".into()];
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 1);
    assert_eq!(case.letters().len(), 1);
}

#[tokio::test]
async fn a_sink_that_panics_is_tried_again_and_then_its_rows_are_buried() {
    let case = Case::new();
    case.seen.lock().to_writes.extend(vec![Answer::Panic; 2]);
    case.push(&["a"]);
    let handle = case.start();
    let mut committed = handle.committed();
    committed.wait_for(|committed| *committed == 1).await.expect("progress");
    assert_eq!(case.durable(), ["a"]);
    case.seen.lock().to_writes.extend(vec![Answer::Panic; 3]);
    case.push(&["b"]);
    case.push(&["c"]);
    assert_eq!(handle.drain(soon()).await.expect("drained"), 3);
    assert_eq!(case.durable(), ["a", "c"]);
    assert_eq!(case.letters(), ["delivery:scripted:security_events:1"]);
}

#[tokio::test]
async fn a_hanging_sink_harms_only_itself_and_a_drain_leaves_it_at_its_deadline() {
    let (slow, quick) = (Case::new(), Case::new());
    let quick = Case { log: slow.log.clone(), ..quick };
    slow.seen.lock().to_writes.push_back(Answer::Hang);
    slow.push(&["a"]);
    let (slow_handle, quick_handle) = (slow.start(), quick.start());
    assert_eq!(quick_handle.drain(soon()).await.expect("drained"), 1);
    assert!(!slow.health.stuck(Instant::now() + Duration::from_secs(11), Duration::from_secs(10)).is_empty());
    let started = Instant::now();
    let drained = slow_handle.drain(started + Duration::from_millis(30)).await;
    assert!(matches!(drained, Err(PipelineError::Invalid(_))), "{drained:?}");
    assert!(started.elapsed() < Duration::from_secs(2));
    until("the task is gone", || Arc::strong_count(&slow.seen) == 1).await;
    slow.start().drain(soon()).await.expect("drained");
    assert_eq!(slow.durable(), ["a"], "the next start goes on with it");
}

#[tokio::test]
async fn rows_that_the_log_forgot_are_skipped() {
    let case = Case::new();
    case.push(&["a", "b"]);
    case.push(&["c"]);
    case.log.forget(2).expect("forgotten");
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 3);
    assert_eq!(case.durable(), ["c"]);
}

#[tokio::test]
async fn dropping_the_handle_ends_the_task() {
    let case = Case::new();
    let handle = case.start();
    case.push(&["a"]);
    handle.committed().wait_for(|committed| *committed == 1).await.expect("progress");
    drop(handle);
    until("the task is gone", || Arc::strong_count(&case.seen) == 1).await;
}

#[tokio::test]
async fn damaged_stretches_are_passed_over() {
    let case = Case::new();
    ["a", "b", "c", "d"].iter().for_each(|id| case.push(&[id]));
    [1, 3].iter().for_each(|offset| case.log.damage(*offset));
    assert_eq!(case.start().drain(soon()).await.expect("drained"), 4);
    assert_eq!(case.durable(), ["a", "c"]);
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![3 => Just(Answer::Retry), 1 => Just(Answer::Panic)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However the sink fails and however often the process restarts: every row is durable once, in order, but for those that
    /// the sink refuses, each of which is one dead letter.
    #[test]
    fn every_row_ends_at_the_destination_or_among_the_dead_letters(
        batches in prop::collection::vec(1..5usize, 1..8),
        refused in prop::collection::hash_set(0..30usize, 0..5),
        spoilt in prop::collection::hash_set(0..30usize, 0..3),
        fails in prop::collection::vec((prop::collection::vec(answer(), 0..3), 0..6u64), 0..4),
        delivery_bytes_max in prop::sample::select(vec![1usize, 3_000, 1 << 20]),
        says_which in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut case = Case::new();
            case.config.delivery_bytes_max = delivery_bytes_max;
            case.seen.lock().says_which = says_which;
            let mut next = 0;
            for rows in &batches {
                let ids: Vec<String> = (next..next + rows).map(|id| id.to_string()).collect();
                case.push(&ids.iter().map(String::as_str).collect::<Vec<_>>());
                next += rows;
            }
            case.seen.lock().refused = refused.iter().map(usize::to_string).collect();
            case.seen.lock().spoilt = spoilt.iter().map(usize::to_string).collect();
            for (answers, pause_ms) in fails {
                {
                    let mut seen = case.seen.lock();
                    seen.to_writes = answers.iter().cloned().collect();
                    seen.to_flushes = answers.into();
                }
                let handle = case.start();
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                drop(handle);
                until("the task is gone", || Arc::strong_count(&case.seen) == 1).await;
                case.seen.lock().restart();
                case.output = case.output.reopen();
            }
            case.start().drain(soon()).await.expect("drained");
            let (bad, good): (Vec<usize>, Vec<usize>) = (0..next).partition(|id| refused.contains(id) || spoilt.contains(id));
            assert_eq!(case.durable(), good.iter().map(usize::to_string).collect::<Vec<_>>());
            let mut letters = case.letters();
            letters.sort_by_key(|letter| letter.rsplit(':').next().and_then(|offset| offset.parse::<usize>().ok()));
            let expected = bad.iter().map(|id| format!("delivery:scripted:security_events:{id}"));
            assert_eq!(letters, expected.collect::<Vec<_>>());
        });
    }
}
