//! What each construct of Sigma matches, as tables: one check function, a selection and an event in, a match out.

use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig};

use crate::flatten::Events;

/// A rule with this detection section (YAML), for events of source `test`.
fn rule(detection: &str) -> RuleFile {
    let indented: String = detection.trim_matches('\n').lines().map(|line| format!("  {line}\n")).collect();
    RuleFile::new("r.yml", format!("title: T\nid: t\nlogsource:\n  product: test\ndetection:\n{indented}"))
}

fn matches(detection: &str, events: &[Value]) -> Vec<usize> {
    let config = RulesConfig::default();
    let (rules, problems) = RuleSet::compile(&[rule(detection)], &config).expect("tables");
    assert!(problems.is_empty(), "{detection}: {problems:?}");
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let batch = Events::security("test", events).batch(0);
    let first: Vec<usize> = evaluator.matches(&batch).into_iter().map(|(row, _)| row).collect();
    let again: Vec<usize> = evaluator.matches(&batch).into_iter().map(|(row, _)| row).collect();
    assert_eq!(first, again, "{detection}: the memo changed the answer");
    // Alone in its batch each event gets the same answer: types and columns of others do not matter.
    for (row, event) in events.iter().enumerate() {
        let alone = evaluator.matches(&Events::security("test", std::slice::from_ref(event)).batch(0));
        assert_eq!(!alone.is_empty(), first.contains(&row), "{detection}: row {row} alone: {event}");
    }
    first
}

/// Checks one selection against events: those that must match, and those that must not.
fn check(selection: &str, hits: &[Value], misses: &[Value]) {
    let all: Vec<Value> = hits.iter().chain(misses).cloned().collect();
    let detection = format!("selection:\n  {}\ncondition: selection", selection.replace('\n', "\n  "));
    assert_eq!(matches(&detection, &all), (0..hits.len()).collect::<Vec<_>>(), "{selection}");
}

fn f(values: &[&str]) -> Vec<Value> {
    values.iter().map(|value| json!({ "f": value })).collect()
}

#[test]
fn strings_ignore_case_and_match_whole() {
    check("f: Value", &f(&["Value", "VALUE", "value"]), &f(&["Value ", "aValue", "", "valu"]));
    check("f: 'ΟΔΌΣ'", &f(&["οδός", "ΟΔΌΣ", "οδόσ"]), &f(&["οδός "]));
    check("f|cased: Value", &f(&["Value"]), &f(&["value", "VALUE"]));
    check("f|contains|cased: Val", &f(&["aValue"]), &f(&["avalue"]));
    check("f:\n  - one\n  - two", &f(&["one", "TWO"]), &f(&["three"]));
}

#[test]
fn wildcards_and_escapes() {
    check("f: 'a*c'", &f(&["ac", "abc", "A--C"]), &f(&["abcd", "xabc"]));
    check("f: 'a?c'", &f(&["abc", "aéc", "a?c"]), &f(&["ac", "abbc"]));
    check("f: '*mid*'", &f(&["mid", "amidst"]), &f(&["mi d"]));
    check(r"f: 'a\*c'", &f(&["a*c"]), &f(&["abc", r"a\*c"]));
    check(r"f: 'a\?c'", &f(&["a?c"]), &f(&["abc"]));
    check(r"f: 'a\\*c'", &f(&[r"a\c", r"a\bbc"]), &f(&["a*c", "abc"]));
    check(r"f: 'a\\\*c'", &f(&[r"a\*c"]), &f(&[r"a\bc", "a*c"]));
    check(r"f: 'C:\Windows\x'", &f(&[r"c:\windows\X"]), &f(&[r"c:\\windows\\x"]));
    check(r"f: '\\\\host\x'", &f(&[r"\\host\x"]), &f(&[r"\host\x"]));
    check("f: '*'", &f(&["", "x"]), &[json!({}), json!({ "f": null })]);
}

#[test]
fn contains_startswith_endswith_take_wildcards_inside() {
    check("f|contains: bc", &f(&["abcd", "BC"]), &f(&["b c"]));
    check("f|startswith: ab", &f(&["abc", "AB"]), &f(&["xab"]));
    check("f|endswith: yz", &f(&["xyz", "YZ"]), &f(&["yzx"]));
    check("f|endswith: '1?'", &f(&["a1x", "11"]), &f(&["a1", "1xx"]));
    check("f|contains: 'a*z'", &f(&["--a--z--"]), &f(&["za"]));
    check("f|startswith: 'a?c'", &f(&["abcd"]), &f(&["ac", "xabc"]));
    check("f|contains: '?x?'", &f(&["axb"]), &f(&["xb", "ax"]));
    check("f|contains: 12", &[json!({"f": 5123}), json!({"f": "a12"})], &[json!({"f": 132})]);
    check("f|contains|all:\n  - ab\n  - cd", &f(&["cd ab"]), &f(&["ab", "cd"]));
}

#[test]
fn numbers_compare_as_numbers_whatever_they_were_written_as() {
    let of = |values: &[Value]| values.iter().map(|value| json!({ "f": value })).collect::<Vec<_>>();
    check("f: 7", &of(&[json!(7), json!("7"), json!(7.0)]), &of(&[json!(70), json!("7a"), json!(true)]));
    check("f: '7'", &of(&[json!(7), json!("7")]), &of(&[json!(71)]));
    check("f: 1.5", &of(&[json!(1.5), json!("1.50")]), &of(&[json!(1), json!("x")]));
    check(
        "f|gt: 10",
        &of(&[json!(11), json!("10.5"), json!(1e9)]),
        &of(&[json!(10), json!("9"), json!("eleven"), json!(null)]),
    );
    check("f|gte: 10", &of(&[json!(10), json!("10")]), &of(&[json!(9)]));
    check("f|lt: -1", &of(&[json!(-2), json!("-1.5")]), &of(&[json!(-1), json!("")]));
    check("f|lte: 0.5", &of(&[json!(0.5), json!(0)]), &of(&[json!(0.51)]));
    check("f: true", &of(&[json!(true), json!("True")]), &of(&[json!(false), json!(1)]));
    check("f: 9223372036854775807", &of(&[json!(i64::MAX)]), &of(&[json!(i64::MAX - 1)]));
}

#[test]
fn null_empty_exists_and_neq_are_two_valued() {
    let (absent, null, empty, full) =
        (json!({"g": 1}), json!({"f": null, "g": 1}), json!({"f": "", "g": 1}), json!({"f": "x", "g": 1}));
    check("f: null", &[absent.clone(), null.clone()], &[empty.clone(), full.clone()]);
    check("f: ''", std::slice::from_ref(&empty), &[absent.clone(), null.clone(), full.clone()]);
    check("f|exists: true", &[empty.clone(), full.clone()], &[absent.clone(), null.clone()]);
    check("f|exists: false", &[absent.clone(), null.clone()], &[empty.clone(), full.clone()]);
    check("f|neq: x", &[absent.clone(), null.clone(), empty.clone()], std::slice::from_ref(&full));
    check("f|contains|neq:\n  - x\n  - y", &[empty.clone(), absent.clone()], std::slice::from_ref(&full));
    let all = [absent, null, empty, full];
    assert_eq!(matches("s:\n  f: x\ncondition: not s", &all), [0, 1, 2]);
    assert_eq!(matches("s:\n  f|gt: 1\ncondition: not s", &all), [0, 1, 2, 3]);
    assert_eq!(matches("s:\n  g: 1\nn:\n  f: null\ncondition: s and not n", &all), [2, 3]);
}

#[test]
fn regular_expressions_search_and_mind_case_and_flags() {
    check("f|re: 'a.c'", &f(&["xabcx"]), &f(&["ABC", "a\nc", "ac"]));
    check("f|re: '^a.c$'", &f(&["abc"]), &f(&["xabc"]));
    check("f|re|i: 'a.c'", &f(&["ABC"]), &f(&["ac"]));
    check("f|re|ignorecase: 'abc'", &f(&["ABC"]), &f(&["ac"]));
    check("f|re|m: '^b'", &f(&["a\nb"]), &f(&["ab"]));
    check("f|re|s: 'a.c'", &f(&["a\nc"]), &f(&["ac"]));
    check("f|re|i|s: 'a.c'", &f(&["A\nC"]), &f(&["ac"]));
    check(r"f|re: '\*\\x'", &f(&[r"*\x"]), &f(&["x"]));
    check("f|re|startswith: 'a|b'", &f(&["b1"]), &f(&["1b"]));
    check("f|re: '5.7'", &[json!({"f": 567})], &[json!({"f": 657})]);
}

#[test]
fn networks_hold_addresses_only() {
    check("f|cidr: 10.0.0.0/8", &f(&["10.1.2.3", "::ffff:10.0.0.1"]), &f(&["11.0.0.1", "10.1.2", "ten", ""]));
    check(
        "f|cidr:\n  - fe80::/10\n  - 192.168.0.0/16",
        &f(&["fe80::1", "192.168.7.7"]),
        &f(&["fec0::1", "192.169.0.1"]),
    );
}

#[test]
fn encodings_are_found_in_encoded_text() {
    check("f|base64: foobar", &f(&["Zm9vYmFy"]), &f(&["foobar"]));
    // "http://" at each of the three offsets.
    let encoded = f(&["aHR0cDovL2E=", "eGh0dHA6Ly9h", "eHhodHRwOi8vYQ=="]);
    check("f|base64offset|contains: 'http://'", &encoded, &f(&["aHR0cA=="]));
    let wide = f(&["cABvAHcAZQByAHMAaABlAGwAbAA=", "eABwAG8AdwBlAHIAcwBoAGUAbABsAA=="]);
    check("f|wide|base64offset|contains: power", &wide, &f(&["cG93ZXI="]));
    check("f|utf16le|base64offset|contains: power", &wide, &f(&["cG93ZXI="]));
    check("f|utf16be|base64: ab", &f(&["AGEAYg=="]), &f(&["YQBiAA=="]));
    check("f|utf16|base64: ab", &f(&["//5hAGIA"]), &f(&["YQBiAA=="]));
    check("f|wide: ab", &f(&["a\0b\0"]), &f(&["ab"]));
}

#[test]
fn windash_takes_every_option_sign_for_every_other() {
    let signs = f(&["x -enc y", "x /enc y", "x –enc y", "x —enc y", "x ―enc y"]);
    check("f|contains|windash: ' -enc '", &signs, &f(&["x enc y", "x +enc y"]));
    check("f|windash|contains: ' /enc '", &signs, &f(&["x _enc y"]));
    check("f|windash|contains: '-a -b'", &f(&["-a -b", "/a –b", "x -a /b"]), &f(&["a -b", "+a -b"]));
    check("f|windash|contains: 'a-b'", &f(&["a-b"]), &f(&["a/b"]));
    check("f|contains|all|windash:\n  - '-a'\n  - '-b'", &f(&["/b /a"]), &f(&["/a"]));
}

#[test]
fn fields_refer_to_fields() {
    let of = |f: Value, g: Value| json!({"f": f, "g": g});
    check(
        "f|fieldref: g",
        &[of(json!("A"), json!("a")), of(json!(1), json!("1"))],
        &[of(json!("a"), json!("b")), json!({"f": "x"}), json!({"g": "x"}), json!({"h": 1})],
    );
    check("f|fieldref|neq: g", &[of(json!("a"), json!("b")), json!({"f": "x"})], &[of(json!("a"), json!("A"))]);
    check("f|fieldref|startswith: g", &[of(json!("abc"), json!("AB"))], &[of(json!("abc"), json!("bc"))]);
    check("f|fieldref|endswith: g", &[of(json!("abc"), json!("bc"))], &[of(json!("abc"), json!("ab"))]);
    check("f|fieldref|contains: g", &[of(json!("abc"), json!("b"))], &[of(json!("abc"), json!("x"))]);
    check("f|fieldref|cased: g", &[of(json!("a"), json!("a"))], &[of(json!("a"), json!("A"))]);
}

#[test]
fn time_parts_are_taken_in_utc() {
    let night = f(&["2024-12-30T03:07:59Z", "2024-12-30T05:07:00+02:00"]);
    let day = f(&["2024-12-30T13:07:59Z", "no time", ""]);
    check("f|hour: 3", &night, &day);
    check("f|hour|lt: 6", &night, &day);
    check("f|minute: 7", &f(&["2024-12-30 13:07:59"]), &f(&["2024-12-30 13:08"]));
    check("f|day: 30", &f(&["2024-12-30"]), &f(&["2024-12-31"]));
    check("f|week: 1", &f(&["2024-12-30"]), &f(&["2024-12-29"]));
    check("f|month:\n  - 11\n  - 12", &f(&["2024-12-30"]), &f(&["2024-10-30"]));
    check("f|year: 2024", &f(&["2024-12-30"]), &f(&["2023-12-30"]));
    // The event's own time is a field too: row 0 is at 1970-01-01T00:00:00Z.
    check("time|hour: 0", &f(&["x"]), &[]);
}

#[test]
fn lists_match_if_any_element_does() {
    let of = |value: Value| json!({ "f": value });
    check("f: a", &[of(json!(["x", "A"])), of(json!("a"))], &[of(json!(["x"])), of(json!([])), of(json!("b"))]);
    check("f|gt: 5", &[of(json!([1, 9]))], &[of(json!([1, 2]))]);
    check("f|contains|all:\n  - a\n  - b", &[of(json!(["xa", "xb"])), of(json!(["ab"]))], &[of(json!(["a"]))]);
    check("f: null", &[of(json!([])), json!({"g": 1})], &[of(json!(["a"])), of(json!([0]))]);
    let objects = json!({"r": [{"k": "a", "v": 1}, {"k": "b"}]});
    check("r.k: b", std::slice::from_ref(&objects), &[json!({"r": [{"k": "c"}]})]);
    check("r.v: 1", &[objects], &[json!({"r": [{"v": 2}]}), json!({"r": [{"k": "1"}]})]);
}

#[test]
fn keywords_search_the_whole_event() {
    let hits = [json!({"a": "x needle y"}), json!({"b": {"c": "NEEDLE"}}), json!({"d": ["q", "needles"]})];
    assert_eq!(matches("k:\n  - needle\ncondition: k", &hits), [0, 1, 2]);
    assert_eq!(matches("k: needle\ncondition: k", &[hits[0].clone(), json!({"needle": "x"})]), [0]);
    let numbers =
        [json!({"a": 4711}), json!({"a": 4712}), json!({"a": [1, 4711]}), json!({"a": "x4711"}), json!({"a": 1.5})];
    assert_eq!(matches("k:\n  - 4711\ncondition: k", &numbers), [0, 2, 3]);
    assert_eq!(matches("k:\n  - '4711'\ncondition: k", &numbers), [0, 2, 3]);
    assert_eq!(matches("k:\n  - '1.5'\ncondition: k", &numbers), [4]);
    let both = [json!({"a": "one", "b": "two"}), json!({"a": "one"}), json!({"a": "one two"})];
    assert_eq!(matches("k:\n  '|all':\n    - one\n    - two\ncondition: k", &both), [0, 2]);
    assert_eq!(matches("k:\n  - one\n  - two\ncondition: k", &both), [0, 1, 2]);
    assert_eq!(matches("k:\n  - 'o?e*o'\ncondition: k", &both), [2]);
    assert_eq!(matches("k:\n  '|re':\n    - '^o.e$'\ncondition: k", &both), [0, 1]);
    // What says how the event was stored is not searched.
    assert_eq!(matches("k:\n  - acme\ncondition: k", &both), [0usize; 0]);
    // A list of maps and words: any of them.
    assert_eq!(matches("k:\n  - a: one\n  - two\ncondition: k", &both), [0, 1, 2]);
}

#[test]
fn field_names_are_found_however_they_are_stored() {
    check("a.b.c: x", &[json!({"a": {"b": {"c": "x"}}}), json!({"a.b.c": "x"})], &[json!({"a": {"b": "x"}})]);
    check("ThreatName: x", &[json!({"Threat Name": "x"}), json!({"ThreatName": "x"})], &[json!({"Threat": "x"})]);
    // A core column took the name; the event's own value is stored as raw.message.
    check("message: x", &[json!({"message": "x"})], &[json!({"other": "x"})]);
    check("source: test", &[json!({"a": 1})], &[]);
    check("'we\\ird[0]': x", &[json!({"we\\ird[0]": "x"})], &[json!({"we": "x"})]);
}

#[test]
fn conditions_have_precedence_selectors_and_lists() {
    let events: Vec<Value> =
        (0..8u8).map(|bits| json!({"a": bits & 1, "b": bits >> 1 & 1, "c": bits >> 2, "z": 1})).collect();
    let selections = "a:\n  a: 1\nb:\n  b: 1\nc:\n  c: 1\n";
    let model = |holds: fn(bool, bool, bool) -> bool| -> Vec<usize> {
        (0..8).filter(|bits| holds(bits & 1 == 1, bits >> 1 & 1 == 1, bits >> 2 == 1)).collect()
    };
    for (condition, wanted) in [
        ("a or b and c", model(|a, b, c| a || (b && c))),
        ("(a or b) and c", model(|a, b, c| (a || b) && c)),
        ("not a and b", model(|a, b, _| !a && b)),
        ("not (a and b)", model(|a, b, _| !(a && b))),
        ("not not a", model(|a, _, _| a)),
        ("not a or not b", model(|a, b, _| !a || !b)),
        ("1 of them", model(|a, b, c| a || b || c)),
        ("any of them", model(|a, b, c| a || b || c)),
        ("all of them", model(|a, b, c| a && b && c)),
        ("2 of them", model(|a, b, c| [a, b, c].iter().filter(|holds| **holds).count() >= 2)),
        ("not 1 of them", model(|a, b, c| !(a || b || c))),
        ("not all of them", model(|a, b, c| !(a && b && c))),
        ("[a and b, c]", model(|a, b, c| (a && b) || c)),
        ("all of a*", model(|a, _, _| a)),
        ("4 of them", model(|_, _, _| false)),
    ] {
        assert_eq!(matches(&format!("{selections}condition: {condition}"), &events), wanted, "{condition}");
    }
    let named = "sel_a:\n  a: 1\nsel_b:\n  b: 1\n_hidden:\n  z: 1\nfil-ter:\n  c: 1\n";
    for (condition, wanted) in [
        ("1 of sel_*", model(|a, b, _| a || b)),
        ("all of sel_* and not fil-ter", model(|a, b, c| a && b && !c)),
        ("1 of *_b", model(|_, b, _| b)),
        ("1 of s*_a", model(|a, _, _| a)),
        ("1 of them", model(|a, b, c| a || b || c)),
        ("_hidden and fil-ter", model(|_, _, c| c)),
    ] {
        assert_eq!(matches(&format!("{named}condition: {condition}"), &events), wanted, "{condition}");
    }
}

#[test]
fn maps_are_and_lists_of_maps_are_or() {
    let events = [json!({"a": 1, "b": 2}), json!({"a": 1}), json!({"b": 2}), json!({"c": 3})];
    assert_eq!(matches("s:\n  a: 1\n  b: 2\ncondition: s", &events), [0]);
    assert_eq!(matches("s:\n  - a: 1\n  - b: 2\ncondition: s", &events), [0, 1, 2]);
    assert_eq!(matches("s:\n  - a: 1\n    b: 2\n  - c: 3\ncondition: s", &events), [0, 3]);
}

#[test]
fn fields_past_the_field_bound_are_found_in_the_rest_column() {
    let rest = json!({"deep": {"list": [[1, "x"], [2]]}, "other.name": "y"}).to_string();
    let events = [json!({"_rest": rest}), json!({"_rest": "{}"}), json!({"a": 1})];
    assert_eq!(matches("s:\n  deep.list: x\n  other.name: Y\ncondition: s", &events), [0]);
    assert_eq!(matches("s:\n  deep.list|exists: false\ncondition: s", &events), [1, 2]);
    assert_eq!(matches("k:\n  - '\"y\"'\ncondition: k", &events), [0]);
    assert_eq!(matches("s:\n  deep|exists: true\ncondition: s", &events), [0]);
    let events = [json!({"_rest": "{\"o\": {}, \"l\": []}"}), json!({"_rest": "{\"o\": null}"}), json!({"l": 1})];
    assert_eq!(matches("s:\n  o|exists: true\ncondition: s", &events), [0]);
    assert_eq!(matches("s:\n  l: null\ncondition: s", &events), [1]);
}

#[test]
fn placeholders_are_expanded_from_the_configuration() {
    let mut config = RulesConfig::default();
    config.placeholders.insert("admins".into(), vec!["root".into(), "adm*".into()]);
    let file = rule("s:\n  f|expand: 'x-%admins%'\ncondition: s");
    let (rules, problems) = RuleSet::compile(&[file], &config).expect("tables");
    assert_eq!(problems, []);
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let found =
        evaluator.matches(&Events::security("test", &f(&["x-root", "X-ADMIN", "x-bob", "x-%admins%"])).batch(0));
    assert_eq!(found, [(0, 0), (1, 0)]);
}

#[test]
fn matches_are_in_the_order_of_rows_then_rules() {
    let rules = ["b.yml", "a.yml"].map(|name| RuleFile {
        name: name.into(),
        text: rule("s:\n  f: x\ncondition: s").text.replace("id: t", &format!("id: {name}")),
        org_id: None,
    });
    let config = RulesConfig::default();
    let (rules, _) = RuleSet::compile(&rules, &config).expect("tables");
    assert_eq!(rules.rules().iter().map(|rule| rule.head.id.as_str()).collect::<Vec<_>>(), ["a.yml", "b.yml"]);
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let found = evaluator.matches(&Events::security("test", &f(&["x", "y", "x"])).batch(0));
    assert_eq!(found, [(0, 0), (0, 1), (2, 0), (2, 1)]);
}

#[test]
fn a_full_memo_forgets_and_still_answers_right() {
    let config = RulesConfig { memo_values_max: 10, ..RulesConfig::default() };
    let (rules, _) = RuleSet::compile(&[rule("s:\n  f|endswith: '7'\ncondition: s")], &config).expect("tables");
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    for round in 0..20 {
        let events: Vec<Value> = (0..30).map(|at| json!({"f": format!("v{}", at * (round % 3 + 1))})).collect();
        let wanted: Vec<usize> = (0..30).filter(|at| (at * (round % 3 + 1)) % 10 == 7).collect();
        let found: Vec<usize> =
            evaluator.matches(&Events::security("test", &events).batch(0)).into_iter().map(|(row, _)| row).collect();
        assert_eq!(found, wanted, "round {round}");
        assert!(evaluator.remembered() <= 2 * (10 + 31), "{}", evaluator.remembered());
    }
}
