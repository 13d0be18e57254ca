//! Sets of rows of one batch.

/// A set of row numbers below a fixed bound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// No row of `rows`.
    pub fn empty(rows: usize) -> Self {
        Self { words: vec![0; rows.div_ceil(64)] }
    }

    /// All rows below `rows`.
    pub fn full(rows: usize) -> Self {
        let mut words = vec![u64::MAX; rows.div_ceil(64)];
        if let (Some(last), used @ 1..) = (words.last_mut(), rows % 64) {
            *last = (1 << used) - 1;
        }
        Self { words }
    }

    /// The rows whose bits are set in words of 64, the first row lowest; words past `rows` are left out, missing ones are empty.
    pub fn from_words(words: impl Iterator<Item = u64>, rows: usize) -> Self {
        let mut set = Self { words: words.take(rows.div_ceil(64)).collect() };
        set.words.resize(rows.div_ceil(64), 0);
        if let (Some(last), used @ 1..) = (set.words.last_mut(), rows % 64) {
            *last &= (1 << used) - 1;
        }
        set
    }

    /// No row is at or past this.
    pub fn bound(&self) -> usize {
        self.words.len() * 64
    }

    pub fn contains(&self, row: usize) -> bool {
        self.words.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Adds a row below the bound; any other is ignored.
    pub fn insert(&mut self, row: usize) {
        if let Some(word) = self.words.get_mut(row / 64) {
            *word |= 1 << (row % 64);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    pub fn and(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= other;
        }
    }

    pub fn or(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    pub fn and_not(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// The rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(at * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_has_every_row_and_no_other() {
        for rows in [0, 1, 63, 64, 65, 128, 200] {
            let full = Bitmap::full(rows);
            assert_eq!(full.iter().collect::<Vec<_>>(), (0..rows).collect::<Vec<_>>());
        }
    }

    #[test]
    fn set_operations() {
        let of = |rows: &[usize]| {
            let mut set = Bitmap::empty(130);
            rows.iter().for_each(|row| set.insert(*row));
            set
        };
        let mut left = of(&[0, 64, 129]);
        left.and(&of(&[64, 129]));
        assert_eq!(left, of(&[64, 129]));
        left.or(&of(&[3]));
        left.and_not(&of(&[129]));
        assert_eq!(left.iter().collect::<Vec<_>>(), [3, 64]);
        assert!(of(&[]).is_empty());
    }
}
