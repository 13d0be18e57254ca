//! Answers: JSON bodies, problems, and what became of each item of a bulk request.

use std::fmt::Write as _;
use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use tidegate_pipeline::{Ack, Problem};

use super::body::Held;
use crate::batcher::{ItemState, Settled};

/// The body of every answer.
pub type ReplyBody = UnsyncBoxBody<Bytes, io::Error>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TIDEGATE_ACK: HeaderName = HeaderName::from_static("tidegate-ack");

/// After how many seconds a refused request is worth sending again.
const RETRY_AFTER_S: &str = "1";

/// A JSON answer.
pub fn json(status: StatusCode, body: String, request_id: &str) -> Response<ReplyBody> {
    json_bytes(status, Bytes::from(body), request_id)
}

fn json_bytes(status: StatusCode, body: Bytes, request_id: &str) -> Response<ReplyBody> {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    if let Ok(id) = HeaderValue::from_str(request_id)
        && !request_id.is_empty()
    {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// A problem as an answer, with `Retry-After` where the client should come back.
pub fn problem(problem: &Problem, request_id: &str) -> Response<ReplyBody> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, problem.to_json(request_id), request_id);
    if matches!(problem.status, 429 | 503) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
    }
    response
}

/// The answer to a bulk request that was decoded: 200 when everything is stored, 207 when some of it is, 400 when nothing
/// is.
pub(crate) fn settled(mut settled: Settled, ack: Ack, request_id: &str) -> Response<ReplyBody> {
    let rejected = settled.rejected.len();
    let stored = settled.accepted + settled.duplicates;
    let status = match (rejected, stored) {
        (0, _) => StatusCode::OK,
        (_, 0) => StatusCode::BAD_REQUEST,
        _ => StatusCode::MULTI_STATUS,
    };
    let mut body = String::with_capacity(96 + 96 * (rejected + settled.stored.len()));
    // Writing to a string cannot fail.
    let _ = write!(
        body,
        r#"{{"accepted":{},"duplicates":{},"rejected":{rejected},"items":["#,
        settled.accepted, settled.duplicates
    );
    write_items(&mut body, &settled);
    body.push(']');
    if status == StatusCode::BAD_REQUEST {
        let problem = Problem::new(400, "all_rejected", "no item of the request could be stored")
            .hint("`items` says why, one by one; they are kept in the table dead_letters");
        let error = problem.to_json(request_id);
        body.push(',');
        body.push_str(error.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default());
    }
    body.push('}');
    let held = settled.held.take().filter(|held| held.bytes() > 0);
    let body = match held {
        Some(held) => Bytes::from_owner(Accounted { text: body, _held: held }),
        None => Bytes::from(body),
    };
    let mut response = json_bytes(status, body, request_id);
    if stored > 0 {
        let ack = settled.ack.unwrap_or(ack);
        response.headers_mut().insert(TIDEGATE_ACK, HeaderValue::from_static(ack.as_str()));
    }
    response
}

/// The text of an answer with what it takes of the budget of all requests, given back when its last byte has been sent.
struct Accounted {
    text: String,
    _held: Held,
}

impl AsRef<[u8]> for Accounted {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

fn write_items(body: &mut String, settled: &Settled) {
    let mut rejected = settled.rejected.iter().peekable();
    let mut stored = settled.stored.iter().peekable();
    let mut first = true;
    // Both are in order of their index.
    loop {
        let reject_next = match (rejected.peek(), stored.peek()) {
            (None, None) => return,
            (Some(left), Some(right)) => left.index <= right.index,
            (left, _) => left.is_some(),
        };
        if !std::mem::take(&mut first) {
            body.push(',');
        }
        if reject_next {
            let Some(item) = rejected.next() else { return };
            let _ = write!(body, r#"{{"index":{},"status":"rejected","code":"#, item.index);
            write_text(body, item.code);
            body.push_str(r#","reason":"#);
            write_text(body, &item.reason);
        } else {
            let Some(item) = stored.next() else { return };
            let status = match item.state {
                ItemState::Stored => "stored",
                ItemState::Duplicate => "duplicate",
            };
            let _ = write!(body, r#"{{"index":{},"status":"{status}","event_id":"#, item.index);
            write_text(body, &item.event_id);
        }
        body.push('}');
    }
}

fn write_text(body: &mut String, text: &str) {
    match serde_json::to_string(text) {
        Ok(quoted) => body.push_str(&quoted),
        Err(_) => body.push_str("null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::InFlight;

    #[tokio::test]
    async fn an_answer_counts_against_the_budget_until_its_bytes_are_gone() {
        let inflight = InFlight::new(1 << 20, 1 << 20);
        let mut held = inflight.enter().expect("room");
        assert!(held.grow(500));
        let taken = inflight.used_bytes();
        let response = settled(Settled { accepted: 1, held: Some(held), ..Settled::default() }, Ack::Disk, "r");
        assert_eq!(inflight.used_bytes(), taken, "the answer was not sent yet");
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(inflight.used_bytes(), taken, "its bytes are on their way");
        drop(bytes);
        assert_eq!(inflight.used_bytes(), 0);
    }
}
