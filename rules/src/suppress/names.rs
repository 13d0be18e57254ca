//! Numbers for names, so that what is kept per match is small. A number means nothing outside of the process.

use std::sync::Arc;

use rustc_hash::FxHashMap;

/// Names by number, numbers by name.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: FxHashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
    free: Vec<u32>,
}

impl Names {
    /// The number of a name, a new one if need be.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let name: Arc<str> = name.into();
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.names.get_mut(number as usize) {
                    *place = name.clone();
                }
                number
            }
            None => {
                self.names.push(name.clone());
                (self.names.len() - 1) as u32
            }
        };
        self.numbers.insert(name, number);
        number
    }

    pub fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", |name| name)
    }

    /// Forgets the names whose numbers are not used; they go to other names.
    pub fn retain(&mut self, used: impl Fn(u32) -> bool) {
        let free = &mut self.free;
        self.numbers.retain(|_, number| {
            let keep = used(*number);
            if !keep {
                free.push(*number);
            }
            keep
        });
        free.sort_unstable();
    }
}
