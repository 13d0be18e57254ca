//! The parts of one rule, each a rule of its own on both sides: so it is known what two answers differ in.

use std::sync::Arc;

use rsigma_eval::{Engine, JsonEvent};
use rsigma_parser::{Detection, DetectionItem, FieldSpec, parse_sigma_yaml};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidegate_events::Dataset;
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig};

use super::expand;
use crate::flatten::Events;

/// The entries of the selections of a rule: a field with its values, or keywords.
pub struct Parts {
    ours: Evaluator,
    theirs: Engine,
    items: Vec<Vec<DetectionItem>>,
}

impl Parts {
    /// Those of the rule with this id in the text of a file.
    pub fn new(text: &str, id: &str, config: &RulesConfig) -> Self {
        let documents =
            yaml_serde::Deserializer::from_str(text).map(|document| Value::deserialize(document).expect("YAML"));
        let rule = documents.into_iter().find(|document| document["id"] == id).expect("the rule");
        let mut entries = Vec::new();
        let selections = rule["detection"].as_object().expect("selections").iter();
        selections.filter(|(name, _)| *name != "condition").for_each(|(_, value)| split(value, &mut entries));
        let (mut theirs, mut files, mut items) = (Engine::new(), Vec::new(), Vec::new());
        for (at, entry) in entries.into_iter().enumerate() {
            let detection = json!({"s": entry, "condition": "s"});
            let part =
                json!({"title": "part", "id": at.to_string(), "logsource": rule["logsource"], "detection": detection});
            let mut parsed = parse_sigma_yaml(&part.to_string()).expect("YAML").rules;
            let parsed = parsed.first_mut().expect("a rule");
            parsed.detection.named.values_mut().for_each(expand);
            theirs.add_rule(parsed).expect("a rule");
            let mut own = Vec::new();
            parsed.detection.named.values().for_each(|detection| collect(detection, &mut own));
            items.push(own);
            files.push(RuleFile::new(format!("{at:04}.yml"), part.to_string()));
        }
        let (rules, problems) = RuleSet::compile(&files, config).expect("tables");
        assert_eq!(problems, [], "{id}");
        assert_eq!(rules.rules().len(), items.len(), "{id}");
        Self { ours: Evaluator::new(Arc::new(rules), config), theirs, items }
    }

    /// The parts that one side matches on an event and the other does not: what they are, and whether that is our side.
    pub fn differing(&mut self, source: &str, event: &Value, named: &Value) -> Vec<(&[DetectionItem], bool)> {
        let mut events = Events::new(Dataset::SecurityEvents);
        events.rows = vec![("acme".into(), source.to_owned(), event.clone())];
        let mut differ = vec![false; self.items.len()];
        let mut ours = vec![false; self.items.len()];
        for (_, rule) in self.ours.matches(&events.batch(0)) {
            let at: usize = self.ours.rules().rules()[rule].head.id.parse().expect("a place");
            (differ[at], ours[at]) = (true, true);
        }
        for found in self.theirs.evaluate(&JsonEvent::borrow(named)) {
            let at: usize = found.header.rule_id.and_then(|id| id.parse().ok()).expect("a place");
            differ[at] = !differ[at];
        }
        let all = self.items.iter().zip(differ).zip(ours);
        all.filter(|((_, differ), _)| *differ).map(|((items, _), ours)| (items.as_slice(), ours)).collect()
    }
}

/// Takes a selection apart.
fn split(selection: &Value, out: &mut Vec<Value>) {
    match selection {
        Value::Object(fields) => out.extend(
            fields.iter().map(|(field, values)| Value::Object(Map::from_iter([(field.clone(), values.clone())]))),
        ),
        Value::Array(items) => {
            let (maps, keywords): (Vec<&Value>, Vec<&Value>) = items.iter().partition(|item| item.is_object());
            maps.into_iter().for_each(|map| split(map, out));
            if !keywords.is_empty() {
                out.push(keywords.into_iter().cloned().collect());
            }
        }
        keyword => out.push(keyword.clone()),
    }
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
