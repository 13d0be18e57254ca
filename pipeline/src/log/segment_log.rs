//! The stream log on segment files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use metrics::counter;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::config::LogConfig;
use super::dedup::Window;
use super::encode::Encoder;
use super::listing::summary_path;
use super::recover::{OpenReport, is_full, recover};
use super::scan::Damage;
use super::schemas::Schemas;
use super::segment::{Segment, Wanted};
use super::shared::{Queue, Shared, Tail};
use super::writer::{Closed, Pending, Writer};
use super::{Append, AppendReply, EventBatch, LogBatch, LogBounds, LogReader, Offset, StreamLog};
use crate::error::{AppendError, PipelineError};
use crate::fields::{FieldCatalog, FieldObserver};
use crate::fs::{DirChange, Fs, FsFile, Open, make_dir_durable};
use crate::health::Stage;
use crate::metrics as names;

/// Closed segments that may wait for their summary; one more goes without, which costs a scan at the next start.
const CLOSED_MAX: usize = 64;

/// A log in a folder of segment files, written by one thread of its own. See [`super::format`] for what is on the disk.
///
/// Dropping it closes it.
#[derive(Debug)]
pub struct SegmentLog {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Also serialises forgetting.
    forgotten: Mutex<Forgotten>,
    /// Held for its lock.
    _lock: Arc<dyn FsFile>,
}

/// What forgetting leaves behind.
#[derive(Debug, Default)]
struct Forgotten {
    /// Summaries that outlive their segments for their keys: first offset and count.
    orphans: BTreeMap<Offset, u64>,
    /// The last removal is not known to be durable.
    unsynced: bool,
}

/// The lock of a log's folder: while it is held no other process opens the log, nor anything else that goes by it.
#[derive(Debug)]
pub struct LogLock {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    file: Arc<dyn FsFile>,
}

impl LogLock {
    /// Locks the folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`PipelineError::Locked`] when another process has it; [`PipelineError::Io`] when the folder cannot be made or locked.
    pub fn take(fs: Arc<dyn Fs>, dir: &Path) -> Result<Self, PipelineError> {
        make_dir_durable(&*fs, dir).map_err(|error| failed("make", dir, error))?;
        let file = fs.open(&dir.join("lock"), Open::Lock).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => PipelineError::Locked(dir.to_owned()),
            _ => failed("lock", dir, error),
        })?;
        Ok(Self { fs, dir: dir.to_owned(), file })
    }

    /// [`SegmentLog::open_at_least`], of which the first step was to take this lock.
    ///
    /// # Errors
    /// As there.
    pub fn open(self, config: LogConfig, next_min: Offset) -> Result<(SegmentLog, OpenReport), PipelineError> {
        SegmentLog::open_locked(self, config, next_min)
    }
}

impl SegmentLog {
    /// Opens or makes the log in `dir`. What crashes leave (a torn tail, a zero-byte or half-headed file, a missing segment,
    /// flipped bits) is no error: the report says what was found.
    ///
    /// # Errors
    /// [`PipelineError::Locked`] when another process has it open; [`PipelineError::Io`] when the folder cannot be listed,
    /// its last segment not be read, or the last group commit not be made durable; [`PipelineError::Invalid`] for a
    /// configuration that cannot work.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, config: LogConfig) -> Result<(Self, OpenReport), PipelineError> {
        Self::open_at_least(fs, dir, config, 0)
    }

    /// Opens or makes the log as [`open`](Self::open) does, for readers that hold the rows below `next_min` already. A log that
    /// ends before it has lost its end; were its offsets used again, those readers would take new rows for old ones. So they
    /// are burnt, and [`OpenReport::burnt_to`] says so.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at_least(
        fs: Arc<dyn Fs>,
        dir: &Path,
        config: LogConfig,
        next_min: Offset,
    ) -> Result<(Self, OpenReport), PipelineError> {
        LogLock::take(fs, dir)?.open(config, next_min)
    }

    fn open_locked(
        LogLock { fs, dir, file: lock }: LogLock,
        config: LogConfig,
        next_min: Offset,
    ) -> Result<(Self, OpenReport), PipelineError> {
        check(&config)?;
        let dir = dir.as_path();
        let failed = |op, source| failed(op, dir, source);
        let (schemas, encoder) = (Schemas::default(), Encoder::new().map_err(|error| failed("make", error))?);
        let recovered = recover(&*fs, dir, (config.dedup_keys_max, next_min), (&schemas, &encoder))?;
        let mut report = recovered.report;
        if let Some(burnt_to) = report.burnt_to {
            let (dir, end) = (dir.display(), recovered.durable_end);
            tracing::error!(%dir, end, burnt_to, "the log has lost its end, of which others hold rows; it goes on after them");
        }
        let mut window = Window::new(config.dedup_keys_max);
        for key in recovered.keys.into_iter().flatten() {
            window.insert(key);
        }
        report.keys = window.len();
        let used: u64 = recovered.segments.iter().map(|segment| segment.bytes()).sum();
        // Not the offset of the next row: those burnt before it are nobody's, and who took them for rows (a checkpoint, say)
        // would make the next start believe that the log had lost its end.
        let seen = recovered.durable_end.max(next_min).min(recovered.next);
        let (bounds, _) = watch::channel(LogBounds { first: report.first.min(seen), next: seen });
        let shared = Arc::new(Shared {
            fs,
            dir: dir.to_owned(),
            name: dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            config,
            encoder,
            schemas,
            fields: FieldObserver::new(recovered.fields),
            segments: RwLock::new(recovered.segments),
            tail: RwLock::new(Tail::new(recovered.next)),
            bounds,
            used_bytes: AtomicU64::new(used),
            stage: OnceLock::new(),
            queue: Mutex::new(Queue::default()),
            wake: Condvar::new(),
            ailing: AtomicBool::new(false),
        });
        let threads = start(&shared, window, (recovered.next, recovered.durable_end), recovered.unsummarised)
            .map_err(|error| failed("start", error))?;
        let forgotten = Mutex::new(Forgotten { orphans: recovered.orphans, unsynced: false });
        let log = Self { shared, threads: Mutex::new(threads), forgotten, _lock: lock };
        Ok((log, report))
    }

    /// Makes the log report its waiting work and its progress as `stage`. Only the first call counts.
    pub fn report_health(&self, stage: Arc<Stage>) {
        _ = self.shared.stage.set(stage);
    }

    /// The own fields of all rows appended or found in the log, by tenant.
    pub fn fields(&self) -> Arc<FieldCatalog> {
        self.shared.fields.catalog()
    }

    /// The batches of [`Changes`](tidegate_events::Dataset::Changes) from the one that holds `from` on. Reads only those
    /// frames.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when a segment cannot be read. Damaged frames are skipped and counted.
    pub fn changes_from(&self, from: Offset) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let until = self.bounds().next;
        let segments = self.shared.segments.read().clone();
        let wanted = Wanted { from, until, bytes_max: usize::MAX };
        let mut batches = Vec::new();
        for segment in segments.iter().filter(|segment| segment.range().1 > from) {
            let read = segment.read_changes(&*self.shared.fs, &self.shared.schemas, wanted, &mut batches);
            self.unless_gone(segment, read)?;
        }
        Ok(batches)
    }

    /// Bytes of all segment files.
    pub fn bytes_used(&self) -> u64 {
        self.shared.used_bytes.load(Ordering::Relaxed)
    }

    /// Refuses further appends, makes durable and answers those that wait, and ends the writer. Reading goes on. Waits for the
    /// disk.
    pub fn close(&self) {
        self.shared.close();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a thread of the log has panicked");
            }
        }
    }

    fn try_append(&self, append: Append, reply: oneshot::Sender<super::AppendResult>) {
        let prepared = self.shared.admits().and_then(|()| self.prepare(append.batches));
        let refused = match prepared {
            Ok(batches) => {
                let bytes = batches.iter().map(|batch| batch.payload.len as usize).sum();
                let pending = Pending { batches, ack: append.ack, reply, bytes };
                self.shared.enqueue(pending).map_err(|(pending, error)| (pending.reply, error))
            }
            Err(error) => Err((reply, error)),
        };
        if let Err((reply, error)) = refused {
            _ = reply.send(Err(error));
        }
    }

    fn prepare(&self, batches: Vec<EventBatch>) -> Result<Vec<super::group::Ready>, AppendError> {
        let prepare = |batch: EventBatch| {
            super::check_batch(&batch)?;
            self.shared.prepare(batch).map_err(|error| AppendError::Failed(error.to_string()))
        };
        batches.into_iter().map(prepare).collect()
    }

    /// A segment that was forgotten while it was about to be read is not an error of the read (`None`), and one that somebody
    /// removed is damage: waiting brings neither back.
    fn unless_gone<T: Default>(
        &self,
        segment: &Segment,
        read: Result<T, PipelineError>,
    ) -> Result<Option<T>, PipelineError> {
        let (first, end) = segment.range();
        match read {
            Err(_) if first < self.bounds().first || end <= self.bounds().first => Ok(None),
            Err(PipelineError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                segment.report(&Damage { at: 0, bytes: 0, rows: first..end, reason: "the file is gone".to_owned() });
                Ok(Some(T::default()))
            }
            read => read.map(Some),
        }
    }

    fn sync_removal(&self, forgotten: &mut Forgotten) -> Result<(), PipelineError> {
        if forgotten.unsynced {
            let dir = &self.shared.dir;
            self.shared.fs.sync_dir(dir).map_err(|source| failed("sync", dir, source))?;
            forgotten.unsynced = false;
        }
        Ok(())
    }

    /// Removes summaries whose keys the window does not reach any more. Undone by a power cut, that does no harm.
    fn prune(&self, orphans: &mut BTreeMap<Offset, u64>) {
        let living: u64 = self.shared.segments.read().iter().map(|segment| segment.keys.load(Ordering::Relaxed)).sum();
        let mut newer = living;
        let mut pruned = Vec::new();
        for (first, count) in orphans.iter().rev() {
            if newer >= self.shared.config.dedup_keys_max as u64 {
                pruned.push(*first);
            }
            newer = newer.saturating_add(*count);
        }
        for first in pruned {
            let path = summary_path(&self.shared.dir, first);
            match self.shared.fs.change(DirChange::Remove(&path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "an outlived summary could not be removed");
                }
                _ => _ = orphans.remove(&first),
            }
        }
    }

    /// The oldest segment, if it may go: all of it lies below `below`, no retention bound keeps it, and a later one has rows
    /// (so that the log never forgets how far it has counted).
    fn forgettable(&self, below: Offset) -> Option<(Arc<Segment>, Offset)> {
        let segments = self.shared.segments.read();
        let (oldest, later) = segments.split_first()?;
        let later_bytes: u64 = later.iter().map(|segment| segment.bytes()).sum();
        let counted = later.iter().any(|segment| segment.range().0 < segment.range().1);
        // Offsets burnt between the two are not forgotten: they never had rows.
        let first = later.first()?.begin().max(oldest.range().1);
        let goes = oldest.range().1 <= below && counted && later_bytes >= self.shared.config.retain_bytes_min;
        goes.then(|| (oldest.clone(), first))
    }
}

impl LogReader for SegmentLog {
    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<Arc<LogBatch>>, PipelineError> {
        let bounds = self.bounds();
        if from < bounds.first {
            return Err(PipelineError::Forgotten { asked: from, first: bounds.first });
        }
        if from >= bounds.next {
            return Ok(Vec::new());
        }
        if let Some(batches) = self.shared.tail.read().read(from, bytes_max) {
            return Ok(batches);
        }
        let segments = self.shared.segments.read().clone();
        let mut batches = Vec::new();
        let mut left = bytes_max;
        for segment in segments.iter().filter(|segment| segment.range().1 > from) {
            let wanted = Wanted { from, until: bounds.next, bytes_max: left };
            let read = segment.read(&*self.shared.fs, &self.shared.schemas, wanted, &mut batches);
            // What comes after a forgotten segment does not follow on what is here; the next read tells what was forgotten.
            let Some(bytes) = self.unless_gone(segment, read)? else { break };
            left = left.saturating_sub(bytes);
            if left == 0 {
                break;
            }
        }
        // Retention may have moved on since the first look at the bounds: what was found then begins behind rows of which
        // nobody would hear.
        let reached = batches.first().is_some_and(|batch| batch.offset <= from);
        match self.bounds().first {
            first if from < first && !reached => Err(PipelineError::Forgotten { asked: from, first }),
            _ => Ok(batches),
        }
    }

    fn watch(&self) -> watch::Receiver<LogBounds> {
        self.shared.bounds.subscribe()
    }

    fn bounds(&self) -> LogBounds {
        *self.shared.bounds.borrow()
    }
}

impl StreamLog for SegmentLog {
    fn append(&self, append: Append) -> AppendReply {
        let (reply, receiver) = oneshot::channel();
        self.try_append(append, reply);
        receiver
    }

    fn forget(&self, below: Offset) -> Result<(), PipelineError> {
        let mut forgotten = self.forgotten.lock();
        let mut removed = false;
        self.sync_removal(&mut forgotten)?;
        while let Some((segment, first)) = self.forgettable(below) {
            match self.shared.keep_keys(&segment) {
                // On a full disk, space is worth more than the keys of the oldest rows.
                Err(error) if is_full(&error) => {
                    tracing::warn!(path = %segment.path.display(), %error, "the keys of a forgotten segment are lost");
                }
                kept => kept.map_err(|error| failed("summarise", &segment.path, error))?,
            }
            self.shared.bounds.send_modify(|bounds| bounds.first = bounds.first.max(first));
            match self.shared.fs.change(DirChange::Remove(&segment.path)) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed("remove", &segment.path, source));
                }
                _ => {}
            }
            forgotten.unsynced = true;
            self.shared.segments.write().retain(|kept| !Arc::ptr_eq(kept, &segment));
            self.shared.used_bytes.fetch_sub(segment.bytes(), Ordering::Relaxed);
            self.shared.tail.write().forget(first);
            forgotten.orphans.insert(segment.range().0, segment.keys.load(Ordering::Relaxed));
            removed = true;
            // One after the other: if a power cut undid an older removal but not a newer one, the next start would find a gap,
            // and would have to tell rows as lost that nobody needed.
            self.sync_removal(&mut forgotten)?;
        }
        if removed {
            self.prune(&mut forgotten.orphans);
        }
        Ok(())
    }
}

impl Drop for SegmentLog {
    fn drop(&mut self) {
        self.close();
    }
}

fn failed(op: &'static str, path: &Path, source: std::io::Error) -> PipelineError {
    PipelineError::Io { op, path: path.to_owned(), source }
}

fn check(config: &LogConfig) -> Result<(), PipelineError> {
    let bounds = [
        ("segment_bytes_max", config.segment_bytes_max, 4096),
        ("log_bytes_max", config.log_bytes_max, 4 << 20),
        ("queue_bytes_max", config.queue_bytes_max as u64, 1),
        ("group_bytes_max", config.group_bytes_max as u64, 1),
    ];
    match bounds.into_iter().find(|(_, value, min)| value < min) {
        Some((name, value, min)) => {
            Err(PipelineError::Invalid(format!("{name} is {value}, it must be at least {min}")))
        }
        None => Ok(()),
    }
}

/// Starts the writer and the thread that writes summaries.
fn start(
    shared: &Arc<Shared>,
    window: Window,
    ends: (Offset, Offset),
    unsummarised: Vec<Closed>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let (closed, to_summarise) = sync_channel(CLOSED_MAX);
    let writer = Writer::new(shared.clone(), window, ends, closed);
    let writer = std::thread::Builder::new().name("log-writer".to_owned()).spawn({
        let shared = shared.clone();
        move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.run())).is_err() {
                tracing::error!("the log's writer has panicked; the log takes nothing more until a restart");
                shared.degraded("the log's writer has panicked".to_owned());
            }
            shared.fail_all();
        }
    })?;
    let summaries = std::thread::Builder::new().name("log-summaries".to_owned()).spawn({
        let shared = shared.clone();
        move || write_summaries(&shared, unsummarised, &to_summarise)
    });
    if summaries.is_err() {
        shared.close();
    }
    Ok(vec![writer, summaries?])
}

fn write_summaries(shared: &Shared, first: Vec<Closed>, closed: &Receiver<Closed>) {
    for (segment, summary) in first.into_iter().chain(closed.iter()) {
        segment.keys.store(summary.keys.len() as u64, Ordering::Relaxed);
        if let Err(error) = shared.summarise(&segment, &summary) {
            counter!(names::LOG_SUMMARY_FAILURES, "log" => shared.name.clone()).increment(1);
            let path = &segment.path;
            tracing::warn!(path = %path.display(), %error, "a summary could not be written; the next start scans the segment");
        }
    }
}
