//! `send`: every form of file arrives whole; what the server or the network does, no event is lost or stored twice.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tidegate::cli::send::batches::{BatchBounds, Batches};
use tidegate::cli::send::progress::Progress;
use tidegate::cli::send::records::{Format, Records};
use tidegate::cli::send::{Summary, WINDOW_PER_CONNECTION, input, print, send, send_input};
use tidegate::config::Config;

use crate::cli_peer::{Act, Peer};

struct Scene {
    folder: TempDir,
    config: Config,
}

impl Scene {
    fn new(peer: &Peer) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::default();
        config.client.url = peer.url.clone();
        config.send.state_dir = Some(folder.path().join("state"));
        config.send.batch_events_max = 10;
        config.send.retry_s_max = 5;
        Self { folder, config }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    async fn send(&self, file: &Path) -> anyhow::Result<Summary> {
        send(&self.config, file, |_| Progress::Silent).await
    }

    fn journals(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("state/send")).map_or(0, Iterator::count)
    }
}

fn events(count: usize) -> Vec<String> {
    (0..count).map(|number| format!(r#"{{"n":{number},"text":"a \"quoted\" ] }} ü"}}"#)).collect()
}

fn sorted(mut events: Vec<String>) -> Vec<String> {
    events.sort();
    events
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

#[tokio::test]
async fn every_form_of_file_arrives_whole_and_at_the_right_door() {
    let events = events(47);
    let csv: Vec<String> =
        (0..47).map(|n| format!("{n}.5,2026-01-01T00:00:00Z,2026-01-01T01:00:00Z,\"a, \"\"b\"\"\"")).collect();
    let csv_text = format!("BilledCost,ChargePeriodStart,ChargePeriodEnd,ServiceName\r\n{}\r\n", csv.join("\r\n"));
    let pretty = |text: String| text.replace("{\"n\"", "{\n  \"n\"");
    let forms: Vec<(&str, Vec<u8>, &Vec<String>, &str)> = vec![
        ("ndjson", events.join("\n").into_bytes(), &events, "/v2/events/bulk"),
        (
            "ndjson with blank lines and CRLF",
            format!("\u{feff}{}\r\n\r\n", events.join("\r\n\r\n")).into_bytes(),
            &events,
            "/v2/events/bulk",
        ),
        ("array", format!(" [{}]\n", events.join(",\n")).into_bytes(), &events, "/v2/events/bulk"),
        ("pretty array", pretty(format!("[{}]", events.join(","))).into_bytes(), &events, "/v2/events/bulk"),
        (
            "Records",
            format!("{{\"Records\" : [{}], \"more\": {{}}}}", events.join(",")).into_bytes(),
            &events,
            "/v2/events/bulk",
        ),
        (
            "two documents",
            format!("{{\"events\":[{}]}}\n[{}]", events[..20].join(","), events[20..].join(",")).into_bytes(),
            &events,
            "/v2/events/bulk",
        ),
        ("csv", csv_text.into_bytes(), &csv, "/v2/costs/bulk"),
    ];
    for (name, bytes, wanted, path) in forms {
        for (packing, packed) in [
            ("plain", bytes.clone()),
            ("gzip", gzip(&bytes)),
            ("gzip in two members", [gzip(&bytes[..bytes.len() / 2]), gzip(&bytes[bytes.len() / 2..])].concat()),
            ("zstd", zstd::encode_all(&bytes[..], 1).expect("zstd")),
        ] {
            let peer = Peer::start(|_| Act::Take).await;
            let mut scene = Scene::new(&peer);
            scene.config.send.zstd = packing == "plain";
            scene.config.send.source = Some("my source".to_owned());
            let summary = scene
                .send(&scene.file("data", &packed))
                .await
                .unwrap_or_else(|error| panic!("{name}, {packing}: {error:#}"));
            assert_eq!(peer.sorted(), sorted(wanted.clone()), "{name}, {packing}");
            assert_eq!((summary.outcome.accepted, summary.outcome.duplicates), (47, 0), "{name}, {packing}");
            assert_eq!(peer.requests(), 5, "{name}, {packing}");
            let paths = &peer.seen.lock().expect("a lock").paths;
            assert!(paths.iter().all(|seen| *seen == format!("{path}?source=my%20source")), "{name}: {paths:?}");
            assert_eq!(scene.journals(), 0, "a finished file leaves no journal");
        }
    }
}

#[tokio::test]
async fn a_busy_or_broken_server_is_tried_again_and_nothing_is_stored_twice() {
    for act in [Act::Refuse(429), Act::Refuse(503), Act::Refuse(502), Act::HangUp, Act::TakeAndHangUp] {
        let peer = Peer::start(move |number| if number % 3 == 1 { act } else { Act::Take }).await;
        let scene = Scene::new(&peer);
        let events = events(95);
        let summary = scene.send(&scene.file("data", events.join("\n").as_bytes())).await.expect("sent");
        assert_eq!(peer.sorted(), sorted(events), "{act:?}");
        assert_eq!(summary.outcome.accepted + summary.outcome.duplicates, 95, "{act:?}");
        assert!(peer.requests() > 10, "{act:?}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_for_good_is_not_asked_again() {
    for (status, hint) in [(401, "TIDEGATE_CLIENT__KEY"), (413, "--batch-bytes"), (404, "--url"), (415, "415")] {
        let peer = Peer::start(move |_| Act::Refuse(status)).await;
        let mut scene = Scene::new(&peer);
        scene.config.send.connections = 1;
        let error = scene.send(&scene.file("data", events(30).join("\n").as_bytes())).await.expect_err("refused");
        assert!(format!("{error:#}").contains(hint), "{status}: {error:#}");
        assert_eq!(peer.requests(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_run_that_was_cut_off_resumes_without_gaps_or_repeats() {
    for connections in [1, 4] {
        for at in [0, 1, 5, 17] {
            for act in [Act::HangUp, Act::TakeAndHangUp] {
                let peer = Peer::start(
                    move |number| if number == at || (at < number && number < at + 4) { act } else { Act::Take },
                )
                .await;
                let mut scene = Scene::new(&peer);
                scene.config.send.connections = connections;
                scene.config.send.retry_s_max = 0;
                let wanted = events(200);
                let file = scene.file("data", &gzip(wanted.join("\n").as_bytes()));
                let what = format!("{connections} connections, {act:?} at {at}");
                let error = scene.send(&file).await.expect_err("cut off");
                assert!(format!("{error:#}").contains("run the same command again"), "{what}: {error:#}");
                assert_eq!(scene.journals(), 1, "{what}");
                let before = peer.requests();
                // The last run's flags do not matter for how the rest is cut.
                scene.config.send.batch_events_max = 7;
                let mut summary = scene.send(&file).await;
                for _ in 0..3 {
                    if summary.is_err() {
                        summary = scene.send(&file).await;
                    }
                }
                let summary = summary.unwrap_or_else(|error| panic!("{what}: {error:#}"));
                assert_eq!(peer.sorted(), sorted(wanted), "{what}");
                assert_eq!(summary.outcome.accepted + summary.outcome.duplicates, 200, "{what}");
                if connections == 1 && at > 0 {
                    assert!(summary.resumed_at > 0, "{what}: started from the beginning");
                    assert!(peer.requests() - before <= 20 - at + 4, "{what}: what was noted is not sent again");
                }
                assert_eq!(scene.journals(), 0, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn restart_sends_again_and_a_changed_file_is_another_file() {
    let peer = Peer::start(|number| if number == 3 { Act::HangUp } else { Act::Take }).await;
    let mut scene = Scene::new(&peer);
    (scene.config.send.connections, scene.config.send.retry_s_max) = (1, 0);
    let file = scene.file("data", events(60).join("\n").as_bytes());
    scene.send(&file).await.expect_err("cut off");
    scene.config.send.restart = true;
    let summary = scene.send(&file).await.expect("sent");
    assert_eq!((summary.resumed_at, summary.outcome.duplicates, summary.outcome.accepted), (0, 30, 30));
    scene.config.send.restart = false;
    let longer = scene.file("data", events(61).join("\n").as_bytes());
    let summary = scene.send(&longer).await.expect("sent");
    assert_eq!((summary.outcome.duplicates, summary.outcome.accepted), (60, 1), "the old part is known by its content");
}

#[tokio::test]
async fn refused_events_are_counted_and_told_with_their_place_in_the_file() {
    let peer = Peer::start(|number| if number == 2 { Act::Reject(4) } else { Act::Take }).await;
    let mut scene = Scene::new(&peer);
    scene.config.send.connections = 1;
    let summary = scene.send(&scene.file("data", events(40).join("\n").as_bytes())).await.expect("sent");
    assert_eq!((summary.outcome.accepted, summary.outcome.rejected), (39, 1));
    assert_eq!(summary.outcome.reasons, ["event 25: invalid_json: not JSON"]);
    let mut text = Vec::new();
    print(&summary, &mut text).expect("printed");
    let text = String::from_utf8(text).expect("text");
    assert!(
        text.contains("39 events stored, 0 duplicates, 1 rejected") && text.contains("rejected event 25"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_no_file_of_events_is_refused_with_a_hint() {
    let peer = Peer::start(|_| Act::Take).await;
    let scene = Scene::new(&peer);
    for (name, bytes, hint) in [
        ("text", &b"hello world\n"[..], "FOCUS"),
        ("other csv", b"a,b,c\n1,2,3\n", "FOCUS"),
        ("utf-16", b"\xff\xfe{\0}\0", "UTF-16"),
        ("cut array", b"[{\"a\":1},{\"a\":", "cut off"),
        ("no array", b"[{\"a\":1}] x", "expected an array"),
        ("brace in array", b"[{\"a\":1} }", "expected an event"),
        ("cut gzip", &gzip(events(500).join("\n").as_bytes())[..200], "cannot read the input"),
    ] {
        let error = scene.send(&scene.file(name, bytes)).await.expect_err(name);
        assert!(format!("{error:#}").contains(hint), "{name}: {error:#}");
    }
    let error = scene.send(&scene.folder.path().join("missing")).await.expect_err("missing");
    assert!(format!("{error:#}").contains("cannot open"), "{error:#}");
    let summary = scene.send(&scene.file("empty", b"")).await.expect("an empty file");
    assert_eq!(summary.events, 0);
}

/// Endless lines, counted.
struct Lines {
    read: Arc<AtomicU64>,
    line: Cursor<Vec<u8>>,
}

impl Read for Lines {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.line.position() == self.line.get_ref().len() as u64 {
            self.line.set_position(0);
        }
        let read = self.line.read(buf)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[tokio::test]
async fn a_stalled_server_stops_the_reading() {
    let peer = Peer::start(|_| Act::Stall(60_000)).await;
    let mut scene = Scene::new(&peer);
    (scene.config.send.connections, scene.config.send.batch_bytes_max) = (2, 64 * 1024);
    scene.config.send.batch_events_max = 1_000_000;
    let read = Arc::new(AtomicU64::new(0));
    let line = Cursor::new([&b"{\"a\":\""[..], &[b'x'; 900], b"\"}\n"].concat());
    let input = input::from_reader(Lines { read: read.clone(), line }, None).expect("an input");
    let sending = send_input(&scene.config, input, |_| Progress::Silent);
    assert!(tokio::time::timeout(Duration::from_millis(700), sending).await.is_err(), "it cannot be done");
    let bound = (2 * WINDOW_PER_CONNECTION + 2) as u64 * 64 * 1024 + 2 * 256 * 1024;
    let read = read.load(Ordering::Relaxed);
    assert!((64 * 1024..=bound).contains(&read), "{read} bytes read, bound {bound}");
}

/// Hands out one byte after the other.
struct Slow<R>(R);

impl<R: Read> Read for Slow<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let bytes = buf.len().min(1);
        self.0.read(&mut buf[..bytes])
    }
}

#[test]
fn batches_are_the_same_however_the_bytes_come_and_wherever_a_run_resumes() {
    let bounds = BatchBounds { events_max: 3, bytes_max: 120 };
    let events = events(23);
    for (text, format) in [
        (events.join("\n"), Format::Ndjson),
        (format!("{{\"Records\":[{}]}}[{}]", events.join(" , "), events.join(",")), Format::Array),
        (format!("BilledCost,EffectiveCost,Tags\n{}", "1,2,\"a\nb\"\n".repeat(23)), Format::Csv),
    ] {
        let cut = |resume: Option<(u64, u64)>, slow: bool| {
            let reader: Box<dyn Read> = if slow { Box::new(Slow(text.as_bytes())) } else { Box::new(text.as_bytes()) };
            let records = Records::new(reader, 1 << 20).expect("records");
            assert_eq!(records.format(), format);
            let mut batches = Batches::new(records, bounds, "here".to_owned(), Arc::default());
            if let Some((position, first)) = resume {
                batches.resume(position, first).expect("resumed");
            }
            std::iter::from_fn(move || batches.next_batch().expect("a batch")).collect::<Vec<_>>()
        };
        let whole = cut(None, false);
        let shape = |batches: &[tidegate::cli::send::batches::Batch]| -> Vec<_> {
            batches
                .iter()
                .map(|batch| (batch.end, batch.first_record, batch.records, batch.key.clone(), batch.body.clone()))
                .collect()
        };
        assert_eq!(shape(&whole), shape(&cut(None, true)), "{format:?}: one byte after the other");
        let keys: std::collections::HashSet<_> = whole.iter().map(|batch| &batch.key).collect();
        assert_eq!(keys.len(), whole.len(), "{format:?}: the same content elsewhere is another batch");
        for (at, batch) in whole.iter().enumerate() {
            assert!(batch.records <= 3 && (batch.body.len() <= 160 || batch.records == 1), "{format:?}");
            let rest = cut(Some((batch.end, batch.first_record + batch.records)), false);
            assert_eq!(shape(&whole[at + 1..]), shape(&rest), "{format:?}: resumed after batch {at}");
        }
    }
}
