//! Opening: the manifest is replayed, every file it names gets a short look, and what nothing names is cleared away.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metrics::counter;
use serde::Serialize;
use tidegate_events::Dataset;

use super::bucket::Writer;
use super::encode::file_path;
use super::file_io::FileSource;
use super::manifest::{Cursors, Edit, FileMeta, Table, Why};
use super::place::{Listed, Place};
use super::publish::{Change, Journal};
use super::store::ParquetStore;
use crate::error::SinksError;
use crate::metrics as names;

/// An edit larger than this is not one of ours.
const EDIT_BYTES_MAX: u64 = 1 << 30;
const MANIFEST: &str = "manifest";
const QUARANTINE: &str = "quarantine";

/// A file that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// Where it was.
    pub path: PathBuf,
    /// The table of its rows.
    pub dataset: &'static str,
    /// Rows that are no longer visible.
    pub rows: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What [`ParquetStore::open`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OpenReport {
    /// Visible files.
    pub files: u64,
    /// Edits read after the newest full one.
    pub edits_replayed: u64,
    /// Damaged or missing edits, with what is wrong.
    pub damaged_edits: Vec<(PathBuf, String)>,
    /// Damaged edits whose change was found again in the edit after them.
    pub repaired_edits: u64,
    /// Damaged edits whose change is not known: the last one (the log is read again from before it), or neighbours.
    pub lost_edits: u64,
    /// Files that the manifest names and that are missing, cut or damaged: moved to `quarantine/`, no longer visible.
    pub set_aside: Vec<SetAside>,
    /// Files that could not be looked at now, and why; they stay visible.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Files that nothing names (of a crash during a commit or a compaction) and that were removed.
    pub strays_removed: u64,
    /// Such files that were moved to `quarantine/` because the manifest is damaged.
    pub strays_kept: u64,
    /// Whether the rows in the files are those that the ledger says.
    pub ledger_agrees: bool,
}

impl OpenReport {
    /// Whether nothing was found that an operator must look at.
    pub fn is_clean(&self) -> bool {
        self.damaged_edits.is_empty() && self.set_aside.is_empty() && self.unreadable.is_empty() && self.ledger_agrees
    }
}

/// What [`load`] gives.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) table: Table,
    pub(crate) journal: Journal,
    /// Before the last edit.
    pub(crate) cursors_before: Cursors,
    pub(crate) bad_files: Vec<(Arc<FileMeta>, String)>,
    pub(crate) strays: Vec<PathBuf>,
    pub(crate) report: OpenReport,
}

/// Where the edits are.
pub(crate) fn manifest_dir(dir: &Path) -> PathBuf {
    dir.join(MANIFEST)
}

/// Where the edit with this number is.
pub(crate) fn edit_path(dir: &Path, number: u64) -> PathBuf {
    manifest_dir(dir).join(format!("{number:020}.edit"))
}

/// Reads the store in `dir` and changes nothing but to make folders.
pub(crate) fn load(place: &Place, dir: &Path) -> Result<Opened, SinksError> {
    let datasets = Dataset::ALL.map(Dataset::table_name);
    for folder in [MANIFEST, QUARANTINE].iter().chain(&datasets) {
        let folder = dir.join(folder);
        place.make_folder(&folder).map_err(SinksError::io("make", &folder))?;
    }
    let mut report = OpenReport::default();
    // A folder is ours alone; under a prefix of a bucket people may have put something.
    let foreign_stays = matches!(place, Place::Bucket(_));
    let manifest = dir.join(MANIFEST);
    let mut numbers = Vec::new();
    let mut strays = Vec::new();
    for Listed { path, .. } in place.list(&manifest).map_err(SinksError::io("list", &manifest))? {
        match number_in(&path, "edit") {
            Some(number) => numbers.push(number),
            None if foreign_stays => {}
            None => strays.push(path),
        }
    }
    numbers.sort_unstable();
    let Replayed { mut table, journal, cursors_before, writer } = replay(place, dir, &numbers, &mut report)?;
    check_log(place, writer, &table)?;
    let mut sizes: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for name in datasets {
        let folder = dir.join(name);
        for Listed { path, bytes } in place.list(&folder).map_err(SinksError::io("list", &folder))? {
            sizes.extend(bytes.map(|bytes| (path.clone(), bytes)));
            let id = number_in(&path, "parquet");
            table.next_file = table.next_file.max(id.map_or(0, |id| id.saturating_add(1)));
            let known = id.and_then(|id| table.files.get(&id)).is_some_and(|file| file.dataset.table_name() == name);
            if !known && (id.is_some() || !foreign_stays) {
                strays.push(path);
            }
        }
    }
    let mut bad_files = Vec::new();
    for file in table.files.values() {
        let path = file_path(dir, file.dataset, file.id);
        match look(place, &path, file, &sizes) {
            Look::Good => {}
            Look::Bad(reason) => bad_files.push((file.clone(), reason)),
            Look::Unknown(reason) => report.unreadable.push((path, reason)),
        }
    }
    let ledger = table.ledger;
    report.ledger_agrees = report.lost_edits > 0 || ledger.committed == table.rows() + ledger.expired + ledger.lost;
    Ok(Opened { table, journal, cursors_before, bad_files, strays, report })
}

/// The number in a file's name.
pub(super) fn number_in(path: &Path, extension: &str) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// What the manifest says.
struct Replayed {
    table: Table,
    journal: Journal,
    cursors_before: Cursors,
    /// Who made the last edit.
    writer: Option<Writer>,
}

/// Refuses the rows of another server's log: its offsets are not ours, and what the own log holds would count as stored.
fn check_log(place: &Place, writer: Option<Writer>, table: &Table) -> Result<(), SinksError> {
    let (Place::Bucket(bucket), Some(writer)) = (place, writer) else { return Ok(()) };
    let parts = &bucket.parts;
    if writer.log == parts.writer.log || parts.log_is_empty || table.cursors == Cursors::default() {
        return Ok(());
    }
    Err(SinksError::Foreign { place: parts.url.clone(), host: writer.host, log: writer.log })
}

/// Replays the manifest from its newest good full edit.
fn replay(place: &Place, dir: &Path, numbers: &[u64], report: &mut OpenReport) -> Result<Replayed, SinksError> {
    let mut edits: BTreeMap<u64, Edit> = BTreeMap::new();
    let mut start = None;
    for number in numbers.iter().rev() {
        let path = edit_path(dir, *number);
        match read_edit(place, &path, *number)? {
            Ok(edit) => {
                let full = edit.state.is_some();
                edits.insert(*number, edit);
                if full {
                    start = Some(*number);
                    break;
                }
            }
            Err(reason) => report.damaged_edits.push((path, reason)),
        }
    }
    let last = numbers.last().copied().unwrap_or(0);
    let first = numbers.first().copied().unwrap_or(1);
    let mut cursors_before = Cursors::default();
    let mut journal = Journal::new(last, first);
    let writer = edits.last_key_value().and_then(|(_, edit)| edit.writer.clone());
    let Some(start) = start else {
        // Nothing to stand on: the cursors go back to zero, the logs give again what they still have.
        report.lost_edits = edits.len() as u64 + report.damaged_edits.len() as u64;
        return Ok(Replayed { table: Table::default(), journal, cursors_before, writer });
    };
    let Some(Edit { state: Some(state), diff, previous, .. }) = edits.remove(&start) else {
        return Err(SinksError::Damaged { path: edit_path(dir, start), reason: "it has no state".into() });
    };
    let mut table = Table::from_state(state);
    cursors_before = previous.map_or(cursors_before, |previous| previous.cursors);
    journal.last_full = start;
    journal.needs_full = !report.damaged_edits.is_empty();
    journal.last_diff = Some(diff);
    for number in start + 1..=last {
        let diff = match edits.remove(&number) {
            Some(edit) => edit.diff,
            None => {
                let repeated = edits.get_mut(&(number + 1)).and_then(|next| next.previous.take());
                match repeated {
                    Some(diff) => {
                        report.repaired_edits += 1;
                        diff
                    }
                    None => {
                        report.lost_edits += 1;
                        continue;
                    }
                }
            }
        };
        cursors_before = table.cursors;
        table.apply(&diff);
        journal.last_diff = Some(diff);
        report.edits_replayed += 1;
    }
    Ok(Replayed { table, journal, cursors_before, writer })
}

/// The edit, or why there is none in the file.
fn read_edit(place: &Place, path: &Path, number: u64) -> Result<Result<Edit, String>, SinksError> {
    match place.read(path, EDIT_BYTES_MAX) {
        Ok(bytes) => Ok(Edit::decode(&bytes, number)),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(SinksError::io("read", path)(error)),
    }
}

/// What a short look at a file says.
enum Look {
    Good,
    Bad(String),
    Unknown(String),
}

/// Checks length, magic bytes and the length of the footer. What the rest holds is for `verify`. Of an object store, which shows
/// whole objects only, the sizes of its listing will do.
fn look(place: &Place, path: &Path, file: &FileMeta, sizes: &BTreeMap<PathBuf, u64>) -> Look {
    if let Place::Bucket(bucket) = place {
        // What a listing leaves out is asked for by name before it counts as gone.
        return match sizes.get(path).map_or_else(|| bucket.size(path), |bytes| Ok(*bytes)) {
            Ok(bytes) if bytes == file.bytes => Look::Good,
            Ok(bytes) => Look::Bad(format!("it has {bytes} bytes, the manifest says {}", file.bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Look::Bad("it is missing".into()),
            Err(error) => Look::Unknown(error.to_string()),
        };
    }
    let source = match FileSource::open(place, path, None) {
        Ok(source) => source,
        Err(SinksError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return Look::Bad("it is missing".into());
        }
        Err(error) => return Look::Unknown(error.to_string()),
    };
    if source.len() != file.bytes {
        return Look::Bad(format!("it has {} bytes, the manifest says {}", source.len(), file.bytes));
    }
    let ends = source.exact(0, 4).and_then(|head| Ok((head, source.exact(file.bytes.saturating_sub(8), 8)?)));
    let (head, tail) = match ends {
        Ok(ends) => ends,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Look::Bad("it is too short".into()),
        Err(error) => return Look::Unknown(error.to_string()),
    };
    let footer = match *tail {
        [a, b, c, d, b'P', b'A', b'R', b'1'] => u64::from(u32::from_le_bytes([a, b, c, d])),
        _ => return Look::Bad("it does not end like a Parquet file".into()),
    };
    if *head != *b"PAR1" {
        return Look::Bad("it does not begin like a Parquet file".into());
    }
    if footer + 12 > file.bytes { Look::Bad("its footer is longer than the file".into()) } else { Look::Good }
}

impl ParquetStore {
    /// The second half of opening: sets damaged files aside and clears away what nothing names.
    pub(crate) fn settle_files(&self, bad: &[(Arc<FileMeta>, String)], strays: &[PathBuf], report: &mut OpenReport) {
        for (file, reason) in bad {
            report.set_aside.push(self.set_aside(file, reason));
        }
        let damaged = !report.damaged_edits.is_empty() || report.lost_edits > 0;
        // Another process may still read what an edit before the claim has dropped.
        let elsewhere = matches!(self.place, Place::Bucket(_));
        let fresh = self.stats().edit == u64::from(elsewhere);
        let orphans = strays.iter().any(|path| number_in(path, "parquet").is_some());
        if !bad.is_empty() {
            let removed: Vec<u64> = bad.iter().map(|(file, _)| file.id).collect();
            self.forget_bad(removed);
        }
        if !elsewhere
            && (fresh || damaged || orphans)
            && let Err(error) = self.publish(&[], |table| Ok(Change::new(Why::Confirm, table.cursors)))
        {
            // What nothing names stays where it is until a start that can write.
            tracing::warn!(%error, "the manifest cannot be written yet; free disk space or check the device");
            return;
        }
        for path in strays {
            let kept = (damaged || fresh) && number_in(path, "parquet").is_some();
            if kept && self.move_to_quarantine(path).is_ok() {
                report.strays_kept += 1;
            } else {
                if elsewhere {
                    self.condemn(path.clone())
                } else {
                    self.discard(path)
                }
                report.strays_removed += 1;
            }
        }
        self.clear_uploads();
        for (path, reason) in &report.damaged_edits {
            tracing::error!(path = %path.display(), reason, "a manifest edit is damaged; see the open report in `tidegate doctor`");
        }
    }

    /// Moves a damaged file out of the way. It must then be dropped from the manifest.
    pub(crate) fn set_aside(&self, file: &FileMeta, reason: &str) -> SetAside {
        let path = self.path_of(file);
        if let Err(error) = self.move_to_quarantine(&path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a damaged file could not be moved to quarantine");
        }
        counter!(names::PARQUET_QUARANTINED_FILES).increment(1);
        let dataset = file.dataset.table_name();
        tracing::error!(path = %path.display(), dataset, rows = file.rows, reason, "a Parquet file is damaged and set aside");
        SetAside { path, dataset, rows: file.rows, reason: reason.to_owned() }
    }

    fn move_to_quarantine(&self, path: &Path) -> std::io::Result<()> {
        let name = path.file_name().unwrap_or_default();
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
        let mut target = folder.to_owned();
        target.push(".");
        target.push(name);
        self.place.move_aside(path, &self.dir.join(QUARANTINE).join(target))
    }
}
