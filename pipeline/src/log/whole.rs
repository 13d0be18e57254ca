//! Scanning a whole segment: its summary, its damage, its last group commit.

use std::io;
use std::path::Path;

use super::format::{FRAMES_START, FrameKind, SegmentHeader};
use super::scan::{Damage, Found, Frame, Scanner};
use super::schemas::Schemas;
use super::sectors::Sectors;
use super::segment::{time_range, unusable};
use super::summary::{Index, Summary};
use super::{EventBatch, Offset, decode};
use crate::fields::FieldCatalog;
use crate::fs::{Fs, FsFile};

/// What a scan of a whole segment gives.
pub(crate) struct Scanned {
    pub summary: Summary,
    pub damage: Vec<Damage>,
    /// Bytes after the last whole frame.
    pub residue: u64,
    /// An offset that no row of the segment reaches, not even one in the bytes that could not be read.
    pub beyond: Offset,
    /// The batches of the last group commit, which are not in `summary` yet; `None` for one that is of no use.
    pub last_group: Vec<(Frame, Option<EventBatch>)>,
    /// Neither a whole header nor a frame: a crash left it while it was made. Were there rows in it, the segment after it tells.
    pub half_made: bool,
}

/// A segment that is to be scanned.
pub(crate) struct Target<'a> {
    /// Where the other segments are.
    pub place: (&'a dyn Fs, &'a Path),
    pub file: &'a dyn FsFile,
    /// Offset of the first row.
    pub first: Offset,
    pub header: Option<SegmentHeader>,
    /// Rows from here on are void.
    pub void_at: Offset,
    /// What an earlier start gave up, if that is known.
    pub given_up: &'a [(Offset, Offset)],
}

impl<'a> Target<'a> {
    /// A segment that an index speaks of.
    pub fn again(place: (&'a dyn Fs, &'a Path), file: &'a dyn FsFile, index: &'a Index) -> Self {
        let header = SegmentHeader { first: index.first, sealed_at: index.sealed_at, salt: index.salt, made_us: 0 };
        let (first, void_at, given_up) = (index.first, index.end, &index.given_up);
        Self { place, file, first, header: Some(header), void_at, given_up }
    }
}

/// Scans a segment. The frames of its last group are kept apart.
pub(crate) fn scan(target: &Target<'_>, schemas: &Schemas) -> io::Result<Scanned> {
    let Target { file, first, header, void_at, .. } = *target;
    let mut index =
        Index::new(first, header.map_or(first, |header| header.sealed_at), header.map_or(0, |header| header.salt));
    index.given_up = target.given_up.to_vec();
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
                scanned.give_up();
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
                scanned.take(target, frame, schemas)?;
            }
        }
    }
}

impl Scanned {
    fn take(&mut self, target: &Target<'_>, frame: Frame, schemas: &Schemas) -> io::Result<()> {
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
        let events = self.events(target, &frame, schemas)?;
        if let Err(reason) = &events {
            self.damage.push(unusable(&frame, reason));
        }
        self.last_group.push((frame, events.ok()));
        Ok(())
    }

    /// The rows of a frame, or why it is of no use.
    fn events(&self, target: &Target<'_>, frame: &Frame, schemas: &Schemas) -> io::Result<Result<EventBatch, String>> {
        let header = &frame.header;
        if self.summary.index.is_given_up(header) {
            return Ok(Err("an earlier start gave it up".to_owned()));
        }
        let Some(schema) = schemas.find(target.place, target.file, header)? else {
            return Ok(Err("its schema is in no readable frame".to_owned()));
        };
        let rows = decode::rows(header, &frame.payload, schema).map_err(|error| error.to_string());
        let keys = decode::keys(header, &frame.payload);
        Ok(rows.map(|rows| EventBatch { dataset: header.dataset, rows, keys }))
    }

    /// What is told as lost stays lost.
    fn give_up(&mut self) {
        let mut lost = std::mem::take(&mut self.summary.index.given_up);
        lost.extend(self.damage.iter().map(|damage| (damage.rows.start, damage.rows.end)));
        lost.sort_unstable();
        lost.into_iter().for_each(|(from, to)| self.summary.index.give_up(from..to));
    }

    /// Takes the last group into the summary.
    pub fn settle(&mut self) {
        for (frame, events) in std::mem::take(&mut self.last_group) {
            self.summary.index.note(frame.at, &frame.header);
            let Some(events) = events else { continue };
            self.summary.index.note_times(time_range(&events.rows));
            self.summary.fields.observe(events.dataset, &events.rows);
            self.summary.keys.extend(events.keys.iter().filter(|key| **key != 0));
        }
    }
}
