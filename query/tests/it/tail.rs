//! A long tail is read in parts and handed out in pieces: each row once, and no more parts than are worth a thread.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Int64Type;
use tidegate_events::{Dataset, FieldType};
use tidegate_query::{Query, QueryConfig, QueryParts, Scope};

use super::fixture::{World, append, rows};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_ends_where_the_log_ended_when_the_query_came() {
    for (in_history, after, parts) in [(0, 5, 1), (4, 5, 1), (4, 510_000, 2)] {
        let world = World::empty(QueryConfig::default());
        world.append(Dataset::SecurityEvents, numbered(0, 10)).await;
        world.store(in_history, 0);
        world.append(Dataset::SecurityEvents, numbered(10, after)).await;
        let (log, fields) = (world.log.clone(), world.fields.lock().clone());
        let query = Query::new(QueryParts {
            log: world.log.clone(),
            log_datasets: &Dataset::ALL,
            output: world.output.clone(),
            history: world.history.clone(),
            files: None,
            // What a view asks last: the row comes after the view has looked at the log, and before its rows are read.
            log_fields: Arc::new(move || {
                futures::executor::block_on(append(&log, Dataset::SecurityEvents, numbered(-1, 1)));
                fields.clone()
            }),
            config: QueryConfig { partitions: 4, ..QueryConfig::default() },
            cpu: tokio::runtime::Handle::current(),
        })
        .expect("a query layer");
        for more in 0..2 {
            let rows = query.sql(&Scope::tenant("acme"), "SELECT count(*) FROM security_events").await;
            let rows = rows.expect("a stream").collect().await.expect("rows");
            let found = rows[0].column(0).as_primitive::<Int64Type>().value(0);
            assert_eq!(found, 10 + after as i64 + more, "{in_history} rows in history, {parts} parts");
        }
    }
}
