//! The role `ingest`: takes events over HTTP and answers once the broker has them. It keeps nothing but a snapshot of the keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_ingest::batcher::{Batcher, Partitions};
use tidegate_ingest::http::Ingest;
use tidegate_ingest::mapping::Mappings;
use tidegate_pipeline::StreamLog;
use tidegate_sinks::fluvio::{LogTail, LogTopic, partition_of};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::super::router::Offered;
use super::super::signals::{unless_told, until_signal};
use super::{Node, open_log, within};
use crate::config::Config;

/// Runs the node until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or from ending well.
pub(super) async fn run(node: Node, config: &Config, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let Some(logs) = unless_told(logs(&node, config)).await? else { return Ok(()) };
    let partitions = Partitions::by_tenant(logs, partition_of)?;
    let mappings = Arc::new(Mappings::builtin().context("the shipped mappings")?);
    let decode = (mappings, config.decode.clone());
    let batcher = Arc::new(Batcher::start(&config.batcher, decode, partitions, Handle::current(), &node.health)?);
    let ingest = Ingest::new(batcher.clone(), &config.ingest);
    let offered = Offered { ingest: Some(ingest), reading: None };
    let doors = node.listen(config, offered, watch::Sender::new(false), metrics).await?;
    // Rules are of the workers: what they read from their files is not this node's to compare with its own.
    until_signal(None).await?;
    let deadline = Instant::now() + Duration::from_millis(config.shutdown.drain_ms_max);
    // Requests under way wait for the answers of the broker.
    doors.close().await?;
    let decoded = tokio::task::spawn_blocking(move || batcher.stop());
    if let Some(reason) = within(deadline, "the decode threads", decoded).await {
        tracing::warn!(reason, "not finished before the deadline");
    }
    node.end(deadline).await;
    Ok(())
}

/// The partitions of the log, in their order.
async fn logs(node: &Node, config: &Config) -> anyhow::Result<Vec<Arc<dyn StreamLog>>> {
    let mut logs: Vec<Arc<dyn StreamLog>> = Vec::new();
    for partition in 0..node.partitions {
        let stage = node.health.stage(&format!("log:{partition}"));
        logs.push(open_log(config, LogTopic::Log, partition, None, &LogTail::default(), || stage.clone()).await?);
    }
    Ok(logs)
}
