//! An object store in memory whose calls can be made to fail, before or after they took effect, and stores of ours in it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tidegate_pipeline::History;
use tidegate_sinks::SinksError;
use tidegate_sinks::parquet::{Bucket, BucketParts, OpenReport, ParquetConfig, ParquetStore, Writer};

use crate::parquet_life::check_life;
use crate::parquet_rows::{runtime, small, wait};

/// Which calls fail.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    /// The first of them, counted from 1.
    pub nth: u64,
    /// Whether all after it fail too, as when the process dies.
    pub sticky: bool,
    /// Whether the first one took effect all the same.
    pub answer_lost: bool,
}

/// An object store in memory, with faults. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Faulty {
    pub inner: Arc<InMemory>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    calls: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
    /// Uploads in parts that were begun and neither ended nor given up.
    open_uploads: AtomicU64,
    begun_uploads: AtomicU64,
}

/// What becomes of a call.
enum Fate {
    Good,
    Fails,
    AnswerLost,
}

fn gone() -> Error {
    Error::Generic { store: "test", source: "503 <Code>SlowDown</Code>".into() }
}

impl Shared {
    fn call(&self) -> Fate {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        match *self.trouble.lock() {
            Some(trouble) if trouble.nth == call && trouble.answer_lost => Fate::AnswerLost,
            Some(trouble) if trouble.nth == call || (trouble.sticky && call > trouble.nth) => Fate::Fails,
            _ => Fate::Good,
        }
    }
}

impl Faulty {
    /// Calls until now.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// From now on these calls fail; none with `None`.
    pub fn trouble(&self, trouble: Option<Trouble>) {
        self.shared.calls.store(0, Ordering::SeqCst);
        *self.shared.trouble.lock() = trouble;
    }

    /// Uploads that still cost space.
    pub fn open_uploads(&self) -> u64 {
        self.shared.open_uploads.load(Ordering::SeqCst)
    }

    /// Uploads in parts until now.
    pub fn begun_uploads(&self) -> u64 {
        self.shared.begun_uploads.load(Ordering::SeqCst)
    }

    /// The keys of all objects.
    pub fn keys(&self) -> BTreeSet<String> {
        let listed = wait(self.inner.list(None).collect::<Vec<_>>());
        listed.into_iter().map(|meta| meta.expect("listed").location.to_string()).collect()
    }

    /// The keys of all files of rows.
    pub fn files(&self) -> BTreeSet<String> {
        self.keys().into_iter().filter(|key| key.ends_with(".parquet")).collect()
    }

    async fn go<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.shared.call() {
            Fate::Good => call.await,
            Fate::Fails => Err(gone()),
            Fate::AnswerLost => {
                call.await.ok();
                Err(gone())
            }
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty memory")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.go(self.inner.put_opts(key, payload, options)).await
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.go(self.inner.put_multipart_opts(key, options)).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        self.go(self.inner.get_opts(key, options)).await
    }

    async fn get_ranges(&self, key: &Key, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.go(self.inner.get_ranges(key, ranges)).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let faulty = self.clone();
        let delete = move |key: Result<Key>| {
            let faulty = faulty.clone();
            async move {
                let key = key?;
                faulty.go(faulty.inner.delete(&key)).await.map(|()| key)
            }
        };
        keys.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.shared.call() {
            Fate::Good => self.inner.list(prefix),
            _ => futures::stream::once(async { Err(gone()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.go(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.go(self.inner.copy_opts(from, to, options)).await
    }
}

#[async_trait]
impl MultipartStore for Faulty {
    async fn create_multipart(&self, key: &Key) -> Result<MultipartId> {
        let counted = async {
            let id = self.inner.create_multipart(key).await?;
            self.shared.open_uploads.fetch_add(1, Ordering::SeqCst);
            self.shared.begun_uploads.fetch_add(1, Ordering::SeqCst);
            Ok(id)
        };
        self.go(counted).await
    }

    async fn put_part(&self, key: &Key, id: &MultipartId, number: usize, payload: PutPayload) -> Result<PartId> {
        self.go(self.inner.put_part(key, id, number, payload)).await
    }

    async fn complete_multipart(&self, key: &Key, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let counted = async {
            let done = self.inner.complete_multipart(key, id, parts).await?;
            self.shared.open_uploads.fetch_sub(1, Ordering::SeqCst);
            Ok(done)
        };
        self.go(counted).await
    }

    async fn abort_multipart(&self, key: &Key, id: &MultipartId) -> Result<()> {
        let counted = async {
            self.inner
                .abort_multipart(key, id)
                .await
                .map_err(|_| Error::NotFound { path: key.to_string(), source: "NoSuchUpload".into() })?;
            self.shared.open_uploads.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        self.go(counted).await
    }
}

/// A writer with this log; each call is another session.
pub fn writer(log: &str) -> Writer {
    static SESSIONS: AtomicU64 = AtomicU64::new(0);
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed).to_string();
    Writer { log: log.to_owned(), session, host: format!("host of {log}") }
}

/// What a store of the tests is opened with.
pub fn parts(store: &Faulty, log: &str) -> BucketParts {
    BucketParts {
        store: Arc::new(store.clone()),
        multipart: Arc::new(store.clone()),
        reads: Arc::new(store.clone()),
        url: "mem://tests/team".to_owned(),
        prefix: "team".to_owned(),
        runtime: runtime().handle().clone(),
        writer: writer(log),
        log_is_empty: false,
        part_bytes: 1500,
        reader_grace: Duration::ZERO,
    }
}

/// A configuration in which every file is merged as soon as there are three.
pub fn config() -> ParquetConfig {
    ParquetConfig { settle_hours: u32::MAX, ..small() }
}

/// Opens a store as a process does that has just started.
pub fn open_bucket(store: &Faulty, log: &str) -> std::result::Result<(Arc<ParquetStore>, OpenReport), SinksError> {
    ParquetStore::open_bucket(Bucket::new(parts(store, log)), config())
}

/// The rows of the files of a snapshot.
pub fn batches(objects: &dyn ObjectStore, store: &ParquetStore) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for file in &store.snapshot().files {
        let key = Key::from(file.path.to_str().expect("a path").trim_start_matches('/'));
        let bytes = wait(async { objects.get(&key).await?.bytes().await }).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(bytes.len() as u64, file.bytes);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a footer").build().expect("a reader");
        batches.extend(reader.map(|batch| batch.expect("readable")));
    }
    batches
}

/// The ids of the rows, sorted; an id that is there twice is twice in the list.
pub fn bucket_ids(objects: &dyn ObjectStore, store: &ParquetStore) -> Vec<u64> {
    let ids = |batch: RecordBatch| -> Vec<u64> {
        let column = batch.column_by_name("event_id").expect("event_id").as_string::<i32>();
        column.iter().flatten().map(|id| id[1..].parse().expect("a number")).collect()
    };
    let mut ids: Vec<u64> = batches(objects, store).into_iter().flat_map(ids).collect();
    ids.sort_unstable();
    ids
}

/// Checks what a life has left in the store.
pub fn check_bucket_life(objects: &Faulty, store: &ParquetStore, what: &str) {
    check_life(store, bucket_ids(objects.inner.as_ref(), store), what);
}

/// The keys of the files of a snapshot.
pub fn named(store: &ParquetStore) -> BTreeSet<String> {
    let path = |file: &Arc<tidegate_pipeline::HistoryFile>| file.path.to_str().expect("a path")[1..].to_owned();
    store.snapshot().files.iter().map(path).collect()
}
