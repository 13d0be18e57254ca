//! A Redis server of a test's own, which it may stop, freeze and start again. `cargo xtask test` installs redis-server when it
//! is missing; run without it, these tests say that they were not run.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use tempfile::TempDir;
use tidegate_sinks::redis::RedisConfig;

/// The page whose list of permissions is all that the program gets here.
const PAGE: &str = include_str!("../../../docs/sinks/redis.md");
const PASSWORD: &str = "throw-away";

/// How long a state may take to be reached on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct RedisServer {
    child: Option<Child>,
    pub port: u16,
    dir: TempDir,
    arguments: Vec<String>,
}

impl RedisServer {
    /// A server with these arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { child: None, port, dir: tempfile::tempdir().expect("a folder"), arguments };
        server.run();
        server
    }

    /// Starts it (again), on the same port and folder; waits until it answers.
    pub fn run(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut command = Command::new(program());
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.arg("--dir").arg(self.dir.path()).arg("--user").args(user());
        command.args(&self.arguments).stdin(Stdio::null());
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
        until("Redis answers", || self.try_connection().is_some());
    }

    /// Ends it at once, by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is ours");
            child.wait().expect("it ends");
        }
    }

    /// `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill");
        assert!(sent.success());
    }

    /// The URL for the program.
    pub fn url(&self) -> String {
        url(self.port)
    }

    pub fn config(&self) -> RedisConfig {
        config(&self.url())
    }

    fn try_connection(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("a URL");
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        redis::cmd("PING").query::<String>(&mut connection).is_ok().then_some(connection)
    }

    /// A connection that may do everything.
    pub fn connection(&self) -> redis::Connection {
        self.try_connection().expect("a connection")
    }

    /// One request of these words.
    pub fn ask(&self, words: &[&str]) -> Value {
        let mut request = redis::cmd(words[0]);
        for word in &words[1..] {
            request.arg(word);
        }
        request.query(&mut self.connection()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// What the program asked for that its user may not do.
    pub fn denied(&self) -> String {
        self.cli(&["ACL", "LOG"]).trim().to_owned()
    }

    /// What the stock client prints.
    pub fn cli(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().expect("redis-cli");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The entries of a stream: id of the event and offset, in order.
    pub fn entries(&self, stream: &str) -> Vec<(String, u64)> {
        let mut connection = self.connection();
        let reply: redis::streams::StreamRangeReply =
            redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query(&mut connection).expect("a stream");
        let field = |entry: &redis::streams::StreamId, name: &str| entry.get::<String>(name).expect(name);
        reply.ids.iter().map(|entry| (field(entry, "id"), field(entry, "offset").parse().expect("an offset"))).collect()
    }

    /// The ids of the events in all streams of a prefix.
    pub fn ids(&self, prefix: &str) -> Vec<String> {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("{prefix}:stream:*")).query(&mut self.connection()).expect("keys");
        keys.iter().flat_map(|key| self.entries(key)).map(|(id, _)| id).collect()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The user of the program with the permissions that the page lists, as redis.conf has it.
fn user() -> Vec<String> {
    let line = PAGE.lines().find_map(|line| line.strip_prefix("ACL SETUSER ")).expect("the list of the page");
    line.replace("PASSWORD", PASSWORD).split_whitespace().map(str::to_owned).collect()
}

fn url(port: u16) -> String {
    format!("redis://tidegate:{PASSWORD}@127.0.0.1:{port}")
}

/// A configuration that gives up early, for tests.
pub fn config(url: &str) -> RedisConfig {
    RedisConfig { url: url.to_owned(), connect_ms_max: 500, reply_ms_max: 500, ..RedisConfig::default() }
}

/// Debian's redis-server; `cargo xtask test` installs it.
fn program() -> PathBuf {
    let places = ["/usr/bin/redis-server", "/usr/local/bin/redis-server", "/usr/sbin/redis-server"];
    let found = places.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("redis-server is installed: `cargo xtask test` does it, or your system's package redis-server")
}

/// Waits until it is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A size that can be raised by an environment variable, for runs that take longer than the usual one.
#[expect(clippy::disallowed_methods, reason = "the size of a test, not configuration of the program")]
pub fn on_demand(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// A way to a server that can be disturbed.
#[derive(Clone)]
pub struct FaultProxy {
    pub port: u16,
    fault: Arc<parking_lot::Mutex<Fault>>,
}

/// What the way does to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// New and old connections end at once.
    Refused,
    /// Nothing passes, nothing ends.
    Hanging,
    /// Every piece takes this long, one way.
    Slow(Duration),
    /// Each connection ends once this many bytes went to the server, in the middle of a request.
    CutAfter(usize),
    /// The same for bytes from the server: what was asked is done, and nobody is told.
    DeafAfter(usize),
}

impl FaultProxy {
    /// A way to the port.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let proxy = Self {
            port: listener.local_addr().expect("an address").port(),
            fault: Arc::new(parking_lot::Mutex::new(Fault::None)),
        };
        let fault = proxy.fault.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if *fault.lock() == Fault::Refused {
                    continue;
                }
                let Ok(server) = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                let pairs =
                    [(client.try_clone(), server.try_clone(), true), (server.try_clone(), client.try_clone(), false)];
                for (from, to, up) in pairs {
                    let (from, to, fault) = (from.expect("a socket"), to.expect("a socket"), fault.clone());
                    std::thread::spawn(move || pass(from, to, up, &fault));
                }
            }
        });
        proxy
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    pub fn url(&self) -> String {
        url(self.port)
    }
}

fn pass(mut from: std::net::TcpStream, mut to: std::net::TcpStream, up: bool, fault: &parking_lot::Mutex<Fault>) {
    use std::io::Write;
    from.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    let (mut passed, mut piece) = (0usize, vec![0u8; 16 << 10]);
    loop {
        let now = *fault.lock();
        match now {
            Fault::Refused => break,
            Fault::Hanging => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            _ => {}
        }
        let read = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        let mut end = read;
        match now {
            Fault::Slow(pause) => std::thread::sleep(pause),
            Fault::CutAfter(bytes) if up => end = bytes.saturating_sub(passed).min(read),
            Fault::DeafAfter(bytes) if !up => end = bytes.saturating_sub(passed).min(read),
            _ => {}
        }
        passed += end;
        if to.write_all(&piece[..end]).is_err() || end < read {
            break;
        }
    }
    for socket in [from, to] {
        // It may have ended by itself.
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
}
