//! Two writers under one prefix, readers in other processes, and what is found that does not belong there.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tidegate_pipeline::{History, Sink, SinkError};
use tidegate_sinks::SinksError;
use tidegate_sinks::parquet::{Bucket, BucketParts, LogSource, ParquetStore};

use crate::bucket_world::{Faulty, bucket_ids, check_bucket_life, config, named, open_bucket, parts, writer};
use crate::parquet_life::{LIFE_ROWS, live};
use crate::parquet_rows::{batch, commit, delivery, flush, wait, write};

#[test]
fn the_later_writer_goes_on_and_the_earlier_one_says_so_and_stops() {
    let objects = Faulty::default();
    let (first, _) = open_bucket(&objects, "log").expect("opens");
    commit(&first, &[("a", 1, 0), ("a", 2, 1)]);
    let (second, report) = open_bucket(&objects, "log").expect("opens");
    assert!(report.is_clean(), "{report:?}");
    let mut late = first.sink(LogSource::Ingest);
    write(&mut late, delivery(2, batch(&[("a", 3, 2)]))).expect("taken");
    let Err(SinkError::Retryable(told)) = flush(&mut late) else { panic!("refused") };
    assert!(told.contains("taken over by host of log") && told.contains("mem://tests/team"), "{told}");
    assert_eq!(late.committed(), 2);
    for nth in 2..6 {
        commit(&second, &[("a", 3, nth)]);
    }
    for refused in
        [first.compact_once().map(drop), first.sweep().map(drop), first.retain(0, &Default::default()).map(drop)]
    {
        assert!(matches!(refused, Ok(()) | Err(SinksError::Replaced { .. })), "{refused:?}");
    }
    assert!(matches!(first.compact_once(), Err(SinksError::Replaced { .. })));
    assert_eq!(bucket_ids(objects.inner.as_ref(), &second), [0, 1, 2, 3, 4, 5]);
    assert_eq!(objects.files(), named(&second), "the refused files are gone");
    // Started again, it is the later one.
    let (third, _) = open_bucket(&objects, "log").expect("opens");
    commit(&third, &[("a", 3, 6)]);
    assert_eq!(bucket_ids(objects.inner.as_ref(), &third), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn writers_that_race_never_clash() {
    let objects = Faulty::default();
    open_bucket(&objects, "log").expect("opens");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..6 {
                    // Refused at the start, or replaced on the way, or done.
                    if let Ok((store, _)) = open_bucket(&objects, "log") {
                        live(&store, 0).ok();
                        store.sweep().ok();
                    }
                }
            });
        }
    });
    let (store, report) = open_bucket(&objects, "log").expect("opens");
    assert!(report.is_clean(), "{report:?}");
    check_bucket_life(&objects, &store, "after the race");
    live(&store, 0).expect("lives");
    check_bucket_life(&objects, &store, "at the end");
    assert_eq!(store.snapshot().log_cursor, LIFE_ROWS);
    store.sweep().expect("sweeps");
    assert_eq!(objects.files(), named(&store));
}

#[test]
fn the_rows_of_another_log_are_refused_unless_the_own_one_is_empty() {
    let objects = Faulty::default();
    let (store, _) = open_bucket(&objects, "theirs").expect("opens");
    commit(&store, &[("a", 1, 0)]);
    let Err(error) = open_bucket(&objects, "ours") else { panic!("refused") };
    let told = error.to_string();
    assert!(matches!(error, SinksError::Foreign { .. }) && told.contains("host of theirs"), "{told}");
    commit(&store, &[("a", 1, 1)]);
    let empty = BucketParts { log_is_empty: true, ..parts(&objects, "ours") };
    let (ours, _) = ParquetStore::open_bucket(Bucket::new(empty), config()).expect("goes on");
    assert_eq!(ours.cursor(LogSource::Ingest), 2);
    commit(&ours, &[("a", 1, 2)]);
    assert_eq!(bucket_ids(objects.inner.as_ref(), &ours), [0, 1, 2]);
    assert!(matches!(open_bucket(&objects, "theirs"), Err(SinksError::Foreign { .. })), "they have rows of their own");
}

#[test]
fn files_stay_for_the_readers_of_this_process_and_for_a_time_for_others() {
    let objects = Faulty::default();
    let patient = BucketParts { reader_grace: Duration::from_secs(3600), ..parts(&objects, "log") };
    let (store, _) = ParquetStore::open_bucket(Bucket::new(patient), config()).expect("opens");
    live(&store, 0).expect("lives");
    assert!(objects.files().len() > named(&store).len(), "others may read what was merged");
    assert_eq!(store.sweep().expect("sweeps"), 0);
    drop(store);
    let (store, _) = open_bucket(&objects, "log").expect("opens");
    let held = store.snapshot();
    store.sweep().expect("sweeps");
    assert_eq!(objects.files(), named(&store), "the grace of this one is over at once");
    for nth in LIFE_ROWS..LIFE_ROWS + 4 {
        commit(&store, &[("ever", 1, nth)]);
    }
    while store.compact_once().expect("compacts").files_in > 0 {}
    store.sweep().expect("sweeps");
    for file in &held.files {
        let key = Key::from(&file.path.to_str().expect("a path")[1..]);
        wait(objects.inner.head(&key)).expect("it is held");
    }
    drop(held);
    store.sweep().expect("sweeps");
    assert_eq!(objects.files(), named(&store));
    check_bucket_life(&objects, &store, "after the readers");
}

#[test]
fn files_without_a_manifest_are_kept_aside() {
    let objects = Faulty::default();
    let (store, _) = open_bucket(&objects, "log").expect("opens");
    commit(&store, &[("a", 1, 0)]);
    drop(store);
    for key in objects.keys().iter().filter(|key| key.contains("/manifest/")) {
        wait(objects.inner.delete(&Key::from(key.as_str()))).expect("deleted");
    }
    let (store, report) = open_bucket(&objects, "log").expect("opens");
    assert_eq!((report.strays_kept, store.cursor(LogSource::Ingest)), (1, 0));
    assert!(objects.keys().iter().any(|key| key.starts_with("team/quarantine/")), "{:?}", objects.keys());
}

#[test]
fn what_others_put_under_the_prefix_stays() {
    let objects = Faulty::default();
    for key in ["team/security_events/mine.parquet", "team/manifest/readme.txt", "team/uploads/x", "other/a.parquet"] {
        wait(objects.inner.put(&Key::from(key), PutPayload::from("theirs"))).expect("put");
    }
    let theirs = objects.keys();
    let (store, report) = open_bucket(&objects, "log").expect("opens");
    assert!(report.is_clean() && report.strays_removed == 0, "{report:?}");
    live(&store, 0).expect("lives");
    let (store, _) = open_bucket(&objects, "log").expect("opens");
    store.sweep().expect("sweeps");
    assert!(objects.keys().is_superset(&theirs), "{:?}", objects.keys());
}

#[test]
fn a_replaced_writer_hides_nothing_from_its_readers() {
    let objects = Faulty::default();
    let (first, _) = open_bucket(&objects, "log").expect("opens");
    live(&first, 0).expect("lives");
    let snapshot = first.snapshot();
    let (second, _) = open_bucket(&objects, "log").expect("opens");
    for nth in LIFE_ROWS..LIFE_ROWS + 6 {
        commit(&second, &[("ever", 1, nth)]);
    }
    while second.compact_once().expect("compacts").files_in > 0 {}
    second.sweep().expect("sweeps");
    let gone = snapshot.files.iter().filter(|file| first.suspect(file)).count();
    assert_eq!((gone, first.snapshot().files.len()), (0, snapshot.files.len()), "a query fails rather than miss rows");
    check_bucket_life(&objects, &second, "the second one");
}

#[test]
fn a_file_that_is_gone_is_told_and_the_rest_served() {
    let objects = Faulty::default();
    let (store, _) = open_bucket(&objects, "log").expect("opens");
    commit(&store, &[("a", 1, 0)]);
    commit(&store, &[("a", 1, 1)]);
    drop(store);
    let gone = objects.files().into_iter().next().expect("a file");
    wait(objects.inner.delete(&Key::from(gone.as_str()))).expect("deleted");
    let (store, report) = open_bucket(&objects, "log").expect("opens");
    assert_eq!((report.set_aside.len(), report.set_aside[0].reason.as_str()), (1, "it is missing"));
    assert_eq!(bucket_ids(objects.inner.as_ref(), &store), [1]);
    assert_eq!(store.stats().ledger.lost, 1);
}

/// An object store that puts what it is told to, whatever is there.
#[derive(Debug)]
struct Careless(Faulty);

impl std::fmt::Display for Careless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("careless memory")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        _options: object_store::PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        self.0.put_opts(key, payload, object_store::PutOptions::default()).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.0.put_multipart_opts(key, options).await
    }

    async fn get_opts(
        &self,
        key: &Key,
        options: object_store::GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        self.0.get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: futures::stream::BoxStream<'static, object_store::Result<Key>>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<Key>> {
        self.0.delete_stream(keys)
    }

    fn list(
        &self,
        prefix: Option<&Key>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<object_store::ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: object_store::CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[test]
fn an_object_store_that_ignores_put_if_absent_is_refused() {
    let objects = Faulty::default();
    let careless: Arc<dyn ObjectStore> = Arc::new(Careless(objects.clone()));
    let parts = BucketParts { store: careless, writer: writer("log"), ..parts(&objects, "log") };
    let Err(error) = ParquetStore::open_bucket(Bucket::new(parts), config()) else { panic!("refused") };
    assert!(error.to_string().contains("If-None-Match"), "{error}");
}
