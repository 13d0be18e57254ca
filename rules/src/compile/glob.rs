//! Wildcard patterns: `*` is any text, `?` is one character.

/// One thing that a pattern asks for at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    /// This character.
    Char(char),
    /// Any one character (`?`).
    AnyChar,
    /// Any of the dashes that Windows programs take for an option sign (`windash`).
    Dash,
}

/// The option signs that `windash` takes for each other.
pub(crate) const DASHES: [char; 5] = ['-', '/', '–', '—', '―'];

impl Element {
    fn matches(self, letter: char) -> bool {
        match self {
            Self::Char(own) => own == letter,
            Self::AnyChar => true,
            Self::Dash => DASHES.contains(&letter),
        }
    }
}

/// A pattern: segments with any text between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Glob {
    /// Whether the first segment must start the text.
    pub anchored_start: bool,
    /// Whether the last segment must end the text.
    pub anchored_end: bool,
    /// None is empty.
    pub segments: Vec<Vec<Element>>,
}

impl Glob {
    /// Whether the whole of `text` is what the pattern asks for. Takes the leftmost place for each segment, so it never goes
    /// back: at most |text| × |pattern| steps.
    pub fn matches(&self, text: &str) -> bool {
        self.matches_while(text, usize::MAX, || true) == Some(true)
    }

    /// How many steps a letter of a text may take.
    pub fn steps(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len() as u64).max().unwrap_or(0)
    }

    /// The same, if `goes_on`, which is asked after every so many letters, always says so; else `None`.
    pub fn matches_while(&self, text: &str, letters: usize, mut goes_on: impl FnMut() -> bool) -> Option<bool> {
        let Some((last, firsts)) = self.segments.split_last() else {
            return Some(!(self.anchored_start && self.anchored_end) || text.is_empty());
        };
        let mut find = |text, segment| find(text, segment, letters, &mut goes_on);
        let mut rest = text;
        for (at, segment) in firsts.iter().enumerate() {
            let found = if at == 0 && self.anchored_start { strip(rest, segment) } else { find(rest, segment)? };
            match found {
                Some(after) => rest = after,
                None => return Some(false),
            }
        }
        let start = firsts.is_empty() && self.anchored_start;
        Some(match (start, self.anchored_end) {
            (true, true) => strip(rest, last).is_some_and(str::is_empty),
            (true, false) => strip(rest, last).is_some(),
            (false, true) => ends(rest, last),
            (false, false) => find(rest, last)?.is_some(),
        })
    }

    /// The longest run of plain characters that every matching text has in it; empty if there is none.
    pub fn longest_literal(&self) -> String {
        let mut longest = String::new();
        for segment in &self.segments {
            let mut run = String::new();
            for element in segment.iter().map(Some).chain([None]) {
                match element {
                    Some(Element::Char(letter)) => run.push(*letter),
                    _ => {
                        if run.len() > longest.len() {
                            longest = std::mem::take(&mut run);
                        }
                        run.clear();
                    }
                }
            }
        }
        longest
    }
}

/// What is left of `text` after `segment` at its start.
fn strip<'a>(text: &'a str, segment: &[Element]) -> Option<&'a str> {
    let mut letters = text.chars();
    for element in segment {
        if !element.matches(letters.next()?) {
            return None;
        }
    }
    Some(letters.as_str())
}

/// What is left of `text` after the leftmost `segment` in it; `None` when it was not to go on.
fn find<'a>(
    text: &'a str,
    segment: &[Element],
    piece: usize,
    goes_on: &mut impl FnMut() -> bool,
) -> Option<Option<&'a str>> {
    let (mut letters, mut left) = (text.chars(), piece);
    loop {
        if let Some(after) = strip(letters.as_str(), segment) {
            return Some(Some(after));
        }
        if letters.next().is_none() {
            return Some(None);
        }
        left -= 1;
        if left == 0 {
            left = piece;
            if !goes_on() {
                return None;
            }
        }
    }
}

fn ends(text: &str, segment: &[Element]) -> bool {
    let mut letters = text.chars();
    segment.iter().rev().all(|element| letters.next_back().is_some_and(|letter| element.matches(letter)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(pattern: &str) -> Glob {
        let mut segments: Vec<Vec<Element>> = vec![Vec::new()];
        for letter in pattern.chars() {
            match letter {
                '*' => segments.push(Vec::new()),
                letter => {
                    let element = if letter == '?' { Element::AnyChar } else { Element::Char(letter) };
                    segments.last_mut().expect("never empty").push(element);
                }
            }
        }
        let filled = segments.iter().filter(|segment| !segment.is_empty()).cloned().collect();
        Glob { anchored_start: !pattern.starts_with('*'), anchored_end: !pattern.ends_with('*'), segments: filled }
    }

    /// The definition, by recursion.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => naive(rest, text),
            (Some(('*', rest)), Some((_, after))) => naive(rest, text) || naive(pattern, after),
            (Some((own, rest)), Some((letter, after))) => (*own == '?' || own == letter) && naive(rest, after),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_glob_matches_what_its_definition_does(pattern in "[ab*?é]{0,8}", text in "[abé]{0,10}") {
            let (letters, pattern_letters): (Vec<_>, Vec<_>) = (text.chars().collect(), pattern.chars().collect());
            let found = naive(&pattern_letters, &letters);
            prop_assert_eq!(glob(&pattern).matches(&text), found);
            prop_assert_eq!(glob(&pattern).matches_while(&text, 1, || true), Some(found));
        }
    }

    #[test]
    fn a_search_can_be_given_up() {
        let text = "ab".repeat(50);
        let mut asked = 0;
        let ended = glob("*b?b?c*").matches_while(&text, 10, || {
            asked += 1;
            asked < 3
        });
        assert_eq!((ended, asked), (None, 3));
    }

    #[test]
    fn the_longest_literal_is_in_every_match() {
        for (pattern, literal) in [("a?bcd*ef", "bcd"), ("*", ""), ("?", ""), ("*x", "x"), ("ab*cde", "cde")] {
            assert_eq!(glob(pattern).longest_literal(), literal, "{pattern}");
        }
    }
}
