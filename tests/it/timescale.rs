//! The server with a database: killed at any moment while it writes, every event is there exactly once, in the tables and in what
//! SQL sees; and what it does while the database is away. Needs the PostgreSQL that `cargo xtask test` starts.
//! `TIDEGATE_DATABASE_KILLS=200 cargo xtask test -- database_kills` does it more often.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::faulty_proxy::{Mode, Proxy};
use crate::ledger::{Pace, killed_under_load, some_time};
use crate::server::{Caller, PATIENCE, Server, event, on_demand, tidegate};

/// The URL of the database of the tests.
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their servers are")]
pub fn url() -> String {
    std::env::var("TIDEGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| panic!("this test needs a PostgreSQL: run `cargo xtask test`, which starts one"))
}

/// The first column of a query's rows.
pub fn query(sql: &str) -> Vec<String> {
    try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// Removes a schema, also one in which the extension's jobs are at work: they may have removed something just now.
pub fn drop_schema(schema: &str) {
    until("the schema is removed", || try_query(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE")).is_ok());
}

fn try_query(sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.expect("connected");
        tokio::spawn(connection);
        let messages = client.simple_query(sql).await?;
        let column = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(messages.iter().filter_map(column).collect())
    })
}

/// A proxy before the database, and the URL by way of it.
pub fn proxied() -> (Proxy, String) {
    let url = url();
    let (head, rest) = url.split_once('@').expect("user@host");
    let (host, path) = rest.split_once('/').expect("host/database");
    let proxy = Proxy::new(host);
    let url = format!("{head}@{}/{path}", proxy.address);
    (proxy, url)
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn database_kills_lose_and_double_nothing() {
    let kills = on_demand("TIDEGATE_DATABASE_KILLS", 12);
    let (url, schema) = (url(), format!("kills{}", std::process::id()));
    let settings = [
        ("STARTER_PACK", "false"),
        ("STORE", "timescale"),
        ("SINKS__TIMESCALE__URL", url.as_str()),
        ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
        ("SINKS__TIMESCALE__READ_REFRESH_MS", "20"),
        // A commit every few milliseconds, so that a kill meets each of its phases.
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "5"),
        ("LOG_STORE__SEGMENT_BYTES_MAX", "262144"),
    ];
    let mut server = Server::start(&settings);
    let pace = Pace { workers: 3, events: 10, bytes: 0, until_refused: true };
    let (mut asked, mut seen) = (0, 0);
    let ledger = killed_under_load(&mut server, &settings, (kills, pace), |round, server| {
        // What lies in the tables and what lies in the log make the whole, while rows move from one to the other.
        let (mut client, moment) = (server.client(), Instant::now() + some_time(round, 60));
        while Instant::now() < moment {
            let sql =
                "SELECT count(*) AS n, count(DISTINCT event_id) AS ids FROM security_events WHERE source = 'ledger'";
            let rows = client.sql(sql);
            assert_eq!(rows[0]["n"], rows[0]["ids"], "round {round}: an event is seen twice");
            let now = rows[0]["n"].as_i64().expect("a number");
            assert!(now >= seen, "round {round}: {now} of {seen} events are seen");
            (asked, seen) = (asked + 1, now);
        }
    });
    let mut client = server.client();
    ledger.agree(&mut client);
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
    ledger.agree(&mut client);
    assert!(!server.data_dir().join("store").exists(), "nothing is in files");
    println!("{kills} kills, {asked} questions: {} events, none lost or doubled", ledger.acknowledged.len());
    server.kill();
    drop_schema(&schema);
}

/// The answer to a statement: its status, and the reply.
fn asked(client: &mut Caller, sql: &str) -> (u16, Value) {
    let reply = client.send("POST", "/v2/sql", &[("content-type", "text/plain")], sql.as_bytes());
    (reply.status.as_u16(), reply.json())
}

fn is_told_missing(client: &mut Caller, sql: &str) {
    let (status, told) = asked(client, sql);
    let error = &told["error"];
    let (code, hint) = (error["code"].as_str().unwrap_or_default(), error["hint"].as_str().unwrap_or_default());
    assert_eq!((status, code, hint.is_empty()), (503, "history_unavailable", false), "{sql}: {told}");
}

#[test]
fn a_server_whose_database_is_away_takes_events_and_says_what_it_cannot_read() {
    let ((proxy, url), schema) = (proxied(), format!("away{}", std::process::id()));
    let settings = [
        ("STORE", "timescale"),
        ("SINKS__TIMESCALE__URL", url.as_str()),
        ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
        ("SINKS__TIMESCALE__CONNECT_MS_MAX", "500"),
        ("SINKS__TIMESCALE__STATEMENT_MS_MAX", "1000"),
        ("SINKS__TIMESCALE__READ_REFRESH_MS", "50"),
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "20"),
        ("DELIVERY__RETRY_MS_MAX", "200"),
        ("QUERY__QUERY_MS_MAX", "3000"),
        ("SHUTDOWN__DRAIN_MS_MAX", "2000"),
    ];
    proxy.set(Mode::Refuse);
    let mut server = Server::start(&settings);
    let mut client = server.client();
    let mut sent = 0;
    let mut send = |client: &mut Caller| {
        let events: Vec<Value> = (sent..sent + 25).map(|at| event(&format!("e{at}"), "x")).collect();
        assert_eq!(client.bulk("/v2/events/bulk?source=custom", &events).json()["accepted"], 25);
        sent += 25;
        sent
    };
    let details = |server: &Server| server.client().get("/readyz").json()["details"].to_string();
    send(&mut client);
    // Nobody knows the columns yet: it must not be said that there is no such column.
    for sql in
        ["SELECT count(*) FROM security_events", "SELECT action FROM security_events", "SHOW COLUMNS FROM alerts"]
    {
        is_told_missing(&mut client, sql);
    }
    for path in ["/v2/alerts", "/v2/events?limit=3"] {
        assert_eq!(client.get(path).json()["error"]["code"], "history_unavailable", "{path}");
    }
    assert_eq!(asked(&mut client, "SELECT 1 AS one").0, 200);
    until("told", || details(&server).contains("timescale:history") && details(&server).contains("timescale:ingest"));

    proxy.set(Mode::Pass);
    let count = "SELECT count(*) FROM security_events WHERE action = 'x'";
    let back = |client: &mut Caller| until("back", || asked(client, count).0 == 200);
    back(&mut client);
    assert_eq!(client.number(count), 25);
    until("well again", || details(&server) == "{}");
    for mode in [Mode::Refuse, Mode::Hang] {
        proxy.set(mode);
        let now = send(&mut client);
        until("told", || details(&server).contains("timescale:history"));
        let started = Instant::now();
        let (status, told) = asked(&mut client, count);
        assert!(matches!(status, 503 | 408), "{mode:?}: {told}");
        assert!(started.elapsed() < Duration::from_millis(4_500), "{mode:?}: it took {:?}", started.elapsed());
        proxy.set(Mode::Pass);
        back(&mut client);
        assert_eq!(client.number(count), now, "{mode:?}");
    }
    // Keys are made whether it is there or not.
    proxy.set(Mode::Refuse);
    send(&mut client);
    server.stop();
    let folder = server.data_dir();
    let mut create = tidegate(&["key", "create", "--org", "default", "--role", "admin", "--data-dir"]);
    create.arg(&folder).envs(settings.map(|(name, value)| (format!("TIDEGATE_{name}"), value)));
    let made = create.output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    server.run(&settings);
    let mut client = server.client_with(&key);
    is_told_missing(&mut client, count);
    proxy.set(Mode::Pass);
    back(&mut client);
    assert_eq!(client.number(count), sent);
    assert_eq!(client.number("SELECT count(*) FROM changes WHERE kind = 'key'"), 1);
    server.kill();
    drop_schema(&schema);
}

#[test]
fn a_server_is_ready_without_a_database_beside_its_store() {
    let ((proxy, url), schema) = (proxied(), format!("beside{}", std::process::id()));
    proxy.set(Mode::Refuse);
    let start = |store: &str| {
        let settings = [
            ("STORE", store),
            ("STARTER_PACK", "false"),
            ("SINKS__TIMESCALE__URL", url.as_str()),
            ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
            ("SINKS__TIMESCALE__CONNECT_MS_MAX", "500"),
            ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "20"),
        ];
        let server = Server::start(&settings);
        let sent = server.client().bulk("/v2/events/bulk?source=custom", &[event("one", "x")]).json();
        assert_eq!(sent["accepted"], 1, "{store}");
        server
    };
    // The first to wait is the last to be called stuck, which is never.
    let (beside, of_it) = (start("parquet"), start("timescale"));
    let told = |server: &Server| {
        let reply = server.client().get("/readyz");
        (reply.status.as_u16(), reply.json())
    };
    until("stuck without its store", || told(&of_it).0 == 503);
    assert_eq!(told(&of_it).1["stuck"][0], "timescale:ingest");
    let (status, told) = told(&beside);
    assert_eq!(status, 200, "{told}");
    assert!(told["details"]["timescale:ingest"].is_string(), "{told}");
}

#[test]
fn the_statements_of_the_schema_are_printed_for_who_runs_them_by_hand() {
    let schema = format!("by_hand{}", std::process::id());
    let printed = tidegate(&["timescale", "ddl", "--schema", &schema, "--extension", "off"]).output().expect("it runs");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8(printed.stdout).expect("text");
    for part in ["PARTITION BY RANGE", "\"leases\"", "\"alerts_per_hour\""] {
        assert!(printed.contains(part), "{part} in {printed}");
    }
    query(&printed);
    let url = url();
    let settings = [
        ("SINKS__TIMESCALE__URL", url.as_str()),
        ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
        ("SINKS__TIMESCALE__EXTENSION", "off"),
        ("STORE", "timescale"),
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "20"),
    ];
    let mut server = Server::start(&settings);
    assert_eq!(server.client().bulk("/v2/events/bulk", &[event("one", "x")]).json()["accepted"], 1);
    until("it is stored", || query(&format!("SELECT event_id FROM {schema}.security_events")) == ["one"]);
    server.kill();
    drop_schema(&schema);
}

#[test]
fn a_log_that_lost_its_end_while_the_database_is_away_gives_no_offset_twice() {
    let ((proxy, url), schema) = (proxied(), format!("lost{}", std::process::id()));
    let settings = [
        ("STARTER_PACK", "false"),
        ("SINKS__TIMESCALE__URL", url.as_str()),
        ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
        ("SINKS__TIMESCALE__CONNECT_MS_MAX", "500"),
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "20"),
        ("STORE", "timescale"),
        ("DELIVERY__RETRY_MS_MAX", "200"),
    ];
    let stored = || query(&format!("SELECT event_id FROM {schema}.security_events")).len();
    let send = |server: &Server, name: &str, count: usize| {
        let events: Vec<Value> = (0..count).map(|at| event(&format!("{name}{at}"), "x")).collect();
        assert_eq!(server.client().bulk("/v2/events/bulk?source=custom", &events).json()["accepted"], count);
    };
    let mut server = Server::start(&settings);
    send(&server, "before", 25);
    until("stored", || {
        query("SELECT to_regnamespace('SCHEMA')".replace("SCHEMA", &schema).as_str()).len() == 1 && stored() == 25
    });
    // How far the database is, is noted within a second or two.
    std::thread::sleep(Duration::from_millis(2_500));
    server.kill();
    // All that knew how far the log had come, but for the note.
    for folder in ["log", "checkpoint", "registry"] {
        std::fs::remove_dir_all(server.data_dir().join(folder)).expect("the folder");
    }
    proxy.set(Mode::Refuse);
    server.run(&settings);
    send(&server, "after", 10);
    proxy.set(Mode::Pass);
    until("what came after", || stored() == 35);
    server.kill();
    drop_schema(&schema);
}

#[test]
fn the_doctor_and_the_check_look_at_the_database_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let (url, data) = (url(), folder.path().join("data"));
    let run = |command: &[&str], settings: &[(&str, &str)]| {
        let mut command = tidegate(command);
        let settings = settings.iter().map(|(name, value)| (format!("TIDEGATE_{name}"), *value));
        let output = command.envs(settings).output().expect("it runs");
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&told).into_owned())
    };
    let doctor = ["doctor", "--data-dir", data.to_str().expect("a path"), "--fsyncs", "5", "--listen", "127.0.0.1:0"];
    let there = [("STORE", "timescale"), ("SINKS__TIMESCALE__URL", url.as_str())];
    let (code, told) = run(&doctor, &[&there[..], &[("SINKS__TIMESCALE__SCHEMA", "of_the_doctor")]].concat());
    assert!(code == Some(0) && told.contains("PostgreSQL") && told.contains("will be made"), "{told}");
    assert!(
        query("SELECT 1 FROM pg_namespace WHERE nspname = 'of_the_doctor'").is_empty(),
        "the doctor changes nothing"
    );
    let (_, told) = run(&doctor, &[("SINKS__TIMESCALE__URL", "postgres://u@127.0.0.1:9/d")]);
    assert!(told.contains("warn  database") && told.contains("reachable"), "{told}");
    let (code, told) = run(&["check"], &[("STORE", "timescale")]);
    assert!(code == Some(2) && told.contains("sinks.timescale.url"), "{told}");
    assert_eq!(run(&["check"], &there).0, Some(0));
}

/// Raises an alert for every event.
const RULE: &str = "title: Every event\nid: 11111111-2222-4333-8444-000000000002\nlogsource: {product: custom}\n\
                    tidegate: {suppress: 0}\ndetection: {sel: {action: x}, condition: sel}\nlevel: high\n";

#[test]
fn servers_that_share_a_database_see_each_others_rows_once() {
    let (url, schema) = (url(), format!("shared{}", std::process::id()));
    let rules = tempfile::tempdir().expect("a folder");
    std::fs::write(rules.path().join("every.yml"), RULE).expect("a rule");
    let settings = [
        ("STORE", "timescale"),
        ("STARTER_PACK", "false"),
        ("RULES", rules.path().to_str().expect("a path")),
        ("SINKS__TIMESCALE__URL", url.as_str()),
        ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
        ("SINKS__TIMESCALE__READ_REFRESH_MS", "50"),
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "20"),
    ];
    let servers = [Server::start(&settings), Server::start(&settings)];
    for (server, name) in servers.iter().zip(["a", "b"]) {
        let events: Vec<Value> = (0..5).map(|at| event(&format!("{name}{at}"), "x")).collect();
        assert_eq!(server.client().bulk("/v2/events/bulk?source=custom", &events).json()["accepted"], 5);
    }
    for server in &servers {
        let mut client = server.client();
        client.wait_for("SELECT count(*) FROM security_events", 10);
        assert_eq!(client.number("SELECT count(DISTINCT event_id) FROM security_events WHERE action = 'x'"), 10);
        // Each server counts its alerts from the same number on; no page may pass one over for that.
        client.wait_for("SELECT count(*) FROM alerts", 10);
        let (mut seen, mut cursor) = (BTreeSet::new(), String::new());
        loop {
            let page = client.get(&format!("/v2/alerts?limit=3{cursor}")).json();
            let ids = page["alerts"].as_array().expect("alerts").iter();
            seen.extend(ids.map(|alert| alert["alert_id"].as_str().expect("an id").to_owned()));
            let Some(next) = page["cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen.len(), 10);
    }
    drop(servers);
    drop_schema(&schema);
}
