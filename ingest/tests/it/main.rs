//! Tests of ingest from outside.

mod decode_arrow_bounds;
mod decode_arrow_poison;
mod decode_bodies;
mod decode_columns;
mod decode_hostile;
mod decode_large;
mod decode_model;
mod decode_rejected;
mod decode_shapes;
mod decode_tables;
mod decoding;
mod http_events;
mod http_inflight;
mod http_listener;
mod http_log;
mod http_wire;
mod mapping_files;
mod mapping_sources;
