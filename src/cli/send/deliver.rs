//! Delivers one batch: tries again while the server is away or full, with what `Retry-After` asks for or a growing pause.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::batches::Batch;
use crate::cli::http::{Client, Reply};
use crate::cli::style::clean;

/// What is the same for all batches of a run.
#[derive(Debug, Clone)]
pub struct Route {
    /// Path and query.
    pub path: String,
    /// The type of the bodies.
    pub content_type: &'static str,
    /// Whether bodies are compressed.
    pub zstd: bool,
    /// How long a batch is tried again.
    pub retry_max: Duration,
}

/// What the server said about a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events stored.
    pub accepted: u64,
    /// Events that were there already.
    pub duplicates: u64,
    /// Events refused.
    pub rejected: u64,
    /// The first refusals, one line each.
    pub reasons: Vec<String>,
}

/// So many refusals are told of.
pub const REASONS_MAX: usize = 10;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Delivers a batch; `waiting` is told why and how long before each pause.
///
/// # Errors
/// When the server refuses the batch as a whole for a reason that time does not heal, or time ran out.
pub async fn deliver(
    client: &mut Client,
    route: &Route,
    batch: &Batch,
    waiting: &(dyn Fn(&str, Duration) + Sync),
) -> anyhow::Result<Outcome> {
    let body = if route.zstd {
        Bytes::from(zstd::bulk::compress(&batch.body, zstd::DEFAULT_COMPRESSION_LEVEL).context("compress a batch")?)
    } else {
        batch.body.clone()
    };
    let mut headers = vec![(CONTENT_TYPE, route.content_type), (IDEMPOTENCY_KEY, batch.key.as_str())];
    if route.zstd {
        headers.push((CONTENT_ENCODING, "zstd"));
    }
    let begun = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let (why, asked) = match client.fetch(Method::POST, &route.path, &headers, body.clone()).await {
            Ok(reply) => match outcome(&reply, batch.first_record) {
                Some(outcome) => return Ok(outcome),
                None if is_passing(reply.status) => (reply.refusal(), retry_after(&reply)),
                None => bail!("{}{}", reply.refusal(), remedy(reply.status)),
            },
            Err(error) => (format!("{error:#}"), None),
        };
        let wait = asked.unwrap_or(pause);
        if begun.elapsed() + wait > route.retry_max {
            bail!("{why}; gave up after {} s (send.retry_s_max)", begun.elapsed().as_secs());
        }
        waiting(&why, wait);
        tokio::time::sleep(wait).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A server that asks for longer is asked again all the same.
const RETRY_AFTER_MAX: u64 = 60;

fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

fn retry_after(reply: &Reply) -> Option<Duration> {
    let seconds: u64 = reply.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(RETRY_AFTER_MAX)))
}

fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => "; lower --batch-bytes and start again with --restart",
        StatusCode::NOT_FOUND => "; is --url that of a tidegate server?",
        _ => "",
    }
}

/// The result in the reply, when it has one: 200, 207, and 400 when all events were refused.
fn outcome(reply: &Reply, first_record: u64) -> Option<Outcome> {
    if !matches!(reply.status.as_u16(), 200 | 207 | 400) {
        return None;
    }
    let body = reply.json();
    let count = |name: &str| body[name].as_u64();
    let (accepted, duplicates, rejected) = (count("accepted")?, count("duplicates")?, count("rejected")?);
    let refused = body["items"].as_array().into_iter().flatten().filter(|item| item["status"] == "rejected");
    let reasons = refused.take(REASONS_MAX).map(|item| reason(item, first_record)).collect();
    Some(Outcome { accepted, duplicates, rejected, reasons })
}

fn reason(item: &Value, first_record: u64) -> String {
    let text = |name: &str| item[name].as_str().unwrap_or("?");
    let event = first_record + item["index"].as_u64().unwrap_or_default() + 1;
    clean(&format!("event {event}: {}: {}", text("code"), text("reason")))
}
