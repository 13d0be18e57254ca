//! End-to-end tests of the program, in one binary.

mod bodies;
mod body_budget;
mod bombs;
mod cli_args;
mod cli_commands;
mod cli_peer;
mod cli_rules;
mod cli_send;
mod cli_tail;
mod clock_jumps;
mod config_layers;
mod database_phases;
mod dedup;
mod demo;
mod disk_faults;
mod docs;
mod faults;
#[path = "../../sinks/tests/it/faulty_proxy.rs"]
#[allow(dead_code, reason = "not every fault is brought here")]
mod faulty_proxy;
mod feed;
mod feed_tenants;
mod feedback;
mod fluvio_topics;
#[path = "../../sinks/tests/it/fluvio_world.rs"]
#[allow(dead_code, reason = "the tests of the sink use more of it")]
mod fluvio_world;
mod history;
mod hostile_sql;
#[path = "../../query/tests/it/hostile_text.rs"]
mod hostile_text;
mod hot_cold;
mod ledger;
mod object_store;
mod operation;
mod outages;
mod query_node;
mod redis_nodes;
#[path = "../../sinks/tests/it/redis_world.rs"]
#[allow(dead_code, reason = "the tests of the sinks use more of it")]
mod redis_world;
mod roles;
mod s3_server;
mod server;
mod siege;
mod sigkill;
mod sigterm;
mod slow_clients;
mod stored_damage;
mod story_lines;
mod tenant_probes;
mod tenants;
mod threat_detection;
mod threat_detection_analyze;
mod timescale;
