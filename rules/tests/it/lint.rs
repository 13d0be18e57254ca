//! What is odd about rules that load.

use tidegate_rules::{RuleFile, RulesConfig, lint, pack};

const HEAD: &str =
    "title: A rule\nid: 0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a001\nlevel: high\ntags: [attack.execution, attack.t1059]\n";

/// Line, check and a piece of the reason or hint of each warning.
fn check(text: &str, wanted: &[(usize, &str, &str)]) {
    let warnings = lint(&[RuleFile::new("a.yml", text)], &RulesConfig::default()).expect("tables");
    let found: Vec<_> = warnings.iter().map(|warning| (warning.problem.line, warning.check.as_str())).collect();
    let lines: Vec<_> = wanted.iter().map(|(line, check, _)| (*line, *check)).collect();
    assert_eq!(found, lines, "{text}\n{warnings:#?}");
    for (warning, (.., part)) in warnings.iter().zip(wanted) {
        let said = format!("{} ({})", warning.problem.reason, warning.problem.hint);
        assert!(said.contains(part), "{said:?} has no {part:?}");
    }
}

fn rule(detection: &str) -> String {
    format!("{HEAD}logsource:\n  product: windows\n  category: process_creation\ndetection:\n{detection}")
}

#[test]
fn a_rule_without_a_fault_has_no_warning() {
    check(&rule("  s:\n    Image: x\n  condition: s\n"), &[]);
    check(&rule("  s:\n    Image|endswith: \\a.exe\n  f:\n    Image: C:\\a.exe\n  condition: s and not f\n"), &[]);
    check(&rule("  s_a:\n    Image: x\n  s_b:\n    Image: y\n  _c:\n    User: z\n  condition: 1 of s_* or _c\n"), &[]);
    let warnings = lint(&pack::files(), &RulesConfig::default()).expect("tables");
    // Costs have no namespace of their own in the specification.
    assert_eq!(warnings.iter().find(|warning| !warning.problem.reason.contains("\"cost\"")), None);
}

#[test]
fn what_a_rule_should_say_about_itself_is_asked_for() {
    let text = "title: T\nlogsource: {product: aws, service: cloudtrail}\ndetection: {s: {f: x}, condition: s}\n";
    check(text, &[(1, "missing_id", "new UUID"), (1, "missing_level", "level"), (1, "missing_tags", "attack.t1059")]);
    let tagged =
        |tags: &str| rule("  s:\n    Image: x\n  condition: s\n").replace("[attack.execution, attack.t1059]", tags);
    check(&tagged("[attack.persistance]"), &[(4, "unknown_attack_tag", "did you mean attack.persistence?")]);
    check(&tagged("[attack.t10590]"), &[(4, "unknown_attack_tag", "techniques attack.t1059.001")]);
    check(&tagged("[attack.defense_evasion]"), &[(4, "retired_attack_tag", "attack.stealth")]);
    check(&tagged("[attack.t1059, attack.t1059]"), &[(4, "duplicate_tags", "attack.t1059")]);
    check(
        &rule("  s:\n    Image: x\n  condition: s\n").replace("0a6f0c5e-3f0e", "nonsense"),
        &[(2, "invalid_id", "UUID")],
    );
}

#[test]
fn log_sources_that_no_table_knows_are_told_with_what_was_meant() {
    let with = |source: &str| {
        rule("  s:\n    Image: x\n  condition: s\n")
            .replace("  product: windows\n  category: process_creation\n", source)
    };
    check(
        &with("  product: window\n  category: process_creation\n"),
        &[(5, "unknown_log_source", "product: windows?")],
    );
    check(&with("  category: proces_creation\n"), &[(5, "unknown_log_source", "category: process_creation?")]);
    check(&with("  product: toaster\n"), &[(5, "unknown_log_source", "?source=toaster")]);
}

#[test]
fn logic_that_does_nothing_is_told() {
    check(
        &rule("  s:\n    Image: x\n  t:\n    Image: y\n  condition: s\n"),
        &[(11, "unused_selection", "selection t")],
    );
    let filters = |filter: &str| {
        rule(&format!(
            "  s:\n    Image|endswith:\n      - \\a.exe\n      - \\b.exe\n{filter}  condition: s and not 1 of f_*\n"
        ))
    };
    check(&filters("  f_1:\n    Image: C:\\c.exe\n"), &[(13, "unreachable_filter", "f_1 takes nothing away")]);
    check(&filters("  f_1:\n    Image: c:\\A.EXE\n"), &[]);
    check(
        &filters("  f_1:\n    Image: c:\\c.exe\n    User: x\n  f_2:\n    User: x\n"),
        &[(13, "unreachable_filter", "f_1")],
    );
    check(&filters("  f_1:\n    - Image: c:\\c.exe\n    - User: x\n"), &[]);
    check(&filters("  f_1:\n    Image|endswith: '*\\c.exe'\n"), &[]);
    check(&filters("  f_1:\n    Image: null\n"), &[(13, "unreachable_filter", "f_1")]);
    let both = "  s:\n    Image: x\n  t:\n    Image: y\n  condition: s and t\n";
    check(&rule(both), &[(11, "never_matches", "exclude each other")]);
    let same = "  s:\n    Image: x\n  t:\n    Image: x\n  condition: s and not t\n";
    check(&rule(same), &[(11, "never_matches", "ask for the same")]);
}

#[test]
fn documents_are_looked_at_together() {
    let correlation = |rules: &str| {
        format!(
            "{}\n---\ntitle: C\nid: 0a6f0c5e-3f0e-4f6c-9f55-0d6a4ce1a002\nlevel: low\ntags: [attack.t1059]\ncorrelation:\n  type: event_count\n  rules: [{rules}]\n  group-by: [User]\n  timespan: 5m\n  condition:\n    gte: 3\n",
            rule("  s:\n    Image: x\n  condition: s").replace("level:", "name: run\nlevel:")
        )
    };
    check(&correlation("run"), &[]);
    check(&correlation("runn"), &[(20, "unknown_rule", "did you mean run?")]);
    let many: Vec<RuleFile> = (0..6)
        .map(|at| {
            let field = if at == 5 { "commandline" } else { "CommandLine" };
            let text = rule(&format!("  s:\n    {field}: x\n  condition: s\n"));
            RuleFile::new(format!("{at}.yml"), text.replace("a001", &format!("b00{at}")))
        })
        .collect();
    let warnings = lint(&many, &RulesConfig::default()).expect("tables");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!((warnings[0].check.as_str(), warnings[0].problem.line), ("unusual_field_case", 10));
}
