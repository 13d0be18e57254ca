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
    /// What is being written to the socket.
    writing: Mutex<Writing>,
    http2: AtomicBool,
    /// The answers on HTTP/2 that are not asked for more, by the number of their request.
    streams: Mutex<BTreeMap<u32, Writing>>,
    next_request: AtomicU32,
    pub(crate) head: Mutex<HeadWatch>,
}

/// How the peer takes what is written, from when it first made us wait until it has taken all. Only the time in which a
/// write waits for it counts, so that a feed of few bytes is not slow.
#[derive(Debug, Default)]
struct Writing {
    /// A write waits since then; see [`Progress`].
    since: u64,
    waited_ms: u64,
    taken_bytes: u64,
}

impl Writing {
    fn waits(&mut self, now: u64) {
        if self.since == 0 {
            self.since = now;
        }
    }

    fn took(&mut self, now: impl FnOnce() -> u64, bytes: usize) {
        if self.since != 0 {
            self.waited_ms += now().saturating_sub(self.since);
            self.since = 0;
            self.taken_bytes += bytes as u64;
        } else if self.waited_ms > 0 {
            self.taken_bytes += bytes as u64;
        }
    }

    /// Whether the peer has made us wait, and there is more for it.
    fn is_under_way(&self) -> bool {
        self.since != 0 || self.waited_ms > 0
    }

    /// Whether the peer takes nothing for too long, or too little.
    fn is_overdue(&self, now: u64, patience: Patience) -> bool {
        let grace = u64::try_from(patience.write.as_millis()).unwrap_or(u64::MAX);
        let waiting = if self.since == 0 { 0 } else { now.saturating_sub(self.since) };
        let graced = self.waited_ms.saturating_add(waiting).saturating_sub(grace);
        let owed = u128::from(patience.write_rate) * u128::from(graced) / 1000;
        waiting > grace || (waiting > 0 && u128::from(self.taken_bytes) < owed)
    }
}

/// Why the supervisor ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// No request for the idle bound.
    Idle,
    /// A request head that did not arrive within its bound.
    Head,
    /// A peer that does not read what it asked for, or hardly.
    Write,
}

/// The bounds that [`Progress::overdue`] checks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
    /// Bytes a second that are to be taken on average once a write has waited for `write`.
    pub(crate) write_rate: u64,
}

impl Progress {
    pub(crate) fn new(head_bytes_max: usize) -> Self {
        Self {
            accepted: Instant::now(),
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(1),
            // A new connection owes its first request as if it had begun: silence is no better than a trickle.
            head_since: AtomicU64::new(1),
            writing: Mutex::default(),
            http2: AtomicBool::new(false),
            streams: Mutex::default(),
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

    fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        let mut writing = self.writing.lock();
        match polled {
            Poll::Pending => writing.waits(self.now()),
            Poll::Ready(Ok(bytes)) => writing.took(|| self.now(), *bytes),
            Poll::Ready(Err(_)) => {}
        }
    }

    /// All that there was to write has been taken by the operating system.
    fn flushed(&self) {
        let mut writing = self.writing.lock();
        if writing.is_under_way() {
            // An answer counts as given as soon as it is handed out; only from now on does the peer have nothing to read.
            self.idle_since.store(self.now(), Ordering::Relaxed);
            if self.head_since.load(Ordering::Relaxed) != 0 {
                self.head_since.store(self.now(), Ordering::Relaxed);
            }
            *writing = Writing::default();
        }
    }

    /// Which bound the connection is over, if any.
    pub(crate) fn overdue(&self, patience: Patience) -> Option<Overdue> {
        let now = self.now();
        let over = |since: u64, bound: Duration| since != 0 && u128::from(now - since.min(now)) > bound.as_millis();
        let (overdue, writes) = {
            let writing = self.writing.lock();
            (writing.is_overdue(now, patience), writing.is_under_way())
        };
        if overdue {
            return Some(Overdue::Write);
        }
        if self.streams.lock().values().any(|writing| writing.is_overdue(now, patience)) {
            return Some(Overdue::Write);
        }
        if writes || self.requests.load(Ordering::Relaxed) > 0 {
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
    /// Says whose turn it is: the peer's, to make room for what was handed out (its bytes, now), or ours, to bring more. On HTTP/1
    /// the socket itself shows it; on HTTP/2 a peer may close the window of one stream and keep reading the others.
    pub(crate) fn waits_for_peer(&self, handed_out: Option<usize>) {
        if !self.http2 {
            return;
        }
        let mut streams = self.progress.streams.lock();
        match handed_out {
            Some(bytes) => {
                let writing = streams.entry(self.number).or_default();
                // We are asked for more only when the peer has made room for all before.
                writing.took(|| self.progress.now(), 0);
                writing.taken_bytes += bytes as u64;
                writing.waits(self.progress.now());
            }
            None => _ = streams.remove(&self.number),
        }
    }

    /// Whether the request came over HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.http2
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.waits_for_peer(None);
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
        this.progress.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs);
        this.progress.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever writes flushes once it has written all it had; what is left then is the operating system's.
        let this = self.get_mut();
        this.progress.flushed();
        Pin::new(&mut this.tcp).poll_flush(cx)
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

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        write: Duration::from_secs(30),
        write_rate: 1_000,
    };

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
        progress.wrote(&Poll::Pending);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Write));
        drop(serving);
        for _ in 0..20 {
            progress.wrote(&Poll::Ready(Ok(1 << 20)));
            progress.wrote(&Poll::Pending);
            tokio::time::advance(Duration::from_secs(29)).await;
            assert_eq!(progress.overdue(PATIENCE), None, "whose answer is on its way is not idle");
        }
        progress.wrote(&Poll::Ready(Ok(1)));
        progress.flushed();
        assert_eq!(progress.overdue(PATIENCE), None, "idle from now on");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_stream_of_http2_is_overdue() {
        let progress = Arc::new(Progress::new(1024));
        let (one, two) = (progress.begin(true), progress.begin(true));
        one.waits_for_peer(Some(1 << 20));
        two.waits_for_peer(Some(1));
        two.waits_for_peer(None);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(progress.overdue(PATIENCE), Some(Overdue::Write));
        drop(one);
        assert_eq!(progress.overdue(PATIENCE), None);
        let old = progress.begin(false);
        old.waits_for_peer(Some(1));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(progress.overdue(PATIENCE), None, "HTTP/1 is seen at the socket");
    }

    /// The peer takes `bytes` after each wait of so many seconds, `times` over; whether that is too slow.
    async fn is_slow(bytes: usize, wait_s: u64, times: usize, flushes: bool) -> [bool; 2] {
        let (socket, stream) = (Arc::new(Progress::new(1024)), Arc::new(Progress::new(1024)));
        let (_one, two) = (socket.begin(false), stream.begin(true));
        let mut slow = [false; 2];
        for _ in 0..times {
            two.waits_for_peer(Some(bytes));
            socket.wrote(&Poll::Pending);
            tokio::time::advance(Duration::from_secs(wait_s)).await;
            for (slow, progress) in slow.iter_mut().zip([&socket, &stream]) {
                *slow |= progress.overdue(PATIENCE) == Some(Overdue::Write);
            }
            socket.wrote(&Poll::Ready(Ok(bytes)));
            if flushes {
                socket.flushed();
                two.waits_for_peer(None);
                // Nothing to write is no slowness of the peer's.
                tokio::time::advance(Duration::from_secs(600)).await;
            }
        }
        slow
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_too_little_is_overdue() {
        for (bytes, wait_s, times, flushes, slow) in [
            // A kilobyte now and then, which keeps the bound of silence from biting.
            (1_000, 15, 20, false, true),
            (14_000, 15, 100, false, true),
            (15_000, 15, 100, false, false),
            (31_000, 29, 100, false, false),
            (1_000, 15, 2, false, false),
            // Little, but all that there is.
            (100, 15, 20, true, false),
            (100, 31, 1, true, true),
        ] {
            let found = is_slow(bytes, wait_s, times, flushes).await;
            assert_eq!(found, [slow; 2], "{bytes} bytes after {wait_s} s, {times} times, {flushes}");
        }
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
