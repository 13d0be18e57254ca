//! SIGTERM under load: the server drains in time, whoever was told 200 is kept, and nobody who behaves sees a broken
//! connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::ledger::{Ledger, Load, Pace, ledger_event};
use crate::server::Server;

/// One request on a connection of its own. `Ok(None)`: nobody listens any more.
fn ask_once(address: &str, id: &str) -> std::io::Result<Option<u16>> {
    let Ok(mut stream) = TcpStream::connect(address) else { return Ok(None) };
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    let body = ledger_event(id, 1).to_string();
    let head = format!(
        "POST /v2/events/bulk?source=ledger HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/x-ndjson\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let told = |part: &str, error: std::io::Error| std::io::Error::new(error.kind(), format!("{part}: {error}"));
    stream.write_all(head.as_bytes()).map_err(|error| told("head", error))?;
    stream.write_all(body.as_bytes()).map_err(|error| told("body", error))?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(|error| told(&format!("answer after {reply:?}"), error))?;
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Some(status.unwrap_or_else(|| panic!("not an answer: {reply:?}"))))
}

#[test]
fn a_drain_under_load_loses_nothing_and_breaks_no_connection() {
    let mut server = Server::start(&[("STARTER_PACK", "false")]);
    let mut all = Ledger::default();
    for round in 0..5 {
        // Connections that are kept, and others that are made anew for every request until nobody listens.
        let pace = Pace { workers: 4, events: 50, bytes: 200, until_refused: true };
        let load = Load::start(&server.url, &format!("kept-{round}"), pace);
        let address = server.url.trim_start_matches("http://").to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let fresh: Vec<_> = (0..4)
            .map(|worker| {
                let (address, stop) = (address.clone(), stop.clone());
                std::thread::spawn(move || {
                    let (mut ledger, mut broken) = (Ledger::default(), Vec::new());
                    for at in 0.. {
                        let id = format!("fresh-{round}-{worker}-{at}");
                        ledger.issued.insert(id.clone());
                        match ask_once(&address, &id) {
                            Ok(Some(200)) => drop(ledger.acknowledged.insert(id)),
                            Ok(Some(503 | 429)) => {}
                            Ok(Some(status)) => broken.push(format!("status {status}")),
                            Ok(None) => break,
                            Err(error) => broken.push(error.to_string()),
                        }
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    (ledger, broken)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let took = server.stop();
        assert!(took < Duration::from_secs(10), "the drain took {took:?}");
        stop.store(true, Ordering::Relaxed);
        for worker in fresh {
            let (ledger, broken) = worker.join().expect("a client");
            assert!(broken.is_empty(), "round {round}: {broken:?}");
            all.merge(ledger);
        }
        let kept = load.stop();
        // The last request of a kept connection is answered, or finds nobody; none breaks off.
        assert_eq!(kept.broken, 0, "round {round}: requests on kept connections broke off");
        all.merge(kept);
        server.run(&[("STARTER_PACK", "false")]);
    }
    assert!(all.acknowledged.len() > 500, "only {} events were acknowledged", all.acknowledged.len());
    all.agree(&mut server.client());
}
