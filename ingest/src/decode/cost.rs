//! What cost rows need beside the tape: the text of every number, since money must not pass through a float, and the members of
//! FOCUS's JSON columns as fields of their own.

use std::ops::Range;

use simd_json::Node as TapeNode;
use tidegate_events::focus::{self, FocusKind};

use super::json::{JsonParser, KEPT_NODES_MAX, Parsed, number_at};
use super::scan::value_end;
use super::walk::after;

/// Rebuilds the tape of one cost row at a time.
pub(super) struct CostRow {
    /// FOCUS's JSON columns: the name in FOCUS, and in snake case.
    columns: Vec<(&'static str, &'static str)>,
    /// One for each JSON column that a row may have.
    parsers: [JsonParser; 2],
    /// The vectors of the row before, for their allocation.
    places: Vec<u32>,
    nodes: Vec<TapeNode<'static>>,
    node_places: Vec<u32>,
}

/// Where the numbers of a row stand in its text, which says more of them than a float can.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers<'t> {
    text: &'t [u8],
    /// By place on the tape.
    places: &'t [u32],
}

/// The place of a node that is not in the row's text.
const NOWHERE: u32 = u32::MAX;

impl<'t> Numbers<'t> {
    /// Of a row whose numbers are all known exactly.
    pub(super) const NONE: Self = Numbers { text: &[], places: &[] };

    /// The number at this place of the tape as it was sent; `None` for other values.
    pub(super) fn at(&self, node: usize) -> Option<&'t str> {
        let place = *self.places.get(node)? as usize;
        match self.text.get(place)? {
            b'-' | b'0'..=b'9' => std::str::from_utf8(number_at(self.text, place)).ok(),
            _ => None,
        }
    }
}

struct Rebuilt<'p> {
    nodes: Vec<TapeNode<'p>>,
    places: Vec<u32>,
    members: usize,
}

impl CostRow {
    pub(super) fn new(depth_max: usize) -> Self {
        let json = focus::columns().iter().filter(|column| column.kind == FocusKind::Json);
        Self {
            columns: json.filter_map(|column| Some((*column.focus_names.first()?, column.name))).collect(),
            parsers: [JsonParser::new(depth_max), JsonParser::new(depth_max)],
            places: Vec::new(),
            nodes: Vec::new(),
            node_places: Vec::new(),
        }
    }

    /// Gives back the memory that an unusually long row took.
    pub(super) fn shrink(&mut self) {
        self.parsers.iter_mut().for_each(JsonParser::shrink);
        self.places.clear();
        self.places.shrink_to(KEPT_NODES_MAX);
        self.nodes.shrink_to(KEPT_NODES_MAX);
        self.node_places.clear();
        self.node_places.shrink_to(KEPT_NODES_MAX);
    }

    /// Gives `then` the tape of a row with the members of its JSON columns added under their snake case names (`tags.team`), and
    /// where its numbers stand.
    pub(super) fn row(&mut self, parsed: &Parsed<'_>, then: impl FnOnce(&[TapeNode<'_>], Numbers<'_>)) {
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        // Every structural character but those that close or part is where a node stands.
        let is_node = |at: &&u32| !matches!(parsed.text.get(**at as usize), None | Some(b',' | b':' | b'}' | b']'));
        places.extend(parsed.structurals.iter().filter(is_node));
        self.expand(&parsed.tape.0, (parsed.text, &places), then);
        self.places = places;
    }

    /// The same for a tape that was made of something other than JSON, whose values are all text.
    pub(super) fn text_row(&mut self, tape: &[TapeNode<'_>], then: impl FnOnce(&[TapeNode<'_>], Numbers<'_>)) {
        self.expand(tape, (&[], &[]), then);
    }

    fn expand<'p>(
        &mut self,
        tape: &[TapeNode<'p>],
        (text, places): (&'p [u8], &[u32]),
        then: impl FnOnce(&[TapeNode<'_>], Numbers<'_>),
    ) {
        let mut nodes = recycle(std::mem::take(&mut self.nodes));
        nodes.push(TapeNode::Object { len: 0, count: 0 });
        let mut out = Rebuilt { nodes, places: std::mem::take(&mut self.node_places), members: 0 };
        out.places.clear();
        out.places.push(NOWHERE);
        let mut parsers = self.parsers.each_mut().map(Some);
        let mut used = Vec::new();
        // From here on, members are to be copied as they are.
        let (mut from, mut at) = (1, 1);
        while let Some(TapeNode::String(key)) = tape.get(at) {
            let (value, next) = (at + 1, after(tape, at + 1));
            let known = self.columns.iter().position(|(focus_name, name)| key == focus_name || key == name);
            // Exports that went through CSV say that a value is absent in words.
            let absent = matches!(tape.get(value), Some(TapeNode::String("" | "NULL")));
            if absent {
                out.copy(tape, places, from..at);
                from = next;
            } else if let Some(known) = known
                && let Some((focus_name, name)) = self.columns.get(known)
                && let Some(parser) = parsers.get_mut(known).and_then(Option::take)
            {
                out.copy(tape, places, from..at);
                from = at;
                match tape.get(value) {
                    Some(TapeNode::String(of)) => {
                        out.member(focus_name, TapeNode::String(of));
                        from = next;
                        // Text that is no JSON object stays text.
                        if let Ok(parsed) = parser.parse(of.as_bytes()) {
                            let all = 0..parsed.tape.0.len();
                            out.object(name, &parsed.tape.0, &[], all);
                            used.push(parsed);
                        }
                    }
                    Some(TapeNode::Object { .. }) => {
                        if let Some(whole) = object_text(text, places, value) {
                            out.member(focus_name, TapeNode::String(whole));
                            out.object(name, tape, places, value..next);
                            from = next;
                        }
                    }
                    _ => {}
                }
            }
            // A member that is left as it is counts where it is passed.
            out.members += usize::from(from <= at);
            at = next;
        }
        out.copy(tape, places, from..at);
        let count = out.nodes.len() - 1;
        if let Some(root) = out.nodes.first_mut() {
            *root = TapeNode::Object { len: out.members, count };
        }
        then(&out.nodes, Numbers { text, places: &out.places });
        self.nodes = recycle(out.nodes);
        self.node_places = out.places;
    }
}

impl<'p> Rebuilt<'p> {
    fn push(&mut self, node: TapeNode<'p>) {
        self.nodes.push(node);
        self.places.push(NOWHERE);
    }

    fn member(&mut self, key: &'p str, value: TapeNode<'p>) {
        self.push(TapeNode::String(key));
        self.push(value);
        self.members += 1;
    }

    /// The object that the nodes of `range` are as a member of this name, unless it is empty, or no object.
    fn object(&mut self, key: &'p str, tape: &[TapeNode<'p>], places: &[u32], range: Range<usize>) {
        if matches!(tape.get(range.start), Some(TapeNode::Object { len: 1.., .. })) {
            self.push(TapeNode::String(key));
            self.copy(tape, places, range);
            self.members += 1;
        }
    }

    fn copy(&mut self, tape: &[TapeNode<'p>], places: &[u32], range: Range<usize>) {
        self.nodes.extend_from_slice(tape.get(range.clone()).unwrap_or_default());
        self.places.extend_from_slice(places.get(range).unwrap_or_default());
        self.places.resize(self.nodes.len(), NOWHERE);
    }
}

/// The text of the object at this place of the tape.
fn object_text<'p>(text: &'p [u8], places: &[u32], at: usize) -> Option<&'p str> {
    let start = *places.get(at)? as usize;
    std::str::from_utf8(text.get(start..value_end(text, start)?)?).ok()
}

/// The same vector, empty, for the nodes of another row.
#[expect(clippy::unnecessary_filter_map, reason = "it changes the lifetime, which a filter cannot")]
fn recycle<'b>(mut nodes: Vec<TapeNode<'_>>) -> Vec<TapeNode<'b>> {
    nodes.clear();
    // Collecting an emptied vector into one of the same size of item keeps the allocation.
    nodes.into_iter().filter_map(|_| None).collect()
}
