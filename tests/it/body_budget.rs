//! Bodies that are no events (statements, rules, analyses) have a budget together: many large ones that do not end are turned away
//! beyond it, small ones still get through, and events are not concerned.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::server::{Server, event};

/// Bytes of a body that wants one more.
const BODY: usize = (6 << 20) - 1;
/// Clients that send one and wait.
const CLIENTS: usize = 60;
/// What the server holds of them: its budget, and half as much for buffers that grow.
const MEMORY_MAX: u64 = 192 << 20;

/// Sends all of a body but its end; what was answered while the client waits.
fn unended(authority: &str, path: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(authority).expect("a connection");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        BODY + 1
    );
    // Who is turned away early may find the connection closed while it still sends.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b' '; BODY]));
    stream.set_read_timeout(Some(Duration::from_secs(4))).expect("a timeout");
    let mut answer = [0; 512];
    let read = stream.read(&mut answer).unwrap_or_default();
    (stream, String::from_utf8_lossy(&answer[..read]).into_owned())
}

#[test]
fn bodies_that_are_no_events_are_bounded_together() {
    let server = Server::start(&[("STARTER_PACK", "false")]);
    let mut client = server.client();
    client.bulk("/v2/events/bulk", &[event("first", "x")]);
    let authority = server.url.trim_start_matches("http://").to_owned();
    let before = server.memory();
    server.forget_memory_peak();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let authority = authority.clone();
            std::thread::spawn(move || unended(&authority, "/v2/threat-detection/rules/validate"))
        })
        .collect();
    let clients: Vec<_> = clients.into_iter().map(|client| client.join().expect("a client")).collect();
    let refused = clients.iter().filter(|(_, answer)| answer.contains(" 429 ")).count();
    let waiting = clients.iter().filter(|(_, answer)| answer.is_empty()).count();
    let more = server.memory_peak().saturating_sub(before);
    println!("{refused} refused, {waiting} waiting; {} MiB more", more >> 20);
    assert!(refused > CLIENTS / 2, "{refused} of {CLIENTS} refused");
    assert!(waiting > 5, "{waiting} of {CLIENTS} wait");
    assert!(more < MEMORY_MAX, "{more} bytes more");
    // Small bodies use what is kept for them; events have a budget of their own.
    assert_eq!(client.number("SELECT count(*) FROM security_events"), 1);
    assert_eq!(client.bulk("/v2/events/bulk", &[event("second", "x")]).status.as_u16(), 200);
    drop(clients);
    let rule = "title: A\nid: 7c2c7d0e-6f0b-4a3e-9a53-0f5d4a1f1c01\nlogsource: {product: x}\ndetection: {s: {a: 1}, condition: s}\n";
    let mut large = rule.as_bytes().to_vec();
    large.resize(512 << 10, b'\n');
    let started = std::time::Instant::now();
    while client.send("POST", "/v2/threat-detection/rules/validate", &[], &large).status.as_u16() != 200 {
        assert!(started.elapsed() < crate::server::PATIENCE, "the budget is not given back");
        std::thread::sleep(Duration::from_millis(50));
    }
}
