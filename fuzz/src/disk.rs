//! Files that come back from the disk: a segment of the log, an edit of the store's manifest. As they are, and with their
//! checksums put right, so that what lies behind the checksum is reached too.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use tidegate_events::Dataset;
use tidegate_pipeline::fs::{DirChange, Fs, SimFs};
use tidegate_pipeline::log::format::{
    ALIGN, FRAME_HEADER_LEN, FRAME_MAGIC, FRAMES_START, FrameHeader, OFFSET_MAX, SegmentHeader,
};
use tidegate_pipeline::log::{AppendResult, LogConfig, SegmentLog, dump, verify};
use tidegate_pipeline::{
    Append, AppendError, AppendReply, Delivery, EventBatch, History, LogBatch, LogReader, Sink, StreamLog,
};
use tidegate_sinks::parquet::{LogSource, ParquetConfig, ParquetStore};
use tokio::runtime::{Builder, Runtime};

use crate::rows::{batch, ids};

const LOG_DIR: &str = "/data/log";
const STORE_DIR: &str = "/data/history";
const MANIFEST_MAGIC: &str = "tidegate-manifest 1";

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

fn segment(first: u64) -> PathBuf {
    Path::new(LOG_DIR).join(format!("{first:020}.log"))
}

fn edit(number: u64) -> PathBuf {
    Path::new(STORE_DIR).join("manifest").join(format!("{number:020}.edit"))
}

fn open_log(fs: &SimFs) -> SegmentLog {
    open_log_of(fs, LogConfig::default().segment_bytes_max)
}

fn open_log_of(fs: &SimFs, segment_bytes_max: u64) -> SegmentLog {
    let config = LogConfig { dedup_keys_max: 1000, tail_bytes_max: 1, segment_bytes_max, ..LogConfig::default() };
    let opened = SegmentLog::open(Arc::new(fs.clone()), Path::new(LOG_DIR), config);
    opened.expect("opening a log never fails for what its files hold").0
}

fn answer(reply: AppendReply) -> AppendResult {
    RUNTIME.block_on(reply).expect("the writer lives")
}

fn append(log: &SegmentLog, id: &str) -> AppendResult {
    let batch = EventBatch { dataset: Dataset::SecurityEvents, rows: batch(&[id]), keys: Vec::new() };
    answer(log.append(Append { batches: vec![batch], ..Append::default() }))
}

/// Every id that can be read, in order.
fn readable(log: &SegmentLog) -> Vec<String> {
    let bounds = log.bounds();
    let mut all = Vec::new();
    let mut from = bounds.first;
    while from < bounds.next {
        let batches = log.read(from, usize::MAX).expect("reading never fails for damage");
        let Some(last) = batches.last() else { break };
        assert!(last.next_offset() > from, "reading goes on");
        from = last.next_offset();
        all.extend(batches.iter().flat_map(|batch| ids(&batch.rows)));
    }
    all
}

/// Opens a log with this segment as its first file: an event that is appended then is stored, a second start finds the same
/// rows and it, and the looks from outside end.
fn check_log(bytes: &[u8]) {
    let fs = SimFs::new();
    fs.change(DirChange::MakeDir(Path::new(LOG_DIR))).expect("a folder");
    fs.set_bytes(&segment(0), bytes.to_vec());
    look(&fs);
    let log = open_log(&fs);
    let mut rows = readable(&log);
    log.changes_from(log.bounds().first).expect("reading never fails for damage");
    match append(&log, "neighbour") {
        Ok(_) => rows.push("neighbour".to_owned()),
        Err(AppendError::Full(_)) if uses_up_offsets(bytes) => {}
        Err(error) => panic!("a log with damage takes events: {error}"),
    }
    drop(log);
    let again = readable(&open_log(&fs));
    assert_eq!(again.last(), rows.last(), "what was appended is there");
    if !has_schemas_of_one_id(bytes) {
        assert_eq!(again, rows, "a second start finds the same");
    }
    look(&fs);
}

/// Whether a frame says that there are about as many rows as a log may have.
fn uses_up_offsets(bytes: &[u8]) -> bool {
    let frames = (FRAMES_START as usize..bytes.len()).step_by(ALIGN as usize);
    let mut headers = frames.filter_map(|at| FrameHeader::decode(&bytes[at..]));
    headers.any(|header| header.next() > OFFSET_MAX - bytes.len() as u64)
}

/// Whether schemas that differ have one id. Then it may depend on which of them is met first what can be read; the id is a hash
/// of the schema with a secret, so that only a forger gets there.
fn has_schemas_of_one_id(bytes: &[u8]) -> bool {
    let mut known: HashMap<&[u8], &[u8]> = HashMap::new();
    let frames = (FRAMES_START as usize..bytes.len()).step_by(ALIGN as usize).filter_map(|at| bytes.get(at..));
    let schemas =
        frames.filter(|frame| frame.starts_with(&FRAME_MAGIC) && frame.get(16) == Some(&1)).filter_map(|frame| {
            let len = u32::from_le_bytes(frame.get(8..12)?.try_into().ok()?) as usize;
            Some((frame.get(24..32)?, frame.get(FRAME_HEADER_LEN..)?.get(..len)?))
        });
    schemas.filter(|(id, schema)| *known.entry(id).or_insert(schema) != *schema).count() > 0
}

fn look(fs: &SimFs) {
    let reports = verify(fs, Path::new(LOG_DIR)).expect("verifying never fails for damage");
    assert!(!reports.is_empty());
    let mut offset = 0;
    let mut ordered = |batch: &LogBatch| {
        assert!(batch.offset >= offset, "rows come in order");
        offset = batch.next_offset();
    };
    dump(fs, Path::new(LOG_DIR), 0, u64::MAX, &mut ordered).expect("dumping never fails for damage");
}

/// The segment with its header put right, and the checksums and salts of whatever looks like a frame.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let salt = 7u64.to_le_bytes();
    let mut fixed = bytes.to_vec();
    let header = SegmentHeader { first: 0, sealed_at: 0, salt: 7, made_us: 1 }.encode();
    fixed.resize(fixed.len().max(header.len()), 0);
    fixed[..header.len()].copy_from_slice(&header);
    let mut at = FRAMES_START as usize;
    while let Some(frame) = fixed.get_mut(at..).filter(|rest| rest.len() >= FRAME_HEADER_LEN) {
        if frame.starts_with(&FRAME_MAGIC) {
            frame[48..56].copy_from_slice(&salt);
            let len = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]) as usize;
            if let Some(payload) = frame[FRAME_HEADER_LEN..].get(..len) {
                let crc = crc32c::crc32c(payload);
                frame[12..16].copy_from_slice(&crc.to_le_bytes());
            }
            let crc = crc32c::crc32c(&frame[8..FRAME_HEADER_LEN]);
            frame[4..8].copy_from_slice(&crc.to_le_bytes());
        }
        at += ALIGN as usize;
    }
    fixed
}

/// A segment file.
pub fn log_segment(bytes: &[u8]) {
    check_log(bytes);
    let fixed = with_checksums(bytes);
    if fixed != bytes {
        check_log(&fixed);
    }
}

/// A log of some segments with their summaries, and its rows.
static LOG: LazyLock<(SimFs, Vec<String>)> = LazyLock::new(|| {
    let fs = SimFs::new();
    let log = open_log_of(&fs, 4096);
    let ids: Vec<String> = (0..9).map(|at| format!("id {at}")).collect();
    ids.iter().for_each(|id| drop(append(&log, id).expect("a healthy log takes events")));
    log.close();
    drop(log);
    (fs, ids)
});

fn summaries(fs: &SimFs) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "sum")).collect()
}

/// The summary of a segment. Without its checksums it costs no row; with them, it may say what it likes, but opening and
/// reading go on.
pub fn log_summary(bytes: &[u8]) {
    let (whole, rows) = &*LOG;
    let mut forged = bytes.to_vec();
    if let Some((head, rest)) = forged.split_at_mut_checked(32) {
        let meta = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let (meta, keys) = rest.split_at(meta.min(rest.len()));
        head[12..16].copy_from_slice(&crc32c::crc32c(meta).to_le_bytes());
        head[16..20].copy_from_slice(&crc32c::crc32c(keys).to_le_bytes());
        head[24..32].copy_from_slice(&(keys.len() as u64 / 16).to_le_bytes());
    }
    for path in summaries(whole) {
        if forged != bytes {
            let fs = whole.after_kill();
            fs.set_bytes(&path, bytes.to_vec());
            let log = open_log(&fs);
            assert_eq!(&readable(&log), rows, "a damaged summary costs no row");
            append(&log, "neighbour").expect("the log takes events");
        }
        let fs = whole.after_kill();
        fs.set_bytes(&path, forged.clone());
        let log = open_log(&fs);
        _ = (readable(&log), log.changes_from(log.bounds().first), append(&log, "neighbour"));
        look(&fs);
    }
}

fn open_store(fs: &SimFs) -> Arc<ParquetStore> {
    let config = ParquetConfig { edits_per_snapshot: 3, ..ParquetConfig::default() };
    let opened = ParquetStore::open(Arc::new(fs.clone()), Path::new(STORE_DIR), config);
    opened.expect("opening a store never fails for damage").0
}

fn commit(store: &Arc<ParquetStore>, id: &str) -> Result<(), tidegate_pipeline::SinkError> {
    let mut sink = store.sink(LogSource::Ingest);
    let offset = sink.committed();
    let batch = LogBatch { offset, dataset: Dataset::SecurityEvents, rows: batch(&[id]) };
    let delivery = Delivery { next_offset: offset.saturating_add(1), batches: vec![Arc::new(batch)] };
    RUNTIME.block_on(async {
        sink.write(delivery).await?;
        sink.flush().await
    })
}

/// A store of two commits.
static STORE: LazyLock<SimFs> = LazyLock::new(|| {
    let fs = SimFs::new();
    let store = open_store(&fs);
    ["one", "two"].iter().for_each(|id| commit(&store, id).expect("a healthy store takes rows"));
    fs
});

fn rows(store: &ParquetStore) -> u64 {
    store.snapshot().files.iter().fold(0, |sum, file| sum.saturating_add(file.rows))
}

fn last_edit(fs: &SimFs) -> u64 {
    (1..).take_while(|number| fs.bytes(&edit(*number)).is_some()).last().unwrap_or(0)
}

/// An edit of the manifest: the newest one, and the only one. What has no right checksum costs no row that was there.
pub fn parquet_manifest(bytes: &[u8]) {
    let last = last_edit(&STORE);
    let newest = STORE.after_kill();
    newest.set_bytes(&edit(last + 1), bytes.to_vec());
    let store = open_store(&newest);
    if !bytes.starts_with(MANIFEST_MAGIC.as_bytes()) {
        assert_eq!(rows(&store), 2, "what is no edit takes nothing away");
        commit(&store, "neighbour").expect("the store takes rows");
        drop(store);
        assert_eq!(rows(&open_store(&newest)), 3, "and has them after a second start");
    }
    let text = bytes.iter().position(|byte| *byte == b'\n').and_then(|end| bytes.get(end + 1..)).unwrap_or(bytes);
    let mut forged = format!("{MANIFEST_MAGIC} {:08x} {}\n", crc32c::crc32c(text), text.len()).into_bytes();
    forged.extend_from_slice(text);
    for (fs, number) in [(STORE.after_kill(), last + 1), (STORE.after_kill(), last), (SimFs::new(), 1)] {
        fs.set_bytes(&edit(number), forged.clone());
        let store = open_store(&fs);
        _ = (rows(&store), store.stats(), store.verify());
        // A forged state may leave no numbers for new files: it is enough that this is an error.
        _ = (commit(&store, "neighbour"), store.compact_once(), store.sweep());
        drop(store);
        open_store(&fs);
    }
}

/// Seeds: the only segment of a log, the first summary of one, and the edits of a store.
pub fn seeds_of_disk() -> (Vec<u8>, Vec<u8>, Vec<Vec<u8>>) {
    let fs = SimFs::new();
    let log = open_log(&fs);
    ["one", "two", "three"].iter().for_each(|id| drop(append(&log, id).expect("a healthy log takes events")));
    log.close();
    let edits = (1..=last_edit(&STORE)).filter_map(|number| STORE.bytes(&edit(number)));
    let summary = summaries(&LOG.0).first().and_then(|path| LOG.0.bytes(path));
    (fs.bytes(&segment(0)).unwrap_or_default(), summary.unwrap_or_default(), edits.collect())
}
