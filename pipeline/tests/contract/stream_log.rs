//! What every stream log promises, and what only those do that count rows or that outlive their process.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_events::Dataset;
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{
    Ack, Append, AppendError, Appended, EventBatch, LogBatch, LogReader, Offset, PipelineError, StreamLog,
};

use super::rows::{batch, events, ids, one};

/// How long a row that was acknowledged may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

type Promise = fn(&str, &Arc<dyn StreamLog>);

type PromiseToReaders = fn(&str, &Told);

/// A log, and where its rows of a dataset are read: the log itself, or what is told of it elsewhere.
pub struct Told {
    pub log: Arc<dyn StreamLog>,
    pub reader: Arc<dyn LogReader>,
    pub dataset: Dataset,
}

/// Opens a log again as the process after this one would; the one before is dropped by then.
pub type Open = Box<dyn Fn() -> Arc<dyn StreamLog>>;

/// Holds a kind of log to its promises. `fresh` makes an empty one, which may be asked to forget in steps of at most 60 rows of
/// 400 bytes (or forgets nothing when it is asked to), and remembers at least 1,000 keys. `name` says in a failure which log it
/// was. Offsets may have gaps between appends.
pub fn check(name: &str, mut fresh: impl FnMut() -> Arc<dyn StreamLog>) {
    let promises: [(&str, Promise); 6] = [
        ("offsets rise and batches come back in order", offsets_rise_and_batches_come_back_in_order),
        ("duplicates are told by their place and stored once", duplicates_are_told_by_their_place_and_stored_once),
        ("duplicates in flight at once are stored once", duplicates_in_flight_at_once_are_stored_once),
        ("what was forgotten says so and the rest is kept", what_was_forgotten_says_so_and_the_rest_is_kept),
        ("watchers see every commit, also one in memory", watchers_see_every_commit_also_one_in_memory),
        ("empty appends and wrong keys are answered", empty_appends_and_wrong_keys_are_answered),
    ];
    each(name, &promises, &mut fresh);
    check_reader(name, || {
        let log = fresh();
        Told { reader: log.clone(), log, dataset: Dataset::SecurityEvents }
    });
}

/// Holds to its promises whoever reads a log. `fresh` makes an empty log and one that reads it, which may drop what is older than
/// the last 20 batches.
pub fn check_reader(name: &str, mut fresh: impl FnMut() -> Told) {
    let promises: [(&str, PromiseToReaders); 4] = [
        ("batches are read as they were written", batches_are_read_as_they_were_written),
        ("a read takes as much as it may, and no less than a batch", a_read_takes_as_much_as_it_may),
        ("a follower sees every row once, in order", a_follower_sees_every_row_once_in_order),
        ("what is read from the beginning is all, or says how much is gone", the_beginning_is_there_or_said_to_be_gone),
    ];
    for (promise, check) in promises {
        check(&format!("{name}: {promise}"), &fresh());
    }
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

impl Told {
    /// Appends a batch of a tenant, and waits until the reader has it.
    fn append(&self, org: &str, ids: &[&str]) -> (Range<Offset>, EventBatch) {
        let sent = batch(self.dataset, &vec![org; ids.len()], ids);
        let offsets = append(&self.log, sent.clone()).offsets[0].clone();
        self.reach(offsets.end);
        (offsets, sent)
    }

    /// Waits until the reader's end is where the log's is.
    fn reach(&self, end: Offset) {
        let mut watch = self.reader.watch();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let seen = async {
            tokio::time::timeout(PATIENCE, watch.wait_for(|bounds| bounds.next >= end))
                .await
                .map(|seen| seen.map(|bounds| *bounds))
        };
        let bounds = runtime.block_on(seen).expect("in time").expect("a change");
        assert_eq!(bounds.next, end, "not past what was written");
    }
}

/// All rows of a log, read as a follower does.
fn whole(name: &str, log: &Arc<dyn StreamLog>) -> Vec<(Offset, String)> {
    ids(&batches(name, &**log, 1))
}

/// All batches of a log, in reads of so many bytes.
fn batches(name: &str, log: &dyn LogReader, bytes_max: usize) -> Vec<Arc<LogBatch>> {
    let end = log.bounds().next;
    let (mut from, mut all) = (log.bounds().first, Vec::new());
    while from < end {
        let reading = read_on(log, from, bytes_max).expect("batches");
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
    let all = batches(name, &**log, usize::MAX);
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

fn batches_are_read_as_they_were_written(name: &str, told: &Told) {
    let sent = batch(told.dataset, &["a", "b", "a"], &["1", "22", "333"]);
    let offsets = append(&told.log, sent.clone()).offsets[0].clone();
    let (tail, after) = told.append("a", &["tail"]);
    let read = batches(name, &*told.reader, usize::MAX);
    let found: Vec<_> = read.iter().map(|batch| (batch.offset, batch.dataset, &batch.rows)).collect();
    let expected = [(offsets.start, told.dataset, &sent.rows), (tail.start, told.dataset, &after.rows)];
    assert_eq!(found, expected, "{name}");
}

fn a_read_takes_as_much_as_it_may(name: &str, told: &Told) {
    let (first, _) = told.append("a", &["1", "2"]);
    let (second, _) = told.append("b", &["3"]);
    let expected =
        [(first.start, "1"), (first.start + 1, "2"), (second.start, "3")].map(|(at, id)| (at, id.to_owned()));
    let read = |from, bytes_max| ids(&told.reader.read(from, bytes_max).expect("batches"));
    assert_eq!(read(first.start, 1), expected[..2], "{name}: one batch at least");
    assert_eq!(read(first.start + 1, 1), expected[..2], "{name}: a batch is not split");
    assert_eq!(read(second.start, 1), expected[2..], "{name}");
    assert_eq!(ids(&batches(name, &*told.reader, usize::MAX)), expected, "{name}");
    assert!(read(second.end, 1).is_empty(), "{name}: nothing after the end");
}

fn the_beginning_is_there_or_said_to_be_gone(name: &str, told: &Told) {
    const BATCHES: usize = 200;
    let mut written: Vec<(Offset, String)> = Vec::new();
    for nth in 0..BATCHES {
        let rows = [nth.to_string(), format!("{nth} too")];
        let sent = batch(told.dataset, &["a", "a"], &[&rows[0], &rows[1]]);
        written.extend(append(&told.log, sent).offsets[0].clone().zip(rows));
    }
    let end = written.last().expect("rows").0 + 1;
    told.reach(end);
    let (mut from, mut gone, mut seen) = (written[0].0, 0, Vec::new());
    while from < end {
        let reading = read_on(&*told.reader, from, 2_000).expect("batches");
        assert!(reading.next > from, "{name}: {reading:?}");
        assert!(seen.is_empty() || reading.forgotten == 0, "{name}: nothing goes from the middle: {reading:?}");
        gone += reading.forgotten;
        seen.extend(ids(&reading.batches));
        from = reading.next;
    }
    let there = seen.len();
    assert!(there >= 20 * 2, "{name}: the last 20 batches are there, not {there} rows");
    assert_eq!(seen, written[written.len() - there..], "{name}: the newest, without a hole");
    assert_eq!(gone, seen[0].0 - written[0].0, "{name}: what is gone is counted");
    if gone > 0 {
        let bounds = told.reader.bounds();
        assert_eq!((bounds.first, bounds.next), (seen[0].0, end), "{name}");
        let asked = told.reader.read(bounds.first - 1, 1);
        assert!(
            matches!(asked, Err(PipelineError::Forgotten { first, .. }) if first == bounds.first),
            "{name}: {asked:?}"
        );
    }
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

fn a_follower_sees_every_row_once_in_order(name: &str, told: &Told) {
    const APPENDS: usize = 40;
    let Told { log, reader, dataset } = told;
    let mut acknowledged: Vec<(Offset, String)> = Vec::new();
    let (seen, gone) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let (deadline, mut from, mut seen, mut gone) = (Instant::now() + PATIENCE, 0, Vec::new(), 0);
            while seen.len() + gone < 2 * APPENDS * 3 && Instant::now() < deadline {
                let reading = read_on(&**reader, from, 2_000).expect("batches");
                seen.extend(ids(&reading.batches));
                gone += reading.forgotten as usize;
                from = reading.next;
                if reading.batches.is_empty() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            (seen, gone)
        });
        let write = |writer: usize| {
            scope.spawn(move || {
                let mut acknowledged = Vec::new();
                for nth in 0..APPENDS {
                    let names: Vec<String> = (0..3).map(|row| format!("{writer}.{nth}.{row}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let offsets = append(log, batch(*dataset, &["a"; 3], &names)).offsets;
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
    // One that drops what is old may do so before the follower was there, and says so.
    assert_eq!(seen.len() + gone, acknowledged.len(), "{name}: {gone} rows are gone");
    if gone > 0 {
        acknowledged.retain(|row| seen.contains(row));
    }
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
