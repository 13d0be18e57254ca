//! Shapes: what stands between the values of events that came before. Agents send the same shape again and again, so an event is
//! first compared with what is known, and only its values are read; what differs in anything but its values is parsed in full, and
//! learnt.
//!
//! Shapes are kept as a tree of steps. A step is the text from the end of one value to the start of the next: punctuation and keys,
//! byte for byte as they were sent. Texts that begin alike share their steps:
//!
//! ```text
//! {"a": ── ,"b": ── ,"c": ── }        {"a":1,"b":"x","c":true}
//!             └──── }                 {"a":2,"b":"y"}
//! ```
//!
//! Only texts that the parser took are learnt, and a value is taken only where a scalar stood before. So what matches is valid JSON of the
//! same structure, and its columns are those that the parser and the walk would have given: a test compares the two.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use simd_json::Node as TapeNode;

use super::names::{FieldId, Names, Node, ROOT};
use super::scalar::{Unescaped, scalar_at, scalars_of};
use super::walk::{Cell, CellValue, Walked, after, atom};
use crate::column::Atom;

/// Values of a shape. A longer event is parsed in full.
const VALUES_MAX: usize = 1_024;
/// Steps after one step that are tried one after the other: with more, trying them costs more than parsing.
const NEXT_MAX: usize = 24;
/// With so many of these, further steps are looked up by the first key in their text instead, of which there may be so many.
const TRIED_MAX: usize = 6;
const BY_KEY_MAX: usize = 4_096;
/// Bytes of all steps, and cells and items of all shapes, for each step that there may be.
const STEP_BYTES: usize = 64;
const STEP_PLACES: usize = 4;
/// What a match is worth, what a miss costs, and how far the balance goes; below zero, so many events are parsed without a look.
const HIT_CREDIT: i32 = 1;
const MISS_DEBIT: i32 = 3;
const CREDIT_MAX: i32 = 64;
const PAUSE_EVENTS: u32 = 256;

/// The text before a value, and what may come after the value.
#[derive(Debug)]
struct Step {
    /// Where its text is among all texts.
    start: u32,
    end: u32,
    /// The likeliest first.
    next: Vec<u32>,
    /// Further ones, with the hash of their text up to the end of its first key.
    by_key: Option<Box<HashTable<(u64, u32)>>>,
    /// The shape that this step ends.
    shape: Option<u32>,
}

/// Where the values of a shape go.
#[derive(Debug)]
pub(super) struct Shape {
    cells: Box<[(FieldId, Place)]>,
    /// By place in [`Walked::items`]: the number of the value.
    items: Box<[Option<u32>]>,
    /// By value: whether it is the first of a list. A list that begins with null may be none, or come later in the event.
    leads: Box<[bool]>,
    /// The column `_rest` of every such event: what has no column and no value in it either, as `{}`.
    rest: Option<Arc<str>>,
    /// The generation of the layouts, and the number of this one.
    layout: Option<(u64, usize)>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// The value of this number.
    Value(u32),
    /// A range of items.
    List { start: u32, len: u32 },
}

/// An event that matched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matched {
    shape: usize,
    /// The place after the event.
    pub(super) end: usize,
}

/// All shapes that a decoder remembers.
#[derive(Debug)]
pub(super) struct Shapes {
    steps: Vec<Step>,
    texts: Vec<u8>,
    shapes: Vec<Shape>,
    /// Cells and items of all shapes.
    places: usize,
    /// Whether a shape was not learnt for want of room.
    full: bool,
    steps_max: usize,
    credit: i32,
    pause: u32,
    /// Keys are chosen by strangers, who must not be able to make them collide.
    hasher: DefaultHashBuilder,
}

impl Shapes {
    /// None, with room for `steps_max` steps. With 0, every event is parsed in full.
    pub(super) fn new(steps_max: usize) -> Self {
        let root = Step { start: 0, end: 0, next: Vec::new(), by_key: None, shape: None };
        Self {
            steps: vec![root],
            texts: Vec::new(),
            shapes: Vec::new(),
            places: 0,
            full: false,
            steps_max,
            credit: CREDIT_MAX,
            pause: 0,
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Forgets all shapes.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.steps_max);
    }

    /// Whether there is no room for more.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether events are to be parsed one by one, so that their shapes are learnt.
    pub(super) fn is_learning(&self) -> bool {
        self.steps_max > 0 && !self.full && self.pause == 0
    }

    /// Whether there is any use in a look: not while most events are of shapes that are not known.
    #[inline]
    pub(super) fn is_worthwhile(&mut self) -> bool {
        if self.pause == 0 {
            return !self.shapes.is_empty();
        }
        self.pause -= 1;
        false
    }

    /// Compares the event at `at` with the known shapes; its values are put into `values`, and those that had escapes into
    /// `unescaped`, which are empty.
    #[inline]
    pub(super) fn read<'t>(
        &mut self,
        text: &'t str,
        mut at: usize,
        values: &mut Vec<Atom<'t>>,
        unescaped: &mut Unescaped,
    ) -> Option<Matched> {
        let mut step = 0;
        loop {
            let (next, end) = self.follow(step, text.as_bytes(), at)?;
            if let Some(shape) = self.steps.get(next)?.shape {
                return Some(Matched { shape: shape as usize, end });
            }
            at = scalar_at(text, end, values, unescaped)?;
            step = next;
        }
    }

    /// The step after `step` whose text stands at `at`, and the place after it.
    #[inline]
    fn follow(&mut self, step: usize, bytes: &[u8], at: usize) -> Option<(usize, usize)> {
        let rest = bytes.get(at..)?;
        let known = self.steps.get(step)?;
        for (place, next) in known.next.iter().enumerate() {
            let next = *next as usize;
            if let Some(length) = self.stands(next, rest) {
                if place > 0 {
                    self.steps.get_mut(step)?.next.swap(0, place);
                }
                return Some((next, at + length));
            }
        }
        let by_key = known.by_key.as_ref()?;
        let hash = self.hasher.hash_one(first_key(rest)?);
        let (_, next) = by_key.find(hash, |(of, next)| *of == hash && self.stands(*next as usize, rest).is_some())?;
        let next = *next as usize;
        Some((next, at + self.stands(next, rest)?))
    }

    /// The length of a step's text, if it stands here.
    #[inline]
    fn stands(&self, step: usize, rest: &[u8]) -> Option<usize> {
        let Step { start, end, shape, .. } = *self.steps.get(step)?;
        let text = self.texts.get(start as usize..end as usize)?;
        // One step may begin as another does: `,"a":` of `,"a":null` and `,"a":{"b":`.
        let scalar = || shape.is_some() || !matches!(rest.get(text.len()), Some(b'{' | b'[' | b' '));
        (begins_with(rest, text) && scalar()).then_some(text.len())
    }

    /// Notes whether a look helped.
    #[inline]
    pub(super) fn note(&mut self, hit: bool) {
        self.credit = (self.credit + if hit { HIT_CREDIT } else { -MISS_DEBIT }).min(CREDIT_MAX);
        if self.credit < 0 {
            (self.credit, self.pause) = (CREDIT_MAX / 4, PAUSE_EVENTS);
        }
    }

    /// The layout of a shape whose event has no null, if it is known.
    #[inline]
    pub(super) fn layout(&self, matched: Matched, generation: u64) -> Option<usize> {
        let (of, layout) = self.shapes.get(matched.shape)?.layout?;
        (of == generation).then_some(layout)
    }

    /// Remembers the layout of a shape whose event has no null.
    pub(super) fn set_layout(&mut self, matched: Matched, generation: u64, layout: usize) {
        if let Some(shape) = self.shapes.get_mut(matched.shape) {
            shape.layout = Some((generation, layout));
        }
    }

    /// What is in the column `_rest`.
    #[inline]
    pub(super) fn rest(&self, matched: Matched) -> Option<Arc<str>> {
        self.shapes.get(matched.shape)?.rest.clone()
    }

    /// Puts the values where the shape wants them: what a walk would have found. Says how many fields are null; `None` when a list
    /// begins with null.
    #[inline]
    pub(super) fn place<'t>(&self, matched: Matched, values: &[Atom<'t>], into: &mut Walked<'t>) -> Option<usize> {
        let shape = self.shapes.get(matched.shape)?;
        let mut nulls = 0;
        for (value, leads) in values.iter().zip(&shape.leads) {
            if *leads && matches!(value, Atom::Null) {
                return None;
            }
        }
        for (field, place) in &shape.cells {
            let value = match *place {
                Place::Value(value) => {
                    let atom = values.get(value as usize)?;
                    if matches!(atom, Atom::Null) {
                        nulls += 1;
                        continue;
                    }
                    CellValue::Atom(*atom)
                }
                Place::List { start, len } => CellValue::List { start, len },
            };
            into.cells.push(Cell { field: *field, at: 0, value });
        }
        for item in &shape.items {
            into.items.push(match item {
                Some(value) => *values.get(*value as usize)?,
                None => Atom::Null,
            });
        }
        Some(nulls)
    }

    /// Learns the shape of an event that was parsed, if it is one whose columns follow from its keys alone: `walked` is what the walk
    /// found, which has no key twice, and `rest` the text of its rest. `fields_max` are the most cells of an event.
    #[cold]
    pub(super) fn learn(
        &mut self,
        (text, tape): (&[u8], &[TapeNode<'_>]),
        names: &mut Names,
        (walked, rest): (&Walked<'_>, &str),
        fields_max: usize,
    ) {
        // Over several lines, where an event ends depends on more than its text.
        if !self.is_learning() || text.contains(&b'\n') || text.len() > self.steps_max.saturating_mul(STEP_BYTES) {
            return;
        }
        let values = scalars_of(text);
        if values.is_empty() || values.len() > VALUES_MAX {
            return;
        }
        let mut template = Template {
            names,
            tape,
            fields_max,
            values: 0,
            cells: Vec::new(),
            items: Vec::new(),
            leads: Vec::new(),
            nulls: Vec::new(),
        };
        if template.object(0, ROOT, None).is_none() || template.values as usize != values.len() {
            return;
        }
        let Template { cells, items, leads, nulls, .. } = template;
        let found = cells.iter().map(|(field, _)| *field).filter(|field| !nulls.contains(field));
        let same = found.eq(walked.cells.iter().map(|cell| cell.field));
        if !same || !walked.rest.iter().all(|rest| is_bare(tape, rest.at)) {
            return;
        }
        let rest = if rest.is_empty() { None } else { Some(rest.into()) };
        let shape = Shape { cells: cells.into(), items: items.into(), leads: leads.into(), rest, layout: None };
        let starts = values.iter().map(|value| value.end);
        let ends = values.iter().map(|value| value.start);
        let between = std::iter::once(0).chain(starts).zip(ends.chain(std::iter::once(text.len())));
        let mut step = 0;
        for (start, end) in between {
            match self.step_to(step, text.get(start..end).unwrap_or_default()) {
                Some(next) => step = next,
                None => return,
            }
        }
        let places = shape.cells.len() + shape.items.len() + shape.rest.as_ref().map_or(0, |rest| rest.len());
        if self.places + places > self.steps_max.saturating_mul(STEP_PLACES) {
            self.full = true;
            return;
        }
        let number = self.shapes.len() as u32;
        let is_end = |last: &&mut Step| last.next.is_empty() && last.by_key.is_none() && last.shape.is_none();
        if let Some(last) = self.steps.get_mut(step).filter(is_end) {
            last.shape = Some(number);
            self.places += places;
            self.shapes.push(shape);
        }
    }

    /// The step of this text after `step`, which is made when there is none and there is room.
    fn step_to(&mut self, step: usize, text: &[u8]) -> Option<usize> {
        let known = self.steps.get(step)?;
        let text_of = |next: u32| {
            let next = self.steps.get(next as usize);
            next.and_then(|next| self.texts.get(next.start as usize..next.end as usize))
        };
        if let Some(next) = known.next.iter().find(|next| text_of(**next) == Some(text)) {
            return Some(*next as usize);
        }
        let hash = first_key(text).map(|key| self.hasher.hash_one(key));
        if let (Some(by_key), Some(hash)) = (&known.by_key, hash)
            && let Some((_, next)) = by_key.find(hash, |(of, next)| *of == hash && text_of(*next) == Some(text))
        {
            return Some(*next as usize);
        }
        let hash = hash.filter(|_| known.next.len() >= TRIED_MAX);
        let full = match hash {
            Some(_) => known.by_key.as_ref().is_some_and(|by_key| by_key.len() >= BY_KEY_MAX),
            None => known.next.len() >= NEXT_MAX,
        };
        if full || known.shape.is_some() {
            return None;
        }
        let bytes = self.texts.len() + text.len();
        if self.steps.len() >= self.steps_max || bytes > self.steps_max.saturating_mul(STEP_BYTES) {
            self.full = true;
            return None;
        }
        let next = self.steps.len();
        let start = u32::try_from(self.texts.len()).ok()?;
        self.texts.extend_from_slice(text);
        let end = u32::try_from(self.texts.len()).ok()?;
        let number = u32::try_from(next).ok()?;
        self.steps.push(Step { start, end, next: Vec::new(), by_key: None, shape: None });
        let known = self.steps.get_mut(step)?;
        match hash {
            Some(hash) => {
                known.by_key.get_or_insert_default().insert_unique(hash, (hash, number), |(hash, _)| *hash);
            }
            None => known.next.push(number),
        }
        Some(next)
    }
}

/// A text up to the second quotation mark in it: what stands between two values up to the end of its first key. `None` when there is no key.
#[inline]
fn first_key(text: &[u8]) -> Option<&[u8]> {
    let mut marks = memchr::memchr_iter(b'"', text);
    marks.next()?;
    text.get(..=marks.next()?)
}

/// `starts_with` for texts of a few bytes: eight at a time here, in the place of a call that works out how to compare them.
#[inline]
fn begins_with(bytes: &[u8], text: &[u8]) -> bool {
    let Some(bytes) = bytes.get(..text.len()) else { return false };
    let ((words, rest), (others, _)) = (text.as_chunks::<8>(), bytes.as_chunks::<8>());
    if !words.iter().zip(others).all(|(word, other)| word == other) {
        return false;
    }
    if rest.is_empty() {
        return true;
    }
    match (text.last_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(word), Some(other)) => word == other,
        _ => text.iter().zip(bytes).all(|(byte, other)| byte == other),
    }
}

/// Whether there is no scalar in the value at `at`.
fn is_bare(tape: &[TapeNode<'_>], at: usize) -> bool {
    let value = tape.get(at..after(tape, at)).unwrap_or_default();
    value.iter().all(|node| matches!(node, TapeNode::Object { .. } | TapeNode::Array { .. }))
}

/// A shape while it is worked out: the same way through the tape as [`super::walk`], with numbers of values instead of values.
struct Template<'w, 't> {
    names: &'w mut Names,
    tape: &'w [TapeNode<'t>],
    fields_max: usize,
    values: u32,
    cells: Vec<(FieldId, Place)>,
    items: Vec<Option<u32>>,
    leads: Vec<bool>,
    /// Fields that are null.
    nulls: Vec<FieldId>,
}

/// An element of an array of objects: which of how many, and the first cell of the array.
type Element = (u32, u32, usize);

impl Template<'_, '_> {
    /// `None` when the columns of such an object depend on more than its keys, or some of it has no column.
    fn object(&mut self, start: usize, parent: Node, element: Option<Element>) -> Option<()> {
        let TapeNode::Object { len, .. } = self.tape.get(start)? else { return None };
        let mut at = start + 1;
        for _ in 0..*len {
            let TapeNode::String(key) = self.tape.get(at)? else { return None };
            let node = self.names.find(parent, key)?;
            self.value(at + 1, node, element)?;
            at = after(self.tape, at + 1);
        }
        Some(())
    }

    fn value(&mut self, at: usize, node: Node, element: Option<Element>) -> Option<()> {
        let tape_node = self.tape.get(at)?;
        match (atom(tape_node), tape_node, element) {
            (Some(atom), _, Some(element)) => self.element(node, atom == Atom::Null, element),
            (Some(atom), _, None) => {
                let field = self.new_field(node)?;
                let value = self.next_value(false);
                self.cells.push((field, Place::Value(value)));
                self.nulls.extend((atom == Atom::Null).then_some(field));
                Some(())
            }
            // To the rest.
            (None, TapeNode::Object { len: 0, .. } | TapeNode::Array { len: 0, .. }, _) => Some(()),
            (None, TapeNode::Object { .. }, _) => self.object(at, node, element),
            (None, TapeNode::Array { .. }, None) => self.array(at, node),
            _ => None,
        }
    }

    fn array(&mut self, at: usize, node: Node) -> Option<()> {
        let TapeNode::Array { len, .. } = self.tape.get(at)? else { return None };
        let count = u32::try_from(*len).ok().filter(|count| (*count as usize) < VALUES_MAX)?;
        let mut item = at + 1;
        if matches!(self.tape.get(item)?, TapeNode::Object { .. }) {
            let first = self.cells.len();
            for index in 0..count {
                self.object(item, node, Some((index, count, first)))?;
                item = after(self.tape, item);
            }
            // Of objects without a value the whole array would be kept.
            return (self.cells.len() > first).then_some(());
        }
        let field = self.new_field(node)?;
        let start = u32::try_from(self.items.len()).ok()?;
        for index in 0..count {
            let atom = atom(self.tape.get(item)?)?;
            let leads = index == 0;
            (!leads || atom != Atom::Null).then_some(())?;
            let value = self.next_value(leads);
            self.items.push(Some(value));
            item += 1;
        }
        self.cells.push((field, Place::List { start, len: count }));
        Some(())
    }

    /// A scalar inside an array of objects.
    fn element(&mut self, node: Node, is_null: bool, (index, count, first): Element) -> Option<()> {
        let field = self.names.field_of(node);
        let known = self.cells.iter().position(|(known, _)| *known == field);
        let start = match known {
            Some(at) if at >= first => match self.cells.get(at)?.1 {
                Place::List { start, .. } => start as usize,
                Place::Value(_) => return None,
            },
            Some(_) => return None,
            None if is_null => return None,
            None => {
                let field = self.new_field(node)?;
                let start = self.items.len();
                if start + count as usize > VALUES_MAX * 4 {
                    return None;
                }
                self.items.resize(start + count as usize, None);
                self.cells.push((field, Place::List { start: u32::try_from(start).ok()?, len: count }));
                start
            }
        };
        let value = self.next_value(known.is_none());
        let slot = self.items.get_mut(start + index as usize)?;
        slot.replace(value).is_none().then_some(())
    }

    /// The field of a node, unless the event has it already (two paths may have one name), or has too many.
    fn new_field(&mut self, node: Node) -> Option<FieldId> {
        let field = self.names.field_of(node);
        let taken = self.cells.len() >= self.fields_max || self.cells.iter().any(|(known, _)| *known == field);
        (!taken).then_some(field)
    }

    fn next_value(&mut self, leads: bool) -> u32 {
        self.leads.push(leads);
        self.values += 1;
        self.values - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_those_of_the_library() {
        let text: Vec<u8> = (0..40).collect();
        for len in 0..text.len() {
            for changed in 0..text.len() {
                let mut other = text.clone();
                other[changed] ^= 1;
                let begin = &text[..len];
                assert_eq!(begins_with(&other, begin), other.starts_with(begin), "{len} bytes, {changed} changed");
            }
            assert!(begins_with(&text[..len], &text[..len]) && !begins_with(&text[..len], &text[..len + 1]));
        }
    }
}
