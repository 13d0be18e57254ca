//! Sigma construct by construct: the tables in `tests/conformance/*.yml`, each row a detection with events that match it and
//! events that do not, or the reason for which it is refused. `docs/sigma-conformance.md` is this list in words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig};

use crate::flatten::Events;

/// What must have a row.
const ITEMS: &str = "
    strings/case strings/whole strings/wildcard-any strings/wildcard-one strings/wildcard-mixed strings/wildcard-alone
    strings/escape-star strings/escape-question-mark strings/escape-backslash-before-wildcard
    strings/escape-backslash-and-wildcard strings/backslash-plain strings/percent strings/unicode
    modifiers/contains modifiers/startswith modifiers/endswith modifiers/all modifiers/cased modifiers/exists modifiers/neq
    modifiers/re modifiers/re-i modifiers/re-m modifiers/re-s modifiers/re-flags-together modifiers/re-placed
    modifiers/cidr-v4 modifiers/cidr-v6 modifiers/lt modifiers/lte modifiers/gt modifiers/gte
    modifiers/base64 modifiers/base64offset modifiers/wide modifiers/utf16be modifiers/utf16 modifiers/windash
    modifiers/fieldref modifiers/fieldref-neq modifiers/fieldref-placed modifiers/expand
    modifiers/minute modifiers/hour modifiers/day modifiers/week modifiers/month modifiers/year modifiers/time-compared
    chains/encode-then-contain chains/order
    values/number values/number-exact values/object values/bool values/empty values/null values/list values/event-lists
    values/fields-dotted values/fields-with-spaces values/fields-mind-case values/fields-with-brackets values/array-selector
    structure/map structure/list-of-maps structure/keywords structure/keywords-numbers structure/keywords-all
    structure/keywords-modified structure/keywords-placed structure/keywords-and-maps
    condition/precedence condition/parentheses condition/of-them condition/any-of condition/count-of condition/of-pattern
    condition/names condition/list condition/not-absent
    refused/aggregation refused/near refused/placeholder refused/null-in-list refused/unknown-modifier
    refused/unknown-selection refused/regex refused/wildcards-encoded refused/order refused/exists-keyword
    refused/fieldref-wildcard refused/cidr refused/comparison refused/long-number refused/nested-value refused/empty refused/timeframe
    refused/array-selector refused/version";

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    item: String,
    /// A line after the title.
    #[serde(default)]
    head: String,
    /// The detection as YAML; `condition: s` is added when it has none.
    detection: String,
    #[serde(default)]
    placeholders: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    hits: Vec<Value>,
    #[serde(default)]
    misses: Vec<Value>,
    refused: Option<Refused>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    line: usize,
    reason: String,
}

impl Row {
    fn rule(&self) -> String {
        let condition = if self.detection.contains("condition:") { "" } else { "  condition: s\n" };
        let indented: String = self.detection.lines().map(|line| format!("  {line}\n")).collect();
        let head = if self.head.is_empty() { String::new() } else { format!("{}\n", self.head) };
        format!("title: {}\n{head}logsource:\n  product: test\ndetection:\n{indented}{condition}", self.item)
    }

    fn check(&self) {
        let config = RulesConfig { placeholders: self.placeholders.clone(), ..RulesConfig::default() };
        let rule = self.rule();
        let (rules, problems) = RuleSet::compile(&[RuleFile::new("a.yml", rule.clone())], &config).expect("tables");
        if let Some(refused) = &self.refused {
            let [problem] = &problems[..] else { panic!("{rule}: {problems:?}") };
            assert!(problem.reason.contains(&refused.reason), "{rule}: {problem}");
            assert_eq!(problem.line, refused.line, "{rule}: {problem}");
            return;
        }
        assert_eq!(problems, [], "{rule}");
        assert!(!self.hits.is_empty() && !self.misses.is_empty(), "{rule}: a row needs a hit and a miss");
        let mut evaluator = Evaluator::new(Arc::new(rules), &config);
        let events: Vec<Value> = self.hits.iter().chain(&self.misses).cloned().collect();
        let mut rows = |events: &[Value]| -> Vec<usize> {
            let found = evaluator.matches(&Events::security("test", events).batch(0));
            found.into_iter().map(|(row, _)| row).collect()
        };
        assert_eq!(rows(&events), (0..self.hits.len()).collect::<Vec<_>>(), "{rule}");
        // Alone in its batch each event gets the same answer: types and columns of others do not matter.
        for (row, event) in events.iter().enumerate() {
            assert_eq!(!rows(std::slice::from_ref(event)).is_empty(), row < self.hits.len(), "{rule}: alone: {event}");
        }
    }
}

fn rows() -> Vec<Row> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let mut rows = Vec::new();
    for entry in fs::read_dir(folder).expect("the tables") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("text");
        let table: Vec<Row> = yaml_serde::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        rows.extend(table);
    }
    rows
}

#[test]
fn every_row_of_the_tables_holds() {
    rows().iter().for_each(Row::check);
}

#[test]
fn every_item_of_the_list_has_a_row_and_every_row_an_item() {
    let wanted: BTreeSet<&str> = ITEMS.split_whitespace().collect();
    let rows = rows();
    let had: BTreeSet<&str> = rows.iter().map(|row| row.item.as_str()).collect();
    assert_eq!(had, wanted);
}
