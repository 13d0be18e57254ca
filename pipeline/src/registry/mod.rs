//! The registry: state that people edit (rules, keys, …), rebuilt from rows of `changes`.
//!
//! There is no second store: a change is a row of the ingest log, durable before it is applied, and what the registry
//! holds is the outcome of all of them in order. A [sealed](crate::sealed) snapshot in `<data>/registry/` spares a
//! restart the way through the whole log: it holds that outcome up to an offset, JSON as
//! `{"offset", "entries": [{"kind", "org_id", "id", "body", …}]}`.
//!
//! The registry is the only writer of `changes`; one change is made at a time. (Where several nodes write to one log, each
//! [follows](Registry::follow) it, and what it writes itself counts once it has read it there.) Readers take the state of the
//! moment, which is shared and immutable. To change something while the server is down, open the log of the data folder and a registry
//! over it, as the server does.

mod change;
mod entries;
mod follow;
mod work;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metrics::{counter, gauge};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tidegate_events::{Dataset, IdGenerator, dedup_key};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

pub use change::{Action, Change, changes_of_batch, changes_to_batch};
pub use entries::{Entries, Entry, Kinds};

use crate::error::{AppendError, PipelineError};
use crate::fs::Fs;
use crate::health::Stage;
use crate::keys::DEFAULT_ORG;
use crate::log::{Ack, Append, EventBatch, LogBatch, Offset, StreamLog};
use crate::metrics as names;
use crate::sealed::{Loaded, SealedFiles};
use crate::tailing::read_on;

const MAGIC: [u8; 8] = *b"TGREGS01";
/// Bytes of a tenant's, kind's or target's name in a change.
const NAME_BYTES_MAX: usize = 256;

/// A snapshot is due when changes are one in so many things.
const SNAPSHOT_SHARE: usize = 8;

/// Bounds of the registry.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Things (rules, keys, …) of all tenants together.
    pub entries_max: usize,
    /// Things of one tenant, but for the tenant `default`, which is the operator's.
    pub tenant_entries_max: usize,
    /// Bytes of one thing's body, as JSON text.
    pub body_bytes_max: usize,
    /// Size of a snapshot. One that is larger is not written: restarts then read the changes since the last one.
    pub snapshot_bytes_max: u64,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { entries_max: 100_000, tenant_entries_max: 20_000, body_bytes_max: 1 << 20, snapshot_bytes_max: 1 << 30 }
    }
}

/// State that people edit. Cheap to clone: all clones are one registry.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    log: Arc<dyn StreamLog>,
    config: RegistryConfig,
    kinds: RwLock<Kinds>,
    version: watch::Sender<u64>,
    covered: AtomicU64,
    /// Whether others write to the log too: then only what was read there is applied.
    follows: AtomicBool,
    /// Rows below are applied, as far as the log was read.
    applied: watch::Sender<Offset>,
    turn: Arc<Mutex<Turn>>,
    work: work::Work,
}

/// What only the one who changes something needs.
struct Turn {
    files: SealedFiles,
    ids: IdGenerator,
    /// Not known to be in both of the files that are kept: there were changes, or this is the first save.
    single: bool,
    /// Changes since the last snapshot.
    unsaved: usize,
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    offset: Offset,
    entries: Vec<SnapshotEntry>,
}

#[derive(Serialize, Deserialize)]
struct SnapshotEntry {
    kind: String,
    #[serde(flatten)]
    entry: Entry,
}

impl Registry {
    /// Loads the snapshot in `dir` and applies the changes after it, which `changes` is asked for from an offset on
    /// ([`changes_in`] reads them from the log). Blocks on files.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be made or listed; what `changes` says. A damaged snapshot is passed over
    /// and told about.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        log: Arc<dyn StreamLog>,
        config: RegistryConfig,
        changes: impl FnOnce(Offset) -> Result<Vec<Arc<LogBatch>>, PipelineError>,
    ) -> Result<Self, PipelineError> {
        let mut files = SealedFiles::open(fs, dir, MAGIC, config.snapshot_bytes_max)?;
        let Loaded { value, damaged } = files.load(parse_snapshot)?;
        for error in damaged {
            tracing::warn!(%error, "passed over a damaged snapshot of the registry: changes are read from the log instead");
        }
        let snapshot = value.unwrap_or(Snapshot { offset: 0, entries: Vec::new() });
        let bounds = log.bounds();
        if snapshot.offset < bounds.first {
            // Whoever lets the log forget asks `covered` first, so this means that snapshots were lost.
            tracing::warn!(
                from = snapshot.offset,
                first = bounds.first,
                "changes before the log's first row are not known"
            );
        }
        let mut kinds = Kinds::default();
        for SnapshotEntry { kind, entry } in snapshot.entries {
            kinds.put(kind, entry);
        }
        let mut applied = bounds.next;
        for batch in changes(snapshot.offset)? {
            apply_batch(&mut kinds, &batch, snapshot.offset);
            applied = applied.max(batch.next_offset());
        }
        gauge!(names::REGISTRY_ENTRIES).set(kinds.len() as f64);
        let seed = getrandom::u64().map_err(|error| PipelineError::Invalid(format!("no random bits: {error}")))?;
        let turn = Turn { files, ids: IdGenerator::new(seed), single: true, unsaved: 0 };
        let shared = Shared {
            log,
            config,
            kinds: RwLock::new(kinds),
            version: watch::Sender::new(0),
            covered: AtomicU64::new(snapshot.offset),
            follows: AtomicBool::new(false),
            applied: watch::Sender::new(applied),
            turn: Arc::new(Mutex::new(turn)),
            work: work::Work::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The offset up to which the snapshot in `dir` holds all changes; zero without one. For whoever opens the log, which must
    /// not give offsets below it to new rows ([`SegmentLog::open_at_least`](crate::log::SegmentLog::open_at_least)).
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be made or listed.
    pub fn covered_in(fs: Arc<dyn Fs>, dir: &Path, config: &RegistryConfig) -> Result<Offset, PipelineError> {
        let mut files = SealedFiles::open(fs, dir, MAGIC, config.snapshot_bytes_max)?;
        Ok(files.load(parse_snapshot)?.value.map_or(0, |snapshot| snapshot.offset))
    }

    /// Says how changes and saves get on, from now on.
    pub fn report_health(&self, stage: Arc<Stage>) {
        self.shared.work.report_to(stage);
    }

    /// Makes changes: durable in the log, then visible to all. All of them or none. Goes on to its end even when the caller is
    /// gone. Writes a snapshot once the changes since the last one are an eighth of all things. Needs a runtime.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] for a change that breaks a bound, [`PipelineError::Append`] when the log does not take
    /// them now: nothing is changed then. [`PipelineError::Unseen`] when the registry [follows](Self::follow) the log and cannot
    /// read back what it wrote: it is changed once it can.
    pub async fn apply(&self, changes: Vec<Change>) -> Result<(), PipelineError> {
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            let _working = shared.work.begin();
            shared.clone().apply(changes).await
        });
        task.await.unwrap_or_else(|error| Err(PipelineError::Invalid(format!("the change was not made: {error}"))))
    }

    /// Writes a snapshot that covers the log up to its end now, so that a restart reads little and the log may forget
    /// what lies below. To be called now and then, and at drain.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when it cannot be written.
    pub async fn save(&self) -> Result<(), PipelineError> {
        let _working = self.shared.work.begin();
        let turn = self.shared.turn.clone().lock_owned().await;
        self.shared.save(turn).await
    }

    /// The offset below which the snapshot on disk holds all changes: the log may forget rows below it.
    pub fn covered(&self) -> Offset {
        self.shared.covered.load(Ordering::Acquire)
    }

    /// All things of a kind, of all tenants, as they are now.
    pub fn all(&self, kind: &str) -> Arc<Entries> {
        self.shared.kinds.read().of(kind)
    }

    /// The things of a kind of one tenant, by id.
    pub fn list(&self, org_id: &str, kind: &str) -> Vec<Arc<Entry>> {
        let all = self.all(kind);
        let first = (org_id.to_owned(), String::new());
        all.range(first..).take_while(|((org, _), _)| org == org_id).map(|(_, entry)| entry.clone()).collect()
    }

    /// One thing.
    pub fn get(&self, org_id: &str, kind: &str, id: &str) -> Option<Arc<Entry>> {
        self.all(kind).get(&(org_id.to_owned(), id.to_owned())).cloned()
    }

    /// The things of a kind as the changes that would make them, in one batch of `changes`: what an operator is given that
    /// starts without its state. `None` when there are none.
    ///
    /// # Errors
    /// As [`changes_to_batch`].
    pub fn as_batch(&self, kind: &str) -> Result<Option<LogBatch>, PipelineError> {
        let change = |entry: &Arc<Entry>| Change {
            time_us: entry.updated_us,
            change_id: entry.change_id.clone(),
            org_id: entry.org_id.clone(),
            actor: entry.actor.clone(),
            kind: kind.to_owned(),
            target_id: entry.id.clone(),
            action: Action::Create,
            body: entry.body.clone(),
        };
        let changes: Vec<Change> = self.all(kind).values().map(change).collect();
        if changes.is_empty() {
            return Ok(None);
        }
        Ok(Some(LogBatch { offset: 0, dataset: Dataset::Changes, rows: changes_to_batch(&changes)? }))
    }

    /// A receiver that changes whenever something was changed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }
}

/// The batches of `changes` in the log from an offset on, read in steps of `bytes_max`.
///
/// # Errors
/// As [`StreamLog::read`], but for forgotten rows, which are passed over.
pub fn changes_in(log: &dyn StreamLog, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
    let end = log.bounds().next;
    let mut from = from;
    let mut found = Vec::new();
    while from < end {
        let reading = read_on(log, from, bytes_max)?;
        found.extend(reading.batches.into_iter().filter(|batch| batch.dataset == Dataset::Changes));
        from = reading.next.max(from + 1);
    }
    Ok(found)
}

impl Shared {
    async fn apply(self: Arc<Self>, mut changes: Vec<Change>) -> Result<(), PipelineError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut turn = self.turn.clone().lock_owned().await;
        for change in changes.iter_mut().filter(|change| change.change_id.is_empty()) {
            change.change_id = turn.ids.next(change.time_us).map(char::from).iter().collect();
        }
        let mut after = self.kinds.read().clone();
        self.check(&changes, &after)?;
        let rows = changes_to_batch(&changes)?;
        let key = |change: &Change| dedup_key(&change.org_id, Dataset::Changes as u8, &change.change_id);
        let keys = changes.iter().map(key).collect();
        let batch = EventBatch { dataset: Dataset::Changes, rows, keys };
        let reply = self.log.append(Append { batches: vec![batch], ack: Ack::Disk });
        let appended = reply.await.unwrap_or(Err(AppendError::Closed))?;
        if self.follows.load(Ordering::Acquire) {
            drop(turn);
            return self.seen(&appended).await;
        }
        // What the log has already was applied when it came.
        let fresh = changes.iter().enumerate().filter(|(row, _)| !appended.duplicates.contains(&(0, *row)));
        for ((_, change), offset) in fresh.zip(appended.offsets.iter().cloned().flatten()) {
            after.apply(change, offset);
        }
        gauge!(names::REGISTRY_ENTRIES).set(after.len() as f64);
        counter!(names::REGISTRY_CHANGES).increment((changes.len() - appended.duplicates.len()) as u64);
        turn.single = true;
        turn.unsaved += changes.len();
        // A snapshot is as long as all things together, so it is written once for a share of them; until then, and when it cannot
        // be written, a restart reads the changes from the log.
        let due = turn.unsaved.saturating_mul(SNAPSHOT_SHARE) >= after.len();
        *self.kinds.write() = after;
        self.version.send_modify(|version| *version += 1);
        if due && let Err(error) = self.save(turn).await {
            tracing::warn!(%error, "could not write a snapshot of the registry: the log keeps the changes");
            counter!(names::REGISTRY_SNAPSHOT_FAILURES).increment(1);
        }
        Ok(())
    }

    fn check(&self, changes: &[Change], known: &Kinds) -> Result<(), PipelineError> {
        let invalid = |reason: String| Err(PipelineError::Invalid(reason));
        for change in changes {
            let names = [("tenant", &change.org_id), ("kind", &change.kind), ("target", &change.target_id)];
            for (what, name) in names {
                if name.is_empty() || name.len() > NAME_BYTES_MAX {
                    return invalid(format!(
                        "the {what} of a change must have 1 to {NAME_BYTES_MAX} bytes, {name:?} has not"
                    ));
                }
            }
            let bytes = change.body.to_string().len();
            if bytes > self.config.body_bytes_max {
                let max = self.config.body_bytes_max;
                return invalid(format!("{} {} has {bytes} bytes, the bound is {max}", change.kind, change.target_id));
            }
        }
        let more = changes.iter().filter(|change| change.action == Action::Create).count();
        let entries = known.len();
        let mut tenants: BTreeMap<&str, usize> = BTreeMap::new();
        for change in changes.iter().filter(|change| change.action == Action::Create && change.org_id != DEFAULT_ORG) {
            *tenants.entry(&change.org_id).or_default() += 1;
        }
        for (org_id, more) in tenants {
            let max = self.config.tenant_entries_max;
            if known.of_tenant(org_id) + more > max {
                return invalid(format!("the tenant has as many rules, keys and the like as it may: {max}"));
            }
        }
        if more > 0 && entries + more > self.config.entries_max {
            let max = self.config.entries_max;
            return invalid(format!(
                "there are {entries} rules, keys and the like, {more} more exceed the bound of {max}"
            ));
        }
        Ok(())
    }

    /// Writes a snapshot that covers the log up to its end now: every change below the end is applied, since changes are
    /// made under this turn only.
    async fn save(self: &Arc<Self>, mut turn: OwnedMutexGuard<Turn>) -> Result<(), PipelineError> {
        let shared = self.clone();
        let write = move || {
            let (offset, kinds) = shared.now();
            let entry = |(kind, entry): (&str, &Arc<Entry>)| SnapshotEntry {
                kind: kind.to_owned(),
                entry: Entry::clone(entry),
            };
            let snapshot = Snapshot { offset, entries: kinds.iter().map(entry).collect() };
            let body = serde_json::to_vec(&snapshot)
                .map_err(|error| PipelineError::Invalid(format!("the registry makes no JSON: {error}")))?;
            turn.files.save(&body)?;
            if turn.single {
                // The log may forget these changes now, so the older one of the two files that are kept must hold them as well:
                // else one flipped bit in the newer one would cost rules and keys.
                turn.files.save(&body)?;
                turn.single = false;
            }
            turn.unsaved = 0;
            shared.covered.store(offset, Ordering::Release);
            Ok(())
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.unwrap_or_else(|error| Err(PipelineError::Invalid(format!("the snapshot was not written: {error}"))))
    }
}

fn parse_snapshot(body: &[u8]) -> Result<Snapshot, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// Applies the rows of a batch from an offset on. A row that is no change is told about and passed over.
fn apply_batch(kinds: &mut Kinds, batch: &LogBatch, from: Offset) {
    for (offset, change) in (batch.offset..).zip(changes_of_batch(&batch.rows)) {
        match change {
            _ if offset < from => {}
            Ok(change) => kinds.apply(&change, offset),
            Err(reason) => tracing::warn!(offset, reason, "passed over a row of changes"),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.kinds.read().len();
        f.debug_struct("Registry").field("entries", &entries).field("covered", &self.covered).finish_non_exhaustive()
    }
}
