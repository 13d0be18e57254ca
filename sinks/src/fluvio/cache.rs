//! The newest records of a log, decoded once for all that follow it.

use std::collections::VecDeque;
use std::sync::Arc;

use tidegate_pipeline::{LogBatch, Offset};

use super::frames::{offset_of, record_of};
use super::reader::Entry;

/// Consecutive records up to the newest that was read. The oldest go when there are more bytes than it may hold.
#[derive(Debug)]
pub(super) struct Cache {
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// Every row from here on is in it, as far as it was read.
    start: Offset,
    /// The record that is read next.
    next: u64,
    /// The furthest that a follower has come, and the bytes after it.
    wanted: Offset,
    ahead_bytes: usize,
}

impl Cache {
    /// An empty one before the record `next`.
    pub(super) fn new(next: u64, bytes_max: usize) -> Self {
        let start = offset_of(next);
        Self { entries: VecDeque::new(), bytes: 0, bytes_max, start, next, wanted: start, ahead_bytes: 0 }
    }

    /// Where it begins.
    pub(super) fn start(&self) -> Offset {
        self.start
    }

    /// The record that is read next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Of memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the reader is so far ahead of all followers that it waits.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead_bytes > self.bytes_max / 2
    }

    /// Takes note that a follower is at this offset.
    pub(super) fn want(&mut self, from: Offset) {
        let known = self.entries.iter().skip(self.index(record_of(self.wanted)));
        let passed = known.filter(|entry| entry.end() > self.wanted).take_while(|entry| entry.end() <= from);
        let passed: usize = passed.map(|entry| entry.bytes).sum();
        self.ahead_bytes -= passed;
        self.wanted = self.wanted.max(from);
    }

    /// Takes the next record.
    pub(super) fn push(&mut self, entry: Entry) {
        self.next = entry.record + 1;
        self.bytes += entry.bytes;
        if entry.end() > self.wanted {
            self.ahead_bytes += entry.bytes;
        }
        self.entries.push_back(entry);
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.bytes;
            if oldest.end() > self.wanted {
                self.ahead_bytes -= oldest.bytes;
            }
            self.start = oldest.end();
        }
    }

    /// Goes on at another record: those before it are gone.
    pub(super) fn skip_to(&mut self, record: u64) {
        *self = Self { wanted: self.wanted.max(offset_of(record)), ..Self::new(record, self.bytes_max) };
    }

    /// The batches from `from` (at or after the start) on, up to `bytes_max` but at least one if there is any.
    pub(super) fn batches(&self, from: Offset, bytes_max: usize) -> Vec<Arc<LogBatch>> {
        let mut left = Some(bytes_max);
        let known = self.entries.iter().skip(self.index(record_of(from))).flat_map(|entry| {
            // The batches of a record share its memory.
            let share = entry.bytes / entry.batches.len().max(1);
            entry.batches.iter().map(move |batch| (batch, share))
        });
        let within = |(batch, bytes): (&Arc<LogBatch>, usize)| {
            let room = left?;
            left = room.checked_sub(bytes).filter(|left| *left > 0);
            Some(batch.clone())
        };
        known.filter(|(batch, _)| batch.next_offset() > from).map_while(within).collect()
    }

    /// The place of a record among the entries, or of the first after it.
    fn index(&self, record: u64) -> usize {
        let first = self.entries.front().map_or(record, |first| first.record);
        usize::try_from(record.saturating_sub(first)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use tidegate_events::Dataset;

    use super::*;

    fn entry(record: u64, rows: usize, bytes: usize) -> Entry {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let column: ArrayRef = Arc::new(Int64Array::from(vec![0; rows]));
        let rows_of = RecordBatch::try_new(schema, vec![column]).expect("a batch");
        let batch = LogBatch { offset: offset_of(record), dataset: Dataset::SecurityEvents, rows: rows_of };
        let batches = if rows > 0 { vec![Arc::new(batch)] } else { Vec::new() };
        Entry { record, rows, batches, bytes, mark: 0 }
    }

    fn found(cache: &Cache, from: Offset, bytes_max: usize) -> Vec<u64> {
        cache.batches(from, bytes_max).iter().map(|batch| record_of(batch.offset)).collect()
    }

    #[test]
    fn followers_get_what_is_after_them_and_the_oldest_go() {
        let mut cache = Cache::new(7, 100);
        for record in 7..20 {
            cache.push(entry(record, if record % 5 == 0 { 0 } else { 3 }, if record % 5 == 0 { 0 } else { 20 }));
        }
        assert!(cache.bytes() <= 100);
        // 13, 14, (15 is empty), 16, 17, 18, 19 had 120 bytes, so that 13 is gone.
        assert_eq!(cache.start(), offset_of(13) + 3);
        assert_eq!(found(&cache, cache.start(), 1), [14]);
        assert_eq!(found(&cache, offset_of(14) + 2, 1), [14], "a batch is not split");
        assert_eq!(found(&cache, offset_of(14) + 3, 1), [16], "empty ones are passed over");
        assert_eq!(found(&cache, offset_of(14) + 3, 21), [16, 17]);
        assert_eq!(found(&cache, offset_of(14), usize::MAX), [14, 16, 17, 18, 19]);
        assert_eq!(found(&cache, offset_of(20), usize::MAX), [0u64; 0]);
    }

    #[test]
    fn the_reader_waits_when_it_is_half_of_the_memory_ahead_of_the_fastest_follower() {
        let mut cache = Cache::new(0, 100);
        for record in 0..3 {
            assert!(!cache.is_ahead(), "{record}");
            cache.push(entry(record, 1, 20));
        }
        assert!(cache.is_ahead());
        cache.want(offset_of(0));
        assert!(cache.is_ahead());
        cache.want(offset_of(1));
        assert!(!cache.is_ahead());
        cache.want(offset_of(0));
        cache.push(entry(3, 1, 20));
        assert!(cache.is_ahead(), "a slow follower does not move it back");
        cache.want(offset_of(9));
        assert!(!cache.is_ahead());
        cache.push(entry(4, 1, 90));
        cache.push(entry(5, 1, 90));
        assert!(!cache.is_ahead(), "what is passed is not ahead");
        cache.skip_to(50);
        assert_eq!((cache.start(), cache.next(), cache.bytes()), (offset_of(50), 50, 0));
    }
}
