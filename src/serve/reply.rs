//! Answers that the composition gives itself: JSON, text and problems.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tidegate_pipeline::{AppendError, PipelineError, Problem};

/// The body of every response of the program.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A whole body of this type.
pub fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A JSON body.
pub fn json(status: StatusCode, body: &Value) -> Response<Body> {
    whole(status, "application/json", format!("{body}\n"))
}

/// Why a change of what people edit was not made; `invalid` says what the problem is when the change itself is to blame.
pub fn unchanged(error: PipelineError, what: &str, invalid: impl FnOnce(String) -> Problem) -> Problem {
    match error {
        PipelineError::Invalid(reason) => invalid(reason),
        PipelineError::Append(AppendError::Full(reason)) => {
            Problem::new(429, "log_full", reason).hint("try again in a moment")
        }
        PipelineError::Append(error) => Problem::new(503, "not_durable", error.to_string()).hint("try again"),
        PipelineError::Unseen(reason) => {
            Problem::new(503, "not_seen", reason).hint("look whether it is there before you make it again")
        }
        other => {
            tracing::error!(error = %other, what, "a change could not be made");
            Problem::new(500, "internal", "the change could not be made; the server's log says why")
        }
    }
}

/// The problem of a thing for which the registry has no room.
pub fn no_room(code: &'static str, reason: String) -> Problem {
    Problem::new(409, code, reason).hint("remove what is not needed, or raise the bounds under `registry`")
}

/// A problem, as every door renders it.
pub fn problem(problem: &Problem, request_id: &str) -> Response<Body> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = whole(status, "application/json", problem.to_json(request_id));
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tidegate\""));
    }
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// 405 with the methods that the path has.
pub fn method_not_allowed(allowed: &'static str, request_id: &str) -> Response<Body> {
    let message = format!("this path takes {allowed}");
    let mut response = problem(&Problem::new(405, "method_not_allowed", message), request_id);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_callers_fault_is_not_told_as_such() {
        let refused = |reason: String| Problem::new(400, "invalid_key", reason);
        let full = AppendError::Full("full".to_owned());
        for (error, status) in [
            (PipelineError::Invalid("x".to_owned()), 400),
            (PipelineError::Append(full), 429),
            (PipelineError::Append(AppendError::Closed), 503),
            (PipelineError::Unseen("stored".to_owned()), 503),
            (PipelineError::Locked("here".into()), 500),
        ] {
            let told = format!("{error:?}");
            assert_eq!(unchanged(error, "a key", refused).status, status, "{told}");
        }
    }
}
