//! History from PostgreSQL: the suites of the query layer over tables that the TimescaleDB sink wrote, rows that move while
//! queries run, and a database that goes away.

#[path = "../../query/tests/it/fixture.rs"]
#[allow(dead_code, reason = "only the parts that need a database are run here")]
mod fixture;
#[path = "../../query/tests/it/hostile.rs"]
mod hostile;
#[path = "../../query/tests/it/slt.rs"]
mod slt;
#[path = "../../query/tests/it/tenants.rs"]
mod tenants;
#[path = "history_twin.rs"]
mod twin;
#[path = "../../query/tests/it/whole.rs"]
mod whole;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use tidegate_events::{Dataset, FieldType};
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{History, LogReader, StreamLog};
use tidegate_query::{Query, QueryConfig, QueryParts, Scope};
use tidegate_sinks::parquet::LogSource;

use crate::faulty_proxy::{self, Proxy};
use fixture::{Mode, World, Writer, append, raised, rows};
use twin::{Kept, deliver, deliver_as, history};

/// Rows `from..to`, numbered by `n`.
fn numbered(from: u64, to: u64) -> arrow::array::RecordBatch {
    let line = |at: u64| {
        let (minute, org) = (at * 7 % 60, if at.is_multiple_of(3) { "globex" } else { "acme" });
        format!(
            r#"{{"time":"2026-01-01T00:{minute:02}:00Z","received_time":"2026-01-01T00:00:00Z","event_id":"e{at}","org_id":"{org}","source":"s","severity":1,"n":{at}}}"#
        )
    };
    let lines: Vec<String> = (from..to).map(line).collect();
    rows(Dataset::SecurityEvents, &[("n", FieldType::INT)], &lines.join("\n"))
}

async fn numbers(query: &Query, sql: &str) -> Vec<i64> {
    let rows = query.sql(&Scope::tenant("acme"), sql).await.expect("a stream").collect().await.expect("rows");
    let columns = rows.iter().find(|batch| batch.num_rows() > 0).expect("a row").columns().to_vec();
    columns.iter().map(|column| column.as_primitive::<Int64Type>().value(0)).collect()
}

/// A query layer over the logs of a world and the history in a database.
fn query_over(world: &World, history: Arc<dyn History>) -> Query {
    let fields = world.fields.clone();
    let parts = QueryParts {
        log: world.log.clone(),
        log_datasets: &Dataset::ALL,
        output: world.output.clone(),
        history,
        files: None,
        log_fields: Arc::new(move || fields.lock().clone()),
        config: QueryConfig::default(),
        cpu: tokio::runtime::Handle::current(),
    };
    Query::new(parts).expect("a query layer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_is_seen_once_while_rows_arrive_and_are_delivered() {
    let world = Arc::new(World::empty(QueryConfig::default()));
    let kept = Kept::new(3).await;
    let history = history(&kept.config);
    let query = query_over(&world, history.clone());
    world.append(Dataset::SecurityEvents, numbered(0, 6)).await;
    let writer = Writer::start(&world, numbered, (6, 20_000), Duration::from_millis(2));
    let (acknowledged, done) = (writer.acknowledged.clone(), writer.done.clone());
    let delivery = {
        let (world, done, config) = (world.clone(), done.clone(), kept.config.clone());
        let history = history.clone();
        tokio::spawn(async move {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                // Each round is a process that starts anew; some end without a flush.
                deliver(&config, LogSource::Ingest, &world.log, 300, rounds % 3 != 2).await;
                world.log.forget(history.oldest_live_cursors().0).expect("forgotten");
                rounds += 1;
            }
            rounds
        })
    };
    let until = Instant::now() + Duration::from_secs(60);
    while history.snapshot().log_cursor == 0 {
        assert!(Instant::now() < until, "nothing was delivered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut cursors, mut last) = (Vec::new(), 0);
    for round in 0..40u32 {
        let before = acknowledged.load(Ordering::SeqCst);
        cursors.push(history.snapshot().log_cursor);
        // Whether the database counts or the rows are counted here.
        let sql = if round % 2 == 0 {
            "SELECT count(*), count(DISTINCT event_id), max(n) FROM security_events"
        } else {
            "SELECT (SELECT count(*) FROM security_events), (SELECT count(DISTINCT event_id) FROM security_events WHERE severity = 1), (SELECT max(n) FROM security_events)"
        };
        let [count, distinct, largest] = numbers(&query, sql).await[..] else { panic!("three numbers") };
        assert_eq!(count, distinct, "round {round}: a row twice");
        let expected = (0..=largest).filter(|at| at % 3 != 0).count() as i64;
        assert_eq!(count, expected, "round {round}: a row is missing below {largest}");
        assert!(largest + 3 > before as i64 && count >= last, "round {round}: {before} {largest} {count} {last}");
        last = count;
    }
    writer.end().await;
    assert!(delivery.await.expect("the delivery") > 3);
    cursors.dedup();
    assert!(cursors.len() > 3, "the cursor has to move while queries run: {cursors:?}");
    assert!(world.log.bounds().first > 0, "the log has to forget what the database has");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_is_told_so_and_found_again() {
    let world = World::told(Mode::AskedMixed).await;
    let kept = world.kept.get().expect("a database");
    let (before, after) = kept.config.url.split_once('@').expect("a user");
    let (host, path) = after.split_once('/').expect("a database");
    let host = host.to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::new(&host)).await.expect("a proxy");
    // It has a runtime of its own, which must not end in this one.
    let proxy: &'static Proxy = Box::leak(Box::new(proxy));
    let mut config = kept.config.clone();
    config.url = format!("{before}@{}/{path}", proxy.address);
    config.connect_ms_max = 1_000;

    proxy.set(faulty_proxy::Mode::Refuse);
    let history = history(&config);
    let query = query_over(&world, history.clone());
    let counted = async || {
        let rows = query.sql(&Scope::tenant("acme"), "SELECT count(*) FROM security_events").await?.collect().await?;
        Ok::<_, tidegate_query::QueryError>(rows[0].column(0).as_primitive::<Int64Type>().value(0))
    };
    let down = async || {
        let error = counted().await.expect_err("no database");
        assert_eq!((error.code(), error.status()), ("history_unavailable", 503));
        assert!(!error.hint().is_empty());
    };
    let up = async || {
        let until = Instant::now() + Duration::from_secs(20);
        while counted().await.is_err() {
            assert!(Instant::now() < until, "the database is back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(counted().await, Ok(8));
    };
    // From the start, once it was seen, and once more.
    down().await;
    proxy.set(faulty_proxy::Mode::Pass);
    up().await;
    proxy.set(faulty_proxy::Mode::Refuse);
    down().await;
    proxy.set(faulty_proxy::Mode::Pass);
    up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_left_stops_at_the_database_too() {
    let world = World::told(Mode::Asked).await;
    let kept = world.kept.get().expect("a database");
    let client = kept.client().await;
    let schema = &kept.config.schema;
    // Whoever reads waits until this transaction ends.
    client.batch_execute(&format!("BEGIN; LOCK TABLE {schema}.security_events")).await.expect("locked");
    let other = kept.client().await;
    let like = format!("%{schema}%security_events%");
    let running = async || {
        let sql =
            "SELECT query FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Lock' AND query LIKE $1";
        let rows = other.query(sql, &[&like]).await.expect("activity");
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    let mut stream =
        world.query.sql(&Scope::tenant("acme"), "SELECT event_id FROM security_events").await.expect("a stream");
    let until = Instant::now() + Duration::from_secs(20);
    let asked = loop {
        if let Some(asked) = running().await.pop() {
            break asked;
        }
        assert!(tokio::time::timeout(Duration::from_millis(50), stream.next()).await.is_err(), "it waits");
        assert!(Instant::now() < until, "the query has to reach the database");
    };
    // Whose rows they are is asked there, not only looked at here.
    assert!(asked.contains(" WHERE org_id = $1 AND ("), "{asked}");
    drop(stream);
    let left = Instant::now();
    while !running().await.is_empty() {
        assert!(left.elapsed() < Duration::from_secs(1), "the database still works on it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.batch_execute("ROLLBACK").await.expect("unlocked");
    let rows = world.query.sql(&Scope::tenant("acme"), "SELECT event_id FROM security_events").await.expect("a stream");
    assert_eq!(rows.collect().await.expect("rows").iter().map(|batch| batch.num_rows()).sum::<usize>(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_for_the_feed_are_of_all_partitions_and_of_no_other_installation() {
    let world = World::told(Mode::AskedParts).await;
    let history = twin::answer_parts(&world).await;
    let fed = async || world.query.alerts_after("acme", -1, i64::MAX, 100).await.expect("alerts").len();
    let count = async || numbers(&world.query, "SELECT count(*) FROM alerts").await[0];
    let (told, all) = (fed().await, count().await);
    assert!(told > 0 && told as i64 == all, "{told} of {all}");
    let other = MemoryLog::new(16, 1 << 30);
    for (dataset, rows) in raised() {
        append(&other, dataset, rows).await;
    }
    let config = &world.kept.get().expect("a database").config;
    deliver_as("0193a4e2-0000-7000-8000-00000000ffff", config, (LogSource::Output, &other), 5, true).await;
    history.looked(Duration::from_secs(20)).await;
    twin::answer_parts(&world).await;
    assert_eq!((fed().await, count().await), (told, 2 * all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_shows_what_the_database_is_asked() {
    let world = World::told(Mode::AskedMixed).await;
    for (sql, wanted) in [
        (
            "SELECT source, count(*), sum(severity) FROM security_events WHERE severity >= 3 GROUP BY source",
            "columns=[source, count(*), sum(severity)], filters=[severity >= 3], group_by=[source]",
        ),
        (
            "SELECT event_id FROM security_events WHERE actor LIKE 'al%' ORDER BY time DESC LIMIT 2",
            "columns=[time, event_id], filters=[actor LIKE 'al%'], order_by=[time DESC NULLS FIRST], limit=2",
        ),
        ("SELECT sum(billed_cost) FROM cost_events", "columns=[sum(billed_cost)], group_by=[]"),
    ] {
        let rows = world.query.sql(&Scope::tenant("acme"), &format!("EXPLAIN {sql}")).await.expect("a plan");
        let rows = rows.collect().await.expect("rows");
        let plan = arrow::util::pretty::pretty_format_batches(&rows).expect("text").to_string();
        assert!(plan.contains("HistoryRowsExec: table=") && plan.contains(wanted), "{sql}\n{plan}");
    }
}
