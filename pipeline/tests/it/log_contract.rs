//! What every stream log promises: one suite, run for each of them.

use std::path::Path;
use std::sync::Arc;

use tidegate_events::Dataset;
use tidegate_pipeline::fs::{RealFs, SimFs};
use tidegate_pipeline::log::{LogConfig, MemoryLog, SegmentLog};
use tidegate_pipeline::{Ack, Append, AppendError, PipelineError, StreamLog};

use crate::log_rows::{batch, events, ids, one};

/// Every log there is, fresh, with what must outlive it.
fn logs() -> Vec<(&'static str, Box<dyn StreamLog>, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let real = SegmentLog::open(Arc::new(RealFs), &folder.path().join("a/b"), small()).expect("a log").0;
    let sim = SegmentLog::open(Arc::new(SimFs::new()), Path::new("/data/log"), small()).expect("a log").0;
    let memory = MemoryLog::new(1000, 1 << 30);
    vec![("memory", Box::new(memory), None), ("sim", Box::new(sim), None), ("real", Box::new(real), Some(folder))]
}

/// Segments of a few batches and almost no tail, so that reads go to files.
fn small() -> LogConfig {
    LogConfig { segment_bytes_max: 16 << 10, tail_bytes_max: 1, ..LogConfig::default() }
}

#[test]
fn offsets_count_rows_and_batches_come_back_in_order() {
    for (name, log, _folder) in logs() {
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
}

#[test]
fn rows_come_back_as_they_were() {
    for (name, log, _folder) in logs() {
        let sent = batch(Dataset::SecurityEvents, &["a", "b", "a"], &["1", "22", "333"]);
        log.append(one(sent.clone())).blocking_recv().expect("an answer").expect("stored");
        log.append(one(events("a", &["tail"]))).blocking_recv().expect("an answer").expect("stored");
        let read = log.read(0, 1).expect("a batch");
        assert_eq!(read[0].rows, sent.rows, "{name}");
    }
}

#[test]
fn duplicates_are_answered_with_their_place_and_stored_once() {
    for (name, log, _folder) in logs() {
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
}

#[test]
fn duplicates_in_flight_at_once_are_stored_once() {
    for (name, log, _folder) in logs() {
        let log: Arc<dyn StreamLog> = Arc::from(log);
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
}

#[test]
fn what_was_forgotten_says_so_and_the_rest_is_kept() {
    for (name, log, _folder) in logs() {
        for id in 0..100 {
            log.append(one(events("a", &[&format!("{id:0>400}")])))
                .blocking_recv()
                .expect("an answer")
                .expect("stored");
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
}

#[test]
fn watchers_see_every_commit_and_memory_acks_come_too() {
    for (name, log, _folder) in logs() {
        let mut watch = log.watch();
        let append = Append { batches: vec![events("a", &["1"])], ack: Ack::Memory };
        assert_eq!(log.append(append).blocking_recv().expect("an answer").expect("taken").offsets[0], 0..1, "{name}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let bounds = runtime.block_on(watch.wait_for(|bounds| bounds.next == 1)).map(|bounds| *bounds);
        assert_eq!(bounds.expect("a change").next, 1, "{name}");
    }
}

#[test]
fn empty_appends_and_wrong_keys_are_answered() {
    for (name, log, _folder) in logs() {
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
}
