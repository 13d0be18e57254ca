//! The server killed in each phase of a delivery to the database: a way to the database that knows its protocol keeps the message
//! that begins the phase, and the server dies there. Needs the PostgreSQL that `cargo xtask test` starts.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::server::{Server, event};
use crate::timescale::{drop_schema, query, until, url};

/// Where a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its transaction and the cursor are asked for.
    Begin,
    /// The COPY has begun, and no row has come.
    FirstRows,
    /// All rows have come, but not that these are all.
    CopyDone,
    /// The COPY is over, the cursor has not moved.
    Commit,
    /// It is committed, and nobody was told.
    Answer,
}

impl Phase {
    /// Whether a message of the client's begins it (PostgreSQL's documentation, "Message Formats").
    fn begins(self, kind: u8, body: &[u8]) -> bool {
        let says = |text: &str| kind == b'Q' && body.windows(text.len()).any(|window| window == text.as_bytes());
        match self {
            Self::Begin => says("next_offset FROM") && says("FOR UPDATE"),
            Self::FirstRows => kind == b'd',
            Self::CopyDone => kind == b'c',
            Self::Commit | Self::Answer => says("SET next_offset =") && says("COMMIT"),
        }
    }
}

/// A way to the database that ends in a phase, once one is set.
#[derive(Clone)]
struct Way {
    wanted: Arc<Mutex<Option<Phase>>>,
    parked: Arc<AtomicBool>,
}

impl Way {
    /// The way, and the URL that leads over it.
    fn new() -> (Self, String) {
        let url = url();
        let (head, rest) = url.split_once('@').expect("user@host");
        let (host, path) = rest.split_once('/').expect("host/database");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let join = if path.contains('?') { '&' } else { '?' };
        // What is encrypted cannot be read here.
        let url = format!("{head}@{address}/{path}{join}sslmode=disable");
        let way = Self { wanted: Arc::default(), parked: Arc::default() };
        let (passing, host) = (way.clone(), host.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&host) else { continue };
                let (way, deaf) = (passing.clone(), Arc::new(AtomicBool::new(false)));
                let back = [server.try_clone(), client.try_clone()].map(|socket| socket.expect("a socket"));
                let told = deaf.clone();
                thread::spawn(move || answers(back, &told));
                thread::spawn(move || {
                    // However it ended, both sides learn of it.
                    let _ = way.questions(&client, &server, &deaf);
                    for socket in [client, server] {
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        (way, url)
    }

    /// Passes the client's messages on, up to the one that begins the phase.
    fn questions(&self, mut client: &TcpStream, mut server: &TcpStream, deaf: &AtomicBool) -> Result<()> {
        let body = message(client)?;
        server.write_all(&[&length(&body), &body[..]].concat())?;
        loop {
            let mut kind = [0];
            client.read_exact(&mut kind)?;
            let body = message(client)?;
            let Some(phase) = self.met(kind[0], &body) else {
                server.write_all(&[&kind, &length(&body)[..], &body].concat())?;
                continue;
            };
            // The answers of before were waited for by whoever asks this.
            deaf.store(true, Ordering::SeqCst);
            if phase == Phase::Answer {
                server.write_all(&[&kind, &length(&body)[..], &body].concat())?;
            }
            self.parked.store(true, Ordering::SeqCst);
            return std::io::copy(&mut client, &mut std::io::sink()).map(drop);
        }
    }

    /// The phase that is wanted, if a message begins it; the first to see it has it.
    fn met(&self, kind: u8, body: &[u8]) -> Option<Phase> {
        self.wanted.lock().take_if(|phase| phase.begins(kind, body))
    }

    fn end_in(&self, phase: Phase) {
        self.parked.store(false, Ordering::SeqCst);
        *self.wanted.lock() = Some(phase);
    }
}

/// The rest of a message: its length, which counts itself, then so many bytes.
fn message(mut from: &TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let rest = (u32::from_be_bytes(length) as usize).checked_sub(4).ok_or(ErrorKind::InvalidData)?;
    let mut body = vec![0; rest];
    from.read_exact(&mut body)?;
    Ok(body)
}

fn length(body: &[u8]) -> [u8; 4] {
    (body.len() as u32 + 4).to_be_bytes()
}

/// Passes the server's answers on, until nobody is to hear them.
fn answers([mut server, mut client]: [TcpStream; 2], deaf: &AtomicBool) {
    let mut piece = vec![0; 16 << 10];
    while let Ok(read @ 1..) = server.read(&mut piece) {
        if !deaf.load(Ordering::SeqCst) && client.write_all(&piece[..read]).is_err() {
            return;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

#[test]
fn killed_in_each_phase_of_a_delivery_every_event_is_in_the_database_once() {
    let ((way, url), schema) = (Way::new(), format!("phases{}", std::process::id()));
    let settings = [
        ("STARTER_PACK", "false"),
        ("STORE", "timescale"),
        ("SINKS__TIMESCALE__URL", url.as_str()),
        ("SINKS__TIMESCALE__SCHEMA", schema.as_str()),
        ("SINKS__TIMESCALE__CONNECTIONS", "1"),
        ("SINKS__TIMESCALE__COMMIT_INTERVAL_MS", "20"),
    ];
    let stored = || query(&format!("SELECT event_id FROM {schema}.security_events"));
    let mut server = Server::start(&settings);
    let mut sent = BTreeSet::new();
    let mut send = |server: &Server, name: &str, count: usize| {
        // More than one piece of a COPY.
        let pad = "x".repeat(2_000);
        let events: Vec<Value> = (0..count)
            .map(|at| {
                let mut event = event(&format!("{name}-{at}"), "x");
                event["pad"] = json!(pad);
                event
            })
            .collect();
        assert_eq!(server.client().bulk("/v2/events/bulk?source=custom", &events).json()["accepted"], count, "{name}");
        sent.extend(events.iter().map(|event| event["event_id"].as_str().expect("an id").to_owned()));
        sent.len()
    };
    let mut before = send(&server, "first", 1);
    server.client().wait_for("SELECT count(*) FROM security_events", 1);
    until("the first is there", || stored().len() == before);
    for phase in [Phase::Begin, Phase::FirstRows, Phase::CopyDone, Phase::Commit, Phase::Answer] {
        way.end_in(phase);
        let all = send(&server, &format!("{phase:?}"), 200);
        until(&format!("{phase:?} is reached"), || way.parked.load(Ordering::SeqCst));
        if phase == Phase::Answer {
            until("it is committed", || stored().len() == all);
        } else {
            assert_eq!(stored().len(), before, "{phase:?}: nothing is committed");
        }
        server.kill();
        server.run(&settings);
        // What comes after it is there behind all that came before.
        let all = send(&server, &format!("after-{phase:?}"), 1);
        until(&format!("{phase:?}: the last one is there"), || {
            stored().iter().any(|id| *id == format!("after-{phase:?}-0"))
        });
        assert_eq!(stored().len(), all, "{phase:?}: each once");
        server.client().wait_for("SELECT count(DISTINCT event_id) FROM security_events", all as i64);
        assert_eq!(server.client().number("SELECT count(*) FROM security_events"), all as i64, "{phase:?}");
        before = all;
    }
    assert_eq!(stored().into_iter().collect::<BTreeSet<String>>(), sent);
    server.kill();
    drop_schema(&schema);
}
