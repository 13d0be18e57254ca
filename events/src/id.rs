//! Ids: UUIDv7 for events that bring none (RFC 9562, section 5.7), content hashes for alerts, keys for de-duplication.

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

/// Makes UUIDv7 ids that sort by the time they were made, also within a millisecond.
///
/// One generator per decoder: ids of one generator are strictly increasing; those of two differ by 62 random bits.
#[derive(Debug)]
pub struct IdGenerator {
    last_ms: u64,
    counter: u64,
    random: u64,
}

impl IdGenerator {
    /// A generator whose random bits start at `seed`, which should come from the operating system.
    pub fn new(seed: u64) -> Self {
        Self { last_ms: 0, counter: 0, random: seed | 1 }
    }

    /// The next id for an event received at `now_us` microseconds since the epoch, as 36 bytes of ASCII.
    pub fn next(&mut self, now_us: i64) -> [u8; 36] {
        let now_ms = u64::try_from(now_us / 1000).unwrap_or(0).max(self.last_ms);
        self.random = xorshift(self.random);
        if now_ms == self.last_ms {
            self.counter += 1;
        } else {
            self.last_ms = now_ms;
            self.counter = self.random >> 56;
        }
        // 12 bits of `rand_a` and 14 of `rand_b` count within the millisecond (method 1 of section 6.2); 48 are random.
        let high = (self.last_ms << 16) | 0x7000 | (self.counter >> 14 & 0xfff);
        let low = (0b10 << 62) | ((self.counter & 0x3fff) << 48) | (self.random & 0xffff_ffff_ffff);
        format_uuid(high, low)
    }
}

fn xorshift(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

fn format_uuid(high: u64, low: u64) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for byte in high.to_be_bytes().into_iter().chain(low.to_be_bytes()) {
        if matches!(at, 8 | 13 | 18 | 23) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    text
}

/// The key under which an event id of a tenant is remembered in the de-duplication window: 128 bits of XXH3.
pub fn dedup_key(org_id: &str, dataset: u8, event_id: &str) -> u128 {
    let seed = xxh3_128_with_seed(org_id.as_bytes(), u64::from(dataset)) as u64;
    xxh3_128_with_seed(event_id.as_bytes(), seed)
}

/// The id of an alert: a hash of tenant, rule, group key and window start (or event id), so that replay gives the same id.
pub fn alert_id(org_id: &str, rule_id: &str, group_key: &str, window: &str) -> String {
    let mut hash = Xxh3::new();
    for part in [org_id, rule_id, group_key, window] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    format!("{:032x}", hash.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_generator_increase_and_are_version_7() {
        let mut ids = IdGenerator::new(42);
        let mut last = [0u8; 36];
        for at in 0..100_000i64 {
            let id = ids.next(1_700_000_000_000_000 + at * 3);
            assert!(id > last, "id {at}");
            assert_eq!(id[14], b'7');
            assert!(matches!(id[19], b'8'..=b'b'));
            last = id;
        }
    }

    #[test]
    fn a_clock_that_goes_back_does_not_reorder_ids() {
        let mut ids = IdGenerator::new(7);
        let first = ids.next(2_000_000_000);
        assert!(ids.next(1_000_000_000) > first);
    }

    #[test]
    fn keys_differ_by_tenant_dataset_and_id() {
        let keys = [dedup_key("a", 1, "x"), dedup_key("b", 1, "x"), dedup_key("a", 2, "x"), dedup_key("a", 1, "y")];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[at + 1..].contains(key));
        }
        assert_ne!(alert_id("ab", "c", "", ""), alert_id("a", "bc", "", ""));
    }
}
