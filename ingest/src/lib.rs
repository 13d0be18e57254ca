//! From sockets to the stream log: listener, body decoders, mappings to core columns, and the batcher between them.
//!
//! A request's body is inflated ([`inflate`]) and pushed with those of its neighbours into a [`decode::Decoder`], which makes
//! Arrow batches of them without an intermediate tree; [`mapping`] says which fields fill the core columns.

pub mod batcher;
pub mod column;
pub mod decode;
pub mod error;
pub mod http;
pub mod inflate;
pub mod mapping;
pub mod metrics;
mod zstd_frames;

pub use error::IngestError;
