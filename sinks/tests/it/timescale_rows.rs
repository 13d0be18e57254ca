//! What rows look like in the database: types, own fields, odd values, odd times.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use tidegate_events::Dataset;
use tidegate_pipeline::{Delivery, LogBatch, Sink};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{ExtensionUse, Leases, script};

use crate::postgres::Schema;

fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn times(values: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
}

fn batch(dataset: Dataset, offset: u64, columns: Vec<(&str, ArrayRef)>) -> Arc<LogBatch> {
    let rows = RecordBatch::try_from_iter(columns).expect("columns of one length");
    Arc::new(LogBatch { offset, dataset, rows })
}

fn store(schema: &Schema, batches: Vec<Arc<LogBatch>>) {
    let mut sink = schema.sink(LogSource::Ingest);
    let next_offset = batches.last().expect("a batch").next_offset();
    schema.block_on(async move {
        sink.write(Delivery { batches, next_offset }).await.expect("taken");
        sink.flush().await.expect("committed");
    });
}

/// 2026-11-22 00:00 UTC.
const DAY: i64 = 1_795_305_600_000_000;

#[test]
fn every_type_arrives_as_it_was_and_own_fields_in_attributes() {
    let schema = Schema::new();
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.append_value([Some("a\"b"), None]);
    lists.append_value(Vec::<Option<&str>>::new());
    lists.append_null();
    let security = batch(
        Dataset::SecurityEvents,
        10,
        vec![
            ("time", times(vec![DAY + 1, DAY + 2, DAY + 3])),
            ("event_id", texts(&[Some("1"), Some("2"), Some("3")])),
            ("org_id", texts(&[Some("acme"); 3])),
            ("severity", Arc::new(Int32Array::from(vec![Some(6), None, Some(-1)]))),
            ("message", texts(&[Some("naïve\0\u{1}"), None, Some("")])),
            ("a.int", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, None]))),
            ("a.float", Arc::new(Float64Array::from(vec![Some(0.1), None, None]))),
            ("a.bool", Arc::new(BooleanArray::from(vec![Some(true), None, None]))),
            ("a.list", Arc::new(lists.finish())),
            ("_rest", texts(&[Some(r#"{"deep":[{"x":null}],"nul":"\u0000"}"#), None, None])),
        ],
    );
    let money: i128 = 123_456_789_012_345_678_901_234_567_890;
    let cost = Decimal128Array::from(vec![Some(money), Some(-1), None]).with_precision_and_scale(30, 15);
    let cost = batch(
        Dataset::CostEvents,
        13,
        vec![
            ("time", times(vec![DAY; 3])),
            ("event_id", texts(&[Some("4"), Some("5"), Some("6")])),
            ("org_id", texts(&[Some("acme"); 3])),
            ("billed_cost", Arc::new(cost.expect("a scale"))),
        ],
    );
    store(&schema, vec![security, cost]);
    let rows = schema.query(
        "SELECT time, severity, message, attributes, log_id, log_offset FROM security_events ORDER BY log_offset",
    );
    let own = "{\"_rest\": {\"nul\": \"\u{fffd}\", \"deep\": [{\"x\": null}]}, \"a.int\": -9223372036854775808, \
               \"a.bool\": true, \"a.list\": [\"a\\\"b\", null], \"a.float\": 0.1}";
    assert_eq!(rows[0], ["2026-11-22 00:00:00.000001+00", "6", "naïve\u{fffd}\u{1}", own, "1", "10"]);
    assert_eq!(rows[1], ["2026-11-22 00:00:00.000002+00", "NULL", "NULL", "{\"a.list\": []}", "1", "11"]);
    assert_eq!(rows[2], ["2026-11-22 00:00:00.000003+00", "-1", "", "NULL", "1", "12"]);
    let costs = schema.query("SELECT billed_cost FROM cost_events ORDER BY log_offset");
    assert_eq!(costs, [["123456789012345.67890123456789"], ["-0.000000000000001"], ["NULL"]]);
}

#[test]
fn two_names_that_the_database_cannot_tell_apart_are_one_field() {
    let schema = Schema::new();
    let rows = batch(
        Dataset::SecurityEvents,
        0,
        vec![
            ("time", times(vec![DAY])),
            ("event_id", texts(&[Some("1")])),
            ("org_id", texts(&[Some("acme")])),
            ("a\0", Arc::new(Int64Array::from(vec![7]))),
            ("a\u{fffd}", texts(&[Some("text")])),
        ],
    );
    store(&schema, vec![rows]);
    assert_eq!(schema.query("SELECT attributes FROM security_events"), [["{\"a\u{fffd}\": \"text\"}"]]);
    // The type that both fit into.
    assert_eq!(schema.query("SELECT name, type FROM fields"), [["a\u{fffd}", "3"]]);
}

#[test]
fn lists_of_core_columns_are_arrays() {
    let schema = Schema::new();
    let mut tags = ListBuilder::new(StringBuilder::new());
    tags.append_value([Some("attack.t1078"), None, Some("x\0")]);
    tags.append_value(Vec::<Option<&str>>::new());
    let alerts = batch(
        Dataset::Alerts,
        0,
        vec![
            ("time", times(vec![DAY; 2])),
            ("event_id", texts(&[Some("1"), Some("2")])),
            ("org_id", texts(&[Some("acme"); 2])),
            ("seq", Arc::new(Int64Array::from(vec![7, 8]))),
            ("tags", Arc::new(tags.finish())),
        ],
    );
    store(&schema, vec![alerts]);
    let rows = schema.query("SELECT seq, tags, array_length(tags, 1) FROM alerts ORDER BY seq");
    assert_eq!(rows, [["7", "{attack.t1078,NULL,x\u{fffd}}", "3"], ["8", "{}", "NULL"]]);
}

#[test]
fn odd_times_have_a_place_and_partitions_are_bounded() {
    let mut schema = Schema::new();
    schema.config.chunks_max = 4;
    let day = 86_400_000_000;
    let odd =
        [0, 100 * day, 200 * day, 300 * day, 400 * day, 500 * day, -60_000_000_000_000_000, 250_000_000_000_000_000];
    let ids: Vec<String> = (0..odd.len()).map(|at| at.to_string()).collect();
    let ids: Vec<Option<&str>> = ids.iter().map(|id| Some(id.as_str())).collect();
    let rows = batch(
        Dataset::SecurityEvents,
        0,
        vec![
            ("time", times(odd.to_vec())),
            ("event_id", texts(&ids)),
            ("org_id", texts(&vec![Some("acme"); odd.len()])),
        ],
    );
    store(&schema, vec![rows]);
    assert_eq!(schema.ids().len(), odd.len());
    assert_eq!(schema.one("SELECT count(*) FROM security_events_default"), "4", "the first four have partitions");
    let now = tidegate_pipeline::clock::now_us();
    let near =
        vec![("time", times(vec![now])), ("event_id", texts(&[Some("now")])), ("org_id", texts(&[Some("acme")]))];
    store(&schema, vec![batch(Dataset::SecurityEvents, odd.len() as u64, near)]);
    assert_eq!(schema.one("SELECT count(*) FROM security_events_default"), "4", "the present always has one");
}

#[test]
fn a_schema_is_made_once_by_many_that_start_together_and_is_as_the_script_says() {
    let mut schema = Schema::new();
    schema.config.aggregates = true;
    let stores: Vec<_> = (0..3).map(|_| schema.store()).collect();
    schema.block_on(async {
        let asked = stores.iter().map(|store| store.log_id(LogSource::Output));
        assert_eq!(futures::future::try_join_all(asked).await.expect("ready"), [2, 2, 2]);
        stores[0].keep_house().await.expect("kept");
        stores[1].keep_house().await.expect("kept again");
        let mut leases = Leases::new(schema.config.clone(), "worker", Duration::from_secs(60)).expect("leases");
        leases.round(1, false).await.expect("a round");
    });
    let migrations = "SELECT version, name, timescaledb FROM migrations ORDER BY 1";
    let made_by = schema.query(migrations);
    let names: Vec<&str> = made_by.iter().map(|row| row[1].as_str()).collect();
    assert_eq!(names, ["tables", "aggregates", "fields"]);
    assert_eq!(schema.query("SELECT log_id, log FROM logs ORDER BY 1"), [["1", "ingest"], ["2", "output"]]);
    let columns = "SELECT table_name, column_name, data_type FROM information_schema.columns \
                   WHERE table_schema = '{}' AND table_name !~ '_[0-9]{10}$' ORDER BY 1, 2";
    let of = |name: &str| schema.query(&columns.replace("{}", name));
    let made = of(&schema.config.schema);
    let mut by_script = Schema::new();
    by_script.config.aggregates = true;
    let extension = schema.one("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'") == "1";
    by_script.config.extension = if extension { ExtensionUse::Auto } else { ExtensionUse::Off };
    by_script.query(&format!("{}; SELECT 1", script(&by_script.config)));
    let by_hand = of(&by_script.config.schema);
    let differ = made.iter().zip(&by_hand).find(|(made, by_hand)| made != by_hand);
    assert_eq!((differ, made.len()), (None, by_hand.len()));
    // Whoever ran the script leaves nothing to make.
    assert_eq!(by_script.query(migrations), made_by);
    by_script.block_on(async { assert_eq!(by_script.store().log_id(LogSource::Output).await.expect("ready"), 2) });
}

#[test]
fn aggregates_count_events_alerts_and_costs_by_tag() {
    let mut schema = Schema::new();
    schema.config.aggregates = true;
    let now = tidegate_pipeline::clock::now_us() - 180_000_000;
    let head = |ids: &[Option<&str>]| {
        vec![
            ("time", times(vec![now; ids.len()])),
            ("event_id", texts(ids)),
            ("org_id", texts(&vec![Some("acme"); ids.len()])),
            ("source", texts(&vec![Some("s"); ids.len()])),
        ]
    };
    let events = batch(Dataset::SecurityEvents, 0, head(&[Some("1"), Some("2")]));
    let mut columns = head(&[Some("3"), Some("4")]);
    let money = Decimal128Array::from(vec![1_500_000_000_000_000, 2_000_000_000_000_000]);
    columns.extend([
        ("billed_cost", Arc::new(money.with_precision_and_scale(30, 15).expect("a scale")) as ArrayRef),
        ("service_name", texts(&[Some("db"), Some("db")])),
        ("tags", texts(&[Some(r#"{"team":"x","env":"p"}"#), Some("not json")])),
    ]);
    let mut alert = head(&[Some("5")]);
    alert.extend([
        ("rule_id", texts(&[Some("r")])),
        ("title", texts(&[Some("A rule")])),
        ("level", texts(&[Some("high")])),
        ("event_count", Arc::new(Int64Array::from(vec![3])) as ArrayRef),
    ]);
    let alerts = batch(Dataset::Alerts, 4, alert);
    store(&schema, vec![events, batch(Dataset::CostEvents, 2, columns), alerts]);
    let database = schema.store();
    schema.block_on(async { database.keep_house().await.expect("kept") });
    assert_eq!(schema.query("SELECT org_id, source, events FROM events_per_minute"), [["acme", "s", "2"]]);
    let tags = schema.query("SELECT key, value, billed_cost FROM cost_per_day_by_tag ORDER BY key");
    assert_eq!(tags, [["env", "p", "1.5"], ["team", "x", "1.5"]]);
    assert_eq!(schema.one("SELECT sum(billed_cost) FROM cost_per_day"), "3.5");
    let alerts = schema.query("SELECT org_id, rule_id, title, level, alerts, events FROM alerts_per_hour");
    assert_eq!(alerts, [["acme", "r", "A rule", "high", "1", "3"]]);
}

#[test]
fn own_fields_have_an_index_where_that_is_wanted() {
    let indexes = "SELECT tablename FROM pg_indexes WHERE schemaname = current_schema() AND indexdef LIKE '%gin%jsonb_path_ops%' \
                   AND tablename IN ('alerts', 'changes', 'cost_events', 'dead_letters', 'security_events') ORDER BY 1";
    for attributes_index in [false, true] {
        let mut schema = Schema::new();
        schema.config.attributes_index = attributes_index;
        let database = schema.store();
        schema.block_on(async { database.log_id(LogSource::Ingest).await.expect("ready") });
        let tables = ["alerts", "changes", "cost_events", "dead_letters", "security_events"];
        let expected: Vec<[&str; 1]> = tables.into_iter().filter(|_| attributes_index).map(|table| [table]).collect();
        assert_eq!(schema.query(indexes), expected);
    }
}

#[test]
fn retention_drops_old_partitions_and_old_rows_of_the_default() {
    let mut schema = Schema::new();
    let old = -60_000_000_000_000_000;
    let now = tidegate_pipeline::clock::now_us();
    let long_ago = now - 90 * 86_400_000_000;
    let rows = vec![
        ("time", times(vec![old, long_ago, now])),
        ("event_id", texts(&[Some("1"), Some("2"), Some("3")])),
        ("org_id", texts(&[Some("acme"); 3])),
    ];
    store(&schema, vec![batch(Dataset::SecurityEvents, 0, rows)]);
    assert_eq!(schema.ids().len(), 3);
    // Only now: a policy of the extension may run at once.
    schema.config.retention.security_events = Some(30);
    let database = schema.store();
    schema.block_on(async { database.keep_house().await.expect("kept") });
    // A policy of the extension runs when it likes; it is run here.
    schema.query(
        "DO $$ DECLARE job int; BEGIN IF EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'timescaledb') THEN \
         FOR job IN EXECUTE format('SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = ''policy_retention'' \
         AND hypertable_schema = %L', current_schema()) LOOP EXECUTE format('CALL public.run_job(%s)', job); END LOOP; \
         END IF; END $$; SELECT 1",
    );
    assert_eq!(schema.ids(), ["3"]);
}
