//! How the process is told to stop, and to read its rules again.

use std::sync::Arc;

use anyhow::Context;

use super::rules_sync::RulesSync;

/// Waits for SIGTERM or SIGINT. SIGHUP reads the rules again, of a node that has some.
pub(super) async fn until_signal(rules: Option<&Arc<tokio::sync::Mutex<RulesSync>>>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {
                let Some(rules) = rules.cloned() else { continue };
                // Beside this loop, so that a log that hangs does not keep SIGTERM from being heard.
                tokio::spawn(async move {
                    match rules.lock().await.sync().await {
                        Ok(changed) => tracing::info!(changed, "rules read again"),
                        Err(error) => {
                            tracing::warn!(error = format!("{error:#}"), "rules not read; those in force stay");
                        }
                    }
                });
            }
        }
    }
}

/// What comes of a start, which may wait for others for ever; `None` when the process is told to stop before.
pub(super) async fn unless_told<T>(starting: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
    tokio::select! {
        started = starting => started.map(Some),
        told = until_signal(None) => {
            told?;
            tracing::info!("told to stop before it had started");
            Ok(None)
        }
    }
}
