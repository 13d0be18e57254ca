//! Correlations that cannot be: faults in rules, and in saved state.

use tidegate_pipeline::Operator;
use tidegate_rules::{RuleFile, RuleSet, RulesConfig, SigmaOperator};

use crate::correlation::{base, correlation};
use crate::stream::{Event, alerts, at, batch, operator, process};

#[test]
fn damaged_state_is_refused_whatever_the_damage() {
    let text = base(&["a", "b"])
        + &correlation("type: temporal, rules: [a, b], group-by: [u], timespan: 10s, condition: a and not b")
        + &correlation("type: value_sum, rules: [a], group-by: [u], timespan: 10s, condition: {field: v, gte: 100}")
            .replace("id: c", "id: c2");
    let mut operator = operator(RulesConfig::default(), &[("default", &text)]);
    let list: Vec<Event> = (0..20)
        .map(|place| {
            at(
                &format!("e{place}"),
                f64::from(place) / 4.0,
                &[("k", "a"), ("u", if place % 2 == 0 { "kim" } else { "lee" }), ("v", "1.5")],
            )
        })
        .collect();
    alerts(&mut operator, &list);
    let state = operator.save();
    let mut other = SigmaOperator::new(RulesConfig::default()).expect("tables");
    other.restore(&state).expect("whole");
    assert_eq!(other.save(), state, "the same state before its rules are compiled");
    alerts(&mut other, &[at("late", -1e6, &[])]);
    alerts(&mut operator, &[at("late", -1e6, &[])]);
    assert_eq!(other.save(), operator.save(), "and after");
    // The correlations are the last part: every byte of it is covered by its checksum.
    let start = state.windows(8).position(|bytes| bytes == b"TGCORR04").expect("the part");
    for at in (start..state.len()).step_by(3) {
        let mut damaged = state.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(other.restore(&damaged).is_err(), "byte {at}");
    }
}

/// A correlation of the rules a and b with this section is not loaded, for a reason that has these words.
fn check(section: &str, wanted: &str) {
    let text = base(&["a", "b"]) + "---\ntitle: C\nid: c\ncorrelation:\n" + section;
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("c.yml", text)], &RulesConfig::default()).expect("tables");
    assert_eq!((rules.rules().len(), rules.correlations().len()), (2, 0), "{section}");
    let [problem] = problems.as_slice() else { panic!("{section}: {problems:?}") };
    assert!(problem.reason.contains(wanted), "{section}: {:?} has no {wanted:?}", problem.reason);
    assert!(problem.line >= 11 && problem.file == "c.yml" && problem.rule == "c", "{section}: {problem:?}");
}

#[test]
fn bounds_that_are_our_own_are_said_with_the_reason() {
    let count = "  type: event_count\n  rules: [a]\n  timespan: 5m\n  condition: {gte: 2}\n";
    // A window has an event, and so many at most as a group keeps.
    check(&count.replace("gte: 2", "gte: 10001"), "holds for no count from 1 to 10000");
    check(&count.replace("gte: 2", "gt: 10000"), "holds for no count from 1 to 10000");
    check(&count.replace("gte: 2", "lt: 1"), "holds for no count");
    check(&count.replace("gte: 2", "lte: 0"), "holds for no count");
    check(&count.replace("gte: 2", "eq: 0"), "holds for no count");
    check(&count.replace("gte: 2", "eq: 1.5"), "holds for no count");
    check(&count.replace("gte: 2", "gt: 5, lt: 6"), "holds for no count");
    let values = count.replace("event_count", "value_count").replace("gte: 2", "gte: 10001, field: x");
    check(&values, "holds for no count from 1 to 10000");
    let temporal = "  type: temporal\n  rules: [a, b]\n  timespan: 5m\n  condition: {gte: 3}\n";
    check(temporal, "holds for no count from 1 to 2");
    check(&temporal.replace("gte: 3", "eq: 0"), "holds for no count from 1 to 2");
    // Percentiles are whole.
    let percentile = count.replace("event_count", "value_percentile");
    for wrong in ["99.9", "-1", "'95'", "many"] {
        let section = percentile.replace("gte: 2", &format!("gte: 2, field: x, percentile: {wrong}"));
        check(&section, "not a whole number from 0 to 100");
    }
    // Fields, rules, and the ways through them.
    let fields: Vec<String> = (0..17).map(|at| format!("f{at}")).collect();
    check(&format!("{count}  group-by: [{}]\n", fields.join(", ")), "`group-by` has more than 16 fields");
    let values = count.replace("event_count", "value_count");
    check(
        &values.replace("gte: 2", &format!("gte: 2, field: [{}]", fields.join(", "))),
        "`field` has more than 16 fields",
    );
    let rules: Vec<String> = (0..257).map(|at| format!("r{at}")).collect();
    check(&count.replace("[a]", &format!("[{}]", rules.join(", "))), "more than 256 entries");
    let nine = rules[..9].join(" and ").replace("r8", "(r8 or r7)");
    let ordered = format!("  type: temporal_ordered\n  timespan: 5m\n  condition: {nine}\n");
    check(&ordered, "more than 8 rules");
    // Spans.
    check(&count.replace("5m", "11y"), "not between 1s and 10y");
    check(&count.replace("5m", "5"), "Missing timeframe");
    check(&count.replace("5m", "1.5h"), "timespan");
    check(&count.replace("  timespan: 5m\n", ""), "Missing timeframe");
    // What Sigma has no word for.
    check(&count.replace("  condition: {gte: 2}\n", ""), "condition");
    check(&count.replace("{gte: 2}", "{field: x}"), "must have an operator");
    check(&count.replace("{gte: 2}", "[1, 2]"), "condition");
    check(&format!("{count}  gap: 1m\n"), "only valid with window: session");
    check(&format!("{count}  window: session\n"), "window: session");
}

#[test]
fn what_cannot_be_correlated_is_reported_with_its_place() {
    let count = "  type: event_count\n  rules: [a]\n  timespan: 5m\n  condition: {gte: 2}\n";
    check(&count.replace("[a]", "[z]"), "no rule has the id or name z");
    check(&count.replace("[a]", "[c]"), "refers to itself");
    check(&count.replace("[a]", "[a, 7]"), "`rules` holds something that is not a text");
    check(&count.replace("[a]", "[a, a]"), "a is named twice");
    check(&count.replace("  rules: [a]\n", ""), "refers to no rules");
    check(&count.replace("5m", "5x"), "timespan");
    check(&count.replace("5m", "0s"), "not between 1s and 10y");
    check(&count.replace("5m", "99y"), "not between 1s and 10y");
    check(&count.replace("event_count", "event_cont"), "Unknown correlation type");
    check(&count.replace("{gte: 2}", "{gte: many}"), "numeric");
    check(&count.replace("{gte: 2}", "{gte: 2, than: 3}"), "no key \"than\"");
    check(&count.replace("{gte: 2}", "{lt: 1}"), "holds for no count");
    check(&count.replace("{gte: 2}", "{gte: 20000}"), "holds for no count from 1 to 10000");
    check(&count.replace("{gte: 2}", "a and b"), "is for temporal correlations");
    check(&count.replace("event_count", "value_count"), "needs the field");
    check(&count.replace("event_count", "value_sum").replace("gte: 2", "gte: 2, field: [x, y]"), "measures one field");
    check(
        &count.replace("event_count", "value_percentile").replace("gte: 2", "gte: 2, field: x, percentile: 101"),
        "percentile",
    );
    check(&format!("{count}  window: tumbling\n"), "only sliding");
    check(&format!("{count}tidegate: {{suppress: 1h}}\n"), "no attribute `tidegate`");
    check(&format!("{count}  grup-by: [x]\n"), "no key \"grup-by\"");
    check(&format!("{count}  aliases: {{x: {{a: y}}}}\n"), "alias x is not used");
    check(&format!("{count}  group-by: x\n  aliases: {{x: {{z: y}}}}\n"), "which the correlation does not refer to");
    let temporal = "  type: temporal\n  rules: [a, b]\n  timespan: 5m\n  condition: a and b\n";
    check(&temporal.replace("a and b", "a and not"), "ends too early");
    check(&temporal.replace("a and b", "not a and not b"), "when nothing was seen");
    check(&temporal.replace("a and b", "a"), "does not name b");
    check(&temporal.replace("a and b", "a and b and z"), "names z, which is not in `rules`");
    check(&format!("{temporal}  group-by: x\n  aliases: {{x: {{a: y}}}}\n"), "says nothing of b");
    check(&temporal.replace("temporal", "temporal_ordered").replace("a and b", "{gte: 1}"), "needs all of its rules");
}

#[test]
fn circles_are_refused_and_what_rests_on_what_did_not_load_says_so() {
    let one = |id: &str, of: &str| {
        format!(
            "---\ntitle: {id}\nid: {id}\ncorrelation: {{type: event_count, rules: [{of}], timespan: 5m, condition: {{gte: 2}}}}\n"
        )
    };
    let text = base(&["a"])
        + &one("p", "q")
        + &one("q", "r")
        + &one("r", "p")
        + &one("s", "p")
        + &one("t", "z")
        + &one("u", "t")
        + &one("v", "a");
    let (rules, problems) = RuleSet::compile(&[RuleFile::new("c.yml", text)], &RulesConfig::default()).expect("tables");
    assert_eq!(rules.correlations().iter().map(|own| own.head.id.as_str()).collect::<Vec<_>>(), ["v"]);
    let mut told: Vec<_> = problems
        .iter()
        .map(|problem| (problem.rule.as_str(), problem.reason.split(',').next().unwrap_or_default()))
        .collect();
    told.sort_unstable();
    let circle = "the correlation refers to itself";
    assert_eq!(told[..3], [("p", circle), ("q", circle), ("r", circle)]);
    assert!(told[3].1.starts_with("it rests on the correlation"), "{told:?}");
    assert_eq!(told[4..], [("t", "no rule has the id or name z"), ("u", "it rests on the correlation t")]);
}

#[test]
fn twenty_correlations_over_ever_new_groups_stay_within_their_bounds() {
    let kinds = [
        "type: event_count, condition: {gte: 3}",
        "type: event_count, condition: {lt: 3}",
        "type: value_count, condition: {field: v, gte: 2}",
        "type: value_percentile, condition: {field: v, lt: 2}",
        "type: temporal, condition: {gte: 1}",
    ];
    let one = |number: usize| {
        let (kind, condition) = kinds[number % kinds.len()].split_once(", ").expect("two keys");
        let section = format!("{kind}, rules: [a], group-by: [u], timespan: 1d, {condition}");
        correlation(&section).replace("id: c", &format!("id: c{number}"))
    };
    let text = base(&["a"]) + &(0..20).map(one).collect::<String>();
    let config = RulesConfig {
        correlation_groups_max: 500,
        correlation_group_events_max: 10,
        correlation_bytes_max: 2 << 20,
        ..RulesConfig::default()
    };
    let mut operator = operator(config, &[("default", &text)]);
    for round in 0..20 {
        let list: Vec<Event> = (0..300)
            .map(|place| {
                let number = round * 300 + place;
                // Some groups come back with ever more events; the rest are new each time.
                let user =
                    if place % 10 == 0 { "again".to_owned() } else { format!("user {number} {}", "x".repeat(300)) };
                let time = f64::from(number) - f64::from(place % 7) * 5.0;
                at(
                    &format!("a rather long id of event {number}"),
                    time,
                    &[("k", "a"), ("u", &user), ("v", &number.to_string())],
                )
            })
            .collect();
        process(&mut operator, &batch(&list));
        let (groups, bytes) = operator.correlation_groups();
        assert!(groups <= 20 * 500 && bytes <= 2 << 20, "{groups} groups, {bytes} bytes");
        if round % 10 == 9 {
            let mut other = SigmaOperator::new(RulesConfig::default()).expect("tables");
            other.restore(&operator.save()).expect("a state");
        }
    }
    assert!(operator.correlation_groups().0 > 100);
}
