//! The operator: rules from `changes`, alerts out, state saved and restored.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use serde_json::json;
use tidegate_events::{Alert, Dataset, Level, alert_id};
use tidegate_pipeline::{Emitter, LogBatch, Operator};
use tidegate_rules::{RulesConfig, SigmaOperator};

use crate::flatten::Events;
use crate::stream::{self, Event, at};

fn rule(id: &str, value: &str) -> String {
    format!(
        "title: Found {value}\nid: {id}\nlevel: high\ntags: [attack.t1078]\nlogsource: {{product: test}}\n\
         detection: {{s: {{f: {value}}}, condition: s}}\n"
    )
}

/// A change: (tenant, name, action, text).
type Change<'a> = (&'a str, &'a str, &'a str, &'a str);

/// A batch of `changes`.
fn changes(rows: &[Change<'_>]) -> LogBatch {
    let column = |of: fn(&Change<'_>) -> String| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>())
    };
    let columns = [
        ("org_id", column(|row| row.0.into())),
        ("kind", column(|_| "rule".into())),
        ("target_id", column(|row| row.1.into())),
        ("action", column(|row| row.2.into())),
        ("body", column(|row| json!({ "text": row.3 }).to_string())),
    ];
    LogBatch { offset: 0, dataset: Dataset::Changes, rows: RecordBatch::try_from_iter(columns).expect("a batch") }
}

fn process(operator: &mut SigmaOperator, batch: &LogBatch) -> Vec<Alert> {
    let mut out = Emitter::default();
    operator.process(batch, &mut out);
    out.take_alerts()
}

/// Every match is an alert.
fn raw() -> RulesConfig {
    RulesConfig { suppress_s: 0, ..RulesConfig::default() }
}

fn with_rules(config: RulesConfig, rows: &[Change<'_>]) -> SigmaOperator {
    let mut operator = SigmaOperator::new(config).expect("tables");
    assert_eq!(process(&mut operator, &changes(rows)), []);
    operator
}

fn events(values: &[&str]) -> Events {
    Events::security("test", &values.iter().map(|value| json!({"f": value, "g": 7})).collect::<Vec<_>>())
}

fn ids(alerts: &[Alert]) -> Vec<(&str, &str)> {
    alerts.iter().map(|alert| (alert.rule_id.as_str(), alert.event_ids[0].as_str())).collect()
}

#[test]
fn an_alert_says_what_matched_and_has_a_stable_id() {
    let mut operator = with_rules(RulesConfig::default(), &[("default", "a.yml", "create", &rule("r1", "x"))]);
    let alerts = process(&mut operator, &events(&["y", "x"]).batch(100));
    let [alert] = alerts.as_slice() else { panic!("{alerts:?}") };
    assert_eq!(alert.alert_id, alert_id("acme", "r1", "", "e101"));
    assert_eq!((alert.org_id.as_str(), alert.source.as_str(), alert.level), ("acme", "test", Level::High));
    assert_eq!((alert.first_time, alert.last_time, alert.event_count), (1_000_000, 1_000_000, 1));
    assert_eq!((alert.title.as_str(), alert.message.as_str()), ("Found x", "Found x: f=x"));
    assert_eq!(alert.matched, r#"{"f":"x"}"#);
    assert_eq!((alert.tags.as_slice(), alert.group_key.as_str()), (["attack.t1078".to_owned()].as_slice(), ""));
}

#[test]
fn a_keyword_rule_shows_the_column_that_holds_the_keyword() {
    let text = "title: K\nid: k\nlogsource: {product: test}\ndetection: {s: [Needle], condition: s}\n";
    let mut operator = with_rules(RulesConfig::default(), &[("default", "a.yml", "create", text)]);
    let alerts = process(&mut operator, &events(&["a NEEDLE b"]).batch(0));
    assert_eq!(alerts[0].matched, r#"{"f":"a NEEDLE b"}"#);
}

#[test]
fn changes_take_effect_for_the_rows_after_them() {
    let mut operator = SigmaOperator::new(raw()).expect("tables");
    let batch = events(&["x", "y"]).batch(0);
    assert_eq!(process(&mut operator, &batch), []);
    process(&mut operator, &changes(&[("default", "a.yml", "create", &rule("r1", "x"))]));
    assert_eq!(ids(&process(&mut operator, &batch)), [("r1", "e0")]);
    process(
        &mut operator,
        &changes(&[("default", "a.yml", "update", &rule("r1", "y")), ("default", "b.yml", "create", "no rule")]),
    );
    assert_eq!(ids(&process(&mut operator, &batch)), [("r1", "e1")]);
    assert_eq!(operator.problems().len(), 1, "b.yml");
    process(&mut operator, &changes(&[("default", "a.yml", "delete", "")]));
    assert_eq!(process(&mut operator, &batch), []);
}

#[test]
fn rules_of_a_tenant_see_only_its_events() {
    let global = rule("r1", "x");
    let own = rule("r2", "x");
    let mut operator = with_rules(raw(), &[("default", "a.yml", "create", &global), ("acme", "a.yml", "create", &own)]);
    let mut batch = events(&["x", "x"]);
    batch.rows[1].0 = "other".into();
    let alerts = process(&mut operator, &batch.batch(0));
    assert_eq!(ids(&alerts), [("r1", "e0"), ("r2", "e0"), ("r1", "e1")]);
    // A tenant cannot take the id of a rule for everyone, nor delete it.
    process(&mut operator, &changes(&[("acme", "a.yml", "update", &global)]));
    assert_eq!(operator.problems().len(), 1);
    process(&mut operator, &changes(&[("acme", "a.yml", "delete", "")]));
    assert_eq!(ids(&process(&mut operator, &batch.batch(0))), [("r1", "e0"), ("r1", "e1")]);
}

#[test]
fn a_storm_is_bounded_per_rule_and_tenant_and_second_however_it_is_cut() {
    let config = RulesConfig { alerts_per_second_max: 2, alert_event_ids_max: 3, ..raw() };
    let of = |number: u32| Event {
        org: if number == 9 { "other" } else { "acme" }.into(),
        received: if number < 12 { 5.5 } else { 6.0 },
        ..at(&format!("e{number}"), f64::from(number), &[("f", "x")])
    };
    let list: Vec<Event> = (0..13).map(of).collect();
    let said = |alerts: &[Alert]| -> Vec<(String, i64, usize)> {
        alerts.iter().map(|alert| (alert.org_id.clone(), alert.event_count, alert.event_ids.len())).collect()
    };
    let acme = |count: i64, ids: usize| ("acme".to_owned(), count, ids);
    let wanted = [acme(1, 1), acme(1, 1), ("other".into(), 1, 1), acme(9, 3), acme(1, 1)];
    let mut first: Option<Vec<Alert>> = None;
    for piece in [13, 1, 2, 5, 7] {
        let mut operator = with_rules(config.clone(), &[("default", "a.yml", "create", &rule("r1", "x"))]);
        let mut alerts = Vec::new();
        for events in list.chunks(piece) {
            alerts.extend(process(&mut operator, &stream::batch(events)));
            let mut restored = SigmaOperator::new(config.clone()).expect("tables");
            restored.restore(&operator.save()).expect("a state");
            operator = restored;
        }
        assert_eq!(said(&alerts), wanted, "pieces of {piece}");
        assert_eq!((alerts[3].first_time, alerts[3].last_time), (2_000_000, 11_000_000));
        assert_eq!(alerts, *first.get_or_insert_with(|| alerts.clone()));
    }
}

#[test]
fn rule_texts_and_state_stay_within_their_bounds() {
    let text = rule("r1", "x");
    let config = RulesConfig { tenant_files_bytes_max: text.len() + 10, files_bytes_max: 3 * text.len(), ..raw() };
    let changes: Vec<Change<'_>> = vec![
        ("acme", "a.yml", "create", &text),
        ("acme", "b.yml", "create", "title: too much"),
        ("default", "c.yml", "create", "title: C"),
        ("zeta", "a.yml", "create", &text),
        ("yota", "a.yml", "create", &text),
    ];
    let mut operator = with_rules(config.clone(), &changes);
    let orgs: Vec<Option<String>> =
        operator.rules().rules().iter().map(|rule| rule.head.org_id.as_deref().map(str::to_owned)).collect();
    assert_eq!(orgs, [Some("acme".to_owned()), Some("zeta".into())]);
    assert_eq!(operator.problems().len(), 1, "of c.yml, and nothing of what was not taken");
}

#[test]
fn a_restored_operator_raises_the_same_alerts() {
    let mut operator = with_rules(
        raw(),
        &[("default", "a.yml", "create", &rule("r1", "x")), ("acme", "b.yml", "create", &rule("r2", "x"))],
    );
    let mut restored = SigmaOperator::new(raw()).expect("tables");
    restored.restore(&operator.save()).expect("a state");
    let batch = events(&["x", "y", "x"]).batch(7);
    let alerts = process(&mut operator, &batch);
    assert_eq!(alerts.len(), 4);
    assert_eq!(process(&mut restored, &batch), alerts);
    assert_eq!(restored.save(), operator.save());
    for bad in [&b""[..], b"{}", b"{\"version\":9,\"files\":[]}"] {
        assert!(restored.restore(bad).is_err());
    }
}

#[test]
fn broken_change_rows_are_ignored() {
    let mut operator = with_rules(raw(), &[("default", "a.yml", "create", &rule("r1", "x"))]);
    let mut batch = changes(&[("default", "a.yml", "update", "x"), ("default", "a.yml", "park", "x")]);
    let body: ArrayRef = Arc::new(StringArray::from(vec![Some("not json"), None]));
    let mut columns: Vec<(String, ArrayRef)> = batch
        .rows
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .zip(batch.rows.columns().to_vec())
        .collect();
    columns[4].1 = body;
    batch.rows = RecordBatch::try_from_iter(columns).expect("a batch");
    process(&mut operator, &batch);
    let empty =
        RecordBatch::try_from_iter([("kind", Arc::new(StringArray::from(vec!["rule"])) as ArrayRef)]).expect("a batch");
    process(&mut operator, &LogBatch { offset: 0, dataset: Dataset::Changes, rows: empty });
    assert_eq!(process(&mut operator, &events(&["x"]).batch(0)).len(), 1);
}
