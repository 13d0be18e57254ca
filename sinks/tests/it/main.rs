//! The sinks from outside: one binary, one module for each behaviour.

mod bucket_cache;
mod bucket_crash;
mod bucket_s3;
mod bucket_server;
mod bucket_world;
mod bucket_writers;
#[path = "../../../pipeline/tests/contract/mod.rs"]
#[allow(dead_code, reason = "the logs here have gaps in their offsets")]
mod contract;
mod faulty_proxy;
mod feed_door;
mod feed_partitions;
mod feed_stream;
mod fluvio_log;
mod fluvio_sink;
mod fluvio_world;
mod parquet_columns;
mod parquet_commit;
mod parquet_compact;
mod parquet_contract;
mod parquet_crash;
mod parquet_damage;
mod parquet_life;
mod parquet_model;
mod parquet_retain;
mod parquet_rows;
mod parquet_snapshot;
mod parquet_split;
mod postgres;
mod redis_fan_out;
mod redis_ids;
mod redis_streams;
mod redis_world;
mod spine_damage;
mod spine_faults;
mod spine_ledger;
mod spine_power;
mod spine_world;
mod timescale_contract;
mod timescale_failures;
mod timescale_leases;
mod timescale_read;
mod timescale_rows;
mod timescale_speed;
