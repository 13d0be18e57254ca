//! Rules that are made to hurt: each is answered for within bounds of CPU time, and nothing panics.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use tidegate_pipeline::clock::thread_cpu;
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig, pack};

use crate::flatten::Events;

fn with(detection: &str) -> String {
    format!("title: T\nid: t\nlogsource: {{product: test}}\ndetection:\n{detection}")
}

/// Compiles within the time, and says whether the rule was loaded.
fn loads(name: &str, text: String) -> bool {
    let started = thread_cpu();
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("a.yml", text)], &RulesConfig::default()).expect("tables");
    let took = thread_cpu() - started;
    assert!(took < Duration::from_secs(10), "{name} took {took:?}");
    assert_eq!(rules.rules().len() + usize::from(!problems.is_empty()), 1, "{name}: loaded or reported, {problems:?}");
    !rules.rules().is_empty()
}

#[test]
fn hostile_text_is_reported_in_bounded_time() {
    let bomb = (1..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, at| {
        text + &format!("a{at}: &a{at} [{}]\n", vec![format!("*a{}", at - 1); 10].join(","))
    });
    let selections: String = (0..100_000).map(|at| format!("  s{at}: {{f: x}}\n")).collect();
    let values: String = (0..100_000).map(|at| format!("      - v{at}\n")).collect();
    let copies = vec!["s"; 5_000].join(" or ");
    let many: String = (0..1_000).map(|at| format!("      - v{at}\n")).collect();
    for (name, text) in [
        ("too large", "x".repeat(2 << 20)),
        ("alias bomb", bomb),
        ("wide alias bomb", format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(20_000), "*a,".repeat(20_000))),
        ("nested flow", format!("a: {}", "[".repeat(100_000))),
        ("nested maps", format!("a: {}", "{a: ".repeat(50_000))),
        ("nested blocks", (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect()),
        (
            "nested parentheses",
            with(&format!("  s: {{f: x}}\n  condition: {}s{}\n", "(".repeat(30_000), ")".repeat(30_000))),
        ),
        ("open parentheses", with(&format!("  s: {{f: x}}\n  condition: \"{}\"\n", "(".repeat(60_000)))),
        ("escaped parentheses", with(&format!("  s: {{f: x}}\n  condition: \"{}\"\n", "\\x28".repeat(30_000)))),
        ("many nots", with(&format!("  s: {{f: x}}\n  condition: {}s\n", "not ".repeat(16_000)))),
        ("many selections", with(&(selections + "  condition: 1 of them\n"))),
        ("many values", with(&format!("  s:\n    f:\n{values}  condition: s\n"))),
        ("large selection copied", with(&format!("  s:\n    f:\n{many}  condition: {copies}\n"))),
        ("long regex", with(&format!("  s: {{f|re: '{}'}}\n  condition: s\n", "a?".repeat(500_000)))),
        ("repeating regex", with("  s: {f|re: '(((a{100}){100}){100}){100}'}\n  condition: s\n")),
        (
            "deep regex",
            with(&format!("  s: {{f|re: '{}a{}'}}\n  condition: s\n", "(".repeat(5_000), ")".repeat(5_000))),
        ),
        ("placeholder", with("  s: {f|expand: '%a%%b%'}\n  condition: s\n")),
        ("not UTF-8 escapes", with("  s: {f: \"\\xff\\ud800\"}\n  condition: s\n")),
        ("tabs", "\t\ttitle: x\n".into()),
        ("control characters", "title: \u{1}\u{0}\n".into()),
    ] {
        assert!(!loads(name, text), "{name} was loaded");
    }
}

#[test]
fn large_but_fair_rules_load() {
    let values: String = (0..10_000).map(|at| format!("      - value{at}\n")).collect();
    assert!(loads("10,000 values", with(&format!("  s:\n    f|contains:\n{values}  condition: s\n"))));
    let condition = vec!["s"; 1_000].join(" or ");
    assert!(loads("1,000 terms", with(&format!("  s: {{f: x}}\n  condition: {condition}\n"))));
    let deep = format!("{}s{}", "(".repeat(60), ")".repeat(60));
    assert!(loads("60 parentheses", with(&format!("  s: {{f: x}}\n  condition: {deep}\n"))));
}

#[test]
fn hostile_values_are_decided_in_bounded_time() {
    let text = with(
        "  a: {f|contains: 'a*a*a*a*a*a*b'}\n  b: {f|re: '(a|aa)+$'}\n  c: {f|contains: 'a?a?a?a?b'}\n  d: {f|endswith: 'b'}\n  e: {g|contains: [ab, ba, aba, bab], g|endswith: ab}\n  condition: 1 of them\n",
    );
    let config = RulesConfig::default();
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("a", text)], &config).expect("tables");
    assert_eq!(problems, []);
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let long = "a".repeat(100_000) + "c";
    let batch =
        Events::security("test", &[json!({"f": long}), json!({"f": "\u{0}\u{fffd}é"}), json!({"f": ""})]).batch(0);
    let started = thread_cpu();
    assert_eq!(evaluator.matches(&batch), []);
    let took = thread_cpu() - started;
    assert!(took < Duration::from_secs(5), "took {took:?}");
}

#[test]
fn a_slow_rule_is_parked_and_the_others_go_on() {
    // Every `a` of the value starts an attempt that stays possible for long.
    let slow = "title: Slow\nid: slow\nlogsource: {product: test}\n\
                detection:\n  s: {f|re: 'a[abx]{150}[ab]{20}'}\n  condition: s\n";
    let good =
        "title: Good\nid: good\nlogsource: {product: test}\ndetection:\n  s: {f|startswith: xa}\n  condition: s\n";
    let config = RulesConfig { rule_event_ns_max: 500, ..RulesConfig::default() };
    let (rules, problems) =
        RuleSet::compile(&[RuleFile::new("a", slow), RuleFile::new("b", good)], &config).expect("tables");
    assert_eq!(problems, []);
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let mut rounds = 0;
    while evaluator.parked().is_empty() && rounds < 50 {
        // Letters without a period, so that no automaton can learn them; never twenty without an x.
        let value = |at: usize| {
            let mut state = at as u64 + 1;
            let letters = (0..600).map(|place| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if place % 16 == 0 { 'x' } else { ['a', 'b', 'x'][(state >> 60) as usize % 3] }
            });
            json!({"f": format!("xa{}", letters.collect::<String>())})
        };
        let events: Vec<_> = (0..100).map(|at| value(rounds * 100 + at)).collect();
        assert_eq!(evaluator.matches(&Events::security("test", &events).batch(0)).len(), 100);
        rounds += 1;
    }
    assert_eq!(evaluator.parked().iter().map(|parked| parked.rule_id.as_str()).collect::<Vec<_>>(), ["slow"]);
}

/// Compiles a text and runs what loads; only panics matter.
fn survives(text: String) {
    let config = RulesConfig { document_nodes_max: 2_000, ..RulesConfig::default() };
    let (rules, _) = RuleSet::compile(&[RuleFile::new("a.yml", text)], &config).expect("tables");
    let events =
        [json!({"f": "x", "g": ["1", "2"], "eventName": "StopLogging"}), json!({"f": 1.5}), json!({"f": "10.0.0.1"})];
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    for source in ["test", "cloudtrail", "windows"] {
        evaluator.matches(&Events::security(source, &events).batch(0));
    }
}

const MODIFIERS: [&str; 36] = [
    "all",
    "base64",
    "base64offset",
    "cased",
    "cidr",
    "contains",
    "day",
    "dotall",
    "endswith",
    "exists",
    "expand",
    "fieldref",
    "gt",
    "gte",
    "hour",
    "i",
    "ignorecase",
    "lt",
    "lte",
    "m",
    "minute",
    "month",
    "multiline",
    "neq",
    "re",
    "s",
    "startswith",
    "utf16",
    "utf16be",
    "utf16le",
    "week",
    "wide",
    "windash",
    "year",
    "not",
    "",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn damaged_rules_never_panic(
        at in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..4u8, "[ -~\n]{0,6}|: |\\* |&a |- |\\[|\\{|'|\"|\\|"), 1..8),
    ) {
        let files = pack::files();
        let mut text: Vec<char> = at.get(&files).text.chars().collect();
        for (place, kind, piece) in edits {
            let place = place.index(text.len() + 1);
            match kind {
                0 => drop(text.splice(place..place, piece.chars())),
                1 => drop(text.splice(place..(place + piece.len()).min(text.len()), [])),
                2 => text.truncate(place.max(10)),
                _ => {
                    let copy: Vec<char> = text[place..].iter().take(40).copied().collect();
                    drop(text.splice(place..place, copy));
                }
            }
        }
        survives(text.into_iter().collect());
    }

    #[test]
    fn any_chain_of_modifiers_on_any_value_never_panics(
        chains in proptest::collection::vec(
            (proptest::collection::vec(proptest::sample::select(&MODIFIERS[..]), 0..5), prop_oneof![
                "[ -~é–\u{0}\u{10ffff}]{0,8}".prop_map(serde_json::Value::from),
                any::<i64>().prop_map(serde_json::Value::from),
                any::<f64>().prop_map(serde_json::Value::from),
                any::<bool>().prop_map(serde_json::Value::from),
                Just(json!(null)),
                Just(json!(["a", 1, null, "%x%", "10.0.0.0/8", "true"])),
                Just(json!({"nested": ["x"]})),
            ]),
            1..4,
        ),
        condition in "(not )?(s|1 of s\\*|all of them|2 of them)( (and|or) (not )?s)?",
    ) {
        let mut selection = serde_json::Map::new();
        for (at, (modifiers, value)) in chains.into_iter().enumerate() {
            let field = ["f", "g", ""][at % 3];
            let key = modifiers.iter().fold(field.to_owned(), |key, modifier| format!("{key}|{modifier}"));
            selection.insert(key, value);
        }
        let rule = json!({"title": "T", "logsource": {"product": "test"}, "detection": {"s": selection, "condition": condition}});
        survives(rule.to_string());
    }
}
