//! End-to-end tests of the program, in one binary.

mod bodies;
mod cli_args;
mod cli_peer;
mod cli_send;
mod config_layers;
mod dedup;
mod docs;
mod demo;
mod feed;
mod hot_cold;
mod operation;
mod server;
mod sigkill;
mod story_lines;
mod tenants;
