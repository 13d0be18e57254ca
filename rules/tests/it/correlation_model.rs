//! Each kind of correlation against a model that goes through everything for every event: shuffled, late and repeated events
//! of several sources, cut into batches anyhow, saved and restored in between.
//!
//! `TIDEGATE_CORRELATION_CASES` (default 6) is how many random streams are tried for each correlation.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use tidegate_pipeline::Operator;
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::correlation::{base, correlation};
use crate::stream::{Event, batch, operator, process};

const SPAN: i64 = 8;
const LATENESS: i64 = 10;
const AHEAD: i64 = 5;

/// What the model asks of a window: over (time, kind, tenths of the value), by time.
type Holds = fn(&[(i64, usize, i64)]) -> bool;

struct Kind {
    section: &'static str,
    /// How many of the rules a, b, c it refers to.
    rules: usize,
    eager: bool,
    /// Whether the value is needed, and whether it must be a number.
    measures: bool,
    /// Whether each of its rules counts.
    temporal: bool,
    holds: Holds,
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> usize {
    values.collect::<BTreeSet<T>>().len()
}

fn seen(window: &[(i64, usize, i64)], kind: usize) -> bool {
    window.iter().any(|(_, own, _)| *own == kind)
}

fn sum(window: &[(i64, usize, i64)]) -> i64 {
    window.iter().map(|(.., value)| value).sum()
}

/// The percentile in thousandths.
fn percentile(window: &[(i64, usize, i64)], percent: i64) -> i64 {
    let mut values: Vec<i64> = window.iter().map(|(.., value)| *value).collect();
    values.sort_unstable();
    let place = percent * (values.len() as i64 - 1);
    let (low, high) = (values[(place / 100) as usize], *values.get((place / 100) as usize + 1).unwrap_or(&0));
    low * 100 + if place % 100 == 0 { 0 } else { (high - low) * (place % 100) }
}

/// Whether these kinds come one after the other.
fn in_order(window: &[(i64, usize, i64)], kinds: &[usize]) -> bool {
    fn from(window: &[(i64, usize, i64)], kinds: &[usize], earliest: i64) -> bool {
        let Some((first, rest)) = kinds.split_first() else { return true };
        window.iter().any(|(time, kind, _)| kind == first && *time >= earliest && from(window, rest, *time))
    }
    from(window, kinds, i64::MIN)
}

const fn kind(section: &'static str, rules: usize, eager: bool, holds: Holds) -> Kind {
    Kind { section, rules, eager, measures: false, temporal: false, holds }
}

const fn measured(section: &'static str, eager: bool, holds: Holds) -> Kind {
    Kind { section, rules: 2, eager, measures: true, temporal: false, holds }
}

const fn temporal(section: &'static str, eager: bool, holds: Holds) -> Kind {
    Kind { section, rules: 3, eager, measures: false, temporal: true, holds }
}

const KINDS: &[Kind] = &[
    kind("type: event_count, rules: [a], condition: {gte: 3}", 1, true, |w| w.len() >= 3),
    kind("type: event_count, rules: [a, b], condition: {gt: 1, gte: 4}", 2, true, |w| w.len() >= 4),
    kind("type: event_count, rules: [a, b], condition: {lt: 3}", 2, false, |w| w.len() < 3),
    kind("type: event_count, rules: [a, b], condition: {eq: 2}", 2, false, |w| w.len() == 2),
    kind("type: event_count, rules: [a, b], condition: {gt: 1, lte: 3}", 2, false, |w| (2..=3).contains(&w.len())),
    kind("type: event_count, rules: [a, b], condition: {neq: 2}", 2, false, |w| w.len() != 2),
    measured("type: value_count, rules: [a, b], condition: {field: v, gte: 3}", true, |w| {
        distinct(w.iter().map(|(.., value)| value)) >= 3
    }),
    measured("type: value_count, rules: [a, b], condition: {field: [v, k], gt: 3}", true, |w| {
        distinct(w.iter().map(|(_, kind, value)| (kind, value))) > 3
    }),
    measured("type: value_count, rules: [a, b], condition: {field: v, lte: 2}", false, |w| {
        distinct(w.iter().map(|(.., value)| value)) <= 2
    }),
    measured("type: value_sum, rules: [a, b], condition: {field: v, gte: 3.5}", true, |w| sum(w) >= 35),
    measured("type: value_sum, rules: [a, b], condition: {field: v, lt: -0.5}", false, |w| sum(w) < -5),
    measured("type: value_avg, rules: [a, b], condition: {field: v, gt: 1.1}", true, |w| sum(w) > 11 * w.len() as i64),
    measured("type: value_avg, rules: [a, b], condition: {field: v, eq: 1}", false, |w| sum(w) == 10 * w.len() as i64),
    measured("type: value_median, rules: [a, b], condition: {field: v, gte: 1.25}", true, |w| {
        percentile(w, 50) >= 1250
    }),
    measured("type: value_percentile, rules: [a, b], condition: {field: v, percentile: 90, gt: 2}", true, |w| {
        percentile(w, 90) > 2000
    }),
    measured("type: value_percentile, rules: [a, b], condition: {field: v, percentile: 10, lte: 0}", false, |w| {
        percentile(w, 10) <= 0
    }),
    temporal("type: temporal, rules: [a, b, c]", true, |w| (0..3).all(|kind| seen(w, kind))),
    temporal("type: temporal, rules: [a, b, c], condition: {gte: 2}", true, |w| {
        distinct(w.iter().map(|(_, kind, _)| kind)) >= 2
    }),
    temporal("type: temporal, condition: a and (b or c)", true, |w| seen(w, 0) && (seen(w, 1) || seen(w, 2))),
    temporal("type: temporal, rules: [a, b, c], condition: a and (b or not c)", false, |w| {
        seen(w, 0) && (seen(w, 1) || !seen(w, 2))
    }),
    temporal("type: temporal_ordered, rules: [a, b, c]", true, |w| in_order(w, &[0, 1, 2])),
    temporal("type: temporal_ordered, rules: [a, b, c], condition: a and (b or c)", true, |w| {
        in_order(w, &[0, 1]) || in_order(w, &[0, 2])
    }),
    temporal("type: temporal_ordered, rules: [a, b, c], condition: a and b and not c", false, |w| {
        in_order(w, &[0, 1]) && !seen(w, 2)
    }),
];

/// A group of the model.
#[derive(Default)]
struct Group {
    /// (time, kind, value, id)
    entries: Vec<(i64, usize, i64, String)>,
    sources: BTreeSet<String>,
    fires: Vec<i64>,
    windows: Vec<i64>,
}

/// The model: of one tenant.
struct Model<'a> {
    kind: &'a Kind,
    received: i64,
    /// (latest, received)
    sources: BTreeMap<String, (Option<i64>, i64)>,
    groups: BTreeMap<String, Group>,
}

impl Model<'_> {
    fn mark(&self, sources: &BTreeSet<String>) -> i64 {
        let mut heard = Vec::new();
        let mut silent = Vec::new();
        for source in sources {
            let (latest, received) = self.sources[source];
            let mark = latest.unwrap_or(received) - LATENESS;
            if self.received - received > LATENESS {
                silent.push(mark + self.received - received);
            } else {
                heard.push(mark);
            }
        }
        heard.into_iter().min().unwrap_or_else(|| silent.into_iter().max().expect("a source"))
    }

    fn measure(&self, group: &Group, inside: impl Fn(i64) -> bool) -> Option<i64> {
        let mut window: Vec<(i64, usize, i64)> =
            group.entries.iter().filter(|entry| inside(entry.0)).map(|entry| (entry.0, entry.1, entry.2)).collect();
        window.sort_unstable();
        (!window.is_empty() && (self.kind.holds)(&window)).then_some(window.len() as i64)
    }

    /// What is over: (user, moment, events).
    fn pass(&mut self) -> Vec<(String, i64, i64)> {
        let mut fired = Vec::new();
        let users: Vec<String> = self.groups.keys().cloned().collect();
        for user in users {
            let mut group = self.groups.remove(&user).expect("a group");
            let mark = self.mark(&group.sources);
            if self.kind.eager {
                if group.entries.iter().map(|entry| entry.0).max().expect("an event") + SPAN > mark {
                    self.groups.insert(user, group);
                }
                continue;
            }
            while let Some(start) = group.windows.first().copied().filter(|start| start + SPAN <= mark) {
                group.windows.remove(0);
                let quiet = group.fires.iter().any(|fire| (fire - start).abs() < SPAN);
                let count = self.measure(&group, |time| (start..start + SPAN).contains(&time));
                if let Some(count) = count.filter(|_| !quiet) {
                    group.fires.push(start);
                    fired.push((user.clone(), start, count));
                }
                let needed_from = group.windows.first().copied().unwrap_or(i64::MAX);
                group.entries.retain(|entry| entry.0 >= needed_from);
            }
            if !group.windows.is_empty() {
                self.groups.insert(user, group);
            }
        }
        fired
    }

    fn row(&mut self, event: &Event) -> Vec<(String, i64, i64)> {
        let (time, received) = (event.time as i64, event.received as i64);
        self.received = self.received.max(received);
        let mut fired = self.pass();
        let (latest, last) = self.sources.entry(event.source.clone()).or_insert((None, received));
        *last = (*last).max(received);
        let time = if time > received + AHEAD {
            received
        } else {
            *latest = Some(latest.map_or(time, |known| known.max(time)));
            time
        };
        let late = latest.is_some_and(|latest| time < latest - LATENESS);
        fired.extend(self.pass());
        let field = |name: &str| event.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
        let kind = ["a", "b", "c"].iter().take(self.kind.rules).position(|kind| field("k").as_deref() == Some(*kind));
        let value = field("v").map(|value| (value.parse::<f64>().expect("a number") * 10.0).round() as i64);
        let (Some(kind), Some(user), false) = (kind, field("u"), late) else { return fired };
        if self.kind.measures && value.is_none() {
            return fired;
        }
        let mut group = self.groups.remove(&user).unwrap_or_default();
        group.sources.insert(event.source.clone());
        if self.kind.eager {
            let gone = self.mark(&group.sources) - SPAN;
            group.entries.retain(|entry| entry.0 > gone);
        }
        let slot = if self.kind.temporal { kind } else { 0 };
        let same = |entry: &&(i64, usize, i64, String)| {
            entry.0 == time && entry.3 == event.id && (!self.kind.temporal || entry.1 == slot)
        };
        if group.entries.iter().find(same).is_none() {
            group.entries.push((time, kind, value.unwrap_or(0), event.id.clone()));
            if self.kind.eager {
                let ends: BTreeSet<i64> =
                    group.entries.iter().map(|entry| entry.0).filter(|end| (time..time + SPAN).contains(end)).collect();
                for end in ends {
                    let quiet = group.fires.iter().any(|fire| (fire - end).abs() < SPAN);
                    let count = self.measure(&group, |time| time > end - SPAN && time <= end);
                    if let Some(count) = count.filter(|_| !quiet) {
                        group.fires.push(end);
                        fired.push((user.clone(), end, count));
                        break;
                    }
                }
            } else if !group.windows.iter().any(|start| (*start..start + SPAN).contains(&time)) {
                group.windows.push(time);
                group.windows.sort_unstable();
            }
        }
        self.groups.insert(user, group);
        fired
    }
}

/// A stream: mostly in order, with lateness, repetitions, pauses, and clocks that run ahead.
fn streams() -> impl Strategy<Value = Vec<Event>> {
    let step = (
        (0i64..3, prop_oneof![20 => Just(0i64), 1 => 5i64..15, 1 => 15i64..40]),
        prop_oneof![6 => Just(0i64), 3 => 0i64..9, 1 => 9i64..25],
        (
            prop_oneof![4 => Just(0usize), 2 => Just(1), 2 => Just(2), 1 => Just(3)],
            prop_oneof![9 => Just(true), 1 => Just(false)],
        ),
        prop_oneof![6 => Just(None), 1 => (-15i64..30).prop_map(Some)],
        (prop_oneof![3 => Just("nginx"), 1 => Just("apache")], prop_oneof![12 => Just(0i64), 1 => 3i64..12]),
        prop_oneof![8 => Just(None), 1 => (0usize..10).prop_map(Some)],
    );
    proptest::collection::vec(step, 20..70).prop_map(|steps| {
        let (mut now, mut events) = (1_000i64, Vec::<Event>::new());
        for (place, ((advance, pause), late, (kind, has_user), value, (source, ahead), repeat)) in
            steps.into_iter().enumerate()
        {
            now += advance + pause;
            if let Some(repeated) =
                repeat.and_then(|back| events.len().checked_sub(back + 1)).and_then(|at| events.get(at))
            {
                let repeated = Event { received: now as f64, ..repeated.clone() };
                events.push(repeated);
                continue;
            }
            let mut fields = vec![("k".to_owned(), ["a", "b", "c", "d"][kind].to_owned())];
            if has_user {
                fields.push(("u".into(), ["kim", "lee"][place % 2].into()));
            }
            let tenths = value.unwrap_or((place as i64 % 3) * 10);
            if tenths != 25 {
                fields.push(("v".into(), format!("{}", tenths as f64 / 10.0)));
            }
            events.push(Event {
                id: format!("e{place}"),
                org: "acme".into(),
                source: source.into(),
                time: (now - late + ahead) as f64,
                received: now as f64,
                fields,
            });
        }
        events
    })
}

fn config() -> RulesConfig {
    let (lateness, ahead) = (LATENESS as u64 * 1_000, AHEAD as u64 * 1_000);
    RulesConfig { lateness_ms_max: lateness, ahead_ms_max: ahead, suppress_s: 0, ..RulesConfig::default() }
}

/// The rules, for events of both sources.
fn rules(kind: &Kind) -> String {
    // A category covers both sources.
    let detections = base(&["a", "b", "c"]).replace("{product: test}", "{category: webserver}");
    let (head, rest) = kind.section.split_once(", ").expect("several keys");
    detections + &correlation(&format!("{head}, group-by: [u], timespan: {SPAN}s, {rest}"))
}

fn restored(before: &SigmaOperator) -> SigmaOperator {
    let mut operator = SigmaOperator::new(config()).expect("tables");
    operator.restore(&before.save()).expect("a state");
    operator
}

fn cases() -> usize {
    #[expect(clippy::disallowed_methods, reason = "the size of a test on demand")]
    let wanted = std::env::var("TIDEGATE_CORRELATION_CASES");
    wanted.ok().and_then(|count| count.parse().ok()).unwrap_or(6)
}

fn shown(events: &[Event]) -> String {
    let line = |event: &Event| {
        let fields: Vec<String> = event.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{} {} t={} r={} {}\n", event.id, event.source, event.time, event.received, fields.join(" "))
    };
    events.iter().map(line).collect()
}

fn check(kind: &Kind, fresh: &SigmaOperator, events: &[Event], cuts: &[usize], saves: &[usize]) -> usize {
    let mut model = Model { kind, received: i64::MIN, sources: BTreeMap::new(), groups: BTreeMap::new() };
    let mut one_by_one = restored(fresh);
    let mut all = Vec::new();
    for (row, event) in events.iter().enumerate() {
        let mut alerts = process(&mut one_by_one, &batch(std::slice::from_ref(event)));
        alerts.retain(|alert| alert.rule_id == "c");
        let moment = |alert: &tidegate_events::Alert| {
            let last = alert.event_ids.last().expect("an event");
            (alert.group_key.clone(), alert.event_count, last.is_empty())
        };
        let mut found: Vec<_> = alerts.iter().map(moment).collect();
        let mut wanted: Vec<_> =
            model.row(event).into_iter().map(|(user, _, count)| (format!("u={user}"), count, false)).collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{} at row {row} of\n{}", kind.section, shown(&events[..=row]));
        all.extend(alerts);
    }
    let mut cut_up = restored(fresh);
    let mut again = Vec::new();
    let mut rest = events;
    for (place, cut) in cuts.iter().chain([&events.len()]).enumerate() {
        let (now, later) = rest.split_at((*cut).min(rest.len()));
        rest = later;
        if !now.is_empty() {
            again.extend(process(&mut cut_up, &batch(now)));
        }
        if saves.contains(&place) {
            cut_up = restored(&cut_up);
        }
    }
    again.retain(|alert| alert.rule_id == "c");
    assert_eq!(again, all, "{}: other alerts in other batches\n{}", kind.section, shown(events));
    all.len()
}

#[test]
fn every_kind_is_that_of_the_model_whatever_the_batches_and_checkpoints() {
    for kind in KINDS {
        let mut runner = TestRunner::new_with_rng(
            Config::default(),
            prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha),
        );
        let fresh = operator(config(), &[("default", &rules(kind))]);
        let input =
            (streams(), proptest::collection::vec(1usize..20, 0..8), proptest::collection::vec(0usize..6, 0..3));
        let mut fired = 0;
        for _ in 0..cases() {
            let (events, cuts, saves) = input.new_tree(&mut runner).expect("a stream").current();
            fired += check(kind, &fresh, &events, &cuts, &saves);
        }
        assert!(fired > 0, "{} never fired", kind.section);
    }
}
