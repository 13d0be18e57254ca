//! Statements that want to break out, break down or eat up: each is refused or answered within the bounds.

use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_query::{QueryConfig, QueryError, Scope};

use super::fixture::{QUIET, World};
use super::twin::HOSTILE;
use crate::hostile_text::statements;

async fn all(world: &World, scope: &Scope, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
    world.query.sql(scope, sql).await?.collect().await
}

/// The largest resident memory of this process so far; 0 where the operating system does not tell.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().map_or(0, |kib| kib << 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_statements_are_refused_or_answered_within_their_bounds() {
    let _quiet = QUIET.lock().await;
    let patient = World::told(HOSTILE).await;
    let config = QueryConfig { query_ms_max: 700, ..QueryConfig::default() };
    let world = World::told_with(HOSTILE, config).await;
    let canary = world.dir.path().join("canary");
    std::fs::write(&canary, "canary").expect("a file");
    let acme = Scope::tenant("acme");
    let peak_before = peak_bytes();
    let (mut count, mut wrong) = (0, Vec::new());
    for (verdict, sql) in statements(world.dir.path()) {
        let started = Instant::now();
        let mut result = all(&world, &acme, &sql).await;
        let elapsed = started.elapsed();
        if matches!(result, Err(QueryError::Timeout { .. })) && !verdict.contains("query_timeout") {
            // Long to plan on a slow machine, not endless: it has a verdict when it has time.
            result = all(&patient, &acme, &sql).await;
        }
        let shown: String = sql.chars().take(100).collect();
        if elapsed > Duration::from_millis(1_700) {
            wrong.push(format!("{shown}: {elapsed:?}"));
        }
        let code = result.as_ref().map_or_else(|error| error.code(), |_| "ok");
        if !verdict.split('/').any(|allowed| allowed == code) {
            let told: String = format!("{result:?}").chars().take(200).collect();
            wrong.push(format!("{shown}: {code}, not {verdict}: {told}"));
        }
        if let Ok(batches) = result {
            let text = format!("{batches:?}");
            assert!(!text.contains("root:") && !text.contains("canary"), "{shown} read a file");
        }
        count += 1;
    }
    // The pool of a query, one batch of results besides, and what the allocator keeps.
    let grown = peak_bytes() - peak_before;
    println!("peak memory grew by {} MiB over {count} statements", grown >> 20);
    assert!(grown < 1 << 30, "{grown} bytes");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 150, "{count} statements");
    let files: Vec<_> = std::fs::read_dir(world.dir.path()).expect("the folder").collect();
    assert_eq!(files.len(), 1, "a statement wrote a file");
    assert!(world.query.sql(&acme, "SELECT 1").await.is_ok());
}
