//! A rule or a filter taken out of its set.

use rustc_hash::FxHashMap;
use tidegate_events::Level;

use crate::compile::filter::Filters;
use crate::compile::interner::{Predicate, View};
use crate::compile::matcher::Matcher;
use crate::compile::program::{Node, PredicateId, ViewId};
use crate::compile::{Routed, Rule, RuleSet};
use crate::correlation::CorrelationSet;
use crate::head::Head;

impl RuleSet {
    /// A set of one rule, which makes every test of a rule or a filter on every event of its dataset: what it costs where others
    /// read the same columns of events that are not of its log source. Filters are numbered after the rules.
    pub(crate) fn alone(&self, unit: usize) -> Option<Self> {
        let routed = self.log_sources.get(self.log_source_of(unit)?)?;
        let TakenOut { views, predicates, program, .. } = TakenOut::of(self, unit)?;
        let mut tests = Vec::new();
        program.leaves(&mut tests);
        let tests = tests.into_iter().cloned().collect();
        let routed = Routed {
            dataset: routed.dataset,
            program: Node::And(Vec::new()),
            views: (0..).take(views.len()).collect(),
            resolved: routed.resolved.clone(),
            name: routed.name.clone(),
            parts: routed.parts.clone(),
            filters: Filters::default(),
        };
        let rule = Rule {
            head: head(self.unit_id(unit)),
            fields: Vec::new(),
            shown: Vec::new(),
            program: Node::Or(tests),
            log_source: 0,
            group_by: None,
            suppress_us: None,
            filters: Filters::default(),
        };
        Some(Self {
            rules: vec![rule],
            log_sources: vec![routed],
            views,
            users: vec![vec![0]; predicates.len()],
            predicates,
            filters: Vec::new(),
            correlations: CorrelationSet::default(),
            source_view: 0,
        })
    }

    /// Whether a rule or a filter asks what one of another set asks.
    pub(crate) fn asks_as(&self, unit: usize, other: &Self, other_unit: usize) -> bool {
        let name = |set: &Self, unit: usize| Some(set.log_sources.get(set.log_source_of(unit)?)?.name.clone());
        let (Some(own), Some(others)) = (TakenOut::of(self, unit), TakenOut::of(other, other_unit)) else {
            return false;
        };
        name(self, unit) == name(other, other_unit)
            && own.program == others.program
            && own.views == others.views
            && own.tests().eq(others.tests())
    }

    fn log_source_of(&self, unit: usize) -> Option<usize> {
        let filter = || Some(self.filters.get(unit.checked_sub(self.rules.len())?)?.log_source);
        self.rules.get(unit).map(|rule| rule.log_source).or_else(filter)
    }
}

/// A program with views and predicates of its own.
struct TakenOut {
    /// The first is that of `source`.
    views: Vec<View>,
    predicates: Vec<Predicate>,
    program: Node,
    /// What the numbers in the set became.
    view_numbers: FxHashMap<ViewId, ViewId>,
    predicate_numbers: FxHashMap<PredicateId, PredicateId>,
}

impl TakenOut {
    fn of(set: &RuleSet, unit: usize) -> Option<Self> {
        let mut own = Self {
            views: vec![View::Field(vec!["source".into()])],
            predicates: Vec::new(),
            program: Node::Or(Vec::new()),
            view_numbers: FxHashMap::default(),
            predicate_numbers: FxHashMap::default(),
        };
        own.program = own.node(set, set.program(unit)?)?;
        Some(own)
    }

    fn tests(&self) -> impl Iterator<Item = (ViewId, &Matcher)> {
        self.predicates.iter().map(|predicate| (predicate.view, &predicate.matcher))
    }

    fn node(&mut self, set: &RuleSet, node: &Node) -> Option<Node> {
        let mut all = |nodes: &[Node]| nodes.iter().map(|node| self.node(set, node)).collect::<Option<Vec<Node>>>();
        Some(match node {
            Node::And(nodes) => Node::And(all(nodes)?),
            Node::Or(nodes) => Node::Or(all(nodes)?),
            Node::AtLeast(least, nodes) => Node::AtLeast(*least, all(nodes)?),
            Node::Not(node) => Node::Not(Box::new(self.node(set, node)?)),
            Node::Predicate(id) => Node::Predicate(self.predicate(set, *id)?),
            Node::Present(view) => Node::Present(self.view(set, *view)?),
            Node::Fields { left, right, place, cased } => {
                let (left, right) = (self.view(set, *left)?, self.view(set, *right)?);
                Node::Fields { left, right, place: *place, cased: *cased }
            }
        })
    }

    fn predicate(&mut self, set: &RuleSet, id: PredicateId) -> Option<PredicateId> {
        if let Some(known) = self.predicate_numbers.get(&id) {
            return Some(*known);
        }
        let mut predicate = set.predicates.get(id as usize)?.clone();
        predicate.view = self.view(set, predicate.view)?;
        let number = self.predicates.len() as PredicateId;
        self.predicates.push(predicate);
        self.predicate_numbers.insert(id, number);
        Some(number)
    }

    fn view(&mut self, set: &RuleSet, view: ViewId) -> Option<ViewId> {
        if let Some(known) = self.view_numbers.get(&view) {
            return Some(*known);
        }
        let number = self.views.len() as ViewId;
        self.views.push(match set.views.get(view as usize)? {
            View::Keywords { .. } => View::Keywords { log_source: 0 },
            field @ View::Field(_) => field.clone(),
        });
        self.view_numbers.insert(view, number);
        Some(number)
    }
}

fn head(id: &str) -> Head {
    Head {
        id: id.to_owned(),
        name: None,
        title: String::new(),
        description: String::new(),
        level: Level::Medium,
        tags: Vec::new(),
        falsepositives: Vec::new(),
        file: String::new(),
        org_id: None,
    }
}
