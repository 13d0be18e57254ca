//! A prefix of an object store, for threads that may block: uploads, reads, listings, and edits that are put if absent.
//!
//! Requests run as tasks of the runtime that was given; the calling thread waits for the answer. Each request has a timeout and
//! a few quick retries of its own; all longer waiting is the delivery's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use futures::TryStreamExt;
use metrics::counter;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::place::{Listed, PutError};
use super::refusal::explain;
use crate::metrics as names;

/// Who writes a store, as the manifest says it. An object store has no lock: whoever opened it last may write, and finds by this
/// whether the offsets of the manifest are those of its own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The log whose offsets the cursors are: made once for a data folder.
    pub log: String,
    /// This run of the program.
    pub session: String,
    /// The machine, for people.
    pub host: String,
}

/// How an object store is used.
#[derive(Clone)]
pub struct BucketParts {
    /// The object store.
    pub store: Arc<dyn ObjectStore>,
    /// The same, for uploads in parts.
    pub multipart: Arc<dyn MultipartStore>,
    /// The same for queries, with a cache.
    pub reads: Arc<dyn ObjectStore>,
    /// What it is called in messages, such as `s3://bucket/prefix`. Holds no secret.
    pub url: String,
    /// The keys of the store begin so. May be empty; holds letters, digits, `.`, `_`, `-`, `=` and `/` only.
    pub prefix: String,
    /// Runs the requests.
    pub runtime: Handle,
    /// Who opens it.
    pub writer: Writer,
    /// Whether the own log is empty, so that it may go on where that of another writer ended.
    pub log_is_empty: bool,
    /// Files larger than this go up in parts of this size.
    pub part_bytes: usize,
    /// How long a file that no longer counts stays for readers in other processes.
    pub reader_grace: Duration,
}

impl fmt::Debug for BucketParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Clients of an object store may show more than a log should hold.
        f.debug_struct("BucketParts").field("url", &self.url).field("writer", &self.writer).finish_non_exhaustive()
    }
}

/// A prefix of an object store.
#[derive(Debug)]
pub struct Bucket {
    pub(crate) parts: BucketParts,
}

impl Bucket {
    /// A prefix of an object store. Asks it nothing yet.
    pub fn new(parts: BucketParts) -> Self {
        Self { parts }
    }

    /// Where the store's folders are, as a path.
    pub(crate) fn dir(&self) -> PathBuf {
        Path::new("/").join(self.parts.prefix.trim_matches('/'))
    }

    /// Runs a request and waits for its answer.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        let answer = self.start(request);
        self.wait(op, &answer)
    }

    pub(crate) fn start<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Receiver<object_store::Result<T>> {
        let (answer, answered) = sync_channel(1);
        self.parts.runtime.spawn(async move { answer.send(request.await).ok() });
        answered
    }

    /// Waits for the answer of a request.
    pub(crate) fn wait<T>(&self, op: &'static str, answer: &Receiver<object_store::Result<T>>) -> io::Result<T> {
        let answer = answer.recv().ok();
        counter!(names::BUCKET_REQUESTS, "op" => op, "outcome" => outcome(&answer)).increment(1);
        match answer {
            Some(answer) => answer.map_err(|error| explain(op, &self.parts.url, &error)),
            None => Err(io::Error::other("the program is ending")),
        }
    }

    pub(crate) fn list(&self, folder: &Path) -> io::Result<Vec<Listed>> {
        let (store, prefix) = (self.parts.store.clone(), key_of(folder));
        let found = self.run("list", async move { store.list(Some(&prefix)).try_collect::<Vec<_>>().await })?;
        let listed = |meta: object_store::ObjectMeta| Listed {
            path: Path::new("/").join(meta.location.as_ref()),
            bytes: Some(meta.size),
        };
        // Stores without folders list what lies deeper too.
        Ok(found.into_iter().map(listed).filter(|file| file.path.parent() == Some(folder)).collect())
    }

    pub(crate) fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let (store, key) = (self.parts.store.clone(), key_of(path));
        let bytes = self.run("get", async move {
            let found = store.get(&key).await?;
            if found.meta.size > bytes_max {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        })?;
        let too_large = || io::Error::new(io::ErrorKind::InvalidData, format!("more than {bytes_max} bytes"));
        Ok(bytes.ok_or_else(too_large)?.to_vec())
    }

    /// All of an object of this size, in parts at a time.
    pub(crate) fn read_whole(&self, path: &Path, bytes: u64) -> io::Result<Bytes> {
        let mut whole = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
        while (whole.len() as u64) < bytes {
            let from = whole.len() as u64;
            let to = bytes.min(from + self.parts.part_bytes as u64);
            let part = self.read_range(path, from, to)?;
            if part.len() as u64 != to - from {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.into())
    }

    pub(crate) fn read_range(&self, path: &Path, from: u64, to: u64) -> io::Result<Bytes> {
        let (store, key) = (self.parts.store.clone(), key_of(path));
        self.run("get", async move { store.get_range(&key, from..to).await })
    }

    pub(crate) fn size(&self, path: &Path) -> io::Result<u64> {
        let (store, key) = (self.parts.store.clone(), key_of(path));
        self.run("head", async move { Ok(store.head(&key).await?.size) })
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let (store, key) = (self.parts.store.clone(), key_of(path));
        self.run("delete", async move { store.delete(&key).await })
    }

    pub(crate) fn move_aside(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (store, from, to) = (self.parts.store.clone(), key_of(from), key_of(to));
        self.run("copy", async move { store.rename(&from, &to).await })
    }

    /// Puts an edit if there is none of this number. Of an edit that is there already with the very same bytes it says that it
    /// was put: an earlier try has arrived after all.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), PutError> {
        use io::ErrorKind;
        let error = match self.put_new(path, bytes) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::AlreadyExists => match self.read(path, u64::MAX) {
                Ok(found) if found == bytes => Ok(()),
                Ok(found) => Err(PutError::Taken(found)),
                Err(error) => Err(PutError::Doubt(error)),
            },
            ErrorKind::PermissionDenied | ErrorKind::HostUnreachable | ErrorKind::NotFound | ErrorKind::Unsupported => {
                Err(PutError::Refused(error))
            }
            _ => Err(PutError::Doubt(error)),
        }
    }

    fn put_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let (store, key, bytes) = (self.parts.store.clone(), key_of(path), Bytes::copy_from_slice(bytes));
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = async move { store.put_opts(&key, PutPayload::from_bytes(bytes), options).await };
        self.run("put", put).map(drop)
    }

    /// Whether the object store refuses to put what is there already, as it must: without that, two writers could overwrite
    /// each other's edits. `bytes` are those that are there.
    pub(crate) fn guards(&self, path: &Path, bytes: &[u8]) -> io::Result<bool> {
        match self.put_new(path, bytes) {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn outcome<T>(answer: &Option<object_store::Result<T>>) -> &'static str {
    match answer {
        Some(Ok(_)) => "done",
        Some(Err(object_store::Error::NotFound { .. })) => "missing",
        Some(Err(object_store::Error::AlreadyExists { .. })) => "exists",
        _ => "failed",
    }
}

/// The key of a path of ours.
pub(crate) fn key_of(path: &Path) -> Key {
    Key::from(path.to_string_lossy().trim_start_matches('/'))
}
