//! Power cuts and failing calls at every point of a life of commits, compaction and retention: rows and cursor agree always,
//! and nothing is there twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::{History, Sink};
use tidegate_sinks::parquet::{DatasetDays, LogSource, ParquetConfig, ParquetStore, RetentionConfig};

use crate::parquet_rows::{HOUR, Row, batch, delivery, flush, ids, open, small, write};

const DAY: i64 = 24 * HOUR;
const COMMITS: u64 = 7;
const COMMIT_ROWS: u64 = 5;

fn config() -> ParquetConfig {
    ParquetConfig { settle_hours: u32::MAX, ..small() }
}

/// Row `id` of the log. Every fifth is of a tenant whose rows expire.
fn row(id: u64) -> Row {
    let org = if id.is_multiple_of(5) { "short" } else { "ever" };
    (org, (id % 3) as i64 * HOUR + id as i64, id)
}

fn policy() -> RetentionConfig {
    let days = |days| DatasetDays { security_events: Some(days), ..DatasetDays::default() };
    RetentionConfig { days: days(0), tenants: [("short".to_owned(), days(1))].into(), ..RetentionConfig::default() }
}

/// One life from where the store stands to the end of the log, with compaction and retention on the way. The first failure
/// ends it, or is tried again `tries` times.
fn live(store: &Arc<ParquetStore>, tries: u32) -> Result<(), String> {
    let again = |step: &dyn Fn() -> Result<(), String>| {
        let mut left = tries;
        loop {
            match step() {
                Err(_) if left > 0 => left -= 1,
                other => return other,
            }
        }
    };
    let mut sink = store.sink(LogSource::Ingest);
    while sink.committed() < COMMITS * COMMIT_ROWS {
        let at = sink.committed();
        let until = (at / COMMIT_ROWS + 1) * COMMIT_ROWS;
        let rows: Vec<Row> = (at..until).map(row).collect();
        let mut left = tries;
        loop {
            let done = write(&mut sink, delivery(at, batch(&rows))).and_then(|()| flush(&mut sink));
            match done {
                Err(_) if left > 0 => left -= 1,
                other => break other.map_err(|error| error.to_string())?,
            }
        }
        if until == 20 || until == 35 {
            again(&|| store.compact_once().map(|_| ()).map_err(|error| error.to_string()))?;
            again(&|| store.sweep().map(|_| ()).map_err(|error| error.to_string()))?;
        }
        if until == 25 {
            again(&|| store.retain(100 * DAY, &policy()).map(|_| ()).map_err(|error| error.to_string()))?;
            again(&|| store.sweep().map(|_| ()).map_err(|error| error.to_string()))?;
        }
    }
    Ok(())
}

/// Every live row below the cursor is there once, none above it, and no expired one twice.
fn check(fs: &SimFs, store: &ParquetStore, what: &str) {
    let cursor = store.snapshot().log_cursor;
    let found = ids(fs, store);
    let once: BTreeSet<u64> = found.iter().copied().collect();
    assert_eq!(found.len(), once.len(), "{what}: a row is there twice: {found:?}");
    assert!(once.iter().all(|id| *id < cursor), "{what}: a row above the cursor {cursor}: {found:?}");
    let missing: Vec<u64> = (0..cursor).filter(|id| !id.is_multiple_of(5) && !once.contains(id)).collect();
    assert!(missing.is_empty(), "{what}: {missing:?} are missing below {cursor}");
    let ledger = store.stats().ledger;
    assert_eq!((ledger.committed, ledger.lost), (cursor, 0), "{what}");
    assert_eq!(ledger.committed - ledger.expired, found.len() as u64, "{what}");
}

fn calls_of_a_life() -> (SimFs, u64) {
    let fs = SimFs::new();
    let (store, _) = open(&fs, config()).expect("opens");
    live(&store, 0).expect("lives");
    check(&fs, &store, "without a fault");
    let calls = fs.calls();
    (fs, calls)
}

#[test]
fn a_power_cut_anywhere_leaves_rows_and_cursor_in_agreement() {
    let (_, calls) = calls_of_a_life();
    assert!(calls > 300, "{calls} calls");
    for cut in 0..calls {
        let what = format!("cut after {cut} of {calls}");
        let fs = SimFs::new();
        fs.cut_power_after(cut);
        let opened = open(&fs, config());
        let seen = match &opened {
            Ok((store, _)) => {
                live(store, 0).err();
                store.snapshot().log_cursor
            }
            Err(_) => 0,
        };
        drop(opened);
        fs.crash(cut % 7);
        let (store, report) = open(&fs, config()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.is_clean(), "{what}: {report:?}");
        assert!(store.snapshot().log_cursor >= seen, "{what}: a committed cursor went back");
        check(&fs, &store, &what);
        live(&store, 0).unwrap_or_else(|error| panic!("{what}: {error}"));
        check(&fs, &store, &what);
        assert_eq!(store.snapshot().log_cursor, COMMITS * COMMIT_ROWS, "{what}");
        let named: BTreeSet<_> = store.snapshot().files.iter().map(|file| file.path.clone()).collect();
        let quarantined = fs.files().iter().filter(|path| path.starts_with("/data/history/quarantine")).count();
        assert_eq!(quarantined, usize::from(false), "{what}");
        assert!(named.iter().all(|path| fs.bytes(path).is_some()), "{what}");
    }
}

#[test]
fn a_call_that_fails_once_is_made_good_by_trying_again() {
    let (fs, _) = calls_of_a_life();
    for op in SimOp::ALL {
        for nth in 1..=fs.count(op) {
            let what = format!("{op:?} number {nth} fails");
            let fs = SimFs::new();
            fs.fail(Fault::eio(op, nth));
            let (store, _) = match open(&fs, config()) {
                Ok(opened) => opened,
                Err(_) => open(&fs, config()).unwrap_or_else(|error| panic!("{what}: {error}")),
            };
            live(&store, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&fs, &store, &what);
            drop(store);
            fs.crash(nth % 5);
            let (store, report) = open(&fs, config()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(report.is_clean(), "{what}: {report:?}");
            check(&fs, &store, &what);
            assert_eq!(store.snapshot().log_cursor, COMMITS * COMMIT_ROWS, "{what}");
        }
    }
}

#[test]
fn a_failure_right_before_a_power_cut_loses_nothing_either() {
    let (fs, _) = calls_of_a_life();
    for op in [SimOp::SyncDir, SimOp::SyncData, SimOp::Rename, SimOp::Write] {
        for nth in 1..=fs.count(op) {
            for seed in 0..3 {
                let what = format!("{op:?} number {nth} fails, then power cut, seed {seed}");
                let fs = SimFs::new();
                fs.fail(Fault { sticky: true, ..Fault::eio(op, nth) });
                let seen = open(&fs, config()).map_or(0, |(store, _)| {
                    live(&store, 1).err();
                    store.snapshot().log_cursor
                });
                fs.crash(seed);
                let (store, report) = open(&fs, config()).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(report.is_clean(), "{what}: {report:?}");
                assert!(store.snapshot().log_cursor >= seen, "{what}");
                check(&fs, &store, &what);
            }
        }
    }
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_space_again() {
    let (full, _) = calls_of_a_life();
    let bytes: u64 = full.files().iter().filter_map(|path| full.bytes(path)).map(|bytes| bytes.len() as u64).sum();
    for part in 1..20 {
        let fs = SimFs::new();
        let (store, _) = open(&fs, config()).expect("opens");
        fs.set_capacity(Some(bytes * part / 20));
        let refused = live(&store, 2);
        check(&fs, &store, &format!("{part}/20 of the space"));
        drop(store);
        let (store, report) = open(&fs, config()).expect("opens on a full disk");
        assert!(report.is_clean(), "{report:?}");
        check(&fs, &store, "opened on a full disk");
        fs.set_capacity(None);
        live(&store, 0).expect("goes on");
        check(&fs, &store, "space again");
        assert_eq!(store.snapshot().log_cursor, COMMITS * COMMIT_ROWS);
        assert!(refused.is_err() || part > 5, "{part}/20 of the space was enough");
    }
}
