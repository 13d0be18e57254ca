//! What a store that answers questions is asked: as much of a query as it can answer exactly, and nothing else.

use tidegate_events::Dataset;
use tidegate_pipeline::HistoryError;
use tidegate_query::{QueryConfig, QueryError, Scope};

use super::fixture::{Mode, World};
use super::twin::answer;

/// The plan of a statement, its history only.
async fn asked(world: &World, sql: &str) -> Vec<String> {
    let rows = world.query.sql(&Scope::tenant("acme"), &format!("EXPLAIN {sql}")).await.expect("a plan");
    let rows = rows.collect().await.expect("rows");
    let text = arrow::util::pretty::pretty_format_batches(&rows).expect("text").to_string();
    let of_history = text.lines().filter_map(|line| line.split_once("HistoryRowsExec: ")).map(|(_, asked)| asked);
    of_history.map(|asked| asked.trim_end_matches(['|', ' ']).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projection_filters_limits_sorts_and_aggregates_are_asked_for() {
    let world = World::told(Mode::AskedMixed).await;
    for (sql, wanted) in [
        ("SELECT event_id FROM security_events", "columns=[event_id]"),
        ("SELECT event_id FROM security_events LIMIT 3", "columns=[event_id], limit=3"),
        (
            "SELECT event_id FROM security_events WHERE severity >= 3 AND actor IN ('bob', 'eve') LIMIT 3",
            "columns=[event_id], filters=[severity >= 3, (actor = 'bob' OR actor = 'eve')], limit=3",
        ),
        // More rows may come for an own field: neither limit nor sort can go along.
        (
            "SELECT event_id FROM security_events WHERE \"Case\" = 'Kept' ORDER BY time DESC LIMIT 3",
            "columns=[time, event_id, Case], filters=[Case = 'Kept']",
        ),
        (
            "SELECT event_id, time FROM security_events WHERE severity > 1 ORDER BY time DESC, event_id LIMIT 2",
            "columns=[time, event_id], filters=[severity > 1], order_by=[time DESC NULLS FIRST, event_id ASC NULLS LAST], limit=2",
        ),
        ("SELECT event_id FROM security_events ORDER BY length(actor) LIMIT 2", "columns=[event_id, actor]"),
        ("SELECT count(*) FROM security_events", "columns=[count(*)], group_by=[]"),
        (
            "SELECT source, count(*), count(actor), min(time), max(severity), sum(severity) FROM security_events GROUP BY source",
            "columns=[source, count(*), count(actor), min(time), max(severity), sum(severity)], group_by=[source]",
        ),
        (
            "SELECT date_trunc('hour', time) AS hour, count(*) FROM security_events WHERE severity > 1 GROUP BY hour",
            "columns=[date_trunc(hour, time), count(*)], filters=[severity > 1], group_by=[date_trunc(hour, time)]",
        ),
        (
            "SELECT date_bin(INTERVAL '15 minutes', time) AS bin, max(actor) FROM security_events GROUP BY bin",
            "columns=[date_bin(900000000 us, time), max(actor)], group_by=[date_bin(900000000 us, time)]",
        ),
        ("SELECT DISTINCT source FROM security_events", "columns=[source], group_by=[source]"),
        (
            "SELECT sum(billed_cost), min(billed_cost) FROM cost_events",
            "columns=[sum(billed_cost), min(billed_cost)], group_by=[]",
        ),
        // What is not surely the same there is computed here.
        ("SELECT count(DISTINCT actor) FROM security_events", "columns=[actor], group_by=[actor]"),
        ("SELECT n, count(*) FROM security_events GROUP BY n", "columns=[n]"),
        ("SELECT avg(severity) FROM security_events", "columns=[severity]"),
        ("SELECT lower(actor), count(*) FROM security_events GROUP BY lower(actor)", "columns=[actor]"),
        ("SELECT count(*) FROM security_events WHERE lower(actor) = 'bob'", "columns=[actor]"),
        ("SELECT count(*) FILTER (WHERE severity > 2) FROM security_events", "columns=[severity]"),
    ] {
        let found = asked(&world, sql).await;
        let [found] = &found[..] else { panic!("{sql}: {found:?}") };
        let found = found.split_once(", ").expect("the table first").1;
        assert_eq!(found, wanted, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_is_asked_for_the_tenants_rows_below_the_cursors_only() {
    let world = World::told(Mode::AskedMixed).await;
    let store = answer(&world, 9, 2).await;
    let sql = "SELECT count(*) FROM security_events WHERE org_id <> 'acme' OR severity > 0";
    world.query.sql(&Scope::tenant("acme"), sql).await.expect("a stream").collect().await.expect("rows");
    let asked = store.asked.lock();
    let [ask] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((ask.dataset, &*ask.orgs[0], ask.orgs.len()), (Dataset::SecurityEvents, "acme", 1));
    assert_eq!((ask.log_cursor, ask.output_cursor), (9, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_other_installations_are_asked_for_but_where_offsets_count() {
    let world = World::told(Mode::AskedMixed).await;
    let store = answer(&world, 9, 2).await;
    world
        .query
        .sql(&Scope::tenant("acme"), "SELECT * FROM alerts")
        .await
        .expect("a stream")
        .collect()
        .await
        .expect("rows");
    world.query.alerts_after("acme", -1, 9, 9).await.expect("alerts");
    let asked: Vec<_> = store.asked.lock().iter().map(|ask| (ask.dataset, ask.others)).collect();
    assert_eq!(asked, [(Dataset::Alerts, true), (Dataset::Alerts, false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_is_told_so_and_asked_again() {
    let world =
        World::told_with(Mode::AskedMixed, QueryConfig { query_ms_max: 20_000, ..QueryConfig::default() }).await;
    let store = answer(&world, 9, 2).await;
    let run = async || {
        let rows = world.query.sql(&Scope::tenant("acme"), "SELECT * FROM security_events").await?;
        rows.collect().await
    };
    for (error, code, status) in [
        (HistoryError::Unavailable("db-17.internal: refused".into()), "history_unavailable", 503),
        (HistoryError::Busy("8 of 8".into()), "too_many_queries", 429),
        (HistoryError::Timeout, "query_timeout", 408),
        (HistoryError::Invalid("no column".into()), "internal", 500),
    ] {
        *store.refuses.lock() = Some(error);
        let told: QueryError = run().await.expect_err("refused");
        assert_eq!((told.code(), told.status()), (code, status));
        let told = told.to_problem().to_json("r");
        assert!(!told.contains("db-17") && !told.contains("no column"), "{told}");
        assert!(status == 500 || !told.contains("\"hint\":\"\""), "{told}");
    }
    assert_eq!(QueryError::Timeout { ms_max: 20_000 }, {
        *store.refuses.lock() = Some(HistoryError::Timeout);
        run().await.expect_err("too slow")
    });
    *store.refuses.lock() = None;
    assert!(run().await.is_ok());
}
