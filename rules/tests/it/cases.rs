//! Cases as folders: `tests/cases/<name>/{rule.yml | rule, events.ndjson, expected.json}`. `rule` holds the path of a shipped
//! rule; `expected.json` says the source and dataset of the events and which of them (from 0) must match, or which alerts there must be.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_events::{Alert, Dataset};
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig, pack};

use crate::flatten::Events;
use crate::stream::{operator, process};

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn check(case: &Path) {
    let name = case.file_name().expect("a name").to_string_lossy().into_owned();
    let read =
        |file: &str| fs::read_to_string(case.join(file)).unwrap_or_else(|error| panic!("{name}/{file}: {error}"));
    let text = match fs::read_to_string(case.join("rule")) {
        Ok(path) => fs::read_to_string(folder(path.trim())).expect("the shipped rule"),
        Err(_) => read("rule.yml"),
    };
    let config = RulesConfig::default();
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("rule.yml", &text)], &config).expect("tables");
    assert!(problems.is_empty(), "{name}: {problems:?}");
    let expected: Value = serde_json::from_str(&read("expected.json")).expect("JSON");
    let source = expected["source"].as_str().expect("a source");
    let dataset = Dataset::from_table_name(expected["dataset"].as_str().expect("a dataset")).expect("a dataset");
    let mut events = Events::new(dataset);
    for line in read("events.ndjson").lines() {
        events.rows.push(("acme".into(), source.into(), serde_json::from_str(line).expect("JSON")));
    }
    if let Some(alerts) = expected["alerts"].as_array() {
        return check_alerts(&name, &events, &text, alerts);
    }
    let wanted: BTreeSet<usize> =
        expected["hits"].as_array().expect("hits").iter().map(|row| row.as_u64().expect("a row") as usize).collect();
    assert!(!wanted.is_empty() && wanted.len() < events.rows.len(), "{name}: a case needs a hit and a miss");
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let found: BTreeSet<usize> = evaluator.matches(&events.batch(0)).into_iter().map(|(row, _)| row).collect();
    assert_eq!(found, wanted, "{name}");
    // The same events under another source are not events of the rule's log source.
    if dataset == Dataset::SecurityEvents {
        events.rows.iter_mut().for_each(|(_, source, _)| *source = "elsewhere".into());
        assert_eq!(evaluator.matches(&events.batch(0)), [], "{name}: matches events of another source");
    }
}

/// The alerts of a case whose expectation is about alerts; event `i` is of second `i`. Only what must hold of an alert is named.
fn check_alerts(name: &str, events: &Events, text: &str, wanted: &[Value]) {
    let config = RulesConfig { suppress_s: 0, ..RulesConfig::default() };
    let found = process(&mut operator(config, &[("default", text)]), &events.batch(0));
    let shown = |alert: &Alert| {
        let place = |id: &String| id.trim_start_matches('e').parse::<u64>().expect("a place");
        let events: Vec<u64> = alert.event_ids.iter().map(place).collect();
        json!({"rule": alert.title, "level": alert.level.as_str(), "group": alert.group_key, "events": events, "count": alert.event_count})
    };
    assert_eq!(found.len(), wanted.len(), "{name}: {found:#?}");
    for (alert, wanted) in found.iter().zip(wanted) {
        let shown = shown(alert);
        for (key, value) in wanted.as_object().expect("an object") {
            assert_eq!(&shown[key], value, "{name}: {key} of {shown}");
        }
    }
}

#[test]
fn every_case_matches_what_it_says() {
    let cases = fs::read_dir(folder("tests/cases")).expect("cases").map(|entry| entry.expect("an entry").path());
    let mut count = 0;
    for case in cases.filter(|path| path.is_dir()) {
        check(&case);
        count += 1;
    }
    assert!(count >= pack::files().len(), "only {count} cases");
}

#[test]
fn the_pack_is_the_folder_and_every_rule_has_a_case() {
    let mut on_disk = Vec::new();
    let mut folders = vec![folder("pack")];
    while let Some(path) = folders.pop() {
        for entry in fs::read_dir(path).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).expect("a rule");
                let name = path.strip_prefix(folder("")).expect("inside").to_string_lossy().into_owned();
                on_disk.push(RuleFile::new(name, text));
            }
        }
    }
    on_disk.sort();
    assert_eq!(pack::files(), on_disk, "rules/src/pack.rs lists other files than rules/pack holds");
    let cased: BTreeSet<String> = fs::read_dir(folder("tests/cases"))
        .expect("cases")
        .filter_map(|entry| fs::read_to_string(entry.expect("an entry").path().join("rule")).ok())
        .map(|path| path.trim().to_owned())
        .collect();
    for file in &on_disk {
        assert!(cased.contains(&file.name), "{} has no case", file.name);
    }
}

#[test]
fn the_pack_loads_and_says_what_a_rule_should_say() {
    let (rules, problems) = RuleSet::compile(&pack::files(), &RulesConfig::default()).expect("tables");
    assert_eq!(problems, []);
    assert_eq!(rules.unknown_log_sources(), [""; 0]);
    assert!(rules.rules().len() >= 25);
    for rule in rules.rules() {
        let parts: Vec<usize> = rule.head.id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{}: the id is a UUID", rule.head.file);
        assert!(
            !rule.head.tags.is_empty() && !rule.head.falsepositives.is_empty() && !rule.head.description.is_empty(),
            "{}",
            rule.head.file
        );
    }
}
