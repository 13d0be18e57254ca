//! What a node keeps beside its copy of the changes: which end of the topic the copy goes by.
//!
//! A broker that has lost the newest changes gives their places to others, which a node with a copy would never read
//! (docs/many-machines.md). A copy whose end is not in the topic any more, or is not known, is made anew from the whole topic.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use tidegate_pipeline::fs::Fs;
use tidegate_pipeline::registry::Registry;
use tidegate_pipeline::sealed::SealedFiles;
use tidegate_pipeline::{Offset, PipelineError};
use tidegate_sinks::fluvio::{FluvioLog, LogTail, LogTopic};

use super::patiently;
use crate::config::Config;

const MAGIC: [u8; 8] = *b"TGEND001";
/// A tail is far smaller.
const BYTES_MAX: u64 = 1 << 20;

/// See the module.
pub(super) struct KnownChanges {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    registry: PathBuf,
    files: Mutex<Option<SealedFiles>>,
}

/// What the copy of a node is good for.
pub(super) struct Copy {
    /// Changes below are in it, and as they are in the topic.
    pub(super) covered: Offset,
    pub(super) tail: LogTail,
    /// It is not to be used.
    pub(super) outdated: bool,
}

impl KnownChanges {
    /// In the data folder of a node.
    pub(super) fn in_folder(fs: Arc<dyn Fs>, data: &std::path::Path) -> Arc<Self> {
        let (dir, registry) = (data.join("changes-end"), data.join("registry"));
        Arc::new(Self { fs, dir, registry, files: Mutex::new(None) })
    }

    /// The folder of the copy.
    pub(super) fn registry(&self) -> &std::path::Path {
        &self.registry
    }

    /// Compares the copy with the topic, as soon as the cluster is there.
    pub(super) async fn copy(&self, config: &Config) -> anyhow::Result<Copy> {
        let covered = Registry::covered_in(self.fs.clone(), &self.registry, &config.registry);
        let covered = covered.context("look at the registry")?;
        let outdated = Copy { covered: 0, tail: LogTail::default(), outdated: covered > 0 };
        let Some(tail) = self.load()?.filter(|(at, _)| *at == covered && covered > 0).map(|(_, tail)| tail) else {
            return Ok(outdated);
        };
        let lost = || FluvioLog::has_lost_of(&config.fluvio, LogTopic::Changes, 0, &tail);
        if patiently(lost).await.context("look at the end of the changes")? {
            tracing::error!("a broker has lost changes that this node has: what is in the topic counts");
            return Ok(outdated);
        }
        Ok(Copy { covered, tail, outdated: false })
    }

    /// Removes the copy, since the topic is to be read as a whole.
    pub(super) fn remove_copy(&self) -> Result<(), PipelineError> {
        SealedFiles::open(self.fs.clone(), &self.registry, MAGIC, BYTES_MAX)?.clear()
    }

    /// Saves the copy and then the end that it goes by. Without that the copy is not used.
    pub(super) async fn save(self: &Arc<Self>, registry: &Registry, changes: &FluvioLog) -> Result<(), PipelineError> {
        registry.save().await?;
        let covered = registry.covered();
        let body = [covered.to_le_bytes().as_slice(), &changes.tail(covered).encode()].concat();
        let known = self.clone();
        let saving = tokio::task::spawn_blocking(move || known.with_files(|files| files.save(&body)));
        saving.await.unwrap_or_else(|error| Err(PipelineError::Invalid(format!("the end of the changes: {error}"))))
    }

    fn load(&self) -> Result<Option<(Offset, LogTail)>, PipelineError> {
        let parse = |body: &[u8]| {
            let (at, tail) = body.split_first_chunk().ok_or("cut")?;
            Ok((Offset::from_le_bytes(*at), LogTail::decode(tail).ok_or("no tail of a log")?))
        };
        Ok(self.with_files(|files| files.load(parse))?.value)
    }

    fn with_files<T>(
        &self,
        work: impl FnOnce(&mut SealedFiles) -> Result<T, PipelineError>,
    ) -> Result<T, PipelineError> {
        let mut files = self.files.lock();
        match &mut *files {
            Some(files) => work(files),
            none => work(none.insert(SealedFiles::open(self.fs.clone(), &self.dir, MAGIC, BYTES_MAX)?)),
        }
    }
}
