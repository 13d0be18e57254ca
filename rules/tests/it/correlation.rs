//! Correlations through the operator: what fires, when, and what the alert says.

use serde_json::{Value, json};
use tidegate_events::{Alert, Level, alert_id};
use tidegate_rules::RulesConfig;

use crate::stream::{Event, alerts, at, batch, operator, process};

/// Detection rules `a`, `b`, … that match events whose field `k` has their name.
pub fn base(names: &[&str]) -> String {
    let rule = |name: &&str| {
        format!(
            "title: Base {name}\nid: id-{name}\nname: {name}\nlogsource: {{product: test}}\ndetection: {{s: {{k: {name}}}, condition: s}}\n"
        )
    };
    names.iter().map(rule).collect::<Vec<_>>().join("---\n")
}

/// A correlation `c`.
pub fn correlation(section: &str) -> String {
    format!("---\ntitle: Correlated\nid: c\nlevel: high\ntags: [attack.t1110]\ncorrelation: {{{section}}}\n")
}

/// Events from (second, kind, user).
pub fn events(list: &[(f64, &str, &str)]) -> Vec<Event> {
    let event = |(place, (time, kind, user)): (usize, &(f64, &str, &str))| {
        at(&format!("e{place}"), *time, &[("k", kind), ("u", user)])
    };
    list.iter().enumerate().map(event).collect()
}

fn first_and_count(alerts: &[Alert]) -> Vec<(f64, f64, i64)> {
    let second = |time: i64| time as f64 / 1e6;
    alerts.iter().map(|alert| (second(alert.first_time), second(alert.last_time), alert.event_count)).collect()
}

#[test]
fn a_count_fires_with_the_event_that_reaches_it_and_says_what_it_saw() {
    let text =
        base(&["a"]) + &correlation("type: event_count, rules: [a], group-by: [u], timespan: 10s, condition: {gte: 3}");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let list = [(1.0, "a", "kim"), (2.0, "a", "lee"), (3.0, "a", "kim"), (4.0, "x", "kim"), (5.0, "a", "kim")];
    let found = alerts(&mut operator, &events(&list));
    let [alert] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((alert.rule_id.as_str(), alert.title.as_str(), alert.level), ("c", "Correlated", Level::High));
    assert_eq!(alert.group_key, "u=kim");
    assert_eq!(alert.alert_id, alert_id("acme", "c", "u=kim", "5000000"));
    assert_eq!(alert.event_ids, ["e0", "e2", "e4"]);
    assert_eq!((alert.first_time, alert.last_time, alert.event_count), (1_000_000, 5_000_000, 3));
    assert_eq!(alert.source, "test");
    assert_eq!(alert.message, "Correlated: 3 events within 10s, u=kim");
    let matched: Value = serde_json::from_str(&alert.matched).expect("JSON");
    assert_eq!(matched, json!({"group": {"u": "kim"}, "value": 3, "condition": ">= 3", "timespan": "10s"}));
}

#[test]
fn the_window_slides_and_a_group_that_fired_is_quiet_for_a_span() {
    let text =
        base(&["a"]) + &correlation("type: event_count, rules: id-a, group-by: u, timespan: 10s, condition: {gt: 1}");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let times = [0.0, 10.0, 15.0, 16.0, 24.9, 25.0, 30.0, 36.0];
    let list: Vec<_> = times.iter().map(|time| (*time, "a", "kim")).collect();
    let found = first_and_count(&alerts(&mut operator, &events(&list)));
    assert_eq!(found, [(10.0, 15.0, 2), (16.0, 25.0, 3), (30.0, 36.0, 2)]);
}

#[test]
fn alerts_of_a_batch_come_in_the_order_of_rows() {
    let text = base(&["a", "b"]) + &correlation("type: event_count, rules: [a], timespan: 10s, condition: {gte: 2}");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let list = [(1.0, "b", "x"), (2.0, "a", "x"), (3.0, "a", "x"), (4.0, "b", "y")];
    let found = process(&mut operator, &batch(&events(&list)));
    let ids: Vec<_> = found.iter().map(|alert| alert.rule_id.as_str()).collect();
    assert_eq!(ids.iter().filter(|id| **id == "c").count(), 1, "{ids:?}");
    assert_eq!(ids.first(), Some(&"id-b"), "{ids:?}");
    assert!(!ids.contains(&"id-a"), "a rule that is referred to raises nothing: {ids:?}");
}
