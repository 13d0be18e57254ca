//! Each destination away for a while under a steady load: ingest and the other destinations do not notice, and what was missed is
//! made up for. Needs the servers of `cargo xtask test`.
//!
//! `TIDEGATE_OUTAGE_S=60 cargo xtask test -- outages --nocapture` makes the outages longer, stops the processes of PostgreSQL itself too,
//! holds everything to its bounds, and prints the figures. Nothing else should run then. With `TIDEGATE_TEST_FLUVIO` and
//! `TIDEGATE_TEST_FLUVIO_SPU` a Fluvio cluster is one of the destinations. `TIDEGATE_OUTAGE_OF=Fluvio` makes only those of that name.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tidegate_events::Dataset;

use crate::faulty_proxy::{Mode, Proxy};
use crate::fluvio_world::{Cluster, disturb};
use crate::ledger::{Ledger, Load, Pace};
use crate::redis_nodes::lasting;
use crate::redis_world::RedisServer;
use crate::s3_server::{CREDENTIALS, Ill, S3Server};
use crate::server::{Caller, PATIENCE, Server, on_demand};
use crate::timescale::{drop_schema, proxied, query, until};

const TIMESCALE: &str = "timescale:ingest";
const REDIS: &str = "redis:ingest";
const OBJECTS: &str = "parquet:ingest";
const FLUVIO: &str = "fluvio:ingest";
/// From here on everything is held to its bounds: shorter runs are made beside other tests.
const STRICT_S: u64 = 30;
/// Events that are sent in a second: far from what the server can do.
const RATE: f64 = 2_000.0;
/// How far a destination may be behind that is not ill.
const LAG_MAX: Duration = Duration::from_secs(2);

/// What befalls a destination.
#[derive(Debug, Clone, Copy)]
enum Outage {
    DatabaseRefuses,
    DatabaseHangs,
    /// It takes fewer bytes than come.
    DatabaseSlow,
    /// Each connection ends half-way through a COPY.
    DatabaseCutsOff,
    DatabaseStopped,
    RedisStopped,
    ObjectsAway,
    ObjectsHang,
    FluvioStopped,
    FluvioKilled,
}

impl Outage {
    fn sink(self) -> &'static str {
        match self {
            Self::DatabaseRefuses
            | Self::DatabaseHangs
            | Self::DatabaseSlow
            | Self::DatabaseCutsOff
            | Self::DatabaseStopped => TIMESCALE,
            Self::RedisStopped => REDIS,
            Self::ObjectsAway | Self::ObjectsHang => OBJECTS,
            Self::FluvioStopped | Self::FluvioKilled => FLUVIO,
        }
    }
}

/// The destinations.
struct Destinations {
    proxy: Proxy,
    redis: RedisServer,
    objects: S3Server,
    fluvio: Option<Cluster>,
    /// Processes that were stopped.
    stopped: Vec<Pid>,
    /// What makes Fluvio well again.
    repair: Option<&'static str>,
}

impl Destinations {
    fn fall(&mut self, outage: Outage) {
        match outage {
            Outage::DatabaseRefuses => self.proxy.set(Mode::Refuse),
            Outage::DatabaseHangs => self.proxy.set(Mode::Hang),
            Outage::DatabaseSlow => self.proxy.set(Mode::Slow(100)),
            Outage::DatabaseCutsOff => self.proxy.set(Mode::CutAfter(40_000)),
            Outage::DatabaseStopped => self.stop(postgres_processes()),
            Outage::RedisStopped => self.redis.signal("STOP"),
            Outage::ObjectsAway => self.objects.fall(Ill::Away),
            Outage::ObjectsHang => self.objects.fall(Ill::Hangs),
            Outage::FluvioStopped => self.disturb("stop", "cont"),
            Outage::FluvioKilled => self.disturb("kill", "start"),
        }
    }

    fn disturb(&mut self, harm: &str, repair: &'static str) {
        disturb(harm);
        self.repair = Some(repair);
    }

    fn sinks(&self) -> Vec<&'static str> {
        [TIMESCALE, REDIS, OBJECTS].into_iter().chain(self.fluvio.as_ref().map(|_| FLUVIO)).collect()
    }

    fn stop(&mut self, processes: Vec<Pid>) {
        for process in &processes {
            kill_process(*process, Signal::STOP).expect("it is ours");
        }
        self.stopped = processes;
    }

    fn be_well(&mut self) {
        self.proxy.set(Mode::Pass);
        self.objects.fall(Ill::Well);
        self.redis.signal("CONT");
        self.repair.take().into_iter().for_each(disturb);
        for process in self.stopped.drain(..) {
            // One that ended meanwhile needs nothing.
            let _ = kill_process(process, Signal::CONT);
        }
    }
}

impl Drop for Destinations {
    fn drop(&mut self) {
        self.be_well();
    }
}

fn pid(of: u32) -> Pid {
    Pid::from_raw(of as i32).expect("a process")
}

/// The PostgreSQL of the tests: the process that the others are children of, and these.
fn postgres_processes() -> Vec<Pid> {
    let told = query("SELECT pg_read_file('postmaster.pid')").pop().expect("its file");
    let first: u32 = told.lines().next().and_then(|line| line.parse().ok()).expect("a process");
    let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children")).expect("its children");
    let children = children.split_whitespace().map(|child| child.parse().expect("a process"));
    std::iter::once(first).chain(children).map(pid).collect()
}

/// Rows that a destination does not have yet.
fn lag(client: &mut Caller, sink: &str) -> f64 {
    gauge(client, "lag_rows", sink).unwrap_or_else(|| panic!("no lag of {sink}"))
}

/// A gauge of the delivery to a destination, once it was set.
fn gauge(client: &mut Caller, name: &str, sink: &str) -> Option<f64> {
    let metrics = String::from_utf8_lossy(&client.get("/metrics").body).into_owned();
    let start = format!("tidegate_pipeline_delivery_{name}{{sink=\"{sink}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(start.as_str())?.parse().ok())
}

/// What a stretch of load was like.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    per_s: f64,
    per_cpu_s: f64,
    longest: Duration,
}

/// A load, and what it writes down.
struct Run<'a> {
    server: &'a Server,
    load: Load,
    started: Instant,
    cpu: Duration,
}

impl<'a> Run<'a> {
    fn start(server: &'a Server, round: &str) -> Self {
        let pace = Pace { workers: 2, events: 100, bytes: 100, until_refused: false };
        let every = Duration::from_secs_f64(pace.workers as f64 * pace.events as f64 / RATE);
        let load = Load::start_every(&server.url, round, pace, every);
        Self { server, load, started: Instant::now(), cpu: server.cpu() }
    }

    fn end(self, ledger: &mut Ledger) -> Stretch {
        let (time, cpu) = (self.started.elapsed(), self.server.cpu() - self.cpu);
        let done = self.load.stop();
        assert_eq!(
            (done.unanswered(), done.count(429), done.count(503)),
            (0, 0, 0),
            "every request is answered with 200"
        );
        let events = done.acknowledged.len() as f64;
        let longest = done.longest(200);
        ledger.merge(done);
        Stretch { per_s: events / time.as_secs_f64(), per_cpu_s: events / cpu.as_secs_f64(), longest }
    }
}

/// The largest lag, in time, of the destinations that are not ill.
fn others_behind(server: &Server, sinks: &[&str], ill: &str, time: Duration, per_s: f64) -> Duration {
    let (mut client, started, mut most) = (server.client(), Instant::now(), 0.0f64);
    while started.elapsed() < time {
        for sink in sinks.iter().filter(|sink| **sink != ill) {
            most = most.max(lag(&mut client, sink));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Duration::from_secs_f64(most / per_s)
}

/// Waits until a destination has made up for what it missed: how long that took, and how many rows a second it took.
fn made_up(server: &Server, sink: &str, per_s: f64) -> (Duration, f64) {
    let (mut client, started) = (server.client(), Instant::now());
    let behind = lag(&mut client, sink);
    loop {
        let left = lag(&mut client, sink);
        let took = started.elapsed();
        if left <= LAG_MAX.as_secs_f64() * per_s {
            return (took, (behind - left) / took.as_secs_f64().max(0.001) + per_s);
        }
        assert!(took < PATIENCE + PATIENCE, "{sink}: {left} rows wait still");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The part of a name that outages must have.
#[expect(clippy::disallowed_methods, reason = "a choice among tests, not configuration of the program")]
fn wanted() -> String {
    std::env::var("TIDEGATE_OUTAGE_OF").unwrap_or_default()
}

#[test]
fn outages_of_a_destination_harm_no_other_and_are_made_up_for() {
    let seconds = on_demand("TIDEGATE_OUTAGE_S", 5);
    let (strict, time) = (seconds >= STRICT_S, Duration::from_secs(seconds));
    let ((proxy, url), schema) = (proxied(), format!("outages{}", std::process::id()));
    let fluvio = Cluster::alone("Fluvio among the destinations that are away for a while");
    let (redis, objects) = (lasting(), S3Server::start());
    let mut around = Destinations { proxy, redis, objects, fluvio, stopped: Vec::new(), repair: None };
    let sinks = around.sinks();
    let mut settings: Vec<(&str, String)> = vec![
        ("STARTER_PACK", "false".into()),
        ("DELIVERY__FLUSH_INTERVAL_MS", "500".into()),
        ("DELIVERY__RETRY_MS_MAX", "500".into()),
        ("DELIVERY__OPEN_AFTER_FAILURES", "2".into()),
        ("QUERY__ROWS_MAX", "20000000".into()),
        ("SINKS__TIMESCALE__URL", url),
        ("SINKS__TIMESCALE__SCHEMA", schema.clone()),
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "500".into()),
        ("SINKS__TIMESCALE__CONNECT_MS_MAX", "1000".into()),
        ("SINKS__TIMESCALE__STATEMENT_MS_MAX", "2000".into()),
        ("SINKS__REDIS__URL", around.redis.url()),
        ("SINKS__REDIS__CONNECT_MS_MAX", "1000".into()),
        ("SINKS__REDIS__REPLY_MS_MAX", "2000".into()),
        ("SINKS__REDIS__STREAMS__ENTRIES_MAX", "100000000".into()),
    ];
    settings.extend(around.objects.settings());
    if let Some(cluster) = &around.fluvio {
        let config = cluster.config();
        settings.push(("SINKS__FLUVIO__ADDRESS", config.address));
        settings.push(("SINKS__FLUVIO__PREFIX", config.prefix));
        settings.push(("SINKS__FLUVIO__CONNECT_MS_MAX", "1000".into()));
        settings.push(("SINKS__FLUVIO__REPLY_MS_MAX", "2000".into()));
    }
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut server = Server::start_in(&CREDENTIALS, &settings);
    let mut ledger = Ledger::default();
    let usual = Run::start(&server, "well");
    // With the same looks at the metrics as later: they cost something too.
    let behind = others_behind(&server, &sinks, "", time, RATE);
    let usual = usual.end(&mut ledger);
    println!("all well for {seconds} s: {usual:.0?}, at most {behind:.1?} behind");

    let short = [
        Outage::DatabaseHangs,
        Outage::DatabaseSlow,
        Outage::DatabaseCutsOff,
        Outage::RedisStopped,
        Outage::ObjectsAway,
    ];
    let long = [Outage::DatabaseRefuses, Outage::DatabaseStopped, Outage::ObjectsHang];
    let fluvio = [Outage::FluvioStopped, Outage::FluvioKilled];
    let fluvio = fluvio.iter().filter(|_| sinks.contains(&FLUVIO));
    let all = short.iter().chain(long.iter().filter(|_| strict)).chain(fluvio);
    for outage in all.filter(|outage| format!("{outage:?}").contains(&wanted())) {
        let sink = outage.sink();
        around.fall(*outage);
        let run = Run::start(&server, &format!("{outage:?}"));
        let others = others_behind(&server, &sinks, sink, time, usual.per_s);
        let during = run.end(&mut ledger);
        let mut client = server.client();
        let told = || String::from_utf8_lossy(&server.client().get("/readyz").body).into_owned();
        if matches!(outage, Outage::DatabaseSlow) {
            assert!(lag(&mut client, sink) > usual.per_s, "it is too slow to follow");
        } else {
            until(&format!("{outage:?} is told of"), || told().contains(sink));
            // But the server goes on; without its store it would not.
            let ready = client.get("/readyz").status.as_u16();
            assert!(ready == 200 || sink == OBJECTS, "{outage:?}: {ready} {}", told());
            until(&format!("{outage:?} opens the circuit"), || gauge(&mut client, "circuit_open", sink) == Some(1.0));
        }
        // The load goes on while it catches up.
        let run = Run::start(&server, &format!("{outage:?}-after"));
        around.be_well();
        let (took, per_s) = made_up(&server, sink, usual.per_s);
        assert_ne!(gauge(&mut client, "circuit_open", sink), Some(1.0), "{outage:?}: the circuit is closed");
        let after = others_behind(&server, &sinks, "", Duration::from_secs(2), usual.per_s);
        let caught = run.end(&mut ledger);
        println!(
            "{outage:?} for {seconds} s: {during:.0?}, others at most {others:.1?} behind; made up for in {took:.1?} at \
             {per_s:.0} rows/s with {caught:.0?}, then at most {after:.1?} behind"
        );
        let longest = during.longest.max(caught.longest);
        assert!(longest < Duration::from_secs(3), "{outage:?}: an answer took {longest:?}");
        // Beside other tests the clock tells what they do; the work for an event does not depend on them as much. But rows that
        // are cut off are made anew for each try, here twice a second.
        let again = matches!(outage, Outage::DatabaseCutsOff);
        assert!(again || during.per_cpu_s > usual.per_cpu_s * 0.5, "{outage:?}: {during:.0?} of {usual:.0?}");
        if strict {
            // What is tried again and again costs something, and what is not delivered costs nothing.
            assert!(again || during.per_cpu_s > usual.per_cpu_s * 0.95, "{outage:?}: {during:.0?} of {usual:.0?}");
            assert!(during.per_s > usual.per_s * 0.95 && caught.per_s > usual.per_s * 0.95, "{outage:?}: {caught:.0?}");
            assert!(others <= LAG_MAX && after <= LAG_MAX, "{outage:?}: {others:?} and {after:?} behind");
            assert!(per_s >= 2.0 * usual.per_s, "{outage:?}: only {per_s:.0} rows/s");
        }
    }
    everywhere(&server, &around, &ledger, &schema);
    server.stop();
    drop_schema(&schema);
}

/// Every event is in every destination, once.
fn everywhere(server: &Server, around: &Destinations, ledger: &Ledger, schema: &str) {
    let mut client = server.client();
    let sent = ledger.acknowledged.len();
    for sink in around.sinks() {
        until(&format!("{sink} has everything"), || lag(&mut client, sink) == 0.0);
    }
    ledger.agree(&mut client);
    let ids = query(&format!("SELECT event_id FROM {schema}.security_events"));
    let distinct: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!((ids.len(), &distinct), (sent, &ledger.acknowledged), "in the database");
    let entries = around.redis.cli(&["XLEN", "tidegate:stream:default:security_events"]);
    assert_eq!(entries.trim(), sent.to_string(), "in Redis");
    println!("{sent} events, each once in the database, in Redis and in the object store");
    if let Some(cluster) = &around.fluvio {
        let records = cluster.consume(Dataset::SecurityEvents, Some(32 << 20));
        let distinct: BTreeSet<String> = records.iter().map(|record| record.id.clone()).collect();
        assert_eq!(distinct, ledger.acknowledged, "in Fluvio");
        println!("and each in Fluvio, {} of them again", records.len() - sent);
    }
}
