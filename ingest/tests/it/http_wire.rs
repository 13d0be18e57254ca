//! A client that writes what it is told, byte for byte, and a listener to write to.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use tidegate_ingest::http::{Drained, HttpConfig, ReplyBody, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A listener on a port of its own.
pub struct Server {
    pub at: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Drained>,
}

impl Server {
    pub async fn start<R, F>(config: HttpConfig, routes: R) -> Self
    where
        R: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<ReplyBody>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(listen(listener, config, Arc::new(routes), async move {
            let _ = stopped.await;
        }));
        Self { at, stop: Some(stop), task }
    }

    /// Tells the listener to drain.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn drained(mut self) -> Drained {
        self.stop();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("drains in time").expect("no panic")
    }

    pub async fn connect(&self) -> Wire {
        Wire { tcp: TcpStream::connect(self.at).await.expect("connects"), read: Vec::new() }
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, request: &[u8]) -> Answer {
        let mut wire = self.connect().await;
        wire.send(request).await;
        wire.answer().await.expect("an answer")
    }
}

/// A connection.
pub struct Wire {
    pub tcp: TcpStream,
    read: Vec<u8>,
}

/// An answer of HTTP/1.1.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Wire {
    pub async fn send(&mut self, bytes: &[u8]) {
        // The server may close while we are still writing; the answer tells.
        let _ = self.tcp.write_all(bytes).await;
    }

    /// Reads one answer with a Content-Length. `None` when the connection ends (or is reset) before one.
    pub async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.parse() {
                return Some(answer);
            }
            let mut chunk = [0u8; 16 * 1024];
            let read = tokio::time::timeout(Duration::from_secs(20), self.tcp.read(&mut chunk)).await.expect("in time");
            match read {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.read.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Waits for the end of the connection: `Ok` for a clean end, with what else was read.
    pub async fn ended(&mut self) -> Result<String, std::io::Error> {
        let reading = self.tcp.read_to_end(&mut self.read);
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect("ends in time")?;
        Ok(String::from_utf8_lossy(&self.read).into_owned())
    }

    fn parse(&mut self) -> Option<Answer> {
        let end = self.read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Answer { status, head, body: String::new() };
        let length = if status < 200 { 0 } else { answer.header("content-length")?.parse().ok()? };
        let body = self.read.get(end..end + length)?;
        answer.body = String::from_utf8_lossy(body).into_owned();
        self.read.drain(..end + length);
        Some(answer)
    }
}
