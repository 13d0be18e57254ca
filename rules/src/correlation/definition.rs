//! The `correlation` section of a document, checked.
//!
//! `rsigma-parser` reads the document; the section itself is read here once more, because the parser passes over what it does
//! not understand (a rule that is no text, an unknown key) and refuses bounds that are not whole numbers, which the
//! specification allows.

use std::borrow::Cow;

use rsigma_parser::{CorrelationRule, CorrelationType};
use serde::Deserialize;
use yaml_serde::{Mapping, Value};

use crate::correlation::amount::Amount;
use crate::correlation::condition::{Bounds, Expression, Relation};
use crate::problem::Fault;

/// The most rules one correlation refers to.
const RULES_MAX: usize = 256;
/// The most rules in an ordered condition: the ways through them are 2^n.
const ORDERED_RULES_MAX: usize = 8;
/// The most fields that events are grouped by, or that make up a counted value.
const FIELDS_MAX: usize = 16;
/// The longest window: ten years.
const SPAN_SECONDS_MAX: u64 = 315_569_520;

/// The keys of the section.
const KEYS: [&str; 9] =
    ["type", "rules", "group-by", "timespan", "timeframe", "condition", "aliases", "generate", "window"];

/// What is asked of a window.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Condition {
    /// On the number that the kind of correlation measures.
    Bounds(Bounds),
    /// On which rules were seen.
    Expression(Expression),
}

/// A checked section.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Definition {
    pub kind: CorrelationType,
    /// The rules it refers to, by id or name; each is a *slot*.
    pub rules: Vec<String>,
    pub group_by: Vec<String>,
    /// The timespan in microseconds and as written.
    pub span: (i64, String),
    pub condition: Condition,
    /// The condition for people.
    pub condition_text: String,
    /// The fields that are counted or added up.
    pub fields: Vec<String>,
    /// The percentile, 0 to 100.
    pub percentile: u64,
    /// Alias, rule, field.
    pub aliases: Vec<(String, String, String)>,
    pub generate: bool,
}

/// The document with whole numbers for bounds that are not, and with a condition in words that `rsigma-parser` reads; what it
/// cannot read is told by [`Definition::read`].
pub(crate) fn readable(text: &str) -> Cow<'_, str> {
    if !text.contains("correlation") || !text.contains("condition") {
        return Cow::Borrowed(text);
    }
    let Some(mut document) = only_document(text) else { return Cow::Borrowed(text) };
    let condition = document.get_mut("correlation").and_then(|section| section.get_mut("condition"));
    let mut changed = false;
    if let Some(Value::String(words)) = &condition
        && rsigma_parser::parse_condition(words).is_err()
    {
        let lower = words.replace(" AND ", " and ").replace(" OR ", " or ").replace("NOT ", "not ");
        let readable = if rsigma_parser::parse_condition(&lower).is_ok() { lower } else { "unreadable".to_owned() };
        if let Some(condition) = condition {
            *condition = Value::String(readable);
        }
        return yaml_serde::to_string(&document).map_or(Cow::Borrowed(text), Cow::Owned);
    }
    for (key, value) in condition.and_then(Value::as_mapping_mut).into_iter().flatten() {
        let is_bound = key.as_str().is_some_and(|key| Relation::ALL.iter().any(|(name, _)| *name == key));
        if is_bound && number(value).is_some() && value.as_u64().is_none() {
            *value = Value::from(0u64);
            changed = true;
        }
    }
    match yaml_serde::to_string(&document) {
        Ok(text) if changed => Cow::Owned(text),
        _ => Cow::Borrowed(text),
    }
}

fn only_document(text: &str) -> Option<Value> {
    let mut documents = yaml_serde::Deserializer::from_str(text).map(Value::deserialize);
    match (documents.next(), documents.next()) {
        (Some(Ok(document)), None) => Some(document),
        _ => None,
    }
}

fn number(value: &Value) -> Option<Amount> {
    match value {
        Value::Number(number) => Amount::parse(&number.to_string()),
        Value::String(text) => Amount::parse(text),
        _ => None,
    }
}

fn refuse<T>(near: &str, reason: impl Into<String>, hint: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(reason).hint(hint).near(near))
}

impl Definition {
    /// Reads the section of `rule` from the text of its document. At most `events_max` events of a group are kept, so no
    /// condition may need more.
    pub fn read(rule: &CorrelationRule, text: &str, events_max: usize) -> Result<Self, Fault> {
        let Some(document) = only_document(text) else {
            return refuse(
                "",
                "a correlation does not go together with `action:`",
                "write it as a document of its own",
            );
        };
        let Some(section) = document.get("correlation").and_then(Value::as_mapping) else {
            return refuse("correlation:", "the correlation is not a map", "see docs/rules.md");
        };
        if let Some(key) = section.keys().find(|key| key.as_str().is_none_or(|key| !KEYS.contains(&key))) {
            let name = key.as_str().unwrap_or_default();
            let reason = format!("a correlation has no key {name:?}");
            return refuse(&format!("{name}:"), reason, format!("the keys are {}", KEYS.join(", ")));
        }
        if section.get("window").is_some_and(|window| window.as_str() != Some("sliding")) || rule.gap.is_some() {
            return refuse("window:", "only sliding windows are part of Sigma", "leave `window` and `gap` out");
        }
        let mut definition = Self {
            kind: rule.correlation_type,
            rules: texts(section, "rules")?,
            group_by: texts(section, "group-by")?,
            span: span(rule)?,
            condition: Condition::Bounds(Bounds(Vec::new())),
            condition_text: String::new(),
            fields: Vec::new(),
            percentile: 50,
            aliases: aliases(section)?,
            generate: rule.generate,
        };
        definition.read_condition(section.get("condition"))?;
        for (key, count) in [("group-by", definition.group_by.len()), ("field", definition.fields.len())] {
            if count > FIELDS_MAX {
                return refuse(&format!("{key}:"), format!("`{key}` has more than {FIELDS_MAX} fields"), "name fewer");
            }
        }
        definition.check(events_max)?;
        Ok(definition)
    }

    fn is_temporal(&self) -> bool {
        matches!(self.kind, CorrelationType::Temporal | CorrelationType::TemporalOrdered)
    }

    /// Whether a window may be judged before it is over.
    pub fn is_eager(&self) -> bool {
        match &self.condition {
            Condition::Bounds(bounds) => bounds.only_from_below(),
            Condition::Expression(expression) => !expression.has_absence(),
        }
    }

    /// The smallest count that can satisfy the condition.
    pub fn needed(&self, events_max: usize) -> u64 {
        match &self.condition {
            Condition::Bounds(bounds) => bounds.smallest_count(events_max as u64).unwrap_or(1),
            Condition::Expression(_) => 1,
        }
    }

    fn read_condition(&mut self, condition: Option<&Value>) -> Result<(), Fault> {
        match condition {
            Some(Value::String(text)) if self.is_temporal() => self.read_expression(text),
            Some(Value::String(_)) => refuse(
                "condition:",
                format!("a condition in words is for temporal correlations, not for {}", self.kind.as_str()),
                "write a bound, as `gte: 10`",
            ),
            Some(Value::Mapping(map)) => self.read_bounds(map),
            None if self.is_temporal() => {
                self.condition =
                    Condition::Expression(Expression::All((0..self.rules.len()).map(Expression::Seen).collect()));
                self.condition_text = self.rules.join(" and ");
                Ok(())
            }
            None => refuse("correlation:", "the correlation has no condition", "add one, as `condition: {gte: 10}`"),
            Some(_) => refuse("condition:", "the condition is neither a map nor a text", "as `condition: {gte: 10}`"),
        }
    }

    fn read_expression(&mut self, text: &str) -> Result<(), Fault> {
        let (mut expression, names) = Expression::parse(text)?;
        if self.rules.is_empty() {
            self.rules = names;
        } else {
            let mut places = Vec::new();
            for name in &names {
                let Some(place) = self.rules.iter().position(|rule| rule == name) else {
                    return refuse(
                        "condition:",
                        format!("the condition names {name}, which is not in `rules`"),
                        "add it there",
                    );
                };
                places.push(place);
            }
            if let Some(unused) = self.rules.iter().find(|rule| !names.contains(rule)) {
                return refuse(
                    "condition:",
                    format!("the condition does not name {unused}, which is in `rules`"),
                    "use it, or take it out",
                );
            }
            expression.renumber(&|at| places.get(at).copied().unwrap_or(at));
        }
        self.condition = Condition::Expression(expression);
        self.condition_text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(())
    }

    fn read_bounds(&mut self, map: &Mapping) -> Result<(), Fault> {
        let mut bounds = Vec::new();
        for (key, value) in map {
            let key = key.as_str().unwrap_or_default();
            match Relation::ALL.iter().find(|(name, _)| *name == key) {
                Some((_, relation)) => match number(value) {
                    Some(bound) => bounds.push((*relation, bound)),
                    None => {
                        return refuse(
                            &format!("{key}:"),
                            format!("the bound `{key}` is not a number"),
                            "as `gte: 10`",
                        );
                    }
                },
                None if !matches!(key, "field" | "percentile") => {
                    let keys: Vec<&str> = Relation::ALL.iter().map(|(name, _)| *name).collect();
                    let hint = format!("the keys are {}, field and percentile", keys.join(", "));
                    return refuse(&format!("{key}:"), format!("a condition has no key {key:?}"), hint);
                }
                None => {}
            }
        }
        if bounds.is_empty() {
            return refuse("condition:", "the condition has no bound", "add one of gt, gte, lt, lte, eq, neq");
        }
        self.fields = texts(map, "field")?;
        if let Some(percentile) = map.get("percentile") {
            match percentile.as_u64() {
                Some(value @ 0..=100) => self.percentile = value,
                _ => {
                    return refuse(
                        "percentile:",
                        "the percentile is not a whole number from 0 to 100",
                        "as `percentile: 95`",
                    );
                }
            }
        }
        if self.kind == CorrelationType::ValueMedian {
            self.percentile = 50;
        }
        let bounds = Bounds(bounds);
        self.condition_text = bounds.text();
        self.condition = Condition::Bounds(bounds);
        Ok(())
    }

    fn check(&mut self, events_max: usize) -> Result<(), Fault> {
        if self.rules.is_empty() {
            return refuse(
                "correlation:",
                "the correlation refers to no rules",
                "name them by id or name under `rules`",
            );
        }
        if self.rules.len() > RULES_MAX {
            return refuse("rules:", format!("more than {RULES_MAX} rules"), "chain several correlations");
        }
        if let Some((at, rule)) =
            self.rules.iter().enumerate().find(|(at, rule)| self.rules.iter().take(*at).any(|known| known == *rule))
        {
            return refuse(
                "rules:",
                format!("{rule} is named twice, again in place {}", at + 1),
                "name each rule once",
            );
        }
        let measured = !matches!(self.kind, CorrelationType::EventCount) && !self.is_temporal();
        let several = self.kind == CorrelationType::ValueCount;
        match self.fields.len() {
            0 if measured => {
                let reason = format!("{} needs the field it measures", self.kind.as_str());
                return refuse("condition:", reason, "add `field: name` to the condition");
            }
            2.. if !several => {
                let reason = format!("{} measures one field", self.kind.as_str());
                return refuse("field:", reason, "only value_count takes a list");
            }
            _ => {}
        }
        let ordered = self.kind == CorrelationType::TemporalOrdered;
        match &self.condition {
            Condition::Expression(expression) => {
                if expression.holds(&|_| false, &|_| true) {
                    return refuse(
                        "condition:",
                        "the condition holds when nothing was seen",
                        "name a rule that must be seen",
                    );
                }
                if ordered
                    && !matches!(expression, Expression::All(parts) if parts.iter().enumerate().all(|(at, part)| *part == Expression::Seen(at)))
                    && self.rules.len() > ORDERED_RULES_MAX
                {
                    let reason = format!("an ordered condition over more than {ORDERED_RULES_MAX} rules");
                    return refuse("condition:", reason, "leave the condition out, so that all are needed, or chain");
                }
            }
            Condition::Bounds(bounds) => self.check_bounds(&bounds.clone(), ordered, events_max)?,
        }
        Ok(())
    }

    fn check_bounds(&mut self, bounds: &Bounds, ordered: bool, events_max: usize) -> Result<(), Fault> {
        let rules = self.rules.len() as u64;
        let counts_max = if self.is_temporal() { rules } else { events_max as u64 };
        let counts =
            matches!(self.kind, CorrelationType::EventCount | CorrelationType::ValueCount) || self.is_temporal();
        if counts && bounds.smallest_count(counts_max).is_none() {
            let reason = format!("the condition {} holds for no count from 1 to {counts_max}", bounds.text());
            let hint = if self.is_temporal() {
                "the count is that of the rules seen"
            } else {
                "a window has at least one event and at most correlation_group_events_max"
            };
            return refuse("condition:", reason, hint);
        }
        if ordered {
            if bounds.smallest_count(rules) != Some(rules) {
                return refuse(
                    "condition:",
                    "an ordered correlation needs all of its rules",
                    "leave the condition out",
                );
            }
            self.condition =
                Condition::Expression(Expression::All((0..self.rules.len()).map(Expression::Seen).collect()));
        }
        Ok(())
    }
}

fn span(rule: &CorrelationRule) -> Result<(i64, String), Fault> {
    let (seconds, text) = (rule.timespan.seconds, &rule.timespan.original);
    if seconds == 0 || seconds > SPAN_SECONDS_MAX {
        return refuse("timespan:", format!("the timespan {text} is not between 1s and 10y"), "as `timespan: 5m`");
    }
    Ok((seconds as i64 * 1_000_000, text.clone()))
}

/// A text or a list of texts; absent is empty.
fn texts(map: &Mapping, key: &str) -> Result<Vec<String>, Fault> {
    let near = format!("{key}:");
    let text = |value: &Value| value.as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Sequence(items)) => match items.iter().map(text).collect::<Option<Vec<String>>>() {
            Some(texts) if texts.len() <= RULES_MAX => Ok(texts),
            Some(_) => refuse(&near, format!("`{key}` has more than {RULES_MAX} entries"), "name fewer"),
            None => refuse(&near, format!("`{key}` holds something that is not a text"), "quote numbers"),
        },
        Some(value) => match text(value) {
            Some(text) => Ok(vec![text]),
            None => refuse(&near, format!("`{key}` is neither a text nor a list of texts"), "quote numbers"),
        },
    }
}

fn aliases(section: &Mapping) -> Result<Vec<(String, String, String)>, Fault> {
    let wrong = || {
        refuse(
            "aliases:",
            "the aliases are not maps of rule to field",
            "as `aliases: {user: {rule_a: UserName, rule_b: TargetUser}}`",
        )
    };
    let mut aliases = Vec::new();
    let map = match section.get("aliases") {
        None | Some(Value::Null) => return Ok(aliases),
        Some(Value::Mapping(map)) => map,
        Some(_) => return wrong(),
    };
    for (alias, fields) in map {
        let (Some(alias), Some(fields)) = (alias.as_str(), fields.as_mapping()) else { return wrong() };
        for (rule, field) in fields {
            let (Some(rule), Some(field)) = (rule.as_str(), field.as_str()) else { return wrong() };
            aliases.push((alias.to_owned(), rule.to_owned(), field.to_owned()));
        }
    }
    aliases.sort();
    Ok(aliases)
}
