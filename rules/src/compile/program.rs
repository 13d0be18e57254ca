//! The boolean program of a rule over predicates, and what must be true for it to be true.

use crate::compile::matcher::Place;

/// A column as rules see it: the columns of a batch that may hold one field, or all of them. Index into `RuleSet::views`.
pub(crate) type ViewId = u32;
/// A predicate: one view and one matcher. Index into `RuleSet::predicates`.
pub(crate) type PredicateId = u32;

/// A boolean expression over the rows of a batch. Two-valued: a field without a value makes a predicate false.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// Rows of which any value in the view satisfies the matcher.
    Predicate(PredicateId),
    /// Rows with a value in the view.
    Present(ViewId),
    /// Rows in which a value of one view relates to a value of another.
    Fields {
        left: ViewId,
        right: ViewId,
        place: Place,
        cased: bool,
    },
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    /// At least so many of them.
    AtLeast(usize, Vec<Node>),
}

impl Node {
    /// All of them; one alone is itself.
    pub fn all(mut nodes: Vec<Node>) -> Self {
        if nodes.len() == 1 { nodes.swap_remove(0) } else { Self::And(nodes) }
    }

    /// Any of them; one alone is itself.
    pub fn any(mut nodes: Vec<Node>) -> Self {
        if nodes.len() == 1 { nodes.swap_remove(0) } else { Self::Or(nodes) }
    }

    pub fn negate(self) -> Self {
        match self {
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// Calls `visit` for each predicate and each view that the program reads otherwise.
    pub fn visit(&self, visit: &mut impl FnMut(Leaf)) {
        match self {
            Self::Predicate(id) => visit(Leaf::Predicate(*id)),
            Self::Present(view) => visit(Leaf::View(*view)),
            Self::Fields { left, right, .. } => {
                visit(Leaf::View(*left));
                visit(Leaf::View(*right));
            }
            Self::And(nodes) | Self::Or(nodes) | Self::AtLeast(_, nodes) => {
                nodes.iter().for_each(|node| node.visit(visit));
            }
            Self::Not(node) => node.visit(visit),
        }
    }

    /// The tests that it is made of.
    pub fn leaves<'n>(&'n self, out: &mut Vec<&'n Self>) {
        match self {
            Self::Predicate(_) | Self::Present(_) | Self::Fields { .. } => out.push(self),
            Self::And(nodes) | Self::Or(nodes) | Self::AtLeast(_, nodes) => {
                nodes.iter().for_each(|node| node.leaves(out));
            }
            Self::Not(node) => node.leaves(out),
        }
    }

    /// Predicates of which at least one is true wherever the program is true, chosen so that they are rarely true; `None`
    /// when there are none. `selectivity` says how rare a predicate is.
    pub fn witness(&self, selectivity: &impl Fn(PredicateId) -> usize) -> Option<Witness> {
        match self {
            Self::Predicate(id) => Some(Witness { predicates: vec![*id], selectivity: selectivity(*id) }),
            Self::Present(_) | Self::Fields { .. } | Self::Not(_) => None,
            Self::And(nodes) => {
                let better =
                    |best: Witness, other: Witness| if other.selectivity > best.selectivity { other } else { best };
                nodes.iter().filter_map(|node| node.witness(selectivity)).reduce(better)
            }
            Self::Or(nodes) => Self::witness_of_any(nodes, selectivity),
            // At most n - 1 of them can be true without the others.
            Self::AtLeast(0, _) => None,
            Self::AtLeast(_, nodes) => Self::witness_of_any(nodes, selectivity),
        }
    }

    /// Puts what is rarely true first in every `And`, so that programs narrow quickly; negations come last.
    pub fn order(&mut self, selectivity: &impl Fn(PredicateId) -> usize) {
        match self {
            Self::And(nodes) => {
                nodes.iter_mut().for_each(|node| node.order(selectivity));
                nodes.sort_by_cached_key(|node| {
                    let rare = node.witness(selectivity).map_or(0, |witness| witness.selectivity);
                    (matches!(node, Self::Not(_)), std::cmp::Reverse(rare))
                });
            }
            Self::Or(nodes) | Self::AtLeast(_, nodes) => nodes.iter_mut().for_each(|node| node.order(selectivity)),
            Self::Not(node) => node.order(selectivity),
            Self::Predicate(_) | Self::Present(_) | Self::Fields { .. } => {}
        }
    }

    fn witness_of_any(nodes: &[Node], selectivity: &impl Fn(PredicateId) -> usize) -> Option<Witness> {
        let mut predicates = Vec::new();
        let mut least = usize::MAX;
        for node in nodes {
            let witness = node.witness(selectivity)?;
            predicates.extend(witness.predicates);
            least = least.min(witness.selectivity);
        }
        Some(Witness { predicates, selectivity: least })
    }
}

/// What a program reads at a leaf.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leaf {
    Predicate(PredicateId),
    View(ViewId),
}

/// See [`Node::witness`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Witness {
    pub predicates: Vec<PredicateId>,
    pub selectivity: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_necessary_and_the_rarest() {
        let predicate = Node::Predicate;
        let selectivity = |id: PredicateId| id as usize;
        for (node, witness) in [
            (Node::And(vec![predicate(3), predicate(9), Node::Not(Box::new(predicate(20)))]), Some(vec![9])),
            (Node::Or(vec![predicate(3), predicate(9)]), Some(vec![3, 9])),
            (Node::And(vec![predicate(4), Node::Or(vec![predicate(3), predicate(9)])]), Some(vec![4])),
            (Node::Or(vec![predicate(3), Node::Present(0)]), None),
            (Node::Not(Box::new(predicate(1))), None),
            (Node::AtLeast(2, vec![predicate(1), predicate(2)]), Some(vec![1, 2])),
            (Node::AtLeast(0, vec![predicate(1)]), None),
            // Never true: no predicate needs to be tried.
            (Node::Or(Vec::new()), Some(vec![])),
        ] {
            assert_eq!(node.witness(&selectivity).map(|witness| witness.predicates), witness, "{node:?}");
        }
    }
}
