//! Random rules on random events, against a model that decides one event at a time by the definitions of Sigma.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig};

use crate::flatten::Events;

/// One item of a selection: field, modifiers, values.
#[derive(Debug, Clone)]
struct Item {
    field: &'static str,
    modifier: &'static str,
    all: bool,
    values: Vec<String>,
}

#[derive(Debug, Clone)]
enum Tree {
    Selection(usize),
    Not(Box<Tree>),
    And(Box<Tree>, Box<Tree>),
    Or(Box<Tree>, Box<Tree>),
}

impl Tree {
    fn text(&self) -> String {
        match self {
            Self::Selection(at) => format!("s{at}"),
            Self::Not(inner) => format!("not ({})", inner.text()),
            Self::And(left, right) => format!("({}) and ({})", left.text(), right.text()),
            Self::Or(left, right) => format!("({}) or ({})", left.text(), right.text()),
        }
    }

    fn holds(&self, selections: &[Vec<Item>], event: &Value) -> bool {
        match self {
            Self::Selection(at) => selections[at % selections.len()].iter().all(|item| item.holds(event)),
            Self::Not(inner) => !inner.holds(selections, event),
            Self::And(left, right) => left.holds(selections, event) && right.holds(selections, event),
            Self::Or(left, right) => left.holds(selections, event) || right.holds(selections, event),
        }
    }
}

impl Item {
    fn holds(&self, event: &Value) -> bool {
        let values: Vec<String> = match &event[self.field] {
            Value::Null => Vec::new(),
            Value::Array(items) => items.iter().map(text).collect(),
            one => vec![text(one)],
        };
        let any = |wanted: &String| values.iter().any(|value| self.value_holds(value, wanted));
        match self.modifier {
            "|exists" => (self.values[0] == "true") != values.is_empty(),
            "|neq" => !self.values.iter().any(any),
            _ if self.all => self.values.iter().all(any),
            _ => self.values.iter().any(any),
        }
    }

    fn value_holds(&self, value: &str, wanted: &str) -> bool {
        let (folded, lower) = (value.to_lowercase(), wanted.to_lowercase());
        match self.modifier {
            "|contains" => folded.contains(&lower),
            "|startswith" => folded.starts_with(&lower),
            "|endswith" => folded.ends_with(&lower),
            "|re" => value.contains(wanted),
            "|cased" => value == wanted,
            "|gte" => value.parse::<f64>().is_ok_and(|number| number >= wanted.parse::<f64>().expect("a number")),
            _ => folded == lower,
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn item() -> impl Strategy<Value = Item> {
    let words = || proptest::collection::vec("[abAé]{1,3}", 1..3);
    let numbers = proptest::collection::vec((0..5i64).prop_map(|number| number.to_string()), 1..2);
    let field = || prop_oneof![Just("f"), Just("g"), Just("h")];
    let modifier = prop_oneof![
        Just(""),
        Just("|contains"),
        Just("|startswith"),
        Just("|endswith"),
        Just("|re"),
        Just("|cased"),
        Just("|neq")
    ];
    let texts = (field(), modifier, any::<bool>(), words()).prop_map(|(field, modifier, all, values)| {
        let all = all && ["|contains", "|startswith", "|endswith"].contains(&modifier);
        Item { field, modifier, all, values }
    });
    let compared = (field(), numbers).prop_map(|(field, values)| Item { field, modifier: "|gte", all: false, values });
    let exists = (field(), any::<bool>()).prop_map(|(field, holds)| Item {
        field,
        modifier: "|exists",
        all: false,
        values: vec![holds.to_string()],
    });
    prop_oneof![6 => texts, 1 => compared, 1 => exists]
}

fn tree() -> impl Strategy<Value = Tree> {
    (0..3usize).prop_map(Tree::Selection).prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|tree| Tree::Not(Box::new(tree))),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| Tree::And(Box::new(left), Box::new(right))),
            (inner.clone(), inner).prop_map(|(left, right)| Tree::Or(Box::new(left), Box::new(right))),
        ]
    })
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => "[abABéÉ]{0,4}".prop_map(Value::from),
        1 => (0..6i64).prop_map(Value::from),
        1 => proptest::collection::vec("[abA]{1,3}", 0..3).prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

fn event() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map(prop_oneof![Just("f"), Just("g"), Just("h")], value(), 0..4).prop_map(|fields| {
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
    })
}

/// The rule as YAML: JSON is YAML.
fn yaml(id: usize, selections: &[Vec<Item>], tree: &Tree) -> String {
    let mut detection = Map::new();
    for (at, items) in selections.iter().enumerate() {
        let mut map = Map::new();
        for (nth, item) in items.iter().enumerate() {
            let all = if item.all { "|all" } else { "" };
            let value = match item.modifier {
                "|exists" => json!(item.values[0] == "true"),
                "|gte" => json!(item.values[0].parse::<i64>().expect("a number")),
                _ => json!(item.values),
            };
            // Two items with the same key would be one in YAML: the second goes unsaid in the model too.
            let key = format!("{}{}{all}", item.field, item.modifier);
            assert!(nth == 0 || !map.contains_key(&key));
            map.insert(key, value);
        }
        detection.insert(format!("s{at}"), Value::Object(map));
    }
    detection.insert("condition".into(), json!(tree.text()));
    json!({"title": format!("r{id}"), "id": format!("r{id}"), "logsource": {"product": "test"}, "detection": detection})
        .to_string()
}

/// Three selections of items with distinct keys.
fn selections() -> impl Strategy<Value = Vec<Vec<Item>>> {
    let one = proptest::collection::vec(item(), 1..3).prop_map(|mut items| {
        let mut keys = Vec::new();
        items.retain(|item| {
            let key = (item.field, item.modifier, item.all);
            let new = !keys.contains(&key);
            keys.push(key);
            new
        });
        items
    });
    proptest::collection::vec(one, 3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_set_of_rules_matches_what_the_model_says(
        rules in proptest::collection::vec((selections(), tree()), 1..6),
        batches in proptest::collection::vec(proptest::collection::vec(event(), 1..70), 1..4),
    ) {
        let config = RulesConfig { memo_values_max: 20, ..RulesConfig::default() };
        let files: Vec<RuleFile> = rules
            .iter()
            .enumerate()
            .map(|(at, (selections, tree))| RuleFile::new(format!("{at}"), yaml(at, selections, tree)))
            .collect();
        let (set, problems) = RuleSet::compile(&files, &config).expect("tables");
        prop_assert_eq!(problems, []);
        let mut evaluator = Evaluator::new(Arc::new(set), &config);
        for events in &batches {
            let mut wanted = Vec::new();
            // A column of mixed types is text: the model sees the values as the column holds them, which is the same text.
            for (row, event) in events.iter().enumerate() {
                for (at, (selections, tree)) in rules.iter().enumerate() {
                    if tree.holds(selections, event) {
                        wanted.push((row, at));
                    }
                }
            }
            prop_assert_eq!(evaluator.matches(&Events::security("test", events).batch(0)), wanted);
        }
    }
}
