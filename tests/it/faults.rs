//! Faults for a server under test: syncs that take long or fail, and a wall clock that is off, by a small library that is
//! loaded before libc. It is compiled here, from `shim.c`: a C compiler is there wherever this program can be built.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// Where a number is in the file that the library looks at.
const DELAY_MS: u64 = 0;
const ERROR: u64 = 1;
const FAILED: u64 = 2;
const CLOCK_S: u64 = 3;
const ALLOWED: u64 = 4;
const PATH_AT: u64 = 64;
const PATH_BYTES: usize = 192;

/// The faults of one server; without any, until told.
pub struct Faults {
    dir: TempDir,
    told: File,
}

impl Faults {
    /// Compiles the library and makes the file of faults.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/shim.c");
        let library = dir.path().join("shim.so");
        let mut cc = Command::new("cc");
        let output = cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").output();
        let output = output.expect("a C compiler named cc: this test needs one");
        assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        let path = dir.path().join("faults");
        std::fs::write(&path, [0; PATH_AT as usize + PATH_BYTES]).expect("a file of faults");
        let told = File::options().read(true).write(true).open(path).expect("the file of faults");
        Self { dir, told }
    }

    /// What the server's environment must have.
    pub fn environment(&self) -> Vec<(String, PathBuf)> {
        let path = |name: &str| self.dir.path().join(name);
        vec![("LD_PRELOAD".into(), path("shim.so")), ("FAULTS".into(), path("faults"))]
    }

    /// Only files whose path has this part are concerned; all when it is empty.
    pub fn only(&self, part: &str) {
        let mut bytes = [0; PATH_BYTES];
        bytes[..part.len()].copy_from_slice(part.as_bytes());
        self.told.write_all_at(&bytes, PATH_AT).expect("the file of faults");
    }

    /// Each sync takes this much longer.
    pub fn slow(&self, delay: Duration) {
        self.tell(DELAY_MS, delay.as_millis() as i64);
    }

    /// Syncs fail as a broken disk's do, after so many more.
    pub fn fail_after(&self, syncs: i64) {
        self.tell(FAILED, 0);
        self.tell(ALLOWED, syncs);
        self.tell(ERROR, i64::from(rustix::io::Errno::IO.raw_os_error()));
    }

    /// Syncs succeed again, at their own pace.
    pub fn heal(&self) {
        self.tell(ERROR, 0);
        self.tell(DELAY_MS, 0);
    }

    /// The server's wall clock is off by this many seconds from now on.
    pub fn clock(&self, seconds: i64) {
        self.tell(CLOCK_S, seconds);
    }

    /// How many syncs have failed since that was asked for.
    pub fn failed(&self) -> i64 {
        let mut bytes = [0; 8];
        self.told.read_exact_at(&mut bytes, FAILED * 8).expect("the file of faults");
        i64::from_ne_bytes(bytes)
    }

    fn tell(&self, at: u64, value: i64) {
        self.told.write_all_at(&value.to_ne_bytes(), at * 8).expect("the file of faults");
    }
}
