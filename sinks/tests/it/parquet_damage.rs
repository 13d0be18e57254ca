//! Damage at rest: opening never fails, says what it found, and serves what is whole.

use std::path::PathBuf;
use std::sync::Arc;

use tidegate_pipeline::fs::{Fault, SimFs, SimOp};
use tidegate_pipeline::{History, Sink};
use tidegate_sinks::parquet::{LogSource, ParquetConfig, ParquetStore};

use crate::parquet_rows::{Row, batch, commit, contents, delivery, dir, flush, ids, open, small, write};

fn rows(id: u64) -> Vec<Row> {
    (0..4).map(|at| (if at % 2 == 0 { "a" } else { "b" }, (id + at) as i64, id + at)).collect()
}

/// A store with some commits of four rows each.
fn store_with(fs: &SimFs, commits: u64, config: &ParquetConfig) -> Arc<ParquetStore> {
    let (store, _) = open(fs, config.clone()).expect("opens");
    (0..commits).for_each(|at| commit(&store, &rows(at * 4)));
    store
}

fn edits(fs: &SimFs) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "edit")).collect()
}

#[test]
fn a_damaged_file_is_set_aside_and_the_rest_is_served() {
    type Damage = fn(&SimFs, &PathBuf, Vec<u8>);
    let cases: [(&str, Damage, bool); 7] = [
        ("missing", |fs, path, _| fs.lose(path), true),
        ("empty", |fs, path, _| fs.set_bytes(path, Vec::new()), true),
        ("cut", |fs, path, bytes| fs.set_bytes(path, bytes[..bytes.len() - 1].to_vec()), true),
        ("longer", |fs, path, bytes| fs.set_bytes(path, [bytes, vec![0]].concat()), true),
        (
            "zeroed end",
            |fs, path, mut bytes| {
                let end = bytes.len() - 8;
                bytes[end..].fill(0);
                fs.set_bytes(path, bytes);
            },
            true,
        ),
        (
            "huge footer",
            |fs, path, mut bytes| {
                let end = bytes.len() - 8;
                bytes[end..end + 4].fill(0xff);
                fs.set_bytes(path, bytes);
            },
            true,
        ),
        (
            "a flipped bit inside",
            |fs, path, mut bytes| {
                bytes[100] ^= 1;
                fs.set_bytes(path, bytes);
            },
            false,
        ),
    ];
    for (name, damage, found_at_open) in cases {
        let fs = SimFs::new();
        let store = store_with(&fs, 3, &small());
        let path = store.snapshot().files[1].path.clone();
        let bytes = fs.bytes(&path).expect("the file");
        drop(store);
        damage(&fs, &path, bytes);
        let (store, report) = open(&fs, small()).expect("opens");
        if !found_at_open {
            assert!(report.is_clean(), "{name}: a short look does not see it");
            let checks = store.verify();
            assert_eq!(checks.iter().filter(|check| check.problem.is_some()).count(), 1, "{name}: {checks:?}");
            let bad = store.recheck(&path).expect("reads").expect("it is damaged");
            assert_eq!((bad.path, bad.rows), (path.clone(), 4), "{name}");
            assert_eq!(store.recheck(&path).expect("reads"), None, "{name}: only once");
        } else {
            assert_eq!((report.set_aside.len(), report.set_aside[0].rows), (1, 4), "{name}: {report:?}");
        }
        assert_eq!(ids(&fs, &store), [0, 1, 2, 3, 8, 9, 10, 11], "{name}");
        let stats = store.stats();
        assert_eq!((stats.ledger.committed, stats.ledger.lost, stats.log_cursor), (12, 4, 12), "{name}");
        let quarantined = fs.files().iter().filter(|path| path.starts_with(dir().join("quarantine"))).count();
        assert_eq!(quarantined, usize::from(name != "missing"), "{name}");
        store.sweep().expect("sweeps");
        commit(&store, &rows(12));
        drop(store);
        let (store, report) = open(&fs, small()).expect("opens");
        assert!(report.is_clean(), "{name}: said once: {report:?}");
        assert!(store.verify().iter().all(|check| check.problem.is_none() && check.rows_read == check.rows), "{name}");
    }
}

#[test]
fn compaction_and_retention_set_a_damaged_input_aside_and_go_on() {
    let fs = SimFs::new();
    let store = store_with(&fs, 4, &small());
    let path = store.snapshot().files[2].path.clone();
    let mut bytes = fs.bytes(&path).expect("the file");
    let middle = bytes.len() / 3;
    bytes[middle..middle + 200].fill(0xa5);
    fs.set_bytes(&path, bytes);
    let done = store.compact_once().expect("goes on");
    assert_eq!((done.files_in, done.set_aside.len()), (0, 1), "{done:?}");
    assert_eq!(store.compact_once().expect("compacts").files_in, 3);
    assert_eq!(ids(&fs, &store), [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]);
}

#[test]
fn a_file_with_a_bad_sector_is_set_aside_and_neither_compaction_nor_readers_stumble_over_it_again() {
    for by_compaction in [true, false] {
        let fs = SimFs::new();
        let store = store_with(&fs, 4, &small());
        let path = store.snapshot().files[2].path.clone();
        fs.spoil(&path, 600, Some(1));
        if by_compaction {
            let done = store.compact_once().expect("goes on");
            assert_eq!((done.files_in, done.set_aside.len()), (0, 1), "{done:?}");
        } else {
            let bad = store.recheck(&path).expect("reads").expect("it is damaged");
            assert!(bad.reason.contains("cannot be read"), "{bad:?}");
        }
        assert_eq!(store.compact_once().expect("compacts").files_in, 3);
        assert_eq!(ids(&fs, &store), [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]);
    }
}

#[test]
fn a_disk_that_is_gone_for_a_while_is_no_damage() {
    let fs = SimFs::new();
    let store = store_with(&fs, 4, &small());
    let path = store.snapshot().files[2].path.clone();
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Read, fs.count(SimOp::Read) + 1) });
    store.recheck(&path).expect_err("it cannot be read now");
    store.compact_once().expect_err("nor merged");
    fs.heal();
    assert_eq!(store.recheck(&path).expect("reads"), None);
    assert_eq!(store.compact_once().expect("compacts").files_in, 4);
}

/// Opens the store after `damage`, takes up the log from where its cursor stands, and wants every row there once.
fn check_manifest(fs: &SimFs, config: &ParquetConfig, expected: &[u64], what: &str) {
    let (store, report) = open(fs, config.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        report.damaged_edits.len() <= 1 && report.set_aside.is_empty() && report.ledger_agrees,
        "{what}: {report:?}"
    );
    let mut sink = store.sink(LogSource::Ingest);
    let cursor = sink.committed();
    assert!(cursor + 4 >= expected.len() as u64, "{what}: the cursor went back to {cursor}");
    let rest: Vec<Row> = (0..expected.len() as u64).step_by(4).flat_map(rows).skip(cursor as usize).collect();
    write(&mut sink, delivery(cursor, batch(&rest))).expect("taken");
    flush(&mut sink).expect("committed");
    assert_eq!(ids(fs, &store), expected, "{what}");
    drop(store);
    let (store, report) = open(fs, config.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.is_clean(), "{what}: healed: {report:?}");
    assert_eq!(ids(fs, &store), expected, "{what}");
}

#[test]
fn one_damaged_edit_whichever_it_is_loses_no_row() {
    // The last edit is full (4 and 8 are) or not, and compaction is among them.
    for (commits, compacted) in [(3, false), (4, false), (5, true), (7, true)] {
        let config = ParquetConfig { settle_hours: u32::MAX, edits_per_snapshot: 3, ..small() };
        let whole = SimFs::new();
        let store = store_with(&whole, commits, &config);
        if compacted {
            store.compact_once().expect("compacts");
            store.sweep().expect("sweeps");
        }
        drop(store);
        let expected: Vec<u64> = (0..commits * 4).collect();
        for edit in edits(&whole) {
            let bytes = whole.bytes(&edit).expect("an edit");
            let step = (bytes.len() / 24).max(1);
            let name = edit.file_name().expect("a name").to_string_lossy().into_owned();
            for at in (0..bytes.len()).step_by(step).chain(bytes.len() - 3..bytes.len()) {
                let cut = whole.after_crash(0);
                cut.set_bytes(&edit, bytes[..at].to_vec());
                check_manifest(&cut, &config, &expected, &format!("{name} of {commits} commits cut at {at}"));
                let flipped = whole.after_crash(0);
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                flipped.set_bytes(&edit, changed);
                check_manifest(&flipped, &config, &expected, &format!("{name} of {commits} commits flipped at {at}"));
            }
        }
    }
}

#[test]
fn an_edit_whose_cursors_no_log_can_have_come_to_is_not_believed() {
    let config = ParquetConfig { settle_hours: u32::MAX, ..small() };
    let fs = SimFs::new();
    drop(store_with(&fs, 3, &config));
    let last = edits(&fs).pop().expect("an edit");
    let bytes = fs.bytes(&last).expect("its bytes");
    let body = String::from_utf8(bytes).expect("text").split_once('\n').expect("a header").1.to_owned();
    let forged = body.replace(r#""ingest":12"#, &format!(r#""ingest":{}"#, u64::MAX));
    assert_ne!(forged, body);
    let header = format!("tidegate-manifest 1 {:08x} {}\n", crc32c::crc32c(forged.as_bytes()), forged.len());
    fs.set_bytes(&last, [header.into_bytes(), forged.into_bytes()].concat());
    check_manifest(&fs, &config, &(0..12).collect::<Vec<_>>(), "a forged cursor");
}

#[test]
fn a_lost_manifest_deletes_no_file() {
    let fs = SimFs::new();
    drop(store_with(&fs, 3, &small()));
    edits(&fs).iter().for_each(|edit| fs.lose(edit));
    let (store, report) = open(&fs, small()).expect("opens");
    assert_eq!((report.strays_kept, store.cursor(LogSource::Ingest)), (3, 0), "{report:?}");
    assert_eq!(fs.files().iter().filter(|path| path.starts_with(dir().join("quarantine"))).count(), 3);
    commit(&store, &rows(0));
    assert_eq!(contents(&fs, &store).len(), 4);
}

#[test]
fn foreign_files_in_the_folders_do_no_harm() {
    let fs = SimFs::new();
    drop(store_with(&fs, 2, &small()));
    for name in [
        "manifest/x.edit",
        "manifest/00000000000000000009.edit.tmp",
        "alerts/notes.txt",
        "alerts/00000000000000000001.parquet",
    ] {
        fs.set_bytes(&dir().join(name), b"what is this".to_vec());
    }
    let (store, report) = open(&fs, small()).expect("opens");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(ids(&fs, &store).len(), 8);
}
