//! A real server process in a temporary folder, and a client of it: what the end-to-end tests stand on.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::cli::http::{Client, Reply};
use tidegate::config::ClientConfig;

/// How long a server may take to be up, or a state to be reached, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server and its folder. The process is killed when this is dropped.
pub struct Server {
    child: Option<Child>,
    dir: TempDir,
    flags: Vec<String>,
    /// `http://127.0.0.1:port`.
    pub url: String,
}

impl Server {
    /// A server with these extra settings as environment (`QUERY__QUERY_MS_MAX`, value).
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(&[], settings)
    }

    /// A server with extra flags and settings.
    pub fn start_with(flags: &[&str], settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut server = Self { child: None, dir, flags, url: String::new() };
        server.run(settings);
        server
    }

    /// The data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A folder beside the data folder, for a test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs the program on the same folder again, after [`kill`](Self::kill) or [`stop`](Self::stop).
    pub fn run(&mut self, settings: &[(&str, &str)]) {
        assert!(self.child.is_none(), "the server runs already");
        let mut command = tidegate(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(self.data_dir()).args(&self.flags);
        for (name, value) in settings {
            command.env(format!("TIDEGATE_{name}"), value);
        }
        let lines = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("stderr.log"));
        let _ = std::fs::remove_file(self.data_dir().join("server.json"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(lines.expect("a log file")).spawn();
        self.child = Some(child.expect("the program starts"));
        let started = Instant::now();
        loop {
            let written = std::fs::read(self.data_dir().join("server.json")).ok();
            let url = written.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            if let Some(url) = url.as_ref().and_then(|server| server["url"].as_str()) {
                self.url = url.to_owned();
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok()).flatten();
            assert!(ended.is_none(), "the server ended with {ended:?}: {}", self.lines());
            assert!(started.elapsed() < PATIENCE, "the server is not up: {}", self.lines());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the server wrote to standard error.
    pub fn lines(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr.log")).unwrap_or_default()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the process is ours");
            child.wait().expect("the process ends");
        }
    }

    /// Sends a signal (`TERM`, `HUP`).
    pub fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("a running server");
        let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a pid");
        let signal = match name {
            "HUP" => rustix::process::Signal::HUP,
            _ => rustix::process::Signal::TERM,
        };
        rustix::process::kill_process(pid, signal).expect("the process is ours");
    }

    /// SIGTERM, and how long the drain took; fails unless it ends with success.
    pub fn stop(&mut self) -> Duration {
        let started = Instant::now();
        self.signal("TERM");
        let mut child = self.child.take().expect("a running server");
        let status = child.wait().expect("the process ends");
        assert!(status.success(), "{status}: {}", self.lines());
        started.elapsed()
    }

    /// A client without a key.
    pub fn client(&self) -> Caller {
        Caller::new(&self.url, None)
    }

    /// A client with this key.
    pub fn client_with(&self, key: &str) -> Caller {
        Caller::new(&self.url, Some(key))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The program under test with these arguments, in an environment without settings of ours.
pub fn tidegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// A blocking client.
pub struct Caller {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Caller {
    /// A client of the server at `url`.
    pub fn new(url: &str, key: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = ClientConfig { url: url.to_owned(), key: key.map(str::to_owned), ..ClientConfig::default() };
        Self { runtime, client: Client::new(&config).expect("a client") }
    }

    /// One request; `None` when the connection broke.
    pub fn try_send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Reply> {
        let method: Method = method.parse().expect("a method");
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.parse::<HeaderName>().expect("a header name"), *value)).collect();
        let body = Bytes::copy_from_slice(body);
        self.runtime.block_on(self.client.fetch(method, path, &headers, body)).ok()
    }

    /// One request that must get an answer.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_send(method, path, headers, body).unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    /// `GET`, any status.
    pub fn get(&mut self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    /// Sends events as NDJSON; the reply.
    pub fn bulk(&mut self, path: &str, events: &[Value]) -> Reply {
        let mut body = Vec::new();
        for event in events {
            body.extend_from_slice(event.to_string().as_bytes());
            body.push(b'\n');
        }
        self.send("POST", path, &[("content-type", "application/x-ndjson")], &body)
    }

    /// The rows of a statement; fails when it is refused.
    pub fn sql(&mut self, statement: &str) -> Vec<Value> {
        let reply = self.send("POST", "/v2/sql", &[("content-type", "text/plain")], statement.as_bytes());
        assert_eq!(reply.status.as_u16(), 200, "{statement}: {}", String::from_utf8_lossy(&reply.body));
        let rows: Value = serde_json::from_slice(&reply.body).expect("JSON");
        rows.as_array().expect("an array of rows").clone()
    }

    /// The one value of a statement of one row and one column.
    pub fn number(&mut self, statement: &str) -> i64 {
        let rows = self.sql(statement);
        let value = rows.first().and_then(|row| row.as_object()?.values().next().cloned());
        value.and_then(|value| value.as_i64()).unwrap_or_else(|| panic!("{statement}: {rows:?}"))
    }

    /// Asks until the statement gives `wanted` or patience ends.
    pub fn wait_for(&mut self, statement: &str, wanted: i64) {
        let started = Instant::now();
        let mut last = self.number(statement);
        while last != wanted {
            assert!(started.elapsed() < PATIENCE, "{statement}: {last}, not {wanted}");
            std::thread::sleep(Duration::from_millis(50));
            last = self.number(statement);
        }
    }
}

/// A small security event with an id.
pub fn event(id: &str, action: &str) -> Value {
    json!({"event_id": id, "action": action, "user": {"name": "ada"}, "n": 7, "@timestamp": "2026-11-20T10:00:00Z"})
}
