//! The window of keys by which duplicates are recognised: two generations of a hash set. For the writers of logs.

use hashbrown::HashSet;

/// Keys of durable rows, newest last. Holds at least half of its bound once it has seen as many, at most its bound.
#[derive(Debug)]
pub struct Window {
    young: HashSet<u128>,
    old: HashSet<u128>,
    generation_max: usize,
}

impl Window {
    /// A window of at most `keys_max` keys; 0 recognises nothing but duplicates within a group.
    pub fn new(keys_max: usize) -> Self {
        Self { young: HashSet::new(), old: HashSet::new(), generation_max: keys_max.div_ceil(2) }
    }

    /// Whether the key is known.
    pub fn contains(&self, key: u128) -> bool {
        self.young.contains(&key) || self.old.contains(&key)
    }

    /// Makes the key known.
    pub fn insert(&mut self, key: u128) {
        if key == 0 || self.generation_max == 0 {
            return;
        }
        if self.young.len() >= self.generation_max {
            self.old = std::mem::replace(&mut self.young, HashSet::with_capacity(self.generation_max));
        }
        self.young.insert(key);
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The keys of a group commit: known to itself at once, to the [`Window`] only when the group is durable.
#[derive(Debug, Default)]
pub struct GroupKeys {
    seen: HashSet<u128>,
    in_order: Vec<u128>,
}

impl GroupKeys {
    /// The rows of `keys` that are duplicates of durable rows or of rows earlier in this group, ascending. The others are
    /// taken up.
    pub fn duplicates(&mut self, keys: &[u128], window: &Window) -> Vec<usize> {
        let mut duplicates = Vec::new();
        for (row, key) in keys.iter().copied().enumerate() {
            if key == 0 {
                continue;
            }
            if window.contains(key) || !self.seen.insert(key) {
                duplicates.push(row);
            } else {
                self.in_order.push(key);
            }
        }
        duplicates
    }

    /// Moves the keys into the window, because the group is durable; returns them in order.
    pub fn commit(self, window: &mut Window) -> Vec<u128> {
        for key in &self.in_order {
            window.insert(*key);
        }
        self.in_order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_forgets_the_oldest_half_and_never_holds_more_than_its_bound() {
        let mut window = Window::new(10);
        assert!(window.is_empty());
        for key in 1..=100u128 {
            window.insert(key);
            assert!(window.len() <= 10 && !window.is_empty());
            assert!((key.saturating_sub(4).max(1)..=key).all(|recent| window.contains(recent)), "at {key}");
        }
        assert!(!window.contains(80));
    }

    #[test]
    fn a_window_of_no_keys_and_the_key_of_no_event_are_never_known() {
        let (mut none, mut some) = (Window::new(0), Window::new(10));
        for key in [7, 8, 7, 0] {
            none.insert(key);
            some.insert(key);
        }
        assert!(none.is_empty() && !none.contains(7));
        assert!(some.len() == 2 && !some.contains(0));
    }

    #[test]
    fn a_group_sees_its_own_duplicates_and_the_window_only_what_was_committed() {
        let mut window = Window::new(10);
        window.insert(7);
        let mut failed = GroupKeys::default();
        assert_eq!(failed.duplicates(&[1, 0, 1, 7, 0, 2], &window), [2, 3]);
        drop(failed);
        let mut group = GroupKeys::default();
        assert_eq!(group.duplicates(&[2, 1], &window), [0usize; 0], "a failed group withdraws its keys");
        assert_eq!(group.commit(&mut window), [2, 1]);
        assert_eq!(GroupKeys::default().duplicates(&[1, 2], &window), [0, 1]);
    }
}
