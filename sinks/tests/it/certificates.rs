//! Certificates for servers of tests, made with the `openssl` that these servers themselves need.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

const CONFIG: &str = "[req]\ndistinguished_name = name\nprompt = no\n\
                      [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
                      [server]\nbasicConstraints = CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";

/// An authority that a test makes. Its certificates are gone when this is dropped.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    /// An authority of this name.
    pub fn new(name: &str) -> Self {
        let authority = Self { folder: tempfile::tempdir().expect("a folder") };
        std::fs::write(authority.path("config"), format!("{CONFIG}[name]\nCN = {name}\n")).expect("written");
        authority.make("authority", &[]);
        authority
    }

    /// Its own certificate: what clients trust.
    pub fn file(&self) -> PathBuf {
        self.path("authority.pem")
    }

    /// A certificate of a server for 127.0.0.1, which is not one for `localhost`, and its key.
    pub fn signed(&self) -> (PathBuf, PathBuf) {
        let (file, key) = (self.file(), self.path("authority.key"));
        let (file, key) = (file.to_str().expect("a path"), key.to_str().expect("a path"));
        self.make("server", &["-CA", file, "-CAkey", key]);
        (self.path("server.pem"), self.path("server.key"))
    }

    fn make(&self, name: &str, more: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-extensions", name]).arg("-config").arg(self.path("config")).args(more);
        openssl
            .arg("-keyout")
            .arg(self.path(&format!("{name}.key")))
            .arg("-out")
            .arg(self.path(&format!("{name}.pem")));
        let made = openssl.output().expect("openssl is installed: `apt-get install openssl`");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
