//! What every stream log promises, and what only those do that count rows or that outlive their process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_events::Dataset;
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{Ack, Append, AppendError, Appended, EventBatch, LogBatch, Offset, PipelineError, StreamLog};

use super::rows::{batch, events, ids, one};

/// How long a row that was acknowledged may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

type Promise = fn(&str, &Arc<dyn StreamLog>);

/// Opens a log again as the process after this one would; the one before is dropped by then.
pub type Open = Box<dyn Fn() -> Arc<dyn StreamLog>>;

/// Holds a kind of log to its promises. `fresh` makes an empty one, which may be asked to forget in steps of at most 60 rows of
/// 400 bytes (or forgets nothing when it is asked to), and remembers at least 1,000 keys. `name` says in a failure which log it
/// was. Offsets may have gaps between appends.
pub fn check(name: &str, fresh: impl FnMut() -> Arc<dyn StreamLog>) {
    let promises: [(&str, Promise); 8] = [
        ("offsets rise and batches come back in order", offsets_rise_and_batches_come_back_in_order),
        ("rows come back as they were", rows_come_back_as_they_were),
        ("duplicates are told by their place and stored once", duplicates_are_told_by_their_place_and_stored_once),
        ("duplicates in flight at once are stored once", duplicates_in_flight_at_once_are_stored_once),
        ("a follower sees every row once, in order", a_follower_sees_every_row_once_in_order),
        ("what was forgotten says so and the rest is kept", what_was_forgotten_says_so_and_the_rest_is_kept),
        ("watchers see every commit, also one in memory", watchers_see_every_commit_also_one_in_memory),
        ("empty appends and wrong keys are answered", empty_appends_and_wrong_keys_are_answered),
    ];
    each(name, &promises, fresh);
}

/// Holds a log to what those promise whose offsets count rows, from 0 and without a gap.
pub fn check_dense(name: &str, fresh: impl FnMut() -> Arc<dyn StreamLog>) {
    each(name, &[("offsets count rows", offsets_count_rows)], fresh);
}

/// Holds a log to what those promise that outlive their process. `fresh` makes an empty place for one.
pub fn check_lasting(name: &str, mut fresh: impl FnMut() -> Open) {
    let open = fresh();
    let log = open();
    let before = append(&log, events("a", &["1", "2"])).offsets;
    let last = append(&log, events("b", &["3"])).offsets;
    drop(log);
    let log = open();
    assert!(log.bounds().next >= last[0].end, "{name}: {:?}", log.bounds());
    append(&log, events("a", &["2", "4"]));
    let all = whole(name, &log);
    let stored: Vec<&str> = all.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(stored, ["1", "2", "3", "4"], "{name}: each once, whoever was told what");
    let offsets: Vec<Offset> = all.iter().take(3).map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, before.into_iter().chain(last).flatten().collect::<Vec<_>>(), "{name}: where they were");
    drop(log);
    assert_eq!(whole(name, &open()), all, "{name}: the same to every later process");
}

fn each(name: &str, promises: &[(&str, Promise)], mut fresh: impl FnMut() -> Arc<dyn StreamLog>) {
    for (promise, check) in promises {
        check(&format!("{name}: {promise}"), &fresh());
    }
}

fn append(log: &Arc<dyn StreamLog>, batch: EventBatch) -> Appended {
    log.append(one(batch)).blocking_recv().expect("an answer").expect("stored")
}

/// All rows of a log, read as a follower does.
fn whole(name: &str, log: &Arc<dyn StreamLog>) -> Vec<(Offset, String)> {
    ids(&batches(name, log, 1))
}

/// All batches of a log, in reads of so many bytes.
fn batches(name: &str, log: &Arc<dyn StreamLog>, bytes_max: usize) -> Vec<Arc<LogBatch>> {
    let end = log.bounds().next;
    let (mut from, mut all) = (log.bounds().first, Vec::new());
    while from < end {
        let reading = read_on(&**log, from, bytes_max).expect("batches");
        assert!(reading.next > from && reading.forgotten == 0, "{name}: {reading:?}");
        all.extend(reading.batches);
        from = reading.next;
    }
    all
}

fn lengths(appended: &Appended) -> Vec<Offset> {
    appended.offsets.iter().map(|range| range.end - range.start).collect()
}

fn offsets_rise_and_batches_come_back_in_order(name: &str, log: &Arc<dyn StreamLog>) {
    let first = append(log, events("a", &["1", "2"]));
    let two = Append {
        batches: vec![events("a", &["3"]), batch(Dataset::Changes, &["b", "c"], &["4", "5"])],
        ack: Ack::Disk,
    };
    let second = log.append(two).blocking_recv().expect("an answer").expect("stored");
    assert_eq!((lengths(&first), lengths(&second)), (vec![2], vec![1, 2]), "{name}");
    let offsets: Vec<Offset> = first.offsets.iter().chain(&second.offsets).cloned().flatten().collect();
    assert!(offsets.is_sorted_by(|a, b| a < b), "{name}: {offsets:?}");
    let expected: Vec<_> = offsets.iter().zip(1..).map(|(offset, id)| (*offset, id.to_string())).collect();
    let next = log.bounds().next;
    assert_eq!(Some(next), offsets.last().map(|last| last + 1), "{name}");
    let all = batches(name, log, usize::MAX);
    assert_eq!(ids(&all), expected, "{name}");
    assert_eq!(all.last().map(|batch| batch.dataset), Some(Dataset::Changes), "{name}");
    assert_eq!(ids(&log.read(offsets[1], 1).expect("batches")), expected[..2], "{name}: a batch is not split");
    assert_eq!(ids(&log.read(offsets[2], 1).expect("batches")), expected[2..3], "{name}");
    assert_eq!(
        ids(&log.read(offsets[1] + 1, 1).expect("batches")),
        expected[2..3],
        "{name}: from where no row is, too"
    );
    assert!(log.read(next, 1).expect("nothing").is_empty(), "{name}");
}

fn offsets_count_rows(name: &str, log: &Arc<dyn StreamLog>) {
    assert_eq!(append(log, events("a", &["1", "2"])).offsets[0], 0..2, "{name}");
    assert_eq!(append(log, events("a", &["2", "3", "-x"])).offsets[0], 2..4, "{name}: duplicates take none");
    assert_eq!(append(log, events("a", &["4"])).offsets[0], 4..5, "{name}");
    assert_eq!((log.bounds().first, log.bounds().next), (0, 5), "{name}");
}

fn rows_come_back_as_they_were(name: &str, log: &Arc<dyn StreamLog>) {
    let sent = batch(Dataset::SecurityEvents, &["a", "b", "a"], &["1", "22", "333"]);
    let offsets = append(log, sent.clone()).offsets;
    append(log, events("a", &["tail"]));
    let read = log.read(offsets[0].start, 1).expect("a batch");
    assert_eq!(read[0].rows, sent.rows, "{name}");
}

fn duplicates_are_told_by_their_place_and_stored_once(name: &str, log: &Arc<dyn StreamLog>) {
    append(log, events("a", &["1", "2"]));
    let mixed = Append {
        batches: vec![events("a", &["2", "3", "3"]), events("b", &["2"]), events("a", &["1", "-x", "-x"])],
        ack: Ack::Disk,
    };
    let answer = log.append(mixed).blocking_recv().expect("an answer").expect("stored");
    assert_eq!(answer.duplicates, [(0, 0), (0, 2), (2, 0)], "{name}");
    assert_eq!(lengths(&answer), [1, 1, 2], "{name}");
    let all = whole(name, log);
    let stored: Vec<&str> = all.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(stored, ["1", "2", "3", "2", "-x", "-x"], "{name}");
    let again = append(log, events("a", &["1", "3"]));
    assert_eq!(again.duplicates.len(), 2, "{name}");
    assert_eq!(lengths(&again), [0], "{name}");
    assert_eq!(whole(name, log), all, "{name}");
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
    assert_eq!(whole(name, log).len(), 50, "{name}");
}

fn a_follower_sees_every_row_once_in_order(name: &str, log: &Arc<dyn StreamLog>) {
    const APPENDS: usize = 40;
    let mut acknowledged: Vec<(Offset, String)> = Vec::new();
    let seen: Vec<(Offset, String)> = std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let (deadline, mut from, mut seen) = (Instant::now() + PATIENCE, 0, Vec::new());
            while seen.len() < 2 * APPENDS * 3 && Instant::now() < deadline {
                let reading = read_on(&**log, from, 2_000).expect("batches");
                seen.extend(ids(&reading.batches));
                from = reading.next;
                if reading.batches.is_empty() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            seen
        });
        let write = |writer: usize| {
            scope.spawn(move || {
                let mut acknowledged = Vec::new();
                for nth in 0..APPENDS {
                    let names: Vec<String> = (0..3).map(|row| format!("{writer}.{nth}.{row}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let offsets = append(log, events("a", &names)).offsets;
                    acknowledged.extend(offsets[0].clone().zip(names.iter().map(|name| (*name).to_owned())));
                }
                acknowledged
            })
        };
        let writers = [write(0), write(1)];
        acknowledged.extend(writers.into_iter().flat_map(|writer| writer.join().expect("no panic")));
        follower.join().expect("no panic")
    });
    acknowledged.sort_unstable();
    assert_eq!(seen, acknowledged, "{name}");
}

fn what_was_forgotten_says_so_and_the_rest_is_kept(name: &str, log: &Arc<dyn StreamLog>) {
    let offsets: Vec<Offset> =
        (0..100).flat_map(|id| append(log, events("a", &[&format!("{id:0>400}")])).offsets).flatten().collect();
    log.forget(offsets[60]).expect("forgotten");
    let first = log.bounds().first;
    assert!(first <= offsets[60], "{name}: {first}");
    if first > offsets[0] {
        let asked = first - 1;
        assert!(matches!(log.read(asked, 1), Err(PipelineError::Forgotten { .. })), "{name}");
    }
    let rest: Vec<Offset> = offsets.iter().copied().filter(|offset| *offset >= first).collect();
    let read: Vec<Offset> = whole(name, log).into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(read, rest, "{name}");
    log.forget(offsets[99] + 900).expect("forgotten");
    let new = append(log, events("a", &["new"])).offsets;
    assert!(new[0].start > offsets[99], "{name}: offsets go on");
}

fn watchers_see_every_commit_also_one_in_memory(name: &str, log: &Arc<dyn StreamLog>) {
    let mut watch = log.watch();
    let append = Append { batches: vec![events("a", &["1"])], ack: Ack::Memory };
    let offsets = log.append(append).blocking_recv().expect("an answer").expect("taken").offsets;
    assert_eq!(offsets[0].end - offsets[0].start, 1, "{name}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let seen = async {
        let seen = watch.wait_for(|bounds| bounds.next == offsets[0].end);
        tokio::time::timeout(PATIENCE, seen).await.expect("in time").map(|bounds| *bounds)
    };
    assert_eq!(runtime.block_on(seen).expect("a change").next, offsets[0].end, "{name}");
}

fn empty_appends_and_wrong_keys_are_answered(name: &str, log: &Arc<dyn StreamLog>) {
    let before = log.bounds();
    let empty = log.append(Append::default()).blocking_recv().expect("an answer").expect("nothing to store");
    assert!(empty.offsets.is_empty(), "{name}");
    let no_rows = append(log, events("a", &[]));
    assert_eq!(no_rows.offsets[0], before.next..before.next, "{name}");
    let mut wrong = events("a", &["1", "2"]);
    wrong.keys.pop();
    let answer = log.append(one(wrong)).blocking_recv().expect("an answer");
    assert!(matches!(answer, Err(AppendError::Failed(_))), "{name}");
    assert_eq!(log.bounds(), before, "{name}");
}
