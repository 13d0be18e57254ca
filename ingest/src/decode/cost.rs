//! What cost rows need beside the tape: the text of every number, since money must not pass through a float, and the members of
//! FOCUS's JSON columns as fields of their own.

use simd_json::Node as TapeNode;
use tidegate_events::focus::{self, FocusKind};

use super::json::{JsonParser, Parsed, number_at};
use super::scan::value_end;
use super::walk::after;

/// Rebuilds the tape of one cost row at a time.
pub(super) struct CostRow {
    /// One for each JSON column that a row may have.
    parsers: [JsonParser; 2],
}

/// FOCUS's JSON columns: the name in FOCUS, and in snake case.
fn json_columns() -> impl Iterator<Item = (&'static str, &'static str)> {
    let json = focus::columns().iter().filter(|column| column.kind == FocusKind::Json);
    json.filter_map(|column| Some((*column.focus_names.first()?, column.name)))
}

struct Rebuilt<'p> {
    nodes: Vec<TapeNode<'p>>,
    texts: Vec<&'p str>,
    members: usize,
}

impl<'p> Rebuilt<'p> {
    fn push(&mut self, node: TapeNode<'p>, text: &'p str) {
        self.nodes.push(node);
        self.texts.push(text);
    }

    fn copy(&mut self, nodes: &[TapeNode<'p>], texts: &[&'p str]) {
        self.nodes.extend_from_slice(nodes);
        let texts = texts.iter().copied().chain(std::iter::repeat("")).take(nodes.len());
        self.texts.extend(texts);
    }
}

impl CostRow {
    pub(super) fn new(depth_max: usize) -> Self {
        Self { parsers: [JsonParser::new(depth_max), JsonParser::new(depth_max)] }
    }

    /// Gives `then` the tape of a row with the members of its JSON columns added under their snake case names (`tags.team`), and
    /// by place on the tape the text of its numbers.
    pub(super) fn row(&mut self, parsed: &Parsed<'_>, then: impl FnOnce(&[TapeNode<'_>], &[&str])) {
        let places = places(parsed.text, parsed.structurals);
        let texts: Vec<&str> = places.iter().map(|at| number_text(parsed.text, *at as usize)).collect();
        let object_text = |at: usize| {
            let start = *places.get(at)? as usize;
            let text = parsed.text.get(start..value_end(parsed.text, start)?)?;
            std::str::from_utf8(text).ok()
        };
        self.expand(&parsed.tape.0, &texts, &object_text, then);
    }

    /// The same for a tape that was made of something other than JSON, whose values are all text.
    pub(super) fn text_row(&mut self, tape: &[TapeNode<'_>], then: impl FnOnce(&[TapeNode<'_>], &[&str])) {
        self.expand(tape, &[], &|_| None, then);
    }

    fn expand<'p>(
        &mut self,
        tape: &[TapeNode<'p>],
        texts: &[&'p str],
        object_text: &dyn Fn(usize) -> Option<&'p str>,
        then: impl FnOnce(&[TapeNode<'_>], &[&str]),
    ) {
        let mut out = Rebuilt { nodes: Vec::with_capacity(tape.len() + 16), texts: Vec::new(), members: 0 };
        out.push(TapeNode::Object { len: 0, count: 0 }, "");
        let mut parsers: Vec<Option<&mut JsonParser>> = self.parsers.iter_mut().map(Some).collect();
        let mut used = Vec::new();
        let mut at = 1;
        while let Some(TapeNode::String(key)) = tape.get(at) {
            let (value, next) = (at + 1, after(tape, at + 1));
            let nodes = tape.get(at..next).unwrap_or_default();
            // Exports that went through CSV say that a value is absent in words.
            if matches!(tape.get(value), Some(TapeNode::String("" | "NULL"))) {
                at = next;
                continue;
            }
            let known = json_columns().position(|(focus_name, name)| *key == focus_name || *key == name);
            let parser = known.and_then(|known| parsers.get_mut(known)).and_then(Option::take);
            match (known.and_then(|known| json_columns().nth(known)), tape.get(value), parser) {
                (Some(names), Some(TapeNode::String(text)), Some(parser)) => {
                    out.member(names.0, TapeNode::String(text));
                    // Text that is no JSON object stays text.
                    if let Ok(parsed) = parser.parse(text.as_bytes()) {
                        if matches!(parsed.tape.0.first(), Some(TapeNode::Object { len: 1.., .. })) {
                            out.member_of(names.1, &parsed.tape.0, &[]);
                        }
                        used.push(parsed);
                    }
                }
                (Some(names), Some(TapeNode::Object { .. }), Some(_)) => match object_text(value) {
                    Some(text) => {
                        out.member(names.0, TapeNode::String(text));
                        let texts = texts.get(value..next).unwrap_or_default();
                        out.member_of(names.1, tape.get(value..next).unwrap_or_default(), texts);
                    }
                    None => out.copy_member(nodes, texts.get(at..next).unwrap_or_default()),
                },
                _ => out.copy_member(nodes, texts.get(at..next).unwrap_or_default()),
            }
            at = next;
        }
        let count = out.nodes.len() - 1;
        if let Some(root) = out.nodes.first_mut() {
            *root = TapeNode::Object { len: out.members, count };
        }
        then(&out.nodes, &out.texts);
    }
}

impl<'p> Rebuilt<'p> {
    fn member(&mut self, key: &'p str, value: TapeNode<'p>) {
        self.push(TapeNode::String(key), "");
        self.push(value, "");
        self.members += 1;
    }

    fn member_of(&mut self, key: &'p str, value: &[TapeNode<'p>], texts: &[&'p str]) {
        if !matches!(value.first(), Some(TapeNode::Object { len: 1.., .. })) {
            return;
        }
        self.push(TapeNode::String(key), "");
        self.copy(value, texts);
        self.members += 1;
    }

    fn copy_member(&mut self, nodes: &[TapeNode<'p>], texts: &[&'p str]) {
        self.copy(nodes, texts);
        self.members += 1;
    }
}

/// Where each node of the tape stands in the text: every structural character but those that close or part.
fn places(text: &[u8], structurals: &[u32]) -> Vec<u32> {
    let is_node = |at: &&u32| !matches!(text.get(**at as usize), None | Some(b',' | b':' | b'}' | b']'));
    structurals.iter().filter(is_node).copied().collect()
}

fn number_text(text: &[u8], at: usize) -> &str {
    match text.get(at) {
        Some(b'-' | b'0'..=b'9') => std::str::from_utf8(number_at(text, at)).unwrap_or_default(),
        _ => "",
    }
}
