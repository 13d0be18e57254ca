//! Random rules on random events, against a model that decides one event at a time by the definitions of Sigma.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tidegate_rules::{Evaluator, Rehearsal, RuleFile, RuleSet, RulesConfig, Trial};

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

    /// The fields of tests that are true of an event where truth is asked for, in parts that come out as is `wanted`: an alert shows
    /// no others.
    fn showable(&self, selections: &[Vec<Item>], event: &Value, wanted: bool, out: &mut BTreeSet<&'static str>) {
        if self.holds(selections, event) != wanted {
            return;
        }
        match self {
            Self::Selection(at) => {
                let items = &selections[at % selections.len()];
                let asks = |item: &&Item| item.asks_for_truth() == wanted && item.holds(event) == wanted;
                out.extend(items.iter().filter(asks).map(|item| item.field));
            }
            Self::Not(inner) => inner.showable(selections, event, !wanted, out),
            Self::And(left, right) | Self::Or(left, right) => {
                left.showable(selections, event, wanted, out);
                right.showable(selections, event, wanted, out);
            }
        }
    }
}

impl Item {
    /// Whether it is true because of a value, not for want of one.
    fn asks_for_truth(&self) -> bool {
        self.modifier != "|neq" && (self.modifier != "|exists" || self.values[0] == "true")
    }

    fn holds(&self, event: &Value) -> bool {
        let values = texts(&event[self.field]);
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

/// The values of a field.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items.iter().map(text).collect(),
        one => vec![text(one)],
    }
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

fn files(rules: &[(Vec<Vec<Item>>, Tree)]) -> Vec<RuleFile> {
    let file = |(at, (selections, tree)): (usize, &(Vec<Vec<Item>>, Tree))| {
        RuleFile::new(format!("{at}"), yaml(at, selections, tree))
    };
    rules.iter().enumerate().map(file).collect()
}

/// What an alert shows: fields that have these values in the event, for which truth is asked for, and without which the event would
/// not match.
fn check_shown(matched: &str, event: &Value, (selections, tree): &(Vec<Vec<Item>>, Tree)) {
    let about = || format!("{matched} of {event}: {} of {selections:?}", tree.text());
    let shown: Map<String, Value> = serde_json::from_str(matched).expect("JSON");
    let mut showable = BTreeSet::new();
    tree.showable(selections, event, true, &mut showable);
    for (field, values) in &shown {
        assert_eq!(texts(values), texts(&event[field]), "{}", about());
        assert!(showable.contains(field.as_str()), "{field} in {}", about());
    }
    let kept = event.as_object().expect("an object").iter().filter(|(field, _)| shown.contains_key(*field));
    let kept = Value::Object(kept.map(|(field, value)| (field.clone(), value.clone())).collect());
    assert!(tree.holds(selections, &kept), "what is shown does not explain it: {}", about());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_set_of_rules_matches_what_the_model_says(
        rules in proptest::collection::vec((selections(), tree()), 1..6),
        batches in proptest::collection::vec(proptest::collection::vec(event(), 1..70), 1..4),
    ) {
        let config = RulesConfig { memo_values_max: 20, ..RulesConfig::default() };
        let files = files(&rules);
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

    #[test]
    fn trials_and_what_alerts_show_agree_with_the_evaluator(
        rules in proptest::collection::vec((selections(), tree()), 1..6),
        batches in proptest::collection::vec(proptest::collection::vec(event(), 1..40), 1..4),
    ) {
        let config = RulesConfig { rule_event_ns_max: u64::MAX, ..RulesConfig::default() };
        let files = files(&rules);
        let (set, problems) = RuleSet::compile(&files, &config).expect("tables");
        prop_assert_eq!(problems, []);
        let set = Arc::new(set);
        let total = batches.iter().map(Vec::len).sum();
        let mut trials: Vec<Trial> =
            (0..rules.len()).map(|rule| Trial::new(set.clone(), rule, total).expect("a rule")).collect();
        let mut evaluator = Evaluator::new(set, &config);
        let mut rehearsal = Rehearsal::new(&files, &config).expect("tables");
        let mut wanted = vec![Vec::new(); rules.len()];
        let mut before = 0;
        for events in &batches {
            let batch = Events::security("test", events).batch(0);
            let numbers: Vec<usize> = (before..before + events.len()).collect();
            trials.iter_mut().for_each(|trial| trial.batch(&batch, &numbers));
            let found = evaluator.matches(&batch);
            found.iter().for_each(|(row, rule)| wanted[*rule].push(numbers[*row]));
            let told = rehearsal.matches(&batch);
            let told_of: Vec<_> = told.iter().map(|own| (own.row, own.rule_id.clone())).collect();
            let found: Vec<_> = found.iter().map(|(row, rule)| (*row, format!("r{rule}"))).collect();
            prop_assert_eq!(told_of, found);
            for own in &told {
                let rule: usize = own.rule_id[1..].parse().expect("a number");
                check_shown(&own.matched, &events[own.row], &rules[rule]);
            }
            before += events.len();
        }
        for (trial, wanted) in trials.into_iter().zip(wanted) {
            let findings = trial.finish();
            prop_assert_eq!((findings.events, findings.covered, findings.filtered), (total as u64, total as u64, 0));
            prop_assert_eq!(findings.matched, wanted.len() as u64);
            prop_assert_eq!(findings.nearest.len(), total - wanted.len());
            prop_assert_eq!(findings.matches, wanted);
        }
    }
}
