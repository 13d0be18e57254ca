//! TimescaleDB, or plain PostgreSQL 15 and later: the rows of both logs in tables of a schema, exactly once.
//!
//! A log's sink buffers batches and commits them about once a second. The rows of a tenant go over one of several connections
//! (lanes), as binary `COPY` made straight from the Arrow columns; each lane commits its rows and its cursor in one
//! transaction. So whatever breaks, on either side, a lane goes on where its cursor stands, and each row is there once.
//!
//! - [`config`]: the settings. `connect`: the pool, TLS, bounds on waiting.
//! - [`ddl`]: the tables. [`policies`]: what lies over them. `schema`: migrations.
//! - `binary`, `json`, `rows`: rows as the wire has them. `lanes`: transactions. `sink`: what the delivery drives.
//! - `leases`: who of many workers writes which log. `checkpoints`: where its rules go on. `tails`: what that log ended with.
//! - `chunks`: partitions, and where rows of odd times go. `house`: what is done now and then. `failure`: what the database said, for people.

mod binary;
mod checkpoints;
mod chunks;
pub mod config;
mod connect;
pub mod ddl;
mod failure;
mod fields;
mod house;
mod json;
mod lanes;
mod leases;
pub mod policies;
mod read;
mod rows;
mod schema;
mod sink;
mod store;
mod tails;

pub use checkpoints::LeasedCheckpoint;
pub use config::{ExtensionUse, TimescaleConfig};
pub use leases::{Lease, Leases, Round};
pub use read::{TimescaleHistory, TimescaleReadParts, column_of};
pub use schema::{script, survey};
pub use sink::TimescaleSink;
pub use store::TimescaleStore;
pub use tails::{StoredTail, TailAt};
