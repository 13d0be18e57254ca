//! The real file system and the simulated one: the same answers, and the simulated one's ways to fail.

use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_pipeline::fs::{
    DirChange, Fault, Fs, Open, RealFs, SimFs, SimOp, make_dir_durable, read_file, replace_file,
};

/// Both, with a folder to work in and what must outlive it.
fn both() -> Vec<(Arc<dyn Fs>, PathBuf, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let real = folder.path().join("made/here");
    vec![(Arc::new(RealFs), real, Some(folder)), (Arc::new(SimFs::new()), PathBuf::from("/made/here"), None)]
}

fn slices(parts: &[Vec<u8>]) -> Vec<IoSlice<'_>> {
    parts.iter().map(|part| IoSlice::new(part)).collect()
}

#[test]
fn files_are_written_read_renamed_and_removed() {
    for (fs, dir, _folder) in both() {
        make_dir_durable(&*fs, &dir).expect("made");
        make_dir_durable(&*fs, &dir).expect("made twice");
        let (a, b) = (dir.join("a"), dir.join("b"));
        assert_eq!(fs.open(&a, Open::Read).expect_err("not there").kind(), ErrorKind::NotFound);
        let file = fs.open(&a, Open::Create).expect("made");
        assert_eq!(fs.open(&a, Open::Create).expect_err("there").kind(), ErrorKind::AlreadyExists);
        // More slices than one call of the system takes, some of them empty.
        let parts: Vec<Vec<u8>> = (0..3000usize).map(|nth| vec![nth as u8; nth % 4]).collect();
        file.write_all_at(&slices(&parts), 10).expect("written");
        file.write_all_at(&[], 0).expect("nothing written");
        file.sync_data().expect("synced");
        let whole: Vec<u8> = [0; 10].into_iter().chain(parts.concat()).collect();
        assert_eq!(file.size().expect("a size"), whole.len() as u64);
        let mut read = vec![1; whole.len() + 5];
        assert_eq!(file.read_at(&mut read, 0).expect("read"), whole.len(), "short only at the end");
        assert_eq!(&read[..whole.len()], &whole[..]);
        assert_eq!(file.read_at(&mut read, 1 << 40).expect("past the end"), 0);
        file.set_len(4).expect("cut");
        fs.change(DirChange::Rename(&a, &b)).expect("renamed");
        fs.sync_dir(&dir).expect("synced");
        assert_eq!(fs.list(&dir).expect("listed"), std::slice::from_ref(&b));
        let other = fs.open(&b, Open::Write).expect("opened");
        fs.change(DirChange::Remove(&b)).expect("removed");
        assert_eq!(other.size().expect("a handle outlives the name"), 4);
        assert_eq!(fs.change(DirChange::Remove(&b)).expect_err("gone").kind(), ErrorKind::NotFound);
        assert!(fs.free_bytes(&dir).expect("known") > 0);
        replace_file(&*fs, &a, b"one").expect("written");
        replace_file(&*fs, &a, b"two").expect("replaced");
        assert_eq!(read_file(&*fs, &a, 3).expect("read"), b"two");
        assert_eq!(read_file(&*fs, &a, 2).expect_err("too large").kind(), ErrorKind::InvalidData);
    }
}

#[test]
fn a_lock_is_held_once_until_it_is_dropped() {
    for (fs, dir, _folder) in both() {
        make_dir_durable(&*fs, &dir).expect("made");
        let path = dir.join("lock");
        let held = fs.open(&path, Open::Lock).expect("free");
        assert_eq!(fs.open(&path, Open::Lock).expect_err("held").kind(), ErrorKind::WouldBlock);
        drop(held);
        fs.open(&path, Open::Lock).expect("free again");
    }
}

fn file_with(fs: &SimFs, path: &str, bytes: &[u8]) -> Arc<dyn tidegate_pipeline::fs::FsFile> {
    let file = fs.open(Path::new(path), Open::Create).expect("made");
    file.write_all_at(&[IoSlice::new(bytes)], 0).expect("written");
    file
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
    let fs = SimFs::new();
    let synced = file_with(&fs, "/synced", &[1; 9000]);
    synced.sync_data().expect("synced");
    fs.sync_dir(Path::new("/")).expect("synced");
    synced.write_all_at(&[IoSlice::new(&[2; 5000])], 4096).expect("written");
    synced.write_all_at(&[IoSlice::new(&[3; 10])], 20_000).expect("written");
    file_with(&fs, "/unsynced folder", b"x").sync_data().expect("synced");
    fs.change(DirChange::Rename(Path::new("/synced"), Path::new("/renamed"))).expect("renamed");

    let cut = fs.after_crash(0);
    assert_eq!(cut.files(), [PathBuf::from("/synced")], "neither the new name nor the new file is durable");
    assert_eq!(cut.bytes(Path::new("/synced")).expect("there"), [1; 9000]);
    assert_eq!(fs.after_kill().files(), [PathBuf::from("/renamed"), PathBuf::from("/unsynced folder")]);

    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 1..300 {
        let cut = fs.after_crash(seed);
        let names: Vec<_> = cut.files();
        let path = names.iter().find(|path| !path.ends_with("unsynced folder")).expect("a rename loses no file");
        let bytes = cut.bytes(path).expect("there");
        assert_eq!(bytes[..4096], [1; 4096], "a clean page stays");
        assert!(bytes[4096..9000].iter().all(|byte| [1, 2].contains(byte)));
        outcomes.insert((names.len(), path.clone(), bytes));
    }
    assert!(outcomes.len() > 20, "pages and names are lost one by one: {}", outcomes.len());
}

#[test]
fn a_failed_sync_loses_its_pages_for_good_although_they_can_be_read() {
    let fs = SimFs::new();
    let file = file_with(&fs, "/file", &[7; 100]);
    fs.sync_dir(Path::new("/")).expect("synced");
    fs.fail(Fault::eio(SimOp::SyncData, 1));
    assert_eq!(file.sync_data().expect_err("fails").raw_os_error(), Some(5));
    file.sync_data().expect("the next one succeeds");
    assert_eq!(fs.bytes(Path::new("/file")).expect("there"), [7; 100]);
    assert_eq!(fs.after_crash(0).bytes(Path::new("/file")).expect("there"), [0; 100], "and has written nothing");
}

#[test]
fn faults_hit_the_call_they_name() {
    let fs = SimFs::new();
    let file = file_with(&fs, "/file", b"");
    fs.fail(Fault { op: SimOp::Write, nth: 3, errno: 28, sticky: true, short_bytes: 2 });
    file.write_all_at(&[IoSlice::new(b"ab")], 0).expect("the second write");
    for _ in 0..2 {
        let error = file.write_all_at(&[IoSlice::new(b"xyz")], 0).expect_err("fails");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
    assert_eq!(fs.bytes(Path::new("/file")).expect("there"), b"xy", "a part was written");
    fs.heal();
    fs.set_capacity(Some(4));
    let error = file.write_all_at(&[IoSlice::new(b"123456")], 0).expect_err("full");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(fs.bytes(Path::new("/file")).expect("there"), b"1234");
    assert_eq!(fs.free_bytes(Path::new("/")).expect("known"), 0);
    fs.cut_power_after(fs.calls());
    assert!(file.size().is_err() && fs.list(Path::new("/")).is_err());
    fs.crash(0);
    assert!(file.size().is_err(), "a handle does not outlive the power");
    assert!(fs.list(Path::new("/")).is_ok());
}
