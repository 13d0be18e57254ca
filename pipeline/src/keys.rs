//! API keys: who may do what for which tenant.
//!
//! A key reads `tg_<id>_<secret>`: 12 letters that name it in lists, logs and the audit trail, and 52 letters (260 bits
//! from the operating system) that only its holder knows. Kept is the SHA-256 of the whole key, as an entry of kind `key` in the
//! [registry](crate::registry): a hash made to be slow would add nothing to 260 random bits, and would let anyone keep the
//! server busy. The hash is compared in constant time, and an unknown id takes the same way as a wrong secret.
//!
//! A revoked key stays in the registry, marked: were it removed, revoking the last key would open the server to everybody.
//! What is made or revoked has effect for the next request.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use metrics::counter;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::error::PipelineError;
use crate::metrics as names;
use crate::registry::{Action, Change, Entries, Entry, Registry};

/// The `kind` of keys in the registry.
pub const KIND: &str = "key";
/// The tenant of everything while no key exists.
pub const DEFAULT_ORG: &str = "default";

const PREFIX: &str = "tg_";
const ID_LETTERS: usize = 12;
const SECRET_LETTERS: usize = 52;
/// RFC 4648, section 6, in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Bytes of the name of a tenant.
const ORG_BYTES_MAX: usize = 64;
/// Bytes of a key's label.
const LABEL_BYTES_MAX: usize = 200;

/// What a key allows. A role includes nothing of the others, except that `admin` includes all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Send events.
    Ingest,
    /// Query, read events and alerts, follow the feed.
    Read,
    /// Everything, for its tenant: keys and rules too.
    Admin,
}

impl Role {
    /// The word on the command line and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// Whether a key of this role may do what needs `needed`.
    pub fn allows(self, needed: Role) -> bool {
        self == Self::Admin || self == needed
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Ingest, Self::Read, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("no such role: {text:?} (ingest, read, admin)"))
    }
}

/// Who a request comes from, as its key says. A request can never choose its tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The tenant.
    pub org_id: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// The public id of the key, for the audit trail and the logs; `local` without keys.
    pub key_id: Arc<str>,
}

/// A key, but for its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// Its public id.
    pub key_id: String,
    /// The tenant.
    pub org_id: String,
    /// What it allows.
    pub role: Role,
    /// What people call it.
    pub label: String,
    /// When it was made (µs).
    pub created_us: i64,
    /// When it was revoked (µs).
    pub revoked_us: Option<i64>,
}

/// A whole key, to be shown once.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text for the header. Never to be logged.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a request is not let in. None of them says what of the key was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthError {
    /// The client: there is no `Authorization` header.
    #[error("a key is needed")]
    Missing,
    /// The client: the header is not `Bearer tg_…`.
    #[error("the Authorization header is not `Bearer` and a key")]
    Malformed,
    /// The client: there is no such key, or its secret is another.
    #[error("the key is not known")]
    Unknown,
    /// The client: the key is right, but was revoked.
    #[error("the key was revoked")]
    Revoked,
}

impl AuthError {
    /// The word in the metric.
    fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Revoked => "revoked",
        }
    }
}

/// What of a key is kept in the registry.
#[derive(Serialize, Deserialize)]
struct Body {
    role: Role,
    label: String,
    /// Of the whole key, hexadecimal.
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_us: Option<i64>,
}

/// The keys of all tenants.
#[derive(Debug)]
pub struct Keys {
    registry: Registry,
    table: RwLock<Table>,
}

/// The keys, ready to be looked up.
#[derive(Default)]
struct Table {
    /// What it was made from: it is brought up to date once the registry has another.
    entries: Arc<Entries>,
    keys: HashMap<String, Known>,
}

struct Known {
    principal: Principal,
    hash: [u8; 32],
    revoked: bool,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Keys {
    /// The keys of a registry.
    pub fn new(registry: Registry) -> Self {
        let mut table = Table::default();
        table.bring_to(registry.all(KIND));
        Self { registry, table: RwLock::new(table) }
    }

    /// Whether no key was ever made: then everybody who reaches the server is [`DEFAULT_ORG`]'s admin.
    pub fn is_open(&self) -> bool {
        self.registry.all(KIND).is_empty()
    }

    /// Who a request comes from that needs no key: a tenant without rows.
    pub fn nobody(&self) -> Principal {
        Principal { org_id: "".into(), role: Role::Ingest, key_id: "none".into() }
    }

    /// Who a request comes from, by its `Authorization` header (`Bearer tg_…`).
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn authenticate(&self, header: Option<&str>) -> Result<Principal, AuthError> {
        let token = match header {
            None => Ok(None),
            Some(header) => match header.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
                _ => Err(AuthError::Malformed),
            },
        };
        self.look_up(token)
    }

    /// The same for a bare key, where a protocol has a scheme of its own.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn authenticate_token(&self, token: Option<&str>) -> Result<Principal, AuthError> {
        self.look_up(Ok(token))
    }

    fn look_up(&self, token: Result<Option<&str>, AuthError>) -> Result<Principal, AuthError> {
        self.with_current(|table| {
            // Revoked keys count: with them the server is not open.
            if table.entries.is_empty() {
                return Ok(Principal { org_id: DEFAULT_ORG.into(), role: Role::Admin, key_id: "local".into() });
            }
            let found = token.and_then(|token| table.find(token.ok_or(AuthError::Missing)?));
            found.inspect_err(|error| counter!(names::KEYS_REFUSED, "reason" => error.reason()).increment(1))
        })
    }

    /// Asks the table of the registry's keys as they are now.
    fn with_current<A>(&self, ask: impl FnOnce(&Table) -> A) -> A {
        let entries = self.registry.all(KIND);
        {
            let table = self.table.read();
            if Arc::ptr_eq(&table.entries, &entries) || (table.entries.is_empty() && entries.is_empty()) {
                return ask(&table);
            }
        }
        let mut table = self.table.write();
        // Whoever had the lock before may have brought it further than to what was read above.
        table.bring_to(self.registry.all(KIND));
        ask(&table)
    }

    /// Makes a key; its secret is returned here and never again.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] for a bad tenant or label, otherwise as [`Registry::apply`].
    pub async fn create(
        &self,
        org_id: &str,
        role: Role,
        label: &str,
        actor: &str,
        now_us: i64,
    ) -> Result<(Secret, KeyRecord), PipelineError> {
        check_org(org_id)?;
        if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
            return Err(PipelineError::Invalid(format!(
                "a label is at most {LABEL_BYTES_MAX} bytes of text without control characters"
            )));
        }
        let key_id = random_letters(ID_LETTERS)?;
        let secret = Secret(format!("{PREFIX}{key_id}_{}", random_letters(SECRET_LETTERS)?));
        let sha256 = hex(&Sha256::digest(secret.expose()).into());
        let body = Body { role, label: label.to_owned(), sha256, revoked_us: None };
        self.put(change(Action::Create, org_id, &key_id, actor, now_us), &body).await?;
        let record = KeyRecord {
            key_id,
            org_id: org_id.to_owned(),
            role,
            label: label.to_owned(),
            created_us: now_us,
            revoked_us: None,
        };
        Ok((secret, record))
    }

    /// Whether there is such a key of the tenant, and it was not revoked: for those who were let in a while ago.
    pub fn holds(&self, org_id: &str, key_id: &str) -> bool {
        self.with_current(|table| {
            table.keys.get(key_id).is_some_and(|known| !known.revoked && &*known.principal.org_id == org_id)
        })
    }

    /// All keys, of one tenant or of all, revoked ones too, by tenant and id.
    pub fn list(&self, org_id: Option<&str>) -> Vec<KeyRecord> {
        let all = self.registry.all(KIND);
        let wanted = all.values().filter(|entry| org_id.is_none_or(|org_id| entry.org_id == org_id));
        let record = |entry: &Arc<Entry>| {
            let body: Body = Body::deserialize(&entry.body).ok()?;
            Some(KeyRecord {
                key_id: entry.id.clone(),
                org_id: entry.org_id.clone(),
                role: body.role,
                label: body.label,
                created_us: entry.created_us,
                revoked_us: body.revoked_us,
            })
        };
        wanted.filter_map(record).collect()
    }

    /// Revokes a key, of one tenant or of any; `None` when there is no such key. To revoke one again changes nothing.
    ///
    /// # Errors
    /// As [`Registry::apply`].
    pub async fn revoke(
        &self,
        key_id: &str,
        org_id: Option<&str>,
        actor: &str,
        now_us: i64,
    ) -> Result<Option<KeyRecord>, PipelineError> {
        let Some(mut record) = self.list(org_id).into_iter().find(|record| record.key_id == key_id) else {
            return Ok(None);
        };
        if record.revoked_us.is_none() {
            let entry = self.registry.get(&record.org_id, KIND, key_id);
            let body = entry.and_then(|entry| Body::deserialize(&entry.body).ok());
            let Some(mut body) = body else { return Ok(None) };
            body.revoked_us = Some(now_us);
            self.put(change(Action::Update, &record.org_id, key_id, actor, now_us), &body).await?;
            record.revoked_us = Some(now_us);
        }
        Ok(Some(record))
    }

    async fn put(&self, mut change: Change, body: &Body) -> Result<(), PipelineError> {
        change.body = serde_json::to_value(body)
            .map_err(|error| PipelineError::Invalid(format!("the key makes no JSON: {error}")))?;
        self.registry.apply(vec![change]).await
    }
}

/// A change of a key, still without its body.
fn change(action: Action, org_id: &str, key_id: &str, actor: &str, time_us: i64) -> Change {
    Change {
        time_us,
        change_id: String::new(),
        org_id: org_id.to_owned(),
        actor: actor.to_owned(),
        kind: KIND.to_owned(),
        target_id: key_id.to_owned(),
        action,
        body: Value::Null,
    }
}

impl Table {
    /// Takes in what differs, which is little: with ten thousand keys, one more must not cost reading all of them.
    fn bring_to(&mut self, entries: Arc<Entries>) {
        let before = std::mem::replace(&mut self.entries, entries.clone());
        let mut old = before.values().peekable();
        for entry in entries.values() {
            while let Some(gone) = old.next_if(|old| order(old, entry).is_lt()) {
                self.remove(gone);
            }
            match old.next_if(|old| order(old, entry).is_eq()) {
                Some(same) if Arc::ptr_eq(same, entry) => {}
                _ => self.insert(entry),
            }
        }
        old.for_each(|gone| self.remove(gone));
    }

    fn insert(&mut self, entry: &Entry) {
        let known = Body::deserialize(&entry.body).ok().and_then(|body| {
            let principal =
                Principal { org_id: entry.org_id.as_str().into(), role: body.role, key_id: entry.id.as_str().into() };
            Some(Known { principal, hash: unhex(&body.sha256)?, revoked: body.revoked_us.is_some() })
        });
        match known {
            Some(known) => drop(self.keys.insert(entry.id.clone(), known)),
            None => self.remove(entry),
        }
    }

    fn remove(&mut self, entry: &Entry) {
        if self.keys.get(&entry.id).is_some_and(|known| *known.principal.org_id == *entry.org_id) {
            self.keys.remove(&entry.id);
        }
    }

    /// The holder of a key. The same work is done whether its id is known or not.
    fn find(&self, token: &str) -> Result<Principal, AuthError> {
        let id = id_of(token).ok_or(AuthError::Malformed)?;
        let known = self.keys.get(id);
        let hash: [u8; 32] = Sha256::digest(token).into();
        // No key hashes to zeros, as far as anyone knows.
        let expected = known.map_or([0; 32], |known| known.hash);
        let same = bool::from(hash.ct_eq(&expected));
        match known {
            Some(known) if same && known.revoked => Err(AuthError::Revoked),
            Some(known) if same => Ok(known.principal.clone()),
            _ => Err(AuthError::Unknown),
        }
    }
}

/// The order of [`Entries`].
fn order(one: &Entry, other: &Entry) -> Ordering {
    (&one.org_id, &one.id).cmp(&(&other.org_id, &other.id))
}

/// Checks the name of a tenant: 1 to 64 of `a-z`, `0-9`, `.`, `_`, `-`.
///
/// # Errors
/// [`PipelineError::Invalid`], which says what a name may be.
pub fn check_org(org_id: &str) -> Result<(), PipelineError> {
    let decent = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if (1..=ORG_BYTES_MAX).contains(&org_id.len()) && org_id.bytes().all(decent) {
        return Ok(());
    }
    Err(PipelineError::Invalid(format!(
        "{:?} is not a tenant: 1 to {ORG_BYTES_MAX} of a-z, 0-9, '.', '_' and '-'",
        org_id.chars().take(ORG_BYTES_MAX).collect::<String>()
    )))
}

/// The id in a key that is well formed.
fn id_of(token: &str) -> Option<&str> {
    let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
    let letters = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| BASE32.contains(&byte));
    (letters(id, ID_LETTERS) && letters(secret, SECRET_LETTERS)).then_some(id)
}

/// Five random bits a letter.
fn random_letters(count: usize) -> Result<String, PipelineError> {
    let mut bytes = vec![0; count];
    getrandom::fill(&mut bytes)
        .map_err(|error| PipelineError::Invalid(format!("the operating system gives no random bits: {error}")))?;
    Ok(bytes.iter().map(|byte| char::from(BASE32[usize::from(byte & 31)])).collect())
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}
