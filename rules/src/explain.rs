//! What a rule compiles to, for people: its fields and their columns, its predicates, its program, and which events it sees.
//! [`Trial`](crate::Trial) adds what becomes of events.

use std::collections::BTreeMap;

use crate::compile::glob::{Element, Glob};
use crate::compile::interner::View;
use crate::compile::matcher::{Cidr, Matcher, Place};
use crate::compile::program::{Node, PredicateId, ViewId};
use crate::compile::{Rule, RuleSet};
use crate::datetime::TimePart;
use crate::eval::witness::Witnesses;
use crate::number::{Comparison, Number};

/// Zeros, and digits after the point, with which a number is written out.
const PLACES_MAX: usize = 40;

/// A rule as it runs.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Explanation {
    /// Its id.
    pub rule_id: String,
    /// Its title.
    pub title: String,
    /// Its level.
    pub level: String,
    /// The file that it is in.
    pub file: String,
    /// Which events it sees.
    pub log_source: LogSourceShown,
    /// The fields that it reads, in the order of their numbers in [`Expression`].
    pub fields: Vec<FieldShown>,
    /// Its tests, in the order of their numbers in [`Expression`].
    pub predicates: Vec<PredicateShown>,
    /// What must hold of an event.
    pub program: Expression,
    /// The numbers of predicates of which one is true wherever the rule matches: it costs nothing where none is. `None`
    /// when there are no such predicates, so that the rule is tried on every batch that it sees.
    pub witness: Option<Vec<usize>>,
    /// The filters that may take matches away, for everyone.
    pub filters: Vec<FilterShown>,
}

/// Which events a rule sees.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LogSourceShown {
    /// Product, category and service as rules name them.
    pub name: String,
    /// The table of the events.
    pub dataset: String,
    /// Whether a log source table describes it.
    pub known: bool,
    /// What must hold of an event; its numbers are those of the fields and predicates below.
    pub program: Expression,
    /// The fields that tell, by number.
    pub fields: Vec<FieldShown>,
    /// The tests that tell, by number.
    pub predicates: Vec<PredicateShown>,
}

/// A filter on a rule.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FilterShown {
    /// Its id.
    pub id: String,
    /// What must hold of an event for a match to stay; its numbers are those of the rule's fields and predicates.
    pub keeps: Expression,
}

/// A field of a rule.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FieldShown {
    /// What the rule calls it; `(any text of the event)` for keywords.
    pub name: String,
    /// The columns that may hold it: the first that has a value in an event is taken. Empty for keywords.
    pub columns: Vec<String>,
}

/// A test of one field.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PredicateShown {
    /// The number of its field, from 0.
    pub field: usize,
    /// What is asked of a value: `ends with \lsass.exe`.
    pub test: String,
    /// How many rules ask the same; it is decided once for all of them.
    pub rules: usize,
}

/// A boolean program. Numbers of predicates and fields count from 0.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expression {
    /// A test of a field.
    Predicate(usize),
    /// A field has a value.
    Present(usize),
    /// A value of one field relates to a value of another.
    Fields {
        /// The field on the left.
        left: usize,
        /// `is`, `contains`, `starts with`, `ends with`.
        relation: &'static str,
        /// The field on the right.
        right: usize,
        /// Whether case matters.
        cased: bool,
    },
    /// All of them.
    All(Vec<Expression>),
    /// Any of them.
    Any(Vec<Expression>),
    /// Not so.
    Not(Box<Expression>),
    /// At least so many of them.
    AtLeast(usize, Vec<Expression>),
}

/// What a rule compiles to; `None` when there is no rule of that index.
pub fn explain(set: &RuleSet, rule: usize) -> Option<Explanation> {
    let number = rule;
    let rule = set.rules.get(number)?;
    let routed = set.log_sources.get(rule.log_source)?;
    let mut source_numbers = Numbers::default();
    let source_program = source_numbers.expression(set, &routed.program);
    let mut numbers = Numbers::of_rule(set, rule);
    let program = numbers.expression(set, &rule.program);
    let own = routed.filters.everyone.iter().chain(&rule.filters.everyone);
    let filters = own.filter_map(|filter| set.filters.get(*filter as usize));
    let filters: Vec<FilterShown> = filters
        .map(|filter| FilterShown { id: filter.id.clone(), keeps: numbers.expression(set, &filter.keeps) })
        .collect();
    let witness = Witnesses::new(set).of_rule.swap_remove(number).map(|predicates| {
        let mut own: Vec<usize> = predicates.iter().map(|id| numbers.predicate(set, *id)).collect();
        own.sort_unstable();
        own.dedup();
        own
    });
    Some(Explanation {
        rule_id: rule.head.id.clone(),
        title: rule.head.title.clone(),
        level: rule.head.level.as_str().to_owned(),
        file: rule.head.file.clone(),
        log_source: LogSourceShown {
            name: routed.name.clone(),
            dataset: routed.dataset.table_name().to_owned(),
            known: routed.resolved.known,
            program: source_program,
            fields: source_numbers.fields_shown(set),
            predicates: source_numbers.predicates_shown(set),
        },
        fields: numbers.fields_shown(set),
        predicates: numbers.predicates_shown(set),
        program,
        witness,
        filters,
    })
}

impl Explanation {
    /// A program alone, as that of a rule without a name.
    pub(crate) fn of_program(set: &RuleSet, numbers: &Numbers, program: Expression) -> Self {
        let none = LogSourceShown {
            name: String::new(),
            dataset: String::new(),
            known: true,
            program: Expression::All(Vec::new()),
            fields: Vec::new(),
            predicates: Vec::new(),
        };
        Self {
            rule_id: String::new(),
            title: String::new(),
            level: String::new(),
            file: String::new(),
            log_source: none,
            fields: numbers.fields_shown(set),
            predicates: numbers.predicates_shown(set),
            program,
            witness: None,
            filters: Vec::new(),
        }
    }
}

/// The numbers that views and predicates of one program get, in the order in which they are met.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// (view, what rules call it)
    fields: Vec<(ViewId, String)>,
    predicates: Vec<PredicateId>,
    by_predicate: BTreeMap<PredicateId, usize>,
}

impl Numbers {
    /// Numbers in which the fields have the names that the rule gives them.
    pub fn of_rule(set: &RuleSet, rule: &Rule) -> Self {
        let mut numbers = Self::default();
        for (name, view) in &rule.fields {
            if !numbers.fields.iter().any(|(own, _)| own == view) {
                numbers.fields.push((*view, name.clone()));
            }
        }
        // Numbers of predicates in the order in which people read the program.
        numbers.expression(set, &rule.program);
        numbers
    }

    /// The predicates, by number.
    pub fn predicates(&self) -> &[PredicateId] {
        &self.predicates
    }

    /// The views, by number of the field.
    pub fn views(&self) -> impl Iterator<Item = ViewId> + '_ {
        self.fields.iter().map(|(view, _)| *view)
    }

    /// What the field of a view is called.
    pub fn name(&self, view: ViewId) -> &str {
        self.fields.iter().find(|(own, _)| *own == view).map_or("", |(_, name)| name.as_str())
    }

    fn field(&mut self, set: &RuleSet, view: ViewId) -> usize {
        if let Some(known) = self.fields.iter().position(|(own, _)| *own == view) {
            return known;
        }
        let name = match set.views.get(view as usize) {
            Some(View::Field(columns)) => {
                let plain = columns.iter().find(|column| !column.starts_with(tidegate_events::RAW_PREFIX));
                plain.or(columns.first()).cloned().unwrap_or_default()
            }
            Some(View::Keywords { .. }) => "(any text of the event)".to_owned(),
            None => String::new(),
        };
        self.fields.push((view, name));
        self.fields.len() - 1
    }

    fn predicate(&mut self, set: &RuleSet, id: PredicateId) -> usize {
        if let Some(known) = self.by_predicate.get(&id) {
            return *known;
        }
        if let Some(predicate) = set.predicates.get(id as usize) {
            self.field(set, predicate.view);
        }
        self.by_predicate.insert(id, self.predicates.len());
        self.predicates.push(id);
        self.predicates.len() - 1
    }

    /// The program with these numbers.
    pub fn expression(&mut self, set: &RuleSet, node: &Node) -> Expression {
        let several = |this: &mut Self, nodes: &[Node]| nodes.iter().map(|node| this.expression(set, node)).collect();
        match node {
            Node::Predicate(id) => Expression::Predicate(self.predicate(set, *id)),
            Node::Present(view) => Expression::Present(self.field(set, *view)),
            Node::Fields { left, right, place, cased } => Expression::Fields {
                left: self.field(set, *left),
                relation: relation(*place),
                right: self.field(set, *right),
                cased: *cased,
            },
            Node::And(nodes) => Expression::All(several(self, nodes)),
            Node::Or(nodes) => Expression::Any(several(self, nodes)),
            Node::Not(node) => Expression::Not(Box::new(self.expression(set, node))),
            Node::AtLeast(least, nodes) => Expression::AtLeast(*least, several(self, nodes)),
        }
    }

    fn fields_shown(&self, set: &RuleSet) -> Vec<FieldShown> {
        let shown = |(view, name): &(ViewId, String)| FieldShown {
            name: name.clone(),
            columns: match set.views.get(*view as usize) {
                Some(View::Field(columns)) => columns.clone(),
                _ => Vec::new(),
            },
        };
        self.fields.iter().map(shown).collect()
    }

    fn predicates_shown(&self, set: &RuleSet) -> Vec<PredicateShown> {
        let shown = |id: &PredicateId| {
            let predicate = set.predicates.get(*id as usize)?;
            let users = set.users.get(*id as usize).into_iter().flatten();
            Some(PredicateShown {
                field: self.fields.iter().position(|(view, _)| *view == predicate.view)?,
                test: test(&predicate.matcher),
                rules: users.filter(|user| (**user as usize) < set.rules.len()).count(),
            })
        };
        self.predicates.iter().filter_map(shown).collect()
    }
}

fn relation(place: Place) -> &'static str {
    match place {
        Place::Whole => "is",
        Place::Anywhere => "contains",
        Place::Start => "starts with",
        Place::End => "ends with",
    }
}

/// What a matcher asks of a value.
pub(crate) fn test(matcher: &Matcher) -> String {
    let case = |cased: bool| if cased { " (case matters)" } else { "" };
    match matcher {
        Matcher::Text { place: Place::Whole, literal, .. } if literal.is_empty() => "is empty text".to_owned(),
        Matcher::Text { place, literal, cased } => format!("{} {literal}{}", relation(*place), case(*cased)),
        Matcher::Glob { glob, cased } => format!("is like {}{}", pattern(glob), case(*cased)),
        Matcher::Regex(pattern) => format!("matches /{pattern}/"),
        Matcher::Cidr(Cidr::V4 { network, mask }) => {
            format!("is an address in {}/{}", std::net::Ipv4Addr::from_bits(*network), mask.count_ones())
        }
        Matcher::Cidr(Cidr::V6 { network, mask }) => {
            format!("is an address in {}/{}", std::net::Ipv6Addr::from_bits(*network), mask.count_ones())
        }
        Matcher::Number { comparison, number } => format!("is a number {} {}", sign(*comparison), shown(*number)),
        Matcher::Time { part, comparison, number } => {
            let part = match part {
                TimePart::Minute => "minute",
                TimePart::Hour => "hour",
                TimePart::Day => "day of the month",
                TimePart::Week => "week",
                TimePart::Month => "month",
                TimePart::Year => "year",
            };
            format!("is a time whose {part} (UTC) is {} {}", sign(*comparison), shown(*number))
        }
    }
}

fn sign(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Equal => "=",
        Comparison::Less => "<",
        Comparison::LessOrEqual => "<=",
        Comparison::Greater => ">",
        Comparison::GreaterOrEqual => ">=",
    }
}

fn shown(number: Number) -> String {
    match number {
        Number::Int(number) => number.to_string(),
        Number::Decimal { digits, exponent } => match usize::try_from(exponent.unsigned_abs()) {
            Ok(scale) if exponent < 0 && scale <= PLACES_MAX => {
                let text = format!("{:0>width$}", digits.unsigned_abs(), width = scale + 1);
                let (whole, fraction) = text.split_at(text.len().saturating_sub(scale));
                format!("{}{whole}.{fraction}", if digits < 0 { "-" } else { "" })
            }
            Ok(zeros) if zeros <= PLACES_MAX => format!("{digits}{}", "0".repeat(zeros)),
            _ => format!("{digits}e{exponent}"),
        },
    }
}

/// The pattern as a rule would write it; `[-/–—―]` is any of these dashes.
fn pattern(glob: &Glob) -> String {
    let mut text = String::new();
    if !glob.anchored_start {
        text.push('*');
    }
    for (at, segment) in glob.segments.iter().enumerate() {
        if at > 0 {
            text.push('*');
        }
        for element in segment {
            match element {
                Element::Char(letter @ ('*' | '?')) => text.extend(['\\', *letter]),
                Element::Char(letter) => text.push(*letter),
                Element::AnyChar => text.push('?'),
                Element::Dash => text.push_str("[-/–—―]"),
            }
        }
    }
    if !glob.anchored_end && !glob.segments.is_empty() {
        text.push('*');
    }
    text
}

impl Explanation {
    /// One part of the program in words: `p3` with what it asks, `Image has a value`.
    pub fn leaf(&self, expression: &Expression) -> Option<String> {
        leaf(expression, &self.fields, &self.predicates)
    }

    /// The program, one part a line.
    pub fn lines(&self, expression: &Expression) -> Vec<String> {
        lines(expression, &self.fields, &self.predicates)
    }
}

impl LogSourceShown {
    /// What must hold of an event, one part a line.
    pub fn lines(&self) -> Vec<String> {
        lines(&self.program, &self.fields, &self.predicates)
    }
}

fn leaf(expression: &Expression, fields: &[FieldShown], predicates: &[PredicateShown]) -> Option<String> {
    let field = |at: usize| fields.get(at).map_or("?", |field| field.name.as_str());
    Some(match expression {
        Expression::Predicate(number) => {
            let predicate = predicates.get(*number)?;
            format!("p{number}  {} {}", field(predicate.field), predicate.test)
        }
        Expression::Present(at) => format!("{} has a value", field(*at)),
        Expression::Fields { left, relation, right, cased } => {
            format!("{} {relation} {}{}", field(*left), field(*right), if *cased { " (case matters)" } else { "" })
        }
        _ => return None,
    })
}

fn lines(expression: &Expression, fields: &[FieldShown], predicates: &[PredicateShown]) -> Vec<String> {
    let mut out = Vec::new();
    write_lines(expression, fields, predicates, 0, &mut out);
    out
}

fn write_lines(
    expression: &Expression,
    fields: &[FieldShown],
    predicates: &[PredicateShown],
    depth: usize,
    out: &mut Vec<String>,
) {
    let indent = "  ".repeat(depth);
    if let Some(text) = leaf(expression, fields, predicates) {
        out.push(format!("{indent}{text}"));
        return;
    }
    let (word, parts) = match expression {
        Expression::All(parts) if parts.is_empty() => ("every event".to_owned(), [].as_slice()),
        Expression::Any(parts) if parts.is_empty() => ("no event".to_owned(), [].as_slice()),
        Expression::All(parts) => ("all of".to_owned(), parts.as_slice()),
        Expression::Any(parts) => ("any of".to_owned(), parts.as_slice()),
        Expression::Not(part) => ("not".to_owned(), std::slice::from_ref(&**part)),
        Expression::AtLeast(least, parts) => (format!("at least {least} of"), parts.as_slice()),
        // Leaves are written above.
        Expression::Predicate(_) | Expression::Present(_) | Expression::Fields { .. } => return,
    };
    out.push(format!("{indent}{word}"));
    parts.iter().for_each(|part| write_lines(part, fields, predicates, depth + 1, out));
}
