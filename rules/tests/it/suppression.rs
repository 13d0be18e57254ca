//! Suppression: the operator against a naive model, over shuffled and late events, batches cut anywhere, states saved and
//! restored anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use proptest::prelude::*;
use tidegate_events::{Alert, Dataset, alert_id};
use tidegate_pipeline::{Emitter, LogBatch, Operator};
use tidegate_rules::{RulesConfig, SigmaOperator};

const SECOND: i64 = 1_000_000;
const SPAN: i64 = 300 * SECOND;
const LATENESS: i64 = 60 * SECOND;

/// Each matches events whose `f` is in its text, with its span and the field of its group. In the order in which they load.
const RULES: [(&str, &str, i64, &str); 3] =
    [("always", "c", 0, "actor"), ("by-entity", "ab", SPAN, "actor"), ("by-g", "bc", 30 * SECOND, "g")];

fn rule_text(id: &str) -> String {
    let (values, attribute) = match id {
        "by-entity" => ("[a, b]", ""),
        "by-g" => ("[b, c]", "tidegate: {group_by: [g], suppress: 30s}\n"),
        _ => ("c", "tidegate: {suppress: 0}\n"),
    };
    format!(
        "title: {id}\nid: {id}\nlogsource: {{product: test}}\n{attribute}detection: {{s: {{f: {values}}}, condition: s}}\n"
    )
}

/// One event; times in seconds.
#[derive(Debug, Clone)]
pub struct Row {
    pub org: &'static str,
    pub time: i64,
    pub received: i64,
    pub actor: Option<&'static str>,
    pub f: &'static str,
    pub g: Option<&'static str>,
}

/// Rows from a number on, which is in their ids.
pub fn batch(rows: &[Row], first: usize) -> LogBatch {
    let times = |of: fn(&Row) -> i64| -> ArrayRef {
        let times = rows.iter().map(|row| of(row) * SECOND);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let texts =
        |of: fn(&Row) -> Option<&'static str>| -> ArrayRef { Arc::new(rows.iter().map(of).collect::<StringArray>()) };
    let ids: StringArray = (0..rows.len()).map(|row| Some(format!("e{}", first + row))).collect();
    let columns = [
        ("time", times(|row| row.time)),
        ("received_time", times(|row| row.received)),
        ("event_id", Arc::new(ids)),
        ("org_id", texts(|row| Some(row.org))),
        ("source", texts(|_| Some("test"))),
        ("actor", texts(|row| row.actor)),
        ("f", texts(|row| Some(row.f))),
        ("g", texts(|row| row.g)),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)));
    LogBatch { offset: first as u64, dataset: Dataset::SecurityEvents, rows: rows.expect("a batch") }
}

/// A batch of `changes`: (tenant, kind, target, action, body).
pub fn changes(rows: &[(&str, &str, &str, &str, String)]) -> LogBatch {
    let texts = |of: fn(&(&str, &str, &str, &str, String)) -> String| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>())
    };
    let columns = [
        ("org_id", texts(|row| row.0.into())),
        ("kind", texts(|row| row.1.into())),
        ("target_id", texts(|row| row.2.into())),
        ("action", texts(|row| row.3.into())),
        ("body", texts(|row| row.4.clone())),
    ];
    LogBatch { offset: 0, dataset: Dataset::Changes, rows: RecordBatch::try_from_iter(columns).expect("a batch") }
}

/// The alerts of a batch.
pub fn process(operator: &mut SigmaOperator, batch: &LogBatch) -> Vec<Alert> {
    let mut out = Emitter::default();
    operator.process(batch, &mut out);
    out.take_alerts()
}

/// An operator with the three rules for everyone.
pub fn operator(config: &RulesConfig) -> SigmaOperator {
    let mut operator = SigmaOperator::new(config.clone()).expect("tables");
    let rule = |(id, ..): (&'static str, &str, i64, &str)| {
        ("default", "rule", id, "create", serde_json::json!({ "text": rule_text(id) }).to_string())
    };
    assert_eq!(process(&mut operator, &changes(&RULES.map(rule))), []);
    assert_eq!(operator.problems(), []);
    operator
}

/// What of an alert the model knows.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    alert_id: String,
    org: String,
    rule: String,
    group: String,
    times: (i64, i64),
    ids: Vec<String>,
    continues: Option<String>,
}

fn told(alert: &Alert) -> Told {
    assert_eq!(alert.event_count as usize, alert.event_ids.len());
    assert_eq!(alert.continues.is_some(), alert.message.contains("(continued: "), "{}", alert.message);
    Told {
        alert_id: alert.alert_id.clone(),
        org: alert.org_id.clone(),
        rule: alert.rule_id.clone(),
        group: alert.group_key.clone(),
        times: (alert.first_time, alert.last_time),
        ids: alert.event_ids.clone(),
        continues: alert.continues.clone(),
    }
}

struct ModelWindow {
    opened: usize,
    org: String,
    rule: String,
    group: String,
    end: i64,
    span: i64,
    due: (i64, i64),
    first_id: String,
    continued: u32,
    counted: Option<Told>,
}

/// The rules of suppression, said once more, slowly: every window is looked at for every row.
#[derive(Default)]
struct Model {
    windows: Vec<ModelWindow>,
    reached: BTreeMap<String, i64>,
    received: i64,
    opened: usize,
    raised: Vec<Told>,
    /// In the order in which they came.
    orgs: Vec<&'static str>,
}

impl Model {
    /// A clock was set back: event time goes back too, and windows that begin where no event of now can be are over.
    fn fall(&mut self, received: i64) {
        self.received = received;
        self.reached.values_mut().for_each(|reached| *reached = received.min(*reached));
        for org in self.orgs.clone() {
            let later = |window: &ModelWindow| window.org == org && window.end - window.span > received + 600 * SECOND;
            while let Some(next) = self.next_due(|window, _| (window.due.1, later(window))) {
                let open = self.opened;
                self.close(next);
                // It opens no other.
                self.windows.retain(|window| window.opened < open);
                self.opened = open;
            }
        }
    }

    fn row(&mut self, at: usize, row: &Row) {
        let (time, received) = (row.time * SECOND, row.received * SECOND);
        if !self.orgs.contains(&row.org) {
            self.orgs.push(row.org);
        }
        if received < self.received.saturating_sub(LATENESS) {
            self.fall(received);
        }
        self.received = self.received.max(received);
        while let Some(next) = self.next_due(|window, model| (window.due.0, window.due.0 <= model.received)) {
            self.close(next);
        }
        let latest = received + 600 * SECOND;
        let reached = self.reached.entry(row.org.into()).or_insert(i64::MIN);
        if time <= latest {
            *reached = time.max(*reached);
        }
        let (org, reached) = (row.org, *reached);
        while let Some(next) = self.next_due(|window, _| (window.due.1, window.org == org && window.due.1 <= reached)) {
            self.close(next);
        }
        for (rule, values, span, field) in RULES {
            if !values.contains(row.f) {
                continue;
            }
            let value = if field == "g" { row.g } else { row.actor };
            let group = value.map_or(String::new(), |value| format!("{field}={value}"));
            self.meet(at, row, (rule, span), &group, time.min(latest));
        }
    }

    fn next_due(&self, due: impl Fn(&ModelWindow, &Self) -> (i64, bool)) -> Option<usize> {
        let open = self.windows.iter().enumerate().filter(|(_, window)| due(window, self).1);
        open.min_by_key(|(_, window)| (due(window, self).0, window.opened)).map(|(at, _)| at)
    }

    fn meet(&mut self, at: usize, row: &Row, (rule, span): (&str, i64), group: &str, placed: i64) {
        let time = row.time * SECOND;
        let id = format!("e{at}");
        let one = Told {
            alert_id: alert_id(row.org, rule, group, &id),
            org: row.org.into(),
            rule: rule.into(),
            group: group.into(),
            times: (time, time),
            ids: vec![id.clone()],
            continues: None,
        };
        let same =
            |window: &ModelWindow| window.org == row.org && window.rule == rule && window.group == group && span > 0;
        while let Some(own) = self.windows.iter().position(same) {
            let window = &mut self.windows[own];
            if placed >= window.end {
                self.close(own);
                continue;
            }
            match &mut window.counted {
                Some(counted) => {
                    counted.times = (counted.times.0.min(time), counted.times.1.max(time));
                    counted.ids.push(id);
                }
                none => *none = Some(one),
            }
            return;
        }
        if span > 0 {
            self.open(row.org, rule, group, placed, span, one.alert_id.clone(), 0);
        }
        self.raised.push(one);
    }

    #[expect(clippy::too_many_arguments, reason = "a model spells everything out")]
    fn open(&mut self, org: &str, rule: &str, group: &str, start: i64, span: i64, first_id: String, continued: u32) {
        let reached = self.reached.get(org).copied().unwrap_or(i64::MIN);
        let wait = span + LATENESS;
        self.windows.push(ModelWindow {
            opened: self.opened,
            org: org.into(),
            rule: rule.into(),
            group: group.into(),
            end: start + span,
            span,
            due: (self.received + wait, start.max(reached) + wait),
            first_id,
            continued,
            counted: None,
        });
        self.opened += 1;
    }

    fn close(&mut self, at: usize) {
        let window = self.windows.remove(at);
        let Some(mut counted) = window.counted else { return };
        let which = format!("{}/{}", window.first_id, window.continued);
        counted.alert_id = alert_id(&window.org, &window.rule, &window.group, &which);
        counted.continues = Some(window.first_id.clone());
        self.raised.push(counted);
        let ModelWindow { org, rule, group, end, span, first_id, continued, .. } = window;
        self.open(&org, &rule, &group, end, span, first_id, continued + 1);
    }
}

/// Events of two tenants, mostly in order, some late, some from clocks that run ahead, received as time goes on by a clock that is
/// set now and then.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    let jitter = prop_oneof![6 => -20i64..20, 2 => -400i64..60, 1 => -5000i64..-400, 1 => 500i64..5000];
    let step = prop_oneof![8 => 0i64..15, 2 => 15i64..90, 1 => 300i64..900];
    let actor = prop_oneof![Just(Some("kim")), Just(Some("lee")), Just(None)];
    let set = prop_oneof![30 => Just(0i64), 1 => -900i64..900, 1 => prop_oneof![Just(-86_400i64), Just(86_400i64)]];
    let row = (step, jitter, any::<bool>(), actor, 0..5usize, prop_oneof![Just(None), Just(Some("1"))], set);
    proptest::collection::vec(row, 1..120).prop_map(|rows| {
        let mut now = 100_000;
        let mut wrong = 0;
        let row = |(step, jitter, org, actor, f, g, set): (i64, i64, bool, _, usize, _, i64)| {
            // Who set the clock wrong sets it right.
            let set = if set == 0 || wrong == 0 { set } else { -wrong };
            wrong += set;
            now += step + set;
            let f = ["a", "b", "c", "x", "y"][f];
            Row { org: if org { "acme" } else { "globex" }, time: now + jitter, received: now, actor, f, g }
        };
        rows.into_iter().map(row).collect()
    })
}

/// An event that matches nothing and after which no window counts anything any more.
fn last_of(org: &'static str) -> Row {
    Row { org, time: 1_000_000, received: 1_000_000, actor: None, f: "x", g: None }
}

/// Every row, in batches that end at `cuts`; the state goes through `save` and `restore` between them when `restored`.
fn run(config: &RulesConfig, rows: &[Row], cuts: &[usize], restored: bool) -> Vec<Alert> {
    let mut own = operator(config);
    let mut alerts = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (rows.len() + 1)).chain([0, rows.len()]).collect();
    cuts.sort_unstable();
    for range in cuts.windows(2).filter(|range| range[0] < range[1]) {
        alerts.extend(process(&mut own, &batch(&rows[range[0]..range[1]], range[0])));
        if restored {
            let state = own.save();
            own = SigmaOperator::new(config.clone()).expect("tables");
            own.restore(&state).expect("a state");
            assert_eq!(own.save(), state);
        }
    }
    alerts
}

/// Matches by tenant and rule.
fn matches(rows: &[Row]) -> BTreeMap<(&str, &str), i64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        for (rule, ..) in RULES.iter().filter(|(_, values, ..)| values.contains(row.f)) {
            *counts.entry((row.org, *rule)).or_default() += 1;
        }
    }
    counts
}

fn counted(alerts: &[Alert]) -> BTreeMap<(&str, &str), i64> {
    let mut counts = BTreeMap::new();
    for alert in alerts {
        *counts.entry((alert.org_id.as_str(), alert.rule_id.as_str())).or_default() += alert.event_count;
    }
    counts
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn alerts_are_those_of_the_model_however_batches_are_cut(
        mut rows in rows(),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        rows.push(last_of("acme"));
        let config = RulesConfig { alert_event_ids_max: usize::MAX, ..RulesConfig::default() };
        let mut model = Model { received: i64::MIN, ..Model::default() };
        rows.iter().enumerate().for_each(|(at, row)| model.row(at, row));
        let whole = run(&config, &rows, &[], false);
        prop_assert_eq!(whole.iter().map(told).collect::<Vec<_>>(), model.raised);
        prop_assert_eq!(counted(&whole), matches(&rows));
        prop_assert_eq!(&run(&config, &rows, &cuts, false), &whole);
        prop_assert_eq!(&run(&config, &rows, &cuts, true), &whole);
        let mut ids: Vec<_> = whole.iter().map(|alert| &alert.alert_id).collect();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids.len(), whole.len());
    }

    #[test]
    fn bounds_lose_nothing_and_change_nothing_when_restored(
        mut rows in rows(),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
        groups in 1..3usize,
        bytes in prop_oneof![Just(0usize), 500..4000usize],
    ) {
        rows.push(last_of("globex"));
        let config = RulesConfig {
            suppress_groups_max: groups,
            suppress_bytes_max: bytes,
            alert_event_ids_max: 2,
            ..RulesConfig::default()
        };
        let whole = run(&config, &rows, &[], false);
        prop_assert_eq!(counted(&whole), matches(&rows));
        prop_assert!(whole.iter().all(|alert| alert.event_ids.len() <= 2));
        prop_assert_eq!(&run(&config, &rows, &cuts, true), &whole);
        // What is too much for a second goes out when it is over, wherever batches begin and end.
        let few = RulesConfig { alerts_per_second_max: 1, ..config.clone() };
        rows.push(Row { received: 1_000_001, ..last_of("globex") });
        let few_alerts = run(&few, &rows, &[], false);
        prop_assert_eq!(counted(&few_alerts), matches(&rows));
        prop_assert_eq!(&run(&few, &rows, &cuts, true), &few_alerts);
        prop_assert!(few_alerts.len() <= run(&config, &rows, &[], false).len());
    }

    #[test]
    fn damaged_states_are_refused_without_a_panic(rows in rows(), at in any::<usize>(), byte in any::<u8>()) {
        let mut own = operator(&RulesConfig::default());
        process(&mut own, &batch(&rows, 0));
        let state = own.save();
        let mut restored = SigmaOperator::new(RulesConfig::default()).expect("tables");
        prop_assert!(restored.restore(&state[..at % state.len()]).is_err());
        let mut damaged = state.clone();
        let place = at % damaged.len();
        damaged[place] = byte;
        // Not all damage can be seen here (a checkpoint has a checksum), but what comes of it works.
        let _ = restored.restore(&damaged);
        process(&mut restored, &batch(&rows, 0));
    }
}

#[test]
fn a_burst_is_two_alerts_and_says_how_many_more() {
    let mut own = operator(&RulesConfig::default());
    let at = |time: i64| Row { org: "acme", time, received: time, actor: Some("kim, x"), f: "a", g: None };
    let rows: Vec<Row> = (0..50).map(|second| at(1_000 + second)).collect();
    let alerts = process(&mut own, &batch(&rows, 0));
    let [first] = alerts.as_slice() else { panic!("{alerts:?}") };
    assert_eq!((first.group_key.as_str(), first.event_count), (r#"actor="kim, x""#, 1));
    assert_eq!((first.message.as_str(), first.continues.as_deref()), ("by-entity: f=a", None));
    let quiet = Row { f: "x", ..at(1_400) };
    let alerts = process(&mut own, &batch(&[quiet], 50));
    let [more] = alerts.as_slice() else { panic!("{alerts:?}") };
    assert_eq!((more.event_count, more.first_time, more.last_time), (49, 1_001 * SECOND, 1_049 * SECOND));
    assert_eq!(more.message, "by-entity: f=a (continued: 49 more in 5m)");
    assert_eq!(more.continues.as_ref(), Some(&first.alert_id));
    assert_eq!(more.group_key, first.group_key);
    // It went on, so it is counted on; once it stopped for a whole window, the next match is raised at once.
    assert_eq!(process(&mut own, &batch(&[at(1_500)], 51)), []);
    assert_eq!(process(&mut own, &batch(&[at(1_700)], 52)).len(), 1, "the one before");
    assert_eq!(
        process(&mut own, &batch(&[at(3_000)], 53)).iter().map(|alert| alert.event_count).collect::<Vec<_>>(),
        [1, 1]
    );
}

#[test]
fn a_stream_whose_times_stand_still_is_told_of_by_receive_time() {
    let mut own = operator(&RulesConfig::default());
    let at = |received: i64| Row { org: "acme", time: 1_000, received, actor: Some("kim"), f: "a", g: None };
    assert_eq!(process(&mut own, &batch(&[at(5_000), at(5_001), at(5_359)], 0)).len(), 1);
    let other = Row { org: "globex", f: "x", ..at(5_360) };
    assert_eq!(process(&mut own, &batch(&[other], 3)).len(), 1, "another tenant's event moves receive time");
}
