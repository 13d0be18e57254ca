//! What rules say they detect.

use tidegate_rules::coverage::coverage;
use tidegate_rules::{RuleFile, RulesConfig, pack};

fn rule(id: &str, level: &str, tags: &str) -> RuleFile {
    let text = format!(
        "title: Rule {id}\nid: {id}\n{level}tags: [{tags}]\nlogsource: {{product: x}}\ndetection: {{s: {{f: v}}, condition: s}}\n"
    );
    RuleFile::new(format!("{id}.yml"), text)
}

#[test]
fn rules_are_counted_under_each_tactic_and_technique_that_they_name() {
    let files = [
        rule("a", "level: high\n", "attack.execution, attack.t1059.001"),
        rule("b", "", "attack.execution, attack.privilege_escalation, attack.t1059.001, attack.t1053"),
        rule("c", "level: low\n", "attack.t1053"),
        rule("d", "", "cve.2021-44228, attack.g0016"),
        rule("e", "", "attack.defense-evasion"),
        RuleFile::new(
            "f.yml",
            "title: F\nlogsource: {product: x}\nfilter: {rules: any, s: {f: v}, condition: not s}\n",
        ),
        RuleFile::new("g.yml", "title: ["),
    ];
    let found = coverage(&files, &RulesConfig::default()).expect("tables");
    assert_eq!(found.rules, 5);
    assert_eq!(found.untagged.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>(), ["d"]);
    let of = |tactic: &str| found.tactics.iter().find(|row| row.tactic == tactic).expect("a tactic");
    let execution = of("execution");
    assert_eq!((execution.levels.high, execution.levels.medium, execution.levels.total()), (1, 1, 2));
    let techniques = |tactic: &str| {
        let names = of(tactic).techniques.iter();
        names.map(|technique| (technique.technique.clone(), technique.levels.total())).collect::<Vec<_>>()
    };
    assert_eq!(techniques("execution"), [("T1053".to_owned(), 1), ("T1059.001".to_owned(), 2)]);
    assert_eq!(techniques(""), [("T1053".to_owned(), 1)]);
    assert!(of("defense-evasion").retired && of("impact").levels.total() == 0);
    assert_eq!(found.techniques.len(), 2);
}

#[test]
fn the_layer_is_one_that_the_navigator_takes() {
    let found = coverage(&pack::files(), &RulesConfig::default()).expect("tables");
    let layer = found.navigator_layer("pack");
    assert_eq!(layer["versions"]["layer"], "4.5");
    assert_eq!(layer["domain"], "enterprise-attack");
    let techniques = layer["techniques"].as_array().expect("techniques");
    assert_eq!(techniques.len(), found.techniques.len());
    for technique in techniques {
        let id = technique["techniqueID"].as_str().expect("an id");
        assert!(id.starts_with('T') && id[1..5].bytes().all(|byte| byte.is_ascii_digit()), "{id}");
        assert!(technique["score"].as_u64() > Some(0) && technique["comment"] != "", "{technique}");
    }
    assert!(layer["gradient"]["maxValue"].as_u64() > layer["gradient"]["minValue"].as_u64());
    let none = coverage(&[], &RulesConfig::default()).expect("tables").navigator_layer("none");
    assert_eq!(none["gradient"]["maxValue"], 1);
}
