//! Windows rules with channel and event id written into them, as processing pipelines write them, beside the same rules as they are:
//! they match the same events, and are called up for few of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rsigma_parser::parse_sigma_yaml;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidegate_rules::{Counts, Evaluator, RuleFile, RuleSet, RulesConfig, pack};

use super::peer::Tables;
use super::samples;
use crate::archive::sigma_rules;
use crate::flatten::Events;

/// Events of one batch.
const BATCH: usize = 200;
const SYSMON: &str = "Microsoft-Windows-Sysmon/Operational";

/// The rule of a file with its category or service as a selection, where that is one way into the log; `None` for others.
fn written(file: &RuleFile, tables: &Tables) -> Option<RuleFile> {
    let parsed = parse_sigma_yaml(&file.text).expect("YAML").rules;
    let [rule] = parsed.as_slice() else { return None };
    let source = tables.source(&rule.logsource);
    let of_windows = rule.logsource.product.as_deref() == Some("windows");
    if !of_windows || source.any.is_empty() {
        return None;
    }
    // Where there are several ways into a category, that of Sysmon has the names that rules use.
    let is_sysmon = |route: &&BTreeMap<String, Value>| route.get("Channel").is_some_and(|channel| channel == SYSMON);
    let route = if source.any.len() == 1 { source.any.first() } else { source.any.iter().find(is_sysmon) }?;
    let mut documents = yaml_serde::Deserializer::from_str(&file.text);
    let mut text = Value::deserialize(documents.next()?).expect("YAML");
    text["logsource"] = json!({"product": "windows"});
    let detection = text["detection"].as_object_mut()?;
    let condition = detection.get("condition")?.clone();
    let with = |condition: &Value| json!(format!("(_routed) and ({})", condition.as_str().unwrap_or_default()));
    let condition = match &condition {
        Value::Array(several) => several.iter().map(with).collect(),
        one => with(one),
    };
    let selection: Map<String, Value> = route.iter().map(|(field, value)| (field.clone(), value.clone())).collect();
    detection.insert("_routed".into(), selection.into());
    detection.insert("condition".into(), condition);
    Some(RuleFile::new(file.name.clone(), text.to_string()))
}

/// Whether a rule as it is sees an event by the way that is written into its other form.
fn by_that_way(file: &RuleFile, tables: &Tables, event: &Value) -> bool {
    let rule = &parse_sigma_yaml(&file.text).expect("YAML").rules[0];
    let several = tables.source(&rule.logsource).any.len() > 1;
    !several || event["Channel"] == SYSMON || event["winlog"]["channel"] == SYSMON
}

/// The matches (event, rule) of files, and what they called for.
fn run(files: &[RuleFile], events: &[(String, Value)]) -> (Vec<(usize, usize)>, Counts) {
    let config = RulesConfig { rule_event_ns_max: u64::MAX, ..RulesConfig::default() };
    let (rules, problems) = RuleSet::compile(files, &config).expect("tables");
    assert_eq!((problems.len(), rules.rules().len()), (0, files.len()), "{:?}", problems.first());
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let mut found = Vec::new();
    for (place, events) in events.chunks(BATCH).enumerate() {
        let mut batch = Events::new(tidegate_events::Dataset::SecurityEvents);
        batch.rows = events.iter().map(|(source, event)| ("acme".into(), source.clone(), event.clone())).collect();
        let matches = evaluator.matches(&batch.batch(0)).into_iter();
        found.extend(matches.map(|(row, rule)| (place * BATCH + row, rule)));
    }
    found.sort_unstable();
    (found, evaluator.counts())
}

/// Checks the rules of files that can be written so; how many there are and how often they match.
fn check(files: &[RuleFile], events: &[(String, Value)]) -> (usize, usize) {
    let tables = Tables::read();
    let (plain, with_channels): (Vec<RuleFile>, Vec<RuleFile>) =
        files.iter().filter_map(|file| Some((file.clone(), written(file, &tables)?))).unzip();
    let ((mut routed, plain_counts), (written, counts)) = (run(&plain, events), run(&with_channels, events));
    routed.retain(|(event, rule)| by_that_way(&plain[*rule], &tables, &events[*event].1));
    assert_eq!(written, routed);
    println!("as they are: {plain_counts:?}\nwith channels: {counts:?}, {} matches", written.len());
    // Columns are looked at for all kinds of events at once, but the rules of a kind are not all tried on each event of it.
    assert!(counts.candidates <= 4 * plain_counts.candidates + 100, "{counts:?} {plain_counts:?}");
    assert!(counts.values <= 5 * plain_counts.values + 100, "{counts:?} {plain_counts:?}");
    (plain.len(), written.len())
}

/// The events of the cases of the starter pack that are of Windows.
fn cases() -> Vec<(String, Value)> {
    let mut folders: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases"))
        .expect("cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pack_windows_")))
        .collect();
    folders.sort();
    let lines = |folder: &std::path::PathBuf| -> Vec<(String, Value)> {
        let text = fs::read_to_string(folder.join("events.ndjson")).expect("events");
        text.lines().map(|line| ("windows".to_owned(), serde_json::from_str(line).expect("JSON"))).collect()
    };
    folders.iter().flat_map(lines).collect()
}

#[test]
fn shipped_windows_rules_match_the_same_with_channel_and_event_id_written_in() {
    let (rules, matches) = check(&pack::files(), &cases());
    assert!(rules > 10 && matches > 15, "{rules} rules, {matches} matches");
}

#[test]
fn windows_rules_of_sigmahq_match_the_same_with_channel_and_event_id_written_in() {
    let (Some(files), Some(samples)) = (sigma_rules(), samples(29)) else { return };
    let ready: Vec<RuleFile> = files.into_iter().filter(|file| !file.text.contains("|expand")).collect();
    let events: Vec<(String, Value)> = samples
        .into_iter()
        .filter(|(source, ..)| source == "windows")
        .map(|(source, event, _)| (source, event))
        .chain(cases())
        .collect();
    let (rules, matches) = check(&ready, &events);
    assert!(rules > 2_500 && matches > 20, "{rules} rules, {matches} matches");
}
