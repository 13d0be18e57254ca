//! Statements that want to break out, break down or eat up: each is refused or answered within the bounds.

use std::time::{Duration, Instant};

use tidegate_query::{QueryConfig, Scope};

use crate::fixture::{Mode, World};

/// The statements of the file, one a line after `verdict | `, with `{name*count}` written out `count` times.
const STATEMENTS: &str = include_str!("../hostile.txt");

/// Writes out `{text*count}`.
fn written(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("{{") {
        let (text, after) = after.split_once("}}").expect("a closed repetition");
        let (text, count) = text.rsplit_once('*').expect("a count");
        out.push_str(before);
        out.push_str(&text.repeat(count.parse().expect("a number")));
        rest = after;
    }
    out + rest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_statements_are_refused_or_answered_within_their_bounds() {
    let config = QueryConfig { query_ms_max: 700, ..QueryConfig::default() };
    let world = World::told_with(Mode::Tail, config).await;
    let canary = world.dir.path().join("canary");
    std::fs::write(&canary, "canary").expect("a file");
    let acme = Scope::tenant("acme");
    let (mut count, mut wrong) = (0, Vec::new());
    for line in STATEMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (verdict, sql) = line.split_once(" | ").expect("a verdict and a statement");
        let sql = written(sql)
            .replace("$DIR", &world.dir.path().display().to_string())
            .replace("\\n", "\n")
            .replace("\\0", "\0");
        let started = Instant::now();
        let result = match world.query.sql(&acme, &sql).await {
            Ok(rows) => rows.collect().await,
            Err(error) => Err(error),
        };
        let shown: String = sql.chars().take(100).collect();
        if started.elapsed() > Duration::from_millis(1_700) {
            wrong.push(format!("{shown}: {:?}", started.elapsed()));
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
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 150, "{count} statements");
    let files: Vec<_> = std::fs::read_dir(world.dir.path()).expect("the folder").collect();
    assert_eq!(files.len(), 1, "a statement wrote a file");
    assert!(world.query.sql(&acme, "SELECT 1").await.is_ok());
}
