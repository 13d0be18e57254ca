//! Which events a rule's log source covers.

use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_rules::{Evaluator, RuleFile, RuleSet, RulesConfig};

use crate::flatten::Events;

const SYSMON: &str = "Microsoft-Windows-Sysmon/Operational";

/// The events that every log source is tried on: (name, source, event).
fn events() -> Vec<(&'static str, &'static str, Value)> {
    let flat =
        |id: u32, channel: &str, event_type: &str| json!({"EventID": id, "Channel": channel, "EventType": event_type});
    let beat = |id: &str, channel: &str| json!({"winlog": {"event_id": id, "channel": channel}});
    vec![
        ("sysmon 1", "windows", flat(1, SYSMON, "INFO")),
        ("beat 1", "windows", beat("1", SYSMON)),
        ("4688", "windows", flat(4688, "Security", "AUDIT_SUCCESS")),
        ("registry add", "windows", flat(12, SYSMON, "CreateKey")),
        ("registry delete", "windows", flat(12, SYSMON, "DeleteKey")),
        ("registry set", "windows", flat(13, SYSMON, "SetValue")),
        ("file", "windows", flat(11, SYSMON, "INFO")),
        ("4104", "windows", flat(4104, "Microsoft-Windows-PowerShell/Operational", "x")),
        ("7045", "windows", flat(7045, "System", "x")),
        ("other 1", "windows", flat(1, "Application", "x")),
        ("trail", "cloudtrail", json!({"eventName": "x"})),
        ("k8s", "kubernetes_audit", json!({"verb": "get"})),
        ("github", "github_audit", json!({"action": "x"})),
        ("zeek dns", "zeek", json!({"_path": "dns", "uid": "C1"})),
        ("zeek http", "zeek", json!({"method": "GET", "uri": "/"})),
        ("suricata dns", "suricata", json!({"event_type": "dns"})),
        ("okta", "okta", json!({"eventType": "x"})),
        ("nginx", "nginx", json!({"status": 200})),
        ("unknown", "unknown", json!({"a": 1})),
    ]
}

fn check(log_source: &str, wanted: &[&str]) {
    let text = format!("title: T\nlogsource: {log_source}\ndetection:\n  s: {{no_such_field: null}}\n  condition: s\n");
    let config = RulesConfig::default();
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("a", text)], &config).expect("tables");
    assert_eq!(problems, []);
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let all = events();
    let mut batch = Events::new(tidegate_events::Dataset::SecurityEvents);
    batch.rows = all.iter().map(|(_, source, event)| ("acme".into(), (*source).into(), event.clone())).collect();
    let found: Vec<&str> = evaluator.matches(&batch.batch(0)).into_iter().map(|(row, _)| all[row].0).collect();
    assert_eq!(found, wanted, "{log_source}");
}

#[test]
fn a_log_source_covers_its_events_and_no_others() {
    let windows = [
        "sysmon 1",
        "beat 1",
        "4688",
        "registry add",
        "registry delete",
        "registry set",
        "file",
        "4104",
        "7045",
        "other 1",
    ];
    check("{product: windows}", &windows);
    check("{product: windows, category: process_creation}", &["sysmon 1", "beat 1", "4688"]);
    check("{category: process_creation}", &["sysmon 1", "beat 1", "4688"]);
    check("{product: windows, category: process_creation, service: sysmon}", &["sysmon 1", "beat 1"]);
    check("{product: windows, category: registry_event}", &["registry add", "registry delete", "registry set"]);
    check("{product: windows, category: registry_add}", &["registry add"]);
    check("{product: windows, category: registry_delete}", &["registry delete"]);
    check("{product: windows, category: registry_set}", &["registry set"]);
    check("{product: windows, category: file_event}", &["file"]);
    check("{product: windows, category: ps_script}", &["4104"]);
    check("{product: windows, service: powershell}", &["4104"]);
    check("{product: windows, service: security}", &["4688"]);
    check("{product: windows, service: system}", &["7045"]);
    check(
        "{product: windows, service: sysmon}",
        &["sysmon 1", "beat 1", "registry add", "registry delete", "registry set", "file"],
    );
    check("{product: windows, service: nobody-knows}", &[]);
    check("{product: windows, category: nobody_knows}", &[]);
    check("{product: Windows, category: Process_Creation}", &["sysmon 1", "beat 1", "4688"]);
    check("{product: aws, service: cloudtrail}", &["trail"]);
    check("{product: aws}", &["trail"]);
    check("{product: kubernetes, service: audit}", &["k8s"]);
    check("{product: kubernetes, category: application, service: audit}", &["k8s"]);
    check("{product: github, service: audit}", &["github"]);
    check("{product: zeek, service: dns}", &["zeek dns"]);
    check("{product: zeek, service: http}", &["zeek http"]);
    check("{product: zeek}", &["zeek dns", "zeek http"]);
    check("{category: dns}", &["zeek dns", "suricata dns"]);
    check("{category: webserver}", &["nginx"]);
    check("{product: okta, service: okta}", &["okta"]);
    check("{product: okta}", &["okta"]);
    check("{product: focus, category: cost}", &[]);
}

#[test]
fn fields_have_the_names_of_each_form() {
    let rule = "title: T\nlogsource: {product: windows, category: process_creation}\ndetection:\n  s:\n    Image|endswith: '\\a.exe'\n    EventID: [1, 4688]\n  condition: s\n";
    let config = RulesConfig::default();
    let (rules, _) = RuleSet::compile(&[RuleFile::new("a", rule)], &config).expect("tables");
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let batch = Events::security(
        "windows",
        &[
            json!({"EventID": 1, "Channel": SYSMON, "Image": "C:\\a.exe"}),
            json!({"winlog": {"event_id": 1, "channel": SYSMON, "event_data": {"Image": "C:\\A.EXE"}}}),
            json!({"EventID": "4688", "Channel": "Security", "NewProcessName": "C:\\a.exe"}),
            json!({"EventID": 4688, "Channel": "Security", "NewProcessName": "C:\\b.exe", "ParentProcessName": "C:\\a.exe"}),
            json!({"EventID": 1, "Channel": SYSMON, "Image": "C:\\b.exe", "NewProcessName": "C:\\a.exe"}),
        ],
    );
    let rows: Vec<usize> = evaluator.matches(&batch.batch(0)).into_iter().map(|(row, _)| row).collect();
    assert_eq!(rows, [0, 1, 2]);
}
