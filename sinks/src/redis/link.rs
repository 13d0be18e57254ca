//! Connections to Redis, and what its errors mean for people.
//!
//! The connection manager of the `redis` crate is not used: it keeps a connection on which answers stay out, as long as the
//! operating system does not end it. Here every request has a deadline, and a connection that missed one is given up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisError,
    ServerError, TlsCertificates, Value,
};
use tidegate_pipeline::fs::{RealFs, read_file};

use super::config::RedisConfig;
use crate::certificates;
use crate::error::SinksError;

/// A password is not longer than this.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;
/// What the file of certificates may have.
const CA_BYTES_MAX: u64 = 16 << 20;

/// Where Redis is and how to get in.
pub(super) struct Server {
    info: ConnectionInfo,
    password_file: Option<PathBuf>,
    /// PEM.
    authorities: Option<Vec<u8>>,
    /// Without user and password.
    address: String,
    connect_max: Duration,
    pub(super) reply_max: Duration,
}

impl Server {
    /// Reads the files that the configuration names. Connects to nothing.
    pub(super) fn new(config: &RedisConfig) -> Result<Arc<Self>, SinksError> {
        let invalid = |what: &str, error: &dyn std::fmt::Display| {
            SinksError::Invalid(format!("{what}: {error}; write redis://user:password@host:port/database"))
        };
        let url = config.url.as_str();
        let info = url.into_connection_info().map_err(|error| invalid("the URL of Redis is not one", &error))?;
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_redis_settings(settings);
        let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        if tls {
            // The first one stays, which is this one or the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let read = |path: &PathBuf| read_file(&RealFs, path, CA_BYTES_MAX).map_err(SinksError::io("read", path));
        let authorities = config.ca_file.as_ref().filter(|_| tls).map(read).transpose()?;
        let server = Self {
            address: info.addr().to_string(),
            info,
            password_file: config.password_file.clone(),
            authorities,
            connect_max: Duration::from_millis(config.connect_ms_max),
            reply_max: Duration::from_millis(config.reply_ms_max),
        };
        server.client().map_err(|error| invalid("Redis cannot be used", &error))?;
        Ok(Arc::new(server))
    }

    /// A client by the password as it is now.
    fn client(&self) -> Result<Client, String> {
        let mut info = self.info.clone();
        if let Some(path) = &self.password_file {
            let password = read_file(&RealFs, path, PASSWORD_BYTES_MAX);
            let password = password.map_err(|error| format!("the password in {}: {error}", path.display()))?;
            let password = String::from_utf8_lossy(&password);
            let settings = info.redis_settings().clone().set_password(password.trim_end_matches(['\r', '\n']));
            info = info.set_redis_settings(settings);
        }
        let client = match &self.authorities {
            Some(authorities) => {
                let root_cert = Some(authorities.clone());
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
            }
            None => Client::open(info),
        };
        client.map_err(|error| error.to_string())
    }

    /// A new connection, on which each request may take `reply_max`, with these scripts loaded.
    ///
    /// # Errors
    /// Why not, for people.
    pub(super) async fn connect(&self, reply_max: Duration, scripts: &[&str]) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_max))
            .set_response_timeout(Some(self.connect_max));
        let client = self.client()?;
        let connecting = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            for script in scripts {
                redis::cmd("SCRIPT").arg("LOAD").arg(script).exec_async(&mut connection).await?;
            }
            Ok(connection)
        };
        // Resolving the name and the handshake of TLS have no bounds of their own.
        let connected = tokio::time::timeout(self.connect_max * 2, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(timed_out()));
        let mut connection = connected.map_err(|error| self.told(&error, self.connect_max))?;
        connection.set_response_timeout(reply_max);
        Ok(connection)
    }

    /// What went wrong, and what to do about it.
    pub(super) fn told(&self, error: &RedisError, waited: Duration) -> String {
        let address = &self.address;
        if error.is_timeout() {
            return format!("Redis at {address} did not answer within {} ms", waited.as_millis());
        }
        match error.kind() {
            ErrorKind::Io => match certificates::advice(&error.to_string(), "ca_file") {
                Some(advice) => format!("Redis at {address} is not trusted: {advice} ({error})"),
                None => format!("Redis at {address} cannot be reached: {error}"),
            },
            ErrorKind::AuthenticationFailed => {
                format!("Redis at {address} refuses the user or the password: check url and password_file ({error})")
            }
            _ => self.refused(&error.to_string()),
        }
    }

    /// An error that the server answered.
    pub(super) fn refused(&self, error: &str) -> String {
        let address = &self.address;
        let hints = [
            ("NOAUTH", "it wants a password: set url or password_file"),
            ("WRONGPASS", "check the user and the password in url or password_file"),
            ("invalid username-password", "check the user and the password in url or password_file"),
            ("NOPERM", "give the user what docs/sinks/redis.md lists"),
            ("executing the script can't", "give the user what docs/sinks/redis.md lists"),
            ("permission", "give the user what docs/sinks/redis.md lists"),
            ("READONLY", "it is a replica: point url to the primary"),
            ("read only replica", "it is a replica: point url to the primary"),
            ("OOM", "its memory is full: raise its maxmemory, or lower streams.entries_max or shared_ids.window_s"),
            ("MISCONF", "it cannot write to its disk"),
            ("LOADING", "it is starting"),
            ("MASTERDOWN", "it is a replica without its primary"),
            ("MOVED", "Redis Cluster is not supported: use one server with replicas"),
            ("CROSSSLOT", "Redis Cluster is not supported: use one server with replicas"),
            ("WRONGTYPE", "somebody else uses a key of this prefix: remove it, or set another prefix"),
            ("unknown command", "Redis 6.2 or later is needed, with scripts allowed"),
        ];
        match hints.iter().find(|(sign, _)| error.contains(sign)) {
            Some((_, hint)) => format!("Redis at {address} refuses: {hint} ({error})"),
            None => format!("Redis at {address} refuses: {error}"),
        }
    }
}

/// A connection that is made when it is needed and given up when it fails.
pub(super) struct Link {
    pub(super) server: Arc<Server>,
    scripts: Vec<&'static str>,
    connection: Option<MultiplexedConnection>,
}

impl Link {
    pub(super) fn new(server: Arc<Server>, scripts: &[&'static str]) -> Self {
        Self { server, scripts: scripts.to_vec(), connection: None }
    }

    /// Connects unless there is a connection; whether it is a new one.
    pub(super) async fn open(&mut self) -> Result<bool, String> {
        if self.connection.is_some() {
            return Ok(false);
        }
        self.connection = Some(self.server.connect(self.server.reply_max, &self.scripts).await?);
        Ok(true)
    }

    /// Sends requests together; the answers, of which some may be errors of the server.
    ///
    /// # Errors
    /// Why there are no answers, for people.
    pub(super) async fn ask(&mut self, requests: &mut Pipeline) -> Result<Vec<Value>, String> {
        self.ask_within(requests, self.server.reply_max).await
    }

    /// The same, with a time of its own for the answers.
    pub(super) async fn ask_within(&mut self, requests: &mut Pipeline, wait: Duration) -> Result<Vec<Value>, String> {
        self.open().await?;
        let Some(connection) = &mut self.connection else { return Err("no connection".to_owned()) };
        connection.set_response_timeout(wait);
        match requests.ignore_errors().query_async::<Vec<Value>>(connection).await {
            Ok(answers) => {
                // A server that cannot take requests now, or has lost our scripts, may be another one at the next try.
                if answers.iter().filter_map(as_error).any(|error| is_of_the_connection(&error)) {
                    self.connection = None;
                }
                Ok(answers)
            }
            Err(error) => {
                self.connection = None;
                Err(self.server.told(&error, wait))
            }
        }
    }

    /// The one answer to a single request.
    pub(super) async fn ask_one(&mut self, request: redis::Cmd) -> Result<Value, String> {
        let mut requests = Pipeline::new();
        requests.add_command(request);
        let answer = self.ask(&mut requests).await?.pop().unwrap_or_default();
        match as_error(&answer) {
            Some(error) => Err(self.server.refused(&error)),
            None => Ok(answer),
        }
    }

    /// Gives the connection up.
    pub(super) fn close(&mut self) {
        self.connection = None;
    }
}

/// The text of an error in an answer.
pub(super) fn as_error(answer: &Value) -> Option<String> {
    match answer {
        Value::ServerError(error) => Some(text_of(error)),
        _ => None,
    }
}

fn text_of(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

/// Whether a new connection may get another answer.
pub(super) fn is_of_the_connection(error: &str) -> bool {
    ["NOSCRIPT", "READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "UNBLOCKED"].iter().any(|sign| error.contains(sign))
}

/// The bytes or the digits of an answer, as text.
pub(super) fn as_text(answer: &Value) -> Option<String> {
    redis::from_redis_value_ref::<Option<String>>(answer).ok().flatten()
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
