//! Queries end: in time, when they are left, and when they need too much.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tidegate_pipeline::keys::Role;
use tidegate_query::{QueryConfig, QueryError, Scope};

use super::fixture::{Mode, QUIET, World, principal};

/// Statements that would run for minutes, each stuck in another place.
const ENDLESS: [&str; 5] = [
    "SELECT count(*) FROM generate_series(1,1000000) a, generate_series(1,1000000) b",
    "SELECT count(*) FROM generate_series(1,1000000) a JOIN generate_series(1,1000000) b ON a.value + b.value < 0",
    "SELECT count(*) FROM generate_series(1,1000000) a CROSS JOIN generate_series(1,1000000) b WHERE a.value * b.value = -1",
    "SELECT a.value % 7, sum(b.value) FROM generate_series(1,1000000) a, generate_series(1,1000000) b GROUP BY 1",
    "SELECT count(*) FROM generate_series(1,100000) a JOIN generate_series(1,100000) b ON a.value % 2 = b.value % 2",
];

async fn ended(world: &World, within: Duration) -> bool {
    let until = Instant::now() + within;
    while Instant::now() < until {
        if world.query.running() == 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_over_its_time_is_told_so_and_frees_its_threads() {
    let _quiet = QUIET.lock().await;
    let world = World::empty(QueryConfig { query_ms_max: 400, ..QueryConfig::default() });
    for sql in ENDLESS {
        let started = Instant::now();
        let error = match world.query.sql(&Scope::tenant("acme"), sql).await {
            Ok(rows) => rows.collect().await.expect_err("too slow"),
            Err(error) => error,
        };
        assert_eq!(error, QueryError::Timeout { ms_max: 400 }, "{sql}");
        assert!(started.elapsed() < Duration::from_millis(1_400), "{sql}: {:?}", started.elapsed());
        assert!(ended(&world, Duration::from_secs(1)).await, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_left_frees_its_threads() {
    let _quiet = QUIET.lock().await;
    let world = World::empty(QueryConfig::default());
    for sql in ENDLESS {
        let mut rows = world.query.sql(&Scope::tenant("acme"), sql).await.expect("a stream");
        let waited = tokio::time::timeout(Duration::from_millis(100), rows.next()).await;
        assert!(waited.is_err(), "{sql} is over: {waited:?}");
        drop(rows);
        assert!(ended(&world, Duration::from_secs(1)).await, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_before_or_after_the_first_bytes_frees_the_threads() {
    let _quiet = QUIET.lock().await;
    let world = World::empty(QueryConfig::default());
    let post = |sql: &str| Request::post("/v2/sql").body(Full::new(Bytes::from(sql.to_owned()))).expect("a request");
    let who = principal("acme", Role::Read);
    let endless = "SELECT a.value, b.value AS other FROM generate_series(1,1000000) a, generate_series(1,1000000) b";

    let response = world.query.handle_sql(post(endless), &who, "r").await;
    assert_eq!(response.status(), 200);
    assert_eq!(world.query.running(), 1, "it waits for its reader");
    drop(response);
    assert!(ended(&world, Duration::from_secs(1)).await, "after the first bytes");

    let waiting = world.query.handle_sql(post(ENDLESS[0]), &who, "r");
    assert!(tokio::time::timeout(Duration::from_millis(200), waiting).await.is_err());
    assert!(ended(&world, Duration::from_secs(1)).await, "before the first bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_rows_and_queries_have_bounds() {
    let _quiet = QUIET.lock().await;
    let config = QueryConfig {
        query_memory_bytes_max: 4 << 20,
        rows_max: 1000,
        tenant_queries_max: 2,
        queries_max: 3,
        ..QueryConfig::default()
    };
    let world = World::empty(config);
    let acme = Scope::tenant("acme");
    let all = |sql: &'static str| {
        let (query, acme) = (world.query.clone(), acme.clone());
        async move { query.sql(&acme, sql).await?.collect().await }
    };
    let sorted =
        all("SELECT value, value::text || 'padding' AS t FROM generate_series(1,1000000) ORDER BY t DESC, value").await;
    assert_eq!(sorted.expect_err("too much").code(), "query_memory");
    assert_eq!(all("SELECT * FROM generate_series(1,1001)").await.expect_err("too many").code(), "result_too_large");
    // What a failed query had is free once its threads have stopped, which the next may otherwise be turned away for.
    assert!(ended(&world, Duration::from_secs(1)).await);
    all("SELECT * FROM generate_series(1,1000)").await.expect("as many rows as there may be");

    let first = world.query.sql(&acme, "SELECT * FROM generate_series(1,1000000)").await.expect("the first");
    let second = world.query.sql(&acme, "SELECT * FROM generate_series(1,1000000)").await.expect("the second");
    assert_eq!(all("SELECT 1").await.expect_err("the tenant's third").status(), 429);
    let third =
        world.query.sql(&Scope::tenant("globex"), "SELECT * FROM generate_series(1,1000000)").await.expect("the third");
    let fourth = world.query.sql(&Scope::tenant("initech"), "SELECT 1").await;
    assert_eq!(fourth.expect_err("the fourth").code(), "too_many_queries");
    drop((first, second, third));
    assert!(ended(&world, Duration::from_secs(1)).await);
    assert!(all("SELECT 1").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_calls_of_a_plan_may_make_is_bounded_by_the_memory_of_its_query() {
    let config = QueryConfig { query_memory_bytes_max: 1 << 20, ..QueryConfig::default() };
    let world = World::told_with(Mode::Tail, config).await;
    // Two calls share four times of it: 2 MiB each, and `alice` has 5 bytes.
    for (times, fits) in [(300_000, true), (500_000, false)] {
        let sql = format!("SELECT length(repeat(actor, {times})) FROM security_events WHERE event_id = 'a1'");
        let rows = world.query.sql(&Scope::tenant("acme"), &sql).await.expect("a stream").collect().await;
        assert_eq!(rows.map_err(|error| error.code()).err(), (!fits).then_some("result_too_large"), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_lives_as_long_as_its_query() {
    let world = World::told(Mode::Mixed).await;
    let snapshot = std::sync::Arc::downgrade(&*world.history.0.lock());
    let sql = "SELECT * FROM security_events, generate_series(1, 100000)";
    let mut rows = world.query.sql(&Scope::tenant("acme"), sql).await.expect("a stream");
    *world.history.0.lock() = std::sync::Arc::default();
    assert!(rows.next().await.is_some_and(|batch| batch.is_ok()));
    assert!(snapshot.upgrade().is_some(), "a query reads from it");
    drop(rows);
    assert!(ended(&world, Duration::from_secs(1)).await);
    assert!(snapshot.upgrade().is_none(), "nobody reads from it");
}
