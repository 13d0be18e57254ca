//! Fluvio: events and alerts as topics of a cluster. docs/sinks/fluvio.md has the guarantees.
//!
//! - `link`: a connection with our own bounds of time; `producer` and `records`: the two ends of a partition.

mod config;
mod failure;
mod link;
mod producer;
mod records;

pub use config::{AcknowledgedBy, BatchCompression, ClusterConfig, FluvioConfig};
pub use failure::FluvioFailure;
