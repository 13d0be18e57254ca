//! The groups of one correlation for one tenant, by key and in the order of their last use.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::correlation::group::Group;

/// No place.
pub(crate) const NONE: u32 = u32::MAX;

/// The groups of one correlation and tenant.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub correlation: u32,
    pub tenant: u32,
    table: HashTable<u32>,
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
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            bytes: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn get(&self, slot: u32) -> Option<&Group> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Group> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The place of the group with this key.
    pub fn find(&self, key: &[u8]) -> Option<u32> {
        let slots = &self.slots;
        let same =
            |slot: &u32| slots.get(*slot as usize).and_then(Option::as_ref).is_some_and(|group| *group.key == *key);
        self.table.find(xxh3_64(key), same).copied()
    }

    /// Puts a group in that is not there, as the one used last.
    pub fn insert(&mut self, group: Group) -> u32 {
        let hash = xxh3_64(&group.key);
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
        let slots = &self.slots;
        let rehash =
            |slot: &u32| slots.get(*slot as usize).and_then(Option::as_ref).map_or(0, |group| xxh3_64(&group.key));
        self.table.insert_unique(hash, slot, rehash);
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

    /// The group that was used longest ago.
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Takes a group out.
    pub fn remove(&mut self, slot: u32) -> Option<Box<Group>> {
        self.unlink(slot);
        let group = self.slots.get_mut(slot as usize)?.take()?;
        if let Ok(entry) = self.table.find_entry(xxh3_64(&group.key), |own| *own == slot) {
            entry.remove();
        }
        self.free.push(slot);
        if self.table.is_empty() {
            // Nothing of a great number of groups stays behind.
            self.table = HashTable::new();
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
        self.bytes = 0;
        groups
    }
}
