//! Whether one of very many events of the same time is there already: logs that tell time in seconds bring thousands.

use rustc_hash::{FxBuildHasher, FxHashSet};
use std::hash::BuildHasher;

use crate::correlation::entry::{Entry, EventId};

/// Times whose events are known by hash. A group has room for few times with very many events.
const TIMES_MAX: usize = 4;

/// Hashes of the events of a few times. One that is not here is not among them; of one that is, the events must be looked at.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    times: Vec<(i64, FxHashSet<u64>)>,
}

impl Repeats {
    /// Whether an event may be among those of its time.
    pub fn may_have(&mut self, entry: &Entry, same_time: &[Entry]) -> bool {
        let at = self.times.iter().position(|(time, _)| *time == entry.time).unwrap_or_else(|| {
            if self.times.len() >= TIMES_MAX {
                self.times.remove(0);
            }
            self.times.push((entry.time, same_time.iter().map(hash).collect()));
            self.times.len() - 1
        });
        self.times.get(at).is_some_and(|(_, hashes)| hashes.contains(&hash(entry)))
    }

    /// Notes an event that was taken up.
    pub fn add(&mut self, entry: &Entry) {
        if let Some((_, hashes)) = self.times.iter_mut().find(|(time, _)| *time == entry.time) {
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
