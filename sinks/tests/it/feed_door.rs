//! A server with nothing but the feed, a log of alerts to follow, and clients of both forms.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::Value;
use tidegate_events::{Alert, Dataset, Level, alerts_to_batch};
use tidegate_pipeline::keys::{Principal, Role};
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{Ack, Append, EventBatch, LogReader, StreamLog};
use tidegate_sinks::feed::{Backfill, Feed, FeedBody, FeedConfig, Peers, Recheck, Stretch, render_alerts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

pub struct Door {
    pub at: SocketAddr,
    pub log: Arc<MemoryLog>,
    pub feed: Arc<Feed>,
    /// What history is asked for.
    pub asked: Arc<Mutex<Vec<Stretch>>>,
    /// How long history takes to answer.
    pub slowness: Arc<Mutex<Duration>>,
    stop: watch::Sender<bool>,
    stored: Arc<Mutex<Vec<(String, u64, String)>>>,
}

async fn answer(feed: Arc<Feed>, request: Request<Incoming>) -> Response<FeedBody> {
    // The binary takes the tenant from the key; here a header stands for it.
    let org = request.headers().get(HeaderName::from_static("org")).and_then(|org| org.to_str().ok()).unwrap_or("acme");
    let principal = Principal { org_id: org.into(), role: Role::Read, key_id: "k".into() };
    feed.handle(request, &principal, "req-1").await
}

impl Door {
    pub async fn open(config: FeedConfig) -> Self {
        Self::open_with(config, None).await
    }

    pub async fn open_with(config: FeedConfig, recheck: Option<Recheck>) -> Self {
        Self::open_on(Arc::new(MemoryLog::new(16, 1 << 30)), config, recheck, None).await
    }

    /// A door to the alerts of this log, and to those of other nodes.
    pub async fn open_on(
        log: Arc<MemoryLog>,
        config: FeedConfig,
        recheck: Option<Recheck>,
        peers: Option<Peers>,
    ) -> Self {
        let alerts = log.clone();
        let make = move |backfill, stopping| {
            let mut feed = Feed::new(alerts, config, backfill, stopping);
            if let Some(recheck) = recheck {
                feed = feed.with_recheck(recheck);
            }
            if let Some(peers) = peers {
                feed = feed.with_peers(peers);
            }
            feed
        };
        Self::serve(log, make).await
    }

    /// A door to alerts in partitions, which the test fills itself.
    pub async fn open_in_partitions(outputs: Vec<Arc<dyn StreamLog>>, config: FeedConfig) -> Self {
        let make = |backfill, stopping| Feed::of_partitions(outputs, config, backfill, stopping).expect("a feed");
        Self::serve(Arc::new(MemoryLog::new(16, 1 << 30)), make).await
    }

    async fn serve(log: Arc<MemoryLog>, make: impl FnOnce(Backfill, watch::Receiver<bool>) -> Feed) -> Self {
        let stored: Arc<Mutex<Vec<(String, u64, String)>>> = Arc::default();
        let asked: Arc<Mutex<Vec<Stretch>>> = Arc::default();
        let slowness: Arc<Mutex<Duration>> = Arc::default();
        let backfill = {
            let (stored, asked, slowness) = (stored.clone(), asked.clone(), slowness.clone());
            move |stretch: Stretch| -> BoxFuture<'static, Result<Vec<(u64, String)>, String>> {
                let between = |seq: u64| (stretch.after_seq + 1..stretch.before_seq).contains(&(seq as i64));
                let rows: Vec<_> = stored
                    .lock()
                    .iter()
                    .filter(|(org, seq, _)| *org == *stretch.org_id && between(*seq))
                    .take(stretch.limit)
                    .map(|(_, seq, json)| (*seq, json.clone()))
                    .collect();
                asked.lock().push(stretch);
                let slowness = *slowness.lock();
                Box::pin(async move {
                    tokio::time::sleep(slowness).await;
                    Ok(rows)
                })
            }
        };
        let stop = watch::Sender::new(false);
        let feed = Arc::new(make(Arc::new(backfill), stop.subscribe()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let routes = feed.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let routes = routes.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let routes = routes.clone();
                        async move { Ok::<_, std::convert::Infallible>(answer(routes, request).await) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(tcp), service).await;
                });
            }
        });
        Self { at, log, feed, asked, slowness, stop, stored }
    }

    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Appends one batch of alerts: a tenant and a level each. Gives the first `seq`.
    pub async fn raise(&self, alerts: &[(&str, Level)]) -> u64 {
        let first = self.log.bounds().next;
        let alerts: Vec<Alert> = alerts.iter().map(|(org, level)| alert(org, *level)).collect();
        let rows = alerts_to_batch(&alerts, first, 1).expect("a batch");
        self.append(Dataset::Alerts, rows).await;
        first
    }

    pub async fn append(&self, dataset: Dataset, rows: arrow::array::RecordBatch) {
        let batches = vec![EventBatch { dataset, rows, keys: Vec::new() }];
        self.log.append(Append { batches, ack: Ack::Disk }).await.expect("an answer").expect("room");
    }

    /// Moves what lies below `below` from the log into history.
    pub fn forget(&self, below: u64) {
        let mut stored = self.stored.lock();
        for batch in self.log.read(self.log.bounds().first, usize::MAX).expect("readable") {
            if batch.next_offset() > below || batch.dataset != Dataset::Alerts {
                continue;
            }
            for (row, (seq, json)) in render_alerts(&batch.rows).into_iter().enumerate() {
                let orgs = batch.rows.column_by_name("org_id").expect("a tenant").clone();
                let org = arrow::array::AsArray::as_string::<i32>(&orgs).value(row).to_owned();
                stored.push((org, seq, json));
            }
        }
        self.log.forget(below).expect("forgets");
    }

    /// Gives history a second alert of each number, as a broker that lost an alert after it was stored does.
    pub fn store_twice(&self) {
        let mut stored = self.stored.lock();
        *stored = stored.iter().flat_map(|alert| [alert.clone(), alert.clone()]).collect();
    }

    pub async fn follow(&self, query: &str) -> Follower {
        self.follow_as("acme", query, &[]).await.expect("a handshake")
    }

    pub async fn follow_as(&self, org: &str, query: &str, headers: &[(&str, &str)]) -> Result<Follower, u16> {
        let mut request = format!("ws://{}/v2/alerts/stream{query}", self.at).into_client_request().expect("a request");
        for (name, value) in [("org", org)].iter().chain(headers) {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let tcp = TcpStream::connect(self.at).await.expect("connects");
        match tokio_tungstenite::client_async(request, tcp).await {
            Ok((socket, response)) => {
                let protocol = response.headers().get("sec-websocket-protocol").cloned();
                let protocol = protocol.map(|protocol| protocol.to_str().expect("text").to_owned());
                Ok(Follower { socket, protocol })
            }
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// A connection on which `request` was written.
    pub async fn raw(&self, request: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(self.at).await.expect("connects");
        tcp.write_all(request.as_bytes()).await.expect("writes");
        tcp
    }

    /// Waits until there are this many subscribers.
    pub async fn subscribers(&self, count: usize) {
        for _ in 0..1_000 {
            if self.feed.subscribers() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} subscribers instead of {count}", self.feed.subscribers());
    }
}

pub fn alert(org: &str, level: Level) -> Alert {
    Alert {
        alert_id: format!("{org}-{level}"),
        org_id: org.into(),
        source: "cloudtrail".into(),
        rule_id: format!("rule-{level}"),
        title: "Root login".into(),
        level,
        tags: vec!["attack.t1078.004".into()],
        group_key: "user=kim".into(),
        first_time: 1,
        last_time: 2,
        event_ids: vec!["e".into()],
        event_count: 1,
        actor: Some("kim".into()),
        asset: None,
        resource: Some("account".into()),
        message: "m".into(),
        matched: r#"{"eventName":"ConsoleLogin"}"#.into(),
        continues: None,
    }
}

/// A WebSocket client.
pub struct Follower {
    pub socket: WebSocketStream<TcpStream>,
    pub protocol: Option<String>,
}

impl Follower {
    /// The next message but pings.
    pub async fn message(&mut self) -> Option<Message> {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(15), self.socket.next()).await.expect("in time");
            match next {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return Some(message),
                Some(Err(_)) | None => return None,
            }
        }
    }

    pub async fn frame(&mut self) -> Value {
        match self.message().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).expect("JSON"),
            other => panic!("not a frame: {other:?}"),
        }
    }

    /// The seqs of the next `count` alerts.
    pub async fn seqs(&mut self, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            let frame = self.frame().await;
            seqs.push(frame["seq"].as_u64().unwrap_or_else(|| panic!("not an alert: {frame}")));
        }
        seqs
    }

    /// Nothing comes for a while.
    pub async fn silent(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(200), self.message()).await;
        assert!(next.is_err(), "{next:?}");
    }

    pub async fn say(&mut self, text: &str) {
        self.socket.send(Message::Text(text.into())).await.expect("sends");
    }

    /// The code of the close that the server sends.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            match self.message().await {
                Some(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Some(_) => {}
                None => return None,
            }
        }
    }
}

/// Reads until `needle` has come, or the connection ended.
pub async fn read_until(tcp: &mut TcpStream, needle: &str) -> String {
    let mut text = String::new();
    let mut chunk = [0u8; 4096];
    while !text.contains(needle) {
        let read = tokio::time::timeout(Duration::from_secs(15), tcp.read(&mut chunk)).await.expect("in time");
        match read {
            Ok(read) if read > 0 => text.push_str(&String::from_utf8_lossy(&chunk[..read])),
            _ => break,
        }
    }
    text
}
