//! Correlations that eat time: they stop, are said to be, and the others go on.

use tidegate_rules::RulesConfig;

use crate::correlation::{base, correlation};
use crate::stream::{Event, alerts, at, batch, load, operator, process};

/// A percentile over two clusters of events that are far apart, in turn: the window moves over thousands of them each time.
const HOG: &str = "type: value_percentile, rules: [a], timespan: 20s, condition: {field: v, percentile: 50, gte: 1000}";

fn files() -> String {
    let calm = "type: event_count, rules: [a], group-by: [u], timespan: 5s, condition: {gte: 100}";
    base(&["a"])
        + &correlation(HOG).replace("id: c\n", "id: hog\n")
        + &correlation(calm).replace("id: c\n", "id: calm\n")
}

fn event(number: u32) -> Event {
    let time = 1_000.0 + f64::from(number % 2) * 40.0 + f64::from(number) / 1_000.0;
    let value = f64::from(number * 7 % 1_000) / 7.0;
    at(
        &format!("e{number}"),
        time,
        &[("k", "a"), ("v", &value.to_string()), ("u", if number.is_multiple_of(2) { "x" } else { "y" })],
    )
}

#[test]
fn a_correlation_that_takes_too_long_stops_and_the_others_go_on() {
    let config = RulesConfig { correlation_event_ns_max: 100_000, ..RulesConfig::default() };
    let mut own = operator(config, &[("default", &files())]);
    let mut number = 0;
    while own.parked().is_empty() && number < 9_000 {
        let events: Vec<Event> = (number..number + 250).map(event).collect();
        process(&mut own, &batch(&events));
        number += 250;
    }
    let parked: Vec<_> = own.parked().iter().map(|parked| (&*parked.rule_id, parked.org_id.as_deref())).collect();
    assert_eq!(parked, [("hog", None)], "after {number} events");
    assert!(own.parked()[0].reason.contains("ns per event"), "{:?}", own.parked());
    assert_eq!(own.status().read().parked, own.parked());
    assert_eq!(own.correlation_groups().0, 2, "the groups of the other");
    let later: Vec<Event> =
        (0..250).map(|at| Event { time: 1_200.0 + f64::from(at) / 100.0, ..event(20_000 + at) }).collect();
    let fired: Vec<String> = alerts(&mut own, &later).into_iter().map(|alert| alert.rule_id).collect();
    assert_eq!(fired, ["calm", "calm"]);
    // Whoever changes rules tries again.
    load(&mut own, &[("default", &files().replace("gte: 1000", "gte: 2000"))]);
    alerts(&mut own, &[event(30_000)]);
    assert_eq!(own.parked(), []);
}

#[test]
fn late_events_and_numbers_that_are_no_decimals_cost_little() {
    let sections = [
        "type: value_sum, rules: [a], timespan: 1h, condition: {field: v, gte: 1e12}",
        "type: value_avg, rules: [a], timespan: 1h, condition: {field: v, gt: 1000}",
        "type: value_sum, rules: [a], timespan: 1h, condition: {field: v, lt: 0}",
        "type: event_count, rules: [a], timespan: 1h, condition: {gte: 9999}",
    ];
    let one = |(number, section): (usize, &&str)| correlation(section).replace("id: c\n", &format!("id: c{number}\n"));
    let text = base(&["a"]) + &sections.iter().enumerate().map(one).collect::<String>();
    let mut own = operator(RulesConfig::default(), &[("default", &text)]);
    let mut random = 11u64;
    let list: Vec<Event> = (0..4_000u32)
        .map(|number| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let time = 10_000.0 + (random >> 40) as f64 / f64::from(1 << 24) * 59.0;
            at(&format!("e{number}"), time, &[("k", "a"), ("v", &(f64::from(number % 997) / 997.0).to_string())])
        })
        .collect();
    list.chunks(500).for_each(|events| drop(process(&mut own, &batch(events))));
    let (_, steps) = own.correlation_work();
    let each = steps / list.len() as u64 / sections.len() as u64;
    assert!(each < 1_500, "{each} steps for each event and correlation");
}
