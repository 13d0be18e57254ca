//! A small HTTP/1.1 client over hyper: one kept-alive connection to one server, with a time bound on every request.

use std::fmt::Write as _;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::style::clean;
use crate::config::ClientConfig;

/// The address of a server: `http://host[:port][/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    /// Name or address, without the brackets of IPv6.
    pub host: String,
    /// Port, 80 when the URL has none.
    pub port: u16,
    /// Path before every endpoint, without a slash at its end. Mostly empty.
    pub prefix: String,
}

impl FromStr for ServerUrl {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                bail!(
                    "{text}: https is not spoken here; point --url at the http port behind the TLS proxy, or use a tunnel"
                )
            }
            Some((scheme, _)) => bail!("{text}: scheme {scheme:?} is not http"),
            None => text,
        };
        if rest.contains(['?', '#', '@']) {
            bail!("{text}: a server's URL has no user, query or fragment; the key goes into TIDEGATE_CLIENT__KEY");
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let (host, port) = split_port(authority).with_context(|| format!("{text}: not http://host:port"))?;
        if host.is_empty() {
            bail!("{text}: the host is missing; write http://host:port");
        }
        Ok(Self { host: host.to_owned(), port, prefix: path.trim_end_matches('/').to_owned() })
    }
}

fn split_port(authority: &str) -> anyhow::Result<(&str, u16)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']').context("a bracket is open")?;
        host.parse::<Ipv6Addr>().context("between the brackets")?;
        let port = port.strip_prefix(':').map_or(Ok(80), str::parse).context("the port")?;
        return Ok((host, port));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => Ok((host, port.parse().context("the port")?)),
        None => Ok((authority, 80)),
    }
}

impl ServerUrl {
    /// `host:port`, as it stands in the `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// When the server cannot be reached; the message says what to do.
    pub async fn connect(&self, wait: Duration) -> anyhow::Result<TcpStream> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = timeout(wait, connecting)
            .await
            .map_err(|_| anyhow!("no answer within {wait:?}"))
            .and_then(|done| Ok(done?));
        let stream = stream.with_context(|| {
            format!("cannot reach {} (is the server up? `tidegate serve` starts one)", self.authority())
        })?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        Ok(stream)
    }
}

/// A whole reply.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The reply when it was a success, else what the server said is wrong.
    ///
    /// # Errors
    /// On every status that is not 2xx.
    pub fn ok(self) -> anyhow::Result<Self> {
        if self.status.is_success() { Ok(self) } else { Err(anyhow!(self.refusal())) }
    }

    /// What the server said is wrong, in one line.
    pub fn refusal(&self) -> String {
        let body = self.json();
        let text = |name: &str| body["error"][name].as_str().unwrap_or_default();
        let mut line = format!("the server answered {}", self.status.as_u16());
        if text("message").is_empty() {
            let body = String::from_utf8_lossy(&self.body);
            let _ = write!(line, ": {}", body.chars().take(300).collect::<String>().trim());
        } else {
            let _ = write!(line, " {}: {}", text("code"), text("message"));
        }
        if !text("hint").is_empty() {
            let _ = write!(line, " ({})", text("hint"));
        } else if matches!(self.status.as_u16(), 401 | 403) {
            line.push_str(
                " (give a key with the right role in TIDEGATE_CLIENT__KEY or --key; `tidegate key create` makes one)",
            );
        }
        clean(&line)
    }
}

/// A client of one server. Requests go one after the other; use one client for each that is to run at the same time.
#[derive(Debug)]
pub struct Client {
    url: ServerUrl,
    key: Option<HeaderValue>,
    timeout: Duration,
    reply_bytes_max: usize,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client that connects at its first request.
    ///
    /// # Errors
    /// When the URL or the key is not one.
    pub fn new(config: &ClientConfig) -> anyhow::Result<Self> {
        Ok(Self {
            url: config.url.parse()?,
            key: bearer(config)?,
            timeout: Duration::from_millis(config.timeout_ms),
            reply_bytes_max: usize::try_from(config.reply_bytes_max).unwrap_or(usize::MAX),
            connection: None,
        })
    }

    /// The server.
    pub fn url(&self) -> &ServerUrl {
        &self.url
    }

    /// Sends a request and reads the whole reply.
    ///
    /// # Errors
    /// When the server cannot be reached, does not answer in time or answers more than fits. Any status is a reply.
    pub async fn fetch(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
    ) -> anyhow::Result<Reply> {
        let wait = self.timeout;
        let reply = timeout(wait, async {
            let response = self.send(method, path, headers, body).await?;
            self.collect(response).await
        });
        match reply.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                self.connection = None;
                Err(error)
            }
            Err(_) => {
                self.connection = None;
                Err(anyhow!(
                    "{} did not answer within {} s (client.timeout_ms)",
                    self.url.authority(),
                    wait.as_secs_f32()
                ))
            }
        }
    }

    /// Sends a request and gives each line of the reply to `each` as it comes. The time bound is on every piece of the reply,
    /// not on the whole of it.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), on a status that is not 2xx, and what `each` says.
    pub async fn lines(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
        each: &mut (dyn FnMut(&str) -> anyhow::Result<()> + Send),
    ) -> anyhow::Result<()> {
        let wait = self.timeout;
        let silent = || anyhow!("the server was silent for {} s (client.timeout_ms)", wait.as_secs_f32());
        let response = timeout(wait, self.send(method, path, headers, body)).await.map_err(|_| silent())??;
        if !response.status().is_success() {
            timeout(wait, self.collect(response)).await.map_err(|_| silent())??.ok()?;
            return Ok(());
        }
        // A reply that is not read to its end leaves a connection that is of no more use.
        let connection = self.connection.take();
        let mut body = response.into_body();
        let mut rest = BytesMut::new();
        while let Some(frame) = timeout(wait, body.frame()).await.map_err(|_| silent())? {
            let Ok(piece) = frame.context("the reply broke off")?.into_data() else { continue };
            rest.extend_from_slice(&piece);
            while let Some(newline) = memchr::memchr(b'\n', &rest) {
                let line = rest.split_to(newline + 1);
                let line = std::str::from_utf8(&line).context("the reply is not UTF-8")?.trim();
                if !line.is_empty() {
                    each(line)?;
                }
            }
            if rest.len() > self.reply_bytes_max {
                bail!("a line of the reply is larger than {} bytes (client.reply_bytes_max)", self.reply_bytes_max);
            }
        }
        let line = std::str::from_utf8(&rest).context("the reply is not UTF-8")?.trim();
        if !line.is_empty() {
            each(line)?;
        }
        self.connection = connection;
        Ok(())
    }

    /// `GET` with a JSON answer.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and on a status that is not 2xx.
    pub async fn get_json(&mut self, path: &str) -> anyhow::Result<Value> {
        Ok(self.fetch(Method::GET, path, &[], Bytes::new()).await?.ok()?.json())
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let reused = self.connection.is_some();
        let request = self.request(&method, path, headers, body.clone())?;
        match self.connection().await?.send_request(request).await {
            // The server closed the idle connection before it saw the request: that is not an answer, so ask once more.
            Err(error) if reused && (error.is_canceled() || error.is_closed()) => {
                self.connection = None;
                let request = self.request(&method, path, headers, body)?;
                let response = self.connection().await?.send_request(request).await;
                response.with_context(|| format!("{method} {path} at {}", self.url.authority()))
            }
            other => other.with_context(|| format!("{method} {path} at {}", self.url.authority())),
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.prefix))
            .header(HOST, self.url.authority())
            .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.body(Full::new(body)).with_context(|| format!("a request for {path}"))
    }

    async fn connection(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        if self.connection.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = self.url.connect(self.timeout.min(CONNECT_WAIT)).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("HTTP handshake")?;
            // The task ends with the connection; its error is the error of the request that was under way.
            tokio::spawn(async move { drop(connection.await) });
            self.connection = Some(sender);
        }
        let connection = self.connection.as_mut().context("no connection")?;
        connection.ready().await.context("the connection closed")?;
        Ok(connection)
    }

    async fn collect(&self, response: Response<Incoming>) -> anyhow::Result<Reply> {
        let (head, mut body) = response.into_parts();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(piece) = frame.context("the reply broke off")?.into_data() {
                if whole.len() + piece.len() > self.reply_bytes_max {
                    bail!(
                        "the reply is larger than {} bytes: ask for less (LIMIT), or raise client.reply_bytes_max",
                        self.reply_bytes_max
                    );
                }
                whole.extend_from_slice(&piece);
            }
        }
        Ok(Reply { status: head.status, headers: head.headers, body: whole.freeze() })
    }
}

/// How long a TCP connect may take; a request may take longer.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// The `Authorization` header for the configured key.
///
/// # Errors
/// When the key holds what cannot stand in a header.
pub fn bearer(config: &ClientConfig) -> anyhow::Result<Option<HeaderValue>> {
    let Some(key) = &config.key else { return Ok(None) };
    let mut value =
        HeaderValue::from_str(&format!("Bearer {key}")).context("the API key holds characters that no key has")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Text as part of a query string (RFC 3986: all but unreserved characters escaped).
pub fn query_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_or_refused_with_a_reason() {
        for (text, wanted) in [
            ("http://127.0.0.1:4000", Ok(("127.0.0.1", 4000, ""))),
            ("http://tide.example/siem/", Ok(("tide.example", 80, "/siem"))),
            ("tide.example:4000", Ok(("tide.example", 4000, ""))),
            ("HTTP://[::1]:4000", Ok(("::1", 4000, ""))),
            ("https://tide.example", Err("https is not spoken here")),
            ("ftp://tide.example", Err("is not http")),
            ("http://", Err("host is missing")),
            ("http://:4000", Err("host is missing")),
            ("http://a:99999", Err("not http://host:port")),
            ("http://user:pw@a:1", Err("no user")),
            ("http://[::1", Err("not http://host:port")),
        ] {
            match (text.parse::<ServerUrl>(), wanted) {
                (Ok(url), Ok((host, port, prefix))) => {
                    assert_eq!((url.host.as_str(), url.port, url.prefix.as_str()), (host, port, prefix), "{text}")
                }
                (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{text}: {error:#}"),
                (got, wanted) => panic!("{text}: {got:?}, wanted {wanted:?}"),
            }
        }
    }

    #[test]
    fn query_text_is_escaped() {
        assert_eq!(query_escape("a b&c=ü/~"), "a%20b%26c%3D%C3%BC%2F~");
    }
}
