//! The groups of one correlation for one tenant, by key and in the order of their last use.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::correlation::definition::Definition;
use crate::correlation::group::Group;

/// No place.
pub(crate) const NONE: u32 = u32::MAX;
/// From so many groups on the table is in parts: each grows by itself, so that no event waits until a million places are moved.
const PARTS_FROM: usize = 4_096;
/// How many parts; a power of two.
const PARTS: usize = 256;

/// Where a group is, with what its key hashes to, so that the table grows without a look at the groups.
#[derive(Debug, Clone, Copy)]
struct Place {
    hash: u32,
    slot: u32,
}

impl Place {
    /// The hash with all of its bits in use, as the table wants it.
    fn spread(hash: u32) -> u64 {
        u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// By the highest bits: the places within a part go by the lowest.
fn part_of(hash: u32) -> usize {
    hash as usize / (u32::MAX as usize / PARTS + 1)
}

fn hash_of(key: &[u8]) -> u32 {
    xxh3_64(key) as u32
}

/// The groups of one correlation and tenant.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub correlation: u32,
    pub tenant: u32,
    /// One part, or [`PARTS`].
    parts: Vec<HashTable<Place>>,
    len: usize,
    slots: Vec<Option<Box<Group>>>,
    free: Vec<u32>,
    /// The group that was used longest ago, and the one that was used last.
    oldest: u32,
    newest: u32,
    /// About how many bytes its groups take.
    pub bytes: usize,
}

impl Bucket {
    pub fn new(correlation: u32, tenant: u32) -> Self {
        Self {
            correlation,
            tenant,
            parts: vec![HashTable::new()],
            len: 0,
            slots: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            bytes: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, slot: u32) -> Option<&Group> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Group> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    fn part(&self, hash: u32) -> usize {
        if self.parts.len() == 1 { 0 } else { part_of(hash) }
    }

    /// The place of the group with this key.
    pub fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = hash_of(key);
        let slots = &self.slots;
        let same = |place: &Place| {
            place.hash == hash
                && slots.get(place.slot as usize).and_then(Option::as_ref).is_some_and(|group| *group.key == *key)
        };
        self.parts.get(self.part(hash))?.find(Place::spread(hash), same).map(|place| place.slot)
    }

    /// Goes over to many parts.
    fn split(&mut self) {
        let mut parts: Vec<HashTable<Place>> = (0..PARTS).map(|_| HashTable::new()).collect();
        for place in self.parts.drain(..).flatten() {
            if let Some(part) = parts.get_mut(part_of(place.hash)) {
                part.insert_unique(Place::spread(place.hash), place, |place| Place::spread(place.hash));
            }
        }
        self.parts = parts;
    }

    /// Puts a group in that is not there, as the one used last.
    pub fn insert(&mut self, group: Group) -> u32 {
        let hash = hash_of(&group.key);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Box::new(group));
        }
        if self.len >= PARTS_FROM && self.parts.len() == 1 {
            self.split();
        }
        let part = self.part(hash);
        if let Some(part) = self.parts.get_mut(part) {
            part.insert_unique(Place::spread(hash), Place { hash, slot }, |place| Place::spread(place.hash));
        }
        self.len += 1;
        self.append(slot);
        slot
    }

    fn append(&mut self, slot: u32) {
        let newest = std::mem::replace(&mut self.newest, slot);
        if let Some(group) = self.get_mut(slot) {
            (group.before, group.after) = (newest, NONE);
        }
        match self.get_mut(newest) {
            Some(before) => before.after = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some((before, after)) = self.get(slot).map(|group| (group.before, group.after)) else { return };
        match self.get_mut(before) {
            Some(group) => group.after = after,
            None => self.oldest = after,
        }
        match self.get_mut(after) {
            Some(group) => group.before = before,
            None => self.newest = before,
        }
    }

    /// The group is now the one used last.
    pub fn touch(&mut self, slot: u32) {
        if self.newest != slot {
            self.unlink(slot);
            self.append(slot);
        }
    }

    /// Counts the bytes of a group anew; what they were, and what they are.
    pub fn recount(&mut self, slot: u32, definition: &Definition) -> (usize, usize) {
        let Some(group) = self.get_mut(slot) else { return (0, 0) };
        let before = group.recount(definition);
        let after = group.counted();
        self.bytes = (self.bytes + after).saturating_sub(before);
        (before, after)
    }

    /// The group that was used longest ago.
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Takes a group out.
    pub fn remove(&mut self, slot: u32) -> Option<Box<Group>> {
        self.unlink(slot);
        let group = self.slots.get_mut(slot as usize)?.take()?;
        let hash = hash_of(&group.key);
        let part = self.part(hash);
        if let Some(part) = self.parts.get_mut(part)
            && let Ok(entry) = part.find_entry(Place::spread(hash), |own| own.slot == slot)
        {
            entry.remove();
        }
        self.len -= 1;
        self.bytes = self.bytes.saturating_sub(group.counted());
        self.free.push(slot);
        if self.len == 0 {
            // Nothing of a great number of groups stays behind.
            self.parts = vec![HashTable::new()];
            self.slots = Vec::new();
            self.free = Vec::new();
        }
        Some(group)
    }

    /// The groups, from the one used longest ago to the one used last.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        let next = |group: &&Group| self.get(group.after);
        std::iter::successors(self.get(self.oldest), next)
    }

    /// Takes all groups out, in the same order.
    pub fn drain(&mut self) -> Vec<Group> {
        let mut groups = Vec::with_capacity(self.len());
        while let Some(slot) = self.oldest() {
            groups.extend(self.remove(slot).map(|group| *group));
        }
        groups
    }
}
