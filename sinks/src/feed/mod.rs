//! The alert feed: `GET /v2/alerts/stream` as WebSocket, or as server-sent events.
//!
//! ```text
//! output log ──watch()──► Tail (read once, rendered once per tenant) ──► Subscription (cursor, filter) ──► socket
//!                                       history ──Backfill──────────────────┘ (below the log's first offset)
//! ```
//!
//! A subscriber sees the alerts of its tenant only, in order of `seq`, each once: as `{"seq":n,"alert":{…}}`. It resumes
//! with `?after=SEQ` (`-1` for all), and filters by `level`, `rule`, `tag` and `entity`. A WebSocket client may change its
//! filter with `{"type":"filter","level":"high"}`, which is answered with `{"type":"filter","filter":{…}}` or with
//! `{"type":"error","code":"…","message":"…"}`; the new filter holds for alerts sent after the answer.
//!
//! A subscriber that was up to date and fell more than `lag_rows_max` rows of the log behind is told
//! `{"type":"gap","missed":n,"resume_after":seq}` and goes on with the newest alerts: it may fetch what it missed with
//! `GET /v2/alerts`, or reconnect with that `seq`.
//!
//! Of an output log in [partitions](Feed::of_partitions) a subscriber follows the one that its tenant is in, so that `seq` is one
//! number there too.
//!
//! With [`Peers`] it sees the alerts of the other nodes too: `{"node":"…","after":"…","seq":n,"alert":{…}}`, in the order of
//! each node, and resumes with `?after=` and the text of the last frame's `after`, at whichever node. What is no longer there of
//! another node's is a gap with `"missed":null`.

mod filter;
mod following;
mod handshake;
mod render;
mod sse;
mod subscription;
mod tail;
mod websocket;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION};
use hyper::{Request, Response, StatusCode};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_pipeline::keys::Principal;
use tidegate_pipeline::{Problem, StreamLog};
use tokio::sync::watch;

pub use filter::Filter;
pub use following::{Peer, Peers};
pub use handshake::{PROTOCOL, bearer_from_protocol};
pub(crate) use render::render as render_alert;
pub use render::render_alerts;

use crate::error::SinksError;
use crate::fluvio::{OFFSETS_OF_RECORD, partition_of};
use crate::metrics as names;
use following::{Following, PeerTails};
use handshake::{Form, Wanted};
use subscription::Subscription;
use tail::Tail;

/// The body of every answer.
pub type FeedBody = UnsyncBoxBody<Bytes, io::Error>;

/// Bounds of the alert feed.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FeedConfig {
    /// Subscribers at once. More are refused with 503.
    pub subscribers_max: usize,
    /// Subscribers of one tenant at once. More are refused with 503.
    pub tenant_subscribers_max: usize,
    /// Rows of the output log (on many machines records of its topic, which hold a row or more) that a subscriber which was up to
    /// date may fall behind before it is told of a gap.
    pub lag_rows_max: u64,
    /// Memory of the newest alerts that are kept rendered for all subscribers.
    pub cache_bytes_max: usize,
    /// Stored alerts that are fetched at a time for a subscriber that resumes below the log.
    pub backfill_rows_max: usize,
    /// Without the peer taking what is sent.
    pub write_ms_max: u64,
    /// Between two pings. A peer that answers none of two is given up.
    pub ping_ms: u64,
    /// Bytes of a message from a client.
    pub message_bytes_max: usize,
    /// Messages that a client may send in ten seconds.
    pub messages_per_10s_max: u32,
    /// Origins (`https://soc.example:8443`) whose pages may follow alerts, beside those of the server's own host.
    pub origins: Vec<String>,
}

impl Default for FeedConfig {
    fn default() -> Self {
        Self {
            subscribers_max: 1_000,
            tenant_subscribers_max: 200,
            lag_rows_max: 50_000,
            cache_bytes_max: 32 * 1024 * 1024,
            backfill_rows_max: 500,
            write_ms_max: 10_000,
            ping_ms: 8_000,
            message_bytes_max: 64 * 1024,
            messages_per_10s_max: 20,
            origins: Vec::new(),
        }
    }
}

/// A stretch of stored alerts of one tenant: those with `after_seq < seq < before_seq`, ascending, at most `limit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The tenant.
    pub org_id: Arc<str>,
    /// Exclusive; -1 for all.
    pub after_seq: i64,
    /// Exclusive: the first offset that the output log still holds.
    pub before_seq: i64,
    /// Rows at most. Fewer mean that the stretch is exhausted.
    pub limit: usize,
}

/// Reads stored alerts as (`seq`, JSON), for which [`render_alerts`] is made. Asked only for what the output log no longer
/// holds. The error is for the log of the server.
pub type Backfill = Arc<dyn Fn(Stretch) -> BoxFuture<'static, Result<Vec<(u64, String)>, String>> + Send + Sync>;

/// Says whether a principal may still read: asked again and again while its stream lives.
pub type Recheck = Arc<dyn Fn(&Principal) -> bool + Send + Sync>;

/// How long a client waits that has seen an alert elsewhere which this node has not read yet.
const AHEAD_MAX: Duration = Duration::from_secs(2);

/// The tails of all partitions of the output log.
struct Tails {
    first: Arc<Tail>,
    others: Vec<Arc<Tail>>,
}

/// The feed. See the module.
pub struct Feed {
    shared: Arc<Shared>,
}

/// What all subscribers share.
struct Shared {
    tails: Tails,
    config: FeedConfig,
    backfill: Backfill,
    recheck: OnceLock<Recheck>,
    peers: OnceLock<Peers>,
    peer_tails: PeerTails,
    /// How long a client waits that has seen more than this node has.
    patience: Duration,
    /// Offsets that a subscriber which was up to date may fall behind.
    lag_max: u64,
    stopping: watch::Receiver<bool>,
    open: Mutex<HashMap<Arc<str>, usize>>,
}

impl Feed {
    /// A feed of the alerts in `output`. Once `stopping` turns true, all streams end (WebSocket with 1001, "going away") and
    /// no more are taken.
    pub fn new(
        output: Arc<dyn StreamLog>,
        config: FeedConfig,
        backfill: Backfill,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let tails = Tails { first: Arc::new(Tail::new(output, config.cache_bytes_max)), others: Vec::new() };
        Self::over(tails, config, backfill, stopping)
    }

    /// The same of an output log in partitions, in their order, each of which has all alerts of its tenants. Other nodes tell them
    /// too: what a client has seen there, this one may still have to read.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] without a partition.
    pub fn of_partitions(
        outputs: Vec<Arc<dyn StreamLog>>,
        config: FeedConfig,
        backfill: Backfill,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, SinksError> {
        let cache_bytes_max = config.cache_bytes_max / outputs.len().max(1);
        let mut tails = outputs.into_iter().map(|output| Arc::new(Tail::new(output, cache_bytes_max)));
        let first = tails.next().ok_or_else(|| SinksError::Invalid("a feed needs a log of alerts".to_owned()))?;
        let tails = Tails { first, others: tails.collect() };
        let mut feed = Self::over(tails, config, backfill, stopping);
        if let Some(shared) = Arc::get_mut(&mut feed.shared) {
            shared.patience = AHEAD_MAX;
            shared.lag_max = shared.lag_max.saturating_mul(OFFSETS_OF_RECORD);
        }
        Ok(feed)
    }

    fn over(tails: Tails, config: FeedConfig, backfill: Backfill, stopping: watch::Receiver<bool>) -> Self {
        let (recheck, peers, open) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        let (peer_tails, patience, lag_max) = (PeerTails::default(), Duration::ZERO, config.lag_rows_max);
        let shared = Shared { tails, config, backfill, recheck, peers, peer_tails, patience, lag_max, stopping, open };
        Self { shared: Arc::new(shared) }
    }

    /// Tells the alerts of other nodes too.
    #[must_use]
    pub fn with_peers(self, peers: Peers) -> Self {
        // The first ones stay.
        let _ = self.shared.peers.set(peers);
        self
    }

    /// Ends the streams of principals that may no longer read: `recheck` is asked about each every second, and before
    /// anything is sent.
    #[must_use]
    pub fn with_recheck(self, recheck: Recheck) -> Self {
        // The first one stays.
        let _ = self.shared.recheck.set(recheck);
        self
    }

    /// Answers a request of a principal that may read. The stream lives on after the answer.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<FeedBody> {
        match self.open(request, principal).await {
            Ok(response) => response,
            Err(problem) => {
                metrics::counter!(names::FEED_REFUSED, "code" => problem.code).increment(1);
                refusal(&problem, request_id)
            }
        }
    }

    async fn open(&self, request: Request<Incoming>, principal: &Principal) -> Result<Response<FeedBody>, Problem> {
        let shared = &self.shared;
        if *shared.stopping.borrow() {
            return Err(full("the server is stopping"));
        }
        let (parts, body) = request.into_parts();
        let own = shared.peers.get().map(|peers| &*peers.own);
        let wanted = Wanted::read(&parts, &shared.config.origins, own)?;
        let seat = Seat::take(shared, principal)?;
        shared.reach(&wanted, principal).await?;
        let form = wanted.form.clone();
        let subscription = shared.follow(wanted, principal);
        match form {
            Form::Events => Ok(sse::answer(subscription, seat)),
            Form::WebSocket { key, protocol } => {
                let upgrade = hyper::upgrade::on(Request::from_parts(parts, body));
                tokio::spawn(websocket::serve(upgrade, subscription, seat));
                websocket::answer(&key, protocol)
            }
        }
    }

    /// Streams open now.
    pub fn subscribers(&self) -> usize {
        self.shared.open.lock().values().sum()
    }
}

impl Tails {
    /// The tail with the alerts of a tenant.
    fn of(&self, org_id: &str) -> &Arc<Tail> {
        let partition = partition_of(org_id, self.others.len() + 1);
        partition.checked_sub(1).and_then(|at| self.others.get(at)).unwrap_or(&self.first)
    }
}

impl Shared {
    /// Waits until the log has what the client says that it has seen.
    async fn reach(&self, wanted: &Wanted, principal: &Principal) -> Result<(), Problem> {
        let mut bounds = self.tails.of(&principal.org_id).log().watch();
        let reached = tokio::time::timeout(self.patience, bounds.wait_for(|bounds| wanted.is_within(*bounds))).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(full("the server is stopping")),
            Err(_) if self.patience.is_zero() => Err(wanted.beyond()),
            // Perhaps it cannot read now. To go on silently would hide a number that is from elsewhere.
            Err(_) => Err(full("this node has no alert with the seq that is given as after")),
        }
    }

    fn follow(self: &Arc<Self>, wanted: Wanted, principal: &Principal) -> Following {
        let Wanted { start, positions, elsewhere, filter, .. } = wanted;
        let (org_id, lag) = (principal.org_id.clone(), (self.lag_max, self.config.backfill_rows_max));
        let backfill = Some(self.backfill.clone());
        let tail = self.tails.of(&org_id).clone();
        let own = Subscription::new(tail, backfill, org_id.clone(), filter, start, lag);
        let Some(peers) = self.peers.get() else { return Following::alone(own) };
        let (shared, others) = (self.clone(), peers.others.clone());
        let subscribe = move |peer: &Peer, start, filter| {
            let there = others.borrow().clone().unwrap_or_default();
            let tail = shared.peer_tails.of(peer, &there, shared.config.cache_bytes_max / 4);
            Subscription::new(tail, None, org_id.clone(), filter, start, lag)
        };
        Following::all(own, peers.clone(), positions, elsewhere, Box::new(subscribe))
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("subscribers", &self.subscribers()).finish_non_exhaustive()
    }
}

/// A subscriber's place in the bounds, and what it has to watch for while it lives.
struct Seat {
    shared: Arc<Shared>,
    principal: Principal,
    stopping: watch::Receiver<bool>,
}

impl Seat {
    fn take(shared: &Arc<Shared>, principal: &Principal) -> Result<Self, Problem> {
        let mut open = shared.open.lock();
        if open.values().sum::<usize>() >= shared.config.subscribers_max {
            return Err(full("there are as many subscribers as there may be"));
        }
        let of_tenant = open.entry(principal.org_id.clone()).or_default();
        if *of_tenant >= shared.config.tenant_subscribers_max {
            return Err(full("the tenant has as many subscribers as it may have"));
        }
        *of_tenant += 1;
        drop(open);
        metrics::gauge!(names::FEED_SUBSCRIBERS).increment(1);
        Ok(Self { shared: shared.clone(), principal: principal.clone(), stopping: shared.stopping.clone() })
    }

    fn config(&self) -> &FeedConfig {
        &self.shared.config
    }

    fn write_max(&self) -> Duration {
        Duration::from_millis(self.config().write_ms_max)
    }

    /// Whether the principal may still read.
    fn is_valid(&self) -> bool {
        self.shared.recheck.get().is_none_or(|recheck| recheck(&self.principal))
    }

    /// Waits until the feed ends.
    async fn stopping(&mut self) {
        // An error means that the server is gone, which is the same.
        let _ = self.stopping.wait_for(|stopping| *stopping).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock();
        if let Some(of_tenant) = open.get_mut(&self.principal.org_id) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                open.remove(&self.principal.org_id);
            }
        }
        metrics::gauge!(names::FEED_SUBSCRIBERS).decrement(1);
    }
}

fn full(message: &str) -> Problem {
    Problem::new(503, "feed_unavailable", message).hint("connect again after Retry-After seconds")
}

fn refusal(problem: &Problem, request_id: &str) -> Response<FeedBody> {
    let body = Full::new(Bytes::from(problem.to_json(request_id)));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    match problem.status {
        405 => drop(headers.insert(ALLOW, HeaderValue::from_static("GET"))),
        426 => {
            headers.insert(hyper::header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(hyper::header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        503 => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("5"))),
        _ => {}
    }
    response
}
