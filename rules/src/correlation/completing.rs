//! Who and what an alert of a correlation is about.

use std::sync::Arc;

/// The most bytes that a window that waits keeps of each text: what it remembers until its end is bounded.
const WAITING_BYTES_MAX: usize = 1_024;
/// The most bytes of each text that there is a length for.
const TEXT_BYTES_MAX: usize = NONE as usize - 1;
/// The length of a text that is not there.
const NONE: u16 = u16::MAX;
const TEXTS: usize = 4;

/// Who and what an alert is about, taken from the event that completes a window. It is one piece of memory, since there may be a
/// million windows that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Completing {
    /// The lengths of the texts, two bytes each, and the texts.
    packed: Arc<[u8]>,
}

impl Completing {
    /// Of the texts of an event.
    pub fn new(source: &str, [actor, asset, resource]: [Option<&str>; 3]) -> Self {
        Self::of([Some(source), actor, asset, resource], TEXT_BYTES_MAX)
    }

    /// What a window that waits keeps: of each text the first 1,024 bytes.
    pub fn bounded(self) -> Self {
        if self.packed.len() <= WAITING_BYTES_MAX {
            return self;
        }
        let [actor, asset, resource] = self.about();
        Self::of([Some(self.source()), actor, asset, resource], WAITING_BYTES_MAX)
    }

    fn of(texts: [Option<&str>; TEXTS], bytes_max: usize) -> Self {
        let kept = texts.map(|text| {
            text.map(|text| {
                text.as_bytes().get(..text.floor_char_boundary(bytes_max.min(text.len()))).unwrap_or_default()
            })
        });
        let all = || kept.iter().copied();
        let length = |text: Option<&[u8]>| text.map_or(NONE, |text| text.len() as u16).to_le_bytes();
        let mut packed = Vec::with_capacity(TEXTS * 2 + all().flatten().map(<[u8]>::len).sum::<usize>());
        all().for_each(|text| packed.extend_from_slice(&length(text)));
        all().flatten().for_each(|text| packed.extend_from_slice(text));
        Self { packed: packed.into() }
    }

    fn text(&self, number: usize) -> Option<&str> {
        let (lengths, texts) = self.packed.split_at_checked(TEXTS * 2)?;
        let mut lengths = lengths.as_chunks::<2>().0.iter().map(|length| u16::from_le_bytes(*length));
        let bytes = |length: u16| if length == NONE { 0 } else { usize::from(length) };
        let from = lengths.by_ref().take(number).map(bytes).sum();
        let own = lengths.next().filter(|length| *length != NONE)?;
        std::str::from_utf8(texts.get(from..from + bytes(own))?).ok()
    }

    pub fn source(&self) -> &str {
        self.text(0).unwrap_or_default()
    }

    /// The actor, the asset and the resource.
    pub fn about(&self) -> [Option<&str>; 3] {
        [1, 2, 3].map(|number| self.text(number))
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.packed.len().next_multiple_of(16) + 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_a_window_that_waits_keeps_the_begin_of_long_ones() {
        for about in [
            [None, None, None],
            [Some("alice"), None, Some("")],
            [Some("é"), Some("host-1"), None],
            [None, None, Some("arn:aws:s3:::bucket")],
        ] {
            let own = Completing::new("agent", about);
            assert_eq!((own.source(), own.about()), ("agent", about));
        }
        assert_eq!((Completing::default().source(), Completing::default().about()), ("", [None; 3]));
        let long = format!("a{}", "é".repeat(9_000));
        let own = Completing::new(&long, [Some(&long), None, Some("r")]);
        assert_eq!((own.source(), own.about()), (&*long, [Some(&*long), None, Some("r")]));
        let own = own.bounded();
        assert_eq!(own.source(), format!("a{}", "é".repeat(511)));
        assert_eq!(own.about(), [Some(own.source()), None, Some("r")]);
        assert!(own.bytes() <= 2 * WAITING_BYTES_MAX + 32);
        let longer = "x".repeat(99_999);
        assert_eq!(Completing::new("", [Some(&longer), None, None]).about(), [Some(&longer[..65_534]), None, None]);
    }
}
