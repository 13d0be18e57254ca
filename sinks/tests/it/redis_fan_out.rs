//! Alerts of all nodes in the feed of each: order, resuming, and what a lost Redis does to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use redis::TypedCommands;
use serde_json::Value;
use tidegate_events::{Dataset, Level};
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{
    Delivery, DeliveryConfig, DeliveryHandle, DeliveryParts, Health, LogBatch, LogReader, OutputLog, Sink, deliver,
};
use tidegate_sinks::feed::{FeedConfig, Peer};
use tidegate_sinks::redis::{FanOutConfig, Redis, RedisConfig};
use tokio::runtime::{Handle, Runtime};

use crate::contract::rows::ids_of;
use crate::contract::sink::{Destination, check};
use crate::contract::stream_log::{Told, check_reader};
use crate::feed_door::{Door, Follower, read_until};
use crate::redis_streams::AnyLog;
use crate::redis_world::{Fault, FaultProxy, RedisServer};

/// A node with nothing but alerts.
struct Node {
    door: Door,
    health: Health,
    _delivery: DeliveryHandle,
}

impl Node {
    async fn start(name: &str, config: &RedisConfig) -> Self {
        Self::start_on(name, config, Arc::new(MemoryLog::new(16, 1 << 30))).await
    }

    async fn start_on(name: &str, config: &RedisConfig, log: Arc<MemoryLog>) -> Self {
        let redis = Redis::new(config).expect("a good configuration");
        let health = Health::default();
        let pace = DeliveryConfig { retry_ms_min: 20, retry_ms_max: 200, ..DeliveryConfig::default() };
        let output = Arc::new(OutputLog::new(Arc::new(MemoryLog::new(16, 1 << 20))));
        let parts = DeliveryParts {
            sink: Box::new(redis.alerts_out(log.clone(), name)),
            log: log.clone(),
            output,
            config: pace,
            stage: health.stage("redis:fan-out"),
        };
        let delivery = deliver(parts, &Handle::current());
        let peers = redis.peers(name, health.stage("redis:peers"), &Handle::current());
        let door = Door::open_on(log, FeedConfig::default(), None, Some(peers)).await;
        Self { door, health, _delivery: delivery }
    }

    fn detail(&self) -> String {
        self.health.details().into_iter().map(|(_, detail)| detail).collect()
    }

    /// Raises `count` batches of an alert of the tenant and one of another.
    async fn raise(&self, count: usize) {
        for _ in 0..count {
            self.door.raise(&[("acme", Level::High), ("umbrella", Level::Low)]).await;
        }
    }
}

/// What a client has seen: the seqs of each node, and where it resumes.
#[derive(Default, Clone)]
struct Seen {
    seqs: BTreeMap<String, Vec<u64>>,
    /// Of which node a gap was told, and after how many of its alerts.
    gaps: Vec<(String, usize)>,
    after: String,
}

impl Seen {
    /// Takes frames until there are `count` alerts.
    async fn take(&mut self, follower: &mut Follower, count: usize) {
        while self.seqs.values().map(Vec::len).sum::<usize>() < count {
            let frame = follower.frame().await;
            self.after = frame["after"].as_str().unwrap_or_else(|| panic!("no position: {frame}")).to_owned();
            let node = frame["node"].as_str().expect("a node").to_owned();
            if frame["type"] == "gap" {
                assert_eq!(frame["missed"], Value::Null, "{frame}");
                let before = self.seqs.get(&node).map_or(0, Vec::len);
                self.gaps.push((node, before));
                continue;
            }
            let seq = frame["seq"].as_u64().expect("a seq");
            assert_eq!(frame["alert"]["seq"], seq, "{frame}");
            self.seqs.entry(node).or_default().push(seq);
        }
    }

    fn query(&self) -> String {
        format!("?after={}", self.after)
    }

    /// Every alert of the tenant once, in the order of its node: the even seqs below `2 × count`.
    fn must_be_whole(&self, counts: &[(&str, u64)]) {
        for (node, count) in counts {
            let expected: Vec<u64> = (0..*count).map(|at| at * 2).collect();
            assert_eq!(self.seqs.get(*node).cloned().unwrap_or_default(), expected, "of {node}");
        }
        assert_eq!(self.gaps, []);
    }

    /// Takes frames until the last alert of a node, which misses none without being told of a gap at that very place.
    async fn take_to(&mut self, follower: &mut Follower, node: &str, last: u64) {
        while self.seqs[node].last() != Some(&last) {
            let count = self.seqs.values().map(Vec::len).sum::<usize>() + 1;
            self.take(follower, count).await;
        }
        let seqs = &self.seqs[node];
        let expected = |at: usize| if at == 0 { 0 } else { seqs[at - 1] + 2 };
        let missing = (0..seqs.len()).filter(|&at| seqs[at] != expected(at)).map(|at| (node.to_owned(), at));
        assert_eq!(self.gaps, missing.collect::<Vec<_>>(), "{seqs:?}");
    }
}

pub fn config(url: &str) -> RedisConfig {
    let fan_out = FanOutConfig { enabled: true, ..FanOutConfig::default() };
    RedisConfig { fan_out, ..crate::redis_world::config(url) }
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_any_node_sees_the_alerts_of_all_and_resumes_at_any() {
    let server = RedisServer::start(&[]);
    tell(&config(&server.url())).await;
    assert_eq!(server.denied(), "");
}

/// Three nodes that tell each other's alerts by way of this Redis.
pub async fn tell(config: &RedisConfig) {
    let (a, b) = (Node::start("a", config).await, Node::start("b", config).await);
    let (mut of_a, mut of_b) = (a.door.follow("?after=-1").await, b.door.follow("?after=-1").await);
    let mut other = a.door.follow_as("nobody", "?after=-1", &[]).await.expect("a handshake");
    let (mut seen_a, mut seen_b) = (Seen::default(), Seen::default());
    a.raise(5).await;
    b.raise(7).await;
    seen_a.take(&mut of_a, 12).await;
    seen_b.take(&mut of_b, 12).await;
    seen_a.must_be_whole(&[("a", 5), ("b", 7)]);
    seen_b.must_be_whole(&[("a", 5), ("b", 7)]);
    // The client of one goes on at the other, with what came meanwhile and what comes.
    drop(of_a);
    a.raise(3).await;
    b.raise(3).await;
    let mut at_b = b.door.follow(&seen_a.query()).await;
    seen_a.take(&mut at_b, 18).await;
    a.raise(1).await;
    seen_a.take(&mut at_b, 19).await;
    seen_a.must_be_whole(&[("a", 9), ("b", 10)]);
    // A third node that appears is seen by who is there, from its first alert on.
    let c = Node::start("c", config).await;
    c.raise(4).await;
    seen_a.take(&mut at_b, 23).await;
    seen_a.must_be_whole(&[("a", 9), ("b", 10), ("c", 4)]);
    // And it has the past of the others.
    let (mut of_c, mut seen_c) = (c.door.follow("?after=-1").await, Seen::default());
    seen_c.take(&mut of_c, 23).await;
    seen_c.must_be_whole(&[("a", 9), ("b", 10), ("c", 4)]);
    other.silent().await;
    // A filter that is changed holds for all nodes.
    at_b.say(r#"{"type":"filter","level":"critical"}"#).await;
    assert_eq!(at_b.frame().await["type"], "filter");
    c.raise(1).await;
    b.raise(1).await;
    at_b.silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_position_gets_what_comes() {
    let server = RedisServer::start(&[]);
    let config = config(&server.url());
    let (a, b) = (Node::start("a", &config).await, Node::start("b", &config).await);
    b.raise(3).await;
    let (mut all, mut seen) = (a.door.follow("?after=-1").await, Seen::default());
    seen.take(&mut all, 3).await;
    let mut live = a.door.follow("").await;
    live.silent().await;
    b.raise(1).await;
    let frame = live.frame().await;
    assert_eq!((&frame["node"], &frame["seq"]), (&"b".into(), &6.into()));
    assert_eq!(frame["after"], "a:-1,b:6");
    // Server-sent events carry the position as their id, which browsers repeat.
    let request = "GET /v2/alerts/stream?after=-1 HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
    let text = read_until(&mut a.door.raw(request).await, "id: a:-1,b:6\n").await;
    assert!(text.contains("id: a:-1,b:4\n"), "{text}");
    let request =
        "GET /v2/alerts/stream HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nlast-event-id: a:-1,b:4\r\n\r\n";
    let text = read_until(&mut a.door.raw(request).await, "id: a:-1,b:6\n").await;
    assert!(!text.contains("b:4\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_redis_delays_the_alerts_of_others_and_loses_none() {
    let mut server = RedisServer::start(&[]);
    let proxy = FaultProxy::to(server.port);
    let config = config(&proxy.url());
    let (a, b) = (Node::start("a", &config).await, Node::start("b", &config).await);
    let (mut of_a, mut seen) = (a.door.follow("?after=-1").await, Seen::default());
    a.raise(2).await;
    b.raise(2).await;
    seen.take(&mut of_a, 4).await;
    let (mut told_a, mut told_b) = (2, 2);
    for (name, fault) in [("hanging", Fault::Hanging), ("refused", Fault::Refused), ("killed", Fault::None)] {
        proxy.set(fault);
        if name == "killed" {
            // With everything that it had: there is nothing on its disk.
            server.kill();
        }
        a.raise(3).await;
        b.raise(3).await;
        (told_a, told_b) = (told_a + 3, told_b + 3);
        // A node's own alerts come whatever Redis does.
        seen.take(&mut of_a, (told_a + told_b - 3) as usize).await;
        until(&format!("{name}: told"), || a.detail().contains("the alerts of the other nodes do not come")).await;
        until(&format!("{name}: told"), || b.detail().contains("write failed")).await;
        // A client that comes meanwhile is served too.
        let mut late = a.door.follow(&format!("?after={}", (told_a - 1) * 2 - 1)).await;
        assert_eq!(late.frame().await["seq"], (told_a - 1) * 2, "{name}");
        proxy.set(Fault::None);
        if name == "killed" {
            server.run();
        }
        seen.take(&mut of_a, (told_a + told_b) as usize).await;
        seen.must_be_whole(&[("a", told_a), ("b", told_b)]);
        until(&format!("{name}: well again"), || a.detail().is_empty() && b.detail().is_empty()).await;
    }
    // What Redis lost for good is there again for who comes later.
    let (mut later, mut seen) = (a.door.follow("?after=-1").await, Seen::default());
    seen.take(&mut later, (told_a + told_b) as usize).await;
    seen.must_be_whole(&[("a", told_a), ("b", told_b)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_is_told_as_a_gap() {
    let server = RedisServer::start(&["--stream-node-max-entries", "5"]);
    let mut config = config(&server.url());
    config.fan_out = FanOutConfig { batches_max: 10, memory_bytes_max: 1, ..config.fan_out };
    let (a, b) = (Node::start("a", &config).await, Node::start("b", &config).await);
    let (mut of_a, mut seen) = (a.door.follow("?after=-1").await, Seen::default());
    b.raise(2).await;
    seen.take(&mut of_a, 2).await;
    b.raise(60).await;
    let last = || server.cli(&["XREVRANGE", "tidegate:alerts:b", "+", "-", "COUNT", "1"]).starts_with("124-0");
    until("published", last).await;
    // Who stayed has them all, unless they were trimmed before this node had read them.
    seen.clone().take_to(&mut of_a, "b", 122).await;
    drop(of_a);
    // Now this node has no more than the last in memory, and Redis a few: who comes back finds those.
    let mut back = a.door.follow(&seen.query()).await;
    seen.take_to(&mut back, "b", 122).await;
    assert_eq!(seen.gaps, [("b".to_owned(), 2)], "one gap, then every alert that is left");
    let after_gap = &seen.seqs["b"][2..];
    assert!(after_gap.len() >= 10 && after_gap.windows(2).all(|pair| pair[1] == pair[0] + 2), "{after_gap:?}");
    // Who resumes after the gap is not told of it again.
    let mut again = a.door.follow(&seen.query()).await;
    again.silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_again_publishes_nothing_twice() {
    let server = RedisServer::start(&[]);
    let config = config(&server.url());
    let a = Node::start("a", &config).await;
    let log = Arc::new(MemoryLog::new(16, 1 << 30));
    let (mut of_a, mut seen) = (a.door.follow("?after=-1").await, Seen::default());
    for start in 1..=3u64 {
        let b = Node::start_on("b", &config, log.clone()).await;
        b.raise(4).await;
        seen.take(&mut of_a, start as usize * 4).await;
    }
    seen.must_be_whole(&[("b", 12)]);
    of_a.silent().await;
    assert_eq!(log.bounds().next, 24);
    assert_eq!(server.ask(&["XLEN", "tidegate:alerts:b"]), redis::Value::Int(12));
}

/// The stream of a node's alerts, as the feeds of other nodes read it.
struct Published {
    server: Arc<RedisServer>,
    config: RedisConfig,
}

impl Destination for Published {
    fn sink(&self) -> Box<dyn Sink> {
        let log = AnyLog::new();
        let mut sink = Redis::new(&self.config).expect("a good configuration").alerts_out(log, "node-1");
        // It learns from the stream where it stands, with the first thing that it is given.
        let nothing = Delivery { batches: Vec::new(), next_offset: 0 };
        Handle::current().block_on(sink.write(nothing)).expect("a connection");
        Box::new(sink)
    }

    fn dataset(&self) -> Dataset {
        Dataset::Alerts
    }

    fn ids(&self) -> Vec<String> {
        let key = format!("{}:alerts:node-1", self.config.prefix);
        let stream = self.server.connection().xrange_all(key).expect("entries");
        let (mut seen, mut ids) = (0, Vec::new());
        for entry in stream.ids {
            let offset: u64 = entry.get("o").expect("where it begins");
            let bytes: Vec<u8> = entry.get("b").expect("its rows");
            let rows =
                StreamReader::try_new(bytes.as_slice(), None).expect("a stream").next().expect("one").expect("rows");
            let batch = LogBatch { offset, dataset: Dataset::Alerts, rows };
            // A reader takes what it has not seen yet.
            ids.extend(ids_of(&batch).into_iter().filter(|(offset, _)| *offset >= seen).map(|(_, id)| id));
            seen = batch.next_offset();
        }
        ids
    }
}

#[test]
fn alerts_for_other_nodes_keep_the_contract_of_a_sink() {
    let server = Arc::new(RedisServer::start(&[]));
    check("alerts of a node", || {
        server.ask(&["FLUSHALL"]);
        // All of the log, since the suite has none that could be read again.
        let fan_out = FanOutConfig { refill_rows_max: u64::MAX, ..FanOutConfig::default() };
        let config = RedisConfig { fan_out, ..server.config() };
        Box::new(Published { server: server.clone(), config })
    });
}

/// How long a node may take to be found.
const PATIENCE: Duration = Duration::from_secs(60);

/// The alerts of one node as another one reads them, with the deliveries that bring them there.
struct Neighbours {
    runtime: Runtime,
    server: RedisServer,
    published: Vec<DeliveryHandle>,
}

impl Neighbours {
    /// The log of a new node, as another one is told of it.
    fn told(&mut self, fan_out: &FanOutConfig) -> Told {
        let config = RedisConfig { fan_out: fan_out.clone(), ..self.server.config() };
        let redis = Redis::new(&config).expect("a good configuration");
        let (health, handle) = (Health::default(), self.runtime.handle().clone());
        let (node, log) = (format!("node-{}", self.published.len()), Arc::new(MemoryLog::new(1 << 10, 1 << 30)));
        let parts = DeliveryParts {
            sink: Box::new(redis.alerts_out(log.clone(), &node)),
            log: log.clone(),
            output: Arc::new(OutputLog::new(Arc::new(MemoryLog::new(16, 1 << 20)))),
            config: DeliveryConfig::default(),
            stage: health.stage("redis:fan-out"),
        };
        self.published.push(deliver(parts, &handle));
        redis.peers(&node, health.stage("redis:peers of it"), &handle);
        let mut others = redis.peers("reader", health.stage("redis:peers"), &handle).others;
        let of = |others: &Option<Arc<Vec<Peer>>>| {
            others.iter().flat_map(|all| all.iter()).find(|peer| *peer.node == *node).cloned()
        };
        let found = async {
            tokio::time::timeout(PATIENCE, others.wait_for(|others| of(others).is_some()))
                .await
                .map(|found| of(&found.expect("a follower")))
        };
        let peer = self.runtime.block_on(found).expect("in time").expect("it");
        Told { log, reader: peer.log, dataset: Dataset::Alerts }
    }
}

#[test]
fn the_alerts_of_another_node_keep_the_contract_of_a_log_that_is_read() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let server = RedisServer::start(&["--stream-node-max-entries", "5"]);
    let mut neighbours = Neighbours { runtime, server, published: Vec::new() };
    let all = FanOutConfig { enabled: true, ..FanOutConfig::default() };
    check_reader("in memory", || neighbours.told(&all));
    check_reader("from Redis", || neighbours.told(&FanOutConfig { memory_bytes_max: 1, ..all.clone() }));
    let trimmed = FanOutConfig { memory_bytes_max: 1, batches_max: 20, ..all.clone() };
    check_reader("from a stream that is trimmed", || neighbours.told(&trimmed));
}
