//! What a request to an ingest endpoint asks for: read from its path, query string and headers before its body.

use std::sync::Arc;

use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use tidegate_events::Dataset;
use tidegate_pipeline::{Ack, Problem};

use super::query_string::QueryString;
use crate::decode::BodyFormat;
use crate::inflate::Encoding;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const KNOWN: &[&str] = &["dataset", "source", "ack", "detail"];
const SOURCE_BYTES_MAX: usize = 64;
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
const ENCODINGS_MAX: usize = 3;

/// The wishes of a request, all checked.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) dataset: Dataset,
    pub(crate) source: Option<Arc<str>>,
    pub(crate) ack: Ack,
    pub(crate) detail: bool,
    pub(crate) format: BodyFormat,
    /// In the order in which they must be undone.
    pub(crate) encodings: Vec<Encoding>,
    pub(crate) idempotency_key: Option<Arc<str>>,
}

impl Asked {
    /// Reads them.
    ///
    /// # Errors
    /// 400, 404, 405 or 415, for the client.
    pub(crate) fn read(parts: &Parts) -> Result<Self, Problem> {
        let (bulk, of_path) = match parts.uri.path() {
            "/v2/events" => (false, None),
            "/v2/events/bulk" => (true, None),
            "/v2/costs/bulk" => (true, Some(Dataset::CostEvents)),
            path => {
                let hint = "events go to /v2/events, /v2/events/bulk or /v2/costs/bulk";
                return Err(Problem::new(404, "not_found", format!("there is no {path}")).hint(hint));
            }
        };
        if parts.method != Method::POST {
            let status = StatusCode::METHOD_NOT_ALLOWED.as_u16();
            return Err(Problem::new(status, "method_not_allowed", format!("{} is not allowed here", parts.method))
                .hint("use POST"));
        }
        let query = QueryString::parse(parts.uri.query(), KNOWN)?;
        let dataset = dataset(query.get("dataset"), of_path)?;
        Ok(Self {
            dataset,
            source: query.get("source").map(source).transpose()?,
            ack: ack(query.get("ack"))?,
            detail: detail(query.get("detail"))?,
            format: format(&parts.headers, bulk, dataset)?,
            encodings: encodings(&parts.headers)?,
            idempotency_key: idempotency_key(&parts.headers)?,
        })
    }
}

fn invalid(name: &str, value: &str, hint: impl Into<String>) -> Problem {
    let value: String = value.chars().take(80).collect();
    Problem::new(400, "invalid_parameter", format!("{name} cannot be {value:?}")).hint(hint)
}

fn dataset(asked: Option<&str>, of_path: Option<Dataset>) -> Result<Dataset, Problem> {
    let Some(name) = asked else { return Ok(of_path.unwrap_or(Dataset::SecurityEvents)) };
    let takes_events = |dataset: &Dataset| matches!(dataset, Dataset::SecurityEvents | Dataset::CostEvents);
    let dataset = Dataset::from_table_name(name)
        .filter(takes_events)
        .ok_or_else(|| invalid("dataset", name, "use security_events or cost_events"))?;
    match of_path {
        Some(of_path) if of_path != dataset => {
            Err(invalid("dataset", name, "this path takes cost_events; security events go to /v2/events/bulk"))
        }
        _ => Ok(dataset),
    }
}

fn source(name: &str) -> Result<Arc<str>, Problem> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !name.is_empty() && name.len() <= SOURCE_BYTES_MAX && name.bytes().all(plain) {
        return Ok(name.into());
    }
    Err(invalid("source", name, format!("use 1 to {SOURCE_BYTES_MAX} letters, digits, '_', '-' or '.'")))
}

fn ack(word: Option<&str>) -> Result<Ack, Problem> {
    match word {
        None => Ok(Ack::default()),
        Some(word) => [Ack::Disk, Ack::Memory]
            .into_iter()
            .find(|ack| ack.as_str() == word)
            .ok_or_else(|| invalid("ack", word, "use disk or memory")),
    }
}

fn detail(word: Option<&str>) -> Result<bool, Problem> {
    match word {
        None => Ok(false),
        Some("all") => Ok(true),
        Some(word) => Err(invalid("detail", word, "use all, or leave it out")),
    }
}

fn format(headers: &HeaderMap, bulk: bool, dataset: Dataset) -> Result<BodyFormat, Problem> {
    let json = if bulk { BodyFormat::Json } else { BodyFormat::Single };
    let Some(header) = headers.get(CONTENT_TYPE) else { return Ok(json) };
    let refuse = |hint: &str| {
        let sent = String::from_utf8_lossy(header.as_bytes()).chars().take(80).collect::<String>();
        let message = format!("Content-Type {sent:?} is not taken here");
        Err(Problem::new(415, "unsupported_content_type", message).hint(hint))
    };
    let Ok(text) = header.to_str() else { return refuse("use application/json") };
    let mut parameters = text.split(';').map(|part| part.trim().to_ascii_lowercase());
    let media = parameters.next().unwrap_or_default();
    let foreign_charset = |parameter: String| {
        let charset = parameter.strip_prefix("charset=").map(|charset| charset.trim_matches('"').to_owned());
        charset.is_some_and(|charset| !matches!(charset.as_str(), "utf-8" | "utf8" | "us-ascii"))
    };
    if parameters.any(foreign_charset) {
        return refuse("bodies are UTF-8");
    }
    match media.as_str() {
        "application/json" | "text/json" => Ok(json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" if bulk => {
            Ok(BodyFormat::Json)
        }
        "text/csv" if bulk && dataset == Dataset::CostEvents => Ok(BodyFormat::Csv),
        "text/csv" => refuse("CSV is for cost events, at /v2/costs/bulk"),
        "application/vnd.apache.arrow.stream" if bulk => Ok(BodyFormat::ArrowStream),
        "application/x-ndjson" | "application/vnd.apache.arrow.stream" => refuse("send many events to /v2/events/bulk"),
        "application/x-www-form-urlencoded" => {
            refuse("curl sends this by default: add -H 'content-type: application/json'")
        }
        _ => {
            refuse("use application/json, application/x-ndjson, text/csv (cost) or application/vnd.apache.arrow.stream")
        }
    }
}

fn encodings(headers: &HeaderMap) -> Result<Vec<Encoding>, Problem> {
    let mut encodings = Vec::new();
    for header in headers.get_all(CONTENT_ENCODING) {
        for name in header.to_str().unwrap_or("?").split(',') {
            encodings.extend(match name.trim().to_ascii_lowercase().as_str() {
                "identity" | "" => None,
                "gzip" | "x-gzip" => Some(Encoding::Gzip),
                "zstd" => Some(Encoding::Zstd),
                "deflate" => Some(Encoding::Deflate),
                other => {
                    let other: String = other.chars().take(40).collect();
                    let message = format!("Content-Encoding {other:?} is not taken");
                    return Err(Problem::new(415, "unsupported_content_encoding", message)
                        .hint("use gzip, zstd, deflate or none"));
                }
            });
        }
    }
    if encodings.len() > ENCODINGS_MAX {
        let message = format!("more than {ENCODINGS_MAX} content encodings on one another");
        return Err(Problem::new(415, "unsupported_content_encoding", message).hint("one is enough"));
    }
    encodings.reverse();
    Ok(encodings)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<Arc<str>>, Problem> {
    let Some(header) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = header.to_str().unwrap_or_default().trim();
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let hint = format!("use 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
        return Err(Problem::new(400, "invalid_idempotency_key", "Idempotency-Key is not valid").hint(hint));
    }
    Ok(Some(key.into()))
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn asked(path: &str, headers: &[(&str, &str)]) -> Result<Asked, Problem> {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Asked::read(&request.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn wishes_are_read() {
        let asked = asked(
            "/v2/events/bulk?dataset=cost_events&source=focus-1.2&ack=memory&detail=all",
            &[
                ("content-type", "Text/CSV; charset=UTF-8"),
                ("content-encoding", "gzip, identity"),
                ("content-encoding", "zstd"),
            ],
        )
        .expect("valid");
        assert_eq!(asked.dataset, Dataset::CostEvents);
        assert_eq!(asked.source.as_deref(), Some("focus-1.2"));
        assert_eq!((asked.ack, asked.detail), (Ack::Memory, true));
        assert!(matches!(asked.format, BodyFormat::Csv));
        assert!(matches!(asked.encodings[..], [Encoding::Zstd, Encoding::Gzip]), "undone from the outermost");
    }

    #[test]
    fn formats_go_by_path_and_content_type() {
        let single = asked("/v2/events", &[]).expect("valid");
        assert!(matches!(single.format, BodyFormat::Single));
        let arrow = "application/vnd.apache.arrow.stream";
        let cases = [
            ("/v2/events/bulk", "application/json", Ok(BodyFormat::Json)),
            ("/v2/events", "text/json", Ok(BodyFormat::Single)),
            ("/v2/events/bulk", "application/x-ndjson", Ok(BodyFormat::Json)),
            ("/v2/events/bulk", arrow, Ok(BodyFormat::ArrowStream)),
            ("/v2/costs/bulk", "text/csv", Ok(BodyFormat::Csv)),
            ("/v2/costs/bulk?dataset=cost_events", "text/csv", Ok(BodyFormat::Csv)),
            // What is refused says what would be taken.
            ("/v2/events/bulk", "text/csv", Err("/v2/costs/bulk")),
            ("/v2/events", "application/x-ndjson", Err("/v2/events/bulk")),
            ("/v2/events", arrow, Err("/v2/events/bulk")),
            ("/v2/events", "application/json;charset=latin1", Err("UTF-8")),
            ("/v2/events/bulk", "application/x-www-form-urlencoded", Err("curl")),
            ("/v2/events/bulk", "text/plain", Err("application/x-ndjson")),
        ];
        for (path, content_type, wanted) in cases {
            match (asked(path, &[("content-type", content_type)]), wanted) {
                (Ok(asked), Ok(format)) => assert_eq!(asked.format, format, "{path} {content_type}"),
                (Err(problem), Err(hint)) => {
                    assert!(problem.status == 415 && problem.hint.contains(hint), "{path} {content_type}: {problem:?}");
                }
                (asked, _) => panic!("{path} {content_type}: {asked:?}"),
            }
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_hint() {
        let long = "x".repeat(300);
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16);
        let cases: &[Case<'_>] = &[
            ("/v2/events/bulk?dataset=alerts", &[], 400),
            ("/v2/costs/bulk?dataset=security_events", &[], 400),
            ("/v2/events/bulk?source=a%2Fb", &[], 400),
            ("/v2/events/bulk?source=", &[], 400),
            ("/v2/events/bulk?ack=never", &[], 400),
            ("/v2/events/bulk?detail=some", &[], 400),
            ("/v2/events/bulk?sauce=x", &[], 400),
            ("/v2/events/bulk", &[("content-encoding", "br")], 415),
            ("/v2/events/bulk", &[("content-encoding", "gzip, gzip, gzip, gzip")], 415),
            ("/v2/events/bulk", &[("idempotency-key", &long)], 400),
            ("/v2/events/bulk", &[("idempotency-key", " ")], 400),
            ("/v2/event", &[], 404),
        ];
        for (path, headers, status) in cases {
            let problem = asked(path, headers).expect_err(path);
            assert_eq!(problem.status, *status, "{path} {headers:?}: {problem:?}");
            assert!(!problem.hint.is_empty(), "{path}: {problem:?}");
        }
        let get = Request::get("/v2/events").body(()).expect("a request").into_parts().0;
        assert_eq!(Asked::read(&get).expect_err("GET").status, 405);
    }
    #[test]
    fn bounds_are_to_the_byte() {
        let key = "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX);
        let source = format!("/v2/events/bulk?source={}", "s".repeat(SOURCE_BYTES_MAX));
        let encodings = ["gzip"; ENCODINGS_MAX].join(", ");
        for (path, name, value) in [
            ("/v2/events/bulk", "idempotency-key", key.as_str()),
            ("/v2/events/bulk", "content-encoding", encodings.as_str()),
            (source.as_str(), "accept", "*/*"),
        ] {
            asked(path, &[(name, value)]).expect("within the bound");
        }
        asked("/v2/events/bulk", &[("idempotency-key", &format!("{key}k"))]).expect_err("a byte more");
        asked("/v2/events/bulk", &[("content-encoding", &format!("{encodings}, gzip"))]).expect_err("one more");
        asked(&format!("{source}s"), &[]).expect_err("a byte more");
    }
}
