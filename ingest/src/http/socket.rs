//! One accepted connection as hyper sees it: a TCP stream that reports its progress, keeps its place in the connection
//! bound, and closes without destroying an answer on its way.
//!
//! The timers of a connection live in [`Progress`], which the socket, the requests and the supervisor of the connection
//! share: the socket notes bytes, requests note that they are being served, the supervisor decides.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::framing::HeadWatch;

/// What a connection has been doing. Times are milliseconds since it was accepted, plus one, so that zero means never.
#[derive(Debug)]
pub(crate) struct Progress {
    accepted: Instant,
    requests: AtomicU32,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    write_blocked_since: AtomicU64,
    http2: AtomicBool,
    /// Since when each answer on HTTP/2 that is not asked for more waits for its peer, by the number of its request.
    stalled: Mutex<BTreeMap<u32, u64>>,
    next_request: AtomicU32,
    pub(crate) head: Mutex<HeadWatch>,
}

/// Why the supervisor ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// No request for the idle bound.
    Idle,
    /// A request head that did not arrive within its bound.
    Head,
    /// A peer that does not read what it asked for.
    Write,
}

/// The bounds that [`Progress::overdue`] checks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
}

impl Progress {
    pub(crate) fn new(head_bytes_max: usize) -> Self {
        Self {
            accepted: Instant::now(),
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(1),
            // A new connection owes its first request as if it had begun: silence is no better than a trickle.
            head_since: AtomicU64::new(1),
            write_blocked_since: AtomicU64::new(0),
            http2: AtomicBool::new(false),
            stalled: Mutex::default(),
            next_request: AtomicU32::new(0),
            head: Mutex::new(HeadWatch::new(head_bytes_max)),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// A request begins; it ends when the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, http2: bool) -> Serving {
        self.http2.store(http2, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        Serving { progress: self.clone(), number, http2 }
    }

    fn read_some(&self, bytes: &[u8]) {
        if self.requests.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
        if !self.http2.load(Ordering::Relaxed) {
            self.head.lock().see(bytes);
        }
    }

    fn wrote(&self, blocked: bool) {
        if !blocked {
            self.write_blocked_since.store(0, Ordering::Relaxed);
        } else if self.write_blocked_since.load(Ordering::Relaxed) == 0 {
            self.write_blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Which bound the connection is over, if any.
    pub(crate) fn overdue(&self, patience: Patience) -> Option<Overdue> {
        let now = self.now();
        let over = |since: u64, bound: Duration| since != 0 && u128::from(now - since.min(now)) > bound.as_millis();
        if over(self.write_blocked_since.load(Ordering::Relaxed), patience.write) {
            return Some(Overdue::Write);
        }
        if self.stalled.lock().values().any(|since| over(*since, patience.write)) {
            return Some(Overdue::Write);
        }
        if self.requests.load(Ordering::Relaxed) > 0 {
            return None;
        }
        // On HTTP/2, answers to our pings arrive between requests: they are no beginning of a head.
        if !self.http2.load(Ordering::Relaxed) && over(self.head_since.load(Ordering::Relaxed), patience.head) {
            return Some(Overdue::Head);
        }
        over(self.idle_since.load(Ordering::Relaxed), patience.idle).then_some(Overdue::Idle)
    }
}

/// A request being served on a connection, until its answer has been sent or dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    progress: Arc<Progress>,
    number: u32,
    http2: bool,
}

impl Serving {
    /// Says whose turn it is: the peer's, to make room for what was handed out, or ours, to bring more. On HTTP/1 the socket
    /// itself shows it; on HTTP/2 a peer may close the window of one stream and keep reading the others.
    pub(crate) fn waits_for_peer(&self, waits: bool) {
        if !self.http2 {
            return;
        }
        let mut stalled = self.progress.stalled.lock();
        if waits {
            stalled.insert(self.number, self.progress.now());
        } else {
            stalled.remove(&self.number);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.waits_for_peer(false);
        self.progress.idle_since.store(self.progress.now(), Ordering::Relaxed);
        self.progress.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stream. See the module.
#[derive(Debug)]
pub(crate) struct Socket {
    tcp: TcpStream,
    progress: Arc<Progress>,
    linger_max: Duration,
    linger: Option<Pin<Box<Sleep>>>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Socket {
    pub(crate) fn new(
        tcp: TcpStream,
        progress: Arc<Progress>,
        linger_max: Duration,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { tcp, progress, linger_max, linger: None, ended: false, _place: place }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
        let bytes = buf.filled().get(before..).unwrap_or_default();
        if bytes.is_empty() {
            this.ended = true;
        } else {
            this.progress.read_some(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tcp).poll_write(cx, buf);
        this.progress.wrote(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs);
        this.progress.wrote(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    /// Ends our side, then reads and forgets what the peer still sends, for a while. Closing a socket with unread bytes
    /// resets it, and a reset may destroy the very answer that says why the body was refused.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
            this.linger = Some(Box::pin(tokio::time::sleep(this.linger_max)));
        }
        let mut scratch = [0u8; 8192];
        let mut rounds = 0;
        while !this.ended {
            if let Some(linger) = this.linger.as_mut()
                && linger.as_mut().poll(cx).is_ready()
            {
                break;
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => this.ended = true,
            }
            rounds += 1;
            if rounds == 64 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { head: Duration::from_secs(10), idle: Duration::from_secs(60), write: Duration::from_secs(30) };

    #[tokio::test(start_paused = true)]
    async fn each_bound_bites_in_its_own_state() {
        let progress = Arc::new(Progress::new(1024));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(progress.overdue(PATIENCE), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Head), "never a byte");
        drop(progress.begin(false));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(progress.overdue(PATIENCE), None, "idle, within the bound");
        progress.read_some(b"POST / HT");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Idle));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Head));
        let serving = progress.begin(false);
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(progress.overdue(PATIENCE), None, "a long request is not idle");
        progress.wrote(true);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Write));
        progress.wrote(false);
        drop(serving);
        assert_eq!(progress.overdue(PATIENCE), None, "idle from now on");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_stream_of_http2_is_overdue() {
        let progress = Arc::new(Progress::new(1024));
        let (one, two) = (progress.begin(true), progress.begin(true));
        one.waits_for_peer(true);
        two.waits_for_peer(true);
        two.waits_for_peer(false);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Write));
        drop(one);
        assert_eq!(progress.overdue(PATIENCE), None);
        let old = progress.begin(false);
        old.waits_for_peer(true);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(progress.overdue(PATIENCE), None, "HTTP/1 is seen at the socket");
    }

    #[tokio::test(start_paused = true)]
    async fn pings_on_http2_start_no_head() {
        let progress = Arc::new(Progress::new(1024));
        drop(progress.begin(true));
        progress.read_some(b"ping");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(progress.overdue(PATIENCE), None);
    }
}
