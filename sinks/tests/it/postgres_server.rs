//! A PostgreSQL of a test's own, with the programs and the account of the one that all tests share.

use std::fs::Permissions;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::postgres::Schema;

/// A place for a server, and the server once it runs. It ends when this is dropped.
pub struct OwnServer {
    child: Option<Child>,
    pub port: u16,
    folder: TempDir,
    bin: PathBuf,
    /// User and group.
    owner: (u32, u32),
    disk: Option<(PathBuf, u64)>,
}

impl OwnServer {
    /// A place for one.
    pub fn new() -> Self {
        let shared = Schema::new();
        let bin = PathBuf::from(shared.one("SELECT setting FROM pg_config WHERE name = 'BINDIR'"));
        let owner = std::fs::metadata(shared.one("SHOW data_directory")).expect("the server of the tests runs here");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("an address").port();
        let (folder, owner) = (tempfile::tempdir().expect("a folder"), (owner.uid(), owner.gid()));
        let server = Self { child: None, port, folder, bin, owner, disk: None };
        server.own(server.folder.path());
        server
    }

    fn own(&self, path: &Path) {
        chown(path, Some(self.owner.0), Some(self.owner.1)).expect("it is ours to give");
    }

    /// A file that only the server reads; its path.
    pub fn file(&self, name: &str, text: &[u8]) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
        self.own(&path);
        path.to_str().expect("a path").to_owned()
    }

    fn program(&self, name: &str) -> Command {
        // It does not outlive a run that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]).arg(self.bin.join(name)).arg("-D").arg(self.folder.path().join("data"));
        command.uid(self.owner.0).gid(self.owner.1).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs it with these settings.
    pub fn start(&mut self, settings: &[String]) {
        let password = self.file("password", b"throw-away");
        let mut initdb = self.program("initdb");
        initdb.args(["--username=tidegate", "--auth=scram-sha-256", "--no-sync", "--no-instructions", "--pwfile"]);
        let made = initdb.arg(&password).output().expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = match &self.disk {
            Some(disk) => self.program_on_disk("postgres", disk),
            None => self.program("postgres"),
        };
        server.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        server
            .args(["-c", "unix_socket_directories="])
            .args(settings.iter().flat_map(|setting| ["-c", setting.as_str()]));
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let child = self.child.insert(child);
        let (deadline, pid_file) =
            (Instant::now() + Duration::from_secs(60), self.folder.path().join("data/postmaster.pid"));
        // The last line of this file says what the server is up to.
        while !std::fs::read_to_string(&pid_file).is_ok_and(|text| text.lines().any(|line| line.trim() == "ready")) {
            assert!(child.try_wait().expect("ours").is_none(), "it ended at once");
            assert!(Instant::now() < deadline, "never: PostgreSQL is up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of its superuser, by this name of the host.
    pub fn url(&self, host: &str) -> String {
        format!("postgres://tidegate:throw-away@{host}:{}/postgres", self.port)
    }

    /// Whether [`give_disk`](Self::give_disk) can work here.
    pub fn may_have_a_disk() -> bool {
        let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    }

    /// Gives it, before it starts, a disk of so many bytes, in memory and seen by it alone; where it sees that. For root only.
    pub fn give_disk(&mut self, bytes: u64) -> PathBuf {
        let path = self.folder.path().join("disk");
        std::fs::create_dir(&path).expect("a folder");
        self.disk = Some((path.clone(), bytes));
        path
    }

    /// A path that the server sees, as this process does.
    pub fn seen(&self, path: &Path) -> PathBuf {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        Path::new("/proc").join(pid).join("root").join(path.strip_prefix("/").expect("an absolute path"))
    }

    /// The program in a world where the disk is mounted, which ends with it.
    fn program_on_disk(&self, name: &str, (disk, bytes): &(PathBuf, u64)) -> Command {
        const SCRIPT: &str = "mount -t tmpfs -o \"$1\" tmpfs \"$2\" && shift 2 && exec setpriv \"$@\"";
        let (uid, gid) = self.owner;
        let options = format!("size={bytes},mode=700,uid={uid},gid={gid}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", SCRIPT, "sh", &options]).arg(disk);
        command.args([
            "--reuid",
            &uid.to_string(),
            "--regid",
            &gid.to_string(),
            "--clear-groups",
            "--pdeathsig",
            "INT",
        ]);
        command.arg(self.bin.join(name)).arg("-D").arg(self.folder.path().join("data"));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGQUIT: at once, with all of its processes.
            let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }
}
