//! The same question gives the same rows while the events are in the log, once they are in Parquet, and in between.

use serde_json::{Value, json};

use crate::server::Server;

const QUESTIONS: &[&str] = &[
    "SELECT count(*) AS n, count(DISTINCT event_id) AS ids FROM security_events",
    "SELECT event_id, source, action, n, \"user.name\", \"list\" FROM security_events ORDER BY event_id",
    "SELECT source, count(*) AS n, min(time) AS first, max(time) AS last FROM security_events GROUP BY source ORDER BY source",
    "SELECT event_id, \"mixed\" FROM security_events WHERE \"mixed\" IS NOT NULL ORDER BY event_id",
    "SELECT event_id FROM security_events WHERE time >= '2026-11-20T10:00:30Z' AND n < 50 ORDER BY n DESC LIMIT 7",
    "SELECT a.event_id FROM security_events a JOIN security_events b ON a.n = b.n AND a.event_id < b.event_id ORDER BY 1",
    "SELECT service_name, CAST(sum(billed_cost) AS VARCHAR) AS billed FROM cost_events GROUP BY 1 ORDER BY 1",
    "SELECT rule_id, count(*) AS n FROM alerts GROUP BY 1 ORDER BY 1",
    "SELECT code, reason, payload FROM dead_letters ORDER BY item_index",
];

fn events(from: i64) -> Vec<Value> {
    (from..from + 60)
        .map(|n| {
            let mixed = match n % 3 {
                0 => json!(n),
                1 => json!(format!("text {n}")),
                _ => json!(n as f64 + 0.5),
            };
            json!({"event_id": format!("e-{n:04}"), "@timestamp": format!("2026-11-20T10:00:{:02}Z", n % 60), "action": "read", "n": n,
                "user": {"name": if n % 2 == 0 { "ada" } else { "grace" }}, "list": [n, n + 1], "mixed": mixed})
        })
        .collect()
}

fn answers(server: &Server) -> Vec<Vec<Value>> {
    let mut client = server.client();
    QUESTIONS.iter().map(|question| client.sql(question)).collect()
}

#[test]
fn hot_cold_and_mixed_reads_agree() {
    // Only a drain commits to the store, so that the first answers come from the log alone.
    let hot = [("DELIVERY__FLUSH_INTERVAL_MS", "3600000")];
    let mut server = Server::start(&hot);
    let mut client = server.client();
    assert_eq!(client.bulk("/v2/events/bulk?source=app", &events(0)).json()["accepted"], 60);
    let cost = json!({"BilledCost": "12.34", "ChargePeriodStart": "2026-11-01T00:00:00Z", "ServiceName": "Compute"});
    assert_eq!(client.bulk("/v2/costs/bulk", &[cost]).json()["accepted"], 1);
    let reply = client.send("POST", "/v2/events/bulk", &[("content-type", "application/x-ndjson")], b"{\"a\"\n");
    assert_eq!(reply.json()["rejected"], 1);
    let from_log = answers(&server);
    assert_eq!(from_log[0][0]["n"], 60);
    assert_eq!(parquet_files(&server), 0, "nothing was committed yet");
    server.stop();
    assert!(parquet_files(&server) > 0, "the drain commits");
    server.run(&hot);
    let from_parquet = answers(&server);
    for (at, question) in QUESTIONS.iter().enumerate() {
        assert_eq!(from_log[at], from_parquet[at], "{question}");
    }

    // Half in Parquet, half in the log; then all in Parquet again.
    assert_eq!(server.client().bulk("/v2/events/bulk?source=app", &events(60)).json()["accepted"], 60);
    let mixed = answers(&server);
    assert_eq!(mixed[0][0]["n"], 120);
    server.stop();
    server.run(&hot);
    let cold = answers(&server);
    for (at, question) in QUESTIONS.iter().enumerate() {
        assert_eq!(mixed[at], cold[at], "{question}");
    }
}

fn parquet_files(server: &Server) -> usize {
    let mut folders = vec![server.data_dir().join("store")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|ending| ending == "parquet") {
                files += 1;
            }
        }
    }
    files
}
