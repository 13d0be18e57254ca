//! A clock that is set: windows by event time are right before, meanwhile and after, and the same after a restart.

use tidegate_events::Alert;
use tidegate_pipeline::Operator;
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::correlation::{base, correlation};
use crate::stream::{Event, alerts, at, operator};

const DAY: f64 = 86_400.0;
const NOON: f64 = 1_000_000.0;

/// Events as (seconds after noon by the right clock, how wrong the clock is by which it is received, kind), without a time of their
/// own.
type Stream<'a> = [(f64, f64, &'a str)];

fn stream(list: &Stream<'_>) -> Vec<Event> {
    let event = |(place, (time, wrong, kind)): (usize, &(f64, f64, &str))| {
        let (kind, source) = kind.split_once(' ').unwrap_or((*kind, "test"));
        let event = at(&format!("e{place}"), NOON + time + wrong, &[("k", kind), ("u", "kim")]);
        Event { source: source.into(), ..event }
    };
    list.iter().enumerate().map(event).collect()
}

fn with(section: &str) -> SigmaOperator {
    let config = RulesConfig { suppress_s: 300, ..RulesConfig::default() };
    let section = format!("{section}, group-by: [u], timespan: 1m");
    operator(config, &[("default", &(base(&["a", "b", "z"]) + &correlation(&section)))])
}

fn shown(alerts: &[Alert]) -> Vec<String> {
    alerts.iter().map(|alert| format!("{} {}", alert.rule_id, alert.event_ids.join(" "))).collect()
}

/// The alerts of a correlation over a minute, whether the operator goes through a checkpoint at any of the events or not.
fn check(section: &str, list: &Stream<'_>, wanted: &[&str]) {
    let events = stream(list);
    assert_eq!(shown(&alerts(&mut with(section), &events)), wanted, "{section}: {list:?}");
    for cut in 0..events.len() {
        let mut own = with(section);
        let mut found = alerts(&mut own, &events[..cut]);
        let mut other = SigmaOperator::new(RulesConfig { suppress_s: 300, ..RulesConfig::default() }).expect("tables");
        other.restore(&own.save()).expect("a state");
        found.extend(alerts(&mut other, &events[cut..]));
        assert_eq!(shown(&found), wanted, "restored before event {cut}: {section}: {list:?}");
    }
}

const THREE: &str = "type: event_count, rules: [a], condition: {gte: 3}";
const FEW: &str = "type: event_count, rules: [a], condition: {lt: 3}";

#[test]
fn a_count_is_right_after_a_day_ahead_and_back() {
    let after = [(10.0, 0.0, "a"), (15.0, 0.0, "a"), (20.0, 0.0, "a")];
    for ahead in [121.0, 3_600.0, DAY, 30.0 * DAY] {
        check(THREE, &[&[(0.0, ahead, "x")], &after[..]].concat(), &["c e1 e2 e3"]);
        check(THREE, &[&[(0.0, 0.0, "x"), (1.0, ahead, "x")], &after[..]].concat(), &["c e2 e3 e4"]);
        // Of another source, or only of others.
        check(THREE, &[&[(0.0, 0.0, "x"), (1.0, ahead, "x other")], &after[..]].concat(), &["c e2 e3 e4"]);
        // An event of the same group; and one before it: what is in doubt is not forgotten.
        check(THREE, &[&[(0.0, ahead, "a")], &after[..]].concat(), &["c e1 e2 e3"]);
        check(THREE, &[&[(0.0, 0.0, "a"), (1.0, ahead, "x")], &after[..2]].concat(), &["c e0 e2 e3"]);
        // Those of the wrong time are together as well.
        let wrong = [(1.0, ahead, "a"), (2.0, ahead, "a"), (3.0, ahead, "a")];
        check(THREE, &[&wrong[..], &after[..]].concat(), &["c e0 e1 e2", "c e3 e4 e5"]);
    }
}

#[test]
fn a_count_is_right_while_the_clock_is_a_day_behind_and_after_it() {
    let three = |at: f64, wrong: f64| [(at, wrong, "a"), (at + 5.0, wrong, "a"), (at + 10.0, wrong, "a")];
    check(
        THREE,
        &[&three(0.0, 0.0)[..], &three(20.0, -DAY), &three(100.0, 0.0)].concat(),
        &["c e0 e1 e2", "c e3 e4 e5", "c e6 e7 e8"],
    );
    // A group that fired is quiet for a span, also when its clock was wrong in between.
    check(THREE, &[&three(0.0, 0.0)[..], &[(20.0, -DAY, "x")], &three(30.0, 0.0)].concat(), &["c e0 e1 e2"]);
    check(THREE, &[&three(0.0, 0.0)[..], &[(20.0, DAY, "x")], &three(30.0, 0.0)].concat(), &["c e0 e1 e2"]);
    // What began before and goes on afterwards is one window.
    check(THREE, &[(0.0, 0.0, "a"), (5.0, -DAY, "x"), (10.0, 0.0, "a"), (15.0, 0.0, "a")], &["c e0 e2 e3"]);
}

#[test]
fn a_window_that_a_clock_ended_early_does_not_fire_twice() {
    // Ended by the clock that is ahead; its events come when that is right again.
    let ended = [(0.0, 0.0, "a"), (5.0, DAY, "x"), (5.5, DAY, "x")];
    check(FEW, &[&ended[..], &[(10.0, 0.0, "a"), (20.0, 0.0, "x"), (300.0, 0.0, "x")]].concat(), &["c e0"]);
    // The next one counts.
    check(FEW, &[&ended[..], &[(70.0, 0.0, "a"), (300.0, 0.0, "x"), (301.0, 0.0, "x")]].concat(), &["c e0", "c e3"]);
    // Ended by the return of a clock that was behind.
    check(FEW, &[(0.0, -DAY, "a"), (5.0, 0.0, "x"), (6.0, 0.0, "x"), (300.0, 0.0, "x"), (301.0, 0.0, "x")], &["c e0"]);
    // Open when the clock went back, and ended when it was right again.
    check(
        FEW,
        &[(0.0, 0.0, "a"), (5.0, -DAY, "a"), (6.0, 0.0, "x"), (300.0, 0.0, "x"), (301.0, 0.0, "x")],
        &["c e1", "c e0"],
    );
}

#[test]
fn a_rule_whose_group_was_raised_by_a_clock_ahead_is_not_quiet_until_then() {
    let raised = |list: &Stream<'_>, wanted: &[&str]| check(THREE, list, wanted);
    // Five minutes of quiet by the wrong clock are not a day and five minutes of the right one.
    raised(&[(0.0, DAY, "z"), (10.0, 0.0, "z"), (20.0, 0.0, "z")], &["id-z e0", "id-z e1"]);
    // What was counted by then is told.
    raised(&[(0.0, DAY, "z"), (1.0, DAY, "z"), (10.0, 0.0, "z")], &["id-z e0", "id-z e1", "id-z e2"]);
    // And the follow-up comes in its time.
    raised(
        &[(0.0, DAY, "z"), (10.0, 0.0, "z"), (20.0, 0.0, "z"), (400.0, 0.0, "x")],
        &["id-z e0", "id-z e1", "id-z e2"],
    );
    // A clock that is behind.
    raised(&[(0.0, 0.0, "z"), (1.0, -DAY, "z"), (2.0, 0.0, "z")], &["id-z e0", "id-z e1", "id-z e2"]);
}
