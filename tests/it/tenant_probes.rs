//! Two tenants and some thousands of generated probes: every endpoint with every id of the other, and statements made of every
//! table, expression, condition and wrapping, before and after the rows lie in Parquet. Nothing of one may show to the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::serve::routes::ROUTES;

use crate::server::{Caller, PATIENCE, Server, event};
use crate::tenants::key;

/// What only acme has, in no id that a probe names. Numbers, so that a cast of it works in acme's row and shows in zeta's error.
const MARKS: [&str; 2] = ["okapi", "73317331"];

const RULE: &str = "title: Touched by name\nid: 11111111-2222-4333-8444-0000000000aa\nlogsource: {product: custom}\n\
                    detection: {sel: {action: touched}, condition: sel}\nlevel: high\n";

/// Ids of things that acme has.
struct Acme {
    events: Vec<String>,
    alert: String,
    key: String,
    rule: String,
}

fn put_in(server: &Server, round: usize, ingest: &str, own: &str) -> String {
    let id = format!("acme-event-{round}");
    let secret = json!({"event_id": id, "action": "touched", "codename": "73317331", "n": 73317331, "okapi_field": "okapi",
        "user": {"name": "okapi-user"}, "list": ["okapi", "73317331"]});
    let reply = server.client_with(ingest).bulk("/v2/events/bulk?source=custom", &[secret]);
    assert_eq!(reply.json()["accepted"], 1);
    let headers = [("content-type", "application/x-ndjson")];
    server.client_with(ingest).send("POST", "/v2/events/bulk", &headers, format!("{{okapi {round}\n").as_bytes());
    let cost = b"BilledCost,ChargePeriodStart,ServiceName,codename\n73317331,2026-11-20T00:00:00Z,okapi,73317331\n";
    server.client_with(ingest).send("POST", "/v2/costs/bulk", &[("content-type", "text/csv")], cost);
    server.client_with(own).bulk("/v2/events/bulk?source=custom", &[event(&format!("own-{round}"), "read")]);
    id
}

/// Statements over every table, with names that lead elsewhere.
fn statements() -> Vec<String> {
    let tables = [
        "security_events",
        "cost_events",
        "alerts",
        "changes",
        "dead_letters",
        "public.security_events",
        "tidegate.public.security_events",
        "acme.security_events",
        "acme.public.alerts",
        "\"security_events\"",
        "information_schema.tables",
        "information_schema.columns",
        "information_schema.df_settings",
        "information_schema.views",
        "information_schema.schemata",
    ];
    let shown = [
        "*",
        "count(*)",
        "max(event_id)",
        "string_agg(codename, ',')",
        "array_agg(org_id)",
        "CAST(codename AS BIGINT)",
        "1 / (CASE WHEN codename = '73317331' THEN 0 ELSE 1 END)",
        "min(received_time)",
        "count(DISTINCT org_id)",
        "arrow_typeof(okapi_field)",
        "to_timestamp(codename)",
        "regexp_replace(codename, '(.*)', 'x\\1')",
    ];
    let conditions = [
        "",
        "WHERE org_id = 'acme'",
        "WHERE org_id <> 'zeta' OR 1 = 1",
        "WHERE org_id IN ('acme', 'default', '')",
        "WHERE NOT (org_id = 'zeta')",
        "WHERE org_id LIKE '%'",
        "WHERE CAST(codename AS BIGINT) > 0",
        "WHERE 1 / (CASE WHEN codename LIKE '7%' THEN 0 ELSE 1 END) = 1",
        "WHERE event_id >= ''",
        "WHERE EXISTS (SELECT 1 FROM alerts WHERE org_id = 'acme')",
    ];
    let mut all = Vec::new();
    for table in tables {
        for shown in shown {
            for condition in conditions {
                all.push(format!("SELECT {shown} FROM {table} {condition}"));
            }
        }
    }
    let plain: Vec<_> = all.iter().step_by(37).cloned().collect();
    for statement in plain {
        all.push(format!("EXPLAIN {statement}"));
        all.push(format!("EXPLAIN ANALYZE VERBOSE {statement}"));
        all.push(format!("WITH x AS ({statement}) SELECT * FROM x"));
        all.push(format!("SELECT * FROM ({statement}) UNION ALL SELECT NULL WHERE false"));
        all.push(format!("SELECT (SELECT count(*) FROM ({statement}))"));
    }
    for word in
        ["SHOW TABLES", "SHOW ALL", "SHOW COLUMNS FROM alerts", "SHOW FUNCTIONS", "DESCRIBE changes", "SHOW CATALOGS"]
    {
        all.push(word.to_owned());
    }
    all
}

/// Method, path, headers, body.
type Asked = (&'static str, String, Vec<(&'static str, &'static str)>, String);

/// Every endpoint, with the ids of acme in its path and query, and headers that pretend.
fn requests(acme: &Acme) -> Vec<Asked> {
    let pretend = [
        vec![],
        vec![("x-scope-orgid", "acme")],
        vec![("x-org-id", "acme"), ("x-tenant", "acme")],
        vec![("x-forwarded-user", "acme"), ("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=127.0.0.1")],
        vec![("x-tidegate-org", "acme"), ("cookie", "org_id=acme")],
    ];
    let ids: Vec<&str> = acme.events.iter().map(String::as_str).chain([&*acme.alert, &acme.key, &acme.rule]).collect();
    let queries = [
        "",
        "?org_id=acme",
        "?org=acme",
        "?tenant=acme",
        "?filter=org_id%3D%27acme%27",
        "?actor=okapi-user",
        "?rule_id=*",
        "?after=0",
        "?source=custom%27%20OR%201%3D1--",
        "?limit=1000&level=high",
        "?q=73317331",
    ];
    let mut all = Vec::new();
    for route in ROUTES.iter().filter(|route| !matches!(route.path, "/metrics" | "/v2/alerts/stream")) {
        let paths: BTreeSet<String> = ids.iter().map(|id| route.path.replace("{id}", id)).collect();
        for path in paths {
            for headers in &pretend {
                all.push((route.method, path.clone(), headers.clone(), String::new()));
            }
            for query in queries {
                all.push((route.method, format!("{path}{query}"), Vec::new(), String::new()));
            }
            for body in [
                json!({"sql": "SELECT * FROM security_events", "org_id": "acme", "org": "acme"}),
                json!({"verdict": "false_positive", "silence": {"for": "1d"}, "org_id": "acme"}),
                json!({"role": "admin", "org": "acme", "name": "mine"}),
                json!({"rule_id": acme.rule, "events": [{"action": "touched"}], "org_id": "acme"}),
                json!({"rule_id": acme.rule, "from": "2000-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"}),
            ] {
                all.push((route.method, path.clone(), vec![("content-type", "application/json")], body.to_string()));
            }
        }
    }
    all
}

fn leaks(body: &[u8]) -> bool {
    let shown = String::from_utf8_lossy(body).to_lowercase();
    // A refusal may repeat what was asked: the parts of the statements that hold a mark are taken out first.
    let asked = [
        "okapi_field",
        "codename = '73317331'",
        "codename = utf8(\"73317331\")",
        "utf8(\"73317331\")",
        "okapi-user",
        "q=73317331",
    ];
    let shown = asked.iter().fold(shown, |shown, part| shown.replace(part, ""));
    MARKS.iter().any(|mark| shown.contains(mark))
}

/// What a statement makes of tenants, ids and numbers of rows, where no mark shows.
fn own_alone(statement: &str, reply: &Value, where_it_lies: &str) {
    let rows = reply.as_array().expect("an array of rows");
    let text = reply.to_string();
    if statement.starts_with("SELECT array_agg(org_id)") || statement.starts_with("SELECT max(event_id)") {
        assert!(!text.contains("acme"), "{where_it_lies}: {statement}: {text}");
    }
    if statement.starts_with("SELECT count(DISTINCT org_id)") {
        let most = rows.iter().filter_map(|row| row.as_object()?.values().next()?.as_i64()).max();
        assert!(most.is_some_and(|most| most <= 1), "{where_it_lies}: {statement}: {text}");
    }
}

/// Nothing else goes on: what is counted, which statistics may answer, are the rows that are seen, and these are zeta's.
fn counts_are_of_own_rows(server: &Server, read: &str) {
    let mut zeta = server.client_with(read);
    for table in ["security_events", "cost_events", "alerts", "changes", "dead_letters"] {
        let orgs = zeta.sql(&format!("SELECT org_id FROM {table}"));
        assert!(orgs.iter().all(|row| row["org_id"] == "zeta"), "{table}: {orgs:?}");
        assert_eq!(zeta.number(&format!("SELECT count(*) FROM {table}")), orgs.len() as i64, "{table}");
        assert!(table != "security_events" || !orgs.is_empty(), "zeta has rows of its own");
    }
}

fn probe(server: &Server, read: &str, admin: &str, acme: &Acme, where_it_lies: &str) -> usize {
    let (statements, requests) = (statements(), requests(acme));
    let probes = statements.len() + requests.len();
    // Two clients at once, one with each kind of probe.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut zeta = server.client_with(read);
            for statement in &statements {
                let reply = zeta.send("POST", "/v2/sql", &[("content-type", "text/plain")], statement.as_bytes());
                assert!(reply.status.as_u16() < 500 || reply.status.as_u16() == 503, "{statement}: {:?}", reply.body);
                // Constants of the statement itself come back in plans.
                let own = statement.starts_with("EXPLAIN") && statement.contains("73317331");
                assert!(own || !leaks(&reply.body), "{where_it_lies}: {statement}: {:?}", reply.body);
                // The oracle: an error of a row of acme's, which zeta must not be able to cause.
                let divided = String::from_utf8_lossy(&reply.body).to_lowercase().contains("divide by zero");
                assert!(!divided, "{where_it_lies}: {statement} was decided on a row of another tenant");
                if reply.status.as_u16() == 200 {
                    own_alone(statement, &reply.json(), where_it_lies);
                }
            }
        });
        scope.spawn(|| {
            let mut zeta = server.client_with(admin);
            for (method, path, headers, body) in &requests {
                let reply = zeta.send(method, path, headers, body.as_bytes());
                assert!(
                    reply.status.as_u16() < 500 || reply.status.as_u16() == 503,
                    "{method} {path} {body}: {:?}",
                    reply.body
                );
                // A turn that was not given would hide what comes after it.
                assert_ne!(reply.status.as_u16(), 429, "{method} {path} {body}: {:?}", reply.body);
                assert!(!leaks(&reply.body), "{where_it_lies}: {method} {path} {body}: {:?}", reply.body);
            }
        });
    });
    counts_are_of_own_rows(server, read);
    probes
}

#[test]
fn thousands_of_probes_show_nothing_of_another_tenant() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("touched.yml"), RULE).expect("a rule");
    let folder = rules.path().to_str().expect("a path").to_owned();
    let server = Server::start(&[
        ("RULES", &folder),
        ("DELIVERY__FLUSH_INTERVAL_MS", "300"),
        // Each probe is to be answered for what it asks, not for how many there were.
        ("THREAT_DETECTION__TENANT_CHANGES_PER_MINUTE", "1000000"),
        ("THREAT_DETECTION__TENANT_CHANGES_BURST", "1000000"),
    ]);
    let made = |org: &str, role: &str| key(&server, org, role);
    let (acme_in, acme_admin) = (made("acme", "ingest"), made("acme", "admin"));
    let (zeta_in, zeta_read, zeta_admin) = (made("zeta", "ingest"), made("zeta", "read"), made("zeta", "admin"));
    let mut owner = server.client_with(&acme_admin);
    let own_rule = RULE
        .replace("Touched by name", "Okapi touched")
        .replace("0000000000aa", "0000000000bb")
        .replace("action: touched", "codename: okapi");
    let created =
        owner.send("POST", "/v2/threat-detection/rules", &[("content-type", "application/yaml")], own_rule.as_bytes());
    assert!(created.status.is_success(), "{:?}", created.body);
    let mut acme = Acme {
        events: vec![put_in(&server, 0, &acme_in, &zeta_in)],
        alert: String::new(),
        key: String::new(),
        rule: "11111111-2222-4333-8444-0000000000bb".into(),
    };
    owner.wait_for("SELECT count(*) FROM alerts", 1);
    acme.alert = owner.sql("SELECT alert_id FROM alerts")[0]["alert_id"].as_str().expect("an id").to_owned();
    let keys = owner.get("/v2/keys").json();
    acme.key = keys["keys"][0]["id"].as_str().expect("a key").to_owned();
    let before = state(&mut owner, &acme.rule);

    let mut probes = probe(&server, &zeta_read, &zeta_admin, &acme, "in the log");
    let started = Instant::now();
    while parquet_files(&server.data_dir().join("store/security_events")) == 0 {
        assert!(started.elapsed() < PATIENCE, "nothing is stored as Parquet");
        std::thread::sleep(Duration::from_millis(100));
    }
    acme.events.push(put_in(&server, 1, &acme_in, &zeta_in));
    probes += probe(&server, &zeta_read, &zeta_admin, &acme, "in Parquet and the log");

    // The connection was idle for longer than it may be.
    let mut owner = server.client_with(&acme_admin);
    assert_eq!(before, state(&mut owner, &acme.rule), "keys or rules of acme were changed");
    assert_eq!(owner.get("/v2/events/acme-event-0").status.as_u16(), 200);
    assert!(leaks(&owner.get("/v2/events/acme-event-0").body), "acme sees what is marked: the probes can find it");
    let silenced = owner.number("SELECT count(*) FROM changes WHERE kind = 'alert_feedback'");
    assert_eq!(silenced, 0, "zeta spoke of an alert of acme");
    println!("{probes} probes, 0 leaks");
    assert!(probes > 2_000, "only {probes} probes");
}

/// What acme has that a probe could have changed: its keys, its rule with text and state, and which rules are on.
fn state(owner: &mut Caller, rule: &str) -> Value {
    let rules = owner.get("/v2/threat-detection/rules?limit=1000").json();
    let states: Vec<_> =
        rules["rules"].as_array().expect("rules").iter().map(|rule| [&rule["id"], &rule["status"]]).collect();
    let own = owner.get(&format!("/v2/threat-detection/rules/{rule}"));
    assert_eq!(own.status.as_u16(), 200);
    json!({
        "keys": owner.get("/v2/keys").json(),
        "rules": states,
        "rule": own.json(),
        "version": own.headers.get("etag").and_then(|version| version.to_str().ok()),
    })
}

fn parquet_files(dir: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => parquet_files(&path),
            path => usize::from(path.extension().is_some_and(|ending| ending == "parquet")),
        })
        .sum()
}
