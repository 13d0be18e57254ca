//! The events of a group, one after the other in memory, with room on either side: events come in at both ends, or near one.

use crate::correlation::amount::Amount;
use crate::correlation::entry::{Entry, EventId, Value};

/// With fewer events there is no room in front.
const ROOM_MIN: usize = 64;
/// Up to so many events there is no room to spare: most groups never have more.
const FEW: usize = 4;

/// Events by time.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// What comes before `start` is room.
    all: Vec<Entry>,
    start: u32,
    /// What the ids of its events take on the heap.
    id_bytes: u32,
}

impl Line {
    pub fn new(entries: Vec<Entry>) -> Self {
        let id_bytes = id_bytes(&entries);
        Self { all: entries, start: 0, id_bytes }
    }

    pub fn as_slice(&self) -> &[Entry] {
        self.all.get(self.start as usize..).unwrap_or_default()
    }

    /// For how many events there is room where there are so many, at most, while they only come in at the end.
    pub fn room(len: usize) -> usize {
        if len <= FEW { len } else { len.next_power_of_two() }
    }

    /// What the ids of its events take on the heap.
    pub fn id_bytes(&self) -> usize {
        self.id_bytes as usize
    }

    pub fn len(&self) -> usize {
        self.all.len() - self.start as usize
    }

    /// Puts an event in at a place: those before it or those after it move on by one, whichever are fewer.
    pub fn insert(&mut self, at: usize, entry: Entry) {
        let len = self.len();
        self.id_bytes += entry.id.bytes() as u32;
        let in_front = at < len / 2 && len >= ROOM_MIN;
        if in_front && self.start == 0 {
            let none = Entry { time: i64::MIN, id: EventId::Uuid([0; 16]), value: Value::None, slot: 0 };
            let room = len / 2;
            self.all.splice(0..0, std::iter::repeat_n(none, room));
            self.start = room as u32;
        }
        let start = self.start as usize;
        if in_front && let Some(moved) = self.all.get_mut(start - 1..start + at) {
            if let Some(place) = moved.first_mut() {
                *place = entry;
            }
            moved.rotate_left(1);
            self.start -= 1;
            return;
        }
        if self.all.len() == self.all.capacity() && self.all.len() < FEW {
            self.all.reserve_exact(1);
        }
        self.all.insert(start + at.min(len), entry);
    }

    /// Takes the first `count` events off.
    pub fn cut(&mut self, count: usize) {
        let count = count.min(self.len());
        self.id_bytes -= id_bytes(self.as_slice().get(..count).unwrap_or_default());
        self.start += count as u32;
        if self.start as usize * 2 >= self.all.len() {
            self.all.drain(..self.start as usize);
            self.start = 0;
            if self.all.is_empty() || (self.all.capacity() > FEW && self.all.len() * 4 <= self.all.capacity()) {
                self.all.shrink_to(Self::room(self.all.len()));
            }
        }
    }

    /// Keeps the events that `keep` says so of; it is asked from the last to the first.
    pub fn retain_from_last(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.all.drain(..self.start as usize);
        self.start = 0;
        let mut kept: Vec<bool> = self.all.iter().rev().map(&mut keep).collect();
        self.all.retain(|_| kept.pop().unwrap_or(true));
        self.id_bytes = id_bytes(&self.all);
    }
}

/// What the ids of some events take on the heap: at most 2²⁰ events, and 256 bytes each.
fn id_bytes(entries: &[Entry]) -> u32 {
    entries.iter().map(|entry| entry.id.bytes() as u32).sum()
}

/// The sum of the amounts of some events, as people are told it: exact, unless one is a float.
pub(crate) fn sum(entries: &[Entry]) -> Amount {
    let amounts = entries.iter().map(|entry| entry.value.to_amount());
    let exact: i128 = amounts.clone().map(|amount| if let Amount::Exact(value) = amount { value } else { 0 }).sum();
    let mut floats = amounts.filter_map(|amount| if let Amount::Float(value) = amount { Some(value) } else { None });
    match floats.next() {
        None => Amount::Exact(exact),
        Some(first) => Amount::Float(floats.fold(Amount::Exact(exact).as_f64() + first, |sum, value| sum + value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_stand_where_they_were_put_wherever_that_is() {
        let (mut line, mut model) = (Line::default(), Vec::new());
        let mut random = 1u64;
        for number in 0..4_000i64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Stretches in which they come in at the front, anywhere and at the end.
            let at = match number / 500 % 3 {
                0 => 0,
                1 => (random >> 33) as usize % (model.len() + 1),
                _ => model.len(),
            };
            let id = EventId::new(&"x".repeat(number as usize % 300));
            line.insert(at, Entry { time: number, id, value: Value::None, slot: 0 });
            model.insert(at, number);
            if number % 7 == 6 {
                let count = (random >> 40) as usize % 9;
                line.cut(count);
                model.drain(..count.min(model.len()));
            }
            if number == 2_222 {
                line.retain_from_last(|entry| entry.time % 2 == 0);
                model.retain(|number| number % 2 == 0);
            }
            assert!(line.as_slice().iter().map(|entry| entry.time).eq(model.iter().copied()), "{number}");
            assert_eq!(line.id_bytes(), id_bytes(line.as_slice()) as usize);
        }
        // What became small gives its room back.
        line.cut(model.len() - 3);
        assert!(line.len() == 3 && line.all.capacity() <= Line::room(3), "{}", line.all.capacity());
        line.cut(3);
        assert_eq!((line.all.capacity(), line.id_bytes()), (0, 0));
    }
}
