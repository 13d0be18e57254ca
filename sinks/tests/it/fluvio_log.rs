//! The log of many machines on a real cluster: the contract of a log, several nodes that write the same, readers that fall behind,
//! a broker that dies. Without a cluster these tests say that they were not run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_events::{Alert, Dataset, alerts_to_batch};
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{Ack, AppendError, EventBatch, Health, Offset, PipelineError, StreamLog};
use tidegate_sinks::SinksError;
use tidegate_sinks::fluvio::{FluvioFailure, FluvioLog, FluvioLogConfig, FluvioLogParts, LogTail, LogTopic};
use tokio::runtime::{Builder, Runtime};

use crate::contract::rows::{events, ids, one};
use crate::contract::stream_log::{Open, check, check_lasting};
use crate::fluvio_world::{Cluster, disturb, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// Topics of a prefix of their own, of which each log takes the next partition.
struct World {
    runtime: Arc<Runtime>,
    config: FluvioLogConfig,
    next: u32,
    // Removed last.
    cluster: Cluster,
}

impl World {
    fn find(suite: &str, partitions: u32) -> Option<Self> {
        Self::of(Cluster::find(suite)?, partitions)
    }

    fn of(cluster: Cluster, partitions: u32) -> Option<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let config = FluvioLogConfig {
            address: cluster.config().address,
            prefix: cluster.prefix.clone(),
            partitions,
            reply_ms_max: 2_000,
            partition_bytes_max: 1 << 30,
            ..FluvioLogConfig::default()
        };
        assert_eq!(runtime.block_on(FluvioLog::prepare(&config)).expect("topics"), partitions);
        Some(Self { runtime: Arc::new(runtime), config, next: 0, cluster })
    }

    fn partition(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Opens a log as a node of its own would.
    fn open(&self, partition: u32, follow: Option<Offset>) -> Arc<dyn StreamLog> {
        open(&self.runtime, &self.config, partition, follow)
    }
}

fn open(runtime: &Runtime, config: &FluvioLogConfig, partition: u32, follow: Option<Offset>) -> Arc<dyn StreamLog> {
    open_with(runtime, config, partition, follow)
}

fn open_with(runtime: &Runtime, config: &FluvioLogConfig, partition: u32, follow: Option<Offset>) -> Arc<FluvioLog> {
    let stage = Health::default().stage("log");
    let parts = FluvioLogParts { topic: LogTopic::Log, partition, follow, seen: 0, tail: LogTail::default(), stage };
    Arc::new(runtime.block_on(FluvioLog::open(config, parts)).expect("a log"))
}

/// All rows from an offset on, up to the end as it is now.
fn whole(log: &Arc<dyn StreamLog>, from: Offset) -> Vec<(Offset, String)> {
    let (end, mut from, mut all) = (log.bounds().next, from, Vec::new());
    while from < end {
        let reading = read_on(&**log, from, 4_000).expect("batches");
        all.extend(ids(&reading.batches));
        from = reading.next;
    }
    all
}

#[test]
fn the_log_in_fluvio_keeps_the_contract_of_a_log() {
    let Some(mut world) = World::find("the contract of a log, held by Fluvio", 16) else { return };
    check("fluvio", || {
        let partition = world.partition();
        world.open(partition, Some(0))
    });
    // A cache of almost nothing, so that all who follow fall behind it.
    let (runtime, mut config) = (world.runtime.clone(), world.config.clone());
    (config.cache_bytes_max, config.record_bytes_max) = (1, 4_096);
    check_lasting("fluvio, behind its cache", || -> Open {
        let (runtime, config, partition) = (runtime.clone(), config.clone(), world.partition());
        Box::new(move || open(&runtime, &config, partition, Some(0)))
    });
}

#[test]
fn what_several_nodes_wrote_is_there_once_to_every_reader_wherever_it_begins() {
    let Some(mut world) = World::find("several nodes that write to one log in Fluvio", 1) else { return };
    world.config.record_bytes_max = 8_192;
    let partition = world.partition();
    let nodes: Vec<_> = (0..2).map(|_| world.open(partition, None)).collect();
    // Each event is sent to both, in requests that overlap in another way on each.
    let acknowledged: BTreeSet<String> = std::thread::scope(|scope| {
        let send = |(nth, node): (usize, &Arc<dyn StreamLog>)| {
            let node = node.clone();
            scope.spawn(move || {
                let step = 40 + 17 * nth;
                let mut sent = BTreeSet::new();
                for start in (0..2_000usize).step_by(step) {
                    let names: Vec<String> = (start..2_000.min(start + step)).map(|at| format!("e{at}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let answer = node.append(one(events("a", &names))).blocking_recv().expect("an answer");
                    let appended = answer.expect("stored");
                    assert_eq!((appended.ack, appended.duplicates.len()), (Some(Ack::Broker), 0));
                    sent.extend(names.into_iter().map(str::to_owned));
                }
                sent
            })
        };
        let senders: Vec<_> = nodes.iter().enumerate().map(send).collect();
        senders.into_iter().flat_map(|sender| sender.join().expect("no panic")).collect()
    });
    let reader = world.open(partition, Some(0));
    let all = whole(&reader, 0);
    let distinct: BTreeSet<String> = all.iter().map(|(_, id)| id.clone()).collect();
    assert_eq!((all.len(), &distinct), (2_000, &acknowledged), "each once");
    assert!(all.is_sorted_by(|a, b| a.0 < b.0));
    for part in [3, 7] {
        let (from, _) = all[all.len() * part / 10];
        let later = world.open(partition, Some(from));
        let expected: Vec<_> = all.iter().filter(|(offset, _)| *offset >= from).cloned().collect();
        assert_eq!(whole(&later, from), expected, "begun after {part} tenths");
        assert_eq!(whole(&later, 0), all, "and read from before where it began");
    }
    let sent_again = nodes[0].append(one(events("a", &["e1999", "new"]))).blocking_recv().expect("an answer");
    assert_eq!(sent_again.expect("stored").duplicates, [(0, 0)], "a node knows what it wrote itself");
}

#[test]
fn alerts_that_are_raised_again_are_there_once_and_are_numbered_by_their_offset() {
    let Some(mut world) = World::find("alerts in a log in Fluvio", 1) else { return };
    let partition = world.partition();
    let alert = |id: &str| Alert::new(id, "acme");
    for names in [["a", "b"], ["b", "c"]] {
        // Another worker each time.
        let log = world.open(partition, None);
        let rows = alerts_to_batch(&names.map(alert), 77, 3).expect("a batch");
        let batch = EventBatch { dataset: Dataset::Alerts, rows, keys: Vec::new() };
        log.append(one(batch)).blocking_recv().expect("an answer").expect("stored");
    }
    let log = world.open(partition, Some(0));
    let mut found = Vec::new();
    let mut from = 0;
    while from < log.bounds().next {
        let reading = read_on(&*log, from, 1).expect("batches");
        for batch in &reading.batches {
            use arrow::array::AsArray;
            use arrow::datatypes::Int64Type;
            let ids = batch.rows.column_by_name("alert_id").expect("ids").as_string::<i32>();
            let seqs = batch.rows.column_by_name("seq").expect("seqs").as_primitive::<Int64Type>();
            for (row, (id, seq)) in ids.iter().zip(seqs).enumerate() {
                assert_eq!(seq, Some((batch.offset + row as u64) as i64));
                found.push(id.expect("an id").to_owned());
            }
        }
        from = reading.next;
    }
    assert_eq!(found, ["a", "b", "c"]);
}

#[test]
fn a_broker_that_dies_loses_nothing_that_was_acknowledged_and_doubles_nothing() {
    let suite = "a log in Fluvio whose broker dies";
    let Some(mut world) = Cluster::alone(suite).and_then(|cluster| World::of(cluster, 1)) else { return };
    let partition = world.partition();
    let (log, reader) = (world.open(partition, None), world.open(partition, Some(0)));
    let started = Instant::now();
    let (mut acknowledged, mut issued) = (BTreeSet::new(), BTreeSet::new());
    let (mut refused, mut nth, mut killed, mut up) = (0, 0, false, false);
    while started.elapsed() < Duration::from_secs(20) {
        let at = started.elapsed();
        if at > Duration::from_secs(4) && !killed {
            disturb("kill");
            killed = true;
        }
        if at > Duration::from_secs(8) && !up {
            disturb("start");
            up = true;
        }
        let names: Vec<String> = (nth..nth + 50).map(|at| format!("e{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        issued.extend(names.iter().map(|name| (*name).to_owned()));
        match log.append(one(events("a", &names))).blocking_recv().expect("an answer") {
            Ok(_) => {
                acknowledged.extend(names.into_iter().map(str::to_owned));
                nth += 50;
            }
            // Sent again, as a client does.
            Err(AppendError::Failed(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0, "it was noticed");
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    let (mut from, mut all) = (0, Vec::new());
    until("the reader has all", PATIENCE, || {
        if let Ok(reading) = read_on(&*reader, from, 1 << 20) {
            all.extend(ids(&reading.batches).into_iter().map(|(_, id)| id));
            from = reading.next;
        }
        acknowledged.len() <= all.len()
    });
    let distinct: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(distinct.len(), all.len(), "each once");
    assert!(acknowledged.is_subset(&distinct) && distinct.is_subset(&issued), "{refused} refused");
    println!("{} acknowledged, {refused} requests refused", acknowledged.len());
}

/// An append of one row, and so a record, for each of these numbers.
fn append_each(log: &Arc<dyn StreamLog>, numbers: std::ops::Range<u32>) {
    for at in numbers {
        let answer = log.append(one(events("a", &[&format!("e{at}")]))).blocking_recv().expect("an answer");
        answer.expect("stored");
    }
}

#[test]
fn records_that_a_broker_lost_are_told_of_while_it_is_read_and_after_a_restart() {
    let Some(mut world) = World::find("a log in Fluvio whose broker lost its newest records", 1) else { return };
    let (partition, topic) = (world.partition(), world.config.topic(LogTopic::Log));
    append_each(&world.open(partition, None), 0..10);
    let reader = open_with(&world.runtime, &world.config, partition, Some(0));
    let shared: Arc<dyn StreamLog> = reader.clone();
    let read = whole(&shared, 0);
    assert_eq!(read.len(), 10);
    let end = shared.bounds().next;
    let lost_from =
        |tail: &LogTail| world.runtime.block_on(FluvioLog::lost_from(&world.config, LogTopic::Log, partition, tail));
    // As the database keeps it.
    let tail = LogTail::decode(&reader.tail(end).encode()).expect("a tail");
    assert_eq!(lost_from(&tail).expect("looked at"), None);

    world.cluster.lose_records(&topic, 6, || {
        until("the topic is made anew", PATIENCE, || world.runtime.block_on(FluvioLog::prepare(&world.config)).is_ok());
    });
    assert_eq!(lost_from(&tail).expect("looked at"), Some(4 << 16), "it ends there");
    assert_eq!(lost_from(&reader.tail(3 << 16)).expect("looked at"), None, "those before are the same");
    until("who reads it is told", PATIENCE, || reader.has_lost());
    let refused = shared.append(one(events("a", &["refused"]))).blocking_recv().expect("an answer");
    assert!(matches!(&refused, Err(AppendError::Failed(told)) if told.contains("lost records")), "{refused:?}");

    // Others are where they were.
    append_each(&world.open(partition, None), 20..32);
    assert_eq!(lost_from(&tail).expect("looked at"), Some(4 << 16), "it has gone on");
    let anew: Arc<dyn StreamLog> = open_with(&world.runtime, &world.config, partition, Some(4 << 16));
    let expected: Vec<String> = (20..32).map(|at| format!("e{at}")).collect();
    assert_eq!(whole(&anew, 4 << 16).into_iter().map(|(_, id)| id).collect::<Vec<_>>(), expected);
    // A tail that does not reach back that far.
    let mut short = tail.encode();
    short.drain(8..8 + 4 * 8);
    let short = LogTail::decode(&short).expect("a tail");
    let told = lost_from(&short).expect_err("it is not known");
    assert!(matches!(told, SinksError::Fluvio(FluvioFailure::Lost { from: None, read: 10, .. })), "{told}");
}

#[test]
fn who_fell_behind_is_not_handed_records_that_have_the_numbers_of_lost_ones() {
    let Some(mut world) = World::find("a reader behind a log in Fluvio whose broker lost its newest records", 1) else {
        return;
    };
    let (partition, topic) = (world.partition(), world.config.topic(LogTopic::Log));
    append_each(&world.open(partition, None), 0..10);
    let config = FluvioLogConfig { cache_bytes_max: 1, ..world.config.clone() };
    let reader = open_with(&world.runtime, &config, partition, Some(0));
    let shared: Arc<dyn StreamLog> = reader.clone();
    assert_eq!(whole(&shared, 0).len(), 10);
    let end = shared.bounds().next;
    append_each(&world.open(partition, None), 10..11);
    // It has no room for more: nothing is asked of the broker any more.
    until("the next record is read ahead", PATIENCE, || shared.bounds().next > end);
    world.cluster.lose_records(&topic, 6, || {
        until("the topic is made anew", PATIENCE, || world.runtime.block_on(FluvioLog::prepare(&world.config)).is_ok());
    });
    for others in [20..22, 22..40] {
        append_each(&world.open(partition, None), others);
        for from in [3 << 16, 5 << 16, 8 << 16] {
            let told = read_on(&*shared, from, 1 << 20).expect_err("neither others nor nothing");
            let PipelineError::Io { source, .. } = told else { panic!("{told}") };
            assert!(source.to_string().contains("has lost records"), "{source}");
        }
        assert!(reader.has_lost());
    }
}
