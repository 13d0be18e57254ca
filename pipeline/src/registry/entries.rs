//! What the registry holds: the outcome of all changes so far.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::change::{Action, Change};
use crate::log::Offset;

/// One thing that people edit, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The tenant.
    pub org_id: String,
    /// Its id, unique within tenant and kind.
    pub id: String,
    /// The whole of it.
    pub body: Value,
    /// When it was made (µs).
    pub created_us: i64,
    /// When it was changed last (µs).
    pub updated_us: i64,
    /// Who changed it last.
    pub actor: String,
    /// The id of the last change.
    pub change_id: String,
    /// Where the last change is in the log: it holds for the rows after it.
    #[serde(default)]
    pub offset: Offset,
}

/// All things of one kind, by tenant and id.
pub type Entries = BTreeMap<(String, String), Arc<Entry>>;

/// All things, by kind. Cheap to clone; a change copies the maps that it touches if a reader still has them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kinds {
    kinds: BTreeMap<String, Arc<Entries>>,
}

impl Kinds {
    /// Applies the change at this offset. Total: every change has an outcome, so that a rebuild never fails.
    pub fn apply(&mut self, change: &Change, offset: Offset) {
        let key = (change.org_id.clone(), change.target_id.clone());
        if change.action == Action::Delete {
            let known = self.kinds.get_mut(&change.kind).filter(|entries| entries.contains_key(&key));
            if let Some(entries) = known {
                Arc::make_mut(entries).remove(&key);
            }
            return;
        }
        let entries = Arc::make_mut(self.kinds.entry(change.kind.clone()).or_default());
        let before = entries.get(&key).filter(|_| change.action == Action::Update);
        let entry = Entry {
            org_id: change.org_id.clone(),
            id: change.target_id.clone(),
            body: change.body.clone(),
            created_us: before.map_or(change.time_us, |before| before.created_us),
            updated_us: change.time_us,
            actor: change.actor.clone(),
            change_id: change.change_id.clone(),
            offset,
        };
        entries.insert(key, Arc::new(entry));
    }

    /// All things of a kind.
    pub fn of(&self, kind: &str) -> Arc<Entries> {
        self.kinds.get(kind).cloned().unwrap_or_default()
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.kinds.values().map(|entries| entries.len()).sum()
    }

    /// How many things a tenant has.
    pub fn of_tenant(&self, org_id: &str) -> usize {
        let first = (org_id.to_owned(), String::new());
        let own =
            |entries: &Arc<Entries>| entries.range(first.clone()..).take_while(|((org, _), _)| org == org_id).count();
        self.kinds.values().map(own).sum()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every thing with its kind.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Entry>)> {
        self.kinds.iter().flat_map(|(kind, entries)| entries.values().map(move |entry| (kind.as_str(), entry)))
    }

    /// Puts a thing as a snapshot has it.
    pub(super) fn put(&mut self, kind: String, entry: Entry) {
        let key = (entry.org_id.clone(), entry.id.clone());
        Arc::make_mut(self.kinds.entry(kind).or_default()).insert(key, Arc::new(entry));
    }
}
