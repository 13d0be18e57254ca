//! The server killed at any moment while it writes to a database: every event is there exactly once. Needs the PostgreSQL that
//! `cargo xtask test` starts. `TIDEGATE_DATABASE_KILLS=200 cargo xtask test -- database_kills` does it more often.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::ledger::{Ledger, Load, Pace};
use crate::server::{PATIENCE, Server, on_demand};

#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their servers are")]
fn url() -> String {
    std::env::var("TIDEGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| panic!("this test needs a PostgreSQL: run `cargo xtask test`, which starts one"))
}

/// The first column of a query's rows.
fn query(sql: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.expect("connected");
        tokio::spawn(connection);
        let messages = client.simple_query(sql).await.expect(sql);
        let column = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        messages.iter().filter_map(column).collect()
    })
}

#[test]
fn database_kills_lose_and_double_nothing() {
    let kills = on_demand("TIDEGATE_DATABASE_KILLS", 12);
    let (url, schema) = (url(), format!("kills{}", std::process::id()));
    let settings = [
        ("STARTER_PACK", "false"),
        ("SINKS__TIMESCALE__URL", url.as_str()),
        ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
        // A commit every few milliseconds, so that a kill meets each of its phases.
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "5"),
        ("LOG_STORE__SEGMENT_BYTES_MAX", "262144"),
    ];
    let mut server = Server::start(&settings);
    let mut ledger = Ledger::default();
    let pace = Pace { workers: 3, events: 10, bytes: 0, until_refused: true };
    for round in 0..kills {
        let load = Load::start(&server.url, &round.to_string(), pace);
        std::thread::sleep(Duration::from_millis(60 + (round * 137) % 380));
        server.kill();
        ledger.merge(load.stop());
        server.run(&settings);
    }
    let deadline = Instant::now() + PATIENCE;
    let stored = loop {
        let ids = query(&format!("SELECT event_id FROM {schema}.security_events"));
        let distinct: BTreeSet<String> = ids.iter().cloned().collect();
        assert_eq!(distinct.len(), ids.len(), "rows are doubled");
        if ledger.acknowledged.is_subset(&distinct) {
            break distinct;
        }
        let missing = ledger.acknowledged.difference(&distinct).count();
        assert!(Instant::now() < deadline, "{missing} of {} never came", ledger.acknowledged.len());
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(stored.is_subset(&ledger.issued), "rows that nobody sent");
    assert!(ledger.acknowledged.len() as u64 > 25 * kills, "only {} acknowledged", ledger.acknowledged.len());
    query(&format!("DROP SCHEMA {schema} CASCADE"));
}
