//! A client of a log that keeps a ledger: what was asked, what was answered, and what must therefore be in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_pipeline::fs::SimFs;
use tidegate_pipeline::log::{AppendResult, LogConfig, OpenReport, SegmentLog};
use tidegate_pipeline::{Ack, Append, AppendError, AppendReply, PipelineError, StreamLog};

use crate::log_rows::{events, ids};

/// Where the log of the tests is.
pub const DIR: &str = "/data/log";

/// Segments of a few appends and hardly a tail, so that files are rolled and read.
pub fn config() -> LogConfig {
    LogConfig { segment_bytes_max: 8 << 10, tail_bytes_max: 1, dedup_keys_max: 10_000, ..LogConfig::default() }
}

/// Opens the log on `fs`.
pub fn open(fs: &SimFs) -> Result<(SegmentLog, OpenReport), PipelineError> {
    SegmentLog::open(Arc::new(fs.clone()), Path::new(DIR), config())
}

/// The answer; a panic when there is none within 5 s.
pub fn answer(mut reply: AppendReply) -> AppendResult {
    let started = Instant::now();
    loop {
        match reply.try_recv() {
            Ok(answer) => return answer,
            Err(tokio::sync::oneshot::error::TryRecvError::Closed) => return Err(AppendError::Closed),
            Err(_) if started.elapsed() > Duration::from_secs(5) => panic!("no answer within 5 s"),
            Err(_) => std::thread::sleep(Duration::from_micros(20)),
        }
    }
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    /// Ids that must be in the log, with the offset that was told, if one was.
    pub owed: BTreeMap<String, Option<u64>>,
    asked: BTreeSet<String>,
    forgotten_below: u64,
}

impl Ledger {
    /// Appends rows with these ids and writes down the answer.
    pub fn append(&mut self, log: &dyn StreamLog, ids: &[&str], ack: Ack) -> AppendResult {
        let reply = log.append(Append { batches: vec![events("acme", ids)], ack });
        let answer = answer(reply);
        self.note(ids, ack, &answer);
        answer
    }

    /// Writes down the answer to an append of these ids.
    pub fn note(&mut self, ids: &[&str], ack: Ack, answer: &AppendResult) {
        self.asked.extend(ids.iter().map(|id| (*id).to_owned()));
        let Ok(appended) = answer else { return };
        if ack == Ack::Memory {
            return;
        }
        let mut offsets = appended.offsets[0].clone();
        for (row, id) in ids.iter().enumerate() {
            let told = match appended.duplicates.contains(&(0, row)) {
                true => None,
                false => Some(offsets.next().expect("an offset for each stored row")),
            };
            let owed = self.owed.entry((*id).to_owned()).or_default();
            assert!(owed.is_none() || told.is_none(), "{id} was stored twice: at {owed:?} and {told:?}");
            *owed = owed.or(told);
        }
    }

    /// Notes that rows below may be gone.
    pub fn forgot(&mut self, below: u64) {
        self.forgotten_below = self.forgotten_below.max(below);
    }

    /// The log holds what it owes, where it said, once, in order, and nothing that nobody sent.
    pub fn check(&self, log: &dyn StreamLog, context: &str) {
        let bounds = log.bounds();
        let mut stored = BTreeMap::new();
        let mut from = bounds.first;
        while from < bounds.next {
            let batches = log.read(from, 4 << 10).unwrap_or_else(|error| panic!("{context}: {error}"));
            let Some(last) = batches.last() else { break };
            for (offset, id) in ids(&batches) {
                assert!(offset >= from && offset < log.bounds().next, "{context}: {id} at {offset}");
                from = offset + 1;
                let before = stored.insert(id.clone(), offset);
                assert_eq!(before, None, "{context}: {id} is there twice, at {offset} too");
                assert!(self.asked.contains(&id), "{context}: nobody sent {id}");
            }
            assert_eq!(last.next_offset(), from, "{context}");
        }
        for (id, told) in &self.owed {
            match (stored.get(id), told) {
                (Some(at), Some(told)) => assert_eq!(at, told, "{context}: {id} moved"),
                (Some(_), None) => {}
                // The segment of a duplicate may be forgotten while its key is still in the window.
                (None, Some(told)) => assert!(*told < self.forgotten_below, "{context}: {id} at {told} is lost"),
                (None, None) => assert!(self.forgotten_below > 0, "{context}: {id} was a duplicate and is lost"),
            }
        }
        if let Some(told) = self.owed.values().flatten().max() {
            assert!(bounds.next > *told, "{context}: offsets would be used again");
        }
    }
}
