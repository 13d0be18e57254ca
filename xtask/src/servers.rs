//! Throw-away servers for the tests: a PostgreSQL and a Redis on free loopback ports, in a temporary folder, gone when the
//! tests are. They come from the system's packages and are installed when they are missing and this may be done.
//!
//! The tests find them by two environment variables: [`POSTGRES_ENV`], `postgres://user:password@127.0.0.1:port/postgres` of a
//! superuser (so that tests make databases and roles of their own), and [`REDIS_ENV`], `redis://127.0.0.1:port`. Whoever sets
//! one of them beforehand has the tests use that server instead; nothing is started in its place.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Tells tests where PostgreSQL is.
pub(crate) const POSTGRES_ENV: &str = "TIDEGATE_TEST_POSTGRES";
/// Tells tests where Redis is.
pub(crate) const REDIS_ENV: &str = "TIDEGATE_TEST_REDIS";

/// The superuser of the throw-away PostgreSQL. The password is no secret: only loopback is bound, for minutes.
const USER: &str = "tidegate";
const PASSWORD: &str = "throw-away";
/// How long a server may take to be up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the folders of one run are called; the process id follows.
const FOLDER_PREFIX: &str = "tidegate-servers-";
/// Durable against a killed server, not against a power cut: nobody waits for the disk.
const POSTGRES_SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=64MB",
    "max_wal_size=256MB",
    "max_connections=200",
];

/// The servers of one run. They end when this is dropped.
pub(crate) struct Servers {
    folder: PathBuf,
    postgres: Option<Postgres>,
    redis: Option<Child>,
    environment: Vec<(&'static str, String)>,
}

struct Postgres {
    child: Child,
    bin: PathBuf,
    owner: Option<Owner>,
}

/// The account that a server runs under when this program runs as root, which PostgreSQL refuses.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Servers {
    /// Starts what the environment does not name yet.
    ///
    /// # Errors
    /// When a server is missing and cannot be installed, with what to do about it; when one does not start.
    pub(crate) fn start() -> anyhow::Result<Self> {
        remove_leftovers();
        let folder = std::env::temp_dir().join(format!("{FOLDER_PREFIX}{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let root = fs::metadata(&folder)?.uid() == 0;
        let mut servers = Self { folder, postgres: None, redis: None, environment: Vec::new() };
        let (postgres, redis) = (!is_set(POSTGRES_ENV), !is_set(REDIS_ENV));
        let mut missing = Vec::new();
        missing.extend((postgres && postgres_bin().is_none()).then_some("postgresql"));
        missing.extend((redis && redis_server().is_none()).then_some("redis-server"));
        if !missing.is_empty() {
            install(&missing, root)?;
        }
        if postgres {
            servers.start_postgres(root)?;
        }
        if redis {
            servers.start_redis()?;
        }
        Ok(servers)
    }

    /// What the tests are to find in their environment.
    pub(crate) fn environment(&self) -> &[(&'static str, String)] {
        &self.environment
    }

    fn start_postgres(&mut self, root: bool) -> anyhow::Result<()> {
        let bin = postgres_bin().context("the package postgresql is installed, but its programs are not where Debian puts them (/usr/lib/postgresql/*/bin) nor on the PATH")?;
        let owner = if root { Some(unprivileged()?) } else { None };
        let cluster = self.folder.join("postgres");
        fs::create_dir(&cluster)?;
        let password = self.folder.join("password");
        fs::write(&password, PASSWORD)?;
        if let Some(Owner { uid, gid }) = owner {
            chown(&cluster, Some(uid), Some(gid))?;
        }
        let mut initdb = command(&bin.join("initdb"), owner, &self.folder);
        initdb.arg("--pgdata").arg(&cluster).arg("--pwfile").arg(&password).args(["--username", USER]);
        initdb.args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]);
        let made = initdb.stdin(Stdio::null()).output().context("run initdb")?;
        if !made.status.success() {
            bail!("initdb failed: {}{}", String::from_utf8_lossy(&made.stdout), String::from_utf8_lossy(&made.stderr));
        }
        let (port, log) = (free_port()?, self.folder.join("postgres.log"));
        let mut server = command(&bin.join("postgres"), owner, &self.folder);
        server.arg("-D").arg(&cluster).args(["-p", &port.to_string()]);
        server.args(POSTGRES_SETTINGS.iter().flat_map(|setting| ["-c", *setting]));
        let child = spawn(&mut server, &log)?;
        let postgres = self.postgres.insert(Postgres { child, bin, owner });
        // The last line of this file says what the server is up to; see pidfile.h.
        let pid_file = cluster.join("postmaster.pid");
        let ready = || fs::read_to_string(&pid_file).is_ok_and(|text| text.lines().any(|line| line.trim() == "ready"));
        until_ready("PostgreSQL", &mut postgres.child, &log, ready)?;
        self.environment.push((POSTGRES_ENV, format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres")));
        Ok(())
    }

    fn start_redis(&mut self) -> anyhow::Result<()> {
        let program = redis_server().context("the package redis-server is installed, but redis-server is not found")?;
        let (port, log) = (free_port()?, self.folder.join("redis.log"));
        let mut server = command(&program, None, &self.folder);
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        server.arg("--dir").arg(&self.folder);
        let child = self.redis.insert(spawn(&mut server, &log)?);
        until_ready("Redis", child, &log, || answers_ping(port).unwrap_or(false))?;
        self.environment.push((REDIS_ENV, format!("redis://127.0.0.1:{port}")));
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(Postgres { mut child, bin, owner }) = self.postgres.take() {
            // The server ends its own processes; killed, it would leave them to find out.
            let mut stop = command(&bin.join("pg_ctl"), owner, &self.folder);
            stop.args(["stop", "--silent", "--mode=immediate", "--pgdata"]).arg(self.folder.join("postgres"));
            let stopped = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !stopped.is_ok_and(|status| status.success()) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        if let Some(mut child) = self.redis.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Folders of runs that were killed. A PostgreSQL whose folder is gone ends by itself within a minute.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(FOLDER_PREFIX)) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The folder of PostgreSQL's programs: the newest of Debian's, else that on the `PATH`.
fn postgres_bin() -> Option<PathBuf> {
    let whole = |bin: &PathBuf| bin.join("initdb").exists() && bin.join("postgres").exists();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest =
        versions.map(|entry| entry.path()).filter(|path| whole(&path.join("bin"))).max_by_key(|path| number(path));
    newest.map(|path| path.join("bin")).or_else(|| {
        let program = on_path("postgres")?;
        // Beside what a link on the PATH leads to.
        program.canonicalize().ok()?.parent().map(Path::to_owned).filter(whole)
    })
}

fn redis_server() -> Option<PathBuf> {
    on_path("redis-server").or_else(|| on_path("valkey-server"))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.exists())
}

/// Installs packages with apt-get when this is root on a Debian, and starts none of their services.
fn install(packages: &[&str], root: bool) -> anyhow::Result<()> {
    let names = packages.join(" ");
    let by_hand = format!(
        "the tests need {names}: install it with `sudo apt-get install {names}` (Debian, Ubuntu) or your system's packages, or \
         name running servers in {POSTGRES_ENV} and {REDIS_ENV}"
    );
    if !root || on_path("apt-get").is_none() {
        bail!(by_hand);
    }
    eprintln!("installing {} with apt-get", packages.join(", "));
    let _policy = NoServices::declare()?;
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["--quiet=2", "--option", "DPkg::Lock::Timeout=120"]).args(arguments);
        // Their output goes beside ours: standard output belongs to the command that needs the servers.
        apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(std::io::stderr());
        apt.status().is_ok_and(|status| status.success())
    };
    let wanted = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    // The lists may be missing or old: only then is the network asked for new ones.
    if apt(&wanted) || (apt(&["update"]) && apt(&wanted)) {
        return Ok(());
    }
    bail!("apt-get could not install them (its output is above); {by_hand}")
}

/// Tells Debian's packages not to start services while they are installed; see `invoke-rc.d(8)`.
struct NoServices {
    ours: Option<PathBuf>,
}

impl NoServices {
    fn declare() -> anyhow::Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self { ours: None });
        }
        fs::write(&policy, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {}", policy.display()))?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: Some(policy) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.ours {
            let _ = fs::remove_file(policy);
        }
    }
}

/// The account `postgres` that Debian's package makes, or `nobody`.
fn unprivileged() -> anyhow::Result<Owner> {
    let accounts = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let account = |name: &str| {
        let mut parts = accounts
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut parts| (parts.next() == Some(name)).then_some(parts))?;
        let (uid, gid) = (parts.nth(1)?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Owner { uid, gid })
    };
    let found = account("postgres").or_else(|| account("nobody"));
    found.context(
        "PostgreSQL does not run as root, and there is no account postgres or nobody: run this as another user",
    )
}

/// A command of this account, in a folder that it may be in.
fn command(program: &Path, owner: Option<Owner>, folder: &Path) -> Command {
    // A server must not outlive a run that is killed.
    let mut command = match on_path("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "INT"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    if let Some(Owner { uid, gid }) = owner {
        command.uid(uid).gid(gid);
    }
    command.current_dir(folder);
    command
}

fn spawn(server: &mut Command, log: &Path) -> anyhow::Result<Child> {
    let out = fs::File::create(log)?;
    let err = out.try_clone()?;
    // A group of its own: Ctrl-C ends the tests first, and then what they use.
    server.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    server.spawn().with_context(|| format!("start {}", server.get_program().display()))
}

fn until_ready(name: &str, child: &mut Child, log: &Path, ready: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("{name} ended at once ({status}): {}", fs::read_to_string(log).unwrap_or_default());
        }
        if ready() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{name} is not up after {PATIENCE:?}: {}", fs::read_to_string(log).unwrap_or_default());
        }
        sleep(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("take a free port")?;
    Ok(listener.local_addr()?.port())
}

fn answers_ping(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}
