//! The HTTP doors. The caller has authenticated the request already and knows that its role may read.

mod alerts;
mod body;
pub(crate) mod events;
mod feedback;
pub(crate) mod params;
mod sql;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::error::QueryError;
pub use feedback::AlertOf;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// An answer that is complete.
pub(crate) fn whole(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

/// A refusal.
pub(crate) fn refused(error: &QueryError, request_id: &str) -> Response<Body> {
    let mut response = whole(error.status(), "application/json", error.to_problem().to_json(request_id));
    if matches!(error.status(), 429 | 503) {
        response.headers_mut().insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    }
    response
}

/// An answer in JSON, or the refusal.
pub(crate) fn answered(result: Result<Vec<u8>, QueryError>, request_id: &str) -> Response<Body> {
    match result {
        Ok(body) => whole(200, "application/json", body),
        Err(error) => refused(&error, request_id),
    }
}
