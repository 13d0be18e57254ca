//! Rules tried on events that come with them, and on stored ones.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::cli::http::Reply;

use crate::server::{Caller, PATIENCE, Server};
use crate::tenants::key;

const ANALYZE: &str = "/v2/threat-detection/analyze";

/// A rule for events of the source `custom`, and a correlation of three of them.
fn rules(n: u32) -> String {
    format!(
        "title: Failed\nid: 22222222-2222-4333-8444-{n:012}\nname: failed\nlogsource: {{product: custom}}\n\
         detection: {{sel: {{action: fail}}, condition: sel}}\n---\n\
         title: Failed often\nid: 33333333-2222-4333-8444-{n:012}\ncorrelation:\n  type: event_count\n  rules: [failed]\n  \
         group-by: [user.name]\n  timespan: 10m\n  condition: {{gte: 3}}\n  generate: true\nlevel: critical\n"
    )
}

fn event(at: u32, user: &str, action: &str) -> Value {
    let time = format!("2026-11-20T10:{:02}:{:02}Z", at / 60, at % 60);
    json!({"event_id": format!("{user}-{at}"), "@timestamp": time, "action": action, "user": {"name": user}, "unread": "x"})
}

fn ask(client: &mut Caller, body: &Value) -> Reply {
    client.send("POST", ANALYZE, &[("content-type", "application/json")], body.to_string().as_bytes())
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status.as_u16(), reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status.as_u16(), 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.headers["content-type"], "application/x-ndjson");
    let text = String::from_utf8(reply.body.to_vec()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn titles(alerts: &[Value]) -> Vec<&str> {
    let mut titles: Vec<&str> = alerts.iter().filter_map(|alert| alert["title"].as_str()).collect();
    titles.sort_unstable();
    titles
}

#[test]
fn a_rule_is_tried_on_events_that_come_with_it() {
    let server = Server::start(&[("THREAT_DETECTION__ANALYZE_MATCHES_MAX", "5")]);
    let mut client = server.client();
    let events = json!([
        event(0, "ada", "fail"),
        event(1, "ada", "read"),
        event(2, "ada", "fail"),
        "no event",
        event(3, "bob", "fail"),
        event(4, "ada", "fail"),
    ]);
    let answer = ask(&mut client, &json!({"rule": rules(1), "events": events, "source": "custom"})).json();
    assert_eq!((answer["events"].as_u64(), answer["matched"].as_u64()), (Some(6), Some(4)), "{answer}");
    let matched: Vec<_> =
        answer["matches"].as_array().expect("matches").iter().map(|found| found["index"].as_u64()).collect();
    assert_eq!(matched, [0, 2, 4, 5].map(Some));
    assert_eq!(answer["matches"][0]["matched"], json!({"action": "fail"}));
    assert_eq!(
        (answer["problems"][0]["index"].as_u64(), answer["problems"].as_array().map(Vec::len)),
        (Some(3), Some(1))
    );
    // Suppressed as in the stream: one alert for each user, one that says how many more there were, one of the correlation.
    let alerts = answer["alerts"].as_array().expect("alerts");
    assert_eq!(titles(alerts), ["Failed", "Failed", "Failed", "Failed often"], "{answer}");
    assert_eq!(alerts.iter().filter(|alert| alert["continues"].is_string()).count(), 1, "{answer}");
    assert!(alerts.iter().all(|alert| alert.get("seq").is_none() && alert["alert_id"].is_string()));
    let many: Vec<Value> = (0..20).map(|at| event(at, "ada", "fail")).collect();
    let answer = ask(&mut client, &json!({"rule": rules(1), "events": many, "source": "custom"})).json();
    assert_eq!((answer["matched"].as_u64(), answer["matches"].as_array().map(Vec::len)), (Some(20), Some(5)));

    // By id, of a rule that ships with the program.
    let listed = client.get("/v2/threat-detection/rules?q=console_login_failed").json();
    let id = listed["rules"][0]["id"].as_str().expect("an id").to_owned();
    let login = json!({"eventSource": "signin.amazonaws.com", "eventName": "ConsoleLogin", "responseElements": {"ConsoleLogin": "Failure"}});
    let answer = ask(&mut client, &json!({"rule_id": id, "events": [login], "source": "cloudtrail"})).json();
    assert_eq!(answer["matched"], 1, "{answer}");
    // Nothing was stored, nobody alerted, no metric of the stream moved.
    assert_eq!(client.number("SELECT count(*) FROM security_events"), 0);
    assert_eq!(client.number("SELECT count(*) FROM alerts"), 0);
    let metrics = String::from_utf8(client.get("/metrics").body.to_vec()).expect("text");
    assert!(!metrics.contains("tidegate_rules_rows_total 20"), "{metrics}");
}

#[test]
fn what_cannot_be_analyzed_is_refused() {
    let server =
        Server::start(&[("THREAT_DETECTION__ANALYZE_EVENTS_MAX", "1000"), ("THREAT_DETECTION__ANALYSES_MAX", "1")]);
    let mut client = server.client();
    let one = json!([event(0, "ada", "fail")]);
    let many: Vec<Value> = (0..1_001).map(|_| json!({})).collect();
    let broken = rules(1).replace("condition: sel", "condition: other");
    let cases = [
        ("nothing", json!({}), (400, "invalid_body")),
        ("no events", json!({"rule": rules(1)}), (400, "invalid_body")),
        ("no rule", json!({"events": one}), (400, "invalid_body")),
        ("two rules", json!({"rule": rules(1), "rule_id": "x", "events": one}), (400, "invalid_body")),
        (
            "events and a range",
            json!({"rule": rules(1), "events": one, "from": "2026-01-01T00:00:00Z"}),
            (400, "invalid_body"),
        ),
        ("events that are none", json!({"rule": rules(1), "events": {"a": 1}}), (400, "invalid_body")),
        ("an unknown member", json!({"rule": rules(1), "events": one, "tenant": "acme"}), (400, "invalid_body")),
        ("an unknown table", json!({"rule": rules(1), "events": one, "dataset": "alerts"}), (400, "invalid_body")),
        ("no time", json!({"rule": rules(1), "from": "yesterday"}), (400, "invalid_body")),
        (
            "a range in reverse",
            json!({"rule": rules(1), "from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}),
            (400, "invalid_body"),
        ),
        ("an end alone", json!({"rule": rules(1), "to": "2026-01-01T00:00:00Z"}), (400, "invalid_body")),
        ("an unknown rule", json!({"rule_id": "../nobody", "events": one}), (404, "not_found")),
        ("a rule that does not load", json!({"rule": broken, "events": one}), (422, "invalid_rule")),
        ("a rule that is none", json!({"rule": "", "events": one}), (422, "invalid_rule")),
        ("too many events", json!({"rule": rules(1), "events": many}), (413, "too_many_events")),
    ];
    for (what, body, (status, wanted)) in cases {
        let reply = ask(&mut client, &body);
        assert_eq!(code(&reply), (status, wanted.to_owned()), "{what}: {}", String::from_utf8_lossy(&reply.body));
    }
    let broken = ask(&mut client, &json!({"rule": broken, "events": one})).json();
    assert_eq!(broken["error"]["problems"][0]["rule"], "22222222-2222-4333-8444-000000000001", "{broken}");
    for body in
        ["", "{", "[]", "{\"rule\": \"\\ud800\"}", "{\"rule\":\"x\",\"events\":[}", "{\"rule\":\"x\",\"events\":[{]"]
    {
        let reply = client.send("POST", ANALYZE, &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(code(&reply), (400, "invalid_body".to_owned()), "{body}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!("{{\"rule\":{},\"events\":[{{\"a\":{deep}}}]}}", json!(rules(1)));
    let reply = client.send("POST", ANALYZE, &[("content-type", "application/json")], deep.as_bytes());
    assert_eq!(
        (reply.status.as_u16(), reply.json()["problems"][0]["index"].as_u64()),
        (200, Some(0)),
        "{:?}",
        reply.body
    );
    let ask_nothing = json!({"rule": rules(1), "events": []});
    let empty = ask(&mut client, &ask_nothing).json();
    assert_eq!((empty["events"].as_u64(), empty["matched"].as_u64()), (Some(0), Some(0)), "{empty}");

    // One who sends slowly has the only place, until he goes.
    let head = format!("POST {ANALYZE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{{");
    let sends_slowly = || {
        let mut slow = std::net::TcpStream::connect(server.url.trim_start_matches("http://")).expect("a connection");
        slow.write_all(head.as_bytes()).expect("sent");
        std::thread::sleep(Duration::from_millis(100));
        slow
    };
    let started = Instant::now();
    let mut slow = sends_slowly();
    while ask(&mut client, &ask_nothing).status.as_u16() != 429 {
        assert!(started.elapsed() < PATIENCE, "the place is taken");
        // He came while the one who asks had the place, and was refused himself.
        slow = sends_slowly();
    }
    assert_eq!(code(&ask(&mut client, &ask_nothing)), (429, "too_many_analyses".to_owned()));
    drop(slow);
    while ask(&mut client, &ask_nothing).status.as_u16() != 200 {
        assert!(started.elapsed() < PATIENCE, "the place is free again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_rule_is_tried_on_stored_events_of_its_tenant() {
    let server = Server::start(&[
        ("DELIVERY__FLUSH_INTERVAL_MS", "300"),
        ("THREAT_DETECTION__RANGE_SLICE_ROWS", "1000"),
        ("THREAT_DETECTION__RANGE_ALERTS_MAX", "50"),
    ]);
    let (admin, other) = (key(&server, "acme", "admin"), key(&server, "zeta", "admin"));
    let mut acme = server.client_with(&admin);
    let events: Vec<Value> = (0..1_500)
        .map(|at| event(at, if at % 10 == 0 { "eve" } else { "ada" }, if at % 100 == 0 { "fail" } else { "read" }))
        .collect();
    acme.bulk("/v2/events/bulk?source=custom", &events);
    server.client_with(&other).bulk("/v2/events/bulk?source=custom", &[event(7, "mallory", "fail")]);
    let range = |rule: String| json!({"rule": rule, "from": "2026-11-20T10:00:00Z", "to": "2026-11-20T11:00:00Z"});
    let mut before: Option<Vec<Value>> = None;
    // In the log, and in Parquet, the same.
    for round in 0..2 {
        let reply = ask(&mut acme, &range(rules(1)));
        let all = lines(&reply);
        let summary = &all.last().expect("a last line")["summary"];
        assert_eq!(
            (summary["rows"].as_u64(), summary["matches"].as_u64()),
            (Some(1_500), Some(15)),
            "{round}: {summary}"
        );
        assert_eq!(summary["complete"], true);
        let alerts: Vec<Value> = all.iter().filter_map(|line| line.get("alert")).cloned().collect();
        assert_eq!(summary["alerts"].as_u64(), Some(alerts.len() as u64));
        assert!(titles(&alerts).contains(&"Failed often"), "{alerts:?}");
        assert!(!String::from_utf8_lossy(&reply.body).contains("mallory"));
        let ids: Vec<Value> = alerts.iter().map(|alert| alert["alert_id"].clone()).collect();
        assert_eq!(before.get_or_insert_with(|| ids.clone()), &ids, "{round}");
        std::thread::sleep(Duration::from_millis(1_000));
    }
    // What the stream raises when the same rule is in force is what was foretold.
    let started = Instant::now();
    let reply =
        acme.send("POST", "/v2/threat-detection/rules", &[("content-type", "application/yaml")], rules(1).as_bytes());
    assert_eq!(reply.status.as_u16(), 201, "{}", String::from_utf8_lossy(&reply.body));
    let by_id = json!({"rule_id": "33333333-2222-4333-8444-000000000001", "from": "2026-11-20T10:00:00Z", "to": "2026-11-20T10:10:00Z"});
    let all = lines(&ask(&mut acme, &by_id));
    assert_eq!(all.last().expect("a line")["summary"]["rows"], 600, "the end is not in the range");
    assert!(started.elapsed() < PATIENCE);
    // Nobody else sees either.
    let mut zeta = server.client_with(&other);
    assert_eq!(code(&ask(&mut zeta, &by_id)), (404, "not_found".to_owned()));
    let all = lines(&ask(&mut zeta, &range(rules(1))));
    assert_eq!(all.last().expect("a line")["summary"]["rows"], 1);
    // Past the bound of alerts it says that it is not whole.
    let every = "title: Every\nid: e\nlogsource: {product: custom}\ndetection: {sel: {action: '*'}, condition: sel}\ntidegate: {suppress: 0s}\n";
    let all = lines(&ask(&mut acme, &range(every.to_owned())));
    let summary = &all.last().expect("a line")["summary"];
    assert_eq!((summary["alerts"].as_u64(), summary["complete"].as_bool()), (Some(50), Some(false)), "{summary}");
    let nothing = json!({"rule": rules(1), "from": "1990-01-01T00:00:00Z", "to": "1990-01-02T00:00:00Z"});
    assert_eq!(lines(&ask(&mut acme, &nothing)).last().expect("a line")["summary"]["rows"], 0);
}
