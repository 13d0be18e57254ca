//! From the configured URL to a place: a folder, or a prefix of an object store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::SpawnedReqwestConnector;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use tokio::runtime::Handle;

use super::bucket::{Bucket, BucketParts, Writer};
use super::cache::{BlockCache, CachedReads};
use super::config::ParquetConfig;
use crate::error::SinksError;

/// Where the configuration says that the files lie.
#[derive(Debug)]
pub enum StorePlace {
    /// In a folder.
    Folder(PathBuf),
    /// In an object store.
    Bucket(BucketUrl),
}

/// The URL of a prefix of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    scheme: Scheme,
    name: String,
    prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    S3,
    Gcs,
    Azure,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

/// Who opens an object store, and with what.
#[derive(Debug)]
pub struct Opener {
    /// Runs the requests. Needs timers and sockets.
    pub runtime: Handle,
    /// Who opens it.
    pub writer: Writer,
    /// Whether the own log is empty.
    pub log_is_empty: bool,
    /// The folder of the cache; emptied of what is not ours.
    pub cache_dir: PathBuf,
}

/// One client in both of its roles.
struct Client {
    store: Arc<dyn ObjectStore>,
    multipart: Arc<dyn MultipartStore>,
}

impl Client {
    fn of(client: impl ObjectStore + MultipartStore) -> Self {
        let client = Arc::new(client);
        Self { store: client.clone(), multipart: client }
    }
}

impl ParquetConfig {
    /// Where the files lie; `default` without a URL.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] for a URL that is none of the four kinds.
    pub fn place(&self, default: PathBuf) -> Result<StorePlace, SinksError> {
        let Some(url) = &self.url else { return Ok(StorePlace::Folder(default)) };
        // The URL itself may hold a secret that does not belong there: no message repeats it.
        let invalid = |what: &str| SinksError::Invalid(format!("parquet.url: {what}"));
        let forms = "write s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder";
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid(forms))?;
        if rest.contains(['@', '?', '#', '%', '\\']) {
            return Err(invalid("no user, password or parameters belong there; credentials come from the environment"));
        }
        let scheme = match scheme {
            "file" if rest.starts_with('/') && rest.len() > 1 => return Ok(StorePlace::Folder(PathBuf::from(rest))),
            "s3" => Scheme::S3,
            "gs" => Scheme::Gcs,
            "az" => Scheme::Azure,
            _ => return Err(invalid(forms)),
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let good = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-=/".contains(&byte));
        if name.is_empty() || !good(name) {
            return Err(invalid(forms));
        }
        let parts_good = prefix.is_empty() || prefix.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !good(prefix) || !parts_good {
            return Err(invalid("the prefix may hold letters, digits, '.', '_', '-', '=' and '/' between parts"));
        }
        Ok(StorePlace::Bucket(BucketUrl { scheme, name: name.to_owned(), prefix: prefix.to_owned() }))
    }
}

impl BucketUrl {
    /// The client of the object store. Asks it nothing yet.
    ///
    /// # Errors
    /// [`SinksError::Invalid`] for settings or credentials of the environment that do not go together.
    pub fn connect(&self, config: &ParquetConfig, opener: Opener) -> Result<Bucket, SinksError> {
        let Opener { runtime, writer, log_is_empty, cache_dir } = opener;
        let Client { store, multipart } = self.client(config, &runtime).map_err(|error| {
            SinksError::Invalid(format!(
                "{self}: {error}; see docs/sinks/object-store.md for what the environment must hold"
            ))
        })?;
        let reads: Arc<dyn ObjectStore> = match config.cache_bytes_max {
            0 => store.clone(),
            bytes_max => {
                let cache = BlockCache::open(&cache_dir, &self.to_string(), bytes_max)?;
                Arc::new(CachedReads::new(store.clone(), cache, runtime.clone()))
            }
        };
        Ok(Bucket::new(BucketParts {
            store,
            multipart,
            reads,
            url: self.to_string(),
            prefix: self.prefix.clone(),
            runtime,
            writer,
            log_is_empty,
            part_bytes: config.upload_part_bytes.max(1),
            reader_grace: Duration::from_secs(config.reader_grace_s),
        }))
    }

    fn client(&self, config: &ParquetConfig, runtime: &Handle) -> object_store::Result<Client> {
        let timeout = Duration::from_millis(config.request_timeout_ms);
        let options = ClientOptions::new()
            .with_timeout(timeout)
            .with_connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .with_allow_http(config.allow_http);
        let retry = RetryConfig {
            backoff: BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() },
            max_retries: config.request_retries_max,
            retry_timeout: timeout,
        };
        // Queries run on a runtime without sockets.
        let connector = SpawnedReqwestConnector::new(runtime.clone());
        Ok(match self.scheme {
            Scheme::S3 => {
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(&self.name)
                    .with_conditional_put(S3ConditionalPut::ETagMatch)
                    .with_client_options(options)
                    .with_retry(retry)
                    .with_http_connector(connector);
                if let Some(endpoint) = &config.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                if let Some(region) = &config.region {
                    builder = builder.with_region(region);
                }
                Client::of(builder.build()?)
            }
            Scheme::Gcs => {
                let mut builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(&self.name)
                    .with_client_options(options)
                    .with_retry(retry)
                    .with_http_connector(connector);
                if let Some(endpoint) = &config.endpoint {
                    builder = builder.with_base_url(endpoint);
                }
                Client::of(builder.build()?)
            }
            Scheme::Azure => {
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_container_name(&self.name)
                    .with_client_options(options)
                    .with_retry(retry)
                    .with_http_connector(connector);
                if let Some(endpoint) = &config.endpoint {
                    builder = builder.with_endpoint(endpoint.clone());
                }
                Client::of(builder.build()?)
            }
        })
    }
}

impl std::fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.name)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<String, String> {
        let config = ParquetConfig { url: Some(url.to_owned()), ..ParquetConfig::default() };
        match config.place("/default".into()) {
            Ok(StorePlace::Folder(folder)) => Ok(folder.display().to_string()),
            Ok(StorePlace::Bucket(url)) => Ok(url.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn urls_of_four_kinds_and_no_secret_in_them() {
        for (url, shown) in [
            ("s3://logs", "s3://logs"),
            ("s3://logs/", "s3://logs"),
            ("s3://logs/team/a=b/", "s3://logs/team/a=b"),
            ("gs://logs/x", "gs://logs/x"),
            ("az://box/x", "az://box/x"),
            ("file:///mnt/history", "/mnt/history"),
        ] {
            assert_eq!(place(url).as_deref(), Ok(shown), "{url}");
        }
        for url in [
            "s3://",
            "s3:///x",
            "s3://a b/x",
            "s3://b/../x",
            "s3://b//x",
            "s3://b/ä",
            "http://b/x",
            "b/x",
            "file://x",
            "file:///",
            "s3://AKIA:hush@b/x",
            "az://box/x?sig=hush",
            "s3://hush%41/x",
        ] {
            let refused = place(url).expect_err(url);
            assert!(refused.starts_with("parquet.url: ") && !refused.contains("hush"), "{refused}");
        }
    }

    #[test]
    fn clients_are_made_without_asking_anybody() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let config = ParquetConfig {
            endpoint: Some("http://127.0.0.1:1".into()),
            allow_http: true,
            region: Some("eu-central-1".into()),
            ..ParquetConfig::default()
        };
        for url in ["s3://b/x", "gs://b/x"] {
            let StorePlace::Bucket(bucket) =
                (ParquetConfig { url: Some(url.into()), ..config.clone() }).place("/d".into()).expect(url)
            else {
                panic!("{url} is a bucket");
            };
            assert!(bucket.client(&config, runtime.handle()).is_ok(), "{url}");
        }
    }
}
