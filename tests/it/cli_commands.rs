//! The commands against a real server: send, sql, tail, key, log.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate::story::{Kind, Story, StoryOptions};

use crate::server::{PATIENCE, Server, tidegate};

fn run(server: &Server, args: &[&str], input: &str) -> Output {
    let mut command = tidegate(args);
    command.env("TIDEGATE_CLIENT__URL", &server.url).env("XDG_STATE_HOME", server.dir());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().expect("an input").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn said(server: &Server, args: &[&str], input: &str) -> String {
    let output = run(server, args, input);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The story's records of one kind, one a line.
fn lines(kind: Kind, events: usize) -> String {
    let story = Story::new(StoryOptions { seed: 5, events, end_us: 1_790_000_000_000_000 });
    story.filter(|item| item.kind == kind).map(|item| item.line + "\n").collect()
}

#[test]
fn what_is_sent_is_answered_in_every_format_and_stands_in_the_log() {
    let server = Server::start(&[]);
    let trail = lines(Kind::CloudTrail, 3_000);
    let count = trail.lines().count();
    let file = server.dir().join("trail.ndjson");
    std::fs::write(&file, &trail).expect("a file");
    let file = file.to_string_lossy();
    let told = said(&server, &["send", "--source", "cloudtrail", "--batch-events", "100", &file], "");
    assert!(told.starts_with(&format!("{count} events stored, 0 duplicates, 0 rejected")), "{told}");
    let told = said(&server, &["send", "--source", "cloudtrail", &file], "");
    assert!(told.contains(&format!("0 events stored, {count} duplicates")), "{told}");
    let told = said(&server, &["send", "-", "--dataset", "cost_events"], &lines(Kind::Focus, 1_000));
    assert!(told.contains(" 0 duplicates, 0 rejected"), "{told}");

    let question = "SELECT source, count(*) AS n FROM security_events GROUP BY source";
    let table = said(&server, &["sql", question], "");
    assert!(table.contains("source     │ n") && table.contains(&format!("cloudtrail │ {count}")), "{table}");
    let json: Value = serde_json::from_str(&said(&server, &["sql", "--format", "json", question], "")).expect("JSON");
    assert_eq!(json[0]["n"], count, "{json}");
    assert_eq!(
        said(&server, &["sql", "--format", "csv"], &format!("{question};")),
        format!("source,n\ncloudtrail,{count}\n")
    );
    let refused = run(&server, &["sql", "SELEC 1"], "");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the server answered 400"));

    let data = server.data_dir();
    let data = data.to_string_lossy();
    assert!(said(&server, &["log", "verify", "--data-dir", &data], "").contains(" 0 damaged places, 0 rows lost"));
    let dumped = said(&server, &["log", "dump", "--data-dir", &data, "--rows", "0"], "");
    let stored = dumped.lines().filter(|line| line.contains("\"dataset\":\"security_events\"")).count();
    assert_eq!(stored, count, "every event is in the log once");
}

#[test]
fn a_refused_event_makes_send_fail_and_is_named() {
    let server = Server::start(&[]);
    let output = run(&server, &["send", "-"], "{\"a\":1}\n{\"b\":\n{\"c\":3}\n");
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.starts_with("2 events stored, 0 duplicates, 1 rejected") && told.contains("rejected event 2: "),
        "{told}"
    );
}

/// Runs a server on this address until it is told to stop.
struct Fixed {
    child: Child,
}

impl Fixed {
    fn start(address: &str, data: &Path) -> Self {
        let data = data.to_string_lossy();
        let mut command = tidegate(&["serve", "--listen", address, "--data-dir", &data]);
        // The second of two like events is told of at once.
        command.env("TIDEGATE_SIGMA__SUPPRESS_S", "0");
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the server is not up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child }
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }
}

#[test]
fn tail_goes_on_over_a_restart_of_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    // Free a moment ago; a service comes back at the address it had.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address").to_string();
    drop(free);
    let url = format!("http://{address}");
    let server = Fixed::start(&address, folder.path());
    let mut command = tidegate(&["tail", "--json", "--after", "-1", "--url", &url]);
    let mut tail = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut alerts = BufReader::new(tail.stdout.take().expect("an output")).lines();
    let mut next = || -> u64 {
        let line = alerts.next().expect("an alert").expect("text");
        serde_json::from_str::<Value>(&line).expect("JSON")["seq"].as_u64().expect("a seq")
    };
    let stop_logging = |id: &str| {
        let event = format!(
            r#"{{"eventVersion":"1.08","eventSource":"cloudtrail.amazonaws.com","eventName":"StopLogging","awsRegion":"eu-west-1","eventTime":"2026-01-01T00:00:00Z","eventID":"{id}","requestParameters":{{"name":"t"}}}}"#
        );
        let mut command = tidegate(&["send", "-", "--source", "cloudtrail", "--url", &url]);
        let mut send = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
        send.stdin.take().expect("an input").write_all(event.as_bytes()).expect("written");
        assert!(send.wait().expect("it ends").success());
    };
    stop_logging("one");
    let first = next();
    drop(server);
    let _server = Fixed::start(&address, folder.path());
    stop_logging("two");
    assert_eq!(next(), first + 1, "no gap and no repeat");
    tail.kill().expect("it is ours");
    tail.wait().expect("it ends");
}

#[test]
fn keys_are_made_by_the_running_server_or_without_it() {
    let mut server = Server::start(&[]);
    let data = server.data_dir();
    let data = data.to_string_lossy().into_owned();
    let key = |args: &[&str], server: &Server| said(server, &[&["key"], args, &["--data-dir", &data]].concat(), "");
    let made = key(&["create", "--org", "acme", "--role", "read"], &server);
    let refused = run(&server, &["sql", "SELECT 1"], "");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("401"), "with a key, nobody is let in without one");
    assert!(said(&server, &["sql", "SELECT 1 AS one", "--key", made.trim()], "").contains("one"));
    let id = key(&["list"], &server).lines().nth(1).expect("a key").split(' ').next().expect("an id").to_owned();
    assert!(key(&["revoke", &id], &server).starts_with("revoked"));
    let refused = run(&server, &["sql", "SELECT 1", "--key", made.trim()], "");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("401"), "it stops working at once");
    // A server that was killed leaves its file behind.
    server.kill();
    key(&["create", "--org", "acme", "--role", "ingest"], &server);
    assert_eq!(key(&["list"], &server).lines().count(), 3);
}
