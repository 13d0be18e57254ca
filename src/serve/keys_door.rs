//! `/v2/keys`: list, make and revoke API keys.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::keys::{KeyRecord, Keys, Principal, Role};
use tidegate_pipeline::{PipelineError, Problem};

use super::reply::{self, Body};

/// The `key_id` of whoever uses the machine while no key exists.
pub const LOCAL: &str = "local";
/// The `key_id` of whoever may read the data folder, and so has its token.
pub const DATA_DIR: &str = "data-dir";

/// The endpoint.
pub struct KeysDoor {
    /// The keys.
    pub keys: Arc<Keys>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    org: Option<String>,
    role: String,
    #[serde(default)]
    label: String,
}

impl KeysDoor {
    /// Answers a request of an admin.
    pub async fn handle(
        &self,
        request: Request<Full<Bytes>>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<Body> {
        let answer = match *request.method() {
            Method::GET => Ok(self.list(principal)),
            Method::DELETE => self.revoke(request.uri().path(), principal).await,
            _ => self.create(request, principal).await,
        };
        answer.unwrap_or_else(|problem| reply::problem(&problem, request_id))
    }

    fn list(&self, principal: &Principal) -> Response<Body> {
        let keys: Vec<Value> = self.keys.list(scope(principal)).iter().map(shown).collect();
        reply::json(StatusCode::OK, &json!({"keys": keys}))
    }

    async fn create(&self, request: Request<Full<Bytes>>, principal: &Principal) -> Result<Response<Body>, Problem> {
        let Ok(body) = request.into_body().collect().await;
        let wanted: NewKey = serde_json::from_slice(&body.to_bytes()).map_err(|error| {
            Problem::new(400, "invalid_body", error.to_string())
                .hint(r#"send {"org": "acme", "role": "ingest", "label": "agents of acme"}"#)
        })?;
        let role: Role = wanted.role.parse().map_err(|error: String| Problem::new(400, "invalid_role", error))?;
        let org = wanted.org.as_deref().unwrap_or(&principal.org_id);
        if org != &*principal.org_id && !is_operator(principal) {
            return Err(Problem::new(403, "forbidden", "a key makes keys for its own tenant only")
                .hint("use `tidegate key create` on the machine of the server"));
        }
        let made = self.keys.create(org, role, &wanted.label, &principal.key_id, now_us()).await;
        let (secret, record) = made.map_err(refused)?;
        let mut answer = shown(&record);
        answer["key"] = json!(secret.expose());
        Ok(reply::json(StatusCode::CREATED, &answer))
    }

    async fn revoke(&self, path: &str, principal: &Principal) -> Result<Response<Body>, Problem> {
        let id = path.rsplit('/').next().unwrap_or_default();
        let revoked = self.keys.revoke(id, scope(principal), &principal.key_id, now_us()).await.map_err(refused)?;
        match revoked {
            Some(record) => Ok(reply::json(StatusCode::OK, &shown(&record))),
            None => {
                Err(Problem::new(404, "no_such_key", "the tenant has no key with this id")
                    .hint("GET /v2/keys lists them"))
            }
        }
    }
}

/// Whether it is the operator of the machine, for whom there are all tenants.
pub fn is_operator(principal: &Principal) -> bool {
    [LOCAL, DATA_DIR].contains(&&*principal.key_id)
}

/// The tenant whose keys may be seen.
fn scope(principal: &Principal) -> Option<&str> {
    (!is_operator(principal)).then_some(&*principal.org_id)
}

fn shown(record: &KeyRecord) -> Value {
    json!({
        "id": record.key_id,
        "org": record.org_id,
        "role": record.role.as_str(),
        "label": record.label,
        "created": rfc3339(record.created_us),
        "revoked": record.revoked_us.map(rfc3339),
    })
}

fn rfc3339(time_us: i64) -> Option<String> {
    chrono::DateTime::from_timestamp_micros(time_us).map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
}

fn refused(error: PipelineError) -> Problem {
    reply::unchanged(error, "a key", |reason| Problem::new(400, "invalid_key", reason))
}
