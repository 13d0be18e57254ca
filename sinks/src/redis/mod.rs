//! Redis: streams for consumers that want a tail, the set of event ids that several ingest nodes share, and alerts for the feeds
//! of all nodes. docs/sinks/redis.md has the guarantees.
//!
//! - [`RedisStreams`]: a sink of a log.
//! - [`SharedIdsLog`]: the ingest log of a node that recognises what other nodes have stored.
//! - [`AlertsOut`] publishes a node's alerts, [`Redis::peers`] gives the feed those of the others.

mod alert_frames;
mod alerts_out;
mod config;
mod keys;
mod link;
mod peers;
mod shared_ids;
mod shared_log;
mod streams;

use std::path::Path;
use std::sync::Arc;

use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::{Offset, PipelineError, Stage, StreamLog};
use tokio::runtime::Handle;

pub use alerts_out::AlertsOut;
pub use config::{FanOutConfig, RedisConfig, SharedIdsConfig, StreamsConfig};
pub use shared_log::SharedIdsLog;
pub use streams::{RedisStreams, StreamsParts};

use crate::cursor_file::CursorFile;
use crate::error::SinksError;
use crate::feed::Peers;
use keys::KeyNames;
use link::Server;
use peers::Follower;
use shared_ids::SharedIds;

/// Up to where the streams of a log were written when that was last noted in the folder `dir`; 0 when it never was.
///
/// # Errors
/// [`PipelineError::Io`] when the folder cannot be made or read.
pub fn noted_cursor(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Offset, PipelineError> {
    CursorFile::open(fs.clone(), dir, streams::NOTE_PAUSE).map(|(_, noted)| noted)
}

/// A Redis server that is used. Making one connects to nothing.
#[derive(Debug, Clone)]
pub struct Redis {
    server: Arc<Server>,
    keys: KeyNames,
    config: RedisConfig,
}

impl Redis {
    /// Takes a configuration.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] for values that cannot be, [`SinksError::Io`] for files that cannot be read.
    pub fn new(config: &RedisConfig) -> Result<Self, SinksError> {
        config.check()?;
        Ok(Self { server: Server::new(config)?, keys: KeyNames::new(&config.prefix), config: config.clone() })
    }

    /// The sink of a log.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] when the note of the cursor cannot be read.
    pub fn streams(&self, parts: StreamsParts) -> Result<RedisStreams, SinksError> {
        RedisStreams::new(self.server.clone(), self.keys.clone(), self.config.streams.clone(), parts)
    }

    /// The log of a node that shares event ids: `own`, but for what other nodes have stored. `stage` says when ids are not shared.
    pub fn shared_ids(&self, own: Arc<dyn StreamLog>, node: &str, stage: Arc<Stage>, runtime: &Handle) -> SharedIdsLog {
        let config = self.config.shared_ids.clone();
        let ids = SharedIds::new(self.server.clone(), self.keys.clone(), config, node.to_owned(), stage);
        SharedIdsLog::new(own, ids, runtime.clone())
    }

    /// The sink that publishes the alerts of the output log.
    pub fn alerts_out(&self, output: Arc<dyn StreamLog>, node: &str) -> AlertsOut {
        AlertsOut::new(self.server.clone(), &self.keys, self.config.fan_out.clone(), output, node)
    }

    /// Shows this node to the others and follows their alerts, by a task of `runtime`. `stage` says when they do not come.
    pub fn peers(&self, node: &str, stage: Arc<Stage>, runtime: &Handle) -> Peers {
        let config = self.config.fan_out.clone();
        let (follower, peers) = Follower::new(self.server.clone(), self.keys.clone(), config, node.to_owned(), stage);
        runtime.spawn(follower.follow());
        peers
    }
}
