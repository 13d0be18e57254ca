//! `server.json` in the data folder: where the running server listens, and the token with which whoever may read the folder
//! manages keys.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

/// The name of the file.
pub const NAME: &str = "server.json";

/// The file of a server that is about to listen.
#[derive(Debug)]
pub struct ServerFile {
    path: PathBuf,
    url: String,
    token: String,
}

impl ServerFile {
    /// The file for a server at `address`, with a new token. Nothing is written yet.
    ///
    /// # Errors
    /// When the operating system gives no random bits.
    pub fn new(data_dir: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let mut random = [0u8; 32];
        getrandom::fill(&mut random).context("random bits")?;
        let token = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { path: data_dir.join(NAME), url: url(address), token })
    }

    /// The token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Writes the file, readable by this user only, so that a reader sees all of it or none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> anyhow::Result<()> {
        let text = json!({"url": self.url, "token": self.token, "pid": std::process::id()}).to_string();
        let draft = self.path.with_extension("json.tmp");
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&draft, &self.path).with_context(|| format!("write {}", self.path.display()))
    }

    /// Removes the file when the server ends.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove");
        }
    }
}

/// The URL under which this machine reaches a server at `address`.
pub fn url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        let loopback =
            if address.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { IpAddr::from(Ipv6Addr::LOCALHOST) };
        address.set_ip(loopback);
    }
    format!("http://{address}")
}
