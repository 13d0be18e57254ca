//! What every stream log promises.

use std::sync::Arc;

use tidegate_events::Dataset;
use tidegate_pipeline::{Ack, Append, AppendError, PipelineError, StreamLog};

use super::rows::{batch, events, ids, one};

type Promise = fn(&str, &Arc<dyn StreamLog>);

/// Holds a kind of log to its promises. `fresh` makes an empty one, which may be asked to forget in steps of at most 60 rows of
/// 400 bytes, and remembers at least 1,000 keys. `name` says in a failure which log it was.
pub fn check(name: &str, mut fresh: impl FnMut() -> Arc<dyn StreamLog>) {
    let promises: [(&str, Promise); 7] = [
        ("offsets_count_rows_and_batches_come_back_in_order", offsets_count_rows_and_batches_come_back_in_order),
        ("rows_come_back_as_they_were", rows_come_back_as_they_were),
        (
            "duplicates_are_answered_with_their_place_and_stored_once",
            duplicates_are_answered_with_their_place_and_stored_once,
        ),
        ("duplicates_in_flight_at_once_are_stored_once", duplicates_in_flight_at_once_are_stored_once),
        ("what_was_forgotten_says_so_and_the_rest_is_kept", what_was_forgotten_says_so_and_the_rest_is_kept),
        ("watchers_see_every_commit_and_memory_acks_come_too", watchers_see_every_commit_and_memory_acks_come_too),
        ("empty_appends_and_wrong_keys_are_answered", empty_appends_and_wrong_keys_are_answered),
    ];
    for (promise, check) in promises {
        check(&format!("{name}: {promise}"), &fresh());
    }
}

fn offsets_count_rows_and_batches_come_back_in_order(name: &str, log: &Arc<dyn StreamLog>) {
    let first = log.append(one(events("a", &["1", "2"]))).blocking_recv().expect("an answer").expect("stored");
    assert_eq!(first.offsets[0], 0..2, "{name}");
    let two = Append {
        batches: vec![events("a", &["3"]), batch(Dataset::Changes, &["b", "c"], &["4", "5"])],
        ack: Ack::Disk,
    };
    let second = log.append(two).blocking_recv().expect("an answer").expect("stored");
    assert_eq!(second.offsets, [2..3, 3..5], "{name}");
    assert_eq!(log.bounds().next, 5, "{name}");
    let all = log.read(0, usize::MAX).expect("batches");
    let expected: Vec<_> = (0..5u64).map(|at| (at, (at + 1).to_string())).collect();
    assert_eq!(ids(&all), expected, "{name}");
    assert_eq!(all[2].dataset, Dataset::Changes, "{name}");
    assert_eq!(ids(&log.read(1, 1).expect("batches")), expected[..2], "{name}: a batch is not split");
    assert_eq!(ids(&log.read(2, 1).expect("batches")), expected[2..3], "{name}");
    assert!(log.read(5, 1).expect("nothing").is_empty(), "{name}");
}

fn rows_come_back_as_they_were(name: &str, log: &Arc<dyn StreamLog>) {
    let sent = batch(Dataset::SecurityEvents, &["a", "b", "a"], &["1", "22", "333"]);
    log.append(one(sent.clone())).blocking_recv().expect("an answer").expect("stored");
    log.append(one(events("a", &["tail"]))).blocking_recv().expect("an answer").expect("stored");
    let read = log.read(0, 1).expect("a batch");
    assert_eq!(read[0].rows, sent.rows, "{name}");
}

fn duplicates_are_answered_with_their_place_and_stored_once(name: &str, log: &Arc<dyn StreamLog>) {
    log.append(one(events("a", &["1", "2"]))).blocking_recv().expect("an answer").expect("stored");
    let mixed = Append {
        batches: vec![events("a", &["2", "3", "3"]), events("b", &["2"]), events("a", &["1", "-x", "-x"])],
        ack: Ack::Disk,
    };
    let answer = log.append(mixed).blocking_recv().expect("an answer").expect("stored");
    assert_eq!(answer.duplicates, [(0, 0), (0, 2), (2, 0)], "{name}");
    assert_eq!(answer.offsets, [2..3, 3..4, 4..6], "{name}");
    let all = ids(&log.read(0, usize::MAX).expect("batches"));
    let stored: Vec<&str> = all.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(stored, ["1", "2", "3", "2", "-x", "-x"], "{name}");
    let again = log.append(one(events("a", &["1", "3"]))).blocking_recv().expect("an answer").expect("stored");
    assert_eq!(again.duplicates.len(), 2, "{name}");
    assert_eq!(again.offsets[0], 6..6, "{name}");
}

fn duplicates_in_flight_at_once_are_stored_once(name: &str, log: &Arc<dyn StreamLog>) {
    let stored: usize = std::thread::scope(|scope| {
        let send = |_| {
            let log = log.clone();
            scope.spawn(move || {
                let replies: Vec<_> = (0..50).map(|id| log.append(one(events("a", &[&id.to_string()])))).collect();
                let stored = |reply: tidegate_pipeline::AppendReply| {
                    let answer = reply.blocking_recv().expect("an answer").expect("stored");
                    answer.offsets[0].end - answer.offsets[0].start
                };
                replies.into_iter().map(stored).sum::<u64>() as usize
            })
        };
        let senders: Vec<_> = (0..4).map(send).collect();
        senders.into_iter().map(|sender| sender.join().expect("no panic")).sum()
    });
    assert_eq!(stored, 50, "{name}");
    assert_eq!(log.bounds().next, 50, "{name}");
}

fn what_was_forgotten_says_so_and_the_rest_is_kept(name: &str, log: &Arc<dyn StreamLog>) {
    for id in 0..100 {
        log.append(one(events("a", &[&format!("{id:0>400}")]))).blocking_recv().expect("an answer").expect("stored");
    }
    log.forget(60).expect("forgotten");
    let first = log.bounds().first;
    assert!(first > 0 && first <= 60, "{name}: {first}");
    let asked = first - 1;
    assert!(matches!(log.read(asked, 1), Err(PipelineError::Forgotten { .. })), "{name}");
    assert_eq!(ids(&log.read(first, usize::MAX).expect("the rest")).len() as u64, 100 - first, "{name}");
    log.forget(1000).expect("forgotten");
    let answer = log.append(one(events("a", &["new"]))).blocking_recv().expect("an answer").expect("stored");
    assert_eq!(answer.offsets[0], 100..101, "{name}: offsets go on");
}

fn watchers_see_every_commit_and_memory_acks_come_too(name: &str, log: &Arc<dyn StreamLog>) {
    let mut watch = log.watch();
    let append = Append { batches: vec![events("a", &["1"])], ack: Ack::Memory };
    assert_eq!(log.append(append).blocking_recv().expect("an answer").expect("taken").offsets[0], 0..1, "{name}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let bounds = runtime.block_on(watch.wait_for(|bounds| bounds.next == 1)).map(|bounds| *bounds);
    assert_eq!(bounds.expect("a change").next, 1, "{name}");
}

fn empty_appends_and_wrong_keys_are_answered(name: &str, log: &Arc<dyn StreamLog>) {
    let empty = log.append(Append::default()).blocking_recv().expect("an answer").expect("nothing to store");
    assert!(empty.offsets.is_empty(), "{name}");
    let no_rows = log.append(one(events("a", &[]))).blocking_recv().expect("an answer").expect("nothing to store");
    assert_eq!(no_rows.offsets[0], 0..0, "{name}");
    let mut wrong = events("a", &["1", "2"]);
    wrong.keys.pop();
    let answer = log.append(one(wrong)).blocking_recv().expect("an answer");
    assert!(matches!(answer, Err(AppendError::Failed(_))), "{name}");
    assert_eq!(log.bounds().next, 0, "{name}");
}
