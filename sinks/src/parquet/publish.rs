//! The one place where a change becomes visible: the next edit of the manifest.
//!
//! An edit either is put, or surely is not, or that is in doubt (the answer of an object store was lost; a rename could not be
//! synced). An edit in doubt is put again, the very same one, before any other: so it is known what became of it, and the files
//! that it names are neither removed nor written twice.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use metrics::gauge;

use super::bucket::Writer;
use super::manifest::{Cursors, Diff, Edit, FileMeta, Table, TenantFields, Why};
use super::place::{Place, PutError};
use super::recover::{edit_path, manifest_dir, number_in};
use super::store::ParquetStore;
use crate::error::SinksError;
use crate::metrics as names;

/// Files that could not be removed and are tried again; more are left to the next start.
const LITTER_MAX: usize = 4096;

/// Where the manifest stands, for the one thread that writes it.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) last: u64,
    pub(crate) last_diff: Option<Diff>,
    pub(crate) last_full: u64,
    pub(crate) previous_full: u64,
    /// The oldest edit on disk.
    pub(crate) first: u64,
    /// The next edit must hold the whole state.
    pub(crate) needs_full: bool,
    /// The next edit, which may be there already.
    pub(crate) doubt: Option<(Edit, Vec<u8>)>,
    /// Who has put an edit in the place of ours.
    pub(crate) lost_to: Option<String>,
}

impl Journal {
    pub(crate) fn new(last: u64, first: u64) -> Self {
        Self {
            last,
            last_diff: None,
            last_full: 0,
            previous_full: first,
            first,
            needs_full: true,
            doubt: None,
            lost_to: None,
        }
    }
}

/// A change to be published, without its new files.
#[derive(Debug)]
pub(crate) struct Change {
    why: Why,
    removed: Vec<u64>,
    cursors: Cursors,
    fields: Vec<TenantFields>,
}

impl Change {
    pub(crate) fn new(why: Why, cursors: Cursors) -> Self {
        Self { why, removed: Vec::new(), cursors, fields: Vec::new() }
    }

    pub(crate) fn removing(mut self, removed: Vec<u64>) -> Self {
        self.removed = removed;
        self
    }

    pub(crate) fn with_fields(mut self, fields: Vec<TenantFields>) -> Self {
        self.fields = fields;
        self
    }
}

impl ParquetStore {
    /// Makes a change visible, all of it or nothing. `make` sees the state that the change will be applied to and says what
    /// the change is; `added` are the files it may name, already durable. When the change fails they are removed (or kept
    /// until it is known what became of the edit).
    pub(crate) fn publish(
        &self,
        added: &[FileMeta],
        make: impl FnOnce(&Table) -> Result<Change, SinksError>,
    ) -> Result<(), SinksError> {
        let mut journal = self.journal.lock();
        let published = self.publish_next(&mut journal, added, make);
        let named = journal.doubt.as_ref().is_some_and(|(edit, _)| edit.diff.added == added);
        if published.is_err() && !named {
            added.iter().for_each(|file| self.discard(&self.path_of(file)));
        }
        published
    }

    fn publish_next(
        &self,
        journal: &mut Journal,
        added: &[FileMeta],
        make: impl FnOnce(&Table) -> Result<Change, SinksError>,
    ) -> Result<(), SinksError> {
        self.settle(journal)?;
        let number = journal.last + 1;
        let full = journal.needs_full || number - journal.last_full >= self.config.edits_per_snapshot;
        let (diff, state) = {
            let held = self.held.lock();
            let change = make(&held.table)?;
            let diff = Diff {
                why: change.why,
                added: added.to_vec(),
                removed: change.removed,
                cursors: change.cursors,
                fields: change.fields,
                next_file: self.next_file.load(Ordering::Relaxed),
            };
            let after = full.then(|| {
                let mut after = held.table.clone();
                after.apply(&diff);
                after.to_state()
            });
            (diff, after)
        };
        let edit = Edit { number, previous: journal.last_diff.clone(), diff, state, writer: self.writer() };
        let bytes = edit.encode().map_err(|error| SinksError::Invalid(format!("manifest edit: {error}")))?;
        self.put_edit(journal, edit, bytes)
    }

    /// Finds out what became of an edit in doubt, by putting it again.
    ///
    /// # Errors
    /// [`SinksError::Io`] as long as that cannot be known, [`SinksError::Replaced`] when another writer was there first.
    pub(crate) fn settle_doubt(&self) -> Result<(), SinksError> {
        self.settle(&mut self.journal.lock())
    }

    fn settle(&self, journal: &mut Journal) -> Result<(), SinksError> {
        if let Some(by) = &journal.lost_to {
            return Err(SinksError::Replaced { place: self.shown(), by: by.clone() });
        }
        match journal.doubt.take() {
            None => Ok(()),
            Some((edit, bytes)) => {
                let files: Vec<PathBuf> = edit.diff.added.iter().map(|file| self.path_of(file)).collect();
                let settled = self.put_edit(journal, edit, bytes);
                if settled.is_err() && journal.doubt.is_none() {
                    files.iter().for_each(|path| self.discard(path));
                }
                settled
            }
        }
    }

    fn is_replaced(&self) -> bool {
        self.journal.lock().lost_to.is_some()
    }

    /// Whether no other writer has taken the store, as far as is known.
    pub(crate) fn check_still_ours(&self) -> Result<(), SinksError> {
        self.settle(&mut self.journal.lock())
    }

    fn put_edit(&self, journal: &mut Journal, edit: Edit, bytes: Vec<u8>) -> Result<(), SinksError> {
        let path = edit_path(&self.dir, edit.number);
        match self.place.put(&path, &bytes) {
            Ok(()) => match self.newest_edit() {
                Ok(newest) if newest > edit.number => {
                    // Perhaps it came in time, and its files count: they are left to the next start of the other one.
                    journal.doubt = Some((edit, bytes));
                    Err(self.replaced(journal, "another writer".to_owned()))
                }
                Ok(_) => {
                    self.accept(journal, edit);
                    Ok(())
                }
                Err(error) => {
                    journal.doubt = Some((edit, bytes));
                    Err(SinksError::io("list", &path)(error))
                }
            },
            Err(PutError::Refused(error)) => Err(SinksError::io("write", &path)(error)),
            Err(PutError::Doubt(error)) => {
                journal.doubt = Some((edit, bytes));
                Err(SinksError::io("write", &path)(error))
            }
            Err(PutError::Taken(found)) => {
                let by = match Edit::decode(&found, edit.number) {
                    Ok(Edit { writer: Some(Writer { host, session, .. }), .. }) => {
                        format!("{host} (session {session})")
                    }
                    _ => "another writer".to_owned(),
                };
                Err(self.replaced(journal, by))
            }
        }
    }

    fn replaced(&self, journal: &mut Journal, by: String) -> SinksError {
        let place = self.shown();
        gauge!(names::PARQUET_REPLACED).set(1.0);
        tracing::error!(by, place, "another server has taken over the store; this one writes to it no more");
        journal.lost_to = Some(by.clone());
        SinksError::Replaced { place, by }
    }

    /// Whether the place answers: for who is about to put work into files that could not be stored a moment ago.
    ///
    /// # Errors
    /// [`SinksError::Io`].
    pub(crate) fn answers(&self) -> Result<(), SinksError> {
        self.newest_edit().map(drop).map_err(SinksError::io("list", &manifest_dir(&self.dir)))
    }

    /// The newest edit of an object store. That a number was free says nothing by itself: a writer that was held up for long finds
    /// the number of its next edit free again once others have put that edit, gone on, and removed it as an old one.
    fn newest_edit(&self) -> io::Result<u64> {
        match &self.place {
            Place::Disk(_) => Ok(0),
            Place::Bucket(_) => {
                let listed = self.place.list(&manifest_dir(&self.dir))?;
                Ok(listed.iter().filter_map(|edit| number_in(&edit.path, "edit")).max().unwrap_or(0))
            }
        }
    }

    /// The edit is durable: what is visible follows.
    fn accept(&self, journal: &mut Journal, edit: Edit) {
        let (number, full) = (edit.number, edit.state.is_some());
        self.show(&edit.diff, number);
        journal.last = number;
        journal.last_diff = Some(edit.diff);
        if full {
            journal.needs_full = false;
            journal.previous_full = std::mem::replace(&mut journal.last_full, number);
            self.drop_old_edits(journal);
        }
    }

    /// Removes the edits below the last full edit but one.
    fn drop_old_edits(&self, journal: &mut Journal) {
        while journal.first < journal.previous_full {
            let path = edit_path(&self.dir, journal.first);
            if let Err(error) = self.place.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "an old manifest edit could not be removed");
                return;
            }
            journal.first += 1;
        }
    }

    /// Drops damaged files from the manifest, or, when that cannot be written, from what is visible: the next start then
    /// finds them damaged again.
    pub(crate) fn forget_bad(&self, removed: Vec<u64>) {
        let dropped = self.publish(&[], |table| {
            let removed = removed.iter().copied().filter(|id| table.files.contains_key(id)).collect();
            Ok(Change::new(Why::Quarantine, table.cursors).removing(removed))
        });
        // What another writer has taken away is no damage: who asks for it is told so.
        if let Err(error) = dropped.or_else(|error| if self.is_replaced() { Ok(()) } else { Err(error) }) {
            tracing::warn!(%error, "damaged files could not be dropped from the manifest; they are hidden until the next start");
            self.hide(&removed);
        }
    }

    /// Removes a file that no edit names. A failure is only worth a word: it is tried again, and the next start removes it.
    pub(crate) fn discard(&self, path: &Path) {
        if let Err(error) = self.place.remove(path) {
            tracing::warn!(path = %path.display(), %error, "a Parquet file that nothing refers to could not be removed");
            let mut litter = self.litter.lock();
            if litter.len() < LITTER_MAX {
                litter.push(path.to_owned());
            }
        }
    }

    /// Tries once more to remove what could not be.
    pub(crate) fn clear_litter(&self) {
        let litter: Vec<PathBuf> = std::mem::take(&mut *self.litter.lock());
        litter.iter().for_each(|path| self.discard(path));
    }

    /// Gives up the uploads of writers before this one.
    pub(crate) fn clear_uploads(&self) {
        let Place::Bucket(bucket) = &self.place else { return };
        let claimed = self.next_file.load(Ordering::Relaxed) / CLAIM_FILES * CLAIM_FILES;
        match bucket.give_up_uploads(claimed) {
            Ok(0) => {}
            Ok(uploads) => tracing::info!(uploads, "uploads that were never ended were given up"),
            Err(error) => {
                tracing::warn!(%error, "uploads that were never ended could not be given up; the next start tries")
            }
        }
    }

    fn writer(&self) -> Option<Writer> {
        match &self.place {
            Place::Disk(_) => None,
            Place::Bucket(bucket) => Some(bucket.parts.writer.clone()),
        }
    }

    /// The store's name in messages.
    pub(crate) fn shown(&self) -> String {
        match &self.place {
            Place::Disk(_) => self.dir.display().to_string(),
            Place::Bucket(bucket) => bucket.parts.url.clone(),
        }
    }

    /// Begins as the writer of an object store, which fences those before it.
    ///
    /// # Errors
    /// [`SinksError::Replaced`] when another one was quicker; [`SinksError::Invalid`] when the object store cannot guard edits.
    pub(crate) fn claim(&self) -> Result<(), SinksError> {
        let Place::Bucket(bucket) = &self.place else { return Ok(()) };
        let claimed = (self.next_file.load(Ordering::Relaxed) / CLAIM_FILES + 1).saturating_mul(CLAIM_FILES);
        self.next_file.store(claimed, Ordering::Relaxed);
        let mut journal = self.journal.lock();
        // The first edit of a writer is a full one, so that its bytes are its own.
        journal.needs_full = true;
        self.publish_next(&mut journal, &[], |table| Ok(Change::new(Why::Confirm, table.cursors)))?;
        let path = edit_path(&self.dir, journal.last);
        let put = self.place.read(&path, u64::MAX).and_then(|bytes| bucket.guards(&path, &bytes));
        if put.map_err(SinksError::io("write", &path))? {
            return Ok(());
        }
        Err(SinksError::Invalid(format!(
            "{}: the object store overwrites what it was asked to put only if absent (If-None-Match), so that two servers could \
             destroy each other's manifest; use one that keeps to it",
            self.shown()
        )))
    }
}

/// File numbers that one writer of an object store may give.
const CLAIM_FILES: u64 = 1 << 32;
