//! A call to the object store that fails, whichever: nothing is lost, doubled or half visible, before and after a restart.

use tidegate_pipeline::History;
use tidegate_sinks::parquet::LogSource;

use crate::bucket_world::{Faulty, Trouble, bucket_ids, check_bucket_life, named, open_bucket};
use crate::parquet_life::{LIFE_ROWS, live};
use crate::parquet_rows::{batch, delivery, flush, write};

/// Calls to the object store, and uploads in parts.
fn calls_of_a_life() -> (u64, u64) {
    let objects = Faulty::default();
    let (store, report) = open_bucket(&objects, "log").expect("opens");
    assert!(report.is_clean(), "{report:?}");
    live(&store, 0).expect("lives");
    check_bucket_life(&objects, &store, "without a fault");
    assert_eq!(store.snapshot().log_cursor, LIFE_ROWS);
    assert_eq!((objects.files(), objects.open_uploads()), (named(&store), 0), "nothing else is left");
    (objects.calls(), objects.begun_uploads())
}

fn troubles(calls: u64, sticky: bool) -> impl Iterator<Item = Trouble> {
    (1..=calls).flat_map(move |nth| [false, true].map(|answer_lost| Trouble { nth, sticky, answer_lost }))
}

#[test]
fn a_death_at_any_call_loses_and_doubles_nothing() {
    let (calls, begun) = calls_of_a_life();
    assert!(calls > 60 && begun > 3, "{calls} calls, {begun} uploads");
    let mut left = 0;
    for trouble in troubles(calls, true) {
        let what = format!("dies at {trouble:?}");
        let objects = Faulty::default();
        objects.trouble(Some(trouble));
        let seen = match open_bucket(&objects, "log") {
            Ok((store, _)) => {
                live(&store, 1).err();
                store.snapshot().log_cursor
            }
            Err(_) => 0,
        };
        objects.trouble(None);
        let (store, report) = open_bucket(&objects, "log").unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.is_clean(), "{what}: {report:?}");
        assert!(store.snapshot().log_cursor >= seen, "{what}: a committed cursor went back");
        check_bucket_life(&objects, &store, &what);
        live(&store, 0).unwrap_or_else(|error| panic!("{what}: {error}"));
        check_bucket_life(&objects, &store, &what);
        assert_eq!(store.snapshot().log_cursor, LIFE_ROWS, "{what}");
        store.sweep().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(objects.files(), named(&store), "{what}: what nobody names is cleared away");
        left += objects.open_uploads();
    }
    // A death between the begin of an upload and its note: in the one call, or in the other.
    assert!(left <= 2 * begun, "{left} uploads are left by deaths at {calls} calls with {begun} uploads");
}

#[test]
fn a_call_that_fails_once_is_made_good_by_trying_again() {
    for trouble in troubles(calls_of_a_life().0, false) {
        let what = format!("{trouble:?}");
        let objects = Faulty::default();
        objects.trouble(Some(trouble));
        let opened = open_bucket(&objects, "log").or_else(|_| open_bucket(&objects, "log"));
        let (store, _) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        live(&store, 2).unwrap_or_else(|error| panic!("{what}: {error}"));
        check_bucket_life(&objects, &store, &what);
        assert_eq!(store.snapshot().log_cursor, LIFE_ROWS, "{what}");
        store.sweep().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(objects.files(), named(&store), "{what}: nothing else is left");
    }
}

#[test]
fn an_object_store_that_is_away_is_asked_before_rows_are_made_into_files_again() {
    let objects = Faulty::default();
    let (store, _) = open_bucket(&objects, "log").expect("opens");
    let mut sink = store.sink(LogSource::Ingest);
    write(&mut sink, delivery(0, batch(&[("a", 1, 0), ("b", 2, 1)]))).expect("taken");
    objects.trouble(Some(Trouble { nth: 1, sticky: true, answer_lost: false }));
    flush(&mut sink).expect_err("it is away");
    for _ in 0..3 {
        let before = objects.calls();
        flush(&mut sink).expect_err("it is away");
        assert_eq!(objects.calls() - before, 1, "it was asked, and no more");
    }
    objects.trouble(None);
    flush(&mut sink).expect("it is back");
    assert_eq!(bucket_ids(objects.inner.as_ref(), &store), [0, 1]);
}
