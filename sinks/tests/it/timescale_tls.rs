//! A database that is reached over TLS only: what each `sslmode` asks of its certificate, and what is said when that is not there.

use std::sync::Arc;

use tidegate_pipeline::{Delivery, LogBatch, Sink};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{TimescaleConfig, TimescaleStore};

use crate::certificates::Authority;
use crate::contract::rows::events;
use crate::postgres::ORIGIN;
use crate::postgres_server::OwnServer;

fn start(authority: &Authority) -> OwnServer {
    let mut server = OwnServer::new();
    let (certificate, key) = authority.signed();
    let certificate = server.file("server.pem", &std::fs::read(certificate).expect("a certificate"));
    let key = server.file("server.key", &std::fs::read(key).expect("a key"));
    let hba = server.file("hba", b"hostssl all all 127.0.0.1/32 scram-sha-256\n");
    let files = [("ssl_cert_file", certificate), ("ssl_key_file", key), ("hba_file", hba), ("ssl", "on".to_owned())];
    server.start(&files.map(|(name, value)| format!("{name}={value}")));
    server
}

fn store(server: &OwnServer, host: &str, query: &str) -> Arc<TimescaleStore> {
    let url = format!("{}?{query}", server.url(host));
    let config = TimescaleConfig { url, aggregates: false, ..TimescaleConfig::default() };
    TimescaleStore::open(config, ORIGIN).expect("a store")
}

#[test]
fn each_sslmode_asks_of_the_servers_certificate_what_it_does_with_libpq() {
    // The third is what an authority that was made anew looks like.
    let [authority, other, namesake] = ["one", "another", "one"].map(Authority::new);
    let server = start(&authority);
    let [known, unknown, namesake] =
        [&authority, &other, &namesake].map(|authority| authority.file().display().to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let untrusted = "name a file with the one that has in sslrootcert";
    let table = [
        ("127.0.0.1", "sslmode=disable".to_owned(), Err("pg_hba.conf of the database does not let this user in")),
        ("127.0.0.1", String::new(), Ok(())),
        ("localhost", "sslmode=require".to_owned(), Ok(())),
        ("localhost", format!("sslmode=require&sslrootcert={known}"), Ok(())),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={unknown}"), Err(untrusted)),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={known}"), Ok(())),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={unknown}"), Err(untrusted)),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={namesake}"), Err(untrusted)),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={unknown}"), Err(untrusted)),
        ("localhost", format!("sslmode=verify-full&sslrootcert={known}"), Err("is for another name")),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={known}"), Ok(())),
    ];
    for (host, query, expected) in &table {
        let store = store(&server, host, query);
        let met = runtime.block_on(store.cursor(LogSource::Ingest)).map(drop).map_err(|error| error.to_string());
        match (&met, expected) {
            (Ok(()), Ok(())) => {}
            (Err(said), Err(words)) if said.contains(words) && !said.contains("throw-away") => {}
            _ => panic!("{host} {query}: {met:?}, not {expected:?}"),
        }
    }
    // Rows go the same way, over several connections.
    let (host, query, _) = table.last().expect("the strictest");
    let store = store(&server, host, query);
    let rows = events("acme", &["a", "b"]);
    let batch = Arc::new(LogBatch { offset: 0, dataset: rows.dataset, rows: rows.rows });
    let committed = runtime.block_on(async {
        let mut sink = store.sink(LogSource::Ingest, 0);
        sink.write(Delivery { batches: vec![batch], next_offset: 2 }).await?;
        sink.flush().await?;
        Ok::<_, tidegate_pipeline::SinkError>(sink.committed())
    });
    assert_eq!(committed.expect("written"), 2);
    assert_eq!(runtime.block_on(store.cursor(LogSource::Ingest)).expect("a cursor"), 2);
}
