//! Opens the Parquet store where the configuration says: in the data folder, in another folder, or in an object store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidegate_pipeline::fs::{Fs, Open, make_dir_durable, read_file, replace_file};
use tidegate_sinks::SinksError;
use tidegate_sinks::parquet::{BucketUrl, Opener, ParquetStore, StorePlace, Writer};
use tokio::runtime::Handle;

use crate::config::Config;

/// Waits between two tries to reach an object store at the start.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// The name of the log in a data folder, for the manifest of an object store.
const LOG_NAME_FILE: &str = "log-name";

/// The store, and what keeps others from its folder for as long as it is held.
pub struct OpenedStore {
    /// The store.
    pub store: Arc<ParquetStore>,
    /// The lock of a folder outside of the data folder.
    pub lock: Option<Arc<dyn tidegate_pipeline::fs::FsFile>>,
}

/// Opens the store. An object store that cannot be reached is waited for: what was acknowledged lies in the log, and new rows
/// need to know up to where the store has them.
///
/// # Errors
/// What waiting does not mend: the message says what to do.
pub async fn open_store(fs: &Arc<dyn Fs>, config: &Config) -> anyhow::Result<OpenedStore> {
    let data = config.data_dir.as_path();
    match config.parquet.place(data.join("store"))? {
        StorePlace::Folder(dir) => {
            let lock = if config.parquet.url.is_some() { Some(lock_folder(fs.as_ref(), &dir)?) } else { None };
            let opened = ParquetStore::open(fs.clone(), &dir, config.parquet.clone());
            let (store, report) = opened.with_context(|| format!("open the Parquet store in {}", dir.display()))?;
            tracing::info!(dir = %dir.display(), ?report, "store opened");
            Ok(OpenedStore { store, lock })
        }
        StorePlace::Bucket(url) => Ok(OpenedStore { store: open_bucket(fs, &url, config).await?, lock: None }),
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
    if fs.list(&data.join("store").join("manifest")).is_ok_and(|edits| !edits.is_empty()) {
        tracing::warn!(
            folder = %data.join("store").display(), %url,
            "the data folder holds a store of its own, whose rows are not seen while parquet.url says otherwise"
        );
    }
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
