//! One event as a group remembers it.

use crate::correlation::amount::Amount;
use crate::group_key::bounded;

/// The most bytes of an id that is no UUID: of a longer one, the hash stands for the end.
const TEXT_BYTES_MAX: usize = 240;

/// The id of an event: 16 bytes when it is a UUID in lower case, else its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EventId {
    Uuid([u8; 16]),
    Text(Box<str>),
}

impl EventId {
    pub fn new(text: &str) -> Self {
        uuid(text.as_bytes()).map_or_else(|| Self::Text(bounded(text, TEXT_BYTES_MAX).as_ref().into()), Self::Uuid)
    }

    pub fn text(&self) -> String {
        let bytes = match self {
            Self::Text(text) => return text.to_string(),
            Self::Uuid(bytes) => bytes,
        };
        let mut text = String::with_capacity(36);
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        text
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Uuid(_) => 0,
            Self::Text(text) => text.len() + 16,
        }
    }
}

fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 16];
    let mut at = 0;
    for out in &mut bytes {
        if matches!(at, 8 | 13 | 18 | 23) {
            if text.get(at) != Some(&b'-') {
                return None;
            }
            at += 1;
        }
        *out = (digit(*text.get(at)?)? << 4) | digit(*text.get(at + 1)?)?;
        at += 2;
    }
    Some(bytes)
}

/// What is measured of an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    None,
    /// The hash of the values that are counted.
    Counted([u64; 2]),
    /// An exact amount, as two halves so that an entry stays small.
    Exact([u64; 2]),
    Float(f64),
}

impl Value {
    pub fn counted(hash: u128) -> Self {
        Self::Counted([hash as u64, (hash >> 64) as u64])
    }

    pub fn amount(amount: Amount) -> Self {
        match amount {
            Amount::Exact(value) => Self::Exact([value as u64, (value >> 64) as u64]),
            Amount::Float(value) => Self::Float(value),
        }
    }

    /// The number; zero for what is none.
    pub fn to_amount(self) -> Amount {
        match self {
            Self::Exact([low, high]) => Amount::Exact(((u128::from(high) << 64) | u128::from(low)) as i128),
            Self::Float(value) => Amount::Float(value),
            Self::None | Self::Counted(_) => Amount::Exact(0),
        }
    }

    pub fn hash(self) -> [u64; 2] {
        match self {
            Self::Counted(hash) => hash,
            _ => [0; 2],
        }
    }
}

/// One event in a group.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub time: i64,
    pub id: EventId,
    pub value: Value,
    /// Which of the correlation's rules it matched.
    pub slot: u16,
}

impl Entry {
    /// Whether this is the same event once more.
    pub fn repeats(&self, other: &Self) -> bool {
        self.time == other.time && self.slot == other.slot && self.id == other.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_they_were() {
        for text in [
            "",
            "e1",
            "018f4e2a-0000-7000-8000-0123456789ab",
            "018F4E2A-0000-7000-8000-0123456789AB",
            "018f4e2a-0000-7000-8000_0123456789ab",
        ] {
            assert_eq!(EventId::new(text).text(), text);
        }
        assert!(matches!(EventId::new("018f4e2a-0000-7000-8000-0123456789ab"), EventId::Uuid(_)));
        assert!(size_of::<Entry>() <= 64);
    }

    #[test]
    fn amounts_come_back() {
        for text in ["-1", "0", "0.000000000000001", "-99999999999", "1e300"] {
            let amount = Amount::parse(text).expect("a number");
            assert_eq!(Value::amount(amount).to_amount(), amount);
        }
    }
}
