//! Scanning a whole segment: its summary, its damage, its last group commit.

use std::io;

use arrow::datatypes::SchemaRef;

use super::format::{FRAMES_START, FrameHeader, FrameKind, SegmentHeader};
use super::scan::{Damage, Found, Frame, Scanner};
use super::sectors::Sectors;
use super::segment::{Schemas, time_range, unusable};
use super::summary::{Index, Summary};
use super::{EventBatch, Offset, decode};
use crate::fields::FieldCatalog;
use crate::fs::FsFile;

/// What a scan of a whole segment gives.
pub(crate) struct Scanned {
    pub summary: Summary,
    pub damage: Vec<Damage>,
    /// Bytes after the last whole frame.
    pub residue: u64,
    /// An offset that no row of the segment reaches, not even one in the bytes that could not be read.
    pub beyond: Offset,
    /// The batches of the last group commit, which are not in `summary` yet.
    pub last_group: Vec<(Frame, EventBatch)>,
    /// Neither a whole header nor a frame: a crash left it while it was made. Were there rows in it, the segment after it tells.
    pub half_made: bool,
}

/// Scans a segment. The frames of its last group are kept apart.
pub(crate) fn scan(
    file: &dyn FsFile,
    first: Offset,
    header: Option<SegmentHeader>,
    void_at: Offset,
    schemas: &Schemas,
) -> io::Result<Scanned> {
    let index =
        Index::new(first, header.map_or(first, |header| header.sealed_at), header.map_or(0, |header| header.salt));
    let summary = Summary { index, fields: FieldCatalog::default(), keys: Vec::new() };
    let mut scanned = Scanned {
        summary,
        damage: Vec::new(),
        residue: 0,
        beyond: first,
        last_group: Vec::new(),
        half_made: header.is_none(),
    };
    let mut whole_to = FRAMES_START;
    let sectors = Sectors::at_once();
    let mut scanner = Scanner::new((file, &sectors), 0, header.map(|header| header.salt), first..void_at)?;
    loop {
        let found = scanner.next()?;
        if scanned.half_made && !matches!(found, Found::End { .. }) {
            scanned.half_made = false;
            let reason = "the segment's header is not whole".to_owned();
            scanned.damage.push(Damage { at: 0, bytes: scanner.size().min(FRAMES_START), rows: first..first, reason });
        }
        match found {
            Found::End { residue, .. } => {
                scanned.residue = residue;
                scanned.summary.index.salt = scanner.salt().unwrap_or_default();
                // A row takes at least the 8 bytes of its time.
                let unread = scanner.size().saturating_sub(whole_to) / 8;
                scanned.beyond = scanned.beyond.saturating_add(unread).min(void_at);
                return Ok(scanned);
            }
            Found::Damage(damage) => {
                scanned.beyond = scanned.beyond.max(damage.rows.end);
                whole_to = whole_to.max(damage.at + damage.bytes);
                scanned.damage.push(damage);
            }
            Found::Frame(frame) => {
                scanned.beyond = scanned.beyond.max(frame.header.next());
                whole_to = whole_to.max(frame.at + frame.header.frame_len());
                scanned.take(file, frame, schemas)?;
            }
        }
    }
}

/// The schema of a batch frame: known, or in any frame of its segment that can be read.
pub(crate) fn find_schema(file: &dyn FsFile, header: &FrameHeader, schemas: &Schemas) -> io::Result<Option<SchemaRef>> {
    if let Some(known) = schemas.get(header.schema_id) {
        return Ok(Some(known));
    }
    let sectors = Sectors::at_once();
    let mut scanner = Scanner::new((file, &sectors), 0, Some(header.salt), 0..Offset::MAX)?;
    loop {
        match scanner.next()? {
            Found::End { .. } => return Ok(None),
            Found::Frame(frame)
                if frame.header.kind == FrameKind::Schema && frame.header.schema_id == header.schema_id =>
            {
                if let Ok(schema) = decode::schema(&frame.payload) {
                    return Ok(Some(schemas.learn(header.schema_id, schema)));
                }
            }
            _ => {}
        }
    }
}

impl Scanned {
    fn take(&mut self, file: &dyn FsFile, frame: Frame, schemas: &Schemas) -> io::Result<()> {
        if frame.header.starts_group {
            self.settle();
        }
        if frame.header.kind == FrameKind::Schema {
            match decode::schema(&frame.payload) {
                Ok(schema) => _ = schemas.learn(frame.header.schema_id, schema),
                Err(error) => self.damage.push(unusable(&frame, &error)),
            }
            self.summary.index.note(frame.at, &frame.header);
            return Ok(());
        }
        let rows = match find_schema(file, &frame.header, schemas)? {
            Some(schema) => decode::rows(&frame.header, &frame.payload, schema).map_err(|error| error.to_string()),
            None => Err("its schema is in no readable frame".to_owned()),
        };
        match rows {
            Ok(rows) => {
                let keys = decode::keys(&frame.header, &frame.payload);
                let events = EventBatch { dataset: frame.header.dataset, rows, keys };
                self.last_group.push((frame, events));
            }
            Err(reason) => {
                self.damage.push(unusable(&frame, &reason));
                self.settle();
                self.summary.index.note(frame.at, &frame.header);
            }
        }
        Ok(())
    }

    /// Takes the last group into the summary.
    pub fn settle(&mut self) {
        for (frame, events) in std::mem::take(&mut self.last_group) {
            self.summary.index.note(frame.at, &frame.header);
            self.summary.index.note_times(time_range(&events.rows));
            self.summary.fields.observe(events.dataset, &events.rows);
            self.summary.keys.extend(events.keys.iter().filter(|key| **key != 0));
        }
    }
}
