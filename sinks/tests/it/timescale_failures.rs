//! When the database or the way to it breaks: what is said, that nothing is lost or doubled, and that it goes on by itself.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use tidegate_events::Dataset;
use tidegate_pipeline::log::MemoryLog;
use tidegate_pipeline::{
    Append, Delivery, DeliveryConfig, DeliveryHandle, DeliveryParts, Health, LogBatch, LogReader, OutputLog, Sink,
    SinkError, StreamLog, deliver,
};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{ExtensionUse, TimescaleStore};
use tokio::runtime::{Builder, Runtime};

use crate::contract::rows::{batch, events, ids, one};
use crate::faulty_proxy::{Mode, Proxy};
use crate::fluvio_world::say;
use crate::postgres::{ORIGIN, Schema};
use crate::postgres_server::OwnServer;

/// A log that is delivered to a database behind a proxy.
struct Case {
    schema: Schema,
    proxy: Proxy,
    log: Arc<MemoryLog>,
    output: Arc<MemoryLog>,
    health: Health,
    runtime: Runtime,
    handle: Option<DeliveryHandle>,
    sent: u64,
}

impl Case {
    fn new(arrange: impl FnOnce(&mut Schema)) -> Self {
        let mut schema = Schema::new();
        schema.config.statement_ms_max = 2_000;
        schema.config.connect_ms_max = 1_000;
        schema.config.commit_interval_ms = 20;
        schema.config.commit_rows = 500;
        arrange(&mut schema);
        let mut through = schema.config.clone();
        let proxy = Proxy::before(&mut through);
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let (log, output) = (Arc::new(MemoryLog::new(1 << 20, 1 << 30)), Arc::new(MemoryLog::new(1 << 20, 1 << 30)));
        let mut case = Self { schema, proxy, log, output, health: Health::default(), runtime, handle: None, sent: 0 };
        case.start(through);
        case
    }

    fn start(&mut self, config: tidegate_sinks::timescale::TimescaleConfig) {
        let store = TimescaleStore::open(config, ORIGIN).expect("a store");
        let parts = DeliveryParts {
            sink: Box::new(store.sink(LogSource::Ingest, 0)),
            log: self.log.clone(),
            output: Arc::new(OutputLog::new(self.output.clone())),
            config: DeliveryConfig { flush_interval_ms: 20, retry_ms_min: 20, retry_ms_max: 100, ..Default::default() },
            stage: self.health.stage("database"),
        };
        self.handle = Some(deliver(parts, self.runtime.handle()));
    }

    /// Appends rows of several tenants.
    fn send(&mut self, rows: u64) {
        for chunk in (0..rows).collect::<Vec<_>>().chunks(100) {
            let names: Vec<String> = chunk
                .iter()
                .map(|_| {
                    self.sent += 1;
                    self.sent.to_string()
                })
                .collect();
            let orgs: Vec<String> = chunk.iter().map(|at| format!("org{}", at % 7)).collect();
            let (orgs, names): (Vec<&str>, Vec<&str>) =
                (orgs.iter().map(String::as_str).collect(), names.iter().map(String::as_str).collect());
            self.append(one(batch(Dataset::SecurityEvents, &orgs, &names)));
        }
    }

    fn append(&self, append: Append) {
        self.log.append(append).blocking_recv().expect("an answer").expect("stored");
    }

    fn committed(&self) -> u64 {
        *self.handle.as_ref().expect("runs").committed().borrow()
    }

    /// Waits until everything that was sent is there, and looks that it is there once.
    fn settle(&self) {
        until("everything is delivered", || self.committed() >= self.log.bounds().next);
        let mut found = self.schema.ids();
        found.sort_unstable();
        let before = found.len();
        found.dedup();
        assert_eq!(found.len(), before, "rows are doubled");
        let letters = ids(&self.output.read(0, usize::MAX).expect("letters")).len();
        assert_eq!((found.len() + letters) as u64, self.log.bounds().next, "rows are lost");
    }

    fn detail(&self) -> String {
        self.health.details().pop().map(|(_, detail)| detail).unwrap_or_default()
    }

    /// Waits until the stage says so.
    fn says(&self, words: &[&str]) {
        until(&format!("{words:?} is said"), || {
            let detail = self.detail();
            words.iter().all(|word| detail.contains(word))
        });
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_connection_that_is_refused_hangs_is_slow_or_cut_loses_and_doubles_nothing() {
    let mut case = Case::new(|_| {});
    case.send(300);
    case.settle();
    for (mode, words) in [
        (Mode::Refuse, &["failed", "connect"][..]),
        (Mode::Hang, &["failed", "ms"]),
        (Mode::CutAfter(40_000), &["failed"]),
        (Mode::CutAfter(5_000), &["failed"]),
    ] {
        case.proxy.set(mode);
        case.send(1_200);
        case.says(words);
        case.proxy.set(Mode::Pass);
        case.settle();
        assert_eq!(case.detail(), "", "{mode:?}");
    }
    case.proxy.set(Mode::Slow(200));
    case.send(1_200);
    case.settle();
}

#[test]
fn what_the_operator_broke_is_named_and_mended_without_a_restart() {
    // The extension lets nobody change the type of a column of a table that it may compress.
    let mut case = Case::new(|schema| schema.config.compress_after_hours = 0);
    case.send(10);
    case.settle();
    for (broken, mended, words) in [
        (
            "ALTER TABLE security_events RENAME TO gone",
            "ALTER TABLE gone RENAME TO security_events",
            &["security_events", "gone"][..],
        ),
        (
            "ALTER TABLE security_events RENAME COLUMN message TO note",
            "ALTER TABLE security_events RENAME COLUMN note TO message",
            &["message", "timescale ddl"],
        ),
        (
            "ALTER TABLE security_events ALTER COLUMN log_offset TYPE int",
            "ALTER TABLE security_events ALTER COLUMN log_offset TYPE bigint",
            &["log_offset", "integer", "bigint"],
        ),
        (
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'could not extend file' USING ERRCODE = \
             '53100'; END $$; CREATE TRIGGER no_room BEFORE INSERT ON security_events FOR EACH ROW EXECUTE FUNCTION no_room()",
            "DROP TRIGGER no_room ON security_events",
            &["53100", "free space"],
        ),
    ] {
        case.schema.query(&format!("{broken}; SELECT 1"));
        case.send(10);
        case.says(words);
        case.schema.query(&format!("{mended}; SELECT 1"));
        case.settle();
        assert_eq!(case.detail(), "", "{broken}");
    }
}

#[test]
fn a_column_that_was_made_required_is_named_and_buries_no_row() {
    for table in ["security_events", "security_events_default"] {
        let mut case = Case::new(|schema| {
            // All rows are of an odd time.
            schema.config.chunks_max = 0;
            let store = schema.store();
            schema.block_on(async { store.log_id(LogSource::Ingest).await.expect("made") });
            schema.query(&format!("ALTER TABLE {table} ALTER COLUMN message SET NOT NULL; SELECT 1"));
        });
        case.send(10);
        case.says(&["message", &format!("\"{table}\""), "NOT NULL"]);
        case.schema.query(&format!("ALTER TABLE {table} ALTER COLUMN message DROP NOT NULL; SELECT 1"));
        case.settle();
        assert_eq!(case.schema.ids().len(), 10, "none is a dead letter");
    }
}

#[test]
fn a_disk_of_the_database_that_is_full_is_named_and_what_waited_is_there_when_it_has_room() {
    if !OwnServer::may_have_a_disk() {
        say("NOT RUN: a full disk of the database: it takes root, who may mount one");
        return;
    }
    let mut server = OwnServer::new();
    let disk = server.give_disk(24 << 20);
    server.start(&[]);
    let mut case = Case::new(|schema| {
        schema.config.url = server.url("127.0.0.1");
        let (url, make) = (&schema.config.url, format!("CREATE TABLESPACE small LOCATION '{}'", disk.display()));
        // Alone: it may not be part of a transaction.
        schema.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("connected");
            tokio::spawn(connection);
            client.batch_execute(&make).await.expect("a place for tables");
        });
        schema.query("ALTER DATABASE postgres SET default_tablespace = small; SELECT 1");
    });
    case.send(300);
    case.settle();
    // All but a little of it is taken by something else.
    let ballast = server.seen(&disk).join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while file.write_all(&[7; 64 << 10]).is_ok() {}
    drop(file);
    case.send(3_000);
    case.says(&["53100", "free space", "No space left"]);
    assert!(case.committed() < case.log.bounds().next);
    std::fs::remove_file(&ballast).expect("removed");
    case.settle();
    assert_eq!(case.detail(), "");
}

#[test]
fn a_table_that_was_dropped_is_made_again_by_what_the_message_names() {
    let mut case = Case::new(|schema| schema.config.extension = ExtensionUse::Off);
    case.send(10);
    case.settle();
    case.schema.query("DROP TABLE security_events CASCADE; SELECT 1");
    case.send(10);
    case.says(&["security_events", "tidegate timescale ddl"]);
    let script = tidegate_sinks::timescale::script(&case.schema.config);
    let of_the_table = |statement: &&str| statement.starts_with("CREATE") && statement.contains("security_events");
    let statements: Vec<&str> = script.split(";\n").filter(of_the_table).collect();
    assert_eq!(statements.len(), 3, "the table, its default partition, its index: {statements:?}");
    case.schema.query(&format!("{}; SELECT 1", statements.join(";")));
    until("everything is delivered", || case.committed() >= case.log.bounds().next);
    assert_eq!(case.schema.ids().len(), 10, "those that came after the table was dropped");
    assert_eq!(case.detail(), "");
}

#[test]
fn a_wrong_password_is_named_and_a_right_one_is_taken_without_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, "wrong\n").expect("written");
    let right =
        crate::postgres::url().split_once(':').and_then(|(_, rest)| rest.split(['@', ':']).nth(1).map(str::to_owned));
    let mut case = Case::new(|schema| schema.config.password_file = Some(file.clone()));
    case.send(10);
    case.says(&["28P01", "password"]);
    std::fs::write(&file, right.expect("a password")).expect("written");
    case.settle();
}

#[test]
fn rows_that_the_database_refuses_become_dead_letters_with_its_words() {
    let mut case = Case::new(|_| {});
    case.send(10);
    case.settle();
    case.schema.query("ALTER TABLE security_events ADD CONSTRAINT no_evil CHECK (event_id NOT LIKE 'evil%'); SELECT 1");
    case.append(one(events("acme", &["a", "evil1", "b", "c", "evil2", "d"])));
    case.send(200);
    case.settle();
    let letters = case.output.read(0, usize::MAX).expect("letters");
    let reasons: Vec<String> = letters
        .iter()
        .flat_map(|batch| batch.rows.column_by_name("reason").expect("reason").as_string::<i32>().iter())
        .map(|reason| reason.expect("a reason").to_owned())
        .collect();
    assert_eq!(reasons.len(), 2);
    assert!(reasons.iter().all(|reason| reason.contains("no_evil") && reason.contains("23514")), "{reasons:?}");
}

#[test]
fn a_server_that_is_not_there_at_the_start_keeps_nobody_from_starting() {
    let mut schema = Schema::new();
    let url = schema.config.url.clone();
    schema.config.url = "postgres://u@127.0.0.1:9/d".to_owned();
    let store = schema.store();
    let said = schema.block_on(async { store.cursor(LogSource::Ingest).await }).expect_err("nobody there").to_string();
    assert!(said.contains("connect") && said.contains("reachable"), "{said}");
    let mut sink = store.sink(LogSource::Ingest, 42);
    assert_eq!(sink.committed(), 42);
    let rows = events("a", &["x"]);
    let rows = Arc::new(LogBatch { offset: 42, dataset: rows.dataset, rows: rows.rows });
    let write = schema.block_on(async {
        sink.write(Delivery { batches: vec![rows], next_offset: 43 }).await.expect("taken");
        sink.flush().await
    });
    assert!(write.is_err());
    assert_eq!(sink.committed(), 42);
    schema.config.url = url;
}

#[test]
fn a_second_writer_with_the_same_identity_is_fenced_off() {
    let schema = Schema::new();
    let (mut first, mut second) = (schema.sink(LogSource::Ingest), schema.sink(LogSource::Ingest));
    let delivery = |offset: u64, id: &str| {
        let rows = events("a", &[id]);
        let batch = LogBatch { offset, dataset: rows.dataset, rows: rows.rows };
        Delivery { batches: vec![Arc::new(batch)], next_offset: offset + 1 }
    };
    schema.block_on(async move {
        second.connect().await.expect("connected");
        first.write(delivery(0, "a")).await.expect("taken");
        first.flush().await.expect("committed");
        second.write(delivery(0, "b")).await.expect("taken");
        let fenced = second.flush().await.expect_err("fenced").to_string();
        assert!(fenced.contains("another server"), "{fenced}");
        first.write(delivery(1, "c")).await.expect("taken");
        first.flush().await.expect("committed");
    });
    let mut ids = schema.ids();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "c"]);
}

#[test]
fn a_commit_of_the_process_before_that_is_still_under_way_is_waited_for() {
    let schema = Schema::new();
    let delivery = |offset: u64, names: &[&str]| {
        let rows = events("a", names);
        let batch = LogBatch { offset, dataset: rows.dataset, rows: rows.rows };
        Delivery { next_offset: batch.next_offset(), batches: vec![Arc::new(batch)] }
    };
    let mut sink = schema.sink(LogSource::Ingest);
    schema.block_on(async move {
        sink.write(delivery(0, &["a"])).await.expect("taken");
        sink.flush().await.expect("committed");
    });
    let mut sink = schema.sink(LogSource::Ingest);
    let (ids, waiting) =
        (schema.config.schema.clone(), "SELECT 1 FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()");
    schema.block_on(async {
        // What a process that was killed has left with the server: the cursor is where its rows end, and nothing says so yet.
        let (client, connection) =
            tokio_postgres::connect(&schema.config.url, tokio_postgres::NoTls).await.expect("connected");
        tokio::spawn(connection);
        let old = format!("BEGIN; UPDATE {ids}.cursors SET next_offset = 2 WHERE log_id = 1");
        client.batch_execute(&old).await.expect("begun");
        let started = tokio::spawn(async move {
            sink.connect().await.expect("connected");
            assert_eq!(sink.committed(), 2);
            sink.write(delivery(1, &["b", "c"])).await.expect("taken");
            sink.flush().await
        });
        // It waits for the lock, or it has read what is about to change.
        let deadline = Instant::now() + Duration::from_secs(60);
        while client.simple_query(waiting).await.expect("locks").len() < 3 && !started.is_finished() {
            assert!(Instant::now() < deadline, "never: it waits for the cursor");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client.batch_execute("COMMIT").await.expect("committed");
        started.await.expect("no panic").expect("goes on");
    });
    let mut ids = schema.ids();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "c"], "`b` was the killed process's");
}

#[test]
fn a_commit_without_an_answer_beside_one_that_is_refused_doubles_nothing() {
    let mut schema = Schema::new();
    schema.config.connections = 2;
    let mut through = schema.config.clone();
    let proxy = Proxy::before(&mut through);
    let orgs: Vec<String> = (0..8).map(|at| format!("org{at}")).collect();
    let lane = |org: &str| xxhash_rust::xxh3::xxh3_64(org.as_bytes()) % 2;
    // The evil row is the last one, and not of the lane whose answer is lost.
    let of_the_other = orgs.iter().find(|org| lane(org) == 1).expect("one of eight");
    let mut orgs: Vec<&str> = (0..40).map(|at| orgs[at % orgs.len()].as_str()).collect();
    orgs.push(of_the_other);
    let names: Vec<String> = (0..orgs.len()).map(|at| format!("{}{at}", if at == 40 { "evil" } else { "" })).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let delivery = |rows: std::ops::Range<usize>| {
        let batch = batch(Dataset::SecurityEvents, &orgs[rows.clone()], &names[rows.clone()]);
        let batch = LogBatch { offset: rows.start as u64, dataset: batch.dataset, rows: batch.rows };
        Delivery { next_offset: batch.next_offset(), batches: vec![Arc::new(batch)] }
    };
    let mut sink = TimescaleStore::open(through, ORIGIN).expect("a store").sink(LogSource::Ingest, 0);
    schema.block_on(async { sink.connect().await.expect("connected") });
    schema.query("ALTER TABLE security_events ADD CONSTRAINT no_evil CHECK (event_id NOT LIKE 'evil%'); SELECT 1");
    schema.block_on(async {
        proxy.set(Mode::CutAnswerTo("lane IN (0); COMMIT"));
        sink.write(delivery(0..41)).await.expect("taken");
        let told = sink.flush().await.expect_err("refused");
        assert!(matches!(&told, SinkError::Withdrawn(refusal) if refusal.rows == [40]), "{told}");
        proxy.set(Mode::Pass);
        assert_eq!(sink.committed(), 0, "the other lane has nothing");
        // What is given next ends before the commit that was not answered did.
        for rows in [0..10, 10..40] {
            let next = rows.end as u64;
            sink.write(delivery(rows)).await.expect("taken");
            sink.flush().await.expect("committed");
            assert_eq!(sink.committed(), next);
        }
    });
    let mut found = schema.ids();
    found.sort_unstable();
    let mut expected: Vec<&str> = names[..40].to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn lanes_change_in_number_across_restarts_without_loss() {
    let mut schema = Schema::new();
    let mut offset = 0;
    for connections in [1, 4, 2] {
        schema.config.connections = connections;
        let mut sink = schema.sink(LogSource::Ingest);
        assert_eq!(sink.committed(), offset);
        let orgs: Vec<String> = (0..20).map(|at| format!("org{at}")).collect();
        let names: Vec<String> = (0..20).map(|at| format!("{connections}-{at}")).collect();
        let (orgs, names): (Vec<&str>, Vec<&str>) =
            (orgs.iter().map(String::as_str).collect(), names.iter().map(String::as_str).collect());
        let rows = batch(Dataset::SecurityEvents, &orgs, &names);
        let batch = Arc::new(LogBatch { offset, dataset: rows.dataset, rows: rows.rows });
        offset += 20;
        schema.block_on(async move {
            sink.write(Delivery { batches: vec![batch], next_offset: offset }).await.expect("taken");
            sink.flush().await.expect("committed");
        });
        assert_eq!(schema.one("SELECT count(*) FROM cursors WHERE log_id = 1"), connections.to_string());
    }
    assert_eq!(schema.ids().len(), 60);
    // Lanes that do not stand together are kept as they are until they do.
    schema.query("UPDATE cursors SET next_offset = 50 WHERE log_id = 1 AND lane = 1; SELECT 1");
    schema.config.connections = 3;
    let mut sink = schema.sink(LogSource::Ingest);
    assert_eq!(sink.committed(), 50);
    schema.block_on(async { sink.connect().await.expect("connected") });
    assert_eq!(schema.one("SELECT count(*) FROM cursors WHERE log_id = 1"), "2");
}
