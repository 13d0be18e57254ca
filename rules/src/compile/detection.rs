//! From a rule's `detection` section to its program.

use std::collections::{BTreeMap, HashMap};

use rsigma_parser::{
    ArrayQuantifier, ConditionExpr, Detection, DetectionItem, Detections, Modifier, Quantifier, SelectorPattern,
    SigmaValue,
};

use crate::compile::glob::{Element, Glob};
use crate::compile::interner::Interner;
use crate::compile::matcher::Matcher;
use crate::compile::modifiers::{Test, apply};
use crate::compile::program::{Node, ViewId};
use crate::config::RulesConfig;
use crate::logsource::Resolved;
use crate::problem::Fault;

/// Compiles one rule's detections against one log source.
pub(crate) struct DetectionCompiler<'a> {
    interner: &'a mut Interner,
    resolved: &'a Resolved,
    /// The log source's number, which owns its keyword view.
    log_source: usize,
    config: &'a RulesConfig,
    /// The fields that the rule names, in the order they are met, for the alert: what is asked of their values, and whether they
    /// are there.
    pub fields: Vec<(String, ViewId)>,
    /// Predicates so far.
    predicates: usize,
}

impl<'a> DetectionCompiler<'a> {
    /// A compiler for one rule of a log source, which is given with its number.
    pub fn new(
        interner: &'a mut Interner,
        (resolved, log_source): (&'a Resolved, usize),
        config: &'a RulesConfig,
    ) -> Self {
        Self { interner, resolved, log_source, config, fields: Vec::new(), predicates: 0 }
    }

    /// The program: any of the conditions.
    pub fn compile(&mut self, detections: &Detections) -> Result<Node, Fault> {
        if detections.timeframe.is_some() {
            return Err(Fault::new("timeframe belongs to the aggregations that Sigma has given up")
                .hint("write a correlation rule")
                .near("timeframe:"));
        }
        let mut compiled = BTreeMap::new();
        let mut names: Vec<&String> = detections.named.keys().collect();
        names.sort();
        for name in names {
            if let Some(detection) = detections.named.get(name) {
                let node = self.detection(detection).map_err(|fault| fault.near(&format!("{name}:")))?;
                compiled.insert(name.as_str(), node);
            }
        }
        if detections.conditions.is_empty() {
            return Err(Fault::new("the list of conditions is empty").near("condition:"));
        }
        let mut budget = self.config.rule_predicates_max;
        let conditions: Result<Vec<Node>, Fault> =
            detections.conditions.iter().map(|expression| condition(expression, &compiled, &mut budget)).collect();
        conditions.map(Node::any).map_err(|fault| fault.near("condition:"))
    }

    fn detection(&mut self, detection: &Detection) -> Result<Node, Fault> {
        match detection {
            Detection::AllOf(items) if items.is_empty() => {
                Err(Fault::new("a selection without fields would match everything"))
            }
            Detection::AllOf(items) => {
                let nodes: Result<Vec<Node>, Fault> = items.iter().map(|item| self.item(item)).collect();
                nodes.map(Node::all)
            }
            Detection::AnyOf(parts) if parts.is_empty() => Err(Fault::new("an empty selection can never match")),
            Detection::AnyOf(parts) => self.parts(parts).map(Node::any),
            Detection::And(parts) => self.parts(parts).map(Node::all),
            Detection::Keywords(values) => self.keywords(&[], values),
            Detection::ArrayMatch { field, quantifier, body } => self.array(field, *quantifier, body),
            Detection::Conditional { named, condition: expression } => self.conditional(named, expression),
        }
    }

    fn parts(&mut self, parts: &[Detection]) -> Result<Vec<Node>, Fault> {
        parts.iter().map(|part| self.detection(part)).collect()
    }

    fn conditional(&mut self, named: &HashMap<String, Detection>, expression: &ConditionExpr) -> Result<Node, Fault> {
        let mut compiled = BTreeMap::new();
        for (name, detection) in named {
            compiled.insert(name.as_str(), self.detection(detection)?);
        }
        let mut budget = self.config.rule_predicates_max;
        condition(expression, &compiled, &mut budget)
    }

    /// `field[any]` of the coming Sigma 3. Columns keep the elements of a list, but not which elements of two lists were one
    /// object, so only what one field can say is compiled.
    fn array(&mut self, field: &str, quantifier: ArrayQuantifier, body: &Detection) -> Result<Node, Fault> {
        let single = match body {
            Detection::AllOf(items) => match items.as_slice() {
                [item] => Some(item),
                _ => None,
            },
            _ => None,
        };
        let unsupported = || {
            Fault::new(format!("the array selector of {field} is not evaluated"))
                .hint("only [any] and [none] with a single field are; write plain fields, which match any element")
                .near(field)
        };
        let item = single.ok_or_else(unsupported)?;
        let name = match &item.field.name {
            Some(member) => format!("{field}.{member}"),
            None => field.to_owned(),
        };
        let mut item = item.clone();
        item.field.name = Some(name);
        let node = self.item(&item)?;
        match quantifier {
            ArrayQuantifier::Any => Ok(node),
            ArrayQuantifier::None => Ok(node.negate()),
            ArrayQuantifier::All | ArrayQuantifier::AllOrEmpty => Err(unsupported()),
        }
    }

    fn keywords(&mut self, modifiers: &[Modifier], values: &[SigmaValue]) -> Result<Node, Fault> {
        if values.is_empty() {
            return Err(Fault::new("an empty selection can never match"));
        }
        if modifiers.contains(&Modifier::Exists) {
            return Err(Fault::new("this modifier needs a field").hint("write `Field|exists: true`").near("|exists"));
        }
        let tests = apply(modifiers, values, true, self.config)?;
        let view = self.interner.keyword_view(self.log_source);
        self.combine(&tests.values, tests.all, tests.negated, &mut |this, test| match test {
            Test::Value(matcher) => this.predicate(view, matcher.clone()),
            Test::Present => Ok(Node::Present(view)),
            Test::There | Test::Absent | Test::Field { .. } => Err(Fault::new("this modifier needs a field")),
        })
    }

    fn object_view(&mut self, field: &str) -> ViewId {
        let view = self.interner.object_view(self.resolved.columns(field));
        self.note(field, view);
        view
    }

    fn note(&mut self, field: &str, view: ViewId) {
        if !self.fields.iter().any(|(_, known)| *known == view) {
            self.fields.push((field.to_owned(), view));
        }
    }

    fn item(&mut self, item: &DetectionItem) -> Result<Node, Fault> {
        let Some(field) = &item.field.name else {
            return self.keywords(&item.field.modifiers, &item.values);
        };
        let field = rsigma_parser::fieldpath::unescape_brackets(field).into_owned();
        let view = self.interner.field_view(self.resolved.columns(&field));
        self.note(&field, view);
        let compiled = apply(&item.field.modifiers, &item.values, false, self.config).and_then(|tests| {
            self.combine(&tests.values, tests.all, tests.negated, &mut |this, test| match test {
                Test::Value(matcher) => this.predicate(view, matcher.clone()),
                Test::Present => Ok(Node::Present(view)),
                Test::There => Ok(Node::Present(this.object_view(&field))),
                Test::Absent => Ok(Node::Present(this.object_view(&field)).negate()),
                Test::Field { other, place, cased } => {
                    let right = this.interner.field_view(this.resolved.columns(other));
                    Ok(Node::Fields { left: view, right, place: *place, cased: *cased })
                }
            })
        });
        compiled.map_err(|fault| fault.near(&field))
    }

    fn combine(
        &mut self,
        values: &[Vec<Test>],
        all: bool,
        negated: bool,
        leaf: &mut impl FnMut(&mut Self, &Test) -> Result<Node, Fault>,
    ) -> Result<Node, Fault> {
        let mut nodes = Vec::with_capacity(values.len());
        for alternatives in values {
            let alternatives: Result<Vec<Node>, Fault> = alternatives.iter().map(|test| leaf(self, test)).collect();
            nodes.push(Node::any(alternatives?));
        }
        let node = if all { Node::all(nodes) } else { Node::any(nodes) };
        Ok(if negated { node.negate() } else { node })
    }

    fn predicate(&mut self, view: u32, matcher: Matcher) -> Result<Node, Fault> {
        self.predicates += 1;
        if self.predicates > self.config.rule_predicates_max {
            return Err(Fault::new(format!("the rule has more than {} values", self.config.rule_predicates_max))
                .hint("split it, or raise rule_predicates_max"));
        }
        self.interner.predicate(view, matcher).map(Node::Predicate)
    }
}

/// A condition over compiled selections. A selection is copied to each place that names it; `budget` bounds the copies.
fn condition(expression: &ConditionExpr, named: &BTreeMap<&str, Node>, budget: &mut usize) -> Result<Node, Fault> {
    let copy = |node: &Node, budget: &mut usize| {
        let mut leaves = 1;
        node.visit(&mut |_| leaves += 1);
        *budget = budget.checked_sub(leaves).ok_or_else(|| {
            Fault::new("the condition names large selections too often")
                .hint("split the rule, or raise rule_predicates_max")
        })?;
        Ok(node.clone())
    };
    match expression {
        ConditionExpr::And(parts) => several(parts, named, budget).map(Node::all),
        ConditionExpr::Or(parts) => several(parts, named, budget).map(Node::any),
        ConditionExpr::Not(part) => Ok(condition(part, named, budget)?.negate()),
        ConditionExpr::Identifier(name) => {
            let unknown = || {
                let known = named.keys().copied().take(20).collect::<Vec<_>>().join(", ");
                Fault::new(format!("the condition names {name:?}, which is not a selection"))
                    .hint(format!("selections: {known}"))
            };
            copy(named.get(name.as_str()).ok_or_else(unknown)?, budget)
        }
        ConditionExpr::Selector { quantifier, pattern } => {
            let chosen = named.iter().filter(|(name, _)| selects(pattern, name));
            let nodes: Vec<Node> = chosen.map(|(_, node)| copy(node, budget)).collect::<Result<_, Fault>>()?;
            if nodes.is_empty() {
                return Err(Fault::new(format!("no selection is called {pattern}")));
            }
            Ok(match quantifier {
                Quantifier::Any => Node::any(nodes),
                Quantifier::All => Node::all(nodes),
                Quantifier::Count(count) => Node::AtLeast(usize::try_from(*count).unwrap_or(usize::MAX), nodes),
            })
        }
    }
}

/// Whether a selection is one of those that a condition chooses by pattern: `*` is any text, anywhere and as often as wanted.
fn selects(pattern: &SelectorPattern, name: &str) -> bool {
    let SelectorPattern::Pattern(pattern) = pattern else { return !name.starts_with('_') };
    let segment = |text: &str| text.chars().map(Element::Char).collect::<Vec<_>>();
    let glob = Glob {
        anchored_start: !pattern.starts_with('*'),
        anchored_end: !pattern.ends_with('*'),
        segments: pattern.split('*').filter(|text| !text.is_empty()).map(segment).collect(),
    };
    glob.matches(name)
}

fn several(parts: &[ConditionExpr], named: &BTreeMap<&str, Node>, budget: &mut usize) -> Result<Vec<Node>, Fault> {
    parts.iter().map(|part| condition(part, named, budget)).collect()
}
