//! A search for a regular expression that can be given up in the middle of a value.
//!
//! The engines of `regex` go through a value at one stretch: for an expression with a hundred thousand states and a value of a
//! megabyte that can be minutes. The same automaton, stepped through byte by byte, is slower by a factor of a few and can be
//! stopped anywhere. It is only made, and only used, where the steps may be that many.

use regex_automata::Input;
use regex_automata::hybrid::dfa::{Cache, Config, DFA};
use regex_automata::nfa::thompson;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Capture, Hir, HirKind, LookSet, Repetition};

use crate::eval::watch::{Meter, piece_of};

/// What the states may take that were met.
const CACHE_BYTES: usize = 4 << 20;
/// As deep as the expressions of rules may nest.
const NEST_LIMIT: u32 = 64;

/// An expression as an automaton.
#[derive(Debug)]
pub(crate) struct Stepwise {
    automaton: DFA,
    cache: Cache,
    /// The same without word boundaries, which finds whatever the expression finds; made when it is needed for the first time.
    loose: Option<Option<Box<Stepwise>>>,
    hir: Hir,
}

/// What came of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Found(bool),
    /// It took too long.
    GivenUp,
    /// The automaton cannot tell: word boundaries beside letters beyond ASCII, in a text that has all the rest.
    Unknown,
}

impl Stepwise {
    /// `None` for what has no such automaton.
    pub fn new(pattern: &str) -> Option<Self> {
        Self::of(ParserBuilder::new().nest_limit(NEST_LIMIT).build().parse(pattern).ok()?)
    }

    fn of(hir: Hir) -> Option<Self> {
        let config =
            Config::new().unicode_word_boundary(true).skip_cache_capacity_check(true).cache_capacity(CACHE_BYTES);
        let states = thompson::Config::new().which_captures(thompson::WhichCaptures::None);
        let states = thompson::Compiler::new().configure(states).build_from_hir(&hir).ok()?;
        let automaton = DFA::builder().configure(config).build_from_nfa(states).ok()?;
        let cache = automaton.create_cache();
        Some(Self { automaton, cache, loose: None, hir })
    }

    /// Searches a text, with a look at the meter after every piece; a byte takes so many steps at most.
    pub fn search(&mut self, text: &str, steps: u64, meter: &mut Meter) -> Outcome {
        match self.step_through(text, steps, meter) {
            Outcome::Unknown => {
                let loose = || Self::of(without_boundaries(&self.hir)).map(Box::new);
                let loose = self.loose.get_or_insert_with(loose).as_mut();
                match loose.map_or(Outcome::Unknown, |loose| loose.step_through(text, steps, meter)) {
                    Outcome::Found(true) => Outcome::Unknown,
                    outcome => outcome,
                }
            }
            outcome => outcome,
        }
    }

    fn step_through(&mut self, text: &str, steps: u64, meter: &mut Meter) -> Outcome {
        let Self { automaton, cache, .. } = self;
        let Ok(mut state) = automaton.start_state_forward(cache, &Input::new(text)) else { return Outcome::Unknown };
        for piece in text.as_bytes().chunks(piece_of(steps)) {
            for byte in piece {
                let Ok(next) = automaton.next_state(cache, state, *byte) else { return Outcome::Unknown };
                state = next;
                if state.is_tagged() {
                    if state.is_match() {
                        return Outcome::Found(true);
                    }
                    if state.is_dead() {
                        return Outcome::Found(false);
                    }
                    if state.is_quit() {
                        return Outcome::Unknown;
                    }
                }
            }
            if !meter.goes_on() {
                return Outcome::GivenUp;
            }
        }
        match automaton.next_eoi_state(cache, state) {
            Ok(state) => Outcome::Found(state.is_match()),
            Err(_) => Outcome::Unknown,
        }
    }
}

/// An expression that finds no less: it asks for no word boundaries.
fn without_boundaries(hir: &Hir) -> Hir {
    let all = |parts: &[Hir]| parts.iter().map(without_boundaries).collect();
    let boxed = |sub: &Hir| Box::new(without_boundaries(sub));
    match hir.kind() {
        HirKind::Look(look) if LookSet::singleton(*look).contains_word() => Hir::empty(),
        HirKind::Repetition(own) => Hir::repetition(Repetition { sub: boxed(&own.sub), ..own.clone() }),
        HirKind::Capture(own) => Hir::capture(Capture { sub: boxed(&own.sub), ..own.clone() }),
        HirKind::Concat(parts) => Hir::concat(all(parts)),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => hir.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_finds_what_the_expression_finds(
            pattern in "(\\(\\?i\\))?(\\^|\\\\b)?[abK]{0,3}(\\.\\*|\\[a-k\\]\\+|c\\?|\\(abc\\|dKs\\)|d\\{2\\}|é)[aB]{0,3}(\\$|\\\\b|\\\\z)?",
            texts in prop::collection::vec("[abcdkABCDKé\n ]{0,14}", 1..20),
        ) {
            let Ok(regex) = Regex::new(&pattern) else { return Ok(()) };
            let mut stepwise = Stepwise::new(&pattern).expect("an automaton");
            for text in &texts {
                let found = stepwise.search(text, 1 << 20, &mut Meter::new(Instant::now(), u64::MAX));
                let told = found == Outcome::Found(regex.is_match(text));
                prop_assert!(told || (found == Outcome::Unknown && !text.is_ascii()), "{pattern} in {text:?}: {found:?}");
            }
        }
    }

    #[test]
    fn beside_letters_beyond_ascii_it_still_knows_what_is_not_there() {
        let mut stepwise = Stepwise::new(r"\b(?:power|po)shell\b").expect("an automaton");
        for (text, wanted) in [
            ("é PowerShell", Outcome::Found(false)),
            ("é powershell", Outcome::Unknown),
            ("époshell", Outcome::Unknown),
            ("a poshell", Outcome::Found(true)),
        ] {
            let meter = &mut Meter::new(Instant::now(), u64::MAX);
            assert_eq!(stepwise.search(text, 1, meter), wanted, "{text}");
        }
    }

    #[test]
    fn it_can_be_given_up() {
        let mut stepwise = Stepwise::new("a[abx]{150}[ab]{20}z").expect("an automaton");
        let text = "abx".repeat(10_000);
        assert_eq!(stepwise.search(&text, 1, &mut Meter::new(Instant::now(), 0)), Outcome::GivenUp);
        assert_eq!(stepwise.search(&text, 1, &mut Meter::new(Instant::now(), u64::MAX)), Outcome::Found(false));
    }
}
