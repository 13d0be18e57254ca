//! One segment file as readers see it: where its frames are, and reading them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use metrics::counter;
use parking_lot::{Mutex, RwLock};
use tidegate_events::Dataset;

use super::format::{FrameHeader, FrameKind};
use super::scan::{Damage, Found, Frame, Scanner, frame_at};
use super::schemas::Schemas;
use super::sectors::Sectors;
use super::summary::Index;
use super::{LogBatch, Offset, decode};
use crate::error::PipelineError;
use crate::fs::{Fs, FsFile, Open};
use crate::metrics as names;

/// Damaged places of a segment that are remembered so as to count each once.
const TOLD_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Segment {
    pub path: PathBuf,
    /// Grows while the segment is written.
    pub index: RwLock<Index>,
    /// Bytes of the file.
    pub bytes: AtomicU64,
    /// Keys of its rows.
    pub keys: AtomicU64,
    /// Whether its summary is on the disk. The lock is held while it is written.
    pub summarised: Mutex<bool>,
    file: Mutex<Option<Arc<dyn FsFile>>>,
    told: Mutex<Told>,
    sectors: Sectors,
}

/// What a read asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub from: Offset,
    /// Rows at or above it are not visible.
    pub until: Offset,
    pub bytes_max: usize,
}

impl Segment {
    pub fn new(path: PathBuf, index: Index, bytes: u64, keys: u64, file: Option<Arc<dyn FsFile>>) -> Self {
        Self {
            path,
            index: RwLock::new(index),
            bytes: AtomicU64::new(bytes),
            keys: AtomicU64::new(keys),
            summarised: Mutex::new(false),
            file: Mutex::new(file),
            told: Mutex::default(),
            sectors: Sectors::patient(),
        }
    }

    /// The range of rows, now.
    pub fn range(&self) -> (Offset, Offset) {
        let index = self.index.read();
        (index.first, index.end)
    }

    /// Where the segment takes over: the first offset that no earlier segment answers for. It lies before the first row when
    /// offsets were burnt there, of which nothing is lost.
    pub fn begin(&self) -> Offset {
        let index = self.index.read();
        index.sealed_at.min(index.first)
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The handle, opened when it is first needed. It stays good when the file is removed.
    pub fn file(&self, fs: &dyn Fs) -> std::io::Result<Arc<dyn FsFile>> {
        let mut file = self.file.lock();
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        let opened = fs.open(&self.path, Open::Read)?;
        Ok(file.insert(opened).clone())
    }

    /// Reads batches into `out`; returns the bytes of them.
    pub fn read(
        &self,
        fs: &dyn Fs,
        schemas: &Schemas,
        wanted: Wanted,
        out: &mut Vec<Arc<LogBatch>>,
    ) -> Result<usize, PipelineError> {
        let failed = |source| PipelineError::Io { op: "read", path: self.path.clone(), source };
        let file = self.file(fs).map_err(failed)?;
        let (start, end, end_at, salt) = {
            let index = self.index.read();
            (index.position(wanted.from), index.end.min(wanted.until), index.end_at, index.salt)
        };
        let scanner = Scanner::new((&*file, &self.sectors), start.1, Some(salt), start.0..end).map_err(failed)?;
        let mut scanner = scanner.ending_at(end_at);
        let mut bytes = 0;
        loop {
            match scanner.next().map_err(failed)? {
                Found::End { residue } => {
                    // The rows up to here were visible, so what stands in their place is no torn tail.
                    if scanner.expected() < end {
                        let (at, rows) = (scanner.size().saturating_sub(residue), scanner.expected()..end);
                        let reason = "no whole frame up to the end of the segment's rows".to_owned();
                        self.report(&Damage { at, bytes: residue, rows, reason });
                    }
                    return Ok(bytes);
                }
                Found::Damage(damage) => self.report(&damage),
                Found::Frame(frame) if frame.header.kind == FrameKind::Schema => {
                    _ = self.learn(&frame, schemas);
                }
                Found::Frame(frame) if frame.header.next() <= wanted.from => {}
                Found::Frame(frame) => {
                    if let Some(batch) = self.decode(fs, &frame, schemas).map_err(failed)? {
                        out.push(Arc::new(batch));
                        bytes += frame.payload.len();
                    }
                    if bytes >= wanted.bytes_max {
                        return Ok(bytes);
                    }
                }
            }
        }
    }

    /// Reads the batches of `changes` that end after `from` and begin before `until` into `out`.
    pub fn read_changes(
        &self,
        fs: &dyn Fs,
        schemas: &Schemas,
        wanted: Wanted,
        out: &mut Vec<Arc<LogBatch>>,
    ) -> Result<(), PipelineError> {
        let (marks, salt) = {
            let index = self.index.read();
            (index.changes.clone(), index.salt)
        };
        if marks.is_empty() {
            return Ok(());
        }
        let failed = |source| PipelineError::Io { op: "read", path: self.path.clone(), source };
        let file = self.file(fs).map_err(failed)?;
        for (offset, at) in marks.into_iter().filter(|(offset, _)| *offset < wanted.until) {
            match frame_at((&*file, &self.sectors), at, salt).map_err(failed)? {
                Some(frame) if frame.header.next() > wanted.from => {
                    out.extend(self.decode(fs, &frame, schemas).map_err(failed)?.map(Arc::new));
                }
                Some(_) => {}
                None => {
                    let reason = "a batch of changes is not whole".to_owned();
                    self.report(&Damage { at, bytes: 0, rows: offset..offset, reason });
                }
            }
        }
        Ok(())
    }

    fn learn(&self, frame: &Frame, schemas: &Schemas) -> Option<SchemaRef> {
        let known = schemas.get(frame.header.schema_id);
        let schema = match known {
            Some(known) => Ok(known),
            None => decode::schema(&frame.payload).map(|schema| schemas.learn(frame.header.schema_id, schema)),
        };
        schema.inspect_err(|error| self.report(&unusable(frame, error))).ok()
    }

    /// The rows of a frame; `None` when it is of no use, which is reported. An error when its schema cannot be read now.
    fn decode(&self, fs: &dyn Fs, frame: &Frame, schemas: &Schemas) -> std::io::Result<Option<LogBatch>> {
        let header = &frame.header;
        if self.index.read().is_given_up(header) {
            self.report(&unusable(frame, &"an earlier start gave it up"));
            return Ok(None);
        }
        let Some(schema) = self.schema(fs, header, schemas)? else {
            self.report(&unusable(frame, &"its schema is in no readable frame"));
            return Ok(None);
        };
        match decode::rows(header, &frame.payload, schema) {
            Ok(rows) => Ok(Some(LogBatch { offset: header.base, dataset: header.dataset, rows })),
            Err(error) => {
                self.report(&unusable(frame, &error));
                Ok(None)
            }
        }
    }

    /// The schema of a batch frame: known, or in one of the two frames that the index tells, or in another segment.
    fn schema(&self, fs: &dyn Fs, header: &FrameHeader, schemas: &Schemas) -> std::io::Result<Option<SchemaRef>> {
        if let Some(known) = schemas.get(header.schema_id) {
            return Ok(Some(known));
        }
        let (marks, salt) = {
            let index = self.index.read();
            (index.schemas.clone(), index.salt)
        };
        let file = self.file(fs)?;
        for (_, at) in marks.iter().filter(|(id, _)| *id == header.schema_id) {
            let frame = frame_at((&*file, &self.sectors), *at, salt)?;
            if let Some(schema) = frame.and_then(|frame| self.learn(&frame, schemas)) {
                return Ok(Some(schema));
            }
        }
        schemas.elsewhere((fs, self.path.parent().unwrap_or(&self.path)), header.schema_id)
    }

    /// Takes note of damage that its finder has told already.
    pub fn told(&self, damage: &[Damage]) {
        let mut told = self.told.lock();
        damage.iter().for_each(|damage| _ = told.news(damage));
    }

    /// Takes note that the rows which this start gave up are told already.
    pub fn told_given_up(&self) {
        let rows = self.index.read().given_up.clone();
        let mut told = self.told.lock();
        rows.into_iter().for_each(|(from, to)| _ = told.new_rows(from..to));
    }

    /// Counts and logs a damaged place, once.
    pub fn report(&self, damage: &Damage) {
        if let Some(rows) = self.told.lock().news(damage) {
            report(&self.path, damage, rows);
        }
    }
}

/// The damage of a segment that was counted. Readers come from different places, and one that starts behind the beginning of a
/// damaged stretch sees another beginning of it.
#[derive(Debug, Default)]
struct Told {
    /// Lost rows, as ranges that do not overlap.
    rows: Vec<Range<Offset>>,
    /// Where damage starts.
    places: BTreeSet<u64>,
}

impl Told {
    /// How many rows of the damage were not counted yet; `None` when it is known.
    fn news(&mut self, damage: &Damage) -> Option<u64> {
        if self.places.len() >= TOLD_MAX {
            return None;
        }
        let new_place = self.places.insert(damage.at);
        if damage.rows_lost() == 0 {
            return new_place.then_some(0);
        }
        Some(self.new_rows(damage.rows.clone())).filter(|news| *news > 0)
    }

    /// How many of these rows were not counted yet.
    fn new_rows(&mut self, lost: Range<Offset>) -> u64 {
        let mut all = lost.clone();
        let mut known = 0;
        self.rows.retain(|rows| {
            let (start, end) = (rows.start.max(lost.start), rows.end.min(lost.end));
            let overlaps = start < end;
            if overlaps {
                known += end - start;
                all = all.start.min(rows.start)..all.end.max(rows.end);
            }
            !overlaps
        });
        self.rows.push(all);
        lost.end.saturating_sub(lost.start) - known
    }
}

/// Counts and logs a damaged place, at which so many rows are lost that were not counted before.
pub(crate) fn report(path: &Path, damage: &Damage, rows_lost: u64) {
    counter!(names::LOG_DAMAGE).increment(1);
    counter!(names::LOG_LOST_ROWS).increment(rows_lost);
    tracing::error!(
        path = %path.display(), at = damage.at, bytes = damage.bytes, rows = ?damage.rows, reason = damage.reason,
        "the log is damaged here; the rows are lost, everything around them is read on"
    );
}

pub(crate) fn unusable(frame: &Frame, reason: &dyn std::fmt::Display) -> Damage {
    let header = &frame.header;
    let reason = format!("the frame is whole but of no use: {reason}");
    Damage { at: frame.at, bytes: header.frame_len(), rows: header.base..header.next(), reason }
}

/// Smallest and largest `time` of the rows, µs.
pub(crate) fn time_range(rows: &RecordBatch) -> Option<(i64, i64)> {
    let times = rows.column_by_name(Dataset::TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?;
    Some((min(times)?, max(times)?))
}

/// Bytes of memory that a batch keeps alive, each allocation counted once however many columns point into it.
///
/// Arrow's `get_array_memory_size` counts an allocation once a column, which for a batch read from the log (whose columns
/// point into one allocation) is wrong by the number of its columns.
pub fn memory_bytes(rows: &RecordBatch) -> usize {
    memory_bytes_of([rows])
}

/// The same for batches that may share allocations, each of which counts once.
pub fn memory_bytes_of<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> usize {
    fn visit(array: &arrow::array::ArrayData, seen: &mut Vec<(usize, usize)>) {
        let validity = array.nulls().map(|nulls| nulls.buffer());
        seen.extend(
            array
                .buffers()
                .iter()
                .chain(validity)
                .map(|buffer| (buffer.data_ptr().as_ptr() as usize, buffer.capacity())),
        );
        for child in array.child_data() {
            visit(child, seen);
        }
    }
    let (mut seen, mut count) = (Vec::new(), 0);
    for rows in batches {
        count += 1;
        seen.reserve(rows.num_columns() * 3);
        for column in rows.columns() {
            match column.as_string_opt::<i32>() {
                // Nearly all columns: to describe one as any array costs an allocation or two.
                Some(texts) => {
                    let nulls = texts.nulls().map(|nulls| nulls.buffer());
                    let buffers = [texts.offsets().inner().inner(), texts.values()].into_iter().chain(nulls);
                    seen.extend(buffers.map(|buffer| (buffer.data_ptr().as_ptr() as usize, buffer.capacity())));
                }
                None => visit(&column.to_data(), &mut seen),
            }
        }
        // Of many slices of one batch each would have all of its buffers.
        seen.sort_unstable();
        seen.dedup_by_key(|(address, _)| *address);
    }
    seen.iter().map(|(_, bytes)| bytes).sum::<usize>() + count * std::mem::size_of::<RecordBatch>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_rows_are_told_once_however_they_are_come_upon() {
        let mut told = Told::default();
        // The place, the rows lost there, and how many of them are news.
        for (at, rows, news) in [
            (10, 5..8, Some(3)),
            (10, 5..8, None),
            (20, 5..8, None),
            (30, 6..10, Some(2)),
            (5, 3..6, Some(2)),
            (5, 3..10, None),
            (40, 0..0, Some(0)),
            (40, 0..0, None),
            (40, 12..14, Some(2)),
            (50, 0..20, Some(11)),
            (60, 0..20, None),
            (70, 30..31, Some(1)),
            (80, 19..32, Some(11)),
            (90, 32..34, Some(2)),
            (91, 34..36, Some(2)),
            (92, 0..36, None),
            (93, 36..36, Some(0)),
        ] {
            let damage = Damage { at, bytes: 0, rows: rows.clone(), reason: String::new() };
            assert_eq!(told.news(&damage), news, "rows {rows:?} at {at}");
        }
        assert_eq!(told.new_rows(30..40), 4, "rows that are told without a place");
        assert_eq!(told.new_rows(30..40), 0);
    }

    #[test]
    fn places_beyond_those_that_are_remembered_are_not_told() {
        let mut told = Told::default();
        let at = |at| Damage { at, bytes: 0, rows: at..at + 1, reason: String::new() };
        for place in 0..TOLD_MAX as u64 {
            assert_eq!(told.news(&at(place)), Some(1), "place {place}");
        }
        assert_eq!(told.news(&at(TOLD_MAX as u64)), None);
    }
}
