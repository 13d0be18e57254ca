//! The role `query`: SQL, reading and the alert feed, on what workers have put into the database and on the topics of alerts and
//! changes. Rules and feedback over the API are written to the changes, which the workers follow.
//!
//! Events and alerts are seen once a worker has committed them. Three things are seen earlier: changes as soon as this node has
//! read them, and alerts on the feed as soon as they are in the output topic, where a tenant has one partition and an alert
//! the offset there as its `seq`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_events::Dataset;
use tidegate_ingest::mapping::Mappings;
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::tailing::read_on;
use tidegate_pipeline::{FieldCatalog, Offset, StreamLog};
use tidegate_query::{Query, QueryParts};
use tidegate_rules::StatusBoard;
use tidegate_sinks::feed::Feed;
use tidegate_sinks::fluvio::{LogTail, LogTopic};
use tidegate_sinks::timescale::{TimescaleHistory, TimescaleReadParts};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::super::feedback_door::FeedbackDoor;
use super::super::router::{Offered, Reading};
use super::super::signals::{unless_told, until_signal};
use super::super::threat_detection::{ThreatDetection, ThreatDetectionParts};
use super::super::{backfill, recheck};
use super::partition::{CHANGES, origin};
use super::{Node, open_log};
use crate::config::Config;

/// Memory of one read along.
const READ_BYTES: usize = 1 << 20;
/// Before a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Runs the node until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or from ending well.
pub(super) async fn run(mut node: Node, config: &Config, metrics: PrometheusHandle, cpu: Handle) -> anyhow::Result<()> {
    let (stop, stopping) = watch::channel(false);
    let history = history(&node, config).await?;
    let Some(outputs) = unless_told(outputs(&mut node, config)).await? else { return Ok(()) };
    let query = Arc::new(Query::new(QueryParts {
        log: node.changes.clone(),
        log_datasets: &[Dataset::Changes],
        // What workers write there is asked of the database.
        output: Arc::new(MemoryLog::new(1, 1)),
        history,
        files: None,
        log_fields: Arc::new(|| Arc::new(FieldCatalog::default())),
        config: config.query.clone(),
        cpu: cpu.clone(),
    })?);
    let feed = Feed::of_partitions(outputs, config.feed.clone(), backfill(query.clone()), stopping.clone())?;
    node.tasks.push(tokio::spawn(node.shelf.clone().follow(stopping)).abort_handle());
    let mappings = Arc::new(Mappings::builtin().context("the shipped mappings")?);
    let threat_detection = ThreatDetection::new(ThreatDetectionParts {
        registry: node.registry.clone(),
        shelf: node.shelf.clone(),
        // Which rules are parked, only the workers know.
        status: StatusBoard::default(),
        rules: config.sigma.clone(),
        config: config.threat_detection.clone(),
        query: query.clone(),
        decode: (mappings, config.decode.clone()),
        cpu,
    });
    let reading = Reading {
        feed: feed.with_recheck(recheck(node.keys.clone())),
        feedback: FeedbackDoor::new(node.registry.clone(), query.clone(), config.sigma.clone()),
        query,
        threat_detection,
    };
    let doors = node.listen(config, Offered { ingest: None, reading: Some(reading) }, stop, metrics).await?;
    // Rules are of the workers, and of the API.
    until_signal(None).await?;
    let deadline = Instant::now() + Duration::from_millis(config.shutdown.drain_ms_max);
    doors.close().await?;
    node.end(deadline).await;
    Ok(())
}

/// The tables that the workers write: of all partitions, and of the changes, which are followed beside.
async fn history(node: &Node, config: &Config) -> anyhow::Result<Arc<TimescaleHistory>> {
    let timescale = config.sinks.timescale.clone().context("a query node needs sinks.timescale")?;
    let patience = Duration::from_millis(timescale.connect_ms_max);
    let prefix = &config.fluvio.prefix;
    let history = TimescaleHistory::start(TimescaleReadParts {
        config: timescale,
        origin: origin(prefix, CHANGES),
        kin: (0..node.partitions).map(|partition| origin(prefix, partition)).collect(),
        query_ms_max: config.query.query_ms_max,
        runtime: Handle::current(),
        stage: node.health.stage("timescale:history"),
    })?;
    history.looked(patience).await;
    Ok(history)
}

/// The partitions of the output topic, followed from their ends on.
async fn outputs(node: &mut Node, config: &Config) -> anyhow::Result<Vec<Arc<dyn StreamLog>>> {
    let mut outputs: Vec<Arc<dyn StreamLog>> = Vec::new();
    for partition in 0..node.partitions {
        let stage = node.health.stage(&format!("output log:{partition}"));
        let log =
            open_log(config, LogTopic::Output, partition, Some(Offset::MAX), &LogTail::default(), || stage.clone())
                .await?;
        node.tasks.push(tokio::spawn(read_along(log.clone())).abort_handle());
        outputs.push(log);
    }
    Ok(outputs)
}

/// Reads a log on and on, so that its reader does not wait for a subscriber, and whoever comes begins at its end.
async fn read_along(log: Arc<dyn StreamLog>) {
    let mut bounds = log.watch();
    let mut from = bounds.borrow().next;
    loop {
        if bounds.borrow_and_update().next <= from {
            if bounds.changed().await.is_err() {
                return;
            }
            continue;
        }
        let reading = log.clone();
        match tokio::task::spawn_blocking(move || read_on(&*reading, from, READ_BYTES)).await {
            Ok(Ok(read)) => from = read.next,
            // The log tells what is wrong with it.
            Ok(Err(_)) | Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}
