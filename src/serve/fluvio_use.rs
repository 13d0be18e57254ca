//! What uses Fluvio: the topics of both logs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use tidegate_pipeline::Offset;
use tidegate_pipeline::Sink;
use tidegate_pipeline::delivery::{DeliveryParts, deliver};
use tidegate_pipeline::fs::Fs;
use tidegate_sinks::fluvio::{FluvioParts, FluvioTopics, noted_cursor};
use tidegate_sinks::parquet::LogSource;
use tokio::runtime::Handle;

use super::destinations::{Deliveries, DeliveriesParts, SOURCES};
use crate::config::Config;

/// A Fluvio cluster that is configured. Nothing waits for it: where it is away, the stages say so.
pub(super) struct FluvioUse {
    topics: FluvioTopics,
    fs: Arc<dyn Fs>,
    data: PathBuf,
    /// How far the topics of each log were when that was last noted.
    noted: [Offset; 2],
}

impl FluvioUse {
    /// Takes the configuration; `None` without one.
    ///
    /// # Errors
    /// For a configuration that cannot work, or a data folder that cannot be read.
    pub(super) fn open(fs: &Arc<dyn Fs>, data: &Path, config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(config) = &config.sinks.fluvio else { return Ok(None) };
        let topics = FluvioTopics::new(config).context("start what uses Fluvio")?;
        let mut noted = [0; 2];
        for (noted, source) in noted.iter_mut().zip(SOURCES) {
            *noted = noted_cursor(fs, &notes(data, source)).context("look at the note of the cursor in Fluvio")?;
        }
        Ok(Some(Self { topics, fs: fs.clone(), data: data.to_owned(), noted }))
    }

    /// The offsets of the ingest log and of the output log below which Fluvio has rows.
    pub(super) fn held(&self) -> [Offset; 2] {
        self.noted
    }

    /// Starts the deliveries to Fluvio.
    ///
    /// # Errors
    /// When the note of a cursor cannot be read.
    pub(super) fn start(&self, parts: &DeliveriesParts<'_>, started: &mut Deliveries) -> anyhow::Result<()> {
        for (source, log) in SOURCES.into_iter().zip(&parts.logs) {
            let dir = notes(&self.data, source);
            let sink = self.topics.sink(FluvioParts { log_name: source.as_str(), fs: self.fs.clone(), dir })?;
            let stage = parts.health.stage_aside(sink.name());
            let (sink, log, output) = (Box::new(sink), log.clone(), parts.output.clone());
            let config = parts.config.delivery.clone();
            let handle = deliver(DeliveryParts { sink, log, output, config, stage }, &Handle::current());
            started.delivered.push((source, handle.committed()));
            started.handles.push(handle);
        }
        Ok(())
    }
}

fn notes(data: &Path, source: LogSource) -> PathBuf {
    data.join("sinks").join(format!("fluvio-{}", source.as_str()))
}
