//! The integration tests of the pipeline, in one binary.

#[path = "../contract/mod.rs"]
mod contract;
mod counted;
mod delivery_sinks;
mod fs_twins;
mod keys_access;
mod log_bits;
mod log_bounds;
mod log_changes;
mod log_contract;
mod log_damage;
mod log_edges;
mod log_faults;
mod log_forgetting;
mod log_ledger;
mod log_listing;
mod log_long;
mod log_model;
mod log_offsets;
mod log_regressions;
mod log_schemas;
mod log_sectors;
mod log_start;
mod registry_changes;
mod run_exactly_once;
mod run_lifecycle;
mod run_output;
mod run_power_cut;
mod run_watermark;
mod scripted;
mod sink_contract;
mod watched_fs;

use contract::rows as log_rows;
