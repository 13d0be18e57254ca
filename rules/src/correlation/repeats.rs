//! Whether one of very many events of the same time is there already: logs that tell time in seconds bring thousands.

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use std::hash::BuildHasher;

use crate::correlation::entry::{Entry, EventId};

/// Times whose events are known by hash, before those that are gone are forgotten.
const TIMES_MAX: usize = 256;

/// Hashes of the events of times with very many events. One that is not here is not among them; of one that is, the events must
/// be looked at.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    times: FxHashMap<i64, FxHashSet<u64>>,
}

impl Repeats {
    /// Whether an event may be among those of its time, in a group whose oldest event has the time `oldest`.
    pub fn may_have(&mut self, entry: &Entry, same_time: &[Entry], oldest: i64) -> bool {
        if self.times.len() >= TIMES_MAX && !self.times.contains_key(&entry.time) {
            self.times.retain(|time, _| *time >= oldest);
            if self.times.len() >= TIMES_MAX {
                self.times.clear();
            }
        }
        let hashes = self.times.entry(entry.time).or_insert_with(|| same_time.iter().map(hash).collect());
        hashes.contains(&hash(entry))
    }

    /// Notes an event that was taken up.
    pub fn add(&mut self, entry: &Entry) {
        if let Some(hashes) = self.times.get_mut(&entry.time) {
            hashes.insert(hash(entry));
        }
    }
}

fn hash(entry: &Entry) -> u64 {
    let id = match &entry.id {
        EventId::Uuid(bytes) => bytes.as_slice(),
        EventId::Text(text) => text.as_bytes(),
    };
    FxBuildHasher.hash_one((id, entry.slot))
}
