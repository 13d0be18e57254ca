//! The writer: one thread that takes appends from the queue and commits them in groups.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use metrics::{counter, gauge, histogram};
use rustc_hash::FxBuildHasher;
use tokio::sync::oneshot;

use super::dedup::{GroupKeys, Window};
use super::format::{FRAMES_START, SegmentHeader};
use super::group::{Commit, Frames, Ready};
use super::listing::segment_path;
use super::recover::{is_full, random_salt};
use super::segment::Segment;
use super::shared::Shared;
use super::summary::{Index, Summary};
use super::{Ack, Appended, LogBatch, Offset};
use crate::clock::now_us;
use crate::error::AppendError;
use crate::fields::{FieldCatalog, Seen};
use crate::fs::{DirChange, FsFile, Open};
use crate::metrics as names;

/// What a group needs beside its frames: room for schemas, headers and a summary.
const SLACK_BYTES: u64 = 1 << 20;

/// An append that waits in the queue.
#[derive(Debug)]
pub(crate) struct Pending {
    pub batches: Vec<Ready>,
    pub ack: Ack,
    pub reply: oneshot::Sender<Result<Appended, AppendError>>,
    pub bytes: usize,
}

/// A closed segment whose summary is to be written.
pub(crate) type Closed = (Arc<Segment>, Summary);

/// The segment that is being written.
struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn FsFile>,
    /// The header, until it was written with the first group.
    unwritten: Option<SegmentHeader>,
    at: u64,
    salt: u64,
    schemas: HashSet<u64, FxBuildHasher>,
    keys: Vec<u128>,
    seen: HashMap<usize, Arc<Seen>, FxBuildHasher>,
}

/// A group commit: what was sequenced, and who is to be told.
#[derive(Default)]
struct Group {
    batches: Vec<(Offset, Ready)>,
    answers: Vec<(oneshot::Sender<Result<Appended, AppendError>>, Appended)>,
    keys: GroupKeys,
    duplicates: usize,
}

/// See the module.
pub(crate) struct Writer {
    pub shared: Arc<Shared>,
    pub window: Window,
    /// The offset of the next row.
    pub next: Offset,
    /// The offset after the last durable row.
    pub durable_end: Offset,
    pub closed: SyncSender<Closed>,
    active: Option<Active>,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, window: Window, ends: (Offset, Offset), closed: SyncSender<Closed>) -> Self {
        Self { shared, window, next: ends.0, durable_end: ends.1, closed, active: None }
    }

    /// Commits groups until the log is closed and the queue is empty.
    pub fn run(mut self) {
        while let Some(group) = self.shared.next_group() {
            self.commit(group);
            self.shared.group_done();
        }
        self.close_active();
    }

    fn commit(&mut self, appends: Vec<Pending>) {
        let started = Instant::now();
        let bytes: u64 = appends.iter().map(|append| append.bytes as u64).sum();
        let rows: usize = appends.iter().flat_map(|append| &append.batches).map(|ready| ready.rows.num_rows()).sum();
        if let Err(error) = self.shared.room(bytes + SLACK_BYTES, self.next.saturating_add(rows as u64)) {
            return refuse(appends, &error);
        }
        if let Err(error) = self.ensure_active() {
            let error = self.failed("a new segment", &error);
            return refuse(appends, &error);
        }
        let mut group = Group::default();
        let mut appends = appends.into_iter();
        while let Some(append) = appends.next() {
            if let Err(error) = self.sequence(&mut group, append) {
                tracing::error!(%error, "a batch without its duplicates could not be encoded");
                let error = AppendError::Failed(error.to_string());
                // Its offsets are burnt: only the next segment's header can say that they are no loss.
                self.abandon_active();
                refuse(appends, &error);
                return group.fail(&error);
            }
        }
        let written = if group.batches.is_empty() { Ok(None) } else { self.write(&group).map(Some) };
        match written {
            Ok(frames) => {
                self.publish(group, frames);
                histogram!(names::LOG_GROUP_SECONDS, "log" => self.shared.name.clone())
                    .record(started.elapsed().as_secs_f64());
            }
            Err(error) => {
                let error = self.failed("a group commit", &error);
                self.abandon_active();
                group.fail(&error);
            }
        }
    }

    /// Gives an append its offsets, without the rows that are duplicates.
    fn sequence(&mut self, group: &mut Group, append: Pending) -> Result<(), arrow::error::ArrowError> {
        let Pending { batches, ack, reply, .. } = append;
        let sequenced = self.sequence_batches(group, batches);
        match (ack, sequenced) {
            (Ack::Disk | Ack::Broker, Ok(appended)) => group.answers.push((reply, appended)),
            // The caller may have gone away, which is its own affair.
            (Ack::Memory, Ok(appended)) => _ = reply.send(Ok(appended)),
            (_, Err(error)) => {
                _ = reply.send(Err(AppendError::Failed(error.to_string())));
                return Err(error);
            }
        }
        Ok(())
    }

    fn sequence_batches(
        &mut self,
        group: &mut Group,
        batches: Vec<Ready>,
    ) -> Result<Appended, arrow::error::ArrowError> {
        let mut appended = Appended::default();
        for (nth, ready) in batches.into_iter().enumerate() {
            let duplicates = group.keys.duplicates(&ready.keys, &self.window);
            let rows = ready.rows.num_rows() - duplicates.len();
            let base = self.next;
            self.next += rows as u64;
            appended.offsets.push(base..self.next);
            group.duplicates += duplicates.len();
            appended.duplicates.extend(duplicates.iter().map(|row| (nth, *row)));
            if rows > 0 {
                let ready = match duplicates.is_empty() {
                    true => ready,
                    false => self.shared.prepare(ready.into_events().without(duplicates)?)?,
                };
                group.batches.push((base, ready));
            }
        }
        Ok(appended)
    }

    fn write(&mut self, group: &Group) -> io::Result<Frames> {
        let Some(active) = &mut self.active else {
            return Err(io::Error::other("no segment"));
        };
        let mut frames = Frames::new(Commit { at: active.at, salt: active.salt, now_us: now_us() });
        for (base, ready) in &group.batches {
            frames.batch(ready, *base, &active.schemas);
        }
        frames.finish(self.next);
        match &active.unwritten {
            Some(header) => frames.write(&*active.file, &header.encode())?,
            None => frames.write(&*active.file, &[])?,
        }
        active.file.sync_data()?;
        if active.unwritten.take().is_some() {
            self.shared.fs.sync_dir(&self.shared.dir)?;
        }
        Ok(frames)
    }

    /// Lets readers see the group, then answers.
    fn publish(&mut self, group: Group, frames: Option<Frames>) {
        let keys = group.keys.commit(&mut self.window);
        let rows: u64 = group.batches.iter().map(|(_, ready)| ready.rows.num_rows() as u64).sum();
        if let (Some(frames), Some(active)) = (frames, &mut self.active) {
            active.take(&group.batches, &frames, keys);
            self.shared.used_bytes.fetch_add(active.at - active.segment.bytes(), Ordering::Relaxed);
            active.segment.bytes.store(active.at, Ordering::Relaxed);
            for (_, schema) in &frames.schemas {
                self.shared.schemas.learn(schema.id, schema.schema.clone());
            }
            self.durable_end = self.next;
            counter!(names::LOG_APPENDED_BYTES, "log" => self.shared.name.clone()).increment(frames.len);
            counter!(names::LOG_GROUPS, "log" => self.shared.name.clone()).increment(1);
            let batches = group.batches.into_iter().map(|(offset, ready)| {
                let batch = LogBatch { offset, dataset: ready.dataset, rows: ready.rows };
                (Arc::new(batch), ready.memory)
            });
            self.shared.publish(batches.collect(), self.next);
        }
        counter!(names::LOG_APPENDED_ROWS, "log" => self.shared.name.clone()).increment(rows);
        counter!(names::LOG_DUPLICATE_ROWS, "log" => self.shared.name.clone()).increment(group.duplicates as u64);
        gauge!(names::LOG_DEDUP_KEYS, "log" => self.shared.name.clone()).set(self.window.len() as f64);
        // Before the answers: who has one finds room in the queue, and a log that is well.
        self.shared.healthy();
        self.shared.group_done();
        for (reply, appended) in group.answers {
            _ = reply.send(Ok(appended));
        }
        if self.active.as_ref().is_some_and(|active| active.at >= self.shared.config.segment_bytes_max) {
            self.close_active();
        }
    }

    /// Makes a new segment unless one is open.
    fn ensure_active(&mut self) -> io::Result<()> {
        if self.active.is_some() {
            return Ok(());
        }
        let header =
            SegmentHeader { first: self.next, sealed_at: self.durable_end, salt: random_salt()?, made_us: now_us() };
        let path = segment_path(&self.shared.dir, self.next);
        let file = self.shared.fs.open(&path, Open::Create).inspect_err(|_| self.next += 1)?;
        let index = Index::new(header.first, header.sealed_at, header.salt);
        let segment = Arc::new(Segment::new(path, index, 0, 0, Some(file.clone())));
        self.shared.segments.write().push(segment.clone());
        self.active = Some(Active {
            segment,
            file,
            unwritten: Some(header),
            at: FRAMES_START,
            salt: header.salt,
            schemas: HashSet::default(),
            keys: Vec::new(),
            seen: HashMap::default(),
        });
        Ok(())
    }

    /// Ends the segment: every row that its index knows is durable.
    fn close_active(&mut self) {
        let Some(active) = self.active.take() else { return };
        let (first, end) = active.segment.range();
        if first == end {
            return self.discard(&active);
        }
        let summary = active.summary();
        // A summary that finds no place in the queue is rebuilt by the next start.
        if self.closed.try_send((active.segment, summary)).is_err() {
            counter!(names::LOG_SUMMARY_FAILURES, "log" => self.shared.name.clone()).increment(1);
        }
    }

    /// Leaves the segment after a failure: it is never written or synced again, and what it has beyond its index is void.
    fn abandon_active(&mut self) {
        if let Some(active) = &self.active {
            let bytes = active.file.size().unwrap_or(active.at);
            self.shared.used_bytes.fetch_add(bytes.saturating_sub(active.segment.bytes()), Ordering::Relaxed);
            active.segment.bytes.store(bytes, Ordering::Relaxed);
        }
        self.close_active();
    }

    /// Removes a segment without durable rows. If that fails, the next start finds an empty segment, or rows that the next
    /// segment voids.
    fn discard(&self, active: &Active) {
        self.shared.segments.write().retain(|segment| !Arc::ptr_eq(segment, &active.segment));
        self.shared.used_bytes.fetch_sub(active.segment.bytes(), Ordering::Relaxed);
        if let Err(error) = self.shared.fs.change(DirChange::Remove(&active.segment.path)) {
            tracing::warn!(path = %active.segment.path.display(), %error, "a segment without rows could not be removed");
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> AppendError {
        counter!(names::LOG_FAILED_GROUPS, "log" => self.shared.name.clone()).increment(1);
        tracing::error!(%error, dir = %self.shared.dir.display(), "{what} failed; the log goes on in a new segment");
        self.shared.degraded(format!("{what} failed: {error}"));
        if is_full(error) {
            AppendError::Full(format!("the disk is full ({error})"))
        } else {
            AppendError::Failed(error.to_string())
        }
    }
}

impl Active {
    fn take(&mut self, batches: &[(Offset, Ready)], frames: &Frames, keys: Vec<u128>) {
        let mut index = self.segment.index.write();
        for (at, header) in &frames.notes {
            index.note(*at, header);
        }
        for (_, ready) in batches {
            index.note_times(ready.times);
            for seen in &ready.seen {
                self.seen.entry(Arc::as_ptr(seen) as usize).or_insert_with(|| seen.clone());
            }
        }
        drop(index);
        self.at += frames.len;
        self.schemas.extend(frames.schemas.iter().map(|(_, schema)| schema.id));
        self.keys.extend(keys);
        self.segment.keys.store(self.keys.len() as u64, Ordering::Relaxed);
    }

    fn summary(&self) -> Summary {
        let mut fields = FieldCatalog::default();
        for seen in self.seen.values() {
            seen.add_to(&mut fields);
        }
        Summary { index: self.segment.index.read().clone(), fields, keys: self.keys.clone() }
    }
}

impl Group {
    fn fail(self, error: &AppendError) {
        for (reply, _) in self.answers {
            _ = reply.send(Err(error.clone()));
        }
    }
}

fn refuse(appends: impl IntoIterator<Item = Pending>, error: &AppendError) {
    for append in appends {
        _ = append.reply.send(Err(error.clone()));
    }
}
