//! Rules that are slow on the events of one tenant.

use std::sync::Arc;
use std::time::Duration;

use tidegate_pipeline::LogBatch;
use tidegate_pipeline::clock::thread_cpu;
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::hogs::letters;
use crate::stream::{Event, at, batch, load, operator, process};

/// Keeps the automaton of the rule `slow` busy.
fn busy(number: usize) -> String {
    letters(number, 400)
}

const SLOW: &str = "title: Slow\nid: slow\nlogsource: {product: test}\n\
    detection: {s: {f|re: 'a[abx]{150}[ab]{20}'}, n: {f: needle}, condition: s or n}\n";

/// A tenant; `None` for all.
type Tenant = Option<Arc<str>>;

/// Every match is an alert.
fn unsuppressed() -> RulesConfig {
    RulesConfig { suppress_s: 0, ..RulesConfig::default() }
}

fn of(org: &str, id: &str, fields: &[(&str, &str)]) -> Event {
    Event { org: org.into(), ..at(&format!("{org}{id}"), 1.0, fields) }
}

/// Rounds of events, made before they are timed: what a rule may take is a part of the time that goes by.
fn rounds(rounds: usize, events: usize, event: impl Fn(usize) -> Event) -> Vec<LogBatch> {
    let round = |round: usize| batch(&(0..events).map(|at| event(round * events + at)).collect::<Vec<_>>());
    (0..rounds).map(round).collect()
}

fn parked(operator: &SigmaOperator) -> Vec<(&str, Option<&str>)> {
    operator.parked().iter().map(|parked| (&*parked.rule_id, parked.org_id.as_deref())).collect()
}

/// Rounds of events of the tenants that say so with busy values, and one that matches of each at the end.
fn run(tenants: &[(&str, bool)]) -> (Vec<String>, Vec<(String, Tenant)>) {
    let mut operator = operator(unsuppressed(), &[("default", SLOW)]);
    let event = |number: usize| {
        let (org, is_busy) = tenants[number % tenants.len()];
        let value = if is_busy { busy(number) } else { format!("calm {number}") };
        of(org, &number.to_string(), &[("f", &value)])
    };
    rounds(60, 200, event).iter().for_each(|batch| drop(process(&mut operator, batch)));
    let last: Vec<Event> = tenants.iter().map(|(org, _)| of(org, "last", &[("f", "needle")])).collect();
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

#[test]
fn one_large_event_of_a_tenant_among_many_busy_ones_is_found() {
    let mut operator = operator(unsuppressed(), &[("default", SLOW)]);
    let event = |number: usize| match number % 200 {
        0 => of("small", &number.to_string(), &[("f", &letters(number, 64 << 10))]),
        place => of(&format!("busy{}", place % 12), &number.to_string(), &[("f", &format!("calm {number}"))]),
    };
    rounds(16, 200, event).iter().for_each(|batch| drop(process(&mut operator, batch)));
    assert_eq!(parked(&operator), [("slow", Some("small"))]);
}

#[test]
fn events_of_another_log_source_that_make_a_rule_slow_park_it_for_their_tenant() {
    let other = "title: O\nid: o\nlogsource: {product: other}\ndetection: {s: {f: nothing}, condition: s}\n";
    let gated = SLOW.replace("s: {f|re", "s: {g: w, f|re").replace("slow", "gated").replace("Slow", "Gated");
    for rule in [SLOW, &gated] {
        let mut operator = operator(unsuppressed(), &[("default", rule), ("default", other)]);
        let event = |number: usize| match number % 2 {
            0 => Event { source: "other".into(), ..of("bad", &number.to_string(), &[("f", &busy(number))]) },
            _ => of("acme", &number.to_string(), &[("f", &format!("calm {number}"))]),
        };
        rounds(60, 200, event).iter().for_each(|batch| drop(process(&mut operator, batch)));
        let id = if rule == SLOW { "slow" } else { "gated" };
        assert_eq!(parked(&operator), [(id, Some("bad"))]);
    }
}

#[test]
fn a_filter_for_everyone_that_one_tenants_events_make_slow_goes_on_for_the_others() {
    let rule = "title: A\nid: a\nlogsource: {product: test}\ndetection: {s: {g: w}, condition: s}\n";
    let filter = "title: F\nid: filter\nlogsource: {product: test}\n\
        filter: {rules: [a], s: {f|re: 'a[abx]{150}[ab]{20}'}, condition: not s}\n";
    let mut operator = operator(unsuppressed(), &[("default", rule), ("default", filter)]);
    let event = |number: usize| {
        let (org, value) =
            if number.is_multiple_of(2) { ("bad", busy(number)) } else { ("acme", format!("calm {number}")) };
        of(org, &number.to_string(), &[("f", &value), ("g", "w")])
    };
    rounds(60, 200, event).iter().for_each(|batch| drop(process(&mut operator, batch)));
    assert_eq!(parked(&operator), [("filter", Some("bad"))]);
    let harmless = format!("a{}", "b".repeat(170));
    let last = ["acme", "bad"].map(|org| of(org, "last", &[("f", &harmless), ("g", "w")]));
    // Seconds of receive time apart from the others, which were told of up to the bound.
    let last = last.map(|event| Event { received: 1000.0, ..event });
    let alerts = process(&mut operator, &batch(&last));
    let is_told = |org: &str| alerts.iter().any(|alert| alert.event_ids.contains(&format!("{org}last")));
    assert_eq!((is_told("bad"), is_told("acme")), (true, false), "the filter is in force for the others");
}

#[test]
fn what_is_parked_stays_so_when_others_change_their_rules() {
    let quick = |value: &str| {
        format!("title: Q\nid: q\nlogsource: {{product: test}}\ndetection: {{s: {{g: {value}}}, condition: s}}\n")
    };
    for (tenants, wanted) in
        [(&[("acme", true), ("zeta", true)][..], None), (&[("acme", false), ("bad", true)], Some("bad"))]
    {
        let mut operator = operator(unsuppressed(), &[("default", SLOW), ("zeta", &quick("a"))]);
        let event = |number: usize| {
            let (org, is_busy) = tenants[number % tenants.len()];
            let value = if is_busy { busy(number) } else { format!("calm {number}") };
            of(org, &number.to_string(), &[("f", &value)])
        };
        rounds(60, 200, event).iter().for_each(|batch| drop(process(&mut operator, batch)));
        assert_eq!(parked(&operator), [("slow", wanted)]);
        let calm = batch(&[of("acme", "calm", &[("f", "calm"), ("g", "b")])]);
        load(&mut operator, &[("default", SLOW), ("zeta", &quick("b"))]);
        process(&mut operator, &calm);
        assert_eq!(parked(&operator), [("slow", wanted)], "another rule changed");
        load(&mut operator, &[("default", &SLOW.replace("Slow", "Slow one")), ("zeta", &quick("b"))]);
        process(&mut operator, &calm);
        assert_eq!(parked(&operator), [("slow", wanted)], "it asks the same");
        load(&mut operator, &[("default", &SLOW.replace("s or n", "s and n")), ("zeta", &quick("b"))]);
        process(&mut operator, &calm);
        assert_eq!(parked(&operator), [], "it asks something else");
    }
}

/// What telling of a match takes is the rule's too.
#[test]
fn a_rule_whose_alerts_take_long_is_parked() {
    let rule = "title: Slow\nid: slow\nlogsource: {product: test}\n\
        detection: {s: {f|re: 'a[abx]{150}[ab]{20}zz'}, condition: s}\n";
    let mut operator = operator(unsuppressed(), &[("acme", rule)]);
    // The value is known from the first event on, so that to evaluate the others takes no time.
    let value = format!("{}a{}zz", letters(1, 256 << 10), "b".repeat(170));
    for number in 0..100 {
        process(&mut operator, &batch(&[of("acme", &number.to_string(), &[("f", &value)])]));
        if !operator.parked().is_empty() {
            break;
        }
    }
    assert_eq!(parked(&operator), [("slow", Some("acme"))]);
}

#[test]
fn an_alert_of_thousands_of_keywords_takes_no_long_time() {
    let words: Vec<String> = (0..10_000).map(|at| format!("keyword{at}z")).collect();
    let rule = format!(
        "title: Words\nid: words\nlogsource: {{product: test}}\ndetection: {{s: [{}], condition: s}}\n",
        words.join(", ")
    );
    let mut operator = operator(unsuppressed(), &[("default", &rule)]);
    for (bytes, is_shown) in [(1 << 10, true), (256 << 10, false)] {
        let value = format!("{} keyword9999z", letters(1, bytes));
        let events = batch(&[of("acme", &bytes.to_string(), &[("f", &value), ("g", "keyword9998z")])]);
        let started = thread_cpu();
        let alerts = process(&mut operator, &events);
        let took = thread_cpu() - started;
        assert!(took < Duration::from_secs(4), "{bytes}: {took:?}");
        let [alert] = alerts.as_slice() else { panic!("{} alerts", alerts.len()) };
        assert_eq!(alert.matched.contains("keyword9999z"), is_shown, "{bytes}: {}", alert.matched);
    }
    assert_eq!(parked(&operator), []);
}
