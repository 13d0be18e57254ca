//! Logs and metrics of the process: the only process-wide state there is, besides the allocator.

use std::io::IsTerminal;

use anyhow::Context;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging to standard error; `level` is a level or a filter as of `tracing` (`info,tidegate_query=debug`).
///
/// # Errors
/// When the filter does not parse, or logging was started before.
pub fn start_logs(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("log level {level:?}"))?;
    #[expect(clippy::disallowed_methods, reason = "NO_COLOR is no setting of ours but of the terminal: no-color.org")]
    let colours = std::io::stderr().is_terminal() && std::env::var("NO_COLOR").is_err();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let started = match format {
        LogFormat::Human => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// A metric as its crate declares it: name, kind (`counter`, `gauge`, `histogram`), help.
pub type Metric = (&'static str, &'static str, &'static str);

/// The metrics of all crates: a closed set.
pub fn metrics() -> Vec<Metric> {
    [
        tidegate_pipeline::metrics::NAMES,
        tidegate_ingest::metrics::NAMES,
        tidegate_rules::metrics::NAMES,
        tidegate_sinks::metrics::NAMES,
        tidegate_query::metrics::NAMES,
        super::metrics::NAMES,
    ]
    .concat()
}

/// Starts the metrics recorder and describes every metric.
///
/// # Errors
/// When a recorder was started before.
pub fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0])
        .context("metric buckets")?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| anyhow::anyhow!("a metrics recorder was started before"))?;
    for (name, kind, help) in self::metrics() {
        match kind {
            "counter" => metrics::describe_counter!(name, help),
            "gauge" => metrics::describe_gauge!(name, help),
            _ => metrics::describe_histogram!(name, help),
        }
    }
    Ok(handle)
}

/// The page docs/metrics.md.
pub fn metrics_page() -> String {
    let mut page = String::from(
        "# Metrics\n\nServed at `/metrics` in the Prometheus text format. The set is closed: a metric that is not here does not \
         exist. This page is made by `cargo xtask docs`.\n\n| name | kind | meaning |\n|---|---|---|\n",
    );
    for (name, kind, help) in metrics() {
        page.push_str(&format!("| `{name}` | {kind} | {help} |\n"));
    }
    page
}
