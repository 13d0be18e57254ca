//! The manifest: what is in the store, as numbered edits.
//!
//! # Format
//!
//! `manifest/<20 digits>.edit`, numbered from 1 without gaps. A file is one line of text and one JSON object:
//!
//! ```text
//! tidegate-manifest 1 <crc32c of the JSON, 8 hex digits> <length of the JSON, decimal>\n
//! {"number":7,"previous":{…},"diff":{…},"state":{…}}
//! ```
//!
//! - `diff` is the change: files added and removed, cursors, new own fields.
//! - `previous` repeats the diff of the edit before, so that one damaged edit among good ones loses nothing.
//! - `state` is the whole state after the diff; every `edits_per_snapshot`th edit has one, and so has the first.
//! - `writer` says who made the edit, in an object store.
//!
//! In a folder, an edit is written to a temporary file, synced, renamed and its folder synced: that rename is the moment in
//! which the change becomes visible. In an object store, it is put if there is none of its number, so that of two writers one
//! is refused.
//!
//! # Writers of an object store
//!
//! A writer begins with an edit of its own (a *claim*). From then on the number that a writer before it would use next is
//! taken: its edits are refused, and it stops. The claim also takes the next 2³² file numbers, so that no two writers ever give
//! a file the same name. Files below the claim that no edit names can never be named any more: they are removed once readers of
//! older edits had time to end.
//!
//! Reading starts at the newest edit with a good `state` and goes on to the last good edit. A last edit that is damaged
//! is as if it had never been: what it named is set aside, and the cursors stand where they stood before. Two generations
//! of states are kept, files are removed from disk only when an edit after the one that dropped them is durable, and the
//! logs are kept from the last edit but one: so a single damaged file of the manifest, whichever it is, loses no row.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_events::{Dataset, FieldType};
use tidegate_pipeline::FieldCatalog;
use tidegate_pipeline::log::format::OFFSET_MAX;

use super::bucket::Writer;

const MAGIC: &str = "tidegate-manifest 1";

/// One Parquet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileMeta {
    /// Never used twice; the name of the file.
    pub(crate) id: u64,
    #[serde(with = "dataset_name")]
    pub(crate) dataset: Dataset,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// CRC32C of all bytes.
    pub(crate) crc: u32,
    pub(crate) time_min: i64,
    pub(crate) time_max: i64,
    pub(crate) org_min: String,
    pub(crate) org_max: String,
    /// When it was written, µs since the epoch by the wall clock.
    pub(crate) created_us: i64,
    /// All tenants in the file in order, when they are few; otherwise the footer has them.
    pub(crate) tenants: Option<Vec<TenantRows>>,
}

/// The rows of one tenant in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TenantRows {
    pub(crate) org: String,
    pub(crate) rows: u64,
    pub(crate) time_min: i64,
    pub(crate) time_max: i64,
}

/// The offsets below which the rows of each log are in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursors {
    pub(crate) ingest: u64,
    pub(crate) output: u64,
}

/// Own fields of one tenant in one dataset: name and [`FieldType::code`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TenantFields {
    pub(crate) org: String,
    #[serde(with = "dataset_name")]
    pub(crate) dataset: Dataset,
    pub(crate) fields: Vec<(String, u8)>,
}

/// Why an edit was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// A sink's rows.
    Commit,
    /// The same rows in fewer files.
    Compact,
    /// Expired rows are gone.
    Retain,
    /// Damaged files are set aside.
    Quarantine,
    /// Nothing new: a start, or the confirmation of the edit before.
    Confirm,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diff {
    pub(crate) why: Why,
    pub(crate) added: Vec<FileMeta>,
    pub(crate) removed: Vec<u64>,
    pub(crate) cursors: Cursors,
    pub(crate) fields: Vec<TenantFields>,
    /// No file has this number or a larger one.
    pub(crate) next_file: u64,
}

/// Where the rows went: committed = in the files + expired + lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Rows ever committed.
    pub committed: u64,
    /// Rows that retention removed.
    pub expired: u64,
    /// Rows of files that were set aside because they are damaged or missing.
    pub lost: u64,
}

/// The whole state, as an edit holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) files: Vec<FileMeta>,
    pub(crate) cursors: Cursors,
    pub(crate) fields: Vec<TenantFields>,
    pub(crate) ledger: Ledger,
    pub(crate) next_file: u64,
}

/// One edit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edit {
    pub(crate) number: u64,
    pub(crate) previous: Option<Diff>,
    pub(crate) diff: Diff,
    pub(crate) state: Option<State>,
    /// Who made it, where others could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) writer: Option<Writer>,
}

impl Edit {
    /// The bytes of the edit's file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let body = serde_json::to_vec(self)?;
        let mut bytes = format!("{MAGIC} {:08x} {}\n", crc32c::crc32c(&body), body.len()).into_bytes();
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// The edit in the bytes, or what is wrong with them.
    pub(crate) fn decode(bytes: &[u8], number: u64) -> Result<Self, String> {
        let end = bytes.iter().take(64).position(|byte| *byte == b'\n').ok_or("no header line")?;
        let (header, body) = bytes.split_at(end);
        let body = body.get(1..).unwrap_or_default();
        if header != format!("{MAGIC} {:08x} {}", crc32c::crc32c(body), body.len()).as_bytes() {
            return Err("the checksum or the length does not match".into());
        }
        let edit: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if edit.number != number {
            return Err(format!("it is edit {}, not {number}", edit.number));
        }
        if !edit.cursors().all(|cursors| cursors.ingest.max(cursors.output) <= OFFSET_MAX) {
            return Err("its cursors are beyond what a log counts".into());
        }
        Ok(edit)
    }

    fn cursors(&self) -> impl Iterator<Item = Cursors> {
        let diffs = self.previous.iter().chain([&self.diff]).map(|diff| diff.cursors);
        diffs.chain(self.state.iter().map(|state| state.cursors))
    }
}

/// The state in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) files: BTreeMap<u64, Arc<FileMeta>>,
    pub(crate) cursors: Cursors,
    pub(crate) fields: Arc<FieldCatalog>,
    pub(crate) ledger: Ledger,
    pub(crate) next_file: u64,
}

impl Table {
    /// The state of a full edit.
    pub(crate) fn from_state(state: State) -> Self {
        let mut table = Self {
            files: state.files.into_iter().map(|file| (file.id, Arc::new(file))).collect(),
            cursors: state.cursors,
            fields: Arc::default(),
            ledger: state.ledger,
            next_file: state.next_file,
        };
        table.add_fields(&state.fields);
        table
    }

    /// The state for a full edit.
    pub(crate) fn to_state(&self) -> State {
        let fields = self.fields.iter().map(|(org, dataset, fields)| TenantFields {
            org: org.to_owned(),
            dataset,
            fields: fields.iter().map(|(name, kind)| (name.to_string(), kind.code())).collect(),
        });
        State {
            files: self.files.values().map(|file| FileMeta::clone(file)).collect(),
            cursors: self.cursors,
            fields: fields.collect(),
            ledger: self.ledger,
            next_file: self.next_file,
        }
    }

    /// Makes the change.
    pub(crate) fn apply(&mut self, diff: &Diff) {
        let mut removed = 0;
        for id in &diff.removed {
            removed += self.files.remove(id).map_or(0, |file| file.rows);
        }
        let added: u64 = diff.added.iter().map(|file| file.rows).sum();
        match diff.why {
            Why::Commit => self.ledger.committed += added,
            Why::Retain => self.ledger.expired += removed.saturating_sub(added),
            Why::Quarantine => self.ledger.lost += removed.saturating_sub(added),
            Why::Compact | Why::Confirm => {}
        }
        for file in &diff.added {
            self.files.insert(file.id, Arc::new(file.clone()));
        }
        self.cursors = diff.cursors;
        self.next_file = self.next_file.max(diff.next_file);
        self.add_fields(&diff.fields);
    }

    fn add_fields(&mut self, added: &[TenantFields]) {
        if added.is_empty() {
            return;
        }
        let fields = Arc::make_mut(&mut self.fields);
        for tenant in added {
            let org: Arc<str> = tenant.org.as_str().into();
            for (name, code) in &tenant.fields {
                if let Some(kind) = FieldType::from_code(*code) {
                    fields.add(&org, tenant.dataset, &name.as_str().into(), kind);
                }
            }
        }
    }

    /// Rows in the files.
    pub(crate) fn rows(&self) -> u64 {
        self.files.values().map(|file| file.rows).sum()
    }
}

mod dataset_name {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use tidegate_events::Dataset;

    pub(super) fn serialize<S: Serializer>(dataset: &Dataset, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(dataset.table_name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Dataset, D::Error> {
        let name = String::deserialize(from)?;
        Dataset::from_table_name(&name).ok_or_else(|| D::Error::custom(format!("no such dataset: {name:?}")))
    }
}
