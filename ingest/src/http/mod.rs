//! The HTTP edge on raw hyper: the accept loop with its timers, the reading of bodies within their bounds, and the three
//! endpoints that take events. Authentication, routing and all other endpoints are the binary's.
//!
//! ```text
//! listen ─ socket timers, framing ─→ routes (the binary) ─→ Ingest::handle ─ body ─→ Batcher ─→ log
//!                                                              ↑ reply ←───────── what became of each item
//! ```

mod body;
mod events;
mod framing;
mod listener;
mod query_string;
mod reply;
mod request;
mod socket;

pub use body::{BodyPace, InFlight, read_body};
pub(crate) use body::{Held, Sent, busy};
pub use events::{Ingest, IngestConfig};
pub use listener::{Drained, HttpConfig, Peer, listen};
pub use query_string::{QueryString, nearest};
pub use reply::{ReplyBody, json, problem};
