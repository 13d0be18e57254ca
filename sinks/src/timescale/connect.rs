//! Connections to the database: a pool, TLS with rustls, SCRAM, and bounds on how long anything may take.
//!
//! `sslmode` means what it means to libpq: `prefer` encrypts when the server can and trusts any certificate, `require` always
//! encrypts and trusts any certificate (with `sslrootcert`: only one of these authorities), `verify-ca` wants a trusted
//! certificate, `verify-full` one of the host's name too. SCRAM binds itself to the TLS channel wherever the server offers it,
//! so that even an unverified channel has no third party in it that does not know the password.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::config::TimescaleConfig;
use super::failure::{failed, late, unconnected};
use crate::error::SinksError;

/// What a server must prove before rows are sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    Anyone,
    KnownAuthority,
    KnownHost,
}

/// A pool of at most `connections`, none of which is made yet.
///
/// # Errors
/// [`SinksError::Invalid`] when the URL or what it names cannot be used.
pub(super) fn pool(config: &TimescaleConfig, connections: usize) -> Result<Pool, SinksError> {
    let wait = Duration::from_millis(config.statement_ms_max);
    pool_of(config, connections, wait, session(config)).map(|(pool, _)| pool)
}

/// A pool for reading, in which a question has at most so much time, and half of it may go by before it has a connection; and
/// what a cancel is encrypted with.
///
/// # Errors
/// As [`pool`].
pub(super) fn reading_pool(
    config: &TimescaleConfig,
    question: Duration,
) -> Result<(Pool, MakeRustlsConnect), SinksError> {
    let more = format!(
        "; SET statement_timeout = {}; SET default_transaction_read_only = on",
        question.as_millis().clamp(1, i32::MAX as u128)
    );
    pool_of(config, config.read_connections, question / 2, session(config) + &more)
}

fn pool_of(
    config: &TimescaleConfig,
    connections: usize,
    wait: Duration,
    session: String,
) -> Result<(Pool, MakeRustlsConnect), SinksError> {
    let (mut postgres, trust, roots) = parse(&config.url)?;
    if let Some(password) = &config.password {
        postgres.password(password);
    }
    if postgres.get_application_name().is_none() {
        postgres.application_name("tidegate");
    }
    let connect = Duration::from_millis(config.connect_ms_max);
    postgres.connect_timeout(connect);
    postgres.keepalives_idle(Duration::from_secs(config.keepalive_s));
    postgres.keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
    postgres.tcp_user_timeout(Duration::from_millis(config.statement_ms_max));
    postgres.target_session_attrs(TargetSessionAttrs::ReadWrite);
    let tls = MakeRustlsConnect::new(tls(trust, roots.as_deref())?);
    let dial = Dial { tls: tls.clone(), password_file: config.password_file.clone(), session };
    let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_connect(postgres, dial, manager);
    let pool = Pool::builder(manager).max_size(connections).runtime(Runtime::Tokio1);
    let pool = pool.create_timeout(Some(connect)).recycle_timeout(Some(connect));
    let pool = pool.wait_timeout(Some(wait));
    let pool = pool.build().map_err(|error| SinksError::Invalid(format!("sinks.timescale: {error}")))?;
    Ok((pool, tls))
}

/// A connection of the pool.
///
/// # Errors
/// [`SinksError::Database`] with what to do.
pub(super) async fn get(pool: &Pool, config: &TimescaleConfig) -> Result<Object, SinksError> {
    pool.get().await.map_err(|error| unconnected(error, Duration::from_millis(config.connect_ms_max)))
}

/// Waits for a step of a conversation with the database, for as long as configured.
///
/// # Errors
/// [`SinksError::Database`] or [`SinksError::Refused`].
pub(super) async fn step<T>(
    config: &TimescaleConfig,
    doing: &str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SinksError> {
    let bound = Duration::from_millis(config.statement_ms_max);
    match tokio::time::timeout(bound, work).await {
        Ok(done) => done.map_err(|error| failed(doing, &error)),
        Err(_) => Err(late(doing, bound)),
    }
}

/// How long a session waits for a lock, in milliseconds.
pub(super) fn lock_ms(config: &TimescaleConfig) -> u64 {
    config.statement_ms_max.min(10_000)
}

/// What each session begins with: it gives way to locks after a while, and the server misses a dead one soon.
fn session(config: &TimescaleConfig) -> String {
    let (statement, keepalive) = (config.statement_ms_max, config.keepalive_s);
    format!(
        "SET lock_timeout = {lock}; SET idle_in_transaction_session_timeout = {statement}; SET TIME ZONE 'UTC'; \
         SET tcp_keepalives_idle = {keepalive}; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
         SET client_min_messages = warning",
        lock = lock_ms(config)
    )
}

/// Makes connections. The password file is read each time.
struct Dial {
    tls: MakeRustlsConnect,
    password_file: Option<std::path::PathBuf>,
    session: String,
}

type Connected = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

impl Connect for Dial {
    fn connect(&self, config: &Config) -> std::pin::Pin<Box<dyn Future<Output = Connected> + Send + '_>> {
        let mut config = config.clone();
        Box::pin(async move {
            if let Some(path) = &self.password_file {
                match tokio::fs::read_to_string(path).await {
                    Ok(password) => {
                        config.password(password.trim_end_matches(['\n', '\r']));
                    }
                    // The server then says that a password is missing, which is told on.
                    Err(error) => tracing::warn!(path = %path.display(), %error, "the password file cannot be read"),
                }
            }
            let (client, connection) = config.connect(self.tls.clone()).await?;
            let task = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the database ended");
                }
            });
            client.batch_execute(&self.session).await?;
            Ok((client, task))
        })
    }
}

/// The settings of the URL: what the client library knows, and what only libpq does.
fn parse(url: &str) -> Result<(Config, Trust, Option<String>), SinksError> {
    let wrong = |what: String| SinksError::Invalid(format!("sinks.timescale.url: {what}"));
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(wrong("must look like postgres://user@host:5432/database".to_owned()));
    }
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut roots, mut kept) = ("prefer".to_owned(), None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = value.to_owned(),
            Some(("sslrootcert", "system")) => roots = None,
            Some(("sslrootcert", value)) => roots = Some(value.replace("%2F", "/").replace("%2f", "/")),
            _ => kept.push(pair),
        }
    }
    let rest = if kept.is_empty() { address.to_owned() } else { format!("{address}?{}", kept.join("&")) };
    // The library's message names what is wrong, never the password.
    let mut config: Config = rest.parse().map_err(|error: tokio_postgres::Error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        wrong(format!("{error}{cause}"))
    })?;
    let known = if roots.is_some() { Trust::KnownAuthority } else { Trust::Anyone };
    let (ssl, trust) = match mode.as_str() {
        "disable" => (SslMode::Disable, Trust::Anyone),
        "prefer" => (SslMode::Prefer, Trust::Anyone),
        "require" => (SslMode::Require, known),
        "verify-ca" => (SslMode::Require, Trust::KnownAuthority),
        "verify-full" => (SslMode::Require, Trust::KnownHost),
        other => {
            let modes = "disable, prefer, require, verify-ca or verify-full";
            return Err(wrong(format!("sslmode={other} is none of {modes}")));
        }
    };
    config.ssl_mode(ssl);
    Ok((config, trust, roots))
}

fn tls(trust: Trust, roots: Option<&str>) -> Result<ClientConfig, SinksError> {
    let provider = Arc::new(ring::default_provider());
    let invalid = |error: &dyn std::fmt::Display| SinksError::Invalid(format!("sinks.timescale: TLS: {error}"));
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| invalid(&error))?;
    let algorithms = provider.signature_verification_algorithms;
    let known = match trust {
        Trust::Anyone => None,
        Trust::KnownAuthority => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(authorities(roots)?), provider).build();
            Some(verifier.map_err(|error| invalid(&error))?)
        }
        Trust::KnownHost => return Ok(builder.with_root_certificates(authorities(roots)?).with_no_client_auth()),
    };
    let verifier = Arc::new(Lenient { known, algorithms });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn authorities(file: Option<&str>) -> Result<RootCertStore, SinksError> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            let unusable = |error: &dyn std::fmt::Display| {
                SinksError::Invalid(format!("sinks.timescale.url: sslrootcert {file} cannot be used: {error}"))
            };
            let certificates = CertificateDer::pem_file_iter(Path::new(file)).map_err(|error| unusable(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            let (added, ignored) = roots.add_parsable_certificates(native.certs);
            tracing::debug!(added, ignored, errors = ?native.errors, "the system's certificate authorities");
        }
    }
    if roots.is_empty() {
        return Err(SinksError::Invalid(
            "sinks.timescale.url: no certificate authority is known: install ca-certificates or name a file with sslrootcert"
                .to_owned(),
        ));
    }
    Ok(roots)
}

/// Asks less of a certificate than rustls does by itself: only that a known authority has signed it, whatever its name
/// (`verify-ca`), or nothing at all (`prefer`, `require`). The handshake's signature is checked all the same.
#[derive(Debug)]
struct Lenient {
    known: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(known) = &self.known else { return Ok(ServerCertVerified::assertion()) };
        match known.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is looked at last: everything else was in order.
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_says_how_far_the_server_is_trusted() {
        let table = [
            ("postgres://u@h/d", SslMode::Prefer, Trust::Anyone, None),
            ("postgres://u@h/d?sslmode=disable", SslMode::Disable, Trust::Anyone, None),
            ("postgresql://u@h/d?sslmode=require&connect_timeout=3", SslMode::Require, Trust::Anyone, None),
            (
                "postgres://u@h/d?sslmode=require&sslrootcert=/a.pem",
                SslMode::Require,
                Trust::KnownAuthority,
                Some("/a.pem"),
            ),
            ("postgres://u@h/d?sslmode=verify-ca", SslMode::Require, Trust::KnownAuthority, None),
            (
                "postgres://u@h/d?sslrootcert=%2Fa.pem&sslmode=verify-full",
                SslMode::Require,
                Trust::KnownHost,
                Some("/a.pem"),
            ),
        ];
        for (url, mode, trust, roots) in table {
            let (config, found, file) = parse(url).expect(url);
            assert_eq!((config.get_ssl_mode(), found, file.as_deref()), (mode, trust, roots), "{url}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_says_why_and_tells_no_password() {
        for (url, expected) in [
            ("host=db user=u", "postgres://user@host"),
            ("postgres://u:secret@h/d?sslmode=verify", "sslmode=verify is none of"),
            ("postgres://u:secret@h:port/d", "port"),
            ("postgres://u:secret@h/d?sslmood=x", "sslmood"),
        ] {
            let said = parse(url).expect_err(url).to_string();
            assert!(said.contains(expected) && !said.contains("secret"), "{url}: {said}");
        }
    }
}
