//! One kept-alive HTTP/1.1 connection to the server, and the few questions that are asked of it beside the load.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A reply that does not come within this ends the run.
const REPLY_TIME_MAX: Duration = Duration::from_secs(60);
const REPLY_BYTES_MAX: usize = 64 << 20;

/// A reply as a whole.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nothing listens there.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; what goes wrong in it is the answer of the request under way.
        drop(tokio::spawn(connection));
        Ok(Self { sender, host: HeaderValue::from_str(&address.to_string())?, authorization: None })
    }

    /// Sends this header with all that follows.
    pub fn authorize(&mut self, authorization: Option<HeaderValue>) {
        self.authorization = authorization;
    }

    /// Sends a request and reads its reply.
    ///
    /// # Errors
    /// When the connection breaks, or no reply comes in time.
    pub async fn send(&mut self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> anyhow::Result<Reply> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse()?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, self.host.clone());
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, REPLY_BYTES_MAX).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("the reply's body: {error}"))?.to_bytes();
            anyhow::Ok(Reply { status: head.status, headers: head.headers, body })
        };
        let reply = tokio::time::timeout(REPLY_TIME_MAX, exchange).await;
        reply.with_context(|| format!("no reply to {path} within {REPLY_TIME_MAX:?}"))?
    }

    /// The page of a path.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, HeaderMap::new(), Bytes::new()).await
    }

    /// How many rows a table has, by SQL.
    ///
    /// # Errors
    /// As [`send`](Self::send), or when the query fails.
    pub async fn count(&mut self, table: &str) -> anyhow::Result<u64> {
        let sql = Bytes::from(format!("SELECT count(*) AS n FROM {table}"));
        let reply = self.send(Method::POST, "/v2/sql", HeaderMap::new(), sql).await?;
        let text = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status == StatusCode::OK, "counting {table} was answered with {}: {text}", reply.status);
        let rows: Value = serde_json::from_slice(&reply.body).context("rows as JSON")?;
        rows.pointer("/0/n").and_then(Value::as_u64).with_context(|| format!("no count in {text}"))
    }

    /// The metrics.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn metrics(&mut self) -> anyhow::Result<Metrics> {
        let reply = self.get("/metrics").await?;
        ensure!(reply.status == StatusCode::OK, "/metrics was answered with {}", reply.status);
        Ok(Metrics { text: String::from_utf8_lossy(&reply.body).into_owned() })
    }
}

/// A page in the Prometheus text format.
#[derive(Debug)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// The sum of all samples of a name whose labels hold `label` (a text like `source="ingest"`, or nothing).
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once('}')?,
                None => ("", rest.strip_prefix(' ')?),
            };
            labels.contains(label).then(|| value.trim().parse::<f64>().ok()).flatten()
        };
        self.text.lines().filter_map(value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_their_labels() {
        let text = "# HELP a x\na 1\na{s=\"x\"} 2\na{s=\"y\"} 4\na_total{s=\"x\"} 8\n".to_owned();
        let metrics = Metrics { text };
        for (name, label, sum) in [("a", "", 7.0), ("a", "s=\"x\"", 2.0), ("a_total", "", 8.0), ("b", "", 0.0)] {
            assert_eq!(metrics.sum(name, label), sum, "{name} {label}");
        }
    }
}
