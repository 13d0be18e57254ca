//! SIGKILL at any moment under load: nothing acknowledged is lost, nothing is doubled, alerts are those of a quiet run.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Caller, Server};

const RULE: &str = "\
title: Ledger marker
id: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1a01
logsource: {product: ledger}
detection: {marked: {mark: 'yes'}, condition: marked}
level: high
";

/// What a client was promised.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeSet<String>,
    issued: BTreeSet<String>,
}

fn ledger_event(id: &str, at: u64) -> Value {
    json!({"event_id": id, "n": at, "mark": if at.is_multiple_of(10) { "yes" } else { "no" }})
}

fn send_until(stop: &AtomicBool, url: &str, worker: u64, round: u64, ledger: &Mutex<Ledger>) {
    let mut client = Caller::new(url, None);
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let ids: Vec<_> = (at..at + 10).map(|at| (format!("{round}-{worker}-{at}"), at)).collect();
        at += 10;
        let events: Vec<_> = ids.iter().map(|(id, at)| ledger_event(id, *at)).collect();
        let body: Vec<u8> = events.iter().flat_map(|event| format!("{event}\n").into_bytes()).collect();
        ledger.lock().expect("a ledger").issued.extend(ids.iter().map(|(id, _)| id.clone()));
        let headers = [("content-type", "application/x-ndjson")];
        match client.try_send("POST", "/v2/events/bulk?source=ledger", &headers, &body) {
            Some(reply) if reply.status.as_u16() == 200 => {
                ledger.lock().expect("a ledger").acknowledged.extend(ids.into_iter().map(|(id, _)| id));
            }
            _ => return,
        }
    }
}

#[test]
fn twenty_kills_under_load_lose_and_double_nothing() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("ledger.yml"), RULE).expect("a rule");
    let folder = rules.path().to_str().expect("a path");
    // Small bounds, so that rolls, commits and checkpoints happen in the middle of it.
    let settings = [("RULES", folder), ("RUN__CHECKPOINT_INTERVAL_MS", "50"), ("DELIVERY__FLUSH_INTERVAL_MS", "200")];
    let mut server = Server::start(&settings);
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    for round in 0..20u64 {
        let stop = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let (stop, ledger, url) = (stop.clone(), ledger.clone(), server.url.clone());
                std::thread::spawn(move || send_until(&stop, &url, worker, round, &ledger))
            })
            .collect();
        // A different moment each round, between 30 and 410 ms.
        std::thread::sleep(Duration::from_millis(30 + (round * 137) % 380));
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().expect("a worker");
        }
        server.run(&settings);
    }
    let ledger = ledger.lock().expect("a ledger");
    let mut client = server.client();
    assert!(ledger.acknowledged.len() > 500, "only {} events were acknowledged", ledger.acknowledged.len());
    let rows = client.sql("SELECT event_id FROM security_events");
    let stored: Vec<_> = rows.iter().map(|row| row["event_id"].as_str().expect("an id").to_owned()).collect();
    let distinct: BTreeSet<_> = stored.iter().cloned().collect();
    assert_eq!(stored.len(), distinct.len(), "events are doubled");
    let lost: Vec<_> = ledger.acknowledged.difference(&distinct).collect();
    assert!(lost.is_empty(), "lost {} of {}: {lost:?}", lost.len(), ledger.acknowledged.len());
    assert!(distinct.is_subset(&ledger.issued), "events that nobody sent");

    let marked = client.number("SELECT count(*) FROM security_events WHERE mark = 'yes'");
    client.wait_for("SELECT count(*) FROM alerts", marked);
    assert_eq!(client.number("SELECT count(DISTINCT alert_id) FROM alerts"), marked, "alerts are doubled");
    let unmatched = "SELECT count(*) FROM security_events e LEFT JOIN alerts a ON a.event_ids[1] = e.event_id \
                     WHERE e.mark = 'yes' AND a.alert_id IS NULL";
    assert_eq!(client.number(unmatched), 0);
}
