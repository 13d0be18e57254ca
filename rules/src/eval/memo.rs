//! The predicates that values satisfy, remembered across batches: two generations with a common bound.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_128_with_secret;

/// A value that was decided.
#[derive(Debug, Clone)]
pub(crate) struct Decided {
    /// What it satisfies, as numbers of the class, ascending; most values satisfy nothing.
    pub satisfied: Option<Arc<[u32]>>,
    /// The walk that met it last, and its number in that walk.
    pub walk: u64,
    pub number: u32,
}

/// The decided values of one class. Keys are 128-bit hashes with a secret that is new in each process, so that nobody can
/// prepare values that are taken for each other.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    young: HashMap<u128, Decided, KeyHash>,
    old: HashMap<u128, Decided, KeyHash>,
}

impl Memo {
    /// The entry of a value; `true` if it was young or old, `false` if `decide` made it now.
    pub fn get_or_decide(&mut self, key: u128, decide: impl FnOnce() -> Option<Arc<[u32]>>) -> (&mut Decided, Met) {
        let old = &mut self.old;
        let mut met = Met::Young;
        let entry = self.young.entry(key).or_insert_with(|| {
            met = Met::Old;
            old.remove(&key).unwrap_or_else(|| {
                met = Met::New;
                Decided { satisfied: decide(), walk: 0, number: 0 }
            })
        });
        (entry, met)
    }

    /// Values that are remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Forgets what was not met since the last call.
    pub fn age(&mut self) {
        self.old = std::mem::take(&mut self.young);
    }
}

/// Where a value was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    Young,
    Old,
    New,
}

/// Makes keys of values.
#[derive(Debug)]
pub(crate) struct Keys {
    /// With a secret instead of a seed, long values need no secret made of the seed for each.
    secret: [u8; SECRET_BYTES],
}

/// What the hash asks for.
const SECRET_BYTES: usize = 192;

impl Default for Keys {
    fn default() -> Self {
        let mut secret = [0; SECRET_BYTES];
        for chunk in secret.chunks_mut(8) {
            let random = std::hash::RandomState::new().build_hasher().finish().to_le_bytes();
            chunk.copy_from_slice(random.get(..chunk.len()).unwrap_or_default());
        }
        Self { secret }
    }
}

impl Keys {
    pub fn key_of(&self, value: &str) -> u128 {
        xxh3_128_with_secret(value.as_bytes(), &self.secret)
    }
}

/// Keys are hashes already.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyHash(u64);

impl BuildHasher for KeyHash {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for KeyHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}
