//! What of a rule is true of an event that it matches: the fields and the keywords that its alert shows.
//!
//! The [`Evaluator`](crate::Evaluator) only tells that a rule matches. An alert says by which fields: those of tests that are true
//! where the rule asks for truth. What stands behind `not`, and alternatives that are not the case, are not shown. So the program
//! is gone through once more, for the one event that is told of.

use rustc_hash::FxHashMap;

use crate::compile::interner::{Predicate, View};
use crate::compile::matcher::{Matcher, Place};
use crate::compile::program::{Node, PredicateId, ViewId};
use crate::compile::{Rule, RuleSet};
use crate::fold::fold;
use crate::shown::{ShownRows, around, shortened};

/// The most keywords that are told of.
const KEYWORDS_MAX: usize = 32;
/// Steps that the tests for one alert may need: a few milliseconds, whatever a rule asks of an event of whatever size. What is not
/// reached with them is not shown. Counted rather than timed, so that a replay shows the same.
const STEPS_MAX: usize = 4_000_000;
/// Bytes of a value in which it takes about a step to look for a text.
const STEP_BYTES: usize = 16;

/// Tests of values, as many as there are steps for.
#[derive(Debug)]
struct Tests {
    steps_left: usize,
}

impl Tests {
    fn new() -> Self {
        Self { steps_left: STEPS_MAX }
    }

    /// Whether there are so many steps, which are gone then.
    fn take(&mut self, steps: usize) -> bool {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.unwrap_or(self.steps_left);
        left.is_some()
    }

    /// Whether a value, which is also given folded, satisfies a predicate, as far as there are steps to find out.
    fn hold(&mut self, predicate: &Predicate, value: &str, folded: &str) -> bool {
        let matcher = &predicate.matcher;
        let texts = match (matcher, &predicate.required) {
            (Matcher::Regex(_), Some(required)) => required.literals.len(),
            _ => 1,
        };
        let worth = || match (matcher, &predicate.required) {
            (Matcher::Regex(_), Some(required)) => {
                required.literals.is_empty() || required.literals.iter().any(|literal| folded.contains(literal))
            }
            _ => true,
        };
        let whole = matches!(matcher, Matcher::Regex(_) | Matcher::Glob { .. });
        self.take(1 + texts * folded.len() / STEP_BYTES)
            && worth()
            && (!whole || self.take(value.len()))
            && matcher.holds(value, folded, predicate.regex.as_ref())
    }
}

/// What makes a rule true of an event.
#[derive(Debug)]
pub(crate) struct Proof<'a> {
    /// The fields, in the order of the rule.
    pub fields: Vec<&'a (String, ViewId)>,
    /// The tests that keywords are, of those that are true of a value.
    pub keywords: Vec<&'a Predicate>,
    tests: Tests,
}

impl Proof<'_> {
    /// What is shown of a value in which keywords were searched; `None` when none is there.
    pub fn shown(&mut self, value: &str, bytes_max: usize) -> Option<String> {
        let folded = fold(value);
        let Self { keywords, tests, .. } = self;
        let here: Vec<&Matcher> = keywords
            .iter()
            .filter(|keyword| tests.hold(keyword, value, &folded))
            .map(|keyword| &keyword.matcher)
            .collect();
        let plain = |matcher: &&Matcher| match matcher {
            Matcher::Text { literal, .. } => Some(fold(literal).into_owned()),
            _ => None,
        };
        here.first()?;
        let literals: Vec<String> = here.iter().filter_map(plain).collect();
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
    let values = FxHashMap::default();
    Prover { rules, rows, row, values, tests: Tests::new() }.holds(&rule.program, true, &mut found);
    let keyword = |found: &True| match found {
        True::Keyword(id) => rules.predicates.get(*id as usize),
        True::View(_) => None,
    };
    Proof {
        fields: rule.fields.iter().filter(|(_, view)| found.contains(&True::View(*view))).collect(),
        keywords: found.iter().filter_map(keyword).collect(),
        tests: Tests::new(),
    }
}

/// A program under proof.
struct Prover<'a, 'r, 'b> {
    rules: &'a RuleSet,
    rows: &'r mut ShownRows<'b>,
    row: usize,
    /// The values of each view, as they are and folded.
    values: FxHashMap<ViewId, Vec<(String, String)>>,
    tests: Tests,
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
                let rules = self.rules;
                let Some(predicate) = rules.predicates.get(*id as usize) else { return false };
                self.read(predicate.view);
                let Self { values, tests, .. } = self;
                let mut values = values.get(&predicate.view).into_iter().flatten();
                let holds = values.any(|(value, folded)| tests.hold(predicate, value, folded));
                let is_keyword = self.is_keywords(predicate.view);
                let shown = if is_keyword { True::Keyword(*id) } else { True::View(predicate.view) };
                told(holds, wanted, &[shown], out)
            }
            Node::Present(view) => {
                let holds = !self.read(*view).is_empty();
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

    /// Whether a test need not be made because what it is about is shown anyway, or no more keywords are: lists of values are long.
    fn tells_nothing_new(&self, node: &Node, out: &[True]) -> bool {
        let Node::Predicate(id) = node else { return false };
        match self.rules.predicates.get(*id as usize).map(|predicate| predicate.view) {
            Some(view) if self.is_keywords(view) => keywords(out) >= KEYWORDS_MAX,
            view => view.is_some_and(|view| out.contains(&True::View(view))),
        }
    }

    fn is_keywords(&self, view: ViewId) -> bool {
        matches!(self.rules.views.get(view as usize), Some(View::Keywords { .. }))
    }

    /// The values of a field, or all in which keywords are searched.
    fn read(&mut self, view: ViewId) -> &[(String, String)] {
        let every = self.is_keywords(view);
        let Self { rows, row, values, .. } = self;
        values.entry(view).or_insert_with(|| {
            let mut own = Vec::new();
            let mut take = |value: &str| own.push((value.to_owned(), fold(value).into_owned()));
            match every {
                true => rows.visit_searched(*row, &mut take),
                false => rows.visit(view, *row, &mut String::new(), &mut take),
            }
            own
        })
    }

    fn related(&mut self, left: ViewId, right: ViewId, place: Place, cased: bool) -> bool {
        let rights = self.read(right).to_vec();
        self.read(left);
        let Self { values, tests, .. } = self;
        let mut lefts = values.get(&left).into_iter().flatten();
        lefts.any(|left| {
            rights.iter().any(|right| {
                tests.take(1 + left.0.len() / STEP_BYTES)
                    && match cased {
                        true => place.holds(&left.0, &right.0),
                        false => place.holds(&left.1, &right.1),
                    }
            })
        })
    }
}

fn keywords(found: &[True]) -> usize {
    found.iter().filter(|found| matches!(found, True::Keyword(_))).count()
}

/// Adds what is true, where that is wanted.
fn told(holds: bool, wanted: bool, shown: &[True], out: &mut Vec<True>) -> bool {
    if holds && wanted {
        for new in shown {
            let is_room = matches!(new, True::View(_)) || keywords(out) < KEYWORDS_MAX;
            if is_room && !out.contains(new) {
                out.push(*new);
            }
        }
    }
    holds
}
