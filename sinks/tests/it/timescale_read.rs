//! History in the tables is what was delivered: values, filters, groups, cursors, and a question that is left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch};
use arrow::array::{AsArray, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use arrow::util::display::array_value_to_string;
use tidegate_events::{Dataset, FieldType, Scalar, timestamp_type};
use tidegate_pipeline::history_rows::{Comparison, Filter, HistoryError, Order, Output, TimeUnit, Value};
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{Append, Delivery, EventBatch, Health, History, LogReader, RowsAsk, Sink, StreamLog};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{TimescaleConfig, TimescaleHistory, TimescaleReadParts};

use crate::postgres::{ORIGIN, Schema};

/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;

/// Events `from..to`, every third of another tenant.
fn events(from: i64, to: i64) -> EventBatch {
    let at: Vec<i64> = (from..to).collect();
    let text =
        |of: &dyn Fn(i64) -> Option<String>| Arc::new(at.iter().map(|at| of(*at)).collect::<StringArray>()) as ArrayRef;
    let times = at.iter().map(|at| START_US + at * 60_000_000);
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("time", times.clone()),
        ("received_time", times),
        ("event_id", text(&|at| Some(format!("e{at}")))),
        ("org_id", text(&|at| Some(if at % 3 == 0 { "globex" } else { "acme" }.to_owned()))),
        ("source", text(&|at| Some(format!("s{}", at % 2)))),
        ("severity", Arc::new(at.iter().map(|at| (at % 5 != 0).then_some((at % 7) as i32)).collect::<Int32Array>())),
        ("actor", text(&|at| (at % 4 != 0).then(|| if at % 2 == 0 { "Zoë".into() } else { "alice 'x'; --".into() }))),
        ("n", Arc::new(Int64Array::from_iter_values(at.iter().copied()))),
        ("f", Arc::new(Float64Array::from_iter_values(at.iter().map(|at| *at as f64 / 4.0)))),
        ("flag", Arc::new(at.iter().map(|at| (at % 2 == 0).then_some(at % 4 == 0)).collect::<BooleanArray>())),
        ("own.text", text(&|at| Some(format!("t\"{at}")))),
    ];
    let rows = RecordBatch::try_from_iter(columns).expect("a batch");
    EventBatch { dataset: Dataset::SecurityEvents, rows, keys: Vec::new() }
}

fn costs() -> EventBatch {
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values([START_US; 2]).with_timezone("UTC"));
    let text = |text: &str| Arc::new(StringArray::from(vec![text; 2])) as ArrayRef;
    let digits = vec![12_345_678_901_234_567i128, 100_000_000_000_000];
    let money = Decimal128Array::from(digits).with_precision_and_scale(30, 15).expect("money");
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("time", times.clone()),
        ("received_time", times),
        ("event_id", Arc::new(StringArray::from(vec!["c1", "c2"]))),
        ("org_id", text("acme")),
        ("source", text("focus")),
        ("billed_cost", Arc::new(money)),
    ];
    let rows = RecordBatch::try_from_iter(columns).expect("a batch");
    EventBatch { dataset: Dataset::CostEvents, rows, keys: Vec::new() }
}

/// Runs a test in a schema of its own, which is written over so many connections.
fn in_a_schema(connections: usize, test: impl AsyncFnOnce(&Schema)) {
    let mut schema = Schema::new();
    schema.config.connections = connections;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test(&schema));
}

async fn append(log: &MemoryLog, batch: EventBatch) {
    let append = Append { batches: vec![batch], ..Append::default() };
    log.append(append).await.expect("an answer").expect("appended");
}

/// Delivers what a log holds after the cursor, as a process that has just started.
async fn deliver(schema: &Schema, log: &MemoryLog) {
    let mut sink = schema.sink(LogSource::Ingest);
    sink.connect().await.expect("connected");
    let from = sink.committed();
    if from < log.bounds().next {
        let batches = log.read(from, usize::MAX).expect("read");
        let next_offset = batches.last().map_or(from, |batch| batch.next_offset());
        sink.write(Delivery { batches, next_offset }).await.expect("written");
        sink.flush().await.expect("flushed");
    }
}

fn history(config: &TimescaleConfig) -> Arc<TimescaleHistory> {
    let parts = TimescaleReadParts {
        config: TimescaleConfig { read_refresh_ms: 10, ..config.clone() },
        origin: ORIGIN.to_owned(),
        kin: Vec::new(),
        query_ms_max: 2_000,
        runtime: tokio::runtime::Handle::current(),
        stage: Health::default().stage("history"),
    };
    TimescaleHistory::start(parts).expect("a history")
}

async fn seen(history: &TimescaleHistory, cursor: u64) {
    let until = Instant::now() + Duration::from_secs(20);
    while history.snapshot().log_cursor < cursor {
        assert!(Instant::now() < until, "the cursor is not seen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A question with outputs of these types.
fn ask(history: &TimescaleHistory, outputs: Vec<(Output, DataType)>) -> RowsAsk {
    let name =
        |output: &Output| if let Output::Column(name) = output { name.to_string() } else { format!("{output:?}") };
    let fields = outputs.iter().map(|(output, kind)| Field::new(name(output), kind.clone(), true));
    let schema = Arc::new(ArrowSchema::new(fields.collect::<Vec<_>>()));
    let grouped = outputs.iter().any(|(output, _)| output.is_aggregate());
    let snapshot = history.snapshot();
    RowsAsk {
        dataset: Dataset::SecurityEvents,
        orgs: ["acme".into()].into(),
        log_cursor: snapshot.log_cursor,
        output_cursor: snapshot.output_cursor,
        others: true,
        outputs: outputs.into_iter().map(|(output, _)| output).collect(),
        schema,
        grouped,
        filters: Vec::new(),
        order: Vec::new(),
        limit: None,
    }
}

async fn answer(history: &TimescaleHistory, ask: RowsAsk) -> Result<Vec<RecordBatch>, HistoryError> {
    let rows = history.snapshot().rows.clone().expect("a store that answers");
    let mut answer = rows.read(ask);
    let mut batches = Vec::new();
    while let Some(batch) = answer.recv().await {
        batches.push(batch?);
    }
    Ok(batches)
}

/// The rows as text, sorted, without the tenant, which is `acme`.
async fn shown(history: &TimescaleHistory, ask: RowsAsk) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in answer(history, ask).await.expect("an answer") {
        let (orgs, columns) = batch.columns().split_last().expect("the tenant");
        for row in 0..batch.num_rows() {
            assert_eq!(orgs.as_string::<i32>().value(row), "acme");
            let value = |column: &ArrayRef| {
                if column.is_null(row) { "∅".into() } else { array_value_to_string(column, row).expect("shown") }
            };
            rows.push(columns.iter().map(value).collect::<Vec<_>>().join(" "));
        }
    }
    rows.sort();
    rows
}

fn column(name: &str, kind: DataType) -> (Output, DataType) {
    (Output::Column(name.into()), kind)
}

#[test]
fn values_filters_and_groups_are_those_that_were_delivered() {
    in_a_schema(2, async |schema| {
        let log = MemoryLog::new(1024, 1 << 30);
        append(&log, events(0, 7)).await;
        append(&log, costs()).await;
        append(&log, events(7, 13)).await;
        deliver(schema, &log).await;
        let history = history(&schema.config);
        seen(&history, 15).await;

        let fields = history.snapshot().fields.fields("acme", Dataset::SecurityEvents);
        let wanted =
            [("f", FieldType::FLOAT), ("flag", FieldType::BOOL), ("n", FieldType::INT), ("own.text", FieldType::TEXT)];
        assert_eq!(fields.iter().map(|(name, kind)| (&**name, *kind)).collect::<Vec<_>>(), wanted);

        let all = || {
            let list = FieldType::list_of(Scalar::Int).data_type();
            let own = [
                column("n", DataType::Int64),
                column("f", DataType::Utf8),
                column("n", list),
                column("flag", DataType::Boolean),
            ];
            let core = [
                column("event_id", DataType::Utf8),
                column("actor", DataType::Utf8),
                column("own.text", DataType::Utf8),
            ];
            core.into_iter().chain(own).collect::<Vec<_>>()
        };
        let rows = shown(&history, RowsAsk { limit: None, ..ask(&history, all()) }).await;
        assert_eq!(rows.len(), 8);
        assert_eq!(rows[0], "e1 alice 'x'; -- t\"1 1 0.25 [1] ∅");
        assert!(rows.contains(&"e8 ∅ t\"8 8 2 [8] true".to_owned()), "{rows:?}");

        let id = || vec![column("event_id", DataType::Utf8)];
        let text = |text: &str| Value::Text(text.into());
        for (filter, wanted) in [
            (Filter::Compare("severity".into(), Comparison::GtEq, Value::Int(4)), vec!["e11", "e4"]),
            (
                Filter::Not(Box::new(Filter::Compare("severity".into(), Comparison::Lt, Value::Int(4)))),
                vec!["e11", "e4"],
            ),
            (Filter::In("actor".into(), vec![text("alice 'x'; --")]), vec!["e1", "e11", "e5", "e7"]),
            // By bytes, "Z" comes before "a".
            (Filter::Compare("actor".into(), Comparison::Lt, text("a")), vec!["e10", "e2"]),
            (Filter::Like("actor".into(), "Zo_".into()), vec!["e10", "e2"]),
            (Filter::IsNull("actor".into()), vec!["e4", "e8"]),
            (Filter::Compare("time".into(), Comparison::LtEq, Value::Time(START_US + 60_000_000)), vec!["e1"]),
            (Filter::OwnIn("own.text".into(), vec![text("t\"5"), text("t\"6")]), vec!["e5"]),
            (Filter::OwnCompare("n".into(), Comparison::Gt, Value::Int(9)), vec!["e10", "e11"]),
            (Filter::OwnIn("flag".into(), vec![Value::Bool(false)]), vec!["e10", "e2"]),
            (Filter::And(vec![Filter::OwnHas("flag".into()), Filter::IsNull("actor".into())]), vec!["e4", "e8"]),
        ] {
            let told = format!("{filter:?}");
            assert_eq!(
                shown(&history, RowsAsk { filters: vec![filter], ..ask(&history, id()) }).await,
                wanted,
                "{told}"
            );
        }

        let order = Order { column: "actor".into(), descending: true, nulls_first: false };
        let first = RowsAsk { order: vec![order], limit: Some(4), ..ask(&history, id()) };
        assert_eq!(shown(&history, first).await, ["e1", "e11", "e5", "e7"]);
        // Below a cursor in the middle of a batch.
        assert_eq!(shown(&history, RowsAsk { log_cursor: 3, ..ask(&history, id()) }).await, ["e1", "e2"]);

        let groups = vec![
            column("source", DataType::Utf8),
            (Output::Count, DataType::Int64),
            (Output::CountOf("actor".into()), DataType::Int64),
            (Output::Min("actor".into()), DataType::Utf8),
            (Output::Max("severity".into()), DataType::Int32),
            (Output::Sum("severity".into()), DataType::Int64),
        ];
        let wanted = ["s0 4 2 Zoë 4 7", "s1 4 4 alice 'x'; -- 4 5"];
        assert_eq!(shown(&history, ask(&history, groups)).await, wanted);
        let bins = vec![
            (Output::TimeTrunc(TimeUnit::Hour, "time".into()), timestamp_type()),
            (Output::TimeBin { width_us: 300_000_000, origin_us: START_US, column: "time".into() }, timestamp_type()),
            (Output::Count, DataType::Int64),
        ];
        let wanted = [
            "2026-01-01T00:00:00Z 2026-01-01T00:00:00Z 3",
            "2026-01-01T00:00:00Z 2026-01-01T00:05:00Z 3",
            "2026-01-01T00:00:00Z 2026-01-01T00:10:00Z 2",
        ];
        assert_eq!(shown(&history, ask(&history, bins)).await, wanted);
        let money = vec![
            (Output::Sum("billed_cost".into()), DataType::Decimal128(38, 15)),
            (Output::Max("billed_cost".into()), DataType::Decimal128(30, 15)),
        ];
        let money = RowsAsk { dataset: Dataset::CostEvents, ..ask(&history, money) };
        assert_eq!(shown(&history, money).await, ["12.445678901234567 12.345678901234567"]);
    });
}

#[test]
fn below_the_cursor_of_a_snapshot_each_row_is_there_once_while_deliveries_go_on() {
    in_a_schema(3, async |schema| {
        let log = MemoryLog::new(1024, 1 << 30);
        append(&log, events(0, 5)).await;
        deliver(schema, &log).await;
        let history = history(&schema.config);
        seen(&history, 5).await;
        let counting = async {
            let mut cursors = Vec::new();
            while cursors.last() != Some(&600) {
                let count = vec![(Output::Count, DataType::Int64), (Output::Max("time".into()), timestamp_type())];
                let mut whole = ask(&history, count);
                whole.orgs = ["acme".into(), "globex".into()].into();
                let cursor = whole.log_cursor;
                let answered = answer(&history, whole).await.expect("an answer");
                let counts = answered
                    .iter()
                    .flat_map(|batch| batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec());
                assert_eq!(counts.sum::<i64>() as u64, cursor);
                cursors.push(cursor);
            }
            cursors.dedup();
            cursors.len()
        };
        let delivering = async {
            for at in (5..600).step_by(35) {
                append(&log, events(at, at + 35)).await;
                deliver(schema, &log).await;
            }
        };
        let (cursors, ()) = tokio::join!(counting, delivering);
        assert!(cursors > 3, "the cursor has to move while it is counted");
        assert_eq!(history.oldest_live_cursors().0, 600);
    });
}

#[test]
fn a_question_that_is_left_or_late_stops_at_the_database() {
    in_a_schema(2, async |schema| {
        let log = MemoryLog::new(1024, 1 << 30);
        append(&log, events(0, 5)).await;
        deliver(schema, &log).await;
        let history = history(&schema.config);
        seen(&history, 5).await;
        let name = &schema.config.schema;
        let (client, connection) =
            tokio_postgres::connect(&schema.config.url, tokio_postgres::NoTls).await.expect("connected");
        tokio::spawn(connection);
        client.batch_execute(&format!("BEGIN; LOCK TABLE {name}.security_events")).await.expect("locked");
        let running = || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Lock'";
            schema.one(&format!("{waiting} AND query LIKE 'SELECT \"event_id\"%{name}%'"))
        };
        let id = || vec![column("event_id", DataType::Utf8)];
        let rows = history.snapshot().rows.clone().expect("a store that answers");
        let left = rows.read(ask(&history, id()));
        let until = Instant::now() + Duration::from_secs(20);
        while running() == "0" {
            assert!(Instant::now() < until, "the question has to reach the database");
        }
        drop(left);
        let dropped = Instant::now();
        while running() != "0" {
            assert!(dropped.elapsed() < Duration::from_secs(1), "the database still works on it");
        }
        assert_eq!(answer(&history, ask(&history, id())).await, Err(HistoryError::Timeout));
        client.batch_execute("ROLLBACK").await.expect("unlocked");
        assert_eq!(shown(&history, ask(&history, id())).await, ["e1", "e2", "e4"]);
    });
}

#[test]
fn a_name_with_a_nul_is_asked_for_as_it_is_stored() {
    in_a_schema(1, async |schema| {
        let log = MemoryLog::new(16, 1 << 20);
        let EventBatch { dataset, rows, keys } = events(0, 3);
        let mut columns: Vec<(String, ArrayRef)> = rows
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .zip(rows.columns().iter().cloned())
            .collect();
        let nul: ArrayRef = Arc::new(StringArray::from(vec!["x", "y\0", "z"]));
        columns.push(("nul\0name".to_owned(), nul));
        // More own fields than are asked for one by one.
        for at in 0..20 {
            columns.push((format!("own{at}"), Arc::new(Int64Array::from(vec![at; 3]))));
        }
        let rows = RecordBatch::try_from_iter(columns).expect("a batch");
        append(&log, EventBatch { dataset, rows, keys }).await;
        deliver(schema, &log).await;
        let history = history(&schema.config);
        seen(&history, 3).await;
        let column = |name: &str, kind: DataType| (Output::Column(name.into()), kind);
        let name = "nul\0name";
        for more in [0, 20] {
            let mut outputs = vec![column(name, DataType::Utf8)];
            outputs.extend((0..more).map(|at| column(&format!("own{at}"), DataType::Int64)));
            let found = answer(&history, ask(&history, outputs)).await.expect("an answer");
            let mut texts: Vec<_> =
                found.iter().flat_map(|rows| rows.column(0).as_string::<i32>().iter()).flatten().collect();
            texts.sort_unstable();
            assert_eq!(texts, ["y\u{fffd}", "z"], "with {more} others");
        }
        let text = |text: &str| Value::Text(text.into());
        for filter in [
            Filter::OwnHas(name.into()),
            Filter::OwnIn(name.into(), vec![text("y\0"), text("z")]),
            Filter::OwnCompare(name.into(), Comparison::GtEq, text("y\0")),
            Filter::Or(vec![
                Filter::Compare("actor".into(), Comparison::NotEq, text("a\0")),
                Filter::IsNull("actor".into()),
                Filter::In("actor".into(), vec![text("\0")]),
                Filter::Like("actor".into(), "\0%".into()),
            ]),
        ] {
            let asked =
                RowsAsk { filters: vec![filter.clone()], ..ask(&history, vec![column("event_id", DataType::Utf8)]) };
            let found = answer(&history, asked).await.unwrap_or_else(|error| panic!("{filter:?}: {error}"));
            let rows: usize = found.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(rows, 2, "{filter:?}");
        }
    });
}
