//! Late events: they count as long as a window that they belong to is open, and open none in the place of one that was decided.

use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::correlation::{base, correlation};
use crate::stream::{Event, alerts, at, operator};

/// Events of (second, kind), received at a moment of their own each, in this order.
fn stream(list: &[(f64, &str)]) -> Vec<Event> {
    let event = |(place, (time, kind)): (usize, &(f64, &str))| Event {
        received: 1e6 + place as f64,
        ..at(&format!("e{place}"), *time, &[("k", kind), ("u", "kim")])
    };
    list.iter().enumerate().map(event).collect()
}

fn with(section: &str) -> SigmaOperator {
    operator(RulesConfig::default(), &[("default", &(base(&["a", "b"]) + &correlation(section)))])
}

/// How many events the alerts of a correlation over an hour have.
fn check(section: &str, list: &[(f64, &str)], wanted: &[i64]) {
    let mut operator = with(&format!("{section}, group-by: [u], timespan: 1h"));
    let found: Vec<i64> = alerts(&mut operator, &stream(list)).iter().map(|alert| alert.event_count).collect();
    assert_eq!(found, wanted, "{section}: {list:?}");
}

#[test]
fn an_event_that_is_half_an_hour_late_counts_in_a_window_of_an_hour() {
    let few = "type: event_count, rules: [a], condition: {lt: 5}";
    let four = [(0.0, "a"), (10.0, "a"), (20.0, "a"), (2_400.0, "a")];
    let (late, end) = ((600.0, "a"), (3_660.0, "x"));
    check(few, &[&four[..], &[end]].concat(), &[4]);
    check(few, &[&four[..], &[late, end]].concat(), &[]);
    let many = "type: event_count, rules: [a], condition: {gte: 5}";
    check(many, &[&four[..], &[late]].concat(), &[5]);
    let alone = "type: temporal, rules: [a, b], condition: a and not b";
    check(alone, &[(0.0, "a"), (2_400.0, "x"), end], &[1]);
    check(alone, &[(0.0, "a"), (2_400.0, "x"), (600.0, "b"), end], &[]);
    // The one that is asked for may be late too, and opens its window.
    check(alone, &[(2_400.0, "x"), (600.0, "a"), (4_259.0, "x")], &[]);
    check(alone, &[(2_400.0, "x"), (600.0, "a"), (4_260.0, "x")], &[1]);
    check(alone, &[(2_400.0, "b"), (600.0, "a"), (6_060.0, "x")], &[]);
    let ordered = "type: temporal_ordered, rules: [a, b]";
    check(ordered, &[(2_400.0, "b"), (600.0, "a")], &[2]);
}

#[test]
fn an_event_whose_window_was_decided_opens_no_other() {
    let few = "type: event_count, rules: [a], condition: {lt: 3}";
    let full: Vec<(f64, &str)> = (0..10).map(|step| (f64::from(step) * 300.0, "a")).collect();
    let later = [(3_700.0, "x"), (1_800.0, "a"), (3_599.0, "a"), (9_000.0, "x"), (20_000.0, "x")];
    check(few, &[&full[..], &later].concat(), &[]);
    // One after it does.
    let later = [(3_700.0, "x"), (3_600.0, "a"), (9_000.0, "x"), (20_000.0, "x")];
    check(few, &[&full[..], &later].concat(), &[1]);
}

#[test]
fn an_event_that_time_has_passed_by_a_span_makes_no_group() {
    for condition in ["{lt: 5}", "{gte: 2}"] {
        let section = format!("type: event_count, rules: [a], group-by: [u], timespan: 1h, condition: {condition}");
        let mut operator = with(&section);
        assert_eq!(alerts(&mut operator, &stream(&[(10_000.0, "x"), (6_340.0, "a")])), []);
        assert_eq!(operator.correlation_groups().0, 0, "{condition}");
        assert_eq!(alerts(&mut operator, &stream(&[(6_341.0, "a")])), []);
        assert_eq!(operator.correlation_groups().0, 1, "{condition}");
        assert_eq!(
            alerts(&mut operator, &stream(&[(20_000.0, "x"), (30_000.0, "x")])).len(),
            usize::from(condition == "{lt: 5}")
        );
        assert_eq!(
            operator.correlation_groups().0,
            0,
            "{condition}: a group is forgotten a span after its last window"
        );
    }
}

#[test]
fn windows_that_are_over_at_once_are_decided_one_by_one_and_are_open_until_then() {
    let mut operator = with("type: event_count, rules: [a], group-by: [u], timespan: 10s, condition: {lt: 2}");
    let of = |id: String, time: f64, kind: &str, user: usize| Event {
        received: 1e6,
        ..at(&id, time, &[("k", kind), ("u", &format!("user {user}"))])
    };
    let first: Vec<Event> = (0..6).map(|user| of(format!("e{user}"), user as f64, "a", user)).collect();
    assert_eq!(alerts(&mut operator, &first), []);
    let mut groups = |id: &str, time: f64, kind: &str, user: usize| -> Vec<String> {
        alerts(&mut operator, &[of(id.into(), time, kind, user)]).into_iter().map(|alert| alert.group_key).collect()
    };
    // Receive time stands still, so that each row lets one be decided.
    assert_eq!(groups("x1", 1_000.0, "x", 9), ["u=user 0"]);
    assert_eq!(groups("x2", 1_000.0, "x", 9), ["u=user 1"]);
    // That of user 3 is still open, and that of user 1 is not.
    assert_eq!(groups("late 3", 8.0, "a", 3), ["u=user 2"]);
    assert_eq!(groups("late 1", 8.0, "a", 1), [""; 0], "the window of user 3 has two events");
    assert_eq!(groups("x3", 1_000.0, "x", 9), ["u=user 4"]);
    assert_eq!(groups("x4", 1_000.0, "x", 9), ["u=user 5"]);
    assert_eq!(groups("x5", 1_000.0, "x", 9), [""; 0]);
}
