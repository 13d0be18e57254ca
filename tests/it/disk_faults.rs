//! Disks that are slow, that fail, that are full, that hang: what the whole program promises of them.

use std::time::{Duration, Instant};

use crate::faults::Faults;
use crate::ledger::{Load, Pace};
use crate::server::{Caller, PATIENCE, Server, event};

/// How long the server may take to say that it cannot write, or to write again.
const AT_ONCE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(5);

/// Asks until the status is `wanted`; how long that took.
fn until_status(client: &mut Caller, wanted: u16, patience: Duration) -> Duration {
    let started = Instant::now();
    loop {
        let id = format!("probe-{}", started.elapsed().as_nanos());
        let status = client.bulk("/v2/events/bulk?source=probe", &[event(&id, "x")]).status.as_u16();
        if status == wanted {
            return started.elapsed();
        }
        assert!(started.elapsed() < patience, "{status}, not {wanted}, after {:?}", started.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_disk_that_takes_half_a_second_to_sync_sheds_and_loses_nothing() {
    let faults = Faults::new();
    // Little may wait, so that there is something to shed.
    let settings = [("STARTER_PACK", "false"), ("LOG_STORE__QUEUE_BYTES_MAX", "2000000")];
    let server = Server::start_under(&faults, &[], &settings);
    server.client().bulk("/v2/events/bulk?source=probe", &[event("first", "x")]);
    let before = server.memory();
    faults.only("/log/");
    faults.slow(Duration::from_millis(500));
    let pace = Pace { workers: 24, events: 500, bytes: 400, until_refused: false };
    let load = Load::start(&server.url, "slow", pace);
    let mut most = 0;
    for _ in 0..60 {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(server.memory());
    }
    let ledger = load.stop();
    faults.heal();
    assert!(ledger.count(200) > 20, "{} answers with 200", ledger.count(200));
    assert!(ledger.count(429) + ledger.count(503) > 0, "nothing was shed: {:?}", ledger.answers.keys());
    assert_eq!(ledger.refusals_without_retry, 0);
    assert_eq!(ledger.unanswered(), 0, "requests without an answer");
    assert!(ledger.longest(200) >= Duration::from_millis(500), "the disk was not slow: {:?}", ledger.longest(200));
    // One sync under way and one for the own group, each of half a second.
    assert!(ledger.longest(200) < Duration::from_secs(3), "an answer took {:?}", ledger.longest(200));
    assert!(most < before + (256 << 20), "memory grew from {before} to {most} bytes");
    ledger.agree(&mut server.client());
}

#[test]
fn a_sync_that_fails_acknowledges_nothing_and_the_server_goes_on_when_the_disk_does() {
    let faults = Faults::new();
    let mut server = Server::start_under(&faults, &[], &[("STARTER_PACK", "false")]);
    let pace = Pace { workers: 4, events: 20, bytes: 100, until_refused: false };
    let mut client = server.client();
    let mut all = crate::ledger::Ledger::default();
    faults.only("/log/");
    for round in 0..4 {
        let load = Load::start(&server.url, &format!("eio-{round}"), pace);
        std::thread::sleep(Duration::from_millis(300));
        faults.fail_after(3 * round);
        let started = Instant::now();
        while faults.failed() == 0 {
            assert!(started.elapsed() < PATIENCE, "no sync failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Refused at once, and while it lasts; reads go on.
        let took = until_status(&mut client, 503, PATIENCE);
        assert!(took < AT_ONCE, "round {round}: refused {took:?} after the first sync that failed");
        let asked = Instant::now();
        assert_eq!(client.bulk("/v2/events/bulk?source=probe", &[event("refused", "x")]).status.as_u16(), 503);
        assert!(asked.elapsed() < AT_ONCE, "the refusal took {:?}", asked.elapsed());
        client.number("SELECT count(*) FROM security_events");
        faults.heal();
        let healed = until_status(&mut client, 200, PATIENCE);
        assert!(healed < SOON, "round {round}: writes came back after {healed:?} (refused after {took:?})");
        all.merge(load.stop());
    }
    assert!(all.count(200) > 20 && all.count(503) > 0, "{:?}", all.answers.keys());
    assert_eq!(all.refusals_without_retry, 0);
    all.agree(&mut client);
    server.kill();
    server.run(&[("STARTER_PACK", "false")]);
    all.agree(&mut server.client());
}

/// Fills a small disk, of which the server keeps `free_bytes_min` free; then frees it.
fn fill(free_bytes_min: &str) {
    let settings = [
        ("STARTER_PACK", "false"),
        ("LOG_STORE__FREE_BYTES_MIN", free_bytes_min),
        ("LOG_STORE__SEGMENT_BYTES_MAX", "4000000"),
        // What is stored as Parquet stays in the log, too.
        ("LOG_STORE__RETAIN_BYTES_MIN", "1000000000"),
    ];
    let server = Server::start_on_small_disk(96 << 20, 48 << 20, &settings);
    let load = Load::start(&server.url, "full", Pace { workers: 3, events: 200, bytes: 1000, until_refused: false });
    let mut client = server.client();
    let started = Instant::now();
    let refused = loop {
        let status = client.bulk("/v2/events/bulk?source=probe", &[event("probe", "x")]).status.as_u16();
        if status != 200 {
            break status;
        }
        assert!(started.elapsed() < PATIENCE, "the disk does not get full");
    };
    assert!(matches!(refused, 429 | 503), "{refused}");
    // While it is full, for a while: reads go on, refusals are quick, the process lives.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        assert!(client.number("SELECT count(*) FROM security_events") > 0);
        assert_eq!(client.get("/healthz").status.as_u16(), 200);
    }
    server.drop_ballast();
    let resumed = until_status(&mut client, 200, PATIENCE);
    assert!(resumed < SOON, "writes came back after {resumed:?}: {}", server.lines());
    let ledger = load.stop();
    let refusals = ledger.count(429) + ledger.count(503);
    assert!(ledger.count(200) > 10 && refusals > 10, "{} stored, {refusals} refused", ledger.count(200));
    assert_eq!((ledger.refusals_without_retry, ledger.unanswered()), (0, 0));
    let slowest = ledger.longest(429).max(ledger.longest(503));
    assert!(slowest < AT_ONCE, "a refusal took {slowest:?}");
    ledger.agree(&mut client);
}

#[test]
fn a_disk_with_little_room_left_refuses_and_resumes() {
    fill("16777216");
}

#[test]
fn a_disk_that_is_full_to_the_last_byte_refuses_and_resumes() {
    fill("0");
}

/// While syncs of files whose path has `part` hang, `/readyz` must name `stage`; afterwards all is well again.
fn hang(part: &str, stage: &str) {
    let faults = Faults::new();
    let server = Server::start_under(&faults, &[], &[("DELIVERY__FLUSH_INTERVAL_MS", "200")]);
    let mut client = server.client();
    client.bulk("/v2/events/bulk", &[event("first", "x")]);
    faults.only(part);
    faults.slow(Duration::from_secs(600));
    let started = Instant::now();
    // Work for every stage: an event, and one that a rule of the starter pack finds.
    let url = server.url.clone();
    let load = Load::start(&url, "hang", Pace { workers: 1, events: 1, bytes: 0, until_refused: true });
    let root = serde_json::json!({"eventSource": "signin.amazonaws.com", "eventName": "ConsoleLogin",
        "userIdentity": {"type": "Root"}, "additionalEventData": {"MFAUsed": "No"},
        "responseElements": {"ConsoleLogin": "Success"}});
    let alarm = std::thread::spawn(move || {
        let mut client = Caller::new(&url, None);
        for at in 0..40 {
            let _ = client.try_send("POST", "/v2/events/bulk?source=cloudtrail", &[], root.to_string().as_bytes());
            // And changes enough for a snapshot of the registry.
            let id = format!("7c2c7d0e-6f0b-4a3e-9a53-{at:012}");
            let rule = format!(
                "title: Rule {at}\nid: {id}\nlogsource: {{product: x}}\ndetection: {{s: {{a: {at}}}, condition: s}}\n"
            );
            let _ = client.try_send("POST", "/v2/threat-detection/rules", &[], rule.as_bytes());
        }
    });
    // A stage that waits for the one that hangs may have begun to wait a moment earlier, and is named that much earlier.
    let mut first_refusal = None;
    loop {
        let reply = client.get("/readyz");
        if reply.status.as_u16() == 503 {
            let refused = *first_refusal.get_or_insert_with(Instant::now);
            let named = reply.json();
            assert!(refused - started > Duration::from_secs(9), "too early: {named}");
            let stuck = named["stuck"].as_array().expect("a list of stages");
            if stuck.iter().any(|name| name.as_str().is_some_and(|name| name.contains(stage))) {
                break;
            }
            assert!(refused.elapsed() < SOON, "{stage} is not among them: {named}");
        }
        assert!(started.elapsed() < PATIENCE, "nobody says that {stage} is stuck");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(client.get("/healthz").status.as_u16(), 200, "the process lives");
    faults.heal();
    load.stop();
    alarm.join().expect("a client");
    let healed = Instant::now();
    while client.get("/readyz").status.as_u16() != 200 {
        assert!(healed.elapsed() < SOON, "{:?}", client.get("/readyz").body);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn readyz_names_a_log_that_hangs() {
    hang("/log/", "log");
}

#[test]
fn readyz_names_a_store_that_hangs() {
    hang("/store/", "parquet");
}

#[test]
fn readyz_names_a_run_loop_that_cannot_write_alerts() {
    hang("/output/", "output");
}

#[test]
fn readyz_names_a_run_loop_that_cannot_write_checkpoints() {
    hang("/checkpoint/", "run loop");
}

#[test]
fn readyz_names_a_registry_that_hangs() {
    hang("/registry/", "registry");
}
