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

/// One rule of a log source against one event as its product writes it: it matches under that source, and not under another.
fn sees(source: &str, log_source: &str, selection: &str, event: Value) {
    let text = format!("title: T\nlogsource: {{{log_source}}}\ndetection:\n  s: {{{selection}}}\n  condition: s\n");
    let config = RulesConfig::default();
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("a", text)], &config).expect("tables");
    assert_eq!(problems, [], "{log_source}");
    assert_eq!(rules.unknown_log_sources(), [""; 0], "{log_source}");
    let mut evaluator = Evaluator::new(Arc::new(rules), &config);
    let mut found = |source: &str| evaluator.matches(&Events::security(source, std::slice::from_ref(&event)).batch(0));
    assert_eq!(found(source).len(), 1, "{log_source} does not see {event}");
    assert_eq!(found("elsewhere"), [], "{log_source} sees the events of another source");
}

#[test]
fn windows_events_are_seen_in_each_form() {
    let process = "product: windows, category: process_creation";
    let image = "Image|endswith: '\\whoami.exe', EventID: 1";
    let dump = json!({"Event": {"System": {"Provider": {"#attributes": {"Name": "Microsoft-Windows-Sysmon"}},
        "EventID": 1, "Channel": SYSMON, "Computer": "pc"}, "EventData": {"Image": "C:\\Windows\\whoami.exe"}}});
    sees("windows", process, image, dump);
    let attributes = json!({"Event": {"System": {"EventID": {"#text": 1, "#attributes": {"Qualifiers": 0}},
        "Channel": SYSMON}, "EventData": {"Image": "C:\\Windows\\whoami.exe"}}});
    sees("windows", process, image, attributes);
    let velociraptor =
        json!({"System": {"EventID": {"Value": 1}, "Channel": SYSMON}, "EventData": {"Image": "\\whoami.exe"}});
    sees("windows", process, image, velociraptor);
    let beat = json!({"winlog": {"event_id": "1", "channel": SYSMON, "provider_name": "Microsoft-Windows-Sysmon",
        "event_data": {"Image": "C:\\Windows\\whoami.exe"}}, "event": {"code": "1"}});
    sees("windows", process, image, beat.clone());
    sees("windows", "product: windows, service: sysmon", "Provider_Name: Microsoft-Windows-Sysmon", beat);
    let flat = json!({"EventID": 1, "Channel": SYSMON, "Image": "C:\\Windows\\whoami.exe"});
    sees("windows", process, image, flat);
    let audit = json!({"EventID": 4688, "Channel": "Security", "NewProcessName": "C:\\Windows\\whoami.exe", "SubjectUserName": "bob"});
    sees("windows", process, "Image|endswith: '\\whoami.exe', User: bob", audit);
    let audit =
        json!({"EventID": 4657, "Channel": "Security", "ObjectName": "\\REGISTRY\\MACHINE\\Run", "NewValue": "x"});
    sees("windows", "product: windows, category: registry_event", "TargetObject|endswith: Run", audit.clone());
    sees("windows", "product: windows, category: registry_set", "Details: x", audit);
    let attributes = json!({"Event": {"System": {"Provider_attributes": {"Name": "Service Control Manager"}, "EventID": 7045,
        "Channel": "System"}, "EventData": {"ServiceName": "x"}}});
    sees(
        "windows",
        "product: windows, service: system",
        "Provider_Name: Service Control Manager, EventID: 7045",
        attributes,
    );
}

#[test]
fn linux_and_macos_events_are_seen() {
    let execve = json!({"type": "EXECVE", "argc": 2, "a0": "curl", "a1": "http://x"});
    sees("auditd", "product: linux, service: auditd", "type: EXECVE, a0: curl", execve.clone());
    sees("linux", "product: linux, service: auditd", "type: EXECVE", execve);
    let sysmon = json!({"EventID": 1, "Image": "/usr/bin/curl", "CommandLine": "curl http://x"});
    sees("sysmon_linux", "product: linux, category: process_creation", "Image|endswith: /curl", sysmon);
    let ecs =
        json!({"event": {"category": "process"}, "process": {"executable": "/usr/bin/curl", "command_line": "curl x"}});
    sees(
        "linux",
        "product: linux, category: process_creation",
        "Image|endswith: /curl, CommandLine: curl x",
        ecs.clone(),
    );
    sees("macos", "product: macos, category: process_creation", "Image|endswith: /curl", ecs);
    let sshd = json!({"message": "Failed password for root from 10.0.0.1 port 22 ssh2"});
    sees("sshd", "product: linux, service: sshd", "message|contains: Failed password", sshd);
    let connection = json!({"EventID": 3, "Image": "/bin/bash", "DestinationIp": "10.0.0.1"});
    sees("sysmon_linux", "product: linux, category: network_connection", "DestinationIp|cidr: 10.0.0.0/8", connection);
}

#[test]
fn cloud_and_identity_events_are_seen() {
    let trail =
        json!({"eventSource": "iam.amazonaws.com", "eventName": "CreateUser", "userIdentity": {"type": "Root"}});
    sees("cloudtrail", "product: aws, service: cloudtrail", "eventName: CreateUser, userIdentity.type: Root", trail);
    let sign_in = json!({"time": "2024-01-01T00:00:00Z", "category": "SignInLogs", "operationName": "Sign-in activity",
        "resultType": "50126", "resultDescription": "Invalid password", "properties": {"authenticationRequirement": "singleFactorAuthentication",
        "deviceDetail": {"trustType": ""}, "status": {"errorCode": 50126}}});
    let sign_ins = "product: azure, service: signinlogs";
    for source in ["azure.signinlogs", "azure"] {
        sees(
            source,
            sign_ins,
            "ResultType: 50126, AuthenticationRequirement: singleFactorAuthentication",
            sign_in.clone(),
        );
        sees(source, sign_ins, "ResultDescription: Invalid password, DeviceDetail.trusttype: ''", sign_in.clone());
    }
    let audit = json!({"category": "AuditLogs", "operationName": "Add user", "properties": {"loggedByService": "Core Directory", "activityDisplayName": "Add user"}});
    sees(
        "azure",
        "product: azure, service: auditlogs",
        "OperationName: Add user, LoggedByService: Core Directory",
        audit,
    );
    let activity = json!({"category": "Administrative", "operationName": "MICROSOFT.COMPUTE/SNAPSHOTS/WRITE"});
    sees("azure", "product: azure, service: activitylogs", "operationName|startswith: MICROSOFT.COMPUTE", activity);
    let gcp =
        json!({"protoPayload": {"methodName": "v1.compute.firewalls.delete", "serviceName": "compute.googleapis.com"}});
    sees(
        "gcp.audit",
        "product: gcp, service: gcp.audit",
        "gcp.audit.method_name|endswith: firewalls.delete",
        gcp.clone(),
    );
    sees("gcp", "product: gcp, service: gcp.audit", "data.protoPayload.serviceName|startswith: compute", gcp);
    let workspace = json!({"protoPayload": {"serviceName": "admin.googleapis.com", "metadata": {"event": [{"eventName": "ADD_APPLICATION"}]}}});
    sees(
        "google_workspace.admin",
        "product: gcp, service: google_workspace.admin",
        "eventService: admin.googleapis.com, eventName: ADD_APPLICATION",
        workspace,
    );
    let okta = json!({"eventType": "user.session.start", "outcome": {"result": "FAILURE"}, "target": [{"displayName": "app"}]});
    sees(
        "okta",
        "product: okta, service: okta",
        "eventType: user.session.start, outcome.result: FAILURE, target.displayName: app",
        okta,
    );
    let m365 =
        json!({"Workload": "SecurityComplianceCenter", "Operation": "AlertTriggered", "ResultStatus": "success"});
    sees(
        "o365",
        "product: m365, service: threat_management",
        "eventSource: SecurityComplianceCenter, status: success",
        m365.clone(),
    );
    sees("m365", "product: m365, service: audit", "Operation: AlertTriggered", m365);
    sees("onelogin", "product: onelogin, service: onelogin.events", "event_type_id: 3", json!({"event_type_id": 3}));
    sees("github_audit", "product: github, service: audit", "action: repo.access", json!({"action": "repo.access"}));
    sees(
        "bitbucket",
        "product: bitbucket, service: audit",
        "auditType.category: Global administration",
        json!({"auditType": {"category": "Global administration"}}),
    );
    sees(
        "kubernetes_audit",
        "product: kubernetes, service: audit",
        "verb: get, objectRef.resource: secrets",
        json!({"verb": "get", "objectRef": {"resource": "secrets"}}),
    );
}

#[test]
fn network_and_application_events_are_seen() {
    sees(
        "zeek",
        "product: zeek, service: dce_rpc",
        "endpoint: drsuapi, operation: DRSGetNCChanges",
        json!({"endpoint": "drsuapi", "operation": "DRSGetNCChanges"}),
    );
    sees(
        "zeek",
        "product: zeek, service: rdp",
        "id.orig_h|cidr: 10.0.0.0/8",
        json!({"_path": "rdp", "id.orig_h": "10.1.1.1"}),
    );
    sees(
        "suricata",
        "category: dns",
        "query: evil.example",
        json!({"event_type": "dns", "dns": {"rrname": "evil.example"}}),
    );
    sees(
        "opencanary",
        "product: opencanary, category: application",
        "logtype: 4002",
        json!({"logtype": 4002, "dst_port": 22}),
    );
    let nginx = json!({"request_method": "GET", "request_uri": "/a?x=../../etc/passwd", "status": 404, "http_user_agent": "sqlmap/1"});
    sees(
        "nginx",
        "category: webserver",
        "cs-method: GET, cs-uri-query|contains: etc/passwd, sc-status: 404, cs-user-agent|contains: sqlmap",
        nginx,
    );
    let ecs = json!({"url": {"original": "http://evil.example/x.ps1", "domain": "evil.example"}, "user_agent": {"original": "curl"}, "http": {"request": {"method": "GET"}}});
    sees(
        "squid",
        "category: proxy",
        "c-uri|endswith: .ps1, cs-host: evil.example, c-useragent: curl, cs-method: GET",
        ecs,
    );
    sees(
        "cisco",
        "product: cisco, service: bgp",
        "message|contains: IP-TCP-3-BADAUTH",
        json!({"message": "%IP-TCP-3-BADAUTH: no MD5 digest"}),
    );
    sees(
        "windows",
        "product: rpc_firewall, category: application",
        "EventLog: RPCFW, EventID: 3, OpNum: 5",
        json!({"Channel": "RPCFW", "EventID": 3, "OpNum": 5}),
    );
    sees(
        "django",
        "product: django, category: application",
        "message|contains: SuspiciousOperation",
        json!({"message": "SuspiciousOperation"}),
    );
    sees("clamav", "category: antivirus", "Signature|contains: Mimikatz", json!({"signature": "Win.Tool.Mimikatz-1"}));
}
