//! Retention: each tenant's rows leave when their time is over, and no row before.

use std::collections::BTreeMap;

use tidegate_pipeline::History;
use tidegate_pipeline::fs::SimFs;
use tidegate_sinks::parquet::{DatasetDays, ParquetConfig, RetentionConfig};

use crate::parquet_rows::{HOUR, Row, commit, ids, open, small};

const DAY: i64 = 24 * HOUR;

fn days(days: u32) -> DatasetDays {
    DatasetDays { security_events: Some(days), ..DatasetDays::default() }
}

fn policy() -> RetentionConfig {
    let tenants = BTreeMap::from([("short".to_owned(), days(2)), ("ever".to_owned(), days(0))]);
    RetentionConfig { days: days(10), tenants, grace_days: 1, rewrite_bytes_max: u64::MAX }
}

fn rows(org: &'static str, day: i64, count: u64, id: u64) -> Vec<Row> {
    (0..count).map(|at| (org, day * DAY + at as i64, id + at)).collect()
}

#[test]
fn files_of_which_all_is_expired_go_as_a_whole() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    for day in 0..20 {
        commit(&store, &rows("a", day, 2, day as u64 * 10));
    }
    let done = store.retain(15 * DAY, &policy()).expect("retains");
    assert_eq!((done.dropped_files, done.expired_rows, done.rewritten_files), (5, 10, 0));
    assert_eq!(ids(&fs, &store).first(), Some(&50));
    store.sweep().expect("sweeps");
    assert_eq!(fs.files().iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).count(), 15);
    assert_eq!(store.retain(15 * DAY, &policy()).expect("retains").expired_rows, 0, "nothing twice");
    assert_eq!((store.stats().ledger.committed, store.stats().ledger.expired), (40, 10));
}

#[test]
fn a_file_with_live_rows_is_rewritten_without_the_expired_ones_after_the_grace() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    let mut all = rows("short", 0, 2, 0);
    all.extend(rows("long", 0, 2, 10));
    all.extend(rows("ever", 0, 2, 20));
    commit(&store, &all);
    for (now, left, rewritten) in [
        (2 * DAY, 6, 0),
        (3 * DAY, 6, 0),
        (3 * DAY + 1, 4, 1),
        (9 * DAY, 4, 0),
        (11 * DAY + 1, 2, 1),
        (1000 * DAY, 2, 0),
    ] {
        let done = store.retain(now, &policy()).expect("retains");
        assert_eq!((ids(&fs, &store).len(), done.rewritten_files), (left, rewritten), "at {now}");
        assert_eq!(store.snapshot().log_cursor, 6);
    }
    assert_eq!(ids(&fs, &store), [20, 21]);
}

#[test]
fn rewriting_is_bounded_and_goes_on_with_the_next_call() {
    let fs = SimFs::new();
    let (store, _) = open(&fs, small()).expect("opens");
    for part in 0..4 {
        let mut all = rows("short", 0, 2, part * 100);
        all.extend(rows("ever", 0, 2, part * 100 + 50));
        commit(&store, &all);
    }
    let policy = RetentionConfig { rewrite_bytes_max: 1, ..policy() };
    let steps: Vec<_> = (0..5)
        .map(|_| store.retain(100 * DAY, &policy).expect("retains"))
        .map(|done| (done.rewritten_files, done.more))
        .collect();
    assert_eq!(steps, [(1, true), (1, true), (1, true), (1, false), (0, false)]);
    assert_eq!(ids(&fs, &store).len(), 8);
}

#[test]
fn thousands_of_tenants_in_one_file_are_judged_each() {
    let fs = SimFs::new();
    let config = ParquetConfig { file_rows_min: 100_000, tenant_rows_min: 100_000, ..small() };
    let (store, _) = open(&fs, config).expect("opens");
    let names: Vec<&'static str> = (0..300).map(|at| &*format!("t{at:03}").leak()).collect();
    commit(&store, &names.iter().enumerate().map(|(at, org)| (*org, at as i64, at as u64)).collect::<Vec<Row>>());
    assert_eq!(store.snapshot().files.len(), 1);
    let tenants = BTreeMap::from([("t007".to_owned(), days(0)), ("t100".to_owned(), days(0))]);
    let policy = RetentionConfig { tenants, ..policy() };
    assert_eq!(store.retain(100 * DAY, &policy).expect("retains").expired_rows, 298);
    assert_eq!(ids(&fs, &store), [7, 100]);
}
