//! Two tenants see nothing of each other: through no endpoint, id, catalog, EXPLAIN or error text. Roles hold.

use serde_json::{Value, json};

use crate::server::{Caller, Server, event, tidegate};

/// Makes a key for the running server with the command line, as an operator would.
pub fn key(server: &Server, org: &str, role: &str) -> String {
    let mut command = tidegate(&["key", "create", "--org", org, "--role", role, "--data-dir"]);
    let output = command.arg(server.data_dir()).output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let secret = said.split_whitespace().find(|word| word.starts_with("tg_"));
    secret.unwrap_or_else(|| panic!("no key in {said}")).to_owned()
}

const RULE: &str = "title: Secret project touched\nid: 11111111-2222-4333-8444-000000000002\nlogsource: {product: custom}\n\
                    detection: {sel: {action: touched}, condition: sel}\nlevel: high\n";

#[test]
fn nothing_of_one_tenant_shows_to_the_other() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("touched.yml"), RULE).expect("a rule");
    let server =
        Server::start(&[("RULES", rules.path().to_str().expect("a path")), ("DELIVERY__FLUSH_INTERVAL_MS", "300")]);
    let (acme_in, acme_read) = (key(&server, "acme", "ingest"), key(&server, "acme", "read"));
    let (zeta_in, zeta_read) = (key(&server, "zeta", "ingest"), key(&server, "zeta", "read"));
    let mut acme = server.client_with(&acme_in);
    let secret = json!({"event_id": "zebra-77", "action": "touched", "codename_zebra": "zebra-secret", "user": {"name": "zebra-user"}});
    assert_eq!(acme.bulk("/v2/events/bulk?source=custom", &[secret]).json()["accepted"], 1);
    let reply = acme.send("POST", "/v2/events/bulk", &[("content-type", "application/x-ndjson")], b"{zebra\n");
    assert_eq!(reply.json()["rejected"], 1);
    server.client_with(&zeta_in).bulk("/v2/events/bulk?source=custom", &[event("own", "read")]);

    let mut owner = server.client_with(&acme_read);
    owner.wait_for("SELECT count(*) FROM alerts", 1);
    let alert = owner.sql("SELECT alert_id FROM alerts")[0]["alert_id"].as_str().expect("an id").to_owned();
    assert_eq!(owner.get("/v2/events/zebra-77").status.as_u16(), 200);
    assert_eq!(owner.get(&format!("/v2/alerts/{alert}")).status.as_u16(), 200);

    for round in ["in the log", "in Parquet"] {
        let mut other = server.client_with(&zeta_read);
        probe(&mut other, &alert, round);
        std::thread::sleep(std::time::Duration::from_millis(1_000));
    }
    // The same id in another tenant is another event.
    let reply = server.client_with(&zeta_in).bulk("/v2/events/bulk", &[event("zebra-77", "own")]);
    assert_eq!(reply.json()["accepted"], 1, "{:?}", reply.body);
}

fn probe(other: &mut Caller, alert: &str, round: &str) {
    let statements = [
        "SELECT * FROM security_events",
        "SELECT * FROM alerts",
        "SELECT * FROM dead_letters",
        "SELECT * FROM changes",
        "SELECT * FROM security_events WHERE org_id = 'acme'",
        "SELECT * FROM security_events WHERE org_id <> 'zeta' OR 1 = 1",
        "SELECT e.*, a.* FROM security_events e CROSS JOIN alerts a",
        "SELECT count(*) AS n FROM security_events WHERE event_id = 'zebra-77'",
        "SELECT codename_zebra FROM security_events",
        "SELECT \"codename_zebr\" FROM security_events",
        "EXPLAIN SELECT * FROM security_events",
        "EXPLAIN ANALYZE SELECT * FROM security_events WHERE action = 'touched'",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM information_schema.tables",
        "SHOW TABLES",
        "SHOW COLUMNS FROM security_events",
        "DESCRIBE security_events",
        "SELECT max(event_id) FROM security_events GROUP BY org_id",
    ];
    for statement in statements {
        let reply = other.send("POST", "/v2/sql", &[("content-type", "text/plain")], statement.as_bytes());
        let shown = String::from_utf8_lossy(&reply.body).to_lowercase();
        // A refusal may repeat what was asked, so the name that was asked for is taken out first.
        let shown = shown.replace("codename_zebra", "").replace("codename_zebr", "");
        assert!(!shown.contains("zebra") && !shown.contains("acme"), "{round}: {statement}: {shown}");
    }
    let catalog = other.sql("SELECT column_name FROM information_schema.columns WHERE column_name LIKE 'codename%'");
    assert!(catalog.is_empty(), "{round}: {catalog:?}");
    let paths = [
        "/v2/events",
        "/v2/events?actor=zebra-user",
        "/v2/events/stats",
        "/v2/events/zebra-77",
        "/v2/alerts",
        "/v2/alerts?entity=zebra-user",
    ];
    let alert_path = format!("/v2/alerts/{alert}");
    for path in paths.into_iter().chain([alert_path.as_str()]) {
        for headers in [&[][..], &[("x-scope-orgid", "acme"), ("x-org-id", "acme"), ("x-tidegate-org", "acme")][..]] {
            let reply = other.send("GET", path, headers, b"");
            let shown = String::from_utf8_lossy(&reply.body).replace("zebra-77", "");
            assert!(!shown.contains("zebra") && !shown.contains("acme"), "{round}: {path}: {shown}");
        }
    }
    assert_eq!(other.get("/v2/events/zebra-77").status.as_u16(), 404);
    assert_eq!(other.get(&alert_path).status.as_u16(), 404);
}

#[test]
fn roles_hold_and_revocation_takes_effect_at_once() {
    let server = Server::start(&[]);
    let (ingest, read, admin) =
        (key(&server, "acme", "ingest"), key(&server, "acme", "read"), key(&server, "acme", "admin"));
    let status = |key: Option<&str>, method: &str, path: &str, body: &str| {
        let mut client = Caller::new(&server.url, key);
        client.send(method, path, &[("content-type", "application/json")], body.as_bytes()).status.as_u16()
    };
    let sql = "{\"sql\":\"SELECT 1\"}";
    assert_eq!(status(None, "POST", "/v2/sql", sql), 401);
    assert_eq!(status(Some("tg_aaaaaaaaaaaa_wrong"), "POST", "/v2/sql", sql), 401);
    assert_eq!(status(Some(&ingest), "POST", "/v2/sql", sql), 403);
    assert_eq!(status(Some(&read), "POST", "/v2/sql", sql), 200);
    assert_eq!(status(Some(&admin), "POST", "/v2/sql", sql), 200);
    assert_eq!(status(Some(&read), "POST", "/v2/events", "{}"), 403);
    assert_eq!(status(Some(&ingest), "POST", "/v2/events", "{\"a\":1}"), 200);
    assert_eq!(status(Some(&read), "GET", "/v2/keys", ""), 403);
    assert_eq!(status(Some(&admin), "POST", "/v2/keys", "{\"org\":\"zeta\",\"role\":\"read\"}"), 403);
    let listed = Caller::new(&server.url, Some(&admin)).get("/v2/keys").json();
    let shown = listed.to_string();
    for secret in [&ingest, &read, &admin] {
        let tail = secret.rsplit('_').next().expect("a secret");
        assert!(!shown.contains(tail), "a secret in {shown}");
        assert!(!server.lines().contains(tail), "a secret in the log lines");
    }
    let of_read = listed["keys"].as_array().expect("keys").iter().find(|key| key["role"] == "read").cloned();
    let id = of_read.as_ref().and_then(|key| key["id"].as_str()).expect("an id").to_owned();
    let revoked: Value =
        Caller::new(&server.url, Some(&admin)).send("DELETE", &format!("/v2/keys/{id}"), &[], b"").json();
    assert_eq!(status(Some(&read), "POST", "/v2/sql", sql), 401, "{revoked}");
}

#[test]
fn keys_can_be_made_while_the_server_is_down() {
    let mut server = Server::start(&[]);
    server.stop();
    let made = key(&server, "acme", "read");
    server.run(&[]);
    let mut client = server.client_with(&made);
    assert_eq!(client.get("/v2/alerts").status.as_u16(), 200);
    assert_eq!(server.client().get("/v2/alerts").status.as_u16(), 401);
}
