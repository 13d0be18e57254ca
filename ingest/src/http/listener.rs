//! The accept loop: bounded connections, timers on each, and a drain that resets no client that behaves.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge share the port. A connection is ended when it has no request for
//! `idle_ms_max`, when a request head takes longer than `head_ms_max`, or when the peer does not read for `write_ms_max`,
//! or after that less than `write_rate_bytes_min` a second.
//! Bodies have timers of their own, see [`body`](super::body).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_pipeline::Problem;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::framing;
use super::reply::{self, ReplyBody};
use super::socket::{Overdue, Patience, Progress, Serving, Socket};
use crate::metrics as names;

/// For handshakes under way to end once no further one is begun.
const HANDSHAKES: Duration = Duration::from_millis(150);

/// Bounds of the HTTP listener.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Open connections at once, upgraded ones included. More wait in the backlog of the operating system.
    pub connections_max: usize,
    /// From the first byte of a request head to its last one; for the first request, from the start of the connection.
    pub head_ms_max: u64,
    /// Bytes of a request head; also what is read from a socket at a time.
    pub head_bytes_max: usize,
    /// Without any request on a connection that has had one.
    pub idle_ms_max: u64,
    /// Without the peer reading any byte of what we write.
    pub write_ms_max: u64,
    /// Bytes a second that the peer must read of what we write on average, counted over the time in which we wait for it after a
    /// first `write_ms_max`.
    pub write_rate_bytes_min: u64,
    /// For requests under way to finish once the server is told to stop.
    pub drain_ms_max: u64,
    /// After the server is told to stop, for connections without a request: a request that comes within it is served,
    /// and told to close the connection.
    pub drain_quiet_ms: u64,
    /// How long a connection that we close still takes, and forgets, what the peer sends.
    pub linger_ms_max: u64,
    /// Before the operating system probes a silent peer.
    pub keepalive_s: u64,
    /// Requests at once on one HTTP/2 connection.
    pub h2_streams_max: u32,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            head_ms_max: 10_000,
            head_bytes_max: 64 * 1024,
            idle_ms_max: 75_000,
            write_ms_max: 20_000,
            write_rate_bytes_min: 4_096,
            drain_ms_max: 8_000,
            drain_quiet_ms: 300,
            linger_ms_max: 2_000,
            keepalive_s: 60,
            h2_streams_max: 128,
        }
    }
}

/// Who sent a request: an extension of every request that the listener hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// How a listener ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Connections that were cut at the end of the drain.
    pub cut: usize,
}

/// What all connections of a listener share.
struct Shared<R> {
    routes: Arc<R>,
    builder: auto::Builder<TokioExecutor>,
    patience: Patience,
    tick: Duration,
    linger_max: Duration,
    head_bytes_max: usize,
    draining: watch::Receiver<Drain>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    /// Serve what comes, and close after it.
    Closing,
    /// Finish what is under way.
    Finish,
}

/// Accepts connections until `shutdown` is ready, then drains. A request goes to `routes` with [`Peer`] as an extension;
/// a panic there is answered with 500.
pub async fn listen<R, F>(
    listener: TcpListener,
    config: HttpConfig,
    routes: Arc<R>,
    shutdown: impl Future<Output = ()>,
) -> Drained
where
    R: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<ReplyBody>> + Send + 'static,
{
    keep_alive(&listener, Duration::from_secs(config.keepalive_s));
    give_up_on_unread(&listener, Duration::from_millis(config.write_ms_max));
    let places = Arc::new(Semaphore::new(config.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let (drain, draining) = watch::channel(Drain::No);
    let shared = Arc::new(Shared {
        routes,
        builder: builder(&config),
        patience: Patience {
            head: Duration::from_millis(config.head_ms_max),
            idle: Duration::from_millis(config.idle_ms_max),
            write: Duration::from_millis(config.write_ms_max),
            write_rate: config.write_rate_bytes_min,
        },
        tick: Duration::from_millis(
            (config.head_ms_max.min(config.idle_ms_max).min(config.write_ms_max) / 4).clamp(20, 2_500),
        ),
        linger_max: Duration::from_millis(config.linger_ms_max),
        head_bytes_max: config.head_bytes_max,
        draining,
    });
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (tcp, peer, place) = accept(&listener, &places) => {
                connections.spawn(shared.clone().serve(tcp, peer, place));
            }
        }
    }
    let deadline = Instant::now() + Duration::from_millis(config.drain_ms_max);
    let _ = drain.send(Drain::Closing);
    for (tcp, peer, place) in close(listener, &places).await {
        connections.spawn(shared.clone().serve(tcp, peer, place));
    }
    let quiet = tokio::time::sleep(Duration::from_millis(config.drain_quiet_ms));
    tokio::pin!(quiet);
    loop {
        tokio::select! {
            () = &mut quiet => break,
            ended = connections.join_next() => if ended.is_none() { break },
        }
    }
    let _ = drain.send(Drain::Finish);
    let all = async {
        while connections.join_next().await.is_some() {}
        // Upgraded connections are no tasks of ours, but they hold their places.
        let _ = places.acquire_many(u32::try_from(config.connections_max).unwrap_or(u32::MAX)).await;
    };
    let _ = tokio::time::timeout_at(deadline, all).await;
    let cut = config.connections_max.saturating_sub(places.available_permits());
    connections.shutdown().await;
    if cut > 0 {
        tracing::warn!(connections = cut, "cut the connections that did not finish within the drain bound");
    }
    Drained { cut }
}

/// Closes the listener; the connections that came until then.
async fn close(listener: TcpListener, places: &Arc<Semaphore>) -> Vec<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let mut taken = Vec::new();
    if pass_over_handshakes(&listener) {
        tokio::time::sleep(HANDSHAKES).await;
    }
    for (tcp, peer) in accepted_already(listener) {
        let Ok(place) = places.clone().try_acquire_owned() else { break };
        taken.push((tcp, peer, place));
    }
    taken
}

/// Makes the operating system pass over further handshakes, while those that it has answered go on: a connection that is made
/// in the very instant in which the listener closes would be reset. Whoever is passed over tries again after a second, by when
/// there is another server, or an honest refusal. Whether it can be done here; if not, that instant is left.
#[cfg(target_os = "linux")]
fn pass_over_handshakes(listener: &TcpListener) -> bool {
    use socket2::{SockFilter, SockRef};
    // Classic BPF over a segment from its TCP header on (linux/bpf_common.h).
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let program = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    let attached = SockRef::from(listener).attach_filter(&program);
    attached
        .inspect_err(|error| tracing::debug!(%error, "new connections cannot be held back while the listener closes"))
        .is_ok()
}

#[cfg(not(target_os = "linux"))]
fn pass_over_handshakes(_listener: &TcpListener) -> bool {
    false
}

/// Closes the listener. What the operating system has accepted for us already would be reset by that, so it is taken first;
/// from the system itself, since the runtime may not have heard of it yet.
fn accepted_already(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let mut taken = Vec::new();
    while let Ok((tcp, peer)) = listener.accept() {
        taken.push((tcp, peer));
    }
    drop(listener);
    let stream = |(tcp, peer): (std::net::TcpStream, SocketAddr)| {
        tcp.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(tcp).ok()?, peer))
    };
    taken.into_iter().filter_map(stream).collect()
}

fn builder(config: &HttpConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Heads are bounded by [`Progress`]; hyper's own timer would be set and put off with every request.
    builder.http1().header_read_timeout(None).max_buf_size(config.head_bytes_max.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.h2_streams_max)
        .max_header_list_size(u32::try_from(config.head_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(32)
        .max_local_error_reset_streams(256)
        .keep_alive_interval(Duration::from_millis(config.idle_ms_max.min(20_000)))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Accepted sockets inherit these from the listener.
fn keep_alive(listener: &TcpListener, idle: Duration) {
    use rustix::net::sockopt;
    let set = sockopt::set_socket_keepalive(listener, true)
        .and_then(|()| sockopt::set_tcp_keepidle(listener, idle))
        .and_then(|()| sockopt::set_tcp_keepintvl(listener, Duration::from_secs(10)))
        .and_then(|()| sockopt::set_tcp_keepcnt(listener, 3));
    if let Err(error) = set {
        tracing::warn!(%error, "could not turn TCP keepalive on; silent peers are found by timers only");
    }
}

/// Accepted sockets inherit this, too: what was written and is not read within `patience` ends the connection, although the
/// operating system has taken it and no write of ours waits. Otherwise its buffers belong to whoever asks and does not read.
fn give_up_on_unread(listener: &TcpListener, patience: Duration) {
    let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(listener, patience) {
        tracing::warn!(%error, "could not bound how long what was written may stay unread");
    }
}

/// The next connection. An error of the accept call never ends the listener: out of descriptors, it waits a little.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let place = match places.clone().try_acquire_owned() {
        Ok(place) => Ok(place),
        Err(_) => {
            metrics::counter!(names::HTTP_CONNECTIONS_FULL_TOTAL).increment(1);
            places.clone().acquire_owned().await
        }
    };
    // The semaphore is never closed.
    let Ok(place) = place else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => return (tcp, peer, place),
            Err(error) if about_one_connection(&error) => {}
            Err(error) => {
                metrics::counter!(names::HTTP_ACCEPT_ERRORS_TOTAL).increment(1);
                tracing::error!(%error, "cannot accept connections; trying again in 200 ms");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

impl<R, F> Shared<R>
where
    R: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<ReplyBody>> + Send + 'static,
{
    /// Serves one connection to its end.
    async fn serve(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let _open = Open::new();
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "could not turn TCP_NODELAY on");
        }
        let progress = Arc::new(Progress::new(self.head_bytes_max));
        let socket = Socket::new(tcp, progress.clone(), self.linger_max, place);
        let service = hyper::service::service_fn({
            let (shared, progress) = (self.clone(), progress.clone());
            move |request| shared.clone().answer(request, peer, progress.clone())
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(socket), service);
        tokio::pin!(connection);
        let mut draining = self.draining.clone();
        let mut tick = tokio::time::interval_at(Instant::now() + self.tick, self.tick);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut closing = false;
        let overdue = loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, error = %chain(&*error), "connection ended");
                    }
                    return;
                }
                _ = draining.wait_for(|drain| *drain == Drain::Finish), if !closing => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = tick.tick() => if let Some(overdue) = progress.overdue(self.patience) {
                    break overdue;
                },
            }
        };
        let why = match overdue {
            Overdue::Idle => "idle",
            Overdue::Head => "head",
            Overdue::Write => "write",
        };
        metrics::counter!(names::HTTP_REAPED_TOTAL, "why" => why).increment(1);
        if overdue == Overdue::Idle {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(self.linger_max, connection).await;
        }
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        progress: Arc<Progress>,
    ) -> Result<Response<Counted>, std::convert::Infallible> {
        let version = request.version();
        let serving = progress.begin(version == Version::HTTP_2);
        let framed = framing::check(&request, &mut progress.head.lock());
        let refused = framed.is_err();
        let mut response = match framed {
            Err(problem) => reply::problem(&problem, ""),
            Ok(()) => {
                request.extensions_mut().insert(Peer(peer));
                // The call itself may panic too, before it gives a future.
                let served = AssertUnwindSafe(async { (self.routes)(request).await });
                served.catch_unwind().await.unwrap_or_else(|_| {
                    let problem = Problem::new(500, "internal_error", "the server failed to answer this request");
                    reply::problem(&problem.hint("the log of the server says where; please report it"), "")
                })
            }
        };
        let close = refused || *self.draining.borrow() != Drain::No;
        if close && version != Version::HTTP_2 && response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        serving.waits_for_peer(Some(0));
        Ok(response.map(|body| Counted { body, rest: Bytes::new(), _rearm: Rearm(progress), serving }))
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Counts an open connection in the metrics.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!(names::HTTP_CONNECTIONS).increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(names::HTTP_CONNECTIONS).decrement(1);
    }
}

/// Watches for the next head once the answer is out.
struct Rearm(Arc<Progress>);

impl Drop for Rearm {
    fn drop(&mut self) {
        self.0.head.lock().rearm();
    }
}

/// On HTTP/2 so many bytes of an answer are handed out at a time: what is handed out is not seen any more until it has been
/// taken, and a request whose last bytes are handed out counts as answered.
const PIECE_BYTES: usize = 64 * 1024;

/// An answer's body that keeps its request counted until it is sent or dropped.
struct Counted {
    body: ReplyBody,
    /// What is left of a frame that is handed out in pieces.
    rest: Bytes,
    _rearm: Rearm,
    serving: Serving,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let mut polled = match this.rest.is_empty() {
            true => Pin::new(&mut this.body).poll_frame(cx),
            false => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.rest))))),
        };
        let mut handed_out = None;
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(data) = frame.data_mut().filter(|data| this.serving.is_http2() && data.len() > PIECE_BYTES) {
                this.rest = data.split_off(PIECE_BYTES);
            }
            handed_out = Some(frame.data_ref().map_or(0, Bytes::len));
        }
        this.serving.waits_for_peer(handed_out);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
