//! Opens the store of history where the configuration says: Parquet files in the data folder, in another folder or in an object
//! store; or the tables of a database.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidegate_pipeline::fs::{Fs, Open, make_dir_durable, read_file, replace_file};
use tidegate_pipeline::{Health, History, Offset};
use tidegate_sinks::SinksError;
use tidegate_sinks::parquet::{BucketUrl, LogSource, Opener, ParquetStore, StorePlace, Writer};
use tidegate_sinks::timescale::{TimescaleHistory, TimescaleReadParts};
use tokio::runtime::Handle;

use super::destinations::origin;
use crate::config::{Config, StoreKind};

/// Waits between two tries to reach an object store at the start.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// The name of the log in a data folder, for the manifest of an object store.
const LOG_NAME_FILE: &str = "log-name";

/// Where queries find what is no longer in the logs.
#[derive(Clone)]
pub enum Store {
    /// Parquet files. They have a delivery of their own.
    Parquet(Arc<ParquetStore>),
    /// The tables of a database, which the deliveries to it write.
    Timescale(Arc<TimescaleHistory>),
}

impl Store {
    /// What queries read.
    pub fn history(&self) -> Arc<dyn History> {
        match self {
            Self::Parquet(store) => store.clone(),
            Self::Timescale(history) => history.clone(),
        }
    }

    /// The store of files.
    pub fn files(&self) -> Option<&ParquetStore> {
        match self {
            Self::Parquet(store) => Some(store),
            Self::Timescale(_) => None,
        }
    }

    /// The offset below which the store by itself holds rows of a log. What a database holds, its deliveries know.
    pub fn held(&self, source: LogSource) -> Offset {
        match self {
            Self::Parquet(store) => store.cursor(source),
            Self::Timescale(_) => 0,
        }
    }

    /// From where on somebody who reads from the store may still need a log.
    pub fn oldest_live_cursor(&self, source: LogSource) -> Offset {
        match self {
            Self::Parquet(store) => store.oldest_live_cursor(source),
            Self::Timescale(history) => {
                let (ingest, output) = history.oldest_live_cursors();
                if source == LogSource::Ingest { ingest } else { output }
            }
        }
    }
}

/// The store, and what keeps others from its folder for as long as it is held.
pub struct OpenedStore {
    /// The store.
    pub store: Store,
    /// The lock of a folder outside of the data folder.
    pub lock: Option<Arc<dyn tidegate_pipeline::fs::FsFile>>,
}

/// Opens the store. An object store that cannot be reached is waited for: what was acknowledged lies in the log, and new rows
/// need to know up to where the store has them. A database is not: its reader and its deliveries go on trying.
///
/// # Errors
/// What waiting does not mend: the message says what to do.
pub async fn open_store(fs: &Arc<dyn Fs>, config: &Config, health: &Health) -> anyhow::Result<OpenedStore> {
    match config.store {
        StoreKind::Parquet => {
            let (store, lock) = open_parquet(fs, config).await?;
            Ok(OpenedStore { store: Store::Parquet(store), lock })
        }
        StoreKind::Timescale => {
            let data = config.data_dir.as_path();
            tell_of_files(fs.as_ref(), data, "store = \"timescale\"");
            let missing = "store = \"timescale\" needs sinks.timescale.url";
            let timescale = config.sinks.timescale.clone().context(missing)?;
            let patience = Duration::from_millis(timescale.connect_ms_max);
            let parts = TimescaleReadParts {
                config: timescale,
                origin: origin(fs.as_ref(), data)?,
                kin: Vec::new(),
                query_ms_max: config.query.query_ms_max,
                runtime: Handle::current(),
                // Events are taken without it.
                stage: health.stage_aside("timescale:history"),
            };
            let history = TimescaleHistory::start(parts)?;
            history.looked(patience).await;
            Ok(OpenedStore { store: Store::Timescale(history), lock: None })
        }
    }
}

type OpenedFiles = (Arc<ParquetStore>, Option<Arc<dyn tidegate_pipeline::fs::FsFile>>);

async fn open_parquet(fs: &Arc<dyn Fs>, config: &Config) -> anyhow::Result<OpenedFiles> {
    let data = config.data_dir.as_path();
    match config.parquet.place(data.join("store"))? {
        StorePlace::Folder(dir) => {
            let lock = if config.parquet.url.is_some() { Some(lock_folder(fs.as_ref(), &dir)?) } else { None };
            let opened = ParquetStore::open(fs.clone(), &dir, config.parquet.clone());
            let (store, report) = opened.with_context(|| format!("open the Parquet store in {}", dir.display()))?;
            tracing::info!(dir = %dir.display(), ?report, "store opened");
            Ok((store, lock))
        }
        StorePlace::Bucket(url) => Ok((open_bucket(fs, &url, config).await?, None)),
    }
}

/// Rows are not moved from one store to another.
fn tell_of_files(fs: &dyn Fs, data: &Path, setting: &str) {
    let folder = data.join("store");
    if fs.list(&folder.join("manifest")).is_ok_and(|edits| !edits.is_empty()) {
        tracing::warn!(
            folder = %folder.display(), setting,
            "the data folder holds a store of its own, whose rows are not seen with this setting"
        );
    }
}

fn lock_folder(fs: &dyn Fs, dir: &Path) -> anyhow::Result<Arc<dyn tidegate_pipeline::fs::FsFile>> {
    make_dir_durable(fs, dir).with_context(|| format!("make {}", dir.display()))?;
    fs.open(&dir.join("lock"), Open::Lock).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            anyhow::anyhow!(
                "another server uses the store in {}: give this one a parquet.url of its own",
                dir.display()
            )
        }
        _ => anyhow::anyhow!(error).context(format!("lock {}", dir.display())),
    })
}

async fn open_bucket(fs: &Arc<dyn Fs>, url: &BucketUrl, config: &Config) -> anyhow::Result<Arc<ParquetStore>> {
    let data = config.data_dir.as_path();
    let log_is_empty =
        !has_segments(fs.as_ref(), &data.join("log")) && !has_segments(fs.as_ref(), &data.join("output"));
    let writer = Writer {
        log: log_name(fs.as_ref(), data)?,
        session: format!("{:016x}", getrandom::u64().context("a random number")?),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    tell_of_files(fs.as_ref(), data, &format!("parquet.url = \"{url}\""));
    let mut wait = RETRY.0;
    loop {
        let opener =
            Opener { runtime: Handle::current(), writer: writer.clone(), log_is_empty, cache_dir: data.join("cache") };
        let (place, parquet) = (url.clone(), config.parquet.clone());
        let opening = move || ParquetStore::open_bucket(place.connect(&parquet, opener)?, parquet);
        let opened = tokio::task::spawn_blocking(opening).await.context("the thread that opens the store")?;
        match opened {
            Ok((store, report)) => {
                tracing::info!(store = store.name(), ?report, "store opened");
                return Ok(store);
            }
            Err(error) if may_pass(&error) => {
                let wait_ms = wait.as_millis() as u64;
                tracing::warn!(%error, wait_ms, "the object store cannot be opened yet: the start waits for it");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
            Err(error) => return Err(error).with_context(|| format!("open the Parquet store at {url}")),
        }
    }
}

/// Whether waiting may help: not when the object store has understood and refuses.
fn may_pass(error: &SinksError) -> bool {
    use std::io::ErrorKind;
    match error {
        SinksError::Io { source, .. } => !matches!(
            source.kind(),
            ErrorKind::PermissionDenied | ErrorKind::HostUnreachable | ErrorKind::Unsupported | ErrorKind::NotFound
        ),
        SinksError::Replaced { .. } => true,
        _ => false,
    }
}

/// Whether a log has rows, or had.
fn has_segments(fs: &dyn Fs, dir: &Path) -> bool {
    fs.list(dir).is_ok_and(|paths| paths.iter().any(|path| path.extension().is_some()))
}

/// The name of the log in this data folder: random, given once.
fn log_name(fs: &dyn Fs, data: &Path) -> anyhow::Result<String> {
    let path = data.join(LOG_NAME_FILE);
    let context = || format!("the name of the log in {}", path.display());
    match read_file(fs, &path, 1024) {
        Ok(bytes) => {
            let name = String::from_utf8_lossy(&bytes).trim().to_owned();
            if name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(name);
            }
            anyhow::bail!("{} does not hold a name: restore it from a backup", path.display())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let half = || getrandom::u64().context("a random number");
            let name = format!("{:016x}{:016x}", half()?, half()?);
            replace_file(fs, &path, format!("{name}\n").as_bytes()).with_context(context)?;
            Ok(name)
        }
        Err(error) => Err(error).with_context(context),
    }
}
