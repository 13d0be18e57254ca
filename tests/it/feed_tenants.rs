//! Followers of the alert feed see the alerts of their own tenant alone, as WebSocket and as server-sent events, and no longer than
//! their key holds.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::Mutex;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::server::{PATIENCE, Server, event, tidegate};
use crate::tenants::key;

const RULE: &str = "title: Every marked event\nid: 11111111-2222-4333-8444-000000000003\nlogsource: {product: custom}\n\
                    tidegate: {suppress: 0}\ndetection: {sel: {action: marked}, condition: sel}\nlevel: high\n";

/// Somebody who follows, and what was told so far, alert by alert.
struct Follower {
    what: String,
    frames: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl Follower {
    fn start(what: String, run: impl FnOnce(&Mutex<Vec<String>>) + Send + 'static) -> Self {
        let (frames, ended) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let follower = Self { what, frames: frames.clone(), ended: ended.clone() };
        std::thread::spawn(move || {
            run(&frames);
            ended.store(true, Ordering::Relaxed);
        });
        follower
    }

    fn of_events(server: &Server, org: &str, key: &str) -> Self {
        let authority = server.url.trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(&authority).expect("a connection");
        write!(
            stream,
            "GET /v2/alerts/stream HTTP/1.1\r\nhost: {authority}\r\nauthorization: Bearer {key}\r\naccept: text/event-stream\r\n\
             connection: close\r\n\r\n"
        )
        .expect("sent");
        Self::start(format!("{org}, events"), move |frames| {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                frames
                    .lock()
                    .extend(line.strip_prefix("data:").filter(|data| data.contains("alert_id")).map(str::to_owned));
            }
        })
    }

    fn of_socket(server: &Server, org: &str, key: &str) -> Self {
        let url = server.url.replace("http://", "ws://");
        let authority = server.url.trim_start_matches("http://").to_owned();
        let mut request = format!("{url}/v2/alerts/stream").into_client_request().expect("a request");
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().expect("a value"));
        Self::start(format!("{org}, socket"), move |frames| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let stream = tokio::net::TcpStream::connect(authority).await.expect("a connection");
                let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a handshake");
                while let Some(Ok(message)) = socket.next().await {
                    if let Message::Text(text) = message
                        && text.contains("alert_id")
                    {
                        frames.lock().push(text.to_string());
                    }
                }
            });
        })
    }

    /// Waits for alerts of the events with these prefixes, and fails if any other was told.
    fn told(&self, prefixes: &[&str], count: usize) {
        let started = Instant::now();
        while self.frames.lock().len() < count {
            let ended = self.ended.load(Ordering::Relaxed);
            assert!(!ended && started.elapsed() < PATIENCE, "{}: {:?}", self.what, self.frames.lock());
            std::thread::sleep(Duration::from_millis(20));
        }
        let frames = self.frames.lock();
        assert_eq!(frames.len(), count, "{}: {frames:?}", self.what);
        for frame in frames.iter() {
            assert!(prefixes.iter().any(|prefix| frame.contains(prefix)), "{}: {frame}", self.what);
        }
    }
}

#[test]
fn followers_see_their_own_tenant_alone_and_only_while_their_key_holds() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let server = Server::start(&[("RULES", rules.path().to_str().expect("a path")), ("STARTER_PACK", "false")]);
    let mut tenants = Vec::new();
    for org in ["acme", "zeta"] {
        let (ingest, read) = (key(&server, org, "ingest"), key(&server, org, "read"));
        let followers = [Follower::of_events(&server, org, &read), Follower::of_socket(&server, org, &read)];
        tenants.push((org, server.client_with(&ingest), read, followers));
    }
    let mut operator = server.client_with(&server.local_token());
    let own = Follower::of_socket(&server, "default", &server.local_token());
    let started = Instant::now();
    let mut anyone = server.client();
    let following = |page: &[u8]| String::from_utf8_lossy(page).contains("tidegate_sinks_feed_subscribers 5\n");
    while !following(&anyone.get("/metrics").body) {
        assert!(started.elapsed() < PATIENCE, "not all follow");
        std::thread::sleep(Duration::from_millis(20));
    }
    for round in 0..5 {
        for (org, client, ..) in &mut tenants {
            let answer = client.bulk("/v2/events/bulk?source=custom", &[event(&format!("{org}-{round}"), "marked")]);
            assert_eq!(answer.status.as_u16(), 200);
        }
    }
    for (org, _, _, followers) in &tenants {
        for follower in followers {
            follower.told(&[&format!("\"{org}-")], 5);
        }
    }
    // The key of one of them is revoked: its followers are let go, the others stay.
    let (org, _, read, _) = &tenants[1];
    let key_id = read.split('_').nth(1).expect("the id in a key");
    let mut revoke = tidegate(&["key", "revoke", key_id, "--data-dir"]);
    let output = revoke.arg(server.data_dir()).output().expect("the program runs");
    assert!(output.status.success(), "{org}: {}", String::from_utf8_lossy(&output.stderr));
    let revoked = Instant::now();
    let gone = |at: usize| tenants[at].3.iter().all(|follower| follower.ended.load(Ordering::Relaxed));
    while !gone(1) {
        // The look is once a second; the rest is for a machine that does other things too.
        assert!(revoked.elapsed() < Duration::from_secs(3), "followers stay without a key");
        std::thread::sleep(Duration::from_millis(20));
    }
    tenants[0].1.bulk("/v2/events/bulk?source=custom", &[event("acme-last", "marked")]);
    for follower in &tenants[0].3 {
        follower.told(&["\"acme-"], 6);
    }
    // So does who may read the data folder, of the tenant without a key.
    operator.bulk("/v2/events/bulk?source=custom", &[event("default-last", "marked")]);
    own.told(&["\"default-"], 1);
}
