//! What goes wrong between this node and a Fluvio cluster, as something to act on and to tell an operator.

use std::time::Duration;

use thiserror::Error;

use crate::error::SinksError;

/// Why something that a cluster was asked for did not come about.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FluvioFailure {
    /// The cluster, or the way to it: trying again may work.
    #[error("{0}")]
    Away(String),
    /// No answer in time. What was asked for may have been done, or may be done later.
    #[error("{doing}: no answer in {} ms: Fluvio at {address} hangs, restarts, or cannot be reached", .after.as_millis())]
    Late {
        /// What was tried.
        doing: String,
        /// The address of the cluster.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The operator of the cluster or of this node: it says what to change.
    #[error("{0}")]
    Refused(String),
    /// The caller: a record is larger than the bound.
    #[error("a record of {bytes} bytes, at most {bytes_max} are taken")]
    TooLarge {
        /// Of key and value.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// Retention: the partition no longer has what was asked for.
    #[error("{topic}-{partition} no longer has record {offset}; the first one is {first}")]
    Forgotten {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: u32,
        /// What was asked for.
        offset: u64,
        /// The first that is there.
        first: u64,
    },
    /// The cluster: it no longer has records that it had acknowledged (a machine has lost power, or a topic was made anew), and gives
    /// their numbers to others (docs/many-machines.md).
    #[error(
        "{topic}-{partition} has lost records: {read} were read, {}",
        .from.map_or_else(
            || "and it is not known from which on they are gone; docs/many-machines.md says what to do".to_owned(),
            |from| format!("and from {from} on they are gone")
        )
    )]
    Lost {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: u32,
        /// The record after the last one that was read.
        read: u64,
        /// The first that is gone or another, where that is known.
        from: Option<u64>,
    },
    /// The client library: it has skipped records (see docs/sinks/fluvio.md). Reading again from `expected` may work.
    #[error("{topic}-{partition}: record {found} came where {expected} was expected: the client has skipped some")]
    Gap {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: u32,
        /// The record that should have come.
        expected: u64,
        /// The one that came.
        found: u64,
    },
}

impl From<FluvioFailure> for SinksError {
    fn from(failure: FluvioFailure) -> Self {
        Self::Fluvio(failure)
    }
}
