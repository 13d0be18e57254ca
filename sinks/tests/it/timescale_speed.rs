//! Rows a second into the database, beside a raw binary `COPY … FROM STDIN` of the same rows over one connection. On demand:
//! `TIDEGATE_TIMESCALE_SPEED=1 cargo xtask with-servers cargo test --release -p tidegate-sinks --test it -- timescale_speed --nocapture`

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use tidegate_events::Dataset;
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::{Delivery, LogBatch, Sink};
use tidegate_sinks::parquet::LogSource;
use tokio_postgres::NoTls;

use crate::postgres::Schema;

pub const BATCHES: u64 = 40;
pub const BATCH_ROWS: u64 = 10_000;

/// A batch as agents send them: most core columns, eight own fields, 64 tenants.
pub fn rows(batch: u64) -> Arc<LogBatch> {
    let of = |make: &dyn Fn(u64) -> String| -> ArrayRef {
        let rows = batch * BATCH_ROWS..(batch + 1) * BATCH_ROWS;
        Arc::new(StringArray::from_iter_values(rows.map(make)))
    };
    let now = now_us();
    let time: ArrayRef = Arc::new(
        TimestampMicrosecondArray::from_iter_values((0..BATCH_ROWS as i64).map(|at| now - at)).with_timezone("UTC"),
    );
    let ints = |modulo: i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values((0..BATCH_ROWS as i64).map(|at| at % modulo)))
    };
    let severity: ArrayRef = Arc::new(Int32Array::from_iter_values((0..BATCH_ROWS as i32).map(|at| at % 7)));
    let columns = vec![
        ("time", time.clone()),
        ("received_time", time),
        ("event_id", of(&|at| format!("0193a4e2-7c4b-7000-8000-{at:012}"))),
        ("org_id", of(&|at| format!("tenant-{}", (at / 100) % 64))),
        ("source", of(&|_| "cloudtrail".to_owned())),
        ("category", of(&|at| ["iam", "network", "application"][at as usize % 3].to_owned())),
        ("activity", of(&|at| ["AssumeRole", "GetObject", "ConsoleLogin"][at as usize % 3].to_owned())),
        ("severity", severity),
        ("outcome", of(&|at| ["success", "failure"][at as usize % 2].to_owned())),
        ("actor", of(&|at| format!("arn:aws:iam::123456789012:user/u{}", at % 5_000))),
        ("src_ip", of(&|at| format!("10.{}.{}.{}", at % 200, at % 250, at % 240))),
        ("resource", of(&|at| format!("arn:aws:s3:::bucket-{}/object", at % 900))),
        ("message", of(&|at| format!("user u{} called an operation in eu-central-1", at % 5_000))),
        ("awsRegion", of(&|_| "eu-central-1".to_owned())),
        ("eventVersion", of(&|_| "1.08".to_owned())),
        ("requestParameters.bucketName", of(&|at| format!("bucket-{}", at % 900))),
        ("responseElements.code", ints(500)),
        ("userAgent", of(&|_| "aws-cli/2.15.0 Python/3.11.6 Linux/6.1".to_owned())),
        ("userIdentity.accountId", of(&|_| "123456789012".to_owned())),
        ("userIdentity.type", of(&|at| ["IAMUser", "AssumedRole"][at as usize % 2].to_owned())),
        ("userIdentity.sessions", ints(9)),
    ];
    let rows = RecordBatch::try_from_iter(columns).expect("columns of one length");
    Arc::new(LogBatch { offset: batch * BATCH_ROWS, dataset: Dataset::SecurityEvents, rows })
}

/// Rows a second of the sink.
fn ours(connections: usize, batches: &[Arc<LogBatch>]) -> (f64, Schema) {
    let mut schema = Schema::new();
    schema.config.connections = connections;
    let mut sink = schema.sink(LogSource::Ingest);
    let batches = batches.to_vec();
    let url = schema.config.url.clone();
    let rate = schema.block_on(async move {
        sink.connect().await.expect("connected");
        // As before the raw COPY: no page of someone else is to be written first.
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connected");
        tokio::spawn(connection);
        client.batch_execute("CHECKPOINT").await.expect("written");
        let started = Instant::now();
        for batch in batches {
            let next_offset = batch.next_offset();
            sink.write(Delivery { batches: vec![batch], next_offset }).await.expect("taken");
        }
        sink.flush().await.expect("committed");
        (BATCHES * BATCH_ROWS) as f64 / started.elapsed().as_secs_f64()
    });
    (rate, schema)
}

/// Rows a second of a COPY of what the sink wrote, into the same table once it is empty again.
fn raw(schema: &Schema) -> f64 {
    let (url, table) = (schema.config.url.clone(), format!("\"{}\".security_events", schema.config.schema));
    schema.block_on(async move {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connected");
        tokio::spawn(connection);
        let out = format!("COPY (SELECT * FROM {table} ORDER BY log_offset) TO STDOUT (FORMAT binary)");
        let rows: Vec<Bytes> = client.copy_out(&out).await.expect("copy").try_collect().await.expect("rows");
        let bytes: Bytes = rows.concat().into();
        client.batch_execute(&format!("TRUNCATE {table}; CHECKPOINT")).await.expect("emptied");
        let started = Instant::now();
        let copy = client.copy_in::<_, Bytes>(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await.expect("copy");
        let mut copy = std::pin::pin!(copy);
        for at in (0..bytes.len()).step_by(128 << 10) {
            copy.feed(bytes.slice(at..bytes.len().min(at + (128 << 10)))).await.expect("fed");
        }
        let rows = copy.as_mut().finish().await.expect("done");
        rows as f64 / started.elapsed().as_secs_f64()
    })
}

#[test]
fn timescale_speed() {
    if std::env::var_os("TIDEGATE_TIMESCALE_SPEED").is_none() {
        return;
    }
    let batches: Vec<_> = (0..BATCHES).map(rows).collect();
    let mut ratios = Vec::new();
    for round in 0..5 {
        let (sink, schema) = ours(1, &batches);
        let raw = raw(&schema);
        println!("round {round}: sink {sink:.0} rows/s, raw COPY {raw:.0} rows/s: {:.1} %", 100.0 * sink / raw);
        ratios.push(100.0 * sink / raw);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median: {:.1} % of a raw COPY", ratios[ratios.len() / 2]);
    for connections in [1, 2, 4] {
        let mut rates: Vec<f64> = (0..3).map(|_| ours(connections, &batches).0).collect();
        rates.sort_by(f64::total_cmp);
        println!("{connections} connections: {:.0} rows/s (median of 3)", rates[1]);
    }
}
