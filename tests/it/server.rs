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

use crate::faults::Faults;

/// How long a server may take to be up, or a state to be reached, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server and its folder. The process is killed when this is dropped.
pub struct Server {
    child: Option<Child>,
    dir: TempDir,
    flags: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    /// Bytes of a file system of its own, and of a file that takes room on it.
    small_disk: Option<(u64, u64)>,
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
        Self::launch(
            Self { child: None, dir, flags, environment: Vec::new(), small_disk: None, url: String::new() },
            settings,
        )
    }

    fn launch(mut self, settings: &[(&str, &str)]) -> Self {
        self.run(settings);
        self
    }

    /// A server whose data folder is on a file system of `bytes`, of which the file `ballast` takes some: in memory, and seen
    /// by this process alone. Needs the right to make one: root, or user namespaces.
    pub fn start_on_small_disk(bytes: u64, ballast: u64, settings: &[(&str, &str)]) -> Self {
        let (dir, environment) = (tempfile::tempdir().expect("a temporary folder"), Vec::new());
        let small_disk = Some((bytes, ballast));
        Self::launch(
            Self { child: None, dir, flags: Vec::new(), environment, small_disk, url: String::new() },
            settings,
        )
    }

    /// Removes the file that takes room on the small disk.
    pub fn drop_ballast(&self) {
        std::fs::remove_file(self.seen(&self.dir.path().join("disk/ballast"))).expect("the ballast");
    }

    /// The path as this process sees what the server has there.
    fn seen(&self, path: &Path) -> PathBuf {
        match (&self.small_disk, &self.child) {
            (Some(_), Some(child)) => {
                let inside = path.strip_prefix("/").expect("an absolute path");
                Path::new("/proc").join(child.id().to_string()).join("root").join(inside)
            }
            _ => path.to_owned(),
        }
    }

    /// A server on which these faults are brought.
    pub fn start_under(faults: &Faults, flags: &[&str], settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let environment = faults.environment();
        Self::launch(Self { child: None, dir, flags, environment, small_disk: None, url: String::new() }, settings)
    }

    /// A server with variables that are no settings of ours.
    pub fn start_in(variables: &[(&str, &str)], settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), PathBuf::from(value))).collect();
        Self::launch(
            Self { child: None, dir, flags: Vec::new(), environment, small_disk: None, url: String::new() },
            settings,
        )
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running server").id()
    }

    /// CPU time that the process has taken.
    pub fn cpu(&self) -> Duration {
        let pid = self.child.as_ref().expect("a running server").id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
        // After the name in parentheses: state is the first, user and system time are the 12th and 13th, in ticks.
        let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
    }

    /// How many files and connections the process has open.
    pub fn open_files(&self) -> usize {
        let pid = self.child.as_ref().expect("a running server").id();
        let folder = format!("/proc/{pid}/fd");
        // Since Linux 6.2 its size is their number. Reading it takes milliseconds of a core when there are thousands, which those
        // whose waits are measured wait for too.
        match std::fs::metadata(&folder).expect("the process lives").len() {
            0 => std::fs::read_dir(&folder).expect("the process lives").count(),
            files => files as usize,
        }
    }

    /// Resident memory of the process in bytes.
    pub fn memory(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most that it was since [`forget_memory_peak`](Self::forget_memory_peak).
    pub fn memory_peak(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// From now on the peak of the memory is counted anew.
    pub fn forget_memory_peak(&self) {
        // See proc_pid_clear_refs(5).
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("a process of ours");
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// The data folder.
    pub fn data_dir(&self) -> PathBuf {
        let part = if self.small_disk.is_some() { "disk/data" } else { "data" };
        self.dir.path().join(part)
    }

    /// A folder beside the data folder, for a test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs the program on the same folder again, after [`kill`](Self::kill) or [`stop`](Self::stop).
    pub fn run(&mut self, settings: &[(&str, &str)]) {
        assert!(self.child.is_none(), "the server runs already");
        let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir"];
        let mut command = match self.small_disk {
            Some((bytes, ballast)) => on_small_disk(&self.dir.path().join("disk"), bytes, ballast, &serve),
            None => tidegate(&serve),
        };
        command.arg(self.data_dir()).args(&self.flags);
        for (name, value) in settings {
            command.env(format!("TIDEGATE_{name}"), value);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let lines = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("stderr.log"));
        let _ = std::fs::remove_file(self.data_dir().join("server.json"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(lines.expect("a log file")).spawn();
        self.child = Some(child.expect("the program starts"));
        let started = Instant::now();
        loop {
            let written = std::fs::read(self.seen(&self.data_dir().join("server.json"))).ok();
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

    /// The token of whoever may read the data folder.
    pub fn local_token(&self) -> String {
        let file = std::fs::read(self.seen(&self.data_dir().join("server.json"))).expect("the server's file");
        let file: Value = serde_json::from_slice(&file).expect("JSON");
        file["token"].as_str().expect("a token").to_owned()
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

/// The program, started where `disk` is a file system of its own.
fn on_small_disk(disk: &Path, bytes: u64, ballast: u64, arguments: &[&str]) -> Command {
    std::fs::create_dir_all(disk).expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size={bytes} tmpfs \"$0\" && head -c {ballast} /dev/zero > \"$0\"/ballast && exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "--", "sh", "-c"]).arg(script).arg(disk);
    command.arg(program()).args(arguments);
    without_settings(&mut command);
    command
}

/// The program under test: the one that was built with the tests, or that at `TIDEGATE_PROGRAM`, such as a release build.
fn program() -> PathBuf {
    std::env::var_os("TIDEGATE_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_tidegate").into(), PathBuf::from)
}

/// The program under test with these arguments, in an environment without settings of ours.
pub fn tidegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments);
    without_settings(&mut command);
    command
}

fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// Nobody listens: it was not sent.
    Nobody,
    /// The connection broke, or the answer did not come in time.
    Broken(String),
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

    /// One request; `None` when there was no answer.
    pub fn try_send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Reply> {
        self.attempt(method, path, headers, body).ok()
    }

    /// One request, or why there was no answer.
    pub fn attempt(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply, NoAnswer> {
        let method: Method = method.parse().expect("a method");
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.parse::<HeaderName>().expect("a header name"), *value)).collect();
        let body = Bytes::copy_from_slice(body);
        self.runtime.block_on(self.client.fetch(method, path, &headers, body)).map_err(|error| {
            let refused = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::ConnectionRefused;
            match error.chain().filter_map(|cause| cause.downcast_ref()).any(refused) {
                true => NoAnswer::Nobody,
                false => NoAnswer::Broken(format!("{error:#}")),
            }
        })
    }

    /// One request that must get an answer.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.attempt(method, path, headers, body).unwrap_or_else(|why| match why {
            NoAnswer::Nobody => panic!("{method} {path}: nobody listens"),
            NoAnswer::Broken(reason) => panic!("{method} {path}: no answer: {reason}"),
        })
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

/// A size that can be raised by an environment variable, for runs that take longer than the usual one.
#[expect(clippy::disallowed_methods, reason = "the size of a test, not configuration of the program")]
pub fn on_demand(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
