//! What history answers and what the tail gives make the whole, wherever the cursor is.

use tidegate_query::Scope;

use super::fixture::{Mode, World};
use super::twin::answer;

/// Statements whose parts are asked for, each with its rows from the log alone.
const STATEMENTS: [&str; 12] = [
    "SELECT count(*), count(actor), min(time), max(time), sum(severity), min(actor), max(message) FROM security_events",
    "SELECT source, severity, count(*) FROM security_events GROUP BY source, severity ORDER BY 1, 2",
    "SELECT actor, max(severity) FROM security_events WHERE actor IS NOT NULL GROUP BY actor ORDER BY actor",
    "SELECT date_trunc('day', time) AS day, source, count(*) FROM security_events GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT date_bin(INTERVAL '20 minutes', time, TIMESTAMP '2026-01-01 00:05:00Z') AS bin, count(*) FROM security_events GROUP BY 1 ORDER BY 1",
    "SELECT count(*) FROM security_events WHERE severity > 100",
    "SELECT source FROM security_events GROUP BY source HAVING count(*) > 2 ORDER BY source",
    "SELECT sum(billed_cost), max(billed_cost), count(*) FROM cost_events WHERE billing_currency = 'EUR'",
    "SELECT event_id FROM security_events WHERE NOT (severity = 3 OR actor LIKE 'al%') ORDER BY event_id DESC LIMIT 4",
    "SELECT event_id FROM security_events ORDER BY actor DESC NULLS LAST, event_id LIMIT 5",
    "SELECT count(*) FROM (SELECT event_id FROM security_events WHERE source <> 'windows' LIMIT 3)",
    "SELECT stage, count(*) FROM dead_letters GROUP BY stage ORDER BY stage",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_history_answers_and_what_the_tail_gives_make_the_whole() {
    let tail = World::told(Mode::Tail).await;
    let shown = async |world: &World, sql: &str| {
        let rows = world.query.sql(&Scope::tenant("acme"), sql).await.expect("a stream").collect().await.expect("rows");
        let rows = rows.into_iter().filter(|batch| batch.num_rows() > 0).collect::<Vec<_>>();
        arrow::util::pretty::pretty_format_batches(&rows).expect("text").to_string()
    };
    let asked = World::told(Mode::AskedMixed).await;
    for sql in STATEMENTS {
        let wanted = shown(&tail, sql).await;
        for (log, output) in [(0, 0), (1, 0), (6, 1), (9, 2), (14, 3), (24, 5)] {
            answer(&asked, log, output).await;
            assert_eq!(shown(&asked, sql).await, wanted, "{sql} with cursors {log} and {output}");
        }
    }
}
