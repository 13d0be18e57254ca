//! For tests only: panics as a bug would make them.

use arrow::array::{AsArray, RecordBatch};
use tidegate_events::Dataset;

/// Panics when what a rule asks has a fuse, and what it is held against is hot.
pub(crate) fn blow(asked: &str, held_against: &str) {
    assert!(!(asked.contains("fuse") && held_against.contains("hot")), "blown by {held_against}");
}

/// Panics where a text says so.
pub(crate) fn burst(place: &str, text: &str) {
    assert!(!text.contains(&format!("burst-{place}")), "burst by {text}");
}

/// Panics where the id of an event says so.
pub(crate) fn burst_rows(rows: &RecordBatch) {
    let ids = rows.column_by_name(Dataset::EVENT_ID).and_then(|ids| ids.as_string_opt::<i32>());
    ids.into_iter().flatten().flatten().for_each(|id| burst("batch", id));
}
