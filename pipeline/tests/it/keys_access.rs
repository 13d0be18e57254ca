//! Who is let in, as whom, and who is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tidegate_events::Dataset;
use tidegate_pipeline::LogReader;
use tidegate_pipeline::PipelineError;
use tidegate_pipeline::fs::{Fs, SimFs};
use tidegate_pipeline::keys::{AuthError, DEFAULT_ORG, KIND, Keys, Principal, Role, check_org};
use tidegate_pipeline::log::{LogConfig, SegmentLog};
use tidegate_pipeline::registry::{
    Action, Change, Registry, RegistryConfig, changes_in, changes_of_batch, changes_to_batch,
};

use crate::counted::Counted;
use crate::scripted::{ScriptedLog, print_rows};

fn keys_over(log: &Arc<ScriptedLog>) -> Keys {
    let fs: Arc<dyn Fs> = Arc::new(SimFs::new());
    let changes = |from| changes_in(&**log, from, 1 << 20);
    let config = RegistryConfig::default();
    Keys::new(Registry::open(fs, Path::new("/data/registry"), log.clone(), config, changes).expect("a registry"))
}

fn keys() -> Keys {
    keys_over(&ScriptedLog::new())
}

fn bearer(keys: &Keys, secret: &str) -> Result<Principal, AuthError> {
    keys.authenticate(Some(&format!("Bearer {secret}")))
}

async fn make(keys: &Keys, org_id: &str, role: Role) -> (String, String) {
    let (secret, record) = keys.create(org_id, role, "a label", "local", 7).await.expect("a key");
    (secret.expose().to_owned(), record.key_id)
}

#[tokio::test]
async fn without_any_key_everybody_is_the_admin_of_the_default_tenant() {
    let keys = keys();
    assert!(keys.is_open());
    for header in [None, Some("Bearer x"), Some("nonsense")] {
        // A malformed header is as good as none here: there is nothing that it could be held against.
        let principal = keys.authenticate(header).expect("let in");
        assert_eq!((&*principal.org_id, principal.role, &*principal.key_id), (DEFAULT_ORG, Role::Admin, "local"));
    }
}

#[tokio::test]
async fn a_key_lets_in_its_tenant_with_its_role_at_once() {
    let keys = keys();
    for (org, role) in [("acme", Role::Ingest), ("acme", Role::Read), ("b", Role::Admin)] {
        let (secret, id) = make(&keys, org, role).await;
        assert!(!keys.is_open());
        let principal = bearer(&keys, &secret).expect("let in");
        assert_eq!((&*principal.org_id, principal.role, &*principal.key_id), (org, role, id.as_str()));
        assert_eq!(keys.authenticate_token(Some(&secret)), Ok(principal));
    }
}

#[tokio::test]
async fn a_key_has_the_form_that_is_written_down() {
    let (secret, id) = make(&keys(), "acme", Role::Read).await;
    let base32 = |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    let parts: Vec<&str> = secret.split('_').collect();
    assert!(
        matches!(parts[..], ["tg", key_id, random]
        if key_id == id && base32(key_id) && key_id.len() == 12 && base32(random) && random.len() == 52),
        "{secret}"
    );
    let (other, _) = make(&keys(), "acme", Role::Read).await;
    assert_ne!(secret, other);
}

#[tokio::test]
async fn what_is_not_the_key_is_refused_with_a_reason_that_tells_nothing() {
    let keys = keys();
    let (secret, id) = make(&keys, "acme", Role::Admin).await;
    let (other, _) = make(&keys, "b", Role::Admin).await;
    let last = if secret.ends_with('a') { 'b' } else { 'a' };
    let wrong_secret = format!("{}{last}", &secret[..secret.len() - 1]);
    let unknown_id = secret.replace(&id, "aaaaaaaaaaaa");
    let mixed = format!("tg_{id}_{}", other.rsplit('_').next().expect("a secret"));
    for token in [&wrong_secret, &unknown_id, &mixed] {
        assert_eq!(bearer(&keys, token), Err(AuthError::Unknown), "{token}");
    }
    let malformed = [
        String::new(),
        "Bearer".into(),
        "Bearer ".into(),
        secret.clone(),
        format!("Basic {secret}"),
        format!("Bearer{secret}"),
        format!("Bearer {secret}x"),
        format!("Bearer {}", &secret[..secret.len() - 1]),
        format!("Bearer {}", secret.to_uppercase()),
        format!("Bearer tg_{id}"),
        format!("Bearer tg_{id}_"),
        format!("Bearer xx{}", &secret[2..]),
        format!("Bearer {secret} {secret}"),
        format!("Bearer tg_{}_{}", "é".repeat(6), "a".repeat(52)),
        format!("Bearer {}", "a".repeat(1 << 20)),
    ];
    for header in malformed {
        assert_eq!(keys.authenticate(Some(&header)), Err(AuthError::Malformed), "{header:.80}");
    }
    assert_eq!(keys.authenticate(None), Err(AuthError::Missing));
    assert_eq!(keys.authenticate_token(None), Err(AuthError::Missing));
    for header in [format!("bearer {secret}"), format!("BEARER {secret}"), format!("Bearer  {secret} ")] {
        assert!(keys.authenticate(Some(&header)).is_ok(), "the scheme has no case (RFC 9110, 11.1)");
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_the_server_does_not_open_again() {
    let keys = keys();
    let (secret, id) = make(&keys, "acme", Role::Admin).await;
    assert!(bearer(&keys, &secret).is_ok());
    let holds = |org: &str, id: &str| keys.holds(org, id);
    assert!(holds("acme", &id) && !holds("acme-2", &id) && !holds("acme", "aaaaaaaaaaaa"));
    let record = keys.revoke(&id, Some("acme"), "local", 9).await.expect("revoked").expect("a key");
    assert_eq!(record.revoked_us, Some(9));
    assert!(!holds("acme", &id), "who was let in has to go");
    assert_eq!(bearer(&keys, &secret), Err(AuthError::Revoked));
    assert_eq!(keys.authenticate(None), Err(AuthError::Missing));
    assert!(!keys.is_open());
    let again = keys.revoke(&id, None, "local", 10).await.expect("no error").expect("a key");
    assert_eq!(again.revoked_us, Some(9), "it was revoked then");
    let wrong = format!("{}{}", &secret[..secret.len() - 1], if secret.ends_with('a') { 'b' } else { 'a' });
    assert_eq!(bearer(&keys, &wrong), Err(AuthError::Unknown), "whether a key is revoked is for its holder only");
}

#[tokio::test]
async fn what_is_refused_is_counted_under_its_reason() {
    let keys = keys();
    let open = Counted::during(|| keys.authenticate(Some("nonsense")).expect("let in")).1;
    assert_eq!(open.labelled("keys_refused_total"), BTreeMap::new());
    let (secret, _) = make(&keys, "acme", Role::Admin).await;
    let (revoked, id) = make(&keys, "acme", Role::Read).await;
    keys.revoke(&id, None, "local", 9).await.expect("revoked");
    let unknown = format!("tg_{}_{}", "a".repeat(12), "a".repeat(52));
    let counted = Counted::during(|| {
        bearer(&keys, &secret).expect("let in");
        keys.authenticate(None).expect_err("missing");
        for token in ["x", "y", &unknown, &revoked] {
            bearer(&keys, token).expect_err(token);
        }
    });
    let reasons = [("malformed", 2), ("missing", 1), ("revoked", 1), ("unknown", 1)];
    let reasons = reasons.map(|(reason, count)| (reason.to_owned(), count));
    assert_eq!(counted.1.labelled("keys_refused_total"), BTreeMap::from(reasons));
}

#[tokio::test]
async fn a_tenant_lists_and_revokes_its_own_keys_only() {
    let keys = keys();
    let (_, mine) = make(&keys, "acme", Role::Read).await;
    let (theirs, their_id) = make(&keys, "acme-2", Role::Read).await;
    let ids = |org: Option<&str>| keys.list(org).into_iter().map(|record| record.key_id).collect::<Vec<_>>();
    assert_eq!(ids(Some("acme")), std::slice::from_ref(&mine));
    assert_eq!(ids(None), [mine, their_id.clone()]);
    assert_eq!(keys.revoke(&their_id, Some("acme"), "local", 9).await.expect("no error"), None);
    assert_eq!(keys.revoke("aaaaaaaaaaaa", None, "local", 9).await.expect("no error"), None);
    assert!(bearer(&keys, &theirs).is_ok());
}

#[tokio::test]
async fn no_secret_is_kept_printed_or_logged() {
    let log = ScriptedLog::new();
    let keys = keys_over(&log);
    let (secret, record) = keys.create("acme", Role::Read, "laptop", "local", 7).await.expect("a key");
    let random = secret.expose().rsplit('_').next().expect("a secret").to_owned();
    let rows: Vec<String> = log.batches_of(Dataset::Changes).iter().flat_map(|batch| print_rows(&batch.rows)).collect();
    assert!(rows[0].contains(&record.key_id) && rows[0].contains("laptop"), "{rows:?}");
    let errors = [AuthError::Missing, AuthError::Malformed, AuthError::Unknown, AuthError::Revoked];
    let printed = format!("{rows:?} {record:?} {secret:?} {keys:?} {:?} {errors:?}", bearer(&keys, secret.expose()));
    assert!(!printed.contains(&random), "{printed}");
    assert_eq!(format!("{secret:?}"), "Secret(…)");
}

#[tokio::test]
async fn tenants_and_labels_are_checked() {
    let long = "a".repeat(65);
    for org in ["", "Acme", "a b", "a/b", "é", "a\n", "..%2f", long.as_str()] {
        assert!(matches!(check_org(org), Err(PipelineError::Invalid(_))), "{org:?}");
        assert!(keys().create(org, Role::Read, "", "local", 1).await.is_err(), "{org:?}");
    }
    for org in ["a", "acme", "acme-2.eu_west", &long[..64]] {
        check_org(org).expect(org);
    }
    keys().create("acme", Role::Read, &"x".repeat(200), "local", 1).await.expect("a label to its bound");
    for label in ["a\nb", "\u{1b}[31m", "x".repeat(201).as_str()] {
        assert!(keys().create("acme", Role::Read, label, "local", 1).await.is_err(), "{label:?}");
    }
}

#[test]
fn a_role_allows_itself_and_admin_allows_all() {
    let roles = [Role::Ingest, Role::Read, Role::Admin];
    for has in roles {
        for needed in roles {
            assert_eq!(has.allows(needed), has == needed || has == Role::Admin, "{has:?} for {needed:?}");
        }
        assert_eq!(has.as_str().parse(), Ok(has));
    }
    assert!("root".parse::<Role>().is_err());
}

#[tokio::test]
async fn entries_that_are_no_keys_let_nobody_in_and_do_not_open_the_server() {
    use tidegate_pipeline::registry::{Action, Change};
    let log = ScriptedLog::new();
    let fs: Arc<dyn Fs> = Arc::new(SimFs::new());
    let config = RegistryConfig::default();
    let registry = Registry::open(fs, Path::new("/r"), log, config, |_| Ok(Vec::new())).expect("a registry");
    let body = serde_json::json!({"role": "admin", "label": "", "sha256": "zz"});
    let change = Change {
        time_us: 1,
        change_id: String::new(),
        org_id: "acme".into(),
        actor: "local".into(),
        kind: KIND.into(),
        target_id: "aaaaaaaaaaaa".into(),
        action: Action::Create,
        body,
    };
    registry.apply(vec![change]).await.expect("applied");
    let keys = Keys::new(registry);
    assert!(!keys.is_open());
    assert_eq!(keys.authenticate(None), Err(AuthError::Missing));
    let token = format!("tg_aaaaaaaaaaaa_{}", "a".repeat(52));
    assert_eq!(bearer(&keys, &token), Err(AuthError::Unknown));
}

#[tokio::test]
async fn every_letter_of_the_hash_counts() {
    let log = ScriptedLog::new();
    let (secret, _) = make(&keys_over(&log), "acme", Role::Admin).await;
    let batch = log.batches_of(Dataset::Changes).remove(0);
    let made = changes_of_batch(&batch.rows).next().expect("a row").expect("a change");
    let hash = made.body["sha256"].as_str().expect("a hash").to_owned();
    for at in 0..hash.len() {
        let other = if &hash[at..=at] == "0" { "1" } else { "0" };
        let mut change = made.clone();
        change.body["sha256"] = format!("{}{other}{}", &hash[..at], &hash[at + 1..]).into();
        let log = ScriptedLog::new();
        log.push(Dataset::Changes, changes_to_batch(&[change]).expect("a batch"));
        assert_eq!(bearer(&keys_over(&log), &secret), Err(AuthError::Unknown), "letter {at}");
    }
    for wrong in [format!("{hash}0"), format!("{hash}00"), hash[..62].to_owned(), format!("{}é", &hash[..62])] {
        let mut change = made.clone();
        change.body["sha256"] = wrong.clone().into();
        let log = ScriptedLog::new();
        log.push(Dataset::Changes, changes_to_batch(&[change]).expect("a batch"));
        assert_eq!(bearer(&keys_over(&log), &secret), Err(AuthError::Unknown), "{wrong} is no hash");
    }
    assert!(bearer(&keys_over(&log), &secret).is_ok());
}

/// What `tidegate key create` does while the server is down: the log of the data folder, and a registry over it.
fn offline(fs: &SimFs) -> (Arc<SegmentLog>, Keys) {
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let data = PathBuf::from("/data");
    let (log, _) = SegmentLog::open(shared.clone(), &data.join("log"), LogConfig::default()).expect("a log");
    let log = Arc::new(log);
    let changes = |from| log.changes_from(from);
    let config = RegistryConfig::default();
    let registry = Registry::open(shared, &data.join("registry"), log.clone(), config, changes).expect("a registry");
    (log.clone(), Keys::new(registry))
}

#[tokio::test]
async fn a_key_made_while_the_server_is_down_is_there_when_it_starts() {
    let fs = SimFs::new();
    let (log, keys) = offline(&fs);
    let (secret, id) = make(&keys, "acme", Role::Admin).await;
    drop((log, keys));
    fs.crash(3);
    for snapshots in [true, false] {
        if !snapshots {
            fs.files().iter().filter(|file| file.starts_with("/data/registry")).for_each(|file| fs.lose(file));
        }
        let (log, keys) = offline(&fs);
        assert_eq!(log.bounds().next, 1);
        assert_eq!(&*bearer(&keys, &secret).expect("let in").key_id, id);
    }
}

/// A step: 0 to 3 make a key, 4 revokes one, 5 removes one, 6 asks the table that is kept.
async fn follow(steps: Vec<(u8, u8)>) {
    let (log, fs): (_, Arc<dyn Fs>) = (ScriptedLog::new(), Arc::new(SimFs::new()));
    let changes = |from| changes_in(&*log, from, 1 << 20);
    let registry = Registry::open(fs, Path::new("/registry"), log.clone(), RegistryConfig::default(), changes);
    let registry = registry.expect("a registry");
    let kept = Keys::new(registry.clone());
    let mut made: Vec<(String, String, String)> = Vec::new();
    let agree = |made: &[(String, String, String)]| {
        let fresh = Keys::new(registry.clone());
        for (secret, ..) in made {
            assert_eq!(bearer(&kept, secret), bearer(&fresh, secret));
        }
    };
    for (number, (step, which)) in steps.into_iter().enumerate() {
        let chosen = made.get(usize::from(which) % made.len().max(1)).cloned();
        match (step, chosen) {
            (6.., _) => agree(&made),
            (4, Some((_, _, id))) => drop(kept.revoke(&id, None, "local", 9).await.expect("revoked")),
            (5, Some((_, org_id, target_id))) => {
                let change = Change {
                    time_us: 9,
                    change_id: number.to_string(),
                    org_id,
                    actor: "local".to_owned(),
                    kind: KIND.to_owned(),
                    target_id,
                    action: Action::Delete,
                    body: Value::Null,
                };
                registry.apply(vec![change]).await.expect("removed");
            }
            _ => {
                let org = format!("tenant-{}", which % 5);
                let (secret, record) = kept.create(&org, Role::Read, "", "local", 7).await.expect("a key");
                made.push((secret.expose().to_owned(), org, record.key_id));
            }
        }
    }
    agree(&made);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// However many changes lie between two requests: who is let in is who would be if all keys were read anew.
    #[test]
    fn the_table_that_is_kept_says_what_a_new_one_would(steps in proptest::collection::vec((0u8..8, 0u8..20), 1..40)) {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(follow(steps));
    }
}
