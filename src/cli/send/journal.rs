//! Notes how much of a file the server has acknowledged, so that the same command resumes after an interruption. What was
//! sent but not noted is sent again under the same idempotency keys, which the server answers as duplicates.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::batches::BatchBounds;
use super::input::FileIdentity;

/// What is noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// The file, for people who look into the folder.
    pub path: String,
    /// Everything up to this byte (after decompression) is acknowledged.
    pub position: u64,
    /// Records up to there.
    pub records: u64,
    /// Of these, stored.
    pub accepted: u64,
    /// Of these, already there.
    pub duplicates: u64,
    /// Of these, refused.
    pub rejected: u64,
    /// The bounds of the batches: the next run cuts as this one did, whatever its flags say.
    pub batch_events_max: usize,
    /// See [`batch_events_max`](Self::batch_events_max).
    pub batch_bytes_max: usize,
}

impl Noted {
    /// Nothing yet.
    pub fn start(path: &str, bounds: BatchBounds) -> Self {
        Self {
            path: path.to_owned(),
            position: 0,
            records: 0,
            accepted: 0,
            duplicates: 0,
            rejected: 0,
            batch_events_max: bounds.events_max,
            batch_bytes_max: bounds.bytes_max,
        }
    }

    /// The bounds of the batches.
    pub fn bounds(&self) -> BatchBounds {
        BatchBounds { events_max: self.batch_events_max, bytes_max: self.batch_bytes_max }
    }
}

/// The journal of one file on its way to one server. Without a file nothing is noted.
#[derive(Debug)]
pub struct Journal {
    path: Option<PathBuf>,
}

impl Journal {
    /// The journal below `state_dir` of a file on its way to `target` (URL, table and source).
    pub fn new(state_dir: &Path, identity: Option<&FileIdentity>, target: &str) -> Self {
        let name = |file: &FileIdentity| {
            let text = format!("{}\0{}\0{}\0{target}", file.path, file.bytes, file.modified_ns);
            state_dir.join("send").join(format!("{:032x}.json", xxh3_128(text.as_bytes())))
        };
        Self { path: identity.map(name) }
    }

    /// What an earlier run noted. A file that holds something else counts as nothing noted: then everything is sent again, and
    /// the keys make it harmless.
    pub fn read(&self) -> Option<Noted> {
        let text = fs::read(self.path.as_ref()?).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Notes, atomically.
    ///
    /// # Errors
    /// When the state folder cannot be written.
    pub fn write(&self, noted: &Noted) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let context =
            || format!("cannot note the position in {} (choose another place with --state-dir)", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(context)?;
        }
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside).with_context(context)?;
        file.write_all(&serde_json::to_vec(noted)?).with_context(context)?;
        fs::rename(&beside, path).with_context(context)
    }

    /// Forgets: the file is sent, or to be sent from its start.
    pub fn forget(&self) {
        if let Some(path) = &self.path {
            // Nothing to forget is fine, and what cannot be removed is only sent again.
            let _ = fs::remove_file(path);
        }
    }
}
