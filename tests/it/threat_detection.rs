//! Rules over the API: made, replaced, removed, turned off; refused with a place and a reason; each tenant's its own.

use std::time::Instant;

use hyper::StatusCode;
use serde_json::{Value, json};
use tidegate::cli::http::Reply;

use crate::server::{Caller, PATIENCE, Server, event};
use crate::tenants::key;

const RULES: &str = "/v2/threat-detection/rules";
const YAML: (&str, &str) = ("content-type", "application/yaml");

/// A rule that matches events of the source `custom` with this action.
fn rule(id: &str, action: &str) -> String {
    format!(
        "title: Saw {action}\nid: {id}\nlogsource: {{product: custom}}\ndetection:\n  sel:\n    action: {action}\n  \
         condition: sel\nlevel: high\ntags: [attack.execution, attack.t1059.001]\n"
    )
}

fn id(n: u32) -> String {
    format!("11111111-2222-4333-8444-{n:012}")
}

fn path(id: &str) -> String {
    format!("{RULES}/{id}")
}

fn code(reply: &Reply) -> (u16, String) {
    let code = reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
    (reply.status.as_u16(), code)
}

fn etag(reply: &Reply) -> String {
    reply.headers["etag"].to_str().expect("text").to_owned()
}

fn post(client: &mut Caller, text: &str) -> Reply {
    client.send("POST", RULES, &[YAML], text.as_bytes())
}

fn made(client: &mut Caller, text: &str) -> Reply {
    let reply = post(client, text);
    assert_eq!(reply.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&reply.body));
    reply
}

/// Sends an event of somebody new, so that its alert is not one that was raised a moment ago.
fn seen(client: &mut Caller, event_id: &str, action: &str) {
    let mut event = event(event_id, action);
    event["user"]["name"] = json!(event_id);
    client.bulk("/v2/events/bulk?source=custom", &[event]);
}

#[test]
fn a_rule_lives_from_its_making_to_its_removal() {
    let mut server = Server::start(&[]);
    let mut client = server.client();
    seen(&mut client, "before", "evil");
    let text = rule(&id(1), "evil");
    let reply = made(&mut client, &text);
    assert_eq!(reply.headers["location"].to_str().expect("text"), path(&id(1)));
    let shown = reply.json()["rule"].clone();
    assert_eq!(shown["status"], "loaded");
    assert_eq!(
        (shown["origin"].as_str(), shown["file"].as_str()),
        (Some("api"), Some(format!("api/{}.yml", id(1)).as_str()))
    );
    assert_eq!(
        (shown["level"].as_str(), shown["enabled"].as_bool(), shown["actor"].as_str()),
        (Some("high"), Some(true), Some("local"))
    );
    let first = etag(&reply);

    // It holds for the events after it.
    seen(&mut client, "after", "evil");
    client.wait_for("SELECT count(*) FROM alerts WHERE title = 'Saw evil'", 1);
    let change = &client.sql("SELECT actor, target_id FROM changes WHERE kind = 'rule' AND target_id LIKE 'api/%'")[0];
    assert_eq!(change["actor"], "local", "{change}");

    let reply = client.send("GET", &path(&id(1)), &[("accept", "application/yaml")], b"");
    assert_eq!((reply.body.as_ref(), etag(&reply)), (text.as_bytes(), first.clone()));
    let reply = client.send("GET", &path(&id(1)), &[("if-none-match", &first)], b"");
    assert_eq!(reply.status, StatusCode::NOT_MODIFIED);
    assert_eq!(code(&post(&mut client, &text)), (409, "rule_exists".to_owned()));

    // Of two who saw the same rule, one changes it.
    let second = rule(&id(1), "worse");
    let reply = client.send("PUT", &path(&id(1)), &[YAML, ("if-match", &first)], second.as_bytes());
    assert_eq!(reply.status, StatusCode::OK, "{}", String::from_utf8_lossy(&reply.body));
    let reply = client.send("PUT", &path(&id(1)), &[YAML, ("if-match", &first)], text.as_bytes());
    assert_eq!(code(&reply), (412, "rule_changed".to_owned()));
    let reply = client.send("DELETE", &path(&id(1)), &[("if-match", &first)], b"");
    assert_eq!(code(&reply), (412, "rule_changed".to_owned()));

    // It is there after a restart, and the folder's look does not take it away.
    server.stop();
    server.run(&[]);
    let mut client = server.client();
    seen(&mut client, "third", "worse");
    client.wait_for("SELECT count(*) FROM alerts WHERE title = 'Saw worse'", 1);
    let reply = client.send("DELETE", &path(&id(1)), &[], b"");
    assert_eq!((reply.status, reply.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(code(&client.get(&path(&id(1)))), (404, "not_found".to_owned()));
    // Each change is told of with who made it.
    let audit =
        format!("SELECT action FROM changes WHERE kind = 'rule' AND actor = 'local' AND target_id LIKE '%{}%'", id(1));
    client.wait_for(&format!("SELECT count(*) FROM ({audit})"), 3);
    let mut actions: Vec<String> =
        client.sql(&audit).iter().map(|row| row["action"].as_str().expect("a text").to_owned()).collect();
    actions.sort_unstable();
    assert_eq!(actions, ["create", "delete", "update"]);
    made(&mut client, &rule(&id(2), "other"));
    seen(&mut client, "fourth", "worse");
    seen(&mut client, "fifth", "other");
    client.wait_for("SELECT count(*) FROM alerts WHERE title = 'Saw other'", 1);
    assert_eq!(client.number("SELECT count(*) FROM alerts WHERE title = 'Saw worse'"), 1);
}

#[test]
fn what_does_not_load_is_refused_with_its_place_and_changes_nothing() {
    let server = Server::start(&[("THREAT_DETECTION__TENANT_RULES_MAX", "2")]);
    let mut client = server.client();
    made(&mut client, &rule(&id(1), "evil"));
    let good = rule(&id(9), "good");
    let bomb = format!(
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
         d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e]\n{good}"
    );
    let cases: Vec<(&str, String, (u16, &str))> = vec![
        ("nothing", String::new(), (422, "invalid_rule")),
        ("no YAML", "title: [".to_owned(), (422, "invalid_rule")),
        ("no rule", "a: 1\n".to_owned(), (422, "invalid_rule")),
        ("no id", good.replace(&format!("id: {}\n", id(9)), ""), (422, "invalid_rule")),
        ("an id with a slash", good.replace(&id(9), "../../x"), (422, "invalid_rule")),
        ("an unknown modifier", good.replace("action: good", "action|starts: good"), (422, "invalid_rule")),
        ("an unknown selection", good.replace("condition: sel", "condition: sel and not other"), (422, "invalid_rule")),
        ("an expression that is none", good.replace("action: good", "action|re: '('"), (422, "invalid_rule")),
        ("an alias bomb", bomb, (422, "invalid_rule")),
        ("a second document with a taken id", format!("{good}---\n{}", rule(&id(1), "x")), (409, "rule_exists")),
        ("one id twice", format!("{good}---\n{}", rule(&id(9), "x")), (422, "invalid_rule")),
    ];
    for (what, text, (status, wanted)) in cases {
        let started = Instant::now();
        let reply = post(&mut client, &text);
        assert_eq!(code(&reply), (status, wanted.to_owned()), "{what}: {}", String::from_utf8_lossy(&reply.body));
        if status == 422 {
            let problem = &reply.json()["error"]["problems"][0];
            assert!(problem["line"].as_u64().is_some() && problem["reason"].is_string(), "{what}: {problem}");
        }
        assert!(started.elapsed().as_secs() < 20, "{what}: {:?}", started.elapsed());
    }
    let unknown = good.replace("action: good", "action|starts: good");
    let problem = post(&mut client, &unknown).json()["error"]["problems"][0].clone();
    assert_eq!((problem["line"].as_u64(), problem["rule"].as_str()), (Some(6), Some(id(9).as_str())), "{problem}");
    for (body, wanted) in [("{", 400), ("{\"text\": 1}", 400), ("{\"rule\": \"\"}", 400), ("{\"text\": \"\"}", 422)] {
        let reply = client.send("POST", RULES, &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(reply.status.as_u16(), wanted, "{body}");
    }
    let long = json!({"text": format!("{good}description: {}\n", "x".repeat(1 << 20))}).to_string();
    let reply = client.send("POST", RULES, &[("content-type", "application/json")], long.as_bytes());
    assert_eq!(code(&reply), (413, "body_too_large".to_owned()));
    // Who sends ten times as much may find the connection closed before it has read the answer.
    let large = format!("{good}description: {}\n", "x".repeat(10 << 20));
    if let Some(reply) = client.try_send("POST", RULES, &[YAML], large.as_bytes()) {
        assert_eq!(code(&reply), (413, "body_too_large".to_owned()));
    }
    let mut client = server.client();
    let reply = client.send("POST", RULES, &[YAML], b"title: \xff\n");
    assert_eq!(code(&reply), (400, "invalid_body".to_owned()));
    for bad in ["%2e%2e%2fetc", "api%2Fx.yml", "%zz", "%ff", "a%00b"] {
        let status = client.get(&path(bad)).status.as_u16();
        assert!(status == 404 || status == 400, "{bad}: {status}");
    }

    // To look at a rule keeps nothing.
    let reply = client.send("POST", &path("validate"), &[YAML], good.as_bytes());
    assert_eq!((reply.status.as_u16(), reply.json()["valid"].as_bool()), (200, Some(true)));
    let reply = client.send("POST", &path("validate"), &[YAML], unknown.as_bytes());
    assert_eq!(code(&reply), (422, "invalid_rule".to_owned()));
    assert_eq!(client.number("SELECT count(*) FROM changes WHERE target_id LIKE 'api/%'"), 1);
    let wrapped = json!({"text": good}).to_string();
    let reply = client.send("POST", RULES, &[("content-type", "application/json")], wrapped.as_bytes());
    assert_eq!(reply.status, StatusCode::CREATED);
    assert_eq!(code(&post(&mut client, &rule(&id(3), "third"))), (409, "too_many_rules".to_owned()));
    let reply = client.send("PUT", &path(&id(9)), &[YAML], rule(&id(8), "x").as_bytes());
    assert_eq!(code(&reply), (422, "invalid_rule".to_owned()), "another id");
}

#[test]
fn of_many_who_change_a_rule_at_once_one_wins() {
    let server = Server::start(&[]);
    let reply = made(&mut server.client(), &rule(&id(1), "v0"));
    let first = etag(&reply);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|n| {
                let (url, first) = (server.url.clone(), first.clone());
                scope.spawn(move || {
                    let text = rule(&id(1), &format!("v{n}"));
                    let headers = [YAML, ("if-match", first.as_str())];
                    Caller::new(&url, None).send("PUT", &path(&id(1)), &headers, text.as_bytes()).status.as_u16()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("an answer")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 7, "{statuses:?}");
    assert_eq!(server.client().number("SELECT count(*) FROM changes WHERE target_id LIKE 'api/%'"), 2);
}

#[test]
fn rules_of_the_folder_are_only_changed_there_and_stay_beside_those_of_the_api() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("mine.yml"), rule(&id(1), "mine")).expect("a rule");
    std::fs::create_dir(folder.path().join("api")).expect("a folder");
    std::fs::write(folder.path().join("api/sneaky.yml"), rule(&id(5), "sneaky")).expect("a rule");
    let server = Server::start(&[("RULES", folder.path().to_str().expect("a path"))]);
    let mut client = server.client();
    made(&mut client, &rule(&id(2), "own"));
    let listed = client.get(&format!("{RULES}?origin=folder")).json();
    assert_eq!(listed["rules"].as_array().map(Vec::len), Some(1), "{listed}");
    assert!(listed["skipped"][0].as_str().is_some_and(|name| name.starts_with("api/sneaky.yml")), "{listed}");
    let pack = client.get(&format!("{RULES}?origin=pack&limit=1")).json()["rules"][0]["id"].clone();
    for id in [id(1), pack.as_str().expect("an id").to_owned()] {
        for method in ["PUT", "DELETE"] {
            let reply = client.send(method, &path(&id), &[YAML], rule(&id, "changed").as_bytes());
            assert_eq!(code(&reply), (409, "rule_read_only".to_owned()), "{method} {id}");
            assert!(reply.json()["error"]["hint"].as_str().is_some_and(|hint| hint.contains("disable")));
        }
    }
    assert_eq!(code(&post(&mut client, &rule(&id(1), "again"))), (409, "rule_exists".to_owned()));
    std::fs::remove_file(folder.path().join("mine.yml")).expect("removed");
    server.signal("HUP");
    client.wait_for("SELECT count(*) FROM changes WHERE target_id = 'mine.yml' AND action = 'delete'", 1);
    assert_eq!(client.get(&path(&id(1))).status.as_u16(), 404);
    assert_eq!(client.get(&path(&id(2))).status.as_u16(), 200, "the folder's look leaves it alone");
}

#[test]
fn each_tenant_has_its_own_rules_and_turns_off_what_it_likes() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("all.yml"), rule(&id(7), "shared")).expect("a rule");
    let server = Server::start(&[("RULES", folder.path().to_str().expect("a path"))]);
    let (acme_key, zeta_key) = (key(&server, "acme", "admin"), key(&server, "zeta", "admin"));
    let reader = key(&server, "acme", "read");
    let mut acme = server.client_with(&acme_key);
    let mut zeta = server.client_with(&zeta_key);
    made(&mut acme, &rule(&id(1), "zebra"));
    // Two tenants may have the same id; neither says anything of the other's.
    for path in [path(&id(1)), format!("{RULES}?limit=1000"), format!("{RULES}?q=zebra")] {
        let shown = String::from_utf8_lossy(&zeta.get(&path).body).replace("q=zebra", "").to_lowercase();
        assert!(!shown.contains("zebra") && !shown.contains("acme"), "{path}: {shown}");
    }
    for (method, path, body) in [
        ("PUT", path(&id(1)), rule(&id(1), "x")),
        ("DELETE", path(&id(1)), String::new()),
        ("POST", format!("{}/disable", path(&id(1))), String::new()),
    ] {
        assert_eq!(
            code(&zeta.send(method, &path, &[YAML], body.as_bytes())),
            (404, "not_found".to_owned()),
            "{method}"
        );
    }
    made(&mut zeta, &rule(&id(1), "yak"));
    let mut read_only = server.client_with(&reader);
    assert_eq!(read_only.get(&path(&id(1))).status.as_u16(), 200);
    for (method, path) in
        [("POST", RULES.to_owned()), ("PUT", path(&id(1))), ("POST", format!("{}/disable", path(&id(7))))]
    {
        assert_eq!(
            code(&read_only.send(method, &path, &[YAML], b"")),
            (403, "forbidden".to_owned()),
            "{method} {path}"
        );
    }

    // A rule for everyone is off for one tenant only, until it is on again.
    let reply = acme.send("POST", &format!("{}/disable", path(&id(7))), &[], b"");
    assert_eq!((reply.status.as_u16(), reply.json()["rule"]["enabled"].as_bool()), (200, Some(false)));
    assert_eq!(acme.get(&format!("{RULES}?enabled=false")).json()["rules"].as_array().map(Vec::len), Some(1));
    assert_eq!(zeta.get(&format!("{RULES}?enabled=false")).json()["rules"].as_array().map(Vec::len), Some(0));
    for client in [&mut acme, &mut zeta] {
        seen(client, "one", "shared");
        seen(client, "two", "zebra");
        seen(client, "three", "yak");
    }
    zeta.wait_for("SELECT count(*) FROM alerts", 2);
    acme.wait_for("SELECT count(*) FROM alerts", 1);
    assert_eq!(acme.sql("SELECT title FROM alerts")[0]["title"], "Saw zebra");
    assert_eq!(acme.number("SELECT count(*) FROM changes WHERE kind = 'rule_off'"), 1);
    acme.send("POST", &format!("{}/enable", path(&id(7))), &[], b"");
    seen(&mut acme, "four", "shared");
    acme.wait_for("SELECT count(*) FROM alerts", 2);
}

#[test]
fn a_list_is_paged_and_narrowed() {
    let server = Server::start(&[]);
    let mut client = server.client();
    for n in 1..=5 {
        made(&mut client, &rule(&id(n), &format!("page{n}")));
    }
    let all = client.get(&format!("{RULES}?limit=1000")).json()["rules"].as_array().expect("rules").clone();
    let ids = |rules: &[Value]| {
        rules.iter().map(|rule| rule["id"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("{RULES}?limit=7&cursor={cursor}")).json();
        let rules = page["rules"].as_array().expect("rules");
        assert!(rules.len() <= 7);
        paged.extend(ids(rules));
        match page["cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(paged, ids(&all));
    assert!(all.len() > 30, "the starter pack is there: {}", all.len());
    let started = Instant::now();
    while client.get(&format!("{RULES}?status=pending")).json()["rules"]
        .as_array()
        .is_some_and(|rules| !rules.is_empty())
    {
        assert!(started.elapsed() < PATIENCE, "the rules are looked at");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for (query, wanted) in [
        ("origin=api", 5),
        ("origin=api&level=critical", 0),
        ("origin=api&level=high", 5),
        ("q=page3", 1),
        ("q=PAGE", 5),
        ("origin=api&tag=attack.t1059", 5),
        ("origin=api&tag=attack.t10", 0),
        ("origin=api&status=loaded", 5),
        ("status=problem", 0),
        ("status=parked", 0),
        ("enabled=false", 0),
    ] {
        let rules = client.get(&format!("{RULES}?limit=1000&{query}")).json();
        assert_eq!(rules["rules"].as_array().map(Vec::len), Some(wanted), "{query}: {rules}");
    }
    for bad in ["level=loud", "limit=0", "cursor=zz", "page=2", "enabled=maybe"] {
        assert_eq!(client.get(&format!("{RULES}?{bad}")).status.as_u16(), 400, "{bad}");
    }
}

#[test]
fn a_rule_that_others_need_is_not_taken_from_them() {
    let server = Server::start(&[]);
    let mut client = server.client();
    made(&mut client, &rule(&id(1), "try"));
    let many = format!(
        "title: Many tries\nid: {}\ncorrelation:\n  type: event_count\n  rules: [{}]\n  group-by: [user.name]\n  \
         timespan: 5m\n  condition: {{gte: 3}}\nlevel: high\n",
        id(2),
        id(1)
    );
    let unknown = many.replace(&id(1), "nobody").replace(&id(2), &id(3));
    assert_eq!(code(&post(&mut client, &unknown)), (422, "invalid_rule".to_owned()));
    made(&mut client, &many);
    assert_eq!(code(&client.send("DELETE", &path(&id(1)), &[], b"")), (409, "rule_in_use".to_owned()));
    let shown = client.get(&path(&id(2))).json();
    assert_eq!(
        (shown["rule"]["kind"].as_str(), shown["rule"]["refers_to"][0].as_str()),
        (Some("correlation"), Some(id(1).as_str()))
    );
    for n in 1..=2 {
        let reply = client.send("DELETE", &path(&id(3 - n)), &[], b"");
        assert_eq!(reply.status, StatusCode::NO_CONTENT, "{n}");
    }
}

/// Sends events until a rule is parked; how it is shown then.
fn parked(server: &Server, rule: &str, mut events: impl FnMut() -> Vec<Value>) -> Value {
    let mut client = server.client();
    let started = Instant::now();
    loop {
        client.bulk("/v2/events/bulk?source=custom", &events());
        let parked = client.get(&format!("{RULES}?status=parked")).json();
        if let Some(rule) = parked["rules"].as_array().and_then(|rules| rules.iter().find(|shown| shown["id"] == rule))
        {
            return rule.clone();
        }
        assert!(started.elapsed() < PATIENCE, "{parked} {}", server.lines());
    }
}

#[test]
fn a_rule_that_takes_too_long_is_shown_as_parked() {
    let server = Server::start(&[("SIGMA__RULE_EVENT_NS_MAX", "1")]);
    let mut client = server.client();
    // No table of states is large enough for this one on random letters.
    let slow = rule(&id(1), "x").replace("action: x", "action|re: 'a[ab]{200}[^ab]'");
    made(&mut client, &slow);
    made(&mut client, &rule(&id(2), "quick"));
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    let mut letter = move || {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        if bits & 1 == 0 { 'a' } else { 'b' }
    };
    let shown = parked(&server, &id(1), || {
        let actions = (0..500).map(|_| (0..300).map(|_| letter()).collect::<String>()).collect::<Vec<_>>();
        actions.into_iter().map(|action| json!({"action": action})).collect()
    });
    assert!(shown["reason"].as_str().is_some_and(|reason| reason.contains("ns per event")), "{shown}");
    // A change gives it another chance.
    let reply = client.send("PUT", &path(&id(1)), &[YAML], rule(&id(1), "x").as_bytes());
    assert_eq!(reply.status, StatusCode::OK);
    seen(&mut client, "last", "x");
    client.wait_for("SELECT count(*) FROM alerts WHERE title = 'Saw x'", 1);
    assert_eq!(client.get(&path(&id(1))).json()["rule"]["status"], "loaded");
}

#[test]
fn a_correlation_that_takes_too_long_is_shown_as_parked() {
    let server = Server::start(&[("SIGMA__CORRELATION_EVENT_NS_MAX", "1")]);
    let mut client = server.client();
    made(&mut client, &rule(&id(1), "try"));
    // The window moves over all events between two clusters of them each time.
    let slow = format!(
        "title: Slow\nid: {}\ncorrelation:\n  type: value_percentile\n  rules: [{}]\n  timespan: 20s\n  \
         condition: {{field: v, percentile: 50, gte: 1000}}\nlevel: high\n",
        id(2),
        id(1)
    );
    made(&mut client, &slow);
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let mut number = 0;
    let shown = parked(&server, &id(2), || {
        let first = number;
        number += 500;
        let time = |number: u64| now_ms as u64 - 60_000 + number % 2 * 40_000 + number / 1_000;
        let one = |number| json!({"action": "try", "time": time(number), "v": (number * 7 % 1_000) as f64 / 7.0});
        (first..number).map(one).collect()
    });
    assert_eq!(shown["kind"], "correlation", "{shown}");
    assert!(shown["reason"].as_str().is_some_and(|reason| reason.contains("ns per event")), "{shown}");
    let others = client.get(&format!("{RULES}?status=parked")).json();
    assert_eq!(others["rules"].as_array().map(Vec::len), Some(1), "only it: {others}");
}

#[test]
fn a_tenant_that_changes_rules_too_often_is_told_when_to_try_again() {
    let server = Server::start(&[
        ("THREAT_DETECTION__TENANT_CHANGES_PER_MINUTE", "1"),
        ("THREAT_DETECTION__TENANT_CHANGES_BURST", "3"),
    ]);
    let mut client = server.client();
    for number in 1..=3 {
        made(&mut client, &rule(&id(number), "evil"));
    }
    let reply = post(&mut client, &rule(&id(4), "evil"));
    assert_eq!(code(&reply), (429, "too_many_changes".to_owned()));
    let seconds: u64 = reply.headers["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((30..=61).contains(&seconds), "{seconds}");
    assert_eq!(client.get(&path(&id(1))).status, StatusCode::OK, "looking is free");
}
