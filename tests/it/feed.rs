//! The alert feed resumes without gap or repeat, over a restart too, as WebSocket and as server-sent events.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::server::{PATIENCE, Server, event};

const RULE: &str = "title: Every marked event\nid: 11111111-2222-4333-8444-000000000001\nlogsource: {product: custom}\n\
                    tidegate: {suppress: 0}\ndetection: {sel: {action: marked}, condition: sel}\nlevel: high\n";

/// The next `wanted` frames after `after`: (seq, event id).
fn follow(server: &Server, after: Option<u64>, wanted: usize) -> Vec<(u64, String)> {
    let query = after.map_or(String::new(), |after| format!("?after={after}"));
    let address = server.url.replace("http://", "ws://");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let request = format!("{address}/v2/alerts/stream{query}").into_client_request().expect("a request");
        let authority = server.url.trim_start_matches("http://").to_owned();
        let stream = tokio::net::TcpStream::connect(authority).await.expect("a connection");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a handshake");
        let mut frames = Vec::new();
        while frames.len() < wanted {
            let next = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a frame in time");
            let Some(Ok(Message::Text(text))) = next else { continue };
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            if let Some(seq) = frame["seq"].as_u64() {
                let id = frame["alert"]["event_ids"][0].as_str().expect("an event id").to_owned();
                frames.push((seq, id));
            }
        }
        frames
    })
}

fn marked(from: usize, count: usize) -> Vec<Value> {
    (from..from + count).map(|at| event(&format!("m-{at:03}"), "marked")).collect()
}

#[test]
fn a_follower_resumes_without_gap_or_repeat() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let settings = [("RULES", rules.path().to_str().expect("a path"))];
    let mut server = Server::start(&settings);
    server.client().bulk("/v2/events/bulk?source=custom", &marked(0, 30));
    server.client().wait_for("SELECT count(*) FROM alerts", 30);
    // Without a position a follower gets what comes; from before the first alert it gets all.
    let all = follow(&server, Some(0), 29);
    let first = server.client().number("SELECT min(seq) FROM alerts");
    assert_eq!(first, 0, "the first alert has the first offset of the output log");
    let seqs: Vec<_> = all.iter().map(|(seq, _)| *seq).collect();
    assert!(seqs.is_sorted() && seqs[0] == 1, "{seqs:?}");
    let middle = all[10].0;
    assert_eq!(follow(&server, Some(middle), 18), all[11..]);

    server.kill();
    server.run(&settings);
    server.client().bulk("/v2/events/bulk?source=custom", &marked(30, 5));
    let after = follow(&server, Some(middle), 23);
    assert_eq!(after[..18], all[11..]);
    let ids: Vec<_> = after[18..].iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(ids, ["m-030", "m-031", "m-032", "m-033", "m-034"]);
}

#[test]
fn curl_can_follow_with_server_sent_events() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let server = Server::start(&[("RULES", rules.path().to_str().expect("a path"))]);
    server.client().bulk("/v2/events/bulk?source=custom", &marked(0, 3));
    server.client().wait_for("SELECT count(*) FROM alerts", 3);
    let authority = server.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(authority).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    write!(stream, "GET /v2/alerts/stream?after=0 HTTP/1.1\r\nhost: {authority}\r\naccept: text/event-stream\r\n\r\n")
        .expect("sent");
    let mut ids = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.expect("a line in time");
        if let Some(id) = line.strip_prefix("id:") {
            ids.push(id.trim().to_owned());
            if ids.len() == 2 {
                break;
            }
        }
    }
    assert_eq!(ids, ["1", "2"]);
}

#[test]
fn a_foreign_origin_is_refused_before_the_upgrade() {
    let server = Server::start(&[]);
    let headers = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("origin", "https://evil.example"),
    ];
    let reply = server.client().send("GET", "/v2/alerts/stream", &headers, b"");
    assert_eq!(reply.status.as_u16(), 403, "{:?}", reply.body);
}

#[test]
fn a_live_frame_shows_what_the_alert_itself_shows() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let server = Server::start(&[("RULES", rules.path().to_str().expect("a path"))]);
    server.client().bulk("/v2/events/bulk?source=custom", &marked(0, 2));
    server.client().wait_for("SELECT count(*) FROM alerts", 2);
    let authority = server.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(authority).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    write!(stream, "GET /v2/alerts/stream?after=0 HTTP/1.1\r\nhost: {authority}\r\naccept: text/event-stream\r\n\r\n")
        .expect("sent");
    let lines = BufReader::new(stream).lines().map(|line| line.expect("a line in time"));
    let frame = lines.filter_map(|line| line.strip_prefix("data:").map(str::to_owned)).next().expect("a frame");
    let frame: Value = serde_json::from_str(&frame).expect("JSON");
    let id = frame["alert"]["alert_id"].as_str().expect("an id").to_owned();
    let mut alone = server.client().get(&format!("/v2/alerts/{id}")).json();
    assert_eq!(frame["alert"], alone["alert"].take());
    assert!(frame["alert"]["matched"].is_object(), "{frame}");
    assert!(frame["alert"]["org_id"].is_null(), "{frame}");
}
