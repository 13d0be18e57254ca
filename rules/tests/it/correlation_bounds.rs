//! Hostile streams against correlations: what they may take of time and memory, and of other tenants.
//!
//! `TIDEGATE_CORRELATION_LATE` (default 4,000) is how many late events a group gets.

use tidegate_pipeline::Operator;
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::correlation::{base, correlation};
use crate::stream::{Event, alerts, at, batch, operator, process};
use crate::suppression::changes;

#[test]
fn events_from_last_to_first_cost_each_about_the_same() {
    #[expect(clippy::disallowed_methods, reason = "the size of a test on demand")]
    let wanted = std::env::var("TIDEGATE_CORRELATION_LATE");
    let count: u32 = wanted.ok().and_then(|count| count.parse().ok()).unwrap_or(4_000);
    let sections = [
        "type: event_count, rules: [a], timespan: 1h, condition: {gte: 9999}",
        "type: event_count, rules: [a], timespan: 1h, condition: {lt: 2}",
        "type: value_median, rules: [a], timespan: 1h, condition: {field: v, gte: 5}",
        "type: value_percentile, rules: [a], timespan: 1h, condition: {field: v, percentile: 90, lt: 0}",
        "type: temporal_ordered, rules: [a, b, c], timespan: 1h",
        "type: temporal, rules: [a, b], timespan: 1h, condition: a and not b",
    ];
    let text: String = sections
        .iter()
        .enumerate()
        .map(|(number, section)| correlation(section).replace("id: c\n", &format!("id: c{number}\n")))
        .collect();
    let mut operator = operator(RulesConfig::default(), &[("default", &(base(&["a", "b", "c"]) + &text))]);
    let event = |number: u32| {
        let time = 10_000.0 - f64::from(number) * (59.0 / f64::from(count));
        let value = if number.is_multiple_of(2) { "1" } else { "9" };
        at(&format!("e{number}"), time, &[("k", "a"), ("v", value)])
    };
    let list: Vec<Event> = (0..count).map(event).collect();
    list.chunks(500).for_each(|events| drop(process(&mut operator, &batch(events))));
    // And as many of one moment, as logs bring them that tell time in seconds.
    let same: Vec<Event> =
        list.iter().map(|event| Event { id: format!("same {}", event.id), time: 10_000.0, ..event.clone() }).collect();
    same.chunks(500).for_each(|events| drop(process(&mut operator, &batch(events))));
    let again = same.iter().take(100).cloned().collect::<Vec<_>>();
    let (groups, bytes) = operator.correlation_groups();
    process(&mut operator, &batch(&again));
    assert_eq!(operator.correlation_groups(), (groups, bytes), "the same events once more are none");
    let (_, steps) = operator.correlation_work();
    let bound = 2 * u64::from(count) * sections.len() as u64 * 2_000;
    assert!(steps < bound, "{steps} steps for {count} events and {} correlations", sections.len());
    println!("{} steps for each event", steps / u64::from(count));
}

#[test]
fn timers_of_forgotten_groups_go_with_them() {
    for condition in ["{gte: 5}", "{lt: 5}"] {
        let section = format!("type: event_count, rules: [a], group-by: [u], timespan: 10d, condition: {condition}");
        let config = RulesConfig { correlation_groups_max: 100, ..RulesConfig::default() };
        let mut operator = operator(config, &[("default", &(base(&["a"]) + &correlation(&section)))]);
        let event = |number: u32| at(&format!("e{number}"), 1.0, &[("k", "a"), ("u", &format!("user {number}"))]);
        let list: Vec<Event> = (0..3_000).map(event).collect();
        process(&mut operator, &batch(&list));
        assert_eq!(operator.correlation_groups().0, 100);
        let (timers, _) = operator.correlation_work();
        assert!(timers <= 300, "{timers} timers for 100 groups");
    }
}

#[test]
fn a_tenant_that_takes_much_memory_loses_its_own_groups_not_those_of_others() {
    // The large tenant has its memory in ten correlations, each with less than the one of the small tenant.
    let one = |number: usize| {
        let section = "type: event_count, rules: [a], group-by: [u], timespan: 1d, condition: {gte: 2}";
        correlation(section).replace("id: c\n", &format!("id: c{number}\n"))
    };
    let own = base(&["b"])
        + &correlation("type: event_count, rules: [b], group-by: [u], timespan: 1d, condition: {gte: 2}")
            .replace("id: c\n", "id: small\n");
    let files = [("default", base(&["a"])), ("large", (0..10).map(one).collect()), ("small", own)];
    let files: Vec<(&str, &str)> = files.iter().map(|(org, text)| (*org, text.as_str())).collect();
    let config = RulesConfig { correlation_bytes_max: 1 << 20, alerts_per_second_max: 1_000, ..RulesConfig::default() };
    let mut operator = operator(config, &files);
    let of = |org: &str, kind: &str, number: u32| Event {
        org: org.into(),
        ..at(&format!("{org}{kind}{number}"), 1.0, &[("k", kind), ("u", &format!("user {number}"))])
    };
    let few: Vec<Event> = (0..400).map(|number| of("small", "b", number)).collect();
    process(&mut operator, &batch(&few));
    for round in 0..10 {
        let many: Vec<Event> = (0..300).map(|number| of("large", "a", round * 300 + number)).collect();
        process(&mut operator, &batch(&many));
    }
    let again: Vec<Event> =
        (0..400).map(|number| Event { id: format!("again {number}"), ..few[number].clone() }).collect();
    let fired = alerts(&mut operator, &again).into_iter().filter(|alert| alert.rule_id == "small").count();
    assert_eq!(fired, 400, "groups of the small tenant were forgotten for the large one");
}

#[test]
fn groups_that_do_not_fit_into_a_checkpoint_are_left_out_the_oldest_first() {
    let section = "type: event_count, rules: [a], group-by: [u], timespan: 1d, condition: {gte: 2}";
    let text = base(&["a"]) + &correlation(section);
    let config = RulesConfig { state_bytes_max: 40_000, ..RulesConfig::default() };
    let mut operator = operator(config.clone(), &[("default", &text)]);
    let of = |id: &str, number: u32| at(&format!("{id}{number}"), 1.0, &[("k", "a"), ("u", &format!("user {number}"))]);
    let list: Vec<Event> = (0..2_000).map(|number| of("first", number)).collect();
    process(&mut operator, &batch(&list));
    let state = operator.save();
    assert!(state.len() <= 40_000 && state.len() > 20_000, "{}", state.len());
    let mut restored = SigmaOperator::new(config).expect("tables");
    restored.restore(&state).expect("a state");
    let mut again = |number: u32| alerts(&mut restored, &[of("again", number)]).len();
    assert_eq!((again(0), again(1_999)), (0, 1));
}

#[test]
fn a_correlation_that_a_tenant_turned_off_is_as_if_it_were_not_there() {
    let count = |id: &str, of: &str| {
        correlation(&format!("type: event_count, rules: [{of}], timespan: 10s, condition: {{gte: 2}}"))
            .replace("id: c\n", &format!("id: {id}\n"))
    };
    let closing = correlation("type: event_count, rules: [b], timespan: 10s, condition: {lt: 5}")
        .replace("id: c\n", "id: closing\n");
    let text = base(&["a", "b"]) + &count("c", "a") + &count("chained", "c").replace("10s", "60s") + &closing;
    let mut operator = operator(RulesConfig { suppress_s: 0, ..RulesConfig::default() }, &[("default", &text)]);
    let of = |org: &str, kind: &str, time: f64| Event {
        org: org.into(),
        ..at(&format!("{org}{kind}{time}"), time, &[("k", kind)])
    };
    // The window of the closing one is open when it is turned off.
    assert_eq!(alerts(&mut operator, &[of("acme", "b", 1.0), of("zeta", "b", 1.0)]), []);
    let off = ["c", "closing"].map(|id| ("acme", "rule_off", id, "create", "{}".to_owned()));
    process(&mut operator, &changes(&off));
    let list: Vec<Event> = (0..4)
        .flat_map(|step| {
            let time = 2.0 + 11.0 * f64::from(step / 2) + f64::from(step % 2);
            [of("acme", "a", time), of("zeta", "a", time)]
        })
        .chain([of("acme", "x", 200.0), of("zeta", "x", 200.0)])
        .collect();
    let mut found: Vec<String> =
        alerts(&mut operator, &list).iter().map(|alert| format!("{} {}", alert.org_id, alert.rule_id)).collect();
    found.sort();
    let own = ["acme id-a"; 4];
    assert_eq!(found, [own.as_slice(), &["zeta chained", "zeta closing"]].concat());
}

#[test]
fn large_groups_give_the_same_alerts_wherever_they_are_saved_and_restored() {
    let sections = [
        "type: event_count, rules: [a], timespan: 20s, condition: {gte: 120}",
        "type: value_sum, rules: [a], timespan: 20s, condition: {field: v, gte: 190}",
        "type: value_median, rules: [a], timespan: 5s, condition: {field: v, gte: 2}",
        "type: value_count, rules: [a], timespan: 20s, condition: {field: u, gte: 70}",
        "type: temporal_ordered, rules: [a, b, c], timespan: 2s",
        "type: temporal, rules: [a, b, c], timespan: 9s, condition: a and b and not c",
    ];
    let one = |(number, section): (usize, &&str)| correlation(section).replace("id: c\n", &format!("id: c{number}\n"));
    let text = base(&["a", "b", "c"]) + &sections.iter().enumerate().map(one).collect::<String>();
    let config = RulesConfig { correlation_group_events_max: 300, ..RulesConfig::default() };
    let mut random = 5u64;
    let mut below = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let list: Vec<Event> = (0..2_500u32)
        .map(|number| {
            let time = 1_000.0 + f64::from(number) / 10.0 - if below(2) == 0 { below(500) as f64 / 10.0 } else { 0.0 };
            let kind = ["a", "a", "a", "a", "b", "c"][below(6) as usize];
            // Now and then a number that is no exact amount.
            let value = if below(400) == 0 { "1e-20".to_owned() } else { below(4).to_string() };
            at(&format!("e{number}"), time, &[("k", kind), ("v", &value), ("u", &below(200).to_string())])
        })
        .collect();
    let run = |pieces: usize, restored: bool| {
        let mut own = operator(config.clone(), &[("default", &text)]);
        let mut found = Vec::new();
        for events in list.chunks(pieces) {
            found.extend(process(&mut own, &batch(events)));
            if restored {
                let state = own.save();
                own = SigmaOperator::new(config.clone()).expect("tables");
                own.restore(&state).expect("a state");
            }
        }
        found
    };
    let whole = run(2_500, false);
    for (number, section) in sections.iter().enumerate() {
        assert!(whole.iter().any(|alert| alert.rule_id == format!("c{number}")), "{section}");
    }
    assert_eq!(run(61, true), whole);
}

#[test]
fn what_has_no_groups_any_more_gives_its_place_to_others_and_neither_sees_the_others_groups() {
    let count = |id: &str, count: u32| {
        correlation(&format!(
            "type: event_count, rules: [a], group-by: [u], timespan: {count}0s, condition: {{gte: {count}}}"
        ))
        .replace("id: c\n", &format!("id: {id}\n"))
    };
    let text = base(&["a"]) + &count("two", 2) + &count("three", 3);
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let of = |org: &str, kind: &str, time: u32| Event {
        org: org.into(),
        ..at(&format!("{org}{time}"), time.into(), &[("k", kind), ("u", "kim")])
    };
    assert_eq!(alerts(&mut operator, &[of("acme", "a", 1)]), []);
    assert_eq!(operator.correlation_groups().0, 2);
    assert_eq!(alerts(&mut operator, &[of("acme", "x", 200)]), []);
    assert_eq!(operator.correlation_groups().0, 2, "the clock may fall back");
    assert_eq!(alerts(&mut operator, &[of("acme", "x", 260)]), []);
    assert_eq!(operator.correlation_groups(), (0, 0));
    let again = [("zeta", 301), ("acme", 302), ("zeta", 303), ("acme", 304), ("zeta", 305), ("acme", 306)];
    let found = alerts(&mut operator, &again.map(|(org, time)| of(org, "a", time)));
    let found: Vec<String> = found
        .iter()
        .map(|alert| format!("{} {}: {}", alert.org_id, alert.rule_id, alert.event_ids.join(" ")))
        .collect();
    let wanted = [
        "zeta two: zeta301 zeta303",
        "acme two: acme302 acme304",
        "zeta three: zeta301 zeta303 zeta305",
        "acme three: acme302 acme304 acme306",
    ];
    assert_eq!(found, wanted);
}
