//! A schema of its own in the PostgreSQL that `cargo xtask test` starts, and a client of it.

use std::sync::atomic::{AtomicU32, Ordering};

use tidegate_pipeline::Offset;
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{TimescaleConfig, TimescaleSink, TimescaleStore};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// The id of a data folder.
pub const ORIGIN: &str = "0193a4e2-0000-7000-8000-000000000001";

/// The URL of the server.
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their servers are")]
pub fn url() -> String {
    std::env::var("TIDEGATE_TEST_POSTGRES").unwrap_or_else(|_| {
        panic!(
            "this test needs a PostgreSQL: run `cargo xtask test`, or `cargo xtask with-servers cargo test …`, which start one"
        )
    })
}

/// A schema that is dropped with this.
pub struct Schema {
    /// As the sink is to be configured.
    pub config: TimescaleConfig,
    runtime: Runtime,
}

impl Schema {
    /// A schema that no one else has.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        // Statements of tests are short: what hangs is to be noticed soon.
        let config = TimescaleConfig {
            url: url(),
            schema,
            aggregates: false,
            statement_ms_max: 20_000,
            ..TimescaleConfig::default()
        };
        Self { config, runtime }
    }

    /// A store as a process that starts opens it.
    pub fn store(&self) -> std::sync::Arc<TimescaleStore> {
        TimescaleStore::open(self.config.clone(), ORIGIN).expect("a store")
    }

    /// A sink of a process that has just started, which knows where the database stands. To be driven by a runtime of the
    /// caller's.
    pub fn sink(&self, source: LogSource) -> TimescaleSink {
        self.store().sink(source, self.cursor(source))
    }

    /// Where the database stands.
    pub fn cursor(&self, source: LogSource) -> Offset {
        let store = self.store();
        self.block_on(async move { store.cursor(source).await.expect("a cursor") })
    }

    /// Runs a future to its end, wherever it is called from.
    pub fn block_on<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| self.runtime.block_on(work)).join().expect("no panic"))
    }

    /// Runs statements in the schema; the rows of the last one, as text, null as `NULL`.
    pub fn query(&self, sql: &str) -> Vec<Vec<String>> {
        let sql = format!("SET search_path = \"{}\", public; {sql}", self.config.schema);
        let url = self.config.url.clone();
        self.block_on(async move { run(&url, &sql).await }).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// The only value of a query.
    pub fn one(&self, sql: &str) -> String {
        self.query(sql).pop().and_then(|mut row| row.pop()).unwrap_or_else(|| panic!("{sql} gave nothing"))
    }

    /// The ids of all rows of all tables.
    pub fn ids(&self) -> Vec<String> {
        if self.one(&format!("SELECT to_regclass('\"{}\".cursors')", self.config.schema)) == "NULL" {
            return Vec::new();
        }
        let tables = ["security_events", "cost_events", "alerts", "changes", "dead_letters"];
        let partitioned = self.one("SELECT relkind FROM pg_class WHERE oid = to_regclass('security_events')") == "p";
        let defaults = tables.iter().map(|table| format!("{table}_default")).filter(|_| !partitioned);
        let all = tables.iter().map(|table| (*table).to_owned()).chain(defaults);
        let query = all.map(|table| format!("SELECT event_id FROM {table}")).collect::<Vec<_>>().join(" UNION ALL ");
        self.query(&query).into_iter().flatten().collect()
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        let drop = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.config.schema);
        let url = self.config.url.clone();
        let _ = self.block_on(async move { run(&url, &drop).await });
    }
}

async fn run(url: &str, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let task = tokio::spawn(connection);
    let messages = client.simple_query(sql).await?;
    drop(client);
    let _ = task.await;
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_owned()).collect());
            }
            SimpleQueryMessage::RowDescription(_) => rows.clear(),
            _ => {}
        }
    }
    Ok(rows)
}
