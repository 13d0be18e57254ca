//! The alert feed of many machines: alerts in partitions, whose offsets have gaps, told by several nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_events::{Dataset, Level, alerts_to_batch};
use tidegate_pipeline::{
    Append, AppendError, AppendReply, LogBatch, LogBounds, LogReader, Offset, PipelineError, StreamLog,
};
use tidegate_sinks::feed::FeedConfig;
use tidegate_sinks::fluvio::partition_of;
use tokio::sync::{oneshot, watch};

use crate::feed_door::{Door, alert};

/// Offsets of a record.
const RECORD: u64 = 1 << 16;

/// A partition: batches as records, each with offsets of its own.
#[derive(Default)]
struct Records {
    batches: Mutex<Vec<Arc<LogBatch>>>,
    bounds: watch::Sender<LogBounds>,
}

impl Records {
    /// Adds records of alerts of these tenants, seen all at once; the `seq` of the first alert of each.
    fn push(&self, records: &[&[&str]]) -> Vec<u64> {
        let mut batches = self.batches.lock();
        let mut firsts = Vec::new();
        for orgs in records {
            let offset = batches.len() as u64 * RECORD;
            let alerts: Vec<_> = orgs.iter().map(|org| alert(org, Level::High)).collect();
            let rows = alerts_to_batch(&alerts, offset, 1).expect("a batch");
            batches.push(Arc::new(LogBatch { offset, dataset: Dataset::Alerts, rows }));
            firsts.push(offset);
        }
        let next = batches.last().map_or(0, |last| last.next_offset());
        self.bounds.send_replace(LogBounds { first: 0, next });
        firsts
    }
}

impl LogReader for Records {
    fn read(&self, from: Offset, _bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let batches = self.batches.lock();
        Ok(batches.iter().filter(|batch| batch.next_offset() > from).take(2).cloned().collect())
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.bounds.subscribe()
    }
}

impl StreamLog for Records {
    fn append(&self, _: Append) -> AppendReply {
        let (reply, receiver) = oneshot::channel();
        reply.send(Err(AppendError::Closed)).ok();
        receiver
    }

    fn forget(&self, _: Offset) -> Result<(), PipelineError> {
        Ok(())
    }
}

/// Three partitions, and a node that tells their alerts.
async fn node(partitions: &[Arc<Records>], config: FeedConfig) -> Door {
    Door::open_in_partitions(partitions.iter().map(|log| log.clone() as Arc<dyn StreamLog>).collect(), config).await
}

#[tokio::test]
async fn each_tenant_follows_its_partition_at_any_node_each_alert_once_and_in_order() {
    let partitions: [Arc<Records>; 3] = Default::default();
    let nodes = [node(&partitions, FeedConfig::default()).await, node(&partitions, FeedConfig::default()).await];
    let tenants = ["acme", "beta", "coro", "delta", "echo"];
    let used: std::collections::BTreeSet<usize> = tenants.iter().map(|org| partition_of(org, 3)).collect();
    assert!(used.len() > 1, "the tenants are spread");
    let mut live = nodes[0].follow("").await;
    nodes[0].subscribers(1).await;
    let mut raised: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for round in 0..20usize {
        for org in tenants {
            let mut record = vec![org; 1 + round % 3];
            // A neighbour in the same partition.
            record.push("nobody");
            let first = partitions[partition_of(org, 3)].push(&[&record])[0];
            raised.entry(org).or_default().extend(first..first + 1 + round as u64 % 3);
        }
        tokio::task::yield_now().await;
    }
    let acme = &raised["acme"];
    assert_eq!(&live.seqs(acme.len()).await, acme);
    live.silent().await;
    for (at, org) in tenants.into_iter().enumerate() {
        let wanted = &raised[org];
        // From the first one at one node, and on from the middle at the other.
        let mut whole = nodes[at % 2].follow_as(org, "?after=-1", &[]).await.expect("a handshake");
        assert_eq!(&whole.seqs(wanted.len()).await, wanted, "{org}");
        let (seen, rest) = wanted.split_at(wanted.len() / 2);
        let after = format!("?after={}", seen.last().expect("a seq"));
        let mut on = nodes[1 - at % 2].follow_as(org, &after, &[]).await.expect("a handshake");
        assert_eq!(on.seqs(rest.len()).await, rest, "{org}");
        on.silent().await;
    }
}

#[tokio::test]
async fn gaps_between_records_are_no_lag() {
    let partitions: [Arc<Records>; 1] = Default::default();
    let config = FeedConfig { lag_rows_max: 3, ..FeedConfig::default() };
    let door = node(&partitions, config).await;
    let mut follower = door.follow("").await;
    door.subscribers(1).await;
    for _ in 0..10 {
        let seqs = partitions[0].push(&[&["acme"], &["nobody"], &["acme"]]);
        assert_eq!(follower.seqs(2).await, [seqs[0], seqs[2]]);
    }
    // It is behind once there are more records than that.
    let seqs = partitions[0].push(&[&["acme"], &["acme", "acme"], &["nobody"], &["acme"], &["acme"]]);
    let gap = follower.frame().await;
    assert_eq!((&gap["type"], &gap["missed"]), (&"gap".into(), &5.into()), "{gap}");
    let after = gap["resume_after"].as_u64().expect("a seq");
    let mut again = door.follow(&format!("?after={after}")).await;
    assert_eq!(again.seqs(5).await, [seqs[0], seqs[1], seqs[1] + 1, seqs[3], seqs[4]]);
}

#[tokio::test]
async fn what_another_node_has_told_is_waited_for_and_what_nobody_has_is_refused() {
    let (ahead, behind): ([Arc<Records>; 1], [Arc<Records>; 1]) = Default::default();
    let slow = node(&behind, FeedConfig::default()).await;
    let told = *ahead[0].push(&[&["acme"], &["acme"]]).last().expect("a seq");
    behind[0].push(&[&["acme"]]);
    let after = format!("?after={told}");
    let (resumed, ()) = tokio::join!(slow.follow_as("acme", &after, &[]), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        behind[0].push(&[&["acme"], &["acme"]]);
    });
    assert_eq!(resumed.expect("a handshake").seqs(1).await, [2 * RECORD]);
    let started = Instant::now();
    let refused = slow.follow_as("acme", &format!("?after={}", 9 * RECORD), &[]).await;
    assert_eq!(refused.err(), Some(503), "it may still come");
    assert!(started.elapsed() >= Duration::from_secs(1));
    slow.subscribers(0).await;
}
