//! From the POST of an event to the frame of its alert: events that a rule of the starter pack raises an alert for are sent at
//! intended times, and a follower of the alert feed waits for them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use futures::StreamExt;
use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::case::Alerts;
use crate::histogram::Histogram;
use crate::http::Connection;

/// How long after the last event the last alert may come.
const PATIENCE: Duration = Duration::from_secs(30);
const PREFIX: &str = "load-test-";

/// What came of it.
#[derive(Debug, Default)]
pub struct Seen {
    /// Events that were sent, each for one alert.
    pub sent: u64,
    /// From an event's intended time to the frame with its id.
    pub latencies: Histogram,
}

/// Sends the events and waits for all of their alerts.
///
/// # Errors
/// When an event is not taken, the feed ends, or an alert does not come.
pub async fn run(address: SocketAddr, alerts: Alerts) -> anyhow::Result<Seen> {
    let stream = TcpStream::connect(address).await.context("connect to the feed")?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{address}/v2/alerts/stream");
    let (mut feed, _) = tokio_tungstenite::client_async(url, stream).await.context("follow the alerts")?;
    let started = Instant::now();
    let intended = |number: u32| started + Duration::from_millis(alerts.every_ms) * number;
    let sender = tokio::spawn(send(address, alerts.clone(), started));
    let mut awaited: BTreeMap<u32, Instant> = (0..alerts.count).map(|number| (number, intended(number))).collect();
    let mut seen = Seen { sent: u64::from(alerts.count), ..Seen::default() };
    let deadline = intended(alerts.count) + PATIENCE;
    while !awaited.is_empty() {
        let frame = tokio::time::timeout_at(deadline.into(), feed.next()).await;
        let Ok(frame) = frame else { bail!("{} alerts did not come", awaited.len()) };
        let now = Instant::now();
        let Message::Text(text) = frame.context("the feed ended")?.context("the feed")? else { continue };
        let frame: Value = serde_json::from_str(&text).context("a frame")?;
        ensure!(frame["type"] != "gap", "the feed had a gap: {text}");
        for id in frame["alert"]["event_ids"].as_array().into_iter().flatten() {
            let number = id.as_str().and_then(|id| id.strip_prefix(PREFIX)?.parse().ok());
            if let Some(intended) = number.and_then(|number: u32| awaited.remove(&number)) {
                seen.latencies.record(now.duration_since(intended));
            }
        }
    }
    sender.await.context("the sender")??;
    Ok(seen)
}

async fn send(address: SocketAddr, alerts: Alerts, started: Instant) -> anyhow::Result<()> {
    let mut connection = Connection::open(address).await?;
    for number in 0..alerts.count {
        tokio::time::sleep_until((started + Duration::from_millis(alerts.every_ms) * number).into()).await;
        let body = Bytes::from(event(number).to_string());
        let reply = connection.send(Method::POST, "/v2/events?source=cloudtrail", HeaderMap::new(), body).await?;
        let text = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status == StatusCode::OK, "an event was answered with {}: {text}", reply.status);
    }
    Ok(())
}

/// A CloudTrail record of somebody who stops a trail: each time another one, since what one user does again is folded into his
/// first alert.
fn event(number: u32) -> Value {
    let user = format!("load-{number}");
    json!({
        "eventVersion": "1.09",
        "eventID": format!("{PREFIX}{number}"),
        "eventTime": Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
        "eventSource": "cloudtrail.amazonaws.com",
        "eventName": "StopLogging",
        "eventType": "AwsApiCall",
        "awsRegion": "eu-north-1",
        "sourceIPAddress": "10.0.0.7",
        "userIdentity": {"type": "IAMUser", "userName": user, "arn": format!("arn:aws:iam::418273640900:user/{user}")},
        "requestParameters": {"name": "arn:aws:cloudtrail:eu-north-1:418273640900:trail/all"},
        "recipientAccountId": "418273640900",
    })
}
