//! The names of fields: a trie of object keys, each path of which is a dotted name with a number.
//!
//! Agents send the same shape again and again, so each key remembers which key came after it: a lookup compares one string
//! and hashes only on a miss. Two paths may have one dotted name (`{"a":{"b":1}}` and `{"a.b":1}`): they are one field.

use std::collections::HashMap;
use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The number of a node of the trie.
pub(super) type Node = u32;
/// The number of a dotted name.
pub(super) type FieldId = u32;

/// The node above all top-level keys.
pub(super) const ROOT: Node = 0;
/// No node, no field.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct KeyNode {
    key: Box<str>,
    parent: Node,
    field: FieldId,
    /// The key that came first in this object the last time.
    first: Node,
    /// The key that came after this one the last time.
    next: Node,
    path_bytes: u32,
    /// The object in which this key was last seen.
    seen_in: u64,
}

/// All names that a decoder knows.
#[derive(Debug)]
pub(super) struct Names {
    nodes: Vec<KeyNode>,
    children: HashTable<Node>,
    fields: Vec<Arc<str>>,
    by_name: HashMap<Arc<str>, FieldId>,
    /// Keys come from outside: a seed that they cannot know keeps them from colliding on purpose.
    seed: u64,
}

impl Names {
    pub(super) fn new(seed: u64) -> Self {
        let root = KeyNode {
            key: Box::from(""),
            parent: NONE,
            field: NONE,
            first: NONE,
            next: NONE,
            path_bytes: 0,
            seen_in: 0,
        };
        Self { nodes: vec![root], children: HashTable::new(), fields: Vec::new(), by_name: HashMap::new(), seed }
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn hash(&self, parent: Node, key: &str) -> u64 {
        xxh3_64_with_seed(key.as_bytes(), self.seed ^ u64::from(parent).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn node(&self, at: Node) -> Option<&KeyNode> {
        self.nodes.get(at as usize)
    }

    /// The first key to expect in the object at `parent`.
    pub(super) fn expect_first(&self, parent: Node) -> Node {
        self.node(parent).map_or(NONE, |node| node.first)
    }

    /// The key to expect after `node`.
    #[inline]
    pub(super) fn expect_after(&self, node: Node) -> Node {
        self.node(node).map_or(NONE, |node| node.next)
    }

    /// The node of `key` below `parent`, if it is `expected`.
    #[inline]
    pub(super) fn is_expected(&self, expected: Node, key: &str) -> bool {
        self.node(expected).is_some_and(|node| *node.key == *key)
    }

    /// The node of `key` below `parent`, if known.
    pub(super) fn find(&self, parent: Node, key: &str) -> Option<Node> {
        let same = |at: &Node| self.node(*at).is_some_and(|node| node.parent == parent && *node.key == *key);
        self.children.find(self.hash(parent, key), same).copied()
    }

    /// A new node for `key` below `parent`; `None` when the key is empty or its dotted name would be longer than `bytes_max`.
    pub(super) fn insert(&mut self, parent: Node, key: &str, bytes_max: usize) -> Option<Node> {
        let above = self.node(parent)?.path_bytes as usize;
        let path_bytes = above + usize::from(parent != ROOT) + key.len();
        if key.is_empty() || path_bytes > bytes_max || self.nodes.len() >= NONE as usize {
            return None;
        }
        let at = self.nodes.len() as Node;
        let path_bytes = u32::try_from(path_bytes).ok()?;
        let key = Box::from(key);
        let hash = self.hash(parent, &key);
        self.nodes.push(KeyNode { key, parent, field: NONE, first: NONE, next: NONE, path_bytes, seen_in: 0 });
        let Self { nodes, children, seed, .. } = self;
        let rehash = |at: &Node| {
            nodes.get(*at as usize).map_or(0, |node| {
                let parent = u64::from(node.parent).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                xxh3_64_with_seed(node.key.as_bytes(), *seed ^ parent)
            })
        };
        children.insert_unique(hash, at, rehash);
        Some(at)
    }

    /// Remembers that `node` came after `before`, or first in `parent` when `before` is [`NONE`].
    pub(super) fn learn(&mut self, parent: Node, before: Node, node: Node) {
        let first = before == NONE;
        if let Some(known) = self.nodes.get_mut(if first { parent } else { before } as usize) {
            *(if first { &mut known.first } else { &mut known.next }) = node;
        }
    }

    /// Marks `node` as seen in the object number `object`; true when it was seen there before.
    #[inline]
    pub(super) fn mark(&mut self, node: Node, object: u64) -> bool {
        match self.nodes.get_mut(node as usize) {
            Some(node) => std::mem::replace(&mut node.seen_in, object) == object,
            None => false,
        }
    }

    /// The dotted name of `node`.
    pub(super) fn path(&self, node: Node) -> String {
        let mut keys = Vec::new();
        let mut at = node;
        while let Some(known) = self.node(at).filter(|known| known.parent != NONE) {
            keys.push(&*known.key);
            at = known.parent;
        }
        keys.reverse();
        keys.join(".")
    }

    /// The dotted name of `key` below `parent`.
    pub(super) fn path_of_key(&self, parent: Node, key: &str) -> String {
        if parent == ROOT { key.to_owned() } else { format!("{}.{key}", self.path(parent)) }
    }

    /// The field of `node`.
    #[inline]
    pub(super) fn field_of(&mut self, node: Node) -> FieldId {
        match self.node(node).map(|node| node.field) {
            Some(NONE) => {
                let field = self.field(&self.path(node));
                if let Some(node) = self.nodes.get_mut(node as usize) {
                    node.field = field;
                }
                field
            }
            Some(field) => field,
            None => NONE,
        }
    }

    /// The field of this dotted name, which is made when it is new.
    pub(super) fn field(&mut self, name: &str) -> FieldId {
        if let Some(field) = self.by_name.get(name) {
            return *field;
        }
        let field = self.fields.len() as FieldId;
        let name: Arc<str> = name.into();
        self.fields.push(name.clone());
        self.by_name.insert(name, field);
        field
    }

    /// The field of this dotted name, if known.
    pub(super) fn known_field(&self, name: &str) -> Option<FieldId> {
        self.by_name.get(name).copied()
    }

    /// The dotted name of a field.
    pub(super) fn name(&self, field: FieldId) -> &Arc<str> {
        static EMPTY: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| Arc::from(""));
        self.fields.get(field as usize).unwrap_or(&EMPTY)
    }
}
