//! The destinations of Tidegate, one module each. Every sink is idempotent and keeps a cursor of its own on a log; retry,
//! backoff and dead letters are not here but in the delivery of `tidegate_pipeline`.
//!
//! - [`parquet`]: the default store of history: Parquet files on the local disk, made visible by a manifest, compacted in
//!   the background, kept per tenant for as long as the retention says.
//! - [`timescale`]: TimescaleDB or plain PostgreSQL, exactly once: rows and cursor in one transaction.
//! - [`feed`]: alerts to WebSocket and server-sent events.
//! - [`fluvio`]: events and alerts as topics of a Fluvio cluster.
//! - [`redis`]: Redis Streams, event ids shared by ingest nodes, alerts for the feeds of all nodes.

mod certificates;
pub mod config;
mod cursor_file;
mod entries;
pub mod error;
pub mod feed;
pub mod fluvio;
pub mod metrics;
pub mod parquet;
pub mod redis;
pub mod timescale;

pub use config::SinksConfig;
pub use cursor_file::CursorFile;
pub use error::SinksError;
