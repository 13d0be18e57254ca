//! What of a rule is true of an event that it matches: the fields and the keywords that its alert shows.
//!
//! The [`Evaluator`](crate::Evaluator) only tells that a rule matches. An alert says by which fields: those of tests that are true
//! where the rule asks for truth. What stands behind `not`, and alternatives that are not the case, are not shown. So the program
//! is gone through once more, for the one event that is told of.

use regex::Regex;
use rustc_hash::FxHashMap;

use crate::compile::interner::View;
use crate::compile::matcher::{Matcher, Place};
use crate::compile::program::{Node, PredicateId, ViewId};
use crate::compile::{Rule, RuleSet};
use crate::fold::fold;
use crate::shown::{ShownRows, around, shortened};

/// What makes a rule true of an event.
#[derive(Debug)]
pub(crate) struct Proof<'a> {
    /// The fields, in the order of the rule.
    pub fields: Vec<&'a (String, ViewId)>,
    /// The tests that keywords are, of those that are true of a value.
    pub keywords: Vec<(&'a Matcher, Option<&'a Regex>)>,
}

impl Proof<'_> {
    /// What is shown of a value in which keywords were searched; `None` when none is there.
    pub fn shown(&self, value: &str, bytes_max: usize) -> Option<String> {
        let folded = fold(value);
        let here = || self.keywords.iter().filter(|(matcher, regex)| matcher.holds(value, &folded, *regex));
        let plain = |matcher: &Matcher| match matcher {
            Matcher::Text { literal, .. } => Some(fold(literal).into_owned()),
            _ => None,
        };
        here().next()?;
        let literals: Vec<String> = here().filter_map(|(matcher, _)| plain(matcher)).collect();
        around(value, &literals, bytes_max).or_else(|| Some(shortened(value, bytes_max)))
    }
}

/// One thing that is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum True {
    View(ViewId),
    Keyword(PredicateId),
}

/// What makes a rule true of the event in a row.
pub(crate) fn prove<'a>(rules: &'a RuleSet, rule: &'a Rule, rows: &mut ShownRows<'_>, row: usize) -> Proof<'a> {
    let mut found = Vec::new();
    Prover { rules, rows, row, values: FxHashMap::default() }.holds(&rule.program, true, &mut found);
    let keyword = |found: &True| match found {
        True::Keyword(id) => {
            rules.predicates.get(*id as usize).map(|predicate| (&predicate.matcher, predicate.regex.as_ref()))
        }
        True::View(_) => None,
    };
    Proof {
        fields: rule.fields.iter().filter(|(_, view)| found.contains(&True::View(*view))).collect(),
        keywords: found.iter().filter_map(keyword).collect(),
    }
}

/// A program under proof.
struct Prover<'a, 'r, 'b> {
    rules: &'a RuleSet,
    rows: &'r mut ShownRows<'b>,
    row: usize,
    /// The values of each field, as they are and folded.
    values: FxHashMap<ViewId, Vec<(String, String)>>,
}

impl Prover<'_, '_, '_> {
    /// Whether a program is true; if that is what is wanted, `out` gets what makes it so.
    fn holds(&mut self, node: &Node, wanted: bool, out: &mut Vec<True>) -> bool {
        match node {
            Node::Not(node) => !self.holds(node, !wanted, out),
            Node::And(nodes) => self.several(nodes, nodes.len(), wanted, out),
            Node::Or(nodes) => self.several(nodes, 1, wanted, out),
            Node::AtLeast(least, nodes) => self.several(nodes, *least, wanted, out),
            Node::Predicate(id) => {
                let Some(predicate) = self.rules.predicates.get(*id as usize) else { return false };
                let is_keyword = self.is_keywords(predicate.view);
                let regex = predicate.regex.as_ref();
                let holds = if is_keyword {
                    let there = |value: &str| predicate.matcher.holds(value, &fold(value), regex);
                    !self.rows.searched(self.row, |value| there(value).then(String::new)).is_empty()
                } else {
                    let mut values = self.values(predicate.view).iter();
                    values.any(|(value, folded)| predicate.matcher.holds(value, folded, regex))
                };
                let shown = if is_keyword { True::Keyword(*id) } else { True::View(predicate.view) };
                told(holds, wanted, &[shown], out)
            }
            Node::Present(view) => {
                let holds = if self.is_keywords(*view) {
                    !self.rows.searched(self.row, |_| Some(String::new())).is_empty()
                } else {
                    !self.values(*view).is_empty()
                };
                told(holds, wanted, &[True::View(*view)], out)
            }
            Node::Fields { left, right, place, cased } => {
                let holds = self.related(*left, *right, *place, *cased);
                told(holds, wanted, &[True::View(*left), True::View(*right)], out)
            }
        }
    }

    /// Whether at least so many programs are true.
    fn several(&mut self, nodes: &[Node], least: usize, wanted: bool, out: &mut Vec<True>) -> bool {
        let (before, mut count) = (out.len(), 0);
        for (at, node) in nodes.iter().enumerate() {
            let enough = count >= least;
            if (enough && (!wanted || self.tells_nothing_new(node, out))) || count + nodes.len() - at < least {
                continue;
            }
            let own = out.len();
            let holds = self.holds(node, wanted, out);
            if holds != wanted {
                out.truncate(own);
            }
            count += usize::from(holds);
        }
        let holds = count >= least;
        if holds != wanted {
            out.truncate(before);
        }
        holds
    }

    /// Whether a test of a field need not be made because the field is shown anyway: lists of values are long.
    fn tells_nothing_new(&self, node: &Node, out: &[True]) -> bool {
        let Node::Predicate(id) = node else { return false };
        let view = self.rules.predicates.get(*id as usize).map(|predicate| predicate.view);
        view.is_some_and(|view| out.contains(&True::View(view)))
    }

    fn is_keywords(&self, view: ViewId) -> bool {
        matches!(self.rules.views.get(view as usize), Some(View::Keywords { .. }))
    }

    fn values(&mut self, view: ViewId) -> &[(String, String)] {
        let Self { rows, row, values, .. } = self;
        values.entry(view).or_insert_with(|| {
            let mut own = Vec::new();
            rows.visit(view, *row, &mut String::new(), &mut |value| {
                own.push((value.to_owned(), fold(value).into_owned()))
            });
            own
        })
    }

    fn related(&mut self, left: ViewId, right: ViewId, place: Place, cased: bool) -> bool {
        let rights = self.values(right).to_vec();
        let holds = |left: &(String, String), right: &(String, String)| match cased {
            true => place.holds(&left.0, &right.0),
            false => place.holds(&left.1, &right.1),
        };
        self.values(left).iter().any(|left| rights.iter().any(|right| holds(left, right)))
    }
}

/// Adds what is true, where that is wanted.
fn told(holds: bool, wanted: bool, shown: &[True], out: &mut Vec<True>) -> bool {
    if holds && wanted {
        for new in shown {
            if !out.contains(new) {
                out.push(*new);
            }
        }
    }
    holds
}
