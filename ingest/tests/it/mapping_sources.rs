//! One test per kind of record: real or real-looking records in, core columns out.

use super::decoding::{Case, Outcome, decode, fixture};
use tidegate_ingest::decode::BodyFormat;

/// Decodes a fixture and checks the columns of some of its rows; `""` means null.
fn check(case: Case, want: &[(u32, &[(&str, &str)])]) -> Outcome {
    let outcome = decode(&[case]);
    assert!(outcome.results[0].error.is_none(), "{:?}", outcome.results[0].error);
    assert!(outcome.results[0].rejected.is_empty(), "{:?}", outcome.results[0].rejected);
    for (row, columns) in want {
        for (column, want) in *columns {
            assert_eq!(outcome.cell(0, *row, column), *want, "{column} of row {row}");
        }
    }
    outcome
}

#[test]
fn cloudtrail() {
    let outcome = check(
        Case::json(fixture("cloudtrail.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "cloudtrail"),
                    ("time", "2023-07-10T11:42:23Z"),
                    ("event_id", "c20d93d2-87e1-483d-9c6c-9cdfc35671d4"),
                    ("category", "Application Activity"),
                    ("class", "API Activity"),
                    ("activity", "GetBucketPolicy"),
                    ("severity", "1"),
                    ("outcome", "success"),
                    ("actor", "arn:aws:iam::123837392027:user/benjamin"),
                    ("src_ip", "10.248.16.43"),
                    ("asset", "123837392027"),
                    ("resource", "arn:aws:s3:::baker221b-bucketsevidenceeeedc25d-1q9cl0tuy4gbm"),
                    ("message", "GetBucketPolicy on s3.amazonaws.com in us-east-1"),
                    ("eventName", "GetBucketPolicy"),
                    ("userIdentity.userName", "benjamin"),
                    ("readOnly", "true"),
                    ("resources.type", "[AWS::S3::Bucket]"),
                ],
            ),
            (2, &[("outcome", "failure"), ("severity", "2"), ("errorCode", "NoSuchBucketPolicy")]),
            (4, &[("outcome", "failure"), ("severity", "3"), ("class", "Authentication"), ("activity", "AssumeRole")]),
            (11, &[("class", "Account Change"), ("category", "Identity & Access Management")]),
            (12, &[("activity", "ConsoleLogin"), ("class", "Authentication"), ("outcome", "success")]),
        ],
    );
    assert_eq!(outcome.column("security_events", "eventName").len(), 14);
    let batches = &outcome.decoded.batches;
    let keys: Vec<u128> = batches.iter().flat_map(|batch| batch.keys.iter().copied()).collect();
    assert_eq!(keys.len(), 14, "every record has an id of its own, so each has a key");
}

#[test]
fn windows_flat() {
    let outcome = check(
        Case::json(fixture("windows.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "windows"),
                    ("time", "2023-09-05T09:51:53.490Z"),
                    ("category", "System Activity"),
                    ("class", "process_creation"),
                    ("activity", "1"),
                    ("severity", "1"),
                    ("actor", r"PANDALAB\stevie.marie"),
                    ("asset", "MKT01.pandalab.com"),
                    ("EventID", "1"),
                    ("Channel", "Microsoft-Windows-Sysmon/Operational"),
                ],
            ),
            (
                1,
                &[
                    ("class", "network_connection"),
                    ("category", "Network Activity"),
                    ("actor", r"NT AUTHORITY\NETWORK SERVICE"),
                ],
            ),
            (2, &[("class", "image_load"), ("resource", r"C:\Windows\System32\policymanager.dll")]),
            (3, &[("class", "process_access")]),
            (5, &[("class", "registry_set")]),
            (
                7,
                &[
                    ("class", "privilege_use"),
                    ("category", "Identity & Access Management"),
                    ("actor", r"NT AUTHORITY\SYSTEM"),
                ],
            ),
            (8, &[("class", "logoff"), ("actor", r"PANDALAB\pedro.gustavo")]),
            (9, &[("class", ""), ("activity", "1001"), ("severity", "1")]),
            (11, &[("class", "logon"), ("activity", "4624")]),
        ],
    );
    assert_eq!(outcome.cell(0, 0, "event_id").len(), 36, "Windows gives its events no id, so each gets one");
}

#[test]
fn windows_from_winlogbeat() {
    check(
        Case::json(fixture("winlogbeat.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "windows"),
                    ("time", "2024-03-11T08:15:02.114Z"),
                    ("class", "process_creation"),
                    ("activity", "1"),
                    ("actor", r"CORP\mallory"),
                    ("asset", "WS-07.corp.example"),
                    ("resource", r"C:\Windows\System32\rundll32.exe"),
                    ("severity", "1"),
                    ("winlog.event_data.ParentImage", r"C:\Windows\System32\cmd.exe"),
                ],
            ),
            (
                1,
                &[
                    ("class", "logon"),
                    ("outcome", "failure"),
                    ("severity", "2"),
                    ("actor", r"CORP\alice"),
                    ("src_ip", "203.0.113.9"),
                    ("src_port", "52144"),
                    ("winlog.event_id", "4625"),
                    ("winlog.keywords", "[Audit Failure]"),
                ],
            ),
        ],
    );
}

#[test]
fn suricata() {
    check(
        Case::json(fixture("suricata.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "suricata"),
                    ("time", "2024-03-11T07:20:00.123456Z"),
                    ("category", "Findings"),
                    ("class", "Detection Finding"),
                    ("activity", "alert"),
                    ("severity", "4"),
                    ("outcome", "success"),
                    ("src_ip", "198.51.100.7"),
                    ("src_port", "44321"),
                    ("dst_ip", "10.0.0.5"),
                    ("dst_port", "80"),
                    ("resource", "pool.example"),
                    ("message", "ET POLICY Cryptocurrency Miner Checkin"),
                    ("alert.signature_id", "2024792"),
                    ("raw.src_ip", ""),
                ],
            ),
            (
                1,
                &[
                    ("class", "DNS Activity"),
                    ("category", "Network Activity"),
                    ("message", "A pool.example"),
                    ("severity", "1"),
                ],
            ),
        ],
    );
}

#[test]
fn zeek() {
    check(
        Case::json(fixture("zeek.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "zeek"),
                    ("time", "2020-06-05T14:39:59.305988Z"),
                    ("class", "Network Activity"),
                    ("activity", "SF"),
                    ("outcome", "success"),
                    ("src_ip", "192.168.4.76"),
                    ("src_port", "36844"),
                    ("dst_ip", "192.168.4.1"),
                    ("dst_port", "53"),
                    ("id.orig_h", "192.168.4.76"),
                ],
            ),
            (1, &[("class", "HTTP Activity"), ("time", "2020-06-05T14:40:00.100Z"), ("resource", "testmyids.com/")]),
            (
                2,
                &[
                    ("class", "Detection Finding"),
                    ("severity", "3"),
                    ("src_ip", "10.0.0.9"),
                    ("activity", "Scan::Port_Scan"),
                ],
            ),
        ],
    );
}

#[test]
fn kubernetes_audit() {
    check(
        Case::json(fixture("kubernetes_audit.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "kubernetes_audit"),
                    ("event_id", "4d7d0b0a-1f57-4d8e-8f0b-0a4a3f3c9a11/ResponseComplete"),
                    ("time", "2024-03-11T08:30:00.120Z"),
                    ("activity", "create"),
                    ("outcome", "success"),
                    ("actor", "eve@example.com"),
                    ("src_ip", "203.0.113.77"),
                    ("asset", "prod"),
                    ("resource", "pods/prod/miner"),
                    ("sourceIPs", "[203.0.113.77, 10.0.0.1]"),
                    ("requestObject.spec.containers.name", "[a, b]"),
                    ("requestObject.spec.containers.securityContext.privileged", "[true, ]"),
                    (
                        "_rest",
                        r#"{"requestObject.spec.containers.env":[[{"name":"X","value":"1"}],null],"responseStatus.metadata":{}}"#,
                    ),
                ],
            ),
            (
                1,
                &[
                    ("outcome", "failure"),
                    ("severity", "3"),
                    ("event_id", "5e/ResponseComplete"),
                    ("resource", "secrets"),
                    ("message", "list /api/v1/secrets: secrets is forbidden"),
                ],
            ),
        ],
    );
}

#[test]
fn github_audit() {
    check(
        Case::json(fixture("github_audit.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "github_audit"),
                    ("event_id", "xJ8d0Tq1aZ"),
                    ("time", "2024-03-11T08:33:20.123Z"),
                    ("activity", "protected_branch.destroy"),
                    ("severity", "3"),
                    ("outcome", "success"),
                    ("actor", "octo-admin"),
                    ("src_ip", "198.51.100.20"),
                    ("asset", "octo"),
                    ("resource", "octo/payments"),
                    ("raw.actor", ""),
                ],
            ),
            (1, &[("class", "Authentication"), ("outcome", "failure"), ("severity", "2")]),
        ],
    );
}

#[test]
fn ecs() {
    check(
        Case::json(fixture("ecs.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "ecs"),
                    ("event_id", "ev-1"),
                    ("category", "authentication"),
                    ("activity", "ssh_login"),
                    ("outcome", "failure"),
                    ("severity", "3"),
                    ("actor", "root"),
                    ("src_ip", "203.0.113.5"),
                    ("src_port", "51234"),
                    ("asset", "bastion-1"),
                    ("message", "Failed password for root"),
                    ("event.category", "[authentication]"),
                ],
            ),
            (
                1,
                &[
                    ("src_ip", "203.0.113.5"),
                    ("src_port", "51234"),
                    ("severity", "2"),
                    ("dst_port", "443"),
                    ("source", "ecs"),
                ],
            ),
        ],
    );
}

#[test]
fn ocsf() {
    check(
        Case::json(fixture("ocsf.ndjson")),
        &[
            (
                0,
                &[
                    ("source", "ocsf"),
                    ("event_id", "ocsf-77"),
                    ("time", "2024-03-11T09:00:00.123Z"),
                    ("category", "Identity & Access Management"),
                    ("class", "Authentication"),
                    ("activity", "Logon"),
                    ("severity", "2"),
                    ("outcome", "failure"),
                    ("actor", "alice@example.com"),
                    ("src_ip", "198.51.100.3"),
                    ("dst_port", "22"),
                    ("asset", "vpn"),
                    ("raw.time", "1710147600123"),
                ],
            ),
            (1, &[("category", "Network Activity"), ("class", "4001"), ("severity", "4"), ("raw.severity", "High")]),
        ],
    );
}

#[test]
fn focus_csv() {
    let outcome = check(
        Case::new(BodyFormat::Csv, fixture("focus-1.0.csv")).cost(),
        &[(
            0,
            &[
                ("source", "focus"),
                ("time", "2024-09-18T22:00:00Z"),
                ("charge_period_start", "2024-09-18T22:00:00Z"),
                ("billing_period_end", "2024-10-01T00:00:00Z"),
                ("billed_cost", "0.000000800000000"),
                ("list_unit_price", "0.000000400000000"),
                ("consumed_quantity", "2.000000000000000"),
                ("provider_name", "AWS"),
                ("invoice_issuer_name", "Amazon Web Services, Inc."),
                ("charge_class", ""),
                ("resource_name", ""),
                ("Id", "11472"),
                ("BilledCost", ""),
                ("tags", ""),
            ],
        )],
    );
    assert_eq!(outcome.column("cost_events", "billed_cost").len(), 9);
    let tags = outcome.column("cost_events", "tags");
    assert!(tags.iter().any(|tags| tags.contains("\"business_unit\"")));
    assert_eq!(tags.len(), outcome.column("cost_events", "tags.business_unit").len());
}

#[test]
fn focus_1_4_json_keeps_money_exactly() {
    check(
        Case::json(fixture("focus_1_4.ndjson")).cost(),
        &[
            (
                0,
                &[
                    ("source", "focus"),
                    ("billed_cost", "12.345678901234567"),
                    ("raw.BilledCost", ""),
                    ("effective_cost", "0.100000000000000"),
                    ("raw.EffectiveCost", "0.10000000000000005"),
                    ("list_cost", "0.000000100000000"),
                    ("consumed_quantity", ""),
                    ("raw.ConsumedQuantity", "9007199254740993"),
                    ("provider_name", "AWS"),
                    ("publisher_name", "AWS"),
                    ("tags", r#"{"team":"ml","cost-center":"42"}"#),
                    ("tags.team", "ml"),
                    ("tags.cost-center", "42"),
                    ("sku_price_details.vcpu", "96"),
                    ("sku_price_details.x_gpu", "H100"),
                    ("x_Nodes", "8"),
                    ("contracted_cost", "123456789012345.123456789012345"),
                ],
            ),
            (
                1,
                &[
                    ("billed_cost", ""),
                    ("raw.BilledCost", ""),
                    ("effective_cost", ""),
                    ("list_cost", ""),
                    ("raw.ListCost", "about 5"),
                    ("raw.ChargePeriodStart", "yesterday"),
                    ("time", "2026-07-01T00:00:00Z"),
                    ("tags", "not json"),
                    ("provider_name", "Azure"),
                ],
            ),
        ],
    );
}

#[test]
fn what_no_mapping_knows_goes_in_whole() {
    check(
        Case::json(
            r#"{"timestamp":"2024-01-01 00:00:00","level":"error","remote_addr":"10.0.0.1:99","message":"m","severity":9,"source":"app","x":{"y":[1,2.5]}}
{"time":"soon","msg":"n","source":"unknown"}"#,
        ),
        &[
            (
                0,
                &[
                    ("source", "unknown"),
                    ("raw.source", "app"),
                    ("time", "2024-01-01T00:00:00Z"),
                    ("timestamp", "2024-01-01 00:00:00"),
                    ("severity", "3"),
                    ("raw.severity", "9"),
                    ("src_ip", "10.0.0.1"),
                    ("src_port", "99"),
                    ("message", "m"),
                    ("raw.message", ""),
                    ("x.y", "[1.0, 2.5]"),
                ],
            ),
            (1, &[("time", "2023-11-14T22:13:20Z"), ("raw.time", "soon"), ("message", "n"), ("raw.source", "")]),
        ],
    );
}

#[test]
fn the_source_parameter_names_a_mapping_or_just_the_source() {
    let record = r#"{"ts":1591367999.5,"host":"a"}"#;
    for (source, time) in [
        ("zeek", "2020-06-05T14:39:59.500Z"),
        ("my-app", "2020-06-05T14:39:59.500Z"),
        ("github_audit", "2023-11-14T22:13:20Z"),
    ] {
        check(Case::json(record).source(source), &[(0, &[("source", source), ("time", time)])]);
    }
}
