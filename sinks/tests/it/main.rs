//! The sinks from outside: one binary, one module for each behaviour.

mod parquet_commit;
mod parquet_rows;
