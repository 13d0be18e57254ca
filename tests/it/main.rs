//! End-to-end tests of the program, in one binary.

mod bodies;
mod dedup;
mod demo;
mod feed;
mod hot_cold;
mod operation;
mod server;
mod sigkill;
mod story_lines;
mod tenants;
