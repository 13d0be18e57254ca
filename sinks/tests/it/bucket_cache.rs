//! The cache of reads: fetched once, within its bound, never wrong.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use proptest::prelude::*;
use tidegate_sinks::parquet::{BlockCache, CachedReads};

use crate::bucket_world::{Faulty, Trouble};
use crate::parquet_rows::{runtime, wait};

const BLOCK: u64 = 512 << 10;

fn cached(objects: &Faulty, folder: &Path, bytes_max: u64) -> CachedReads {
    let cache = BlockCache::open(folder, "mem://tests", bytes_max).expect("a cache");
    CachedReads::new(std::sync::Arc::new(objects.clone()), cache, runtime().handle().clone())
}

/// An object of so many bytes, no two blocks alike.
fn put(objects: &Faulty, name: &str, bytes: u64) -> (Key, Bytes) {
    let content: Vec<u8> = (0..bytes).map(|at| (at / 7 + at / BLOCK + name.len() as u64) as u8).collect();
    let (key, content) = (Key::from(name), Bytes::from(content));
    wait(objects.inner.put(&key, PutPayload::from(content.clone()))).expect("put");
    (key, content)
}

fn bytes_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("a folder");
    files.map(|entry| entry.expect("an entry").metadata().expect("metadata").len()).sum()
}

fn read(store: &CachedReads, key: &Key, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
    wait(store.get_ranges(key, ranges))
}

#[test]
fn what_was_read_once_needs_no_request_not_even_after_a_restart() {
    let (objects, folder) = (Faulty::default(), tempfile::tempdir().expect("a folder"));
    let (key, content) = put(&objects, "a", 3 * BLOCK + 100);
    let ranges = [10..20, BLOCK - 5..BLOCK + 5, 0..content.len() as u64, 3 * BLOCK + 50..3 * BLOCK + 100, 7..7];
    let wanted: Vec<Bytes> =
        ranges.iter().map(|range| content.slice(range.start as usize..range.end as usize)).collect();
    let store = cached(&objects, folder.path(), 1 << 30);
    assert_eq!(read(&store, &key, &ranges).expect("read"), wanted);
    assert_eq!(objects.calls(), 1, "neighbours are fetched with one request");
    assert_eq!(read(&store, &key, &ranges).expect("read"), wanted);
    let again = cached(&objects, folder.path(), 1 << 30);
    assert_eq!(read(&again, &key, &ranges).expect("read"), wanted);
    assert_eq!(wait(again.get_range(&key, 10..20)).expect("read"), content.slice(10..20));
    assert_eq!(objects.calls(), 1);
    assert!(read(&again, &key, std::slice::from_ref(&(0..content.len() as u64 + 1))).is_err(), "past the end");
}

#[test]
fn readers_of_the_same_fetch_it_once() {
    let (objects, folder) = (Faulty::default(), tempfile::tempdir().expect("a folder"));
    let (key, content) = put(&objects, "a", 2 * BLOCK);
    let store = cached(&objects, folder.path(), 1 << 30);
    let reads = (0..50).map(|_| store.get_ranges(&key, std::slice::from_ref(&(0..2 * BLOCK))));
    // `join_all` asks all before it waits for one.
    for found in wait(futures::future::join_all(reads)) {
        assert_eq!(found.expect("read"), std::slice::from_ref(&content));
    }
    assert!(objects.calls() <= 2, "{} requests", objects.calls());
}

#[test]
fn the_bound_holds_and_what_was_not_used_for_longest_goes_first() {
    let (objects, folder) = (Faulty::default(), tempfile::tempdir().expect("a folder"));
    let files: Vec<(Key, Bytes)> = (0..6).map(|nth| put(&objects, &format!("file-{nth}"), BLOCK)).collect();
    let bytes_max = 3 * (BLOCK + 4);
    let store = cached(&objects, folder.path(), bytes_max);
    let mut read_whole = |nth: usize| {
        let before = objects.calls();
        let (key, content) = &files[nth];
        assert_eq!(read(&store, key, std::slice::from_ref(&(0..BLOCK))).expect("read"), std::slice::from_ref(content));
        assert!(bytes_of(folder.path()) <= bytes_max, "{}", bytes_of(folder.path()));
        objects.calls() - before
    };
    let fetched: Vec<u64> = [0, 1, 2, 0, 3, 0, 1, 2].into_iter().map(&mut read_whole).collect();
    assert_eq!(fetched, [1, 1, 1, 0, 1, 0, 1, 1]);
    let smaller = cached(&objects, folder.path(), BLOCK + 4);
    assert!(bytes_of(folder.path()) <= BLOCK + 4, "a smaller bound holds at once");
    drop(smaller);
}

#[test]
fn damaged_blocks_are_dropped_and_fetched_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let objects = Faulty::default();
    let (key, content) = put(&objects, "a", BLOCK);
    let whole = std::slice::from_ref(&(0..BLOCK)).to_vec();
    read(&cached(&objects, folder.path(), 1 << 30), &key, &whole).expect("read");
    let block = std::fs::read_dir(folder.path()).expect("a folder").next().expect("a block").expect("an entry").path();
    let good = std::fs::read(&block).expect("bytes");
    let mut flipped = good.clone();
    flipped[1000] ^= 1;
    for (nth, bad) in [flipped, good[..good.len() - 9].to_vec(), Vec::new(), vec![0; 3]].into_iter().enumerate() {
        std::fs::write(&block, bad).expect("written");
        let store = cached(&objects, folder.path(), 1 << 30);
        assert_eq!(read(&store, &key, &whole).expect("read"), std::slice::from_ref(&content), "damage {nth}");
        assert_eq!(objects.calls(), nth as u64 + 2, "it was fetched again");
        assert_eq!(std::fs::read(&block).expect("bytes"), good, "and kept");
    }
}

#[test]
fn a_failed_fetch_is_told_to_all_and_tried_anew_by_the_next() {
    let (objects, folder) = (Faulty::default(), tempfile::tempdir().expect("a folder"));
    let (key, content) = put(&objects, "a", 100);
    let store = cached(&objects, folder.path(), 1 << 30);
    objects.trouble(Some(Trouble { nth: 1, sticky: false, answer_lost: false }));
    assert!(read(&store, &key, std::slice::from_ref(&(0..100))).is_err());
    assert_eq!(read(&store, &key, std::slice::from_ref(&(0..100))).expect("read"), [content]);
    let missing = read(&store, &Key::from("none"), std::slice::from_ref(&(0..1)));
    assert!(matches!(missing, Err(object_store::Error::NotFound { .. })), "{missing:?}");
}

#[test]
fn a_folder_that_cannot_be_written_only_misses() {
    let (objects, folder) = (Faulty::default(), tempfile::tempdir().expect("a folder"));
    let (key, content) = put(&objects, "a", 100);
    let store = cached(&objects, folder.path(), 1 << 30);
    std::fs::remove_dir(folder.path()).expect("removed");
    for _ in 0..2 {
        assert_eq!(read(&store, &key, std::slice::from_ref(&(0..100))).expect("read"), std::slice::from_ref(&content));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_ranges_in_any_order_are_right(
        ranges in prop::collection::vec((0u64..2 * BLOCK + 9, 0u64..BLOCK * 2), 1..12),
        blocks_max in 0u64..4,
    ) {
        let (objects, folder) = (Faulty::default(), tempfile::tempdir().expect("a folder"));
        let (key, content) = put(&objects, "a", 2 * BLOCK + 9);
        let store = cached(&objects, folder.path(), blocks_max * BLOCK);
        let len = content.len() as u64;
        let ranges: Vec<Range<u64>> = ranges.into_iter().map(|(from, count)| from..(from + count).min(len)).collect();
        for some in ranges.chunks(3) {
            let wanted: Vec<Bytes> = some.iter().map(|range| content.slice(range.start as usize..range.end as usize)).collect();
            prop_assert_eq!(read(&store, &key, some).expect("read"), wanted);
            prop_assert!(bytes_of(folder.path()) <= blocks_max * BLOCK);
        }
    }
}
