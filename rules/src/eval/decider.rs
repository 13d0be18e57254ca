//! Decides all predicates of one class on one value, in one pass per kind of predicate.

use std::net::IpAddr;

use aho_corasick::{AhoCorasick, AhoCorasickKind, packed};
use rustc_hash::FxHashMap;

use crate::compile::glob::Glob;
use crate::compile::interner::Predicate;
use crate::compile::matcher::{Cidr, Matcher, Place};
use crate::compile::required::Required;
use crate::datetime::{TimePart, parse_time};
use crate::eval::expression::Expression;
use crate::eval::pieces;
use crate::eval::watch::{Watch, Work, piece_of};
use crate::fold::fold_into;
use crate::number::{Comparison, Number};

/// The most bytes of literals that may become a DFA. It takes about a hundred bytes a byte, and for a literal that repeats itself
/// the square of its length to build.
const DFA_LITERAL_BYTES_MAX: usize = 8 << 10;

/// The predicates of one class by their numbers, sorted by how they are decided.
#[derive(Debug, Default)]
pub(crate) struct Decider {
    folded: Texts,
    cased: Texts,
    cidrs: Vec<(Cidr, u32)>,
    equal_ints: FxHashMap<i64, Vec<u32>>,
    numbers: Vec<(Comparison, Number, u32)>,
    times: Vec<(TimePart, Comparison, Number, u32)>,
    lengths: Lengths,
    /// Whether nothing but literals is asked for, wherever they are.
    searched_only: bool,
    /// Whether values are compared with anything one by one.
    compares: bool,
}

/// A set of lengths in bytes; those past 126 count as one.
#[derive(Debug, Clone, Copy, Default)]
struct Lengths(u128);

impl Lengths {
    /// All from this one on.
    fn from(length: usize) -> Self {
        Self(u128::MAX << length.min(127))
    }

    fn insert(&mut self, length: usize) {
        self.0 |= 1 << length.min(127);
    }

    fn contains(self, length: usize) -> bool {
        self.0 >> length.min(127) & 1 == 1
    }
}

/// Texts that are shorter are searched for the literals themselves at once.
const PIECES_TEXT_MIN: usize = 24;
/// Bytes of a piece of a literal; the searcher that is quick looks at four.
const PIECE_BYTES: usize = 6;
/// The most pieces that the quick searcher takes.
const PIECES_MAX: usize = 64;

/// Literals found in one value before the list of them is compacted: a literal may be in a long value millions of times.
const HITS_MAX: usize = 4096;

/// Literals and patterns over the same form of the value.
#[derive(Debug, Default)]
struct Texts {
    whole: FxHashMap<Box<str>, Vec<u32>>,
    /// Finds every literal and the longest literal of every pattern.
    literals: Option<AhoCorasick>,
    /// The lengths of text that may satisfy anything.
    lengths: Lengths,
    /// Finds a piece of each literal, many times faster; there if they are few.
    pieces: Option<packed::Searcher>,
    /// The same in ASCII text that was not folded; there if nothing but literals is asked for, and pieces of them are few.
    raw_pieces: Option<packed::Searcher>,
    /// For each literal, what finding it means.
    targets: Vec<Vec<Target>>,
    globs: Vec<(Glob, u32)>,
    /// Patterns without a literal.
    unfiltered: Vec<usize>,
    /// Tried on the text as it was before it was folded.
    regexes: Vec<Expression>,
    /// Those without a literal that a text must have.
    unfiltered_regexes: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    At(Place, u32),
    /// The pattern with this index is worth trying.
    Glob(usize),
    /// The regular expression with this index is.
    Regex(usize),
}

/// Buffers for [`Decider::decide`].
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    folded: String,
    globs: Vec<usize>,
    regexes: Vec<usize>,
    pub watch: Watch,
}

impl Scratch {
    pub fn new(watch: Watch) -> Self {
        Self { watch, ..Self::default() }
    }
}

impl Decider {
    /// A decider of these predicates, which all look at one view.
    pub fn new<'a>(predicates: impl Iterator<Item = (u32, &'a Predicate)>) -> Self {
        let mut decider = Self::default();
        let (mut folded, mut cased) = (TextsBuilder::default(), TextsBuilder::default());
        for (id, predicate) in predicates {
            match &predicate.matcher {
                Matcher::Text { place, literal, cased: own } => {
                    if *own { &mut cased } else { &mut folded }.literal(*place, literal, id);
                }
                Matcher::Glob { glob, cased: own } => if *own { &mut cased } else { &mut folded }.glob(glob, id),
                Matcher::Regex(pattern) => {
                    if let (Some(regex), Some(required)) = (predicate.regex.clone(), &predicate.required) {
                        folded.regex(Expression::new(regex, pattern, required.steps, id), required);
                    }
                }
                Matcher::Cidr(cidr) => decider.cidrs.push((*cidr, id)),
                Matcher::Number { comparison: Comparison::Equal, number: Number::Int(number) } => {
                    decider.equal_ints.entry(*number).or_default().push(id);
                }
                Matcher::Number { comparison, number } => decider.numbers.push((*comparison, *number, id)),
                Matcher::Time { part, comparison, number } => {
                    decider.times.push((*part, *comparison, *number, id));
                }
            }
        }
        decider.folded = folded.build();
        decider.cased = cased.build();
        decider.lengths = decider.all_lengths();
        decider.searched_only = decider.is_searched_only();
        decider.compares = !(decider.cidrs.is_empty() && decider.numbers.is_empty() && decider.times.is_empty());
        decider
    }

    fn is_searched_only(&self) -> bool {
        let folded = &self.folded;
        let others = self.cidrs.is_empty() && self.numbers.is_empty() && self.times.is_empty();
        others
            && self.equal_ints.is_empty()
            && self.cased.is_empty()
            && folded.whole.is_empty()
            && folded.unfiltered.is_empty()
            && folded.unfiltered_regexes.is_empty()
    }

    /// The lengths of text that may satisfy anything.
    fn all_lengths(&self) -> Lengths {
        let others = self.cidrs.is_empty() && self.numbers.is_empty() && self.times.is_empty();
        if !(others && self.equal_ints.is_empty()) {
            return Lengths::from(0);
        }
        Lengths(self.folded.lengths.0 | self.cased.lengths.0)
    }

    /// A quick look: `false` only if the value satisfies nothing.
    pub fn may_satisfy(&self, value: &str) -> bool {
        // Case folding keeps the length of ASCII text.
        self.lengths.contains(value.len()) || !value.is_ascii()
    }

    /// Leaves in `out` the predicates that `value` satisfies, ascending, each once. `look` is called between two searches when it is
    /// time to look whether something must be stopped.
    pub fn decide(&mut self, value: &str, scratch: &mut Scratch, look: &mut dyn FnMut(&mut Watch), out: &mut Vec<u32>) {
        out.clear();
        if self.searched_only
            && value.len() >= PIECES_TEXT_MIN
            && let Some(pieces) = &self.folded.raw_pieces
            && value.is_ascii()
            && pieces.find(value).is_none()
        {
            return;
        }
        scratch.watch.begin_value();
        if !self.folded.is_empty() {
            let mut buffer = std::mem::take(&mut scratch.folded);
            fold_into(value, &mut buffer);
            let lists = (&mut scratch.globs, &mut scratch.regexes);
            self.folded.decide((&buffer, value), lists, (&mut scratch.watch, look), out);
            scratch.folded = buffer;
        }
        if !self.cased.is_empty() {
            let lists = (&mut scratch.globs, &mut scratch.regexes);
            self.cased.decide((value, value), lists, (&mut scratch.watch, look), out);
        }
        let began = scratch.watch.begin_shared().filter(|_| self.compares);
        if !self.cidrs.is_empty()
            && let Ok(address) = value.trim().parse::<IpAddr>()
        {
            out.extend(self.cidrs.iter().filter(|(cidr, _)| cidr.contains(address)).map(|(_, id)| *id));
        }
        if !(self.numbers.is_empty() && self.equal_ints.is_empty())
            && let Some(number) = Number::parse(value)
        {
            self.decide_number(number, out);
        }
        if !self.times.is_empty()
            && let Some(time) = parse_time(value)
        {
            let holds = |(part, comparison, number, _): &&(TimePart, Comparison, Number, u32)| {
                comparison.holds(Number::Int(part.of(time)), *number)
            };
            out.extend(self.times.iter().filter(holds).map(|(.., id)| *id));
        }
        scratch.watch.end_shared(Work::Comparisons, began, value.len());
        compact(out);
    }

    fn decide_number(&self, number: Number, out: &mut Vec<u32>) {
        if let Number::Int(int) = number {
            out.extend(self.equal_ints.get(&int).into_iter().flatten());
        }
        let holds = |(comparison, own, _): &&(Comparison, Number, u32)| comparison.holds(number, *own);
        out.extend(self.numbers.iter().filter(holds).map(|(.., id)| *id));
    }
}

impl Texts {
    fn is_empty(&self) -> bool {
        self.whole.is_empty()
            && self.literals.is_none()
            && self.unfiltered.is_empty()
            && self.unfiltered_regexes.is_empty()
    }

    /// `raw` is the text before it was folded; the lists are buffers.
    fn decide(
        &mut self,
        (text, raw): (&str, &str),
        (globs, regexes): (&mut Vec<usize>, &mut Vec<usize>),
        (watch, look): (&mut Watch, &mut dyn FnMut(&mut Watch)),
        out: &mut Vec<u32>,
    ) {
        out.extend(self.whole.get(text).into_iter().flatten());
        globs.clear();
        globs.extend(&self.unfiltered);
        regexes.clear();
        regexes.extend(&self.unfiltered_regexes);
        let began = watch.begin_shared().filter(|_| self.literals.is_some());
        let worth = |pieces: &packed::Searcher| text.len() < PIECES_TEXT_MIN || pieces.find(text).is_some();
        if let Some(literals) = &self.literals
            && self.pieces.as_ref().is_none_or(worth)
        {
            let mut full = HITS_MAX;
            for found in literals.find_overlapping_iter(text) {
                if out.len() + globs.len() + regexes.len() > full {
                    compact(out);
                    compact(globs);
                    compact(regexes);
                    full = out.len() + globs.len() + regexes.len() + HITS_MAX;
                }
                for target in self.targets.get(found.pattern().as_usize()).into_iter().flatten() {
                    match target {
                        Target::At(Place::Anywhere, id) => out.push(*id),
                        Target::At(Place::Start, id) if found.start() == 0 => out.push(*id),
                        Target::At(Place::End, id) if found.end() == text.len() => out.push(*id),
                        Target::At(..) => {}
                        Target::Glob(at) => globs.push(*at),
                        Target::Regex(at) => regexes.push(*at),
                    }
                }
            }
        }
        watch.end_shared(Work::Literals, began, text.len());
        compact(globs);
        for (glob, id) in globs.iter().filter_map(|at| self.globs.get(*at)) {
            let steps = glob.steps();
            let found = watch.run(*id, steps.saturating_mul(text.len() as u64), |meter| match meter {
                None => Some(glob.matches(text)),
                Some(meter) => glob.matches_while(text, piece_of(steps), || meter.goes_on()),
            });
            if found {
                out.push(*id);
            }
            if watch.is_due() {
                look(watch);
            }
        }
        compact(regexes);
        for at in regexes {
            let Some(expression) = self.regexes.get_mut(*at) else { continue };
            let (id, steps) = (expression.number, expression.steps_of(raw));
            if watch.run(id, steps, |meter| expression.is_found(raw, meter)) {
                out.push(id);
            }
            if watch.is_due() {
                look(watch);
            }
        }
    }
}

fn compact<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}

#[derive(Default)]
struct TextsBuilder {
    texts: Texts,
    literals: Vec<Box<str>>,
    numbers: FxHashMap<Box<str>, usize>,
}

impl TextsBuilder {
    fn literal(&mut self, place: Place, literal: &str, id: u32) {
        if place == Place::Whole || literal.is_empty() {
            self.texts.lengths.insert(literal.len());
            self.texts.whole.entry(literal.into()).or_default().push(id);
        } else {
            self.target(literal, Target::At(place, id));
        }
    }

    fn glob(&mut self, glob: &Glob, id: u32) {
        let at = self.texts.globs.len();
        self.texts.globs.push((glob.clone(), id));
        let literal = glob.longest_literal();
        if literal.is_empty() {
            self.texts.lengths = Lengths::from(0);
            self.texts.unfiltered.push(at);
        } else {
            self.target(&literal, Target::Glob(at));
        }
    }

    fn regex(&mut self, regex: Expression, required: &Required) {
        let at = self.texts.regexes.len();
        self.texts.regexes.push(regex);
        self.texts.lengths.0 |= Lengths::from(required.bytes_min).0;
        if required.literals.is_empty() {
            self.texts.unfiltered_regexes.push(at);
        }
        required.literals.iter().for_each(|literal| self.target(literal, Target::Regex(at)));
    }

    fn target(&mut self, literal: &str, target: Target) {
        let next = self.literals.len();
        let number = *self.numbers.entry(literal.into()).or_insert(next);
        if number == next {
            self.texts.lengths.0 |= Lengths::from(literal.len()).0;
            self.literals.push(literal.into());
            self.texts.targets.push(Vec::new());
        }
        if let Some(targets) = self.texts.targets.get_mut(number) {
            targets.push(target);
        }
    }

    /// A searcher for the first bytes of each literal.
    fn pieces(&self) -> Option<packed::Searcher> {
        let mut pieces: Vec<&[u8]> = self
            .literals
            .iter()
            .filter_map(|literal| literal.as_bytes().get(..literal.len().min(PIECE_BYTES)))
            .collect();
        pieces.sort_unstable();
        pieces.dedup();
        if pieces.len() > PIECES_MAX || pieces.iter().any(|piece| piece.len() < 2) {
            return None;
        }
        packed::Config::new().builder().extend(pieces).build()
    }

    fn build(mut self) -> Texts {
        if !self.literals.is_empty() {
            self.texts.pieces = self.pieces();
            self.texts.raw_pieces = pieces::raw(&self.literals);
            let bytes: usize = self.literals.iter().map(|literal| literal.len()).sum();
            let kind = (bytes > DFA_LITERAL_BYTES_MAX).then_some(AhoCorasickKind::ContiguousNFA);
            let literals = self.literals.iter().map(|literal| literal.as_bytes());
            match AhoCorasick::builder().kind(kind).build(literals) {
                Ok(literals) => self.texts.literals = Some(literals),
                // Only beyond 2^31 states, which the bounds on rules keep far away: then every pattern is tried alone.
                Err(error) => {
                    tracing::error!(%error, "literals do not fit one automaton; matching them one by one");
                    self.one_by_one();
                }
            }
        }
        self.texts
    }

    fn one_by_one(&mut self) {
        use crate::compile::glob::Element;
        for (literal, targets) in self.literals.iter().zip(&self.texts.targets) {
            for target in targets {
                match target {
                    Target::Glob(at) => self.texts.unfiltered.push(*at),
                    Target::Regex(at) => self.texts.unfiltered_regexes.push(*at),
                    Target::At(place, id) => {
                        self.texts.unfiltered.push(self.texts.globs.len());
                        let glob = Glob {
                            anchored_start: *place == Place::Start,
                            anchored_end: *place == Place::End,
                            segments: vec![literal.chars().map(Element::Char).collect()],
                        };
                        self.texts.globs.push((glob, *id));
                    }
                }
            }
        }
    }
}
