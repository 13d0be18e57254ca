//! End-to-end tests of the program, in one binary.

mod bodies;
mod cli_args;
mod cli_commands;
mod cli_peer;
mod cli_send;
mod cli_tail;
mod config_layers;
mod dedup;
mod demo;
mod docs;
mod feed;
mod hot_cold;
mod operation;
mod server;
mod sigkill;
mod story_lines;
mod tenants;
