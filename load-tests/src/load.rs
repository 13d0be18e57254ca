//! Sends the load: each connection takes the next request's number, makes its body, sends it and reads the answer.
//!
//! In a closed loop a connection sends when it has its answer, so a latency is the time of one exchange, and a server that stalls is
//! asked less. In an open loop every request has an intended time, and its latency counts from there: a stall is seen by all
//! requests that it delays (no coordinated omission).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::case::{Case, Encoding, Format, Kind};
use crate::corpus::Corpus;
use crate::histogram::Histogram;
use crate::http::Connection;
use crate::tenants::Tenant;

/// What is sent to whom.
#[derive(Debug)]
pub struct Plan {
    address: SocketAddr,
    path: String,
    headers: HeaderMap,
    ack: String,
    corpus: Corpus,
    connections: usize,
    time: Duration,
    interval: Option<Duration>,
    /// Of each tenant its key; none when there is only one tenant.
    pub tenants: Vec<Tenant>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests that were answered.
    pub requests: u64,
    /// Events that the server says are stored.
    pub accepted: u64,
    /// Events that it took for duplicates, or rejected.
    pub refused_events: u64,
    /// Answers 429 and 503, after which the request was sent again.
    pub busy: u64,
    /// Bytes of bodies as they were sent.
    pub sent_bytes: u64,
    /// From the intended time (open loop) or the send (closed loop) to the last byte of the answer.
    pub latencies: Histogram,
}

impl Tally {
    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.accepted += other.accepted;
        self.refused_events += other.refused_events;
        self.busy += other.busy;
        self.sent_bytes += other.sent_bytes;
        self.latencies.merge(&other.latencies);
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    accepted: u64,
    duplicates: u64,
    rejected: u64,
}

impl Plan {
    /// The plan of a case.
    ///
    /// # Errors
    /// When a header cannot be written so.
    pub fn new(case: &Case, corpus: Corpus, address: SocketAddr, tenants: Vec<Tenant>) -> anyhow::Result<Self> {
        let content_type = match case.events.format {
            Format::Ndjson => "application/x-ndjson",
            Format::Array => "application/json",
            Format::Arrow => "application/vnd.apache.arrow.stream",
        };
        let encoding = match case.events.encoding {
            Encoding::Identity => None,
            Encoding::Gzip => Some("gzip"),
            Encoding::Zstd => Some("zstd"),
        };
        let source = match case.events.kind {
            Kind::Cloudtrail => Some("cloudtrail"),
            Kind::Windows => Some("windows"),
            Kind::Reference | Kind::Small | Kind::Large | Kind::Fields => None,
        };
        let source = case.events.source.as_deref().or(source).map(|source| format!("&source={source}"));
        let source = source.unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.extend(encoding.map(|name| (CONTENT_ENCODING, HeaderValue::from_static(name))));
        let load = &case.load;
        let interval = load.requests_per_s.map(|rate| Duration::try_from_secs_f64(1.0 / rate));
        Ok(Self {
            address,
            path: format!("/v2/events/bulk?ack={}{source}", load.ack),
            headers,
            ack: load.ack.clone(),
            corpus,
            connections: load.connections,
            time: Duration::from_secs(load.seconds_max),
            interval: interval.transpose().context("load.requests_per_s")?,
            tenants,
        })
    }

    /// The same plan for a server at another address.
    pub fn at(self: Arc<Self>, address: SocketAddr) -> anyhow::Result<Self> {
        let plan = Arc::into_inner(self).context("the plan is still in use")?;
        Ok(Self { address, ..plan })
    }

    fn tenant(&self, number: u64) -> Option<&Tenant> {
        let count = self.tenants.len() as u64;
        self.tenants.get(usize::try_from(number.checked_rem(count)?).ok()?)
    }

    /// Sends requests `from..until`, at most for the plan's time. With `paced` at the intended times of the plan, if it has such.
    ///
    /// # Errors
    /// When an answer is none that the load may get: then the run says nothing.
    pub async fn run(self: &Arc<Self>, from: u64, until: u64, paced: bool) -> anyhow::Result<Tally> {
        let next = Arc::new(AtomicU64::new(from));
        let mut open = JoinSet::new();
        for _ in 0..self.connections {
            open.spawn(Connection::open(self.address));
        }
        let mut connections = Vec::with_capacity(self.connections);
        while let Some(opened) = open.join_next().await {
            connections.push(opened.context("the task of a connection")??);
        }
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for connection in connections {
            let (plan, next) = (self.clone(), next.clone());
            let turn = Turn { from, until, started, interval: self.interval.filter(|_| paced) };
            tasks.spawn(async move { plan.connection(connection, &next, turn).await });
        }
        let mut tally = Tally::default();
        while let Some(done) = tasks.join_next().await {
            tally.merge(&done.context("the task of a connection")??);
        }
        Ok(tally)
    }

    async fn connection(&self, mut connection: Connection, next: &AtomicU64, turn: Turn) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let intended = turn.intended(number);
            if number >= turn.until || intended.unwrap_or_else(Instant::now).duration_since(turn.started) >= self.time {
                return Ok(tally);
            }
            let body = self.corpus.body(number);
            if let Some(intended) = intended {
                tokio::time::sleep_until(intended.into()).await;
            }
            let begun = intended.unwrap_or_else(Instant::now);
            tally.sent_bytes += body.len() as u64;
            let tenant = self.tenant(number);
            connection.authorize(tenant.map(|tenant| tenant.authorization.clone()));
            let before = tally.accepted;
            self.exchange(&mut connection, body, &mut tally).await?;
            if let Some(tenant) = tenant {
                tenant.accepted.fetch_add(tally.accepted - before, Ordering::Relaxed);
            }
            tally.latencies.record(begun.elapsed());
            tally.requests += 1;
        }
    }

    /// Sends a body until it is taken.
    async fn exchange(&self, connection: &mut Connection, body: Bytes, tally: &mut Tally) -> anyhow::Result<()> {
        loop {
            let reply = connection.send(Method::POST, &self.path, self.headers.clone(), body.clone()).await?;
            match reply.status {
                StatusCode::OK => {
                    let level = reply.headers.get("tidegate-ack").and_then(|level| level.to_str().ok());
                    ensure!(level == Some(&self.ack), "ack={} was asked for, {level:?} was given", self.ack);
                    let answer: Answer = serde_json::from_slice(&reply.body).context("the answer")?;
                    tally.accepted += answer.accepted;
                    tally.refused_events += answer.duplicates + answer.rejected;
                    return Ok(());
                }
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    tally.busy += 1;
                    let seconds = reply.headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
                    tokio::time::sleep(Duration::from_secs(seconds.unwrap_or(1))).await;
                }
                status => bail!("answered with {status}: {}", String::from_utf8_lossy(&reply.body)),
            }
        }
    }
}

/// Which requests, and when.
#[derive(Debug, Clone, Copy)]
struct Turn {
    from: u64,
    until: u64,
    started: Instant,
    interval: Option<Duration>,
}

impl Turn {
    fn intended(&self, number: u64) -> Option<Instant> {
        let after = self.interval?.as_secs_f64() * number.saturating_sub(self.from) as f64;
        Some(self.started + Duration::try_from_secs_f64(after).ok()?)
    }
}
