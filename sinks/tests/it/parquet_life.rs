//! A life of a store, on disk or in a bucket: commits, compaction, retention, and what must hold whatever happened on the way.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_pipeline::{History, Sink};
use tidegate_sinks::parquet::{DatasetDays, LogSource, ParquetStore, RetentionConfig};

use crate::parquet_rows::{HOUR, Row, batch, delivery, flush, write};

const DAY: i64 = 24 * HOUR;
/// Rows of a whole life.
pub const LIFE_ROWS: u64 = 35;
const COMMIT_ROWS: u64 = 5;

/// Row `id` of the log. Every fifth is of a tenant whose rows expire.
fn row(id: u64) -> Row {
    let org = if id.is_multiple_of(5) { "short" } else { "ever" };
    (org, (id % 3) as i64 * HOUR + id as i64, id)
}

fn policy() -> RetentionConfig {
    let days = |days| DatasetDays { security_events: Some(days), ..DatasetDays::default() };
    RetentionConfig { days: days(0), tenants: [("short".to_owned(), days(1))].into(), ..RetentionConfig::default() }
}

/// One life from where the store stands to the end of the log, with compaction and retention on the way. Each step is tried
/// `tries` times more; its last failure ends the life.
pub fn live(store: &Arc<ParquetStore>, tries: u32) -> Result<(), String> {
    let again = |step: &mut dyn FnMut() -> Result<(), String>| {
        let mut done = step();
        for _ in 0..tries {
            if done.is_ok() {
                break;
            }
            done = step();
        }
        done
    };
    let mut sink = store.sink(LogSource::Ingest);
    while sink.committed() < LIFE_ROWS {
        let at = sink.committed();
        let until = (at / COMMIT_ROWS + 1) * COMMIT_ROWS;
        let rows: Vec<Row> = (at..until).map(row).collect();
        again(&mut || {
            let taken = write(&mut sink, delivery(at, batch(&rows)));
            taken.and_then(|()| flush(&mut sink)).map_err(|error| error.to_string())
        })?;
        if until == 20 || until == 35 {
            again(&mut || store.compact_once().map(drop).map_err(|error| error.to_string()))?;
            again(&mut || store.sweep().map(drop).map_err(|error| error.to_string()))?;
        }
        if until == 25 {
            again(&mut || store.retain(100 * DAY, &policy()).map(drop).map_err(|error| error.to_string()))?;
            again(&mut || store.sweep().map(drop).map_err(|error| error.to_string()))?;
        }
    }
    Ok(())
}

/// Every live row below the cursor is there once, none above it, and no expired one twice. `found` are the ids of all rows.
pub fn check_life(store: &ParquetStore, found: Vec<u64>, what: &str) {
    let cursor = store.snapshot().log_cursor;
    let once: BTreeSet<u64> = found.iter().copied().collect();
    assert_eq!(found.len(), once.len(), "{what}: a row is there twice: {found:?}");
    assert!(once.iter().all(|id| *id < cursor), "{what}: a row above the cursor {cursor}: {found:?}");
    let missing: Vec<u64> = (0..cursor).filter(|id| !id.is_multiple_of(5) && !once.contains(id)).collect();
    assert!(missing.is_empty(), "{what}: {missing:?} are missing below {cursor}");
    let ledger = store.stats().ledger;
    assert_eq!((ledger.committed, ledger.lost), (cursor, 0), "{what}");
    assert_eq!(ledger.committed - ledger.expired, found.len() as u64, "{what}");
}
