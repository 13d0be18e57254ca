//! Deliveries in parts, around rows that are refused.

use std::sync::Arc;

use crate::log::{LogBatch, Offset};
use crate::sink::Delivery;

/// A delivery without some of its rows.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// The rows without which it is to be given, in order.
    pub(super) refused: Vec<Arc<LogBatch>>,
    /// The others, in order.
    pub(super) others: Vec<Delivery>,
}

pub(super) fn rows(part: &Delivery) -> u64 {
    part.batches.iter().map(|batch| batch.rows.num_rows() as u64).sum()
}

/// A delivery as two: between its batches, or within its only one. `None` for a single row.
pub(super) fn halves(part: &Delivery) -> Option<(Delivery, Delivery)> {
    let (first, second) = match part.batches.as_slice() {
        [] => return None,
        [only] => {
            let half = only.rows.num_rows() / 2;
            if half == 0 {
                return None;
            }
            let cut = |start: usize, length: usize| {
                let rows = only.rows.slice(start, length);
                vec![Arc::new(LogBatch { offset: only.offset + start as u64, dataset: only.dataset, rows })]
            };
            (cut(0, half), cut(half, only.rows.num_rows() - half))
        }
        more => {
            let (first, second) = more.split_at(more.len() / 2);
            (first.to_vec(), second.to_vec())
        }
    };
    let middle = first.last().map_or(part.next_offset, |last| last.next_offset());
    let first = Delivery { batches: first, next_offset: middle };
    Some((first, Delivery { batches: second, next_offset: part.next_offset }))
}

/// A delivery around the rows at these ascending offsets. `None` when it has none of them.
pub(super) fn apart(part: &Delivery, offsets: &[Offset]) -> Option<Apart> {
    let mut apart = Apart::default();
    let mut others: Vec<Arc<LogBatch>> = Vec::new();
    for batch in &part.batches {
        let below = |end: Offset| offsets.partition_point(|offset| *offset < end);
        let refused = offsets.get(below(batch.offset)..below(batch.next_offset())).unwrap_or_default();
        let mut from = batch.offset;
        // Rows that stand together are one batch.
        for run in refused.chunk_by(|one, next| *next <= one + 1) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            others.extend(cut(batch, from, *first));
            apart.others.extend(given(&mut others));
            apart.refused.extend(cut(batch, *first, last + 1));
            from = last + 1;
        }
        others.extend(cut(batch, from, batch.next_offset()));
    }
    apart.others.extend(given(&mut others));
    if let Some(last) = apart.others.last_mut() {
        last.next_offset = part.next_offset;
    }
    (!apart.refused.is_empty()).then_some(apart)
}

/// The rows of a batch from one offset to another; `None` when there are none.
fn cut(batch: &Arc<LogBatch>, from: Offset, to: Offset) -> Option<Arc<LogBatch>> {
    if (from, to) == (batch.offset, batch.next_offset()) {
        return (from < to).then(|| batch.clone());
    }
    let (start, length) = (from.checked_sub(batch.offset)?, to.checked_sub(from)?);
    (length > 0).then(|| {
        let rows = batch.rows.slice(start as usize, length as usize);
        Arc::new(LogBatch { offset: from, dataset: batch.dataset, rows })
    })
}

fn given(batches: &mut Vec<Arc<LogBatch>>) -> Option<Delivery> {
    let next_offset = batches.last()?.next_offset();
    Some(Delivery { batches: std::mem::take(batches), next_offset })
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use tidegate_events::Dataset;

    use super::*;

    /// A batch of so many rows, each with its offset.
    fn batch(offset: Offset, rows: u64) -> Arc<LogBatch> {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values((offset..offset + rows).map(|row| row as i64)));
        let rows = RecordBatch::try_from_iter([("row", column)]).expect("a batch");
        Arc::new(LogBatch { offset, dataset: Dataset::SecurityEvents, rows })
    }

    fn offsets(batches: &[Arc<LogBatch>]) -> Vec<Offset> {
        let of_batch = |batch: &Arc<LogBatch>| {
            let column = batch.rows.column(0).as_any().downcast_ref::<Int64Array>().expect("numbers").clone();
            let rows: Vec<Offset> = column.values().iter().map(|row| *row as Offset).collect();
            assert_eq!(rows, (batch.offset..batch.next_offset()).collect::<Vec<_>>(), "rows keep their offsets");
            rows
        };
        batches.iter().flat_map(of_batch).collect()
    }

    #[test]
    fn refused_rows_stand_apart_and_the_others_keep_their_order() {
        let part = Delivery { batches: vec![batch(10, 5), batch(15, 1), batch(20, 4)], next_offset: 30 };
        let cases: &[(&[Offset], usize)] = &[
            (&[10], 1),
            (&[12], 2),
            (&[23], 1),
            (&[14, 15, 20], 2),
            (&[11, 12, 14, 21, 23], 4),
            (&[12, 12], 2),
            (&[3, 11, 17, 99], 2),
            (&[10, 11, 12, 13, 14, 15, 20, 21, 22, 23], 0),
        ];
        for (asked, others) in cases {
            let apart = apart(&part, asked).unwrap_or_else(|| panic!("{asked:?}"));
            let all: Vec<Offset> = offsets(&part.batches);
            let (refused, given): (Vec<Offset>, Vec<Offset>) = all.into_iter().partition(|row| asked.contains(row));
            assert_eq!(offsets(&apart.refused), refused, "{asked:?}");
            let given_now: Vec<Offset> = apart.others.iter().flat_map(|part| offsets(&part.batches)).collect();
            assert_eq!(given_now, given, "{asked:?}");
            assert_eq!(apart.others.len(), *others, "{asked:?}");
            let ends: Vec<Offset> = apart.others.iter().map(|part| part.next_offset).collect();
            assert!(ends.is_sorted(), "{ends:?}");
            assert!(ends.last().is_none_or(|end| *end == 30), "{asked:?}: {ends:?}");
        }
        assert!(apart(&part, &[]).is_none());
        assert!(apart(&part, &[9, 17, 24]).is_none());
    }
}
