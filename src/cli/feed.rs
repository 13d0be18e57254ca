//! Follows the alert feed over WebSocket: reconnects by itself and goes on after the last alert it saw, so that no alert is
//! missed and none comes twice.

use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use futures::StreamExt;
use hyper::Method;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::http::{Client, ServerUrl, bearer, query_escape};
use crate::config::ClientConfig;

/// An alert of the feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fired {
    /// Its sequence number.
    pub seq: u64,
    /// The alert.
    pub alert: Value,
}

impl Fired {
    /// A text field of the alert; empty when it has none.
    pub fn text(&self, name: &str) -> &str {
        self.alert[name].as_str().unwrap_or_default()
    }
}

/// A follower of the feed.
#[derive(Debug)]
pub struct Follower {
    config: ClientConfig,
    url: ServerUrl,
    level: Option<String>,
    /// The last sequence number seen; `None` before the first alert ever.
    after: Option<u64>,
    /// Where it is in the alerts of several nodes, in the server's words.
    place: Option<String>,
    socket: Option<WebSocketStream<TcpStream>>,
}

/// The server pings an idle subscriber more often than this.
const SILENCE_MAX: Duration = Duration::from_secs(90);
const CONNECT_WAIT: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

impl Follower {
    /// A follower of alerts of this level and above, from the alert after `after` on; from the first ever for `None`.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(config: &ClientConfig, level: Option<&str>, after: Option<u64>) -> anyhow::Result<Self> {
        let url = config.url.parse()?;
        Ok(Self { config: config.clone(), url, level: level.map(str::to_owned), after, place: None, socket: None })
    }

    /// The sequence number of the newest alert there is, if there is any: where following from now on starts.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn newest(config: &ClientConfig) -> anyhow::Result<Option<u64>> {
        let body = Bytes::from(json!({"sql": "SELECT max(seq) AS seq FROM alerts"}).to_string());
        let headers = [(CONTENT_TYPE, "application/json")];
        let reply = Client::new(config)?.fetch(Method::POST, "/v2/sql", &headers, body).await?.ok()?;
        Ok(reply.json()[0]["seq"].as_u64())
    }

    /// The next alert. Waits for it, over any number of connections; `lost` is told why and how long before each pause.
    ///
    /// # Errors
    /// Only when trying again cannot help: the server refuses the key or the filter.
    pub async fn next(&mut self, lost: &mut (dyn FnMut(&str, Duration) + Send)) -> anyhow::Result<Fired> {
        let mut pause = PAUSE_MIN;
        loop {
            let failed = match self.try_next().await {
                Ok(Some(fired)) => return Ok(fired),
                Ok(None) => continue,
                Err(Lost::ForGood(error)) => return Err(error),
                Err(Lost::ForNow(error)) => error,
            };
            self.socket = None;
            lost(&format!("{failed:#}"), pause);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Connects, if there is no connection yet: what fires from now on will be seen.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn connect(&mut self) -> anyhow::Result<()> {
        if self.socket.is_none() {
            let socket = self.open().await.map_err(|lost| match lost {
                Lost::ForGood(error) | Lost::ForNow(error) => error,
            })?;
            self.socket = Some(socket);
        }
        Ok(())
    }

    async fn try_next(&mut self) -> Result<Option<Fired>, Lost> {
        if self.socket.is_none() {
            self.socket = Some(self.open().await?);
        }
        let Some(socket) = &mut self.socket else { return Ok(None) };
        let message = match timeout(SILENCE_MAX, socket.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return Err(Lost::ForNow(anyhow!(error).context("the feed broke off"))),
            Ok(None) => return Err(Lost::ForNow(anyhow!("the server closed the feed"))),
            Err(_) => return Err(Lost::ForNow(anyhow!("nothing came for {} s", SILENCE_MAX.as_secs()))),
        };
        match message {
            Message::Text(text) => self.frame(&text),
            Message::Close(reason) => {
                let reason = reason.map(|reason| reason.reason.to_string()).unwrap_or_default();
                Err(Lost::ForNow(anyhow!("the server closed the feed {reason}")))
            }
            _ => Ok(None),
        }
    }

    /// A frame is an alert, a gap (after which the feed is asked again from the last alert seen), or something newer than this
    /// program.
    fn frame(&mut self, text: &str) -> Result<Option<Fired>, Lost> {
        let mut frame: Value = serde_json::from_str(text)
            .map_err(|error| Lost::ForNow(anyhow!(error).context("a frame that is not JSON")))?;
        // Of several nodes each has seqs of its own; what is told after the place that we gave is new.
        let placed = frame["after"].as_str().map(str::to_owned);
        let is_placed = placed.is_some();
        self.place = placed.or(self.place.take());
        if frame["type"] == "gap" && frame["missed"].is_null() {
            return Err(Lost::ForNow(anyhow!("alerts of node {} are gone from Redis", frame["node"])));
        }
        if frame["type"] == "gap" {
            return Err(Lost::ForNow(anyhow!("too slow for the feed, {} alerts are fetched again", frame["missed"])));
        }
        match frame["seq"].as_u64() {
            Some(seq) if is_placed || self.after.is_none_or(|after| seq > after) => {
                self.after = Some(seq);
                Ok(Some(Fired { seq, alert: frame["alert"].take() }))
            }
            _ => Ok(None),
        }
    }

    async fn open(&self) -> Result<WebSocketStream<TcpStream>, Lost> {
        let stream = self.url.connect(CONNECT_WAIT).await.map_err(Lost::ForNow)?;
        let after = self.after.map_or(-1, |after| i64::try_from(after).unwrap_or(i64::MAX));
        let mut query = vec![format!("after={}", self.place.clone().unwrap_or_else(|| after.to_string()))];
        query.extend(self.level.as_ref().map(|level| format!("level={}", query_escape(level))));
        let url = format!("ws://{}{}/v2/alerts/stream?{}", self.url.authority(), self.url.prefix, query.join("&"));
        let mut request = url.into_client_request().map_err(|error| Lost::ForGood(anyhow!(error)))?;
        if let Some(key) = bearer(&self.config).map_err(Lost::ForGood)? {
            request.headers_mut().insert(AUTHORIZATION, key);
        }
        match timeout(CONNECT_WAIT, tokio_tungstenite::client_async(request, stream)).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(Error::Http(response))) => {
                let (status, body) = (response.status(), response.body().clone().unwrap_or_default());
                let reply = super::http::Reply { status, headers: response.headers().clone(), body: Bytes::from(body) };
                let error = anyhow!(reply.refusal());
                Err(if status.is_client_error() && status.as_u16() != 429 {
                    Lost::ForGood(error)
                } else {
                    Lost::ForNow(error)
                })
            }
            Ok(Err(error)) => Err(Lost::ForNow(anyhow!(error).context("open the alert feed"))),
            Err(_) => Err(Lost::ForNow(anyhow!("the alert feed did not open within {} s", CONNECT_WAIT.as_secs()))),
        }
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        if let Some(mut socket) = self.socket.take() {
            // The server sees the end of the connection either way.
            let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
enum Lost {
    /// Trying again may help.
    ForNow(anyhow::Error),
    /// It cannot.
    ForGood(anyhow::Error),
}
