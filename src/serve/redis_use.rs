//! What uses Redis: the streams of both logs, the event ids that nodes share, the alerts of all nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use tidegate_pipeline::delivery::{DeliveryParts, deliver};
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::{Offset, Sink, StreamLog};
use tidegate_sinks::feed::Peers;
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::redis::{Redis, RedisConfig, StreamsParts, noted_cursor};
use tokio::runtime::Handle;

use super::destinations::{Deliveries, DeliveriesParts, SOURCES, origin};
use crate::config::Config;

/// A Redis that is configured. Nothing waits for it: where it is away, the stages say so.
pub(super) struct RedisUse {
    redis: Redis,
    config: RedisConfig,
    /// The name of this node.
    node: String,
    fs: Arc<dyn Fs>,
    data: PathBuf,
    /// How far the streams of each log were when that was last noted.
    noted: [Offset; 2],
}

impl RedisUse {
    /// Takes the configuration; `None` without one.
    ///
    /// # Errors
    /// For a configuration that cannot work, or a data folder that cannot be read.
    pub(super) fn open(fs: &Arc<dyn Fs>, data: &Path, config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(config) = &config.sinks.redis else { return Ok(None) };
        let redis = Redis::new(config).context("start what uses Redis")?;
        let node = origin(fs.as_ref(), data)?;
        let mut noted = [0; 2];
        if config.streams.enabled {
            for (noted, source) in noted.iter_mut().zip(SOURCES) {
                *noted = noted_cursor(fs, &notes(data, source)).context("look at the note of the cursor in Redis")?;
            }
        }
        Ok(Some(Self { redis, config: config.clone(), node, fs: fs.clone(), data: data.to_owned(), noted }))
    }

    /// The offsets of the ingest log and of the output log below which Redis has rows.
    pub(super) fn held(&self) -> [Offset; 2] {
        self.noted
    }

    /// Starts the deliveries to Redis.
    ///
    /// # Errors
    /// When the note of a cursor cannot be read.
    pub(super) fn start(&self, parts: &DeliveriesParts<'_>, started: &mut Deliveries) -> anyhow::Result<()> {
        let mut start = |sink: Box<dyn Sink>, source, log: &Arc<dyn StreamLog>, keeps| {
            let stage = parts.health.stage_aside(sink.name());
            let (output, config) = (parts.output.clone(), parts.config.delivery.clone());
            let handle = deliver(DeliveryParts { sink, log: log.clone(), output, config, stage }, &Handle::current());
            if keeps {
                started.delivered.push((source, handle.committed()));
            }
            started.handles.push(handle);
        };
        if self.config.streams.enabled {
            for (source, log) in SOURCES.into_iter().zip(&parts.logs) {
                let (node, fs, dir) = (self.node.clone(), self.fs.clone(), notes(&self.data, source));
                let streams = StreamsParts { log: log.clone(), log_name: source.as_str(), node, fs, dir };
                start(Box::new(self.redis.streams(streams)?), source, log, true);
            }
        }
        if self.config.fan_out.enabled {
            let [_, output] = &parts.logs;
            // Alerts for live feeds: they are not worth keeping the log for.
            start(Box::new(self.redis.alerts_out(output.clone(), &self.node)), LogSource::Output, output, false);
        }
        Ok(())
    }

    /// The ingest log, as events are to be appended to it.
    pub(super) fn append_to(&self, log: Arc<dyn StreamLog>, health: &tidegate_pipeline::Health) -> Arc<dyn StreamLog> {
        if !self.config.shared_ids.enabled {
            return log;
        }
        Arc::new(self.redis.shared_ids(log, &self.node, health.stage_aside("redis:shared-ids"), &Handle::current()))
    }

    /// The other nodes, whose alerts the feed tells too.
    pub(super) fn peers(&self, health: &tidegate_pipeline::Health) -> Option<Peers> {
        let stage = || health.stage_aside("redis:peers");
        self.config.fan_out.enabled.then(|| self.redis.peers(&self.node, stage(), &Handle::current()))
    }
}

fn notes(data: &Path, source: LogSource) -> PathBuf {
    data.join("sinks").join(format!("redis-{}", source.as_str()))
}
