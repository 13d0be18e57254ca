//! The endpoints that take events: `POST /v2/events`, `/v2/events/bulk` and `/v2/costs/bulk`.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Request, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_pipeline::keys::Principal;
use tidegate_pipeline::{Problem, clock};
use tokio::sync::oneshot;

use super::body::{BodyPace, InFlight, read_sent};
use super::reply::{self, ReplyBody};
use super::request::Asked;
use crate::batcher::{Batcher, Job};
use crate::metrics as names;

/// Bounds of the ingest endpoints.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// Bytes of one body as it is sent.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are held at once, sent and inflated. What does not fit is answered with 429.
    pub inflight_bytes_max: usize,
    /// Bodies up to this size may use the last eighth of `inflight_bytes_max`.
    pub small_body_bytes: usize,
    /// Without any byte of a body that is being received.
    pub body_gap_ms_max: u64,
    /// Bytes a second that a body must bring on average, after a first `body_gap_ms_max`.
    pub body_rate_bytes_min: u64,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            body_bytes_max: 32 * 1024 * 1024,
            // One body may have seven eighths of it: its 32 MiB as sent and 256 MiB inflated.
            inflight_bytes_max: 384 * 1024 * 1024,
            small_body_bytes: 256 * 1024,
            body_gap_ms_max: 10_000,
            body_rate_bytes_min: 1024,
        }
    }
}

/// Takes requests, gives their bodies to the [`Batcher`], and answers when the log has. See the module.
#[derive(Debug)]
pub struct Ingest {
    batcher: Arc<Batcher>,
    inflight: Arc<InFlight>,
    body_bytes_max: usize,
    pace: BodyPace,
}

impl Ingest {
    /// The endpoints in front of `batcher`.
    pub fn new(batcher: Arc<Batcher>, config: &IngestConfig) -> Self {
        Self {
            batcher,
            inflight: InFlight::new(config.inflight_bytes_max, config.small_body_bytes),
            body_bytes_max: config.body_bytes_max,
            pace: BodyPace {
                gap_max: Duration::from_millis(config.body_gap_ms_max),
                rate_bytes_min: config.body_rate_bytes_min,
            },
        }
    }

    /// The budget of body bytes, for other endpoints that hold bodies.
    pub fn inflight(&self) -> &Arc<InFlight> {
        &self.inflight
    }

    /// Answers a request of a principal that may ingest.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        principal: &Principal,
        request_id: &str,
    ) -> Response<ReplyBody> {
        match self.take(request, principal, request_id).await {
            Ok(response) => response,
            Err(problem) => {
                metrics::counter!(names::REQUESTS_REFUSED_TOTAL, "code" => problem.code).increment(1);
                let mut response = reply::problem(&problem, request_id);
                if problem.status == 405 {
                    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                }
                response
            }
        }
    }

    async fn take(
        &self,
        request: Request<Incoming>,
        principal: &Principal,
        request_id: &str,
    ) -> Result<Response<ReplyBody>, Problem> {
        let (parts, body) = request.into_parts();
        let asked = Asked::read(&parts)?;
        let sent = read_sent(body, self.body_bytes_max, self.pace, &self.inflight).await?;
        let ack = asked.ack;
        let (reply, settled) = oneshot::channel();
        self.batcher.submit(Job {
            sent,
            encodings: asked.encodings,
            org_id: principal.org_id.clone(),
            dataset: asked.dataset,
            source: asked.source,
            format: asked.format,
            received_us: clock::now_us(),
            idempotency_key: asked.idempotency_key,
            request_id: request_id.into(),
            ack,
            detail: asked.detail,
            reply,
        })?;
        // A worker that is gone without an answer is a bug; the client may try again, nothing was acknowledged.
        let settled = settled.await.map_err(|_| {
            Problem::new(503, "not_stored", "the events were not stored")
                .hint("send them again after Retry-After seconds")
        })??;
        Ok(reply::settled(settled, ack, request_id))
    }
}
