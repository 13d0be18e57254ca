//! The end of a partition as a node has seen it, so that it notices when a broker comes back without it.
//!
//! Fluvio syncs no file: a machine that loses power may come back without the newest records of a partition, and gives their
//! numbers to others. Whoever stands behind those numbers would never see the others. So a cursor is kept with *marks* of the
//! records before it, their checksums. They tell, also after a restart, whether the partition still holds what was read, and
//! where it went on otherwise.

use std::collections::VecDeque;

use tidegate_pipeline::Offset;

use super::failure::FluvioFailure;
use super::frames::{offset_of, records_below};
use super::reader::Place;

/// Records whose marks are kept with a cursor: more than a broker takes in the half minute that its machine may owe the disk.
const MARKS_MAX: usize = 4_096;

/// Records whose marks a log remembers, for cursors that are behind it.
const REMEMBERED_MAX: usize = 65_536;

/// The marks of the records before a cursor, oldest first. See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTail {
    /// The record after the last one.
    pub(super) next: u64,
    pub(super) marks: Vec<u32>,
}

impl LogTail {
    /// Its bytes: the record after the last one, then four bytes a mark, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let marks = self.marks.iter().flat_map(|mark| mark.to_le_bytes());
        self.next.to_le_bytes().into_iter().chain(marks).collect()
    }

    /// The tail in these bytes; `None` when they are of something else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (next, marks) = bytes.split_first_chunk()?;
        let (marks, rest) = marks.as_chunks::<4>();
        let tail = Self {
            next: u64::from_le_bytes(*next),
            marks: marks.iter().map(|mark| u32::from_le_bytes(*mark)).collect(),
        };
        (rest.is_empty() && tail.marks.len() as u64 <= tail.next).then_some(tail)
    }

    /// Whether it ends before another one, or that one has no marks.
    pub fn is_before(&self, other: &Self) -> bool {
        other.marks.is_empty() || (!self.marks.is_empty() && self.next < other.next)
    }

    /// The offset after the last record.
    pub fn end(&self) -> Offset {
        offset_of(self.next)
    }

    /// The first record that has a mark.
    fn first(&self) -> u64 {
        self.next - self.marks.len() as u64
    }

    /// That the partition holds others from a record on.
    pub(super) fn lost(&self, place: &Place, from: u64) -> FluvioFailure {
        let (topic, partition) = (place.topic.clone(), place.partition);
        FluvioFailure::Lost { topic, partition, read: self.next, from: Some(from) }
    }

    fn mark(&self, record: u64) -> Option<u32> {
        let at = record.checked_sub(self.first())?;
        self.marks.get(usize::try_from(at).ok()?).copied()
    }
}

/// The marks of the newest records that were read.
#[derive(Debug, Default)]
pub(super) struct Marks {
    next: u64,
    marks: VecDeque<u32>,
}

impl Marks {
    /// For a log that is read from a record on, before which the partition is as a tail tells.
    pub(super) fn before(from: u64, tail: &LogTail) -> Self {
        let known = usize::try_from(from.saturating_sub(tail.first())).unwrap_or(usize::MAX).min(tail.marks.len());
        Self { next: tail.first() + known as u64, marks: tail.marks[..known].iter().copied().collect() }
    }

    pub(super) fn push(&mut self, record: u64, mark: u32) {
        if record != self.next {
            self.marks.clear();
        }
        if self.marks.len() == REMEMBERED_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(mark);
        self.next = record + 1;
    }

    /// For a cursor at this offset.
    pub(super) fn tail(&self, offset: Offset) -> LogTail {
        let next = records_below(offset).min(self.next);
        let first = self.next - self.marks.len() as u64;
        let from = next.saturating_sub(MARKS_MAX as u64).max(first).min(next);
        let (from_at, until_at) = (from.saturating_sub(first) as usize, next.saturating_sub(first) as usize);
        LogTail { next, marks: self.marks.range(from_at.min(until_at)..until_at).copied().collect() }
    }
}

/// The mark of a record: the checksum in its header, which goes over the time of its append, too.
pub(super) fn mark(value: &[u8]) -> u32 {
    value.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// What a partition holds where a tail tells of other records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// The very same.
    Same,
    /// Others from this one on, or none.
    Others(u64),
    /// Others, and from which one on is not known.
    Unknown,
}

/// Compares the records from `from` on that a partition has now with a tail. They go to the end of the tail, or of the partition.
fn compare(tail: &LogTail, from: u64, found: &[u32]) -> Held {
    let other = found.iter().zip(from..).find(|(mark, record)| tail.mark(*record) != Some(**mark));
    match other.map_or(from + found.len() as u64, |(_, record)| record) {
        same if same >= tail.next => Held::Same,
        // Not even the first of those that could be compared: it may have begun before.
        first if first == from && from > 0 && from == tail.first() => Held::Unknown,
        first => Held::Others(first),
    }
}

/// Where a partition has other records than a tail tells of, or has lost them; `None` when it has them, or has forgotten them
/// by retention.
///
/// # Errors
/// [`FluvioFailure::Lost`] when it is not known from where on; otherwise that it cannot be looked at now.
pub(super) async fn lost_from(place: &Place, tail: &LogTail) -> Result<Option<u64>, FluvioFailure> {
    if tail.next == 0 {
        return Ok(None);
    }
    let bounds = place.bounds(&place.cluster.connect().await?).await?;
    if bounds.first >= tail.next {
        return Ok(None);
    }
    let unknown = || {
        let (topic, partition) = (place.topic.clone(), place.partition);
        FluvioFailure::Lost { topic, partition, read: tail.next, from: None }
    };
    if tail.marks.is_empty() {
        return if bounds.next < tail.next { Err(unknown()) } else { Ok(None) };
    }
    // As a rule the last one is the same, and so are those before it: what is lost is an end.
    if bounds.next >= tail.next {
        let last = marks(place, tail.next - 1, tail.next).await?;
        if compare(tail, tail.next - 1, &last) == Held::Same {
            return Ok(None);
        }
    }
    let from = tail.first().max(bounds.first);
    let found = if from < bounds.next { marks(place, from, bounds.next.min(tail.next)).await? } else { Vec::new() };
    match compare(tail, from, &found) {
        Held::Same => Ok(None),
        Held::Others(from) => Ok(Some(from)),
        Held::Unknown => Err(unknown()),
    }
}

/// The marks of these records as the partition has them now.
async fn marks(place: &Place, from: u64, until: u64) -> Result<Vec<u32>, FluvioFailure> {
    // On a connection of its own: an SPU serves a reader for as long as the connection is there, though nobody reads.
    let link = place.cluster.connect().await?;
    let mut records = link.records(&place.topic, place.partition, from).await?;
    let mut found = Vec::new();
    while records.expected() < until {
        let Some(record) = records.next(place.cluster.reply_max).await? else {
            return Err(place.cluster.late(&format!("look at the end of {}", place.topic), place.cluster.reply_max));
        };
        found.push(mark(record.value()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The marks of a partition: 100, 101, … up to `until`, but for those from `other` on, which are others.
    fn held(from: u64, until: u64, other: u64) -> Vec<u32> {
        (from..until).map(|record| record as u32 + if record < other { 100 } else { 900 }).collect()
    }

    fn read(records: u64) -> Marks {
        let mut marks = Marks::default();
        (0..records).for_each(|record| marks.push(record, record as u32 + 100));
        marks
    }

    fn tail_of(records: u64) -> LogTail {
        read(records).tail(offset_of(records))
    }

    #[test]
    fn a_cursor_goes_with_the_marks_of_the_records_before_it() {
        let marks = read(10);
        for (offset, next) in
            [(0, 0), (1, 1), (offset_of(3), 3), (offset_of(3) + 1, 4), (offset_of(10), 10), (offset_of(99), 10)]
        {
            let tail = marks.tail(offset);
            assert_eq!(tail, LogTail { next, marks: held(0, next, next) }, "{offset:#x}");
            assert_eq!(LogTail::decode(&tail.encode()), Some(tail));
        }
        let many = read(REMEMBERED_MAX as u64 + 10);
        let tail = many.tail(offset_of(20_000));
        assert_eq!((tail.first(), tail.next, tail.marks.len()), (20_000 - MARKS_MAX as u64, 20_000, MARKS_MAX));
        assert_eq!(tail.mark(19_999), Some(20_099));
        assert_eq!(
            many.tail(offset_of(12)),
            LogTail { next: 12, marks: held(10, 12, 12) },
            "as far as they are remembered"
        );
        assert_eq!(many.tail(offset_of(5)), LogTail { next: 5, marks: Vec::new() });
        let mut opened = Marks::before(8, &tail_of(10));
        opened.push(8, 108);
        assert_eq!(opened.tail(offset_of(9)), LogTail { next: 9, marks: held(0, 9, 9) }, "as if it had gone on");
        assert_eq!(Marks::before(12, &tail_of(10)).next, 10);
        let mut jumped = read(10);
        jumped.push(50, 150);
        assert_eq!(jumped.tail(offset_of(60)), LogTail { next: 51, marks: vec![150] });
        assert_eq!([&[1u8, 2][..], &[0; 11], &[0; 12]].map(LogTail::decode), [None, None, None]);
    }

    #[test]
    fn a_partition_that_lost_its_end_is_told_from_one_that_goes_on() {
        let tail = read(10).tail(offset_of(10));
        // (from, until, the first other one)
        for (from, until, other, expected) in [
            (0, 10, 99, Held::Same),
            (9, 10, 99, Held::Same),
            (4, 10, 99, Held::Same),
            // It ends before, with or without new ones.
            (0, 7, 99, Held::Others(7)),
            (0, 7, 5, Held::Others(5)),
            // Overtaken.
            (0, 10, 5, Held::Others(5)),
            (0, 10, 9, Held::Others(9)),
            (0, 10, 0, Held::Others(0)),
            (0, 0, 0, Held::Others(0)),
            // Retention has taken those before it.
            (4, 10, 4, Held::Others(4)),
        ] {
            assert_eq!(compare(&tail, from, &held(from, until, other)), expected, "{from} {until} {other}");
        }
        let short = LogTail { next: 10, marks: held(6, 10, 99) };
        for (until, other, expected) in [
            (10, 99, Held::Same),
            (10, 7, Held::Others(7)),
            (10, 6, Held::Unknown),
            (10, 3, Held::Unknown),
            (6, 6, Held::Unknown),
        ] {
            assert_eq!(compare(&short, 6, &held(6, until, other)), expected, "{until} {other}");
        }
    }
}
