//! Hostile statements at the door of a real server: each is answered within its bounds, no file is touched, the process and its memory
//! stay whole; and whoever leaves gives the CPU back.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use tidegate::cli::http::Reply;

use crate::hostile_text::statements;
use crate::server::{PATIENCE, Server, event};

/// What a statement may take.
const QUERY_MS_MAX: u64 = 1_000;
/// Until its answer is there, beyond that.
const GRACE: Duration = Duration::from_secs(1);
/// Memory of all queries together, and what the process may take beside it for one of them.
const POOL: u64 = 128 << 20;
const BESIDE: u64 = 256 << 20;

/// The code of a refusal, or `ok`.
fn code_of(reply: &Reply) -> String {
    let code = || reply.json()["error"]["code"].as_str().unwrap_or("none").to_owned();
    if reply.status.as_u16() == 200 { "ok".to_owned() } else { code() }
}

/// A server that bounds statements tightly, with some rows.
fn server() -> Server {
    let pool = POOL.to_string();
    let server = Server::start(&[
        ("STARTER_PACK", "false"),
        ("QUERY__QUERY_MS_MAX", &QUERY_MS_MAX.to_string()),
        ("QUERY__MEMORY_BYTES_MAX", &pool),
        ("QUERY__QUERY_MEMORY_BYTES_MAX", &pool),
        // What the pool does not see (DataFusion counts some of its memory late or not at all) is watched in the process.
        ("QUERY__RSS_GROWTH_BYTES_MAX", &BESIDE.to_string()),
    ]);
    let rows: Vec<_> = (0..2_000).map(|at| event(&format!("e-{at}"), "read")).collect();
    assert_eq!(server.client().bulk("/v2/events/bulk", &rows).json()["accepted"], 2_000);
    server
}

#[test]
fn hostile_statements_are_answered_within_their_bounds_at_the_door() {
    let server = server();
    let mut client = server.client();
    let folder = server.dir().join("canaries");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("canary"), "canary").expect("a file");
    client.number("SELECT count(*) FROM security_events");
    let (mut count, mut slowest, mut largest) = (0, Duration::ZERO, (0, String::new()));
    for (verdict, sql) in statements(&folder) {
        let shown: String = sql.chars().take(100).collect();
        // The allocator keeps what the statement before took for a second.
        let before = server.memory();
        server.forget_memory_peak();
        let mut ask = || {
            let started = Instant::now();
            (client.send("POST", "/v2/sql", &[("content-type", "text/plain")], sql.as_bytes()), started.elapsed())
        };
        let bound = Duration::from_millis(QUERY_MS_MAX) + GRACE;
        let (mut reply, mut took) = ask();
        // Which of the bounds a statement meets depends on the rows and on the machine, where it may run at all.
        let bounds = ["query_memory", "query_timeout", "result_too_large"];
        let may_run = verdict.split('/').any(|allowed| allowed == "ok" || bounds.contains(&allowed));
        if took > bound {
            // Another test may have had the processors.
            (reply, took) = ask();
        }
        if !may_run && code_of(&reply) == "query_memory" {
            // The memory of the process counts, and the statement before may not have given back all of its own yet.
            std::thread::sleep(Duration::from_secs(2));
            (reply, took) = ask();
        }
        assert!(took < bound, "{shown}: {took:?}");
        slowest = slowest.max(took);
        largest = largest.max((server.memory_peak().saturating_sub(before), shown.clone()));
        let status = reply.status.as_u16();
        assert!(status < 500 || status == 503, "{shown}: {:?}", reply.body);
        let code = code_of(&reply);
        let code = code.as_str();
        let right = verdict.split('/').any(|allowed| allowed == code)
            || matches!(code, "query_timeout" | "body_too_large")
            || (may_run && (code == "ok" || bounds.contains(&code)));
        assert!(right, "{shown}: {code}, not {verdict}: {:?}", &reply.body[..reply.body.len().min(300)]);
        let text = String::from_utf8_lossy(&reply.body);
        assert!(status != 200 || !(text.contains("root:") || text.contains("canary")), "{shown} read a file");
        count += 1;
    }
    let (more, shown) = largest;
    println!("{count} statements, the slowest {slowest:?}; at most {} MiB more, at {shown}", more >> 20);
    assert!(count >= 150, "{count} statements");
    assert!(more < POOL + BESIDE, "{more} bytes more at {shown}");
    assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 1, "a statement wrote a file");
    assert_eq!(client.number("SELECT count(*) FROM security_events"), 2_000);
}

#[test]
fn who_leaves_gives_the_cpu_back() {
    let server = Server::start(&[("STARTER_PACK", "false"), ("QUERY__QUERY_MS_MAX", "60000")]);
    let rows: Vec<_> = (0..20_000).map(|at| json!({"event_id": format!("e-{at}"), "n": at})).collect();
    assert_eq!(server.client().bulk("/v2/events/bulk", &rows).json()["accepted"], 20_000);
    let authority = server.url.trim_start_matches("http://").to_owned();
    for sql in [
        "SELECT count(*) FROM security_events a CROSS JOIN security_events b WHERE a.n * b.n % 7 = 3",
        "SELECT sum(length(repeat(event_id, 2000))) FROM security_events a CROSS JOIN (SELECT n FROM security_events LIMIT 2000) b",
        "SELECT count(*) FROM security_events a JOIN security_events b ON a.n < b.n AND a.event_id LIKE '%9' GROUP BY a.n % 3",
    ] {
        let mut stream = TcpStream::connect(&authority).expect("a connection");
        let head =
            format!("POST /v2/sql HTTP/1.1\r\nhost: {authority}\r\ncontent-type: text/plain\r\ncontent-length: ");
        write!(stream, "{head}{}\r\n\r\n{sql}", sql.len()).expect("sent");
        // It works: otherwise there would be nothing to give back.
        let (started, cpu) = (Instant::now(), server.cpu());
        while server.cpu() - cpu < Duration::from_millis(300) {
            assert!(started.elapsed() < PATIENCE, "it takes no CPU: {sql}");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(stream);
        std::thread::sleep(Duration::from_secs(1));
        let cpu = server.cpu();
        std::thread::sleep(Duration::from_secs(1));
        let took = server.cpu() - cpu;
        assert!(took < Duration::from_millis(150), "{took:?} of CPU in the second second after its client left: {sql}");
    }
}
