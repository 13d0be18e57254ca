//! TimescaleDB, or plain PostgreSQL 15 and later: the rows of both logs in tables of a schema, exactly once.

pub mod config;
pub mod ddl;

pub use config::{ExtensionUse, TimescaleConfig};
