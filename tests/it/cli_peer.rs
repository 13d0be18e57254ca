//! A small HTTP server that takes batches as the real one does, and misbehaves on request: what the client's tests talk to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the peer does with a request, by the number of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Takes the events.
    Take,
    /// Answers this status with `Retry-After: 0`.
    Refuse(u16),
    /// Takes the events and closes the connection without an answer.
    TakeAndHangUp,
    /// Closes the connection.
    HangUp,
    /// Answers that the event at this index is not acceptable, and takes the others.
    Reject(usize),
    /// Answers after this many milliseconds.
    Stall(u64),
}

/// What the peer was sent.
#[derive(Debug, Default)]
pub struct Seen {
    /// Events stored, in the order of arrival.
    pub stored: Vec<String>,
    /// Events by idempotency key.
    keys: HashMap<String, usize>,
    /// Requests, whatever became of them.
    pub requests: usize,
    /// Path and query of each.
    pub paths: Vec<String>,
    /// Content type of each.
    pub types: Vec<String>,
}

/// The peer.
pub struct Peer {
    /// Its URL.
    pub url: String,
    /// What it was sent.
    pub seen: Arc<Mutex<Seen>>,
}

impl Peer {
    /// Starts one that acts by this script.
    pub async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (script, shared) = (Arc::new(script), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, shared) = (script.clone(), shared.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, script.clone(), shared.clone()));
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { url, seen }
    }

    /// The events stored, sorted.
    pub fn sorted(&self) -> Vec<String> {
        let mut stored = self.seen.lock().expect("a lock").stored.clone();
        stored.sort();
        stored
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.seen.lock().expect("a lock").requests
    }
}

#[derive(Debug)]
struct HungUp;

impl std::fmt::Display for HungUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hung up")
    }
}

impl std::error::Error for HungUp {}

async fn answer(
    request: Request<Incoming>,
    script: Arc<impl Fn(usize) -> Act>,
    seen: Arc<Mutex<Seen>>,
) -> Result<Response<Full<Bytes>>, HungUp> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| HungUp)?.to_bytes();
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let number = {
        let mut seen = seen.lock().expect("a lock");
        seen.requests += 1;
        seen.paths.push(head.uri.to_string());
        seen.types.push(text("content-type"));
        seen.requests - 1
    };
    let act = script(number);
    let events = || events(&text("content-type"), &text("content-encoding"), &body);
    let take = |events: Vec<String>| seen.lock().expect("a lock").take(&text("idempotency-key"), events);
    match act {
        Act::Take => Ok(json_response(200, &take(events()))),
        Act::Refuse(status) => {
            Ok(json_response(status, &json!({"error": {"code": "busy", "message": "full for now"}})))
        }
        Act::TakeAndHangUp => {
            take(events());
            Err(HungUp)
        }
        Act::HangUp => Err(HungUp),
        Act::Reject(index) => {
            let mut events = events();
            events.remove(index);
            let mut answer = take(events);
            answer["rejected"] = json!(1);
            answer["items"] =
                json!([{"index": index, "status": "rejected", "code": "invalid_json", "reason": "not JSON"}]);
            Ok(json_response(207, &answer))
        }
        Act::Stall(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(json_response(200, &take(events())))
        }
    }
}

impl Seen {
    fn take(&mut self, key: &str, events: Vec<String>) -> Value {
        let count = events.len();
        assert!(!key.is_empty(), "a batch without an idempotency key");
        let known = self.keys.insert(key.to_owned(), count);
        match known {
            Some(known) => {
                assert_eq!(known, count, "the same key for another batch");
                json!({"accepted": 0, "duplicates": count, "rejected": 0, "items": []})
            }
            None => {
                self.stored.extend(events);
                json!({"accepted": count, "duplicates": 0, "rejected": 0, "items": []})
            }
        }
    }
}

fn events(content_type: &str, encoding: &str, body: &[u8]) -> Vec<String> {
    let body = if encoding == "zstd" { zstd::decode_all(body).expect("zstd") } else { body.to_vec() };
    let text = String::from_utf8(body).expect("text");
    match content_type {
        "application/x-ndjson" => text.lines().map(str::to_owned).collect(),
        "application/json" => {
            let array: Vec<Value> = serde_json::from_str(&text).expect("an array");
            array.iter().map(Value::to_string).collect()
        }
        "text/csv" => text.lines().skip(1).map(str::to_owned).collect(),
        other => panic!("content type {other:?}"),
    }
}

fn json_response(status: u16, body: &Value) -> Response<Full<Bytes>> {
    Response::builder()
        .status(StatusCode::from_u16(status).expect("a status"))
        .header("retry-after", "0")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap_or_else(|error| -> Response<Full<Bytes>> { unreachable!("{error}") })
}
