//! Rows move from the log to history while queries run: each query sees each acknowledged row exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use tidegate_events::{Dataset, FieldType};
use tidegate_pipeline::{FieldCatalog, History, LogReader, Snapshot, StreamLog};
use tidegate_query::{Query, QueryConfig, QueryParts, Scope};

use super::fixture::{Mode, World, Writer, rows};

/// Rows `from..to`, numbered by `n`, in an order of time of their own.
fn numbered(from: u64, to: u64) -> arrow::array::RecordBatch {
    let line = |at: u64| {
        let (minute, org) = (at * 7 % 60, if at.is_multiple_of(3) { "globex" } else { "acme" });
        format!(
            r#"{{"time":"2026-01-01T00:{minute:02}:00Z","received_time":"2026-01-01T00:00:00Z","event_id":"e{at}","org_id":"{org}","source":"s","n":{at}}}"#
        )
    };
    let lines: Vec<String> = (from..to).map(line).collect();
    rows(Dataset::SecurityEvents, &[("n", FieldType::INT)], &lines.join("\n"))
}

async fn numbers(query: &Query, org_id: &str, sql: &str) -> Vec<i64> {
    let rows = query.sql(&Scope::tenant(org_id), sql).await.expect("a stream").collect().await.expect("rows");
    let columns = rows.iter().find(|batch| batch.num_rows() > 0).expect("a row").columns().to_vec();
    columns.iter().map(|column| column.as_primitive::<Int64Type>().value(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_is_seen_once_while_rows_arrive_and_move() {
    let world = Arc::new(World::empty(QueryConfig::default()));
    world.append(Dataset::SecurityEvents, numbered(0, 6)).await;
    let writer = Writer::start(&world, numbered, (6, 3_000), Duration::ZERO);
    let (acknowledged, done) = (writer.acknowledged.clone(), writer.done.clone());
    let mover = {
        let (world, done) = (world.clone(), done.clone());
        tokio::spawn(async move {
            let mut step = 1;
            while !done.load(Ordering::Relaxed) {
                let next = world.log.bounds().next;
                // Any row can be the cursor, also one within a batch.
                world.store(next - step % 11 % next, 0);
                step += 7;
                tokio::task::yield_now().await;
            }
        })
    };
    for round in 0..25u32 {
        let before = acknowledged.load(Ordering::SeqCst);
        let sql = "SELECT count(*), count(DISTINCT event_id), min(n), max(n) FROM security_events";
        let acme = numbers(&world.query, "acme", sql).await;
        let after = acknowledged.load(Ordering::SeqCst) as i64 + 17;
        let [count, distinct, _, largest] = acme[..] else { panic!("{acme:?}") };
        assert_eq!(count, distinct, "round {round}: a row twice");
        let expected = (0..=largest).filter(|at| at % 3 != 0).count() as i64;
        assert_eq!(count, expected, "round {round}: a row is missing below {largest}");
        assert!(largest + 3 > before as i64 && largest <= after, "round {round}: {before} {largest} {after}");
        // Two uses of a table in one query agree.
        let agreed = "SELECT (SELECT count(*) FROM security_events) - (SELECT count(*) FROM security_events a JOIN security_events b ON a.event_id = b.event_id)";
        assert_eq!(numbers(&world.query, "globex", agreed).await, [0], "round {round}");
    }
    writer.end().await;
    mover.await.expect("the mover");
}

/// A history that hands out a stale snapshot so many times first.
struct Stale {
    stale: Arc<Snapshot>,
    fresh: Arc<Snapshot>,
    times: usize,
    asked: Arc<AtomicUsize>,
}

impl History for Stale {
    fn snapshot(&self) -> Arc<Snapshot> {
        let stale = self.asked.fetch_add(1, Ordering::Relaxed) < self.times;
        if stale { self.stale.clone() } else { self.fresh.clone() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_rows_are_forgotten_is_taken_anew_and_not_for_ever() {
    for (log_forgets, output_forgets, times, events, alerts, tries) in [
        (false, false, 9, 8, 3, 1),
        (true, false, 1, 8, 3, 2),
        (false, true, 1, 8, 3, 2),
        (true, true, 1, 8, 3, 2),
        (true, true, 2, 8, 3, 3),
        // Logs that lost rows to their disk bound: what is left is shown.
        (true, false, 9, 2, 3, 3),
        (false, true, 9, 8, 0, 3),
    ] {
        let world = World::told(Mode::Tail).await;
        world.store(9, 4);
        let fresh = world.history.0.lock().clone();
        // Batches are forgotten whole: the log starts at the batch that holds the cursor.
        for (log, cursor, forgets) in
            [(&world.log, fresh.log_cursor, log_forgets), (&world.output, fresh.output_cursor, output_forgets)]
        {
            log.forget(if forgets { cursor } else { 0 }).expect("forgotten");
            assert_eq!(log.bounds().first > 0, forgets);
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let query = Query::new(QueryParts {
            log: world.log.clone(),
            log_datasets: &Dataset::ALL,
            output: world.output.clone(),
            history: Arc::new(Stale { stale: Arc::default(), fresh, times, asked: asked.clone() }),
            files: None,
            log_fields: Arc::new(|| Arc::new(FieldCatalog::default())),
            config: QueryConfig::default(),
            cpu: tokio::runtime::Handle::current(),
        })
        .expect("a query layer");
        let sql = "SELECT (SELECT count(*) FROM security_events) AS e, (SELECT count(*) FROM alerts) AS a";
        let counts = numbers(&query, "acme", sql).await;
        let found = (counts, asked.load(Ordering::Relaxed));
        assert_eq!(found, (vec![events, alerts], tries), "{log_forgets} {output_forgets}, {times} times stale");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_looked_at_for_what_it_may_hold_only() {
    let world = World::told(Mode::Mixed).await;
    let query = Query::new(QueryParts {
        log: world.log.clone(),
        log_datasets: &[Dataset::Changes],
        output: world.output.clone(),
        history: world.history.clone(),
        files: None,
        log_fields: Arc::new(|| Arc::new(FieldCatalog::default())),
        config: QueryConfig::default(),
        cpu: tokio::runtime::Handle::current(),
    })
    .expect("a query layer");
    // Of the events what is in history; the changes are all in the log.
    assert_eq!(numbers(&query, "acme", "SELECT count(*) FROM security_events").await, [6]);
    let changes = "SELECT count(*) FROM changes";
    let all = numbers(&world.query, "acme", changes).await;
    assert!(all[0] > 0 && numbers(&query, "acme", changes).await == all);
}
