//! Opening: what the folder of a log holds, whatever happened to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::encode::Encoder;
use super::format::{FRAMES_START, SegmentHeader};
use super::group::{Commit, Frames, Ready};
use super::listing::{Listing, list, read_header, segment_path, void_offsets};
use super::scan::{Damage, Frame};
use super::schemas::Schemas;
use super::segment::{Segment, report, time_range};
use super::summary::{Index, Summary};
use super::whole::{Scanned, Target, scan};
use super::{EventBatch, Offset};
use crate::clock::now_us;
use crate::error::PipelineError;
use crate::fields::FieldCatalog;
use crate::fs::{DirChange, Fs, Open};

/// The last group is only written again when it is not larger than this (a group commit never is, by default).
const REWRITE_BYTES_MAX: u64 = 256 << 20;

/// What an opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Segment files.
    pub segments: usize,
    /// The first offset there is.
    pub first: Offset,
    /// The offset of the next row.
    pub next: Offset,
    /// Keys in the de-duplication window.
    pub keys: usize,
    /// Segments that had no whole summary and were scanned.
    pub scanned: usize,
    /// Rows of the last group commit that were written again because nothing said that they were durable.
    pub rewritten_rows: u64,
    /// Bytes after the last whole frame of the last segment: a torn tail. No acknowledged row was in it, unless `damage`
    /// says so.
    pub torn_bytes: u64,
    /// Segments without a whole header and without a frame: a crash left them while they were made. They cost nothing.
    pub half_made: Vec<PathBuf>,
    /// Set when the log ended before the offset that others already have rows up to (`next_min` of
    /// [`SegmentLog::open_at_least`](super::SegmentLog::open_at_least)): its end is lost, and the offsets up to this one are
    /// burnt.
    pub burnt_to: Option<Offset>,
    /// What does not hold what it should: the file and the place.
    pub damage: Vec<(PathBuf, Damage)>,
}

/// A log as it was found.
pub(crate) struct Recovered {
    pub segments: Vec<Arc<Segment>>,
    /// The offset of the next row.
    pub next: Offset,
    /// The offset after the last row there is.
    pub durable_end: Offset,
    pub fields: FieldCatalog,
    /// Keys of the window, oldest first.
    pub keys: Vec<Vec<u128>>,
    /// Segments whose summary is still to be written.
    pub unsummarised: Vec<(Arc<Segment>, Summary)>,
    /// Summaries whose segment is gone: first offset and count of keys.
    pub orphans: BTreeMap<Offset, u64>,
    pub report: OpenReport,
}

/// A segment file as it was found.
struct Part {
    first: Offset,
    path: PathBuf,
    size: u64,
    scanned: bool,
    keys_count: u64,
    found: Scanned,
}

impl Part {
    fn has_rows(&self) -> bool {
        self.found.summary.index.end > self.first || !self.found.last_group.is_empty()
    }

    /// Makes the summary anew from the segment, up to the row where it ended.
    fn rescan(&mut self, place: (&dyn Fs, &Path), schemas: &Schemas) -> io::Result<()> {
        let file = place.0.open(&self.path, Open::Read)?;
        self.found = scan(&Target::again(place, &*file, &self.found.summary.index), schemas)?;
        self.found.settle();
        self.scanned = true;
        self.keys_count = self.found.summary.keys.len() as u64;
        Ok(())
    }
}

/// The offset up to which damage tells of its rows.
pub(crate) fn told_to(damage: &[Damage]) -> Offset {
    damage.iter().map(|damage| damage.rows.end).max().unwrap_or(0)
}

/// Opens the folder. The next row gets at least the offset `next_min`.
pub(crate) fn recover(
    fs: &dyn Fs,
    dir: &Path,
    (keys_max, next_min): (usize, Offset),
    parts: (&Schemas, &Encoder),
) -> Result<Recovered, PipelineError> {
    let listing = list(fs, dir)?;
    for path in &listing.temporary {
        // Left by a crash between write and rename; of no value, and harmless if it cannot be removed.
        _ = fs.change(DirChange::Remove(path));
    }
    let mut found = load_all((fs, dir), &listing, parts.0)?;
    let mut report = OpenReport { segments: found.len(), ..OpenReport::default() };
    report.scanned = found.iter().filter(|part| part.scanned).count();
    let half_made = found.iter().filter(|part| part.found.half_made);
    report.half_made = half_made.map(|part| part.path.clone()).collect();
    report.torn_bytes = found.last().filter(|part| part.scanned).map_or(0, |part| part.found.residue);
    if let Some(at) = found.iter().rposition(Part::has_rows) {
        let rewritten = secure_last_group(fs, dir, &mut found[at], parts.1)?;
        if let Some(mut part) = rewritten {
            report.rewritten_rows = part.found.summary.index.end - part.first;
            if found[at].first == part.first {
                // Of what was lost in the file that it replaces nobody else tells.
                part.found.damage = std::mem::take(&mut found[at].found.damage);
                found[at] = part;
            } else {
                found.insert(at + 1, part);
            }
        }
    }
    let mut end = None;
    for part in &mut found {
        part.found.settle();
        if part.scanned {
            part.keys_count = part.found.summary.keys.len() as u64;
        }
        if part.found.half_made {
            // Its header, which is gone, would say whether offsets were burnt before it. Were rows lost, the next one tells.
            let index = &mut part.found.summary.index;
            index.sealed_at = index.sealed_at.min(end.unwrap_or(index.first));
        }
        let index = &part.found.summary.index;
        if let Some(end) = end.filter(|end| *end < index.sealed_at) {
            let reason = "rows are missing before this segment".to_owned();
            part.found.damage.push(Damage { at: 0, bytes: 0, rows: end..index.sealed_at, reason });
        }
        end = Some(index.end.max(end.unwrap_or(0)).max(told_to(&part.found.damage)));
        for damage in &part.found.damage {
            self::report(&part.path, damage, damage.rows_lost());
            report.damage.push((part.path.clone(), damage.clone()));
        }
    }
    let keys = load_keys((fs, dir), &listing, &mut found, (keys_max, parts.0))?;
    Ok(assemble(fs, (&listing, next_min), found, keys, report))
}

fn assemble(
    fs: &dyn Fs,
    (listing, next_min): (&Listing, Offset),
    found: Vec<Part>,
    keys: Vec<Vec<u128>>,
    mut report: OpenReport,
) -> Recovered {
    // Of a folder without segments nothing is known: its rows begin, and are complete, where the next one goes.
    let durable_end = found.iter().map(|part| part.found.summary.index.end).max().unwrap_or(next_min);
    let mut next = found.iter().map(|part| part.found.beyond.max(part.first)).max().unwrap_or(0).max(durable_end);
    if next < next_min || (found.is_empty() && next_min > 0) {
        next = next_min;
        report.burnt_to = Some(next_min);
    }
    if found.last().is_some_and(|part| part.first == next) {
        // An empty segment has the name that the next one would get. Its offset is burnt rather than its bytes, whatever
        // they are, overwritten.
        next += 1;
    }
    let mut fields = FieldCatalog::default();
    let (mut segments, mut unsummarised) = (Vec::new(), Vec::new());
    let mut orphans = BTreeMap::new();
    for (first, path) in listing.sums.iter().filter(|(first, _)| found.iter().all(|part| part.first != **first)) {
        let count = Summary::read(fs, path, false).ok().flatten().map_or(0, |(_, count)| count);
        orphans.insert(*first, count);
    }
    for part in found {
        let summary = part.found.summary;
        fields.merge(&summary.fields);
        let segment = Segment::new(part.path, summary.index.clone(), part.size, part.keys_count, None);
        segment.told(&part.found.damage);
        if part.scanned {
            segment.told_given_up();
        }
        let segment = Arc::new(segment);
        if part.scanned {
            unsummarised.push((segment.clone(), summary));
        } else {
            *segment.summarised.lock() = true;
        }
        segments.push(segment);
    }
    report.first = segments.first().map_or(next, |segment| segment.begin());
    report.next = next;
    Recovered { segments, next, durable_end, fields, keys, unsummarised, orphans, report }
}

fn load_all(place: (&dyn Fs, &Path), listing: &Listing, schemas: &Schemas) -> Result<Vec<Part>, PipelineError> {
    let fs = place.0;
    let mut heads = Vec::with_capacity(listing.logs.len());
    for (first, path) in &listing.logs {
        let failed = |source| PipelineError::Io { op: "read", path: path.clone(), source };
        let summary = listing.sums.get(first).and_then(|path| Summary::read(fs, path, false).ok().flatten());
        let read = fs.open(path, Open::Read).and_then(|file| Ok((read_header(&*file, *first)?, file.size()?)));
        let (header, size) = match (read, &summary) {
            (Ok((Some(header), size)), _) => (Some(header), size),
            // A bad sector in an old segment is no reason not to start: its summary tells what a start needs.
            (Err(_), Some((summary, _))) => (Some(header_of(&summary.index)), summary.index.end_at),
            (Ok((None, size)), Some((summary, _))) => (Some(header_of(&summary.index)), size),
            (Ok((None, size)), None) => (None, size),
            (Err(error), None) => return Err(failed(error)),
        };
        heads.push((*first, header, size, summary));
    }
    let known: Vec<_> = heads.iter().map(|(first, header, ..)| (*first, *header)).collect();
    let voids = void_offsets(&known);
    let mut parts = Vec::with_capacity(heads.len());
    for (((first, header, size, summary), path), void_at) in heads.into_iter().zip(listing.logs.values()).zip(voids) {
        let (scanned, keys_count, found) = match summary {
            Some((summary, count)) if speaks_of(&summary.index, header, size, void_at) => {
                let beyond = summary.index.end;
                let (damage, last_group) = (Vec::new(), Vec::new());
                (false, count, Scanned { summary, damage, residue: 0, beyond, last_group, half_made: false })
            }
            summary => {
                let given_up = given_up(summary.as_ref().map(|(summary, _)| &summary.index), header);
                let scan = fs
                    .open(path, Open::Read)
                    .and_then(|file| scan(&Target { place, file: &*file, first, header, void_at, given_up }, schemas));
                let failed = |source| PipelineError::Io { op: "read", path: path.clone(), source };
                (true, 0, scan.map_err(failed)?)
            }
        };
        parts.push(Part { first, path: path.clone(), size, scanned, keys_count, found });
    }
    Ok(parts)
}

fn header_of(index: &Index) -> SegmentHeader {
    SegmentHeader { first: index.first, sealed_at: index.sealed_at, salt: index.salt, made_us: 0 }
}

/// The rows of a segment that its summary gives up.
pub(crate) fn given_up(summary: Option<&Index>, header: Option<SegmentHeader>) -> &[(Offset, Offset)] {
    let of_it = |index: &&Index| header.is_none_or(|header| header.salt == index.salt && header.first == index.first);
    summary.filter(of_it).map_or(&[], |index| &index.given_up)
}

/// Whether a summary speaks of the file that is there.
fn speaks_of(index: &Index, header: Option<SegmentHeader>, size: u64, void_at: Offset) -> bool {
    let same = header.is_none_or(|header| header.salt == index.salt && header.first == index.first);
    same && index.end_at <= size && index.end <= void_at
}

/// Makes the rows of the last group durable: nothing tells whether they are (a killed process leaves them in the page cache,
/// and after a failed fsync another one succeeds without writing them). They are written again into a segment of their own.
fn secure_last_group(
    fs: &dyn Fs,
    dir: &Path,
    part: &mut Part,
    encoder: &Encoder,
) -> Result<Option<Part>, PipelineError> {
    let bytes: u64 = part.found.last_group.iter().map(|(frame, _)| frame.header.frame_len()).sum();
    if part.found.last_group.iter().all(|(_, events)| events.is_none()) {
        return Ok(None);
    }
    let failed = |op, path: &Path, source| PipelineError::Io { op, path: path.to_owned(), source };
    if bytes <= REWRITE_BYTES_MAX {
        let mut group = std::mem::take(&mut part.found.last_group);
        // What is of no use is told already. Its rows are void in the old file, and a gap in the new one.
        group.retain(|(_, events)| events.is_some());
        match rewrite(fs, dir, part, &group, encoder) {
            Ok(rewritten) => return Ok(Some(rewritten)),
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "no space to write the last group commit again; it is synced where it is");
                part.found.last_group = group;
            }
            Err(error) => return Err(failed("write", dir, error)),
        }
    }
    let file = fs.open(&part.path, Open::Write).map_err(|error| failed("open", &part.path, error))?;
    file.sync_data().map_err(|error| failed("sync", &part.path, error))?;
    Ok(None)
}

/// Whether there is no space.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

fn rewrite(
    fs: &dyn Fs,
    dir: &Path,
    part: &Part,
    group: &[(Frame, Option<EventBatch>)],
    encoder: &Encoder,
) -> io::Result<Part> {
    let arrow = |error: arrow::error::ArrowError| io::Error::other(error.to_string());
    let base = group.first().map_or(part.first, |(frame, _)| frame.header.base);
    let mut end = base;
    // When the group is all that the segment holds, the new file replaces it and must void what it voided.
    let sealed_at = if base == part.first { part.found.summary.index.sealed_at } else { base };
    let header = SegmentHeader { first: base, sealed_at, salt: random_salt()?, made_us: now_us() };
    let commit = Commit { at: FRAMES_START, salt: header.salt, now_us: header.made_us };
    let mut frames = Frames::new(commit);
    let mut index = Index::new(base, sealed_at, header.salt);
    let (mut fields, mut keys) = (FieldCatalog::default(), Vec::new());
    for (frame, events) in group.iter().filter_map(|(frame, events)| Some((frame, events.as_ref()?))) {
        let schema = encoder.schema(&events.rows.schema()).map_err(arrow)?;
        let payload = schema.encode(&events.rows, &events.keys).map_err(arrow)?;
        let times = time_range(&events.rows);
        index.note_times(times);
        fields.observe(events.dataset, &events.rows);
        keys.extend(events.keys.iter().filter(|key| **key != 0));
        let (dataset, rows) = (events.dataset, events.rows.clone());
        let ready = Ready { dataset, rows, keys: Vec::new(), schema, payload, times, memory: 0, seen: Vec::new() };
        frames.batch(&ready, frame.header.base, &Default::default());
        index.give_up(end..frame.header.base);
        end = frame.header.next();
    }
    frames.finish(end);
    for (at, header) in &frames.notes {
        index.note(*at, header);
    }
    let path = segment_path(dir, base);
    let temporary = path.with_extension("log.tmp");
    let file = fs.open(&temporary, Open::Create)?;
    frames.write(&*file, &header.encode())?;
    file.sync_data()?;
    fs.change(DirChange::Rename(&temporary, &path))?;
    fs.sync_dir(dir)?;
    let size = file.size()?;
    let found = Scanned {
        summary: Summary { index, fields, keys },
        damage: Vec::new(),
        residue: 0,
        beyond: part.found.beyond,
        last_group: Vec::new(),
        half_made: false,
    };
    Ok(Part { first: base, path, size, scanned: true, keys_count: 0, found })
}

/// A salt for a new segment.
pub(crate) fn random_salt() -> io::Result<u64> {
    let mut salt = [0; 8];
    getrandom::fill(&mut salt).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u64::from_le_bytes(salt))
}

/// The keys of the newest rows, oldest segment first, up to the window's bound. A summary whose keys are damaged is made anew from
/// its segment; if that is gone, its keys are too.
fn load_keys(
    place: (&dyn Fs, &Path),
    listing: &Listing,
    found: &mut [Part],
    (keys_max, schemas): (usize, &Schemas),
) -> Result<Vec<Vec<u128>>, PipelineError> {
    let mut firsts: BTreeSet<Offset> = listing.sums.keys().copied().collect();
    firsts.extend(found.iter().map(|part| part.first));
    let (mut keys, mut count) = (Vec::new(), 0);
    for first in firsts.into_iter().rev() {
        if count >= keys_max {
            break;
        }
        let part = found.iter_mut().find(|part| part.first == first);
        let loaded = match (part, listing.sums.get(&first)) {
            (Some(part), _) if part.scanned => part.found.summary.keys.clone(),
            (part, Some(path)) => match (read_keys(place.0, path, listing)?, part) {
                (Some(keys), _) => keys,
                (None, Some(part)) => {
                    let scanned = part.rescan(place, schemas);
                    scanned.map_err(|source| PipelineError::Io { op: "read", path: part.path.clone(), source })?;
                    part.found.summary.keys.clone()
                }
                (None, None) => {
                    tracing::error!(path = %path.display(), "the keys of a forgotten segment are damaged: its duplicates are not known");
                    Vec::new()
                }
            },
            (_, None) => Vec::new(),
        };
        count += loaded.len();
        keys.push(loaded);
    }
    keys.reverse();
    Ok(keys)
}

/// The keys of a summary; `None` when they are damaged, or in a bad sector.
fn read_keys(fs: &dyn Fs, path: &Path, listing: &Listing) -> Result<Option<Vec<u128>>, PipelineError> {
    match Summary::read(fs, path, true).or_else(|_| Summary::read(fs, path, true)) {
        Ok(read) => Ok(read.map(|(summary, _)| summary.keys)),
        // A device that is gone fails everywhere: then the keys are not lost, but cannot be had now.
        Err(_)
            if listing
                .logs
                .values()
                .chain(listing.sums.values())
                .any(|other| other != path && can_be_read(fs, other)) =>
        {
            Ok(None)
        }
        Err(source) => Err(PipelineError::Io { op: "read", path: path.to_owned(), source }),
    }
}

fn can_be_read(fs: &dyn Fs, path: &Path) -> bool {
    fs.open(path, Open::Read).and_then(|file| file.size().and(file.read_at(&mut [0], 0))).is_ok()
}
