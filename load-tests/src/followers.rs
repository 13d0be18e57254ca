//! Followers of the alert feed beside the load: each reads what comes as fast as it comes, and counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use futures::StreamExt;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

/// What followers were sent, all together.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Followed {
    /// Followers.
    pub followers: u64,
    /// Alerts.
    pub alerts: u64,
    /// Alerts that a follower was told that it missed, because it was too slow.
    pub missed: u64,
    /// Followers whose connection ended before the run.
    pub ended: u64,
}

/// Followers at work; dropping them ends them.
#[derive(Debug)]
pub struct Followers {
    tasks: JoinSet<()>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    alerts: AtomicU64,
    missed: AtomicU64,
    ended: AtomicU64,
}

impl Followers {
    /// Connects so many.
    ///
    /// # Errors
    /// When the server does not let them follow.
    pub async fn start(address: SocketAddr, followers: usize) -> anyhow::Result<Self> {
        let mut started = Self { tasks: JoinSet::new(), counts: Arc::default() };
        for _ in 0..followers {
            let stream = TcpStream::connect(address).await.context("connect to the feed")?;
            let url = format!("ws://{address}/v2/alerts/stream");
            let (mut feed, _) = tokio_tungstenite::client_async(url, stream).await.context("follow the alerts")?;
            let counts = started.counts.clone();
            started.tasks.spawn(async move {
                while let Some(Ok(frame)) = feed.next().await {
                    let Message::Text(text) = frame else { continue };
                    // Most frames are alerts; reading these as JSON would make the driver the slow side.
                    if !text.starts_with(r#"{"type":"gap""#) {
                        counts.alerts.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let frame: Value = serde_json::from_str(&text).unwrap_or_default();
                    counts.missed.fetch_add(frame["missed"].as_u64().unwrap_or(1), Ordering::Relaxed);
                }
                counts.ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        Ok(started)
    }

    /// What they were sent so far.
    pub fn followed(&self) -> Followed {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { alerts, missed, ended } = &*self.counts;
        Followed {
            followers: self.tasks.len() as u64,
            alerts: count(alerts),
            missed: count(missed),
            ended: count(ended),
        }
    }
}
