//! The listener: versions, timers, framing, bounds, drain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tidegate_ingest::http::{BodyPace, HttpConfig, InFlight, Peer, ReplyBody, json, problem, read_body};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http_wire::Server;

/// Serves a few paths and notes each request: method, path, body bytes.
async fn echo(seen: Arc<Mutex<Vec<String>>>, request: Request<Incoming>) -> Response<ReplyBody> {
    assert!(request.extensions().get::<Peer>().is_some(), "every request says who sent it");
    let line = format!("{} {}", request.method(), request.uri().path());
    seen.lock().push(line.clone());
    match request.uri().path() {
        "/panic" => panic!("on purpose"),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(700)).await;
            json(StatusCode::OK, "{}".into(), "slow")
        }
        "/large" => json(StatusCode::OK, "x".repeat(64 << 20), ""),
        "/frames" => {
            let frames = (0..100).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 64 * 1024]))));
            Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync())
        }
        "/unread" => json(StatusCode::PAYLOAD_TOO_LARGE, r#"{"too":"large"}"#.into(), ""),
        _ => {
            let pace = BodyPace { gap_max: Duration::from_millis(300), rate_bytes_min: 1000 };
            let budget = InFlight::new(1 << 24, 1 << 10);
            match read_body(request.into_body(), 1 << 20, pace, &budget).await {
                Ok(body) => {
                    let (bytes, held) = (body.len(), budget.used_bytes());
                    json(StatusCode::OK, format!(r#"{{"line":"{line}","bytes":{bytes},"held":{held}}}"#), "id")
                }
                Err(wrong) => problem(&wrong, "id"),
            }
        }
    }
}

fn quick() -> HttpConfig {
    HttpConfig {
        head_ms_max: 400,
        idle_ms_max: 800,
        write_ms_max: 500,
        drain_ms_max: 3_000,
        drain_quiet_ms: 200,
        linger_ms_max: 1_000,
        ..HttpConfig::default()
    }
}

async fn start(config: HttpConfig) -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let routes = {
        let seen = seen.clone();
        move |request| echo(seen.clone(), request)
    };
    (Server::start(config, routes).await, seen)
}

#[tokio::test]
async fn http1_serves_sized_and_chunked_bodies_on_one_connection() {
    let (server, _) = start(quick()).await;
    let mut wire = server.connect().await;
    wire.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!(wire.answer().await.expect("an answer").json()["bytes"], 3);
    wire.send(b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\n\r\n")
        .await;
    let answer = wire.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.json()["bytes"].as_u64()), (200, Some(5)));
    assert_eq!(answer.header("x-request-id"), Some("id"));
    wire.send(b"GET /c HTTP/1.1\r\nHost: x\r\n\r\nGET /d HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(wire.answer().await.expect("pipelined").json()["line"], "GET /c");
    assert_eq!(wire.answer().await.expect("pipelined").json()["line"], "GET /d");
}

#[tokio::test]
async fn a_body_is_held_with_its_bytes_however_it_came() {
    let (server, _) = start(quick()).await;
    let mut wire = server.connect().await;
    let mut by_itself = None;
    for chunks in [vec![], vec![3], vec![2, 3], vec![20_000, 70_000, 100]] {
        let mut request = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in &chunks {
            request.extend_from_slice(format!("{chunk:x}\r\n{}\r\n", "x".repeat(*chunk)).as_bytes());
        }
        wire.send(&[request.as_slice(), b"0\r\n\r\n"].concat()).await;
        let answer = wire.answer().await.expect("an answer").json();
        let (bytes, held) = (answer["bytes"].as_u64().expect("bytes"), answer["held"].as_u64().expect("bytes"));
        assert_eq!(bytes, chunks.iter().sum::<usize>() as u64);
        assert_eq!(held - bytes, *by_itself.get_or_insert(held), "{chunks:?}");
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body() {
    let (server, _) = start(quick()).await;
    let mut wire = server.connect().await;
    wire.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(wire.answer().await.expect("an interim answer").status, 100);
    wire.send(b"abc").await;
    assert_eq!(wire.answer().await.expect("an answer").json()["bytes"], 3);
}

#[tokio::test]
async fn http2_with_prior_knowledge_shares_the_port() {
    let (server, _) = start(quick()).await;
    let tcp = TcpStream::connect(server.at).await.expect("connects");
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.expect("a handshake");
    tokio::spawn(connection);
    let ask = |path: &str| Request::post(format!("http://x{path}")).body(Empty::<Bytes>::new()).expect("a request");
    let (one, two) = (client.send_request(ask("/one")), client.send_request(ask("/two")));
    for (answer, path) in [(one.await, "/one"), (two.await, "/two")] {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(path), "{body:?}");
    }
    // Idle beyond the bound of a head: pings and their answers do not end an HTTP/2 connection, the idle bound does.
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.send_request(ask("/three")).await.expect("still there");
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    assert!(client.send_request(ask("/four")).await.is_err(), "idle for too long");
}

#[tokio::test]
async fn slow_and_silent_connections_are_reaped() {
    let (server, _) = start(quick()).await;
    let cases: [(&str, &[u8], bool); 4] = [
        ("silent", b"", false),
        ("half a head", b"POST /a HTTP/1.1\r\nHost: x\r\n", false),
        ("a head that trickles", b"POST /a HTTP/1.1\r\nHost: x\r\nX-A: ", true),
        ("a preface of HTTP/2 that trickles", b"PRI * HT", false),
    ];
    for (name, bytes, trickle) in cases {
        let started = Instant::now();
        let mut wire = server.connect().await;
        wire.send(bytes).await;
        while trickle && started.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if wire.tcp.write_all(b"x").await.is_err() {
                break;
            }
        }
        let _ = wire.ended().await;
        assert!(started.elapsed() < Duration::from_secs(4), "{name}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_body_that_stalls_or_trickles_is_answered_with_408() {
    let (server, _) = start(quick()).await;
    for trickle in [false, true] {
        let started = Instant::now();
        let mut wire = server.connect().await;
        wire.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc").await;
        if trickle {
            for _ in 0..40 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                wire.send(b"x").await;
            }
        }
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.status, 408, "trickle {trickle}: {answer:?}");
        assert_eq!(answer.json()["error"]["code"], "body_too_slow");
        wire.ended().await.expect("a clean end");
        assert!(started.elapsed() < Duration::from_secs(5), "trickle {trickle}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut() {
    let (server, _) = start(quick()).await;
    let mut wire = server.connect().await;
    wire.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(wire.answer().await.is_none(), "the answer cannot have come whole");
    assert_eq!(server.drained().await.cut, 0, "the connection is gone");
}

/// Reads an answer of 64 MiB in sips of 128 KiB, 50 ms apart, for eight seconds, and then all that still comes: its bytes. What the
/// operating system holds already comes also from a connection that was cut.
async fn sip(rate_bytes_min: u64) -> usize {
    let config = HttpConfig { write_ms_max: 3_000, write_rate_bytes_min: rate_bytes_min, ..quick() };
    let (server, _) = start(config).await;
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    // Little room on the way, so that what is read shows soon at the other side.
    socket.set_recv_buffer_size(128 * 1024).expect("a small buffer");
    let mut tcp = socket.connect(server.at).await.expect("connects");
    tcp.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    let (mut sip, mut read) = (vec![0; 128 * 1024], 0);
    let started = Instant::now();
    loop {
        if started.elapsed() < Duration::from_secs(8) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        match tokio::io::AsyncReadExt::read(&mut tcp, &mut sip).await {
            Ok(bytes @ 1..) => read += bytes,
            _ => return read,
        }
    }
}

#[tokio::test]
async fn a_client_that_sips_its_answer_is_cut() {
    let (slow, steady) = tokio::join!(sip(32 << 20), sip(4 * 1024));
    assert!(slow < 32 << 20, "it never paused for long, and read a fraction of the rate: {slow} bytes");
    assert!(steady > 64 << 20, "a reader above the rate was cut after {steady} bytes");
}

#[tokio::test]
async fn a_stream_of_http2_whose_window_stays_closed_is_cut() {
    for path in ["/frames", "/large"] {
        check_closed_window(path).await;
    }
}

async fn check_closed_window(path: &str) {
    let (server, _) = start(quick()).await;
    let tcp = TcpStream::connect(server.at).await.expect("connects");
    let (mut client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(16 * 1024)
        .handshake(TokioIo::new(tcp))
        .await
        .expect("a handshake");
    let connection = tokio::spawn(connection);
    let ask = |path: &str| Request::get(format!("http://x{path}")).body(Empty::<Bytes>::new()).expect("a request");
    let unread = client.send_request(ask(path)).await.expect("an answer");
    let started = Instant::now();
    while !connection.is_finished() && started.elapsed() < Duration::from_secs(5) {
        // Others on the connection are read: the socket itself is not blocked.
        let _ = client.send_request(ask("/a")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(connection.is_finished(), "{path}: still there after {:?}", started.elapsed());
    drop(unread);
}

#[tokio::test]
async fn a_body_in_crumbs_is_refused() {
    let (server, _) = start(quick()).await;
    let mut request = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..5_000 {
        request.extend_from_slice(b"1\r\nx\r\n");
    }
    let answer = server.ask(&request).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("body_too_fragmented")));
}

#[tokio::test]
async fn ambiguous_framing_is_refused_and_nothing_is_smuggled() {
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let cases = [
        (
            "CL before TE",
            format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}", 5 + inner.len()),
        ),
        ("TE before CL", format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{inner}")),
        ("two CL", format!("Content-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len())),
        ("list of CL", format!("Content-Length: 0, {}\r\n\r\n{inner}", inner.len())),
        ("signed CL", format!("Content-Length: +0\r\n\r\n{inner}")),
        ("hex CL", format!("Content-Length: 0x0\r\n\r\n{inner}")),
        ("blank before colon", format!("Content-Length : {}\r\n\r\n{inner}", inner.len())),
        ("folded", format!("X-A: b\r\n Content-Length: {}\r\n\r\n{inner}", inner.len())),
        ("folded TE", format!("Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("unknown TE", format!("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}")),
        ("TE not last", format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}")),
        ("TE twice", format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("TE with gzip", format!("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("TE with tab", format!("Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{inner}")),
        ("TE bare CR", format!("Transfer-Encoding: chunked\rX: y\r\n\r\n0\r\n\r\n{inner}")),
        ("chunk size overflow", format!("Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n{inner}")),
        ("chunk size negative", format!("Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{inner}")),
        ("NUL in a name", format!("Content-\0Length: 5\r\n\r\n{inner}")),
        ("two hosts", format!("Host: y\r\nContent-Length: 0\r\n\r\n{inner}")),
    ];
    for (name, rest) in cases {
        let (server, seen) = start(quick()).await;
        let mut wire = server.connect().await;
        wire.send(format!("POST /outer HTTP/1.1\r\nHost: x\r\n{rest}").as_bytes()).await;
        let answer = wire.answer().await.unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        let rest = wire.ended().await.unwrap_or_default();
        assert_eq!(rest, "", "{name}");
        assert!(!seen.lock().iter().any(|line| line.contains("smuggled")), "{name}");
    }
}

#[tokio::test]
async fn chunked_behind_a_pipelined_request_is_refused_as_unwatched() {
    let (server, _) = start(quick()).await;
    let mut wire = server.connect().await;
    wire.send(
        b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!(wire.answer().await.expect("the first").status, 200);
    assert_eq!(wire.answer().await.expect("the second").json()["error"]["code"], "ambiguous_framing");
    wire.ended().await.expect("a clean end");
}

#[tokio::test]
async fn a_missing_host_is_refused() {
    let (server, _) = start(quick()).await;
    assert_eq!(server.ask(b"GET /a HTTP/1.1\r\n\r\n").await.status, 400);
    let old = server.ask(b"GET /a HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.status, 200, "HTTP/1.0 has no Host");
}

#[tokio::test]
async fn a_head_over_the_bound_is_refused() {
    let (server, _) = start(HttpConfig { head_bytes_max: 16 * 1024, ..quick() }).await;
    let large = format!("GET /a HTTP/1.1\r\nHost: x\r\nX-A: {}\r\n\r\n", "y".repeat(40_000));
    assert_eq!(server.ask(large.as_bytes()).await.status, 431);
    let many = format!("GET /a HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(500));
    assert_eq!(server.ask(many.as_bytes()).await.status, 431);
}

#[tokio::test]
async fn a_panic_costs_one_answer() {
    let (server, _) = start(quick()).await;
    let mut wire = server.connect().await;
    wire.send(b"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(wire.answer().await.expect("an answer").json()["error"]["code"], "internal_error");
    wire.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
}

#[tokio::test]
async fn an_early_answer_survives_the_body_that_is_still_coming() {
    let (server, _) = start(quick()).await;
    let mut wire = server.connect().await;
    wire.send(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n").await;
    wire.send(&vec![b'x'; 8_000_000]).await;
    let answer = wire.answer().await.expect("no reset before the answer");
    assert_eq!(answer.json()["too"], "large");
}

#[tokio::test]
async fn connections_over_the_bound_wait_for_a_place() {
    let (server, _) = start(HttpConfig { connections_max: 1, ..quick() }).await;
    let mut first = server.connect().await;
    first.send(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    let mut second = server.connect().await;
    second.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(second.answer().await.expect("served in the end").status, 200);
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_drain_finishes_requests_and_resets_nobody() {
    let (mut server, _) = start(quick()).await;
    let mut busy = server.connect().await;
    let mut idle = server.connect().await;
    let mut late = server.connect().await;
    for wire in [&mut idle, &mut late] {
        wire.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(wire.answer().await.expect("an answer").header("connection"), None);
    }
    busy.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let newcomer = tokio::spawn(TcpStream::connect(server.at));
    late.send(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = late.answer().await.expect("a request within the quiet time is served");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    let answer = busy.answer().await.expect("the request under way is finished");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    for (name, mut wire) in [("busy", busy), ("idle", idle), ("late", late)] {
        assert_eq!(wire.ended().await.unwrap_or_else(|error| panic!("{name} was reset: {error}")), "");
    }
    assert_eq!(server.drained().await.cut, 0);
    // It was passed over while the listener closed, and asked again a second later.
    let refused = newcomer.await.expect("no panic").expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
}

#[tokio::test]
async fn a_drain_cuts_what_does_not_end() {
    let (server, _) = start(HttpConfig { drain_ms_max: 400, ..quick() }).await;
    let mut wire = server.connect().await;
    wire.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    let drained = server.drained().await;
    assert_eq!(drained.cut, 1);
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
}

/// One request after the other, each on a connection of its own, until nobody listens; how many were answered.
fn fresh_connections(at: std::net::SocketAddr) -> std::io::Result<usize> {
    use std::io::{Read, Write};
    for answered in 0.. {
        let Ok(mut tcp) = std::net::TcpStream::connect(at) else { return Ok(answered) };
        tcp.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    Ok(usize::MAX)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_made_while_the_listener_closes_is_served_or_refused_and_never_reset() {
    for round in 0..3 {
        let (mut server, _) = start(quick()).await;
        let at = server.at;
        let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(move || fresh_connections(at))).collect();
        tokio::time::sleep(Duration::from_millis(100 + round * 17)).await;
        server.stop();
        assert_eq!(server.drained().await.cut, 0);
        let all = clients.into_iter().map(|client| client.join().expect("no panic"));
        let answered: usize =
            all.map(|answered| answered.unwrap_or_else(|error| panic!("round {round}: {error}"))).sum();
        assert!(answered > 0, "round {round}");
    }
}
