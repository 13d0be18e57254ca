//! Objects on their way up: small ones with one request, larger ones in parts.
//!
//! The parts of an upload that never ends cost space and appear in no listing. So each upload in parts leaves a note,
//! `uploads/<table>.<number>`, with the name the object store gave it, before its first part goes up, and takes the note away when
//! it has ended. A start finds the notes of writers before it, which can never commit what they began, and gives those uploads up.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{MultipartId, ObjectStore, ObjectStoreExt, PutPayload};

use super::bucket::{Bucket, key_of};
use super::place::Listed;

/// The folder of the notes.
const UPLOADS: &str = "uploads";
/// A note is the key of the object and the name of its upload, a line each.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// An object on its way up. It is not there before [`finish`](Self::finish) has succeeded; one that is dropped leaves nothing.
#[derive(Debug)]
pub(crate) struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    buffer: Vec<u8>,
    /// Once there is more than one part.
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    id: MultipartId,
    note: Key,
    done: Vec<PartId>,
    /// The last one, while the next one is filled.
    under_way: Option<Receiver<object_store::Result<PartId>>>,
}

impl Upload {
    pub(crate) fn new(bucket: Arc<Bucket>, path: &Path) -> Self {
        Self { bucket, key: key_of(path), buffer: Vec::new(), parts: None }
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let part_bytes = self.bucket.parts.part_bytes;
        while self.buffer.len() + bytes.len() > part_bytes {
            let (now, later) = bytes.split_at(part_bytes.saturating_sub(self.buffer.len()).min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            self.send_part()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn begin(&self) -> io::Result<Parts> {
        let (uploads, key) = (self.bucket.parts.multipart.clone(), self.key.clone());
        let id = self.bucket.run("upload", async move { uploads.create_multipart(&key).await })?;
        let note = note_of(&self.bucket, &self.key);
        let parts = Parts { id, note, done: Vec::new(), under_way: None };
        let (store, at) = (self.bucket.parts.store.clone(), parts.note.clone());
        let text = PutPayload::from(format!("{}\n{}", self.key, parts.id));
        if let Err(error) = self.bucket.run("put", async move { store.put(&at, text).await }) {
            self.give_up(parts);
            return Err(error);
        }
        Ok(parts)
    }

    fn send_part(&mut self) -> io::Result<()> {
        let mut parts = match self.parts.take() {
            Some(parts) => parts,
            None => self.begin()?,
        };
        let sent = parts.settle(&self.bucket);
        if sent.is_ok() {
            let (uploads, key) = (self.bucket.parts.multipart.clone(), self.key.clone());
            let (id, number) = (parts.id.clone(), parts.done.len());
            let payload = PutPayload::from(std::mem::take(&mut self.buffer));
            let part = async move { uploads.put_part(&key, &id, number, payload).await };
            parts.under_way = Some(self.bucket.start(part));
        }
        self.parts = Some(parts);
        sent
    }

    /// Ends the upload: now the object is there.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let bucket = self.bucket.clone();
        if self.parts.is_none() {
            let payload = PutPayload::from(std::mem::take(&mut self.buffer));
            let (store, key) = (bucket.parts.store.clone(), self.key.clone());
            return bucket.run("put", async move { store.put(&key, payload).await }).map(drop);
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        let Some(parts) = &mut self.parts else { return Ok(()) };
        parts.settle(&bucket)?;
        let (uploads, key) = (bucket.parts.multipart.clone(), self.key.clone());
        let (id, done) = (parts.id.clone(), std::mem::take(&mut parts.done));
        bucket.run("upload", async move { uploads.complete_multipart(&key, &id, done).await })?;
        if let Some(Parts { note, .. }) = self.parts.take() {
            let store = bucket.parts.store.clone();
            // One that stays is taken away by the next start.
            bucket.run("delete", async move { store.delete(&note).await }).ok();
        }
        Ok(())
    }

    fn give_up(&self, parts: Parts) {
        let (uploads, store) = (self.bucket.parts.multipart.clone(), self.bucket.parts.store.clone());
        let key = self.key.clone();
        self.bucket.parts.runtime.spawn(abort(uploads, store, key, parts.id, parts.note));
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            self.give_up(parts);
        }
    }
}

impl Parts {
    /// Waits for the part that is under way.
    fn settle(&mut self, bucket: &Bucket) -> io::Result<()> {
        if let Some(under_way) = self.under_way.take() {
            self.done.push(bucket.wait("part", &under_way)?);
        }
        Ok(())
    }
}

/// Gives an upload up, and takes its note away when that succeeded or there was nothing left to give up.
async fn abort(
    uploads: Arc<dyn MultipartStore>,
    store: Arc<dyn ObjectStore>,
    key: Key,
    id: MultipartId,
    note: Key,
) -> bool {
    let gone = match uploads.abort_multipart(&key, &id).await {
        Err(error) => {
            error.to_string().contains("NoSuchUpload") || matches!(error, object_store::Error::NotFound { .. })
        }
        Ok(()) => true,
    };
    gone && store.delete(&note).await.is_ok()
}

fn note_of(bucket: &Bucket, key: &Key) -> Key {
    let mut parts = key.as_ref().rsplit('/');
    let (file, table) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let number = file.strip_suffix(".parquet").unwrap_or(file);
    key_of(&bucket.dir().join(UPLOADS).join(format!("{table}.{number}")))
}

impl Bucket {
    /// Gives up the uploads that writers before this one began and never ended: those of files below this number. How many.
    pub(crate) fn give_up_uploads(&self, below: u64) -> io::Result<u64> {
        let mut given_up = 0;
        for Listed { path, .. } in self.list(&self.dir().join(UPLOADS))? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.split_once('.').and_then(|(_, number)| number.parse::<u64>().ok());
            if number.is_none_or(|number| number >= below) {
                continue;
            }
            let text = String::from_utf8(self.read(&path, NOTE_BYTES_MAX)?).unwrap_or_default();
            let Some((key, id)) = text.split_once('\n') else { continue };
            let (uploads, store) = (self.parts.multipart.clone(), self.parts.store.clone());
            let (key, id, note) = (Key::from(key), id.to_owned(), key_of(&path));
            let gone = self.run("upload", async move { Ok(abort(uploads, store, key, id, note).await) })?;
            given_up += u64::from(gone);
        }
        Ok(given_up)
    }
}
