//! The sink of Redis Streams: the contract of a sink, stock consumers, bounds, and what it does when Redis fails.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::streams::{StreamReadReply, StreamTrimOptions, StreamTrimmingMode};
use redis::{TypedCommands, Value};
use tidegate_events::Dataset;
use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{
    Append, AppendReply, Delivery, DeliveryConfig, DeliveryHandle, DeliveryParts, Health, LogBatch, LogBounds,
    LogReader, Offset, OutputLog, PipelineError, Sink, StreamLog, deliver,
};
use tidegate_sinks::redis::{Redis, RedisConfig, RedisStreams, StreamsConfig, StreamsParts};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::contract::rows::{batch, events, one};
use crate::contract::sink::{Destination, check};
use crate::redis_world::{Fault, FaultProxy, RedisServer, on_demand, until};

/// A log that holds whatever a test says that it held.
pub struct AnyLog(watch::Sender<LogBounds>);

impl AnyLog {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(LogBounds { first: 0, next: u64::MAX })))
    }
}

impl LogReader for AnyLog {
    fn read(&self, _: Offset, _: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        Ok(Vec::new())
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.0.subscribe()
    }
}

impl StreamLog for AnyLog {
    fn append(&self, _: Append) -> AppendReply {
        unreachable!("a sink appends nothing")
    }

    fn forget(&self, _: Offset) -> Result<(), PipelineError> {
        Ok(())
    }
}

fn sink(config: &RedisConfig, log: Arc<dyn StreamLog>, fs: &SimFs) -> RedisStreams {
    let parts = StreamsParts {
        log,
        log_name: "ingest",
        node: "node-1".into(),
        fs: Arc::new(fs.clone()),
        dir: Path::new("/data/sinks/redis-ingest").into(),
    };
    Redis::new(config).expect("a good configuration").streams(parts).expect("a sink")
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

struct Streams {
    server: Arc<RedisServer>,
    config: RedisConfig,
    fs: SimFs,
    keeps_notes: bool,
}

impl Destination for Streams {
    fn sink(&self) -> Box<dyn Sink> {
        let fs = if self.keeps_notes { self.fs.clone() } else { SimFs::new() };
        Box::new(sink(&self.config, AnyLog::new(), &fs))
    }

    fn ids(&self) -> Vec<String> {
        self.server.ids(&self.config.prefix)
    }
}

#[test]
fn redis_streams_keep_the_contract_of_a_sink() {
    let server = RedisServer::start(&[]);
    let server = Arc::new(server);
    for (keeps_notes, batch_entries_max) in [(true, 512), (true, 1)] {
        check(&format!("{batch_entries_max} entries a call"), || {
            server.ask(&["FLUSHALL"]);
            let datasets = Dataset::ALL.map(|dataset| dataset.table_name().to_owned()).into();
            let streams = StreamsConfig { batch_entries_max, datasets, ..StreamsConfig::default() };
            let config = RedisConfig { streams, ..server.config() };
            Box::new(Streams { server: server.clone(), config, fs: SimFs::new(), keeps_notes })
        });
    }
}

/// A log, the delivery of it to Redis, and what the delivery says of itself.
pub struct World {
    runtime: Runtime,
    log: Arc<MemoryLog>,
    health: Health,
    delivery: Option<DeliveryHandle>,
    fs: SimFs,
    sent: u64,
}

impl World {
    pub fn new(config: &RedisConfig) -> Self {
        let log = Arc::new(MemoryLog::new(16, 1 << 30));
        let (health, fs) = (Health::default(), SimFs::new());
        let mut world = Self { runtime: runtime(), log, health, delivery: None, fs, sent: 0 };
        world.start(config);
        world
    }

    /// Starts a process' delivery, after the one before it died.
    fn start(&mut self, config: &RedisConfig) {
        self.delivery = None;
        self.health = Health::default();
        let entered = self.runtime.enter();
        let output = Arc::new(OutputLog::new(Arc::new(MemoryLog::new(16, 1 << 20))));
        let pace = DeliveryConfig { retry_ms_min: 20, retry_ms_max: 200, ..DeliveryConfig::default() };
        let parts = DeliveryParts {
            sink: Box::new(sink(config, self.log.clone(), &self.fs)),
            log: self.log.clone(),
            output,
            config: pace,
            stage: self.health.stage("redis"),
        };
        self.delivery = Some(deliver(parts, self.runtime.handle()));
        drop(entered);
    }

    /// Appends `count` batches of four events of two tenants.
    pub fn send(&mut self, count: u64) {
        for _ in 0..count {
            let ids: Vec<String> = (0..4).map(|at| format!("e{}", self.sent + at)).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let rows = batch(Dataset::SecurityEvents, &["acme", "umbrella", "acme", "acme"], &ids);
            let appended = self.runtime.block_on(self.log.append(one(rows)));
            appended.expect("an answer").expect("room");
            self.sent += 4;
        }
    }

    fn committed(&self) -> Offset {
        *self.delivery.as_ref().expect("a delivery").committed().borrow()
    }

    pub fn detail(&self) -> String {
        self.health.details().into_iter().map(|(_, detail)| detail).collect()
    }

    /// Everything that was sent is there once, in the order of the log.
    pub fn must_be_whole(&self, server: &RedisServer, context: &str) {
        until(&format!("{context}: all delivered"), || self.committed() == self.sent);
        let mut all = Vec::new();
        for tenant in ["acme", "umbrella"] {
            let entries = server.entries(&format!("tidegate:stream:{tenant}:security_events"));
            assert!(entries.is_sorted_by(|left, right| left.1 < right.1), "{context}: in the order of the log");
            all.extend(entries.into_iter().map(|(id, offset)| {
                assert_eq!(id, format!("e{offset}"), "{context}");
                offset
            }));
        }
        all.sort_unstable();
        let doubled = all.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert_eq!((all.len() as u64, doubled), (self.sent, 0), "{context}: each once");
        assert_eq!(self.detail(), "", "{context}: well again");
    }
}

#[test]
fn a_stock_consumer_group_reads_and_acknowledges() {
    let server = RedisServer::start(&[]);
    let mut world = World::new(&server.config());
    world.send(2);
    world.must_be_whole(&server, "before");
    let stream = "tidegate:stream:acme:security_events";
    let mut connection = server.connection();
    connection.xgroup_create(stream, "soc", "0").expect("a group");
    let options = redis::streams::StreamReadOptions::default().group("soc", "worker-1").count(10);
    let read = |connection: &mut redis::Connection| -> StreamReadReply {
        connection.xread_options(&[stream], &[">"], &options).expect("a read").unwrap_or_default()
    };
    let first = read(&mut connection);
    let ids = &first.keys[0].ids;
    assert_eq!(ids.len(), 6);
    let event: serde_json::Value = serde_json::from_str(&ids[0].get::<String>("event").expect("event")).expect("JSON");
    assert_eq!((&event["event_id"], &event["org_id"]), (&"e0".into(), &"acme".into()));
    assert_eq!(ids[0].get::<String>("id").as_deref(), Some("e0"));
    assert_eq!(ids[0].get::<String>("node").as_deref(), Some("node-1"));
    assert_eq!(ids[0].get::<String>("time").as_deref(), event["time"].as_str());
    let names: Vec<&str> = ids.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(connection.xack(stream, "soc", &names[..4]).expect("acknowledged"), 4);
    world.send(1);
    until("the consumer sees what comes", || {
        read(&mut connection)
            .keys
            .first()
            .is_some_and(|key| key.ids.iter().any(|entry| entry.get::<String>("id").as_deref() == Some("e8")))
    });
    // The same with the client that everybody has.
    let pending = server.cli(&["XPENDING", stream, "soc"]);
    assert!(pending.starts_with('5'), "two unacknowledged and three new ones: {pending}");
    let again = server.cli(&["XREADGROUP", "GROUP", "other", "c", "STREAMS", stream, ">"]);
    assert!(again.contains("NOGROUP"), "{again}");
    let printed = server.cli(&["XRANGE", stream, "-", "+", "COUNT", "1"]);
    assert!(printed.lines().any(|line| line == "node-1") && printed.contains("\"own.count\":0"), "{printed}");
}

#[test]
fn streams_keep_their_bounds() {
    let server = RedisServer::start(&["--stream-node-max-entries", "10"]);
    let mut config = server.config();
    config.streams = StreamsConfig { entries_max: 40, age_s_max: Some(3600), event_bytes_max: 1024, ..config.streams };
    let mut world = World::new(&config);
    world.send(200);
    until("all delivered", || world.committed() == world.sent);
    let stream = "tidegate:stream:acme:security_events";
    let Value::Int(length) = server.ask(&["XLEN", stream]) else { panic!("a length") };
    assert!((40..=60).contains(&length), "{length} entries where about 40 may be");
    let Value::Int(left) = server.ask(&["TTL", stream]) else { panic!("a time") };
    assert!((3_500..=3_600).contains(&left), "{left}");
    let long = format!("e{}", "x".repeat(3_000));
    world.runtime.block_on(world.log.append(one(events("acme", &[&long])))).expect("an answer").expect("room");
    until("the long one is there", || world.committed() == world.sent + 1);
    let last: Vec<redis::streams::StreamId> =
        server.connection().xrevrange_count(stream, "+", "-", 1).expect("a range").ids;
    assert!(last[0].get::<String>("event").is_none(), "it is too long");
    let omitted: usize = last[0].get::<String>("omitted_bytes").expect("its length").parse().expect("a number");
    assert!(omitted > 3_000, "{omitted}");
    // A consumer may trim on its own: nothing comes back.
    let trim = StreamTrimOptions::maxlen(StreamTrimmingMode::Exact, 0);
    server.connection().xtrim_options(stream, &trim).expect("trimmed");
    world.send(1);
    until("delivered", || world.committed() == world.sent + 1);
    assert_eq!(server.entries(stream).len(), 3);
}

/// Redis is away for a while in one of these ways, under load; then it is back.
#[test]
fn redis_may_be_away_in_any_way_and_each_event_is_there_once() {
    let seconds = on_demand("TIDEGATE_REDIS_AWAY_S", 3);
    let faults = [
        ("refused", Fault::Refused),
        ("hanging", Fault::Hanging),
        ("slow", Fault::Slow(Duration::from_millis(150))),
        ("cut in a request", Fault::CutAfter(3_000)),
        ("cut before the answer", Fault::DeafAfter(80)),
        ("frozen", Fault::None),
        ("killed", Fault::None),
    ];
    std::thread::scope(|scope| {
        for (name, fault) in faults {
            scope.spawn(move || away(name, fault, Duration::from_secs(seconds)));
        }
    });
}

fn away(name: &str, fault: Fault, time: Duration) {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let proxy = FaultProxy::to(server.port);
    let config = RedisConfig { url: proxy.url(), ..server.config() };
    let mut world = World::new(&config);
    world.send(20);
    world.must_be_whole(&server, name);
    proxy.set(fault);
    match name {
        "frozen" => server.signal("STOP"),
        "killed" => server.kill(),
        _ => {}
    }
    let (started, mut told, mut appends) = (Instant::now(), false, Duration::ZERO);
    while started.elapsed() < time {
        let before = Instant::now();
        world.send(5);
        appends = appends.max(before.elapsed());
        told |= world.detail().contains("Redis at 127.0.0.1");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The log takes events whatever Redis does. (The bound is for a busy machine.)
    assert!(appends < Duration::from_secs(2), "{name}: {appends:?}");
    match name {
        "frozen" => server.signal("CONT"),
        "killed" => server.run(),
        _ => proxy.set(Fault::None),
    }
    assert!(told || name == "slow", "{name}: the stage says what is wrong");
    world.send(5);
    world.must_be_whole(&server, name);
}

/// What a server says no with, and what the operator is told.
#[test]
fn an_error_says_what_to_do_and_delivery_goes_on_without_a_restart() {
    type Step = fn(&RedisServer);
    let cases: [(&str, Step, Step, &str); 6] = [
        (
            "a new password",
            |server| {
                server.ask(&["ACL", "SETUSER", "tidegate", "resetpass", ">new"]);
                // Connections that are there stay in; a new one is asked.
                server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
            },
            |server| _ = server.ask(&["ACL", "SETUSER", "tidegate", ">throw-away"]),
            "password",
        ),
        (
            "a user without permission",
            |server| _ = server.ask(&["ACL", "SETUSER", "tidegate", "-xadd"]),
            |server| _ = server.ask(&["ACL", "SETUSER", "tidegate", "+xadd"]),
            "docs/sinks/redis.md",
        ),
        (
            "a replica",
            |server| _ = server.ask(&["REPLICAOF", "127.0.0.1", "1"]),
            |server| _ = server.ask(&["REPLICAOF", "NO", "ONE"]),
            "point url to the primary",
        ),
        (
            "no memory",
            |server| _ = server.ask(&["CONFIG", "SET", "maxmemory", "1"]),
            |server| _ = server.ask(&["CONFIG", "SET", "maxmemory", "0"]),
            "raise its maxmemory",
        ),
        (
            "a key of somebody else",
            |server| {
                server.ask(&["RENAME", "tidegate:stream:umbrella:security_events", "kept"]);
                server.ask(&["SET", "tidegate:stream:umbrella:security_events", "mine"]);
            },
            |server| {
                server.ask(&["DEL", "tidegate:stream:umbrella:security_events"]);
                server.ask(&["RENAME", "kept", "tidegate:stream:umbrella:security_events"]);
            },
            "set another prefix",
        ),
        ("scripts forgotten", |server| _ = server.ask(&["SCRIPT", "FLUSH"]), |_| {}, ""),
    ];
    for (name, spoil, mend, told) in cases {
        let server = RedisServer::start(&[]);
        let mut world = World::new(&server.config());
        world.send(3);
        world.must_be_whole(&server, name);
        spoil(&server);
        world.send(3);
        if !told.is_empty() {
            until(&format!("{name}: told {told:?}"), || world.detail().contains(told));
            until(&format!("{name}: out of order"), || world.detail().starts_with("out of order"));
        }
        mend(&server);
        world.must_be_whole(&server, name);
    }
}

#[test]
fn what_a_server_lost_is_written_again_and_a_new_one_goes_on() {
    let mut server = RedisServer::start(&["--dbfilename", "dump.rdb"]);
    let mut world = World::new(&server.config());
    world.send(10);
    world.must_be_whole(&server, "before");
    server.ask(&["SAVE"]);
    world.send(10);
    world.must_be_whole(&server, "after the snapshot");
    // Back to the snapshot, as a server without an append-only file is after a crash.
    server.kill();
    server.run();
    world.send(1);
    world.must_be_whole(&server, "what came after the snapshot is there again");
    // A process that starts then goes on from there, with or without its note.
    world.start(&server.config());
    world.send(1);
    world.must_be_whole(&server, "after a restart");
    world.fs = SimFs::new();
    world.start(&server.config());
    world.send(1);
    world.must_be_whole(&server, "after a restart without the note");
    // An empty server gets what comes.
    server.ask(&["FLUSHALL"]);
    world.send(1);
    until("delivered", || world.committed() == world.sent);
    assert_eq!(server.ids("tidegate").len(), 4);
}

#[test]
fn a_cursor_that_another_process_moves_is_told_and_not_followed() {
    let server = RedisServer::start(&[]);
    let mut world = World::new(&server.config());
    world.send(2);
    world.must_be_whole(&server, "before");
    server.ask(&["SET", "tidegate:cursor:node-1:ingest", "1000"]);
    world.send(1);
    until("told", || world.detail().contains("another process writes to Redis as node node-1"));
    server.ask(&["SET", "tidegate:cursor:node-1:ingest", "8"]);
    world.must_be_whole(&server, "after");
}

#[test]
fn a_configuration_that_cannot_be_is_refused_with_a_reason() {
    let good = crate::redis_world::config("redis://localhost");
    let with = |change: fn(&mut RedisConfig)| {
        let mut config = good.clone();
        change(&mut config);
        Redis::new(&config).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(with(|_| {}), Ok(()));
    assert_eq!(with(|config| config.url = "rediss://user:secret@host:6380/2".into()), Ok(()));
    let cases: HashMap<&str, fn(&mut RedisConfig)> = HashMap::from([
        ("url is missing", (|config| config.url.clear()) as fn(&mut RedisConfig)),
        ("the URL of Redis is not one", |config| config.url = "http://localhost".into()),
        ("may only have letters", |config| config.prefix = "a:b".into()),
        ("no dataset \"evnts\"", |config| config.streams.datasets = vec!["evnts".into()]),
        ("the password in /nowhere", |config| config.password_file = Some("/nowhere".into())),
    ]);
    for (reason, change) in cases {
        let error = with(change).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    let secret = RedisConfig { url: "redis://:secret@host".into(), ..good.clone() };
    let shown = format!("{secret:?} {:?}", Redis::new(&secret).expect("good"));
    assert!(!shown.contains("secret"), "{shown}");
}

/// The future of a write is dropped when the server stops: what it began must do no harm.
#[test]
fn a_write_that_is_given_up_leaves_nothing_doubled() {
    let server = RedisServer::start(&[]);
    let runtime = runtime();
    let _entered = runtime.enter();
    let fs = SimFs::new();
    let mut streams = sink(&server.config(), AnyLog::new(), &fs);
    let rows = events("acme", &["a", "b"]);
    let batches = vec![Arc::new(LogBatch { offset: 0, dataset: rows.dataset, rows: rows.rows })];
    let delivery = Delivery { batches, next_offset: 2 };
    for wait in [0, 50, 200, 1_000, 3_000, 10_000] {
        // Given up anywhere on its way.
        let given = runtime.block_on(async {
            tokio::time::timeout(Duration::from_micros(wait), streams.write(delivery.clone())).await
        });
        drop(given);
    }
    runtime.block_on(streams.write(delivery)).expect("written");
    assert_eq!(server.ids("tidegate"), ["a", "b"]);
    assert_eq!(streams.committed(), 2);
}

/// Rows a second into Redis Streams, beside XADD of the same entries by the stock client in pipelines as long as a call of the sink.
/// On demand: `TIDEGATE_REDIS_SPEED=1 cargo xtask with-servers cargo test --release --workspace --test it -- redis_speed --nocapture`
#[test]
fn redis_speed() {
    use crate::timescale_speed::{BATCH_ROWS, BATCHES, rows};
    if std::env::var_os("TIDEGATE_REDIS_SPEED").is_none() {
        return;
    }
    let batches: Vec<_> = (0..BATCHES).map(rows).collect();
    let all = (BATCHES * BATCH_ROWS) as f64;
    let (server, runtime) = (RedisServer::start(&[]), runtime());
    for round in 0..3 {
        server.ask(&["FLUSHALL"]);
        let config = RedisConfig { streams: StreamsConfig::default(), ..server.config() };
        let mut sink = sink(&config, AnyLog::new(), &SimFs::new());
        let started = Instant::now();
        for batch in &batches {
            let next_offset = batch.next_offset();
            let write = sink.write(Delivery { batches: vec![batch.clone()], next_offset });
            runtime.block_on(write).expect("taken");
        }
        runtime.block_on(sink.flush()).expect("committed");
        let ours = all / started.elapsed().as_secs_f64();
        let raw = all / raw(&server, &config).as_secs_f64();
        println!("round {round}: sink {ours:.0} rows/s, raw XADD {raw:.0} rows/s: {:.1} %", 100.0 * ours / raw);
    }
}

/// Reads what the sink wrote, and how long it takes to write it again into other streams with the same bounds.
fn raw(server: &RedisServer, config: &RedisConfig) -> Duration {
    let mut client = server.connection();
    let names: Vec<String> = client.keys(format!("{}:stream:*", config.prefix)).expect("keys").into_iter().collect();
    let mut entries = Vec::new();
    for name in &names {
        let stream = client.xrange_all(name).expect("entries");
        entries.extend(stream.ids.into_iter().map(|entry| (format!("raw:{name}"), entry.map)));
    }
    let started = Instant::now();
    for call in entries.chunks(config.streams.batch_entries_max) {
        let mut requests = redis::pipe();
        for (name, fields) in call {
            let add = requests.cmd("XADD").arg(name).arg("MAXLEN").arg("~").arg(config.streams.entries_max).arg("*");
            for (field, value) in fields {
                let Value::BulkString(value) = value else { panic!("{field}: {value:?}") };
                add.arg(field).arg(value);
            }
        }
        requests.query::<Vec<Value>>(&mut client).expect("added");
    }
    started.elapsed()
}
