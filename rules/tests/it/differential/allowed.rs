//! Where we differ from RSigma 0.23.0, and why the specification is on our side (or where it is silent): rule by rule, in
//! `tests/differential.yml`.
//!
//! A difference is explained when every part of the rule that the two decide otherwise on the event, taken by itself, shows one of
//! these reasons, and the rule is in the list of that reason. A rule in a list that shows no such difference any more fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rsigma_parser::{DetectionItem, Modifier, SigmaValue};
use serde_json::{Map, Value};

/// A difference: what it is with the words of the specification, and whether a part of a rule and the event can show it.
struct Reason {
    key: &'static str,
    text: &'static str,
    /// Whether it is always we who match the part.
    ours: bool,
    fits: fn(&DetectionItem, &Map<String, Value>) -> bool,
}

const REASONS: &[Reason] = &[
    Reason {
        key: "keywords-all",
        text: "'|all' over keywords: RSigma never matches; \"to have an and operator, we use the '|all': modifier\" \
               (rules specification, Keywords search)",
        ours: true,
        fits: |item, _| item.field.name.is_none() && item.field.has_modifier(Modifier::All),
    },
    Reason {
        key: "line-break",
        text: "a wildcard over a line break: RSigma stops there; \"? to replace a single mandatory character\", and * is \
               unbounded (rules specification, String Wildcard)",
        ours: true,
        fits: |item, event| has_wildcards(item) && values(item, event).any(|value| value.to_string().contains("\\n")),
    },
    Reason {
        key: "wildcard-placed",
        text: "a wildcard inside a contains, startswith or endswith: RSigma forgets the anchor, or misses; \
               \"you can use wildcard characters * and ? in strings\" (rules specification, General)",
        ours: false,
        fits: |item, _| {
            let placed = [Modifier::Contains, Modifier::StartsWith, Modifier::EndsWith];
            item.field.modifiers.iter().any(|modifier| placed.contains(modifier)) && has_wildcards(item)
        },
    },
    Reason {
        key: "windash-slash",
        text: "windash from a slash: RSigma varies dashes only; \"all possible permutations of the -, /, –, —, and ― \
               characters\" (modifiers appendix)",
        ours: true,
        fits: |item, _| {
            let slash = |value: &SigmaValue| matches!(value, SigmaValue::String(text) if text.original.contains('/'));
            item.field.has_modifier(Modifier::WindAsh) && item.values.iter().any(slash)
        },
    },
    Reason {
        key: "keyword-numbers",
        text: "numbers as keywords: RSigma looks for equal numbers only; keywords are searched \"across an entire event\" (rules \
               specification, Keywords search)",
        ours: true,
        fits: |item, _| {
            item.field.name.is_none() && item.values.iter().any(|value| !matches!(value, SigmaValue::String(_)))
        },
    },
    Reason {
        key: "base64offset",
        text: "base64offset of a value whose end shares a group with what follows: RSigma leaves a letter that depends on it; \
               \"except the first and last byte the encoded values have a static part\" (modifiers appendix)",
        ours: true,
        fits: |item, _| item.field.has_modifier(Modifier::Base64Offset),
    },
    Reason {
        key: "fieldref-lists",
        text: "fieldref over a field with several values: RSigma compares the list; the specification is silent, so that this is \
               our choice: everywhere else a field with several values has each of them",
        ours: true,
        fits: |item, event| {
            let named = item.values.iter().filter_map(|value| match value {
                SigmaValue::String(text) => event.get(&text.original),
                _ => None,
            });
            item.field.has_modifier(Modifier::FieldRef) && values(item, event).chain(named).any(Value::is_array)
        },
    },
];

fn has_wildcards(item: &DetectionItem) -> bool {
    item.values.iter().any(|value| matches!(value, SigmaValue::String(text) if text.contains_wildcards()))
}

/// The values of the field; of every field for keywords.
fn values<'a>(item: &'a DetectionItem, event: &'a Map<String, Value>) -> impl Iterator<Item = &'a Value> {
    let name = item.field.name.as_deref();
    event.iter().filter(move |(own, _)| name.is_none_or(|name| own.as_str() == name)).map(|(_, value)| value)
}

/// The text of a reason.
pub fn text(key: &str) -> &'static str {
    REASONS.iter().find(|reason| reason.key == key).map_or("", |reason| reason.text)
}

/// The reason for which one side may match a part of a rule on an event: `ours` if that is our side.
pub fn reason(items: &[DetectionItem], event: &Map<String, Value>, ours: bool) -> Option<&'static str> {
    let fits = |reason: &&Reason| (ours || !reason.ours) && items.iter().any(|item| (reason.fits)(item, event));
    REASONS.iter().find(fits).map(|reason| reason.key)
}

/// The rules that may show a reason.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Listed {
    /// In every run.
    rules: BTreeSet<String>,
    /// On some event of the full run only.
    rare: BTreeSet<String>,
}

/// What is listed, as (reason, rule), for a run on some events or on all.
pub fn listed(all: bool) -> BTreeSet<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential.yml");
    let text = std::fs::read_to_string(path).expect("the list");
    let lists: BTreeMap<String, Listed> = yaml_serde::from_str(&text).expect("lists of rules by reason");
    let mut pairs = BTreeSet::new();
    for (key, Listed { rules, rare }) in lists {
        assert!(REASONS.iter().any(|reason| reason.key == key), "{key} is no reason");
        assert!(rules.is_disjoint(&rare), "{key} lists a rule twice");
        let rare = rare.into_iter().filter(|_| all);
        pairs.extend(rules.into_iter().chain(rare).map(|rule| (key.clone(), rule)));
    }
    pairs
}

/// The file that lists the rules which no event hits.
pub const UNHIT: &str = "tests/differential-unhit.yml";

/// Rules that no event hits.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Unhit {
    /// In no run, and why.
    never: BTreeMap<String, String>,
    /// Some event of the full run does, and none of the default one.
    full: BTreeSet<String>,
}

/// The rules that no event hits, in a run on some events or on all.
pub fn unhit(all: bool) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(UNHIT);
    let text = std::fs::read_to_string(path).expect("the list");
    let Unhit { never, full } = yaml_serde::from_str(&text).expect("lists of rules");
    assert!(never.values().all(|reason| !reason.is_empty()), "why does nothing hit them");
    never.into_keys().chain(full.into_iter().filter(|_| !all)).collect()
}
