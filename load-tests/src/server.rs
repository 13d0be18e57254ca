//! The server under test: a child process in a temporary folder, on its share of the cores. It is killed when this is dropped; no
//! other process is ever touched.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyper::header::HeaderValue;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use tempfile::TempDir;

use crate::case::Case;
use crate::http::Connection;

/// How long a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    dir: TempDir,
    started: Instant,
    /// Where it listens.
    pub address: SocketAddr,
    /// The header of whoever may read its folder.
    pub operator: HeaderValue,
}

impl Server {
    /// Starts the program with the case's settings and waits until it is ready. `rules` is its rule folder, `folder` is where its
    /// own folder is made, `cores` are those it may use.
    ///
    /// # Errors
    /// When it does not start; the message has the end of its log.
    pub async fn start(
        program: &Path,
        case: &Case,
        rules: Option<&Path>,
        folder: &Path,
        cores: Option<CpuSet>,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tidegate-load-").tempdir_in(folder).context("a temporary folder")?;
        Self::start_in(dir, program, case, rules, cores).await
    }

    async fn start_in(
        dir: TempDir,
        program: &Path,
        case: &Case,
        rules: Option<&Path>,
        cores: Option<CpuSet>,
    ) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(dir.path().join("server.log"))?;
        let mut command = Command::new(program);
        command.arg("serve").env_clear().envs(case.environment());
        command.env("TIDEGATE_DATA_DIR", dir.path().join("data")).env("TIDEGATE_LISTEN", "127.0.0.1:0");
        command.envs(rules.map(|rules| ("TIDEGATE_RULES", rules)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let started = Instant::now();
        let child = spawn(command, cores).with_context(|| format!("start {}", program.display()))?;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let operator = HeaderValue::from_static("");
        let mut server = Self { child, dir, started, address, operator };
        if let Err(error) = server.until_ready().await {
            bail!("{error:#}; the end of its log:\n{}", server.log_end());
        }
        Ok(server)
    }

    /// Kills it, and starts it again on what it left: with no page of its logs in memory, and, if it is asked for, without its
    /// checkpoints.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(
        mut self,
        program: &Path,
        case: &Case,
        rules: Option<&Path>,
        cores: Option<CpuSet>,
        from_first_row: bool,
    ) -> anyhow::Result<Self> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the killed server")?;
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().context("a temporary folder")?);
        let data = dir.path().join("data");
        fs::remove_file(data.join("server.json")).context("the file of the killed server")?;
        if from_first_row {
            fs::remove_dir_all(data.join("checkpoint")).context("remove the checkpoints")?;
        }
        forget_pages(&data.join("log"))?;
        Self::start_in(dir, program, case, rules, cores).await
    }

    /// Since its process was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The last lines that it wrote.
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let file = self.data_dir().join("server.json");
        loop {
            ensure!(started.elapsed() < PATIENCE, "the server was not ready within {PATIENCE:?}");
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status} instead of starting");
            }
            if let Some((address, operator)) = fs::read(&file).ok().as_deref().and_then(address) {
                (self.address, self.operator) = (address, operator);
                let mut connection = Connection::open(address).await?;
                if connection.get("/readyz").await?.status.is_success() {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time, or not well.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::TERM).context("send SIGTERM")?;
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the server ended with {status}; the end of its log:\n{}", self.log_end());
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "the server did not stop within {PATIENCE:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(server_json: &[u8]) -> Option<(SocketAddr, HeaderValue)> {
    let value: Value = serde_json::from_slice(server_json).ok()?;
    let operator = format!("Bearer {}", value["token"].as_str()?);
    Some((value["url"].as_str()?.strip_prefix("http://")?.parse().ok()?, operator.parse().ok()?))
}

/// Has the operating system drop what it holds of the files of a folder, so that they are read from the disk.
fn forget_pages(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let file = File::open(entry?.path())?;
        // What is not written yet stays.
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).context("drop the pages of the log")?;
    }
    Ok(())
}

/// A child inherits the cores of the thread that makes it, so a thread of its own takes the child's cores first.
fn spawn(mut command: Command, cores: Option<CpuSet>) -> anyhow::Result<Child> {
    let thread = std::thread::spawn(move || {
        if let Some(cores) = cores {
            sched_setaffinity(None, &cores).context("set the server's cores")?;
        }
        anyhow::Ok(command.spawn()?)
    });
    thread.join().map_err(|_| anyhow::anyhow!("the thread that starts the server panicked"))?
}

/// Puts this thread, and the threads that it makes from now on, on the cores that the server does not get, and says which are the
/// server's: so many, or all (`None`) for 0. A driver that is left no core shares the server's.
///
/// # Errors
/// When there are not so many cores, or the operating system refuses.
pub fn split_cores(cores: usize) -> anyhow::Result<Option<CpuSet>> {
    if cores == 0 {
        return Ok(None);
    }
    let all = sched_getaffinity(None).context("ask which cores there are")?;
    let (mut server, mut driver) = (CpuSet::new(), CpuSet::new());
    for core in (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)) {
        if (server.count() as usize) < cores { server.set(core) } else { driver.set(core) }
    }
    ensure!(server.count() as usize == cores, "allotment.cores is {cores}, this machine gives {}", all.count());
    if driver.count() > 0 {
        sched_setaffinity(None, &driver).context("set the driver's cores")?;
    }
    Ok(Some(server))
}
