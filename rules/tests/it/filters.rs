//! Sigma filter files: which rules they are for, what they take away, for whom, and what is reported of broken ones.

use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_rules::{Evaluator, RuleFile, RuleProblem, RuleSet, RulesConfig};

use crate::flatten::Events;

/// Files as (tenant, name, text), which are loaded together.
type Files<'a> = [(Option<&'a str>, &'a str, String)];

fn compile(files: &Files<'_>) -> (RuleSet, Vec<RuleProblem>) {
    let file = |(org_id, name, text): &(Option<&str>, &str, String)| RuleFile {
        name: (*name).to_owned(),
        text: text.clone(),
        org_id: org_id.map(str::to_owned),
    };
    let files: Vec<RuleFile> = files.iter().map(file).collect();
    RuleSet::compile(&files, &RulesConfig::default()).expect("tables")
}

/// The matches as `row:rule`, of events of tenants `acme` (even rows) and `other` (odd rows).
fn matches(files: &Files<'_>, events: &[Value]) -> (String, Vec<RuleProblem>) {
    let (rules, problems) = compile(files);
    let mut batch = Events::security("test", events);
    for (row, (org_id, ..)) in batch.rows.iter_mut().enumerate() {
        *org_id = if row % 2 == 0 { "acme" } else { "other" }.into();
    }
    let mut evaluator = Evaluator::new(Arc::new(rules), &RulesConfig::default());
    let found = evaluator.matches(&batch.batch(0));
    let text: Vec<String> =
        found.iter().map(|(row, at)| format!("{row}:{}", evaluator.rules().rules()[*at].head.id)).collect();
    (text.join(" "), problems)
}

fn rule(id: &str, log_source: &str) -> String {
    format!(
        "title: T\nid: {id}\nname: name_of_{id}\nlogsource: {{{log_source}}}\ndetection: {{selection: {{f: x}}, condition: selection}}\n"
    )
}

fn filter(id: &str, rules: &str, rest: &str) -> String {
    format!("title: F\nid: {id}\nlogsource: {{product: test}}\nfilter:\n  rules: {rules}\n  {rest}\n")
}

const ADMINS: &str = "selection: {User|startswith: adm_}\n  condition: not selection";

fn events() -> [Value; 4] {
    [
        json!({"f": "x", "User": "bob"}),
        json!({"f": "x"}),
        json!({"f": "x", "User": "ADM_1"}),
        json!({"f": "y", "User": "adm_2"}),
    ]
}

/// Rules `a` and `b` of product `test` and `c` of its service `s`, with one filter.
fn check(filter: String, wanted: &str) {
    let rules = rule("a", "product: test") + "---\n" + &rule("b", "product: test");
    for files in [
        vec![(None, "rules.yml", rules.clone()), (None, "z.yml", filter.clone())],
        vec![(None, "filter.yml", filter.clone()), (None, "rules.yml", rules.clone())],
        vec![(None, "one.yml", format!("{filter}---\n{rules}"))],
    ] {
        let (found, problems) = matches(&files, &events());
        assert_eq!(problems, [], "{filter}");
        assert_eq!(found, wanted, "{filter}");
    }
}

#[test]
fn a_filter_is_for_the_rules_it_names_whatever_the_order_of_files() {
    check(filter("f", "[a]", ADMINS), "0:a 0:b 1:a 1:b 2:b");
    check(filter("f", "a", ADMINS), "0:a 0:b 1:a 1:b 2:b");
    check(filter("f", "[name_of_b]", ADMINS), "0:a 0:b 1:a 1:b 2:a");
    check(filter("f", "[a, name_of_b, a]", ADMINS), "0:a 0:b 1:a 1:b");
    check(filter("f", "any", ADMINS), "0:a 0:b 1:a 1:b");
    check(filter("f", "Any", ADMINS), "0:a 0:b 1:a 1:b");
    check(filter("f", "[]", ADMINS), "0:a 0:b 1:a 1:b");
    check(filter("f", "\n    - a # with a comment\n    - b", ADMINS), "0:a 0:b 1:a 1:b");
}

#[test]
fn a_condition_says_what_stays_or_what_goes() {
    let all = "0:a 0:b 1:a 1:b 2:a 2:b";
    let without_admins = "0:a 0:b 1:a 1:b";
    let both = "one: {User|startswith: adm_}\n  two: {User: bob}";
    for (rest, wanted) in [
        // What stays, as pySigma adds it to the rule.
        ("selection: {User|startswith: adm_}\n  condition: not selection".to_owned(), without_admins),
        ("selection: {User|startswith: adm_}\n  condition: not ((selection))".to_owned(), without_admins),
        (format!("{both}\n  condition: not 1 of them"), "1:a 1:b"),
        (format!("{both}\n  condition: not one and not two"), "1:a 1:b"),
        (format!("{both}\n  condition: not all of them"), all),
        (format!("{both}\n  condition: not 1 of t*"), "1:a 1:b 2:a 2:b"),
        (format!("{both}\n  condition: not 1 of *e"), without_admins),
        ("s: {User: null}\n  condition: not s".to_owned(), "0:a 0:b 2:a 2:b"),
        // What goes, as in the examples of the specification.
        ("selection: {User|startswith: adm_}\n  condition: selection".to_owned(), without_admins),
        (format!("{both}\n  condition: 1 of them"), "1:a 1:b"),
        (format!("{both}\n  condition: one and not two"), without_admins),
        (format!("{both}\n  condition: all of them"), all),
        ("s: {User: null}\n  condition: s".to_owned(), "0:a 0:b 2:a 2:b"),
        // Names of selections are the filter's own, and it may hold whatever a detection can hold.
        ("filter: {User: bob}\n  condition: not filter".to_owned(), "1:a 1:b 2:a 2:b"),
        ("k: [bob]\n  condition: not k".to_owned(), "1:a 1:b 2:a 2:b"),
        ("s: {User|re: '^b.b$'}\n  condition: not s".to_owned(), "1:a 1:b 2:a 2:b"),
        ("s: {User|fieldref: f}\n  condition: not s".to_owned(), all),
    ] {
        check(filter("f", "[a, b]", &rest), wanted);
    }
}

#[test]
fn a_rule_may_have_several_filters() {
    let files = [
        (None, "a.yml", rule("a", "product: test")),
        (None, "f.yml", filter("f", "[a]", ADMINS)),
        (None, "g.yml", filter("g", "any", "s: {User: bob}\n  condition: not s")),
    ];
    assert_eq!(matches(&files, &events()), ("1:a".into(), vec![]));
}

#[test]
fn a_filter_is_for_rules_within_its_log_source() {
    let rules = [
        rule("plain", "product: windows"),
        rule("process", "product: windows, category: process_creation"),
        rule("security", "product: Windows, service: Security"),
        rule("any_process", "category: process_creation"),
    ];
    let event = json!({"f": "x", "User": "adm_1", "EventID": 4688, "Channel": "Security"});
    let found = |log_source: &str, rules_key: &str| {
        let filter = filter("f", rules_key, ADMINS).replace("product: test", log_source);
        let files = [(None, "rules.yml", rules.join("---\n")), (None, "f.yml", filter)];
        let (set, problems) = compile(&files);
        let mut evaluator = Evaluator::new(Arc::new(set), &RulesConfig::default());
        let found = evaluator.matches(&Events::security("windows", std::slice::from_ref(&event)).batch(0));
        let ids: Vec<&str> = found.iter().map(|(_, at)| evaluator.rules().rules()[*at].head.id.as_str()).collect();
        (ids.join(" "), problems.into_iter().map(|problem| problem.reason).collect::<Vec<_>>())
    };
    assert_eq!(found("product: windows", "any"), ("any_process".into(), vec![]));
    assert_eq!(found("category: PROCESS_CREATION", "any"), ("plain security".into(), vec![]));
    assert_eq!(found("product: windows, service: security", "any"), ("plain process any_process".into(), vec![]));
    assert_eq!(found("product: linux", "any"), ("plain process security any_process".into(), vec![]));
    let (ids, problems) = found("product: windows", "[process, any_process]");
    assert_eq!(ids, "plain security any_process");
    assert!(problems[0].contains("for another log source"), "{problems:?}");
}

#[test]
fn fields_of_a_filter_are_named_as_those_of_each_rule() {
    // In Security 4688 the image is NewProcessName, for rules and for filters.
    let filter = "title: F\nlogsource: {product: windows}\nfilter:\n  rules: any\n  s: {Image|endswith: '\\good.exe'}\n  condition: not s\n";
    let rule = rule("p", "product: windows, category: process_creation");
    let (set, problems) = compile(&[(None, "r.yml", rule), (None, "f.yml", filter.into())]);
    assert_eq!(problems, []);
    let mut evaluator = Evaluator::new(Arc::new(set), &RulesConfig::default());
    let of = |image: &str| json!({"f": "x", "EventID": 4688, "Channel": "Security", "NewProcessName": image});
    let batch = Events::security("windows", &[of("C:\\good.exe"), of("C:\\bad.exe")]).batch(0);
    assert_eq!(evaluator.matches(&batch), [(1, 0)]);
    assert_eq!(evaluator.counts().filtered, 1);
}

#[test]
fn a_tenants_filter_is_for_its_own_events_only() {
    let bob = "s: {User: bob}\n  condition: not s";
    let events = vec![json!({"f": "x", "User": "bob"}); 2];
    let shared = || (None, "a.yml", rule("a", "product: test"));
    let own = || (Some("acme"), "own.yml", rule("own", "product: test"));
    let theirs = || (Some("other"), "own.yml", rule("theirs", "product: test"));
    // Without a filter: row 0 is of acme, row 1 of other.
    assert_eq!(matches(&[shared(), own(), theirs()], &events).0, "0:a 0:own 1:a 1:theirs");
    let with = |org_id, rules: &str| {
        let files = [shared(), own(), theirs(), (org_id, "f.yml", filter("f", rules, bob))];
        let (found, problems) = matches(&files, &events);
        (found, problems.len())
    };
    assert_eq!(with(Some("acme"), "any"), ("1:a 1:theirs".into(), 0));
    assert_eq!(with(Some("acme"), "[a]"), ("0:own 1:a 1:theirs".into(), 0));
    assert_eq!(with(Some("acme"), "[own]"), ("0:a 1:a 1:theirs".into(), 0));
    // It cannot see another tenant's rules.
    assert_eq!(with(Some("acme"), "[theirs]"), ("0:a 0:own 1:a 1:theirs".into(), 1));
    assert_eq!(with(Some("other"), "any"), ("0:a 0:own".into(), 0));
    assert_eq!(with(Some("nobody"), "any"), ("0:a 0:own 1:a 1:theirs".into(), 0));
    // Everyone's filter is for every rule.
    assert_eq!(with(None, "any"), ("".into(), 0));
    // Both tenants have the same file with the same id.
    let files =
        [shared(), (Some("acme"), "f.yml", filter("f", "any", bob)), (Some("other"), "f.yml", filter("f", "[a]", bob))];
    assert_eq!(matches(&files, &events), ("".into(), vec![]));
}

/// Line, column and a piece of the reason of each problem; the rules load and match as if there were no filter.
fn broken(filter: String, wanted: &[(usize, usize, &str)]) {
    let files = [(None, "a.yml", rule("a", "product: test")), (None, "f.yml", filter.clone())];
    let (found, problems) = matches(&files, &events());
    assert_eq!(found, "0:a 1:a 2:a", "{filter}");
    let places: Vec<_> = problems.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(places, wanted.iter().map(|(line, column, _)| (*line, *column)).collect::<Vec<_>>(), "{problems:?}");
    for (problem, (.., reason)) in problems.iter().zip(wanted) {
        assert!(problem.reason.contains(reason), "{:?} has no {reason:?}", problem.reason);
        assert_eq!((problem.file.as_str(), problem.hint.is_empty()), ("f.yml", false), "{problem:?}");
    }
}

#[test]
fn a_broken_filter_is_reported_with_its_place_and_spoils_nothing() {
    let plain = |rules: &str| filter("f", rules, ADMINS);
    broken(plain("[nobody]"), &[(5, 11, "no rule has the id or name \"nobody\"")]);
    broken(plain("[nobody, noone]"), &[(5, 11, "nobody"), (5, 19, "noone")]);
    broken(plain("12345"), &[(5, 3, "not names")]);
    broken(plain("[123]"), &[(5, 3, "not names")]);
    broken(plain("{a: b}"), &[(5, 3, "not names")]);
    broken(plain("''"), &[(5, 3, "not names")]);
    broken(plain("[a]").replace("  rules: [a]\n", ""), &[(4, 1, "which rules it is for")]);
    broken(plain("[a]").replace("logsource: {product: test}\n", ""), &[(1, 1, "names no log source")]);
    broken(plain("[a]").replace("product: test", "definition: x"), &[(3, 1, "names no log source")]);
    broken(plain("[a]").replace("id: f", "id: a"), &[(2, 1, "is that of a rule in a.yml")]);
    broken(
        plain("[a]").replace("not selection", "not selectoin"),
        &[(7, 3, "\"selectoin\", which is not a selection")],
    );
    broken(plain("[a]").replace("not selection", "[selection, selection]"), &[(7, 3, "one condition, not 2")]);
    broken(plain("[a]").replace("condition: not selection", "b: {g: x}"), &[(1, 1, "condition")]);
    broken(plain("[a]").replace("startswith", "startwith"), &[(6, 19, "Unknown modifier")]);
    broken(plain("any").replace("startswith: adm_", "re: '('"), &[(6, 15, "regular expression")]);
    broken(
        plain("any").replace("product: test", "product: nothing").replace("startswith: adm_", "re: '('"),
        &[(6, 15, "regular")],
    );
    broken("title: F\nlogsource: {product: test}\nfilter: x\n".into(), &[(1, 1, "filter")]);
}

#[test]
fn a_filter_that_names_some_rules_wrongly_is_in_force_for_the_others() {
    let files = [(None, "a.yml", rule("a", "product: test")), (None, "f.yml", filter("f", "[a, gone]", ADMINS))];
    let (found, problems) = matches(&files, &events());
    assert_eq!((found.as_str(), problems.len()), ("0:a 1:a", 1));
    // Two filters may not share an id: the first stays.
    let second = filter("f", "[a]", "s: {User: bob}\n  condition: not s");
    let files = [
        (None, "a.yml", rule("a", "product: test")),
        (None, "f.yml", filter("f", "[a]", ADMINS)),
        (None, "g.yml", second),
    ];
    let (found, problems) = matches(&files, &events());
    assert_eq!((found.as_str(), problems.len()), ("0:a 1:a", 1));
    assert!(problems[0].reason.contains("another filter"), "{problems:?}");
}
