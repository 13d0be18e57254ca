//! Alerts people can live with: a burst is two alerts, feedback is kept and shown, a silence holds for one tenant and group,
//! over a restart too, until it is taken back.

use serde_json::{Value, json};

use crate::server::{Caller, Server};
use crate::tenants::key;

const RULE: &str = "title: Marked\nid: 11111111-2222-4333-8444-000000000009\nlogsource: {product: custom}\n\
                    tidegate: {group_by: [who], suppress: 10m}\n\
                    detection: {sel: {action: marked}, condition: sel}\nlevel: high\n";

/// Sends events of one action and person, a second apart from a minute after ten o'clock on.
fn send(client: &mut Caller, action: &str, who: &str, minute: usize, count: usize) {
    let event = |second: usize| {
        json!({"event_id": format!("{action}-{who}-{minute}-{second}"), "action": action, "who": who,
            "@timestamp": format!("2026-11-20T{:02}:{:02}:{second:02}Z", 10 + minute / 60, minute % 60)})
    };
    let events: Vec<Value> = (0..count).map(event).collect();
    assert_eq!(client.bulk("/v2/events/bulk?source=custom", &events).json()["accepted"], count);
}

fn say(client: &mut Caller, alert: &str, body: &Value) -> (u16, Value) {
    let headers = [("content-type", "application/json")];
    let path = format!("/v2/alerts/{alert}/feedback");
    let reply = client.send("POST", &path, &headers, body.to_string().as_bytes());
    (reply.status.as_u16(), reply.json())
}

fn alert_of(client: &mut Caller, who: &str) -> String {
    let rows = client.sql(&format!("SELECT alert_id FROM alerts WHERE group_key = 'who={who}' ORDER BY seq"));
    rows[0]["alert_id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_burst_is_two_alerts_and_a_silence_holds_for_its_tenant_and_group() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("marked.yml"), RULE).expect("a rule");
    let settings = [("RULES", rules.path().to_str().expect("a path")), ("SIGMA__SILENCES_MAX", "1")];
    let mut server = Server::start(&settings);
    let keys = [("acme", "admin"), ("acme", "read"), ("zeta", "admin")].map(|(org, role)| key(&server, org, role));
    let [mut acme, mut reader, mut zeta] = [0, 1, 2].map(|at| server.client_with(&keys[at]));

    // Five of kim's and one of lee's are an alert each; once event time has gone on, kim's other four are told of.
    send(&mut acme, "marked", "kim", 0, 5);
    send(&mut acme, "marked", "lee", 0, 1);
    acme.wait_for("SELECT count(*) FROM alerts", 2);
    send(&mut acme, "other", "kim", 30, 1);
    acme.wait_for("SELECT count(*) FROM alerts", 3);
    assert_eq!(acme.number("SELECT sum(event_count) FROM alerts"), 6);
    let kim = alert_of(&mut acme, "kim");
    let more = &acme.sql("SELECT alert_id, event_count, message FROM alerts WHERE continues IS NOT NULL")[0];
    assert_eq!(more["event_count"], 4);
    assert_eq!(more["message"], "Marked: action=marked (continued: 4 more in 10m)");
    let shown = acme.get(&format!("/v2/alerts/{}", more["alert_id"].as_str().expect("an id"))).json();
    assert_eq!((&shown["alert"]["continues"], &shown["alert"]["group_key"]), (&json!(kim), &json!("who=kim")));

    // Who may only read may not silence; another tenant's alert is none; what is said must make sense.
    let silence = json!({"verdict": "false_positive", "comment": "a drill", "silence": {"for": "7d"}});
    let code = |(status, body): (u16, Value)| (status, body["error"]["code"].as_str().unwrap_or_default().to_owned());
    assert_eq!(code(say(&mut reader, &kim, &silence)), (403, "forbidden".into()));
    assert_eq!(code(say(&mut zeta, &kim, &silence)), (404, "no_such_alert".into()));
    assert_eq!(code(say(&mut acme, "0", &silence)), (404, "no_such_alert".into()));
    assert_eq!(code(say(&mut acme, &"0".repeat(100), &silence)), (404, "no_such_alert".into()));
    for (body, wanted) in [
        (json!({"verdict": "maybe"}), "invalid_body"),
        (json!({"comment": "no verdict"}), "invalid_body"),
        (json!({"verdict": "benign", "silent": true}), "invalid_body"),
        (json!({"verdict": "benign", "comment": "x".repeat(5000)}), "invalid_comment"),
        (json!({"verdict": "benign", "silence": {"for": "always"}}), "invalid_silence"),
        (json!({"verdict": "benign", "silence": {"for": "0s"}}), "invalid_silence"),
        (json!({"verdict": "benign", "silence": {"for": "367d"}}), "invalid_silence"),
    ] {
        assert_eq!(code(say(&mut acme, &kim, &body)), (400, wanted.into()), "{body}");
    }
    assert_eq!(acme.get(&format!("/v2/alerts/{kim}/feedback")).status.as_u16(), 404, "nothing was said yet");

    let (status, said) = say(&mut acme, &kim, &silence);
    assert_eq!((status, &said["feedback"]["silence_scope"]), (201, &json!("group")), "{said}");
    let shown = reader.get(&format!("/v2/alerts/{kim}/feedback")).json();
    assert_eq!(shown, said, "what is shown is what was said");
    assert!(shown["feedback"]["silence_until"].as_str().is_some_and(|until| until.ends_with('Z')), "{shown}");
    // Another verdict without a silence leaves the silence alone.
    let (status, said) = say(&mut acme, &kim, &json!({"verdict": "benign"}));
    assert_eq!((status, &said["feedback"]["silence_until"]), (200, &shown["feedback"]["silence_until"]));
    let joined = "SELECT f.verdict FROM alerts a JOIN alert_feedback f USING (alert_id) WHERE silence_until > now()";
    assert_eq!(reader.sql(joined), [json!({"verdict": "benign"})]);
    assert_eq!(acme.number("SELECT count(*) FROM changes WHERE kind = 'alert_feedback'"), 2);
    assert_eq!(zeta.number("SELECT count(*) FROM alert_feedback"), 0);

    // Kim is silent for acme: not for zeta, and lee is not; over a restart too.
    for minute in [60, 120] {
        send(&mut acme, "marked", "kim", minute, 3);
        send(&mut acme, "marked", "lee", minute, 1);
        send(&mut zeta, "marked", "kim", minute, 1);
        let rounds = minute as i64 / 60;
        acme.wait_for("SELECT count(*) FROM alerts WHERE group_key = 'who=lee'", 1 + rounds);
        zeta.wait_for("SELECT count(*) FROM alerts", rounds);
        assert_eq!(acme.number("SELECT count(*) FROM alerts WHERE group_key = 'who=kim'"), 2, "{minute}");
        if minute == 60 {
            let page = String::from_utf8_lossy(&acme.get("/metrics").body).into_owned();
            assert!(page.contains("tidegate_rules_silenced_matches_total 3"), "{page}");
            server.kill();
            server.run(&settings);
            [acme, reader, zeta] = [0, 1, 2].map(|at| server.client_with(&keys[at]));
        }
    }

    // There may be one silence: lee's has to wait until kim's has ended.
    let lee = alert_of(&mut acme, "lee");
    assert_eq!(code(say(&mut acme, &lee, &silence)), (409, "too_many_silences".into()));
    let path = format!("/v2/alerts/{kim}/silence");
    assert_eq!(reader.send("DELETE", &path, &[], b"").status.as_u16(), 403);
    let reply = acme.send("DELETE", &path, &[], b"");
    assert_eq!((reply.status.as_u16(), &reply.json()["feedback"]["verdict"]), (200, &json!("benign")));
    assert!(reply.json()["feedback"]["silence_until"].is_null());
    assert_eq!(acme.send("DELETE", &path, &[], b"").json()["error"]["code"], "no_silence");
    let whole_rule = json!({"verdict": "true_positive", "silence": {"for": "1h", "scope": "rule"}});
    send(&mut acme, "marked", "kim", 180, 1);
    acme.wait_for("SELECT count(*) FROM alerts WHERE group_key = 'who=kim'", 3);
    assert_eq!(say(&mut acme, &lee, &whole_rule).0, 201);
    let before = acme.number("SELECT count(*) FROM alerts");
    send(&mut acme, "marked", "max", 240, 1);
    send(&mut zeta, "marked", "max", 240, 1);
    zeta.wait_for("SELECT count(*) FROM alerts WHERE group_key = 'who=max'", 1);
    assert_eq!(acme.number("SELECT count(*) FROM alerts"), before, "the whole rule is silent");
}

const CORRELATED: &str = "title: Marked\nid: 11111111-2222-4333-8444-000000000009\nname: marked\nlogsource: {product: custom}\n\
                          detection: {sel: {action: marked}, condition: sel}\n---\ntitle: Marked often\n\
                          id: 11111111-2222-4333-8444-000000000010\nlevel: critical\ncorrelation:\n  type: event_count\n  \
                          rules: [marked]\n  group-by: [who]\n  timespan: 30s\n  condition: {gte: 3}\n";

#[test]
fn a_false_positive_of_a_correlation_is_silenced_for_its_group() {
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("often.yml"), CORRELATED).expect("a rule");
    let server = Server::start(&[("RULES", rules.path().to_str().expect("a path"))]);
    let mut acme = server.client_with(&key(&server, "acme", "admin"));
    send(&mut acme, "marked", "kim", 0, 3);
    acme.wait_for("SELECT count(*) FROM alerts WHERE title = 'Marked often' AND group_key = 'who=kim'", 1);
    assert_eq!(acme.number("SELECT count(*) FROM alerts WHERE title = 'Marked'"), 0, "what is correlated is quiet");
    let kim = alert_of(&mut acme, "kim");
    let (status, said) =
        say(&mut acme, &kim, &json!({"verdict": "false_positive", "comment": "a script", "silence": {"for": "1d"}}));
    assert_eq!((status, &said["feedback"]["group_key"]), (201, &json!("who=kim")), "{said}");
    send(&mut acme, "marked", "kim", 10, 3);
    send(&mut acme, "marked", "lee", 11, 3);
    acme.wait_for("SELECT count(*) FROM alerts WHERE group_key = 'who=lee'", 1);
    assert_eq!(acme.number("SELECT count(*) FROM alerts WHERE group_key = 'who=kim'"), 1, "kim is silent");
    assert_eq!(acme.send("DELETE", &format!("/v2/alerts/{kim}/silence"), &[], b"").status.as_u16(), 200);
    send(&mut acme, "marked", "kim", 20, 3);
    acme.wait_for("SELECT count(*) FROM alerts WHERE group_key = 'who=kim'", 2);
}
