//! What is odd about the logic of one rule: selections that nothing names, filters that take nothing away, conditions that
//! nothing meets.
//!
//! Two selections exclude each other when they want different texts of the same field: `Image: C:\a.exe` and
//! `Image|endswith: \b.exe`. Only plain texts without wildcards are compared, so what is said is right unless the field holds
//! several values.

use std::collections::{BTreeSet, HashMap};

use rsigma_parser::{ConditionExpr, Detection, DetectionItem, Detections, Modifier, Quantifier, SigmaValue};

use crate::fold::fold;
use crate::problem::Fault;

/// The warnings: (check, what and where).
pub(super) fn lint(detections: &Detections) -> Vec<(&'static str, Fault)> {
    let mut warnings = Vec::new();
    unused(detections, &mut warnings);
    let told: &mut BTreeSet<(&str, &str)> = &mut BTreeSet::new();
    for condition in &detections.conditions {
        let mut wanted = Vec::new();
        let mut refused = Vec::new();
        sides(condition, detections, &mut wanted, &mut refused);
        for (at, one) in wanted.iter().enumerate() {
            for other in wanted.iter().skip(at + 1) {
                if one != other && told.insert((one, other)) && excluded(&detections.named, one, other) {
                    let reason = format!("the condition wants both {one} and {other}, which exclude each other");
                    let hint = "the rule can only match where a field holds several values";
                    warnings.push(("never_matches", Fault::new(reason).hint(hint).near(&format!("{other}:"))));
                }
            }
            for filter in &refused {
                if !told.insert((one, filter)) {
                    continue;
                }
                if same(&detections.named, one, filter) {
                    let reason = format!("the condition wants {one} and refuses {filter}, which ask for the same");
                    let fault = Fault::new(reason).hint("the rule can never match").near(&format!("{filter}:"));
                    warnings.push(("never_matches", fault));
                } else if excluded(&detections.named, one, filter) {
                    let reason = format!("{filter} takes nothing away: {one} wants other values of the same field");
                    let hint = "leave it out, or correct its values";
                    warnings.push(("unreachable_filter", Fault::new(reason).hint(hint).near(&format!("{filter}:"))));
                }
            }
        }
    }
    warnings
}

/// The names of all fields of a rule.
pub(super) fn fields(detections: &Detections) -> BTreeSet<String> {
    fn collect(detection: &Detection, fields: &mut BTreeSet<String>) {
        match detection {
            Detection::AllOf(items) => fields.extend(items.iter().filter_map(|item| item.field.name.clone())),
            Detection::AnyOf(parts) | Detection::And(parts) => parts.iter().for_each(|part| collect(part, fields)),
            Detection::Keywords(_) | Detection::ArrayMatch { .. } | Detection::Conditional { .. } => {}
        }
    }
    let mut fields = BTreeSet::new();
    detections.named.values().for_each(|detection| collect(detection, &mut fields));
    fields
}

fn unused(detections: &Detections, warnings: &mut Vec<(&'static str, Fault)>) {
    fn mark<'a>(expression: &ConditionExpr, names: &[&'a str], used: &mut BTreeSet<&'a str>) {
        match expression {
            ConditionExpr::And(parts) | ConditionExpr::Or(parts) => {
                parts.iter().for_each(|part| mark(part, names, used));
            }
            ConditionExpr::Not(part) => mark(part, names, used),
            ConditionExpr::Identifier(name) => used.extend(names.iter().filter(|own| *own == name)),
            ConditionExpr::Selector { pattern, .. } => {
                used.extend(names.iter().filter(|own| pattern.matches_detection_name(own)));
            }
        }
    }
    let mut names: Vec<&str> = detections.named.keys().map(String::as_str).collect();
    names.sort_unstable();
    let mut used = BTreeSet::new();
    detections.conditions.iter().for_each(|condition| mark(condition, &names, &mut used));
    for name in names.into_iter().filter(|name| !used.contains(name)) {
        let fault = Fault::new(format!("the condition does not name the selection {name}"));
        warnings.push((
            "unused_selection",
            fault.hint("name it in the condition, or leave it out").near(&format!("{name}:")),
        ));
    }
}

/// The selections that must all hold, and those of which none may.
fn sides<'a>(
    expression: &'a ConditionExpr,
    detections: &'a Detections,
    wanted: &mut Vec<&'a str>,
    refused: &mut Vec<&'a str>,
) {
    match expression {
        ConditionExpr::And(parts) => parts.iter().for_each(|part| sides(part, detections, wanted, refused)),
        ConditionExpr::Not(part) => any_of(part, detections, refused),
        ConditionExpr::Identifier(name) => wanted.push(name),
        ConditionExpr::Selector { quantifier: Quantifier::All, pattern } => {
            let names = detections.named.keys().filter(|name| pattern.matches_detection_name(name));
            let mut names: Vec<&str> = names.map(String::as_str).collect();
            names.sort_unstable();
            wanted.extend(names);
        }
        ConditionExpr::Or(_) | ConditionExpr::Selector { .. } => {}
    }
}

/// The selections of which any makes the expression true.
fn any_of<'a>(expression: &'a ConditionExpr, detections: &'a Detections, names: &mut Vec<&'a str>) {
    match expression {
        ConditionExpr::Or(parts) => parts.iter().for_each(|part| any_of(part, detections, names)),
        ConditionExpr::Identifier(name) => names.push(name),
        ConditionExpr::Selector { quantifier: Quantifier::Any | Quantifier::Count(1), pattern } => {
            let own = detections.named.keys().filter(|name| pattern.matches_detection_name(name));
            let mut own: Vec<&str> = own.map(String::as_str).collect();
            own.sort_unstable();
            names.extend(own);
        }
        _ => {}
    }
}

fn same(named: &HashMap<String, Detection>, one: &str, other: &str) -> bool {
    matches!((named.get(one), named.get(other)), (Some(one), Some(other)) if one == other)
}

fn excluded(named: &HashMap<String, Detection>, one: &str, other: &str) -> bool {
    matches!((named.get(one), named.get(other)), (Some(one), Some(other)) if exclude_each_other(one, other))
}

/// Whether no event can meet both.
fn exclude_each_other(one: &Detection, other: &Detection) -> bool {
    match (one, other) {
        (Detection::AnyOf(parts), other) | (other, Detection::AnyOf(parts)) => {
            !parts.is_empty() && parts.iter().all(|part| exclude_each_other(part, other))
        }
        (Detection::And(parts), other) | (other, Detection::And(parts)) => {
            parts.iter().any(|part| exclude_each_other(part, other))
        }
        (Detection::AllOf(own), Detection::AllOf(others)) => {
            own.iter().any(|item| others.iter().any(|other| items_exclude_each_other(item, other)))
        }
        _ => false,
    }
}

/// What an item wants of its field.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    Whole(String),
    Start(String),
    End(String),
    Part(String),
    Nothing,
}

fn items_exclude_each_other(one: &DetectionItem, other: &DetectionItem) -> bool {
    if one.field.name.is_none() || one.field.name != other.field.name {
        return false;
    }
    let (Some(own), Some(others)) = (wants(one), wants(other)) else { return false };
    own.iter().all(|own| others.iter().all(|other| contradict(own, other) || contradict(other, own)))
}

/// The texts of which the field must have one; `None` when that is not all that the item asks.
fn wants(item: &DetectionItem) -> Option<Vec<Want>> {
    let make: fn(String) -> Want = match item.field.modifiers.as_slice() {
        [] => Want::Whole,
        [Modifier::StartsWith] => Want::Start,
        [Modifier::EndsWith] => Want::End,
        [Modifier::Contains] => Want::Part,
        _ => return None,
    };
    let want = |value: &SigmaValue| match value {
        SigmaValue::String(text) => Some(make(fold(&text.as_plain()?).into_owned())),
        SigmaValue::Integer(number) => Some(make(number.to_string())),
        SigmaValue::Null => Some(Want::Nothing),
        SigmaValue::Float(_) | SigmaValue::Bool(_) => None,
    };
    let wants: Option<Vec<Want>> = item.values.iter().map(want).collect();
    wants.filter(|wants| !wants.is_empty())
}

fn contradict(one: &Want, other: &Want) -> bool {
    match (one, other) {
        (Want::Nothing, Want::Nothing) => false,
        (Want::Nothing, _) => true,
        (Want::Whole(text), Want::Whole(other)) => text != other,
        (Want::Whole(text), Want::Start(start)) => !text.starts_with(start.as_str()),
        (Want::Whole(text), Want::End(end)) => !text.ends_with(end.as_str()),
        (Want::Whole(text), Want::Part(part)) => !text.contains(part.as_str()),
        (Want::Start(one), Want::Start(other)) => !one.starts_with(other.as_str()) && !other.starts_with(one.as_str()),
        (Want::End(one), Want::End(other)) => !one.ends_with(other.as_str()) && !other.ends_with(one.as_str()),
        _ => false,
    }
}
