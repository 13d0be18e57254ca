//! Health, metrics, signals, the OpenAPI document, and refusals that every endpoint shares.

use std::time::Duration;

use crate::server::{Server, event};

#[test]
fn health_metrics_and_openapi_answer() {
    let server = Server::start(&[]);
    let mut client = server.client();
    for path in ["/", "/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(client.get(path).status.as_u16(), 200, "{path}");
    }
    client.bulk("/v2/events/bulk", &[event("a", "x")]);
    let page = String::from_utf8(client.get("/metrics").body.to_vec()).expect("text");
    let documented = tidegate::serve::telemetry::metrics();
    for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).expect("a name");
        assert!(documented.iter().any(|(known, _, _)| *known == name), "{name} is not documented");
    }
    assert!(page.contains("tidegate_http_requests_total"), "{page}");
}

#[test]
fn every_endpoint_of_the_openapi_document_is_answered_and_no_other() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let document = client.get("/openapi.json").json();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            let concrete = path.replace("{id}", "nothing-has-this-id");
            let headers = if path == "/v2/alerts/stream" { vec![("connection", "close")] } else { vec![] };
            let reply = client.send(&method.to_uppercase(), &concrete, &headers, b"");
            let status = reply.status.as_u16();
            assert!(status != 405 && status < 500, "{method} {path}: {status} {:?}", reply.body);
            let documented = operation["responses"].as_object().expect("responses");
            assert!(documented.contains_key(&status.to_string()), "{method} {path}: {status} is not documented");
        }
    }
    for (method, path, status) in [("GET", "/v2/nothing", 404), ("DELETE", "/v2/sql", 405), ("PUT", "/v2/events", 405)]
    {
        let reply = client.send(method, path, &[], b"");
        assert_eq!(reply.status.as_u16(), status, "{method} {path}");
        assert!(reply.json()["error"]["code"].is_string());
        assert!(reply.headers.contains_key("x-request-id"));
    }
}

#[test]
fn sigterm_drains_and_a_restart_continues() {
    let mut server = Server::start(&[]);
    server.client().bulk("/v2/events/bulk", &[event("a", "x"), event("b", "x")]);
    let took = server.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!server.data_dir().join("server.json").exists(), "server.json is removed at exit");
    server.run(&[]);
    assert_eq!(server.client().number("SELECT count(*) FROM security_events"), 2);
}

#[test]
fn a_second_server_on_the_same_folder_is_refused_with_a_reason() {
    let server = Server::start(&[]);
    let mut second = crate::server::tidegate(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    let output = second.arg(server.data_dir()).output().expect("the program runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("in use by another"), "{said}");
}

#[test]
fn rules_are_read_again_on_sighup_and_bad_ones_are_shown() {
    let rules = tempfile::tempdir().expect("a folder");
    let server = Server::start(&[("RULES", rules.path().to_str().expect("a path"))]);
    let mut client = server.client();
    client.bulk("/v2/events/bulk?source=custom", &[event("before", "evil")]);
    let rule = "title: Evil\nid: 11111111-2222-4333-8444-555555555555\nlogsource: {product: custom}\n\
                detection: {sel: {action: evil}, condition: sel}\nlevel: high\n";
    std::fs::write(rules.path().join("evil.yml"), rule).expect("a rule");
    std::fs::write(rules.path().join("bad.yml"), "title: Bad\ndetection: {sel: {a: 1}, condition: nothing}\n")
        .expect("a rule");
    server.signal("HUP");
    client.wait_for("SELECT count(*) FROM changes WHERE kind = 'rule' AND target_id LIKE '%evil.yml'", 1);
    client.bulk("/v2/events/bulk?source=custom", &[event("after", "evil")]);
    client.wait_for("SELECT count(*) FROM alerts WHERE title = 'Evil'", 1);
    let alert = &client.sql("SELECT event_ids[1] AS event, level FROM alerts WHERE title = 'Evil'")[0];
    assert_eq!((alert["event"].as_str(), alert["level"].as_str()), (Some("after"), Some("high")));
    // The list follows a moment after the rules are in force.
    let started = std::time::Instant::now();
    loop {
        let shown = client.get("/v2/threat-detection/rules?status=problem").json();
        let bad = |rule: &serde_json::Value| rule["file"] == "bad.yml" && rule["problems"][0]["line"] == 1;
        if shown["rules"].as_array().is_some_and(|rules| rules.iter().any(bad)) {
            break;
        }
        assert!(started.elapsed() < crate::server::PATIENCE, "{shown}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_rule_file_that_cannot_be_read_keeps_its_rule_in_force() {
    let rules = tempfile::tempdir().expect("a folder");
    let rule = "title: Evil\nid: 11111111-2222-4333-8444-555555555556\nlogsource: {product: custom}\n\
                detection: {sel: {action: evil}, condition: sel}\nlevel: high\n";
    std::fs::write(rules.path().join("evil.yml"), rule).expect("a rule");
    let server = Server::start(&[("RULES", rules.path().to_str().expect("a path"))]);
    let mut client = server.client();
    std::fs::write(rules.path().join("evil.yml"), b"title: \xff\xfe").expect("not UTF-8");
    std::fs::write(rules.path().join("more.yml"), rule.replace("556", "557").replace("evil", "worse")).expect("a rule");
    server.signal("HUP");
    client.wait_for("SELECT count(*) FROM changes WHERE kind = 'rule' AND target_id = 'more.yml'", 1);
    client.bulk("/v2/events/bulk?source=custom", &[event("a", "evil"), event("b", "worse")]);
    client.wait_for("SELECT count(*) FROM alerts", 2);
}

#[test]
fn what_is_wrong_with_a_stage_is_told_to_whoever_has_the_machine_alone() {
    // Nobody listens at that port.
    let server = Server::start(&[("SINKS__REDIS__URL", "redis://127.0.0.1:1")]);
    let mut client = server.client();
    let started = std::time::Instant::now();
    let details = |headers: &[(&str, &str)], client: &mut crate::server::Caller| {
        let reply = client.send("GET", "/readyz", headers, b"");
        assert_eq!(reply.status.as_u16(), 200, "a destination beside the store: {:?}", reply.body);
        reply.json()["details"].to_string()
    };
    while !details(&[], &mut client).contains("127.0.0.1:1") {
        assert!(started.elapsed() < crate::server::PATIENCE, "without keys it is told: {}", details(&[], &mut client));
        std::thread::sleep(Duration::from_millis(50));
    }
    // A page in a browser on this machine is not whoever has it.
    assert!(!details(&[("origin", "https://evil.example")], &mut client).contains("127.0.0.1:1"));
    let admin = crate::tenants::key(&server, "acme", "admin");
    for mut client in [server.client(), server.client_with(&admin)] {
        let told = details(&[], &mut client);
        assert!(told.contains("redis") && told.contains("degraded") && !told.contains("127.0.0.1:1"), "{told}");
    }
    let mut owner = server.client_with(&server.local_token());
    assert!(details(&[], &mut owner).contains("127.0.0.1:1"), "the token of the data folder");
}
