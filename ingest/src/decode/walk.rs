//! From the tape of one event to its cells: one for each field that is there, in the order of the text.

use std::collections::HashMap;

use simd_json::{Node as TapeNode, StaticNode};

use super::names::{FieldId, NONE, Names, Node, ROOT};
use crate::column::Atom;

/// The value of one field of one event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'t> {
    pub(super) field: FieldId,
    /// Where the value stands on the tape.
    pub(super) at: u32,
    pub(super) value: CellValue<'t>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum CellValue<'t> {
    Atom(Atom<'t>),
    /// A range of [`Walked::items`].
    List {
        start: u32,
        len: u32,
    },
}

/// A value that gets no column.
#[derive(Debug, Clone)]
pub(super) struct Rest {
    /// The dotted name under which it is kept.
    pub(super) name: String,
    /// Where it stands on the tape.
    pub(super) at: usize,
    /// Inside an array of objects: which element of how many.
    pub(super) element: Option<(u32, u32)>,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walked<'t> {
    pub(super) cells: Vec<Cell<'t>>,
    pub(super) items: Vec<Atom<'t>>,
    pub(super) rest: Vec<Rest>,
    /// Keys that came twice in one object.
    pub(super) duplicate_keys: usize,
}

impl Walked<'_> {
    /// The same buffers, empty, for another event.
    #[expect(clippy::unnecessary_filter_map, reason = "it changes the lifetime, which a filter cannot")]
    pub(super) fn recycle<'b>(mut self) -> Walked<'b> {
        self.cells.clear();
        self.items.clear();
        self.rest.clear();
        Walked {
            // Collecting an emptied vector into one of the same size of item keeps the allocation.
            cells: self.cells.into_iter().filter_map(|_| None).collect(),
            items: self.items.into_iter().filter_map(|_| None).collect(),
            rest: self.rest,
            duplicate_keys: 0,
        }
    }
}

/// The bounds of a walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct WalkBounds {
    pub(super) fields_max: usize,
    pub(super) name_bytes_max: usize,
    /// How many keys may be learnt.
    pub(super) new_keys_max: usize,
}

/// A list that is padded with nulls may hold this many elements in one event, in all its fields together: beyond it the array
/// is kept as JSON text. It keeps `[{"a1":1},{"a2":1},…]` from growing with the square of its length.
const PADDED_ITEMS_MAX: usize = 1 << 16;

/// An element of an array of objects.
#[derive(Debug, Clone, Copy)]
struct Element {
    index: u32,
    count: u32,
    /// The first cell of the array.
    first_cell: usize,
}

/// What is remembered from event to event.
#[derive(Debug)]
pub(super) struct Walker {
    pub(super) names: Names,
    /// By field: the event in which it was last seen, and its cell there.
    seen: Vec<(u64, u32)>,
    objects: u64,
    events: u64,
}

struct Walk<'w, 't> {
    names: &'w mut Names,
    seen: &'w mut Vec<(u64, u32)>,
    objects: &'w mut u64,
    event: u64,
    bounds: WalkBounds,
    new_keys: usize,
    tape: &'w [TapeNode<'t>],
    out: &'w mut Walked<'t>,
    padded: usize,
    /// Values of keys that a later key of the same name overrides, by place on the tape, ascending.
    skip: Vec<usize>,
    duplicates: bool,
}

impl Walker {
    pub(super) fn new(seed: u64) -> Self {
        Self { names: Names::new(seed), seen: Vec::new(), objects: 0, events: 0 }
    }

    /// Walks the object at the start of `tape` into `out`, which is empty; says how many new keys were learnt.
    pub(super) fn walk<'t>(&mut self, tape: &[TapeNode<'t>], bounds: WalkBounds, out: &mut Walked<'t>) -> usize {
        let mut new_keys = 0;
        let mut skip = Vec::new();
        loop {
            self.events += 1;
            let mut walk = Walk {
                names: &mut self.names,
                seen: &mut self.seen,
                objects: &mut self.objects,
                event: self.events,
                bounds,
                new_keys,
                tape,
                out,
                padded: 0,
                skip,
                duplicates: false,
            };
            walk.object(0, ROOT, None);
            new_keys = walk.new_keys;
            if !walk.duplicates {
                return new_keys;
            }
            // Rare: find what is overridden, and walk again without it.
            skip = overridden(tape);
            out.cells.clear();
            out.items.clear();
            out.rest.clear();
            out.duplicate_keys = skip.len();
        }
    }
}

/// The values whose key comes again later in the same object, by place on the tape, ascending.
fn overridden(tape: &[TapeNode<'_>]) -> Vec<usize> {
    let mut skip = Vec::new();
    for (start, node) in tape.iter().enumerate() {
        let TapeNode::Object { len, .. } = node else { continue };
        let mut last: HashMap<&str, usize> = HashMap::with_capacity(*len);
        let mut at = start + 1;
        for _ in 0..*len {
            if let Some(TapeNode::String(key)) = tape.get(at)
                && let Some(before) = last.insert(key, at + 1)
            {
                skip.push(before);
            }
            at = after(tape, at + 1);
        }
    }
    skip.sort_unstable();
    skip
}

/// The place after the value at `at`.
#[inline]
pub(super) fn after(tape: &[TapeNode<'_>], at: usize) -> usize {
    match tape.get(at) {
        Some(TapeNode::Object { count, .. } | TapeNode::Array { count, .. }) => at + count + 1,
        _ => at + 1,
    }
}

/// The scalar at a node; `None` for objects and arrays.
pub(super) fn atom<'t>(node: &TapeNode<'t>) -> Option<Atom<'t>> {
    Some(match node {
        TapeNode::String(text) => Atom::Text(text),
        TapeNode::Static(StaticNode::Null) => Atom::Null,
        TapeNode::Static(StaticNode::Bool(value)) => Atom::Bool(*value),
        TapeNode::Static(StaticNode::I64(value)) => Atom::Int(*value),
        TapeNode::Static(StaticNode::U64(value)) => i64::try_from(*value).map_or(Atom::Big(*value), Atom::Int),
        TapeNode::Static(StaticNode::F64(value)) => Atom::Float(*value),
        TapeNode::Object { .. } | TapeNode::Array { .. } => return None,
    })
}

impl<'t> Walk<'_, 't> {
    /// The object at `start`, whose keys lie below `parent`.
    fn object(&mut self, start: usize, parent: Node, element: Option<Element>) {
        let Some(TapeNode::Object { len, .. }) = self.tape.get(start) else { return };
        *self.objects += 1;
        let object = *self.objects;
        let mut at = start + 1;
        let mut before = NONE;
        let mut expected = self.names.expect_first(parent);
        for _ in 0..*len {
            let Some(TapeNode::String(key)) = self.tape.get(at) else { return };
            let value = at + 1;
            at = after(self.tape, value);
            let node = if self.names.is_expected(expected, key) {
                expected
            } else {
                match self.key(parent, before, key) {
                    Some(node) => node,
                    None => {
                        self.nameless(parent, key, value, element);
                        continue;
                    }
                }
            };
            before = node;
            expected = self.names.expect_after(node);
            if !self.skip.is_empty() && self.skip.binary_search(&value).is_ok() {
                continue;
            }
            self.duplicates |= self.names.mark(node, object);
            self.value(value, node, element);
        }
    }

    /// The node of a key that was not the expected one.
    fn key(&mut self, parent: Node, before: Node, key: &str) -> Option<Node> {
        let node = match self.names.find(parent, key) {
            Some(node) => node,
            None if self.new_keys >= self.bounds.new_keys_max => return None,
            None => {
                let node = self.names.insert(parent, key, self.bounds.name_bytes_max)?;
                self.new_keys += 1;
                node
            }
        };
        self.names.learn(parent, before, node);
        Some(node)
    }

    #[inline]
    fn value(&mut self, at: usize, node: Node, element: Option<Element>) {
        let Some(tape_node) = self.tape.get(at) else { return };
        match atom(tape_node) {
            Some(Atom::Null) => {}
            Some(atom) => self.scalar(at, node, atom, element),
            None => match tape_node {
                TapeNode::Object { len: 0, .. } => self.rest(self.names.path(node), at, element),
                TapeNode::Object { .. } => self.object(at, node, element),
                _ if element.is_some() => self.rest(self.names.path(node), at, element),
                _ => self.array(at, node),
            },
        }
    }

    #[inline]
    fn scalar(&mut self, at: usize, node: Node, atom: Atom<'t>, element: Option<Element>) {
        if let Some(element) = element {
            return self.element(at, node, atom, element);
        }
        let field = self.names.field_of(node);
        if self.known_cell(field).is_none() && self.out.cells.len() < self.bounds.fields_max {
            self.push_cell(field, at, CellValue::Atom(atom));
        } else {
            self.rest(self.names.path(node), at, None);
        }
    }

    /// The cell of `field` in this event.
    #[inline]
    fn known_cell(&mut self, field: FieldId) -> Option<usize> {
        let field_at = field as usize;
        if field_at >= self.seen.len() {
            self.seen.resize(field_at + 1, (0, 0));
        }
        let (event, cell) = self.seen.get(field_at).copied()?;
        let cell = cell as usize;
        // The cell may have been taken back with the array that it belonged to.
        (event == self.event && self.out.cells.get(cell).is_some_and(|cell| cell.field == field)).then_some(cell)
    }

    #[inline]
    fn push_cell(&mut self, field: FieldId, at: usize, value: CellValue<'t>) {
        if let Some(seen) = self.seen.get_mut(field as usize) {
            *seen = (self.event, self.out.cells.len() as u32);
        }
        self.out.cells.push(Cell { field, at: at as u32, value });
    }

    /// A scalar inside an array of objects.
    fn element(&mut self, at: usize, node: Node, atom: Atom<'t>, element: Element) {
        let field = self.names.field_of(node);
        let known = self.known_cell(field);
        let start = match known {
            None if self.out.cells.len() < self.bounds.fields_max => {
                let start = self.out.items.len();
                self.padded += element.count as usize;
                if self.padded > PADDED_ITEMS_MAX {
                    return;
                }
                self.out.items.resize(start + element.count as usize, Atom::Null);
                self.push_cell(field, at, CellValue::List { start: start as u32, len: element.count });
                Some(start)
            }
            Some(cell) if cell >= element.first_cell => match self.out.cells.get(cell).map(|cell| cell.value) {
                Some(CellValue::List { start, .. }) => Some(start as usize),
                _ => None,
            },
            _ => None,
        };
        let slot = start.and_then(|start| self.out.items.get_mut(start + element.index as usize));
        match slot {
            Some(slot) if *slot == Atom::Null => *slot = atom,
            _ => self.rest(self.names.path(node), at, Some(element)),
        }
    }

    fn array(&mut self, at: usize, node: Node) {
        let Some(TapeNode::Array { len, .. }) = self.tape.get(at) else { return };
        let (len, mut scalars, mut objects, mut arrays) = (*len, 0, 0, 0);
        let mut item = at + 1;
        for _ in 0..len {
            match self.tape.get(item) {
                Some(TapeNode::Object { .. }) => objects += 1,
                Some(TapeNode::Array { .. }) => arrays += 1,
                Some(TapeNode::Static(StaticNode::Null)) => {}
                _ => scalars += 1,
            }
            item = after(self.tape, item);
        }
        match (scalars > 0, objects > 0, arrays > 0) {
            (true, false, false) => self.scalars(at, len, node),
            (false, true, false) => self.objects(at, len, node),
            _ => self.rest(self.names.path(node), at, None),
        }
    }

    fn scalars(&mut self, at: usize, len: usize, node: Node) {
        let field = self.names.field_of(node);
        if self.known_cell(field).is_some() || self.out.cells.len() >= self.bounds.fields_max {
            return self.rest(self.names.path(node), at, None);
        }
        let start = self.out.items.len();
        let tape = self.tape;
        self.out.items.extend(tape.iter().skip(at + 1).take(len).filter_map(atom));
        self.push_cell(field, at, CellValue::List { start: start as u32, len: len as u32 });
    }

    fn objects(&mut self, at: usize, len: usize, node: Node) {
        let marks = (self.out.cells.len(), self.out.items.len(), self.out.rest.len());
        let mut item = at + 1;
        for index in 0..len as u32 {
            let element = Element { index, count: len as u32, first_cell: marks.0 };
            self.object(item, node, Some(element));
            item = after(self.tape, item);
            if self.padded > PADDED_ITEMS_MAX {
                self.out.cells.truncate(marks.0);
                self.out.items.truncate(marks.1);
                self.out.rest.truncate(marks.2);
                break;
            }
        }
        if self.out.cells.len() == marks.0 && self.out.rest.len() == marks.2 {
            self.rest(self.names.path(node), at, None);
        }
    }

    #[cold]
    fn nameless(&mut self, parent: Node, key: &str, at: usize, element: Option<Element>) {
        if !matches!(self.tape.get(at), Some(TapeNode::Static(StaticNode::Null))) {
            self.rest(self.names.path_of_key(parent, key), at, element);
        }
    }

    #[cold]
    fn rest(&mut self, name: String, at: usize, element: Option<Element>) {
        self.padded += element.map_or(0, |element| element.count as usize);
        if self.padded > PADDED_ITEMS_MAX && element.is_some() {
            return;
        }
        self.out.rest.push(Rest { name, at, element: element.map(|element| (element.index, element.count)) });
    }
}
