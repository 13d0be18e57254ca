//! What correlations can do: time, tenants, references, aliases, chains, bounds.

use serde_json::{Value, json};
use tidegate_events::{Alert, alert_id};
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::correlation::{base, correlation, events};
use crate::flatten::Events;
use crate::stream::{Event, alerts, at, load, operator, process};

fn c_only(mut alerts: Vec<Alert>) -> Vec<Alert> {
    alerts.retain(|alert| alert.rule_id.starts_with('c'));
    alerts
}

fn run(text: &str, list: &[(f64, &str, &str)]) -> Vec<Alert> {
    let mut operator = operator(RulesConfig::default(), &[("default", text)]);
    alerts(&mut operator, &events(list))
}

#[test]
fn sequences_say_when_each_rule_was_seen() {
    let text = base(&["a", "b"]) + &correlation("type: temporal_ordered, rules: [a, b], group-by: [u], timespan: 10s");
    let found =
        run(&text, &[(1.0, "b", "kim"), (2.0, "a", "kim"), (3.0, "a", "lee"), (9.0, "b", "kim"), (30.0, "b", "lee")]);
    let [alert] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(alert.event_ids, ["e0", "e1", "e3"]);
    let matched: Value = serde_json::from_str(&alert.matched).expect("JSON");
    assert_eq!(matched["rules"], json!({"a": "1970-01-01T00:00:02Z", "b": "1970-01-01T00:00:01Z"}));
    assert_eq!(matched["condition"], "a and b");
    assert_eq!(alert.message, "Correlated: 2 rules seen in order within 10s, u=kim");
}

#[test]
fn absence_fires_when_event_time_has_passed_the_window() {
    let section = "type: temporal, rules: [a, b], group-by: [u], timespan: 10s, condition: a and not b";
    let text = base(&["a", "b"]) + &correlation(section);
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let list = [(1.0, "a", "kim"), (2.0, "a", "lee"), (5.0, "b", "lee"), (70.9, "x", "x")];
    assert_eq!(alerts(&mut operator, &events(&list)), []);
    let found = alerts(&mut operator, &[at("z", 71.0, &[("k", "x")])]);
    let [alert] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((alert.group_key.as_str(), alert.event_count), ("u=kim", 1));
    assert_eq!(alert.alert_id, alert_id("acme", "c", "u=kim", "1000000"));
}

#[test]
fn a_silent_source_holds_nobody_back_and_silence_alone_closes_windows() {
    let detection = base(&["a"]).replace("{product: test}", "{category: webserver}");
    let text = detection + &correlation("type: event_count, rules: [a], timespan: 10s, condition: {lt: 5}");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let from = |source: &str, org: &str, time: f64, received: f64, kind: &str| Event {
        source: source.into(),
        org: org.into(),
        received,
        ..at(&format!("{source}{received}"), time, &[("k", kind)])
    };
    let mut count = |event: Event| alerts(&mut operator, &[event]).len();
    // Both feed the window [100, 110); the mark of apache stays behind, but it is not heard any more.
    assert_eq!(count(from("nginx", "acme", 100.0, 1000.0, "a")), 0);
    assert_eq!(count(from("apache", "acme", 101.0, 1000.0, "a")), 0);
    assert_eq!(count(from("nginx", "acme", 170.0, 1060.0, "x")), 0);
    assert_eq!(count(from("nginx", "acme", 171.0, 1060.1, "x")), 1);
    // Silence of all: receive time goes on with the events of another tenant.
    assert_eq!(count(from("nginx", "zeta", 500.0, 1100.0, "a")), 0);
    assert_eq!(count(from("apache", "other", 1.0, 1169.9, "x")), 0);
    assert_eq!(count(from("apache", "other", 1.0, 1170.0, "x")), 1);
}

#[test]
fn a_window_that_another_tenants_event_ends_raises_for_its_own_tenant() {
    let text = base(&["a"]) + &correlation("type: event_count, rules: [a], timespan: 10s, condition: {lt: 5}");
    // One alert of a rule and tenant in a batch: those of two tenants must not be merged into one.
    let config = RulesConfig { alerts_per_second_max: 1, ..RulesConfig::default() };
    let mut operator = operator(config, &[("default", &text)]);
    let of = |org: &str, received: f64, kind: &str| Event {
        org: org.into(),
        received,
        ..at(&format!("{org}{received}"), 100.0, &[("k", kind)])
    };
    assert_eq!(alerts(&mut operator, &[of("acme", 1000.0, "a"), of("zeta", 1000.0, "a")]), []);
    let found = alerts(&mut operator, &[of("other", 1069.9, "x"), of("other", 1070.0, "x"), of("other", 1071.0, "x")]);
    let mut orgs: Vec<_> = found.iter().map(|alert| (alert.org_id.as_str(), alert.event_count)).collect();
    orgs.sort_unstable();
    assert_eq!(orgs, [("acme", 1), ("zeta", 1)]);
}

#[test]
fn history_of_one_source_is_not_late_because_of_another_or_another_tenant() {
    let detection = base(&["a"]).replace("{product: test}", "{category: webserver}");
    let text =
        detection + &correlation("type: event_count, rules: [a], group-by: [u], timespan: 10s, condition: {gte: 2}");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let mut fired = |source: &str, org: &str, time: f64| {
        let event = Event {
            source: source.into(),
            org: org.into(),
            received: 1e9,
            ..at(&format!("{time}"), time, &[("k", "a"), ("u", "kim")])
        };
        alerts(&mut operator, &[event]).len()
    };
    assert_eq!(fired("nginx", "acme", 9e8), 0);
    assert_eq!((fired("apache", "acme", 1_000.0), fired("apache", "acme", 1_001.0)), (0, 1), "another source");
    assert_eq!((fired("nginx", "zeta", 2_000.0), fired("nginx", "zeta", 2_001.0)), (0, 1), "another tenant");
    assert_eq!(fired("nginx", "other", 9e8), 0);
    assert_eq!((fired("nginx", "other", 8e8), fired("nginx", "other", 8e8 + 1.0)), (0, 0), "late by its own source");
}

#[test]
fn tenants_never_meet_in_a_group() {
    let text = base(&["a"]) + &correlation("type: event_count, rules: [a], timespan: 10s, condition: {gte: 2}");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let of = |org: &str, time: f64| Event { org: org.into(), ..at(&format!("{org}{time}"), time, &[("k", "a")]) };
    let found = alerts(&mut operator, &[of("acme", 1.0), of("zeta", 2.0), of("acme", 3.0)]);
    assert_eq!(found.iter().map(|alert| alert.org_id.as_str()).collect::<Vec<_>>(), ["acme"]);
}

#[test]
fn a_tenants_correlation_uses_rules_for_everyone_and_silences_them_for_itself_only() {
    let own = correlation("type: event_count, rules: [a, own], timespan: 10s, condition: {gte: 2}")
        + "---\ntitle: Own\nid: own\nlogsource: {product: test}\ndetection: {s: {k: o}, condition: s}\n";
    let config = RulesConfig { suppress_s: 0, ..RulesConfig::default() };
    let mut operator = operator(config, &[("default", &base(&["a"])), ("acme", own.trim_start_matches("---\n"))]);
    let of = |org: &str, kind: &str, time: f64| Event {
        org: org.into(),
        ..at(&format!("{org}{time}"), time, &[("k", kind)])
    };
    let list =
        [of("acme", "a", 1.0), of("zeta", "a", 2.0), of("zeta", "a", 3.0), of("zeta", "o", 3.5), of("acme", "o", 4.0)];
    let found = alerts(&mut operator, &list);
    let who: Vec<_> = found.iter().map(|alert| (alert.org_id.as_str(), alert.rule_id.as_str())).collect();
    assert_eq!(who, [("zeta", "id-a"), ("zeta", "id-a"), ("acme", "c")]);
}

#[test]
fn another_tenants_rules_cannot_be_referred_to() {
    let mut operator = SigmaOperator::new(RulesConfig::default()).expect("tables");
    let refers = correlation("type: event_count, rules: [a], timespan: 10s, condition: {gte: 2}");
    let refers = refers.trim_start_matches("---\n");
    load(&mut operator, &[("acme", &base(&["a"])), ("zeta", refers), ("default", &refers.replace("id: c", "id: c2"))]);
    let problems: Vec<_> = operator.problems().iter().map(|problem| problem.reason.clone()).collect();
    assert_eq!(problems, ["no rule has the id or name a"; 2]);
    assert_eq!(operator.problems()[0].hint, "was it loaded? its file may have a problem of its own");
}

#[test]
fn rules_that_are_referred_to_raise_only_when_a_correlation_says_generate() {
    let section = "type: event_count, rules: [a], timespan: 10s, condition: {gte: 2}";
    let quiet = base(&["a", "b"]) + &correlation(section);
    let ids = |text: &str| {
        let found = run(text, &[(1.0, "a", "x"), (2.0, "b", "x"), (3.0, "a", "x")]);
        found.into_iter().map(|alert| alert.rule_id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&quiet), ["id-b", "c"]);
    assert_eq!(ids(&format!("{quiet}generate: true\n")), ["id-a", "id-b", "c"]);
    assert_eq!(ids(&quiet.replace("rules: [a]", "rules: [a], generate: true")), ["id-a", "id-b", "c"]);
}

#[test]
fn aliases_name_fields_rule_by_rule() {
    let section = "type: temporal, rules: [a, id-b], group-by: [who], timespan: 10s, aliases: {who: {a: u, b: v}}";
    let mut operator = operator(RulesConfig::default(), &[("default", &(base(&["a", "b"]) + &correlation(section)))]);
    let list = [
        at("1", 1.0, &[("k", "a"), ("u", "kim"), ("v", "lee")]),
        at("2", 2.0, &[("k", "b"), ("u", "kim"), ("v", "bo")]),
        at("3", 3.0, &[("k", "b"), ("u", "bo"), ("v", "kim")]),
    ];
    let found = alerts(&mut operator, &list);
    assert_eq!(found.iter().map(|alert| alert.group_key.as_str()).collect::<Vec<_>>(), ["who=kim"]);
    assert_eq!(found[0].event_ids, ["1", "3"]);
}

#[test]
fn correlations_of_correlations_see_firings_as_events() {
    // Ten failures, then a success: the inner one groups by host, the outer one by user, which the completing event has.
    let text = format!(
        "{}---\ntitle: Many\nid: many\nname: many\ncorrelation: {{type: event_count, rules: [a], group-by: [h], timespan: 10s, \
         condition: {{gte: 3}}}}\n{}",
        base(&["a", "b"]),
        correlation("type: temporal_ordered, rules: [many, b], group-by: [u], timespan: 60s")
    );
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let event = |id: &str, time: f64, kind: &str| at(id, time, &[("k", kind), ("u", "kim"), ("h", "web")]);
    let list =
        [event("0", 0.0, "b"), event("1", 1.0, "a"), event("2", 2.0, "a"), event("3", 3.0, "a"), event("4", 40.0, "b")];
    let found = alerts(&mut operator, &list);
    let [alert] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((alert.rule_id.as_str(), alert.group_key.as_str()), ("c", "u=kim"));
    assert_eq!(alert.event_ids, ["0", "3", "4"]);
    // A window that was over gives its firing the moment at which it ended.
    let text = text.replace("{gte: 3}", "{lt: 3}").replace("group-by: [u]", "group-by: [h]");
    let mut operator = self::operator(RulesConfig::default(), &[("default", &text)]);
    let list = [event("1", 1.0, "a"), event("2", 30.0, "b"), event("3", 75.0, "x")];
    let found = alerts(&mut operator, &list);
    let [alert] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((alert.first_time, alert.last_time), (11_000_000, 30_000_000));
}

#[test]
fn several_rules_of_one_name_are_one_and_an_event_counts_once() {
    let text = base(&["a", "b"]).replace("name: b", "name: a")
        + "---\ntitle: Also\nid: also\nname: also\nlogsource: {product: test}\ndetection: {s: {k: a}, condition: s}\n";
    let count = |section: &str| {
        let text = text.clone() + &correlation(section);
        c_only(run(&text, &[(1.0, "a", "x"), (2.0, "b", "x"), (3.0, "b", "x")]))
            .into_iter()
            .map(|alert| alert.event_count)
            .collect::<Vec<_>>()
    };
    assert_eq!(count("type: event_count, rules: [a, also], timespan: 10s, condition: {gte: 3}"), [3]);
    assert_eq!(count("type: event_count, rules: [a, also], timespan: 10s, condition: {gte: 4}"), [0i64; 0]);
    assert_eq!(count("type: temporal, rules: [a, also], timespan: 10s"), [2]);
}

#[test]
fn a_field_with_several_values_groups_by_the_first_and_one_without_is_passed_over() {
    let text = base(&["a"])
        + &correlation("type: event_count, rules: [a], group-by: [u, w.x], timespan: 10s, condition: {gte: 2}");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let list = [
        json!({"k": "a", "u": ["kim", "lee"], "w": {"x": 1}}),
        json!({"k": "a", "u": "kim"}),
        json!({"k": "a", "u": ["lee", "kim"], "w": {"x": 1}}),
        json!({"k": "a", "u": ["kim"], "w": {"x": 1}}),
    ];
    let found = process(&mut operator, &Events::security("test", &list).batch(0));
    let [alert] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (alert.group_key.as_str(), alert.event_ids.as_slice()),
        ("u=kim, w.x=1", ["e0".to_owned(), "e3".into()].as_slice())
    );
}

#[test]
fn fractions_and_money_are_measured_exactly_and_floats_are_not_forgotten() {
    let sum = |bound: &str, values: &[&str]| {
        let section = format!("type: value_sum, rules: [a], timespan: 10s, condition: {{field: v, {bound}}}");
        let mut operator = operator(RulesConfig::default(), &[("default", &(base(&["a"]) + &correlation(&section)))]);
        let list: Vec<Event> = values
            .iter()
            .enumerate()
            .map(|(place, value)| at(&place.to_string(), place as f64, &[("k", "a"), ("v", value)]))
            .collect();
        let found = alerts(&mut operator, &list);
        found.first().map(|alert| serde_json::from_str::<Value>(&alert.matched).expect("JSON")["value"].clone())
    };
    assert_eq!(sum("gte: 0.3", &["0.1", "0.2"]), Some(json!(0.3)));
    assert_eq!(sum("gt: 0.3", &["0.1", "0.2"]), None);
    assert_eq!(sum("gte: 3", &["1", "no number", "2"]), Some(json!(3)));
    assert_eq!(sum("gte: 2", &["1e300", "-1e300", "2"]), Some(json!(1e300)));
    assert_eq!(sum("gt: 1e300", &["1e300", "1e300"]), Some(json!(2e300)));
}

#[test]
fn changed_definitions_begin_anew_and_others_go_on() {
    let text = |gte: u32, title: &str| {
        base(&["a"])
            + &correlation(&format!("type: event_count, rules: [a], timespan: 10s, condition: {{gte: {gte}}}"))
                .replace("Correlated", title)
    };
    let mut operator = operator(RulesConfig::default(), &[("default", &text(3, "One"))]);
    let fired =
        |operator: &mut SigmaOperator, time: f64| alerts(operator, &[at(&time.to_string(), time, &[("k", "a")])]).len();
    assert_eq!((fired(&mut operator, 1.0), fired(&mut operator, 2.0)), (0, 0));
    load(
        &mut operator,
        &[
            ("default", &text(3, "Another title")),
            ("default", "title: X\nid: x\nlogsource: {product: test}\ndetection: {s: {k: y}, condition: s}\n"),
        ],
    );
    assert_eq!(fired(&mut operator, 3.0), 1, "the same definition goes on");
    load(&mut operator, &[("default", &text(2, "One"))]);
    assert_eq!((fired(&mut operator, 4.0), fired(&mut operator, 5.0)), (0, 1), "another begins anew");
}

#[test]
fn bounds_hold_and_the_groups_used_longest_ago_go_first() {
    let text =
        base(&["a"]) + &correlation("type: event_count, rules: [a], group-by: [u], timespan: 1h, condition: {gte: 2}");
    let config = RulesConfig { correlation_groups_max: 2, ..RulesConfig::default() };
    let mut operator = operator(config, &[("default", &text)]);
    let found = alerts(
        &mut operator,
        &events(&[(1.0, "a", "x"), (2.0, "a", "y"), (3.0, "a", "z"), (4.0, "a", "x"), (5.0, "a", "z")]),
    );
    assert_eq!(found.iter().map(|alert| alert.group_key.as_str()).collect::<Vec<_>>(), ["u=z"]);
}

#[test]
fn a_flood_of_one_value_does_not_push_the_others_out() {
    let text =
        base(&["a"]) + &correlation("type: value_count, rules: [a], timespan: 1h, condition: {field: u, gte: 5}");
    let config = RulesConfig { correlation_group_events_max: 20, ..RulesConfig::default() };
    let mut operator = operator(config, &[("default", &text)]);
    let mut list: Vec<Event> = Vec::new();
    for (place, user) in ["v", "w", "x", "y", "z"].into_iter().enumerate() {
        for repeat in 0..50 {
            let time = (place * 50 + repeat) as f64;
            list.push(at(&time.to_string(), time, &[("k", "a"), ("u", user)]));
        }
    }
    assert_eq!(alerts(&mut operator, &list).len(), 1);
}
