//! Amounts in order, in blocks, so that one more or one less moves few of the others.

use crate::correlation::amount::Amount;

/// Amounts in a block; one with more is cut in two.
const BLOCK_MAX: usize = 256;

/// Amounts, ascending.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sorted {
    /// None of them is empty.
    blocks: Vec<Vec<Amount>>,
    len: usize,
}

impl Sorted {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn insert(&mut self, amount: Amount) {
        self.len += 1;
        let after = self.blocks.partition_point(|block| block.first().is_some_and(|own| own.compare(amount).is_le()));
        let at = after.saturating_sub(1);
        let Some(block) = self.blocks.get_mut(at) else {
            self.blocks.push(vec![amount]);
            return;
        };
        let place = block.partition_point(|known| known.compare(amount).is_le());
        block.insert(place, amount);
        if block.len() > BLOCK_MAX {
            let second = block.split_off(BLOCK_MAX / 2);
            self.blocks.insert(at + 1, second);
        }
    }

    /// Takes one of its amounts out.
    pub fn remove(&mut self, amount: Amount) {
        // The first block that may hold it: one before it may end with smaller amounts only.
        let at = self.blocks.partition_point(|block| block.last().is_some_and(|own| own.compare(amount).is_lt()));
        let Some(block) = self.blocks.get_mut(at) else { return };
        let place = block.partition_point(|known| known.compare(amount).is_lt());
        if block.get(place).is_some_and(|known| known.compare(amount).is_eq()) {
            block.remove(place);
            self.len -= 1;
        }
        if block.is_empty() {
            self.blocks.remove(at);
        }
    }

    /// The amount at a place, from 0.
    pub fn get(&self, mut place: usize) -> Option<Amount> {
        for block in &self.blocks {
            match block.get(place) {
                Some(amount) => return Some(*amount),
                None => place -= block.len(),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_stand_in_order_whatever_comes_and_goes() {
        let (mut sorted, mut model) = (Sorted::default(), Vec::<Amount>::new());
        let mut random = 3u64;
        for round in 0..6_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let amount = match random >> 62 {
                0 => Amount::Float((random >> 40) as f64 / 7.0),
                _ => Amount::whole((random >> 40) % 500),
            };
            if round % 3 == 2 {
                let gone = model.remove((random >> 33) as usize % model.len());
                sorted.remove(gone);
            } else {
                let place = model.partition_point(|known| known.compare(amount).is_le());
                model.insert(place, amount);
                sorted.insert(amount);
            }
        }
        sorted.remove(Amount::Float(-1.0));
        assert_eq!(sorted.len(), model.len());
        assert!((0..=model.len()).all(|place| sorted.get(place) == model.get(place).copied()));
    }
}
