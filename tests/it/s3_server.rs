//! An S3 server in memory, as far as a store of ours asks one: objects, ranges, listings, uploads in parts, put if absent. It can
//! be away, and slow. What it keeps outlives the program under test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// What is wrong with the server now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ill {
    /// Nothing.
    Well,
    /// It closes each connection at once.
    Away,
    /// It takes a request and never answers.
    Hangs,
    /// It takes this long for each answer.
    Slow(Duration),
    /// It answers each request with this status.
    Says(u16),
}

/// The server. It ends when this is dropped.
pub struct S3Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

struct State {
    ill: Ill,
    /// By `bucket/key`.
    objects: BTreeMap<String, Bytes>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    next_upload: u64,
}

type Answer = Response<Full<Bytes>>;

impl S3Server {
    /// A server without objects. Every bucket is there.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let state = State { ill: Ill::Well, objects: BTreeMap::new(), uploads: BTreeMap::new(), next_upload: 0 };
        let state = Arc::new(Mutex::new(state));
        runtime.spawn(serve(listener, state.clone()));
        Self { address, state, _runtime: runtime }
    }

    /// From now on this is wrong.
    pub fn fall(&self, ill: Ill) {
        self.state.lock().ill = ill;
    }

    /// The keys of all objects that end so.
    pub fn keys(&self, ending: &str) -> Vec<String> {
        self.state.lock().objects.keys().filter(|key| key.ends_with(ending)).cloned().collect()
    }

    /// The settings of a program that keeps its history here.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        [
            ("PARQUET__URL", "s3://tests/team/history".to_owned()),
            ("PARQUET__ENDPOINT", format!("http://{}", self.address)),
            ("PARQUET__ALLOW_HTTP", "true".to_owned()),
            ("PARQUET__REQUEST_TIMEOUT_MS", "2000".to_owned()),
        ]
    }
}

/// Credentials, as they stand in the environment of the program.
pub const CREDENTIALS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key-id"), ("AWS_SECRET_ACCESS_KEY", "hush-hush")];

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((socket, _)) = listener.accept().await {
        if state.lock().ill == Ill::Away {
            continue;
        }
        let state = state.clone();
        let answer = hyper::service::service_fn(move |request| answer(request, state.clone()));
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        tokio::spawn(async move { builder.serve_connection(TokioIo::new(socket), answer).await.ok() });
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Answer, std::io::Error> {
    let ill = state.lock().ill;
    match ill {
        Ill::Away => return Err(std::io::Error::other("away")),
        Ill::Hangs => std::future::pending::<()>().await,
        Ill::Slow(time) => tokio::time::sleep(time).await,
        Ill::Says(status) => return Ok(reply(status, "<Error><Code>AsTold</Code></Error>")),
        Ill::Well => {}
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let key = head.uri.path().trim_start_matches('/').to_owned();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let query: BTreeMap<String, String> = head.uri.query().unwrap_or_default().split('&').map(pair).collect();
    let mut state = state.lock();
    Ok(match head.method {
        Method::GET if query.contains_key("list-type") => state.list(&key, query.get("prefix").map_or("", |text| text)),
        Method::GET => state.get(&key, header("range").as_deref()),
        Method::HEAD => state.get(&key, None),
        Method::PUT => match (query.get("partNumber"), query.get("uploadId")) {
            (Some(number), Some(upload)) => state.put_part(number, upload, body),
            _ => state.put(key, body, header("if-none-match").is_some()),
        },
        Method::POST if query.contains_key("delete") => state.delete(&key, &String::from_utf8_lossy(&body)),
        Method::POST if query.contains_key("uploads") => state.begin_upload(),
        Method::POST => state.end_upload(key, query.get("uploadId").map_or("", |text| text)),
        Method::DELETE => {
            state.uploads.remove(query.get("uploadId").map_or("", |text| text));
            state.objects.remove(&key);
            reply(204, "")
        }
        _ => reply(405, ""),
    })
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.replace("%2F", "/"))
}

fn reply(status: u16, body: impl Into<Bytes>) -> Answer {
    let builder = Response::builder().status(status).header("etag", "\"tag\"");
    builder.header("last-modified", "Sun, 22 Nov 2026 06:00:00 GMT").body(Full::new(body.into())).expect("a response")
}

impl State {
    fn get(&self, key: &str, range: Option<&str>) -> Answer {
        let Some(object) = self.objects.get(key) else { return reply(404, "<Error><Code>NoSuchKey</Code></Error>") };
        let Some(range) = range else { return reply(200, object.clone()) };
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').expect("a range");
        let from: usize = from.parse().expect("a number");
        let to = to.parse::<usize>().map_or(object.len(), |to| (to + 1).min(object.len()));
        let mut answer = reply(206, object.slice(from..to));
        let shown = format!("bytes {from}-{}/{}", to - 1, object.len());
        answer.headers_mut().insert("content-range", shown.parse().expect("a header"));
        answer
    }

    fn list(&self, bucket: &str, prefix: &str) -> Answer {
        let bucket = format!("{}/", bucket.trim_end_matches('/'));
        let mut text = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
        for (key, object) in &self.objects {
            let Some(key) = key.strip_prefix(&bucket).filter(|key| key.starts_with(prefix)) else { continue };
            let size = object.len();
            text.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>2026-11-22T06:00:00Z</LastModified></Contents>"
            ));
        }
        reply(200, text + "</ListBucketResult>")
    }

    fn put(&mut self, key: String, body: Bytes, absent: bool) -> Answer {
        if absent && self.objects.contains_key(&key) {
            return reply(412, "<Error><Code>PreconditionFailed</Code></Error>");
        }
        self.objects.insert(key, body);
        reply(200, "")
    }

    fn delete(&mut self, bucket: &str, body: &str) -> Answer {
        let mut told = String::from("<DeleteResult>");
        for key in body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
            self.objects.remove(&format!("{}/{key}", bucket.trim_end_matches('/')));
            told.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
        }
        reply(200, told + "</DeleteResult>")
    }

    fn begin_upload(&mut self) -> Answer {
        self.next_upload += 1;
        self.uploads.insert(self.next_upload.to_string(), BTreeMap::new());
        let id = self.next_upload;
        reply(200, format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"))
    }

    fn put_part(&mut self, number: &str, upload: &str, body: Bytes) -> Answer {
        match (self.uploads.get_mut(upload), number.parse()) {
            (Some(parts), Ok(number)) => {
                parts.insert(number, body);
                reply(200, "")
            }
            _ => reply(404, "<Error><Code>NoSuchUpload</Code></Error>"),
        }
    }

    fn end_upload(&mut self, key: String, upload: &str) -> Answer {
        let Some(parts) = self.uploads.remove(upload) else {
            return reply(404, "<Error><Code>NoSuchUpload</Code></Error>");
        };
        let whole: Vec<u8> = parts.into_values().flatten().collect();
        self.objects.insert(key, whole.into());
        reply(200, "<CompleteMultipartUploadResult><ETag>\"tag\"</ETag></CompleteMultipartUploadResult>")
    }
}
