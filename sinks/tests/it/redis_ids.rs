//! Event ids that several ingest nodes share: what each node answers, whoever dies when.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;
use tidegate_pipeline::log::{AppendResult, MemoryLog};
use tidegate_pipeline::{
    Ack, Append, AppendError, AppendReply, Health, LogBatch, LogBounds, LogReader, Offset, PipelineError, StreamLog,
};
use tidegate_sinks::redis::{Redis, RedisConfig, SharedIdsConfig, SharedIdsLog};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};

use crate::contract::rows::{events, ids, one};
use crate::contract::stream_log::{check, check_dense};
use crate::redis_world::{Fault, FaultProxy, RedisServer, until};

/// What becomes of the next append of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is stored.
    Stored,
    /// The log does not take it.
    Refused,
    /// The node dies before it is durable.
    DiesBefore,
    /// The node dies when it is durable, before anybody is told.
    DiesAfter,
}

/// A node's own log, which outlives the node.
struct OwnLog {
    log: MemoryLog,
    fate: Mutex<Fate>,
    /// Replies that never come.
    silent: Mutex<Vec<oneshot::Sender<AppendResult>>>,
}

impl LogReader for OwnLog {
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        self.log.read(from, bytes_max)
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.log.watch()
    }
}

impl StreamLog for OwnLog {
    fn append(&self, append: Append) -> AppendReply {
        let (reply, receiver) = oneshot::channel();
        match *self.fate.lock() {
            Fate::Stored => return self.log.append(append),
            Fate::Refused => drop(reply.send(Err(AppendError::Full("on purpose".into())))),
            Fate::DiesBefore => self.silent.lock().push(reply),
            Fate::DiesAfter => {
                drop(self.log.append(append));
                self.silent.lock().push(reply);
            }
        }
        receiver
    }

    fn forget(&self, below: Offset) -> Result<(), PipelineError> {
        self.log.forget(below)
    }
}

/// An ingest node. Its tasks end with its runtime.
struct Node {
    name: &'static str,
    config: RedisConfig,
    own: Arc<OwnLog>,
    health: Health,
    running: Option<(Runtime, SharedIdsLog)>,
}

impl Node {
    fn start(name: &'static str, config: &RedisConfig) -> Self {
        let own =
            OwnLog { log: MemoryLog::new(10_000, 1 << 30), fate: Mutex::new(Fate::Stored), silent: Mutex::default() };
        let mut node =
            Self { name, config: config.clone(), own: Arc::new(own), health: Health::default(), running: None };
        node.restart();
        until("ids are shared", || node.log().is_shared());
        node
    }

    fn restart(&mut self) {
        self.die();
        *self.own.fate.lock() = Fate::Stored;
        self.health = Health::default();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let redis = Redis::new(&self.config).expect("a good configuration");
        let log = redis.shared_ids(self.own.clone(), self.name, self.health.stage("ids"), runtime.handle());
        self.running = Some((runtime, log));
    }

    fn die(&mut self) {
        if let Some((runtime, log)) = self.running.take() {
            drop(log);
            runtime.shutdown_background();
        }
        self.own.silent.lock().clear();
    }

    fn log(&self) -> &SharedIdsLog {
        &self.running.as_ref().expect("it runs").1
    }

    /// Sends events; how many were stored and how many are duplicates, or why nothing is known.
    fn send_as(&self, ids: &[&str], ack: Ack) -> Result<(usize, usize), String> {
        let (runtime, log) = self.running.as_ref().expect("it runs");
        let append = Append { ack, ..one(events("acme", ids)) };
        let dies = matches!(*self.own.fate.lock(), Fate::DiesBefore | Fate::DiesAfter);
        let patience = if dies { Duration::from_millis(150) } else { Duration::from_secs(20) };
        let appended = runtime.block_on(async {
            let reply = log.append(append);
            tokio::time::timeout(patience, reply).await
        });
        let appended = appended.map_err(|_| "silence".to_owned())?.map_err(|error| error.to_string())?;
        let appended = appended.map_err(|error| error.to_string())?;
        let stored = appended.offsets.iter().map(|range| range.end - range.start).sum::<u64>() as usize;
        assert_eq!(stored + appended.duplicates.len(), ids.len(), "each is answered for");
        Ok((stored, appended.duplicates.len()))
    }

    fn send(&self, ids: &[&str]) -> Result<(usize, usize), String> {
        self.send_as(ids, Ack::Disk)
    }

    fn stored(&self) -> Vec<String> {
        let batches = self.own.read(0, usize::MAX).expect("readable");
        ids(&batches).into_iter().map(|(_, id)| id).collect()
    }

    fn detail(&self) -> String {
        self.health.details().into_iter().map(|(_, detail)| detail).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.die();
    }
}

#[test]
fn a_log_of_shared_ids_keeps_the_contract_of_a_log() {
    let server = RedisServer::start(&[]);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (health, redis) = (Health::default(), Redis::new(&config(&server.url())).expect("a good configuration"));
    let fresh = || -> Arc<dyn StreamLog> {
        server.ask(&["FLUSHALL"]);
        let own = Arc::new(MemoryLog::new(1_000, 1 << 30));
        let log = redis.shared_ids(own, "a", health.stage("ids"), runtime.handle());
        until("ids are shared", || log.is_shared());
        Arc::new(log)
    };
    check("shared ids", fresh);
    check_dense("shared ids", fresh);
    assert_eq!(server.denied(), "");
}

/// Patient with Redis, so that a busy machine is not taken for one that is away.
pub fn config(url: &str) -> RedisConfig {
    let shared_ids = SharedIdsConfig { enabled: true, wait_ms_max: 1_000, claim_s: 1, ..SharedIdsConfig::default() };
    RedisConfig { shared_ids, ..crate::redis_world::config(url) }
}

#[test]
fn what_one_node_has_stored_another_answers_as_a_duplicate() {
    let server = RedisServer::start(&[]);
    share(&config(&server.url()));
    assert_eq!(server.denied(), "");
}

/// Two nodes that share their ids by way of this Redis.
pub fn share(config: &RedisConfig) {
    let (a, b) = (Node::start("a", config), Node::start("b", config));
    assert_eq!(a.send(&["1", "2", "2"]), Ok((2, 1)));
    assert_eq!(b.send(&["0", "2", "3", "1", "3"]), Ok((2, 3)));
    assert_eq!(a.send(&["3", "1", "4"]), Ok((1, 2)));
    // Another tenant's event of the same id is another event; one without an id is always new.
    let other = b.running.as_ref().expect("it runs");
    let appended = other.0.block_on(other.1.append(one(events("umbrella", &["1"])))).expect("an answer").expect("room");
    assert!(appended.duplicates.is_empty());
    assert_eq!((a.send(&["-x"]), b.send(&["-x"])), (Ok((1, 0)), Ok((1, 0))));
    let together: Vec<String> = [a.stored(), b.stored()].concat();
    let distinct: HashSet<&String> = together.iter().collect();
    assert_eq!((together.len(), distinct.len()), (8, 6), "{together:?}");
    // What is answered from memory may be lost: it is looked up, but nobody else is told that it is stored.
    assert_eq!(a.send_as(&["m", "3"], Ack::Memory), Ok((1, 1)));
    assert_eq!(b.send(&["m"]), Ok((1, 0)));
    assert_eq!((a.detail(), b.detail()), (String::new(), String::new()));
}

#[test]
fn a_node_that_dies_anywhere_keeps_no_event_from_being_stored() {
    let server = RedisServer::start(&[]);
    for (fate, doubled) in
        [(Fate::Refused, false), (Fate::DiesBefore, false), (Fate::DiesAfter, true), (Fate::Stored, false)]
    {
        server.ask(&["FLUSHALL"]);
        let config = RedisConfig {
            shared_ids: SharedIdsConfig { wait_ms_max: 100, claim_s: 60, ..config(&server.url()).shared_ids },
            ..config(&server.url())
        };
        let (mut a, b) = (Node::start("a", &config), Node::start("b", &config));
        *a.own.fate.lock() = fate;
        let first = a.send(&["x"]);
        assert_eq!(first.is_ok(), fate == Fate::Stored, "{fate:?}: {first:?}");
        if fate != Fate::Refused {
            a.die();
        }
        // The client, who got no answer, asks the other node.
        let started = Instant::now();
        let second = b.send(&["x"]).expect("an answer");
        assert_eq!(second, if fate == Fate::Stored { (0, 1) } else { (1, 0) }, "{fate:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{fate:?}: {:?}", started.elapsed());
        assert_eq!([a.stored(), b.stored()].concat().len(), if doubled { 2 } else { 1 }, "{fate:?}");
        // Whatever happened, it is known from now on.
        a.restart();
        until("ids are shared", || a.log().is_shared());
        assert_eq!((a.send(&["x"]), b.send(&["x"])), (Ok((0, 1)), Ok((0, 1))), "{fate:?}");
    }
}

/// Two nodes, a few ids, deaths and refusals at every step, Redis forgetting everything now and then.
#[test]
fn whatever_happens_an_answer_stands_for_an_event_that_is_durable() {
    let server = RedisServer::start(&[]);
    let config = RedisConfig {
        shared_ids: SharedIdsConfig { wait_ms_max: 30, claim_s: 1, ..config(&server.url()).shared_ids },
        ..config(&server.url())
    };
    let mut nodes = [Node::start("a", &config), Node::start("b", &config)];
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 20) % below
    };
    // How often each id may be stored more than once: for each death or loss that it went through.
    let mut excuses: HashMap<String, usize> = HashMap::new();
    for step in 0..300 {
        let at = draw(2) as usize;
        let fate = match draw(12) {
            0 => Fate::DiesBefore,
            1 => Fate::DiesAfter,
            2 => Fate::Refused,
            _ => Fate::Stored,
        };
        let wanted: Vec<String> = (0..=draw(4)).map(|_| format!("{}", draw(120))).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        if draw(60) == 0 {
            server.ask(&["FLUSHALL"]);
            for id in 0..120 {
                *excuses.entry(id.to_string()).or_default() += 1;
            }
        }
        *nodes[at].own.fate.lock() = fate;
        let answer = nodes[at].send(&wanted);
        assert_eq!(answer.is_ok(), fate == Fate::Stored, "step {step}: {fate:?} {answer:?}");
        if answer.is_ok() {
            let durable: HashSet<String> = nodes.iter().flat_map(Node::stored).collect();
            for id in &wanted {
                assert!(durable.contains(*id), "step {step}: {id} was answered for and is nowhere");
            }
        } else {
            for id in &wanted {
                *excuses.entry((*id).to_owned()).or_default() += 1;
            }
        }
        if matches!(fate, Fate::DiesBefore | Fate::DiesAfter) {
            nodes[at].restart();
            let node = &nodes[at];
            until("ids are shared", || node.log().is_shared());
        }
        *nodes[at].own.fate.lock() = Fate::Stored;
        // Redis may have seemed slow to a busy machine, which is an excuse for whatever was asked then.
        if nodes.iter().any(|node| !node.detail().is_empty()) {
            for id in &wanted {
                *excuses.entry((*id).to_owned()).or_default() += 1;
            }
        }
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for id in nodes.iter().flat_map(Node::stored) {
        *counts.entry(id).or_default() += 1;
    }
    for (id, count) in counts {
        let excused = excuses.get(&id).copied().unwrap_or(0);
        assert!(count <= 1 + excused, "{id} is stored {count} times, excused {excused}");
    }
}

#[test]
fn without_redis_events_are_stored_at_once_and_made_known_afterwards() {
    let mut server = RedisServer::start(&[]);
    for (name, fault) in
        [("killed", Fault::None), ("hanging", Fault::Hanging), ("slow", Fault::Slow(Duration::from_millis(300)))]
    {
        let proxy = FaultProxy::to(server.port);
        let config = RedisConfig {
            shared_ids: SharedIdsConfig { wait_ms_max: 100, ..config(&proxy.url()).shared_ids },
            ..config(&proxy.url())
        };
        let (a, b) = (Node::start("a", &config), Node::start("b", &config));
        assert_eq!(a.send(&["before"]), Ok((1, 0)), "{name}");
        match name {
            "killed" => server.kill(),
            _ => proxy.set(fault),
        }
        let started = Instant::now();
        let ids: Vec<String> = (0..100).map(|at| format!("{name}-{at}")).collect();
        for id in &ids {
            assert_eq!(a.send(&[id]), Ok((1, 0)), "{name}");
        }
        // A few waited for the bound, before and after; the others not at all. (The rest is for a busy machine.)
        assert!(started.elapsed() < Duration::from_secs(4), "{name}: {:?}", started.elapsed());
        assert!(a.detail().contains("recognised by this node alone"), "{name}: {}", a.detail());
        assert_eq!(a.send(&[&ids[7]]), Ok((0, 1)), "{name}: what it stored itself it knows");
        assert_eq!(b.send(&[&ids[0]]), Ok((1, 0)), "{name}: the other cannot know");
        match name {
            "killed" => server.run(),
            _ => proxy.set(Fault::None),
        }
        until(&format!("{name}: ids are shared again"), || a.log().is_shared() && b.log().is_shared());
        let rest: Vec<&str> = ids[1..].iter().map(String::as_str).collect();
        assert_eq!(b.send(&rest), Ok((0, 99)), "{name}: what was stored meanwhile is known now");
        assert_eq!((a.detail(), b.detail()), (String::new(), String::new()), "{name}");
        server.ask(&["FLUSHALL"]);
    }
}

/// What goes by without Redis while Redis is there, here since too many groups wait for it, is told soon after.
#[test]
fn what_was_stored_without_asking_is_told_while_redis_is_there() {
    let server = RedisServer::start(&[]);
    let shared_ids = SharedIdsConfig { groups_max: 1, claim_s: 60, ..config(&server.url()).shared_ids };
    let config = RedisConfig { shared_ids, ..config(&server.url()) };
    let (a, b) = (Node::start("a", &config), Node::start("b", &config));
    // Its log says nothing, so that it takes the only place for ever.
    *a.own.fate.lock() = Fate::DiesBefore;
    assert!(a.send(&["held"]).is_err());
    *a.own.fate.lock() = Fate::Stored;
    let known = |ids: i64| server.ask(&["DBSIZE"]) == Value::Int(ids + 1);
    until("one is claimed, beside the id by which nodes see whether they may write", || known(1));
    assert_eq!(a.send(&["x", "y"]), Ok((2, 0)));
    until("both are told", || known(3));
    assert!(a.log().is_shared(), "the connection is the same all the time");
    assert_eq!(b.send(&["x", "y", "z"]), Ok((1, 2)));
    assert_eq!(server.denied(), "");
}

#[test]
fn a_user_who_may_not_and_a_full_server_degrade_and_recover() {
    let server = RedisServer::start(&[]);
    let steps: [(&[&str], &[&str], &str); 2] = [
        (&["ACL", "SETUSER", "tidegate", "-set"], &["ACL", "SETUSER", "tidegate", "+set"], "docs/sinks/redis.md"),
        (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "raise its maxmemory"),
    ];
    for (spoil, mend, told) in steps {
        let node = Node::start("a", &config(&server.url()));
        server.ask(spoil);
        for at in 0..5 {
            assert_eq!(node.send(&[&format!("{told}{at}")]), Ok((1, 0)));
        }
        assert!(node.detail().contains(told), "{}", node.detail());
        server.ask(mend);
        until("shared again", || node.log().is_shared() && node.detail().is_empty());
        server.ask(&["FLUSHALL"]);
    }
}
