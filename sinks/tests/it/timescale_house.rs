//! Housekeeping, and partitions that are wanted while others use the tables: nobody waits for long, and all is done in the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use tidegate_events::Dataset;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::{Delivery, LogBatch, Offset, Sink};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{ExtensionUse, TimescaleStore};
use tokio_postgres::{Client, NoTls};

use crate::postgres::Schema;

const DAY_US: i64 = 86_400_000_000;

/// A schema of partitions, with the tables made.
fn partitions(arrange: impl FnOnce(&mut Schema)) -> (Schema, Arc<TimescaleStore>) {
    let mut schema = Schema::new();
    schema.config.extension = ExtensionUse::Off;
    arrange(&mut schema);
    let store = schema.store();
    schema.block_on(async { store.log_id(LogSource::Ingest).await.expect("made") });
    (schema, store)
}

/// Rows of these times.
fn delivery(offset: Offset, times: &[i64]) -> Delivery {
    let ids: Vec<String> = (0..times.len() as u64).map(|at| (offset + at).to_string()).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("time", Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC"))),
        ("event_id", Arc::new(StringArray::from(ids))),
        ("org_id", Arc::new(StringArray::from(vec!["acme"; times.len()]))),
    ];
    let rows = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let batch = LogBatch { offset, dataset: Dataset::SecurityEvents, rows };
    Delivery { next_offset: batch.next_offset(), batches: vec![Arc::new(batch)] }
}

/// Somebody who has read all of `security_events` and has not ended the transaction yet.
async fn reader(schema: &Schema) -> Client {
    let (client, connection) = tokio_postgres::connect(&schema.config.url, NoTls).await.expect("connected");
    tokio::spawn(connection);
    let read = format!("BEGIN; SELECT count(*) FROM {}.security_events", schema.config.schema);
    client.batch_execute(&read).await.expect("read");
    client
}

#[test]
fn rows_of_odd_times_go_to_the_default_partition_while_somebody_reads_the_whole_table() {
    let (schema, store) = partitions(|_| {});
    let now = now_us();
    let mut sink = store.sink(LogSource::Ingest, 0);
    schema.block_on(async {
        sink.write(delivery(0, &[now])).await.expect("taken");
        sink.flush().await.expect("committed");
        let reader = reader(&schema).await;
        let odd: Vec<i64> = (2..20).map(|at| now - at * 10 * DAY_US).collect();
        let started = Instant::now();
        sink.write(delivery(1, &[&odd[..], &[now]].concat())).await.expect("taken");
        sink.flush().await.expect("committed while somebody reads");
        // Not a wait for each of eighteen stretches, behind which all others wait.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        drop(reader);
    });
    assert_eq!(schema.one("SELECT count(*) FROM security_events_default"), "18");
    assert_eq!(schema.ids().len(), 20);
}

#[test]
fn what_housekeeping_wants_of_a_table_that_is_read_is_put_off() {
    let (mut schema, store) = partitions(|_| {});
    let now = now_us();
    let mut sink = store.sink(LogSource::Ingest, 0);
    schema.block_on(async {
        sink.write(delivery(0, &[now - 90 * DAY_US, now])).await.expect("taken");
        sink.flush().await.expect("committed");
    });
    schema.config.retention.security_events = Some(30);
    let store = schema.store();
    schema.block_on(async {
        let reader = reader(&schema).await;
        let put_off = store.keep_house().await.expect("put off").expect("a word on it");
        assert!(put_off.contains("security_events") && put_off.contains("pg_stat_activity"), "{put_off}");
        reader.batch_execute("COMMIT").await.expect("ended");
        assert_eq!(store.keep_house().await.expect("kept"), None);
    });
    assert_eq!(schema.ids(), ["1"]);
}

#[test]
fn a_refresh_that_takes_too_long_is_ended_and_no_writer_waits_for_it() {
    let (schema, store) = partitions(|schema| {
        schema.config.aggregates = true;
        schema.config.statement_ms_max = 2_000;
    });
    let name = &schema.config.schema;
    schema.query(&format!(
        "DROP MATERIALIZED VIEW events_per_minute; CREATE TABLE naps AS SELECT 0::float8 AS seconds; \
         CREATE FUNCTION nap() RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(seconds) FROM {name}.naps; RETURN 1; END'; \
         CREATE MATERIALIZED VIEW events_per_minute AS SELECT {name}.nap() AS naps; \
         CREATE UNIQUE INDEX ON events_per_minute (naps); UPDATE naps SET seconds = 60; SELECT 1"
    ));
    let mut sink = store.sink(LogSource::Ingest, 0);
    schema.block_on(async {
        let told = store.keep_house().await.expect_err("late").to_string();
        assert!(told.contains("refresh the views"), "{told}");
        sink.write(delivery(0, &[now_us()])).await.expect("taken");
        sink.flush().await.expect("committed over a connection that is free");
    });
    let running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%REFRESH%\"{name}\"%' AND pid <> pg_backend_pid()"
    );
    let deadline = Instant::now() + Duration::from_secs(60);
    while schema.one(&running) != "0" {
        assert!(Instant::now() < deadline, "never: the server has ended the refresh");
        std::thread::sleep(Duration::from_millis(20));
    }
    schema.query("UPDATE naps SET seconds = 0; SELECT 1");
    schema.block_on(async { store.keep_house().await.expect("kept") });
}
