//! An S3 server in memory, as far as a store of ours asks one: objects, ranges, listings, uploads in parts, put if absent. It can
//! be away, and slow. What it keeps outlives the program under test. It answers those too who speak to it as to Google Cloud
//! Storage, which is the same but for the header of put if absent, and as to Azure Blob Storage.

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
    /// Of uploads to Azure, by their names, which are random.
    blocks: BTreeMap<String, Bytes>,
    /// Objects that came in parts.
    in_parts: usize,
}

type Answer = Response<Full<Bytes>>;

impl S3Server {
    /// A server without objects. Every bucket is there.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let state = State {
            ill: Ill::Well,
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            next_upload: 0,
            blocks: BTreeMap::new(),
            in_parts: 0,
        };
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

    /// How many objects came in parts until now.
    pub fn in_parts(&self) -> usize {
        self.state.lock().in_parts
    }

    /// The settings of a program that keeps its history here.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        self.settings_of("s3")
    }

    /// The same of one that takes it for another cloud: `s3`, `gs` or `az`.
    pub fn settings_of(&self, cloud: &str) -> [(&'static str, String); 4] {
        [
            ("PARQUET__URL", format!("{cloud}://tests/team/history")),
            ("PARQUET__ENDPOINT", format!("http://{}", self.address)),
            ("PARQUET__ALLOW_HTTP", "true".to_owned()),
            ("PARQUET__REQUEST_TIMEOUT_MS", "2000".to_owned()),
        ]
    }
}

/// Credentials, as they stand in the environment of the program.
pub const CREDENTIALS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key-id"), ("AWS_SECRET_ACCESS_KEY", "hush-hush")];

/// The same of the other clouds. The key is `hush-hush`, too.
pub const OTHER_CREDENTIALS: [(&str, &str); 3] = [
    (
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        r#"{"client_email": "e", "private_key": "hush-hush", "private_key_id": "i", "disable_oauth": true}"#,
    ),
    ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
    ("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaC1odXNo"),
];

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
    let key = decoded(head.uri.path().trim_start_matches('/'));
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let query: BTreeMap<String, String> = head.uri.query().unwrap_or_default().split('&').map(pair).collect();
    let mut state = state.lock();
    Ok(match head.method {
        Method::GET if query.contains_key("list-type") => state.list(&key, query.get("prefix").map_or("", |text| text)),
        Method::GET if query.get("comp").is_some_and(|comp| comp == "list") => {
            state.list_blobs(&key, query.get("prefix").map_or("", |text| text))
        }
        Method::GET => state.get(&key, header("range").as_deref()),
        Method::HEAD => state.get(&key, None),
        Method::PUT if query.contains_key("blockid") => {
            state.blocks.insert(query["blockid"].clone(), body);
            reply(201, "")
        }
        Method::PUT if query.contains_key("comp") => state.put_blocks(key, &String::from_utf8_lossy(&body)),
        Method::PUT => match (query.get("partNumber"), query.get("uploadId")) {
            (Some(number), Some(upload)) => state.put_part(number, upload, body),
            _ => {
                let generation = header("x-goog-if-generation-match");
                let absent =
                    header("if-none-match").is_some() || generation.is_some_and(|generation| generation == "0");
                state.put(key, body, absent, if header("x-ms-blob-type").is_some() { 409 } else { 412 })
            }
        },
        Method::POST if query.contains_key("comp") => state.delete_blobs(&String::from_utf8_lossy(&body)),
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
    (name.to_owned(), decoded(value))
}

/// Without percent signs for letters (RFC 3986, section 2.1).
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push(char::from(u8::from_str_radix(&part[..2], 16).expect("two digits")));
        plain.push_str(&part[2..]);
    }
    plain
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

    /// With `absent`, an object that is there stays, and the answer is `refusal`.
    fn put(&mut self, key: String, body: Bytes, absent: bool, refusal: u16) -> Answer {
        if absent && self.objects.contains_key(&key) {
            return reply(refusal, "<Error><Code>PreconditionFailed</Code></Error>");
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
        self.in_parts += 1;
        reply(200, "<CompleteMultipartUploadResult><ETag>\"tag\"</ETag></CompleteMultipartUploadResult>")
    }

    fn put_blocks(&mut self, key: String, list: &str) -> Answer {
        let names = list.split("<Uncommitted>").skip(1).filter_map(|rest| rest.split("</Uncommitted>").next());
        let blocks: Option<Vec<Bytes>> = names.map(|name| self.blocks.remove(name)).collect();
        let Some(blocks) = blocks else { return reply(400, "<Error><Code>InvalidBlockList</Code></Error>") };
        self.objects.insert(key, blocks.concat().into());
        self.in_parts += 1;
        reply(201, "")
    }

    fn list_blobs(&self, container: &str, prefix: &str) -> Answer {
        let container = format!("{}/", container.trim_end_matches('/'));
        let mut text = String::from("<EnumerationResults><Blobs>");
        for (key, object) in &self.objects {
            let Some(key) = key.strip_prefix(&container).filter(|key| key.starts_with(prefix)) else { continue };
            let size = object.len();
            text.push_str(&format!(
                "<Blob><Name>{key}</Name><Properties><Last-Modified>Sun, 22 Nov 2026 06:00:00 GMT</Last-Modified>\
                 <Content-Length>{size}</Content-Length><Content-Type>x/y</Content-Type></Properties></Blob>"
            ));
        }
        reply(200, text + "</Blobs><NextMarker /></EnumerationResults>")
    }

    /// A batch of requests, each in a part of the body.
    fn delete_blobs(&mut self, body: &str) -> Answer {
        let keys = body.lines().filter_map(|line| line.strip_prefix("DELETE /")?.split([' ', '?']).next());
        let mut told = String::new();
        for (at, key) in keys.enumerate() {
            let line = if self.objects.remove(key).is_some() { "202 Accepted" } else { "404 Not Found" };
            told.push_str(&format!(
                "--b\r\nContent-Type: application/http\r\nContent-ID: {at}\r\n\r\nHTTP/1.1 {line}\r\n\r\n\r\n"
            ));
        }
        let mut answer = reply(202, told + "--b--\r\n");
        answer.headers_mut().insert("content-type", "multipart/mixed; boundary=b".parse().expect("a header"));
        answer
    }
}
