//! The HTTP doors: formats, statuses, parameters, paging.

use arrow::ipc::reader::StreamReader;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use serde_json::Value;
use tidegate_events::{Alert, Dataset, FieldType, Level, alerts_to_batch};
use tidegate_pipeline::keys::Role;
use tidegate_query::QueryConfig;

use super::fixture::{Mode, World, alert, append, principal, rows};
use super::twin::MODES;

/// Status, content type and body of `POST /v2/sql`; the body is what came before an error.
async fn post(world: &World, kind: &str, accept: Option<&str>, body: &str) -> (u16, String, Vec<u8>, bool) {
    let mut request = Request::post("/v2/sql").header("content-type", kind);
    if let Some(accept) = accept {
        request = request.header("accept", accept);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
    let response = world.query.handle_sql(request, &principal("acme", Role::Read), "r-1").await;
    let (status, kind) =
        (response.status().as_u16(), response.headers()["content-type"].to_str().expect("text").to_owned());
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let mut whole = true;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().expect("bytes")),
            Err(_) => whole = false,
        }
    }
    (status, kind, bytes, whole)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_format_holds_the_same_rows() {
    let world = World::told(Mode::Mixed).await;
    let sql = r#"SELECT event_id, time, billed_cost, "tags.team", tags FROM cost_events ORDER BY event_id"#;
    let (status, kind, body, _) = post(&world, "text/plain", None, sql).await;
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    let first = r#"{"event_id":"c1","time":"2026-01-01T00:00:00.000000Z","billed_cost":12.345678901234567,"tags.team":"ml","tags":null}"#;
    let second =
        r#"{"event_id":"c2","time":"2026-01-02T00:00:00.000000Z","billed_cost":0.1,"tags.team":"web","tags":null}"#;
    assert_eq!(String::from_utf8_lossy(&body), format!("[{first},\n{second}]\n"));

    let json = serde_json::json!({ "sql": sql }).to_string();
    let (_, kind, body, _) = post(&world, "application/json; charset=utf-8", Some("application/x-ndjson"), &json).await;
    assert_eq!(kind, "application/x-ndjson");
    assert_eq!(String::from_utf8_lossy(&body), format!("{first}\n{second}\n"));

    let (_, kind, body, _) = post(&world, "text/plain", Some("text/html, text/csv;q=0.9"), sql).await;
    assert!(kind.starts_with("text/csv"));
    let csv = String::from_utf8(body).expect("text");
    assert_eq!(csv.lines().next(), Some("event_id,time,billed_cost,tags.team,tags"));
    assert_eq!(csv.lines().nth(1), Some("c1,2026-01-01T00:00:00Z,12.345678901234567,ml,"));

    let (_, kind, body, _) = post(&world, "text/plain", Some("application/vnd.apache.arrow.stream"), sql).await;
    assert_eq!(kind, "application/vnd.apache.arrow.stream");
    let batches: Vec<_> =
        StreamReader::try_new(body.as_slice(), None).expect("a stream").map(|batch| batch.expect("a batch")).collect();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
    assert_eq!(batches[0].schema().field(2).data_type(), &arrow::datatypes::DataType::Decimal128(30, 15));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_rows_is_whole_in_each_format() {
    let world = World::told(Mode::Tail).await;
    let sql = "SELECT event_id, tags FROM alerts_nothing".replace("alerts_nothing", "cost_events WHERE false");
    for (accept, wanted) in
        [("application/json", "[]\n"), ("application/x-ndjson", ""), ("text/csv", "event_id,tags\n")]
    {
        let (status, _, body, whole) = post(&world, "text/plain", Some(accept), &sql).await;
        assert_eq!((status, String::from_utf8_lossy(&body).as_ref(), whole), (200, wanted, true), "{accept}");
    }
    let (_, _, body, _) = post(&world, "text/plain", Some("application/vnd.apache.arrow.stream"), &sql).await;
    assert_eq!(StreamReader::try_new(body.as_slice(), None).expect("a stream").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_json_in_csv_and_json() {
    let world = World::told(Mode::Mixed).await;
    let sql = "SELECT ports FROM security_events WHERE event_id = 'a4'";
    let (_, _, body, _) = post(&world, "text/plain", Some("text/csv"), sql).await;
    assert_eq!(String::from_utf8_lossy(&body), "ports\n\"[80,443]\"\n");
    let (_, _, body, _) = post(&world, "text/plain", None, sql).await;
    assert_eq!(String::from_utf8_lossy(&body), "[{\"ports\":[80,443]}]\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_a_status_a_code_and_a_hint() {
    let world = World::told(Mode::Tail).await;
    let long = "x".repeat(70_000);
    for (kind, accept, body, status, code) in [
        ("text/plain", None, "SELECT severty FROM security_events", 400, "query_invalid"),
        ("text/plain", None, "DROP TABLE alerts", 400, "statement_not_allowed"),
        ("text/plain", None, "SELEC 1", 400, "sql_syntax"),
        ("text/plain", Some("image/png"), "SELECT 1", 406, "not_acceptable"),
        ("application/json", None, "{\"sql\":1}", 400, "invalid_body"),
        ("application/json", None, "{\"sql\":\"SELECT 1\",\"x\":1}", 400, "invalid_body"),
        ("application/json", None, "SELECT 1", 400, "invalid_body"),
        ("text/plain", None, long.as_str(), 413, "body_too_large"),
    ] {
        let (got, content_type, answer, _) = post(&world, kind, accept, body).await;
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!((got, answer["error"]["code"].as_str()), (status, Some(code)), "{body:.60}");
        assert_eq!(content_type, "application/json");
        assert_eq!(answer["request_id"], "r-1");
    }
    let (_, _, answer, _) = post(&world, "text/plain", None, "SELECT severty FROM security_events").await;
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert!(answer["error"]["hint"].as_str().is_some_and(|hint| hint.contains("severity")), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_after_the_first_bytes_cannot_be_taken_for_the_end() {
    let world = World::empty(QueryConfig { rows_max: 100_000, ..QueryConfig::default() });
    let sql = "SELECT value, 'some text to fill it' AS t FROM generate_series(1, 500000)";
    for (accept, last) in [
        ("application/json", Some("\"code\":\"result_too_large\"")),
        ("application/x-ndjson", Some("\"code\":\"result_too_large\"")),
        ("text/csv", None),
        ("application/vnd.apache.arrow.stream", None),
    ] {
        let (status, _, body, whole) = post(&world, "text/plain", Some(accept), sql).await;
        assert_eq!((status, whole), (200, false), "{accept}");
        let end = String::from_utf8_lossy(&body[body.len() - 400..]).into_owned();
        assert!(last.is_none_or(|last| end.contains(last)), "{accept}: {end}");
        if accept == "application/json" {
            assert!(serde_json::from_slice::<Value>(&body).is_err());
        }
    }
}

fn json(response: (u16, Vec<u8>)) -> Value {
    assert_eq!(response.0, 200, "{}", String::from_utf8_lossy(&response.1));
    serde_json::from_slice(&response.1).expect("JSON")
}

async fn get(world: &World, org_id: &str, path: &str) -> (u16, Vec<u8>) {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let who = principal(org_id, Role::Read);
    let response = match path {
        "events" => world.query.handle_events(query, &who, "r").await,
        "events/stats" => world.query.handle_events_stats(query, &who, "r").await,
        "alerts" => world.query.handle_alerts(query, &who, "r").await,
        _ => match path.split_once('/') {
            Some(("events", id)) => world.query.handle_event(id, query, &who, "r").await,
            Some(("alerts", id)) => world.query.handle_alert(id, query, &who, "r").await,
            _ => panic!("no such path: {path}"),
        },
    };
    (response.status().as_u16(), response.into_body().collect().await.expect("a body").to_bytes().to_vec())
}

fn ids(answer: &Value, list: &str, id: &str) -> Vec<String> {
    let rows = answer[list].as_array().expect("a list");
    rows.iter().map(|row| row[id].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_found_by_their_parameters_wherever_they_are() {
    for mode in MODES {
        let world = World::told(mode).await;
        for (query, wanted) in [
            ("events", "a7,a6,same,a5,a4,a3,a2,a1"),
            ("events?limit=2", "a7,a6"),
            ("events?source=windows", "a7,a6,a2,a1"),
            ("events?actor=alice", "a3,a1"),
            ("events?src_ip=10.0.0.2", "a4"),
            ("events?asset=db-1", "same"),
            ("events?severity_min=4", "a5,a4"),
            ("events?q=process", "a2"),
            ("events?q=%22%20and", "a3"),
            ("events?q=%25", ""),
            ("events?from=2026-01-01T01:00:00Z&to=2026-01-01T01:20:00Z", "a5,a4"),
            ("events?from=-1h&to=now", ""),
            ("events?actor=mallory", ""),
            ("events?actor=x'%20OR%201=1", ""),
            ("events?dataset=cost_events", "c2,c1"),
        ] {
            let answer = json(get(&world, "acme", query).await);
            assert_eq!(ids(&answer, "events", "event_id").join(","), wanted, "{mode:?} {query}");
        }
        let event = json(get(&world, "acme", "events/a4").await);
        assert_eq!(event["dataset"], "security_events");
        assert_eq!(event["event"]["ports"], serde_json::json!([80, 443]));
        assert!(event["event"].get("actor").is_none(), "nulls are left out");
        assert_eq!(json(get(&world, "globex", "events/same").await)["event"]["message"], "globex same id");
        assert_eq!(json(get(&world, "acme", "events/c1").await)["dataset"], "cost_events");
        assert_eq!(get(&world, "acme", "events/g1").await.0, 404);
        let stats = json(get(&world, "acme", "events/stats?bucket=hour").await);
        assert_eq!(stats["total"], 8);
        assert_eq!(stats["buckets"][0]["time"], "2026-01-01T00:00:00.000000Z");
        assert_eq!(json(get(&world, "acme", "events/stats?dataset=cost_events&bucket=day").await)["total"], 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_parameters_are_refused() {
    let world = World::told(Mode::Tail).await;
    for query in [
        "events?limit=0",
        "events?limit=1001",
        "events?limit=x",
        "events?from=yesterday",
        "events?from=-1h&to=-2h",
        "events?dataset=alerts",
        "events?nothing=1",
        "events?source=a&source=b",
        "events?cursor=zz",
        "events?cursor=00",
        "events?dataset=cost_events&severity_min=1",
        "events/stats?bucket=second",
        "alerts?level=loud",
        "alerts?cursor=6162",
    ] {
        let (status, body) = get(&world, "acme", query).await;
        assert_eq!(status, 400, "{query}: {}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_events_neither_skip_nor_repeat_while_new_ones_arrive() {
    for mode in MODES {
        let world = World::told(mode).await;
        let (mut seen, mut cursor, mut at) = (Vec::new(), String::new(), 0);
        loop {
            let answer = json(get(&world, "acme", &format!("events?limit=3{cursor}")).await);
            seen.extend(ids(&answer, "events", "event_id"));
            at += 1;
            let line = format!(
                r#"{{"time":"2026-02-01T00:00:0{at}Z","received_time":"2026-02-01T00:00:00Z","event_id":"new{at}","org_id":"acme","source":"late","n":1}}"#
            );
            world.append(Dataset::SecurityEvents, rows(Dataset::SecurityEvents, &[("n", FieldType::INT)], &line)).await;
            match answer["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen.join(","), "a7,a6,same,a5,a4,a3,a2,a1", "{mode:?}");
        assert_eq!(at, 3);
        let newest = json(get(&world, "acme", "events?limit=1").await);
        assert_eq!(ids(&newest, "events", "event_id"), ["new3"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_are_paged_filtered_and_handed_to_the_feed() {
    for mode in MODES {
        let world = World::told(mode).await;
        for (query, wanted) in [
            ("alerts", "acme-alert-3,acme-alert-2,acme-alert-0"),
            ("alerts?level=high", "acme-alert-3,acme-alert-2"),
            ("alerts?rule=rule-1", "acme-alert-3"),
            ("alerts?rule=Rule%200", "acme-alert-2,acme-alert-0"),
            ("alerts?tag=attack.t2", "acme-alert-2"),
            ("alerts?tag=attack", "acme-alert-3,acme-alert-2,acme-alert-0"),
            ("alerts?tag=attack.t100", ""),
            ("alerts?tag=t1003", ""),
            ("alerts?entity=alice&limit=1", "acme-alert-3"),
            ("alerts?entity=mallory", ""),
            ("alerts?to=2026-01-01T00:00:00Z", ""),
        ] {
            let answer = json(get(&world, "acme", query).await);
            assert_eq!(ids(&answer, "alerts", "alert_id").join(","), wanted, "{mode:?} {query}");
        }
        let first = json(get(&world, "acme", "alerts?limit=2").await);
        let grouped = Alert { group_key: "user=kim, src_ip=10.0.0.1".into(), ..alert("acme", 5, Level::Low) };
        append(&world.output, Dataset::Alerts, alerts_to_batch(&[grouped], 5, 1).expect("alerts")).await;
        for (entity, found) in [("kim", 1), ("10.0.0.1", 1), ("src_ip%3D10.0.0.1", 1), ("10.0.0", 0), ("user", 0)] {
            let answer = json(get(&world, "acme", &format!("alerts?entity={entity}")).await);
            assert_eq!(ids(&answer, "alerts", "alert_id").len(), found, "{mode:?} {entity}");
        }
        let second = json(
            get(&world, "acme", &format!("alerts?limit=2&cursor={}", first["cursor"].as_str().expect("more"))).await,
        );
        assert_eq!(ids(&second, "alerts", "alert_id"), ["acme-alert-0"]);
        assert!(second["cursor"].is_null());

        let one = json(get(&world, "acme", "alerts/acme-alert-2").await);
        assert_eq!(one["alert"]["matched"], serde_json::json!({"actor": "alice"}));
        assert_eq!(get(&world, "acme", "alerts/globex-alert-1").await.0, 404);

        let fed = world.query.alerts_after("acme", 0, 5, 10).await.expect("alerts");
        assert_eq!(fed.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(serde_json::from_str::<Value>(&fed[0].1).expect("JSON")["alert_id"], "acme-alert-2");
        assert_eq!(world.query.alerts_after("acme", 0, 99, 1).await.expect("alerts").len(), 1);
    }
}
