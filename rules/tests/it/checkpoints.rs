//! A run of the operator with every kind of correlation, suppression, silences, rules that are turned off and rules that change,
//! in small batches: from the checkpoint after each of them, the rest of the run gives the same alerts.
//!
//! `TIDEGATE_CHECKPOINT_RUNS` (default 2) is how many runs are tried.

use tidegate_events::Alert;
use tidegate_pipeline::{LogBatch, Operator};
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::correlation::{base, correlation};
use crate::counted::Counted;
use crate::stream::{Event, at, batch, operator, process};
use crate::suppression::changes;

/// Each kind, as it is judged with the event and when its window is over.
const SECTIONS: [&str; 26] = [
    "type: event_count, rules: [a], group-by: [u], timespan: 8s, condition: {gte: 3}",
    "type: event_count, rules: [a, b], timespan: 8s, condition: {lt: 3}",
    "type: event_count, rules: [a, b], group-by: [u], timespan: 8s, condition: {gt: 1, lte: 3}",
    "type: event_count, rules: [a, b], timespan: 8s, condition: {eq: 4}",
    "type: value_count, rules: [a, b], timespan: 8s, condition: {field: v, gte: 3}",
    "type: value_count, rules: [a, b], group-by: [u], timespan: 8s, condition: {field: [v, k], lte: 2}",
    "type: value_sum, rules: [a, b], timespan: 8s, condition: {field: v, gte: 3.5}",
    "type: value_sum, rules: [a, b], group-by: [u], timespan: 8s, condition: {field: v, lt: 2.5}",
    "type: value_avg, rules: [a, b], timespan: 8s, condition: {field: v, gt: 1.1}",
    "type: value_avg, rules: [a, b], group-by: [u], timespan: 8s, condition: {field: v, neq: 1}",
    "type: value_median, rules: [a, b], timespan: 8s, condition: {field: v, gte: 1.25}",
    "type: value_median, rules: [a, b], group-by: [u], timespan: 8s, condition: {field: v, lte: 1}",
    "type: value_percentile, rules: [a, b], timespan: 8s, condition: {field: v, percentile: 90, gt: 1.5}",
    "type: value_percentile, rules: [a, b], group-by: [u], timespan: 8s, condition: {field: v, percentile: 10, lt: 1}",
    "type: temporal, rules: [a, b, c], group-by: [u], timespan: 8s",
    "type: temporal, rules: [a, b, c], timespan: 8s, condition: {gte: 2}",
    "type: temporal, rules: [a, b, c], timespan: 8s, condition: {lt: 3}",
    "type: temporal, group-by: [u], timespan: 8s, condition: a and (b or not c)",
    "type: temporal_ordered, rules: [a, b, c], timespan: 12s",
    "type: temporal_ordered, rules: [a, b, c], group-by: [u], timespan: 8s, condition: a and b and not c",
    "type: temporal, group-by: [who], timespan: 8s, condition: a and b, aliases: {who: {a: u, b: w}}",
    "type: temporal_ordered, rules: [c0, b], group-by: [u], timespan: 20s, generate: true",
    "type: event_count, rules: [c2, c17], group-by: [u], timespan: 40s, condition: {gte: 2}",
    "type: temporal, group-by: [u], timespan: 20s, condition: a and not c21",
    // So long that what is left of groups that are gone stays.
    "type: value_count, rules: [a, b, c], group-by: [w], timespan: 10m, condition: {field: u, gte: 2}",
    "type: event_count, rules: [a], group-by: [u, v], timespan: 10m, condition: {gte: 2}",
];

/// Detections that alert by themselves: suppressed for the time of the configuration, for their own, and not at all.
const SUPPRESSED: &str = "---\ntitle: S1\nid: s1\nlogsource: {product: test}\ndetection: {s: {k: [a, b]}, condition: s}\n\
    ---\ntitle: S2\nid: s2\nlogsource: {product: test}\ntidegate: {group_by: [u], suppress: 4s}\ndetection: {s: {k: [a, d]}, condition: s}\n\
    ---\ntitle: S3\nid: s3\nlogsource: {product: test}\ntidegate: {suppress: 0}\ndetection: {s: {k: c}, condition: s}\n";

fn config() -> RulesConfig {
    RulesConfig {
        lateness_ms_max: 10_000,
        ahead_ms_max: 5_000,
        suppress_s: 7,
        alerts_per_second_max: 2,
        // So that groups and events are forgotten too.
        correlation_groups_max: 6,
        correlation_group_events_max: 30,
        suppress_groups_max: 3,
        // Nothing is parked, however slow the machine is.
        rule_event_ns_max: u64::MAX,
        correlation_event_ns_max: u64::MAX,
        ..RulesConfig::default()
    }
}

/// More of them, whose groups wait for ever other sets of sources.
fn long() -> impl Iterator<Item = String> {
    let fields = ["u", "w", "u, v"].into_iter();
    let rules = ["a", "b", "c", "a, b", "a, c", "b, c"];
    let section = |field, rules| {
        format!("type: event_count, rules: [{rules}], group-by: [{field}], timespan: 10m, condition: {{gte: 2}}")
    };
    fields.flat_map(move |field| rules.map(move |rules| section(field, rules)))
}

fn rules() -> String {
    let sections = SECTIONS.iter().map(|section| (*section).to_owned()).chain(long());
    let one =
        |(number, section): (usize, String)| correlation(&section).replace("id: c\n", &format!("id: c{number}\n"));
    let all = base(&["a", "b", "c"]) + SUPPRESSED + &sections.enumerate().map(one).collect::<String>();
    all.replace("product: test", "product: linux")
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Where events come from: the sources of `product: linux`. Runs have the first two and all of them, in turn: of these there are more
/// sets that groups wait for than are told apart.
const SOURCES: [&str; 11] =
    ["linux", "auditd", "syslog", "sysmon_linux", "sshd", "sudo", "cron", "auth", "vsftpd", "clamav", "guacamole"];

/// A stream of two tenants and so many sources, with lateness, repetitions and pauses.
fn events(random: &mut Random, (sources, mut of_sources): (&[&'static str], Random)) -> Vec<Event> {
    let (mut now, mut events) = (1_000.0, Vec::<Event>::new());
    for number in 0..90 {
        now += random.below(3) as f64 + if random.below(15) == 0 { 20.0 + random.below(30) as f64 } else { 0.0 };
        let again = events.len().checked_sub(1 + random.below(6) as usize);
        if let Some(repeated) = again.filter(|_| random.below(12) == 0).and_then(|at| events.get(at)) {
            let repeated = Event { received: now, ..repeated.clone() };
            events.push(repeated);
            continue;
        }
        let pick = |random: &mut Random, list: &[&'static str]| list[random.below(list.len() as u64) as usize];
        let kind = pick(random, &["a", "a", "a", "b", "b", "c", "d"]);
        let users = ["kim", "kim", "lee", "lee", "bo", "max"];
        let (user, other) = (pick(random, &users), pick(random, &users));
        let value = pick(random, &["0", "1", "2", "0.5", "3", "0.1234567890123456789"]);
        let late = if random.below(3) == 0 { random.below(14) as f64 } else { 0.0 };
        let ahead = if random.below(20) == 0 { 9.0 } else { 0.0 };
        events.push(Event {
            org: pick(random, &["acme", "acme", "acme", "zeta"]).into(),
            source: pick(&mut of_sources, sources).into(),
            received: now,
            ..at(&format!("e{number}"), now - late + ahead, &[("k", kind), ("u", user), ("w", other), ("v", value)])
        });
    }
    let end = now + 1_000.0;
    events
        .extend(["acme", "zeta"].map(|org| Event { org: org.into(), ..at(&format!("end {org}"), end, &[("k", "x")]) }));
    events
}

/// What people say in between.
fn said(number: usize) -> Option<LogBatch> {
    let silence = serde_json::json!({"rule_id": "c0", "group_key": "u=kim", "verdict": "benign", "silence_scope": "group",
        "silence_until_us": 1_060_000_000});
    let whole = serde_json::json!({"rule_id": "s1", "group_key": "", "verdict": "false_positive", "silence_scope": "rule",
        "silence_until_us": 9_000_000_000_i64});
    let other = "title: Other\nid: other\nlogsource: {product: linux}\ndetection: {s: {k: d}, condition: s}\n";
    let text = serde_json::json!({ "text": other });
    Some(match number {
        5 => changes(&[("acme", "alert_feedback", "1", "create", silence.to_string())]),
        15 => changes(&[("acme", "rule_off", "c15", "create", "{}".into())]),
        20 => changes(&[("acme", "rule", "other.yml", "create", text.to_string())]),
        25 => changes(&[("zeta", "alert_feedback", "2", "create", whole.to_string())]),
        30 => changes(&[("acme", "rule_off", "c15", "delete", "{}".into())]),
        35 => changes(&[("zeta", "alert_feedback", "2", "delete", "null".into())]),
        _ => return None,
    })
}

/// The batches of a run.
fn batches(seed: u64) -> Vec<LogBatch> {
    let mut random = Random(seed);
    let sources = if seed % 2 == 1 { &SOURCES[..2] } else { &SOURCES[..] };
    let events = events(&mut random, (sources, Random(!seed)));
    let (mut batches, mut rest) = (Vec::new(), events.as_slice());
    while !rest.is_empty() {
        batches.extend(said(batches.len()));
        let (now, later) = rest.split_at(rest.len().min(1 + random.below(3) as usize));
        batches.push(batch(now));
        rest = later;
    }
    batches
}

/// What an alert is, in short.
fn short(alert: &Alert) -> String {
    let Alert { org_id, rule_id, group_key, first_time, last_time, event_count, .. } = alert;
    format!("{org_id} {rule_id} {group_key}: {event_count} events, {first_time} to {last_time}")
}

#[test]
fn from_every_checkpoint_of_a_run_the_rest_gives_the_same_alerts() {
    #[expect(clippy::disallowed_methods, reason = "the size of a test on demand")]
    let wanted = std::env::var("TIDEGATE_CHECKPOINT_RUNS");
    let runs: u64 = wanted.ok().and_then(|count| count.parse().ok()).unwrap_or(2);
    let fresh = operator(config(), &[("default", &rules())]);
    let restored = |state: &[u8]| {
        let mut operator = SigmaOperator::new(config()).expect("tables");
        operator.restore(state).expect("a state");
        operator
    };
    let counted = Counted::default();
    let mut raised: Vec<Alert> = Vec::new();
    for seed in 1..=runs {
        let batches = batches(seed);
        let mut whole = restored(&fresh.save());
        let (mut alerts, mut states) = (Vec::new(), Vec::new());
        for batch in &batches {
            alerts.push(counted.during(|| process(&mut whole, batch)));
            states.push(whole.save());
        }
        for (at, state) in states.iter().enumerate() {
            let mut again = restored(state);
            for (place, (batch, wanted)) in batches.iter().zip(&alerts).enumerate().skip(at + 1) {
                let found = process(&mut again, batch);
                let only = |some: &[Alert], other: &[Alert]| {
                    some.iter().filter(|alert| !other.contains(alert)).map(short).collect::<Vec<_>>()
                };
                let (more, less) = (only(&found, wanted), only(wanted, &found));
                assert!(
                    found == *wanted,
                    "run {seed}: restored after batch {at} of {}, at batch {place}: more {more:#?}, less {less:#?}",
                    batches.len()
                );
            }
        }
        raised.extend(alerts.into_iter().flatten());
    }
    let bounded = counted.of("correlation_bounded_events_total").expect("a metric");
    assert!(bounded > 0.0, "no set of sources was one too many");
    // Every correlation fired, and windows of suppression were told of.
    for (number, section) in SECTIONS.iter().enumerate() {
        let id = format!("c{number}");
        let referred = ["c2", "c17", "c21"].contains(&id.as_str());
        assert_eq!(raised.iter().any(|alert| alert.rule_id == id), !referred, "{id}: {section}");
    }
    for id in ["s1", "s2", "s3", "other"] {
        assert!(raised.iter().any(|alert| alert.rule_id == id), "{id}");
    }
    assert!(raised.iter().filter(|alert| alert.continues.is_some()).count() > 3);
}
