//! Rules that are slow on the events of one tenant.

use std::fmt::Write;
use std::sync::Arc;

use tidegate_pipeline::LogBatch;
use tidegate_rules::RulesConfig;

use crate::stream::{Event, at, batch, operator, process};

/// Keeps the automaton of the rule `slow` busy: see `hogs`.
fn busy(number: usize) -> String {
    let mut state = number as u64 + 1;
    let mut text = format!("xa{number} ");
    for place in 0..400 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let letter = if place % 16 == 0 { 'x' } else { ['a', 'b', 'x'][(state >> 60) as usize % 3] };
        let _ = text.write_char(letter);
    }
    text
}

const SLOW: &str = "title: Slow\nid: slow\nlogsource: {product: test}\n\
    detection: {s: {f|re: 'a[abx]{150}[ab]{20}'}, n: {f: needle}, condition: s or n}\n";

/// A tenant; `None` for all.
type Tenant = Option<Arc<str>>;

/// Rounds of events of the tenants that say so with busy values, and one that matches of each at the end.
fn run(tenants: &[(&str, bool)]) -> (Vec<String>, Vec<(String, Tenant)>) {
    let mut operator = operator(RulesConfig { suppress_s: 0, ..RulesConfig::default() }, &[("default", SLOW)]);
    let of =
        |org: &str, id: &str, value: &str| Event { org: org.into(), ..at(&format!("{org}{id}"), 1.0, &[("f", value)]) };
    // Made before they are timed: what a rule may take is a part of the time that goes by.
    let round = |round: usize| {
        let event = |number: usize| {
            let (org, is_busy) = tenants[number % tenants.len()];
            let number = round * 200 + number;
            of(org, &number.to_string(), &if is_busy { busy(number) } else { format!("calm {number}") })
        };
        batch(&(0..200).map(event).collect::<Vec<_>>())
    };
    let rounds: Vec<LogBatch> = (0..60).map(round).collect();
    rounds.iter().for_each(|batch| drop(process(&mut operator, batch)));
    let last: Vec<Event> = tenants.iter().map(|(org, _)| of(org, "last", "needle")).collect();
    let found = process(&mut operator, &batch(&last)).into_iter().map(|alert| alert.org_id).collect();
    let parked = operator.parked().iter().map(|parked| (parked.rule_id.clone(), parked.org_id.clone())).collect();
    (found, parked)
}

#[test]
fn a_rule_that_one_tenants_events_make_slow_goes_on_for_the_others() {
    let (found, parked) = run(&[("acme", false), ("bad", true), ("zeta", false)]);
    assert_eq!(parked, [("slow".to_owned(), Some(Arc::from("bad")))]);
    assert_eq!(found, ["acme", "zeta"]);
}

#[test]
fn a_rule_that_is_slow_for_all_is_parked_for_all() {
    let (found, parked) = run(&[("acme", true), ("zeta", true)]);
    assert_eq!(parked, [("slow".to_owned(), None)]);
    assert_eq!(found, [""; 0]);
}

#[test]
fn a_filter_that_is_slow_is_parked_for_its_tenant_and_said_to_be() {
    let rule = "title: A\nid: a\nlogsource: {product: test}\ndetection: {s: {g: w}, condition: s}\n";
    let filter = "title: F\nid: filter\nlogsource: {product: test}\n\
        filter: {rules: [a], s: {f|re: 'a[abx]{150}[ab]{20}'}, condition: not s}\n";
    let mut operator =
        operator(RulesConfig { suppress_s: 0, ..RulesConfig::default() }, &[("default", rule), ("acme", filter)]);
    let round = |round: usize| {
        let event = |number: usize| at(&format!("{number}"), 1.0, &[("f", &busy(round * 200 + number)), ("g", "w")]);
        batch(&(0..200).map(event).collect::<Vec<_>>())
    };
    let rounds: Vec<LogBatch> = (0..60).map(round).collect();
    rounds.iter().for_each(|batch| drop(process(&mut operator, batch)));
    let parked: Vec<_> = operator.parked().iter().map(|parked| (&*parked.rule_id, parked.org_id.as_deref())).collect();
    assert_eq!(parked, [("filter", Some("acme"))]);
}
