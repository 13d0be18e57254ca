//! Tests of ingest from outside.

mod decode_bodies;
mod decoding;
mod http_events;
mod http_listener;
mod http_log;
mod http_wire;
mod mapping_sources;
