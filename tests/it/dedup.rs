//! The same id is stored once, within a request, across requests, and across a restart.

use serde_json::json;

use crate::server::{Server, event};

#[test]
fn an_id_is_stored_once_also_after_a_restart_and_after_sigkill() {
    let mut server = Server::start(&[]);
    let first = server.client().bulk("/v2/events/bulk", &[event("a", "x"), event("b", "x"), event("a", "x")]);
    assert_eq!((first.json()["accepted"].clone(), first.json()["duplicates"].clone()), (json!(2), json!(1)));
    assert_eq!(first.status.as_u16(), 200);
    server.stop();
    server.run(&[]);
    let second = server.client().bulk("/v2/events/bulk", &[event("b", "x"), event("c", "x")]);
    assert_eq!((second.json()["accepted"].clone(), second.json()["duplicates"].clone()), (json!(1), json!(1)));
    server.kill();
    server.run(&[]);
    let third = server.client().bulk("/v2/events/bulk", &[event("c", "x")]);
    assert_eq!((third.json()["accepted"].clone(), third.json()["duplicates"].clone()), (json!(0), json!(1)));
    assert_eq!(server.client().number("SELECT count(*) FROM security_events"), 3);
}

#[test]
fn an_idempotency_key_makes_a_repeated_request_harmless() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let body = b"{\"n\":1}\n{\"n\":2}\n";
    let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", "upload-7")];
    let first = client.send("POST", "/v2/events/bulk", &headers, body).json();
    let again = client.send("POST", "/v2/events/bulk?detail=all", &headers, body).json();
    assert_eq!((first["accepted"].as_i64(), again["duplicates"].as_i64()), (Some(2), Some(2)), "{first} {again}");
    assert_eq!(again["items"][1]["event_id"], "upload-7:1", "{again}");
    assert_eq!(client.number("SELECT count(*) FROM security_events"), 2);
    let without = client.send("POST", "/v2/events/bulk", &headers[..1], body).json();
    assert_eq!(without["accepted"], 2, "events without any id are all new: {without}");
}
