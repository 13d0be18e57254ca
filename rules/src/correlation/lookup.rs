//! Tests: what is found in an index is what is found by judging every window.

use crate::compile::RuleSet;
use crate::config::RulesConfig;
use crate::correlation::amount::Amount;
use crate::correlation::definition::Definition;
use crate::correlation::entry::{Entry, EventId, Value};
use crate::correlation::group::{Fed, Group, Terms};
use crate::problem::RuleFile;

/// The values of the field `w` are no exact decimals.
const KINDS: [&str; 17] = [
    "type: event_count, condition: {gte: 9}",
    "type: value_count, condition: {field: v, gte: 6}",
    "type: value_sum, condition: {field: v, gt: 60}",
    "type: value_sum, condition: {field: v, gte: 30, gt: 75.5}",
    "type: value_avg, condition: {field: v, gt: 5.9}",
    "type: value_sum, condition: {field: w, gt: 60.00000000000000000001}",
    "type: value_sum, condition: {field: w, gte: 5e16}",
    "type: value_avg, condition: {field: w, gte: 6}",
    "type: value_median, condition: {field: w, gte: 6.75}",
    "type: value_median, condition: {field: v, gte: 6.75}",
    "type: value_median, condition: {field: v, gt: 7}",
    "type: value_percentile, condition: {field: v, percentile: 90, gte: 9.5}",
    "type: value_percentile, condition: {field: v, percentile: 17, gt: 2}",
    "type: temporal, condition: {gte: 3}",
    "type: temporal, condition: a and (b or c)",
    "type: temporal_ordered",
    "type: temporal_ordered, condition: (a and c) or (b and c)",
];

fn definition(kind: &str) -> (Definition, u64) {
    let rule = |name: &str| {
        format!("title: {name}\nid: {name}\nlogsource: {{product: x}}\ndetection: {{s: {{f: v}}, condition: s}}\n---\n")
    };
    let text = format!(
        "{}title: C\nid: it\ncorrelation: {{rules: [a, b, c], timespan: 20s, {kind}}}\n",
        ["a", "b", "c"].map(rule).concat()
    );
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("c", text)], &RulesConfig::default()).expect("tables");
    assert_eq!(problems, [], "{kind}");
    let correlation = &rules.correlations()[0];
    (correlation.definition.clone(), correlation.needed)
}

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// An event: mostly late, by up to a few spans.
fn event(number: u64, kind: &str, random: &mut Random) -> Entry {
    let now = 1_000_000 * (number / 4) as i64;
    let late = if random.below(3) == 0 { 0 } else { random.below(45) as i64 * 1_000_000 };
    let value = match kind {
        kind if kind.contains("value_count") => Value::counted(u128::from(random.below(12))),
        kind if kind.contains("field: w") && random.below(30) == 0 => {
            let far = ["1e300", "-1e300", "7e16", "-7e16"][random.below(4) as usize];
            Value::amount(Amount::parse(far).expect("a number"))
        }
        kind if kind.contains("field") => {
            let tenths = random.below(110);
            let more = if kind.contains("field: w") { "0000000000000000000000000007" } else { "" };
            Value::amount(Amount::parse(&format!("{}.{}{more}", tenths / 10, tenths % 10)).expect("a number"))
        }
        _ => Value::None,
    };
    let temporal = kind.contains("temporal");
    let slot = if temporal { random.below(3) as u16 } else { 0 };
    Entry { time: now - late, id: EventId::new(&format!("e{number}")), value, slot }
}

#[test]
fn an_index_finds_what_judging_every_window_finds() {
    for kind in KINDS {
        let (definition, needed) = definition(kind);
        // With few places some events are forgotten too.
        for (seed, events_max) in [(1, 10_000), (2, 10_000), (3, 60)] {
            let terms = |near_max: usize| Terms { definition: &definition, events_max, needed, near_max };
            let group = || Group::new(Box::default(), 1, &definition);
            let (mut one, mut other, mut random) = (group(), group(), Random(seed));
            let mut fired = 0;
            for number in 0..900 {
                let entry = event(number, kind, &mut random);
                let mark = 1_000_000 * (number / 4) as i64 - 45_000_000;
                let each = one.feed_eager(entry.clone(), mark, &terms(usize::MAX));
                let found = other.feed_eager(entry, mark, &terms(0));
                assert_eq!(found.fire, each.fire, "{kind}: event {number} of {seed}");
                assert_eq!((found.dropped, found.unjudged), (each.dropped, 0), "{kind}: event {number} of {seed}");
                fired += u64::from(each.fire.is_some());
                assert_eq!(one.fires(), other.fires());
            }
            assert!(fired > 1, "{kind} fired {fired} times");
        }
    }
}

#[test]
fn an_event_costs_the_same_however_many_there_are() {
    let kinds = KINDS.map(|kind| kind.replace("gte: 9}", "gte: 9999}").replace("gte: 6}", "gte: 9999}"));
    let floats = "type: value_sum, condition: {field: v, gt: 1e300}".to_owned();
    for kind in kinds.iter().chain([&floats]) {
        let (mut definition, needed) = definition(kind);
        definition.span.0 = 3_600_000_000;
        let cost = |count: u64| {
            let terms = Terms { definition: &definition, events_max: 100_000, needed, near_max: 64 };
            let mut group = Group::new(Box::default(), 1, &definition);
            let mut random = Random(9);
            let mut looked_at = 0;
            for number in 0..count {
                let mut entry = event(number, kind, &mut random);
                // From the last to the first, and of rules in an order that never holds.
                entry.time = 1_000_000_000 - (number as i64) * 1_000;
                entry.slot = if kind.contains("temporal") { u16::from(number.is_multiple_of(2)) } else { 0 };
                if kind.contains("value_sum") || kind.contains("value_avg") || kind.contains("field: v, p") {
                    let below = if kind.contains("field: w") { "-1.00000000000000000007" } else { "-1" };
                    entry.value = Value::amount(Amount::parse(below).expect("a number"));
                }
                if kind.contains("value_median") {
                    // All windows are on the bound.
                    let value = if number.is_multiple_of(2) { "1" } else { "8" };
                    entry.value = Value::amount(Amount::parse(value).expect("a number"));
                }
                let Fed { looked_at: own, .. } = group.feed_eager(entry, i64::MIN, &terms);
                looked_at += own;
            }
            looked_at / count
        };
        let (few, many) = (cost(1_000), cost(8_000));
        assert!(many < 4_000 && many < few * 4 + 1_000, "{kind}: {few} steps each of few events, {many} of many");
    }
}

#[test]
fn events_of_two_times_in_turn_cost_as_little() {
    for kind in KINDS.map(|kind| kind.replace("gte: 9}", "gte: 9999}").replace("gte: 6}", "gte: 9999}")) {
        // What lies between two events only a gauge knows: these cost more, and are stopped.
        if kind.contains("median") || kind.contains("percentile") {
            continue;
        }
        let (mut definition, needed) = definition(&kind);
        definition.span.0 = 3_600_000_000;
        let terms = Terms { definition: &definition, events_max: 100_000, needed, near_max: 64 };
        let (mut group, mut random) = (Group::new(Box::default(), 1, &definition), Random(9));
        let mut looked_at = 0;
        for number in 0..8_000u64 {
            let mut entry = event(number, &kind, &mut random);
            entry.time = (number % 2) as i64 * 3 * definition.span.0 + number as i64 * 1_000;
            entry.slot = 0;
            if kind.contains("value_sum") || kind.contains("value_avg") {
                entry.value = Value::amount(Amount::parse("-1.00000000000000000007").expect("a number"));
            }
            looked_at += group.feed_eager(entry, i64::MIN, &terms).looked_at;
        }
        assert!(looked_at / 8_000 < 1_500, "{kind}: {} steps each", looked_at / 8_000);
    }
}
