//! The feed as WebSocket (RFC 6455).

use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tidegate_pipeline::Problem;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error as WsError, Message, Utf8Bytes};

use super::filter::Filter;
use super::following::Following;
use super::handshake::PROTOCOL;
use super::subscription::Broken;
use super::{FeedBody, Seat};
use crate::metrics as names;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How often a stream asks whether its principal may still read.
const RECHECK: Duration = Duration::from_secs(1);

/// For the peer to answer our close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// For the connection to become ours after the answer.
const UPGRADE_MAX: Duration = Duration::from_secs(10);

/// The answer that switches protocols.
pub(super) fn answer(key: &str, protocol: bool) -> Result<Response<FeedBody>, Problem> {
    let mut response = Response::new(FeedBody::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|error| Problem::new(500, "internal_error", error.to_string()))?;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(response)
}

/// Serves one subscriber to its end.
pub(super) async fn serve(upgrade: OnUpgrade, subscription: Following, seat: Seat) {
    let upgraded = match timeout(UPGRADE_MAX, upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%error, "a connection was not upgraded"),
        Err(_) => return tracing::debug!("a connection was not upgraded in time"),
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(16 * 1024)
        .max_write_buffer_size(16 * 1024 * 1024)
        .max_message_size(Some(seat.config().message_bytes_max))
        .max_frame_size(Some(seat.config().message_bytes_max));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (sink, source) = socket.split();
    let window = Window { from: Instant::now(), messages: 0 };
    let mut session = Session { sink, source, subscription, seat, window };
    let end = session.run().await;
    metrics::counter!(names::FEED_ENDED, "why" => end.why).increment(1);
    session.close(end).await;
}

struct Session {
    sink: SplitSink<Socket, Message>,
    source: SplitStream<Socket>,
    subscription: Following,
    seat: Seat,
    window: Window,
}

/// Messages of the client in the present ten seconds.
struct Window {
    from: Instant,
    messages: u32,
}

/// Why a session ends, and what the peer is told: nothing, when it has gone.
struct End {
    why: &'static str,
    told: Option<(CloseCode, &'static str)>,
}

impl End {
    fn gone(why: &'static str) -> Self {
        Self { why, told: None }
    }

    fn stopping() -> Self {
        Self::told("drain", CloseCode::Away, "the server is stopping")
    }

    fn told(why: &'static str, code: CloseCode, reason: &'static str) -> Self {
        Self { why, told: Some((code, reason)) }
    }
}

fn written(result: Result<Result<(), WsError>, Elapsed>) -> Result<(), End> {
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::gone("gone")),
        Err(_) => Err(End::gone("slow")),
    }
}

impl Session {
    async fn run(&mut self) -> End {
        let ping = Duration::from_millis(self.seat.config().ping_ms.max(1));
        let mut pings = tokio::time::interval_at(Instant::now() + ping, ping);
        let mut rechecks = tokio::time::interval(RECHECK);
        let mut unanswered = 0;
        loop {
            let step = tokio::select! {
                biased;
                () = self.seat.stopping() => return End::stopping(),
                _ = rechecks.tick() => Ok(()),
                message = self.source.next() => {
                    unanswered = 0;
                    self.received(message).await
                }
                _ = pings.tick() => {
                    unanswered += 1;
                    if unanswered > 2 {
                        return End::gone("silent");
                    }
                    self.send(vec![Message::Ping(Bytes::new())]).await
                }
                told = self.subscription.next() => match told {
                    // The key may have been revoked while there was nothing to send.
                    Ok(_) if !self.seat.is_valid() => Ok(()),
                    Ok(told) => {
                        metrics::counter!(names::FEED_FRAMES).increment(told.len() as u64);
                        self.send(told.iter().map(|told| Message::Text(told.frame())).collect()).await
                    }
                    Err(Broken::LogClosed) => return End::stopping(),
                    Err(Broken::Unreadable(reason)) => {
                        tracing::error!(reason, org_id = &*self.seat.principal.org_id, "a stream of alerts ended");
                        return End::told("unreadable", CloseCode::Error, "alerts cannot be read now");
                    }
                },
            };
            if let Err(end) = step {
                return end;
            }
            if !self.seat.is_valid() {
                return End::told("revoked", CloseCode::Policy, "the key is no longer valid");
            }
        }
    }

    /// Sends messages, as long as the peer takes some of them in time, and the server does not stop.
    async fn send(&mut self, messages: Vec<Message>) -> Result<(), End> {
        let write_max = self.seat.write_max();
        let sink = &mut self.sink;
        let sending = async {
            for message in messages {
                written(timeout(write_max, sink.feed(message)).await)?;
            }
            written(timeout(write_max, sink.flush()).await)
        };
        tokio::select! {
            biased;
            sent = sending => sent,
            () = self.seat.stopping() => Err(End::stopping()),
        }
    }

    async fn received(&mut self, message: Option<Result<Message, WsError>>) -> Result<(), End> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(WsError::Capacity(_))) => {
                return Err(End::told("too_large", CloseCode::Size, "the message is too large"));
            }
            Some(Err(WsError::Protocol(_))) => {
                return Err(End::told("protocol", CloseCode::Protocol, "not according to RFC 6455"));
            }
            Some(Err(WsError::Utf8(_))) => {
                return Err(End::told("protocol", CloseCode::Invalid, "the text is not UTF-8"));
            }
            Some(Err(_)) | None => return Err(End::gone("gone")),
        };
        if !self.window.counts(self.seat.config().messages_per_10s_max) {
            return Err(End::told("too_many", CloseCode::Policy, "too many messages"));
        }
        match message {
            Message::Text(text) => {
                let answer = self.asked(&text);
                self.send(vec![Message::Text(answer)]).await
            }
            Message::Binary(_) => Err(End::told("binary", CloseCode::Unsupported, "messages are JSON texts")),
            Message::Close(_) => Err(End::gone("closed")),
            // The answer to a ping is queued by the library: it has to leave.
            Message::Ping(_) => self.send(Vec::new()).await,
            Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }

    /// Does what a message asks for; gives the answer.
    fn asked(&mut self, text: &str) -> Utf8Bytes {
        let answer = match Ask::read(text) {
            Ok(filter) => {
                let answer = json!({"type": "filter", "filter": &filter});
                self.subscription.set_filter(filter);
                answer
            }
            Err(problem) => {
                json!({"type": "error", "code": problem.code, "message": problem.message, "hint": problem.hint})
            }
        };
        answer.to_string().into()
    }

    async fn close(mut self, end: End) {
        if let Some((code, reason)) = end.told {
            let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
            if timeout(CLOSE_MAX, self.sink.send(Message::Close(Some(frame)))).await.is_err() {
                return;
            }
        }
        // Takes the peer's answer to our close, or sends ours to its close, and ends the connection.
        let rest = async {
            let _ = self.sink.flush().await;
            while let Some(Ok(_)) = self.source.next().await {}
        };
        let _ = timeout(CLOSE_MAX, rest).await;
        if let Ok(mut socket) = self.sink.reunite(self.source) {
            let _ = timeout(CLOSE_MAX, tokio::io::AsyncWriteExt::shutdown(socket.get_mut())).await;
        }
    }
}

impl Window {
    fn counts(&mut self, messages_max: u32) -> bool {
        if self.from.elapsed() >= Duration::from_secs(10) {
            *self = Self { from: Instant::now(), messages: 0 };
        }
        self.messages += 1;
        self.messages <= messages_max
    }
}

/// What a client may ask for.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Ask {
    Filter(Filter),
}

impl Ask {
    fn read(text: &str) -> Result<Filter, Problem> {
        let Self::Filter(filter) = serde_json::from_str(text).map_err(|error| {
            Problem::new(400, "invalid_message", format!("the message was not understood: {error}"))
                .hint(r#"send {"type":"filter"} with any of level, rule, tag and entity"#)
        })?;
        filter.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_filters_are_understood() {
        let filter = Ask::read(r#"{"type":"filter","level":"high","entity":"kim"}"#).expect("a filter");
        assert_eq!((filter.level.as_deref(), filter.entity.as_deref()), (Some("high"), Some("kim")));
        assert_eq!(Ask::read(r#"{"type":"filter"}"#).expect("no condition"), Filter::default());
        for wrong in ["", "{}", "[]", r#"{"type":"sql"}"#, r#"{"type":"filter","colour":"red"}"#] {
            assert_eq!(Ask::read(wrong).expect_err(wrong).code, "invalid_message");
        }
        assert_eq!(Ask::read(r#"{"type":"filter","level":"loud"}"#).expect_err("level").code, "invalid_filter");
    }
}
