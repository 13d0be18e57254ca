//! What goes on beside the stream: the logs forget, the store compacts and retains, the rule folder is looked at.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_pipeline::StreamLog;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::log::{Offset, SegmentLog};
use tidegate_pipeline::registry::Registry;
use tidegate_pipeline::run::RunStatus;
use tidegate_sinks::parquet::{LogSource, ParquetStore, RetentionConfig};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::Parts;
use super::process::show_gauges;
use super::rules_sync::RulesSync;
use crate::config::Config;

/// Between two looks at the logs' oldest needed offsets and at the gauges.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the rule folder.
const RULES_EVERY: Duration = Duration::from_secs(2);
/// Between two looks for files to compact.
const COMPACT_EVERY: Duration = Duration::from_secs(5);
/// Between two looks for expired rows, and two saves of the registry.
const RETAIN_EVERY: Duration = Duration::from_secs(60);

/// Starts the tasks; aborting the handle ends all of them.
pub(super) fn start(
    parts: &Parts,
    store: Arc<ParquetStore>,
    rules: Arc<Mutex<RulesSync>>,
    config: &Config,
    metrics: PrometheusHandle,
) -> JoinHandle<()> {
    let forget = Forget {
        log: parts.log.clone(),
        output: parts.output.clone(),
        store: store.clone(),
        registry: parts.registry.clone(),
        status: Box::new(parts.run.status_reader()),
    };
    let (registry, retention) = (parts.registry.clone(), config.retention.clone());
    tokio::spawn(async move {
        tokio::join!(
            forget.run(metrics),
            watch_rules(rules),
            compact(store.clone()),
            retain(store, retention, registry),
        );
    })
}

/// What decides up to where the logs may forget.
struct Forget {
    log: Arc<SegmentLog>,
    output: Arc<SegmentLog>,
    store: Arc<ParquetStore>,
    registry: Registry,
    status: Box<dyn Fn() -> RunStatus + Send + Sync>,
}

impl Forget {
    async fn run(self, metrics: PrometheusHandle) {
        let mut ticks = tokio::time::interval(FORGET_EVERY);
        loop {
            ticks.tick().await;
            show_gauges();
            metrics.run_upkeep();
            let status = (self.status)();
            let stored = self.store.oldest_live_cursor(LogSource::Ingest);
            let below = stored.min(status.needed_from).min(self.registry.covered());
            forget(&self.log, below);
            let stored = self.store.oldest_live_cursor(LogSource::Output);
            forget(&self.output, stored.min(status.output_needed_from));
        }
    }
}

fn forget(log: &SegmentLog, below: Offset) {
    if let Err(error) = log.forget(below) {
        tracing::warn!(%error, below, "the log could not forget; it is tried again");
    }
}

async fn watch_rules(rules: Arc<Mutex<RulesSync>>) {
    let mut ticks = tokio::time::interval(RULES_EVERY);
    loop {
        ticks.tick().await;
        let mut rules = rules.lock().await;
        if rules.changed() {
            match rules.sync().await {
                Ok(changed) => tracing::info!(changed, "the rule folder changed"),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "rules not read; those in force stay"),
            }
        }
    }
}

async fn compact(store: Arc<ParquetStore>) {
    let mut ticks = tokio::time::interval(COMPACT_EVERY);
    loop {
        ticks.tick().await;
        let store = store.clone();
        let work = move || {
            while store.compact_once()?.files_in > 0 {}
            store.sweep()?;
            Ok::<_, tidegate_sinks::SinksError>(())
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "compaction failed; it is tried again"),
            Err(error) => tracing::error!(%error, "compaction ended early"),
        }
    }
}

async fn retain(store: Arc<ParquetStore>, config: RetentionConfig, registry: Registry) {
    let mut ticks = tokio::time::interval(RETAIN_EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = registry.save().await {
            tracing::warn!(%error, "the registry was not saved; it is tried again");
        }
        let (store, config) = (store.clone(), config.clone());
        let work = move || {
            while store.retain(now_us(), &config)?.more {}
            store.sweep()?;
            Ok::<_, tidegate_sinks::SinksError>(())
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "retention failed; it is tried again"),
            Err(error) => tracing::error!(%error, "retention ended early"),
        }
    }
}
