//! Every body form and encoding goes in over a real socket and comes out of SQL.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::ipc::writer::StreamWriter;
use serde_json::{Value, json};

use crate::server::{Server, event};

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const JSON: (&str, &str) = ("content-type", "application/json");

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("memory");
    encoder.finish().expect("memory")
}

fn zlib(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("memory");
    encoder.finish().expect("memory")
}

fn arrow_stream() -> Vec<u8> {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("event_id", Arc::new(StringArray::from(vec!["arrow-1", "arrow-2"]))),
        ("action", Arc::new(StringArray::from(vec!["read", "write"]))),
        ("n", Arc::new(Int64Array::from(vec![1, 2]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("memory");
    writer.into_inner().expect("memory")
}

#[test]
fn each_body_form_and_encoding_is_stored() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let lines = |from: usize| -> Vec<u8> {
        (from..from + 3).flat_map(|at| format!("{}\n", event(&format!("e-{at}"), "read")).into_bytes()).collect()
    };
    let array =
        |from: usize| Value::from((from..from + 3).map(|at| event(&format!("e-{at}"), "read")).collect::<Vec<_>>());
    let mut sent = 0;
    let mut check = |path: &str, headers: &[(&str, &str)], body: &[u8], events: i64| {
        let reply = client.send("POST", path, headers, body);
        let shown = String::from_utf8_lossy(&reply.body).into_owned();
        assert_eq!(reply.status.as_u16(), 200, "{path} {headers:?}: {shown}");
        assert_eq!(reply.json()["accepted"], events, "{path} {headers:?}: {shown}");
        assert_eq!(reply.headers["tidegate-ack"], "disk");
        sent += events;
        assert_eq!(client.number("SELECT count(*) FROM security_events"), sent, "{path} {headers:?}");
    };
    check("/v2/events", &[JSON], event("single", "read").to_string().as_bytes(), 1);
    check("/v2/events/bulk", &[NDJSON], &lines(0), 3);
    check("/v2/events/bulk", &[JSON], array(10).to_string().as_bytes(), 3);
    check("/v2/events/bulk", &[JSON], json!({"events": array(20)}).to_string().as_bytes(), 3);
    check("/v2/events/bulk", &[JSON], &lines(30), 3);
    check("/v2/events/bulk", &[NDJSON, ("content-encoding", "gzip")], &gzip(&lines(40)), 3);
    let zstd = zstd::bulk::compress(&lines(50), 1).expect("memory");
    check("/v2/events/bulk", &[NDJSON, ("content-encoding", "zstd")], &zstd, 3);
    check("/v2/events/bulk", &[NDJSON, ("content-encoding", "deflate")], &zlib(&lines(60)), 3);
    check("/v2/events/bulk", &[("content-type", "application/vnd.apache.arrow.stream")], &arrow_stream(), 2);
    assert_eq!(client.number("SELECT count(DISTINCT event_id) FROM security_events"), sent);
    assert_eq!(client.number(r#"SELECT sum(n) FROM security_events WHERE "user.name" = 'ada'"#), 7 * (sent - 2));
}

#[test]
fn cost_rows_come_as_json_and_as_csv_with_exact_money() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let row = json!({"BilledCost": "0.1", "EffectiveCost": 0.2, "ChargePeriodStart": "2026-11-01T00:00:00Z",
        "ChargeCategory": "Usage", "ServiceName": "Compute", "Tags": {"team": "ml"}});
    let reply = client.bulk("/v2/costs/bulk", std::slice::from_ref(&row));
    assert_eq!(reply.json()["accepted"], 1, "{:?}", reply.body);
    let reply = client.bulk("/v2/events/bulk?dataset=cost_events", &[row]);
    assert_eq!(reply.json()["accepted"], 1, "{:?}", reply.body);
    let csv = "\"BilledCost\",\"ChargePeriodStart\",\"ChargeCategory\",\"ServiceName\",\"Tags\"\n\
               0.00000080000,\"2026-11-01 00:00:00\",\"Usage\",\"Queue\",NULL\n";
    let reply = client.send("POST", "/v2/costs/bulk", &[("content-type", "text/csv")], csv.as_bytes());
    assert_eq!(reply.json()["accepted"], 1, "{:?}", reply.body);
    let rows = client.sql("SELECT CAST(sum(billed_cost) AS VARCHAR) AS billed, count(*) AS n FROM cost_events");
    assert_eq!(rows[0]["n"], 3);
    assert!(rows[0]["billed"].as_str().expect("text").starts_with("0.2000008000"), "{rows:?}");
    assert_eq!(client.number(r#"SELECT count(*) FROM cost_events WHERE "tags.team" = 'ml'"#), 2);
    assert_eq!(client.number("SELECT count(*) FROM security_events"), 0);
}

#[test]
fn one_bad_event_costs_one_event_and_is_kept() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let body = format!("{}\n{{\"broken\": \n{}\n42\n{}\n", event("a", "x"), event("b", "x"), event("c", "x"));
    let reply = client.send("POST", "/v2/events/bulk", &[NDJSON], body.as_bytes());
    assert_eq!(reply.status.as_u16(), 207, "{:?}", reply.body);
    let answer = reply.json();
    assert_eq!((answer["accepted"].as_i64(), answer["rejected"].as_i64()), (Some(3), Some(2)), "{answer}");
    let indexes: Vec<_> = answer["items"].as_array().expect("items").iter().map(|item| item["index"].clone()).collect();
    assert_eq!(indexes, [1, 3], "{answer}");
    assert_eq!(client.number("SELECT count(*) FROM security_events"), 3);
    let letters = client.sql("SELECT code, reason, payload, item_index FROM dead_letters ORDER BY item_index");
    assert_eq!(letters.len(), 2, "{letters:?}");
    assert_eq!(letters[0]["payload"].as_str().map(str::trim), Some("{\"broken\":"), "{letters:?}");
    let reply = client.send("POST", "/v2/events/bulk", &[NDJSON], b"nonsense\n");
    assert_eq!(reply.status.as_u16(), 400, "{:?}", reply.body);
}
