//! What a correlation asks of a window: bounds on a number, or an expression over rule names.

use std::cmp::Ordering;

use crate::correlation::amount::{Amount, Unit};
use crate::problem::Fault;

/// How a measured value must stand to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Lt,
    Lte,
    Gt,
    Gte,
    Eq,
    Neq,
}

impl Relation {
    /// All of them with the keys they have in a condition.
    pub const ALL: [(&'static str, Self); 6] = [
        ("gt", Self::Gt),
        ("gte", Self::Gte),
        ("lt", Self::Lt),
        ("lte", Self::Lte),
        ("eq", Self::Eq),
        ("neq", Self::Neq),
    ];

    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Lt => ordering.is_lt(),
            Self::Lte => ordering.is_le(),
            Self::Gt => ordering.is_gt(),
            Self::Gte => ordering.is_ge(),
            Self::Eq => ordering.is_eq(),
            Self::Neq => ordering.is_ne(),
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Lt => "<",
            Self::Lte => "<=",
            Self::Gt => ">",
            Self::Gte => ">=",
            Self::Eq => "=",
            Self::Neq => "!=",
        }
    }
}

/// Bounds that must all hold; at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bounds(pub Vec<(Relation, Amount)>);

impl Bounds {
    pub fn hold(&self, value: Amount) -> bool {
        self.0.iter().all(|(relation, bound)| relation.holds(value.compare_value(*bound)))
    }

    /// What sums are counted in.
    pub fn unit(&self) -> Unit {
        Unit::of(self.0.iter().map(|(_, bound)| *bound))
    }

    /// Whether a sum of so many units satisfies them; of an average, the sum of `count` amounts: the quotient would be rounded.
    pub fn hold_sum(&self, unit: Unit, sum: i128, count: u64) -> bool {
        let bound = |bound: Amount| unit.count(bound).saturating_mul(i128::from(count));
        self.0.iter().all(|(relation, own)| relation.holds(sum.cmp(&bound(*own))))
    }

    /// Whether more can only help, so that a window may be judged before it is over.
    pub fn only_from_below(&self) -> bool {
        self.0.iter().all(|(relation, _)| matches!(relation, Relation::Gt | Relation::Gte))
    }

    /// The smallest count from 1 to `count_max` that satisfies them.
    pub fn smallest_count(&self, count_max: u64) -> Option<u64> {
        let near = self.0.iter().flat_map(|(_, bound)| {
            let whole = bound.as_f64().clamp(0.0, count_max as f64) as u64;
            [whole.saturating_sub(1), whole, whole + 1, whole + 2]
        });
        let mut counts: Vec<u64> = near.chain([1, 2]).filter(|count| (1..=count_max).contains(count)).collect();
        counts.sort_unstable();
        counts.into_iter().find(|count| self.hold(Amount::whole(*count)))
    }

    /// `>= 5 and < 10`.
    pub fn text(&self) -> String {
        let bounds: Vec<String> =
            self.0.iter().map(|(relation, bound)| format!("{} {}", relation.sign(), bound.to_json())).collect();
        bounds.join(" and ")
    }
}

/// A condition over rule names, with `not` pushed down to the names. Rules are numbers: their places in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Seen(usize),
    Absent(usize),
}

impl Expression {
    /// Parses `a and (b or not c)`; the names in order of appearance are the second part. Keywords in any case.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), Fault> {
        let mut parser = Parser { tokens: tokens(text), at: 0, names: Vec::new() };
        let expression = parser.any(false)?;
        match parser.tokens.get(parser.at) {
            None => Ok((expression, parser.names)),
            Some(token) => Err(parser.fault(&format!("{token:?} is out of place"))),
        }
    }

    /// Renumbers the rules.
    pub fn renumber(&mut self, number: &impl Fn(usize) -> usize) {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter_mut().for_each(|part| part.renumber(number)),
            Self::Seen(rule) | Self::Absent(rule) => *rule = number(*rule),
        }
    }

    /// Whether it holds when the rules of `seen` count as seen and those that `absent` holds for as absent.
    pub fn holds(&self, seen: &impl Fn(usize) -> bool, absent: &impl Fn(usize) -> bool) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(seen, absent)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(seen, absent)),
            Self::Seen(rule) => seen(*rule),
            Self::Absent(rule) => absent(*rule),
        }
    }

    /// Whether it asks for the absence of a rule: only a window that is over can tell.
    pub fn has_absence(&self) -> bool {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().any(Self::has_absence),
            Self::Seen(_) => false,
            Self::Absent(_) => true,
        }
    }
}

fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    for word in text.split_whitespace() {
        let mut rest = word;
        while !rest.is_empty() {
            let end = match rest.find(['(', ')']) {
                Some(0) => 1,
                Some(at) => at,
                None => rest.len(),
            };
            let (token, after) = rest.split_at(end);
            tokens.push(token);
            rest = after;
        }
    }
    tokens
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    names: Vec<String>,
}

impl Parser<'_> {
    fn fault(&self, reason: &str) -> Fault {
        Fault::new(format!("the condition is not an expression over rule names: {reason}"))
            .hint("rule names, and/or/not, parentheses")
            .near("condition:")
    }

    fn takes(&mut self, keyword: &str) -> bool {
        let takes = self.tokens.get(self.at).is_some_and(|token| token.eq_ignore_ascii_case(keyword));
        self.at += usize::from(takes);
        takes
    }

    /// Terms joined by `or`; `negated` says whether a `not` stands before all of it.
    fn any(&mut self, negated: bool) -> Result<Expression, Fault> {
        let mut parts = vec![self.all(negated)?];
        while self.takes("or") {
            parts.push(self.all(negated)?);
        }
        Ok(joined(parts, !negated))
    }

    fn all(&mut self, negated: bool) -> Result<Expression, Fault> {
        let mut parts = vec![self.term(negated)?];
        while self.takes("and") {
            parts.push(self.term(negated)?);
        }
        Ok(joined(parts, negated))
    }

    /// The depth of parentheses is bounded where the document was read.
    fn term(&mut self, mut negated: bool) -> Result<Expression, Fault> {
        while self.takes("not") {
            negated = !negated;
        }
        if self.takes("(") {
            let inner = self.any(negated)?;
            return if self.takes(")") { Ok(inner) } else { Err(self.fault("a parenthesis is not closed")) };
        }
        let Some(name) = self.tokens.get(self.at).copied() else { return Err(self.fault("it ends too early")) };
        if name == ")" || ["and", "or"].iter().any(|word| name.eq_ignore_ascii_case(word)) {
            return Err(self.fault(&format!("{name:?} is out of place")));
        }
        self.at += 1;
        let number = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        Ok(if negated { Expression::Absent(number) } else { Expression::Seen(number) })
    }
}

fn joined(mut parts: Vec<Expression>, any: bool) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            if any { Expression::Any(parts) } else { Expression::All(parts) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_follow_precedence_and_push_not_down() {
        let truth = |text: &str, seen: &[&str]| {
            let (expression, names) = Expression::parse(text).expect("an expression");
            let has = |rule: usize| seen.contains(&names[rule].as_str());
            expression.holds(&has, &|rule| !has(rule))
        };
        for (text, seen, holds) in [
            ("a", &["a"][..], true),
            ("a or b and c", &["a"], true),
            ("a or b and c", &["b"], false),
            ("a and (b or not c)", &["a"], true),
            ("a and (b or not c)", &["a", "c"], false),
            ("a and (b or not c)", &["a", "b", "c"], true),
            ("not (a and b) and c", &["a", "c"], true),
            ("not (a and b) and c", &["a", "b", "c"], false),
            ("a AND NOT(NOT b)", &["a", "b"], true),
            ("not not not a", &[], true),
            ("5638f7c0-ac70-491d-8465-2a65075e0d86 and b.c", &["b.c"], false),
        ] {
            assert_eq!(truth(text, seen), holds, "{text} {seen:?}");
        }
        for text in ["", "a b", "a and", "(a", "a)", "not", "and a", "a or or b", "()"] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_smallest_count_is_found_or_there_is_none() {
        let bounds = |list: &[(Relation, &str)]| {
            Bounds(list.iter().map(|(relation, text)| (*relation, Amount::parse(text).expect("a number"))).collect())
        };
        for (list, smallest) in [
            (&[(Relation::Gte, "5")][..], Some(5)),
            (&[(Relation::Gt, "5")], Some(6)),
            (&[(Relation::Gt, "5.5")], Some(6)),
            (&[(Relation::Gte, "-3")], Some(1)),
            (&[(Relation::Gt, "5"), (Relation::Lte, "10")], Some(6)),
            (&[(Relation::Gt, "5"), (Relation::Lt, "6")], None),
            (&[(Relation::Lt, "1")], None),
            (&[(Relation::Eq, "0")], None),
            (&[(Relation::Neq, "1")], Some(2)),
            (&[(Relation::Gte, "101")], None),
        ] {
            assert_eq!(bounds(list).smallest_count(100), smallest, "{list:?}");
        }
    }
}
