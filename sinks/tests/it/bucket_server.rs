//! An S3 server on loopback over a folder, that can be away, slow, hang, refuse and break off.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;

/// The only bucket.
pub const BUCKET: &str = "tests";
/// The credentials that are right.
pub const KEYS: (&str, &str) = ("test-key-id", "test-secret");

/// What is wrong with the server now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ill {
    /// Nothing.
    Well,
    /// It answers this status and code, and does nothing.
    Says(u16, &'static str),
    /// It does what it is asked, and answers 500.
    LosesAnswers,
    /// It takes this long for each answer.
    Slow(Duration),
    /// It never answers.
    Hangs,
    /// It breaks off in the middle of each answer.
    BreaksOff,
    /// It closes each connection at once.
    Away,
}

/// The server. It ends when this is dropped.
pub struct S3Server {
    pub address: SocketAddr,
    ill: Arc<Mutex<Ill>>,
    requests: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl S3Server {
    /// A server over this folder, with one empty bucket.
    pub fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join(BUCKET)).expect("a bucket");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(folder).expect("a folder"));
        builder.set_auth(SimpleAuth::from_single(KEYS.0, KEYS.1));
        let service = builder.build();
        let (ill, requests) = (Arc::new(Mutex::new(Ill::Well)), Arc::new(AtomicU64::new(0)));
        let listener = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind("127.0.0.1:0".parse().expect("an address"))?;
            socket.listen(1024)
        });
        let listener = listener.expect("a listener");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(serve(listener, service, ill.clone(), requests.clone()));
        Self { address, ill, requests, _runtime: runtime }
    }

    /// From now on this is wrong.
    pub fn fall(&self, ill: Ill) {
        *self.ill.lock() = ill;
    }

    /// Requests until now.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn serve(listener: TcpListener, service: S3Service, ill: Arc<Mutex<Ill>>, requests: Arc<AtomicU64>) {
    while let Ok((socket, _)) = listener.accept().await {
        if *ill.lock() == Ill::Away {
            continue;
        }
        let (service, ill, requests) = (service.clone(), ill.clone(), requests.clone());
        let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
            requests.fetch_add(1, Ordering::Relaxed);
            answer(request, service.clone(), *ill.lock())
        });
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        tokio::spawn(async move { builder.serve_connection(TokioIo::new(socket), answer).await.ok() });
    }
}

fn error(status: u16, code: &str) -> Response<s3s::Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>");
    Response::builder().status(status).body(s3s::Body::from(text)).expect("a response")
}

async fn answer(
    request: Request<Incoming>,
    service: S3Service,
    ill: Ill,
) -> Result<Response<s3s::Body>, std::io::Error> {
    let broken = || std::io::Error::other("broken off");
    let told = match ill {
        Ill::Says(status, code) => return Ok(error(status, code)),
        Ill::Hangs => std::future::pending::<Result<Response<s3s::Body>, std::io::Error>>().await?,
        Ill::Away => return Err(broken()),
        Ill::Slow(time) => {
            tokio::time::sleep(time).await;
            service.call(request.map(s3s::Body::from)).await.map_err(|_| broken())?
        }
        Ill::Well | Ill::LosesAnswers | Ill::BreaksOff => {
            service.call(request.map(s3s::Body::from)).await.map_err(|_| broken())?
        }
    };
    match ill {
        Ill::LosesAnswers => Ok(error(500, "InternalError")),
        Ill::BreaksOff => {
            let (head, body) = told.into_parts();
            let bytes = body.collect().await.map_err(|_| broken())?.to_bytes();
            if bytes.is_empty() {
                return Err(broken());
            }
            let half = Frame::data(bytes.slice(..bytes.len() / 2));
            let frames: [Result<Frame<Bytes>, std::io::Error>; 2] = [Ok(half), Err(broken())];
            let body = StreamBody::new(futures::stream::iter(frames));
            Ok(Response::from_parts(head, s3s::Body::http_body_unsync(body)))
        }
        _ => Ok(told),
    }
}
