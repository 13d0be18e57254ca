//! A note of how far a log is in the streams, for the time while Redis cannot be asked.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::sealed::SealedFiles;
use tidegate_pipeline::{Offset, PipelineError};

const MAGIC: [u8; 8] = *b"tgrdcur1";
const BYTES_MAX: u64 = 1024;

/// Notes are not made more often: Redis' own cursor is the exact one.
const PAUSE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct CursorFile {
    files: Arc<Mutex<SealedFiles>>,
    noted: Offset,
    at: Option<Instant>,
}

impl CursorFile {
    /// Opens the folder; the note in it, 0 when there is none.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be made or read.
    pub(super) fn open(fs: Arc<dyn Fs>, dir: &Path) -> Result<(Self, Offset), PipelineError> {
        let mut files = SealedFiles::open(fs, dir, MAGIC, BYTES_MAX)?;
        let loaded = files.load(|body| {
            let bytes = <[u8; 8]>::try_from(body).map_err(|_| "not 8 bytes".to_owned())?;
            Ok(u64::from_le_bytes(bytes))
        })?;
        for error in &loaded.damaged {
            tracing::warn!(%error, "a note of a cursor is damaged; an older one is used");
        }
        let noted = loaded.value.unwrap_or(0);
        Ok((Self { files: Arc::new(Mutex::new(files)), noted, at: None }, noted))
    }

    /// Takes a note, unless one was taken a moment ago. Best effort: Redis has the exact cursor.
    pub(super) async fn note(&mut self, cursor: Offset) {
        if cursor == self.noted || self.at.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        self.at = Some(Instant::now());
        let files = self.files.clone();
        let saved = tokio::task::spawn_blocking(move || files.lock().save(&cursor.to_le_bytes())).await;
        match saved {
            Ok(Ok(())) => self.noted = cursor,
            Ok(Err(error)) => tracing::warn!(%error, "the cursor of the Redis streams was not noted"),
            Err(error) => tracing::warn!(%error, "the cursor of the Redis streams was not noted"),
        }
    }
}
