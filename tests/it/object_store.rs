//! History in an object store: killed, cut off and taken over, the program loses and doubles nothing.
//!
//! `TIDEGATE_OUTAGE_S=60 cargo test -p tidegate --test it -- object_store --nocapture` keeps the object store away for longer, and
//! holds ingest to 95 % of its rate.

use std::time::{Duration, Instant};

use crate::ledger::{Ledger, Load, Pace, killed_under_load, some_time};
use crate::s3_server::{CREDENTIALS, Ill, OTHER_CREDENTIALS, S3Server};
use crate::server::{Caller, PATIENCE, Server, event, on_demand};

/// Settings of the tests beside those of the object store: small commits, merged early.
const SMALL: [(&str, &str); 6] = [
    ("STARTER_PACK", "false"),
    ("DELIVERY__FLUSH_INTERVAL_MS", "100"),
    ("DELIVERY__RETRY_MS_MAX", "500"),
    ("PARQUET__COMPACT_FILES_MIN", "4"),
    ("PARQUET__READER_GRACE_S", "1"),
    ("PARQUET__EDITS_PER_SNAPSHOT", "8"),
];

fn settings(objects: &S3Server) -> Vec<(&'static str, String)> {
    settings_of(objects, "s3")
}

fn settings_of(objects: &S3Server, cloud: &str) -> Vec<(&'static str, String)> {
    let small = SMALL.map(|(name, value)| (name, value.to_owned()));
    // The ledger asks for every event in one answer.
    let whole = [("QUERY__ROWS_MAX", "20000000".to_owned())];
    small.into_iter().chain(whole).chain(objects.settings_of(cloud)).collect()
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Rows of the ingest log that the object store does not have yet.
fn lag(client: &mut Caller) -> Option<f64> {
    let metrics = String::from_utf8_lossy(&client.get("/metrics").body).into_owned();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("tidegate_pipeline_delivery_lag_rows{sink=\"parquet:ingest\"}"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn drained(client: &mut Caller) -> Duration {
    let started = Instant::now();
    while lag(client) != Some(0.0) {
        assert!(started.elapsed() < PATIENCE, "{:?} rows wait still", lag(client));
        std::thread::sleep(Duration::from_millis(50));
    }
    started.elapsed()
}

#[test]
fn kills_under_load_lose_and_double_nothing_in_an_object_store() {
    let rounds = on_demand("TIDEGATE_OBJECT_KILLS", 8);
    let objects = S3Server::start();
    let settings = settings(&objects);
    let settings = borrowed(&settings);
    let mut server = Server::start_in(&CREDENTIALS, &settings);
    let pace = Pace { workers: 2, events: 20, bytes: 0, until_refused: true };
    let ledger = killed_under_load(&mut server, &settings, (rounds, pace), |round, _| {
        std::thread::sleep(some_time(round, 150));
    });
    let mut client = server.client();
    ledger.agree(&mut client);
    drained(&mut client);
    ledger.agree(&mut client);
    assert!(!server.data_dir().join("store/security_events").exists(), "nothing is on the local disk");
    assert!(!objects.keys(".parquet").is_empty());
    // All from the object store, by way of the cache.
    let all = client.number("SELECT count(*) FROM security_events WHERE source = 'ledger'");
    let cached = std::fs::read_dir(server.data_dir().join("cache")).expect("a cache").count();
    assert!(all >= ledger.acknowledged.len() as i64 && cached > 0, "{all} rows, {cached} blocks");
    assert!(!server.lines().contains("hush-hush"), "the secret is in the log");
    println!("{rounds} kills: {} events acknowledged, none lost or doubled", ledger.acknowledged.len());
}

/// Events acknowledged in a second, and in a second of the server's CPU time.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_s: f64,
    per_cpu_s: f64,
}

#[test]
fn an_object_store_that_is_away_harms_nobody_and_is_caught_up_with() {
    let seconds = on_demand("TIDEGATE_OUTAGE_S", 5);
    let objects = S3Server::start();
    let settings = settings(&objects);
    let mut server = Server::start_in(&CREDENTIALS, &borrowed(&settings));
    let pace = Pace { workers: 2, events: 10, bytes: 0, until_refused: false };
    let time = Duration::from_secs(seconds);
    let mut ledger = Ledger::default();
    let run = |ledger: &mut Ledger, server: &Server, round: &str, time: Duration| {
        let (load, cpu) = (Load::start(&server.url, round, pace), server.cpu());
        std::thread::sleep(time);
        let (done, cpu) = (load.stop(), server.cpu() - cpu);
        assert_eq!(
            (done.unanswered(), done.count(429), done.count(503)),
            (0, 0, 0),
            "{round}: every request is answered with 200"
        );
        assert!(done.longest(200) < Duration::from_secs(3), "{round}: an answer took {:?}", done.longest(200));
        let events = done.acknowledged.len() as f64;
        ledger.merge(done);
        Rate { per_s: events / time.as_secs_f64(), per_cpu_s: events / cpu.as_secs_f64() }
    };
    let usual = run(&mut ledger, &server, "well", time);
    let mut client = server.client();
    let mut rates = Vec::new();
    for (nth, ill) in
        [Ill::Away, Ill::Hangs, Ill::Says(503), Ill::Slow(Duration::from_millis(500))].into_iter().enumerate()
    {
        objects.fall(ill);
        rates.push((ill, run(&mut ledger, &server, &format!("ill-{nth}"), time)));
        if !matches!(ill, Ill::Slow(_)) {
            let told = || String::from_utf8_lossy(&server.client().get("/readyz").body).into_owned();
            let started = Instant::now();
            while !told().contains("parquet:ingest") {
                assert!(started.elapsed() < PATIENCE, "{ill:?}: {}", told());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        // Rows that were acknowledged are seen, wherever they are.
        objects.fall(Ill::Well);
        let took = drained(&mut client);
        println!("{ill:?} for {seconds} s: drained within {took:?} of being well");
    }
    ledger.agree(&mut client);
    unread(&objects, &mut client, &server);
    assert!(!String::from_utf8_lossy(&client.get("/readyz").body).contains("parquet"), "all is well again");
    println!("ingest: {usual:.0?} when well, {rates:.0?} when ill");
    // Beside other tests the wall clock tells what they do; the work for an event, and the longest wait above, do not depend on them.
    for (ill, rate) in rates {
        assert!(rate.per_cpu_s > usual.per_cpu_s * 0.5, "{ill:?}: {rate:.0?} of {usual:.0?}");
        assert!(seconds < 60 || rate.per_s > usual.per_s * 0.95, "{ill:?}: {rate:.0?} of {usual:.0?}");
    }
    server.stop();
}

/// A query that needs what is neither in the cache nor to be had is told to come again; others are answered.
fn unread(objects: &S3Server, client: &mut Caller, server: &Server) {
    let cache = server.data_dir().join("cache");
    for block in std::fs::read_dir(&cache).expect("a cache") {
        std::fs::remove_file(block.expect("an entry").path()).expect("removed");
    }
    objects.fall(Ill::Says(503));
    let question = b"SELECT max(mark) FROM security_events WHERE n = 3";
    let reply = client.send("POST", "/v2/sql", &[("content-type", "text/plain")], question);
    let told = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(reply.status.as_u16() == 503 && told.contains("history_unavailable"), "{} {told}", reply.status);
    assert_eq!(client.number("SELECT count(*) FROM security_events WHERE time > now() + interval '9 years'"), 0);
    objects.fall(Ill::Well);
    let reply = client.send("POST", "/v2/sql", &[("content-type", "text/plain")], question);
    assert_eq!(reply.status.as_u16(), 200, "{}", String::from_utf8_lossy(&reply.body));
}

#[test]
fn a_server_waits_for_an_object_store_that_is_away_when_it_starts() {
    let objects = S3Server::start();
    let settings = settings(&objects);
    let settings = borrowed(&settings);
    let mut server = Server::start_in(&CREDENTIALS, &settings);
    let load = Load::start(&server.url, "a", Pace { workers: 1, events: 20, bytes: 0, until_refused: true });
    std::thread::sleep(Duration::from_millis(500));
    server.kill();
    let ledger = load.stop();
    objects.fall(Ill::Away);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            objects.fall(Ill::Well);
        });
        server.run(&settings);
    });
    assert!(server.lines().contains("cannot be opened yet"), "{}", server.lines());
    ledger.agree(&mut server.client());
}

#[test]
fn a_second_server_takes_over_only_with_an_empty_log() {
    takes_over("s3", &CREDENTIALS);
}

#[test]
fn the_other_clouds_have_one_writer_and_take_files_in_parts() {
    for cloud in ["gs", "az"] {
        let objects = takes_over(cloud, &OTHER_CREDENTIALS);
        let mut settings = settings_of(&objects, cloud);
        settings.extend([
            ("PARQUET__UPLOAD_PART_BYTES", "5242880".to_owned()),
            ("PARQUET__CACHE_BYTES_MAX", "0".to_owned()),
        ]);
        // Text that cannot be made smaller by much: 16 MB in all.
        let mut random = 88_172_645_463_325_252u64;
        let mut word = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            format!("{random:016x}")
        };
        let events: Vec<_> =
            (0..160).map(|at| event(&format!("large-{at}"), &(0..6_250).map(|_| word()).collect::<String>())).collect();
        let mut server = Server::start_in(&OTHER_CREDENTIALS, &borrowed(&settings));
        let mut client = server.client();
        assert_eq!(client.bulk("/v2/events/bulk?source=custom", &events).json()["accepted"], 160, "{cloud}");
        drained(&mut client);
        server.stop();
        assert!(objects.in_parts() > 0, "{cloud}: nothing went up in parts");
        server.run(&borrowed(&settings));
        let (whole, large) = ("length(action) = 100000", "event_id LIKE 'large-%'");
        let sql = format!("SELECT count(DISTINCT event_id) FROM security_events WHERE {large} AND {whole}");
        assert_eq!(server.client().number(&sql), 160, "{cloud}");
    }
}

/// What a second server does beside a first one that writes to the same place.
fn takes_over(cloud: &str, credentials: &[(&str, &str)]) -> S3Server {
    let objects = S3Server::start();
    let settings = settings_of(&objects, cloud);
    let settings = borrowed(&settings);
    let first = Server::start_in(credentials, &settings);
    let load = Load::start(&first.url, "first", Pace { workers: 1, events: 20, bytes: 0, until_refused: true });
    std::thread::sleep(Duration::from_millis(500));
    let mut ledger = load.stop();
    drained(&mut first.client());
    let second = Server::start_in(credentials, &settings);
    let load = Load::start(&second.url, "second", Pace { workers: 1, events: 20, bytes: 0, until_refused: true });
    std::thread::sleep(Duration::from_millis(500));
    ledger.merge(load.stop());
    ledger.agree(&mut second.client());
    // The first one is told with its next rows, which stay in its log.
    let pace = Pace { workers: 1, events: 20, bytes: 0, until_refused: true };
    let late = Load::start(&first.url, "late", pace);
    std::thread::sleep(Duration::from_millis(500));
    let late = late.stop();
    let started = Instant::now();
    while !String::from_utf8_lossy(&first.client().get("/readyz").body).contains("taken over") {
        assert!(started.elapsed() < PATIENCE, "{}", first.lines());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(lag(&mut first.client()) > Some(0.0));
    assert!(!late.acknowledged.is_empty());
    drained(&mut second.client());
    ledger.agree(&mut second.client());
    for server in [&first, &second] {
        assert!(!server.lines().contains("hush-hush"), "the secret is in the log");
    }
    objects
}
