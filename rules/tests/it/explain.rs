//! What rules compile to, and why events match them or not.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_events::Dataset;
use tidegate_rules::explain::explain;
use tidegate_rules::{Evaluator, Findings, RuleFile, RuleSet, RulesConfig, Trial, pack};

use crate::flatten::Events;

const RULE: &str = "
title: Dump
id: dump
logsource: {product: windows, category: process_access}
detection:
  selection:
    TargetImage|endswith: \\lsass.exe
    GrantedAccess: ['0x1410', '0x1fffff']
  filter:
    SourceImage|startswith: 'C:\\Windows\\'
  condition: selection and not filter
";

fn compiled(text: &str) -> Arc<RuleSet> {
    let (set, problems) = RuleSet::compile(&[RuleFile::new("a.yml", text)], &RulesConfig::default()).expect("tables");
    assert_eq!(problems, []);
    Arc::new(set)
}

fn tried(set: &Arc<RuleSet>, rule: usize, events: &Events) -> Findings {
    let mut trial = Trial::new(set.clone(), rule, 10).expect("a rule");
    let rows: Vec<usize> = (0..events.rows.len()).collect();
    trial.batch(&events.batch(0), &rows);
    trial.finish()
}

fn access(source: &str, target: &str, granted: &str) -> Value {
    json!({"EventID": 10, "Channel": "Microsoft-Windows-Sysmon/Operational", "SourceImage": source, "TargetImage": target,
        "GrantedAccess": granted})
}

#[test]
fn a_rule_is_told_as_it_runs() {
    let set = compiled(RULE);
    let told = explain(&set, 0).expect("a rule");
    assert_eq!((told.rule_id.as_str(), told.level.as_str()), ("dump", "medium"));
    let lines = told.lines(&told.program);
    let wanted = [
        "all of",
        "  p0  TargetImage ends with \\lsass.exe",
        "  any of",
        "    p1  GrantedAccess is 0x1410",
        "    p2  GrantedAccess is 0x1fffff",
        "  not",
        "    p3  SourceImage starts with c:\\windows\\",
    ];
    let sorted = |lines: &[String]| {
        lines.iter().map(|line| line.trim()[line.trim().find(' ').unwrap_or(0)..].to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(sorted(&lines), sorted(&wanted.map(str::to_owned)), "{lines:#?}");
    assert_eq!(lines.last().map(|line| line.trim_start()), Some("p3  SourceImage starts with c:\\windows\\"));
    assert!(told.fields.iter().any(|field| field.columns.contains(&"winlog.event_data.TargetImage".to_owned())));
    assert!(told.witness.is_some_and(|witness| !witness.is_empty()));
    assert!(told.log_source.known && told.log_source.lines().join(" ").contains("EventID"), "{:?}", told.log_source);
    assert!(explain(&set, 1).is_none());
}

#[test]
fn every_kind_of_test_has_words() {
    let detection = "s: {a|cased: X, b|re: ^x, c|cidr: 10.1.0.0/16, d|gte: 1.50, e|hour|lt: 6, f: 'a*b?', g|contains|windash: ' -x', h: null, i: '', j|fieldref: k}";
    let set =
        compiled(&format!("title: T\nid: t\nlogsource: {{product: test}}\ndetection: {{{detection}, condition: s}}\n"));
    let told = explain(&set, 0).expect("a rule");
    let text = told.lines(&told.program).join("\n");
    for part in [
        "a is X (case matters)",
        "b matches /^x/",
        "c is an address in 10.1.0.0/16",
        "d is a number >= 1.5",
        "e is a time whose hour (UTC) is < 6",
        "f is like a*b?",
        "g contains  —x",
        "h has a value",
        "i is empty text",
        "j is k",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn events_are_counted_and_near_misses_say_what_is_missing() {
    let set = compiled(RULE);
    let events = Events::security(
        "windows",
        &[
            access("C:\\Temp\\x.exe", "C:\\Windows\\System32\\lsass.exe", "0x1410"),
            access("C:\\Windows\\x.exe", "C:\\Windows\\System32\\lsass.exe", "0x1410"),
            access("C:\\Temp\\x.exe", "C:\\Windows\\System32\\lsass.exe", "0x1000"),
            access("C:\\Temp\\x.exe", "C:\\Windows\\explorer.exe", "0x1000"),
            json!({"EventID": 1, "Channel": "Microsoft-Windows-Sysmon/Operational", "Image": "x"}),
        ],
    );
    let findings = tried(&set, 0, &events);
    assert_eq!((findings.events, findings.covered, findings.matched), (5, 4, 1));
    assert_eq!(findings.matches, [0]);
    let nearest: Vec<_> = findings.nearest.iter().map(|near| (near.event, near.reasons.len())).collect();
    assert_eq!(nearest, [(1, 1), (2, 1), (3, 2)]);
    let filtered = &findings.nearest[0].reasons[0];
    assert_eq!((filtered.field.as_str(), filtered.wanted), ("SourceImage", false));
    assert_eq!(filtered.values, ["C:\\Windows\\x.exe"]);
    assert_eq!(findings.nearest[1].reasons[0].field, "GrantedAccess");
    let told = explain(&set, 0).expect("a rule");
    let lsass = told.predicates.iter().position(|predicate| predicate.test.contains("lsass")).expect("a predicate");
    let asked = &findings.predicates[lsass];
    assert_eq!((asked.present, asked.satisfied, asked.decided), (4, 3, 2));
}

#[test]
fn events_that_the_rule_does_not_see_say_why() {
    let set = compiled(RULE);
    let events = Events::security("cloudtrail", &[json!({"eventName": "x"}), json!({"eventName": "y"})]);
    let findings = tried(&set, 0, &events);
    assert_eq!((findings.events, findings.covered), (2, 0));
    assert_eq!(findings.sources.get("cloudtrail"), Some(&2));
    assert!(findings.uncovered[0].reasons.iter().any(|reason| reason.field == "source" && reason.wanted));
}

#[test]
fn the_trial_and_the_evaluator_agree_on_every_case_of_the_pack() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let (set, _) = RuleSet::compile(&pack::files(), &RulesConfig::default()).expect("tables");
    let set = Arc::new(set);
    let mut evaluator = Evaluator::new(set.clone(), &RulesConfig::default());
    let mut matches = 0;
    for case in fs::read_dir(folder).expect("cases") {
        let case = case.expect("an entry").path();
        let read = |name: &str| fs::read_to_string(case.join(name)).expect("a file");
        let expected: Value = serde_json::from_str(&read("expected.json")).expect("JSON");
        let (Some(source), Some(dataset)) = (expected["source"].as_str(), expected["dataset"].as_str()) else {
            continue;
        };
        let mut events = Events::new(Dataset::from_table_name(dataset).expect("a dataset"));
        for line in read("events.ndjson").lines() {
            events.rows.push(("acme".into(), source.into(), serde_json::from_str(line).expect("JSON")));
        }
        let found = evaluator.matches(&events.batch(0));
        for rule in 0..set.rules().len() {
            let mut wanted: Vec<usize> = found.iter().filter(|(_, own)| *own == rule).map(|(row, _)| *row).collect();
            matches += wanted.len();
            wanted.truncate(10);
            assert_eq!(
                tried(&set, rule, &events).matches,
                wanted,
                "{} on {}",
                set.rules()[rule].head.id,
                case.display()
            );
        }
    }
    assert!(matches > 40, "{matches}");
}
