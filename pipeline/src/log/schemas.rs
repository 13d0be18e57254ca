//! Finding the schema that the rows of a frame were written with.
//!
//! A schema stands twice in each segment that has rows of it. When both copies are lost, another segment of the same writing
//! process may have it too: ids are hashes with that process's secret seed, so the same id is the same schema, and no later
//! process gives an id again. Whether a schema can be found is therefore decided by the files that are there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;

use super::format::{FrameHeader, FrameKind};
use super::listing::{list, read_header};
use super::scan::{Found, Frame, Scanner, frame_at};
use super::sectors::Sectors;
use super::summary::Summary;
use super::{Offset, decode};
use crate::error::PipelineError;
use crate::fs::{Fs, FsFile, Open};

/// Schemas that a log remembers; past it all are read again.
const SCHEMAS_MAX: usize = 4096;

/// Schemas by their id in schema frames.
#[derive(Debug, Default)]
pub(crate) struct Schemas {
    known: Mutex<HashMap<u64, SchemaRef, FxBuildHasher>>,
    /// Ids that no segment has.
    missing: Mutex<HashSet<u64, FxBuildHasher>>,
}

impl Schemas {
    pub fn get(&self, id: u64) -> Option<SchemaRef> {
        self.known.lock().get(&id).cloned()
    }

    /// Remembers a schema, and gives the one already known under the id if there is one.
    pub fn learn(&self, id: u64, schema: SchemaRef) -> SchemaRef {
        let mut schemas = self.known.lock();
        if schemas.len() >= SCHEMAS_MAX {
            schemas.clear();
        }
        schemas.entry(id).or_insert(schema).clone()
    }

    /// The schema of a batch frame that stands in `file`, a segment in `dir`: known, or in a schema frame of its segment, or
    /// in one of another.
    pub fn find(
        &self,
        (fs, dir): (&dyn Fs, &Path),
        file: &dyn FsFile,
        header: &FrameHeader,
    ) -> io::Result<Option<SchemaRef>> {
        if let Some(known) = self.get(header.schema_id) {
            return Ok(Some(known));
        }
        match self.walk(file, Some(header.salt), header.schema_id)? {
            Some(schema) => Ok(Some(schema)),
            None => self.elsewhere((fs, dir), header.schema_id),
        }
    }

    /// The schema in a schema frame of any segment in `dir`, which is slow, and asked for only when both frames of a segment
    /// are lost. What was not found once is not looked for again.
    pub fn elsewhere(&self, (fs, dir): (&dyn Fs, &Path), id: u64) -> io::Result<Option<SchemaRef>> {
        if self.missing.lock().contains(&id) {
            return Ok(None);
        }
        let listing = list(fs, dir).map_err(|error| match error {
            PipelineError::Io { source, .. } => source,
            other => io::Error::other(other.to_string()),
        })?;
        for (first, path) in &listing.logs {
            let file = match fs.open(path, Open::Read) {
                // Forgotten since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let summary = listing.sums.get(first).and_then(|path| Summary::read(fs, path, false).ok().flatten());
            let found = match summary {
                Some((summary, _)) => self.marked(&*file, summary.index.salt, &summary.index.schemas, id)?,
                None => {
                    let salt = read_header(&*file, *first)?.map(|header| header.salt);
                    self.walk(&*file, salt, id)?
                }
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        let mut missing = self.missing.lock();
        if missing.len() >= SCHEMAS_MAX {
            missing.clear();
        }
        missing.insert(id);
        Ok(None)
    }

    /// The schema in one of the schema frames that an index tells.
    fn marked(&self, file: &dyn FsFile, salt: u64, marks: &[(u64, u64)], id: u64) -> io::Result<Option<SchemaRef>> {
        let sectors = Sectors::at_once();
        for (_, at) in marks.iter().filter(|(marked, _)| *marked == id) {
            let frame = frame_at((file, &sectors), *at, salt)?;
            if let Some(schema) = frame.and_then(|frame| self.of_frame(&frame, id)) {
                return Ok(Some(schema));
            }
        }
        Ok(None)
    }

    /// The schema in any schema frame of a file that can be read.
    fn walk(&self, file: &dyn FsFile, salt: Option<u64>, id: u64) -> io::Result<Option<SchemaRef>> {
        let sectors = Sectors::at_once();
        let mut scanner = Scanner::new((file, &sectors), 0, salt, 0..Offset::MAX)?;
        loop {
            match scanner.next()? {
                Found::End { .. } => return Ok(None),
                Found::Frame(frame) => {
                    if let Some(schema) = self.of_frame(&frame, id) {
                        return Ok(Some(schema));
                    }
                }
                Found::Damage(_) => {}
            }
        }
    }

    fn of_frame(&self, frame: &Frame, id: u64) -> Option<SchemaRef> {
        let is_it = frame.header.kind == FrameKind::Schema && frame.header.schema_id == id;
        let schema = is_it.then(|| decode::schema(&frame.payload).ok()).flatten()?;
        Some(self.learn(id, schema))
    }
}
