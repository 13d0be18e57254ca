//! A long tail is read in parts and handed out in pieces: each row once, and no more parts than are worth a thread.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Int64Type;
use tidegate_events::{Dataset, FieldType};
use tidegate_query::{QueryConfig, Scope};

use super::fixture::{World, rows};

/// So many rows, numbered by `n` from a number on.
fn numbered(from: i64, count: usize) -> RecordBatch {
    let one = r#"{"time":"2026-01-01T00:00:00Z","received_time":"2026-01-01T00:00:00Z","event_id":"e","org_id":"acme","source":"s","n":0}"#;
    let one = rows(Dataset::SecurityEvents, &[("n", FieldType::INT)], one);
    let all = take_record_batch(&one, &UInt32Array::from(vec![0; count])).expect("rows");
    let at = all.schema().index_of("n").expect("a column");
    let mut columns = all.columns().to_vec();
    columns[at] = Arc::new(Int64Array::from_iter_values(from..from + count as i64)) as ArrayRef;
    RecordBatch::try_new(all.schema(), columns).expect("a batch")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_tail_is_read_in_parts_and_pieces_each_row_once() {
    let config = QueryConfig { partitions: 4, rows_max: 10_000_000, ..QueryConfig::default() };
    let world = World::empty(config);
    let acme = Scope::tenant("acme");
    let mut next = 0i64;
    // A batch of the log is longer than a piece of it.
    for (count, parts) in [(20_000usize, 1), (290_000, 1), (200_000, 2)] {
        world.append(Dataset::SecurityEvents, numbered(next, count)).await;
        next += count as i64;
        let sql = "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM security_events";
        let found = world.query.sql(&acme, sql).await.expect("a stream").collect().await.expect("rows");
        let found = found.iter().find(|batch| batch.num_rows() > 0).expect("a row");
        let found: Vec<i64> =
            found.columns().iter().map(|column| column.as_primitive::<Int64Type>().value(0)).collect();
        assert_eq!(found, [next, next, 0, next - 1]);
        let sizes: Vec<usize> = {
            let rows = world.query.sql(&acme, "SELECT n FROM security_events").await.expect("a stream");
            rows.collect().await.expect("rows").iter().map(RecordBatch::num_rows).collect()
        };
        assert_eq!(sizes.iter().sum::<usize>(), next as usize);
        assert!(sizes.iter().all(|size| *size <= 8192), "{sizes:?}");
        let plan = world.query.sql(&acme, "EXPLAIN SELECT n FROM security_events").await.expect("a plan");
        let plan = arrow::util::pretty::pretty_format_batches(&plan.collect().await.expect("rows")).expect("text");
        let plan = plan.to_string();
        assert!(plan.contains(&format!("StreamingTableExec: partition_sizes={parts},")), "{plan}");
    }
}
