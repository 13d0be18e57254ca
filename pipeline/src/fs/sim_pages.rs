//! The bytes of a simulated file: what a reader sees, what is durable, and what a power cut makes of the difference.

use std::collections::BTreeSet;

pub(super) const PAGE: usize = 4096;
const SECTOR: usize = 512;

#[derive(Debug, Default, Clone)]
pub(super) struct Content {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) dirty: BTreeSet<usize>,
    pub(super) resized: bool,
    /// Sectors that cannot be read any more: first byte and end.
    pub(super) spoilt: Vec<(usize, usize)>,
}

impl Content {
    pub(super) fn spoil(&mut self, at: u64, len: Option<u64>) {
        let [start, end] = [Some(at), len.map(|len| at.saturating_add(len))]
            .map(|byte| byte.map_or(usize::MAX, |byte| usize::try_from(byte).unwrap_or(usize::MAX)));
        self.spoilt.push((start / SECTOR * SECTOR, end.saturating_add(SECTOR - 1) / SECTOR * SECTOR));
    }

    pub(super) fn is_spoilt(&self, at: usize, len: usize) -> bool {
        len > 0 && self.spoilt.iter().any(|(start, end)| at < *end && at + len > *start)
    }

    pub(super) fn sync(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for page in std::mem::take(&mut self.dirty) {
            let range = page * PAGE..((page + 1) * PAGE).min(self.live.len());
            if !range.is_empty() {
                self.durable[range.clone()].copy_from_slice(&self.live[range]);
            }
        }
        self.resized = false;
    }

    /// What a failed sync does: the pages count as clean and never reach the disk.
    pub(super) fn forget_dirty(&mut self) {
        self.dirty.clear();
    }

    pub(super) fn crash(&mut self, dice: &mut Dice) {
        if self.resized && dice.keeps() {
            self.durable.resize(self.live.len(), 0);
        }
        for page in std::mem::take(&mut self.dirty) {
            let start = page * PAGE;
            let mut end = ((page + 1) * PAGE).min(self.live.len());
            if !dice.keeps() || start >= end {
                continue;
            }
            if dice.keeps() && dice.keeps() {
                end = end.min(start + SECTOR * (dice.roll() as usize % (PAGE / SECTOR)));
            }
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[start..end].copy_from_slice(&self.live[start..end]);
        }
        self.live = self.durable.clone();
        self.resized = false;
    }
}

/// SplitMix64; seed 0 never keeps anything.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn keeps(&mut self) -> bool {
        self.0 != 0 && self.roll() & 1 == 1
    }
}
