//! Tests of ingest from outside.

mod decode_bodies;
mod decoding;
mod http_listener;
mod http_wire;
