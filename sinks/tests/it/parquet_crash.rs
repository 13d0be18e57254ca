//! Power cuts and failing calls at every point of a life of commits, compaction and retention: rows and cursor agree always,
//! and nothing is there twice.

use std::collections::BTreeSet;

use tidegate_pipeline::History;
use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_sinks::parquet::{ParquetConfig, ParquetStore};

use crate::parquet_life::{LIFE_ROWS, check_life, live};
use crate::parquet_rows::{ids, open, small};

fn config() -> ParquetConfig {
    ParquetConfig { settle_hours: u32::MAX, ..small() }
}

fn check(fs: &SimFs, store: &ParquetStore, what: &str) {
    check_life(store, ids(fs, store), what);
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
        assert_eq!(store.snapshot().log_cursor, LIFE_ROWS, "{what}");
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
            assert_eq!(store.snapshot().log_cursor, LIFE_ROWS, "{what}");
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
        assert_eq!(store.snapshot().log_cursor, LIFE_ROWS);
        assert!(refused.is_err() || part > 5, "{part}/20 of the space was enough");
    }
}
