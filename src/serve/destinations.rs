//! The destinations of both logs: opens what the configuration names beside Parquet files, starts a delivery for each,
//! and knows from where on they still need the logs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidegate_events::IdGenerator;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::delivery::{DeliveryConfig, DeliveryHandle, DeliveryParts, deliver};
use tidegate_pipeline::fs::{Fs, read_file, replace_file};
use tidegate_pipeline::output::OutputLog;
use tidegate_pipeline::{Health, Offset, Sink, Stage, StreamLog};
use tidegate_sinks::CursorFile;
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::TimescaleStore;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::store::Store;
use crate::config::{Config, StoreKind};

/// Between two notes of how far a log is in the database.
const NOTE_PAUSE: Duration = Duration::from_secs(1);

/// The logs with their names.
pub(super) const SOURCES: [LogSource; 2] = [LogSource::Ingest, LogSource::Output];

/// What is opened before the logs are: each of them may know that rows of a log are at a destination already.
pub struct Destinations {
    /// The database, when one is configured.
    pub(super) timescale: Option<Arc<TimescaleStore>>,
    /// Where the database stands, of each log, when it could be asked.
    cursors: Option<[Offset; 2]>,
    /// Where it stood when that was last noted in the data folder.
    noted: [Offset; 2],
    notes: Vec<CursorFile>,
}

/// The running deliveries.
pub(super) struct Deliveries {
    /// All of them.
    pub(super) handles: Vec<DeliveryHandle>,
    /// Of those that are not the Parquet store: the log, and up to where it is delivered.
    pub(super) delivered: Vec<(LogSource, watch::Receiver<Offset>)>,
}

/// What deliveries are made of.
pub(super) struct DeliveriesParts<'a> {
    pub(super) store: &'a Store,
    /// The ingest log and the output log.
    pub(super) logs: [Arc<dyn StreamLog>; 2],
    pub(super) output: Arc<OutputLog>,
    pub(super) config: &'a Config,
    pub(super) health: &'a Health,
}

impl Destinations {
    /// Opens the destinations beside Parquet files. One that does not answer keeps nobody from starting.
    ///
    /// # Errors
    /// When the configuration cannot be used, or the id of the data folder or the notes in it not be read or made.
    pub async fn open(fs: &Arc<dyn Fs>, data: &Path, config: &Config) -> anyhow::Result<Self> {
        let Some(timescale) = &config.sinks.timescale else {
            return Ok(Self { timescale: None, cursors: None, noted: [0; 2], notes: Vec::new() });
        };
        let origin = origin(fs.as_ref(), data)?;
        let (mut noted, mut notes) = ([0; 2], Vec::new());
        for (noted, source) in noted.iter_mut().zip(SOURCES) {
            let dir = data.join("sinks").join(format!("timescale-{}", source.as_str()));
            let opened = CursorFile::open(fs.clone(), &dir, NOTE_PAUSE);
            let (file, cursor) = opened.context("look at the note of the cursor in the database")?;
            *noted = cursor;
            notes.push(file);
        }
        let patience = Duration::from_millis(timescale.connect_ms_max.saturating_mul(2));
        let store = TimescaleStore::open(timescale.clone(), &origin)?;
        let asked = async {
            let [ingest, output] = SOURCES;
            anyhow::Ok([store.cursor(ingest).await?, store.cursor(output).await?])
        };
        let asked = tokio::time::timeout(patience, asked).await;
        let cursors = match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {} ms", patience.as_millis()))) {
            Ok(cursors) => Some(cursors),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the database does not take rows now: the log keeps them, and it is tried again"
                );
                None
            }
        };
        Ok(Self { timescale: Some(store), cursors, noted, notes })
    }

    /// The offset below which a destination holds rows of a log, as far as that is known while it is away.
    pub(super) fn held(&self, source: LogSource) -> Offset {
        let [ingest, output] = self.noted;
        let noted = if source == LogSource::Ingest { ingest } else { output };
        self.cursor(source).unwrap_or_default().max(noted)
    }

    fn cursor(&self, source: LogSource) -> Option<Offset> {
        self.cursors.map(|[ingest, output]| if source == LogSource::Ingest { ingest } else { output })
    }

    /// Starts the deliveries of both logs.
    pub(super) fn start(&mut self, parts: &DeliveriesParts<'_>) -> Deliveries {
        let mut started = Deliveries { handles: Vec::new(), delivered: Vec::new() };
        let DeliveriesParts { store, logs, output, config, health } = parts;
        let start = |sink: Box<dyn Sink>, log: &Arc<dyn StreamLog>, config: DeliveryConfig, stage: Arc<Stage>| {
            let parts = DeliveryParts { sink, log: log.clone(), output: output.clone(), config, stage };
            deliver(parts, &Handle::current())
        };
        if let Store::Parquet(store) = store {
            for (source, log) in SOURCES.into_iter().zip(logs) {
                let sink = Box::new(store.sink(source));
                let stage = health.stage(&format!("parquet:{}", source.as_str()));
                started.handles.push(start(sink, log, config.delivery.clone(), stage));
            }
        }
        let notes = std::mem::take(&mut self.notes);
        let beside = config.store != StoreKind::Timescale;
        if let (Some(timescale), Some(settings)) = (&self.timescale, &config.sinks.timescale) {
            for ((source, log), note) in SOURCES.into_iter().zip(logs).zip(notes) {
                // While the database cannot be asked, nothing that the log still holds is taken to be there.
                let from = self.cursor(source).unwrap_or_else(|| log.bounds().first);
                let sink = Box::new(timescale.sink(source, from));
                let name = format!("timescale:{}", source.as_str());
                let stage = if beside { health.stage_aside(&name) } else { health.stage(&name) };
                let pace = DeliveryConfig { flush_interval_ms: settings.commit_interval_ms, ..config.delivery.clone() };
                let handle = start(sink, log, pace, stage);
                tokio::spawn(keep_note(note, handle.committed()));
                started.delivered.push((source, handle.committed()));
                started.handles.push(handle);
            }
        }
        started
    }
}

/// Notes up to where the database has a log, a moment after each commit, until the delivery has ended. A start at which the
/// database is away goes by the note: should the log have lost its end, no new row gets an offset that the database has already.
async fn keep_note(mut file: CursorFile, mut committed: watch::Receiver<Offset>) {
    loop {
        let cursor = *committed.borrow_and_update();
        if cursor > file.noted()
            && let Err(error) = file.save(cursor).await
        {
            tracing::warn!(%error, "how far a log is in the database was not noted; an older note stays");
        }
        tokio::time::sleep(NOTE_PAUSE).await;
        if committed.changed().await.is_err() {
            return;
        }
    }
}

/// The id of the data folder, a UUID made at the first start: tells a database whose log a row is from.
pub(super) fn origin(fs: &dyn Fs, data: &Path) -> anyhow::Result<String> {
    let path = data.join("origin");
    match read_file(fs, &path, 64) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).ok().map(|text| text.trim().to_owned()).filter(|text| text.len() == 36);
            text.with_context(|| {
                format!(
                    "{} does not hold a UUID: restore it from a backup; or remove it, and the rows of this folder get a new \
                     log_id in the database, those that the log still holds a second time",
                    path.display()
                )
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = IdGenerator::new(getrandom::u64().context("random bits")?).next(now_us());
            let id = String::from_utf8_lossy(&id).into_owned();
            replace_file(fs, &path, format!("{id}\n").as_bytes())
                .with_context(|| format!("write {}", path.display()))?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}
