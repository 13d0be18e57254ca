//! Literals that a text must hold for a regular expression to match: found by the search that finds all literals anyway, so that
//! the expression itself is tried on few texts.

use regex_syntax::hir::{Class, Hir, HirKind};

use crate::fold::{fold, fold_char};

/// The most literals of one expression of which a text must hold any.
const LITERALS_MAX: usize = 48;
/// Shorter ones are in too many texts to be worth a search.
const BYTES_MIN: usize = 3;
/// Beyond this, longer literals are not rarer.
const BYTES_ENOUGH: usize = 10;

/// What an expression asks of a text, whatever else it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Required {
    /// Folded literals; the folded text has one of them. Empty when none is known.
    pub literals: Vec<String>,
    /// Bytes of the text. Nothing is said of texts beyond ASCII, which change their length when they are folded.
    pub bytes_min: usize,
    /// Steps that a search may need for each byte of the text, about: the states that may be possible at once.
    pub steps: u64,
}

impl Required {
    /// Of an expression as `regex` understands it.
    pub fn of(pattern: &str) -> Self {
        let Ok(hir) = regex_syntax::parse(pattern) else {
            return Self { literals: Vec::new(), bytes_min: 0, steps: u64::MAX };
        };
        let mut literals = any_of(&hir).unwrap_or_default();
        literals.sort_unstable();
        literals.dedup();
        Self { literals, bytes_min: hir.properties().minimum_len().unwrap_or(0), steps: steps(&hir) }
    }
}

/// The states that may be possible at once: of a letter one for each of its bytes, of a repetition as many as it may repeat.
fn steps(hir: &Hir) -> u64 {
    let sum = |parts: &[Hir]| parts.iter().map(steps).fold(0, u64::saturating_add);
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(class) => class.maximum_len().unwrap_or(1) as u64,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min.saturating_add(1));
            steps(&repetition.sub).saturating_mul(u64::from(times.max(1)))
        }
        HirKind::Capture(capture) => steps(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => sum(parts),
    }
}

/// Literals of which every match has one.
fn any_of(hir: &Hir) -> Option<Vec<String>> {
    let found = match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(_) => None,
        HirKind::Literal(_) | HirKind::Concat(_) => of_sequence(hir),
        HirKind::Repetition(repetition) if repetition.min > 0 => any_of(&repetition.sub),
        HirKind::Repetition(_) => None,
        HirKind::Capture(capture) => any_of(&capture.sub),
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(any_of(part)?);
            }
            Some(all)
        }
    };
    found.filter(|literals| literals.len() <= LITERALS_MAX && shortest(literals) >= BYTES_MIN)
}

/// The best of what the parts of a sequence ask for: its longest fixed text, or a part that asks for more.
fn of_sequence(hir: &Hir) -> Option<Vec<String>> {
    let (mut run, mut all) = (String::new(), Vec::new());
    collect(hir, &mut run, &mut all);
    all.push(vec![run]);
    let rank = |literals: &Vec<String>| (shortest(literals).min(BYTES_ENOUGH), std::cmp::Reverse(literals.len()));
    all.into_iter().max_by_key(rank)
}

/// Adds the fixed texts of a sequence, and what its other parts ask for.
fn collect(hir: &Hir, run: &mut String, all: &mut Vec<Vec<String>>) {
    match hir.kind() {
        HirKind::Concat(parts) => parts.iter().for_each(|part| collect(part, run, all)),
        HirKind::Capture(capture) => collect(&capture.sub, run, all),
        // Takes no text: what stands before and after it stands together.
        HirKind::Empty | HirKind::Look(_) => {}
        _ => match fixed(hir) {
            Some(text) => run.push_str(&text),
            None => {
                all.push(vec![std::mem::take(run)]);
                all.extend(any_of(hir));
            }
        },
    }
}

/// The folded text that this is whenever it matches.
fn fixed(hir: &Hir) -> Option<String> {
    match hir.kind() {
        HirKind::Literal(literal) => Some(fold(std::str::from_utf8(&literal.0).ok()?).into_owned()),
        HirKind::Class(Class::Unicode(class)) => {
            // More letters than have the same folded form: no fixed one.
            let letters = || class.iter().flat_map(|range| range.start()..=range.end());
            let folded = letters().next().map(fold_char)?;
            letters().take(8).all(|letter| fold_char(letter) == folded).then_some(())?;
            letters().nth(8).is_none().then(|| folded.to_string())
        }
        _ => None,
    }
}

fn shortest(literals: &[String]) -> usize {
    literals.iter().map(String::len).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    #[test]
    fn literals_are_what_every_match_has() {
        for (pattern, wanted) in [
            ("mimikatz", &["mimikatz"][..]),
            ("MimiKatz", &["mimikatz"]),
            (r"(?i)\$PSHome\[\s*\d{1,3}\s*\]\s*\+\s*\$PSHome\[", &["$pshome["]),
            (r"\\[a-z]{4}\.exe$", &[".exe"]),
            (r"^(?:abc|def)+x", &["abc", "def"]),
            (r"(?:abc|de)x", &[]),
            (r"(a)(?:b)(c)d*", &["abc"]),
            (r"\babc\b", &["abc"]),
            (r"a.*b", &[]),
            (r"(?:long){2}", &["long"]),
            (r"(?:long)?|x", &[]),
            (r".{5,}", &[]),
            (r"(?i)straße", &["straße"]),
            (r"[0-9]+\.[0-9]+", &[]),
            (r"x(?:one|two|three)[^a]", &["one", "three", "two"]),
        ] {
            assert_eq!(Required::of(pattern).literals, wanted, "{pattern}");
        }
        assert_eq!(Required::of("a.{3}b|cdef").bytes_min, 4);
    }

    #[test]
    fn steps_grow_with_what_an_expression_repeats() {
        for (pattern, steps) in [
            ("abc", 3),
            ("a[bc]{1,20}", 21),
            ("(?:a|bc){10}", 30),
            ("a*", 1),
            (".+", 8),
            ("((a{100}){100}){100}", 1_000_000),
            ("(", u64::MAX),
        ] {
            assert_eq!(Required::of(pattern).steps, steps, "{pattern}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_text_that_matches_holds_a_required_literal(
            pattern in "(\\(\\?i\\))?[abKß]{2,5}(\\.\\*|\\[a-k\\]\\+|c\\?|\\(abc\\|dKs\\)|d\\{2\\})[aBk]{1,4}",
            texts in prop::collection::vec("[abcdkABCDKſKßs]{0,14}", 1..20),
        ) {
            let Ok(regex) = Regex::new(&pattern) else { return Ok(()) };
            let required = Required::of(&pattern);
            for text in texts.iter().filter(|text| regex.is_match(text)) {
                let folded = fold(text);
                let holds = required.literals.iter().any(|literal| folded.contains(literal.as_str()));
                prop_assert!(holds || required.literals.is_empty(), "{pattern} in {text}: {required:?}");
                prop_assert!(text.len() >= required.bytes_min, "{pattern} in {text}: {required:?}");
            }
        }
    }
}
