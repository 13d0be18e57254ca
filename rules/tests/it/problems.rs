//! What is reported of a rule that cannot be loaded: where, why, and what to do.

use tidegate_rules::{RuleFile, RuleSet, RulesConfig};

const GOOD: &str = "title: Good\nid: good\nlogsource: {product: test}\ndetection: {s: {f: x}, condition: s}\n";

/// Line, column and a piece of the reason of each problem of a file.
fn check(text: &str, wanted: &[(usize, usize, &str)]) {
    let files = [RuleFile::new("a.yml", GOOD), RuleFile::new("b.yml", text)];
    let (rules, problems) = RuleSet::compile(&files, &RulesConfig::default()).expect("tables");
    assert_eq!(rules.rules().len(), 1, "the good rule loads: {text}");
    let found: Vec<_> = problems.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(found, wanted.iter().map(|(line, column, _)| (*line, *column)).collect::<Vec<_>>(), "{problems:?}");
    for (problem, (.., reason)) in problems.iter().zip(wanted) {
        assert!(problem.reason.contains(reason), "{:?} has no {reason:?}", problem.reason);
        assert_eq!(problem.file, "b.yml");
    }
}

fn with(detection: &str) -> String {
    format!("title: T\nid: t\nlogsource:\n  product: test\ndetection:\n{detection}")
}

#[test]
fn each_fault_has_its_place_and_reason() {
    check(&with("  s:\n    f|contians: x\n  condition: s\n"), &[(7, 6, "Unknown modifier 'contians'")]);
    check(&with("  s:\n    f|not: x\n  condition: s\n"), &[(7, 6, "not")]);
    check(&with("  s:\n    f: x\n  condition: s and t\n"), &[(8, 3, "\"t\", which is not a selection")]);
    check(&with("  s:\n    f: x\n  condition: 1 of sel*\n"), &[(8, 3, "no selection is called sel*")]);
    check(&with("  s:\n    f: x\n  condition: s and and s\n"), &[(8, 3, "Condition")]);
    check(&with("  s:\n    f: x\n  condition: s | count() > 5\n"), &[(8, 3, "Condition")]);
    check(&with("  s:\n    f: x\n"), &[(1, 1, "condition")]);
    check(&with("  s:\n    f|re: '('\n  condition: s\n"), &[(7, 5, "regular expression is not supported")]);
    check(&with("  s:\n    f|re: '(?=x)'\n  condition: s\n"), &[(7, 5, "look-around")]);
    check(&with("  s:\n    f|re: '((a{1000}){1000}){10}'\n  condition: s\n"), &[(7, 5, "bytes")]);
    check(&with("  s:\n    f|cidr: 10.0.0.0/40\n  condition: s\n"), &[(7, 13, "not a network")]);
    check(&with("  s:\n    f|gt: many\n  condition: s\n"), &[(7, 5, "needs a number")]);
    check(&with("  s:\n    f|exists: perhaps\n  condition: s\n"), &[(7, 6, "true or false")]);
    check(&with("  s:\n    f|base64: 'a*'\n  condition: s\n"), &[(7, 5, "without wildcards")]);
    check(&with("  s:\n    f|i: x\n  condition: s\n"), &[(7, 5, "needs the modifier re")]);
    check(&with("  s:\n    f|expand: '%who%'\n  condition: s\n"), &[(7, 16, "%who% has no value")]);
    check(&with("  s:\n    f: []\n  condition: s\n"), &[(7, 5, "empty list")]);
    check(&with("  s: {}\n  condition: s\n"), &[(6, 3, "would match everything")]);
    check(&with("  s:\n    f: x\n  timeframe: 5m\n  condition: s\n"), &[(8, 3, "timeframe")]);
    check("title: T\nid: t\ndetection: {s: {f: x}, condition: s}\n", &[(1, 1, "log source")]);
    check("id: t\nlogsource: {product: test}\ndetection: {s: {f: x}, condition: s}\n", &[(1, 1, "'title'")]);
    check(&format!("sigma-version: 4\n{}", with("  s:\n    f: x\n  condition: s\n")), &[(1, 1, "later version")]);
    check("- a\n- b\n", &[(1, 1, "mapping")]);
    check("title: [\n", &[(2, 1, "flow node")]);
    check("# comment\n---\n# comment\ntitle: [\n", &[(5, 1, "flow node")]);
    check(GOOD, &[(2, 1, "is that of a rule in a.yml")]);
}

#[test]
fn later_documents_have_their_own_lines_and_spoil_nothing() {
    let correlation = "title: C\nid: c\ncorrelation:\n  type: event_count\n  rules: [good]\n  group-by: [f]\n  timespan: 5m\n  condition: {gte: 3}\n";
    let filter =
        "title: F\nid: f\nlogsource: {product: test}\nfilter:\n  rules: [good]\n  s: {f: y}\n  condition: not s\n";
    let text =
        format!("# comment\n---\n{correlation}---\n{filter}---\n{}", with("  s:\n    f|oops: x\n  condition: s\n"));
    check(&text, &[(26, 6, "oops")]);
    let multi = format!("{}---\n{}", GOOD.replace("good", "one"), GOOD.replace("good", "two"));
    let (rules, problems) =
        RuleSet::compile(&[RuleFile::new("m.yml", multi)], &RulesConfig::default()).expect("tables");
    assert_eq!((rules.rules().len(), problems), (2, vec![]));
}

#[test]
fn documents_that_build_on_each_other_are_merged() {
    let text = "action: global\ntitle: G\nlogsource: {product: test}\n---\nid: g1\ndetection: {s: {f: x}, condition: s}\n---\nid: g2\ndetection: {s: {f: y}, condition: s}\n";
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("g.yml", text)], &RulesConfig::default()).expect("tables");
    assert_eq!(problems, []);
    assert_eq!(rules.rules().iter().map(|rule| rule.head.id.as_str()).collect::<Vec<_>>(), ["g1", "g2"]);
}

#[test]
fn each_tenant_has_a_share_of_files_of_its_own() {
    let file = |org: Option<&str>, number: usize| RuleFile {
        name: format!("{number}.yml"),
        text: format!(
            "title: A\nid: {org:?}-{number}\nlogsource: {{product: aws}}\ndetection: {{s: {{f: v}}, condition: s}}\n"
        ),
        org_id: org.map(str::to_owned),
    };
    let files: Vec<RuleFile> =
        [None, Some("acme"), Some("zeta")].iter().flat_map(|org| (0..4).map(|number| file(*org, number))).collect();
    let config = RulesConfig { files_max: 3, tenant_files_max: 2, ..RulesConfig::default() };
    let (rules, problems) = RuleSet::compile(&files, &config).expect("tables");
    let count = |org: Option<&str>| rules.rules().iter().filter(|rule| rule.head.org_id.as_deref() == org).count();
    assert_eq!((count(None), count(Some("acme")), count(Some("zeta"))), (3, 2, 2));
    assert_eq!(problems.len(), 1 + 2 + 2);
    assert!(problems.iter().all(|problem| problem.reason.contains("rule files") && problem.rule.is_empty()));
}
