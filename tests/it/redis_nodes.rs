//! Two servers that share one Redis: ids, alerts, streams; Redis killed and started again, a server killed while it delivers.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::redis_world::{RedisServer, until};
use crate::server::{PATIENCE, Server, event, on_demand};

const RULE: &str = "title: Every marked event\nid: 11111111-2222-4333-8444-000000000001\nlogsource: {product: custom}\n\
                    tidegate: {suppress: 0}\ndetection: {sel: {action: marked}, condition: sel}\nlevel: high\n";
const STREAM: &str = "tidegate:stream:default:security_events";

/// A Redis that keeps what it has through SIGKILL.
pub fn lasting() -> RedisServer {
    RedisServer::start(&["--appendonly", "yes"])
}

/// The ids of the events in the stream, in order.
fn ids(redis: &RedisServer) -> Vec<String> {
    redis.entries(STREAM).into_iter().map(|(id, _)| id).collect()
}

fn settings(redis: &RedisServer) -> Vec<(&'static str, String)> {
    vec![
        ("SINKS__REDIS__URL", redis.url()),
        ("SINKS__REDIS__SHARED_IDS__ENABLED", "true".into()),
        ("SINKS__REDIS__SHARED_IDS__WAIT_MS_MAX", "500".into()),
        ("SINKS__REDIS__FAN_OUT__ENABLED", "true".into()),
        ("DELIVERY__RETRY_MS_MAX", "500".into()),
    ]
}

/// Follows the feed of a server from the start: the ids of the events that `wanted` alerts name, in order, each with its node.
fn follow(server: &Server, wanted: usize) -> Vec<(String, String)> {
    let address = server.url.replace("http://", "ws://");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let request = format!("{address}/v2/alerts/stream?after=-1").into_client_request().expect("a request");
        let authority = server.url.trim_start_matches("http://").to_owned();
        let stream = tokio::net::TcpStream::connect(authority).await.expect("a connection");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a handshake");
        let mut seen = Vec::new();
        while seen.len() < wanted {
            let next = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a frame in time");
            let Some(Ok(Message::Text(text))) = next else { continue };
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{frame}")).to_owned();
            seen.push((text(&frame["node"]), text(&frame["alert"]["event_ids"][0])));
        }
        seen
    })
}

fn marked(name: &str, from: usize, to: usize) -> Vec<Value> {
    (from..to).map(|at| event(&format!("{name}-{at:03}"), "marked")).collect()
}

fn details(server: &Server) -> String {
    server.client().get("/readyz").json()["details"].to_string()
}

/// What the metric says that alarms are made of.
fn away(server: &Server) -> Option<f64> {
    let metrics = String::from_utf8_lossy(&server.client().get("/metrics").body).into_owned();
    metrics.lines().find_map(|line| line.strip_prefix("tidegate_sinks_redis_ids_away ")?.parse().ok())
}

fn counts(reply: &Value) -> (i64, i64) {
    (reply["accepted"].as_i64().unwrap_or(-1), reply["duplicates"].as_i64().unwrap_or(-1))
}

/// Each node's alerts in its own order, all of them, each once.
fn must_be_whole(seen: &[(String, String)], sent: &[(&str, usize)]) {
    for (name, count) in sent {
        let of_node: Vec<&String> = seen.iter().map(|(_, id)| id).filter(|id| id.starts_with(name)).collect();
        let expected: Vec<String> = (0..*count).map(|at| format!("{name}-{at:03}")).collect();
        assert_eq!(of_node, expected.iter().collect::<Vec<_>>(), "alerts of {name}");
    }
}

#[test]
fn two_servers_share_ids_alerts_and_streams_and_outlive_a_killed_redis() {
    let mut redis = lasting();
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let mut settings = settings(&redis);
    settings.push(("RULES", rules.path().to_str().expect("a path").to_owned()));
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (a, b) = (Server::start(&settings), Server::start(&settings));
    let path = "/v2/events/bulk?source=custom";
    until("ids are shared", || details(&a) == "{}" && details(&b) == "{}");

    assert_eq!(counts(&a.client().bulk(path, &marked("a", 0, 20)).json()), (20, 0));
    assert_eq!(counts(&b.client().bulk(path, &marked("a", 10, 20)).json()), (0, 10), "the other node has stored them");
    assert_eq!(counts(&b.client().bulk(path, &marked("b", 0, 20)).json()), (20, 0));
    for server in [&a, &b] {
        let seen = follow(server, 40);
        must_be_whole(&seen, &[("a", 20), ("b", 20)]);
        let nodes: std::collections::HashSet<&String> = seen.iter().map(|(node, _)| node).collect();
        assert_eq!(nodes.len(), 2);
    }
    until("all in the stream", || ids(&redis).len() == 40);

    redis.kill();
    let started = Instant::now();
    assert_eq!(counts(&a.client().bulk(path, &marked("a", 20, 40)).json()), (20, 0));
    assert_eq!(counts(&b.client().bulk(path, &marked("b", 20, 40)).json()), (20, 0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    a.client().wait_for("SELECT count(*) FROM alerts", 40);
    for stage in ["redis:ingest", "redis:shared-ids", "redis:peers", "redis:fan-out"] {
        until(&format!("{stage} says what is wrong"), || details(&a).contains(&format!("\"{stage}\"")));
    }
    assert_eq!(a.client().get("/readyz").status.as_u16(), 200, "what is degraded is not stuck");
    assert_eq!((away(&a), away(&b)), (Some(1.0), Some(1.0)));
    redis.run();
    for server in [&a, &b] {
        must_be_whole(&follow(server, 80), &[("a", 40), ("b", 40)]);
    }
    until("well again", || details(&a) == "{}" && details(&b) == "{}");
    assert_eq!((away(&a), away(&b)), (Some(0.0), Some(0.0)));
    until("all in the stream", || ids(&redis).len() >= 80);
    let mut found = ids(&redis);
    found.sort_unstable();
    found.dedup();
    assert_eq!((found.len(), ids(&redis).len()), (80, 80), "each once");
    assert_eq!(counts(&b.client().bulk(path, &marked("a", 20, 40)).json()), (0, 20), "also what was stored meanwhile");
}

#[test]
fn a_server_killed_while_it_delivers_doubles_and_loses_nothing_in_redis() {
    let redis = lasting();
    let settings = settings(&redis);
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut server = Server::start(&settings);
    let mut sent = 0;
    for kill in 0..on_demand("TIDEGATE_REDIS_KILLS", 6) {
        for _ in 0..10 {
            let events: Vec<Value> = (sent..sent + 300).map(|at| event(&format!("k-{at}"), "x")).collect();
            assert_eq!(counts(&server.client().bulk("/v2/events/bulk", &events).json()), (300, 0));
            sent += 300;
        }
        // Somewhere in what is delivered.
        std::thread::sleep(Duration::from_millis(kill * 17 % 60));
        server.kill();
        server.run(&settings);
    }
    until("all in the stream", || ids(&redis).len() >= sent);
    std::thread::sleep(Duration::from_millis(300));
    let found = ids(&redis);
    let expected: Vec<String> = (0..sent).map(|at| format!("k-{at}")).collect();
    assert_eq!(found.len(), sent, "each once");
    assert!(found == expected, "in the order of the log");
}
