//! A folder in use is listed, and what was listed is gone when it is opened: retention was faster. Who only looks passes over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_pipeline::fs::{Fault, Fs, SimFs, SimOp};
use tidegate_pipeline::log::format::{FRAMES_START, FrameHeader, FrameKind};
use tidegate_pipeline::log::{SegmentLog, dump, verify};
use tidegate_pipeline::{LogReader, PipelineError, StreamLog};

use crate::log_ledger::{DIR, answer, config, open};
use crate::log_rows::{events, ids, ids_of, one};
use crate::watched_fs::{Watch, WatchedFs};

const ROWS: u64 = 40;

/// Folders list, once it is told to, a segment before all others that is there no more.
#[derive(Debug)]
struct Late(AtomicBool);

impl Watch for Late {
    fn listed(&self, dir: &Path, paths: &mut Vec<PathBuf>) {
        if self.0.load(Ordering::Relaxed) {
            paths.extend(["log", "sum"].map(|end| dir.join(format!("{:020}.{end}", 0))));
        }
    }
}

fn late(fs: &SimFs, late: bool) -> WatchedFs<Late> {
    WatchedFs { fs: fs.clone(), watch: Late(AtomicBool::new(late)) }
}

/// A closed log of several segments, of which the first is forgotten.
fn shortened() -> (SimFs, u64) {
    let fs = SimFs::new();
    let (log, _) = open(&fs).expect("a log");
    for row in 0..ROWS {
        answer(log.append(one(events("a", &[&row.to_string()])))).expect("stored");
    }
    log.forget(ROWS / 2).expect("forgotten");
    let first = log.bounds().first;
    assert!(first > 0);
    drop(log);
    fs.lose(&Path::new(DIR).join(format!("{:020}.sum", 0)));
    (fs, first)
}

fn dumped(fs: &dyn Fs) -> Result<Vec<u64>, PipelineError> {
    let mut rows = Vec::new();
    let mut take = |batch: &_| rows.extend(ids_of(batch).into_iter().map(|(offset, _)| offset));
    dump(fs, Path::new(DIR), 0, u64::MAX, &mut take)?;
    Ok(rows)
}

#[test]
fn a_look_at_a_log_in_use_passes_over_a_segment_that_is_forgotten_meanwhile() {
    let (fs, first) = shortened();
    let reports = verify(&fs, Path::new(DIR)).expect("reports");
    let late = late(&fs, true);
    assert_eq!(verify(&late, Path::new(DIR)).expect("reports"), reports);
    assert_eq!(dumped(&late).expect("dumped"), (first..ROWS).collect::<Vec<_>>());
    // What is there and cannot be opened is another matter.
    fs.fail(Fault { sticky: true, ..Fault::eio(SimOp::Open, 1) });
    verify(&late, Path::new(DIR)).expect_err("the disk is gone");
    dumped(&late).expect_err("the disk is gone");
}

/// Flips a bit in the payload of every schema frame of a segment.
fn lose_schemas(fs: &SimFs, path: &Path) {
    let mut bytes = fs.bytes(path).expect("bytes");
    let mut at = FRAMES_START as usize;
    while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
        if header.kind == FrameKind::Schema {
            bytes[at + 64 + 20] ^= 1;
        }
        at += header.frame_len() as usize;
    }
    fs.set_bytes(path, bytes);
}

#[test]
fn a_schema_is_looked_for_past_a_segment_that_is_forgotten_meanwhile() {
    let (fs, first) = shortened();
    let segments: Vec<_> =
        fs.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "log")).collect();
    lose_schemas(&fs, &segments[0]);
    let late = Arc::new(late(&fs, false));
    let (log, report) = SegmentLog::open(late.clone(), Path::new(DIR), config()).expect("a log");
    assert_eq!((report.scanned, report.first), (0, first), "by its summaries: {report:?}");
    late.watch.0.store(true, Ordering::Relaxed);
    fs.fail(Fault::eio(SimOp::List, fs.count(SimOp::List) + 1));
    log.read(first, usize::MAX).expect_err("which other segments there are is not known now");
    let rows = ids(&log.read(first, usize::MAX).expect("readable"));
    let offsets: Vec<_> = rows.into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(offsets, (first..ROWS).collect::<Vec<_>>(), "with the schema of another segment");
}
