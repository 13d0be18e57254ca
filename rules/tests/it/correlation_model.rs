//! Random correlations over random streams against a model that goes through everything for every event: all kinds, conditions,
//! aliases, `generate`, correlations of correlations, of everyone and of a tenant, some turned off; shuffled, late and repeated
//! events of two tenants and several sources, numbers that are no exact decimals among them, while the clock is set; cut into
//! batches anyhow, saved and restored in between.
//!
//! Each run tries others: as many as a few seconds allow, or `TIDEGATE_CORRELATION_CASES`. What fails is made small, and printed.

mod naive;
mod specs;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use tidegate_events::Alert;
use tidegate_pipeline::Operator;
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::stream::{Event, batch, operator, process};
use crate::suppression::changes;
use naive::{AHEAD, LATENESS, Model, Told};
use specs::{Kind, Spec};

/// How long it goes on when nobody says how many cases there should be.
const PATIENCE: Duration = Duration::from_secs(10);
/// Values that are measured: decimals, texts that are no numbers, and numbers that are no exact decimals.
const VALUES: [&str; 12] = [
    "0",
    "1",
    "2",
    "1",
    "0.5",
    "-1",
    "2.4",
    "-0.3",
    "x",
    "0.1234567890123456789",
    "2.7182818284590452353",
    "100000000000000000",
];

/// A stream: mostly in order, with lateness, repetitions, pauses, sources whose clocks run ahead, and a clock that is set by
/// which events are received, often to where it was.
fn streams() -> impl Strategy<Value = Vec<Event>> {
    let some = |often: u32| prop_oneof![often => Just(true), 1 => Just(false)];
    let step = (
        (0i64..3, prop_oneof![20 => Just(0i64), 1 => 5i64..15, 1 => 15i64..60]),
        prop_oneof![6 => Just(0i64), 3 => 0i64..9, 1 => 9i64..25],
        (prop_oneof![4 => Just(0usize), 3 => Just(1), 2 => Just(2), 1 => Just(3)], some(9), some(9), 0..4usize),
        prop_oneof![5 => Just(None), 3 => (0..VALUES.len()).prop_map(Some)],
        (any::<u8>(), prop_oneof![12 => Just(0i64), 1 => 3i64..12]),
        prop_oneof![8 => Just(None), 1 => (0usize..10).prop_map(Some)],
        prop_oneof![24 => Just(0i64), 1 => -90i64..90, 1 => prop_oneof![Just(-86_400i64), Just(86_400i64)]],
    );
    proptest::collection::vec(step, 15..60).prop_map(|steps| {
        let (mut now, mut wrong, mut events) = (100_000i64, 0, Vec::<Event>::new());
        for (place, step) in steps.into_iter().enumerate() {
            let ((advance, pause), late, (kind, has_user, has_host, who), value, (from, ahead), repeat, set) = step;
            // Who set it wrong sets it right.
            let set = if set == 0 || wrong == 0 { set } else { -wrong };
            wrong += set;
            now += advance + pause + set;
            let again = repeat.and_then(|back| events.len().checked_sub(back + 1)).and_then(|at| events.get(at));
            if let Some(repeated) = again {
                let repeated = Event { received: now as f64, ..repeated.clone() };
                events.push(repeated);
                continue;
            }
            let mut fields = vec![("k".to_owned(), ["a", "b", "c", "d"][kind].to_owned())];
            if has_user {
                fields.push(("u".into(), ["kim", "lee"][who % 2].into()));
            }
            if has_host {
                fields.push(("h".into(), ["web", "dbs"][who / 2].into()));
            }
            if value.is_none_or(|value| value > 0) {
                fields.push(("v".into(), VALUES[value.unwrap_or(place % 3)].into()));
            }
            events.push(Event {
                id: format!("e{place}"),
                org: if from % 4 == 0 { "zeta" } else { "acme" }.into(),
                source: if from / 4 % 4 == 0 { "apache" } else { "nginx" }.into(),
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
    // Nothing is parked, however slow the machine is.
    let ns_max = u64::MAX;
    RulesConfig {
        lateness_ms_max: lateness,
        ahead_ms_max: ahead,
        suppress_s: 0,
        rule_event_ns_max: ns_max,
        correlation_event_ns_max: ns_max,
        ..RulesConfig::default()
    }
}

fn restored(before: &SigmaOperator) -> SigmaOperator {
    let mut operator = SigmaOperator::new(config()).expect("tables");
    operator.restore(&before.save()).expect("a state");
    operator
}

fn shown(specs: &[Spec], off: &[(&str, String)], events: &[Event]) -> String {
    let line = |event: &Event| {
        let fields: Vec<String> = event.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let Event { id, org, source, time, received, .. } = event;
        format!("{id} {org} {source} t={time} r={received} {}\n", fields.join(" "))
    };
    let files: String = specs::files(specs).iter().map(|(org, text)| format!("# {org}\n{text}")).collect();
    format!("{files}off: {off:?}\n{}", events.iter().map(line).collect::<String>())
}

fn told(alert: &Alert) -> Told {
    let second = |time: i64| time / 1_000_000;
    Told {
        org: alert.org_id.clone(),
        rule: alert.rule_id.clone(),
        group: alert.group_key.clone(),
        count: alert.event_count,
        ids: alert.event_ids.clone(),
        times: (second(alert.first_time), second(alert.last_time)),
    }
}

/// A set of correlations, what is off, a stream, and where it is cut and saved.
type Input = ((Vec<specs::Raw>, usize), Vec<(bool, usize)>, Vec<Event>, Vec<usize>, Vec<usize>);

fn input() -> impl Strategy<Value = Input> {
    let off = prop_oneof![4 => Just(Vec::new()), 1 => proptest::collection::vec((any::<bool>(), 0..8usize), 1..3)];
    let places = |range| proptest::collection::vec(range, 0..8);
    (specs::specs(), off, streams(), places(1usize..20), places(0usize..8))
}

/// What is different from what the model says, if anything is; the kinds of the correlations that fired.
fn check((raw, off, events, cuts, saves): &Input) -> Result<Vec<(Kind, bool)>, String> {
    let specs = specs::made(raw);
    let ids = ["id-a", "id-m1", "c0", "c1", "c2", "c0", "c1", "c2"];
    let off: Vec<(&'static str, String)> =
        off.iter().map(|(acme, id)| (if *acme { "acme" } else { "zeta" }, ids[*id].to_owned())).collect();
    let files = specs::files(&specs);
    let files: Vec<(&str, &str)> = files.iter().map(|(org, text)| (*org, text.as_str())).collect();
    let mut one_by_one = operator(config(), &files);
    for (org, id) in &off {
        process(&mut one_by_one, &changes(&[(org, "rule_off", id, "create", "{}".to_owned())]));
    }
    let mut cut_up = restored(&one_by_one);
    let mut model = Model::new(&specs, &off);
    let (mut all, mut fired) = (Vec::new(), Vec::new());
    for (row, event) in events.iter().enumerate() {
        let alerts = process(&mut one_by_one, &batch(std::slice::from_ref(event)));
        let mut found: Vec<Told> = alerts.iter().map(told).collect();
        let mut wanted = model.row(event);
        found.sort();
        wanted.sort();
        if found != wanted {
            let stream = shown(&specs, &off, &events[..=row]);
            return Err(format!("row {row}: found {found:#?}\nwanted {wanted:#?}\n{stream}"));
        }
        let of = |alert: &Alert| specs.iter().find(|spec| spec.id == alert.rule_id);
        fired.extend(alerts.iter().filter_map(of).map(|spec| (spec.kind, spec.is_eager())));
        all.extend(alerts);
    }
    let (mut again, mut rest) = (Vec::new(), events.as_slice());
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
    if again != all {
        let stream = shown(&specs, &off, events);
        return Err(format!("other alerts in batches {cuts:?}, saved {saves:?}: {again:#?}\nnot {all:#?}\n{stream}"));
    }
    Ok(fired)
}

fn cases() -> Option<usize> {
    #[expect(clippy::disallowed_methods, reason = "the size of a test on demand")]
    let wanted = std::env::var("TIDEGATE_CORRELATION_CASES");
    wanted.ok().and_then(|count| count.parse().ok())
}

#[test]
fn correlations_are_those_of_the_model_whatever_the_batches_and_checkpoints() {
    let (started, wanted) = (Instant::now(), cases());
    let (tried, fired) = (Cell::new(0usize), RefCell::new(BTreeMap::<(Kind, bool), usize>::new()));
    // At least so many that some fire, however slow the machine is.
    while tried.get() < wanted.unwrap_or(20) || (wanted.is_none() && started.elapsed() < PATIENCE) {
        let config = Config { cases: 1, failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
        let result = TestRunner::new(config).run(&input(), |input| {
            for kind in check(&input).map_err(TestCaseError::fail)? {
                *fired.borrow_mut().entry(kind).or_default() += 1;
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("case {}: {error}", tried.get());
        }
        tried.set(tried.get() + 1);
    }
    println!("{} cases in {:?}; alerts by kind: {:?}", tried.get(), started.elapsed(), fired.borrow());
    assert!(!fired.borrow().is_empty(), "nothing fired in {} cases", tried.get());
}

#[test]
fn every_kind_of_correlation_is_tried_and_fires() {
    // The same in every run, so that the one above is known to explore.
    let config = Config { failure_persistence: None, ..Config::default() };
    let rng = prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let every = || Kind::ALL.into_iter().flat_map(|kind| [(kind, true), (kind, false)]);
    let (mut made, mut fired) = (BTreeMap::<(Kind, bool), usize>::new(), BTreeMap::<(Kind, bool), usize>::new());
    let (mut chains, mut owned, mut late) = (0, 0, 0);
    for case in 0..400 {
        let input = input().new_tree(&mut runner).expect("an input").current();
        for spec in specs::made(&input.0) {
            *made.entry((spec.kind, spec.is_eager())).or_default() += 1;
            chains += usize::from(spec.rules.iter().any(|rule| rule.starts_with('c') && rule.len() > 1));
            owned += usize::from(spec.org.is_some());
        }
        late += input.2.iter().filter(|event| event.received - event.time > LATENESS as f64).count();
        if every().any(|kind| !fired.contains_key(&kind)) {
            for kind in check(&input).unwrap_or_else(|error| panic!("case {case}: {error}")) {
                *fired.entry(kind).or_default() += 1;
            }
        }
    }
    for kind in every() {
        assert!(made.get(&kind) > Some(&5), "{kind:?}: {made:?}");
        assert!(fired.contains_key(&kind), "{kind:?} never fired: {fired:?}");
    }
    assert!(chains > 50 && owned > 20 && late > 100, "{chains} chains, {owned} of a tenant, {late} late events");
}
