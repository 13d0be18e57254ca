//! Five thousand clients that send nothing, drip heads or bodies, do not read, or follow the feed and say nothing: those who
//! behave go on being served, and all the others are gone within half a minute.
//!
//! `TIDEGATE_SLOW_CLIENTS=5000` is the usual size; the figures are printed with `-- --nocapture slow_clients`. `TIDEGATE_P99=4`
//! takes four turns, each as long without the crowd as with it, and holds the wait of those who behave to a fifth more.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::server::{Caller, Server, event, on_demand};

/// How long a client that does not behave may keep its connection.
const REAPED: Duration = Duration::from_secs(30);

/// What a client sends at once; what it then sends, a byte at a time.
pub const KINDS: [(&[u8], &[u8]); 10] = [
    (b"", b""),
    (b"POST /v2/events/bulk HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ", b"a"),
    (
        b"POST /v2/events/bulk HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/x-ndjson\r\ncontent-length: 9000\r\n\r\n{",
        b" ",
    ),
    // Asks for much and reads nothing.
    (b"READ", b""),
    // What a client of TLS says first.
    (b"\x16\x03\x01\x02", b""),
    // HTTP/2 (RFC 9113): the preface and settings, then nothing; a part of the preface; the head of a request without its end,
    // whose next frame drips in; a request for a page of which no byte may be sent.
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", b""),
    (b"PRI * HTTP/2.0\r\n\r\n", b""),
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
          \0\0\x02\x01\0\0\0\0\x01\x82\x86\0\x10\0\x09\0\0\0\0\x01",
        b"\0",
    ),
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0\
          \0\0\x1c\x01\x05\0\0\0\x01\x82\x86\x44\x0d/openapi.json\x41\x09127.0.0.1",
        b"",
    ),
    // Follows the feed and says nothing.
    (
        b"GET /v2/alerts/stream HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"",
    ),
];

/// The place of those who follow the feed: the last.
const FOLLOWS: usize = KINDS.len() - 1;

pub async fn misbehave(address: SocketAddr, first: &[u8], drip: &[u8]) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    // Little room for what the server says, so that not reading holds it up soon.
    socket.set_recv_buffer_size(4096).ok()?;
    let mut stream = socket.connect(address).await.ok()?;
    let bytes = match first {
        b"READ" => b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".repeat(20),
        other => other.to_vec(),
    };
    stream.write_all(&bytes).await.ok()?;
    while !drip.is_empty() {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if stream.write_all(drip).await.is_err() {
            break;
        }
    }
    Some(stream)
}

/// The waits of a client that behaves, until it is told to stop.
fn behave(url: &str, stop: &AtomicBool, round: &str) -> Vec<Duration> {
    let (mut client, mut waits) = (Caller::new(url, None), Vec::new());
    for at in 0.. {
        let events: Vec<_> = (0..10).map(|part| event(&format!("{round}-{at}-{part}"), "x")).collect();
        let started = Instant::now();
        let reply = client.bulk("/v2/events/bulk?source=honest", &events);
        assert_eq!(reply.status.as_u16(), 200, "{:?}", reply.body);
        waits.push(started.elapsed());
        if stop.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    waits
}

fn p99(waits: &[Duration]) -> Duration {
    let mut waits = waits.to_vec();
    waits.sort();
    waits[(waits.len() * 99 / 100).min(waits.len() - 1)]
}

/// The waits of a client that behaves and is alone.
fn quiet(server: &Server, time: Duration, round: &str) -> Vec<Duration> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| behave(&server.url, &stop, round));
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        honest.join().expect("the honest client")
    })
}

/// What a crowd did.
struct Crowd {
    /// The waits of a client that behaves meanwhile.
    waits: Vec<Duration>,
    /// When the server was rid of it.
    gone: Duration,
    /// Files that the server had open at most.
    most: usize,
    /// Its memory at most, in bytes.
    most_memory: u64,
}

/// Lets `clients` loose, and waits until the server is rid of them.
fn crowd(server: &Server, clients: usize, open_before: usize, round: &str) -> Crowd {
    let address: SocketAddr = server.url.trim_start_matches("http://").parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| behave(&server.url, &stop, round));
        let (mut most, mut most_memory, started) = (0, 0, Instant::now());
        let gone = runtime.block_on(async {
            // Kept until the end: nobody closes but the server.
            let crowd: Vec<_> = (0..clients)
                .map(|at| {
                    let (first, drip) = match (at % KINDS.len(), at / KINDS.len()) {
                        // No more followers than a tenant may have: the others would be refused and just be idle.
                        (FOLLOWS, 190..) => KINDS[0],
                        (kind, _) => KINDS[kind],
                    };
                    // Not all in the same instant: that only fills the backlog of the operating system.
                    let due = Duration::from_micros(at as u64 * 400);
                    tokio::spawn(async move {
                        tokio::time::sleep(due).await;
                        misbehave(address, first, drip).await
                    })
                })
                .collect();
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let open = server.open_files();
                most = most.max(open);
                most_memory = most_memory.max(server.memory());
                let over = started.elapsed() > Duration::from_secs(5) && open <= open_before + 8;
                if over || started.elapsed() > 2 * REAPED {
                    let streams = futures::future::join_all(crowd).await;
                    drop(streams);
                    return started.elapsed();
                }
            }
        });
        stop.store(true, Ordering::Relaxed);
        Crowd { waits: honest.join().expect("the honest client"), gone, most, most_memory }
    })
}

#[test]
fn five_thousand_clients_that_do_not_behave_harm_nobody_and_are_gone_in_time() {
    let clients = on_demand("TIDEGATE_SLOW_CLIENTS", 5_000) as usize;
    // In turns, so that what else the machine and its disk have to do falls on both.
    let compared = on_demand("TIDEGATE_P99", 0);
    let turn = if compared > 0 { REAPED / 2 } else { Duration::from_secs(3) };
    let server = Server::start(&[("STARTER_PACK", "false")]);
    let (mut alone, mut attack) = (Vec::new(), Vec::new());
    for round in 0..compared.max(1) {
        let before = quiet(&server, turn, &format!("before-{round}"));
        let open_before = server.open_files();
        let Crowd { waits, gone, most, most_memory } = crowd(&server, clients, open_before, &format!("attack-{round}"));
        println!(
            "{clients} slow clients: at most {most} files open ({open_before} before), all gone after {gone:.1?}; p99 of {} \
             honest requests {:.1?}, of {} before {:.1?}; memory at most {} MiB",
            waits.len(),
            p99(&waits),
            before.len(),
            p99(&before),
            most_memory >> 20,
        );
        assert!(most > open_before + clients * 6 / 10, "only {most} files were open: that was no crowd");
        assert!(gone < REAPED + Duration::from_secs(3), "{} files are open after {gone:?}", server.open_files());
        assert!(most_memory < 1 << 30, "{most_memory} bytes");
        alone.extend(before);
        attack.extend(waits);
        if compared > 0 {
            alone.extend(quiet(&server, turn, &format!("after-{round}")));
        }
    }
    let (with, without) = (p99(&attack), p99(&alone));
    println!("p99 of {} honest requests {with:.1?}, of {} without the crowd {without:.1?}", attack.len(), alone.len());
    // On a quiet machine and on demand, what the contract says.
    if compared > 0 {
        let most = without * 6 / 5;
        assert!(with <= most, "{with:?}, not {most:?}");
    }
    // A busy machine answers late at times; a server that is held up answers never.
    assert!(with < 4 * without + Duration::from_millis(500), "{with:?} with the crowd, {without:?} without");
    server.client().wait_for("SELECT count(*) FROM security_events", ((attack.len() + alone.len()) * 10) as i64);
}
