//! `POST /v2/sql`.

use std::fmt::Display;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response};
use tidegate_pipeline::keys::Principal;

use super::body::{Format, respond};
use super::{Body, refused};
use crate::error::QueryError;
use crate::{Query, Scope};

/// `{"sql": …}`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlBody {
    sql: String,
}

impl Query {
    /// `POST /v2/sql`: the statement as `{"sql":…}` (`application/json`) or as plain text (any other type), the rows in the
    /// format that `Accept` asks for. Streams with backpressure; dropping the body cancels the query.
    pub async fn handle_sql<B>(&self, request: Request<B>, principal: &Principal, request_id: &str) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Display + Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.sql_answer(request, principal, request_id).await {
            Ok(response) => response,
            Err(error) => refused(&error, request_id),
        }
    }

    async fn sql_answer<B>(
        &self,
        request: Request<B>,
        principal: &Principal,
        request_id: &str,
    ) -> Result<Response<Body>, QueryError>
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Display + Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let format = Format::from_accept(header(request.headers(), ACCEPT))?;
        let json = header(request.headers(), CONTENT_TYPE).is_some_and(|kind| {
            kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
        });
        // Each byte of the statement may be escaped as six in JSON.
        let bytes_max = self.shared.config.sql_bytes_max.saturating_mul(if json { 6 } else { 1 }).saturating_add(64);
        let body = Limited::new(request.into_body(), bytes_max).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                let message = format!("the body has more than {bytes_max} bytes");
                return QueryError::BadRequest { status: 413, code: "body_too_large", message };
            }
            QueryError::bad("body_incomplete", "the body ended before its end")
        })?;
        let body = body.to_bytes();
        let sql = if json {
            let parsed: SqlBody = serde_json::from_slice(&body)
                .map_err(|error| QueryError::bad("invalid_body", format!("the body is not {{\"sql\": …}}: {error}")))?;
            parsed.sql
        } else {
            String::from_utf8(body.into()).map_err(|_| QueryError::bad("invalid_body", "the statement is not UTF-8"))?
        };
        let rows = self.sql(&Scope::of(principal), &sql).await?;
        Ok(respond(rows, format, &self.shared.cpu, request_id).await)
    }
}

fn header(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
