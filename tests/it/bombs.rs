//! Bodies that inflate a thousandfold, in every encoding and nested: refused with 413, at a bounded cost of time and memory.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::server::{Server, event};

/// What a bomb inflates to.
const INFLATED: usize = 1 << 30;

/// CPU time of the server for one bomb.
const CPU_MAX: Duration = Duration::from_millis(200);
/// Memory of the server beyond what it had, at its peak.
const MEMORY_MAX: u64 = 64 << 20;

/// The same for many at once: what all bodies may hold together, by default.
const ALL_MAX: u64 = 384 << 20;

fn filled(mut encoder: impl Write) {
    // JSON as far as a decoder would look: one event that does not end.
    encoder.write_all(b"{\"a\":\"").expect("memory");
    let part = vec![b' '; 1 << 20];
    for _ in 0..INFLATED >> 20 {
        encoder.write_all(&part).expect("memory");
    }
}

fn gzip_of(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn a_thousandfold_body_is_refused_at_a_bounded_cost_in_every_encoding() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    filled(&mut gzip);
    let gzip = gzip.finish().expect("memory");
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::default());
    filled(&mut deflate);
    let deflate = deflate.finish().expect("memory");
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    filled(&mut zstd);
    let zstd = zstd.finish().expect("memory");
    let cases: [(&str, Vec<u8>); 6] = [
        ("gzip, gzip", gzip_of(&gzip)),
        ("gzip, gzip, gzip", gzip_of(&gzip_of(&gzip))),
        ("zstd, gzip", gzip_of(&zstd)),
        ("gzip", gzip),
        ("deflate", deflate),
        ("zstd", zstd),
    ];
    let server = Server::start(&[("STARTER_PACK", "false")]);
    let mut client = server.client();
    client.bulk("/v2/events/bulk", &[event("first", "x")]);
    for (encoding, body) in &cases {
        assert!(body.len() < 6 << 20, "{encoding}: {} bytes is no bomb", body.len());
        let (cpu, memory) = (server.cpu(), server.memory());
        server.forget_memory_peak();
        let headers = [("content-type", "application/x-ndjson"), ("content-encoding", encoding)];
        let reply = client.send("POST", "/v2/events/bulk", &headers, body);
        let (cpu, memory) = (server.cpu() - cpu, server.memory_peak().saturating_sub(memory));
        println!("{encoding}: {} bytes: {}, {cpu:?} of CPU, {} MiB more", body.len(), reply.status, memory >> 20);
        // How many layers may be is a bound, too.
        let refused = reply.status.as_u16();
        assert!(matches!(refused, 413 | 415), "{encoding}: {:?}", reply.body);
        assert!(cpu < CPU_MAX, "{encoding}: {cpu:?} of CPU");
        assert!(memory < MEMORY_MAX, "{encoding}: {memory} bytes more");
    }
    // At every door and in every form.
    let (encoding, body) = &cases[5];
    for (path, form) in [
        ("/v2/events", "application/json"),
        ("/v2/events/bulk", "application/json"),
        ("/v2/events/bulk", "application/vnd.apache.arrow.stream"),
        ("/v2/costs/bulk", "application/x-ndjson"),
        ("/v2/costs/bulk", "text/csv"),
    ] {
        let (cpu, memory) = (server.cpu(), server.memory());
        server.forget_memory_peak();
        let headers = [("content-type", form), ("content-encoding", *encoding)];
        let reply = client.send("POST", path, &headers, body);
        let (cpu, memory) = (server.cpu() - cpu, server.memory_peak().saturating_sub(memory));
        assert_eq!(reply.status.as_u16(), 413, "{path} as {form}: {:?}", reply.body);
        assert!(cpu < CPU_MAX && memory < MEMORY_MAX, "{path} as {form}: {cpu:?}, {memory} bytes more");
    }
    // Many at once stay within the bound of all bodies together.
    let memory = server.memory();
    server.forget_memory_peak();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let (encoding, body) = &cases[5];
                let headers = [("content-type", "application/x-ndjson"), ("content-encoding", *encoding)];
                let refused = server.client().send("POST", "/v2/events/bulk", &headers, body).status.as_u16();
                assert!(matches!(refused, 413 | 429), "{refused}");
            });
        }
    });
    let more = server.memory_peak().saturating_sub(memory);
    println!("12 at once: {} MiB more", more >> 20);
    assert!(more < ALL_MAX, "{more} bytes more");
    assert_eq!(client.bulk("/v2/events/bulk", &[event("last", "x")]).status.as_u16(), 200);
    assert_eq!(client.number("SELECT count(*) FROM security_events"), 2);
}
