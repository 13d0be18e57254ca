//! A database that is reached over TLS only: what each `sslmode` asks of its certificate, and what is said when that is not there.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_pipeline::{Delivery, LogBatch, Sink};
use tidegate_sinks::parquet::LogSource;
use tidegate_sinks::timescale::{TimescaleConfig, TimescaleStore};

use crate::certificates::Authority;
use crate::contract::rows::events;
use crate::postgres::{ORIGIN, Schema};

/// A PostgreSQL of a test's own, with the programs and the account of the one that all tests share.
struct TlsServer {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl TlsServer {
    fn start(authority: &Authority) -> Self {
        let shared = Schema::new();
        let bin = PathBuf::from(shared.one("SELECT setting FROM pg_config WHERE name = 'BINDIR'"));
        let owner = std::fs::metadata(shared.one("SHOW data_directory")).expect("the server of the tests runs here");
        let own = |path: &Path| chown(path, Some(owner.uid()), Some(owner.gid())).expect("it is ours to give");
        let folder = tempfile::tempdir().expect("a folder");
        own(folder.path());
        let given = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
            own(&path);
            path.to_str().expect("a path").to_owned()
        };
        let (certificate, key) = authority.signed();
        let certificate = given("server.pem", &std::fs::read(certificate).expect("a certificate"));
        let key = given("server.key", &std::fs::read(key).expect("a key"));
        let password = given("password", b"throw-away");
        let hba = given("hba", b"hostssl all all 127.0.0.1/32 scram-sha-256\n");
        let data = folder.path().join("data");
        let command = |program: &str| {
            // It does not outlive a run that is killed.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "INT"]).arg(bin.join(program)).arg("-D").arg(&data);
            command.uid(owner.uid()).gid(owner.gid()).current_dir(folder.path()).stdin(Stdio::null());
            command
        };
        let mut initdb = command("initdb");
        initdb.args([
            "--username=tidegate",
            "--auth=scram-sha-256",
            "--no-sync",
            "--no-instructions",
            "--pwfile",
            &password,
        ]);
        let made = initdb.output().expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let mut server = command("postgres");
        server.args(["-p", &port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "ssl=on",
            &format!("ssl_cert_file={certificate}"),
            &format!("ssl_key_file={key}"),
            &format!("hba_file={hba}"),
        ] {
            server.args(["-c", setting]);
        }
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut server = Self { child, port, _folder: folder };
        let (deadline, pid_file) = (Instant::now() + Duration::from_secs(60), data.join("postmaster.pid"));
        // The last line of this file says what the server is up to.
        while !std::fs::read_to_string(&pid_file).is_ok_and(|text| text.lines().any(|line| line.trim() == "ready")) {
            assert!(server.child.try_wait().expect("ours").is_none(), "it ended at once");
            assert!(Instant::now() < deadline, "never: PostgreSQL is up");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn store(&self, host: &str, query: &str) -> Arc<TimescaleStore> {
        let url = format!("postgres://tidegate:throw-away@{host}:{}/postgres?{query}", self.port);
        let config = TimescaleConfig { url, aggregates: false, ..TimescaleConfig::default() };
        TimescaleStore::open(config, ORIGIN).expect("a store")
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        // SIGQUIT: at once, with all of its processes.
        let _ = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

#[test]
fn each_sslmode_asks_of_the_servers_certificate_what_it_does_with_libpq() {
    // The third is what an authority that was made anew looks like.
    let [authority, other, namesake] = ["one", "another", "one"].map(Authority::new);
    let server = TlsServer::start(&authority);
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
        let store = server.store(host, query);
        let met = runtime.block_on(store.cursor(LogSource::Ingest)).map(drop).map_err(|error| error.to_string());
        match (&met, expected) {
            (Ok(()), Ok(())) => {}
            (Err(said), Err(words)) if said.contains(words) && !said.contains("throw-away") => {}
            _ => panic!("{host} {query}: {met:?}, not {expected:?}"),
        }
    }
    // Rows go the same way, over several connections.
    let (host, query, _) = table.last().expect("the strictest");
    let store = server.store(host, query);
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
