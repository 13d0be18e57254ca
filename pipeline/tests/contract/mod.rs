//! The promises of the seams, as suites that any implementation can be held to. Another crate takes them in with
//!
//! ```text
//! #[path = "../../../pipeline/tests/contract/mod.rs"]
//! #[allow(dead_code, reason = "not every crate has an implementation of every seam")]
//! mod contract;
//! ```

pub mod memory_sink;
pub mod rows;
pub mod sink;
pub mod stream_log;
