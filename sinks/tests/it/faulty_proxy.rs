//! A proxy on loopback between a client and a server, which can refuse, hang, be slow, or cut a connection half-way.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_sinks::timescale::TimescaleConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// What the proxy does with every connection, old and new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Closes connections at once.
    Refuse,
    /// Keeps connections and passes nothing on.
    Hang,
    /// The same with the connections that are there by then; new ones pass.
    HangOld,
    /// Passes on about so many bytes in a millisecond and direction.
    Slow(usize),
    /// Cuts a connection once so many bytes went to the server.
    CutAfter(usize),
    /// Cuts a connection when the server answers what has these words in it: it was done, and nobody is told.
    CutAnswerTo(&'static str),
}

/// A running proxy.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Ends the tasks when dropped.
    _runtime: Runtime,
}

impl Proxy {
    /// A proxy in front of `server` (`host:port`), which passes everything on.
    pub fn new(server: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (mode, seen) = watch::channel(Mode::Pass);
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let (address, server) = (listener.local_addr().expect("an address"), server.to_owned());
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server.clone(), seen.clone()));
            }
        });
        Self { address, mode, _runtime: runtime }
    }

    /// A proxy in front of the server of a configuration, which goes through it from now on.
    pub fn before(config: &mut TimescaleConfig) -> Self {
        let (head, rest) = config.url.split_once('@').expect("user@host");
        let (host, path) = rest.split_once('/').expect("host/database");
        let proxy = Self::new(host);
        config.url = format!("{head}@{}/{path}", proxy.address);
        proxy
    }

    /// Changes what it does.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn pass(client: TcpStream, server: String, mode: watch::Receiver<Mode>) {
    if *mode.borrow() == Mode::Refuse {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (old, asked) = (*mode.borrow() != Mode::HangOld, AtomicBool::new(false));
    // When one direction ends, so does the connection.
    tokio::select! {
        () = pump(from_client, to_server, mode.clone(), (true, old), &asked) => {}
        () = pump(from_server, to_client, mode, (false, old), &asked) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    (up, old): (bool, bool),
    asked: &AtomicBool,
) {
    let (mut buffer, mut passed) = (vec![0; 16 << 10], 0);
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Refuse => return,
            Mode::CutAfter(bytes) if up && passed >= bytes => return,
            hang if hang == Mode::Hang || (hang == Mode::HangOld && old) => {
                if mode.changed().await.is_err() {
                    return;
                }
                continue;
            }
            _ => {}
        }
        let room = if let Mode::Slow(bytes) = now { bytes.clamp(1, buffer.len()) } else { buffer.len() };
        let read = tokio::select! {
            read = from.read(&mut buffer[..room]) => read,
            changed = mode.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let Ok(bytes @ 1..) = read else { return };
        if !up && asked.load(Ordering::Relaxed) {
            return;
        }
        if matches!(now, Mode::Slow(_)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
        if let (true, Mode::CutAnswerTo(words)) = (up, now) {
            let found = buffer[..bytes].windows(words.len()).any(|window| window == words.as_bytes());
            asked.fetch_or(found, Ordering::Relaxed);
        }
        passed += bytes;
    }
}
