//! One request: its id, its tenant, its endpoint. Everything that answers is behind a door.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::{Request, Response, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde_json::json;
use subtle::ConstantTimeEq;
use tidegate_events::IdGenerator;
use tidegate_ingest::http::{BodyPace, Drained, HttpConfig, InFlight, Ingest, listen, read_body};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::{DEFAULT_ORG, Keys, Principal, Role};
use tidegate_pipeline::{Health, Problem};
use tidegate_query::Query;
use tidegate_sinks::feed::{self, Feed};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::feedback_door::FeedbackDoor;
use super::keys_door::{DATA_DIR, KeysDoor};
use super::metrics::Requests;
use super::reply::{self, Body};
use super::routes::{Door, Found, Route, find};
use super::server_file::ServerFile;
use super::threat_detection::ThreatDetection;
use super::{STUCK_MAX, openapi};

/// Bytes of a statement with its JSON around it; the gate has a tighter bound on the statement itself.
const SQL_BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of all bodies at once that are no events, at least; the largest one that is taken fits in a quarter of it.
const BODIES_BYTES_MAX: usize = 128 << 20;
/// Bodies up to this size may use what is kept for small ones.
const SMALL_BODY_BYTES: usize = 64 << 10;
/// Bytes of feedback on an alert.
const FEEDBACK_BODY_BYTES_MAX: usize = 16 << 10;
/// Bytes of a request to make a key.
const KEYS_BODY_BYTES_MAX: usize = 4096;

/// What somebody without the token is told of a stage that is degraded.
const WITHHELD: &str =
    "degraded; the log of the server says why, and /readyz to whoever sends the token of its data folder";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All doors of the server.
pub struct Router {
    keys: Arc<Keys>,
    /// The token of whoever may read the data folder.
    local_token: String,
    offered: Offered,
    keys_door: KeysDoor,
    /// Stages, for `/readyz`.
    health: Health,
    /// For `/metrics`.
    metrics: PrometheusHandle,
    requests: Requests,
    /// The bytes of all bodies that are no events: those have a budget of their own, and neither can use up the other's.
    inflight: Arc<InFlight>,
    /// Makes the ids of requests that bring none.
    request_ids: Mutex<IdGenerator>,
    /// What anyone may read, written out once: without a key it must cost next to nothing.
    pages: Pages,
}

/// The doors that nodes of some roles lack.
#[derive(Default)]
pub struct Offered {
    /// Events in.
    pub ingest: Option<Ingest>,
    /// What asks the store.
    pub reading: Option<Reading>,
}

/// The doors that ask the store.
pub struct Reading {
    /// SQL and reading.
    pub query: Arc<Query>,
    /// Alerts out.
    pub feed: Feed,
    /// Feedback on alerts.
    pub feedback: FeedbackDoor,
    /// Rules, and rules tried on events.
    pub threat_detection: ThreatDetection,
}

/// The pages that do not change.
struct Pages {
    welcome: Bytes,
    openapi: Bytes,
}

impl Pages {
    /// Writes them.
    fn written() -> Self {
        let text = |page: serde_json::Value| Bytes::from(format!("{page}\n"));
        Self { welcome: text(welcome()), openapi: text(openapi::document()) }
    }
}

impl Router {
    /// The doors of a node whose server file is `file`.
    pub fn new(
        keys: &Arc<Keys>,
        file: &ServerFile,
        offered: Offered,
        health: &Health,
        metrics: PrometheusHandle,
    ) -> Self {
        let largest = offered.reading.as_ref().map_or(0, |reading| reading.threat_detection.body_bytes_max());
        Self {
            inflight: InFlight::new(BODIES_BYTES_MAX.max(largest.saturating_mul(4)), SMALL_BODY_BYTES),
            keys: keys.clone(),
            local_token: file.token().to_owned(),
            offered,
            keys_door: KeysDoor { keys: keys.clone() },
            health: health.clone(),
            metrics,
            requests: Requests::new(),
            request_ids: Mutex::new(IdGenerator::new(getrandom::u64().unwrap_or(1))),
            pages: Pages::written(),
        }
    }

    /// Answers whoever comes to `listener`, until `stopping` says so and the last answer is sent.
    pub fn listen(
        self,
        listener: TcpListener,
        config: HttpConfig,
        mut stopping: watch::Receiver<bool>,
    ) -> JoinHandle<Drained> {
        let router = Arc::new(self);
        let routes = Arc::new(move |request| {
            let router = router.clone();
            async move { router.answer(request).await }
        });
        let until_stopped = async move { drop(stopping.wait_for(|stop| *stop).await) };
        tokio::spawn(listen(listener, config, routes, until_stopped))
    }

    /// Answers a request. Never fails: what goes wrong is an answer.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let request_id = self.request_id(request.headers());
        let (endpoint, mut response) = match find(request.method().as_str(), request.uri().path()) {
            Found::Route(route) => (route.path, self.dispatch(route, request, &request_id).await),
            Found::Methods(allowed) => ("other", reply::method_not_allowed(allowed, &request_id)),
            Found::Nothing => {
                let problem = Problem::new(404, "no_such_endpoint", "there is nothing at this path")
                    .hint("GET / lists the endpoints, GET /openapi.json describes them");
                ("other", reply::problem(&problem, &request_id))
            }
        };
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let status = response.status();
        self.requests.answered(endpoint, status.as_u16(), started.elapsed());
        if status.is_server_error() {
            tracing::warn!(request_id, endpoint, status = status.as_u16(), "request failed");
        } else {
            tracing::debug!(request_id, endpoint, status = status.as_u16(), "request answered");
        }
        response
    }

    async fn dispatch(&self, route: &'static Route, request: Request<Incoming>, request_id: &str) -> Response<Body> {
        let authority = request.uri().authority().map(|authority| authority.as_str());
        let principal = match self.principal(route, authority, request.headers()) {
            Ok(principal) => principal,
            Err(problem) => return reply::problem(&problem, request_id),
        };
        match route.door {
            Door::Welcome => reply::whole(StatusCode::OK, "application/json", self.pages.welcome.clone()),
            Door::Healthz => reply::json(StatusCode::OK, &json!({"status": "ok"})),
            Door::Readyz => self.readyz(authority, request.headers()),
            Door::Metrics => {
                reply::whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
            }
            Door::OpenApi => reply::whole(StatusCode::OK, "application/json", self.pages.openapi.clone()),
            Door::Ingest => match &self.offered.ingest {
                Some(ingest) => ingest.handle(request, &principal, request_id).await,
                None => elsewhere(request_id),
            },
            Door::Keys => match whole_body(request, KEYS_BODY_BYTES_MAX, &self.inflight).await {
                Ok(request) => self.keys_door.handle(request, &principal, request_id).await,
                Err(problem) => reply::problem(&problem, request_id),
            },
            Door::Sql | Door::Read | Door::Feed | Door::Feedback | Door::ThreatDetection => match &self.offered.reading
            {
                Some(reading) => reading.dispatch(route, request, &self.inflight, &principal, request_id).await,
                None => elsewhere(request_id),
            },
        }
    }

    /// Who asks. The tenant comes from the key alone; no other header or parameter has a say.
    fn principal(&self, route: &Route, authority: Option<&str>, headers: &HeaderMap) -> Result<Principal, Problem> {
        let Some(role) = route.role else {
            return Ok(self.keys.nobody());
        };
        if self.keys.is_open() {
            guard_loopback(authority, headers)?;
        }
        if self.is_local(headers) {
            return Ok(Principal { org_id: DEFAULT_ORG.into(), role: Role::Admin, key_id: DATA_DIR.into() });
        }
        let protocol = if route.door == Door::Feed { feed::bearer_from_protocol(headers) } else { None };
        let given = match (headers.get(AUTHORIZATION), &protocol) {
            (Some(value), _) => Some(value.to_str().unwrap_or("not text")),
            (None, Some(value)) => Some(value.as_str()),
            (None, None) => None,
        };
        let principal = self.keys.authenticate(given).map_err(|error| {
            Problem::new(401, "unauthorized", error.to_string())
                .hint("send `Authorization: Bearer tg_…`; `tidegate key create` makes a key")
        })?;
        if !principal.role.allows(role) {
            let message =
                format!("this endpoint needs the role {}, the key has {}", role.as_str(), principal.role.as_str());
            return Err(
                Problem::new(403, "forbidden", message).hint("make a key with that role, or with the role admin")
            );
        }
        Ok(principal)
    }

    /// Whether the request bears the token of this server's data folder.
    fn is_local(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        given.is_some_and(|given| given.ct_eq(self.local_token.as_bytes()).into())
    }

    /// Which stages are stuck, anyone may know. What is wrong with a stage may have what a database said of somebody's row, so it
    /// is for whoever has the machine: without keys whoever is on it, with keys who has the token of the data folder.
    fn readyz(&self, authority: Option<&str>, headers: &HeaderMap) -> Response<Body> {
        let trusted = self.is_local(headers) || (self.keys.is_open() && guard_loopback(authority, headers).is_ok());
        let shown = |detail: String| if trusted { detail } else { WITHHELD.to_owned() };
        let stuck = self.health.stuck(Instant::now(), STUCK_MAX);
        let details: serde_json::Map<_, _> =
            self.health.details().into_iter().map(|(stage, detail)| (stage, json!(shown(detail)))).collect();
        let status = if stuck.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let word = if stuck.is_empty() { "ready" } else { "stuck" };
        reply::json(status, &json!({"status": word, "stuck": stuck, "details": details}))
    }

    /// The client's id of the request when it is a decent one, else a new one.
    fn request_id(&self, headers: &HeaderMap) -> String {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let decent = |id: &&str| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        };
        match given.filter(decent) {
            Some(id) => id.to_owned(),
            None => String::from_utf8_lossy(&self.request_ids.lock().next(now_us())).into_owned(),
        }
    }
}

impl Reading {
    async fn dispatch(
        &self,
        route: &'static Route,
        request: Request<Incoming>,
        inflight: &Arc<InFlight>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        match route.door {
            Door::Sql => match whole_body(request, SQL_BODY_BYTES_MAX, inflight).await {
                Ok(request) => self.query.handle_sql(request, principal, request_id).await,
                Err(problem) => reply::problem(&problem, request_id),
            },
            Door::Feed => self.feed.handle(request, principal, request_id).await,
            Door::Feedback => match whole_body(request, FEEDBACK_BODY_BYTES_MAX, inflight).await {
                Ok(request) => self.feedback.handle(request, principal, request_id).await,
                Err(problem) => reply::problem(&problem, request_id),
            },
            Door::ThreatDetection => {
                self.threat_detection.handle(route, request, inflight, principal, request_id).await
            }
            _ => self.read(route, &request, principal, request_id).await,
        }
    }

    async fn read(
        &self,
        route: &Route,
        request: &Request<Incoming>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        let query = request.uri().query();
        let id = request.uri().path().rsplit('/').next().unwrap_or_default();
        match route.path {
            "/v2/events" => self.query.handle_events(query, principal, request_id).await,
            "/v2/events/stats" => self.query.handle_events_stats(query, principal, request_id).await,
            "/v2/events/{id}" => self.query.handle_event(id, query, principal, request_id).await,
            "/v2/alerts" => self.query.handle_alerts(query, principal, request_id).await,
            _ => self.query.handle_alert(id, query, principal, request_id).await,
        }
    }
}

/// What a node says of an endpoint that its role does not have.
fn elsewhere(request_id: &str) -> Response<Body> {
    let problem = Problem::new(421, "other_role", "this node has a role without this endpoint")
        .hint("ask a node of another role; docs/many-machines.md has the roles");
    reply::problem(&problem, request_id)
}

/// Without keys only the machine itself may ask: a web page that a browser on it shows must not, neither by a foreign
/// `Origin` nor by a name that was pointed at loopback (DNS rebinding).
fn guard_loopback(authority: Option<&str>, headers: &HeaderMap) -> Result<(), Problem> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    // HTTP/2 has `:authority` in the place of the header.
    let host = headers.get(HOST).map(text).or(authority.map(str::to_owned)).unwrap_or_default();
    let refused = |what: &str| {
        Err(Problem::new(403, "foreign_origin", format!("{what} is not this machine, and no key exists yet"))
            .hint("call http://127.0.0.1 or http://localhost, or make a key with `tidegate key create`"))
    };
    if !host.is_empty() && !is_loopback(&host) {
        return refused("the Host header");
    }
    match headers.get(ORIGIN).map(text) {
        Some(origin) if origin.split_once("://").is_none_or(|(_, authority)| !is_loopback(authority)) => {
            refused("the Origin header")
        }
        _ => Ok(()),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The request with its body read, within the bounds of bytes and pace that every body has.
async fn whole_body(
    request: Request<Incoming>,
    bytes_max: usize,
    inflight: &Arc<InFlight>,
) -> Result<Request<Full<Bytes>>, Problem> {
    let (head, body) = request.into_parts();
    let body = read_body(body, bytes_max, BodyPace::default(), inflight).await?;
    Ok(Request::from_parts(head, Full::new(body)))
}

fn welcome() -> serde_json::Value {
    let endpoints: Vec<_> = super::routes::ROUTES
        .iter()
        .map(|route| json!({"method": route.method, "path": route.path, "summary": route.summary}))
        .collect();
    json!({"name": "tidegate", "version": env!("CARGO_PKG_VERSION"), "openapi": "/openapi.json", "endpoints": endpoints})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().expect("a header"));
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().expect("a header"));
        }
        guard_loopback(None, &headers).is_ok()
    }

    #[test]
    fn without_keys_only_this_machine_may_ask() {
        for host in ["localhost", "localhost:4000", "127.0.0.1:4000", "[::1]:4000", "127.8.8.8"] {
            assert!(guard(host, None), "{host}");
        }
        for host in ["example.org", "127.0.0.1.example.org:4000", "localhost.example.org", "10.0.0.1"] {
            assert!(!guard(host, None), "{host}");
        }
        assert!(guard("localhost:4000", Some("http://localhost:3000")));
        for origin in ["https://example.org", "null", "http://localhost.example.org"] {
            assert!(!guard("localhost:4000", Some(origin)), "{origin}");
        }
    }
}
