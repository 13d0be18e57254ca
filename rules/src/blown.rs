//! Tests: a rule, a filter or a correlation that panics is parked, for those on whose events it does, and all others go on.

#[path = "../tests/it/stream.rs"]
mod stream;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tidegate_events::Alert;
use tidegate_pipeline::Operator;

use crate::panicked::REASON;
use crate::{RuleFile, RuleSet, RulesConfig, SigmaOperator};
use stream::{Event, alerts, at, batch, load, operator, process};

/// A rule with a title and a selection.
fn rule(id: &str, title: &str, selection: &str) -> String {
    format!(
        "title: {title}\nid: {id}\nlogsource: {{product: test}}\ndetection: {{s: {selection}, condition: s}}\n---\n"
    )
}

/// A rule that matches every event of which `k` is `a`.
fn good(id: &str) -> String {
    rule(id, "Good", "{k: a}")
}

/// A rule that matches where `f` has the word, and panics where it is hot besides.
fn bad(id: &str) -> String {
    rule(id, "Bad", "{f|re: 'fuse.*'}")
}

/// An event of a tenant: its id, and what is in `f`.
fn event(org: &str, id: &str, time: f64, f: &str) -> Event {
    Event { org: org.into(), ..at(id, time, &[("k", "a"), ("f", f), ("u", "kim")]) }
}

fn config() -> RulesConfig {
    RulesConfig { suppress_s: 0, rule_event_ns_max: u64::MAX, ..RulesConfig::default() }
}

/// `rule event event`, in order.
fn shown(alerts: &[Alert]) -> Vec<String> {
    alerts.iter().map(|alert| format!("{} {}", alert.rule_id, alert.event_ids.join(" "))).collect()
}

/// What is parked, as `rule tenant`.
fn parked(operator: &SigmaOperator) -> Vec<String> {
    let of = |own: &crate::Parked| {
        assert_eq!(own.reason, REASON);
        format!("{} {}", own.rule_id, own.org_id.as_deref().unwrap_or("everyone"))
    };
    assert_eq!(operator.status().read().parked, operator.parked());
    operator.parked().iter().map(of).collect()
}

fn restored(own: &SigmaOperator) -> SigmaOperator {
    let mut other = SigmaOperator::new(config()).expect("tables");
    other.restore(&own.save()).expect("a state");
    other
}

/// Two batches of events, the alerts of each, and what is parked after them; the same again after a restart between the two, with
/// the event of the first that was hot once more.
fn check(files: &[(&str, &str)], [first, second]: [&[Event]; 2], [one, two]: [&[&str]; 2], wanted: &[&str]) {
    let mut own = operator(config(), files);
    assert_eq!(shown(&process(&mut own, &batch(first))), one, "{files:?}");
    assert_eq!(parked(&own), wanted, "{files:?}");
    let mut other = restored(&own);
    assert_eq!(shown(&process(&mut own, &batch(second))), two, "{files:?}");
    assert_eq!(parked(&own), wanted, "{files:?}");
    // What a replay after a restart brings.
    assert_eq!(shown(&process(&mut other, &batch(first))), one, "after a restart: {files:?}");
    assert_eq!(parked(&other), wanted, "after a restart: {files:?}");
    assert_eq!(shown(&process(&mut other, &batch(second))), two, "after a restart: {files:?}");
}

#[test]
fn a_tenants_rule_that_panics_is_parked_and_its_neighbours_fire_once() {
    let first = [
        event("acme", "e1", 1.0, "calm"),
        event("acme", "e2", 2.0, "fuse hot"),
        event("acme", "e3", 3.0, "fuse"),
        event("zeta", "z1", 4.0, "fuse hot"),
    ];
    let second = [event("acme", "e4", 5.0, "fuse"), event("acme", "e5", 6.0, "fuse hot"), event("zeta", "z2", 7.0, "")];
    let everyone = good("g") + &good("h");
    let own = good("own") + &bad("bad");
    check(
        &[("default", &everyone), ("acme", &own), ("zeta", &good("z"))],
        [&first, &second],
        [
            &["g e1", "h e1", "own e1", "g e2", "h e2", "own e2", "g e3", "h e3", "own e3", "g z1", "h z1", "z z1"],
            &["g e4", "h e4", "own e4", "g e5", "h e5", "own e5", "g z2", "h z2", "z z2"],
        ],
        &["bad acme"],
    );
}

#[test]
fn a_rule_for_everyone_that_panics_is_parked_for_the_tenant_and_the_others_have_it() {
    let first = [
        event("acme", "e1", 1.0, "fuse hot"),
        event("acme", "e2", 2.0, "fuse"),
        event("zeta", "z1", 3.0, "fuse"),
        event("beta", "b1", 4.0, "calm"),
    ];
    let second =
        [event("zeta", "z2", 5.0, "fuse"), event("acme", "e3", 6.0, "fuse"), event("acme", "e4", 7.0, "fuse hot")];
    check(
        &[("default", &(bad("bad") + &good("g")))],
        [&first, &second],
        [&["g e1", "g e2", "bad z1", "g z1", "g b1"], &["bad z2", "g z2", "g e3", "g e4"]],
        &["bad acme"],
    );
}

#[test]
fn a_rule_for_everyone_that_panics_for_several_is_parked_for_all() {
    let mut own = operator(config(), &[("default", &(bad("bad") + &good("g")))]);
    for (nth, (org, wanted)) in [
        ("acme", &["bad acme"][..]),
        ("beta", &["bad acme", "bad beta"]),
        ("zeta", &["bad everyone", "bad acme", "bad beta"]),
    ]
    .into_iter()
    .enumerate()
    {
        let events = [event(org, "hot", nth as f64, "fuse hot"), event("calm", "c", nth as f64, "fuse")];
        let raised = shown(&process(&mut own, &batch(&events)));
        let still: &[&str] = if nth < 2 { &["g hot", "bad c", "g c"] } else { &["g hot", "g c"] };
        assert_eq!(raised, still, "{org}");
        assert_eq!(parked(&own), wanted, "{org}");
    }
    let many: Vec<Event> = ["a", "b", "c", "d"].iter().map(|org| event(org, org, 9.0, "fuse hot")).collect();
    let mut other = operator(config(), &[("default", &(bad("bad") + &good("g")))]);
    assert_eq!(shown(&process(&mut other, &batch(&many))), ["g a", "g b", "g c", "g d"]);
    assert_eq!(parked(&other), ["bad everyone"]);
}

#[test]
fn all_that_panic_are_found_at_once_whatever_they_are() {
    let filter = "title: F\nid: filter\nlogsource: {product: test}\nfilter:\n  rules: [kept]\n  s: {f|fieldref: hot}\n  condition: not s\n";
    let keyword =
        "title: K\nid: keyword\nlogsource: {product: test}\ndetection: {s: {'|re': 'fuse.*x'}, condition: s}\n---\n";
    let several: String = (0..5).map(|at| bad(&format!("b{at}"))).collect();
    // Rules that ask the same, keywords, one behind a `not`, and one that is not at fault though it reads the same.
    let not = rule("not", "N", "{k: a}").replace("condition: s", "n: {f|re: 'fuse.*'}, condition: s and not n");
    let same = rule("same", "S", "{f|contains: fuse}");
    let text = several + keyword + &not + &same + &good("kept") + filter;
    let hot = event("acme", "e1", 1.0, "fuse hot x");
    let wanted = ["b0 acme", "b1 acme", "b2 acme", "b3 acme", "b4 acme", "keyword acme", "not acme"];
    let next = event("acme", "e2", 2.0, "fuse");
    check(
        &[("acme", &text)],
        [std::slice::from_ref(&hot), std::slice::from_ref(&next)],
        [&["same e1", "kept e1"], &["same e2", "kept e2"]],
        &wanted,
    );
    let filter = filter.replace("s: {f|fieldref: hot}", "s: {f|re: 'fuse.*'}");
    let text = good("kept") + &good("other") + &filter;
    // A filter that is parked takes nothing away.
    check(
        &[("acme", &text)],
        [&[event("acme", "e0", 0.0, "calm"), hot], std::slice::from_ref(&next)],
        [&["kept e0", "other e0", "kept e1", "other e1"], &["kept e2", "other e2"]],
        &["filter acme"],
    );
}

#[test]
fn an_alert_that_cannot_be_written_is_raised_with_its_title_and_its_rule_is_parked() {
    let text = rule("bad", "A fuse", "{k: a}") + &good("g");
    let first = [event("acme", "e1", 1.0, ""), event("acme", "hot", 2.0, ""), event("acme", "e2", 3.0, "")];
    let second = [event("acme", "e3", 4.0, "")];
    let alerts = |files: &[(&str, &str)]| {
        check(
            files,
            [&first, &second],
            [&["bad e1", "g e1", "bad hot", "g hot", "bad e2", "g e2"], &["g e3"]],
            &["bad acme"],
        );
        process(&mut operator(config(), files), &batch(&first))
    };
    for org in ["acme", "default"] {
        let alerts = alerts(&[(org, &text)]);
        assert_eq!((alerts[2].message.as_str(), alerts[2].matched.as_str()), ("A fuse", "{}"));
        assert!(alerts[0].message.len() > alerts[2].message.len());
    }
}

#[test]
fn where_no_rule_is_at_fault_the_event_is_left_out() {
    let files = [("default", good("g")), ("acme", good("own"))];
    let files = files.each_ref().map(|(org, text)| (*org, text.as_str()));
    let list: Vec<Event> = (0..40)
        .map(|at| {
            event("acme", &if at % 13 == 5 { format!("burst-batch {at}") } else { format!("e{at}") }, f64::from(at), "")
        })
        .collect();
    let mut own = operator(config(), &files);
    let wanted: Vec<String> =
        (0..40).filter(|at| at % 13 != 5).flat_map(|at| [format!("g e{at}"), format!("own e{at}")]).collect();
    assert_eq!(shown(&process(&mut own, &batch(&list))), wanted);
    assert_eq!(parked(&own), [""; 0]);
    assert_eq!(shown(&process(&mut own, &batch(&[event("acme", "next", 50.0, "")]))), ["g next", "own next"]);
    // Where all events are, the operator is no good any more: the run loop parks it and says so.
    let all: Vec<Event> = (0..40).map(|at| event("acme", &format!("burst-batch {at}"), 60.0, "")).collect();
    assert!(catch_unwind(AssertUnwindSafe(|| process(&mut own, &batch(&all)))).is_err());
}

#[test]
fn a_rule_that_cannot_be_read_is_a_problem_and_the_others_are_loaded() {
    let text = good("g") + &rule("bad", "burst-compile", "{k: a}") + &good("h");
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("r.yml", text)], &RulesConfig::default()).expect("tables");
    assert_eq!(rules.rules().iter().map(|rule| rule.head.id.as_str()).collect::<Vec<_>>(), ["g", "h"]);
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert!(problem.rule == "bad" && problem.reason.contains("panicked"), "{problem}");
}

/// A correlation of the rule `g`.
fn correlation(id: &str, section: &str) -> String {
    format!("title: C\nid: {id}\ncorrelation: {{rules: [g], timespan: 20s, {section}}}\n---\n")
}

/// Events of two tenants, some of which make correlations of a kind panic.
fn mixed(hot: &str) -> Vec<Event> {
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let one = |nth: usize| {
        let time = (nth / 2) as f64 - random(8) as f64;
        let (org, user) = (["acme", "acme", "zeta"][random(3) as usize], ["kim", "lee"][random(2) as usize]);
        let source = ["test", "other"][random(2) as usize];
        let f = if org == "acme" && nth % 50 == 37 { hot } else { ["x", "y", "z"][random(3) as usize] };
        let fields = [("k", "a"), ("u", user), ("f", f)];
        Event {
            org: org.into(),
            source: source.into(),
            received: (nth / 2) as f64,
            ..at(&format!("e{nth}"), time, &fields)
        }
    };
    (0..600).map(one).collect()
}

/// The alerts of an operator over a stream, in batches of so many, saved and restored after each where asked.
fn run(files: &[(&str, &str)], list: &[Event], size: usize, through_restarts: bool) -> (Vec<String>, Vec<String>) {
    let mut own = operator(config(), files);
    let (mut found, mut told) = (Vec::new(), BTreeSet::new());
    for part in list.chunks(size) {
        found.extend(process(&mut own, &batch(part)).iter().map(|alert| format!("{} {alert:?}", alert.org_id)));
        told.extend(parked(&own));
        if through_restarts {
            own = restored(&own);
        }
    }
    (found, told.into_iter().collect())
}

#[test]
fn correlations_go_on_beside_one_that_panics_as_if_it_were_not_there() {
    let others = correlation("count", "type: event_count, group-by: [u], condition: {gte: 4}")
        + &correlation("few", "type: event_count, group-by: [u], condition: {lt: 6}")
        + &correlation("values", "type: value_count, group-by: [u], condition: {field: f, gte: 3}");
    for (place, section) in [
        ("insert", "type: event_count, group-by: [f], condition: {gte: 2}"),
        ("insert", "type: value_count, group-by: [f], condition: {field: u, lt: 3}"),
        ("close", "type: event_count, group-by: [f], condition: {lt: 2}"),
        ("measure", "type: value_count, group-by: [u], condition: {field: f, gte: 2}"),
    ] {
        let list = mixed(&format!("burst-{place}"));
        for org in ["acme", "default"] {
            let (base, bad) = (good("g") + &others, correlation("bad", section));
            let bad = format!("{}{bad}", if org == "acme" { good("own") } else { String::new() });
            // A tenant's correlation sees its own rules only.
            let bad = if org == "acme" { bad.replace("rules: [g]", "rules: [own]") } else { bad };
            let with = [("default", base.as_str()), (org, bad.as_str())];
            let without = [("default", base.as_str())];
            let of_others = |found: Vec<String>| -> Vec<String> {
                let bad = ["rule_id: \"bad\"", "rule_id: \"own\""];
                found.into_iter().filter(|alert| bad.iter().all(|bad| !alert.contains(bad))).collect()
            };
            // `values` meets the same event.
            let of_others = |found: Vec<String>| -> Vec<String> {
                let values = place == "measure";
                of_others(found)
                    .into_iter()
                    .filter(|alert| !(values && alert.contains("rule_id: \"values\"")))
                    .collect()
            };
            let (wanted, _) = run(&without, &list, 600, false);
            let wanted = of_others(wanted);
            assert!(wanted.len() > 20, "{wanted:?}");
            for (size, through_restarts) in [(1, false), (7, false), (600, false), (7, true)] {
                let (found, told) = run(&with, &list, size, through_restarts);
                let bad_of = |org: &str| {
                    let own = |alert: &&String| alert.starts_with(org) && alert.contains("rule_id: \"bad\"");
                    found.iter().filter(own).count()
                };
                assert!(told.contains(&"bad acme".to_owned()), "{section}: {told:?}");
                assert!(!told.iter().any(|parked| parked.starts_with("bad") && parked != "bad acme"), "{told:?}");
                if org == "default" {
                    assert!(bad_of("zeta") > 3, "{section}: it goes on for the others");
                }
                assert_eq!(of_others(found), wanted, "{section} of {org}, {size} at a time, {through_restarts}");
            }
        }
    }
}

#[test]
fn a_correlation_that_panics_for_many_tenants_stops_for_all() {
    let text = good("g") + &correlation("bad", "type: event_count, group-by: [f], condition: {gte: 2}");
    let mut own = operator(config(), &[("default", &text)]);
    for nth in 0..9 {
        alerts(&mut own, &[event(&format!("t{nth}"), "e", f64::from(nth), "burst-insert")]);
    }
    assert_eq!(parked(&own).len(), 9);
    assert_eq!(parked(&own).last().map(String::as_str), Some("bad everyone"));
    let two = [event("calm", "e1", 10.0, "x"), event("calm", "e2", 11.0, "x")];
    assert_eq!(shown(&alerts(&mut own, &two)), [""; 0]);
    // Rules that are changed run again.
    load(&mut own, &[("default", &text), ("acme", &good("new"))]);
    assert_eq!(
        shown(&alerts(&mut own, &[event("calm", "e3", 12.0, "x"), event("calm", "e4", 13.0, "x")])),
        ["bad e3 e4"]
    );
    assert_eq!(parked(&own), [""; 0]);
}
