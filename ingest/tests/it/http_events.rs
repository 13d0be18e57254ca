//! The endpoints that take events, over real sockets, in front of a log whose answers the test decides.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::ipc::writer::StreamWriter;
use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::{Request, Response};
use tidegate_events::Dataset;
use tidegate_ingest::batcher::{Batcher, BatcherConfig, Partitions};
use tidegate_ingest::decode::DecodeConfig;
use tidegate_ingest::http::{HttpConfig, Ingest, IngestConfig, ReplyBody};
use tidegate_ingest::mapping::Mappings;
use tidegate_pipeline::keys::{Principal, Role};
use tidegate_pipeline::{Ack, Health};

use crate::http_log::{Mood, TestLog};
use crate::http_wire::{Answer, Server};

pub struct Door {
    pub server: Server,
    pub log: Arc<TestLog>,
    batcher: Arc<Batcher>,
    pub ingest: Arc<Ingest>,
    health: Health,
}

async fn answer(ingest: Arc<Ingest>, request: Request<Incoming>) -> Response<ReplyBody> {
    // The binary takes the tenant from the key; here a header stands for it.
    let org = request.headers().get(HeaderName::from_static("org")).and_then(|org| org.to_str().ok()).unwrap_or("acme");
    let principal = Principal { org_id: org.into(), role: Role::Ingest, key_id: "k".into() };
    ingest.handle(request, &principal, "req-1").await
}

impl Door {
    pub async fn open(config: IngestConfig, batcher: BatcherConfig) -> Self {
        Self::open_on(config, batcher, |log| Partitions::one(log)).await
    }

    async fn open_on(
        config: IngestConfig,
        batcher: BatcherConfig,
        partitions: impl FnOnce(Arc<TestLog>) -> Partitions,
    ) -> Self {
        let log = TestLog::new();
        let health = Health::default();
        let mappings = Arc::new(Mappings::builtin().expect("mappings"));
        let decode = (mappings, DecodeConfig::default());
        let runtime = tokio::runtime::Handle::current();
        let batcher = Batcher::start(&batcher, decode, partitions(log.clone()), runtime, &health).expect("threads");
        let batcher = Arc::new(batcher);
        let ingest = Arc::new(Ingest::new(batcher.clone(), &config));
        let routes = {
            let ingest = ingest.clone();
            move |request| answer(ingest.clone(), request)
        };
        let server = Server::start(HttpConfig::default(), routes).await;
        Self { server, log, batcher, ingest, health }
    }

    pub async fn with_defaults() -> Self {
        Self::open(IngestConfig::default(), BatcherConfig { decode_threads: 1, ..BatcherConfig::default() }).await
    }

    pub async fn post(&self, path: &str, headers: &str, body: &[u8]) -> Answer {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        self.server.ask(&[head.as_bytes(), body].concat()).await
    }

    /// All values of a text column of what was stored in a dataset.
    pub fn texts(&self, dataset: Dataset, column: &str) -> Vec<String> {
        let stored = self.log.stored();
        let of = stored.iter().filter(|(_, batch)| batch.dataset == dataset);
        let columns = of.filter_map(|(_, batch)| batch.rows.column_by_name(column).cloned());
        columns
            .flat_map(|column| column.as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

fn event(id: &str) -> String {
    format!(r#"{{"_id":"{id}","time":"2026-01-02T03:04:05Z","message":"m{id}"}}"#)
}

fn lines(ids: &[&str]) -> String {
    ids.iter().map(|id| event(id) + "\n").collect()
}

fn arrow_stream() -> Vec<u8> {
    let texts = |name: &str, values: [&str; 2]| -> (String, ArrayRef) {
        (name.to_owned(), Arc::new(StringArray::from(values.to_vec())))
    };
    let batch = [texts("_id", ["a", "b"]), texts("message", ["x", "y"])];
    let batch = RecordBatch::try_from_iter(batch).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("memory");
    writer.write(&batch).expect("memory");
    writer.into_inner().expect("memory")
}

pub fn encoded(encoding: &str, body: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(&mut sent, flate2::Compression::fast());
            encoder.write_all(body).expect("memory");
            encoder.finish().expect("memory");
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(&mut sent, flate2::Compression::fast());
            encoder.write_all(body).expect("memory");
            encoder.finish().expect("memory");
        }
        "zstd" => sent = zstd::encode_all(body, 1).expect("memory"),
        _ => sent = body.to_vec(),
    }
    sent
}

#[tokio::test]
async fn each_form_goes_in_in_each_encoding() {
    let door = Door::with_defaults().await;
    let array = format!("[{},{}]", event("a"), event("b"));
    let wrapped = format!("{{\"events\":[{},{}]}}", event("a"), event("b"));
    let csv =
        "BilledCost,ChargePeriodStart,ServiceName\n1.25,2026-01-01T00:00:00Z,compute\n2,2026-01-01T00:00:00Z,disk\n";
    let forms: [(&str, &str, Vec<u8>, i32); 7] = [
        ("/v2/events", "application/json", event("a").into(), 1),
        ("/v2/events/bulk", "application/json", array.into(), 2),
        ("/v2/events/bulk", "application/json", wrapped.into(), 2),
        ("/v2/events/bulk", "application/x-ndjson", lines(&["a", "b", "c"]).into(), 3),
        ("/v2/events/bulk?dataset=cost_events", "application/json", r#"[{"BilledCost":1}]"#.into(), 1),
        ("/v2/costs/bulk", "text/csv", csv.into(), 2),
        ("/v2/events/bulk", "application/vnd.apache.arrow.stream", arrow_stream(), 2),
    ];
    let mut tenant = 0;
    for (path, content_type, body, items) in &forms {
        for encoding in ["identity", "gzip", "zstd", "deflate"] {
            tenant += 1;
            let sent = encoded(encoding, body);
            let headers = format!("Org: t{tenant}\r\nContent-Type: {content_type}\r\nContent-Encoding: {encoding}\r\n");
            let sized = door.post(path, &headers, &sent).await;
            assert_eq!(sized.status, 200, "{path} {content_type} {encoding}: {sized:?}");
            assert_eq!(sized.json()["accepted"], *items, "{path} {content_type} {encoding}: {sized:?}");
            assert_eq!(sized.header("tidegate-ack"), Some("disk"));
            assert_eq!(sized.header("x-request-id"), Some("req-1"));
            tenant += 1;
            let mut chunked = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nOrg: t{tenant}\r\nContent-Type: {content_type}\r\n\
                 Content-Encoding: {encoding}\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            .into_bytes();
            for chunk in sent.chunks(7) {
                chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                chunked.extend_from_slice(chunk);
                chunked.extend_from_slice(b"\r\n");
            }
            chunked.extend_from_slice(b"0\r\n\r\n");
            let chunked = door.server.ask(&chunked).await;
            assert_eq!(chunked.json()["accepted"], *items, "chunked {path} {encoding}: {chunked:?}");
        }
    }
    assert_eq!(door.ingest.inflight().used_bytes(), 0, "everything was given back");
}

#[tokio::test]
async fn encodings_on_one_another_are_undone_in_order() {
    let door = Door::with_defaults().await;
    let sent = encoded("zstd", &encoded("gzip", lines(&["a", "b"]).as_bytes()));
    let answer = door.post("/v2/events/bulk", "Content-Encoding: gzip, zstd\r\n", &sent).await;
    assert_eq!(answer.json()["accepted"], 2, "{answer:?}");
    let answer = door.post("/v2/events/bulk", "Content-Encoding: zstd, gzip\r\n", &sent).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("invalid_encoding")));
}

#[tokio::test]
async fn a_bomb_is_too_large_also_under_the_default_bounds() {
    let door = Door::with_defaults().await;
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..300 {
        bomb.write_all(&vec![b' '; 1 << 20]).expect("memory");
    }
    let bomb = bomb.finish().expect("memory");
    let answer = door.post("/v2/events/bulk", "Content-Encoding: gzip\r\n", &bomb).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (413, Some("body_too_large")));
    // What is only compressed very well goes in.
    let dense = format!("{}{}", event("a"), " ".repeat(20 << 20));
    let sent = encoded("gzip", dense.as_bytes());
    let answer = door.post("/v2/events/bulk", "Content-Encoding: gzip\r\n", &sent).await;
    assert_eq!(answer.json()["accepted"], 1, "{answer:?}");
    assert_eq!(door.ingest.inflight().used_bytes(), 0);
}

#[tokio::test]
async fn a_reply_says_what_became_of_each_item() {
    let door = Door::with_defaults().await;
    let body = format!("{}not json\n{}", lines(&["a"]), lines(&["b", "a"]));
    let answer = door.post("/v2/events/bulk?detail=all", "", body.as_bytes()).await;
    assert_eq!(answer.status, 207, "{answer:?}");
    let reply = answer.json();
    assert_eq!((&reply["accepted"], &reply["duplicates"], &reply["rejected"]), (&2.into(), &1.into(), &1.into()));
    let items: Vec<_> = reply["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| (item["index"].as_u64(), item["status"].as_str(), item["event_id"].as_str()))
        .collect();
    let expected = [
        (Some(0), Some("stored"), Some("a")),
        (Some(1), Some("rejected"), None),
        (Some(2), Some("stored"), Some("b")),
        (Some(3), Some("duplicate"), Some("a")),
    ];
    assert_eq!(items, expected);
    assert!(reply["items"][1]["code"].is_string() && reply["items"][1]["reason"].is_string(), "{reply}");
    assert_eq!(door.texts(Dataset::DeadLetters, "request_id"), ["req-1"]);

    let brief = door.post("/v2/events/bulk", "", body.as_bytes()).await.json();
    assert_eq!(brief["items"].as_array().map(Vec::len), Some(1), "only what is not stored: {brief}");
    assert_eq!((&brief["accepted"], &brief["duplicates"]), (&0.into(), &3.into()));

    let all_wrong = door.post("/v2/events/bulk", "", b"nothing\nof this\n").await;
    assert_eq!(all_wrong.status, 400);
    let reply = all_wrong.json();
    assert_eq!((&reply["rejected"], &reply["error"]["code"]), (&2.into(), &"all_rejected".into()), "{reply}");
    assert_eq!(reply["request_id"], "req-1");
    assert_eq!(all_wrong.header("tidegate-ack"), None, "nothing is acknowledged");

    let duplicate = door.post("/v2/events", "", event("a").as_bytes()).await;
    assert_eq!((duplicate.status, &duplicate.json()["duplicates"]), (200, &1.into()));
}

#[tokio::test]
async fn bodies_without_an_event_are_told_apart() {
    let door = Door::with_defaults().await;
    assert_eq!(door.post("/v2/events/bulk", "", b"").await.json()["error"]["code"], "empty_body");
    let none = door.post("/v2/events/bulk", "", b"[]").await;
    assert_eq!((none.status, &none.json()["accepted"]), (200, &0.into()), "{none:?}");
    assert_eq!(door.log.appends(), 0, "nothing to append");
}

#[tokio::test]
async fn an_idempotency_key_makes_ids() {
    let door = Door::with_defaults().await;
    let body = b"{\"message\":\"x\"}\n{\"message\":\"y\"}\n";
    let first = door.post("/v2/events/bulk", "Idempotency-Key: batch-7\r\n", body).await.json();
    let again = door.post("/v2/events/bulk", "Idempotency-Key: batch-7\r\n", body).await.json();
    assert_eq!((&first["accepted"], &again["accepted"], &again["duplicates"]), (&2.into(), &0.into(), &2.into()));
    let other = door.post("/v2/events/bulk", "Idempotency-Key: batch-7\r\nOrg: umbrella\r\n", body).await.json();
    assert_eq!(other["accepted"], 2, "another tenant's key is another key");
}

#[tokio::test]
async fn the_ack_level_that_is_asked_for_reaches_the_log_and_the_reply() {
    let door = Door::with_defaults().await;
    for (query, ack) in [("", Ack::Disk), ("?ack=disk", Ack::Disk), ("?ack=memory", Ack::Memory)] {
        let answer = door.post(&format!("/v2/events/bulk{query}"), "", b"{\"a\":1}").await;
        assert_eq!(answer.header("tidegate-ack"), Some(ack.as_str()));
        assert_eq!(door.log.stored().last().expect("stored").0, ack);
    }
}

#[tokio::test]
async fn refused_requests_say_why_and_what_to_do() {
    let config = IngestConfig { body_bytes_max: 1000, ..IngestConfig::default() };
    let batcher = BatcherConfig { decode_threads: 1, inflated_bytes_max: 5000, ..BatcherConfig::default() };
    let door = Door::open(config, batcher).await;
    let bomb = encoded("gzip", &vec![b' '; 100_000]);
    let bomb_zstd = encoded("zstd", &vec![b' '; 10_000_000]);
    let large = vec![b' '; 1001];
    let cases: [(&str, &str, &[u8], u16, &str); 10] = [
        ("/v2/events/bulk", "", &large, 413, "body_too_large"),
        ("/v2/events/bulk", "Content-Encoding: gzip\r\n", &bomb, 413, "body_too_large"),
        ("/v2/events/bulk", "Content-Encoding: zstd\r\n", &bomb_zstd, 413, "body_too_large"),
        ("/v2/events/bulk", "Content-Encoding: zstd\r\n", b"no zstd", 400, "invalid_encoding"),
        ("/v2/events/bulk", "Content-Encoding: br\r\n", b"{}", 415, "unsupported_content_encoding"),
        ("/v2/events/bulk", "Content-Type: text/plain\r\n", b"{}", 415, "unsupported_content_type"),
        ("/v2/events/bulk?sorce=x", "", b"{}", 400, "unknown_parameter"),
        ("/v2/events/bulk?source=%2e%2e%2fx", "", b"{}", 400, "invalid_parameter"),
        ("/v2/events/bulk?dataset=changes", "", b"{}", 400, "invalid_parameter"),
        ("/v2/nothing", "", b"{}", 404, "not_found"),
    ];
    for (path, headers, body, status, code) in cases {
        let answer = door.post(path, headers, body).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)), "{path} {headers}");
        assert!(!answer.json()["error"]["hint"].as_str().unwrap_or_default().is_empty(), "{answer:?}");
        assert_eq!(answer.json()["request_id"], "req-1");
    }
    let get = door.server.ask(b"GET /v2/events/bulk HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    // Chunked, the length is only known as it comes.
    let mut chunked = b"POST /v2/events/bulk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(b"64\r\n");
        chunked.extend_from_slice(&[b' '; 100]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(door.server.ask(&chunked).await.status, 413);
    assert_eq!(door.log.appends(), 0);
    // What a body took is given back as its connection ends, which may be after the answer is here.
    let given_back = async {
        while door.ingest.inflight().used_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), given_back).await.expect("all is given back");
}

#[tokio::test]
async fn a_body_announced_as_too_large_is_refused_before_it_is_sent() {
    let door = Door::with_defaults().await;
    let mut wire = door.server.connect().await;
    wire.send(b"POST /v2/events/bulk HTTP/1.1\r\nHost: x\r\nContent-Length: 40000000\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(wire.answer().await.expect("an answer").status, 413, "and no 100");
}

#[tokio::test]
async fn what_the_log_refuses_is_not_acknowledged() {
    let door = Door::with_defaults().await;
    let cases = [(Mood::Full, 429, "log_full"), (Mood::Failed, 503, "log_failed"), (Mood::Closed, 503, "stopping")];
    for (mood, status, code) in cases {
        door.log.set(mood);
        let answer = door.post("/v2/events/bulk", "", lines(&["a"]).as_bytes()).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)));
        assert_eq!(answer.header("retry-after"), Some("1"), "{code}");
        assert_eq!(answer.header("tidegate-ack"), None);
    }
    door.log.set(Mood::Store);
    let answer = door.post("/v2/events/bulk", "", lines(&["a"]).as_bytes()).await;
    assert_eq!(answer.json()["accepted"], 1, "and is stored when it comes again");
}

#[tokio::test]
async fn a_partition_that_hangs_is_full_or_fails_holds_up_its_own_tenants_only() {
    let other = TestLog::new();
    let logs = other.clone();
    let of = |org: &str, _: usize| usize::from(org == "other");
    let config = BatcherConfig { decode_threads: 1, ..BatcherConfig::default() };
    let partitions = move |log: Arc<TestLog>| Partitions::by_tenant(vec![log, logs], of).expect("two logs");
    let door = Door::open_on(IngestConfig::default(), config, partitions).await;
    for (nth, (mood, status)) in [(Mood::Hold, 200), (Mood::Full, 429), (Mood::Failed, 503)].into_iter().enumerate() {
        door.log.set(mood);
        let appends = door.log.appends();
        let (held, free) = (lines(&[&format!("h{nth}")]), lines(&[&format!("f{nth}")]));
        let its_own = door.post("/v2/events/bulk", "", held.as_bytes());
        let others = async {
            while door.log.appends() == appends {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let others = (0..20).map(|_| door.post("/v2/events/bulk", "org: other\r\n", free.as_bytes()));
            let answers = futures::future::join_all(others).await;
            door.log.set(Mood::Store);
            answers
        };
        let (its_own, others) = tokio::join!(its_own, others);
        assert_eq!(its_own.status, status, "{mood:?}");
        assert!(others.iter().all(|answer| answer.status == 200), "{mood:?}");
    }
    let rows = |log: &TestLog| log.stored().iter().map(|(_, batch)| batch.rows.num_rows()).sum::<usize>();
    assert_eq!((rows(&door.log), rows(&other)), (1, 3), "each where it belongs, once");
}

#[tokio::test]
async fn bodies_in_flight_are_bounded_and_small_ones_get_through() {
    let config = IngestConfig {
        inflight_bytes_max: 100_000,
        small_body_bytes: 4_000,
        body_bytes_max: 80_000,
        ..IngestConfig::default()
    };
    let door = Door::open(config, BatcherConfig { decode_threads: 1, ..BatcherConfig::default() }).await;
    let mut slow = door.server.connect().await;
    let head = "POST /v2/events/bulk HTTP/1.1\r\nHost: x\r\nContent-Length: 80000\r\n\r\n";
    slow.send(&[head.as_bytes(), &[b' '; 79_000]].concat()).await;
    while door.ingest.inflight().used_bytes() < 79_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let padded = format!("{{\"a\":\"{}\"}}", "x".repeat(20_000));
    let refused = door.post("/v2/events/bulk", "", padded.as_bytes()).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str(), refused.header("retry-after")),
        (429, Some("too_many_bytes_in_flight"), Some("1"))
    );
    let small = door.post("/v2/events/bulk", "", b"{\"a\":1}").await;
    assert_eq!(small.json()["accepted"], 1, "{small:?}");
    slow.send(&[&[b' '; 993][..], b"{\"a\":1}"].concat()).await;
    assert_eq!(slow.answer().await.expect("an answer").json()["accepted"], 1, "the one that had its share is served");
    let after = door.post("/v2/events/bulk", "", padded.as_bytes()).await;
    assert_eq!(after.status, 200, "there is room again");
}

#[tokio::test]
async fn waiting_bodies_are_appended_together_and_answered_each_for_its_own() {
    let door = Arc::new(Door::with_defaults().await);
    // The only decode thread is kept at its append, so that the others wait together.
    door.log.set(Mood::Block);
    let first = tokio::spawn({
        let door = door.clone();
        async move { door.post("/v2/events/bulk", "", b"{\"a\":1}").await }
    });
    while door.log.appends() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut asked = Vec::new();
    for at in 0..24 {
        let door = door.clone();
        asked.push(tokio::spawn(async move {
            let ack = if at % 3 == 0 { "memory" } else { "disk" };
            // Each tenant sends the same ids twice over its requests, and one line that is no event.
            let body = format!("{}oops\n", lines(&["one", "two", &format!("own{at}")]));
            let headers = format!("Org: t{}\r\n", at % 4);
            let path = format!("/v2/events/bulk?detail=all&ack={ack}");
            door.post(&path, &headers, body.as_bytes()).await
        }));
    }
    while door.batcher.waiting() < 24 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    door.log.set(Mood::Store);
    let mut counts = (0, 0, 0);
    for (at, asked) in asked.into_iter().enumerate() {
        let answer = asked.await.expect("no panic");
        assert_eq!(answer.status, 207, "{answer:?}");
        let reply = answer.json();
        let items = reply["items"].as_array().expect("items").clone();
        assert_eq!(items.len(), 4, "{reply}");
        assert_eq!(items[2]["event_id"], format!("own{at}"), "the rows are its own: {reply}");
        assert_eq!(items[2]["status"], "stored");
        assert_eq!(items[3]["status"], "rejected");
        counts.0 += reply["accepted"].as_u64().expect("a count");
        counts.1 += reply["duplicates"].as_u64().expect("a count");
        counts.2 += reply["rejected"].as_u64().expect("a count");
    }
    // 4 tenants store `one` and `two` once, 24 requests their own.
    assert_eq!(counts, (4 * 2 + 24, 24 * 2 - 4 * 2, 24));
    assert_eq!(first.await.expect("no panic").json()["accepted"], 1);
    assert_eq!(door.log.appends(), 3, "one for the first, one for each ack level of the others");
    let memory = door.log.stored().into_iter().filter(|(ack, _)| *ack == Ack::Memory).count();
    assert!(memory > 0, "the levels are kept apart");
}

#[tokio::test]
async fn a_stop_finishes_what_was_taken() {
    let door = Door::with_defaults().await;
    door.log.set(Mood::Hold);
    let mut wire = door.server.connect().await;
    let body = event("a");
    let head = format!("POST /v2/events HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.send(format!("{head}{body}").as_bytes()).await;
    while door.log.held() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let log = door.log.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        log.set(Mood::Store);
    });
    assert_eq!(door.server.drained().await.cut, 0);
    assert_eq!(wire.answer().await.expect("an answer").json()["accepted"], 1);
    let batcher = door.batcher.clone();
    tokio::task::spawn_blocking(move || batcher.stop()).await.expect("stops");
    assert!(door.health.stuck(Instant::now() + Duration::from_secs(3600), Duration::ZERO).is_empty(), "no work waits");
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_bytes_back() {
    let door = Door::with_defaults().await;
    let mut wire = door.server.connect().await;
    wire.send(b"POST /v2/events/bulk HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{\"a\":").await;
    while door.ingest.inflight().used_bytes() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(wire);
    for _ in 0..400 {
        if door.ingest.inflight().used_bytes() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} bytes are still held", door.ingest.inflight().used_bytes());
}

/// Waits until the log of a door holds so many appends back.
async fn held(door: &Door, appends: usize) {
    let reached = async {
        while door.log.held() < appends {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
    assert!(reached.is_ok(), "{} of {appends} appends came", door.log.held());
}

#[tokio::test]
async fn enough_bytes_go_to_the_log_though_it_is_busy() {
    let batcher = BatcherConfig { decode_threads: 1, group_bytes_eager: 1_000, ..BatcherConfig::default() };
    let door = Arc::new(Door::open(IngestConfig::default(), batcher).await);
    door.log.set(Mood::Hold);
    let mut asked = Vec::new();
    // The second comes in parts, all of which count.
    for (appends, body) in [(1, event("a")), (2, format!("{{\"a\":\"{}\"}}", "x".repeat(60_000)))] {
        let posting = door.clone();
        asked.push(tokio::spawn(async move { posting.post("/v2/events/bulk", "", body.as_bytes()).await }));
        held(&door, appends).await;
    }
    door.log.set(Mood::Store);
    for asked in asked {
        assert_eq!(asked.await.expect("no panic").json()["accepted"], 1);
    }
}

#[tokio::test]
async fn after_a_stop_nothing_more_is_taken() {
    let door = Door::with_defaults().await;
    let batcher = door.batcher.clone();
    tokio::task::spawn_blocking(move || batcher.stop()).await.expect("stops");
    let answer = door.post("/v2/events/bulk", "", lines(&["a"]).as_bytes()).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("stopping")));
    assert_eq!((answer.header("retry-after"), door.log.appends()), (Some("1"), 0));
}
