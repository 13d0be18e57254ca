//! Many machines: a node that takes events, workers that share the partitions of the log in Fluvio, one of which is killed under
//! load. Every acknowledged event is in the database once, and the alerts are those of the single binary. Needs a Fluvio cluster
//! (`TIDEGATE_TEST_FLUVIO`) and the PostgreSQL that `cargo xtask test` starts; without a cluster it says that it was not run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use tidegate_sinks::fluvio::{FluvioLog, FluvioLogConfig};

use crate::faulty_proxy::Mode;
use crate::fluvio_world::{Cluster, address};
use crate::server::{Caller, PATIENCE, Server, on_demand};
use crate::tenants::key;
use crate::timescale::{drop_schema, proxied, query, url};

pub const TENANTS: [&str; 6] = ["acme", "beta", "coro", "delta", "echo", "foxtrot"];
const PARTITIONS: &str = "4";
/// Longer than all events take, so that the order in which tenants come does not matter to the windows.
const LATENESS_MS: &str = "3600000";
/// So that no alerts become one, which goes by when events came.
const ALERTS_MAX: &str = "1000000";
/// Events of a request.
const EVENTS: u64 = 20;

const RULES: &str = "title: Marked\nid: 11111111-2222-4333-8444-000000000001\nname: marked\nlogsource: {product: custom}\n\
                     tidegate: {suppress: 0}\ndetection: {sel: {action: marked}, condition: sel}\nlevel: high\n";
const ALONE: &str = "title: Marked alone\nid: 11111111-2222-4333-8444-000000000003\nlogsource: {product: custom}\n\
                     tidegate: {suppress: 0}\ndetection: {sel: {action: marked}, condition: sel}\nlevel: low\n";
const COUNTED: &str = "title: Many marked\nid: 11111111-2222-4333-8444-000000000002\ncorrelation:\n  type: event_count\n  \
                       rules: [marked]\n  group-by: [user.name]\n  timespan: 10m\n  condition: {gte: 5}\nlevel: high\n";

/// Topics and a schema of their own.
pub struct World {
    pub settings: Vec<(&'static str, String)>,
    pub schema: String,
    _rules: TempDir,
}

impl World {
    pub fn new(address: &str, name: &str) -> Self {
        let rules = tempfile::tempdir().expect("a folder");
        std::fs::write(rules.path().join("marked.yml"), RULES).expect("a rule");
        std::fs::write(rules.path().join("alone.yml"), ALONE).expect("a rule");
        std::fs::write(rules.path().join("counted.yml"), COUNTED).expect("a rule");
        let schema = format!("{name}{}", std::process::id());
        let replicas = on_demand("TIDEGATE_FLUVIO_REPLICAS", 1);
        // A follower of a new topic comes some seconds later.
        let (acknowledged_by, reply_ms_max) = if replicas > 1 { ("replicas", "10000") } else { ("leader", "2000") };
        let settings = vec![
            ("FLUVIO__REPLICAS", replicas.to_string()),
            ("FLUVIO__ACKNOWLEDGED_BY", acknowledged_by.to_owned()),
            ("FLUVIO__ADDRESS", address.to_owned()),
            ("FLUVIO__PREFIX", schema.clone()),
            ("FLUVIO__PARTITIONS", PARTITIONS.to_owned()),
            ("FLUVIO__REPLY_MS_MAX", reply_ms_max.to_owned()),
            ("SINKS__TIMESCALE__URL", url()),
            ("SINKS__TIMESCALE__SCHEMA", schema.clone()),
            ("SINKS__TIMESCALE__AGGREGATES", "false".to_owned()),
            ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "100".to_owned()),
            ("WORKER__LEASE_MS", "3000".to_owned()),
            ("RUN__CHECKPOINT_INTERVAL_MS", "500".to_owned()),
            ("RUN__LATENESS_MS_MAX", LATENESS_MS.to_owned()),
            ("SIGMA__ALERTS_PER_SECOND_MAX", ALERTS_MAX.to_owned()),
            ("STARTER_PACK", "false".to_owned()),
            ("RULES", rules.path().to_str().expect("a path").to_owned()),
        ];
        Self { settings, schema, _rules: rules }
    }

    pub fn of<'a>(&'a self, role: &'a str) -> Vec<(&'a str, &'a str)> {
        let settings = self.settings.iter().map(|(name, value)| (*name, value.as_str()));
        settings.chain([("ROLE", role)]).collect()
    }

    pub fn start(&self, role: &str) -> Server {
        Server::start(&self.of(role))
    }

    pub fn run(&self, server: &mut Server, role: &str) {
        server.run(&self.of(role));
    }

    pub fn column(&self, sql: &str) -> Vec<String> {
        query(&sql.replace("SCHEMA", &self.schema))
    }

    /// Ids of events, each as often as it is there.
    fn stored(&self) -> Vec<String> {
        self.column("SELECT org_id || '/' || event_id FROM SCHEMA.security_events")
    }

    /// Alerts by what they are about, each as often as it is there.
    fn alerts(&self) -> Vec<String> {
        let about = "concat_ws(' ', org_id, rule_id, group_key, event_count, first_time, last_time, event_ids)";
        self.column(&format!("SELECT {about} FROM SCHEMA.alerts"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop_schema(&self.schema);
        }
    }
}

pub fn until(what: &str, mut so: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
    started.elapsed()
}

fn signal(server: &Server, signal: Signal) {
    let pid = Pid::from_raw(server.pid().cast_signed()).expect("a pid");
    kill_process(pid, signal).expect("the process is ours");
}

pub fn held(worker: &Server) -> u64 {
    let page = worker.client().get("/metrics");
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let line = page.lines().find_map(|line| line.strip_prefix("tidegate_worker_partitions_held "));
    line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) as u64
}

fn event(tenant: &str, at: u64) -> Value {
    let action = if at.is_multiple_of(10) { "marked" } else { "other" };
    let (minute, second) = (at / 60_000 % 60, at / 1_000 % 60);
    json!({
        "event_id": format!("{tenant}-{at}"),
        "action": action,
        "user": {"name": format!("u{}", at / 10 % 7)},
        "@timestamp": format!("2026-11-20T10:{minute:02}:{second:02}.{:03}Z", at % 1_000),
    })
}

/// A tenant's agent: sends in order, and again what was not acknowledged. How many events were, and whether the last request was
/// without an answer.
pub fn agent(url: &str, key: &str, tenant: &str, stop: &AtomicBool) -> (u64, usize) {
    let mut client = Caller::new(url, Some(key));
    let (mut at, mut refused) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut body = Vec::new();
        for at in at..at + EVENTS {
            body.extend_from_slice(format!("{}\n", event(tenant, at)).as_bytes());
        }
        let headers = [("content-type", "application/x-ndjson")];
        match client.try_send("POST", "/v2/events/bulk?source=custom", &headers, &body) {
            Some(reply) if reply.status.as_u16() == 200 => {
                assert_eq!(reply.headers.get("tidegate-ack").and_then(|word| word.to_str().ok()), Some("broker"));
                at += EVENTS;
            }
            _ => refused += 1,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    (at, refused)
}

/// The alerts of the single binary on these events.
fn of_the_single_binary(world: &World, sent: &BTreeMap<&str, u64>) -> Vec<String> {
    let schema = format!("{}one", world.schema);
    let rules = &world.settings.iter().find(|(name, _)| *name == "RULES").expect("rules").1;
    let (url, settings) =
        (url(), [("STARTER_PACK", "false"), ("RULES", rules.as_str()), ("RUN__LATENESS_MS_MAX", LATENESS_MS)]);
    let mut settings = settings.to_vec();
    settings.push(("SIGMA__ALERTS_PER_SECOND_MAX", ALERTS_MAX));
    settings.extend([("SINKS__TIMESCALE__URL", url.as_str()), ("SINKS__TIMESCALE__SCHEMA", schema.as_str())]);
    settings.extend([("SINKS__TIMESCALE__AGGREGATES", "false"), ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "100")]);
    let mut server = Server::start(&settings);
    for (tenant, count) in sent {
        let mut client = server.client_with(&key(&server, tenant, "ingest"));
        let events: Vec<Value> = (0..*count).map(|at| event(tenant, at)).collect();
        for events in events.chunks(1_000) {
            assert_eq!(client.bulk("/v2/events/bulk?source=custom", events).status.as_u16(), 200);
        }
    }
    // Everything flows to its end.
    server.stop();
    let one = World { settings: Vec::new(), schema, _rules: tempfile::tempdir().expect("a folder") };
    assert_eq!(one.stored().len() as u64, sent.values().sum::<u64>());
    one.alerts()
}

#[test]
fn a_worker_that_is_killed_loses_and_doubles_nothing() {
    let suite = "two workers that share the partitions of a log in Fluvio, one of which is killed";
    let Some(address) = address(suite) else { return };
    let world = World::new(&address, "roles");
    let mut ingest = world.start("ingest");
    let keys: Vec<String> = TENANTS.iter().map(|tenant| key(&ingest, tenant, "ingest")).collect();
    let refused = ingest.client_with(&keys[0]).get("/v2/alerts");
    assert_eq!(refused.status.as_u16(), 403, "a key without the right to read: {:?}", refused.body);
    let first = world.start("worker");
    until("the first worker has all partitions", || held(&first) == 4);
    let mut workers = [first, world.start("worker")];
    let shared = |workers: &[Server; 2]| workers.iter().all(|worker| held(worker) == 2);
    until("they share", || shared(&workers));

    let stop = Arc::new(AtomicBool::new(false));
    let agents = TENANTS.iter().zip(&keys).map(|(tenant, key)| {
        let (url, key, stop) = (ingest.url.clone(), key.clone(), stop.clone());
        std::thread::spawn(move || (*tenant, agent(&url, &key, tenant, &stop)))
    });
    let agents: Vec<_> = agents.collect();
    let mut taken = Vec::new();
    for round in 0..on_demand("TIDEGATE_WORKER_KILLS", 2) {
        std::thread::sleep(Duration::from_secs(3));
        let victim = (round % 2) as usize;
        // The second one is held up for longer than its leases last, and then goes on with what it believes.
        let held_up = round % 2 == 1;
        if held_up {
            signal(&workers[victim], Signal::STOP);
        } else {
            workers[victim].kill();
        }
        taken.push(until("the survivor has all partitions", || held(&workers[1 - victim]) == 4));
        std::thread::sleep(Duration::from_secs(1));
        if held_up {
            signal(&workers[victim], Signal::CONT);
        } else {
            world.run(&mut workers[victim], "worker");
        }
        until("they share again", || shared(&workers));
    }
    stop.store(true, Ordering::Relaxed);
    let sent: BTreeMap<&str, (u64, usize)> = agents.into_iter().map(|agent| agent.join().expect("an agent")).collect();
    let refused: usize = sent.values().map(|(_, refused)| refused).sum();
    let sent: BTreeMap<&str, u64> = sent.into_iter().map(|(tenant, (count, _))| (tenant, count)).collect();
    let acknowledged: BTreeSet<String> =
        sent.iter().flat_map(|(tenant, count)| (0..*count).map(move |at| format!("{tenant}/{tenant}-{at}"))).collect();
    let all_there = until("all events are in the database", || world.stored().len() >= acknowledged.len());
    std::thread::sleep(Duration::from_secs(1));
    let stored = world.stored();
    let distinct: BTreeSet<String> = stored.iter().cloned().collect();
    assert_eq!(stored.len(), distinct.len(), "events are doubled");
    assert!(distinct == acknowledged, "{} are there, {} were acknowledged", distinct.len(), acknowledged.len());

    let mut expected = of_the_single_binary(&world, &sent);
    expected.sort_unstable();
    let mut found = Vec::new();
    until("all alerts are in the database", || {
        found = world.alerts();
        found.len() >= expected.len()
    });
    found.sort_unstable();
    assert!(!expected.is_empty() && found == expected, "{} alerts, and not {}", found.len(), expected.len());
    let keys = || world.column("SELECT target_id FROM SCHEMA.changes WHERE kind = 'key'");
    until("what people changed is in the database, once", || keys().len() == TENANTS.len());
    assert_eq!(keys().into_iter().collect::<BTreeSet<_>>().len(), TENANTS.len());
    // Told to stop, a worker gives its partitions back at once, before their leases are over.
    let [mut first, second] = workers;
    first.stop();
    let given_back = until("the other has all partitions", || held(&second) == 4);
    ingest.stop();
    println!("given back after {given_back:?}");
    println!(
        "{} events acknowledged, {refused} requests refused, {} alerts; taken over after {taken:?}, all stored {all_there:?} after \
         the end",
        acknowledged.len(),
        found.len()
    );
}

/// Sends events in requests of twenty.
fn send(server: &Server, key: &str, tenant: &str, numbers: std::ops::Range<u64>) -> BTreeSet<String> {
    let mut client = server.client_with(key);
    let numbers: Vec<u64> = numbers.collect();
    for numbers in numbers.chunks(EVENTS as usize) {
        let events: Vec<Value> = numbers.iter().map(|at| event(tenant, *at)).collect();
        until("the events are taken", || client.bulk("/v2/events/bulk?source=custom", &events).status.as_u16() == 200);
    }
    numbers.into_iter().map(|at| format!("{tenant}/{tenant}-{at}")).collect()
}

/// Does what docs/many-machines.md says of partitions that do not know from which record on they lost some.
fn say_where_to_go_on(world: &World, worker: &Server, kept: &[u64]) {
    for (partition, kept) in kept.iter().enumerate() {
        let told = || worker.client().get("/readyz").json()["details"][format!("run loop:{partition}")].clone();
        // One without a tenant had nothing to lose.
        if *kept > 0 {
            until("the partition says so", || {
                told().as_str().is_some_and(|told| told.contains("it is not known from which on"))
            });
            let told = told();
            let told = told.as_str().expect("text");
            let origin =
                told.split_once("where partition ").expect("an origin").1.split(' ').next().expect("an origin");
            world.column(&format!(
                "INSERT INTO SCHEMA.tails (log_id, tail, rewind_to) SELECT log_id, '', {kept}::int8 << 16 FROM SCHEMA.logs \
                 WHERE origin = '{origin}' AND log = 'ingest' ON CONFLICT (log_id) DO UPDATE SET rewind_to = excluded.rewind_to"
            ));
        }
    }
}

#[test]
fn what_takes_the_places_of_records_that_a_broker_lost_is_delivered() {
    let suite = "workers of a log in Fluvio whose broker lost its newest records";
    let Some(address) = address(suite) else { return };
    let Some(stock) = Cluster::find(suite) else { return };
    // While the nodes run, or are down; and with checksums that do not reach back to where the loss began.
    for (down, told) in [(false, false), (true, false), (true, true)] {
        let world = World::new(&address, ["lost", "lostdown", "losttold"][usize::from(down) + usize::from(told)]);
        let mut ingest = world.start("ingest");
        let keys: BTreeMap<&str, String> =
            TENANTS.iter().map(|tenant| (*tenant, key(&ingest, tenant, "ingest"))).collect();
        let mut worker = world.start("worker");
        until("the worker has all partitions", || held(&worker) == 4);
        let all = |ingest: &Server, numbers: std::ops::Range<u64>| {
            let sent = keys.iter().map(|(tenant, key)| send(ingest, key, tenant, numbers.clone()));
            sent.flatten().collect::<BTreeSet<String>>()
        };
        let mut expected = all(&ingest, 0..200);
        until("they are in the database", || world.stored().len() == expected.len());
        let alone = || world.column("SELECT event_ids FROM SCHEMA.alerts WHERE rule_id LIKE '%-000000000003'");
        until("and their alerts", || alone().len() == expected.len() / 10);
        if down {
            worker.kill();
            ingest.kill();
        }
        let (prefix, partitions) = (world.schema.clone(), PARTITIONS.parse().expect("a number"));
        let config = FluvioLogConfig { address: address.clone(), prefix, partitions, ..FluvioLogConfig::default() };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let topic = format!("{}-log", world.schema);
        let kept = stock.lose_records(&topic, 3, || {
            until("the topic is made anew", || runtime.block_on(FluvioLog::prepare(&config)).is_ok());
        });
        if down {
            world.run(&mut ingest, "ingest");
        }
        // More than were lost, so that each partition has overtaken the cursors when the worker looks again.
        expected.extend(all(&ingest, 1_000..1_200));
        if told {
            let last = "substring(tail for 8) || substring(tail from length(tail) - 3)";
            world.column(&format!("UPDATE SCHEMA.tails SET tail = {last} WHERE length(tail) > 12"));
            world.column("DELETE FROM SCHEMA.checkpoints");
        }
        if down {
            world.run(&mut worker, "worker");
        }
        if told {
            say_where_to_go_on(&world, &worker, &kept);
        }
        let took = until("what took their places is in the database", || world.stored().len() >= expected.len());
        until("and its alerts", || alone().len() >= expected.len() / 10);
        std::thread::sleep(Duration::from_secs(1));
        let stored = world.stored();
        assert_eq!(stored.len(), expected.len(), "each once");
        assert!(stored.into_iter().collect::<BTreeSet<_>>() == expected);
        assert_eq!(alone().len(), expected.len() / 10, "one alert for each");
        assert!(worker.lines().contains("has lost rows that were read"), "it is told");
        worker.stop();
        ingest.stop();
        println!("down: {down}, told: {told}; all there after {took:?}");
    }
}

#[test]
fn a_worker_whose_database_hangs_lets_go_before_others_take_over_and_ends_when_it_is_told() {
    let Some(address) = address("a worker whose database hangs") else { return };
    let world = World::new(&address, "hang");
    let (proxy, proxied_url) = proxied();
    let mut through_proxy = world.of("worker");
    through_proxy.extend([("SINKS__TIMESCALE__URL", proxied_url.as_str()), ("SHUTDOWN__DRAIN_MS_MAX", "2000")]);
    let mut hung = Server::start(&through_proxy);
    until("the first worker has all partitions", || held(&hung) == 4);
    let other = world.start("worker");
    until("they share", || held(&hung) == 2 && held(&other) == 2);
    for round in 0..3 {
        // At another moment between two renewals each time.
        std::thread::sleep(Duration::from_millis(250 * round));
        proxy.set(Mode::Hang);
        let (began, mut last_held) = (Instant::now(), Instant::now());
        loop {
            assert!(began.elapsed() < PATIENCE, "nobody takes over");
            if held(&hung) > 0 {
                last_held = Instant::now();
            }
            if held(&other) == 4 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let taken = Instant::now();
        assert!(held(&hung) == 0 && last_held < taken, "held until {:?} before", taken - last_held);
        println!("let go {:?} after, taken over {:?} after", last_held - began, taken - began);
        proxy.set(Mode::Pass);
        until("they share again", || held(&hung) == 2 && held(&other) == 2);
    }
    // With leases, and with a database that does not answer.
    proxy.set(Mode::Hang);
    let took = hung.stop();
    assert!(took < Duration::from_secs(6), "{took:?}");
    println!("stopped after {took:?}");
}

#[test]
fn a_partition_that_does_not_work_on_one_worker_is_left_to_another() {
    let Some(address) = address("a worker on which no partition works") else { return };
    let world = World::new(&address, "broken");
    let mut broken = world.start("worker");
    until("the first worker has all partitions", || held(&broken) == 4);
    broken.stop();
    // As when its disk is full: nothing can be made below it.
    let folder = broken.data_dir().join("partitions");
    // It is there once a partition has started.
    std::fs::remove_dir_all(&folder).ok();
    std::fs::write(&folder, "in the way").expect("a file");
    world.run(&mut broken, "worker");
    until("it holds leases", || held(&broken) > 0);
    let mut other = world.start("worker");
    let took = until("the other has all partitions", || held(&other) == 4 && held(&broken) == 0);
    let details = broken.client().get("/readyz").json()["details"].clone();
    assert!(details["run loop:0"].as_str().is_some_and(|detail| detail.contains("partitions")), "{details}");
    std::fs::remove_file(&folder).expect("removed");
    until("they share, once it works", || held(&broken) == 2 && held(&other) == 2);
    let ready = |server: &Server| server.client().get("/readyz").status.as_u16() == 200;
    until("both are ready", || ready(&broken) && ready(&other));
    other.stop();
    broken.stop();
    println!("left to the other after {took:?}");
}

#[test]
fn a_node_that_waits_for_its_cluster_ends_when_it_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = crate::server::tidegate(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(dir.path()).env("TIDEGATE_ROLE", "ingest").env("TIDEGATE_FLUVIO__ADDRESS", "127.0.0.1:9");
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("its log")));
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("the start waits for it"))), "it waits");
    kill_process(Pid::from_raw(child.id().cast_signed()).expect("a pid"), Signal::TERM).expect("the process is ours");
    let mut status = None;
    until("it ends", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}
