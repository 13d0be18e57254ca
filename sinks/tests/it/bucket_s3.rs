//! The store over the S3 API of a real server on loopback: the contract of a sink, and a server that is ill.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use tempfile::TempDir;
use tidegate_pipeline::fs::RealFs;
use tidegate_pipeline::{Sink, SinkError};
use tidegate_sinks::parquet::{Bucket, BucketParts, LogSource, ParquetConfig, ParquetStore};

use crate::bucket_server::{BUCKET, Ill, KEYS, S3Server};
use crate::bucket_world::{Faulty, batches, bucket_ids, config, parts};
use crate::contract::sink::{Destination, check};
use crate::parquet_life::live;
use crate::parquet_rows::{Row, batch, batch_with, commit, delivery, flush, wait, write};

fn client(server: &S3Server, secret: &str) -> Arc<AmazonS3> {
    impatient(server, secret, Duration::from_secs(20))
}

/// A client that waits no longer than this for an answer.
fn impatient(server: &S3Server, secret: &str, patience: Duration) -> Arc<AmazonS3> {
    let options = ClientOptions::new().with_timeout(patience).with_allow_http(true);
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(5), ..BackoffConfig::default() },
        max_retries: 1,
        retry_timeout: Duration::from_secs(1),
    };
    let builder = AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_endpoint(server.url())
        .with_region("us-east-1")
        .with_access_key_id(KEYS.0)
        .with_secret_access_key(secret)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(options)
        .with_retry(retry);
    Arc::new(builder.build().expect("a client"))
}

fn open<S: ObjectStore + MultipartStore>(
    store: &Arc<S>,
    config: ParquetConfig,
) -> Result<Arc<ParquetStore>, tidegate_sinks::SinksError> {
    let shared = parts(&Faulty::default(), "log");
    let parts = BucketParts {
        store: store.clone(),
        multipart: store.clone(),
        reads: store.clone(),
        url: "s3://tests/team".into(),
        // The smallest part that S3 takes.
        part_bytes: 5 << 20,
        ..shared
    };
    ParquetStore::open_bucket(Bucket::new(parts), config).map(|(store, _)| store)
}

struct Remote {
    objects: Arc<AmazonS3>,
    config: ParquetConfig,
    source: LogSource,
    _server: S3Server,
    _folder: TempDir,
}

fn ids_of(batches: Vec<RecordBatch>) -> Vec<String> {
    let ids = |batch: RecordBatch| -> Vec<String> {
        let column = batch.column_by_name("event_id").expect("event_id").as_string::<i32>();
        column.iter().flatten().map(str::to_owned).collect()
    };
    batches.into_iter().flat_map(ids).collect()
}

impl Destination for Remote {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(open(&self.objects, self.config.clone()).expect("opens").sink(self.source))
    }

    fn ids(&self) -> Vec<String> {
        // A look by a process that reads only: another writer would take the store from the one that is looked at.
        ids_of(batches(self.objects.as_ref(), &look(&self.objects)))
    }
}

/// The store as it would be found now, opened in a copy of its objects.
fn look(objects: &Arc<AmazonS3>) -> Arc<ParquetStore> {
    let copy = Faulty::default();
    wait(async {
        for meta in objects.list(None).try_collect::<Vec<_>>().await.expect("listed") {
            let bytes = objects.get(&meta.location).await.expect("there").bytes().await.expect("whole");
            copy.inner.put(&meta.location, bytes.into()).await.expect("put");
        }
    });
    open(&Arc::new(copy), config()).expect("opens")
}

#[test]
fn a_store_over_s3_keeps_the_contract_of_a_sink() {
    for (source, commit_rows) in [(LogSource::Ingest, 1 << 20), (LogSource::Output, 3)] {
        check(&format!("s3, {source:?}, commits of {commit_rows} rows"), || {
            let folder = tempfile::tempdir().expect("a folder");
            let server = S3Server::start(folder.path());
            let objects = client(&server, KEYS.1);
            let config = ParquetConfig { commit_rows, ..config() };
            Box::new(Remote { objects, config, source, _server: server, _folder: folder })
        });
    }
}

struct Folder {
    folder: TempDir,
    source: LogSource,
}

fn open_folder(folder: &Path) -> Arc<ParquetStore> {
    let config = ParquetConfig { url: Some(format!("file://{}", folder.display())), ..config() };
    let Ok(tidegate_sinks::parquet::StorePlace::Folder(folder)) = config.place("/nowhere".into()) else {
        panic!("a folder")
    };
    ParquetStore::open(Arc::new(RealFs), &folder, config).expect("opens").0
}

impl Destination for Folder {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(open_folder(&self.folder.path().join("history")).sink(self.source))
    }

    fn ids(&self) -> Vec<String> {
        let store = open_folder(&self.folder.path().join("history"));
        ids_of(batches(&object_store::local::LocalFileSystem::new(), &store))
    }
}

#[test]
fn a_store_at_a_file_url_keeps_the_contract_of_a_sink() {
    for source in [LogSource::Ingest, LogSource::Output] {
        check(&format!("file, {source:?}"), || {
            Box::new(Folder { folder: tempfile::tempdir().expect("a folder"), source })
        });
    }
}

#[test]
fn a_server_that_is_ill_is_told_and_made_good_when_it_is_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path());
    let objects = impatient(&server, KEYS.1, Duration::from_millis(700));
    let store = open(&objects, config()).expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    let illnesses = [
        (Ill::Says(500, "InternalError"), "InternalError"),
        (Ill::Says(503, "SlowDown"), "SlowDown: as told; the object store is away or overloaded"),
        (Ill::Says(403, "AccessDenied"), "give the credentials of this server the right"),
        (Ill::Says(400, "ExpiredToken"), "check the credentials"),
        (Ill::Says(404, "NoSuchBucket"), "make the bucket"),
        (Ill::LosesAnswers, "InternalError"),
        (Ill::Slow(Duration::from_secs(5)), "away or overloaded"),
        (Ill::Hangs, "away or overloaded"),
        (Ill::BreaksOff, "away or overloaded"),
        (Ill::Away, "away or overloaded"),
    ];
    for (nth, (ill, told)) in illnesses.into_iter().enumerate() {
        let nth = nth as u64;
        write(&mut sink, delivery(nth, batch(&[("a", 1, nth)]))).expect("taken");
        server.fall(ill);
        let started = Instant::now();
        let Err(SinkError::Retryable(reason)) = flush(&mut sink) else { panic!("{ill:?} is no success") };
        assert!(reason.contains(told) && reason.contains("s3://tests/team"), "{ill:?}: {reason}");
        assert!(!reason.contains(KEYS.1), "{reason}");
        assert!(started.elapsed() < Duration::from_secs(10), "{ill:?} took {:?}", started.elapsed());
        assert_eq!(sink.committed(), nth, "{ill:?}");
        server.fall(Ill::Well);
        flush(&mut sink).unwrap_or_else(|error| panic!("after {ill:?}: {error}"));
        assert_eq!(sink.committed(), nth + 1, "{ill:?}");
        assert_eq!(bucket_ids(objects.as_ref(), &store), (0..=nth).collect::<Vec<_>>(), "{ill:?}");
    }
    let left = store.sweep().and_then(|_| store.sweep()).expect("sweeps");
    assert_eq!(left, 0);
    let store = open(&objects, config()).expect("opens");
    assert_eq!(bucket_ids(objects.as_ref(), &store).len(), 10);
}

#[test]
fn wrong_credentials_are_told_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path());
    let Err(error) = open(&client(&server, "wrong"), config()) else { panic!("refused") };
    assert!(
        error.to_string().contains("SignatureDoesNotMatch") && error.to_string().contains("credentials"),
        "{error}"
    );
}

#[test]
fn a_large_file_goes_up_in_parts_and_a_life_over_s3_ends_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path());
    let objects = client(&server, KEYS.1);
    let store = open(&objects, config()).expect("opens");
    live(&store, 0).expect("lives");
    let (store, before) = (open(&objects, config()).expect("opens"), server.requests());
    let ids: Vec<String> =
        (0..90_000u64).map(|id| format!("{:x}", xxhash_rust::xxh3::xxh3_128(&id.to_le_bytes()))).collect();
    let noise: Arc<dyn arrow::array::Array> = Arc::new(arrow::array::StringArray::from_iter_values(
        ids.iter().map(|id| format!("{id}{id}{}", id.chars().rev().collect::<String>())),
    ));
    let rows: Vec<Row> = (0..90_000).map(|id| ("a", 1, id)).collect();
    let mut sink = store.sink(LogSource::Ingest);
    let large = batch_with(&rows, vec![("noise", noise)]);
    let at = sink.committed();
    write(&mut sink, delivery(at, large)).expect("taken");
    flush(&mut sink).expect("committed");
    let largest = tidegate_pipeline::History::snapshot(store.as_ref()).files.iter().map(|file| file.bytes).max();
    assert!(largest > Some(6 << 20), "{largest:?}");
    assert!(server.requests() - before >= 5, "create, two parts, complete, manifest");
    commit(&store, &[("a", 1, 1_000_000)]);
    assert!(store.verify().iter().all(|file| file.problem.is_none()), "{:?}", store.verify());
}
