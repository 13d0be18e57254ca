//! A note in the data folder of how far a log is at a destination.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::sealed::SealedFiles;
use tidegate_pipeline::{Offset, PipelineError};

const MAGIC: [u8; 8] = *b"tgrdcur1";
const BYTES_MAX: u64 = 1024;

/// A note in the data folder of how far a log is at a destination: an offset in a [sealed](tidegate_pipeline::sealed) file.
#[derive(Debug)]
pub struct CursorFile {
    files: Arc<Mutex<SealedFiles>>,
    /// Notes are not made more often, but by [`save`](Self::save).
    pause: Duration,
    noted: Offset,
    at: Option<Instant>,
}

impl CursorFile {
    /// Opens the folder; the note in it, 0 when there is none.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the folder cannot be made or read.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, pause: Duration) -> Result<(Self, Offset), PipelineError> {
        let mut files = SealedFiles::open(fs, dir, MAGIC, BYTES_MAX)?;
        let loaded = files.load(|body| {
            let bytes = <[u8; 8]>::try_from(body).map_err(|_| "not 8 bytes".to_owned())?;
            Ok(u64::from_le_bytes(bytes))
        })?;
        for error in &loaded.damaged {
            tracing::warn!(%error, "a note of a cursor is damaged; an older one is used");
        }
        let noted = loaded.value.unwrap_or(0);
        Ok((Self { files: Arc::new(Mutex::new(files)), pause, noted, at: None }, noted))
    }

    /// Takes a note, unless one was taken a moment ago. Best effort: an older note is not wrong.
    pub async fn note(&mut self, cursor: Offset) {
        if self.at.is_some_and(|at| at.elapsed() < self.pause) {
            return;
        }
        if let Err(error) = self.save(cursor).await {
            tracing::warn!(%error, "how far a log is at a destination was not noted; an older note stays");
        }
    }

    /// Takes a note now.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the file cannot be written; the note before it stays.
    pub async fn save(&mut self, cursor: Offset) -> Result<(), PipelineError> {
        if cursor == self.noted {
            return Ok(());
        }
        self.at = Some(Instant::now());
        let files = self.files.clone();
        let saved = tokio::task::spawn_blocking(move || files.lock().save(&cursor.to_le_bytes())).await;
        saved.map_err(|error| PipelineError::Invalid(format!("taking a note of a cursor: {error}")))??;
        self.noted = cursor;
        Ok(())
    }

    /// The last note.
    pub fn noted(&self) -> Offset {
        self.noted
    }
}
