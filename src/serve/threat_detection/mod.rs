//! `/v2/threat-detection`: the rules of a tenant, and rules tried on events.
//!
//! ```text
//! request ─ text ─ check (compiled beside what it refers to) ─ registry ─ row of `changes` ─ run loop
//!                                                                └ shelf: what is known of each rule
//! ```

pub mod analyze;
pub mod check;
pub mod config;
pub mod edit;
pub mod list;
pub mod places;
pub mod range;
pub mod refusal;
pub mod shelf;
pub mod turns;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use tidegate_ingest::decode::DecodeConfig;
use tidegate_ingest::http::{BodyPace, InFlight, QueryString, read_body};
use tidegate_ingest::mapping::Mappings;
use tidegate_pipeline::Problem;
use tidegate_pipeline::keys::Principal;
use tidegate_pipeline::registry::Registry;
use tidegate_pipeline::url_text::decode_segment;
use tidegate_query::Query;
use tidegate_rules::{OFF_KIND, RulesConfig, StatusBoard};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore};

use super::metrics::RULES_REFUSED;
use super::reply::{self, Body};
use super::routes::Route;
pub use config::ThreatDetectionConfig;
use list::{Viewer, Wanted};
use places::Places;
use refusal::{Refusal, no_such_rule};
use shelf::Shelf;
use turns::Turns;

/// How long a request waits for its turn to compile.
const COMPILE_PATIENCE: Duration = Duration::from_secs(10);

/// What the endpoints are made of.
pub struct ThreatDetectionParts {
    /// Where rules are kept.
    pub registry: Registry,
    /// What is known of them.
    pub shelf: Arc<Shelf>,
    /// What the run loop says of them.
    pub status: StatusBoard,
    /// The bounds of rules.
    pub rules: RulesConfig,
    /// The bounds of these endpoints.
    pub config: ThreatDetectionConfig,
    /// Stored events.
    pub query: Arc<Query>,
    /// How events are mapped, and the bounds of decoding.
    pub decode: (Arc<Mappings>, DecodeConfig),
    /// Where rules are compiled and run.
    pub cpu: Handle,
}

/// The endpoints.
pub struct ThreatDetection {
    registry: Registry,
    shelf: Arc<Shelf>,
    status: StatusBoard,
    rules: RulesConfig,
    config: ThreatDetectionConfig,
    cpu: Handle,
    compilations: Arc<Semaphore>,
    /// One change at a time: from the look whether it can be made to its being made.
    editing: Mutex<()>,
    /// How many changes a tenant may make.
    turns: Turns,
    query: Arc<Query>,
    mappings: Arc<Mappings>,
    decode: DecodeConfig,
    analyses: Places,
}

/// A rule in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleBody {
    text: String,
}

impl ThreatDetection {
    /// The endpoints over their parts.
    pub fn new(parts: ThreatDetectionParts) -> Self {
        let ThreatDetectionParts { registry, shelf, status, rules, config, query, decode: (mappings, decode), cpu } =
            parts;
        let compilations = Arc::new(Semaphore::new(config.compilations_max));
        let analyses = Places::new(config.analyses_max, config.tenant_analyses_max);
        let turns = Turns::new(config.tenant_changes_per_minute, config.tenant_changes_burst);
        let editing = Mutex::default();
        Self {
            registry,
            shelf,
            status,
            rules,
            config,
            cpu,
            compilations,
            editing,
            turns,
            query,
            mappings,
            decode,
            analyses,
        }
    }

    /// Bytes of the largest body that is taken.
    pub fn body_bytes_max(&self) -> usize {
        self.text_bytes_max(true).max(self.config.analyze_body_bytes_max)
    }

    /// Answers a request whose key allows what the route needs. Its body counts against `inflight`.
    pub async fn handle(
        &self,
        route: &Route,
        request: Request<Incoming>,
        inflight: &Arc<InFlight>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        let answer = self.answer(route, request, inflight, principal).await;
        answer.unwrap_or_else(|refusal| {
            metrics::counter!(RULES_REFUSED, "code" => refusal.code()).increment(1);
            refusal.into_response(request_id)
        })
    }

    async fn answer(
        &self,
        route: &Route,
        request: Request<Incoming>,
        inflight: &Arc<InFlight>,
        principal: &Principal,
    ) -> Result<Response<Body>, Refusal> {
        self.shelf.ready().await?;
        let (head, body) = request.into_parts();
        let query = head.uri.query();
        let id = id_of(route.path, head.uri.path())?;
        match (route.method, route.path) {
            ("GET", RULES) => {
                let wanted = Wanted::parse(query)?;
                let items = self.shelf.items(&principal.org_id);
                let page = list::page(&items, &wanted, &self.viewer(principal), &self.shelf.skipped());
                return Ok(reply::json(StatusCode::OK, &page));
            }
            ("GET", _) => {
                QueryString::parse(query, &[])?;
                let item = self.shelf.find(&principal.org_id, &id).ok_or_else(|| no_such_rule(&id))?;
                return list::one(&item, &self.viewer(principal), &head.headers);
            }
            _ => {}
        }
        QueryString::parse(query, &[])?;
        if !matches!(route.path, ANALYZE | VALIDATE) {
            self.turns.take(&principal.org_id, Instant::now()).map_err(Refusal::too_soon)?;
        }
        match (route.method, route.path) {
            ("DELETE", _) => self.remove(&id, &head.headers, principal).await,
            (_, RULE_ENABLE) => self.switch(&id, true, principal).await,
            (_, RULE_DISABLE) => self.switch(&id, false, principal).await,
            (_, ANALYZE) => self.analyze(body, inflight, principal).await,
            (method, path) => {
                // The share of the budget is held until the answer is there.
                let body = read_body(body, self.text_bytes_max(is_json(&head.headers)), BodyPace::default(), inflight);
                let body = body.await?;
                let text = text_in(&head.headers, &body)?;
                match (method, path) {
                    ("PUT", _) => self.replace(&id, text, &head.headers, principal).await,
                    (_, VALIDATE) => self.validate(text, principal).await,
                    _ => self.create(text, principal).await,
                }
            }
        }
    }

    /// Bytes of a body with a rule in it. Each byte of the text may be escaped as six in JSON.
    fn text_bytes_max(&self, json: bool) -> usize {
        self.rules.file_bytes_max.saturating_mul(if json { 6 } else { 1 }).saturating_add(64)
    }

    /// The ids of the rules that a tenant turned off.
    fn off(&self, org_id: &str) -> BTreeSet<String> {
        self.registry.list(org_id, OFF_KIND).iter().map(|entry| entry.id.clone()).collect()
    }

    fn viewer(&self, principal: &Principal) -> Viewer {
        let org_id = principal.org_id.to_string();
        Viewer { off: self.off(&org_id), org_id, parked: self.status.read().parked.clone() }
    }

    /// Runs work that compiles rules on a thread that may block, a few at a time.
    async fn compile<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
        let turn = tokio::time::timeout(COMPILE_PATIENCE, self.compilations.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            let problem = Problem::new(429, "rules_busy", "many rules are being compiled");
            return Err(problem.hint("try again in a moment, or raise threat_detection.compilations_max").into());
        };
        // The turn ends with the work, not with the request: a client that leaves does not make room for more.
        let work = move || {
            let _turn = turn;
            work()
        };
        self.cpu.spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "the compilation of a rule ended early: a bug");
            Problem::new(500, "internal", "the rule could not be compiled; the server's log says why").into()
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// The YAML text in a body: the body itself, or `{"text": …}` when it says that it is JSON.
fn text_in(headers: &HeaderMap, body: &[u8]) -> Result<String, Problem> {
    if is_json(headers) {
        let body: RuleBody = serde_json::from_slice(body).map_err(|error| {
            Problem::new(400, "invalid_body", format!("the body is not {{\"text\": …}}: {error}"))
                .hint("send the YAML itself as application/yaml, or {\"text\": \"title: …\"} as application/json")
        })?;
        return Ok(body.text);
    }
    let text = std::str::from_utf8(body).map_err(|_| Problem::new(400, "invalid_body", "the rule is not UTF-8"))?;
    Ok(text.to_owned())
}

/// The path of all rules.
pub const RULES: &str = "/v2/threat-detection/rules";
/// The path of one rule.
pub const RULE: &str = "/v2/threat-detection/rules/{id}";
/// The path that looks at a rule without keeping it.
pub const VALIDATE: &str = "/v2/threat-detection/rules/validate";
/// The path that tries a rule on events.
pub const ANALYZE: &str = "/v2/threat-detection/analyze";
/// The path that turns a rule on.
pub const RULE_ENABLE: &str = "/v2/threat-detection/rules/{id}/enable";
/// The path that turns a rule off.
pub const RULE_DISABLE: &str = "/v2/threat-detection/rules/{id}/disable";

/// The time as people and programs read it.
fn rfc3339(time_us: i64) -> Option<String> {
    let time = chrono::DateTime::from_timestamp_micros(time_us)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

/// What stands in the path for `{id}`, decoded.
fn id_of(template: &str, path: &str) -> Result<String, Problem> {
    let mut segments = template.split('/').zip(path.split('/'));
    let raw = segments.find(|(expected, _)| *expected == "{id}").map_or("", |(_, raw)| raw);
    decode_segment(raw)
        .ok_or_else(|| Problem::new(400, "invalid_parameter", "the id in the path is not percent-encoded UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_in_a_path_is_decoded() {
        for (path, wanted) in [
            ("/v2/threat-detection/rules/a-b", Some("a-b")),
            ("/v2/threat-detection/rules/a%2Fb%20%C3%A9", Some("a/b é")),
            ("/v2/threat-detection/rules/a%2", None),
            ("/v2/threat-detection/rules/%ff", None),
            ("/v2/threat-detection/rules/..%2f..%2fetc", Some("../../etc")),
        ] {
            assert_eq!(id_of(RULE, path).ok().as_deref(), wanted, "{path}");
        }
        assert_eq!(id_of(RULE_ENABLE, "/v2/threat-detection/rules/x/enable").ok().as_deref(), Some("x"));
        assert_eq!(id_of(RULES, RULES).ok().as_deref(), Some(""));
    }
}
