//! The window by which readers of a log know a row that was written twice: by two nodes, or again after an answer was lost.
//!
//! A row repeats another when its key is in the same record before it, or in one of the records before that one, as far back as
//! two bounds let: a number of records, and a number of keys in them. This goes by what stands in the log alone, repeats
//! included, so that every reader leaves out the same rows, wherever it began: it reads that far back first.

use std::collections::VecDeque;

use hashbrown::HashMap;

/// How far back it is looked.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowBounds {
    pub(super) records: usize,
    pub(super) keys: usize,
}

impl WindowBounds {
    /// Whether so many records with so many keys are as far back as it is looked.
    pub(super) fn reached(self, records: usize, keys: usize) -> bool {
        records >= self.records || keys >= self.keys
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct RecordWindow {
    bounds: WindowBounds,
    /// In order, each with its keys.
    records: VecDeque<(u64, Vec<u128>)>,
    /// The last record of each key.
    last: HashMap<u128, u64>,
    keys: usize,
}

impl RecordWindow {
    /// An empty one.
    pub(super) fn new(bounds: WindowBounds) -> Self {
        Self { bounds, records: VecDeque::new(), last: HashMap::new(), keys: 0 }
    }

    /// Takes the next record in: the places of its rows that are repeats, ascending.
    pub(super) fn take(&mut self, record: u64, keys: Vec<u128>) -> Vec<usize> {
        let mut repeats = Vec::new();
        for (row, key) in keys.iter().enumerate().filter(|(_, key)| **key != 0) {
            if self.last.insert(*key, record).is_some() {
                repeats.push(row);
            }
        }
        self.keys += keys.len();
        self.records.push_back((record, keys));
        while self.records.len() > self.bounds.records || self.keys > self.bounds.keys {
            let Some((oldest, keys)) = self.records.pop_front() else { break };
            self.keys -= keys.len();
            for key in keys {
                if self.last.get(&key) == Some(&oldest) {
                    self.last.remove(&key);
                }
            }
        }
        repeats
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The repeats of a record by the definition: in the longest stretch before it that is within the bounds.
    fn by_definition(log: &[Vec<u128>], at: usize, bounds: WindowBounds) -> Vec<usize> {
        let mut from = at;
        let mut keys = 0;
        while from > 0 && at - from < bounds.records && keys + log[from - 1].len() <= bounds.keys {
            from -= 1;
            keys += log[from].len();
        }
        let known = |row: usize| {
            let key = log[at][row];
            key != 0 && (log[from..at].iter().flatten().any(|other| *other == key) || log[at][..row].contains(&key))
        };
        (0..log[at].len()).filter(|row| known(*row)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn every_reader_leaves_out_the_same_rows_wherever_it_began(
            log in proptest::collection::vec(proptest::collection::vec(0u128..12, 0..6), 1..40),
            records in 1usize..8,
            keys in 6usize..20,
        ) {
            let bounds = WindowBounds { records, keys };
            for began in 0..log.len() {
                // As a reader does that looks back from where it begins.
                let mut window = RecordWindow::new(bounds);
                let (mut back, mut known) = (began, 0);
                while back > 0 && !bounds.reached(began - back, known) {
                    back -= 1;
                    known += log[back].len();
                }
                for (at, keys) in log.iter().enumerate().take(began).skip(back) {
                    window.take(at as u64, keys.clone());
                }
                for (at, keys) in log.iter().enumerate().skip(began) {
                    let repeats = window.take(at as u64, keys.clone());
                    prop_assert_eq!(&repeats, &by_definition(&log, at, bounds), "record {}, began at {}", at, began);
                    prop_assert!(window.keys <= bounds.keys && window.records.len() <= bounds.records);
                }
            }
        }
    }
}
