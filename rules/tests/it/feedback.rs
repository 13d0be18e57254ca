//! Silences in the operator, and what alerts show.

use serde_json::{Value, json};
use tidegate_events::Alert;
use tidegate_pipeline::Operator;
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::flatten::Events;
use crate::suppression::{Row, batch, changes, operator, process};

fn at(org: &'static str, actor: &'static str, received: i64) -> Row {
    Row { org, time: received, received, actor: Some(actor), f: "a", g: None }
}

/// Feedback of a tenant on an alert of the rule `by-entity`.
fn say(operator: &mut SigmaOperator, org: &str, alert: &str, action: &str, body: &Value) {
    let rows = [(org, "alert_feedback", alert, action, body.to_string())];
    assert_eq!(process(operator, &changes(&rows)), []);
}

fn silence(group: &str, scope: &str, until: i64) -> Value {
    json!({"rule_id": "by-entity", "group_key": group, "verdict": "false_positive", "silence_scope": scope,
        "silence_until_us": until * 1_000_000})
}

/// The actors of the alerts.
fn actors(alerts: &[Alert]) -> Vec<String> {
    alerts.iter().map(|alert| format!("{} {}", alert.org_id, alert.actor.as_deref().unwrap_or("nobody"))).collect()
}

#[test]
fn a_silence_is_for_a_tenant_a_rule_a_group_and_a_time() {
    let config = RulesConfig { suppress_s: 0, ..RulesConfig::default() };
    let mut own = operator(&config);
    let events = |received: i64| {
        let rows = [("acme", "kim"), ("acme", "lee"), ("globex", "kim")].map(|(org, who)| at(org, who, received));
        batch(&rows, received as usize)
    };
    let all = ["acme kim", "acme lee", "globex kim"];
    assert_eq!(actors(&process(&mut own, &events(1_000))), all);
    say(&mut own, "acme", "1", "create", &silence("actor=kim", "group", 2_000));
    assert_eq!(actors(&process(&mut own, &events(1_100))), all[1..]);
    // What is said of a rule as a whole counts for every group; what is not a body changes nothing.
    say(&mut own, "acme", "2", "create", &silence("actor=lee", "rule", 1_500));
    for broken in [json!("no"), json!({"rule_id": "by-entity"}), json!({"verdict": "maybe"})] {
        say(&mut own, "acme", "1", "update", &broken);
    }
    assert_eq!(actors(&process(&mut own, &events(1_200))), all[2..]);
    let state = own.save();
    let mut restored = SigmaOperator::new(config).expect("tables");
    restored.restore(&state).expect("a state");
    for mut one in [own, restored] {
        // It is over for events received at its end and later, whatever came before.
        assert_eq!(actors(&process(&mut one, &events(1_499))), all[2..]);
        assert_eq!(actors(&process(&mut one, &events(1_500))), all[1..]);
        assert_eq!(actors(&process(&mut one, &events(1_400))), all[2..], "received before the end");
        // Taken back, or said without a silence: it ends at once.
        say(&mut one, "acme", "1", "delete", &Value::Null);
        assert_eq!(actors(&process(&mut one, &events(1_600))), all);
        say(&mut one, "globex", "3", "create", &silence("actor=kim", "group", 9_000));
        assert_eq!(actors(&process(&mut one, &events(1_700))), all[..2]);
        say(
            &mut one,
            "globex",
            "3",
            "update",
            &json!({"rule_id": "by-entity", "group_key": "actor=kim", "verdict": "benign"}),
        );
        assert_eq!(actors(&process(&mut one, &events(1_800))), all);
    }
}

/// The alerts of one rule on events of the source `test`.
fn alerts(rule: &str, events: &[Value]) -> Vec<Alert> {
    let config = RulesConfig { alert_value_bytes_max: 100, ..RulesConfig::default() };
    let mut operator = SigmaOperator::new(config).expect("tables");
    let text = format!("title: T\nid: r\nlogsource: {{product: test}}\n{rule}\n");
    process(&mut operator, &changes(&[("default", "rule", "r", "create", json!({ "text": text }).to_string())]));
    assert_eq!(operator.problems(), []);
    process(&mut operator, &Events::security("test", events).batch(0))
}

#[test]
fn matched_shows_the_values_of_the_rule_within_bounds() {
    let long = "x".repeat(5_000);
    let many: Vec<String> = (0..100).map(|at| format!("v{at}")).collect();
    let hidden = format!("{long} Needle {long}");
    let around = format!("{} Needle {}", "x".repeat(24), "x".repeat(68));
    let wide: Vec<String> = (0..40).map(|at| format!("'f{at}|contains': x")).collect();
    for (rule, event, wanted) in [
        (
            "detection: {s: {f: [a, b], g.h: 7}, condition: s}",
            json!({"f": "A", "g": {"h": 7}, "i": 1}),
            json!({"f": "A", "g.h": "7"}),
        ),
        ("detection: {s: {f|contains: v1}, condition: s}", json!({"f": many}), json!({"f": many[..16]})),
        ("detection: {s: {f|startswith: x}, condition: s}", json!({"f": long}), json!({"f": long[..100]})),
        (
            "detection: {s: [needle], condition: s}",
            json!({"f": hidden, "g": ["no", "a needle"]}),
            json!({"f": around, "g": "a needle"}),
        ),
        (
            // What is asked not to be is not what matched.
            "detection: {s: {f: a}, n: {g: b}, condition: s and not n}",
            json!({"f": "a", "g": "c"}),
            json!({"f": "a"}),
        ),
        (
            "detection: {s: {f: a}, n: {g: b}, o: {h: c}, condition: s and not (n and not o)}",
            json!({"f": "a", "g": "b", "h": "c"}),
            json!({"f": "a", "h": "c"}),
        ),
        // Nor what is not the case.
        (
            "detection: {s: {f: a}, t: {g: b, h: c}, u: {i|exists: true}, condition: 1 of them}",
            json!({"f": "x", "g": "b", "h": "d", "i": 1}),
            json!({"i": "1"}),
        ),
        (
            "detection: {s: {f: a}, t: {g: b}, u: {h: c}, condition: 2 of them}",
            json!({"f": "a", "g": "x", "h": "c"}),
            json!({"f": "a", "h": "c"}),
        ),
        (
            "detection: {s: {f|neq: a, g|contains: [x, y], h|fieldref: g, i: null, 'j|re': '^z'}, condition: s}",
            json!({"f": "b", "g": "xy", "h": "XY", "j": "zz"}),
            json!({"g": "xy", "h": "XY", "j": "zz"}),
        ),
        (
            "detection: {s: [needle, other], n: [hay], condition: s and not n}",
            json!({"f": "a Needle", "g": "nothing", "h": "another"}),
            json!({"f": "a Needle", "h": "another"}),
        ),
        (
            "detection: {s: {'|startswith': [needle]}, t: {'|re': '[0-9]{3}$'}, condition: s or t}",
            json!({"f": "needle", "g": "a needle", "h": "x123"}),
            json!({"f": "needle", "h": "x123"}),
        ),
        ("detection: {n: {g: b}, condition: not n}", json!({"f": "a"}), json!({})),
    ] {
        let alerts = alerts(rule, std::slice::from_ref(&event));
        let [alert] = alerts.as_slice() else { panic!("{rule}: {alerts:?}") };
        let shown: Value = serde_json::from_str(&alert.matched).expect("JSON");
        assert_eq!(shown, wanted, "{rule}");
    }
    let event: Value = (0..40).map(|at| (format!("f{at}"), json!(long))).collect::<serde_json::Map<_, _>>().into();
    let alert = &alerts(&format!("detection: {{s: {{{}}}, condition: s}}", wide.join(", ")), &[event])[0];
    assert!(alert.matched.len() < 2_500 && alert.message.len() < 500, "{} {}", alert.matched, alert.message);
}

#[test]
fn a_rule_says_what_its_alerts_are_about() {
    let rule = "tidegate: {group_by: [user.name, ports]}\ndetection: {s: {f: a}, condition: s}";
    let event = |name: &str, ports: Value| json!({"f": "a", "user": {"name": name}, "ports": ports});
    let alerts = alerts(
        rule,
        &[
            event("kim", json!([1, 2])),
            event("kim", json!([1, 2])),
            event("kim", json!([1])),
            json!({"f": "a", "user": {}}),
        ],
    );
    let groups: Vec<_> = alerts.iter().map(|alert| alert.group_key.as_str()).collect();
    assert_eq!(groups, ["user.name=kim, ports=1|2", "user.name=kim, ports=1", ""]);
}
