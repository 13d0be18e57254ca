//! End-to-end tests of the program, in one binary.

mod bodies;
mod cli_args;
mod cli_commands;
mod cli_peer;
mod cli_rules;
mod cli_send;
mod cli_tail;
mod clock_jumps;
mod config_layers;
mod dedup;
mod demo;
mod disk_faults;
mod docs;
mod faults;
mod feed;
mod feedback;
mod hot_cold;
mod ledger;
mod operation;
mod server;
mod sigkill;
mod sigterm;
mod story_lines;
mod tenants;
mod threat_detection;
mod threat_detection_analyze;
