//! Fluvio: events and alerts as topics of a cluster. docs/sinks/fluvio.md has the guarantees.
//!
//! - [`FluvioSink`]: a sink of a log.
//! - `link`: a connection with our own bounds of time; `producer` and `records`: the two ends of a partition.
//! - `log`: a partition as a stream log (docs/many-machines.md). `frames`: what a record holds. `writer`: appends to records.
//!   `reader`, `repeats`, `frontier`, `cache`: records to batches, without what was written twice. `tail`: what a broker has lost.

mod cache;
mod config;
mod failure;
mod frames;
mod frontier;
mod link;
mod log;
mod log_config;
mod producer;
mod reader;
mod records;
mod repeats;
mod sink;
mod tail;
mod window;
mod writer;

use std::path::Path;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::log::carried::Carrier;
use tidegate_pipeline::{EventBatch, LogBatch, Offset, PipelineError};

pub use config::{AcknowledgedBy, BatchCompression, ClusterConfig, FluvioConfig};
pub use failure::FluvioFailure;
pub use frames::{OFFSETS_OF_RECORD, records_between};
pub use log::{FluvioLog, FluvioLogParts};
pub use log_config::{FluvioLogConfig, LogTopic};
pub use sink::{FluvioParts, FluvioSink};
pub use tail::LogTail;

use crate::cursor_file::CursorFile;
use crate::error::SinksError;
use link::Cluster;

/// The partition of a tenant, of so many.
pub fn partition_of(org_id: &str, partitions: usize) -> usize {
    (xxhash_rust::xxh3::xxh3_64(org_id.as_bytes()) % partitions.max(1) as u64) as usize
}

/// Up to where the topics of a log were written when that was last noted in the folder `dir`; 0 when it never was.
///
/// # Errors
/// [`PipelineError::Io`] when the folder cannot be made or read.
pub fn noted_cursor(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Offset, PipelineError> {
    CursorFile::open(fs.clone(), dir, sink::NOTE_PAUSE).map(|(_, noted)| noted)
}

/// The rows of the record `record` of a log's partition, from its value, with all that it holds twice.
///
/// # Errors
/// What is wrong with the record: it may come from anybody who may write to the topic.
pub fn rows_of_record(carrier: &Carrier, record: u64, value: &[u8]) -> Result<Vec<Arc<LogBatch>>, String> {
    Ok(frames::decode(carrier, &Buffer::from(value))?.into_batches(record, &[]))
}

/// The value of one record of a log's partition with all these rows.
///
/// # Errors
/// Arrow's, and one for rows that do not fit a record.
pub fn record_of_rows(carrier: &Carrier, batches: &[EventBatch], time_us: i64) -> Result<Vec<u8>, ArrowError> {
    let frames = frames::encode(carrier, batches, frames::RECORD_BYTES_MAX, time_us)?;
    match <[frames::Frame; 1]>::try_from(frames) {
        Ok([frame]) => Ok(frame.value),
        Err(frames) => Err(ArrowError::InvalidArgumentError(format!("rows for {} records", frames.len()))),
    }
}

/// A Fluvio cluster that gets events. Making one connects to nothing.
#[derive(Debug, Clone)]
pub struct FluvioTopics {
    cluster: Arc<Cluster>,
    config: FluvioConfig,
}

impl FluvioTopics {
    /// Takes a configuration.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] for values that cannot be.
    pub fn new(config: &FluvioConfig) -> Result<Self, SinksError> {
        config.check()?;
        Ok(Self { cluster: Cluster::new(&config.cluster())?, config: config.clone() })
    }

    /// The sink of a log.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] when the note of the cursor cannot be read.
    pub fn sink(&self, parts: FluvioParts) -> Result<FluvioSink, SinksError> {
        FluvioSink::new(self.cluster.clone(), self.config.clone(), parts)
    }
}
