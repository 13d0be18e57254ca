//! Cuts records into the bodies of requests. Where the cuts fall depends on the input and the bounds alone, so that a second
//! run over the same file sends the same batches under the same keys, and the server knows again what it already has.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::records::{Format, Records};

/// The bounds of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchBounds {
    /// The most events.
    pub events_max: usize,
    /// The most bytes; a single event may be larger.
    pub bytes_max: usize,
}

/// One request's worth.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Counts from 0 in this run.
    pub number: u64,
    /// Position after the last record: where a later run goes on.
    pub end: u64,
    /// How many records stand before the first one, from the start of the input.
    pub first_record: u64,
    /// Records in it.
    pub records: u64,
    /// The body.
    pub body: Bytes,
    /// The idempotency key: the same for the same records at the same place of the same file.
    pub key: String,
    /// Bytes of the input that had been read when this was cut, before decompression.
    pub raw_read: u64,
}

/// Cuts batches.
#[derive(Debug)]
pub struct Batches<R> {
    records: Records<R>,
    bounds: BatchBounds,
    identity: String,
    raw_read: Arc<AtomicU64>,
    number: u64,
    first_record: u64,
    /// A record that did not fit the batch before, and the position before it.
    left_over: Vec<u8>,
}

impl<R: Read> Batches<R> {
    /// Cuts what comes from `records`; `identity` tells this input from every other.
    pub fn new(records: Records<R>, bounds: BatchBounds, identity: String, raw_read: Arc<AtomicU64>) -> Self {
        Self { records, bounds, identity, raw_read, number: 0, first_record: 0, left_over: Vec::new() }
    }

    /// Goes on where an earlier run stopped.
    ///
    /// # Errors
    /// When the input is shorter than that.
    pub fn resume(&mut self, position: u64, first_record: u64) -> anyhow::Result<()> {
        self.first_record = first_record;
        self.records.skip_to(position)
    }

    /// The next batch; `None` at the end.
    ///
    /// # Errors
    /// As [`Records::next_into`].
    pub fn next_batch(&mut self) -> anyhow::Result<Option<Batch>> {
        let format = self.records.format();
        let mut body = Vec::with_capacity(self.bounds.bytes_max.min(BODY_BYTES_USUAL) + EVENT_BYTES_USUAL);
        body.extend_from_slice(if format == Format::Array { b"[" } else { self.records.header() });
        let empty = body.len();
        let mut records = 0;
        let mut end = self.records.position();
        if !self.left_over.is_empty() {
            body.append(&mut self.left_over);
            records = 1;
        }
        while records < self.bounds.events_max as u64 {
            let before = body.len();
            if records > 0 {
                body.push(if format == Format::Array { b',' } else { b'\n' });
            }
            let start = body.len();
            if !self.records.next_into(&mut body)? {
                body.truncate(before);
                end = self.records.position();
                break;
            }
            if records > 0 && body.len() > self.bounds.bytes_max {
                self.left_over = body.split_off(start);
                body.truncate(before);
                break;
            }
            records += 1;
            end = self.records.position();
        }
        if body.len() == empty {
            return Ok(None);
        }
        body.push(if format == Format::Array { b']' } else { b'\n' });
        Ok(Some(self.finish(body, records, end)))
    }

    fn finish(&mut self, body: Vec<u8>, records: u64, end: u64) -> Batch {
        let mut hash = Xxh3::new();
        hash.update(&(self.identity.len() as u64).to_le_bytes());
        hash.update(self.identity.as_bytes());
        hash.update(&self.first_record.to_le_bytes());
        hash.update(&body);
        let batch = Batch {
            number: self.number,
            end,
            first_record: self.first_record,
            records,
            body: Bytes::from(body),
            key: format!("send-{:032x}", hash.digest128()),
            raw_read: self.raw_read.load(Ordering::Relaxed),
        };
        self.number += 1;
        self.first_record += records;
        batch
    }
}

/// A body reserves its bound and room for the event that goes past it, so that it does not grow to twice of that. What it
/// does not fill stays untouched and takes no memory.
const BODY_BYTES_USUAL: usize = 8 * 1024 * 1024;
const EVENT_BYTES_USUAL: usize = 64 * 1024;
