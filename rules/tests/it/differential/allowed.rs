//! Where we differ from RSigma 0.23.0, and why the specification is on our side.

use rsigma_parser::{Detection, DetectionItem, FieldSpec, Modifier, SigmaRule, SigmaValue};
use serde_json::{Map, Value};

/// A difference: what it is with the words of the specification, and whether an item of the rule and the event can show it.
struct Allowed {
    reason: &'static str,
    fits: fn(&DetectionItem, &Map<String, Value>) -> bool,
}

const ALLOWED: &[Allowed] = &[
    Allowed {
        reason: "'|all' over keywords: RSigma never matches; \"to have an and operator, we use the '|all': modifier\" \
                 (rules specification, Keywords search)",
        fits: |item, _| item.field.name.is_none() && item.field.has_modifier(Modifier::All),
    },
    Allowed {
        reason: "a wildcard over a line break: RSigma stops there; \"? to replace a single mandatory character\", and * is \
                 unbounded (rules specification, String Wildcard)",
        fits: |item, event| {
            let wild = |value: &SigmaValue| matches!(value, SigmaValue::String(text) if text.contains_wildcards());
            item.values.iter().any(wild) && event.values().any(|value| value.to_string().contains("\\n"))
        },
    },
    Allowed {
        reason: "a wildcard inside a contains, startswith or endswith: RSigma forgets the anchor, or misses; \
                 \"you can use wildcard characters * and ? in strings\" (rules specification, General)",
        fits: |item, _| {
            let placed = [Modifier::Contains, Modifier::StartsWith, Modifier::EndsWith];
            let wild = |value: &SigmaValue| matches!(value, SigmaValue::String(text) if text.contains_wildcards());
            item.field.modifiers.iter().any(|modifier| placed.contains(modifier)) && item.values.iter().any(wild)
        },
    },
    Allowed {
        reason: "windash from a slash: RSigma varies dashes only; \"all possible permutations of the -, /, –, —, and ― \
                 characters\" (modifiers appendix)",
        fits: |item, _| item.field.has_modifier(Modifier::WindAsh),
    },
    Allowed {
        reason: "numbers as keywords: RSigma looks for equal numbers only; keywords are searched \"across an entire event\" (rules \
                 specification, Keywords search)",
        fits: |item, _| {
            item.field.name.is_none() && item.values.iter().any(|value| !matches!(value, SigmaValue::String(_)))
        },
    },
    Allowed {
        reason: "base64offset of a value whose end shares a group with what follows: RSigma leaves a letter that depends on it; \
                 \"except the first and last byte the encoded values have a static part\" (modifiers appendix)",
        fits: |item, _| item.field.has_modifier(Modifier::Base64Offset),
    },
    Allowed {
        reason: "fieldref over a field with several values: RSigma compares the list; the specification is silent, and everywhere \
                 else a field with several values has each of them",
        fits: |item, event| item.field.has_modifier(Modifier::FieldRef) && event.values().any(Value::is_array),
    },
];

/// The reason for which this rule may match an event on one side only.
pub fn reason(rule: &SigmaRule, event: &Map<String, Value>) -> Option<&'static str> {
    let mut items = Vec::new();
    rule.detection.named.values().for_each(|detection| collect(detection, &mut items));
    let fits = |allowed: &&Allowed| items.iter().any(|item| (allowed.fits)(item, event));
    ALLOWED.iter().find(fits).map(|allowed| allowed.reason)
}

fn collect(detection: &Detection, items: &mut Vec<DetectionItem>) {
    match detection {
        Detection::AllOf(own) => items.extend(own.clone()),
        Detection::AnyOf(parts) | Detection::And(parts) => parts.iter().for_each(|part| collect(part, items)),
        Detection::Keywords(values) => {
            items.push(DetectionItem { field: FieldSpec::new(None, Vec::new()), values: values.clone() });
        }
        Detection::ArrayMatch { .. } | Detection::Conditional { .. } => {}
    }
}
