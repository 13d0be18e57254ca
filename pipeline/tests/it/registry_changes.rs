//! The registry is the outcome of the changes in the log, live and after a restart, whatever happens to its snapshots.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tidegate_events::Dataset;
use tidegate_pipeline::fs::{Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::registry::{
    Action, Change, Registry, RegistryConfig, changes_in, changes_of_batch, changes_to_batch,
};
use tidegate_pipeline::{Append, AppendReply, LogBatch, LogBounds, LogReader, PipelineError, StreamLog};

use crate::scripted::{Fate, ScriptedLog, events, until};

const DIR: &str = "/data/registry";

fn open(log: &Arc<ScriptedLog>, fs: &SimFs) -> Registry {
    open_with(log, fs, RegistryConfig::default())
}

fn open_with(log: &Arc<ScriptedLog>, fs: &SimFs, config: RegistryConfig) -> Registry {
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let changes = |from| changes_in(&**log, from, 1 << 20);
    Registry::open(shared, Path::new(DIR), log.clone(), config, changes).expect("a registry")
}

fn change(action: Action, org_id: &str, target_id: &str, body: Value) -> Change {
    Change {
        time_us: 5,
        change_id: String::new(),
        org_id: org_id.into(),
        actor: "local".into(),
        kind: "rule".into(),
        target_id: target_id.into(),
        action,
        body,
    }
}

/// The bodies of the things of a kind of a tenant.
fn bodies(registry: &Registry, org_id: &str) -> Vec<String> {
    registry.list(org_id, "rule").iter().map(|entry| format!("{} {}", entry.id, entry.body)).collect()
}

/// All that a registry holds of the kinds that the tests use.
fn everything(registry: &Registry) -> Vec<String> {
    ["rule", "key"]
        .iter()
        .flat_map(|kind| registry.all(kind).values().map(|entry| format!("{kind} {entry:?}")).collect::<Vec<_>>())
        .collect()
}

#[test]
fn changes_are_what_their_rows_say() {
    let changes = vec![
        Change { change_id: "1".into(), ..change(Action::Create, "acme", "r", json!({"title": "é", "n": [1, null]})) },
        Change { change_id: "2".into(), ..change(Action::Delete, "b", "s", Value::Null) },
        Change { change_id: "3".into(), ..change(Action::Update, "c", "t", json!("text")) },
    ];
    let batch = changes_to_batch(&changes).expect("a batch");
    assert_eq!(batch.schema(), Dataset::Changes.core_schema());
    let read: Vec<Change> = changes_of_batch(&batch).map(|change| change.expect("a change")).collect();
    assert_eq!(read, changes);
}

#[test]
fn rows_that_are_no_changes_are_errors_of_their_own() {
    let read: Vec<_> = changes_of_batch(&events(&[("e", "a", 1, 1)])).collect();
    assert_eq!(read, [Err("the change has no kind".to_owned())]);
}

#[tokio::test]
async fn create_update_and_delete_do_what_they_say_for_one_tenant() {
    let registry = open(&ScriptedLog::new(), &SimFs::new());
    let mut watch = registry.watch();
    registry
        .apply(vec![change(Action::Create, "a", "r1", json!(1)), change(Action::Create, "b", "r1", json!(2))])
        .await
        .expect("applied");
    assert!(watch.has_changed().expect("open"));
    watch.mark_unchanged();
    assert_eq!((bodies(&registry, "a"), bodies(&registry, "b")), (vec!["r1 1".to_owned()], vec!["r1 2".to_owned()]));
    registry
        .apply(vec![change(Action::Update, "a", "r1", json!(3)), change(Action::Delete, "b", "r1", Value::Null)])
        .await
        .expect("applied");
    assert_eq!((bodies(&registry, "a"), bodies(&registry, "b")), (vec!["r1 3".to_owned()], vec![]));
    assert!(watch.has_changed().expect("open"));
    assert_eq!(registry.get("a", "rule", "r1").expect("r1").created_us, 5);
    assert_eq!(registry.get("a", "rule", "r1").expect("r1").offset, 2, "the place of the last change");
    assert!(registry.get("b", "rule", "r1").is_none());
    assert!(registry.get("a", "key", "r1").is_none());
    assert_eq!(registry.get("a", "rule", "r1").expect("r1").change_id.len(), 36, "an id is made");
}

#[tokio::test]
async fn an_update_keeps_when_a_thing_was_made_and_a_second_create_makes_it_anew() {
    let registry = open(&ScriptedLog::new(), &SimFs::new());
    let steps = [
        (Action::Create, 5, (5, 5)),
        (Action::Update, 6, (5, 6)),
        (Action::Create, 7, (7, 7)),
        (Action::Update, 8, (7, 8)),
    ];
    for (action, time_us, expected) in steps {
        registry.apply(vec![Change { time_us, ..change(action, "a", "r", json!(1)) }]).await.expect("applied");
        let entry = registry.get("a", "rule", "r").expect("r");
        assert_eq!((entry.created_us, entry.updated_us), expected, "{action} at {time_us}");
    }
}

#[tokio::test]
async fn a_tenant_whose_name_begins_like_another_sees_its_own_only() {
    let registry = open(&ScriptedLog::new(), &SimFs::new());
    for org in ["acme", "acme-2", "acm", "acme."] {
        registry.apply(vec![change(Action::Create, org, "r", json!(org))]).await.expect("applied");
    }
    assert_eq!(bodies(&registry, "acme"), ["r \"acme\""]);
}

#[tokio::test]
async fn nothing_changes_when_the_log_refuses() {
    let log = ScriptedLog::new();
    let registry = open(&log, &SimFs::new());
    for fate in [Fate::Full, Fate::Fails] {
        log.fate(0, fate);
        let error = registry.apply(vec![change(Action::Create, "a", "r", json!(1))]).await.expect_err("refused");
        assert!(matches!(error, PipelineError::Append(_)), "{error}");
        assert!(everything(&registry).is_empty());
        assert!(!registry.watch().has_changed().expect("open"));
    }
    registry.apply(vec![change(Action::Create, "a", "r", json!(1))]).await.expect("applied");
    assert_eq!(bodies(&registry, "a"), ["r 1"]);
}

#[tokio::test]
async fn a_change_that_the_log_has_already_is_not_applied_again() {
    let log = ScriptedLog::new();
    let registry = open(&log, &SimFs::new());
    let first = Change { change_id: "c1".into(), ..change(Action::Create, "a", "r", json!(1)) };
    registry.apply(vec![first.clone()]).await.expect("applied");
    registry.apply(vec![change(Action::Update, "a", "r", json!(2))]).await.expect("applied");
    registry.apply(vec![first]).await.expect("known");
    assert_eq!(bodies(&registry, "a"), ["r 2"]);
    assert_eq!(log.bounds().next, 2);
}

#[tokio::test]
async fn bounds_are_kept() {
    let config = RegistryConfig { entries_max: 2, body_bytes_max: 10, ..RegistryConfig::default() };
    let registry = open_with(&ScriptedLog::new(), &SimFs::new(), config);
    let long = "x".repeat(300);
    let refused = [
        vec![change(Action::Create, "a", "", json!(1))],
        vec![change(Action::Create, "a", &long, json!(1))],
        vec![change(Action::Create, "", "r", json!(1))],
        vec![change(Action::Create, "a", "r", json!("0123456789"))],
        (0..3).map(|id| change(Action::Create, "a", &id.to_string(), json!(1))).collect(),
    ];
    for changes in refused {
        let error = registry.apply(changes).await.expect_err("refused");
        assert!(matches!(error, PipelineError::Invalid(_)), "{error}");
    }
    assert!(everything(&registry).is_empty());
    let two = (0..2).map(|id| change(Action::Create, "a", &id.to_string(), json!(1))).collect();
    registry.apply(two).await.expect("applied");
    registry.apply(vec![change(Action::Create, "a", "2", json!(1))]).await.expect_err("full");
    registry.apply(vec![change(Action::Update, "a", "1", json!(2))]).await.expect("nothing is added");
    registry.apply(vec![change(Action::Delete, "a", "1", Value::Null)]).await.expect("nothing is added");
}

#[tokio::test]
async fn changes_of_many_callers_all_arrive() {
    let registry = open(&ScriptedLog::new(), &SimFs::new());
    let callers: Vec<_> = (0..20)
        .map(|caller| {
            let registry = registry.clone();
            tokio::spawn(async move {
                registry.apply(vec![change(Action::Create, "a", &format!("{caller:02}"), json!(caller))]).await
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("a task").expect("applied");
    }
    assert_eq!(bodies(&registry, "a").len(), 20);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_log_and_state_the_same() {
    let log = ScriptedLog::new();
    let registry = open(&log, &SimFs::new());
    let mut going = Box::pin(registry.apply(vec![change(Action::Create, "a", "r", json!(1))]));
    let first_poll = std::future::poll_fn(|context| std::task::Poll::Ready(going.as_mut().poll(context).is_pending()));
    assert!(first_poll.await);
    drop(going);
    until("the change is made", || bodies(&registry, "a") == ["r 1"]).await;
    assert_eq!(log.bounds().next, 1);
}

#[tokio::test]
async fn a_snapshot_covers_the_log_up_to_its_end_and_spares_reading_it() {
    let (log, fs) = (ScriptedLog::new(), SimFs::new());
    let registry = open(&log, &fs);
    registry.apply(vec![change(Action::Create, "a", "r", json!(1))]).await.expect("applied");
    assert_eq!(registry.covered(), 1);
    log.push(Dataset::SecurityEvents, events(&[("e", "a", 1, 1), ("f", "a", 1, 1)]));
    assert_eq!(registry.covered(), 1);
    registry.save().await.expect("saved");
    assert_eq!(registry.covered(), 3);
    log.forget(3).expect("forgotten");
    drop(registry);
    let registry = open(&log.reopen(), &fs);
    assert_eq!((registry.covered(), bodies(&registry, "a")), (3, vec!["r 1".to_owned()]));
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_does_not_undo_the_change() {
    let (log, fs) = (ScriptedLog::new(), SimFs::new());
    let registry = open(&log, &fs);
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::SyncData, 1) });
    registry.apply(vec![change(Action::Create, "a", "r", json!(1))]).await.expect("applied");
    assert_eq!((registry.covered(), bodies(&registry, "a")), (0, vec!["r 1".to_owned()]));
    registry.save().await.expect_err("not saved");
    fs.crash(0);
    assert_eq!(bodies(&open(&log.reopen(), &fs), "a"), ["r 1"]);
}

#[tokio::test]
async fn a_damaged_snapshot_is_passed_over() {
    for damaged in 1..3usize {
        let (log, fs) = (ScriptedLog::new(), SimFs::new());
        let registry = open(&log, &fs);
        for id in ["r1", "r2", "r3"] {
            registry.apply(vec![change(Action::Create, "a", id, json!(1))]).await.expect("applied");
        }
        let files = fs.files();
        assert_eq!(files.len(), 2);
        for file in files.iter().rev().take(damaged) {
            fs.set_bytes(file, fs.bytes(file).expect("bytes")[1..].to_vec());
        }
        let before = everything(&registry);
        drop(registry);
        assert_eq!(everything(&open(&log.reopen(), &fs)), before);
    }
}

#[tokio::test]
async fn the_batch_for_an_operator_makes_what_the_registry_holds() {
    let registry = open(&ScriptedLog::new(), &SimFs::new());
    assert!(registry.as_batch("rule").expect("a batch").is_none());
    let changes = vec![
        change(Action::Create, "a", "r1", json!({"x": 1})),
        change(Action::Create, "b", "r2", json!(2)),
        change(Action::Delete, "a", "r1", Value::Null),
        change(Action::Create, "a", "r3", json!(3)),
    ];
    registry.apply(changes).await.expect("applied");
    let batch = registry.as_batch("rule").expect("a batch").expect("rows");
    let made: Vec<_> = changes_of_batch(&batch.rows).map(|change| change.expect("a change")).collect();
    let made: Vec<_> =
        made.iter().map(|change| format!("{} {} {}", change.org_id, change.target_id, change.action)).collect();
    assert_eq!(made, ["a r3 create", "b r2 create"]);
}

#[tokio::test]
async fn any_call_of_the_file_system_may_fail_once_or_for_good() {
    let counted = SimFs::new();
    let made = |id: u64| vec![change(Action::Create, "a", &id.to_string(), json!(id))];
    let registry = open(&ScriptedLog::new(), &counted);
    for id in 0..3 {
        registry.apply(made(id)).await.expect("applied");
    }
    let expected = bodies(&registry, "a");
    for op in SimOp::ALL {
        for (nth, sticky) in (1..=counted.count(op)).flat_map(|nth| [(nth, false), (nth, true)]) {
            let (log, fs) = (ScriptedLog::new(), SimFs::new());
            fs.fail(Fault { sticky, ..Fault::eio(op, nth) });
            let shared: Arc<dyn Fs> = Arc::new(fs.clone());
            let opened =
                Registry::open(shared, Path::new(DIR), log.clone(), RegistryConfig::default(), |_| Ok(Vec::new()));
            let Ok(registry) = opened else { continue };
            for id in 0..3 {
                registry.apply(made(id)).await.expect("durable in the log, whatever becomes of the snapshot");
            }
            assert_eq!(bodies(&registry, "a"), expected, "{op:?} {nth}");
            let covered = registry.covered();
            fs.crash(nth);
            let registry = open(&log.reopen(), &fs);
            assert!(registry.covered() >= covered, "{op:?} {nth}: what was covered is on disk");
            assert_eq!(bodies(&registry, "a"), expected, "after {op:?} {nth}");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<(u8, u8, u8, u8)>),
    Save,
    Refused,
    FullDisk,
    PowerCut(u64),
    LoseSnapshots,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec((0..3u8, 0..3u8, 0..4u8, 0..2u8), 1..4);
    prop_oneof![
        6 => changes.prop_map(Step::Apply),
        1 => Just(Step::Save),
        1 => Just(Step::Refused),
        1 => Just(Step::FullDisk),
        2 => (0..9u64).prop_map(Step::PowerCut),
        1 => Just(Step::LoseSnapshots),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// However often the power is cut and snapshots fail or are lost: what a restart rebuilds is what was there.
    #[test]
    fn a_rebuilt_registry_equals_the_live_one(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (mut log, fs) = (ScriptedLog::new(), SimFs::new());
            let mut registry = open(&log, &fs);
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Apply(changes) => {
                        let made = changes.iter().map(|(action, org, target, kind)| Change {
                            time_us: at as i64,
                            kind: ["rule", "key"][usize::from(*kind)].into(),
                            ..change(
                                [Action::Create, Action::Update, Action::Delete][usize::from(*action)],
                                ["a", "b", "c"][usize::from(*org)],
                                &target.to_string(),
                                if *action == 2 { Value::Null } else { json!({"at": at}) },
                            )
                        });
                        registry.apply(made.collect()).await.expect("applied");
                    }
                    Step::Save => registry.save().await.expect("saved"),
                    Step::Refused => {
                        log.fate(0, Fate::Fails);
                        registry.apply(vec![change(Action::Create, "a", "refused", json!(1))]).await.expect_err("refused");
                    }
                    Step::FullDisk => {
                        fs.set_capacity(Some(0));
                        registry.apply(vec![change(Action::Create, "a", "full", json!(at))]).await.expect("applied");
                        fs.set_capacity(None);
                    }
                    Step::PowerCut(seed) => {
                        let before = everything(&registry);
                        fs.crash(seed);
                        log = log.reopen();
                        registry = open(&log, &fs);
                        assert_eq!(everything(&registry), before);
                    }
                    Step::LoseSnapshots => fs.files().iter().for_each(|file| fs.lose(file)),
                }
            }
            let before = everything(&registry);
            assert_eq!(everything(&open(&log.reopen(), &fs)), before);
            assert_eq!(everything(&open(&log.reopen(), &SimFs::new())), before, "from the log alone");
        });
    }
}

/// A log that takes appends, and can be read no further than it was when this was made.
struct WriteOnly {
    log: Arc<ScriptedLog>,
    from: u64,
}

impl LogReader for WriteOnly {
    fn read(&self, from: u64, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        match from < self.from {
            true => self.log.read(from, bytes_max),
            false => Err(PipelineError::Invalid("away".to_owned())),
        }
    }

    fn watch(&self) -> tokio::sync::watch::Receiver<LogBounds> {
        self.log.watch()
    }
}

impl StreamLog for WriteOnly {
    fn append(&self, append: Append) -> AppendReply {
        self.log.append(append)
    }

    fn forget(&self, below: u64) -> Result<(), PipelineError> {
        self.log.forget(below)
    }
}

/// Takes as long as such a change is waited for.
#[tokio::test]
async fn a_change_that_is_stored_and_not_read_back_is_no_fault_of_the_change() {
    let (log, fs) = (ScriptedLog::new(), SimFs::new());
    let known = open(&log, &fs);
    known.apply(vec![change(Action::Create, "acme", "known", json!(1))]).await.expect("made");
    let away = Arc::new(WriteOnly { from: log.bounds().next, log });
    let (shared, reading): (Arc<dyn Fs>, _) = (Arc::new(fs.clone()), away.clone());
    let changes = |from| changes_in(&*reading, from, 1 << 20);
    let registry =
        Registry::open(shared, Path::new(DIR), away, RegistryConfig::default(), changes).expect("a registry");
    let following = registry.follow();
    let told = registry.apply(vec![change(Action::Create, "acme", "unseen", json!(1))]).await;
    assert!(matches!(told, Err(PipelineError::Unseen(_))), "{told:?}");
    assert_eq!(bodies(&registry, "acme"), ["known 1"]);
    following.abort();
}
