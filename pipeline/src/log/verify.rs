//! Looking at a log without opening it: nothing is written, and no lock is taken, so it may be in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{FrameKind, SegmentHeader};
use super::listing::{Listing, list, read_header, void_offsets};
use super::recover::{given_up, told_to};
use super::scan::{Damage, Found, Scanner};
use super::schemas::Schemas;
use super::sectors::Sectors;
use super::segment::unusable;
use super::summary::Summary;
use super::whole::{Target, scan};
use super::{LogBatch, Offset, decode};
use crate::error::PipelineError;
use crate::fs::{Fs, FsFile, Open};

/// What a segment file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Offset of the first row.
    pub first: Offset,
    /// The offset after the last row.
    pub end: Offset,
    /// Whole batch frames.
    pub frames: u64,
    /// Rows in them.
    pub rows: u64,
    /// Smallest `time` (µs); `None` without rows.
    pub time_min: Option<i64>,
    /// Largest `time` (µs); `None` without rows.
    pub time_max: Option<i64>,
    /// Bytes after the last frame that are neither frames nor zeros, or frames that a later segment voids: a torn tail or a
    /// failed group commit.
    pub residue_bytes: u64,
    /// Whether there is a whole summary beside it. (The segment that is being written has none.)
    pub summarised: bool,
    /// What does not hold what it should.
    pub damage: Vec<Damage>,
}

/// Reads and checks every frame of every segment in `dir`, in offset order. Rows that are missing between two segments are
/// damage of the later one.
///
/// # Errors
/// [`PipelineError::Io`] when the folder cannot be listed or a file not be read.
pub fn verify(fs: &dyn Fs, dir: &Path) -> Result<Vec<SegmentReport>, PipelineError> {
    let (listing, files) = open_all(fs, dir)?;
    let schemas = Schemas::default();
    let mut reports = Vec::with_capacity(files.len());
    let mut end = None;
    for file in files {
        let failed = |source| PipelineError::Io { op: "read", path: file.path.clone(), source };
        let OpenedFile { first, header, void_at, .. } = file;
        let summary = listing.sums.get(&first).map(|path| Summary::read(fs, path, true));
        let known = summary.as_ref().and_then(|read| read.as_ref().ok()?.as_ref());
        let given_up = given_up(known.map(|(summary, _)| &summary.index), header);
        let target = Target { place: (fs, dir), file: &*file.file, first, header, void_at, given_up };
        let mut scanned = scan(&target, &schemas).map_err(failed)?;
        scanned.settle();
        let index = &scanned.summary.index;
        if let Some(end) = end.filter(|end| *end < index.sealed_at && !scanned.half_made) {
            let reason = "rows are missing before this segment".to_owned();
            scanned.damage.insert(0, Damage { at: 0, bytes: 0, rows: end..index.sealed_at, reason });
        }
        end = Some(index.end.max(end.unwrap_or(0)).max(told_to(&scanned.damage)));
        let lost: u64 =
            scanned.damage.iter().filter(|damage| damage.rows.start >= file.first).map(Damage::rows_lost).sum();
        let has_rows = index.frames > 0;
        reports.push(SegmentReport {
            bytes: file.file.size().map_err(failed)?,
            path: file.path.clone(),
            first: file.first,
            end: index.end,
            frames: index.frames,
            rows: (index.end - index.first).saturating_sub(lost),
            time_min: has_rows.then_some(index.time_min),
            time_max: has_rows.then_some(index.time_max),
            residue_bytes: scanned.residue,
            summarised: matches!(summary, Some(Ok(Some(_)))),
            damage: scanned.damage,
        });
    }
    Ok(reports)
}

/// Hands every batch that has a row from `from` up to (not including) `to` to `take`, in offset order. Damage is skipped and
/// logged.
///
/// # Errors
/// [`PipelineError::Io`] when the folder cannot be listed or a file not be read.
pub fn dump(
    fs: &dyn Fs,
    dir: &Path,
    from: Offset,
    to: Offset,
    take: &mut dyn FnMut(&LogBatch),
) -> Result<(), PipelineError> {
    let (listing, files) = open_all(fs, dir)?;
    let schemas = Schemas::default();
    for (nth, file) in files.iter().enumerate() {
        let over = files.get(nth + 1).is_some_and(|next| next.first <= from);
        if over || file.first >= to {
            continue;
        }
        let failed = |source| PipelineError::Io { op: "read", path: file.path.clone(), source };
        let salt = file.header.map(|header| header.salt);
        let summary = listing.sums.get(&file.first).and_then(|path| Summary::read(fs, path, false).ok().flatten());
        let sectors = Sectors::at_once();
        let rows = file.first..file.void_at.min(to);
        let mut scanner = Scanner::new((&*file.file, &sectors), 0, salt, rows).map_err(failed)?;
        loop {
            let frame = match scanner.next().map_err(failed)? {
                Found::End { .. } => break,
                Found::Damage(damage) => {
                    tracing::warn!(path = %file.path.display(), ?damage, "damage in the log is skipped");
                    continue;
                }
                Found::Frame(frame) => frame,
            };
            if frame.header.kind == FrameKind::Schema || frame.header.next() <= from {
                continue;
            }
            if summary.as_ref().is_some_and(|(summary, _)| {
                summary.index.salt == frame.header.salt && summary.index.is_given_up(&frame.header)
            }) {
                let rows = frame.header.base..frame.header.next();
                tracing::warn!(path = %file.path.display(), ?rows, "rows that a start of the log gave up are skipped");
                continue;
            }
            let schema = schemas.find((fs, dir), &*file.file, &frame.header).map_err(failed)?;
            match schema.map(|schema| decode::rows(&frame.header, &frame.payload, schema)) {
                Some(Ok(rows)) => {
                    take(&LogBatch { offset: frame.header.base, dataset: frame.header.dataset, rows });
                }
                unreadable => {
                    let reason = unreadable.map_or("no schema".to_owned(), |rows| format!("{rows:?}"));
                    let damage = unusable(&frame, &reason);
                    tracing::warn!(path = %file.path.display(), ?damage, "damage in the log is skipped");
                }
            }
        }
    }
    Ok(())
}

struct OpenedFile {
    first: Offset,
    path: PathBuf,
    file: Arc<dyn FsFile>,
    header: Option<SegmentHeader>,
    void_at: Offset,
}

fn open_all(fs: &dyn Fs, dir: &Path) -> Result<(Listing, Vec<OpenedFile>), PipelineError> {
    let listing = list(fs, dir)?;
    let mut files = Vec::with_capacity(listing.logs.len());
    for (first, path) in &listing.logs {
        let failed = |source| PipelineError::Io { op: "read", path: path.clone(), source };
        let file = match fs.open(path, Open::Read) {
            // Retention of a log in use may have taken it since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        let header = read_header(&*file, *first).map_err(failed)?;
        files.push(OpenedFile { first: *first, path: path.clone(), file, header, void_at: Offset::MAX });
    }
    let headers: Vec<_> = files.iter().map(|file| (file.first, file.header)).collect();
    for (file, void_at) in files.iter_mut().zip(void_offsets(&headers)) {
        file.void_at = void_at;
    }
    Ok((listing, files))
}
